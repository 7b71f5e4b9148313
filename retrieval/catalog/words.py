"""Full-text search in a catalog: words of captions, of file and folder names, of metadata.

Two FTS5 indexes. `caption_word` reads its text from `caption` (external content) and is kept right
by triggers alone. `file_word` holds what `file_words` makes of a path, which SQL cannot; whatever
writes a file's row writes it, and a trigger removes it. Both rank by BM25 (Robertson and Zaragoza
2009), as FTS5 computes it.
"""

from __future__ import annotations

import json
import math
import os
import re
import unicodedata
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from sqlalchemy import text as sql

from mmsearch.retrieval.catalog.connection import fetched
from mmsearch.retrieval.schema import Target

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray
    from sqlalchemy import Connection

    from mmsearch.retrieval.schema import Picture

__all__ = [
    "EXACT_NAME",
    "SCHEMA",
    "described",
    "fill_words",
    "find_words",
    "put_file_words",
    "query_terms",
]

EXACT_NAME = math.inf
"""The score of a file whose name is what was asked."""

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

MOST_MATCHES = 1_000
"""Captions (or files) that are weighed for one question, the rarest words' first: words that more
have tell little, and to weigh 10,000 takes 30 ms."""

CAPTIONS_EACH = 5
"""Captions that are looked at for each picture that is wanted: a picture may have several."""

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

NOTHING = '""'
"""An expression of FTS5 that nothing matches."""

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
    stem = _stem(name)
    return {
        "key": _key(stem),
        "name": " ".join([name, *_pieces(stem)]),
        "folder": " ".join(chain(folders, *map(_pieces, folders))),
        "facts": " ".join([camera or "", (taken or "")[:10]]).strip(),
    }


def put_file_words(
    connection: Connection, id_: int, picture: Picture, *, new: bool = False
) -> None:
    """Make the words of a file those of its path, camera and time; a new file has none yet."""
    taken = None if picture.taken_at is None else picture.taken_at.isoformat()
    row = file_words(picture.path, picture.camera, taken)
    there = None if new else connection.execute(_READ_FILE, {"id": id_}).one_or_none()
    if there is not None and tuple(there) == tuple(row.values()):
        return
    if there is not None:
        connection.execute(_DELETE_FILE, {"id": id_})
    connection.execute(_INSERT_FILE, row | {"id": id_})


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


def find_words(
    connection: Connection,
    asked: str,
    target: Target,
    limit: int,
    among: NDArray[np.int64] | None = None,
) -> list[tuple[int, float]]:
    """Return ids and scores, best first, of what holds words of a question.

    A picture's score is that of its names and metadata and that of its best caption, added up. A
    picture whose file name is the whole question (with or without its ending or folders) comes
    first, and scores `EXACT_NAME`.

    Args:
        connection: to the catalog.
        asked: any text; nothing in it is syntax.
        target: pictures by all their words, or captions by theirs.
        limit: at most so many.
        among: `int64[n]`, ascending, the ids to choose from; all where not given.
    """
    terms = query_terms(asked)
    pictures = target is Target.IMAGES
    named = _named(connection, asked) if pictures else []
    scores = dict.fromkeys(named, EXACT_NAME)
    in_captions, in_files = _matches(connection, terms, files=pictures)
    parts = {"caption_word": _expression(in_captions, terms)}
    if pictures:
        parts["file_word"] = _expression(in_files, terms, legible(asked))
    if set(parts.values()) != {NOTHING}:
        # Of all that match those are taken that may be chosen: the best may all be forbidden.
        many = -1 if among is not None else limit
        most = {"limit": many, "captions": many * CAPTIONS_EACH if pictures else many}
        statement = _PICTURES if pictures else _CAPTIONS
        for id_, score in fetched(connection, statement, parts | most):
            scores.setdefault(id_, score)
    if among is not None:
        ids = np.fromiter(scores, np.int64, len(scores))
        allowed = ids[_among(ids, among)].tolist()
        return [(id_, scores[id_]) for id_ in allowed[:limit]]
    return list(scores.items())[:limit]


def described(connection: Connection, ids: Collection[int]) -> set[int]:
    """Return which pictures words say something about: a caption, or a name of several words.

    What a question's words do not find among these is told apart by that; of another picture
    (`IMG_2041.jpg`) they say nothing.
    """
    rows = fetched(connection, _DESCRIBED, (json.dumps(list(ids)),))
    return {id_ for id_, path, captioned in rows if captioned or _tells(legible(os.fsdecode(path)))}


def _tells(path: str) -> bool:
    words = {word.lower() for word in _WORD.findall(_stem(path.rpartition("/")[2]))}
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


def _pieces(text: str) -> list[str]:
    """Return what a name is put together of where only case or digits tell: `DSC` and `02041`."""
    found = []
    for run in _RUN.findall(text):
        pieces = [hump for piece in _PIECE.findall(run) for hump in _HUMP.split(piece)]
        pieces += [piece.lstrip("0") for piece in pieces if piece[0] == "0"]
        # A single letter or digit is in too many names to tell them apart.
        found += [piece for piece in pieces if len(piece) > 1 and piece != run]
    return found


def _stem(name: str) -> str:
    """Return a file's name without its ending."""
    stem, _, ending = name.rpartition(".")
    return stem if stem and 0 < len(ending) <= 5 and ending.isalnum() else name


def _key(name: str) -> str:
    """Return one word that stands for a whole name: `IMG_2041` and `img-2041` are `img2041`."""
    return "".join(_plain(name))


def _plain(text: str) -> list[str]:
    """Return the words of a text without case and accents."""
    apart = unicodedata.normalize("NFKD", text)
    return _RUN.findall("".join(c for c in apart if not unicodedata.combining(c)).casefold())


def _matches(
    connection: Connection, terms: list[str], *, files: bool
) -> tuple[dict[str, int], dict[str, int]]:
    """Return in how many captions, and how many names of files (where asked for), each term is.

    Nobody counts further than one beyond `MOST_MATCHES`.
    """
    quoted = {_quoted(term): term for term in terms}
    asked = {"terms": json.dumps(list(quoted)), "n": MOST_MATCHES + 1}
    rows = fetched(connection, _COUNTS if files else _CAPTION_COUNTS, asked)
    return (
        {quoted[term]: n for term, n, _ in rows},
        {quoted[term]: n for term, _, n in rows},
    )


def _expression(found: dict[str, int], terms: list[str], whole: str = "") -> str:
    """Return an expression of FTS5 for any of the terms, and for all of a text in one piece.

    Terms are taken from the rarest on, at least one, as long as few enough rows match them.
    """
    there = sorted((term for term in terms if found[term]), key=lambda term: found[term])
    if not there:
        return NOTHING
    total = np.cumsum([found[term] for term in there])
    taken = there[: max(1, int(np.searchsorted(total, MOST_MATCHES + 1)))]
    phrase = len(taken) == len(terms) > 1 and whole
    return " OR ".join(_quoted(term) for term in [*taken, *([whole] if phrase else [])])


def _among(ids: NDArray[np.int64], allowed: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Say which of a few ids are among many ascending ones, which `np.isin` would sort."""
    places = np.searchsorted(allowed, ids)
    there: NDArray[np.bool_] = places < len(allowed)
    there[there] = allowed[places[there]] == ids[there]
    return there


def _named(connection: Connection, asked: str) -> list[int]:
    """Return the files whose name, or path from some folder on, a text is; literal ones first."""
    asked = legible(asked).strip()
    *folders, name = asked.split("/")
    keys = {_key(name), _key(_stem(name))} - {""}
    if not keys:
        return []
    expression = " OR ".join(f"key : {_quoted(key)}" for key in sorted(keys))
    wanted, above = _plain(name), [_plain(folder) for folder in folders]
    found = []
    for id_, stored in fetched(connection, _BY_KEY, (expression,)):
        path = legible(os.fsdecode(stored))
        *there, own = path.split("/")
        if wanted not in (_plain(own), _plain(_stem(own))):
            continue
        lying = [_plain(folder) for folder in there]
        # An absolute path begins above the library.
        deep = min(len(above), len(lying)) if asked.startswith("/") else len(above)
        if above[len(above) - deep :] == lying[max(0, len(lying) - deep) :]:
            literal = name in (own, _stem(own))
            found.append((not literal, id_))
    return [id_ for _, id_ in sorted(found)]


def _quoted(term: str) -> str:
    return '"' + term.replace('"', '""') + '"'


_READ_FILE = sql("SELECT key, name, folder, facts FROM file_word WHERE rowid = :id")
_DELETE_FILE = sql("DELETE FROM file_word WHERE rowid = :id")
_INSERT_FILE = sql(
    "INSERT INTO file_word (rowid, key, name, folder, facts) "
    "VALUES (:id, :key, :name, :folder, :facts)"
)
_BY_KEY = (
    "SELECT file.id, file.path FROM file_word JOIN file ON file.id = file_word.rowid "
    "WHERE file_word MATCH ?"
)
_DESCRIBED = """
SELECT id, path, EXISTS (SELECT 1 FROM caption WHERE file_id = file.id) FROM file
WHERE id IN (SELECT value FROM json_each(?))
"""
_COUNT = "(SELECT count(*) FROM (SELECT 1 FROM {0} WHERE {0} MATCH term.value LIMIT :n))"
_CAPTION_COUNTS = f"""
SELECT term.value, {_COUNT.format("caption_word")}, 0 FROM json_each(:terms) AS term
"""
_COUNTS = f"""
SELECT term.value, {_COUNT.format("caption_word")}, {_COUNT.format("file_word")}
FROM json_each(:terms) AS term
"""
_CAPTIONS = """
SELECT rowid, -rank AS score FROM caption_word WHERE caption_word MATCH :caption_word
ORDER BY score DESC, rowid LIMIT :limit
"""
# FTS5 takes half as long again where it sorts by its `rank` itself, instead of SQLite by a score.
_PICTURES = f"""
SELECT id, sum(score) AS score FROM (
    SELECT rowid AS id, -rank AS score FROM file_word
    WHERE file_word MATCH :file_word AND rank MATCH '{COLUMN_WEIGHTS}'
    UNION ALL
    SELECT file_id, max(score) FROM (
        SELECT rowid, -rank AS score FROM caption_word
        WHERE caption_word MATCH :caption_word ORDER BY score DESC, rowid LIMIT :captions
    ) AS found JOIN caption ON caption.id = found.rowid GROUP BY file_id
) GROUP BY id ORDER BY score DESC, id LIMIT :limit
"""
