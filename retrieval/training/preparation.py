"""A loaded model made ready to learn what a recipe asks for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from mmsearch.errors import TrainingError
from mmsearch.retrieval.encoders.heads import ResidualHead
from mmsearch.retrieval.training.lora import insert_lora, merge_lora
from mmsearch.retrieval.training.recipe import Loss, Recipe, Trainable

if TYPE_CHECKING:
    from mmsearch.retrieval.encoders.dual_encoder import DualEncoder
    from mmsearch.retrieval.training.corpus import Corpus

__all__ = ["choose_what_learns", "prepare"]

logger = logging.getLogger(__name__)

EXAMPLES = 256
"""Pairs that the statistics of new heads are taken from."""


def prepare(model: DualEncoder, corpus: Corpus, recipe: Recipe) -> None:
    """Give a model what the recipe asks for before the first step."""
    for head in (model.image_head, model.text_head):
        if isinstance(head, ResidualHead):
            head.set_dropout(recipe.dropout)
    if recipe.temperature:
        nn.init.constant_(model.log_scale.value, -np.log(recipe.temperature))
    if recipe.loss is Loss.SIGMOID and model.log_bias is None:
        # Zhai et al. 2023, section 3: most pairs are negatives, so begin with saying no.
        model.log_bias = nn.Parameter(torch.tensor(-10.0))
        if not recipe.temperature:
            nn.init.constant_(model.log_scale.value, np.log(10.0))
    if recipe.loss is Loss.INFO_NCE:
        # The bias cancels in a softmax: nothing would teach it.
        model.log_bias = None
    if any(_is_new(head) for head in (model.image_head, model.text_head)):
        rows = [row for row in range(len(corpus)) if corpus.captions[row]][:EXAMPLES]
        at_least = model.preprocess.decode_size
        pixels = [model.preprocess(corpus.load(row, at_least=at_least)) for row in rows]
        ids, mask = model.tokenize([corpus.captions[row][0] for row in rows])
        model.standardise_heads(torch.from_numpy(np.stack(pixels)), ids, mask)


def choose_what_learns(model: DualEncoder, recipe: Recipe) -> Callable[[], None]:
    """Lock what does not learn; return what brings the model back to its own modules."""
    if model.untrained and recipe.trainable in {Trainable.TEXT, Trainable.HEADS, Trainable.LORA}:
        logger.warning(
            "Weights of this model are random, and --trainable %s locks some of them. A timm name "
            "with a tag (resnet50.a1_in1k) brings trained ones.",
            recipe.trainable,
        )
    if recipe.trainable in {Trainable.TEXT, Trainable.HEADS}:
        model.lock_image_tower()
    if recipe.trainable is Trainable.HEADS:
        model.lock_text_tower()
    if recipe.trainable is not Trainable.LORA:
        return lambda: None
    updates = {}
    failure: TrainingError | None = None
    for name in ("image_tower", "text_tower"):
        try:
            updates[name] = insert_lora(getattr(model, name), recipe.lora_rank)
        except TrainingError as error:
            # A tower of convolutions: it stays as it is while the other learns.
            getattr(model, f"lock_{name}")()
            failure = error
            what = name.replace("_", " ")
            logger.warning("The %s has no layers for low-rank updates: it stays as it is.", what)
    if not updates and failure is not None:
        raise failure

    def merge() -> None:
        for name, update in updates.items():
            setattr(model, name, merge_lora(update))

    return merge


def _is_new(head: nn.Module) -> bool:
    return isinstance(head, ResidualHead) and not head.mean.any()
