"""Measures of retrieval, from ranks: plain formulas, plain NumPy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CUTOFFS", "mean_reciprocal_rank", "measures", "median_rank", "recall_at"]

CUTOFFS = (1, 5, 10)
"""The k of the Recall@k that are reported."""


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


def measures(ranks: NDArray[np.int64]) -> dict[str, float]:
    """Return every measure of `int64[q]` ranks, from 1, under the name it is reported by.

    >>> measures(np.array([1, 2, 8]))["R@5"]
    66.66666666666666
    """
    recall = {f"R@{k}": recall_at(ranks, k) for k in CUTOFFS}
    return recall | {"median_rank": median_rank(ranks), "mrr": mean_reciprocal_rank(ranks)}
