"""The items that fit a taste best, taken from an index and put into an exact order.

An index compares in single precision, whose last bits depend on what else is asked at the same
time. So a few more candidates are taken than are needed and compared again in exact numbers
(`retrieval.ranking`). Where what was not compared could still belong among them, by the most that
rounding can have done, more are taken. Equal scores stand in the order of ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mmsearch.retrieval.ranking import exact_scores, pair_scores
from mmsearch.retrieval.taste import best_scores

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.indexes import VectorIndex
    from mmsearch.retrieval.signals import Taste

    Ids = NDArray[np.int64]
    Floats = NDArray[np.float64]
    Ranked = tuple[Ids, Floats]
    VectorsOf = Callable[[Ids], tuple[Ids, NDArray[np.float16]]]

__all__ = ["Candidates"]

SLACK = 16
"""Items beyond those needed that are compared exactly at first."""
DEEPER = 8
"""How many times as many are taken when these were too few."""
ITEMS_AT_ONCE = 1 << 14

_NOTHING = np.empty(0, dtype=np.int64), np.empty(0)


@dataclass(frozen=True, slots=True)
class Candidates:
    """Items of an index that may be recommended.

    Attributes:
        index: of all items.
        vectors_of: called with `int64[m]`, ascending ids; returns those that have a vector,
            ascending, and their `float16[m, dim]`.
        ids: `int64[n]`, ascending: those that may be recommended.
        all: whether these are all of the index.
    """

    index: VectorIndex
    vectors_of: VectorsOf
    ids: Ids
    all: bool

    @property
    def _error(self) -> float:
        """How far rounding can move a score: n products and n sums, each by 2⁻²⁴ of at most 1."""
        return self.index.dim * 2.0**-23

    def _search(self, queries: NDArray[np.float32], depth: int) -> tuple[Ids, Floats]:
        found = self.index.search(queries, depth, among=None if self.all else self.ids)
        return found.ids, found.scores.astype(np.float64)

    def towards(
        self, directions: NDArray[np.float32], hidden: Sequence[Ids], count: int
    ) -> list[Ranked]:
        """Return up to `count` items nearest to each direction, best first, and their cosines.

        Args:
            directions: `float32[u, dim]`, unit rows.
            hidden: for each, items to leave out, ascending.
            count: how many.
        """
        answers: list[Ranked] = [_NOTHING] * len(directions)
        left, compared = np.arange(len(directions)), count + SLACK
        while len(left) and len(self.ids):
            unsure = []
            lengths = np.array([len(hidden[i]) for i in left.tolist()])
            for part in _of_like_depth(lengths + compared):
                users = left[part]
                depth = min(int(lengths[part].max()) + compared, len(self.ids))
                near, edges = self._shown(
                    *self._search(directions[users], depth), [hidden[i] for i in users], compared
                )
                ids, scores = self._in_order(directions[users], near)
                for row, user in enumerate(users.tolist()):
                    if _is_sure(scores[row], count, edges[row]):
                        shown = np.isfinite(scores[row, :count])
                        answers[user] = ids[row, :count][shown], scores[row, :count][shown]
                    else:
                        unsure.append(user)
            left, compared = np.array(unsure, dtype=np.int64), DEEPER * compared
        return answers

    def like(self, tastes: Sequence[Taste], hidden: Sequence[Ids], count: int) -> list[Ranked]:
        """Return up to `count` items of the highest `taste.best_scores` for each taste.

        Args:
            tastes: all with the same `vectors`.
            hidden: for each, items to leave out, ascending.
            count: how many.
        """
        if not tastes or len(self.ids) == 0:
            return [_NOTHING] * len(tastes)
        # Users like the same items: each is asked once.
        asked = np.unique(np.concatenate([taste.liked for taste in tastes]))
        depth = min(count + SLACK, len(self.ids))
        near, scores = self._search(tastes[0].vectors[asked], depth)
        edges = self._edges(near, scores)
        answers = []
        for taste, left_out in zip(tastes, hidden, strict=True):
            answer = None
            if len(taste.liked):
                rows = np.searchsorted(asked, taste.liked)
                answer = self._best(taste, near[rows], edges[rows], left_out, count)
            if len(taste.liked) and answer is None and DEEPER * depth < len(self.ids):
                deeper = self._search(taste.vectors[taste.liked], DEEPER * depth)
                answer = self._best(taste, deeper[0], self._edges(*deeper), left_out, count)
            answers.append(self._best_of_all(taste, left_out, count) if answer is None else answer)
        return answers

    def _edges(self, ids: Ids, scores: Floats) -> Floats:
        """Return `float64[q]`: what the score of an item that is not in a row cannot exceed."""
        if ids.shape[1] == len(self.ids):
            return np.full(len(ids), -np.inf)
        # -inf where an index returned fewer than were asked for: it has no more to give.
        return scores[:, -1] + self._error

    def _shown(
        self, ids: Ids, scores: Floats, hidden: Sequence[Ids], compared: int
    ) -> tuple[Ids, Floats]:
        """Leave out what is hidden, and what comes after the first `compared` items.

        Returns:
            `int64[q, c]` ids, -1 at the end of rows that have fewer, and `float64[q]`, what the
            score of no other item can exceed.
        """
        edges = self._edges(ids, scores)
        # One look-up for all rows: a number for each pair of a row and an item.
        owners = np.repeat(np.arange(len(hidden)), [len(row) for row in hidden])
        rows = np.arange(len(ids))[:, None]
        left_out = self._pairs(owners, np.concatenate(hidden))
        kept = (ids >= 0) & ~np.isin(self._pairs(rows, ids), left_out[left_out >= 0])
        order = np.argsort(~kept, axis=1, kind="stable")
        ids = np.where(
            np.take_along_axis(kept, order, axis=1), np.take_along_axis(ids, order, 1), -1
        )
        if ids.shape[1] > compared:
            after = np.take_along_axis(scores, order[:, compared : compared + 1], axis=1)[:, 0]
            edges = np.where(ids[:, compared] >= 0, after + self._error, edges)
        return ids[:, :compared], edges

    def _pairs(self, rows: Ids, ids: Ids) -> Ids:
        """Return a number for each (row, id) that is one of the items; -1 for others."""
        places = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return np.where(self.ids[places] == ids, rows * len(self.ids) + places, -1)

    def _in_order(self, directions: NDArray[np.float32], ids: Ids) -> tuple[Ids, Floats]:
        """Compare each direction with its own `int64[u, c]` ids and sort them; -inf is nothing."""
        found, vectors = self.vectors_of(np.unique(ids[ids >= 0]))
        scores = np.full(ids.shape, -np.inf)
        if len(found):
            rows = np.minimum(np.searchsorted(found, ids), len(found) - 1)
            exact = pair_scores(directions, vectors, rows)
            scores = np.where(found[rows] == ids, exact, -np.inf)
        order = np.lexsort((ids, -scores), axis=1)
        return np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)

    def _best(
        self, taste: Taste, near: Ids, edges: Floats, hidden: Ids, count: int
    ) -> Ranked | None:
        """Return the best of those near to liked items; None where others could be among them."""
        ids, vectors = self.vectors_of(np.setdiff1d(near[near >= 0], hidden))
        ids, scores = _first(ids, _scores(taste, vectors), count)
        bound = float((taste.weights * edges).max())
        return (ids, scores) if _is_sure(scores, count, bound) else None

    def _best_of_all(self, taste: Taste, hidden: Ids, count: int) -> Ranked:
        left = np.setdiff1d(self.ids, hidden, assume_unique=True)
        best = _NOTHING
        for start in range(0, len(left), ITEMS_AT_ONCE):
            ids, vectors = self.vectors_of(left[start : start + ITEMS_AT_ONCE])
            both = np.concatenate([best[0], ids])
            best = _first(both, np.concatenate([best[1], _scores(taste, vectors)]), count)
        return best


def _is_sure(scores: Floats, count: int, bound: float) -> bool:
    """Say whether nothing that was not compared can be among the first `count`."""
    return bound == -np.inf or (len(scores) >= count and bool(scores[count - 1] > bound))


def _first(ids: Ids, scores: Floats, count: int) -> Ranked:
    order = np.lexsort((ids, -scores))[:count]
    return ids[order], scores[order]


def _scores(taste: Taste, vectors: NDArray[np.float16]) -> Floats:
    liked, disliked = (
        exact_scores(taste.vectors[of], vectors) for of in (taste.liked, taste.disliked)
    )
    return best_scores(liked, taste.weights, disliked)


def _of_like_depth(depths: Ids) -> Iterator[Ids]:
    """Yield places of depths that differ by less than a factor of four: deep searches cost more."""
    classes = np.ceil(np.log2(np.maximum(depths, 1)) / 2)
    for each in np.unique(classes):
        yield np.flatnonzero(classes == each)
