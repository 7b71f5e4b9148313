"""Index files: derived from the catalog, named after its states, kept in step with it."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch import indexes
from mmsearch.errors import StorageError
from mmsearch.indexes.base import WRITING
from mmsearch.retrieval.schema import Target

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.indexes import VectorIndex
    from mmsearch.retrieval.adapter import Adapter
    from mmsearch.retrieval.catalog import Catalog, LibraryRow
    from mmsearch.retrieval.schema import EncoderSpec

__all__ = ["IndexFiles", "Report", "silent"]

logger = logging.getLogger(__name__)

Report = Callable[[str, int, int], None]
"""Called with a stage, how much of it is done and how much there is."""
ABANDONED_AFTER_S = 3600
GROWN_FROM_BYTES = 16 << 20
"""Smaller index files are made anew where something changed."""
SAMPLED = 2_000
"""Vectors of captions that an index of pictures is tuned for, and the other way round."""


def silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""


class IndexFiles:
    """The files of one library."""

    def __init__(
        self, folder: Path, catalog: Catalog, adapter: Callable[[LibraryRow], Adapter | None]
    ) -> None:
        """Name the folder, what the files are made from, and what adapts texts in a state."""
        self._folder = folder
        self._catalog = catalog
        self._adapter = adapter

    def open(
        self, target: Target, row: LibraryRow, *, thorough: bool, progress: Report
    ) -> VectorIndex:
        """Return the index of a state, as `Library.open_index` does.

        The file is opened where it is current. Otherwise a large one of an earlier state is opened
        and changed, or one is made anew from the catalog, and saved; where saving is impossible
        the index serves from memory.
        """
        path = self.path(target, row.stamp)
        index: VectorIndex | None = None
        if os.path.isfile(path):  # noqa: PTH113
            try:
                index = indexes.open(path)
                if thorough:
                    index.check()
            except indexes.IndexFileError as error:
                self._discard(path, error)
                index = None
        current = index is not None
        if index is None:
            index = self._grown(target, row, thorough=thorough)
        if index is None or (thorough and indexes.outgrown(index)):
            return self.build(target, row, train=thorough, progress=progress)
        settled = indexes.merged(index) if thorough else index
        if not current or settled is not index:
            self._save(settled, path, target)
        return settled

    def build(
        self,
        target: Target,
        row: LibraryRow,
        *,
        settings: Mapping[str, Any] | None = None,
        train: bool,
        progress: Report,
    ) -> VectorIndex:
        """Make an index from the catalog, as `Library.build_index` does."""
        encoder_id, spec = _active(row)
        if settings is None:
            files = self._of(target)
            settings = next((s for s in map(indexes.settings_of, files) if s is not None), {})
        read = {
            Target.IMAGES: self._catalog.file_vectors,
            Target.CAPTIONS: self._catalog.caption_vectors,
        }[target]
        vectors: NDArray[np.float16] | NDArray[np.float32]
        queries: NDArray[np.float16] | NDArray[np.float32]
        ids, vectors = read(encoder_id, spec.dim)
        adapter = self._adapter(row)
        if adapter is not None and target is Target.CAPTIONS:
            vectors = adapter.apply(vectors)
        if train:
            other = Target.CAPTIONS if target is Target.IMAGES else Target.IMAGES
            queries = self._sample(other, encoder_id, spec.dim)
            if adapter is not None and other is Target.CAPTIONS:
                queries = adapter.apply(queries)
            index = indexes.build(ids, vectors, queries=queries, progress=progress, **settings)
        else:
            index = indexes.build(ids, vectors, for_now=True, **settings)
        self._save(index, self.path(target, row.stamp), target)
        return index

    def search_of(self, target: Target, row: LibraryRow) -> tuple[bool, float | None]:
        """Say how a state's index searches, as `Library.search_of` does."""
        try:
            return indexes.search_of(self.path(target, row.stamp))
        except indexes.IndexFileError:
            return True, 1.0

    def verify(self, target: Target, row: LibraryRow, progress: Report) -> int:
        """Check every byte of a state's file, and that it holds what the catalog does.

        Returns:
            how many vectors it has.

        Raises:
            StorageError: it is damaged, or holds others.
        """
        index = self.open(target, row, thorough=True, progress=progress)
        ids = self._catalog.vector_ids(target, _active(row)[0])
        if not np.array_equal(np.sort(index.ids), ids):
            raise StorageError(
                f"{self.path(target, row.stamp)} does not hold what the catalog does. The library "
                "stays where it was; try again."
            )
        return len(ids)

    def rename(self, before: str, now: str) -> None:
        """Call the pictures' index of one state that of another, where only texts changed."""
        with suppress(OSError):
            self.path(Target.IMAGES, before).rename(self.path(Target.IMAGES, now))

    def _grown(self, target: Target, row: LibraryRow, *, thorough: bool) -> VectorIndex | None:
        """Return the index of an earlier state with what changed since; None where there is none.

        A small one is made anew instead, which takes no longer.
        """
        encoder_id, spec = _active(row)
        for path in self._of(target):
            stamp = path.stem.removeprefix(f"{target.value}-")
            changed = self._catalog.changes(target, stamp, row)
            if changed is None:
                continue
            try:
                if indexes.base_of(path).stat().st_size < GROWN_FROM_BYTES:
                    return None
                ids, vectors = self._catalog.vectors_of(target, encoder_id, spec.dim, changed)
                adapter = self._adapter(row) if target is Target.CAPTIONS else None
                rows = vectors if adapter is None else adapter.apply(vectors)
                index = indexes.grow(path, changed, ids, rows)
                if thorough:
                    index.check()
            except (indexes.IndexFileError, OSError) as error:
                self._discard(path, error)
            else:
                return index
        return None

    def _discard(self, path: Path, error: Exception) -> None:
        """Delete a damaged file, and the one it builds upon: either may be the damaged one."""
        if not os.path.lexists(path):
            return  # another process, of another state, removed it a moment ago
        logger.warning("%s; making it anew from the catalog", error)
        with suppress(OSError, indexes.IndexFileError):
            indexes.base_of(path).unlink()
        with suppress(OSError):
            path.unlink()

    def _sample(self, target: Target, encoder_id: int, dim: int) -> NDArray[np.float16]:
        """Return up to a few thousand vectors, evenly spread."""
        ids = self._catalog.vector_ids(target, encoder_id)
        some = ids[:: max(1, len(ids) // SAMPLED)]
        return self._catalog.vectors_of(target, encoder_id, dim, some)[1]

    def path(self, target: Target, stamp: str) -> Path:
        """Return where the index of a state lies, whether it is there or not."""
        return self._folder / f"{target.value}-{stamp}.faiss"

    def _of(self, target: Target) -> list[Path]:
        """Return the index files of all states, the newest first."""
        found = []
        # Without permission for the folder there is none that could be used.
        with suppress(PermissionError):
            for path in self._folder.glob(f"{target.value}-*.faiss"):
                with suppress(OSError):  # another process removed it
                    found.append((path.stat().st_mtime_ns, path))
        return [path for _, path in sorted(found, reverse=True)]

    def _save(self, index: VectorIndex, path: Path, target: Target) -> None:
        try:
            path.parent.mkdir(exist_ok=True)
            index.save(path)
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or error
            logger.warning(
                "%s cannot be saved (%s): it is made anew for each question until it can be",
                path,
                reason,
            )
            return
        for leftover in path.parent.glob(f"{WRITING}*"):
            # A process that was killed while saving left it; one that is at it now is younger.
            with suppress(OSError):
                if time.time() - leftover.stat().st_mtime > ABANDONED_AFTER_S:
                    shutil.rmtree(leftover)
        try:
            needed = {path, indexes.base_of(path)}
        except indexes.IndexFileError:
            return  # another process, which saw a later state, removed it already
        for other in path.parent.glob(f"{target.value}-*.faiss"):
            if other not in needed:
                # Still mapped by another process on Windows: the next save removes it.
                with suppress(OSError):
                    other.unlink()


def _active(row: LibraryRow) -> tuple[int, EncoderSpec]:
    assert row.encoder is not None
    assert row.encoder_id is not None
    return row.encoder_id, row.encoder
