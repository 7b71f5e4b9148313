"""What single regions of a picture say: vectors of parts, from one pass of the bundled tower.

The image tower (`edge_tower`) ends in means over the cells of three convolutions, which the head
(`heads.ResidualHead`) turns into the picture's vector. The mean over some of the cells, through the
same head, is the vector of that part of the picture, in the same space and comparable with texts:
class activation mapping (Zhou et al. 2016, "Learning Deep Features for Discriminative
Localization", arXiv:1512.04150) for a head that is not linear.

Cells and weights are tensors inside the ONNX graph, by the names that the export gave them, so
this works for the bundled encoder and for models trained from it. Nothing is taken on trust: the
parts must make up the model's own vector of the whole picture.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["INNER", "Regions"]

_CELLS = tuple(f"/image_tower/blocks.{block}/convs.0/Relu_output_0" for block in (23, 18, 10))
_HEAD = tuple(
    f"model.image_head.{name}"
    for name in (
        "mean",
        "deviation",
        "straight.weight",
        "straight.bias",
        "bent.0.weight",
        "bent.0.bias",
        "bent.3.weight",
        "bent.3.bias",
    )
)
INNER = (*_CELLS, *_HEAD)
"""Names of the tensors, in the order in which `Regions` wants them behind the vector."""

WINDOW = 2
"""Cells along the side of a region, of the coarsest convolution's: by `bench_explain.py`, where
1 to 4 differ by no more than chance."""

_TOLERANCE = 1e-3
"""Of a coordinate of the whole picture's vector."""

_erf = np.vectorize(math.erf, otypes=[np.float64])


class Regions:
    """Vectors of the regions of one picture after another."""

    def __init__(self, session: Any) -> None:  # noqa: ANN401 (ONNX Runtime has no types)
        """Take a session whose outputs are the vector and `INNER`."""
        self._session = session

    def __call__(self, pixels: NDArray[np.uint8]) -> Floats | None:
        """Return `float32[n, n, dim]`, unit rows, of the overlapping regions of a square picture.

        Region (i, j) covers from `i / (n + 1)` to `(i + 2) / (n + 1)` of the height, and so on for
        the width. None where the parts do not make up the model's vector, so that they would say
        something else than the model.

        Args:
            pixels: `uint8[size, size, 3]`.
        """
        whole, *inner = self._session.run(None, {"pixels": pixels[None]})
        cells, head = [each[0] for each in inner[: len(_CELLS)]], inner[len(_CELLS) :]
        means = np.concatenate([each.mean(axis=(1, 2)) for each in cells])
        if not np.allclose(_through(head, means[None]), whole, atol=_TOLERANCE):
            return None
        count = min(each.shape[1] for each in cells)
        coarse = np.concatenate([_pooled(each, count) for each in cells])
        views = sliding_window_view(coarse, (WINDOW, WINDOW), axis=(1, 2)).mean(axis=(3, 4))
        found = _through(head, views.reshape(len(views), -1).T)
        return found.reshape(*views.shape[1:], -1)


def _pooled(cells: Floats, count: int) -> Floats:
    """Return float32[channels, count, count], means of neighbouring cells."""
    channels, height, width = cells.shape
    parts = cells.reshape(channels, count, height // count, count, width // count)
    pooled: Floats = parts.mean(axis=(2, 4))
    return pooled


def _through(head: list[Floats], features: Floats) -> Floats:
    """Return what `ResidualHead` gives in evaluation: unit rows for float32[n, width] features."""
    mean, deviation, straight, straight_bias, opened, opened_bias, closed, closed_bias = head
    scaled = np.clip((features - mean) / deviation, -8, 8)
    inner = scaled @ opened.T + opened_bias
    inner = inner * 0.5 * (1 + _erf(inner / math.sqrt(2)))
    found = scaled @ straight.T + straight_bias + inner @ closed.T + closed_bias
    unit: Floats = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
    return unit
