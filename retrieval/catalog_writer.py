"""What a run read and embedded, written into the catalog; what is gone, taken out of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmsearch.errors import MediaError
from mmsearch.retrieval.comparison import is_gone
from mmsearch.retrieval.media import TRANSIENT_KINDS, open_picture
from mmsearch.retrieval.reading import Read, Unread
from mmsearch.retrieval.scan import Scan
from mmsearch.retrieval.schema import Problem

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from mmsearch.retrieval.catalog import KnownFile, Transaction
    from mmsearch.retrieval.embedding import Embedded
    from mmsearch.retrieval.encoders import Encoder
    from mmsearch.retrieval.library import Library

__all__ = ["CatalogWriter", "Written"]


@dataclass(slots=True)
class Written:
    """What became of a batch: how many of each field of the report, and ids that were moved."""

    outcomes: Counter[str] = field(default_factory=Counter)
    moved: set[int] = field(default_factory=set)


class CatalogWriter:
    """Writes what a run found in a library's folder."""

    def __init__(
        self,
        library: Library,
        encoder: Encoder,
        encoder_id: int,
        found: Scan,
        known: dict[str, KnownFile],
    ) -> None:
        """Prepare to write.

        Args:
            library: whose catalog.
            encoder: whose vectors.
            encoder_id: its key in the catalog.
            found: what is in the folder.
            known: what the catalog knew of it before, by path. Where several runs write to a
                catalog it is brought up to date before a batch is written.
        """
        self._root, self._catalog = library.root, library.catalog
        self._encoder, self._encoder_id = encoder, encoder_id
        self._found, self._known = found, known

    def write(self, transaction: Transaction, batch: Embedded, gone: Mapping[int, str]) -> Written:
        """Write a batch; change nothing else, because it may be done again.

        Args:
            transaction: all of the batch is written in it.
            batch: what was read and embedded.
            gone: paths of pictures that are no more, by id; one with the same content moved.
        """
        written = Written()
        if self._catalog.served:
            # Whatever another run, or this one in a transaction that was cut off, has done since.
            paths = [item.path for item in batch.items]
            now = transaction.known_files(self._encoder_id, paths)
            for path in paths:
                self._known.pop(path, None)
            self._known |= now
        contents = [item.picture.sha256 for item in batch.items if isinstance(item, Read)]
        taken = transaction.contents_among(contents)
        new: list[Read] = []
        for item in batch.items:
            if isinstance(item, Unread):
                self.write_problem(transaction, item)
                continue
            picture = item.picture
            vector = batch.vectors.get(picture.path)
            if (
                vector is not None
                and picture.path not in self._known
                and picture.sha256 not in taken
            ):
                taken.add(picture.sha256)
                new.append(item)
                continue
            # Ids are given in the order of files.
            self._add(transaction, new, batch, written)
            new = []
            self._write(transaction, item, vector, gone, written)
        self._add(transaction, new, batch, written)
        return written

    def _add(
        self, transaction: Transaction, new: Sequence[Read], batch: Embedded, written: Written
    ) -> None:
        """Write pictures that neither stand at their paths nor have a twin."""
        pictures = [item.picture for item in new]
        if not pictures:
            return
        vectors = np.stack([batch.vectors[picture.path] for picture in pictures])
        ids = transaction.add_files(pictures, self._encoder_id, vectors)
        transaction.add_captions(
            {id_: item.captions for id_, item in zip(ids, new, strict=True) if item.captions}
        )
        for item in new:
            if item.unread is not None:
                self.write_problem(transaction, Unread(item.picture.path, item.unread))
        written.outcomes["added"] += len(new)

    def _write(
        self,
        transaction: Transaction,
        item: Read,
        vector: NDArray[np.float32] | None,
        gone: Mapping[int, str],
        written: Written,
    ) -> None:
        picture = item.picture
        known = self._known.get(picture.path)
        same = transaction.files_with(picture.sha256)
        if known is not None and known.id in same and known.embedded:
            # Only its time or its side-cars changed.
            transaction.refresh_file(known.id, picture)
            written.outcomes["unchanged"] += 1
            self.write_captions(transaction, known.id, item)
            return
        left = {id_: gone[id_] for id_ in same if id_ in gone and id_ not in written.moved}
        if left and self._catalog.served:
            left = {id_: left[id_] for id_ in transaction.still_at(left)}
        old = None if known is not None else next(iter(left), None)
        embedded = old is not None and self._known[gone[old]].embedded
        if vector is None and not embedded:
            vector = transaction.vector_of(picture.sha256, self._encoder_id)
        if vector is None and not embedded:
            # Its twin was itself replaced a moment ago (two files that swapped names).
            try:
                vector = self._encoder.encode_images([self._opened(picture.path)])[0]
            except MediaError as error:
                self.write_problem(transaction, Unread(picture.path, error))
                return
        if old is not None:
            transaction.refresh_file(old, picture)
            written.moved.add(old)
            written.outcomes["moved"] += 1
        elif known is not None:
            written.outcomes["updated"] += 1
        else:
            written.outcomes["added"] += 1
        file_id = old
        if vector is not None:
            file_id = transaction.put_file(picture, self._encoder_id, vector)
        assert file_id is not None
        self.write_captions(transaction, file_id, item)

    def _opened(self, path: str) -> Path | Image:
        place = self._found.files[path].place
        return self._root / path if place is None else open_picture(place.read())

    def write_captions(self, transaction: Transaction, file_id: int, item: Read) -> None:
        """Record what was read with a picture, and what could not be."""
        transaction.set_captions(file_id, item.captions, sources=item.sources)
        if item.unread is not None:
            self.write_problem(transaction, Unread(item.picture.path, item.unread))

    def write_problem(self, transaction: Transaction, item: Unread) -> None:
        """Record why a file cannot be indexed."""
        file = self._found.files[item.path]
        problem = Problem(item.path, item.error.kind, str(item.error))
        keep = item.error.kind in TRANSIENT_KINDS
        transaction.put_problem(problem, file.size, file.mtime_ns, forget=not keep)

    def forget(self, gone: Mapping[int, str], settled: Iterable[str]) -> int:
        """Drop pictures and problems that are no more; record names that are no files.

        Args:
            gone: paths of pictures, by id.
            settled: paths whose problems are no more.

        Returns:
            How many pictures were dropped.
        """
        with self._catalog.write() as transaction:
            left = transaction.still_at(gone) if self._catalog.served else gone
            transaction.remove_files(left)
            transaction.resolve_problems(settled)
            for path, reason in self._found.unusable.items():
                transaction.put_problem(Problem(path, "not-a-file", reason))
            for path, reason in self._found.unreadable.items():
                transaction.put_problem(Problem(path, "unreadable", reason), forget=False)
            for path, (kind, reason) in self._found.damaged.items():
                size, mtime_ns = self._found.containers[path]
                transaction.put_problem(Problem(path, kind, reason), size, mtime_ns, forget=False)
            # All that is in them is done: they need not be read again until they change.
            transaction.forget_containers(filter(self._is_gone, self._catalog.containers()))
            transaction.put_containers(
                {path: self._found.containers[path] for path in sorted(self._found.listed)}
            )
        return len(left)

    def _is_gone(self, path: str) -> bool:
        return is_gone(self._found, self._root, path)
