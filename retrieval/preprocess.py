"""The image transform: the one way an upright RGB picture becomes the pixels an encoder reads.

Training, indexing and querying all come through here, so they cannot differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["KEPT", "Box", "ImagePreprocess", "Resize"]

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, as shares of a picture's width and height."""


KEPT = 1.4
"""Times as many pixels as the target that a decoder keeps of a large picture, along each side.

What it drops is finer than what scaling down by as much with an antialiasing filter leaves.
Measured on 110 photos of 12 megapixels, of which 1.4 means an eighth: cosines of 0.9993 to whole
decoding (0.9999 at 2, a quarter, which takes 14 ms longer), and as many captions that find them.
"""


LONGEST = 16
"""Times the shorter side that is resized before the middle is cut out: of a picture of 1 by 30,000
pixels that would be a gigabyte, of which all but a square is dropped."""


class Resize(StrEnum):
    """How a picture of any shape becomes a square."""

    STRETCH = "stretch"
    """Squeeze the whole picture into the square. Nothing at the borders is lost, and it is what
    the bundled encoder saw in training: its sets were published already squashed. SigLIP too."""

    CROP = "crop"
    """Bring the shortest side to the square's and cut the middle out, as CLIP does."""

    PAD = "pad"
    """Bring the longest side to the square's and fill the rest with one grey."""


@dataclass(frozen=True, slots=True)
class ImagePreprocess:
    """Turn an upright RGB picture into `uint8[size, size, 3]`.

    Scaling of the values (mean, standard deviation) belongs to the encoder's own graph.

    Attributes:
        size: side of the square, in pixels.
        resize: how the picture is brought to the square.
        interpolation: name of a Pillow resampling filter, in lower case.
        resize_to: side the picture is resized to before its middle of `size` pixels is cut out;
            `None` is `size` itself.
        reducing_gap: Pillow's own: large pictures are first shrunk roughly, to no less than this
            many times the target; faster, and off by a grey level here and there. `None` takes
            every pixel into account, as torchvision does, and is what models made elsewhere get.
        fill: grey level of the borders of `Resize.PAD`.
        floor: where half a pixel of the middle goes: down, as transformers has it, or to the even
            side, as torchvision has it.
    """

    size: int
    resize: Resize = Resize.STRETCH
    interpolation: str = "bicubic"
    resize_to: int | None = None
    reducing_gap: float | None = 3.0
    fill: int = 0
    floor: bool = False

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> ImagePreprocess:
        """Read what `to_json` wrote; raise `ValueError` for an unknown mode or filter."""
        resize_to, gap = fields.get("resize_to"), fields.get("reducing_gap", 3.0)
        preprocess = cls(
            size=int(fields["size"]),
            resize=Resize(fields["resize"]),
            interpolation=str(fields["interpolation"]),
            resize_to=None if resize_to is None else int(resize_to),
            reducing_gap=None if gap is None else float(gap),
            fill=int(fields.get("fill", 0)),
            floor=bool(fields.get("floor", False)),
        )
        if preprocess.interpolation.upper() not in Image.Resampling.__members__:
            raise ValueError(f"unknown interpolation {preprocess.interpolation!r}")
        if preprocess.size < 1 or preprocess.target < preprocess.size:
            raise ValueError(f"size {preprocess.size}, resize_to {preprocess.resize_to}")
        if not 0 <= preprocess.fill <= 255:
            raise ValueError(f"fill {preprocess.fill}")
        return preprocess

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values; equal fields mean equal pixels.

        What came later than the first three is left out where it says nothing new: catalogs
        compare this with what they were made with.
        """
        fields: dict[str, Any] = {
            "size": self.size,
            "resize": str(self.resize),
            "interpolation": self.interpolation,
        }
        if self.resize_to is not None:
            fields["resize_to"] = self.resize_to
        if self.reducing_gap != 3.0:
            fields["reducing_gap"] = self.reducing_gap
        if self.fill:
            fields["fill"] = self.fill
        if self.floor:
            fields["floor"] = True
        return fields

    @property
    def target(self) -> int:
        """Side, in pixels, that the picture is resized to."""
        return self.resize_to or self.size

    @property
    def decode_size(self) -> int:
        """Shortest side, in pixels, that decoding must keep: `KEPT` times the target."""
        return round(KEPT * self.target)

    def __call__(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return the pixels of an upright RGB picture as `uint8[size, size, 3]`."""
        filter_ = Image.Resampling[self.interpolation.upper()]
        if self.resize is Resize.CROP:
            image = _middle(image)
        resized = image.resize(self._resized(*image.size), filter_, reducing_gap=self.reducing_gap)
        return np.asarray(self._squared(resized), dtype=np.uint8)

    def seen(self, width: int, height: int) -> Box:
        """Return where the edges of the square lie in a picture of this size.

        Returns:
            left, top, right and bottom as shares of width and height: 0 and 1 where the whole
            picture fills the square, between them where its middle is cut out, beyond where the
            square has borders.
        """
        across, down = self._resized(width, height)
        left, top = (0 if side == self.size else self._offset(side) for side in (across, down))
        return left / across, top / down, (left + self.size) / across, (top + self.size) / down

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        target = self.target
        match self.resize:
            case Resize.STRETCH:
                return target, target
            case Resize.CROP:
                # Rounded down, as torchvision does it.
                short, long = (
                    min(width, height),
                    int(target * max(width, height) / min(width, height)),
                )
                return (target, long) if width == short else (long, target)
            case Resize.PAD:
                ratio = max(width, height) / target
                return max(1, round(width / ratio)), max(1, round(height / ratio))

    def _squared(self, image: Image.Image) -> Image.Image:
        if image.size == (self.size, self.size):
            return image
        left, top = (self._offset(side) for side in image.size)
        if min(image.size) >= self.size:
            return image.crop((left, top, left + self.size, top + self.size))
        square = Image.new("RGB", (self.size, self.size), (self.fill,) * 3)
        square.paste(image, (-left, -top))
        return square

    def _offset(self, side: int) -> int:
        """Return where the square starts along a side; negative where the square is larger."""
        if side < self.size or self.floor:
            return int((side - self.size) / 2.0)
        return round((side - self.size) / 2.0)


def _middle(image: Image.Image) -> Image.Image:
    """Return a picture without ends of which nothing is left after the middle is cut out.

    As much is taken off at both, so that the middle stays where it is.
    """
    across, down = (max(0, (long - LONGEST * min(image.size)) // 2) for long in image.size)
    if across == down == 0:
        return image
    return image.crop((across, down, image.width - across, image.height - down))
