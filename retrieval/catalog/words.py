"""Full-text search in a catalog: words of captions, of file and folder names, of metadata.

Two FTS5 indexes. `caption_word` reads its text from `caption` (external content) and is kept right
by triggers alone. `file_word` holds what `file_words` makes of a path, which SQL cannot; whatever
writes a file's row writes it, and a trigger removes it. Both rank by BM25 (Robertson and Zaragoza
2009), as FTS5 computes it. Where the catalog is on PostgreSQL, `words_postgresql` does the same.
"""

from __future__ import annotations

import os
import re
import unicodedata
from itertools import chain
from typing import TYPE_CHECKING

from sqlalchemy import text as sql

from mmsearch.retrieval.catalog.connection import is_postgresql

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection

    from mmsearch.retrieval.schema import Picture

__all__ = [
    "COLUMN_WEIGHTS",
    "SCHEMA",
    "TOKENIZE",
    "add_file_words",
    "file_words",
    "fill_words",
    "key_of",
    "legible",
    "plain_words",
    "put_file_words",
    "query_terms",
    "quoted",
    "runs_of",
    "stem_of",
    "told_by_name",
]

TOKENIZE = "porter unicode61 remove_diacritics 2"

SCHEMA = (
    f"""
    CREATE VIRTUAL TABLE caption_word USING fts5 (
        text, content = 'caption', content_rowid = 'id', tokenize = '{TOKENIZE}'
    )
    """,
    f"""
    CREATE VIRTUAL TABLE file_word USING fts5 (
        key, name, folder, facts, tokenize = '{TOKENIZE}'
    )
    """,
    """
    CREATE TRIGGER caption_word_insert AFTER INSERT ON caption BEGIN
        INSERT INTO caption_word (rowid, text) VALUES (NEW.id, NEW.text);
    END
    """,
    """
    CREATE TRIGGER caption_word_delete AFTER DELETE ON caption BEGIN
        INSERT INTO caption_word (caption_word, rowid, text) VALUES ('delete', OLD.id, OLD.text);
    END
    """,
    """
    CREATE TRIGGER caption_word_update AFTER UPDATE OF id, text ON caption BEGIN
        INSERT INTO caption_word (caption_word, rowid, text) VALUES ('delete', OLD.id, OLD.text);
        INSERT INTO caption_word (rowid, text) VALUES (NEW.id, NEW.text);
    END
    """,
    """
    CREATE TRIGGER file_word_delete AFTER DELETE ON file BEGIN
        DELETE FROM file_word WHERE rowid = OLD.id;
    END
    """,
)
"""The statements that make both indexes, empty."""

COLUMN_WEIGHTS = "bm25(8.0, 4.0, 2.0, 1.0)"
"""Of `file_word`: a word that is the whole name tells more than one of several, or a folder's."""

MOST_TERMS = 64
"""Of one question: FTS5 takes no expression of any length."""

TELLING_WORDS = 3
"""A file name of so many words describes its picture; `IMG_2041_edited` does not."""

_SMALL_WORDS = """
a about all also am an and any are as at be been but by can could did do does for from had has have
he her hers him his how i if in into is it its me my near no not of off on one or our out over she
so some than that the their them then there these they this those to up was we were what when where
which while who will with you your photo picture image
"""
STOP_WORDS = frozenset(_SMALL_WORDS.split())
"""Words of English that tell nothing about a picture."""

_UNREADABLE = re.compile("[\0\ud800-\udfff]")
_WORD = re.compile(r"[^\W\d_]{3,}")
_RUN = re.compile(r"[^\W_]+")
_PIECE = re.compile(r"\d+|[^\W\d_]+")
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def file_words(path: str, camera: str | None, taken: str | None) -> dict[str, str]:
    """Return the row of `file_word` for a picture.

    Args:
        path: relative to the library's root.
        camera: maker and model.
        taken: when it was taken, as ISO 8601.
    """
    *folders, name = legible(path).split("/")
    stem = stem_of(name)
    return {
        "key": key_of(stem),
        "name": " ".join([name, *_pieces(stem)]),
        "folder": " ".join(chain(folders, *map(_pieces, folders))),
        "facts": " ".join([camera or "", (taken or "")[:10]]).strip(),
    }


def add_file_words(connection: Connection, pictures: Mapping[int, Picture]) -> None:
    """Write the words of new files, by their ids: those of path, camera and time."""
    rows = {id_: _words_of(picture) for id_, picture in pictures.items()}
    if is_postgresql(connection):
        from mmsearch.retrieval.catalog import words_postgresql

        words_postgresql.add_file_words(connection, rows)
    else:
        connection.execute(_INSERT_FILE, [row | {"id": id_} for id_, row in rows.items()])


def put_file_words(connection: Connection, id_: int, picture: Picture) -> None:
    """Make the words of a file that is there those of its path, camera and time."""
    row = _words_of(picture)
    if is_postgresql(connection):
        from mmsearch.retrieval.catalog import words_postgresql

        words_postgresql.put_file_words(connection, id_, row)
        return
    there = connection.execute(_READ_FILE, {"id": id_}).one_or_none()
    if there is not None and tuple(there) == tuple(row.values()):
        return
    if there is not None:
        connection.execute(_DELETE_FILE, {"id": id_})
    connection.execute(_INSERT_FILE, row | {"id": id_})


def _words_of(picture: Picture) -> dict[str, str]:
    taken = None if picture.taken_at is None else picture.taken_at.isoformat()
    return file_words(picture.path, picture.camera, taken)


def fill_words(connection: Connection) -> None:
    """Write the words of every file, and of every caption, into indexes that are empty."""
    connection.execute(sql("INSERT INTO caption_word (caption_word) VALUES ('rebuild')"))
    found = connection.execute(sql("SELECT id, path, camera, taken_at FROM file ORDER BY id"))
    for part in found.partitions(10_000):
        # A name that is no valid text lies there as bytes.
        rows = [
            {"id": id_} | file_words(os.fsdecode(path), camera, taken)
            for id_, path, camera, taken in part
        ]
        connection.execute(_INSERT_FILE, rows)


def told_by_name(path: str) -> bool:
    """Say whether the name of a picture's file, of several words, says something about it.

    What a question's words do not find among what is described, by captions or by a name, is told
    apart by that; of `IMG_2041.jpg` they say nothing.
    """
    words = {word.lower() for word in _WORD.findall(stem_of(legible(path).rpartition("/")[2]))}
    return len(words - STOP_WORDS) >= TELLING_WORDS


def query_terms(asked: str) -> list[str]:
    """Return what a question is searched for word by word, in its order, each once.

    >>> query_terms("a SunsetBeach of IMG_2041.jpg")
    ['sunsetbeach', 'sunset', 'beach', 'img', '2041', 'jpg']
    """
    words = [run for run in _RUN.findall(legible(asked)) if run.lower() not in STOP_WORDS]
    pieces = chain.from_iterable([word, *_pieces(word)] for word in words)
    return list(dict.fromkeys(piece.lower() for piece in pieces))[:MOST_TERMS]


def legible(name: str) -> str:
    """Return text that SQLite can hold: bytes that are no UTF-8 are read as Latin-1."""
    return "".join(_readable(c) for c in name) if _UNREADABLE.search(name) else name


def _readable(character: str) -> str:
    # How Python spells a byte of a file name that is no valid UTF-8 (PEP 383).
    if "\udc80" <= character <= "\udcff":
        return chr(ord(character) - 0xDC00)
    return " " if _UNREADABLE.match(character) else character


def runs_of(text: str) -> list[str]:
    """Return the runs of letters and digits in a text."""
    return _RUN.findall(text)


def _pieces(text: str) -> list[str]:
    """Return what a name is put together of where only case or digits tell: `DSC` and `02041`."""
    found = []
    for run in _RUN.findall(text):
        pieces = [hump for piece in _PIECE.findall(run) for hump in _HUMP.split(piece)]
        pieces += [piece.lstrip("0") for piece in pieces if piece[0] == "0"]
        # A single letter or digit is in too many names to tell them apart.
        found += [piece for piece in pieces if len(piece) > 1 and piece != run]
    return found


def stem_of(name: str) -> str:
    """Return a file's name without its ending."""
    stem, _, ending = name.rpartition(".")
    return stem if stem and 0 < len(ending) <= 5 and ending.isalnum() else name


def key_of(name: str) -> str:
    """Return one word that stands for a whole name: `IMG_2041` and `img-2041` are `img2041`."""
    return "".join(plain_words(name))


def plain_words(text: str) -> list[str]:
    """Return the words of a text without case and accents."""
    apart = unicodedata.normalize("NFKD", text)
    return _RUN.findall("".join(c for c in apart if not unicodedata.combining(c)).casefold())


def quoted(term: str) -> str:
    """Return a term as FTS5 reads it, whatever is in it."""
    return '"' + term.replace('"', '""') + '"'


_READ_FILE = sql("SELECT key, name, folder, facts FROM file_word WHERE rowid = :id")
_DELETE_FILE = sql("DELETE FROM file_word WHERE rowid = :id")
_INSERT_FILE = sql(
    "INSERT INTO file_word (rowid, key, name, folder, facts) "
    "VALUES (:id, :key, :name, :folder, :facts)"
)
