"""What approximate indexes over FAISS share: ids, removal, files, falling back on exact search."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

import faiss
import numpy as np

from mmsearch.indexes.base import IndexFileError, Neighbors, VectorIndex, replacing
from mmsearch.indexes.checked_file import CheckedFile, seal
from mmsearch.indexes.faiss_rows import (
    FileIndex,
    IdMap,
    bitmap_of,
    in_memory,
    one_thread_for_one,
    place_of_rows,
    read,
    refine,
    scan,
    write,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["ApproximateIndex", "K", "Kind"]

Kind = Literal["ivf-rabitq", "ivf-sq8", "hnsw"]
"""Lists of codes, one bit a coordinate or eight, or a graph."""

EXACT_AMONG = 50_000
"""Up to so many allowed ids, all of them are compared: a few milliseconds."""
K = 10
"""What settings are measured for; they grow with `k` beyond."""


class ApproximateIndex(FileIndex):
    """A FAISS index that finds candidates, and all vectors in half precision for their scores.

    Scores are those of exact search. Removed vectors keep their row, without an id, until the
    index is saved or longer.

    Attributes:
        kind: how candidates are found.
        effort: how hard a search looks unless told otherwise.
        shortlist: how many candidates it compares for each ten answers, where that can be chosen.
        facts: what is stored with the index, as JSON.
    """

    shortlists: ClassVar[tuple[int, ...]]
    """What tuning may choose `shortlist` from."""
    _rows_end: ClassVar[int]
    """Bytes that FAISS writes after the vectors."""
    _checked_on_opening: ClassVar[int | None]
    """Bytes beside the vectors up to which opening checks them; None is all."""

    kind: Kind
    effort: int
    shortlist: int

    def _take(self, kind: Kind, index: Any) -> None:  # noqa: ANN401
        """Begin with an empty FAISS index."""
        self._index = index
        self._ids = np.empty(0, dtype=np.int64)
        self.facts: dict[str, Any] = {}
        self._file: CheckedFile | None = None
        self._mapped = False
        self._attach(kind)

    def _attach(self, kind: Kind) -> None:
        """Find the parts of `_index`."""
        self.kind = kind
        self._flat = self._parts()
        self._id_map: IdMap | None = None
        self._removed = int((self._ids < 0).sum())

    @abstractmethod
    def _parts(self) -> Any:  # noqa: ANN401
        """Take `_index` apart; return the one of its vectors in half precision."""

    @classmethod
    @abstractmethod
    def _fits(cls, index: Any, kind: str) -> bool:  # noqa: ANN401
        """Say whether a FAISS index that was read is one of this class."""

    @property
    @abstractmethod
    def most_effort(self) -> int:
        """The effort from which on every vector is compared."""

    @abstractmethod
    def efforts(self) -> Iterator[int]:
        """Yield rising efforts that tuning may choose from."""

    @property
    def exact(self) -> bool:
        """Whether its effort is such that every vector is compared."""
        return self.effort >= self.most_effort

    @property
    def recall(self) -> float | None:
        """Share of the true first ten that is found, of the kind of queries that fares worst."""
        measured = self.facts.get("recall")
        return 1.0 if self.exact else None if measured is None else min(measured.values())

    @property
    def ids(self) -> NDArray[np.int64]:
        """Every id, in the order of adding."""
        return self._ids[self._ids >= 0] if self._removed else np.asarray(self._ids)

    @property
    def rows(self) -> int:
        """How many rows there are, those of removed vectors among them."""
        return len(self._ids)

    @property
    def wasted(self) -> float:
        """Share (0 to 1) of rows whose vector was removed."""
        return self._removed / max(1, len(self._ids))

    def save(self, path: Path) -> None:
        """Write one file with checksums, replacing what was there in one step."""
        self.close_gaps()
        facts = {
            "kind": self.kind,
            "effort": self.effort,
            "most_effort": self.most_effort,
            "shortlist": self.shortlist,
        }
        with replacing(path) as temporary, temporary.open("w+b") as file:
            length = write(self._index, file)
            rows = place_of_rows(file, self._flat, length, after=self._rows_end)
            ids_at = -(-length // 64) * 64
            file.seek(length)
            file.write(bytes(ids_at - length))
            file.write(self._ids.astype("<i8", copy=False).tobytes())
            seal(file, self.facts | facts | {"ids": [ids_at, len(self._ids)]}, rows)

    @classmethod
    def read_from(cls, file: CheckedFile, *, mmap: bool) -> Self:
        """Read what `save` wrote; the same as `open`."""
        facts = dict(file.facts)
        kind = facts.pop("kind", None)
        if kind not in get_args(Kind):
            raise IndexFileError(f"{file.path} holds an index of kind {kind!r}, which is not known")
        loaded, mapped = read(file, mmap=mmap, checked=cls._checked_on_opening)
        if not cls._fits(loaded, kind):
            raise IndexFileError(f"{file.path} does not hold what it says")
        index = cls.__new__(cls)
        VectorIndex.__init__(index, loaded.d)
        index._index, index._mapped = loaded, mapped
        index.effort, index.shortlist = facts.pop("effort"), facts.pop("shortlist")
        facts.pop("most_effort")  # for who reads facts alone
        start, count = facts.pop("ids")
        ids: ArrayLike = (
            np.memmap(file.path, "<i8", "r", offset=start, shape=(count,)) if count else []
        )
        index._ids = np.asarray(ids, dtype=np.int64) if mapped else np.array(ids, dtype=np.int64)
        index.facts = facts
        index._file = file if mapped else None
        index._attach(kind)
        return index

    def _count(self) -> int:
        return len(self._ids) - self._removed

    def _add(self, ids: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        if len(self._rows_of(ids)):
            raise ValueError("an id is in use already; remove it first")
        self._own()
        self._index.add(vectors)
        self._ids = np.concatenate([self._ids, ids])

    def _remove(self, ids: NDArray[np.int64]) -> int:
        rows = self._rows_of(ids)
        if len(rows) == 0:
            return 0
        self._own()
        self._forget(rows)
        self._ids[rows] = -1
        self._removed += len(rows)
        return len(rows)

    @abstractmethod
    def _forget(self, rows: NDArray[np.int64]) -> None:
        """Have no search find these rows any more, as far as the index itself can."""

    @abstractmethod
    def close_gaps(self) -> None:
        """Drop the rows of removed vectors, where that can be done."""

    def vectors(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return the vectors of rows, `float32[n, dim]`; removed ones too, see `close_gaps`."""
        return self._flat.reconstruct_n(start, stop - start)  # type: ignore[no-any-return]

    def refined(
        self, queries: NDArray[np.float32], k: int, candidates: NDArray[np.int64]
    ) -> Neighbors:
        """Return the best `k` of each query's own candidates, `int64[q, c]` rows."""
        if self._removed:
            gone = (candidates >= 0) & (self._ids[candidates] < 0)
            candidates = np.where(gone, -1, candidates)
        with one_thread_for_one(len(queries)):
            return self._neighbors(
                *refine(self._flat, queries, k, candidates, lambda: self._living(None))
            )

    def _search(
        self,
        queries: NDArray[np.float32],
        k: int,
        effort: int | None,
        among: NDArray[np.int64] | None,
    ) -> Neighbors:
        allowed = None if among is None else self._rows_of(among)
        n = len(self) if allowed is None else len(allowed)
        effort = self.effort if effort is None else max(1, effort)
        few = among is not None and n <= EXACT_AMONG
        with one_thread_for_one(len(queries)):
            found = None if few else self._approximately(queries, k, effort, allowed, n)
            return self._neighbors(*found or scan(self._flat, queries, k, self._living(allowed)))

    def _neighbors(self, scores: NDArray[np.float32], rows: NDArray[np.int64]) -> Neighbors:
        self._check_rows(rows)
        return Neighbors(np.where(rows < 0, -1, self._ids[rows]), scores)

    @abstractmethod
    def _approximately(
        self,
        queries: NDArray[np.float32],
        k: int,
        effort: int,
        allowed: NDArray[np.int64] | None,
        n: int,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]] | None:
        """Return scores and rows `[q, k]`, or None where comparing all costs no more.

        Args:
            queries: `float32[q, dim]`.
            k: at most `n`.
            effort: how hard to look.
            allowed: `int64[n]`, the only rows that may be found.
            n: how many vectors may be found.
        """

    def _selector(self, rows: NDArray[np.int64]) -> Any:  # noqa: ANN401
        bits = bitmap_of(rows, len(self._ids))
        selector = faiss.IDSelectorBitmap(bits)
        selector.bits = bits  # FAISS keeps no hold of them
        return selector

    def _living(self, allowed: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
        """Return the rows that a scan may find; None where it may find all."""
        return np.flatnonzero(self._ids >= 0) if allowed is None and self._removed else allowed

    def _rows_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        if self._id_map is None:
            self._id_map = IdMap(self._ids)
        return self._id_map.rows(ids)

    def _own(self) -> None:
        """Get ready to change."""
        self._id_map = None
        if self._mapped:
            self._index, self._mapped, self._file = in_memory(self._index), False, None
            self._ids = np.array(self._ids)
            self._attach(self.kind)
