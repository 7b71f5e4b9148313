"""Encoders worth knowing by name, with what their makers say of them.

`known_models.json` holds them: names and sizes as the libraries have them, recalls with the place
they were published in. What could not be traced to its source is left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["KnownModel", "Recall", "known_models"]


@dataclass(frozen=True, slots=True)
class Recall:
    """Published recall at 1, in percent.

    Attributes:
        set: the pictures and captions it was measured on.
        text_to_image: pictures by captions.
        image_to_text: captions by pictures; a hit is any of the picture's.
        source: where it was published.
    """

    set: str
    text_to_image: float
    image_to_text: float
    source: str


@dataclass(frozen=True, slots=True)
class KnownModel:
    """One model.

    Attributes:
        name: what `--model` takes.
        also: the same weights under another name.
        parameters: of both towers.
        dim: length of a vector.
        size: side of the square it looks at, in pixels.
        recall: what was published.
    """

    name: str
    also: str | None = None
    parameters: int | None = None
    dim: int | None = None
    size: int | None = None
    recall: Recall | None = None

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> KnownModel:
        """Raise TypeError for a field that is unknown."""
        recall = fields.get("recall")
        return cls(**fields | {"recall": None if recall is None else Recall(**recall)})


def known_models() -> list[KnownModel]:
    """Return them in the order of the file."""
    text = Path(__file__).with_name("known_models.json").read_text(encoding="utf-8")
    return [KnownModel.from_json(fields) for fields in json.loads(text)]
