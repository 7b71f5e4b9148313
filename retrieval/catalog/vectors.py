"""Vectors of a catalog's pictures and captions, and which of them changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from sqlalchemy import Column, delete, func, insert, select

from mmsearch.errors import StorageError
from mmsearch.retrieval.catalog import stored, tables
from mmsearch.retrieval.schema import Target

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sqlalchemy import Connection

    from mmsearch.retrieval.catalog.library_row import LibraryRow

__all__ = [
    "all_vectors",
    "changes",
    "check_length",
    "drop_vectors",
    "put_vectors",
    "vector_ids",
    "vector_of",
    "without_vector",
]

_VECTORS = {
    Target.IMAGES: (tables.file_vector, "file_id"),
    Target.CAPTIONS: (tables.caption_vector, "caption_id"),
}


def vector_ids(connection: Connection, target: Target, encoder_id: int) -> NDArray[np.int64]:
    """Return `int64[n]`, ascending: which pictures or captions this encoder has embedded."""
    table, id_column = _VECTORS[target]
    key: Column[int] = table.c[id_column]
    statement = select(key).where(table.c.encoder_id == encoder_id).order_by(key)
    return np.fromiter(connection.scalars(statement), dtype=np.int64)


def all_vectors(
    connection: Connection, target: Target, encoder_id: int, dim: int, place: str
) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
    """Return `int64[n]` ids, ascending, and their `float16[n, dim]` vectors.

    Args:
        connection: to a catalog.
        target: pictures or captions.
        encoder_id: whose vectors.
        dim: their length.
        place: what messages call the catalog.

    Raises:
        StorageError: a vector has another length.
    """
    table, id_column = _VECTORS[target]
    key: Column[int] = table.c[id_column]
    ours = table.c.encoder_id == encoder_id
    n = connection.scalar(select(func.count()).select_from(table).where(ours)) or 0
    ids = np.empty(n, dtype=np.int64)
    vectors = np.empty((n, dim), dtype="<f2")
    statement = select(key, table.c.vector).where(ours).order_by(key)
    streamed = {"yield_per": 4096}
    with connection.execute(statement, execution_options=streamed) as rows:
        for i, (id_, blob) in enumerate(rows):
            check_length(place, target, id_, blob, dim)
            ids[i] = id_
            vectors[i] = np.frombuffer(blob, dtype="<f2")
    return ids, vectors


def check_length(place: str, target: Target, id_: int, vector: bytes, dim: int) -> None:
    """Refuse a stored vector that has not `dim` numbers.

    Raises:
        StorageError: that is so, in the catalog that messages call `place`.
    """
    if len(vector) != 2 * dim:
        raise StorageError(
            f"The catalog {place} is damaged: the vector of {_VECTORS[target][1]} {id_} "
            f"has {len(vector)} bytes, {2 * dim} were expected. Delete the library's folder "
            "and index again."
        )


def changes(
    connection: Connection, target: Target, since: str, row: LibraryRow
) -> NDArray[np.int64] | None:
    """Return `int64[n]`, whose vectors were added, replaced or removed since a state.

    None where that state is not remembered, or had another encoder, or adapted captions
    otherwise than the state that `row` names, so that an index of it is of no use.
    """
    state = tables.state.c
    then = connection.execute(
        select(state.seq, state.encoder_id, state.adapter_id).where(state.stamp == since)
    ).one_or_none()
    if then is None or then.encoder_id != row.encoder_id:
        return None
    if target is Target.CAPTIONS and then.adapter_id != row.adapter_id:
        return None
    return stored.changed_since(connection, target, then.seq)


def vector_of(connection: Connection, sha256: bytes, encoder_id: int) -> NDArray[np.float32] | None:
    """Return the `float32[dim]` vector of any picture with this content, if there is one."""
    vector, file = tables.file_vector.c, tables.file.c
    statement = (
        select(vector.vector)
        .join(tables.file, vector.file_id == file.id)
        .where(file.sha256 == sha256, vector.encoder_id == encoder_id)
        .limit(1)
    )
    blob = connection.scalar(statement)
    return None if blob is None else np.frombuffer(blob, dtype="<f2").astype(np.float32)


def without_vector(connection: Connection, sha256: bytes, encoder_id: int) -> list[int]:
    """Return the ids of the pictures with this content that lack a vector of an encoder."""
    file, vector = tables.file.c, tables.file_vector.c
    ours = (vector.file_id == file.id) & (vector.encoder_id == encoder_id)
    lacking = (
        select(file.id)
        .select_from(tables.file.outerjoin(tables.file_vector, ours))
        .where(file.sha256 == sha256, vector.file_id.is_(None))
    )
    return list(connection.scalars(lacking))


def put_vectors(
    connection: Connection,
    target: Target,
    encoder_id: int,
    ids: Sequence[int],
    vectors: NDArray[np.float32],
) -> None:
    """Store the `float32[n, dim]` vectors of pictures or captions that have none."""
    table, id_column = _VECTORS[target]
    rows = [
        {"encoder_id": encoder_id, id_column: id_, "vector": row.tobytes()}
        for id_, row in zip(ids, vectors.astype("<f2"), strict=True)
    ]
    connection.execute(insert(table), rows)


def drop_vectors(
    connection: Connection, target: Target, encoder_id: int, ids: Sequence[int]
) -> None:
    """Forget an encoder's vectors of these pictures or captions."""
    table, id_column = _VECTORS[target]
    for part in tables.in_parts(ids):
        same = (table.c.encoder_id == encoder_id) & table.c[id_column].in_(part)
        connection.execute(delete(table).where(same))
