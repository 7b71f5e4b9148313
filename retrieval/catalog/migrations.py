"""The catalog's schema, as an append-only list of named steps.

A step is never edited once released: a library made by any earlier version opens by running the
steps it lacks, each in one transaction together with the record of it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy import text

from mmsearch.errors import LibraryTooNew
from mmsearch.retrieval.catalog import words

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["MIGRATIONS", "applied", "apply_one", "missing"]


def m001_initial(connection: Connection) -> None:
    """Create libraries, encoders, files, captions, vectors and problems."""
    for statement in (
        """
        CREATE TABLE encoder (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            kind TEXT NOT NULL,
            name TEXT NOT NULL,
            revision TEXT NOT NULL,
            weights_sha256 TEXT NOT NULL,
            preprocessing TEXT NOT NULL,
            dim INTEGER NOT NULL CHECK (dim > 0),
            location TEXT NOT NULL,
            UNIQUE (kind, name, revision, weights_sha256, preprocessing, dim)
        )
        """,
        """
        CREATE TABLE library (
            id INTEGER PRIMARY KEY CHECK (id = 1),
            uid TEXT NOT NULL,
            created_at DATETIME NOT NULL,
            root TEXT,
            generation INTEGER NOT NULL,
            stamp TEXT NOT NULL,
            encoder_id INTEGER REFERENCES encoder (id)
        )
        """,
        """
        CREATE TABLE file (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            path TEXT NOT NULL UNIQUE,
            size INTEGER NOT NULL,
            mtime_ns INTEGER NOT NULL,
            sha256 BLOB NOT NULL,
            format TEXT NOT NULL,
            width INTEGER NOT NULL,
            height INTEGER NOT NULL,
            orientation INTEGER NOT NULL,
            taken_at DATETIME,
            latitude FLOAT,
            longitude FLOAT,
            camera TEXT,
            sidecars TEXT NOT NULL,
            indexed_at DATETIME NOT NULL
        )
        """,
        "CREATE INDEX file_sha256 ON file (sha256)",
        "CREATE INDEX file_taken_at ON file (taken_at)",
        """
        CREATE TABLE caption (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            file_id INTEGER NOT NULL REFERENCES file (id) ON DELETE CASCADE,
            text TEXT NOT NULL,
            source TEXT NOT NULL,
            UNIQUE (file_id, text, source)
        )
        """,
        """
        CREATE TABLE file_vector (
            encoder_id INTEGER NOT NULL REFERENCES encoder (id) ON DELETE CASCADE,
            file_id INTEGER NOT NULL REFERENCES file (id) ON DELETE CASCADE,
            vector BLOB NOT NULL,
            PRIMARY KEY (encoder_id, file_id)
        )
        """,
        "CREATE INDEX file_vector_file_id ON file_vector (file_id)",
        """
        CREATE TABLE caption_vector (
            encoder_id INTEGER NOT NULL REFERENCES encoder (id) ON DELETE CASCADE,
            caption_id INTEGER NOT NULL REFERENCES caption (id) ON DELETE CASCADE,
            vector BLOB NOT NULL,
            PRIMARY KEY (encoder_id, caption_id)
        )
        """,
        "CREATE INDEX caption_vector_caption_id ON caption_vector (caption_id)",
        """
        CREATE TABLE problem (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            path TEXT NOT NULL UNIQUE,
            size INTEGER NOT NULL,
            mtime_ns INTEGER NOT NULL,
            kind TEXT NOT NULL,
            reason TEXT NOT NULL,
            seen_at DATETIME NOT NULL
        )
        """,
    ):
        connection.execute(text(statement))


def m002_adapters(connection: Connection) -> None:
    """Create the stack of what `tune` has learned; each belongs to one encoder."""
    connection.execute(
        text(
            """
            CREATE TABLE adapter (
                id INTEGER PRIMARY KEY AUTOINCREMENT,
                encoder_id INTEGER NOT NULL REFERENCES encoder (id) ON DELETE CASCADE,
                created_at DATETIME NOT NULL,
                weights BLOB NOT NULL,
                report TEXT NOT NULL
            )
            """
        )
    )
    connection.execute(text("CREATE INDEX adapter_encoder_id ON adapter (encoder_id)"))


def m003_next_encoder(connection: Connection) -> None:
    """Let a library name the encoder that it is changing to."""
    column = "next_encoder_id INTEGER REFERENCES encoder (id)"
    connection.execute(text(f"ALTER TABLE library ADD COLUMN {column}"))


def m004_vector_changes(connection: Connection) -> None:
    """Note which vectors change, and where in these notes each state stands.

    An index of an earlier state that is still listed can be brought up to date by the changes
    since. Triggers see what cascades delete.
    """
    for statement in (
        """
        CREATE TABLE vector_change (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            target TEXT NOT NULL,
            id INTEGER NOT NULL
        )
        """,
        """
        CREATE TABLE state (
            stamp TEXT PRIMARY KEY,
            seq INTEGER NOT NULL,
            encoder_id INTEGER,
            adapter_id INTEGER
        )
        """,
        *(
            f"CREATE TRIGGER {table}_{event.lower()} AFTER {event} ON {table} BEGIN "
            f"INSERT INTO vector_change (target, id) VALUES ('{target}', {row}.{column}); END"
            for table, column, target in (
                ("file_vector", "file_id", "images"),
                ("caption_vector", "caption_id", "captions"),
            )
            for event, row in (("INSERT", "NEW"), ("UPDATE", "NEW"), ("DELETE", "OLD"))
        ),
    ):
        connection.execute(text(statement))


def m005_containers(connection: Connection) -> None:
    """Create the record of tar and Parquet files that were read whole, as they were then."""
    connection.execute(
        text(
            """
            CREATE TABLE container (
                path TEXT PRIMARY KEY,
                size INTEGER NOT NULL,
                mtime_ns INTEGER NOT NULL
            )
            """
        )
    )


def m006_words(connection: Connection) -> None:
    """Index the words of captions, of file and folder names and of metadata."""
    for statement in words.SCHEMA:
        connection.execute(text(statement))
    words.fill_words(connection)


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
    if connection.scalar(text(table)) is None:
        return []
    return list(connection.scalars(text("SELECT name FROM migration ORDER BY rowid")))


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
