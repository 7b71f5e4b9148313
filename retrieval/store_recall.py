"""What a store's index should find: a few hundred queries and their true neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from mmsearch.indexes.other_queries import other_queries
from mmsearch.retrieval.schema import Target

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.catalog import Catalog

    Ids = NDArray[np.int64]
    Vectors = NDArray[np.float32]
    VectorsOf = Callable[[Target, Ids], tuple[Ids, Vectors]]

__all__ = ["ASKED", "asked_of"]

ASKED = 10
"""Recall is measured among the first ten."""
QUERIES = 400
"""Vectors of each kind; one half chooses an effort, the other measures it."""
ROWS_AT_ONCE = 20_000
"""Vectors that are compared at once."""


def asked_of(
    catalog: Catalog, target: Target, encoder_id: int, vectors_of: VectorsOf
) -> list[tuple[Vectors, Ids]]:
    """Return queries and their true first ten: the target's own vectors, and others.

    Others are captions where pictures are searched, and the other way round; imitated where there
    are few. All vectors are read and compared, a block at a time.

    Args:
        catalog: holds the vectors.
        target: what is searched.
        encoder_id: whose vectors.
        vectors_of: called with a target and ascending ids; returns those that have a vector and
            `float32[n, dim]`, as they are searched.
    """
    found = {}
    for each in Target:
        ids = catalog.vector_ids(each, encoder_id)
        found[each] = vectors_of(each, ids[:: max(1, -(-len(ids) // QUERIES))])[1]
    other = Target.CAPTIONS if target is Target.IMAGES else Target.IMAGES
    own = found[target]
    others, _ = other_queries(found[other], own, np.random.default_rng(0))
    true = _true(catalog.vector_ids(target, encoder_id), target, vectors_of, [own, others])
    return [(own, true[: len(own)]), (others, true[len(own) :])]


def _true(ids: Ids, target: Target, vectors_of: VectorsOf, asked: list[Vectors]) -> Ids:
    """Return `int64[q, 10]`, the nearest of each query by exact comparison; -1 beyond the last."""
    queries = np.concatenate(asked)
    best = np.full((len(queries), ASKED), -1, dtype=np.int64)
    scores = np.full((len(queries), ASKED), -np.inf, dtype=np.float32)
    for start in range(0, len(ids), ROWS_AT_ONCE):
        known, vectors = vectors_of(target, ids[start : start + ROWS_AT_ONCE])
        both = np.concatenate([scores, queries @ vectors.T], axis=1)
        order = np.argpartition(-both, ASKED - 1, axis=1)[:, :ASKED]
        named = np.concatenate([best, np.broadcast_to(known, (len(queries), len(known)))], axis=1)
        best = np.take_along_axis(named, order, axis=1)
        scores = np.take_along_axis(both, order, axis=1)
    return best
