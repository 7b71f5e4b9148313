"""Queries that come from elsewhere than the vectors of an index, which are harder to answer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["HELD_OUT", "other_queries"]

HELD_OUT = 1_000
"""Vectors kept aside as queries: one half of them tunes, the other measures."""
OWN_QUERIES_FROM = 100
"""With fewer queries of the other kind, they are imitated."""


def other_queries(
    queries: NDArray[np.float32] | None,
    own: NDArray[np.float32],
    generator: np.random.Generator,
) -> tuple[NDArray[np.float32], str]:
    """Return queries that come from elsewhere, and whether they were given or imitated.

    The vectors of texts lie apart from those of pictures by an offset that is much the same for
    all, and scatter (Liang et al., "Mind the Gap", 2022): searching from there is harder.
    """
    if queries is not None and len(queries) >= OWN_QUERIES_FROM:
        chosen = generator.choice(len(queries), min(HELD_OUT, len(queries)), replace=False)
        return np.ascontiguousarray(queries[chosen], dtype=np.float32), "given"
    dim = own.shape[1]
    offset = generator.normal(size=dim) * 0.9 / math.sqrt(dim)
    scatter = generator.normal(size=own.shape) * 0.5 / math.sqrt(dim)
    moved = own + offset + scatter
    return (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32), "imitated"
