"""FAISS behind the `VectorIndex` contract: the only module that imports it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np

from mmsearch.indexes.base import IndexFileError, Neighbors, VectorIndex, replacing

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FaissIndex"]

_MARK = b"mmsearch"
"""Ends a file, before the length of what FAISS wrote: FAISS maps torn files, and may crash."""


class FaissIndex(VectorIndex):
    """Exact inner-product search over vectors kept in half precision.

    The catalog stores fp16, so the index loses nothing against it; scores are computed in
    float32. Half the bytes also make one query's scan, which memory bandwidth bounds, about twice
    as fast as over float32.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        flat = faiss.IndexScalarQuantizer(
            dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        )
        self._index: Any = faiss.IndexIDMap(flat)
        self._mapped = False

    @property
    def exact(self) -> bool:
        """Always true: every vector is compared."""
        return True

    def save(self, path: Path) -> None:
        """Write a FAISS file, replacing what was there in one step."""
        with replacing(path) as temporary, temporary.open("wb") as file:
            writer = faiss.PyCallbackIOWriter(file.write)  # type: ignore[attr-defined]
            faiss.write_index(self._index, writer)
            file.write(_ending(file.tell()))

    @classmethod
    def open(cls, path: Path, *, mmap: bool = True) -> FaissIndex:
        """Read what `save` wrote.

        Raises:
            IndexFileError: the file is missing, torn or holds another kind of index.
        """
        try:
            with path.open("rb") as file:
                length = file.seek(0, os.SEEK_END) - len(_ending(0))
                file.seek(max(0, length))
                whole = length > 0 and file.read() == _ending(length)
        except OSError as error:
            raise IndexFileError(f"{path} cannot be read: {error.strerror}") from error
        if not whole:
            raise IndexFileError(f"{path} is torn, or no index of mmsearch")
        mmap = mmap and _is_plain(path)
        try:
            if mmap:
                # IO_FLAG_MMAP would map inverted lists only and read all of a flat index.
                loaded = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
            else:
                with path.open("rb") as file:
                    reader = faiss.PyCallbackIOReader(file.read)  # type: ignore[attr-defined]
                    loaded = faiss.read_index(reader)
        except (OSError, RuntimeError) as error:
            raise IndexFileError(f"{path} cannot be read: {error}") from error
        flat = faiss.downcast_index(loaded.index) if isinstance(loaded, faiss.IndexIDMap) else None
        if not (
            isinstance(flat, faiss.IndexScalarQuantizer)
            and flat.sq.qtype == faiss.ScalarQuantizer.QT_fp16
            and flat.metric_type == faiss.METRIC_INNER_PRODUCT
        ):
            raise IndexFileError(f"{path} holds a {type(loaded).__name__}, not the index expected")
        index = cls.__new__(cls)
        VectorIndex.__init__(index, loaded.d)
        index._index, index._mapped = loaded, mmap
        return index

    def _count(self) -> int:
        return int(self._index.ntotal)

    def _add(self, ids: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        if np.isin(ids, faiss.vector_to_array(self._index.id_map)).any():
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
        parameters = None
        if among is not None:
            selector = faiss.IDSelectorBatch(among)
            parameters = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]
        scores, ids = self._index.search(queries, k, params=parameters)
        return Neighbors(ids, scores)

    def _remove(self, ids: NDArray[np.int64]) -> int:
        self._own()
        return int(self._index.remove_ids(ids))

    def _own(self) -> None:
        """Copy mapped vectors into memory: FAISS crashes when it changes a map of a file."""
        if self._mapped:
            self._index = faiss.deserialize_index(faiss.serialize_index(self._index))
            self._mapped = False


def _is_plain(path: Path) -> bool:
    """Say whether FAISS can open a file of this name itself, which mapping takes."""
    try:
        path_bytes = str(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return os.name != "nt" or path_bytes.isascii()


def _ending(length: int) -> bytes:
    return _MARK + length.to_bytes(8, "little")
