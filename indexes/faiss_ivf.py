"""Approximate search by FAISS: the nearest lists of small codes, then the vectors themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import faiss
import numpy as np

from mmsearch.indexes.base import IndexFileError, Neighbors, VectorIndex, replacing
from mmsearch.indexes.checked_file import CheckedFile, seal
from mmsearch.indexes.faiss_rows import (
    BLOCK_ROWS,
    IdMap,
    bitmap_of,
    codes_of,
    half_precision,
    in_memory,
    is_half_precision,
    one_thread_for_one,
    place_of_rows,
    read,
    refine,
    scan,
    write,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["IvfIndex", "Kind"]

Kind = Literal["ivf-rabitq", "ivf-sq8"]
"""How vectors are kept in the lists: one bit a coordinate, or eight."""

CODES = {"ivf-rabitq": faiss.IndexIVFRaBitQ, "ivf-sq8": faiss.IndexIVFScalarQuantizer}
QUERY_BITS = 8
"""RaBitQ compares codes with queries of so many bits a coordinate; unrounded ones cost 20 times."""
EXACT_AMONG = 50_000
"""Up to so many allowed ids, all of them are compared: a few milliseconds."""
SAMPLED = 50_000
"""Vectors that set the range of eight-bit codes where one-bit ones were trained."""
K = 10
"""What shortlists are measured for; they grow with `k` beyond."""


class IvfIndex(VectorIndex):
    """Vectors in lists around centroids, as small codes, beside the vectors in half precision.

    A search compares codes in the lists whose centroids are nearest (`effort` is their number),
    and the vectors of the best (`shortlist` of them for ten answers). Scores are those of exact
    search. With an effort of as many lists as there are, every vector is compared.

    Attributes:
        kind: how vectors are coded in the lists.
        lists: how many there are.
        effort: how many of them a search looks into unless told otherwise.
        shortlist: how many vectors it compares then for each ten answers.
        facts: what is stored with the index, as JSON.
    """

    def __init__(
        self,
        dim: int,
        centroids: NDArray[np.float32],
        sample: NDArray[np.float32],
        kind: Kind = "ivf-rabitq",
    ) -> None:
        """Make an empty index.

        Args:
            dim: the vectors' length.
            centroids: `float32[lists, dim]`.
            sample: `float32[n, dim]` of the vectors to come; sets the range of 8-bit codes.
            kind: how vectors are coded in the lists.
        """
        super().__init__(dim)
        lists = _empty_lists(centroids, sample, kind)
        self._index: Any = faiss.IndexRefine(lists, half_precision(dim))
        self._index.is_trained = True
        self._ids = np.empty(0, dtype=np.int64)
        self.effort, self.shortlist = 16, 100
        self.facts: dict[str, Any] = {}
        self._file: CheckedFile | None = None
        self._mapped = False
        self._attach(kind)

    def _attach(self, kind: Kind) -> None:
        self.kind = kind
        self._lists = faiss.downcast_index(self._index.base_index)
        self._flat = faiss.downcast_index(self._index.refine_index)
        self.lists = int(self._lists.nlist)
        self._id_map: IdMap | None = None
        self._removed = int((self._ids < 0).sum())

    @property
    def exact(self) -> bool:
        """Whether its effort is such that every vector is compared."""
        return self.effort >= self.lists

    @property
    def recall(self) -> float | None:
        """Share of the true first ten that is found, of the kind of queries that fares worst."""
        measured = self.facts.get("recall")
        return 1.0 if self.exact else None if measured is None else min(measured.values())

    @property
    def ids(self) -> NDArray[np.int64]:
        """Every id, in the order of adding."""
        return self._ids[self._ids >= 0] if self._removed else np.asarray(self._ids)

    def save(self, path: Path) -> None:
        """Write one file with checksums, replacing what was there in one step."""
        self.close_gaps()
        facts = {
            "kind": self.kind,
            "lists": self.lists,
            "effort": self.effort,
            "shortlist": self.shortlist,
        }
        with replacing(path) as temporary, temporary.open("w+b") as file:
            length = write(self._index, file)
            rows = place_of_rows(file, self._flat, length, after=4)  # IndexRefine's k_factor
            ids_at = -(-length // 64) * 64
            file.seek(length)
            file.write(bytes(ids_at - length))
            file.write(self._ids.astype("<i8", copy=False).tobytes())
            seal(file, self.facts | facts | {"ids": [ids_at, len(self._ids)]}, rows)

    @classmethod
    def open(cls, path: Path, *, mmap: bool = True) -> IvfIndex:
        """Read what `save` wrote.

        Raises:
            IndexFileError: the file is missing, torn, damaged or holds another kind of index.
        """
        return cls.read_from(CheckedFile(path), mmap=mmap)

    @classmethod
    def read_from(cls, file: CheckedFile, *, mmap: bool) -> IvfIndex:
        """Read what `save` wrote; the same as `open`."""
        facts = dict(file.facts)
        kind = facts.pop("kind", None)
        if kind not in CODES:
            raise IndexFileError(f"{file.path} holds an index of kind {kind!r}, not one with lists")
        loaded, mapped = read(file, mmap=mmap)
        if not (
            isinstance(loaded, faiss.IndexRefine)
            and isinstance(faiss.downcast_index(loaded.base_index), CODES[kind])
            and is_half_precision(faiss.downcast_index(loaded.refine_index))
        ):
            raise IndexFileError(f"{file.path} does not hold what it says")
        index = cls.__new__(cls)
        VectorIndex.__init__(index, loaded.d)
        index._index, index._mapped = loaded, mapped
        index.effort, index.shortlist = facts.pop("effort"), facts.pop("shortlist")
        facts.pop("lists")  # for who reads facts alone
        start, count = facts.pop("ids")
        ids: ArrayLike = (
            np.memmap(file.path, "<i8", "r", offset=start, shape=(count,)) if count else []
        )
        index._ids = np.asarray(ids, dtype=np.int64) if mapped else np.array(ids, dtype=np.int64)
        index.facts = facts
        index._file = file if mapped else None
        index._attach(kind)
        return index

    def check(self) -> None:
        """Check every byte of the file that was opened.

        Raises:
            IndexFileError: it is damaged.
        """
        if self._file is not None:
            self._file.check_all()

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
        # The vectors stay, without an id, until the index is saved.
        self._lists.remove_ids(faiss.IDSelectorBatch(rows))
        self._ids[rows] = -1
        self._removed += len(rows)
        return len(rows)

    def _search(
        self,
        queries: NDArray[np.float32],
        k: int,
        effort: int | None,
        among: NDArray[np.int64] | None,
    ) -> Neighbors:
        allowed = self._allowed(among)
        n = len(self) if allowed is None else len(allowed)
        reach = self.reach(k, effort, n)
        with one_thread_for_one(len(queries)):
            if reach is None or (among is not None and n <= EXACT_AMONG):
                return self._neighbors(*scan(self._flat, queries, k, self._living(allowed)))
            candidates = self._through_lists(queries, *reach, allowed)
            return self._neighbors(
                *refine(self._flat, queries, k, candidates, lambda: self._living(allowed))
            )

    def reach(self, k: int, effort: int | None, n: int) -> tuple[int, int] | None:
        """Return how many lists a search looks into and how many vectors it then compares.

        Args:
            k: how many answers.
            effort: as in `search`.
            n: how many vectors may be among the answers.

        Returns:
            None where all vectors are to be compared.
        """
        effort = self.effort if effort is None else max(1, effort)
        growth = max(1.0, effort / self.effort) * max(1.0, k / K)
        shortlist = max(k, round(self.shortlist * growth))
        # Enough lists to fill the shortlist, were they all alike and the allowed spread evenly.
        effort = max(effort, -(-2 * shortlist * self.lists // max(1, n)))
        return None if effort >= self.lists or 4 * shortlist >= n else (effort, shortlist)

    @property
    def content(self) -> str | None:
        """What is the same in files of the same content; None for an index in memory."""
        return None if self._file is None else self._file.facts["content"]

    def vectors(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return the vectors of rows, `float32[n, dim]`; removed ones too, see `close_gaps`."""
        return self._flat.reconstruct_n(start, stop - start)  # type: ignore[no-any-return]

    def refined(
        self, queries: NDArray[np.float32], k: int, candidates: NDArray[np.int64]
    ) -> Neighbors:
        """Return the best `k` of each query's own candidates, `int64[q, c]` rows."""
        with one_thread_for_one(len(queries)):
            return self._neighbors(
                *refine(self._flat, queries, k, candidates, lambda: self._living(None))
            )

    def lists_of_bytes(self, vectors: Callable[[int, int], NDArray[np.float32]]) -> Any:  # noqa: ANN401
        """Return FAISS's lists of eight-bit codes: the index's own, or others of the same rows.

        Others take a byte a coordinate of memory; centroids, and which rows a list holds, are the
        same.

        Args:
            vectors: `self.vectors`, or what calls it.
        """
        if self.kind == "ivf-sq8":
            return self._lists
        centroids = self._lists.quantizer.reconstruct_n(0, self.lists)
        sample = np.arange(0, len(self._ids), max(1, len(self._ids) // SAMPLED))
        trained = self._flat.reconstruct_batch(sample)
        coded = _empty_lists(centroids, trained, "ivf-sq8")
        list_of = np.full(len(self._ids), -1, dtype=np.int64)
        for i in range(self.lists):
            size = self._lists.invlists.list_size(i)
            if size:
                list_of[faiss.rev_swig_ptr(self._lists.invlists.get_ids(i), size)] = i
        # In the order of rows, not of lists: a map of a file is read from its beginning to its end.
        for start in range(0, len(self._ids), BLOCK_ROWS):
            rows = np.arange(start, min(start + BLOCK_ROWS, len(self._ids)))
            given = vectors(start, start + len(rows)), rows, list_of[rows]
            coded.add_core(len(rows), *map(faiss.swig_ptr, given))
        return coded

    def _neighbors(self, scores: NDArray[np.float32], rows: NDArray[np.int64]) -> Neighbors:
        if self._file is not None and self._file.rows is not None:
            self._file.check_rows(rows[rows >= 0])
        return Neighbors(np.where(rows < 0, -1, self._ids[rows]), scores)

    def _through_lists(
        self,
        queries: NDArray[np.float32],
        effort: int,
        shortlist: int,
        allowed: NDArray[np.int64] | None,
    ) -> NDArray[np.int64]:
        settings: dict[str, Any] = {"nprobe": effort}
        if allowed is not None:
            bits = bitmap_of(allowed, len(self._ids))
            settings["sel"] = faiss.IDSelectorBitmap(bits)
        if self.kind == "ivf-rabitq":
            settings["qb"] = QUERY_BITS
            parameters = faiss.IVFRaBitQSearchParameters(**settings)
        else:
            parameters = faiss.SearchParametersIVF(**settings)
        _, candidates = self._lists.search(queries, shortlist, params=parameters)
        return candidates  # type: ignore[no-any-return]

    def _allowed(self, among: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
        return None if among is None else self._rows_of(among)

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

    def close_gaps(self) -> None:
        """Drop the vectors of removed ids and number the others anew, in the lists too."""
        if not self._removed:
            return
        self._id_map = None
        living = np.flatnonzero(self._ids >= 0)
        codes = codes_of(self._flat)[living]
        self._flat.reset()
        if len(living):
            self._flat.add_sa_codes(codes)
        number = np.full(len(self._ids), -1, dtype=np.int64)
        number[living] = np.arange(len(living))
        lists = self._lists.invlists
        for i in range(self.lists):
            size = lists.list_size(i)
            if size:
                rows = faiss.rev_swig_ptr(lists.get_ids(i), size)
                rows[:] = number[rows]
        self._lists.ntotal = self._index.ntotal = len(living)
        self._ids = self._ids[living]
        self._removed = 0


def _empty_lists(
    centroids: NDArray[np.float32],
    sample: NDArray[np.float32],
    kind: Kind,
) -> Any:  # noqa: ANN401
    dim = centroids.shape[1]
    quantizer = faiss.IndexFlatIP(dim)
    quantizer.add(centroids)
    arguments: tuple[Any, ...] = (quantizer, dim, len(centroids))
    if kind == "ivf-sq8":
        arguments = (*arguments, faiss.ScalarQuantizer.QT_8bit)
    lists = CODES[kind](*arguments, faiss.METRIC_INNER_PRODUCT)
    lists.train(sample)
    return lists


def train(
    vectors: NDArray[np.float32],
    lists: int,
    kind: Kind,
    *,
    iterations: int = 10,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> IvfIndex:
    """Return an empty index with centroids found among `float32[n, dim]` vectors by k-means.

    Args:
        vectors: a sample of those to come, at least `lists`.
        lists: how many centroids.
        kind: how vectors are coded in the lists.
        iterations: of k-means.
        progress: called with how many iterations are done and how many there are.
    """
    dim = vectors.shape[1]
    parameters = faiss.ClusteringParameters()
    # One at a time, from where the last one ended, so that progress can be told.
    parameters.niter, parameters.spherical = 1, True
    parameters.min_points_per_centroid, parameters.max_points_per_centroid = 1, len(vectors)
    clustering = faiss.Clustering(dim, lists, parameters)
    nearest = faiss.IndexFlatIP(dim)
    for done in range(iterations):
        progress(done, iterations)
        nearest.reset()
        clustering.train(vectors, nearest)
    centroids = faiss.vector_to_array(clustering.centroids).reshape(lists, dim)
    progress(iterations, iterations)
    return IvfIndex(dim, centroids, vectors, kind)
