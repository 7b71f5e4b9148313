"""What every answer reads of a catalog: statements that never change, in SQLite's own words.

A statement that SQLAlchemy builds, with a parameter for each id, takes several times as long to
prepare as these take to run. Ids travel as one JSON text, of any number.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from mmsearch.retrieval.catalog.connection import fetched
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
    rows = fetched(connection, "SELECT stamp FROM library")
    return rows[0][0] if rows else None


def file_rows(connection: Connection, ids: Collection[int]) -> Iterator[FileRow]:
    """Return those of the pictures that there are, in no particular order."""
    return map(_file_row, fetched(connection, _FILES, (json.dumps(list(ids)),)))


def caption_rows(
    connection: Connection, ids: Collection[int]
) -> Iterator[tuple[int, str, FileRow]]:
    """Return id, text and picture of those of the captions that there are."""
    for id_, text, *file in fetched(connection, _CAPTIONS, (json.dumps(list(ids)),)):
        yield id_, text, _file_row(file)


def vector_rows(
    connection: Connection, target: Target, encoder_id: int, ids: Collection[int]
) -> list[tuple[Any, ...]]:
    """Return (id, its vector as it is stored) of those of the ids that have one, ascending."""
    return fetched(connection, _VECTORS[target], (encoder_id, json.dumps(list(ids))))


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


_FILES = """
SELECT id, path, taken_at, width, height, EXISTS (SELECT 1 FROM caption WHERE file_id = file.id)
FROM file WHERE id IN (SELECT value FROM json_each(?))
"""
_CAPTIONS = """
SELECT caption.id, caption.text, file.id, file.path, file.taken_at, file.width, file.height, 1
FROM caption JOIN file ON file.id = caption.file_id
WHERE caption.id IN (SELECT value FROM json_each(?))
"""
_VECTORS = {
    target: f"""
    SELECT {key}, vector FROM {table}
    WHERE encoder_id = ? AND {key} IN (SELECT value FROM json_each(?)) ORDER BY {key}
    """
    for target, table, key in (
        (Target.IMAGES, "file_vector", "file_id"),
        (Target.CAPTIONS, "caption_vector", "caption_id"),
    )
}
