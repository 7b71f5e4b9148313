"""Vectors searched by a Milvus server, or by a cluster of them.

Scores are inner products of the unit vectors as they were given, in single precision. An index of
codes names candidates, which are compared again with the vectors that its maker holds: a server
with local storage (2.3.5) deletes vectors that were read through such an index when it is released.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch.errors import StoreError
from mmsearch.indexes.base import Condition, IndexFileError, Neighbors, VectorIndex, replacing
from mmsearch.indexes.milvus_choice import EXACT_NUMBERS
from mmsearch.indexes.milvus_collection import Collection, Consistency, Rows, is_one_of
from mmsearch.indexes.milvus_server import Server

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Ids = NDArray[np.int64]
    Vectors = NDArray[np.float32]

__all__ = ["MilvusIndex"]

DEEPEST = 16_384
"""Answers, and queries, that a server gives and takes at once."""
ANSWERS_AT_ONCE = 200_000
"""Ids and scores in one message."""
QUERIES_AT_ONCE = 100
"""Queries in one message, so that it is answered in time where every vector is compared."""
MORE = 4
"""How many times as many candidates are taken where codes decide which they are."""
FEWEST = 50
"""Candidates at least, where codes decide."""
PART = 10_000
"""Ids in one expression."""
COMPARED_SHARE = 0.05
"""A graph compares all that a filter lets through where that is so little (knowhere: under 7 %)."""
DEEPER = 2, 16
"""How many times as deep as a filter's share would take, to find enough that it lets through: the
nearest of a query are often all allowed or all not, as the pictures of one day are."""
LARGEST_ID = 2**63 - 2
"""Milvus 2.3 takes the id after it, and does not find it any more."""
MARGIN = 0.25
ASKED = 10
"""Recall is measured among the first ten."""


class MilvusIndex(VectorIndex):
    """A collection of a Milvus server as an index.

    Attributes:
        collection: what is searched.
        facts: what was measured, for `mmsearch optimize`.
    """

    remote = True

    def __init__(
        self,
        collection: Collection,
        *,
        effort: int | None = None,
        recall: float | None = None,
        known_ids: Callable[[], Ids] | None = None,
        vectors_of: Callable[[Ids], tuple[Ids, Vectors]] | None = None,
        writes: bool = False,
    ) -> None:
        """Take a collection.

        Args:
            collection: that is there.
            effort: see there.
            recall: as it was measured with that effort.
            known_ids: returns `int64[n]`, what the collection is known to hold; asked of the
                server, a page at a time, if not given.
            vectors_of: called with `int64[m]`, ascending; returns those that have a vector,
                ascending, and their `float32[m, dim]`. Without it, scores that an index of codes
                gives are those of the codes.
            writes: whether what this process has written must be seen by it.
        """
        super().__init__(collection.dim)
        self.collection = collection
        self._effort = effort
        self.facts: dict[str, Any] = {}
        self._recall = recall
        self._known_ids, self._vectors_of = known_ids, vectors_of
        self._reading: Consistency = "Session" if writes else "Bounded"
        self._size: int | None = None

    @property
    def effort(self) -> int:
        """How hard a search looks where it is not told; a middling effort, where none is set."""
        efforts = self.collection.spec.efforts
        return self._effort or (efforts[len(efforts) // 2] if efforts else 0)

    @property
    def exact(self) -> bool:
        """Whether a search compares every vector."""
        return self.collection.spec.exact

    @property
    def recall(self) -> float | None:
        """Share (0 to 1) of the true first ten that is found, as measured; None if it never was."""
        return 1.0 if self.exact else self._recall

    @property
    def ids(self) -> Ids:
        """`int64[n]`: the ids of all vectors; a page at a time, unless they are known."""
        if self._known_ids is not None:
            return self._known_ids()
        return self.collection.ids(consistency=self._reading)

    def has(self, ids: ArrayLike) -> NDArray[np.bool_]:
        """Say of each id whether a vector stands under it."""
        asked = np.asarray(ids, dtype=np.int64)
        if self._known_ids is not None:
            return np.isin(asked, self._known_ids())
        found = self.collection.those_of(np.unique(asked), consistency=self._reading)
        return np.isin(asked, found)

    def where(self, expression: str) -> Condition:
        """Return the condition that an expression over the fields is, with how many it is true of.

        The expression is trusted: no text of a user's may be in it but as a quoted value.
        """
        reading = self._reading
        return Condition(
            expression,
            self.collection.count(expression, consistency=reading),
            lambda ids: self.collection.those_of(ids, expression, consistency=reading),
        )

    def ids_where(self, expression: str) -> Ids:
        """Return `int64[n]`, ascending: the ids of the vectors that an expression is true of."""
        return self.collection.ids(expression, consistency=self._reading)

    def upsert(
        self,
        ids: ArrayLike,
        vectors: ArrayLike,
        fields: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        """Put `float32[n, dim]` unit vectors under `int64[n]` ids, in place of what stood there.

        Args:
            ids: distinct, not negative.
            vectors: theirs.
            fields: values under the names of the collection's fields, one for each id.

        Raises:
            ValueError: as from `add`, but that ids may be in use.
            StoreError: the server refuses.
        """
        keys, rows = self._checked(ids, vectors)
        self._put(keys, rows, fields or {})

    def _put(self, ids: Ids, vectors: Vectors, fields: Mapping[str, Sequence[Any]]) -> None:
        if len(ids) and ids.max() > LARGEST_ID:
            raise ValueError(f"ids must be at most {LARGEST_ID}")
        self.collection.upsert(Rows(ids, vectors, fields))
        self._size = None

    def tune(self, asked: Sequence[tuple[Vectors, Ids]], recall: float) -> None:
        """Measure what is found of the true first ten, and look as hard as `recall` takes.

        Half of the queries choose the effort, the other half measures it. What is told is what
        the kind of queries finds that finds least.

        Args:
            asked: for each kind of queries `float32[q, dim]`, unit rows, at least two, and
                `int64[q, 10]`, the nearest of each by exact comparison, -1 where there are fewer.
            recall: the share to find; the hardest effort is taken where none finds it.
        """
        if self.exact:
            return
        self.collection.wait_until_served()
        # It chooses, so it flatters itself: a quarter of the allowed loss is kept.
        least = recall + MARGIN * (1 - recall)
        for effort in self.collection.spec.efforts:
            self._effort = effort
            if min(self._found(each[::2], true[::2]) for each, true in asked) >= least:
                break
        self._recall = min(self._found(each[1::2], true[1::2]) for each, true in asked)

    def _found(self, queries: Vectors, true: Ids) -> float:
        found = self.search(queries, ASKED).ids
        there = (true[:, :, None] == found[:, None, :]).any(axis=2) & (true >= 0)
        return float(there.sum() / max(1, (true >= 0).sum()))

    def save(self, path: Path) -> None:
        """Have the server write to disk what it was given; `path` says where to find it."""
        self.collection.settle()
        place = {
            "server": str(self.collection.server.address),
            "collection": self.collection.name,
            "effort": self._effort,
            "recall": self._recall,
        }
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(place))

    @classmethod
    def open(cls, path: Path, *, mmap: bool = True) -> MilvusIndex:
        """Open what `save` named; the token is that of the environment."""
        try:
            place = json.loads(path.read_text())
            server, name = Server(place["server"]), str(place["collection"])
            effort, recall = place["effort"], place["recall"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise IndexFileError(f"{path} is missing, torn or names no collection") from error
        collection = Collection.open(server, name)
        if collection is None:
            raise StoreError(f"There is no collection {name} at {server.address}.")
        return cls(collection, effort=effort, recall=recall)

    def _count(self) -> int:
        # Asked once: searching must not take two questions. What others write is seen by what is
        # opened after it.
        if self._size is None:
            self._size = self.collection.count(consistency=self._reading)
        return self._size

    def _add(self, ids: Ids, vectors: Vectors) -> None:
        if self.has(ids).any():
            raise ValueError("ids are in use; remove them first")
        self._put(ids, vectors, {})

    def _remove(self, ids: Ids) -> int:
        ids = self.collection.those_of(ids[ids >= 0], consistency=self._reading)
        self.collection.delete(ids)
        self._size = None
        return len(ids)

    def _search(self, queries: Vectors, k: int, effort: int | None, among: Ids | None) -> Neighbors:
        effort = effort or self.effort
        if among is not None:
            return self._search_ids(queries, k, among)
        if k > DEEPEST:
            return self._search_ids(queries, k, np.sort(self.ids))
        return self._ask(queries, k, effort, "")

    def _search_where(
        self, queries: Vectors, k: int, effort: int | None, condition: Condition
    ) -> Neighbors:
        if k > DEEPEST:
            allowed = self.ids_where(condition.expression)
            return self._search_ids(queries, k, allowed)
        share = len(condition) / max(1, len(self))
        effort = effort or self.effort
        if self.collection.spec.graph and COMPARED_SHARE < share < 1:
            found = self._search_graph_where(queries, k, effort, condition, share)
        else:
            wider = self.collection.spec.wider(effort, share)
            found = self._ask(queries, k, wider, condition.expression)
        short = (found.ids < 0).any(axis=1)
        if short.any() and len(condition) * self.dim <= EXACT_NUMBERS:
            # It gave up before it found as many as there are.
            allowed = self.ids_where(condition.expression)
            rest = self._search_ids(queries[short], k, allowed)
            found.ids[short], found.scores[short] = rest.ids, rest.scores
        return found

    def _search_graph_where(
        self, queries: Vectors, k: int, effort: int, condition: Condition, share: float
    ) -> Neighbors:
        """Search a graph among what is near without the filter first.

        A graph that is walked through a filter never comes to vectors whose neighbours are all
        kept out, however hard it looks: 5 % of the answers, where a third is let through. The walk
        without a filter misses none of them. It goes deeper where too few of what it found are
        allowed; what it lacks even then is what the walk through the filter finds.
        """
        best = _nothing(len(queries), k)
        rest = np.arange(len(queries))
        for depth in (math.ceil(times * k / share) for times in DEEPER):
            if len(rest) and depth <= self.collection.spec.deepest:
                near = self._ask(queries[rest], min(depth, len(self)), effort, "")
                found = _allowed(near, condition, k)
                best.ids[rest], best.scores[rest] = found.ids, found.scores
                rest = rest[(found.ids < 0).any(axis=1)]
        if len(rest):
            wider = self.collection.spec.wider(effort, share)
            through = self._ask(queries[rest], k, wider, condition.expression)
            near = Neighbors(best.ids[rest], best.scores[rest])
            found = _merged(near, _without(through, near.ids), k)
            best.ids[rest], best.scores[rest] = found.ids, found.scores
        return best

    def _search_ids(self, queries: Vectors, k: int, ids: Ids) -> Neighbors:
        """Compare each query with ids, in parts so small that the server compares all of each."""
        size = PART
        if not self.exact:
            size = min(PART, max(1_000, int(COMPARED_SHARE * len(self))))
        everything = self.collection.spec.wider(self.effort, 0.0)
        best = _nothing(len(queries), k)
        for start in range(0, len(ids), size):
            part = ids[start : start + size]
            depth = min(k, len(part))
            found = self._ask(queries, depth, everything, is_one_of(part))
            if (found.ids < 0).any() and not (self.collection.spec.lossy and not self._vectors_of):
                # Some are not there, or a graph gave up before it found them.
                found = self._compared(queries, depth, part)
            best = _merged(best, found, k)
        return best

    def _compared(self, queries: Vectors, k: int, ids: Ids) -> Neighbors:
        """Compare each query with the vectors under ids, here."""
        known, vectors = self._vectors(ids)
        scores = queries @ vectors.T
        return _best(np.broadcast_to(known, scores.shape), scores, k)

    def _vectors(self, ids: Ids) -> tuple[Ids, Vectors]:
        if self._vectors_of is not None:
            there = self.collection.those_of(ids, consistency=self._reading)
            return self._vectors_of(there)
        return self.collection.vectors_of(ids, consistency=self._reading)

    def _ask(self, queries: Vectors, k: int, effort: int, expression: str) -> Neighbors:
        """Ask the server, in as many messages as that takes; -1 where it has no more."""
        again = self.collection.spec.lossy and self._vectors_of is not None
        depth = min(max(MORE * k, FEWEST), DEEPEST) if again else k
        at_once = max(1, min(QUERIES_AT_ONCE, ANSWERS_AT_ONCE // depth))
        told = _nothing(len(queries), depth)
        for start in range(0, len(queries), at_once):
            some = queries[start : start + at_once]
            found = self.collection.search(
                some, depth, effort, expression, consistency=self._reading
            )
            for row, hits in enumerate(found, start):
                told.ids[row, : len(hits.ids)] = hits.ids
                told.scores[row, : len(hits.ids)] = hits.distances
        return self._compared_again(queries, told.ids, k) if again else told

    def _compared_again(self, queries: Vectors, ids: Ids, k: int) -> Neighbors:
        """Return the best of each query's `int64[q, c]` candidates by their vectors."""
        assert self._vectors_of is not None
        known, vectors = self._vectors_of(np.unique(ids[ids >= 0]))
        if len(known) == 0:
            return _nothing(len(ids), k)
        rows = np.minimum(np.searchsorted(known, ids), len(known) - 1)
        scores = np.einsum("qd,qcd->qc", queries, vectors[rows], dtype=np.float32)
        scores[known[rows] != ids] = -np.inf
        return _best(ids, scores, k)


def _nothing(queries: int, k: int) -> Neighbors:
    """Return what is told where nothing is found."""
    return Neighbors(
        np.full((queries, k), -1, dtype=np.int64), np.full((queries, k), -np.inf, dtype=np.float32)
    )


def _best(ids: Ids, scores: Vectors, k: int) -> Neighbors:
    """Return the `[q, k]` highest scores of `[q, c]`; -1 where there are no more."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = _nothing(len(ids), k)
    found = order.shape[1]
    best.ids[:, :found] = np.take_along_axis(ids, order, axis=1)
    best.scores[:, :found] = np.take_along_axis(scores, order, axis=1)
    best.ids[np.isneginf(best.scores)] = -1
    return best


def _merged(one: Neighbors, other: Neighbors, k: int) -> Neighbors:
    """Return the best of two answers that have nothing in common."""
    ids = np.concatenate([one.ids, other.ids], axis=1)
    return _best(ids, np.concatenate([one.scores, other.scores], axis=1), k)


def _allowed(near: Neighbors, condition: Condition, k: int) -> Neighbors:
    """Return the first `k` of each row that a condition lets through."""
    there = condition.within(np.unique(near.ids[near.ids >= 0]))
    return _best(near.ids, np.where(np.isin(near.ids, there), near.scores, -np.inf), k)


def _without(found: Neighbors, known: Ids) -> Neighbors:
    """Leave out of each row what stands in the same row of `known`."""
    again = np.array([np.isin(new, old) for new, old in zip(found.ids, known, strict=True)])
    return Neighbors(found.ids, np.where(again, -np.inf, found.scores))
