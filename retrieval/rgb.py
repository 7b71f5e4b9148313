"""Decoded pixels of any kind to RGB: what a screen with a white ground would show of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

__all__ = ["to_rgb"]

BAND_PIXELS = 1 << 22
"""Larger pictures are converted in bands: what lies between source and result takes many times
their memory, and a file of a few kilobytes may unpack to the largest picture that is read."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a decoded picture in RGB: transparency over white, deep numbers on eight bits.

    Args:
        image: decoded, of any mode. Numbers that are not 0 to 255, or 0 to 65535, are spread over
            the shades from the smallest to the largest; what is no number is white.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        convert = _deep(image)
    elif image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        convert = _over_white
    else:
        return image.convert("RGB")
    width, height = image.size
    if width * height <= BAND_PIXELS:
        return convert(image)
    rgb = Image.new("RGB", image.size)
    for top, band in _bands(image):
        rgb.paste(convert(band), (0, top))
    return rgb


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield copies of some rows at a time, and where they begin."""
    width, height = image.size
    rows = max(1, BAND_PIXELS // width)
    for top in range(0, height, rows):
        yield top, image.crop((0, top, width, min(top + rows, height)))


def _over_white(image: Image.Image) -> Image.Image:
    layer = image.convert("RGBA")
    ground = Image.new("RGB", layer.size, "white")
    ground.paste(layer, mask=layer.getchannel("A"))
    return ground


def _deep(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Return what converts bands of numbers of 16 bits or more."""
    # Pillow's own conversion clips 16-bit grey at 255, which turns photos white.
    clear = image.info.get("transparency")
    clear = clear if isinstance(clear, int) else None
    if image.mode.startswith("I;16"):
        low, factor = 0.0, None
    else:
        low, factor = _spread([_range(band, clear) for _, band in _bands(image)])

    def convert(band: Image.Image) -> Image.Image:
        values = np.asarray(band, dtype=np.float32)
        nothing = ~np.isfinite(values) if clear is None else values == clear
        if image.mode.startswith("I;16"):
            values = values / 257.0
        elif factor is not None:
            values = (values - low) * factor
        grey = np.where(nothing, 255, values).clip(0, 255).round().astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")

    return convert


def _range(band: Image.Image, clear: int | None) -> tuple[float, float]:
    values = np.asarray(band, dtype=np.float32)
    shown = np.isfinite(values) if clear is None else values != clear
    low = values.min(where=shown, initial=np.inf)
    return float(low), float(values.max(where=shown, initial=-np.inf))


def _spread(ranges: list[tuple[float, float]]) -> tuple[float, float | None]:
    """Return what is taken off all numbers, and the factor that brings the rest to 0 to 255."""
    low = min(least for least, _ in ranges)
    high = max(most for _, most in ranges)
    if high < low or (low >= 0 and high <= 255):
        return 0.0, None
    return low, 255.0 / max(high - low, 1e-9)
