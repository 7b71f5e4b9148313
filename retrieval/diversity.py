"""Answers that differ from each other: pure functions, each with its formula and source."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Vectors = NDArray[np.float32] | NDArray[np.float16]

__all__ = ["facility_location", "maximal_marginal_relevance"]


def maximal_marginal_relevance(
    relevance: Floats, vectors: Vectors, k: int, diversity: float
) -> NDArray[np.int64]:
    """Return `int64[min(k, n)]`, which rows to show, in this order (Carbonell and Goldstein 1998).

    The most relevant comes first; then, one after the other, the row with the highest
    `(1 - diversity) · relevance - diversity · (similarity to the nearest row chosen before)`. Of
    equal ones the first row is taken.

    Args:
        relevance: `float64[n]`, finite, on the scale of cosine similarity.
        vectors: `float32[n, dim]` (or half precision), unit rows.
        k: how many, at least 1.
        diversity: 0 (nothing but relevance) to 1 (nothing but difference, after the first).

    Raises:
        ValueError: `k` or `diversity` is out of range, or the shapes do not fit.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    if not 0 <= diversity <= 1:
        raise ValueError(f"diversity must be between 0 and 1, not {diversity}")
    if relevance.shape != vectors.shape[:1]:
        raise ValueError(f"{len(vectors)} rows need as many relevances, not {relevance.shape}")
    count = min(k, len(relevance))
    chosen = np.empty(count, dtype=np.int64)
    if count == 0:
        return chosen
    if diversity == 0:
        chosen[:] = np.argsort(-relevance, kind="stable")[:count]
        return chosen
    rows = vectors.astype(np.float64)
    gained = (1 - diversity) * relevance
    nearest = np.full(len(rows), -np.inf)
    chosen[0] = np.argmax(relevance)
    for i in range(1, count):
        last = chosen[i - 1]
        np.maximum(nearest, rows @ rows[last], out=nearest)
        # Never again.
        gained[last] = -np.inf
        chosen[i] = np.argmax(gained - diversity * nearest)
    return chosen


def facility_location(vectors: Vectors, k: int) -> tuple[NDArray[np.int64], Floats]:
    """Return rows that stand for all of them, chosen greedily, and what each one brought.

    Maximises `Σⱼ maxᵢ cos(vᵢ, vⱼ)` over the chosen `i`: taking the row that adds most, again and
    again, comes within 1 - 1/e of the best choice (Nemhauser, Wolsey and Fisher 1978). The first
    rows of a longer choice are a shorter one. Of equal rows the first is taken. Takes time and
    memory in n².

    Args:
        vectors: `float32[n, dim]` (or half precision), unit rows.
        k: how many, at least 1.

    Returns:
        `int64[min(k, n)]` rows in the order of choice, and `float64[min(k, n)]`, by how much each
        of them brought the mean cosine between a row and its nearest chosen one up: it falls, from
        at most 2 (before any choice that mean counts as -1).

    Raises:
        ValueError: `k` is below 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    rows = vectors.astype(np.float64)
    count = min(k, len(rows))
    chosen, brought = np.empty(count, dtype=np.int64), np.empty(count)
    similarity = rows @ rows.T
    nearest = np.full(len(rows), -1.0)
    left = np.ones(len(rows), dtype=np.bool_)
    for i in range(count):
        gains = np.maximum(similarity, nearest).mean(axis=1) - nearest.mean()
        gains[~left] = -np.inf
        chosen[i] = np.argmax(gains)
        brought[i] = max(0.0, float(gains[chosen[i]]))
        left[chosen[i]] = False
        np.maximum(nearest, similarity[chosen[i]], out=nearest)
    return chosen, brought
