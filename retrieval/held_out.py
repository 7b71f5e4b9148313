"""What a change of texts' vectors is worth, on pictures and texts it was not learned from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mmsearch.retrieval.bootstrap import draws
from mmsearch.retrieval.metrics import mean_reciprocal_rank, recall_at

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.adapter import Captioned

__all__ = ["Gain", "compare", "held_out_mrr", "own_texts", "split"]

QUERIES_AT_ONCE = 1024
RESAMPLES = 1000
INTERVAL = (5.0, 95.0)
"""Percentiles: what lies above the lower one is true of 95 in 100 libraries like this one."""


@dataclass(frozen=True, slots=True)
class Gain:
    """Quality in one direction before and after, over the same queries.

    Attributes:
        before: `R@1` and `R@10` (percent, 0 to 100) and `mrr` (0 to 1).
        after: the same.
        mrr_gain: bounds of the 90 % interval of what `mrr` gained.
    """

    before: dict[str, float]
    after: dict[str, float]
    mrr_gain: tuple[float, float]

    def to_json(self) -> dict[str, object]:
        """Return one direction of `tune --json`."""
        return {
            "before": {name: round(value, 4) for name, value in self.before.items()},
            "after": {name: round(value, 4) for name, value in self.after.items()},
            "mrr_gain_90": [round(bound, 4) for bound in self.mrr_gain],
        }


def own_texts(links: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the pictures that have a text which no other picture has."""
    counts = np.bincount(links[:, 0])
    return np.unique(links[counts[links[:, 0]] == 1, 1])


def split(
    links: NDArray[np.int64], held: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the links to learn from and those to measure on.

    Held out are `held` of the pictures that have a text of their own. A text that stands on both
    sides leaves the held-out side: no picture and no wording is in both.

    Args:
        links: `int64[p, 2]`, see `Captioned`.
        held: at most the number of pictures with a text of their own.
        seed: of the choice.
    """
    chosen = np.random.default_rng(seed).permutation(own_texts(links))[:held]
    ours = ~np.isin(links[:, 1], chosen)
    learned = links[ours]
    return learned, links[~ours & ~np.isin(links[:, 0], learned[:, 0])]


def held_out_mrr(data: Captioned, links: NDArray[np.int64], texts: NDArray[np.float32]) -> float:
    """Return the MRR of finding the held-out texts' pictures among all pictures.

    Args:
        data: the pictures.
        links: those held out.
        texts: `float32[m, dim]`, the vectors to use for all texts.
    """
    return mean_reciprocal_rank(_to_pictures(data, links, texts))


def compare(
    data: Captioned, links: NDArray[np.int64], texts: NDArray[np.float32], seed: int
) -> tuple[Gain, Gain]:
    """Return the gain of text→image and of image→text where `texts` replace those of `data`.

    Texts look for their pictures among all pictures. Pictures look for their texts among the
    held-out ones alone: where others are right too, nobody has said so.

    Intervals are from a paired bootstrap: whole pictures are drawn, each with all its queries
    (Efron and Tibshirani, An Introduction to the Bootstrap, 1993).
    """
    asked, first = np.unique(links[:, 0], return_index=True)
    to_pictures = [_to_pictures(data, links, vectors) for vectors in (data.texts, texts)]
    pictures, rows = np.unique(links[:, 1], return_inverse=True)
    back = np.stack([rows, np.searchsorted(asked, links[:, 0])], axis=1)
    to_texts = [
        _ranks(data.pictures[pictures], vectors[asked], back) for vectors in (data.texts, texts)
    ]
    return (
        _gain(to_pictures[0], to_pictures[1], rows[first], seed),
        _gain(to_texts[0], to_texts[1], np.arange(len(pictures)), seed),
    )


def _to_pictures(
    data: Captioned, links: NDArray[np.int64], texts: NDArray[np.float32]
) -> NDArray[np.int64]:
    asked, rows = np.unique(links[:, 0], return_inverse=True)
    return _ranks(texts[asked], data.pictures, np.stack([rows, links[:, 1]], axis=1))


def _ranks(
    queries: NDArray[np.float32], items: NDArray[np.float32], right: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the rank, from 1, of each query's best right item; ties count against the query.

    Args:
        queries: `float32[q, dim]`.
        items: `float32[n, dim]`.
        right: `int64[p, 2]`, distinct (query, item) rows, every query in at least one.
    """
    ranks = np.empty(len(queries), dtype=np.int64)
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        block = slice(start, start + QUERIES_AT_ONCE)
        scores = queries[block] @ items.T
        here = right[(right[:, 0] >= start) & (right[:, 0] < start + QUERIES_AT_ONCE)]
        query, item = here[:, 0] - start, here[:, 1]
        own = scores[query, item]
        best = np.full(len(scores), -np.inf, dtype=np.float32)
        np.maximum.at(best, query, own)
        ahead = np.count_nonzero(scores >= best[:, None], axis=1)
        ranks[block] = 1 + ahead - np.bincount(query[own >= best[query]], minlength=len(scores))
    return ranks


def _gain(
    before: NDArray[np.int64], after: NDArray[np.int64], cluster: NDArray[np.int64], seed: int
) -> Gain:
    clusters = int(cluster.max()) + 1
    queries = np.bincount(cluster, minlength=clusters)
    gains = np.bincount(cluster, 1 / after - 1 / before, minlength=clusters)
    resampled = [
        float(weight @ gains) / max(1, int(weight @ queries))
        for weight in draws(clusters, RESAMPLES, seed)
    ]
    low, high = np.percentile(resampled, INTERVAL).tolist()
    return Gain(_quality(before), _quality(after), (low, high))


def _quality(ranks: NDArray[np.int64]) -> dict[str, float]:
    return {
        "R@1": recall_at(ranks, 1),
        "R@10": recall_at(ranks, 10),
        "mrr": mean_reciprocal_rank(ranks),
    }
