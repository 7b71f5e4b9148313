"""The parts that dual encoders of transformers share, and the proof that they make up a model.

A family that is not known by name is taken apart like CLIP, into two towers and two projections.
Which state of the text stands for it is found by asking the model itself: only what answers as
its `get_image_features` and `get_text_features` do is used. How its texts want to be padded does
not stand in its files; so it is only taken where the padding makes no difference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mmsearch.retrieval.encoders.dual_encoder import Towers

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from mmsearch.retrieval.encoders.tokens import TextPreprocess

__all__ = ["POOLS", "ImageTower", "TextTower", "check_padding", "shared_towers"]

_PARTS = ("vision_model", "visual_projection", "text_model", "text_projection")

_TOLERANCE = 1e-4
"""Largest difference of a number that counts as equal, relative to the largest there is."""


class ImageTower(nn.Module):
    """The pooled output of a vision model, or its last states where it does not pool."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return float32[n, width] or float32[n, patches, width] for float32[n, 3, size, size]."""
        found = self.model(pixel_values=pixels)
        pooled: torch.Tensor = found[0] if found.pooler_output is None else found.pooler_output
        return pooled


class TextTower(nn.Module):
    """A text model, and which of its states stand for the text."""

    def __init__(self, model: nn.Module, pool: str) -> None:
        super().__init__()
        self.model = model
        self.pool = pool

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return float32[n, width]."""
        if self.pool == "unmasked":
            # SigLIP reads its padding too, and its answer stands at the last place.
            unmasked: torch.Tensor = self.model(input_ids=input_ids).pooler_output
            return unmasked
        found = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return POOLS[self.pool](found, attention_mask)


def _mean(found: Any, mask: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    weights = mask.unsqueeze(-1).to(found[0].dtype)
    summed: torch.Tensor = (found[0] * weights).sum(dim=1)
    return summed / weights.sum(dim=1).clamp(min=1.0)


POOLS: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "pooler": lambda found, _: found.pooler_output,
    "first": lambda found, _: found[0][:, 0],
    "mean": _mean,
}


@torch.inference_mode()
def shared_towers(model: Any) -> Towers:  # noqa: ANN401
    """Return the parts of a model, in evaluation mode, that has them as CLIP does.

    Raises:
        ValueError: it has other parts, or they do not answer as the whole does.
    """
    family = model.config.model_type
    methods = ("get_image_features", "get_text_features")
    missing = [name for name in (*_PARTS, *methods) if not hasattr(model, name)]
    if missing:
        raise ValueError(f"its family, {family!r}, has no {missing[0]} as CLIP does")
    size = model.config.vision_config.image_size
    random = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, size, size, generator=random)
    wanted = _features(model.get_image_features(pixel_values=pixels))
    image = ImageTower(model.vision_model)
    if not _equal(model.visual_projection(image(pixels)), wanted):
        raise ValueError(f"pictures of its family, {family!r}, take another way than CLIP's")
    words = model.config.text_config.vocab_size
    ids = torch.randint(3, words, (2, 6), generator=random)
    mask = torch.ones_like(ids)
    texts = _features(model.get_text_features(input_ids=ids, attention_mask=mask))
    for pool in POOLS:
        text = TextTower(model.text_model, pool)
        try:
            found = model.text_projection(text(ids, mask))
        except (AttributeError, TypeError):
            continue  # This family has no such state.
        if _equal(found, texts):
            return Towers(
                image,
                model.visual_projection,
                text,
                model.text_projection,
                int(wanted.shape[1]),
            )
    raise ValueError(f"texts of its family, {family!r}, take another way than CLIP's")


@torch.inference_mode()
def check_padding(towers: Towers, tokenizer: Tokenizer, texts: TextPreprocess) -> None:
    """Raise `ValueError` where padding changes a text's features, or the longest text fails."""
    texts.configure(tokenizer)
    short, long = "a dog", "a dog and a cat " * texts.max_tokens

    def features(*given: str) -> torch.Tensor:
        ids, mask = (torch.from_numpy(part) for part in texts(tokenizer, given))
        found: torch.Tensor = towers.text_head(towers.text(ids, mask))
        return found

    try:
        alone, beside = features(short), features(short, long)[:1]
    except (IndexError, RuntimeError, ValueError) as error:
        raise ValueError(f"it cannot read texts of {texts.max_tokens} tokens") from error
    if not _equal(alone, beside):
        raise ValueError("its texts change with their padding, which its files do not describe")


def _features(found: Any) -> torch.Tensor:  # noqa: ANN401
    # A value of its own since version 5, a tensor before.
    features: torch.Tensor = getattr(found, "pooler_output", found)
    return features


def _equal(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    if found.shape != wanted.shape:
        return False
    return bool((found - wanted).abs().max() <= _TOLERANCE * wanted.abs().max().clamp(min=1e-6))
