"""Panoramas and tall pictures seen whole: as overlapping squares, whose mean is the vector.

`tiles:` before a model's name, such as `tiles:open_clip:MODEL/PRETRAINED`. Models in CLIP's way cut
the middle out of a picture, so that what lies at the ends of a panorama is never seen; models that
squeeze a picture into a square see it all, small and distorted. Here each square is what the model
was trained on. Pictures that are not much longer than wide are embedded as ever, to the last bit,
and so are texts. The vectors of long ones are others, so this is part of the encoder's
`preprocessing`: a library keeps the way that it was made with.

Measured by `benchmarks/bench_panoramas.py`, and told in `docs/reliability.md`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mmsearch.retrieval.encoders.base import Encoder, unit_rows
from mmsearch.retrieval.encoders.sources import TILES

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from mmsearch.retrieval.preprocess import Box
    from mmsearch.retrieval.schema import EncoderSpec

__all__ = ["BEYOND", "MOST", "Tiled", "tiles"]

BEYOND = 2.0
"""Times the shorter side, beyond which a picture is long: the middle is less than half of it."""

MOST = 16
"""Squares of one picture, each half over the one before; enough for 8.5 to 1."""


def tiles(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Return the parts of a picture that are embedded, as left, top, right and bottom in pixels.

    Squares of the shorter side, from one end to the other; of pictures so long that it would be
    more than `MOST`, as many oblongs. A picture that is not long is one part.
    """
    long, short = max(width, height), min(width, height)
    if long <= BEYOND * short:
        return [(0, 0, width, height)]
    count = 1 + math.ceil(2 * (long - short) / short)
    side = short
    if count > MOST:
        count, side = MOST, math.ceil(2 * long / (MOST + 1))
    starts = [round((long - side) * i / (count - 1)) for i in range(count)]
    if width > height:
        return [(at, 0, at + side, height) for at in starts]
    return [(0, at, width, at + side) for at in starts]


class Tiled(Encoder):
    """Another encoder, to which long pictures are shown in parts."""

    def __init__(self, encoder: Encoder) -> None:
        """Take over an encoder whose prepared pictures are `[size, size, 3]`."""
        self._whole = encoder
        fields = json.loads(encoder.spec.preprocessing)
        fields["tiles"] = {"beyond": BEYOND, "most": MOST}
        self._spec = replace(
            encoder.spec,
            name=f"{TILES}{encoder.spec.name}",
            preprocessing=json.dumps(fields, sort_keys=True),
        )

    @property
    def batch_size(self) -> int:  # type: ignore[override]
        """As the encoder itself has it, which may find out a better one."""
        return self._whole.batch_size

    @property
    def text_batch_size(self) -> int | None:  # type: ignore[override]
        """As the encoder itself has it."""
        return self._whole.text_batch_size

    @property
    def device(self) -> str:  # type: ignore[override]
        """What computes."""
        return self._whole.device

    @property
    def spec(self) -> EncoderSpec:
        """The encoder's own, and that long pictures are seen in parts."""
        return self._spec

    @property
    def location(self) -> str:
        """The encoder's own, behind `tiles:`."""
        return f"{TILES}{self._whole.location}"

    @property
    def decode_size(self) -> int:
        """As the encoder itself has it: a part is as high as its picture."""
        return self._whole.decode_size

    def prepare(self, image: Image.Image) -> NDArray[Any]:
        """Return `uint8[size, size, 3]`, or of a long picture `uint8[parts, size, size, 3]`."""
        boxes = tiles(*image.size)
        if len(boxes) == 1:
            return self._whole.prepare(image)
        return np.stack([self._whole.prepare(self._square(image.crop(box))) for box in boxes])

    def encode_pixels(self, pixels: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """Embed prepared pictures: `float32[n, dim]`, unit rows; of parts the mean's direction."""
        counts = [len(each) if each.ndim == 4 else 1 for each in pixels]
        parts = [part for each in pixels for part in (each if each.ndim == 4 else [each])]
        vectors = self._whole.encode_pixels(parts)
        if len(parts) == len(pixels):
            return vectors
        starts = np.cumsum([0, *counts[:-1]])
        # Those that are whole stay what they are, to the last bit.
        found: NDArray[np.float32] = vectors[starts]
        means = unit_rows(np.add.reduceat(vectors, starts))
        several = np.array(counts) > 1
        found[several] = means[several]
        return found

    def encode_images(self, images: Sequence[Path | str | Image.Image]) -> NDArray[np.float32]:
        """Embed pictures, given as paths or Pillow images: `float32[n, dim]`, unit rows.

        Raises:
            MediaError: a picture cannot be read; the message names it.
        """
        from mmsearch.retrieval.media import load_rgb

        def encode(batch: Sequence[Path | str | Image.Image]) -> NDArray[np.float32]:
            upright = (load_rgb(image, at_least=self.decode_size) for image in batch)
            return self.encode_pixels([self.prepare(image) for image in upright])

        return self._in_batches(images, encode)

    def encode_regions(self, image: Image.Image) -> tuple[NDArray[np.float32], Box] | None:
        """Embed regions as the encoder itself does."""
        return self._whole.encode_regions(image)

    def encode_texts(
        self, texts: Sequence[str], *, progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        """Embed texts as the encoder itself does."""
        return self._whole.encode_texts(texts, progress=progress)

    def _encode_pixels(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        return self._whole._encode_pixels(pixels)

    def _encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._whole._encode_texts(texts)

    def _square(self, part: Image.Image) -> Image.Image:
        """Return a part as a square: nothing of it may be cut off by the encoder's transform."""
        if part.width == part.height:
            return part
        side = self.decode_size
        return part.resize((side, side), Image.Resampling.BICUBIC, reducing_gap=3.0)
