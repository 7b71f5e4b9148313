"""Whether a catalog is sound: its file, asked of SQLite itself, its words, and every vector."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from sqlalchemy import text as sql

from mmsearch.errors import StorageError
from mmsearch.retrieval.catalog import tables
from mmsearch.retrieval.catalog.connection import is_postgresql
from mmsearch.retrieval.catalog.words import SCHEMA, file_words, fill_words
from mmsearch.retrieval.schema import Target

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sqlalchemy import Connection

__all__ = [
    "Salvaged",
    "bad_vectors",
    "broken_references",
    "damage",
    "rebuild_words",
    "salvage",
    "words_damage",
]

FAULTS = (sqlite3.Error, UnicodeDecodeError)
"""What a damaged file makes the driver raise: SQLite's words quote it, and it may hold anything."""
TOLD = 20
"""Faults that SQLite tells of at most."""
ROWS = 2_000
_STREAMED = {"yield_per": ROWS}
"""So that a server sends no more at a time than is looked at."""
NORM_ERROR = 0.01
"""How far the length of a vector of fp16 may be from 1: rounding changes it by less than 0.001."""
DERIVED = frozenset({"state", "vector_change"})
"""What only matters to index files, which are made anew after a catalog was mended."""
VECTORS = {
    Target.IMAGES: ("file_vector", "file_id"),
    Target.CAPTIONS: ("caption_vector", "caption_id"),
}


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a file to read what can be read, whatever state it is in."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
        connection.text_factory = _text
        yield connection


def damage(path: Path, *, deep: bool) -> list[str]:
    """Return what SQLite finds wrong with a catalog's file; nothing where it is sound.

    Args:
        path: the file.
        deep: check that every index of the database agrees with its table, too.
    """
    check = "integrity_check" if deep else "quick_check"
    try:
        with _opened(path) as connection:
            rows = connection.execute(f"PRAGMA {check}({TOLD})").fetchall()
    except FAULTS as error:
        return [str(error)]
    told = [str(row[0]) for row in rows]
    return [] if told == ["ok"] else told


def broken_references(path: Path) -> dict[str, int]:
    """Return how many rows of each table refer to a row that is not there."""
    counts: dict[str, int] = {}
    with _opened(path) as connection:
        for table, *_ in connection.execute("PRAGMA foreign_key_check"):
            counts[table] = counts.get(table, 0) + 1
    return counts


def bad_vectors(
    connection: Connection, target: Target, encoder_id: int, dim: int
) -> tuple[int, NDArray[np.int64]]:
    """Return how many vectors an encoder has, and the ascending ids of those that are none.

    A vector has `dim` numbers of fp16, all finite, and a length of 1.
    """
    table, column = VECTORS[target]
    statement = sql(f"SELECT {column}, vector FROM {table} WHERE encoder_id = :id ORDER BY 1")
    count, bad = 0, []
    streamed = connection.execute(statement, {"id": encoder_id}, execution_options=_STREAMED)
    for rows in streamed.partitions(ROWS):
        count += len(rows)
        fit = [(id_, blob) for id_, blob in rows if len(blob) == 2 * dim]
        bad += [id_ for id_, blob in rows if len(blob) != 2 * dim]
        if fit:
            vectors = np.frombuffer(b"".join(blob for _, blob in fit), dtype="<f2")
            lengths = np.linalg.norm(vectors.reshape(-1, dim).astype(np.float32), axis=1)
            # What is not finite is not near 1 either.
            wrong = ~(np.abs(lengths - 1) <= NORM_ERROR)
            bad += [fit[i][0] for i in np.flatnonzero(wrong)]
    return count, np.array(sorted(bad), dtype=np.int64)


def words_damage(connection: Connection) -> list[str]:
    """Return which full-text indexes do not say what the catalog says. Needs to write nothing."""
    if is_postgresql(connection):
        from mmsearch.retrieval.catalog import words_postgresql

        return words_postgresql.damage(connection)
    wrong = []
    for table in ("caption_word", "file_word"):
        # 1: compare with the table that the text comes from, too.
        check = f"INSERT INTO {table} ({table}, rank) VALUES ('integrity-check', 1)"
        try:
            with connection.begin_nested():
                connection.execute(sql(check))
        except Exception:
            wrong.append(table)
    if "file_word" not in wrong and not _same_words(connection):
        wrong.append("file_word")
    return wrong


def _same_words(connection: Connection) -> bool:
    statement = """
        SELECT file.id, file.path, file.camera, file.taken_at, word.key, word.name, word.folder,
            word.facts
        FROM file LEFT JOIN file_word AS word ON word.rowid = file.id
    """
    rows = connection.execute(sql(statement))
    for _, path, camera, taken, *there in rows:
        taken = None if taken is None else str(taken).replace(" ", "T")
        if [*file_words(os.fsdecode(path), camera, taken).values()] != there:
            return False
    files, words = (
        connection.scalar(sql(f"SELECT count(*) FROM {table}")) for table in ("file", "file_word")
    )
    return bool(files == words)


def rebuild_words(connection: Connection) -> None:
    """Make all texts that are looked for anew from the catalog."""
    if is_postgresql(connection):
        from mmsearch.retrieval.catalog import texts_postgresql, words_postgresql

        words_postgresql.rebuild(connection)
        texts_postgresql.rebuild(connection)
        return
    for statement in SCHEMA:
        kind, name = statement.split()[1:3]
        if kind == "TRIGGER":
            connection.execute(sql(f"DROP TRIGGER IF EXISTS {name}"))
    for table in ("caption_word", "file_word"):
        connection.execute(sql(f"DROP TABLE IF EXISTS {table}"))
    for statement in SCHEMA:
        connection.execute(sql(statement))
    fill_words(connection)


@dataclass(frozen=True, slots=True)
class Salvaged:
    """What was taken out of a damaged catalog: rows by table, and how many could not be read."""

    rows: dict[str, int]
    unreadable: int


def salvage(damaged: Path, fresh: Connection) -> Salvaged:
    """Copy every row that can still be read into an empty catalog.

    Args:
        damaged: the file.
        fresh: to a catalog with the present schema and no rows, in a transaction.

    Raises:
        StorageError: not even the list of tables can be read.
    """
    rows: dict[str, int] = {}
    unreadable = 0
    with _opened(damaged) as source:
        there = _tables(source, damaged)
        fresh.execute(sql("PRAGMA defer_foreign_keys = ON"))
        for table in tables.metadata.sorted_tables:
            if table.name not in there or table.name in DERIVED:
                continue
            columns = [row[1] for row in source.execute(f"PRAGMA table_info({table.name})")]
            known = [name for name in columns if name in table.c]
            put = sql(
                f"INSERT OR REPLACE INTO {table.name} ({', '.join(known)}) "
                f"VALUES ({', '.join(f':{name}' for name in known)})"
            )
            rows[table.name] = 0
            for found in _readable(source, table.name, known):
                if found is None:
                    unreadable += 1
                else:
                    fresh.execute(put, found)
                    rows[table.name] += 1
        rows = _without_orphans(fresh, rows)
    return Salvaged(rows, unreadable)


def _tables(source: sqlite3.Connection, path: Path) -> set[str]:
    try:
        return {name for (name,) in source.execute("SELECT name FROM sqlite_master")}
    except FAULTS as error:
        raise StorageError(
            f"The catalog {path} is past reading ({error}). Restore a backup (mmsearch restore), "
            f"or move {path.parent} aside and run mmsearch index again; the pictures are untouched."
        ) from error


def _text(data: bytes) -> str | bytes:
    """Return text; bytes where it is none, which is how names in bytes are stored."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _readable(
    source: sqlite3.Connection, table: str, columns: list[str]
) -> Iterator[dict[str, object] | None]:
    """Yield the rows of a table that can be read, and None for each place where one cannot."""
    listed = ", ".join(columns)
    key = "rowid"
    last = -1
    while True:
        statement = f"SELECT {key}, {listed} FROM {table} WHERE {key} > ? ORDER BY {key}"
        try:
            for number, *values in source.execute(statement, (last,)):
                last = number
                yield dict(zip(columns, values, strict=True))
        except FAULTS:
            yield None
            following = _next_readable(source, table, last)
            if following is None:
                return
            last = following - 1
        else:
            return


def _next_readable(source: sqlite3.Connection, table: str, last: int) -> int | None:
    """Return a key beyond a damaged place from which on a table can be read; None where none is."""
    step = 1
    while step <= 1 << 40:
        try:
            row = source.execute(
                f"SELECT rowid FROM {table} WHERE rowid > ? ORDER BY rowid LIMIT 1",
                (last + step,),
            ).fetchone()
        except FAULTS:
            step *= 2
            continue
        return None if row is None else int(row[0])
    return None


def _without_orphans(fresh: Connection, rows: dict[str, int]) -> dict[str, int]:
    """Remove what refers to rows that were lost."""
    for statement in (
        "DELETE FROM file_vector WHERE file_id NOT IN (SELECT id FROM file) "
        "OR encoder_id NOT IN (SELECT id FROM encoder)",
        "DELETE FROM caption WHERE file_id NOT IN (SELECT id FROM file)",
        "DELETE FROM caption_vector WHERE caption_id NOT IN (SELECT id FROM caption) "
        "OR encoder_id NOT IN (SELECT id FROM encoder)",
        "DELETE FROM adapter WHERE encoder_id NOT IN (SELECT id FROM encoder)",
        "UPDATE library SET encoder_id = NULL WHERE encoder_id NOT IN (SELECT id FROM encoder)",
        "UPDATE library SET next_encoder_id = NULL "
        "WHERE next_encoder_id NOT IN (SELECT id FROM encoder)",
    ):
        fresh.execute(sql(statement))
    return {table: fresh.scalar(sql(f"SELECT count(*) FROM {table}")) or 0 for table in rows}
