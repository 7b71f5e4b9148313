"""A catalog's content into another catalog, of the same kind or of the other, and the proof of it.

Rows keep their ids, so that whatever is named by an id goes on being so. What is derived (words,
notes of changes) is made anew by the catalog that they come to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, func, insert, select

from mmsearch.retrieval.catalog import integrity, tables
from mmsearch.retrieval.catalog.connection import is_postgresql

if TYPE_CHECKING:
    from sqlalchemy import Connection, Table

__all__ = ["CONTENT", "Sum", "copy_rows", "sums"]

CONTENT = (
    tables.encoder,
    tables.library,
    tables.file,
    tables.caption,
    tables.file_vector,
    tables.caption_vector,
    tables.adapter,
    tables.container,
    tables.problem,
)
"""In an order in which each refers to those before it alone."""

NUMBERED = tuple(table.name for table in CONTENT if "id" in table.c and table is not tables.library)
"""Tables that number their rows, and never give a number twice."""

ROWS = 1_000
"""Read, and written, at a time."""

Report = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Sum:
    """What a table holds: how many rows, and the sum of their hashes.

    Two tables with the same rows in any order have the same sum; to find others that have it too
    is as hard as a sum of SHA-256 values modulo 2²⁵⁶ makes it, which guards against accidents.
    """

    rows: int
    checksum: str


def copy_rows(source: Connection, goal: Connection, report: Report) -> None:
    """Make the content of a catalog all that another one holds.

    Args:
        source: in a transaction, which sees one state.
        goal: in a writing transaction, to a catalog with the present schema.
        report: called with a table's name, how many rows are done and how many there are.
    """
    for table in reversed(CONTENT):
        goal.execute(delete(table))
    for table in CONTENT:
        total = source.scalar(select(func.count()).select_from(table)) or 0
        done = 0
        report(table.name, done, total)
        for rows in _blocks(source, table):
            goal.execute(insert(table), rows)
            done += len(rows)
            report(table.name, done, total)
    _go_on_counting(goal, _last_numbers(source))
    report("words", 0, 1)
    integrity.rebuild_words(goal)
    report("words", 1, 1)
    # No index is of an earlier state of this catalog.
    goal.execute(delete(tables.vector_change))
    goal.execute(delete(tables.state))
    # A store is filled anew: it was told of another catalog's states.
    goal.execute(delete(tables.store_state))


def _last_numbers(connection: Connection) -> dict[str, int]:
    """Return the highest number that each table has ever given."""
    if not is_postgresql(connection):
        rows = connection.exec_driver_sql("SELECT name, seq FROM sqlite_sequence")
        return {name: number for name, number in rows if name in NUMBERED}
    found = {}
    for name in NUMBERED:
        sequence = _sequence(connection, name)
        statement = f"SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {sequence}"
        found[name] = connection.exec_driver_sql(statement).scalar_one()
    return found


def _go_on_counting(connection: Connection, numbers: dict[str, int]) -> None:
    """Let each table's next number be the one after these."""
    for name, number in numbers.items():
        if not is_postgresql(connection):
            run = connection.exec_driver_sql
            run("DELETE FROM sqlite_sequence WHERE name = ?", (name,))
            run("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (name, number))
        elif number:
            sequence = _sequence(connection, name)
            connection.exec_driver_sql(f"SELECT setval('{sequence}', {number})")


def _sequence(connection: Connection, table: str) -> str:
    """Return the name of what numbers a table's rows on PostgreSQL, as SQL takes it."""
    statement = f"SELECT pg_get_serial_sequence('{table}', 'id')"
    name: str = connection.exec_driver_sql(statement).scalar_one()
    return name


def sums(connection: Connection, report: Report) -> dict[str, Sum]:
    """Return the sum of each table of a catalog's content, by its name.

    The library's generation and stamp are left out, which name a state of this very catalog.
    """
    found = {}
    for table in CONTENT:
        total = connection.scalar(select(func.count()).select_from(table)) or 0
        rows, checksum = 0, 0
        report(table.name, rows, total)
        for block in _blocks(connection, table):
            for row in block:
                if table is tables.library:
                    row = {key: row[key] for key in row.keys() - {"generation", "stamp", "root"}}
                said = repr(sorted(row.items())).encode("utf-8", "surrogateescape")
                checksum += int.from_bytes(sha256(said).digest())
            rows += len(block)
            report(table.name, rows, total)
        found[table.name] = Sum(rows, f"{checksum % (1 << 256):064x}")
    return found


def _blocks(connection: Connection, table: Table) -> Iterator[list[dict[str, Any]]]:
    streamed = connection.execution_options(yield_per=ROWS).execute(select(table))
    for rows in streamed.mappings().partitions(ROWS):
        yield [dict(row) for row in rows]
