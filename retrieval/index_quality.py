"""What an index costs and loses: recall through it beside the exact one, and latency."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch.retrieval.metrics import CUTOFFS, recall_at
from mmsearch.retrieval.ranking import kth_best_scores, pair_scores

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.indexes import VectorIndex
    from mmsearch.retrieval.engine import SearchEngine
    from mmsearch.retrieval.ranking import Vectors

__all__ = ["Answers", "IndexQuality", "Latency", "measure_index", "measure_latency"]

DEPTH = max(CUTOFFS)
ANSWERS_AT_ONCE = 1 << 20
"""Ids, scores and coordinates of queries in one batch of searches."""
LATENCY_QUERIES = 200
PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class IndexQuality:
    """Quality in one direction as the index of a library gives it.

    Attributes:
        recall: percentage (0 to 100) of queries with a right answer among the first k, by k.
        agreement: share (0 to 1) of the exact first ten that are among the index's first ten.
        exact: whether the index compares everything.
    """

    recall: dict[int, float]
    agreement: float
    exact: bool

    def to_json(self) -> dict[str, Any]:
        """Return the object under `index` in one direction of `evaluate --json`."""
        recall = {f"R@{k}": round(value, 2) for k, value in self.recall.items()}
        return recall | {f"agreement@{DEPTH}": round(self.agreement, 4), "exact": self.exact}


@dataclass(frozen=True, slots=True)
class Latency:
    """How long a text query takes, in milliseconds, by percentile.

    Attributes:
        queries: how many were timed, one after the other.
        whole: from the words to the answer.
        search: the part of it that the index takes.
    """

    queries: int
    whole: dict[str, float]
    search: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return the object under `latency_ms` of `evaluate --json`."""
        return {"queries": self.queries, "query": self.whole, "search": self.search}


@dataclass(frozen=True, slots=True)
class Answers:
    """What an index may return, as rows to choose from; several ids may mean the same row.

    Attributes:
        ids: `int64[i]`, ascending: everything in the index.
        row_of: `int64[i]`, the row that each id stands for.
        vectors: `float[n, dim]`, one for each row.
        label: `int64[n]`, the picture of each row: what makes an answer right.
    """

    ids: NDArray[np.int64]
    row_of: NDArray[np.int64]
    vectors: Vectors
    label: NDArray[np.int64]

    def rows(self, found: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of ids; -1 for padding and for ids that came since."""
        place = np.searchsorted(self.ids, found).clip(max=len(self.ids) - 1)
        return np.where(self.ids[place] == found, self.row_of[place], -1)

    def enough(self, distinct: int) -> int:
        """Return how many ids always hold `distinct` rows, if there are as many."""
        copies = np.bincount(self.row_of) - 1
        return distinct + int(np.sort(copies)[-distinct:].sum())


def measure_index(
    index: VectorIndex,
    answers: Answers,
    queries: Vectors,
    picture: NDArray[np.int64],
    progress: Callable[[int, int], None] = lambda *_: None,
) -> IndexQuality:
    """Return what searching an index finds, beside what there is.

    Ties count against the query, like in `ranks_both_ways`: one answer more than is needed is
    fetched, so that a tie across the last place is seen.

    Args:
        index: of the vectors of `answers`.
        answers: what its ids mean.
        queries: `float[q, dim]`, unit rows.
        picture: `int64[q]`, the label of each query's right answers.
        progress: called with how many queries are answered and how many there are.
    """
    asked = min(len(index), answers.enough(DEPTH + 1))
    ranks = np.empty(len(queries), dtype=np.int64)
    agreeing = 0
    at_once = max(1, ANSWERS_AT_ONCE // max(asked, queries.shape[1]))
    for start in range(0, len(queries), at_once):
        some = slice(start, start + at_once)
        found = index.search(queries[some].astype(np.float32), asked)
        rows, scores = _distinct(answers.rows(found.ids), found.scores)
        right = (answers.label[rows] == picture[some, None]) & (rows >= 0)
        best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
        ahead = ((scores >= best) & ~right & (rows >= 0)).sum(axis=1)
        ranks[some] = np.where(right.any(axis=1), ahead + 1, len(index) + 1)
        first = rows[:, :DEPTH]
        tenth = kth_best_scores(queries[some], answers.vectors, DEPTH)
        as_good = pair_scores(queries[some], answers.vectors, first) >= tenth[:, None]
        agreeing += int((as_good & (first >= 0)).sum())
        progress(start + len(rows), len(queries))
    possible = len(queries) * min(DEPTH, len(answers.vectors))
    return IndexQuality({k: recall_at(ranks, k) for k in CUTOFFS}, agreeing / possible, index.exact)


def _distinct(
    rows: NDArray[np.int64], scores: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return each line's rows, best first, every row once; -1 and -inf at the end."""
    by_row = np.lexsort((-scores, rows))
    rows, scores = np.take_along_axis(rows, by_row, 1), np.take_along_axis(scores, by_row, 1)
    unwanted = rows < 0
    unwanted[:, 1:] |= rows[:, 1:] == rows[:, :-1]
    rows[unwanted], scores[unwanted] = -1, -np.inf
    best_first = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(rows, best_first, 1), np.take_along_axis(scores, best_first, 1)


def measure_latency(
    engine: SearchEngine,
    index: VectorIndex,
    captions: Sequence[str],
    vectors: Vectors,
    seed: int = 0,
) -> Latency:
    """Time text queries for ten pictures, one after the other, as one user would ask them.

    Args:
        engine: answers whole queries, embedding included.
        index: the engine's index of pictures, timed by itself.
        captions: at least one; a sample of up to 200 of them is asked.
        vectors: `float[n, dim]` of the captions.
        seed: of the sample.
    """
    generator = np.random.default_rng(seed)
    chosen = generator.choice(len(captions), min(LATENCY_QUERIES, len(captions)), replace=False)
    # The first query of a process loads the encoder and maps the index.
    engine.search(captions[chosen[0]], k=DEPTH)
    whole = [_milliseconds(lambda i=i: engine.search(captions[i], k=DEPTH)) for i in chosen]  # type: ignore[misc]
    questions = vectors[chosen].astype(np.float32)
    search = [_milliseconds(lambda one=one: index.search(one, DEPTH)) for one in questions]  # type: ignore[misc]
    return Latency(len(chosen), _percentiles(whole), _percentiles(search))


def _milliseconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - started)


def _percentiles(times: list[float]) -> dict[str, float]:
    values = np.percentile(times, PERCENTILES).tolist()
    return {f"p{p}": round(value, 2) for p, value in zip(PERCENTILES, values, strict=True)}
