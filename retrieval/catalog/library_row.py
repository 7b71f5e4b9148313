"""A library's own row: what it is, what `tune` learned for it, and how much it holds."""

from __future__ import annotations

import json
import secrets
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Table, func, select

from mmsearch.retrieval.catalog import tables
from mmsearch.retrieval.catalog.encoders import spec_of

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from mmsearch.retrieval.schema import EncoderSpec

__all__ = ["AdapterRow", "Counts", "LibraryRow", "adapter", "begin", "counts", "library"]


@dataclass(frozen=True, slots=True)
class LibraryRow:
    """What a library is: its encoder, where its pictures are, and which state it is in.

    Attributes:
        root: where the pictures are, when the catalog does not lie beside them.
        generation: grows by one with every change to pictures, captions, vectors or adapters.
        stamp: names this very state; never the same twice, in any copy of the library.
        encoder: the encoder whose vectors answer queries; None before the first indexing.
        model: what `load_encoder` takes to get that encoder.
        adapter_id: what `tune` learned last for that encoder's texts; None where they are its own.
    """

    uid: str
    root: Path | None
    generation: int
    stamp: str
    encoder_id: int | None
    encoder: EncoderSpec | None
    model: str | None
    adapter_id: int | None


@dataclass(frozen=True, slots=True)
class AdapterRow:
    """What `tune` learned: the weights, as `Adapter.to_bytes` writes them, and its report."""

    id: int
    created_at: datetime
    weights: bytes
    report: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Counts:
    """How much a library holds; vectors are those of the active encoder's pictures."""

    files: int
    captions: int
    problems: int
    vectors: int
    vector_bytes: int


def begin(connection: Connection, root: Path | None, uid: str | None) -> str:
    """Write the library's own row where there is none; return whose it is.

    Args:
        connection: in a transaction that writes.
        root: where the pictures are, when the catalog does not lie beside them.
        uid: of a new library; any, where it is not given.
    """
    known: str | None = connection.scalar(select(tables.library.c.uid))
    if known is None:
        known = uid or str(uuid.uuid4())
        connection.execute(
            tables.library.insert().values(
                id=1,
                uid=known,
                created_at=datetime.now(UTC).replace(tzinfo=None),
                root=None if root is None else str(root),
                generation=0,
                stamp=f"0-{secrets.token_hex(4)}",
                encoder_id=connection.scalar(select(func.max(tables.file_vector.c.encoder_id))),
            )
        )
    return known


def library(connection: Connection) -> LibraryRow | None:
    """Return the library's row and its active encoder; None where it is only just being made."""
    active = tables.encoder.c.id == tables.library.c.encoder_id
    joined = tables.library.outerjoin(tables.encoder, active)
    newest = select(func.max(tables.adapter.c.id)).where(
        tables.adapter.c.encoder_id == tables.library.c.encoder_id
    )
    adapter_id = newest.correlate(tables.library).scalar_subquery().label("adapter_id")
    statement = select(tables.library, tables.encoder, adapter_id).select_from(joined)
    row = connection.execute(statement).one_or_none()
    if row is None:
        return None
    fields = row._mapping
    spec = None
    if fields[tables.library.c.encoder_id] is not None:
        spec = spec_of(fields)
    root = fields[tables.library.c.root]
    return LibraryRow(
        uid=fields[tables.library.c.uid],
        root=None if root is None else Path(root),
        generation=fields[tables.library.c.generation],
        stamp=fields[tables.library.c.stamp],
        encoder_id=fields[tables.library.c.encoder_id],
        encoder=spec,
        model=fields[tables.encoder.c.location],
        adapter_id=fields["adapter_id"],
    )


def adapter(connection: Connection, id_: int) -> AdapterRow | None:
    """Return what `tune` learned under this id; None where it was taken back since."""
    columns = tables.adapter.c
    found = columns.id, columns.created_at, columns.weights, columns.report
    row = connection.execute(select(*found).where(columns.id == id_)).one_or_none()
    if row is None:
        return None
    return AdapterRow(row.id, row.created_at, row.weights, json.loads(row.report))


def counts(connection: Connection) -> Counts:
    """Return how much the library holds."""
    active = tables.file_vector.c.encoder_id == (
        select(tables.library.c.encoder_id).scalar_subquery()
    )
    vectors = select(
        func.count(), func.coalesce(func.sum(func.length(tables.file_vector.c.vector)), 0)
    ).where(active)

    def rows(table: Table) -> int:
        return connection.scalar(select(func.count()).select_from(table)) or 0

    return Counts(
        rows(tables.file),
        rows(tables.caption),
        rows(tables.problem),
        *connection.execute(vectors).one(),
    )
