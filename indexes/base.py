"""The contract every vector index keeps."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "WRITING",
    "Condition",
    "IndexFileError",
    "Neighbors",
    "VectorIndex",
    "ascending",
    "replacing",
]

WRITING = ".writing-"
"""What the names of temporary folders begin with."""


class IndexFileError(Exception):
    """An index file is missing, torn or of another kind; rebuild it from its source."""


@dataclass(frozen=True, slots=True)
class Neighbors:
    """The answer to `q` queries, best first.

    Attributes:
        ids: `int64[q, k]`, padded with -1 where fewer than `k` vectors exist.
        scores: `float32[q, k]`, cosine similarity in [-1, 1]; -inf beside an id of -1.
    """

    ids: NDArray[np.int64]
    scores: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Condition:
    """Which vectors may be returned, by what the index that made this keeps beside them.

    Attributes:
        expression: in that index's own language.
        count: how many vectors it is true of.
        within: called with `int64[m]` ids; returns those it is true of, ascending.
    """

    expression: str
    count: int
    within: Callable[[NDArray[np.int64]], NDArray[np.int64]]

    def __len__(self) -> int:
        return self.count


def ascending(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each id once, ascending; those that are so already, as they are."""
    # To see that is a fiftieth of the work of sorting a hundred thousand.
    return ids if ids.ndim == 1 and bool((ids[1:] > ids[:-1]).all()) else np.unique(ids)


class VectorIndex(ABC):
    """Unit vectors by 64-bit id, searched by cosine similarity (higher is better).

    The public methods check their arguments once; an implementation writes the underscored ones
    and may rely on clean input. Searching never changes an index, so threads may share one.

    Attributes:
        dim: how long vectors are.
        remote: whether another machine compares, so that nothing can be copied to a GPU of this.
    """

    remote = False

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise ValueError(f"dim must be at least 1, not {dim}")
        self.dim = dim

    def __len__(self) -> int:
        return self._count()

    @property
    @abstractmethod
    def exact(self) -> bool:
        """Whether a search compares every vector."""

    @property
    def recall(self) -> float | None:
        """Share (0 to 1) of the true first ten that is found, as measured; None if it never was."""
        return 1.0 if self.exact else None

    @property
    @abstractmethod
    def ids(self) -> NDArray[np.int64]:
        """`int64[n]`: the ids of all vectors, in no particular order."""

    def close(self) -> None:  # noqa: B027 (most hold nothing)
        """Give back what the index holds beside memory; it goes on answering."""

    def has(self, ids: ArrayLike) -> NDArray[np.bool_]:
        """Say of each id whether a vector stands under it."""
        return np.isin(np.asarray(ids, dtype=np.int64), self.ids)

    def check(self) -> None:  # noqa: B027 (an index in memory has nothing to check)
        """Check every byte of the file that was opened, as opening does not.

        Raises:
            IndexFileError: it is damaged.
        """

    def add(self, ids: ArrayLike, vectors: ArrayLike) -> None:
        """Add `float32[n, dim]` unit vectors under `int64[n]` ids that are not in use.

        Raises:
            ValueError: shapes disagree, a vector is no unit vector (or not finite), or an id is
                negative or given twice.
        """
        keys, rows = self._checked(ids, vectors)
        if len(keys):
            self._add(keys, rows)

    def _checked(
        self, ids: ArrayLike, vectors: ArrayLike
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        keys = np.ascontiguousarray(ids, dtype=np.int64)
        rows = self._rows(vectors)
        if keys.shape != (len(rows),):
            raise ValueError(f"{len(rows)} vectors need ids int64[{len(rows)}], not {keys.shape}")
        if len(keys) == 0:
            return keys, rows
        if keys.min() < 0 or len(np.unique(keys)) != len(keys):
            raise ValueError("ids must be distinct and not negative")
        norms = np.linalg.norm(rows, axis=1)
        # fp16 storage moves a norm by up to 5e-4.
        if not np.all(np.abs(norms - 1) < 2e-3):
            raise ValueError("vectors must be finite and of length 1")
        return keys, rows

    def search(
        self,
        queries: ArrayLike,
        k: int,
        *,
        effort: int | None = None,
        among: ArrayLike | Condition | None = None,
    ) -> Neighbors:
        """Return the `k` most similar vectors for each of `float32[q, dim]` queries.

        Args:
            queries: unit vectors; one of shape `[dim]` counts as a batch of one.
            k: at least 1.
            effort: how hard an approximate index looks (its own unit); an exact one ignores it.
            among: `int64[m]`, the only ids that may be returned; quickest where they ascend. Or
                a condition that this very index made.

        Raises:
            ValueError: `k` is below 1 or the dimension differs.
            IndexFileError: what the answer depends on is damaged on disk; make the index anew.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        rows = self._rows(np.atleast_2d(np.asarray(queries, dtype=np.float32)))
        allowed: NDArray[np.int64] | Condition | None
        if among is None or isinstance(among, Condition):
            allowed = among
        else:
            allowed = ascending(np.asarray(among, dtype=np.int64))
        found = min(k, len(self) if allowed is None else len(allowed), len(self))
        if found == 0 or len(rows) == 0:
            shape = (len(rows), k)
            return Neighbors(
                np.full(shape, -1, dtype=np.int64), np.full(shape, -np.inf, dtype=np.float32)
            )
        if isinstance(allowed, Condition):
            neighbors = self._search_where(rows, found, effort, allowed)
        else:
            neighbors = self._search(rows, found, effort, allowed)
        missing = neighbors.ids < 0
        neighbors.scores[missing] = -np.inf
        if found == k:
            return neighbors
        padding = ((0, 0), (0, k - found))
        return Neighbors(
            np.pad(neighbors.ids, padding, constant_values=-1),
            np.pad(neighbors.scores, padding, constant_values=-np.inf),
        )

    def remove(self, ids: ArrayLike) -> int:
        """Remove vectors; return how many of the ids were there."""
        keys = np.unique(np.asarray(ids, dtype=np.int64))
        return self._remove(keys) if len(keys) else 0

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write the index to `path`: the old file or the new one is there, never half of one."""

    @classmethod
    @abstractmethod
    def open(cls, path: Path, *, mmap: bool = True) -> VectorIndex:
        """Read what `save` wrote; `mmap` leaves the vectors on disk until they are needed.

        Raises:
            IndexFileError: the file is missing, torn or holds another kind of index.
        """

    @abstractmethod
    def _count(self) -> int: ...

    @abstractmethod
    def _add(self, ids: NDArray[np.int64], vectors: NDArray[np.float32]) -> None: ...

    @abstractmethod
    def _search(
        self,
        queries: NDArray[np.float32],
        k: int,
        effort: int | None,
        among: NDArray[np.int64] | None,
    ) -> Neighbors:
        """Return `[q, k]` for `1 <= k <= len(self)`; ids of -1 only where `among` is short."""

    def _search_where(
        self,
        queries: NDArray[np.float32],
        k: int,
        effort: int | None,
        condition: Condition,
    ) -> Neighbors:
        """Return what `_search` does, where a condition of this index says what is allowed."""
        raise TypeError(f"{type(self).__name__} keeps nothing beside its vectors")

    @abstractmethod
    def _remove(self, ids: NDArray[np.int64]) -> int: ...

    def _rows(self, vectors: ArrayLike) -> NDArray[np.float32]:
        rows = np.ascontiguousarray(vectors, dtype=np.float32)
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise ValueError(f"vectors of shape [n, {self.dim}] are expected, not {rows.shape}")
        return rows


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; it takes the place of `path` at the end.

    The content is on the disk before the name is, so that after a loss of power the old file or
    the new one is there.
    """
    with TemporaryDirectory(prefix=WRITING, dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        yield temporary
        _sync(temporary)
        temporary.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a folder; NTFS journals the rename by itself.
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
