"""The terms that FTS5 makes of texts, for a catalog that it does not keep.

FTS5 itself is asked, in a database of SQLite's that lies in memory and holds nothing for longer
than that: so the words of a catalog on PostgreSQL are, to the last one, those of a SQLite catalog.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from threading import local
from typing import NamedTuple

from mmsearch.retrieval.catalog.words import TOKENIZE

__all__ = ["Term", "terms_of"]

COLUMNS = 4
"""As many as `file_word` has."""

_own = local()


class Term(NamedTuple):
    """One word of a text.

    Attributes:
        text: as FTS5 has it: in small letters, without accents, its ending cut off.
        column: of the row, from 0 on.
        offset: its place in that column, from 0 on.
    """

    text: str
    column: int
    offset: int


def terms_of(rows: Sequence[Sequence[str]]) -> list[list[Term]]:
    """Return the terms of rows of up to four texts, those of each column in their order."""
    connection = _connection()
    connection.execute("BEGIN")
    connection.executemany(
        "INSERT INTO text (rowid, c0, c1, c2, c3) VALUES (?, ?, ?, ?, ?)",
        [(number, *row, *[""] * (COLUMNS - len(row))) for number, row in enumerate(rows)],
    )
    found: list[list[Term]] = [[] for _ in rows]
    for number, column, offset, term in connection.execute(
        "SELECT doc, col, offset, term FROM word"
    ):
        found[number].append(Term(term, int(column[1:]), offset))
    connection.execute("ROLLBACK")
    for terms in found:
        terms.sort(key=lambda term: (term.column, term.offset))
    return found


def _connection() -> sqlite3.Connection:
    connection: sqlite3.Connection | None = getattr(_own, "connection", None)
    if connection is None:
        connection = _own.connection = sqlite3.connect(":memory:", isolation_level=None)
        columns = ", ".join(f"c{number}" for number in range(COLUMNS))
        connection.execute(
            f"CREATE VIRTUAL TABLE text USING fts5 ({columns}, content = '', "
            f"tokenize = '{TOKENIZE}')"
        )
        connection.execute("CREATE VIRTUAL TABLE word USING fts5vocab (text, instance)")
    return connection
