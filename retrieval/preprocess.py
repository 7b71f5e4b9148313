"""The image transform: the one way an upright RGB picture becomes the pixels an encoder reads.

Training, indexing and querying all come through here, so they cannot differ.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ImagePreprocess", "Resize"]


class Resize(StrEnum):
    """How a picture of any shape becomes a square."""

    STRETCH = "stretch"
    """Squeeze the whole picture into the square. Nothing at the borders is lost, and it is what
    the bundled encoder saw in training: its sets were published already squashed."""


@dataclass(frozen=True, slots=True)
class ImagePreprocess:
    """Turn an upright RGB picture into `uint8[size, size, 3]`.

    Scaling of the values (mean, standard deviation) belongs to the encoder's own graph.

    Attributes:
        size: side of the square, in pixels.
        resize: how the picture is brought to the square.
        interpolation: name of a Pillow resampling filter, in lower case.
    """

    size: int
    resize: Resize = Resize.STRETCH
    interpolation: str = "bicubic"

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> ImagePreprocess:
        """Read what `to_json` wrote; raise `ValueError` for an unknown mode or filter."""
        preprocess = cls(
            size=int(fields["size"]),
            resize=Resize(fields["resize"]),
            interpolation=str(fields["interpolation"]),
        )
        if preprocess.interpolation.upper() not in Image.Resampling.__members__:
            raise ValueError(f"unknown interpolation {preprocess.interpolation!r}")
        return preprocess

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values; equal fields mean equal pixels."""
        return asdict(self)

    @property
    def decode_size(self) -> int:
        """Shortest side, in pixels, that decoding must keep for this transform to lose nothing.

        Twice the target: scaling down by at least two with an antialiasing filter hides that the
        decoder already dropped the finest detail.
        """
        return 2 * self.size

    def __call__(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return the pixels of an upright RGB picture as `uint8[size, size, 3]`."""
        filter_ = Image.Resampling[self.interpolation.upper()]
        squared = image.resize((self.size, self.size), filter_, reducing_gap=3.0)
        return np.asarray(squared, dtype=np.uint8)
