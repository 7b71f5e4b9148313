"""How a model is trained: every setting, in one value that is stored beside the model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from mmsearch.errors import TrainingError

__all__ = ["Loss", "Precision", "Recipe", "Trainable"]


class Trainable(StrEnum):
    """Which weights are trained; the others stay exactly as they are."""

    ALL = "all"
    TEXT = "text"
    """The image tower is locked (LiT, Zhai et al. 2022): vectors of pictures change only through
    its projection."""
    HEADS = "heads"
    """Projections into the joint space alone."""
    LORA = "lora"
    """Low-rank updates of both towers' matrices (Hu et al. 2021), merged at the end, and heads."""


class Loss(StrEnum):
    """The contrastive loss."""

    INFO_NCE = "infonce"
    SIGMOID = "siglip"


class Precision(StrEnum):
    """Numbers that the towers compute with; losses and weights are float32 always."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Every setting of a training; `__post_init__` refuses what cannot work.

    Attributes:
        trainable: which weights learn.
        loss: the contrastive loss.
        epochs: passes over the pictures; each shows a picture once with one of its captions.
        batch: pairs contrasted with each other, over all processes.
        chunk: pairs in memory at once in a process; below `batch` / processes, gradients are
            cached (Gao et al. 2021). 0 means all.
        learning_rate: of the heads, at its height.
        tower_rate: of the towers' own weights, as a fraction of `learning_rate`.
        warmup: share of the steps in which the rate climbs; a cosine to zero follows.
        weight_decay: AdamW's, on matrices only.
        clip_norm: longest gradient; longer ones are shortened to it. 0 turns it off.
        dropout: share of an embedding's inputs to the heads that is left out, where the model has
            such a layer, and of the words of a caption.
        crop: smallest share of a picture's area that a random crop keeps; 1 shows it whole.
        flip: mirror half of the pictures. Captions that say left or right become wrong.
        colour: strength of random brightness, contrast and saturation, 0 to 1.
        average: how much of the running average of the weights stays at each step; 0 turns
            averaging off. The average is what is validated and kept.
        patience: validations without a gain after which training stops; 0 never stops early.
        validate_every: steps between validations; 0 means once an epoch.
        hard_negatives: share of a batch chosen among the nearest pictures of the rest.
        distillation: weight of the teacher encoder's similarities.
        classes: weight of the cross-entropy against class probabilities.
        lora_rank: rank of the updates where `trainable` is `lora`.
        temperature: to begin with; 0 keeps the model's own.
        precision: what the towers compute with.
        seed: of everything random.
    """

    trainable: Trainable = Trainable.ALL
    loss: Loss = Loss.INFO_NCE
    epochs: int = 10
    batch: int = 256
    chunk: int = 0
    learning_rate: float = 5e-4
    tower_rate: float = 0.1
    warmup: float = 0.1
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    dropout: float = 0.1
    crop: float = 0.6
    flip: bool = False
    colour: float = 0.2
    average: float = 0.99
    patience: int = 3
    validate_every: int = 0
    hard_negatives: float = 0.0
    distillation: float = 0.0
    classes: float = 0.0
    lora_rank: int = 8
    temperature: float = 0.0
    precision: Precision = Precision.FP32
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in _LIMITS:
            value = getattr(self, name)
            # Not infinite either: it would make the loss so.
            if not (low <= value <= high and value < _ANY):
                limit = f"between {low} and {high}" if high < _ANY else f"{low} or more"
                option = name.replace("_", "-")
                raise TrainingError(f"--{option} must be {limit}, not {value}.")

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Recipe:
        """Read what `to_json` wrote; raise ValueError, TypeError or TrainingError otherwise."""
        enums = {"trainable": Trainable, "loss": Loss, "precision": Precision}
        values: dict[str, Any] = {
            name: enums[name](value) if name in enums else value for name, value in fields.items()
        }
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return dataclasses.asdict(self)


_ANY = float("inf")
_LIMITS = (
    ("epochs", 1, _ANY),
    ("batch", 2, _ANY),
    ("chunk", 0, _ANY),
    ("learning_rate", 0, 1),
    ("tower_rate", 0, 100),
    ("warmup", 0, 1),
    ("weight_decay", 0, 10),
    ("clip_norm", 0, _ANY),
    ("dropout", 0, 0.95),
    ("crop", 0.05, 1),
    ("colour", 0, 1),
    ("average", 0, 0.99999),
    ("patience", 0, _ANY),
    ("validate_every", 0, _ANY),
    ("hard_negatives", 0, 0.9),
    ("distillation", 0, _ANY),
    ("classes", 0, _ANY),
    ("lora_rank", 1, 1024),
    ("temperature", 0, 10),
    ("seed", 0, 2**32 - 1),
)
