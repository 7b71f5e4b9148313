"""What every answer reads of a catalog: statements that never change, in the database's own words.

A statement that SQLAlchemy builds, with a parameter for each id, takes several times as long to
prepare as these take to run. Ids travel as one value, of any number: to SQLite as a JSON text, to
PostgreSQL as an array.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from mmsearch.retrieval.catalog.connection import fetched, is_postgresql
from mmsearch.retrieval.catalog.tables import path_of, text_of
from mmsearch.retrieval.schema import Target

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["FileRow", "caption_rows", "file_rows", "stamp", "vector_rows"]


class FileRow(NamedTuple):
    """What a hit tells of a picture, and whether it has a caption."""

    id: int
    path: str
    taken_at: datetime | None
    width: int
    height: int
    captioned: bool


def stamp(connection: Connection) -> str | None:
    """Return the name of the present state; None where the library is only just being made."""
    rows = _rows(connection, "SELECT stamp FROM library")
    return rows[0][0] if rows else None


def file_rows(connection: Connection, ids: Collection[int]) -> Iterator[FileRow]:
    """Return those of the pictures that there are, in no particular order."""
    if is_postgresql(connection):
        return map(_served_file_row, _rows(connection, _FILES.served, ([*ids],)))
    return map(_file_row, fetched(connection, _FILES.stored, (json.dumps(list(ids)),)))


def caption_rows(
    connection: Connection, ids: Collection[int]
) -> Iterator[tuple[int, str, FileRow]]:
    """Return id, text and picture of those of the captions that there are."""
    if is_postgresql(connection):
        for id_, text, *file in _rows(connection, _CAPTIONS.served, ([*ids],)):
            yield id_, text_of(text), _served_file_row(file)
        return
    for id_, text, *file in fetched(connection, _CAPTIONS.stored, (json.dumps(list(ids)),)):
        yield id_, text, _file_row(file)


def vector_rows(
    connection: Connection, target: Target, encoder_id: int, ids: Collection[int]
) -> list[tuple[Any, ...]]:
    """Return (id, its vector as it is stored) of those of the ids that have one, ascending."""
    if is_postgresql(connection):
        return _rows(connection, _VECTORS[target].served, (encoder_id, [*ids]))
    return fetched(connection, _VECTORS[target].stored, (encoder_id, json.dumps(list(ids))))


def _rows(
    connection: Connection, statement: str, parameters: Sequence[Any] = ()
) -> list[tuple[Any, ...]]:
    if not is_postgresql(connection):
        return fetched(connection, statement, parameters)
    # What a library in its folder does not need is loaded where it is.
    from mmsearch.retrieval.catalog.postgresql import rows_of

    return rows_of(connection, statement, parameters)


def _file_row(row: Sequence[Any]) -> FileRow:
    # As `tables.FilePath` and SQLAlchemy's own DateTime read them.
    id_, path, taken_at, width, height, captioned = row
    return FileRow(
        id_,
        os.fsdecode(path),
        None if taken_at is None else datetime.fromisoformat(taken_at),
        width,
        height,
        bool(captioned),
    )


def _served_file_row(row: Sequence[Any]) -> FileRow:
    # PostgreSQL's driver knows times and truth.
    id_, path, taken_at, width, height, captioned = row
    return FileRow(id_, path_of(path), taken_at, width, height, bool(captioned))


class _Statement(NamedTuple):
    """The same for both.

    Attributes:
        stored: for SQLite.
        served: for PostgreSQL.
    """

    stored: str
    served: str

    @classmethod
    def of(cls, text: str) -> _Statement:
        """Return both, where `?` stands for a parameter and `IN_IDS` for being among the ids."""
        stored = text.replace("IN_IDS", "IN (SELECT value FROM json_each(?))")
        served = text.replace("?", "%s").replace("IN_IDS", "= ANY (%s::bigint[])")
        return cls(stored, served)


_FILES = _Statement.of(
    """
SELECT id, path, taken_at, width, height, EXISTS (SELECT 1 FROM caption WHERE file_id = file.id)
FROM file WHERE id IN_IDS
"""
)
_CAPTIONS = _Statement.of(
    """
SELECT caption.id, caption.text, file.id, file.path, file.taken_at, file.width, file.height, 1
FROM caption JOIN file ON file.id = caption.file_id
WHERE caption.id IN_IDS
"""
)
_VECTORS = {
    target: _Statement.of(
        f"""
    SELECT {key}, vector FROM {table}
    WHERE encoder_id = ? AND {key} IN_IDS ORDER BY {key}
    """
    )
    for target, table, key in (
        (Target.IMAGES, "file_vector", "file_id"),
        (Target.CAPTIONS, "caption_vector", "caption_id"),
    )
}
