"""The catalog's tables, as SQLAlchemy sees them; `migrations` is what creates them.

One set for SQLite and PostgreSQL. What differs is how a column is stored: PostgreSQL has no numbers
without a size, no text with a zero in it, and no column that holds text here and bytes there.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Double,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Dialect

__all__ = [
    "NUMBER",
    "PATH",
    "TEXT",
    "adapter",
    "caption",
    "caption_vector",
    "container",
    "encoder",
    "file",
    "file_vector",
    "in_parts",
    "library",
    "metadata",
    "path_of",
    "path_stored",
    "problem",
    "state",
    "store_state",
    "text_of",
    "text_stored",
    "vector_change",
]


class FilePath(TypeDecorator[str]):
    """A relative path as text; as bytes where the file system's name is no valid UTF-8.

    Python spells such bytes as lone surrogates (PEP 383), which SQLite cannot hold as text. A
    SQLite column holds either, so each name comes back exactly as it was.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ANN401
        if value is None:
            return None
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            return os.fsencode(value)
        return value

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ANN401
        return os.fsdecode(value) if isinstance(value, bytes) else value


INVALID = b"\xff"
"""Stands before a path that is no valid UTF-8: no text begins so, and all sort before it."""

ODD = "\U0010ffff"
"""Stands before a text that PostgreSQL cannot hold as it is; no character's number is higher."""


def path_stored(value: str) -> bytes:
    """Return a path as PostgreSQL stores it: its UTF-8, which sorts by code point."""
    try:
        return value.encode("utf-8")
    except UnicodeEncodeError:
        return INVALID + os.fsencode(value)


def path_of(stored: bytes) -> str:
    """Return the path that `path_stored` made bytes of."""
    if stored[:1] == INVALID:
        return os.fsdecode(stored[1:])
    return stored.decode("utf-8")


def text_stored(value: str) -> str:
    """Return any text as one that PostgreSQL can hold, itself wherever it can; see `text_of`."""
    if "\0" not in value and not value.startswith(ODD):
        return value
    # Each byte as the character after the one of its number, so that there is no zero.
    return ODD + "".join(chr(byte + 1) for byte in value.encode("utf-8"))


def text_of(stored: str) -> str:
    """Return the text that `text_stored` was given."""
    if not stored.startswith(ODD):
        return stored
    return bytes(ord(character) - 1 for character in stored[1:]).decode("utf-8")


class PathBytes(TypeDecorator[str]):
    """A relative path in PostgreSQL, where its order is that of SQLite's: bytes."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> bytes | None:
        return None if value is None else path_stored(value)

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> str | None:
        return None if value is None else path_of(value)


class AnyText(TypeDecorator[str]):
    """A text in PostgreSQL, which cannot hold the character zero."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else text_stored(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else text_of(value)


NUMBER = Integer().with_variant(BigInteger(), "postgresql")
PATH = FilePath().with_variant(PathBytes(), "postgresql")
TEXT = Text().with_variant(AnyText(), "postgresql")
REAL = Float().with_variant(Double(), "postgresql")

_Value = TypeVar("_Value")

PARAMETERS_PER_STATEMENT = 30_000
"""SQLite takes at most 32,766 parameters in one statement, PostgreSQL 65,535."""


def in_parts(values: Sequence[_Value]) -> Iterator[Sequence[_Value]]:
    """Split what one statement could not take."""
    for start in range(0, len(values), PARAMETERS_PER_STATEMENT):
        yield values[start : start + PARAMETERS_PER_STATEMENT]


metadata = MetaData()

encoder = Table(
    "encoder",
    metadata,
    Column("id", NUMBER, primary_key=True),
    Column("kind", TEXT, nullable=False),
    Column("name", TEXT, nullable=False),
    Column("revision", TEXT, nullable=False),
    Column("weights_sha256", TEXT, nullable=False),
    Column("preprocessing", TEXT, nullable=False),
    Column("dim", NUMBER, nullable=False),
    Column("location", PATH, nullable=False),
)
library = Table(
    "library",
    metadata,
    Column("id", NUMBER, primary_key=True),
    Column("uid", TEXT, nullable=False),
    Column("created_at", DateTime, nullable=False),
    Column("root", PATH),
    Column("generation", NUMBER, nullable=False),
    Column("stamp", TEXT, nullable=False),
    Column("encoder_id", ForeignKey("encoder.id")),
    Column("next_encoder_id", ForeignKey("encoder.id")),
)
file = Table(
    "file",
    metadata,
    Column("id", NUMBER, primary_key=True),
    Column("path", PATH, nullable=False),
    Column("size", NUMBER, nullable=False),
    Column("mtime_ns", NUMBER, nullable=False),
    Column("sha256", LargeBinary, nullable=False),
    Column("format", TEXT, nullable=False),
    Column("width", NUMBER, nullable=False),
    Column("height", NUMBER, nullable=False),
    Column("orientation", NUMBER, nullable=False),
    Column("taken_at", DateTime),
    Column("latitude", REAL),
    Column("longitude", REAL),
    Column("camera", TEXT),
    Column("sidecars", TEXT, nullable=False),
    Column("indexed_at", DateTime, nullable=False),
)
caption = Table(
    "caption",
    metadata,
    Column("id", NUMBER, primary_key=True),
    Column("file_id", ForeignKey("file.id", ondelete="CASCADE"), nullable=False),
    Column("text", TEXT, nullable=False),
    Column("source", TEXT, nullable=False),
)
file_vector = Table(
    "file_vector",
    metadata,
    Column("encoder_id", ForeignKey("encoder.id", ondelete="CASCADE"), primary_key=True),
    Column("file_id", ForeignKey("file.id", ondelete="CASCADE"), primary_key=True),
    Column("vector", LargeBinary, nullable=False),
)
caption_vector = Table(
    "caption_vector",
    metadata,
    Column("encoder_id", ForeignKey("encoder.id", ondelete="CASCADE"), primary_key=True),
    Column("caption_id", ForeignKey("caption.id", ondelete="CASCADE"), primary_key=True),
    Column("vector", LargeBinary, nullable=False),
)
adapter = Table(
    "adapter",
    metadata,
    Column("id", NUMBER, primary_key=True),
    Column("encoder_id", ForeignKey("encoder.id", ondelete="CASCADE"), nullable=False),
    Column("created_at", DateTime, nullable=False),
    Column("weights", LargeBinary, nullable=False),
    Column("report", TEXT, nullable=False),
)
container = Table(
    "container",
    metadata,
    Column("path", PATH, primary_key=True),
    Column("size", NUMBER, nullable=False),
    Column("mtime_ns", NUMBER, nullable=False),
)
problem = Table(
    "problem",
    metadata,
    Column("id", NUMBER, primary_key=True),
    Column("path", PATH, nullable=False),
    Column("size", NUMBER, nullable=False),
    Column("mtime_ns", NUMBER, nullable=False),
    Column("kind", TEXT, nullable=False),
    Column("reason", TEXT, nullable=False),
    Column("seen_at", DateTime, nullable=False),
)
state = Table(
    "state",
    metadata,
    Column("stamp", TEXT, primary_key=True),
    Column("seq", NUMBER, nullable=False),
    Column("encoder_id", NUMBER),
    Column("adapter_id", NUMBER),
)
vector_change = Table(
    "vector_change",
    metadata,
    Column("seq", NUMBER, primary_key=True),
    Column("target", TEXT, nullable=False),
    Column("id", NUMBER, nullable=False),
)
store_state = Table(
    "store_state",
    metadata,
    Column("collection", Text, primary_key=True),
    Column("target", Text, nullable=False),
    Column("stamp", Text),
    Column("seq", BigInteger, nullable=False),
    Column("through", BigInteger, nullable=False),
    Column("facts", Text, nullable=False),
)
