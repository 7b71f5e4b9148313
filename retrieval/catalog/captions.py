"""Captions of a catalog: what people and models say of pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import func, select

from mmsearch.retrieval.catalog import tables
from mmsearch.retrieval.schema import GENERATED

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = [
    "Undescribed",
    "count_unembedded",
    "files_captioned_by",
    "own",
    "undescribed",
    "unembedded",
]


@dataclass(frozen=True, slots=True)
class Undescribed:
    """A content about which nobody says anything.

    Attributes:
        path: one of its files.
        ids: all of its pictures that lack a caption.
    """

    path: str
    ids: list[int]


def own(connection: Connection) -> list[tuple[int, int, str]]:
    """Return people's captions by id: each one's id, its picture's id and its text."""
    caption = tables.caption.c
    written = caption.source.not_like(f"{GENERATED}%")
    statement = (
        select(caption.id, caption.file_id, caption.text).where(written).order_by(caption.id)
    )
    return [(id_, file_id, text) for id_, file_id, text in connection.execute(statement)]


def files_captioned_by(connection: Connection, source: str) -> list[int]:
    """Return the ids of the files that have a caption from this source."""
    caption = tables.caption.c
    statement = select(caption.file_id).where(caption.source == source).distinct()
    return list(connection.scalars(statement))


def undescribed(connection: Connection, source: str) -> list[Undescribed]:
    """Return, by path, pictures without a caption of people's own or of this source."""
    file, caption = tables.file.c, tables.caption.c
    enough = caption.source.not_like(f"{GENERATED}%") | (caption.source == source)
    statement = (
        select(file.sha256, file.id, file.path)
        .where(file.id.not_in(select(caption.file_id).where(enough)))
        .order_by(file.path)
    )
    found: dict[bytes, Undescribed] = {}
    for sha256, id_, path in connection.execute(statement):
        found.setdefault(bytes(sha256), Undescribed(path, [])).ids.append(id_)
    return list(found.values())


def unembedded(
    connection: Connection, encoder_id: int, limit: int, *, skip: int
) -> list[tuple[int, str]]:
    """Return up to `limit` captions (id, text) that this encoder has not embedded.

    Args:
        connection: to a catalog.
        encoder_id: the encoder.
        limit: how many.
        skip: leave out so many before them.
    """
    caption, vector = tables.caption.c, tables.caption_vector.c
    joined = tables.caption.outerjoin(
        tables.caption_vector,
        (vector.caption_id == caption.id) & (vector.encoder_id == encoder_id),
    )
    statement = (
        select(caption.id, caption.text)
        .select_from(joined)
        .where(vector.caption_id.is_(None))
        .order_by(caption.id)
        .limit(limit)
    )
    if skip:
        statement = statement.offset(skip)
    return [(id_, text) for id_, text in connection.execute(statement)]


def count_unembedded(connection: Connection, encoder_id: int) -> int:
    """Return how many captions this encoder has not embedded."""
    caption, vector = tables.caption, tables.caption_vector
    done = select(func.count()).select_from(vector).where(vector.c.encoder_id == encoder_id)
    total = connection.scalar(select(func.count()).select_from(caption)) or 0
    return total - (connection.scalar(done) or 0)
