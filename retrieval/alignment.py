"""Whether two pictures are one photo, by their pixels: resized, recompressed, cut or turned a bit.

Vectors of a semantic encoder say what pictures show; two beaches may be as alike to them as a photo
and its copy at half the size. Pixels tell these apart, and do not depend on the encoder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["AGREED", "THUMBNAIL_SIDE", "agreement", "least_agreement", "thumbnail"]

THUMBNAIL_SIDE = 64
"""Pixels; enough to be scaled to the sides below without new edges."""

AGREED = 0.80
"""Two photos are one from this agreement on: `benchmarks/bench_duplicates.py` chose it."""

FEW = 100

SIDE = 32
MARGIN = 5
INNER = SIDE - 2 * MARGIN
SCALES = np.linspace(0.88, 1.14, 10)
"""A border or cut of a tenth, at steps small enough that details still fall on each other."""

DETAIL = 7
"""What is wider than this many pixels is light and shade (sky above, ground below), no detail."""

FLAT = 1.0
"""Grey levels of mean detail below which a picture has none: a blank page, a black frame."""

SAME_GREY = 8.0


def thumbnail(image: Image.Image) -> NDArray[np.uint8]:
    """Return `uint8[64, 64]`, a picture in grey, its sides squeezed to a square."""
    small = image.convert("L").resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.uint8)


def agreement(one: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return how well the details of pictures fall on those of another: `float64[m]` in [-1, 1].

    The middle of each of `others` is laid over `one` at ten scales and 81 places; the answer is the
    highest zero-mean normalised cross-correlation (Lewis 1995, "Fast Normalized Cross-Correlation")
    of the pictures less their local means. So light, contrast, size and up to a tenth of the edge
    do not count; a mirrored picture is another one. Pictures without any detail agree (1) where
    their greys do, and with nothing else (0).

    Args:
        one: a `thumbnail`.
        others: `uint8[m, 64, 64]`, thumbnails.
    """
    middles = np.stack([_detail(other, SIDE)[MARGIN:-MARGIN, MARGIN:-MARGIN] for other in others])
    templates, lively = _unit(middles.reshape(len(others), -1))
    windows = []
    for scale in SCALES:
        detail = _detail(one, round(SIDE * scale))
        places = np.lib.stride_tricks.sliding_window_view(detail, (INNER, INNER))
        centre = (len(detail) - INNER) // 2
        near = slice(max(0, centre - MARGIN + 1), centre + MARGIN)
        windows.append(places[near, near].reshape(-1, INNER * INNER))
    rows, any_detail = _unit(np.concatenate(windows))
    found: NDArray[np.float64] = (rows @ templates.T).max(axis=0).astype(np.float64)
    if any_detail.any():
        return np.where(lively, found, 0.0)
    same = np.abs(others.mean(axis=(1, 2)) - one.mean()) <= SAME_GREY
    return np.where(~lively & same, 1.0, 0.0)


def least_agreement(background: NDArray[np.float64]) -> float:
    """Return the agreement from which on two pictures of a library are one photo.

    Pictures of products on white agree by their outlines alone. So it is at least `AGREED`, and at
    least half way from what 99 % of different pictures stay below to complete agreement.

    Args:
        background: `float64[n]`, agreements of pictures that are alike but hardly the same;
            fewer than a hundred say nothing.
    """
    if len(background) < FEW:
        return AGREED
    return max(AGREED, (1 + float(np.quantile(background, 0.99))) / 2)


def _detail(thumb: NDArray[np.uint8], side: int) -> Floats:
    """Return `float32[side, side]`: a thumbnail at that size, less the mean around each pixel."""
    scaled = Image.fromarray(thumb).resize((side, side), Image.Resampling.BILINEAR)
    grey = np.asarray(scaled, dtype=np.float32)
    padded = np.pad(grey, DETAIL // 2, mode="edge")
    sums = np.pad(padded.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    around = sums[DETAIL:, DETAIL:] - sums[:-DETAIL, DETAIL:]
    around -= sums[DETAIL:, :-DETAIL] - sums[:-DETAIL, :-DETAIL]
    detail: Floats = grey - around / np.float32(DETAIL * DETAIL)
    return detail


def _unit(rows: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Return rows of mean 0 and length 1, and which of them have detail; the others are 0."""
    rows = rows - rows.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    lively = lengths[:, 0] >= FLAT * np.sqrt(rows.shape[1])
    return np.where(lively[:, None], rows / np.maximum(lengths, 1e-6), np.float32(0)), lively
