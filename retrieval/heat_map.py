"""Maps of where a picture matches: windows painted on a grid, squares laid back, one scale."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from mmsearch.retrieval.preprocess import Box

    Floats = NDArray[np.float64]

__all__ = ["grid_of", "laid_back", "painted", "scaled", "windows"]

CELLS = 32
"""Along the longer side of a map."""

SCALES = (1 / 2, 1 / 3)
"""Sides of windows, as shares of the shorter side."""

ELONGATED = 2
"""Windows are squares in pictures that are no longer than this, for their width; of longer ones
they get longer, so that a panorama does not take hundreds."""


def grid_of(width: int, height: int) -> tuple[int, int]:
    """Return the rows and columns of the map of a picture, cells as square as can be."""
    longer = max(width, height)
    return max(1, round(CELLS * height / longer)), max(1, round(CELLS * width / longer))


def windows(width: int, height: int) -> list[Box]:
    """Return overlapping windows of several sizes that cover a picture, each half over the next.

    Square ones, where that is possible: no image transform cuts a square, or distorts it.
    """
    shorter = min(width, height)
    found = []
    for scale in SCALES:
        across = _places(scale * max(shorter, width / ELONGATED) / width)
        down = _places(scale * max(shorter, height / ELONGATED) / height)
        found += [(left, top, right, bottom) for top, bottom in down for left, right in across]
    return found


def _places(share: float) -> list[tuple[float, float]]:
    """Return where windows of a share of a side begin and end, from 0 to 1."""
    count = math.ceil((1 - share) / (share / 2) - 1e-9) + 1
    return [(start, start + share) for start in np.linspace(0, 1 - share, count).tolist()]


def painted(boxes: list[Box], values: ArrayLike, grid: tuple[int, int]) -> Floats:
    """Return `float64[rows, columns]`: of each cell the mean value of the windows over its middle.

    Args:
        boxes: windows that together cover everything.
        values: `[n]`, one for each.
        grid: rows and columns.
    """
    rows, columns = ((np.arange(count) + 0.5) / count for count in grid)
    total, times = np.zeros(grid), np.zeros(grid)
    for (left, top, right, bottom), value in zip(boxes, np.asarray(values), strict=True):
        inside = np.outer((rows >= top) & (rows <= bottom), (columns >= left) & (columns <= right))
        total += inside * float(value)
        times += inside
    found: Floats = total / np.maximum(times, 1)
    return found


def laid_back(cells: ArrayLike, seen: Box, grid: tuple[int, int]) -> Floats:
    """Return `float64[rows, columns]` of a picture from the cells of the square an encoder saw.

    Between the middles of cells values change evenly; what the encoder did not see gets 0.

    Args:
        cells: `[h, w]`, over the whole square.
        seen: where the square's edges lie in the picture, see `ImagePreprocess.seen`.
        grid: rows and columns.
    """
    values = np.asarray(cells, dtype=np.float64)
    left, top, right, bottom = seen
    down, across = ((np.arange(count) + 0.5) / count for count in grid)
    down, across = (down - top) / (bottom - top), (across - left) / (right - left)
    found: Floats = _between(_between(values, down).T, across).T
    found[(down < 0) | (down > 1)] = 0
    found[:, (across < 0) | (across > 1)] = 0
    return found


def _between(values: Floats, places: Floats) -> Floats:
    """Return rows of `values` at places from 0 (upper edge) to 1 (lower edge)."""
    last = len(values) - 1
    exact = np.clip(places * len(values) - 0.5, 0, last)
    lower = np.minimum(exact.astype(np.int64), max(last - 1, 0))
    share = (exact - lower)[:, None]
    found: Floats = values[lower] * (1 - share) + values[np.minimum(lower + 1, last)] * share
    return found


def scaled(values: Floats) -> NDArray[np.float32]:
    """Return the map with its least value at 0 and its greatest at 1; all 0 where it is flat."""
    low, high = float(values.min()), float(values.max())
    if not high - low > 1e-9:
        return np.zeros(values.shape, dtype=np.float32)
    return ((values - low) / (high - low)).astype(np.float32)
