"""What a training did, for people and for the model's own folder."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmsearch.retrieval.training.distributed import process

if TYPE_CHECKING:
    from mmsearch.retrieval.training.corpus import Corpus
    from mmsearch.retrieval.training.loop import Outcome
    from mmsearch.retrieval.training.recipe import Recipe

__all__ = ["TrainingReport", "training_record"]

RECORDED = ("mmsearch", "torch", "numpy", "timm", "open_clip_torch", "transformers", "peft", "onnx")


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What a training did; also stored in its `model.json`.

    Attributes:
        model: the folder.
        outcome: what the loop says.
        record: what is stored.
        is_first: whether this is the one process that wrote the model and should tell of it.
    """

    model: Path
    outcome: Outcome
    record: dict[str, Any] = field(default_factory=dict)
    is_first: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return the object that `train --json` prints."""
        return {"schema": 1, "model": str(self.model)} | self.record


def training_record(
    pairs: str,
    source: str,
    recipe: Recipe,
    corpus: Corpus,
    held_out: Corpus | None,
    outcome: Outcome,
    seconds: float,
) -> dict[str, Any]:
    """Return, as JSON, what was trained from what, how, with which versions and to what effect."""
    versions = {}
    for package in RECORDED:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    steps = [row["seconds"] for row in outcome.history]
    return {
        "from": source,
        "recipe": recipe.to_json(),
        "pairs": Path(pairs).name,
        "pairs_sha256": corpus.fingerprint(),
        "pictures": len(corpus),
        "captions": corpus.pairs,
        "held_out": 0 if held_out is None else len(held_out),
        "skipped": [list(entry) for entry in corpus.skipped],
        "steps": len(outcome.history),
        "best_step": outcome.best_step,
        "stopped_early": outcome.stopped_early,
        "validation": {name: round(value, 2) for name, value in outcome.best.items()},
        "seconds": round(seconds, 1),
        "steps_per_second": round(len(steps) / max(sum(steps), 1e-9), 3),
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        "processes": process()[1],
        "versions": versions,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
