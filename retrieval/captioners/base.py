"""The contract every captioner keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Captioner"]


class Captioner(ABC):
    """Writes a sentence about a picture; the same one for the same picture, always."""

    batch_size = 8
    """Pictures described at once."""

    decode_size = 384
    """Shortest side, in pixels, that decoding must keep."""

    @property
    @abstractmethod
    def label(self) -> str:
        """Name and revision: `hf:NAME@REVISION`."""

    @abstractmethod
    def describe(self, pictures: Sequence[Image.Image]) -> list[str]:
        """Return one sentence for each of 0 to `batch_size` upright RGB pictures; maybe empty."""
