"""Exact search by FAISS. Only the modules `indexes.faiss*` import it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np

from mmsearch.indexes.base import IndexFileError, Neighbors, VectorIndex, replacing
from mmsearch.indexes.checked_file import CheckedFile, seal
from mmsearch.indexes.faiss_rows import (
    FileIndex,
    IdMap,
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
    from numpy.typing import NDArray

__all__ = ["FaissIndex"]


class FaissIndex(FileIndex):
    """Exact inner-product search over vectors kept in half precision.

    The catalog stores fp16, so the index loses nothing against it; scores are computed in
    float32. Half the bytes also make one query's scan, which memory bandwidth bounds, about twice
    as fast as over float32.

    Attributes:
        facts: what is stored with the index, as JSON.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self._index: Any = faiss.IndexIDMap(half_precision(dim))
        self._file: CheckedFile | None = None
        self._mapped = False
        self._id_map: IdMap | None = None
        self.facts: dict[str, Any] = {}

    @property
    def exact(self) -> bool:
        """Always true: every vector is compared."""
        return True

    @property
    def ids(self) -> NDArray[np.int64]:
        """Every id, in the order of adding."""
        return faiss.vector_to_array(self._index.id_map)  # type: ignore[no-any-return]

    def save(self, path: Path) -> None:
        """Write a FAISS file with checksums, replacing what was there in one step."""
        with replacing(path) as temporary, temporary.open("w+b") as file:
            self.write_to(file, {"kind": "flat"})

    def write_to(self, file: Any, facts: dict[str, Any], tail: bytes = b"") -> None:  # noqa: ANN401
        """Write the index, `tail` and what `seal` adds to an empty file."""
        length = write(self._index, file)
        rows = None
        if isinstance(self._index, faiss.IndexIDMap) and is_half_precision(self._flat):
            after = 8 + 8 * len(self)  # the ids
            rows = place_of_rows(file, self._flat, length, after)
        file.seek(length)
        file.write(tail)
        seal(file, self.facts | facts, rows)

    @classmethod
    def read_from(cls, file: CheckedFile, *, mmap: bool) -> FaissIndex:
        """Read what `write_to` wrote; the same as `open`."""
        loaded, mapped = read(file, mmap=mmap)
        flat = faiss.downcast_index(loaded.index) if isinstance(loaded, faiss.IndexIDMap) else None
        if not is_half_precision(flat):
            raise IndexFileError(
                f"{file.path} holds a {type(loaded).__name__}, not the index expected"
            )
        index = cls.__new__(cls)
        VectorIndex.__init__(index, loaded.d)
        index._index, index._mapped, index.facts = loaded, mapped, file.facts
        index._id_map = None
        index._file = file if mapped else None
        return index

    @property
    def _flat(self) -> Any:  # noqa: ANN401
        return faiss.downcast_index(self._index.index)

    @property
    def rows(self) -> int:
        """How many rows there are: one for each vector."""
        return len(self)

    def vectors(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Return the vectors of rows, `float32[n, dim]`; all of them, in the order of `ids`."""
        stop = len(self) if stop is None else stop
        return self._flat.reconstruct_n(start, stop - start)  # type: ignore[no-any-return]

    def refined(
        self, queries: NDArray[np.float32], k: int, candidates: NDArray[np.int64]
    ) -> Neighbors:
        """Return the best `k` of each query's own candidates, `int64[q, c]` rows."""
        with one_thread_for_one(len(queries)):
            return self._neighbors(*refine(self._flat, queries, k, candidates))

    def _count(self) -> int:
        return int(self._index.ntotal)

    def _add(self, ids: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        if len(self._rows_of(ids)):
            raise ValueError("an id is in use already; remove it first")
        self._own()
        self._index.add_with_ids(vectors, ids)

    def _search(
        self,
        queries: NDArray[np.float32],
        k: int,
        effort: int | None,
        among: NDArray[np.int64] | None,
    ) -> Neighbors:
        allowed = None if among is None else self._rows_of(among)
        with one_thread_for_one(len(queries)):
            return self._neighbors(*scan(self._flat, queries, k, allowed))

    def _neighbors(self, scores: NDArray[np.float32], rows: NDArray[np.int64]) -> Neighbors:
        self._check_rows(rows)
        ids = faiss.rev_swig_ptr(self._index.id_map.data(), len(self))
        return Neighbors(np.where(rows < 0, -1, ids[rows]), scores)

    def _remove(self, ids: NDArray[np.int64]) -> int:
        self._own()
        return int(self._index.remove_ids(ids))

    def _rows_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        if self._id_map is None:
            self._id_map = IdMap(self.ids)
        return self._id_map.rows(ids)

    def _own(self) -> None:
        """Get ready to change."""
        self._id_map = None
        if self._mapped:
            self._index, self._mapped, self._file = in_memory(self._index), False, None
