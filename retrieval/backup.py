"""A library's catalog as one file to keep elsewhere, and back.

The catalog is all that cannot be made anew from the pictures (captions of files, what `tune`
learned, which model), and vectors, which take long. Indexes, words and thumbnails are derived. A
backup is a catalog itself, made by SQLite's online backup: readers and a writer may be at it
meanwhile, and it holds one state.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsearch.errors import SourceError, StorageError, quoted
from mmsearch.indexes.base import replacing
from mmsearch.retrieval.catalog import Catalog, Counts, integrity
from mmsearch.retrieval.catalog.file import remove, work_log_in
from mmsearch.retrieval.library import Library, set_aside
from mmsearch.retrieval.library_config import CONFIG

__all__ = ["Backup", "back_up", "restore"]

PAGES = 1_000
"""Copied in one go; between two the writer gets its turn."""


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that was made or brought back.

    Attributes:
        library: the folder of pictures.
        file: the backup.
        counts: what it holds.
        bytes: its size.
        set_aside: where the catalog that was there before is now, after `restore`.
    """

    library: Path
    file: Path
    counts: Counts
    bytes: int
    set_aside: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the object that `backup --json` and `restore --json` print."""
        return {
            "schema": 1,
            "library": str(self.library),
            "file": str(self.file),
            "files": self.counts.files,
            "captions": self.counts.captions,
            "vectors": self.counts.vectors,
            "bytes": self.bytes,
            "set_aside": None if self.set_aside is None else str(self.set_aside),
        }


def back_up(folder: Path | str, file: Path | str, *, force: bool = False) -> Backup:
    """Write a library's catalog to a file, whole or not at all, and read it back to check it.

    Args:
        folder: the folder that was indexed.
        file: where to.
        force: whether a file there may be replaced, if it is a backup.

    Raises:
        LibraryNotFound: there is no library.
        SourceError: something is there, or the folder is missing.
        StorageError: the catalog is damaged, or the file cannot be written.
    """
    goal = Path(file).absolute()
    if not goal.parent.is_dir():
        raise SourceError(f"There is no folder {goal.parent} to write {goal.name} into.")
    if os.path.lexists(goal):
        if not force:
            raise SourceError(f"{goal} exists. Choose another name, or replace it with --force.")
        if not _is_catalog(goal):
            raise SourceError(f"{goal} is no backup of mmsearch, so it is left alone.")
    with closing(Library.open(Path(folder))) as library:
        _refuse_served(library, "pg_dump --format=custom --schema=SCHEMA DATABASE > FILE")
        if goal.is_relative_to(library.folder):
            raise SourceError(
                f"{goal} lies in the library's own folder, and would be lost with it. Choose a "
                "place elsewhere."
            )
        try:
            with replacing(goal) as temporary:
                library.catalog.copy_to(temporary, PAGES)
                faults = integrity.damage(temporary, deep=False)
                if faults:
                    raise StorageError(
                        f"The copy of {library.catalog.path} is damaged ({faults[0]}), so no "
                        "backup was made. Look at the library with: mmsearch doctor "
                        f"{quoted(library.root)}"
                    )
                with closing(Catalog.open(temporary)) as copy:
                    counts = copy.counts()
                work_log_in(temporary)
        except OSError as error:
            raise StorageError(f"{goal} cannot be written: {error.strerror}.") from error
        return Backup(library.root, goal, counts, goal.stat().st_size)


def restore(file: Path | str, folder: Path | str, *, wait: float = 0.0) -> Backup:
    """Make a backup the library of a folder; the one that is there is set aside, never deleted.

    Args:
        file: the backup; it is only read.
        folder: the folder of pictures, the same as before or wherever they are now.
        wait: seconds to wait for another process that writes to this library; `math.inf` for as
            long as it takes.

    Raises:
        SourceError: the file is no backup, or the folder is missing.
        LibraryTooNew: a later version of mmsearch made it.
        LibraryLocked: the library that is there is being indexed.
        StorageError: the backup is damaged, or nothing can be written.
    """
    source, root = Path(file).absolute(), Path(folder).absolute()
    if not root.is_dir():
        raise SourceError(f"There is no folder {root}. Give the folder that holds the pictures.")
    if not _is_catalog(source):
        raise SourceError(f"{source} is no backup of mmsearch.")
    faults = integrity.damage(source, deep=True)
    if faults:
        raise StorageError(f"The backup {source} is damaged ({faults[0]}). Nothing was changed.")
    with closing(Library.create(root)) as library:
        _refuse_served(library, "pg_restore --clean --dbname=DATABASE FILE")
    with closing(Library.create(root)) as library, library.indexing(wait):
        goal, home = library.catalog.path, library.catalog.library().root
        fresh = goal.with_name(f"{goal.name}.restored")
        remove(fresh)
        try:
            _copy(source, fresh)
            # Brings it up to date; a state of its own, so that no index file is taken for its.
            with closing(Catalog.create(fresh)) as catalog:
                catalog.move_in(home)
                counts = catalog.counts()
            work_log_in(fresh)
            empty = library.catalog.library().encoder_id is None
            library.catalog.close()
            if empty:
                # Only just made, by the line above that opened it.
                remove(goal)
            aside = set_aside(library.folder)
            fresh.rename(goal)
        except OSError as error:
            raise StorageError(f"{goal} cannot be replaced: {error.strerror}.") from error
        finally:
            remove(fresh)
    return Backup(root, source, counts, source.stat().st_size, aside)


def _refuse_served(library: Library, command: str) -> None:
    """Leave a catalog on a server to the server's own tools.

    Raises:
        SourceError: it is on one.
    """
    if library.catalog.served:
        raise SourceError(
            f"The catalog of {library.root} is kept at {library.catalog.place}, and PostgreSQL has "
            f"its own tools for that: {command} (the schema's name is in brackets above). Copy "
            f"{library.folder / CONFIG} too: it says which library it is."
        )


def _is_catalog(path: Path) -> bool:
    """Return whether a file is a catalog, sound or not, of any version."""
    try:
        with path.open("rb") as file:
            if file.read(16) != b"SQLite format 3\0":
                return False
        uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
            return {"library", "file", "migration"} <= names
    except (OSError, sqlite3.Error):
        return False


def _copy(source: Path, goal: Path) -> None:
    uri = f"{source.as_uri()}?mode=ro&immutable=1"
    with (
        closing(sqlite3.connect(uri, uri=True)) as there,
        closing(sqlite3.connect(goal)) as here,
    ):
        there.backup(here)
