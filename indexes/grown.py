"""An index file that stays as it is, and what was added and removed since.

Saving writes the changes alone, so it costs what changed; `merged` makes one index of both, which
costs a copy of all.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch.indexes.base import IndexFileError, Neighbors, VectorIndex, replacing
from mmsearch.indexes.checked_file import CheckedFile
from mmsearch.indexes.faiss import FaissIndex

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.indexes.faiss_approximate import ApproximateIndex
    from mmsearch.indexes.faiss_gpu import GpuIndex

__all__ = ["GrownIndex", "open_whole"]

MERGED_FROM = 10_000
"""Changes up to which a merge is not worth while, whatever the size."""
MERGED_SHARE = 0.02
"""Changes, as a share of the base, up to which it is not either: all added ones are compared."""


class GrownIndex(VectorIndex):
    """A base that is only read, vectors added since, and ids of the base that are no more.

    Attributes:
        base: the index that is only read.
        base_path: the file it was opened from; None where it is in memory alone.
    """

    def __init__(
        self, base: FaissIndex | ApproximateIndex | GpuIndex, base_path: Path | None = None
    ) -> None:
        super().__init__(base.dim)
        self.base = base
        self.base_path = base_path
        self._content = base.facts.get("content")
        self._added = FaissIndex(base.dim)
        self._removed = np.empty(0, dtype=np.int64)

    @property
    def exact(self) -> bool:
        """Whether the base is exact; what was added since always is."""
        return self.base.exact

    @property
    def recall(self) -> float | None:
        """That of the base."""
        return self.base.recall

    @property
    def facts(self) -> dict[str, Any]:
        """Those of the base."""
        return self.base.facts

    @property
    def ids(self) -> NDArray[np.int64]:
        """Those of the base that are still there, and the added ones."""
        kept = self.base.ids
        if len(self._removed):
            kept = kept[~np.isin(kept, self._removed)]
        return np.concatenate([kept, self._added.ids])

    @property
    def changes(self) -> int:
        """How many vectors were added or removed since the base was made."""
        return len(self._added) + len(self._removed)

    @property
    def worth_merging(self) -> bool:
        """Whether so much has changed that one index of both is better."""
        return self.changes > max(MERGED_FROM, MERGED_SHARE * len(self.base))

    def save(self, path: Path) -> None:
        """Write the changes beside the base's file; all of it where that is somewhere else."""
        beside = self.base_path is not None and self.base_path.parent == path.parent
        if not beside or self.base_path == path:
            self.merged().save(path)
            return
        assert self.base_path is not None
        facts = {
            "kind": "grown",
            "base": self.base_path.name,
            "base_content": self._content,
            "removed": len(self._removed),
        }
        with replacing(path) as temporary, temporary.open("w+b") as file:
            self._added.write_to(file, facts, tail=self._removed.astype("<i8").tobytes())

    @classmethod
    def open(cls, path: Path, *, mmap: bool = True) -> GrownIndex:
        """Read what `save` wrote, and the base it names.

        Raises:
            IndexFileError: one of both is missing, torn, damaged or not what it was.
        """
        return cls.read_from(CheckedFile(path), mmap=mmap)

    @classmethod
    def read_from(cls, file: CheckedFile, *, mmap: bool) -> GrownIndex:
        """Read what `save` wrote; the same as `open`."""
        facts = file.facts
        if facts.get("kind") != "grown":
            raise IndexFileError(f"{file.path} holds no changes of another index")
        base_path = file.path.with_name(facts["base"])
        base = open_whole(CheckedFile(base_path), mmap=mmap)
        index = cls(base, base_path)
        if index._content != facts["base_content"]:
            raise IndexFileError(f"{base_path} is not the one whose changes {file.path} holds")
        with file.path.open("rb") as stream:
            stream.seek(file.length - 8 * facts["removed"])
            removed = stream.read(8 * facts["removed"])
        # Changed in memory at once, by the next ones: nothing is won by mapping.
        index._added = FaissIndex.read_from(file, mmap=False)
        index._added.facts = {}
        index._removed = np.frombuffer(removed, dtype="<i8").astype(np.int64)
        if index._added.dim != base.dim:
            raise IndexFileError(f"{file.path} holds vectors of another length than {base_path}")
        return index

    def on(self, base: FaissIndex | ApproximateIndex | GpuIndex) -> GrownIndex:
        """Return the same changes of the same vectors; this one is used up."""
        index = GrownIndex(base, self.base_path)
        index._content = self._content
        index._added, index._removed = self._added, self._removed
        return index

    def close(self) -> None:
        """Close the base."""
        self.base.close()

    def merged(self) -> FaissIndex | ApproximateIndex | GpuIndex:
        """Return one index of the base and its changes, in memory; this one is used up."""
        base, added = self.base, self._added
        base.remove(self._removed)
        ids, vectors = added.ids, added.vectors()
        base.add(ids, vectors)
        self._added, self._removed = FaissIndex(self.dim), np.empty(0, dtype=np.int64)
        self.base_path = None
        return base

    def check(self) -> None:
        """Check every byte of the base.

        Raises:
            IndexFileError: it is damaged.
        """
        self.base.check()

    def _count(self) -> int:
        return len(self.base) - len(self._removed) + len(self._added)

    def _add(self, ids: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        in_base = self.base.has(ids) & ~np.isin(ids, self._removed)
        if in_base.any():
            raise ValueError("an id is in use already; remove it first")
        self._added.add(ids, vectors)

    def _remove(self, ids: NDArray[np.int64]) -> int:
        gone = ids[self.base.has(ids) & ~np.isin(ids, self._removed)]
        self._removed = np.union1d(self._removed, gone)
        return len(gone) + self._added.remove(ids)

    def _search(
        self,
        queries: NDArray[np.float32],
        k: int,
        effort: int | None,
        among: NDArray[np.int64] | None,
    ) -> Neighbors:
        if len(self._added) == 0:
            return self._search_base(queries, k, effort, among)
        added = self._added.search(queries, k, among=among)
        if len(self.base) == len(self._removed):
            return added
        old = self._search_base(queries, k, effort, among)
        scores = np.concatenate([old.scores, added.scores], axis=1)
        ids = np.concatenate([old.ids, added.ids], axis=1)
        scores[ids < 0] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return Neighbors(
            np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)
        )

    def _search_base(
        self,
        queries: NDArray[np.float32],
        k: int,
        effort: int | None,
        among: NDArray[np.int64] | None,
    ) -> Neighbors:
        """Search the base for `k` that are still there."""
        removed = self._removed
        if len(removed) == 0 or among is not None:
            allowed = None if among is None else np.setdiff1d(among, removed, assume_unique=True)
            return self.base.search(queries, k, effort=effort, among=allowed)
        wanted = min(k, len(self.base) - len(removed))
        asked = min(k + 8, len(self.base))
        while True:
            found = self.base.search(queries, asked, effort=effort)
            kept = (found.ids >= 0) & ~np.isin(found.ids, removed)
            if asked == len(self.base) or kept.sum(axis=1).min() >= wanted:
                break
            asked = min(2 * asked, len(self.base))
        first = np.argsort(~kept, axis=1, kind="stable")[:, :k]
        ids = np.take_along_axis(np.where(kept, found.ids, -1), first, axis=1)
        scores = np.take_along_axis(np.where(kept, found.scores, -np.inf), first, axis=1)
        missing = ((0, 0), (0, k - ids.shape[1]))
        return Neighbors(
            np.pad(ids, missing, constant_values=-1),
            np.pad(scores, missing, constant_values=-np.inf).astype(np.float32),
        )


def open_whole(file: CheckedFile, *, mmap: bool) -> FaissIndex | ApproximateIndex:
    """Open the index of a file that needs no other.

    Raises:
        IndexFileError: it is damaged or of another kind.
    """
    match file.facts.get("kind"):
        case "flat":
            return FaissIndex.read_from(file, mmap=mmap)
        case "hnsw":
            from mmsearch.indexes.faiss_hnsw import HnswIndex

            return HnswIndex.read_from(file, mmap=mmap)
        case _:
            from mmsearch.indexes.faiss_ivf import IvfIndex

            return IvfIndex.read_from(file, mmap=mmap)
