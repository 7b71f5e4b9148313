"""A reranker from beginning to end: pairs and an encoder in, a folder that `--rerank` takes out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmsearch.errors import ModelError, SourceError, StorageError
from mmsearch.retrieval.encoders import load_encoder
from mmsearch.retrieval.encoders.onnx import OnnxEncoder
from mmsearch.retrieval.encoders.samples import sample_pictures
from mmsearch.retrieval.rerankers.co_attention import CoAttention
from mmsearch.retrieval.rerankers.export import OWN_FILES, shapes_of, write_reranker
from mmsearch.retrieval.training.export import put_whole, refuse_foreign
from mmsearch.retrieval.training.reranker.features import (
    IMAGE_INNER,
    TEXT_INNER,
    Features,
    Watcher,
)
from mmsearch.retrieval.training.reranker.groups import GroupBatches, confused_with
from mmsearch.retrieval.training.reranker.loop import RerankerLoop
from mmsearch.retrieval.training.reranker.recipe import RerankerRecipe
from mmsearch.retrieval.training.reranker.validation import Candidates, best_shares
from mmsearch.retrieval.training.session import (
    Run,
    check_both,
    prepare_folder,
    read_both,
    working_folder,
)

if TYPE_CHECKING:
    from mmsearch.retrieval.training.session import Pairs

__all__ = ["RerankerReport", "train_reranker"]

VALIDATED = 1000
"""Captions measured after each epoch; all of them, once, at the end."""

SAMPLED = 4000
"""Pictures and captions whose numbers are brought to mean 0 and deviation 1."""

BANK = 1000
"""Captions that pictures' hubness is judged by; 30,000 were no better."""


@dataclass(frozen=True, slots=True)
class RerankerReport:
    """What a training came to.

    Attributes:
        folder: of the reranker.
        record: how it was trained and what was measured, as it stands in `reranker.json`.
    """

    folder: Path
    record: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the object that `train-reranker --json` prints."""
        return {"schema": 1, "reranker": str(self.folder), **self.record}


def train_reranker(
    pairs: Pairs,
    output: Path,
    *,
    encoder: str = "compact",
    recipe: RerankerRecipe | None = None,
    run: Run | None = None,
) -> RerankerReport:
    """Train a reranker on pairs of pictures and captions, and write its folder.

    What the towers see is computed once and kept, with the state of the training, in a folder
    beside the output until it is complete.

    Args:
        pairs: what to learn from, and what to measure with.
        output: the folder to make.
        encoder: whose answers are reranked: `compact`, or a folder that was trained from it.
        recipe: the settings.
        run: how it runs.

    Raises:
        SourceError: the pairs cannot be used, or nothing is held out to measure with.
        ModelError: the encoder's towers cannot be read, or `output` holds something else.
        TrainingError: a setting is impossible, or the loss is no number.
        StorageError: `output` cannot be written.
        Interrupted: `run.should_stop` said so; `resume` continues.
    """
    recipe, run = recipe or RerankerRecipe(), run or Run()
    started = time.perf_counter()
    refuse_foreign(output, ("reranker.json",))
    towers = load_encoder(encoder)
    if not isinstance(towers, OnnxEncoder):
        raise ModelError(
            f"A reranker cannot be trained for {towers.spec.label}: it reads the towers of compact "
            "or of a model that mmsearch train made from it."
        )
    folder = working_folder(output)
    corpus, held_out = read_both(pairs)
    corpus, held_out = check_both(pairs, corpus, held_out, seed=recipe.seed, run=run)
    if held_out is None:
        raise SourceError(
            "A reranker's parts are weighed by what is held out. Give --validation PAIRS, or "
            "--held-out above 0."
        )
    stages = (True, False) if recipe.late_epochs else (False,)
    prepare_folder(output, resume=run.resume, state=_state(late_only=stages[0]))
    watcher = Watcher(towers, folder / "features", run.progress)
    features = watcher.see(corpus, views=recipe.views, longest=recipe.longest)
    measured = watcher.see(held_out, views=1, longest=recipe.longest)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = _new_model(features, recipe)
    near = confused_with(features, recipe.pool)
    few = Candidates(measured, at_most=VALIDATED, seed=recipe.seed)
    settings = {
        "encoder": towers.spec.weights_sha256,
        "recipe": recipe.to_json(),
        "pairs": corpus.fingerprint(),
    }
    history = []
    for late_only in stages:
        loop = RerankerLoop(
            model,
            GroupBatches(features, near, recipe, groups=recipe.groups * (2 if late_only else 1)),
            recipe,
            late_only=late_only,
            validate=_validation(few, model, late_only=late_only),
        )
        loop.run(
            folder / _state(late_only=late_only),
            settings,
            progress=run.progress,
            on_validation=run.on_validation,
            should_stop=run.should_stop,
        )
        history += loop.history
    record = {
        "encoder": towers.spec.label,
        "recipe": recipe.to_json(),
        "pictures": len(corpus),
        "captions": corpus.pairs,
        "history": history,
        **_weighed(model, measured, recipe.seed),
        "seconds": round(time.perf_counter() - started, 1),
    }
    _write(model, output, towers, record)
    shutil.rmtree(folder)
    return RerankerReport(output, record)


def _state(*, late_only: bool) -> str:
    return "late-interaction.safetensors" if late_only else "checkpoint.safetensors"


def _new_model(features: Features, recipe: RerankerRecipe) -> CoAttention:
    cells, states = features.cells[0], features.states
    count = len(features.texts)
    drawn = np.random.default_rng(recipe.seed).permutation(count)[:BANK]
    model = CoAttention(
        cells.shape[2],
        states.shape[2],
        torch.from_numpy(features.texts[np.sort(drawn)]),
        width=recipe.width,
        layers=recipe.layers,
        dropout=recipe.dropout,
    )
    step = max(1, len(cells) // SAMPLED)
    seen = np.asarray(cells[::step], dtype=np.float32).reshape(-1, cells.shape[2])
    some = slice(None, None, max(1, len(states) // SAMPLED))
    said = np.asarray(states[some], dtype=np.float32)[features.mask[some]]
    for part, values in ((model.code, seen), (model.matcher, said)):
        part.mean.copy_(torch.from_numpy(values.mean(axis=0)))
        part.deviation.copy_(torch.from_numpy(values.std(axis=0) + 1e-4))
    return model


def _validation(
    few: Candidates, model: CoAttention, *, late_only: bool
) -> Callable[[], dict[str, float]]:
    def validate() -> dict[str, float]:
        parts = few.parts(model)
        scores = parts.fused((0.0, 0.0, 1.0, 0.0) if late_only else (0.0, 0.0, 0.5, 0.5))
        return {
            "MRR": few.mean_reciprocal_rank(scores),
            "R@1": few.recall(scores),
            "R@1 before": few.recall(parts.similarity),
        }

    return validate


def _weighed(model: CoAttention, measured: Features, seed: int) -> dict[str, Any]:
    """Choose what the parts weigh, on everything that is held out, and say what that gives."""
    every = Candidates(measured, at_most=len(measured.texts), seed=seed)
    parts = every.parts(model)
    shares = best_shares(every, parts)
    model.shares.copy_(torch.tensor(shares))
    return {
        "shares": dict(zip(("similarity", "hubness", "late", "match"), shares, strict=True)),
        "validation": {
            "captions": len(every.rows),
            "before": {"R@1": every.recall(parts.similarity)},
            "after": {"R@1": every.recall(parts.fused(shares))},
            "hubness taken off similarity": {
                "R@1": every.recall(parts.fused((1.0, -1.0, 0.0, 0.0)))
            },
            "late interaction alone": {"R@1": every.recall(parts.late)},
            "co-attention alone": {"R@1": every.recall(parts.match)},
        },
    }


def _write(model: CoAttention, output: Path, encoder: OnnxEncoder, record: dict[str, Any]) -> None:
    pixels = [encoder.prepare(picture) for picture in sample_pictures()[:1]]
    _, maps = encoder.look(pixels, IMAGE_INNER)
    _, states = encoder.read_words(["a dog"], TEXT_INNER)

    def write(part: Path) -> None:
        write_reranker(
            model,
            part,
            name=output.absolute().name,
            encoder=encoder.spec,
            image_inner=shapes_of(IMAGE_INNER, maps),
            text_inner={
                name: state.shape[2] for name, state in zip(TEXT_INNER, states, strict=True)
            },
            extra={"training": record},
        )

    try:
        put_whole(output, OWN_FILES, write)
    except OSError as error:
        raise StorageError(
            f"The reranker cannot be written to {output}: {error.strerror or error}. Nothing is "
            "lost: make room and run the same command with --resume."
        ) from error
