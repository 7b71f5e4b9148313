"""What another tool recorded of pictures: paths, captions, and vectors to be had by row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["RecordedCaption", "RecordedPicture", "VectorSource", "unit_rows"]


@dataclass(frozen=True, slots=True)
class RecordedCaption:
    """A caption, and the row of its vector; None where the tool embedded none."""

    text: str
    row: int | None


@dataclass(slots=True)
class RecordedPicture:
    """A picture as the tool saw it.

    Attributes:
        path: as it was recorded.
        row: of its vector.
        captions: in the order in which they were recorded.
        size: of the file then, in bytes; None where the tool keeps none.
        mtime: of the file then, in seconds.
        sha256: of its content then.
    """

    path: str
    row: int
    captions: list[RecordedCaption]
    size: int | None = None
    mtime: float | None = None
    sha256: bytes | None = None


class VectorSource(ABC):
    """The vectors of another tool, on disk; nothing there is ever written to.

    Attributes:
        path: where it is.
        kind: the tool.
        dim: length of a vector.
        model: what `load_encoder` takes to get the encoder, where the source tells it.
        pictures: each path once, in the order in which they were recorded.
    """

    path: Path
    kind: str
    dim: int
    model: str | None
    pictures: list[RecordedPicture]

    @abstractmethod
    def image_vectors(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """Return `float32[n, dim]` unit rows; one that is damaged is NaN throughout."""

    @abstractmethod
    def text_vectors(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """Return `float32[n, dim]` unit rows; one that is damaged is NaN throughout."""

    @abstractmethod
    def close(self) -> None:
        """Release its files."""


def unit_rows(rows: NDArray[Any]) -> NDArray[np.float32]:
    """Return rows scaled to length 1; NaN where one has none, or holds what is no number."""
    vectors: NDArray[np.float32] = np.array(rows, dtype=np.float32)
    with np.errstate(all="ignore"):
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
        vectors = (vectors / norms).astype(np.float32)
    vectors[~np.isfinite(vectors).all(axis=1)] = np.nan
    return vectors
