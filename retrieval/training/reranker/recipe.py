"""How a reranker is trained: every setting, in one value that is stored beside it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from mmsearch.errors import TrainingError

__all__ = ["RerankerRecipe"]


@dataclass(frozen=True, slots=True)
class RerankerRecipe:
    """Every setting; `__post_init__` refuses what cannot work.

    Attributes:
        late_epochs: passes that train late interaction alone, which is cheap and finds the words.
        epochs: passes after these that train co-attention too. A pass takes each picture as the
            seed of one group.
        group: pictures in a group: a seed and others that the encoder confuses with it. Each is
            scored with each one's caption.
        groups: in a batch; twice as many while late interaction is trained alone.
        pool: how many of the nearest pictures the others of a group are drawn from.
        learning_rate: at its height; twice as high while late interaction is trained alone.
        warmup: share of the steps in which the rate climbs; a cosine to zero follows.
        weight_decay: AdamW's, on matrices only.
        clip_norm: longest gradient.
        dropout: share of the numbers of words and regions that is left out.
        word_dropout: share of the words that is left out.
        matching: weight of the matching loss, pair by pair, beside the contrastive one.
        average: how much of the running average of the weights stays at each step.
        width: of both streams.
        layers: of co-attention.
        views: ways each picture is seen: as it is, mirrored, and random crops.
        longest: words of a caption that are read.
        seed: of everything random.
    """

    late_epochs: int = 4
    epochs: int = 4
    group: int = 8
    groups: int = 8
    pool: int = 300
    learning_rate: float = 8e-4
    warmup: float = 0.07
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    dropout: float = 0.2
    word_dropout: float = 0.1
    matching: float = 0.2
    average: float = 0.999
    width: int = 128
    layers: int = 2
    views: int = 3
    longest: int = 24
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in _LIMITS:
            value = getattr(self, name)
            if not low <= value <= high:
                option = name.replace("_", "-")
                raise TrainingError(f"--{option} must be between {low} and {high}, not {value}.")

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)


_LIMITS = (
    ("late_epochs", 0, 1000),
    ("epochs", 1, 1000),
    ("group", 2, 64),
    ("groups", 1, 512),
    ("pool", 1, 100_000),
    ("learning_rate", 0, 1),
    ("warmup", 0, 1),
    ("weight_decay", 0, 10),
    ("clip_norm", 1e-6, 1e6),
    ("dropout", 0, 0.95),
    ("word_dropout", 0, 0.95),
    ("matching", 0, 1000),
    ("average", 0, 0.99999),
    ("width", 4, 1024),
    ("layers", 1, 12),
    ("views", 1, 16),
    ("longest", 4, 64),
    ("seed", 0, 2**32 - 1),
)
