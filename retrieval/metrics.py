"""Measures of retrieval, from ranks: plain formulas, plain NumPy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["first_relevant_rank", "mean_reciprocal_rank", "median_rank", "recall_at"]


def first_relevant_rank(
    scores: NDArray[np.float32], relevant: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return the rank, from 1, of each query's best relevant item.

    Ties count against the query: an irrelevant item with the same score is placed before it, so a
    model that gives everything one score does not look good.

    Args:
        scores: `float32[q, n]`, higher is better.
        relevant: `bool[q, n]`, at least one item for each query.

    Returns:
        `int64[q]`.

    Raises:
        ValueError: shapes differ, or a query has no relevant item.

    >>> first_relevant_rank(np.float32([[0.9, 0.5, 0.5]]), np.array([[False, True, False]]))
    array([3])
    """
    if scores.shape != relevant.shape:
        raise ValueError(f"scores {scores.shape} and relevant {relevant.shape} differ in shape")
    if not relevant.any(axis=1).all():
        raise ValueError("every query needs at least one relevant item")
    best = np.where(relevant, scores, -np.inf).max(axis=1, keepdims=True)
    ahead: NDArray[np.int64] = ((scores >= best) & ~relevant).sum(axis=1)
    return ahead + 1


def recall_at(ranks: NDArray[np.int64], k: int) -> float:
    """Return the percentage of queries with a relevant item among the first `k`, 0 to 100.

    >>> recall_at(np.array([1, 3, 12, 50]), 10)
    50.0
    """
    return 100 * float(np.mean(ranks <= k))


def median_rank(ranks: NDArray[np.int64]) -> float:
    """Return the median rank of the first relevant item.

    >>> median_rank(np.array([1, 3, 12]))
    3.0
    """
    return float(np.median(ranks))


def mean_reciprocal_rank(ranks: NDArray[np.int64]) -> float:
    """Return MRR = mean of 1 / rank, in (0, 1] (Voorhees, TREC-8, 1999).

    >>> mean_reciprocal_rank(np.array([1, 2, 4]))
    0.5833333333333334
    """
    return float(np.mean(1 / ranks))
