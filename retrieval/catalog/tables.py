"""The catalog's tables, as SQLAlchemy sees them; `migrations` is what creates them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
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
    "problem",
    "state",
    "store_state",
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


_Value = TypeVar("_Value")

PARAMETERS_PER_STATEMENT = 30_000
"""SQLite takes at most 32,766 parameters in one statement."""


def in_parts(values: Sequence[_Value]) -> Iterator[Sequence[_Value]]:
    """Split what one statement could not take."""
    for start in range(0, len(values), PARAMETERS_PER_STATEMENT):
        yield values[start : start + PARAMETERS_PER_STATEMENT]


metadata = MetaData()

encoder = Table(
    "encoder",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("revision", Text, nullable=False),
    Column("weights_sha256", Text, nullable=False),
    Column("preprocessing", Text, nullable=False),
    Column("dim", Integer, nullable=False),
    Column("location", FilePath, nullable=False),
)
library = Table(
    "library",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("uid", Text, nullable=False),
    Column("created_at", DateTime, nullable=False),
    Column("root", FilePath),
    Column("generation", Integer, nullable=False),
    Column("stamp", Text, nullable=False),
    Column("encoder_id", ForeignKey("encoder.id")),
    Column("next_encoder_id", ForeignKey("encoder.id")),
)
file = Table(
    "file",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("path", FilePath, nullable=False),
    Column("size", Integer, nullable=False),
    Column("mtime_ns", Integer, nullable=False),
    Column("sha256", LargeBinary, nullable=False),
    Column("format", Text, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("orientation", Integer, nullable=False),
    Column("taken_at", DateTime),
    Column("latitude", Float),
    Column("longitude", Float),
    Column("camera", Text),
    Column("sidecars", Text, nullable=False),
    Column("indexed_at", DateTime, nullable=False),
)
caption = Table(
    "caption",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("file_id", ForeignKey("file.id", ondelete="CASCADE"), nullable=False),
    Column("text", Text, nullable=False),
    Column("source", Text, nullable=False),
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
    Column("id", Integer, primary_key=True),
    Column("encoder_id", ForeignKey("encoder.id", ondelete="CASCADE"), nullable=False),
    Column("created_at", DateTime, nullable=False),
    Column("weights", LargeBinary, nullable=False),
    Column("report", Text, nullable=False),
)
container = Table(
    "container",
    metadata,
    Column("path", FilePath, primary_key=True),
    Column("size", Integer, nullable=False),
    Column("mtime_ns", Integer, nullable=False),
)
problem = Table(
    "problem",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("path", FilePath, nullable=False),
    Column("size", Integer, nullable=False),
    Column("mtime_ns", Integer, nullable=False),
    Column("kind", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("seen_at", DateTime, nullable=False),
)
state = Table(
    "state",
    metadata,
    Column("stamp", Text, primary_key=True),
    Column("seq", Integer, nullable=False),
    Column("encoder_id", Integer),
    Column("adapter_id", Integer),
)
vector_change = Table(
    "vector_change",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("target", Text, nullable=False),
    Column("id", Integer, nullable=False),
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
