"""What exported encoders are checked on: pictures drawn with a photograph's statistics, and texts.

No photo is shipped for it. What a tower answers depends on edges, shades and textures at every
scale, and these pictures have them: their spectrum falls as one over the frequency, as that of
photographs does (Field 1987, "Relations between the statistics of natural images and the response
properties of cortical cells"), and shapes with hard edges lie on top.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from mmsearch.retrieval.everyday import everyday_sentences

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["sample_pictures", "sample_texts"]

_SIZES = ((640, 480), (480, 640), (500, 500), (900, 300), (97, 131), (1200, 900), (224, 224))


def sample_pictures() -> list[Image.Image]:
    """Return RGB pictures of several sizes, the same ones at every call."""
    random = np.random.default_rng(0)
    return [_scene(size, random) for size in _SIZES] + [Image.new("RGB", (300, 200), "black")]


def sample_texts() -> list[str]:
    """Return captions and queries, short and long, and what people mistype."""
    scenes = everyday_sentences()
    odd = [
        "",
        "DOG",
        "a Red car!!",
        "42 %",
        "na\u00efve caf\u00e9",
        "\u65e5\u672c",
        "a, b; c " * 60,
    ]
    return scenes[:: max(1, len(scenes) // 9)] + odd


def _scene(size: tuple[int, int], random: np.random.Generator) -> Image.Image:
    width, height = size
    planes = [_cloud(width, height, random) for _ in range(3)]
    shared = planes[0]
    # The three colours of a photograph rise and fall together.
    stacked = np.stack([0.7 * shared + 0.3 * plane for plane in planes], axis=-1)
    lit = 128.0 + 48.0 * stacked + random.uniform(-40.0, 40.0, 3)
    image = Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for number in range(6):
        left, top = (int(random.integers(side)) for side in size)
        right, bottom = left + int(random.integers(8, width)), top + int(random.integers(8, height))
        colour = tuple(int(value) for value in random.integers(0, 256, 3))
        draw = pen.ellipse if number % 2 else pen.rectangle
        draw((left, top, left + (right - left) // 3, top + (bottom - top) // 3), fill=colour)
    return image


def _cloud(width: int, height: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Return float64[height, width] of mean 0 and deviation 1 with a spectrum of 1/f."""
    across, down = np.fft.fftfreq(width)[None, :], np.fft.fftfreq(height)[:, None]
    frequency = np.hypot(across, down)
    frequency[0, 0] = np.inf
    spectrum = np.fft.fft2(random.standard_normal((height, width))) / frequency
    values = np.fft.ifft2(spectrum).real
    scaled: NDArray[np.float64] = (values - values.mean()) / values.std()
    return scaled
