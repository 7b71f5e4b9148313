"""The catalog's schema, as an append-only list of named steps.

A step is never edited once released: a library made by any earlier version opens by running the
steps it lacks, each in one transaction together with the record of it.

Each step has one name on SQLite and on PostgreSQL. Those whose statements differ are written twice,
in `migrations_sqlite` and `migrations_postgresql`; a step whose statements both understand, or that
SQLAlchemy can write for both (`CreateTable` of a table that is frozen here), is written once, here.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from types import ModuleType
from typing import TYPE_CHECKING

from sqlalchemy import text

from mmsearch.errors import LibraryTooNew
from mmsearch.retrieval.catalog import migrations_sqlite
from mmsearch.retrieval.catalog.connection import is_postgresql

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["MIGRATIONS", "applied", "apply_one", "missing"]


def m001_initial(connection: Connection) -> None:
    """Create libraries, encoders, files, captions, vectors and problems."""
    _own(connection).initial(connection)


def m002_adapters(connection: Connection) -> None:
    """Create the stack of what `tune` has learned; each belongs to one encoder."""
    _own(connection).adapters(connection)


def m003_next_encoder(connection: Connection) -> None:
    """Let a library name the encoder that it is changing to."""
    _own(connection).next_encoder(connection)


def m004_vector_changes(connection: Connection) -> None:
    """Note which vectors change, and where in these notes each state stands.

    An index of an earlier state that is still listed can be brought up to date by the changes
    since. Triggers see what cascades delete.
    """
    _own(connection).vector_changes(connection)


def m005_containers(connection: Connection) -> None:
    """Create the record of tar and Parquet files that were read whole, as they were then."""
    _own(connection).containers(connection)


def m006_words(connection: Connection) -> None:
    """Index the words of captions, of file and folder names and of metadata."""
    _own(connection).words_(connection)


def m007_store_state(connection: Connection) -> None:
    """Create the record of what a store elsewhere was told."""
    connection.execute(
        text(
            """
            CREATE TABLE store_state (
                collection TEXT PRIMARY KEY,
                target TEXT NOT NULL,
                stamp TEXT,
                seq BIGINT NOT NULL,
                through BIGINT NOT NULL,
                facts TEXT NOT NULL
            )
            """
        )
    )


MIGRATIONS: tuple[Callable[[Connection], None], ...] = (
    m001_initial,
    m002_adapters,
    m003_next_encoder,
    m004_vector_changes,
    m005_containers,
    m006_words,
    m007_store_state,
)
"""In the order in which they run. Append only."""


def applied(connection: Connection) -> list[str]:
    """Return the names of the steps a catalog has seen; none for an empty file."""
    table = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'migration'"
    order = "rowid"
    if is_postgresql(connection):
        table = "SELECT 1 WHERE to_regclass('migration') IS NOT NULL"
        order = "name"
    if connection.scalar(text(table)) is None:
        return []
    return list(connection.scalars(text(f"SELECT name FROM migration ORDER BY {order}")))


def missing(names: list[str]) -> list[Callable[[Connection], None]]:
    """Return the steps that a catalog which has seen `names` still lacks.

    Raises:
        LibraryTooNew: the catalog has seen a step that this version does not know.
    """
    known = [step.__name__ for step in MIGRATIONS]
    foreign = [name for name in names if name not in known]
    if foreign:
        raise LibraryTooNew(
            f"This library was made by a later mmsearch (it has '{foreign[0]}', which this version "
            "does not know). Nothing was changed. Run: pip install --upgrade mmsearch"
        )
    return [step for step in MIGRATIONS if step.__name__ not in names]


def apply_one(connection: Connection, step: Callable[[Connection], None]) -> None:
    """Run one step and record it; the caller's transaction makes both or neither happen."""
    connection.execute(
        text(
            "CREATE TABLE IF NOT EXISTS migration (name TEXT PRIMARY KEY, applied_at TEXT NOT NULL)"
        )
    )
    step(connection)
    connection.execute(
        text("INSERT INTO migration (name, applied_at) VALUES (:name, :at)"),
        {"name": step.__name__, "at": datetime.now(UTC).isoformat()},
    )


def _own(connection: Connection) -> ModuleType:
    """Return the module that has this database's own statements."""
    if not is_postgresql(connection):
        return migrations_sqlite
    # What a library in its folder does not need is loaded where it is.
    from mmsearch.retrieval.catalog import migrations_postgresql

    return migrations_postgresql
