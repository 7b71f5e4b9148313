"""One state of a library, ready to be asked again and again."""

from __future__ import annotations

from copy import copy
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from mmsearch.retrieval.catalog import FileRow, KeptWords, told_by_name
from mmsearch.retrieval.duplicates import Likeness, likeness
from mmsearch.retrieval.kept import Kept
from mmsearch.retrieval.null_distribution import NullDistribution, null_distribution
from mmsearch.retrieval.schema import Target
from mmsearch.retrieval.tags import background

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from mmsearch.indexes import VectorIndex
    from mmsearch.indexes.base import Condition
    from mmsearch.retrieval.adapter import Adapter
    from mmsearch.retrieval.calibration import Calibration
    from mmsearch.retrieval.catalog import LibraryRow
    from mmsearch.retrieval.encoders import Encoder
    from mmsearch.retrieval.filters import Filter
    from mmsearch.retrieval.library import Library

__all__ = ["State"]

FILTERS = 16
"""Filters whose ids are kept: a service asks with the same ones again and again."""
FEW = 1_000
"""Vectors up to which a store is told their ids rather than the filter."""
FILES = 20_000
"""Pictures of which it is kept what answers need: their rows, their vectors, how they score."""


class State:
    """One index, what makes queries fit it, and what answers of late needed, in one state.

    What is kept serves until the library changes, which makes a new state.
    """

    def __init__(
        self,
        library: Library,
        row: LibraryRow,
        encoder: Encoder,
        index: VectorIndex,
        adapter: Adapter | None,
    ) -> None:
        self.library = library
        self.catalog = library.catalog
        self.row = row
        self.encoder = encoder
        self.index = index
        self.adapter = adapter
        self._keep_nothing()

    def _keep_nothing(self) -> None:
        self._matching: dict[tuple[Filter, Target], NDArray[np.int64]] = {}
        self._words = KeptWords()
        self._files = Kept[FileRow](FILES)
        self._described = Kept[bool](FILES)
        self._vectors = Kept[bytes](FILES)
        self._usual = Kept[float](FILES)

    def beside(self, stamp: str) -> State:
        """Return this state for an answer that reads the catalog in the state `stamp`.

        Where that is a later one it has nothing kept: what was looked up before, and what is now,
        would make an answer that no state gives.
        """
        if stamp == self.stamp:
            return self
        other = copy(self)
        other._keep_nothing()
        return other

    @property
    def stamp(self) -> str:
        """The name of the state of the catalog."""
        return self.row.stamp

    def vectors(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return those of the pictures that have a vector, ascending, and `float32[n, dim]`."""
        found = np.array(sorted(self._stored(ids.tolist())), dtype=np.int64)
        return found, self.vectors_in_order(found.tolist())

    def vectors_in_order(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return `float32[n, dim]`; fewer rows than ids where a picture has no vector."""
        stored = self._stored(ids)
        rows = np.frombuffer(b"".join([stored[id_] for id_ in ids if id_ in stored]), dtype="<f2")
        return rows.reshape(-1, self.index.dim).astype(np.float32)

    def _stored(self, ids: Collection[int]) -> dict[int, bytes]:
        encoder_id, dim = self.row.encoder_id, self.index.dim
        if encoder_id is None:
            return {}
        return self._vectors.of(
            ids, lambda new: self.catalog.stored_vectors(Target.IMAGES, encoder_id, dim, new)
        )

    def files(self, ids: Collection[int]) -> dict[int, FileRow]:
        """Return those of the pictures that there are, by id."""
        return self._files.of(ids, self.catalog.files)

    def described(self, ids: Collection[int]) -> set[int]:
        """Return which of the pictures words say something about, see `told_by_name`."""

        def look(new: list[int]) -> dict[int, bool]:
            files = self.files(new).values()
            return {row.id: row.captioned or told_by_name(row.path) for row in files}

        return {id_ for id_, told in self._described.of(ids, look).items() if told}

    def words(
        self,
        texts: Sequence[str],
        limit: int,
        among: Sequence[NDArray[np.int64] | Condition | None],
    ) -> list[list[tuple[int, float]]]:
        """Return what holds words of each text, see `Catalog.words`, among pictures."""
        return self.catalog.words_of_many(
            texts, Target.IMAGES, limit, among=among, kept=self._words
        )

    def usual(self, ids: Collection[int]) -> dict[int, float]:
        """Return how well the names that fit a picture best do so, see `Calibration.usual`.

        By id; pictures without a vector have none.
        """

        def look(new: list[int]) -> dict[int, float]:
            found, rows = self.vectors(np.array(new, dtype=np.int64))
            if self.calibration is None or len(found) == 0:
                return {}
            return dict(zip(found.tolist(), self.calibration.usual(rows).tolist(), strict=True))

        return self._usual.of(ids, look)

    def matching(self, filter_: Filter, target: Target) -> NDArray[np.int64]:
        """Return `int64[n]`, ascending ids of vectors that a filter lets through.

        Those of late are kept.
        """
        key = (filter_, target)
        found = self._matching.get(key)
        if found is None:
            found = self.catalog.matching(filter_, target)
            found = found[self.index.has(found)]
            if self.catalog.stamp() == self.stamp:
                if len(self._matching) >= FILTERS:
                    self._matching.clear()
                self._matching[key] = found
        return found

    def among(self, filter_: Filter, target: Target) -> NDArray[np.int64] | Condition:
        """Return what a filter lets through, for `VectorIndex.search`.

        Ids; but where another machine searches, and can tell by itself of more than a few vectors
        whether the filter is true of them, a condition: then no list of ids is sent.
        """
        if not self.index.remote:
            return self.matching(filter_, target)
        # What libraries without a store do not need is loaded where it is.
        from mmsearch.indexes.milvus import MilvusIndex
        from mmsearch.retrieval.store_fields import expression

        said = expression(filter_)
        if said is None or not isinstance(self.index, MilvusIndex):
            return self.matching(filter_, target)
        condition = self.index.where(said)
        return condition if len(condition) > FEW else self.index.ids_where(said)

    # Two threads that come first both compute these, and to the same end.
    @cached_property
    def background(self) -> NDArray[np.float32]:
        """`float32[b, dim]`, names of things as this library's texts are."""
        names = background(self.encoder)
        return names if self.adapter is None else self.adapter.apply(names)

    @cached_property
    def null(self) -> NullDistribution | None:
        """Which scores mean nothing; None in an empty library."""
        return null_distribution(
            self.library, self.row, self.background, self.adapter, lambda: np.sort(self.index.ids)
        )

    @cached_property
    def calibration(self) -> Calibration | None:
        """What scores of pictures by words mean; None in an empty library."""
        if self.null is None:
            return None
        return self.null.calibration(self.background, len(self.index))

    @property
    def likeness(self) -> Likeness:
        """How similar near-duplicates are."""
        empty = np.empty((0, self.index.dim), dtype=np.float32)
        return likeness(empty) if self.null is None else self.null.likeness
