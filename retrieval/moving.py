"""Moving a library's catalog, or the search of its vectors, to a server and back.

Nothing is embedded again: vectors are part of the catalog, and a store is made from it. What was
moved is compared with where it came from, and only then does the library's folder say that it is
elsewhere, in one step: whatever ends a move before leaves the library as it was.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mmsearch.errors import SourceError, StorageError
from mmsearch.retrieval.catalog import Address, Catalog
from mmsearch.retrieval.catalog.file import remove, work_log_in
from mmsearch.retrieval.library import Library, set_aside
from mmsearch.retrieval.library_config import STORES, LibraryConfig, without_secrets
from mmsearch.retrieval.schema import Target

if TYPE_CHECKING:
    from mmsearch.retrieval.catalog.copying import Sum
    from mmsearch.retrieval.index_files import Report

__all__ = ["LOCAL", "Move", "move"]

LOCAL = "local"


@dataclass(slots=True)
class Move:
    """What was moved.

    Attributes:
        library: the folder of pictures.
        to: where; without user and password.
        parts: `catalog`, `store` or both.
        tables: of a catalog that was moved, the number of rows and the checksum of each table,
            which are those of where it came from.
        vectors: of a store that was moved, how many vectors of each kind it has, each compared
            with the catalog's.
        left: what lies where it was, and is not used any more.
        seconds: the whole of it.
    """

    library: Path
    to: str
    parts: list[str] = field(default_factory=list)
    tables: dict[str, Sum] = field(default_factory=dict)
    vectors: dict[str, int] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the object that `move --json` prints."""
        return {
            "schema": 1,
            "library": str(self.library),
            "to": self.to,
            "parts": self.parts,
            "tables": {
                name: {"rows": each.rows, "checksum": each.checksum}
                for name, each in self.tables.items()
            },
            "vectors": self.vectors,
            "left": self.left,
            "seconds": round(self.seconds, 3),
        }


def move(
    folder: Path | str,
    to: str,
    *,
    wait: float = 0.0,
    progress: Report | None = None,
) -> Move:
    """Keep a library's catalog, or its vectors for searching, somewhere else.

    Args:
        folder: the folder that was indexed.
        to: the address of a PostgreSQL database or a Milvus server, see `LibraryConfig`; `local`
            for both parts in the library's own folder.
        wait: seconds to wait for another process that writes to this library; `math.inf` for as
            long as it takes.
        progress: called with what is done, how much of it and how much there is.

    Raises:
        LibraryNotFound: there is no library, or nothing was ever indexed.
        SourceError: `to` is no address, or the library is there already.
        LibraryLocked: another process writes to it.
        StorageError: a server or a folder cannot be used, or what arrived is not what was sent;
            the library stays where it was.
    """
    began = time.perf_counter()
    report: Report = progress or (lambda *_: None)
    with ExitStack() as opened:
        library = opened.enter_context(closing(Library.open(Path(folder))))
        goal = _goal(library.config, to)
        opened.enter_context(library.indexing(wait))
        # Another process may have moved it meanwhile.
        if LibraryConfig.read(library.folder) != library.config:
            raise SourceError(f"The library at {library.root} was moved by another process.")
        row = library.catalog.library()
        library.active_encoder(row)
        done = Move(library.root, LOCAL if to == LOCAL else without_secrets(to))
        if goal.catalog != library.config.catalog:
            config = replace(goal, store=library.config.store)
            config = _move_catalog(library, config, row.uid, done, report)
            goal = replace(goal, uid=config.uid)
        moved = opened.enter_context(closing(Library.open(Path(folder))))
        if goal.store != moved.config.store:
            _move_store(moved, goal, done, report)
        elif "catalog" in done.parts:
            # Its states have other names here.
            moved.refresh_indexes(report)
    done.seconds = time.perf_counter() - began
    return done


def _goal(config: LibraryConfig, to: str) -> LibraryConfig:
    """Return the library's configuration after a move.

    Raises:
        SourceError: it is the present one, or `to` is no address.
    """
    if not to:
        raise SourceError(f"Where to? Give an address, or {LOCAL} for the library's own folder.")
    if to == LOCAL:
        goal = LibraryConfig()
    elif urlsplit(to).scheme in STORES:
        goal = replace(config, store=to)
    else:
        goal = replace(config, catalog=to)
    if (goal.catalog, goal.store) == (config.catalog, config.store):
        there = "all in its own folder" if to == LOCAL else f"at {without_secrets(to)}"
        raise SourceError(f"The library is {there} already.")
    return goal


def _move_catalog(
    library: Library, goal: LibraryConfig, uid: str, done: Move, report: Report
) -> LibraryConfig:
    """Copy the catalog, compare both, and have the folder name the copy."""
    place = library.catalog.path
    if goal.catalog is None:
        config = replace(goal, uid=None)
        fresh = place.with_name(f"{place.name}.moving")
        remove(fresh)
        opened = Catalog.create(fresh)
    else:
        config = replace(goal, uid=uid)
        address = Address.of(goal.catalog, uid)
        Catalog.look(address)
        fresh = None
        opened = Catalog.create(place, address=address)
    try:
        with closing(opened) as copy:
            done.tables = _copied(library, copy, report)
        if fresh is not None:
            # A file that a former move away left would be taken for ours.
            set_aside(library.folder)
            work_log_in(fresh)
            fresh.rename(place)
        config.write(library.folder)
    finally:
        if fresh is not None:
            remove(fresh)
    if fresh is None:
        aside = set_aside(library.folder)
        done.left += [] if aside is None else [str(aside)]
    elif library.config.catalog is not None:
        done.left.append(library.catalog.place)
    done.parts.append("catalog")
    return config


def _copied(library: Library, copy: Catalog, report: Report) -> dict[str, Sum]:
    library.catalog.copy_into(copy, lambda _, done, total: report("copy", done, total))
    # Nobody else writes meanwhile.
    before, after = (
        catalog.sums(lambda _, done, total: report("compare", done, total))
        for catalog in (library.catalog, copy)
    )
    if before != after:
        wrong = ", ".join(name for name, each in before.items() if after[name] != each)
        raise StorageError(
            f"What arrived is not what was sent (in {wrong}), so the library at {library.root} "
            "stays where it was. Try again; if it happens again, please report this."
        )
    return after


def _move_store(library: Library, goal: LibraryConfig, done: Move, report: Report) -> None:
    """Make the index elsewhere from the catalog, compare both, and have the folder name it."""
    before = library.config
    config = replace(before, store=goal.store)
    if goal.store is not None:
        # Later calls try for minutes what may pass; who never answered is told at once.
        from mmsearch.retrieval.index_store import reach

        reach(goal.store)
    # What was told to the store before is nothing that another one knows, nor this one later.
    records = library.catalog.store_records()
    with library.catalog.write() as transaction:
        transaction.forget_store_records([record.collection for record in records])
    try:
        moved = Library(library.root, library.folder, config, library.catalog)
        moved.refresh_indexes(report)
        for target in Target:
            done.vectors[target.value] = moved.verify_index(target, report)
        config.write(library.folder)
    except BaseException:
        with library.catalog.write() as transaction:
            for record in records:
                transaction.put_store_record(record)
        raise
    if before.store is not None:
        done.left.append(without_secrets(before.store))
    done.parts.append("store")
