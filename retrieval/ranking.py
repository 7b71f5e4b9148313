"""Ranks among more answers than a matrix of scores has room for: block by block, and exactly.

Ties decide what a rank is worth, and a matrix product in floating point decides ties by accident:
the last bits of a score depend on the shape of the block and on where in it the pair stands. So
scores here are exact numbers. Coordinates are rounded to multiples of 2⁻²⁴ (fp16 coordinates are
such multiples already; float32 ones of unit vectors move by less than their own precision); a
product of two is a multiple of 2⁻⁴⁸, and so is every partial sum, none of which exceeds the product
of the two lengths: float64 holds them all without rounding, in whatever order they are added.
Equal vectors tie wherever they stand, no result depends on the size of a block, and the score of a
right answer can be computed before the blocks, which are then needed once for both directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vectors = NDArray[np.float16] | NDArray[np.float32]

__all__ = ["best_items", "exact_scores", "kth_best_scores", "pair_scores", "ranks_both_ways"]

BLOCK = (1024, 4096)
"""Rows and columns of scores at once: 32 MiB in float64."""

STEPS = 2.0**24


def ranks_both_ways(
    texts: Vectors,
    images: Vectors,
    image_of: NDArray[np.int64],
    progress: Callable[[int, int], None] = lambda *_: None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rank, from 1, of each text's picture and of each picture's best text.

    Ties count against the query: a wrong answer with the same score is placed before the right
    one, so a model that gives everything one score does not look good.

    Args:
        texts: `float[m, dim]`, rows of length about 1.
        images: `float[n, dim]`, the same.
        image_of: `int64[m]`, the row in `images` of each text's picture.
        progress: called with how many texts are compared and how many there are.

    Returns:
        `int64[m]` for the texts, and one rank for each of `np.unique(image_of)`. Pictures without
        a text are asked nothing but may be wrong answers.
    """
    right = pair_scores(texts, images, image_of)
    # No score reaches infinity: nothing is counted for pictures that are not asked.
    best = np.full(len(images), np.inf)
    asked = np.unique(image_of)
    best[asked] = -np.inf
    np.maximum.at(best, image_of, right)
    # Counted along with the wrong answers: the text's one picture, and of a picture's own texts
    # those that share the best score.
    image_counts = 1 - np.bincount(image_of[right == best[image_of]], minlength=len(images))
    text_counts = np.zeros(len(texts), dtype=np.int64)
    for rows, columns, scores in _blocks(texts, images):
        text_counts[rows] += (scores >= right[rows, None]).sum(axis=1, dtype=np.int32)
        image_counts[columns] += (scores >= best[columns]).sum(axis=0, dtype=np.int32)
        if columns.stop >= len(images):
            progress(min(rows.stop, len(texts)), len(texts))
    return text_counts, image_counts[asked]


def kth_best_scores(queries: Vectors, items: Vectors, k: int) -> NDArray[np.float64]:
    """Return `float64[q]`, the score of each query's `k`-th best item; the worst if k > n."""
    k = min(k, len(items))
    best = np.full((len(queries), k), -np.inf)
    for rows, _, scores in _blocks(queries, items):
        both = np.concatenate([best[rows], scores], axis=1)
        best[rows] = np.partition(both, -k, axis=1)[:, -k:]
    worst: NDArray[np.float64] = best.min(axis=1)
    return worst


def best_items(
    queries: Vectors,
    items: Vectors,
    k: int,
    query_label: NDArray[np.int64],
    item_label: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return `int64[q, min(k, n)]`, the rows of each query's best items, best first.

    Of items with equal scores those that are right, whose label is the query's, come last, as in
    `ranks_both_ways`; the others in the order of their rows.

    Args:
        queries: `float[q, dim]`.
        items: `float[n, dim]`.
        k: at least 1.
        query_label: `int64[q]`.
        item_label: `int64[n]`.
    """
    k = min(k, len(items))
    best = np.empty((len(queries), k), dtype=np.int64)
    rows_at_once = max(1, BLOCK[0] * BLOCK[1] // max(1, len(items)))
    for start in range(0, len(queries), rows_at_once):
        block = exact_scores(queries[start : start + rows_at_once], items)
        least = np.partition(block, -k, axis=1)[:, -k]
        for row, (scores, bound) in enumerate(zip(block, least, strict=True), start):
            near = np.flatnonzero(scores >= bound)
            right = item_label[near] == query_label[row]
            best[row] = near[np.lexsort((near, right, -scores[near]))[:k]]
    return best


def pair_scores(
    queries: Vectors, items: Vectors, item_of: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return `float64[q]` (or `[q, k]`), the very scores that the blocks give the same pairs.

    Args:
        queries: `float[q, dim]`.
        items: `float[n, dim]`.
        item_of: `int64[q]` or `int64[q, k]`, rows of `items`.
    """
    scores = np.empty(item_of.shape)
    rows_at_once = max(1, BLOCK[0] * BLOCK[1] // max(1, item_of[:1].size * items.shape[1]))
    for start in range(0, len(queries), rows_at_once):
        rows = slice(start, start + rows_at_once)
        scores[rows] = np.einsum(
            "q...d,qd->q...", _exact(items[item_of[rows]]), _exact(queries[rows])
        )
    return scores


def exact_scores(queries: Vectors, items: Vectors) -> NDArray[np.float64]:
    """Return `float64[q, n]`, the very scores that the blocks give, for what memory has room for.

    Args:
        queries: `float[q, dim]`.
        items: `float[n, dim]`.
    """
    scores: NDArray[np.float64] = _exact(queries) @ _exact(items).T
    return scores


def _blocks(queries: Vectors, items: Vectors) -> Iterator[tuple[slice, slice, NDArray[np.float64]]]:
    """Yield rows, columns and their scores; the scores are overwritten by the next block."""
    height, width = BLOCK
    memory = np.empty(min(height, len(queries)) * min(width, len(items)))
    for top in range(0, len(queries), height):
        rows = slice(top, top + height)
        block = _exact(queries[rows])
        for left in range(0, len(items), width):
            columns = slice(left, left + width)
            other = _exact(items[columns])
            scores = memory[: len(block) * len(other)].reshape(len(block), len(other))
            np.matmul(block, other.T, out=scores)
            yield rows, columns, scores


def _exact(vectors: Vectors) -> NDArray[np.float64]:
    scaled: NDArray[np.float64] = vectors.astype(np.float64)
    scaled *= STEPS
    np.rint(scaled, out=scaled)
    scaled /= STEPS
    return scaled
