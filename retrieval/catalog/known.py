"""What a catalog knows of files, to be compared with those on disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import select

from mmsearch.retrieval.catalog import tables
from mmsearch.retrieval.schema import Problem

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = [
    "KnownFile",
    "KnownProblem",
    "containers",
    "contents",
    "contents_among",
    "embedded_ids",
    "files_with",
    "holds_below",
    "known_contents",
    "known_files",
    "known_problems",
    "problems",
    "still_at",
]


@dataclass(frozen=True, slots=True)
class KnownFile:
    """What a scan compares a file on disk with."""

    id: int
    size: int
    mtime_ns: int
    sidecars: str
    embedded: bool


@dataclass(frozen=True, slots=True)
class KnownProblem:
    """A file that could not be indexed, as it was then."""

    size: int
    mtime_ns: int
    kind: str


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


def embedded_ids(connection: Connection, paths: Sequence[str], encoder_id: int) -> dict[str, int]:
    """Return the ids of those of the paths whose pictures this encoder has embedded."""
    file, vector = tables.file.c, tables.file_vector.c
    statement = select(file.path, file.id).join(
        tables.file_vector, (vector.file_id == file.id) & (vector.encoder_id == encoder_id)
    )
    return {
        path: id_
        for part in tables.in_parts(paths)
        for path, id_ in connection.execute(statement.where(file.path.in_(part)))
    }


def holds_below(connection: Connection, folder: str) -> bool:
    """Say whether a picture is known below a folder."""
    path = tables.file.c.path
    below = (path > f"{folder}/") & (path < f"{folder}0")  # the sign that follows the slash
    return connection.execute(select(path).where(below).limit(1)).first() is not None


def files_with(connection: Connection, sha256: bytes) -> list[int]:
    """Return the ids of the pictures with this content."""
    file = tables.file.c
    return list(connection.scalars(select(file.id).where(file.sha256 == sha256)))


def known_contents(
    connection: Connection, sizes: Iterable[int], encoder_id: int
) -> dict[bytes, int]:
    """Return the file id by content hash, for embedded files of one of the given sizes."""
    file, vector = tables.file.c, tables.file_vector.c
    statement = select(file.sha256, file.id).join(
        tables.file_vector, (vector.file_id == file.id) & (vector.encoder_id == encoder_id)
    )
    return {
        bytes(sha256): id_
        for part in tables.in_parts(sorted(set(sizes)))
        for sha256, id_ in connection.execute(statement.where(file.size.in_(part)))
    }


def contents(connection: Connection, ids: Sequence[int] | None) -> dict[int, bytes]:
    """Return the SHA-256 of pictures' contents by id; of every picture if no ids are given."""
    file = tables.file.c
    statement = select(file.id, file.sha256)
    some = (
        [statement]
        if ids is None
        else [statement.where(file.id.in_(part)) for part in tables.in_parts(ids)]
    )
    return {id_: bytes(sha256) for one in some for id_, sha256 in connection.execute(one)}


def known_problems(connection: Connection, paths: Sequence[str] | None) -> dict[str, KnownProblem]:
    """Return files that could not be indexed by path, all or those of a few paths."""
    columns = tables.problem.c
    statement = select(columns.path, columns.size, columns.mtime_ns, columns.kind)
    if paths is not None:
        statement = statement.where(columns.path.in_(paths))
    return {path: KnownProblem(*rest) for path, *rest in connection.execute(statement)}


def problems(connection: Connection) -> list[Problem]:
    """Return every file that could not be indexed, by path."""
    columns = tables.problem.c
    statement = select(columns.path, columns.kind, columns.reason).order_by(columns.path)
    return [Problem(*row) for row in connection.execute(statement)]


def containers(connection: Connection) -> dict[str, tuple[int, int]]:
    """Return size and time of every container that was read whole, by path."""
    columns = tables.container.c
    statement = select(columns.path, columns.size, columns.mtime_ns)
    return {path: (size, at) for path, size, at in connection.execute(statement)}


def still_at(connection: Connection, paths: Mapping[int, str]) -> list[int]:
    """Return the ids of the pictures that are where they were, and not moved or gone since."""
    file = tables.file.c
    there: dict[int, str] = {}
    for part in tables.in_parts([*paths]):
        found = select(file.id, file.path).where(file.id.in_(part))
        there.update((id_, path) for id_, path in connection.execute(found))
    return [id_ for id_, path in paths.items() if there.get(id_) == path]


def contents_among(connection: Connection, contents: Sequence[bytes]) -> set[bytes]:
    """Return those of some contents (SHA-256) that a picture has."""
    file, there = tables.file.c, set[bytes]()
    for part in tables.in_parts(contents):
        found = select(file.sha256).where(file.sha256.in_(part))
        there.update(connection.scalars(found))
    return there
