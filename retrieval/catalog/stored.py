"""What a store elsewhere is told of the catalog, and what it was told.

Filled from the catalog, a store's collection is derived from it as an index file is. Here it is
noted how far: up to which change, and while it is filled for the first time up to which id.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import delete, func, insert, literal, select

from mmsearch.retrieval.catalog import tables
from mmsearch.retrieval.schema import Target

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sqlalchemy import Connection

__all__ = ["Described", "StoreRecord"]


@dataclass(frozen=True, slots=True)
class Described:
    """What filters ask of a picture, see `schema.Picture`."""

    path: str
    size: int
    mtime_ns: int
    format: str
    width: int
    height: int
    orientation: int
    taken_at: datetime | None
    latitude: float | None
    longitude: float | None
    camera: str | None
    indexed_at: datetime


@dataclass(frozen=True, slots=True)
class StoreRecord:
    """How far a collection was brought.

    Attributes:
        collection: its name.
        target: what it holds the vectors of.
        stamp: the state of the catalog that it is in; None while it is filled for the first time.
        seq: all changes up to this one are in it, or came before the filling began.
        through: while it is filled, the id up to which it is.
        facts: what was asked of it and measured.
    """

    collection: str
    target: Target
    stamp: str | None
    seq: int
    through: int = -1
    facts: Mapping[str, Any] = field(default_factory=dict)


def described(connection: Connection, target: Target, ids: Collection[int]) -> dict[int, Described]:
    """Return what filters ask of pictures, or of the pictures of captions, by the ids given."""
    file, caption = tables.file.c, tables.caption.c
    columns = [file[each.name] for each in fields(Described)]
    if target is Target.IMAGES:
        key, statement = file.id, select(file.id, *columns)
    else:
        key = caption.id
        statement = select(caption.id, *columns).join_from(tables.caption, tables.file)
    return {
        row[0]: Described(*row[1:])
        for part in tables.in_parts([*ids])
        for row in connection.execute(statement.where(key.in_(part)))
    }


def records(connection: Connection) -> list[StoreRecord]:
    """Return every collection that was begun."""
    columns = tables.store_state.c
    rows = connection.execute(select(tables.store_state).order_by(columns.collection))
    return [
        StoreRecord(
            row.collection,
            Target(row.target),
            row.stamp,
            row.seq,
            row.through,
            json.loads(row.facts),
        )
        for row in rows
    ]


def put_record(connection: Connection, record: StoreRecord) -> None:
    """Note how far a collection was brought."""
    forget_records(connection, [record.collection])
    connection.execute(
        insert(tables.store_state).values(
            collection=record.collection,
            target=record.target.value,
            stamp=record.stamp,
            seq=record.seq,
            through=record.through,
            facts=json.dumps(dict(record.facts)),
        )
    )


def forget_records(connection: Connection, collections: Iterable[str]) -> None:
    """Forget collections."""
    for name in collections:
        same = tables.store_state.c.collection == name
        connection.execute(delete(tables.store_state).where(same))


def seq_of(connection: Connection, stamp: str) -> int | None:
    """Return the number of the last change before a state; None where it is not remembered."""
    state = tables.state.c
    return connection.scalar(select(state.seq).where(state.stamp == stamp))


def changed_since(connection: Connection, target: Target, seq: int) -> NDArray[np.int64]:
    """Return `int64[n]`, ascending: what changed after the change with this number."""
    change = tables.vector_change.c
    later = (change.target == target.value) & (change.seq > seq)
    ids = connection.scalars(select(change.id).where(later).distinct().order_by(change.id))
    return np.fromiter(ids, dtype=np.int64)


def note_described(connection: Connection, file_id: int) -> bool:
    """Note that what filters ask of a picture is another; say whether any store must be told.

    It is of no interest to index files, which hold vectors alone.
    """
    if connection.scalar(select(func.count()).select_from(tables.store_state)) == 0:
        return False
    caption = tables.caption.c
    change = tables.vector_change
    connection.execute(insert(change).values(target=Target.IMAGES.value, id=file_id))
    connection.execute(
        insert(change).from_select(
            ["target", "id"],
            select(literal(Target.CAPTIONS.value), caption.id).where(caption.file_id == file_id),
        )
    )
    return True
