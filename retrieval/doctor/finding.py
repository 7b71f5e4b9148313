"""What an examination finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

__all__ = ["Diagnosis", "Finding", "Part"]


class Part(StrEnum):
    """What is examined, in this order."""

    CATALOG = "catalog"
    """The SQLite file: every page, every reference."""

    WORDS = "words"
    """The full-text indexes against captions, names and metadata."""

    MODEL = "model"
    """The encoder: there, unaltered, the one that the vectors are of."""

    VECTORS = "vectors"
    """Length, norm, finite numbers; with `--deep` a sample is embedded again."""

    INDEX = "index"
    """Index files: checksums, and what they hold against the catalog."""

    KEPT = "kept"
    """What else is derived: the null distribution, regions, thumbnails, half-written files."""

    FILES = "files"
    """The pictures on disk against the catalog; with `--deep` the content of a sample."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        part: where.
        problem: what is wrong, in words.
        advice: what to do about it, where the doctor does not.
        serious: whether it needs attention; else it is only told.
        repaired: whether it was put right.
        names: of pictures or files it is about, the first of them.
    """

    part: Part
    problem: str
    advice: str = ""
    serious: bool = True
    repaired: bool = False
    names: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return one element of `findings`."""
        return {
            "part": self.part.value,
            "problem": self.problem,
            "advice": self.advice,
            "serious": self.serious,
            "repaired": self.repaired,
            "names": list(self.names),
        }


@dataclass(slots=True)
class Diagnosis:
    """What an examination came to.

    Attributes:
        library: the folder of pictures.
        examined: for each part, what was looked at, in words.
        findings: in the order of the parts.
        set_aside: where what could not be repaired was put, if anything.
    """

    library: Path
    examined: dict[Part, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    set_aside: Path | None = None
    seconds: float = 0.0

    @property
    def sound(self) -> bool:
        """Whether nothing needs attention any more."""
        return all(each.repaired or not each.serious for each in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return the object that `doctor --json` prints."""
        return {
            "schema": 1,
            "library": str(self.library),
            "sound": self.sound,
            "examined": {part.value: told for part, told in self.examined.items()},
            "findings": [finding.to_json() for finding in self.findings],
            "set_aside": None if self.set_aside is None else str(self.set_aside),
            "seconds": round(self.seconds, 3),
        }
