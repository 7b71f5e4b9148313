"""Vector indexes: unit vectors in, the most similar ids out. Knows nothing of pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmsearch.indexes.base import IndexFileError, Neighbors, VectorIndex

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import ArrayLike

__all__ = ["IndexFileError", "Neighbors", "VectorIndex", "build", "open"]


def build(ids: ArrayLike, vectors: ArrayLike) -> VectorIndex:
    """Return an index over `float32[n, dim]` unit vectors under `int64[n]` ids.

    The index is exact: a scan of fp16 vectors answers in about 5 ms for 100,000 × 512 on one core.
    """
    import numpy as np

    from mmsearch.indexes.faiss import FaissIndex

    index = FaissIndex(np.shape(vectors)[1])
    index.add(ids, vectors)
    return index


def open(path: Path, *, mmap: bool = True) -> VectorIndex:
    """Open a saved index; `mmap` leaves the vectors on disk until a search touches them.

    Raises:
        IndexFileError: the file is missing, torn or of another kind.
    """
    from mmsearch.indexes.faiss import FaissIndex

    return FaissIndex.open(path, mmap=mmap)
