"""The encoders whose vectors a catalog holds, and what one of them has still to embed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import func, select

from mmsearch.retrieval.catalog import tables
from mmsearch.retrieval.schema import EncoderSpec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from sqlalchemy import Connection

__all__ = ["EncoderRow", "UnembeddedFile", "encoder_rows", "spec_of", "unembedded_files"]


@dataclass(frozen=True, slots=True)
class EncoderRow:
    """An encoder that a library holds vectors of.

    Attributes:
        spec: what makes its vectors its own.
        location: what `load_encoder` takes to get it.
        active: its vectors answer queries.
        next: its vectors are being made, and will answer when they are complete.
        vectors: how many pictures it has embedded.
        vector_bytes: what these and its captions' vectors take.
    """

    id: int
    spec: EncoderSpec
    location: str
    active: bool
    next: bool
    vectors: int
    vector_bytes: int


@dataclass(frozen=True, slots=True)
class UnembeddedFile:
    """A picture of the library that an encoder has not embedded."""

    size: int
    mtime_ns: int
    sha256: bytes


def spec_of(fields: Mapping[Any, Any]) -> EncoderSpec:
    """Return the spec in a row that holds the columns of `tables.encoder`."""
    names = (field.name for field in dataclasses.fields(EncoderSpec))
    return EncoderSpec(**{name: fields[tables.encoder.c[name]] for name in names})


def encoder_rows(connection: Connection) -> list[EncoderRow]:
    """Return every encoder, the oldest first."""
    library = connection.execute(
        select(tables.library.c.encoder_id, tables.library.c.next_encoder_id)
    ).one()
    counted: dict[int, int] = {}
    bytes_of: dict[int, int] = {}
    for table in (tables.file_vector, tables.caption_vector):
        statement = select(
            table.c.encoder_id, func.count(), func.sum(func.length(table.c.vector))
        ).group_by(table.c.encoder_id)
        for id_, count, size in connection.execute(statement):
            bytes_of[id_] = bytes_of.get(id_, 0) + size
            if table is tables.file_vector:
                counted[id_] = count
    return [
        EncoderRow(
            id=row.id,
            spec=spec_of(row._mapping),
            location=row.location,
            active=row.id == library.encoder_id,
            next=row.id == library.next_encoder_id,
            vectors=counted.get(row.id, 0),
            vector_bytes=bytes_of.get(row.id, 0),
        )
        for row in connection.execute(select(tables.encoder).order_by(tables.encoder.c.id))
    ]


def unembedded_files(connection: Connection, encoder_id: int) -> dict[str, UnembeddedFile]:
    """Return the pictures without a vector of this encoder, by path, in the order of paths."""
    file, vector = tables.file.c, tables.file_vector.c
    joined = tables.file.outerjoin(
        tables.file_vector, (vector.file_id == file.id) & (vector.encoder_id == encoder_id)
    )
    statement = select(file.path, file.size, file.mtime_ns, file.sha256).select_from(joined)
    found = {
        path: UnembeddedFile(size, mtime_ns, bytes(sha256))
        for path, size, mtime_ns, sha256 in connection.execute(
            statement.where(vector.file_id.is_(None))
        )
    }
    # Sorted here: names that are no valid text lie in the catalog as bytes, which SQLite sorts
    # after all others.
    return dict(sorted(found.items()))
