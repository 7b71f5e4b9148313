"""Rows in half precision under FAISS: how they are scanned, and how a file is opened."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import faiss
import numpy as np

from mmsearch.indexes.base import IndexFileError, VectorIndex
from mmsearch.indexes.checked_file import CHECKED_ON_OPENING, CheckedFile, Rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "FileIndex",
    "IdMap",
    "bitmap_of",
    "codes_of",
    "half_precision",
    "in_memory",
    "is_half_precision",
    "one_thread_for_one",
    "place_of_rows",
    "read",
    "refine",
    "scan",
    "scan_some",
    "write",
]

FEW_ROWS = 2_000
"""Up to so many allowed rows are gathered; with more, all are passed over with a bitmap in hand."""
SORTING_COSTS = 30
"""As much for each row as to pass over so many flags."""
MANY_QUERIES = 64
"""From so many on, decoding a block once and one matrix product beat a scan for each query. Fewer
are scanned as a single one is, to the last bit: 16 over 100,000 rows take a third of the time."""
BLOCK_ROWS = 1 << 15


class FileIndex(VectorIndex):
    """What indexes over FAISS share that stand on a file, or stood on one before they changed."""

    _file: CheckedFile | None

    @classmethod
    def open(cls, path: Path, *, mmap: bool = True) -> Self:
        """Read what `save` wrote.

        Raises:
            IndexFileError: the file is missing, torn, damaged or holds another kind of index.
        """
        return cls.read_from(CheckedFile(path), mmap=mmap)

    @classmethod
    @abstractmethod
    def read_from(cls, file: CheckedFile, *, mmap: bool) -> Self:
        """Read what `save` wrote; the same as `open`."""

    @property
    def content(self) -> str | None:
        """What is the same in files of the same content; None for an index in memory."""
        return None if self._file is None else self._file.facts["content"]

    def check(self) -> None:
        """Check every byte of the file that was opened.

        Raises:
            IndexFileError: it is damaged.
        """
        if self._file is not None:
            self._file.check_all()

    def _check_rows(self, rows: NDArray[np.int64]) -> None:
        """Check what an answer depends on, `int64[q, k]` rows with -1 where there is none."""
        if self._file is not None and self._file.rows is not None:
            self._file.check_rows(rows[rows >= 0])


class IdMap:
    """From ids to rows; without memory of its own where ids ascend, as a catalog's do."""

    def __init__(self, ids: NDArray[np.int64]) -> None:
        """Make the map of `int64[n]` distinct ids; negative ones are rows without an id."""
        self._order = None if bool((ids[1:] > ids[:-1]).all()) else np.argsort(ids)
        self._ids = ids if self._order is None else ids[self._order]

    def rows(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows, ascending, of those ids (`int64[m]`, ascending) that are there."""
        if len(self._ids) == 0:
            return np.empty(0, dtype=np.int64)
        places = np.searchsorted(self._ids, ids)
        places[places == len(self._ids)] = 0
        places = places[(self._ids[places] == ids) & (ids >= 0)]
        if self._order is None:
            return places  # type: ignore[no-any-return]
        rows: NDArray[np.int64] = self._order[places]
        if len(rows) * SORTING_COSTS < len(self._ids):
            return np.sort(rows)
        there = np.zeros(len(self._ids), dtype=np.bool_)
        there[rows] = True
        return np.flatnonzero(there)


def half_precision(dim: int) -> Any:  # noqa: ANN401 (FAISS has no types)
    """Return an empty `IndexScalarQuantizer` of fp16 rows, searched by inner product."""
    return faiss.IndexScalarQuantizer(
        dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )


def is_half_precision(index: object) -> bool:
    """Say whether an index is what `half_precision` makes."""
    return (
        isinstance(index, faiss.IndexScalarQuantizer)
        and index.sq.qtype == faiss.ScalarQuantizer.QT_fp16
        and index.metric_type == faiss.METRIC_INNER_PRODUCT
    )


def codes_of(flat: Any) -> NDArray[np.uint8]:  # noqa: ANN401
    """Return a view, `uint8[n, 2 * dim]`, of the rows of a half-precision index."""
    size = flat.codes.size()
    if size == 0:
        return np.empty((0, flat.code_size), dtype=np.uint8)
    return faiss.rev_swig_ptr(flat.codes.data(), size).reshape(-1, flat.code_size)  # type: ignore[no-any-return]


def bitmap_of(rows: NDArray[np.int64], n: int) -> NDArray[np.uint8]:
    """Return the bits of `n` rows, those of `rows` set, as `IDSelectorBitmap` reads them."""
    chosen = np.zeros(n, dtype=np.bool_)
    chosen[rows] = True
    return np.packbits(chosen, bitorder="little")


@contextmanager
def one_thread_for_one(queries: int) -> Iterator[None]:
    """Let FAISS use one thread for a single query, where more cost more than they bring.

    The setting is that of the calling thread alone.
    """
    if queries > 1:
        yield
        return
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def scan(
    flat: Any,  # noqa: ANN401
    queries: NDArray[np.float32],
    k: int,
    allowed: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Compare every row, or every allowed one, with every query.

    Args:
        flat: what `half_precision` makes.
        queries: `float32[q, dim]`.
        k: how many rows to return for each.
        allowed: `int64[m]`, ascending rows.

    Returns:
        Scores `float32[q, k]`, best first, and rows `int64[q, k]`; -1 where there are fewer.
    """
    if allowed is not None and len(allowed) <= FEW_ROWS:
        return scan_some(flat, queries, k, allowed)
    if len(queries) >= MANY_QUERIES:
        return _scan_blocks(flat, queries, k, allowed)
    if allowed is None:
        return flat.search(queries, k)  # type: ignore[no-any-return]
    bits = bitmap_of(allowed, flat.ntotal)
    selector = faiss.IDSelectorBitmap(bits)
    parameters = faiss.SearchParameters(sel=selector)
    return flat.search(queries, k, params=parameters)  # type: ignore[no-any-return]


def scan_some(
    flat: Any,  # noqa: ANN401
    queries: NDArray[np.float32],
    k: int,
    rows: NDArray[np.int64],
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Compare a few rows with every query: `scan` of a copy of them."""
    if len(rows) == 0:
        shape = (len(queries), k)
        return np.full(shape, -np.inf, dtype=np.float32), np.full(shape, -1, dtype=np.int64)
    some = half_precision(flat.d)
    some.add_sa_codes(codes_of(flat)[rows])
    scores, places = some.search(queries, k)
    return scores, np.where(places < 0, -1, rows[places])


def refine(
    flat: Any,  # noqa: ANN401
    queries: NDArray[np.float32],
    k: int,
    candidates: NDArray[np.int64],
    allowed: Callable[[], NDArray[np.int64] | None] = lambda: None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Compare each query with its own candidates, `int64[q, c]`: `k` answers like those of `scan`.

    Candidates that are no rows are left out; where fewer than `k` remain, all rows that `allowed`
    returns are compared.
    """
    scores = np.empty((len(queries), k), dtype=np.float32)
    rows = np.empty((len(queries), k), dtype=np.int64)
    with one_thread_for_one(1):
        for i, found in enumerate(candidates):
            # Upper bound: a list damaged on disk may hold any number.
            known = found[(found >= 0) & (found < flat.ntotal)]
            query = queries[i : i + 1]
            if len(known) >= k:
                scores[i], rows[i] = scan_some(flat, query, k, known)
            else:
                scores[i], rows[i] = scan(flat, query, k, allowed())
    return scores, rows


def _scan_blocks(
    flat: Any,  # noqa: ANN401
    queries: NDArray[np.float32],
    k: int,
    allowed: NDArray[np.int64] | None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    n = flat.ntotal if allowed is None else len(allowed)
    best = np.full((len(queries), k), -np.inf, dtype=np.float32)
    best_rows = np.full((len(queries), k), -1, dtype=np.int64)
    for start in range(0, n, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, n)
        if allowed is None:
            block = flat.reconstruct_n(start, stop - start)
        else:
            block = flat.reconstruct_batch(allowed[start:stop])
        scores, places = faiss.knn(
            queries, block, min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT
        )
        rows = places + start if allowed is None else allowed[start + places]
        both = np.concatenate([best, scores], axis=1)
        both_rows = np.concatenate([best_rows, rows], axis=1)
        order = np.argsort(-both, axis=1, kind="stable")[:, :k]
        best = np.take_along_axis(both, order, axis=1)
        best_rows = np.take_along_axis(both_rows, order, axis=1)
    return best, best_rows


def write(index: Any, file: BinaryIO) -> int:  # noqa: ANN401
    """Write an index to the beginning of a file; return its length."""
    faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
    return file.tell()


def place_of_rows(file: BinaryIO, flat: Any, length: int, after: int) -> Rows | None:  # noqa: ANN401
    """Return where FAISS wrote rows, `after` bytes before the end of `length`; None if elsewhere.

    Its format is not documented; what is not found is checked as a whole.
    """
    codes = codes_of(flat)
    if len(codes) == 0:
        return None
    rows = Rows(length - after - codes.size, len(codes), codes.shape[1])
    for at, row in ((rows.start, codes[0]), (rows.stop - rows.length, codes[-1])):
        file.seek(max(0, at))
        if file.read(rows.length) != row.tobytes():
            return None
    return rows


def read(
    file: CheckedFile, *, mmap: bool, checked: int | None = CHECKED_ON_OPENING
) -> tuple[Any, bool]:
    """Read the index at the beginning of a file; return it and whether it is mapped.

    Args:
        file: the file.
        mmap: leave it on disk until it is needed, where FAISS can.
        checked: bytes beside rows up to which these are checked even so; None is all.

    Raises:
        IndexFileError: FAISS cannot read it, or a part that opening checks is damaged.
    """
    path = file.path
    mmap = mmap and _is_plain(path)
    if mmap:
        file.check_on_opening(checked)
    else:
        file.check_all()
    try:
        if mmap:
            # IO_FLAG_MMAP would map inverted lists only and read all of a flat index.
            return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC), True
        with path.open("rb") as stream:
            reader = faiss.PyCallbackIOReader(stream.read)
            return faiss.read_index(reader), False
    except (OSError, RuntimeError) as error:
        raise IndexFileError(f"{path} cannot be read: {error}") from error


def in_memory(index: Any) -> Any:  # noqa: ANN401
    """Copy a mapped index into memory: FAISS crashes when it changes a map of a file."""
    return faiss.deserialize_index(faiss.serialize_index(index))


def _is_plain(path: Path) -> bool:
    """Say whether FAISS can open a file of this name itself, which mapping takes."""
    try:
        path_bytes = str(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return os.name != "nt" or path_bytes.isascii()
