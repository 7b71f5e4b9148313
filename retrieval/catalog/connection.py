"""Connections to a catalog's SQLite file, and its errors as instructions."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, event, exc
from sqlalchemy.pool import QueuePool

from mmsearch.errors import LibraryLocked, StorageError, quoted
from mmsearch.retrieval.catalog import functions

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    Parameters = Sequence[Any] | Mapping[str, Any]

__all__ = [
    "as_mmsearch_errors",
    "driver_of",
    "fetched",
    "is_postgresql",
    "read_only_engine",
    "sqlite_engine",
]

BUSY_TIMEOUT_S = 10.0
"""How long a statement waits for another process's transaction, which lasts milliseconds."""


def sqlite_engine(path: Path, options: str = "mode=rwc") -> Engine:
    """Return an engine for a catalog, opened with SQLite's own URI options."""
    # A URI of our own making: SQLAlchemy would decode the escapes of its own, and cut the path of
    # a folder called "2019 #1" at the hash.
    uri = f"{path.absolute().as_uri()}?{options}"

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            uri, uri=True, timeout=BUSY_TIMEOUT_S, check_same_thread=False, isolation_level=None
        )
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            functions.register(connection)
            if options == "mode=rwc":
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    engine = create_engine("sqlite://", creator=connect, poolclass=QueuePool)

    # SQLAlchemy, not the driver, begins transactions: the driver would leave DDL outside them.
    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        immediate = connection.get_execution_options().get("immediate")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


def read_only_engine(path: Path) -> Engine:
    """Open a catalog that this user may not write to.

    Reading a WAL catalog takes a shared-memory file beside it. Where that can be had, another
    user's writes are seen. On a read-only medium it cannot, but nobody writes there either, unless
    a log waits to be worked in.
    """
    engine = sqlite_engine(path, "mode=ro")
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("SELECT count(*) FROM sqlite_master")
    except exc.DBAPIError:
        engine.dispose()
        log = path.with_name(f"{path.name}-wal")
        if os.path.isfile(log) and log.stat().st_size:  # noqa: PTH113
            raise StorageError(
                f"The library at {path.parent} was left in the middle of writing, and you may not "
                "write there to mend it. Let its owner run any mmsearch command on it once."
            ) from None
        return sqlite_engine(path, "mode=ro&immutable=1")
    return engine


def is_postgresql(connection: Connection) -> bool:
    """Say whether a catalog is kept by a server; otherwise it is a SQLite file."""
    return connection.dialect.name == "postgresql"


def fetched(
    connection: Connection, statement: str, parameters: Parameters = ()
) -> list[tuple[Any, ...]]:
    """Return the rows of a statement that never changes, past SQLAlchemy.

    What every question asks takes SQLite less time than SQLAlchemy takes to hand it on, each row
    included. It happens in the connection's transaction, and errors are the driver's.
    """
    rows: list[tuple[Any, ...]] = driver_of(connection).execute(statement, parameters).fetchall()
    return rows


def driver_of(connection: Connection) -> sqlite3.Connection:
    """Return the driver's own connection, in the same transaction."""
    driver: sqlite3.Connection = connection.connection.driver_connection  # type: ignore[assignment]
    return driver


@contextmanager
def as_mmsearch_errors(path: Path) -> Iterator[None]:
    """Turn SQLite's own words into an instruction."""
    try:
        yield
    except UnicodeDecodeError as error:
        # SQLite's own words quote the file, which holds no text there.
        raise StorageError(_damaged(path, "it holds no text where there must be some")) from error
    except (exc.DBAPIError, sqlite3.Error) as error:
        cause = error.orig if isinstance(error, exc.DBAPIError) else error
        words = str(cause).lower()
        if "locked" in words or "busy" in words:
            raise LibraryLocked(
                f"The catalog {path} is in use by another process. Wait for it to finish, then "
                "run the same command again."
            ) from error
        if "full" in words:
            raise StorageError(
                f"The disk that holds {path} is full. What was saved before is safe; free some "
                "space and run the same command again."
            ) from error
        if "readonly" in words or "read-only" in words or "unable to open" in words:
            raise StorageError(
                f"The catalog {path} cannot be written or opened: {cause}. Check the "
                "permissions of its folder."
            ) from error
        if "disk i/o" in words:
            raise StorageError(
                f"The disk that holds {path} failed to read or write. It may be full, unplugged, "
                "read-only or failing; what was saved before is safe. Look at the disk, then run "
                "the same command again."
            ) from error
        if "malformed" in words or "not a database" in words:
            raise StorageError(_damaged(path, cause)) from error
        raise StorageError(
            f"The catalog {path} refused a statement ({cause}). If it is no catalog of "
            "mmsearch, move it out of the way; otherwise please report this."
        ) from error


def _damaged(path: Path, how: object) -> str:
    return (
        f"The catalog {path} is damaged ({how}). Take out of it what can be read with: mmsearch "
        f"doctor --repair {quoted(path.parent.parent)}; or bring back a backup with mmsearch "
        "restore. The pictures are untouched."
    )
