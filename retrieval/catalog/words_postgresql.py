"""Full-text search in a catalog on PostgreSQL: what `words` and `word_search` ask of FTS5.

`terms` of `caption_word` and `file_word` are TSVECTORs of FTS5's own terms (`terms.terms_of`), with
the columns of `file_word` as the weights A to D. PostgreSQL finds the rows (GIN); how often a word
is in each and how long each is gives BM25, computed as FTS5 computes it, to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from sqlalchemy import text as sql

from mmsearch.retrieval.catalog.postgresql import rows_of
from mmsearch.retrieval.catalog.tables import path_of, text_of, text_stored
from mmsearch.retrieval.catalog.terms import Term, terms_of
from mmsearch.retrieval.catalog.words import file_words

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sqlalchemy import Connection

__all__ = [
    "add_file_words",
    "counted",
    "damage",
    "files_by_key",
    "forget_changes",
    "put_caption_words",
    "put_file_words",
    "rebuild",
    "scored",
]

K1, B = 1.2, 0.75
"""Of BM25, as in FTS5 (`fts5Bm25Function`)."""
SMALLEST_IDF = 1e-6
"""Of a word that more than half of the rows have (`fts5Bm25GetData`)."""

LETTERS = "ABCD"
"""Weights of a TSVECTOR, for the columns key, name, folder and facts."""
WORTH = {"A": 8, "B": 4, "C": 2, "D": 1}
"""As `words.COLUMN_WEIGHTS` says; the text of captions has the last one."""

LONGEST_TERM = 2_000
"""Bytes: PostgreSQL takes 2,046. What is longer is looked for by its beginning."""
LAST_PLACE = 16_383
"""In a TSVECTOR; later words are found, but not in their order."""
LARGEST = 900_000
"""Bytes of a TSVECTOR: PostgreSQL takes a million. The last words of longer texts are left out."""
AT_ONCE = 1_000


class _Indexed(NamedTuple):
    """A row's words, as they are stored."""

    terms: str
    length: int


def add_file_words(connection: Connection, rows: Mapping[int, Mapping[str, str]]) -> None:
    """Write the words of new files, by their ids, as `words.file_words` returns them."""
    indexed = _indexed([[*row.values()] for row in rows.values()], LETTERS)
    connection.execute(
        _INSERT_FILE,
        [
            {"id": id_, **_stored(row), **each._asdict()}
            for (id_, row), each in zip(rows.items(), indexed, strict=True)
        ],
    )


def put_file_words(connection: Connection, id_: int, row: Mapping[str, str]) -> None:
    """Make the words of a file that is there these."""
    there = connection.execute(_READ_FILE, {"id": id_}).one_or_none()
    if there is not None and [*there] == [*_stored(row).values()]:
        return
    if there is not None:
        connection.execute(_DELETE_FILE, {"id": id_})
    add_file_words(connection, {id_: row})


def put_caption_words(connection: Connection, texts: Mapping[int, str]) -> None:
    """Write the words of new captions, by their ids."""
    indexed = _indexed([[text] for text in texts.values()], "D")
    connection.execute(
        _INSERT_CAPTION,
        [{"id": id_, **each._asdict()} for id_, each in zip(texts, indexed, strict=True)],
    )


def rebuild(connection: Connection) -> None:
    """Write the words of every file and caption anew."""
    for table in ("file_word", "caption_word", "word_total"):
        connection.exec_driver_sql(f"DELETE FROM {table}")
    # The deletions were noted, too.
    connection.exec_driver_sql("DELETE FROM word_total")
    for part in _parts(connection, _FILES):
        add_file_words(connection, {id_: _file_words(*facts) for id_, *facts in part})
    for part in _parts(connection, _TEXTS):
        put_caption_words(connection, {id_: text_of(text) for id_, text in part})


def damage(connection: Connection) -> list[str]:
    """Return which of both tables do not say what the catalog says."""
    wrong = []
    totals = _totals(connection)
    checks: tuple[tuple[str, str, Callable[[Sequence[Any]], list[str]]], ...] = (
        ("caption_word", _CHECK_CAPTIONS, lambda row: [text_of(row[0])]),
        ("file_word", _CHECK_FILES, lambda row: [*_file_words(*row[:3]).values()]),
    )
    for table, statement, texts_of in checks:
        letters = "D" if table == "caption_word" else LETTERS
        count = length = 0
        same = True
        for part in _parts(connection, statement):
            expected = [texts_of(row) for row in part]
            stored = [tuple(row)[-2:] for row in part]
            if letters == LETTERS:
                same &= all(
                    [*row[3:7]] == [*map(text_stored, texts)]
                    for row, texts in zip(part, expected, strict=True)
                )
            rows = rows_of(
                connection,
                "SELECT term::tsvector::text FROM unnest(%s::text[]) AS term",
                [[each.terms for each in _indexed(expected, letters)]],
            )
            lengths = [len(terms) for terms in terms_of(expected)]
            same &= stored == [(terms, n) for (terms,), n in zip(rows, lengths, strict=True)]
            count, length = count + len(part), length + sum(lengths)
        (rows_there,) = rows_of(connection, f"SELECT count(*) FROM {table}")[0]
        if not same or rows_there != count or totals.get(table, (0, 0)) != (count, length):
            wrong.append(table)
    return wrong


def counted(connection: Connection, terms: Sequence[str], most: int) -> list[tuple[int, int]]:
    """Return in how many captions and names of files each term is, counting no further."""
    queries = [_query(tokens) for tokens in _tokens(terms)]
    return [(a, b) for a, b in rows_of(connection, _COUNTS, (most, most, queries))]


def scored(connection: Connection, table: str, terms: Sequence[str]) -> NDArray[np.void]:
    """Return `[n]` rows of (number of the term, id, BM25, file), by term and by id."""
    counts, length = _totals(connection).get(table, (0, 0))
    asked = _tokens(terms)
    single = [(number, tokens[0]) for number, tokens in enumerate(asked) if len(tokens) == 1]
    found: list[tuple[Any, ...]] = []
    if single:
        numbers, words = map(list, zip(*single, strict=True))
        queries = [_query([word]) for word in words]
        found += rows_of(connection, _WORDS[table], (numbers, words, queries))
    for number, tokens in enumerate(asked):
        if len(tokens) > 1:
            found += rows_of(connection, _PHRASES[table], (number, tokens, _query(tokens)))
    found.sort(key=lambda row: row[:2])
    # Term, id, how often, how long, file.
    rows = np.array(found, dtype=_FOUND)
    scores = np.empty(len(rows), dtype=np.float64)
    for number in np.unique(rows["term"]):
        of_term = rows["term"] == number
        hits = int(of_term.sum())
        idf = math.log((counts - hits + 0.5) / (hits + 0.5))
        idf = idf if idf > 0 else SMALLEST_IDF
        often, long = rows["often"][of_term], rows["long"][of_term]
        mean = length / counts
        scores[of_term] = idf * ((often * (K1 + 1.0)) / (often + K1 * (1 - B + B * long / mean)))
    made = np.empty(len(rows), dtype=_ROW)
    for name in ("term", "id", "file"):
        made[name] = rows[name]
    made["score"] = scores
    return made


def files_by_key(connection: Connection, keys: Sequence[str]) -> list[tuple[int, str]]:
    """Return id and path of the files whose whole name is one of the keys."""
    queries = [_query(tokens, "A") for tokens in _tokens(keys) if tokens]
    if not queries:
        return []
    return [
        (id_, path_of(path))
        for id_, path in rows_of(connection, _BY_KEY, (" | ".join(f"({q})" for q in queries),))
    ]


def forget_changes(connection: Connection) -> None:
    """Add up what statements have added to the numbers of rows and words."""
    connection.exec_driver_sql(
        """
        WITH gone AS (DELETE FROM word_total RETURNING name, count, tokens)
        INSERT INTO word_total SELECT name, sum(count), sum(tokens) FROM gone GROUP BY name
        """
    )


def _totals(connection: Connection) -> dict[str, tuple[int, int]]:
    statement = "SELECT name, sum(count)::bigint, sum(tokens)::bigint FROM word_total GROUP BY name"
    return {name: (count, tokens) for name, count, tokens in rows_of(connection, statement)}


def _indexed(rows: Sequence[Sequence[str]], letters: str) -> list[_Indexed]:
    return [_Indexed(_tsvector(terms, letters), len(terms)) for terms in terms_of(rows)]


def _tsvector(terms: Sequence[Term], letters: str) -> str:
    """Return terms as PostgreSQL reads a TSVECTOR, whatever is in them."""
    starts: dict[int, int] = {}
    place = 0
    places: dict[str, list[str]] = {}
    size = 0
    for term in terms:
        # A gap between two columns, so that no phrase reaches across.
        start = starts.setdefault(term.column, place + 1 + (place > 0))
        place = start + term.offset
        text = _cut(term.text)
        if text not in places:
            size += len(text.encode()) + 8
        size += 2
        if size > LARGEST:
            break
        at = f"{min(place, LAST_PLACE)}{letters[term.column]}"
        places.setdefault(text, []).append(at)
    return " ".join(f"{_quoted(text)}:{','.join(at)}" for text, at in places.items())


def _tokens(texts: Iterable[str]) -> list[list[str]]:
    return [[_cut(term.text) for term in terms] for terms in terms_of([[text] for text in texts])]


def _query(tokens: Sequence[str], column: str = "") -> str:
    """Return the TSQUERY for words that follow one another; one that nothing fits for none."""
    weight = f":{column}" if column else ""
    return " <-> ".join(f"{_quoted(token)}{weight}" for token in tokens)


def _cut(term: str) -> str:
    if len(term) * 4 <= LONGEST_TERM:
        return term
    return term.encode()[:LONGEST_TERM].decode(errors="ignore")


def _quoted(term: str) -> str:
    return "'" + term.replace("\\", "\\\\").replace("'", "''") + "'"


def _file_words(path: bytes, camera: str | None, taken: datetime | None) -> dict[str, str]:
    """Return what `words.file_words` makes of a file as it is stored."""
    return file_words(
        path_of(path),
        None if camera is None else text_of(camera),
        None if taken is None else taken.isoformat(),
    )


def _stored(row: Mapping[str, str]) -> dict[str, str]:
    return {name: text_stored(text) for name, text in row.items()}


def _parts(connection: Connection, statement: str) -> Iterable[list[tuple[Any, ...]]]:
    """Yield the rows of a statement, of `id` above a parameter and in its order, some at a time."""
    last = -1
    while part := rows_of(connection, statement, (last, AT_ONCE)):
        last = part[-1][0]
        yield [row if statement in (_FILES, _TEXTS) else row[1:] for row in part]


_READ_FILE = sql("SELECT key, name, folder, facts FROM file_word WHERE id = :id")
_DELETE_FILE = sql("DELETE FROM file_word WHERE id = :id")
_INSERT_FILE = sql(
    "INSERT INTO file_word (id, key, name, folder, facts, terms, length) "
    "VALUES (:id, :key, :name, :folder, :facts, CAST(:terms AS tsvector), :length)"
)
_INSERT_CAPTION = sql(
    "INSERT INTO caption_word (id, terms, length) VALUES (:id, CAST(:terms AS tsvector), :length)"
)
_PART = "WHERE id > %s ORDER BY id LIMIT %s"
_FILES = f"SELECT id, path, camera, taken_at FROM file {_PART}"
_TEXTS = f"SELECT id, text FROM caption {_PART}"
_CHECK_CAPTIONS = f"""
SELECT id, text, terms::text, length FROM caption LEFT JOIN caption_word USING (id) {_PART}
"""
_CHECK_FILES = f"""
SELECT id, path, camera, taken_at, key, name, folder, facts, terms::text, length
FROM file LEFT JOIN file_word USING (id) {_PART}
"""
_COUNT = "(SELECT count(*) FROM (SELECT 1 FROM {0} WHERE {0}.terms @@ query LIMIT %s) AS found)"
_COUNTS = f"""
SELECT {_COUNT.format("caption_word")}, {_COUNT.format("file_word")}
FROM unnest(%s::tsquery[]) WITH ORDINALITY AS term (query, number) ORDER BY number
"""
_BY_KEY = """
SELECT file.id, file.path FROM file_word JOIN file USING (id)
WHERE file_word.terms @@ %s::tsquery
"""
_WORTH = " ".join(f"WHEN '{letter}' THEN {worth}" for letter, worth in WORTH.items())
_ONE = f"""
(SELECT sum(CASE weight {_WORTH} END)
FROM unnest(held.terms) AS lexeme, unnest(lexeme.weights) AS weight WHERE lexeme.lexeme = {{word}})
"""
# Each place of the first word that the others follow.
_SEVERAL = f"""
(SELECT sum(CASE start.weight {_WORTH} END)
FROM unnest(held.terms) AS first, unnest(first.positions, first.weights) AS start (place, weight)
WHERE first.lexeme = asked.words[1] AND NOT EXISTS (
    SELECT 1 FROM unnest(asked.words) WITH ORDINALITY AS other (word, number)
    WHERE NOT EXISTS (
        SELECT 1 FROM unnest(held.terms) AS there
        WHERE there.lexeme = other.word AND (start.place + other.number - 1) = ANY (there.positions)
    )
))
"""
_FROM = {
    "caption_word": ("caption.file_id", "caption_word AS held JOIN caption USING (id)"),
    "file_word": ("held.id", "file_word AS held"),
}
_WORDS = {
    table: f"""
    SELECT asked.number, held.id, {_ONE.format(word="asked.word")}::float8, held.length, {file}
    FROM unnest(%s::int[], %s::text[], %s::tsquery[]) AS asked (number, word, query)
    CROSS JOIN {rows} WHERE held.terms @@ asked.query
    """
    for table, (file, rows) in _FROM.items()
}
_PHRASES = {
    table: f"""
    SELECT asked.number, held.id, {_SEVERAL}::float8, held.length, {file}
    FROM (SELECT %s::int AS number, %s::text[] AS words, %s::tsquery AS query) AS asked
    CROSS JOIN {rows} WHERE held.terms @@ asked.query
    """
    for table, (file, rows) in _FROM.items()
}
_FOUND = np.dtype(
    [("term", "<i4"), ("id", "<i8"), ("often", "<f8"), ("long", "<f8"), ("file", "<i8")]
)
_ROW = np.dtype([("term", "<i4"), ("id", "<i8"), ("score", "<f8"), ("file", "<i8")])
