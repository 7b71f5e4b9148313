"""The reference index: plain NumPy, every vector compared. The oracle other indexes answer to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np

from mmsearch.indexes.base import IndexFileError, Neighbors, VectorIndex, replacing

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ExactIndex"]


class ExactIndex(VectorIndex):
    """Vectors in one `float32[n, dim]` array, searched by a matrix product."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self._ids = np.empty(0, dtype=np.int64)
        self._vectors = np.empty((0, dim), dtype=np.float32)

    @property
    def exact(self) -> bool:
        """Always true."""
        return True

    @property
    def ids(self) -> NDArray[np.int64]:
        """Every id, in the order of adding."""
        return self._ids

    def save(self, path: Path) -> None:
        """Write ids and vectors as one `.npz`."""
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, ids=self._ids, vectors=self._vectors)

    @classmethod
    def open(cls, path: Path, *, mmap: bool = True) -> ExactIndex:
        """Read what `save` wrote, into memory: the reference has no use for a map."""
        try:
            # `np.load` of a path would leave the file open where it is no archive.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                ids, vectors = arrays["ids"], arrays["vectors"]
        except (OSError, ValueError, TypeError, KeyError, EOFError, BadZipFile) as error:
            raise IndexFileError(f"{path} is not an exact index: {error}") from error
        if vectors.ndim != 2 or ids.shape != vectors.shape[:1]:
            raise IndexFileError(f"{path} is not an exact index: its arrays do not fit together")
        index = cls(vectors.shape[1])
        index._ids, index._vectors = ids, vectors
        return index

    def _count(self) -> int:
        return len(self._ids)

    def _add(self, ids: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        if np.isin(ids, self._ids).any():
            raise ValueError("an id is in use already; remove it first")
        self._ids = np.concatenate([self._ids, ids])
        self._vectors = np.concatenate([self._vectors, vectors])

    def _search(
        self,
        queries: NDArray[np.float32],
        k: int,
        effort: int | None,
        among: NDArray[np.int64] | None,
    ) -> Neighbors:
        ids, vectors = self._ids, self._vectors
        if among is not None:
            allowed = np.isin(ids, among)
            ids, vectors = ids[allowed], vectors[allowed]
        scores = queries @ vectors.T
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        found = np.take_along_axis(scores, order, axis=1)
        missing = ((0, 0), (0, k - order.shape[1]))
        return Neighbors(
            np.pad(ids[order], missing, constant_values=-1),
            np.pad(found, missing, constant_values=-np.inf),
        )

    def _remove(self, ids: NDArray[np.int64]) -> int:
        kept = ~np.isin(self._ids, ids)
        self._ids, self._vectors = self._ids[kept], self._vectors[kept]
        return int(len(kept) - kept.sum())
