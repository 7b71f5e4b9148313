"""What a catalog knows of files, to be compared with those on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import select

from mmsearch.retrieval.catalog import tables

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["KnownFile", "known_files"]


@dataclass(frozen=True, slots=True)
class KnownFile:
    """What a scan compares a file on disk with."""

    id: int
    size: int
    mtime_ns: int
    sidecars: str
    embedded: bool


def known_files(
    connection: Connection, encoder_id: int, paths: Sequence[str] | None
) -> dict[str, KnownFile]:
    """Return files by path, all or those of a few, and whether this encoder has embedded them."""
    file, vector = tables.file.c, tables.file_vector.c
    joined = tables.file.outerjoin(
        tables.file_vector, (vector.file_id == file.id) & (vector.encoder_id == encoder_id)
    )
    columns = file.path, file.id, file.size, file.mtime_ns, file.sidecars, vector.file_id
    statement = select(*columns).select_from(joined)
    if paths is not None:
        statement = statement.where(file.path.in_(paths))
    return {
        path: KnownFile(id_, size, mtime_ns, sidecars, embedded is not None)
        for path, id_, size, mtime_ns, sidecars, embedded in connection.execute(statement)
    }
