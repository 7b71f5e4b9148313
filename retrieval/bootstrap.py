"""How far the measures would move with other pictures: the bootstrap over whole pictures.

The captions of one picture succeed or fail together, so pictures are drawn, each with all its
queries: resampling captions one by one would promise intervals that are too narrow.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from mmsearch.retrieval.metrics import CUTOFFS

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LEVEL", "draws", "percentile_interval", "resample"]

LEVEL = 0.95
"""The share of the resamples that an interval holds."""


def draws(
    clusters: int, resamples: int, seed: int | tuple[int, ...]
) -> Iterator[NDArray[np.int64]]:
    """Yield how often each cluster is drawn, `int64[clusters]`, for each of the resamples."""
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        drawn = generator.integers(0, clusters, clusters, dtype=np.int32)
        yield np.bincount(drawn, minlength=clusters)


def resample(
    ranks: NDArray[np.int64],
    cluster: NDArray[np.int64],
    *,
    resamples: int,
    seed: int | tuple[int, ...],
) -> NDArray[np.float64]:
    """Return every measure of every resample.

    A resample is as many clusters as there are, drawn with replacement (Efron and Tibshirani, An
    Introduction to the Bootstrap, 1993, chapters 6 and 8). Recall and MRR are ratios of sums, so a
    row of sums for each cluster is enough; the median is read off the cumulated weights of the
    sorted ranks. No query is looked at twice by Python.

    Args:
        ranks: `int64[q]`, from 1.
        cluster: `int64[q]`, 0 to n-1, each in use: the picture that a query belongs to.
        resamples: how many, at least 1.
        seed: of the draws.

    Returns:
        `float64[resamples, 5]`, in the order of `metrics.measures`.
    """
    clusters = int(cluster.max()) + 1
    queries = np.bincount(cluster)
    gains = [100 * (ranks <= k) for k in CUTOFFS] + [1 / ranks]
    sums = np.stack([np.bincount(cluster, gain, minlength=clusters) for gain in gains], axis=1)
    order = np.argsort(ranks, kind="stable")
    # Small integers: a gather of this size is bound by the memory it touches.
    sorted_cluster, sorted_ranks = cluster[order].astype(np.int32), ranks[order]
    found = np.empty((resamples, len(CUTOFFS) + 2))
    for row, weight in zip(found, draws(clusters, resamples, seed), strict=True):
        total = weight @ queries
        means = weight @ sums / total
        upto = np.cumsum(weight[sorted_cluster])
        middle = np.searchsorted(upto, [(total - 1) // 2, total // 2], side="right")
        row[:] = *means[:-1], sorted_ranks[middle].mean(), means[-1]
    return found


def percentile_interval(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the bounds between which the middle 95 % of resampled values lie.

    The percentile interval of Efron and Tibshirani, 1993, chapter 13.

    Args:
        values: `float64[resamples, n]`.

    Returns:
        `float64[2, n]`: lower and upper bounds.

    >>> percentile_interval(np.arange(41.0)[:, None]).ravel()
    array([ 1., 39.])
    """
    tail = 50 * (1 - LEVEL)
    bounds: NDArray[np.float64] = np.percentile(values, [tail, 100 - tail], axis=0)
    return bounds
