"""The schema's steps on SQLite, see `migrations`. None is ever edited once released."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from mmsearch.retrieval.catalog import words

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["adapters", "containers", "initial", "next_encoder", "vector_changes", "words_"]


def initial(connection: Connection) -> None:
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


def adapters(connection: Connection) -> None:
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


def next_encoder(connection: Connection) -> None:
    """Let a library name the encoder that it is changing to."""
    column = "next_encoder_id INTEGER REFERENCES encoder (id)"
    connection.execute(text(f"ALTER TABLE library ADD COLUMN {column}"))


def vector_changes(connection: Connection) -> None:
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


def containers(connection: Connection) -> None:
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


def words_(connection: Connection) -> None:
    """Index the words of captions, of file and folder names and of metadata."""
    for statement in words.SCHEMA:
        connection.execute(text(statement))
    words.fill_words(connection)
