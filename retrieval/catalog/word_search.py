"""Looking for words of questions in a catalog, several questions at once.

What a word scores does not depend on the words beside it: BM25 is a sum over words, and FTS5 says
each summand. So each word is looked up once, its rows and scores are kept as long as the catalog
stays as it is, and a question is answered by adding up what its words score. To have FTS5 weigh
every question anew takes several times as long.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mmsearch.indexes.base import Condition
from mmsearch.retrieval.catalog.connection import driver_of, fetched, is_postgresql
from mmsearch.retrieval.catalog.words import (
    COLUMN_WEIGHTS,
    key_of,
    legible,
    plain_words,
    query_terms,
    quoted,
    runs_of,
    stem_of,
)
from mmsearch.retrieval.schema import Target

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sqlalchemy import Connection

    Ids = NDArray[np.int64]
    Floats = NDArray[np.float64]
    Ranking = list[tuple[int, float]]

__all__ = ["EXACT_NAME", "KeptWords", "find_words"]

EXACT_NAME = math.inf
"""The score of a file whose name is what was asked."""

MOST_MATCHES = 1_000
"""Captions (or files) that are weighed for one question, the rarest words' first: words that more
have tell little, and to weigh 10,000 takes 30 ms."""

CAPTIONS_EACH = 5
"""Captions that are looked at for each picture that is wanted: a picture may have several."""

MOST_KEPT = 1_000_000
"""Rows of words that are kept, of 24 bytes each."""

MOST_COUNTED = 100_000
"""Words of which it is kept how many rows have them."""

KEYS_AT_ONCE = 64
"""Names that are looked for in one expression: FTS5 takes none of any length."""


class _Rows(NamedTuple):
    """The rows that a word is in, and what it scores there.

    Attributes:
        ids: `int64[n]`, of captions or files.
        scores: `float64[n]`, BM25, higher is better.
        files: `int64[n]`, the picture of each row.
    """

    ids: Ids
    scores: Floats
    files: Ids


class KeptWords:
    """What words score in one state of a catalog. Threads may share it."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, int]] = {}
        self._rows: dict[tuple[str, str], _Rows] = {}
        self._kept = 0

    def counts(self, connection: Connection, terms: Iterable[str]) -> dict[str, tuple[int, int]]:
        """Return of each term in how many captions, and in how many names of files, it is.

        Nobody counts further than one beyond `MOST_MATCHES`.
        """
        known = self._counts
        found = {term: known[term] for term in terms if term in known}
        if lacking := [term for term in dict.fromkeys(terms) if term not in found]:
            # In the order in which they were asked.
            new = dict(zip(lacking, _counted(connection, lacking), strict=True))
            if len(known) + len(new) > MOST_COUNTED:
                self._counts = known = {}
            known.update(new)
            found |= new
        return found

    def rows(self, connection: Connection, table: str, terms: Iterable[str]) -> dict[str, _Rows]:
        """Return what terms score, each by itself, in `caption_word` or `file_word`."""
        known = self._rows
        found = {term: known[table, term] for term in terms if (table, term) in known}
        if lacking := [term for term in dict.fromkeys(terms) if term not in found]:
            new = _scored(connection, table, lacking)
            found |= new
            size = sum(len(rows.ids) for rows in new.values())
            if size <= MOST_KEPT:
                if self._kept + size > MOST_KEPT:
                    self._rows, self._kept = {}, 0
                self._rows.update({(table, term): rows for term, rows in new.items()})
                self._kept += size
        return found


class _Asked(NamedTuple):
    """What is looked up for a text: terms of captions and of names, from the rarest on."""

    text: str
    in_captions: list[str]
    in_files: list[str]
    whole: bool


def find_words(
    connection: Connection,
    texts: Sequence[str],
    target: Target,
    limit: int,
    among: Sequence[Ids | Condition | None],
    kept: KeptWords,
) -> list[Ranking]:
    """Return, for each text, ids and scores, best first, of what holds words of it.

    A picture's score is that of its names and metadata and that of its best caption, added up. A
    picture whose file name is the whole text (with or without its ending or folders) comes first,
    and scores `EXACT_NAME`.

    Args:
        connection: to the catalog.
        texts: any; nothing in them is syntax.
        target: pictures by all their words, or captions by theirs.
        limit: at most so many of each.
        among: for each text `int64[n]`, ascending, the ids to choose from, or a condition that
            says so of ids; None is all.
        kept: what is known of this state of the catalog.
    """
    pictures = target is Target.IMAGES
    named = _named(connection, texts) if pictures else [[]] * len(texts)
    terms = [query_terms(text) for text in texts]
    counts = kept.counts(connection, [term for some in terms for term in some])
    asked = [_weighed(*each, counts) for each in zip(texts, terms, strict=True)]
    of_captions = kept.rows(
        connection, "caption_word", [term for each in asked for term in each.in_captions]
    )
    of_files: Mapping[str, _Rows] = {}
    if pictures:
        of_files = kept.rows(
            connection, "file_word", [term for each in asked for term in each.in_files]
        )
        of_files |= _whole_texts(connection, asked, of_files)
    answers = []
    for each, names, allowed in zip(asked, named, among, strict=True):
        # Of all that match those are taken that may be chosen: the best may all be forbidden.
        most = None if allowed is not None else limit
        captions = [of_captions[term] for term in each.in_captions]
        if pictures:
            files = [of_files[term] for term in each.in_files]
            if each.text in of_files and each.whole:
                files.append(of_files[each.text])
            ids, scores = _pictures(files, captions, most)
        else:
            ids, scores, _ = _best(*_added(captions), most)
        if allowed is not None:
            there = _among(ids, allowed)
            ids, scores = ids[there], scores[there]
            named_ = np.array(names, dtype=np.int64)
            names = named_[_among(named_, allowed)].tolist()
        found = dict.fromkeys(names, EXACT_NAME)
        for id_, score in zip(ids[:limit].tolist(), scores[:limit].tolist(), strict=True):
            found.setdefault(id_, score)
        answers.append(list(found.items())[:limit])
    return answers


def _weighed(text: str, terms: list[str], counts: Mapping[str, tuple[int, int]]) -> _Asked:
    in_captions, in_files = (
        _rarest({term: counts[term][column] for term in terms}) for column in (0, 1)
    )
    return _Asked(legible(text), in_captions, in_files, len(in_files) == len(terms) > 1)


def _rarest(found: Mapping[str, int]) -> list[str]:
    """Return terms from the rarest on, at least one, as long as few enough rows match them."""
    there = sorted((term for term in found if found[term]), key=lambda term: found[term])
    total = 0
    for taken, term in enumerate(there):
        total += found[term]
        if taken and total > MOST_MATCHES:
            return there[:taken]
    return there


def _whole_texts(
    connection: Connection, asked: Sequence[_Asked], of_files: Mapping[str, _Rows]
) -> dict[str, _Rows]:
    """Return what texts in one piece score in the names of files, of those that may be there."""
    texts = [
        each.text
        for each in asked
        if each.whole and (not each.text.isascii() or _share_a_row(each, of_files))
    ]
    # Of each text only once: they are not kept.
    return _scored(connection, "file_word", [*dict.fromkeys(texts)]) if texts else {}


def _share_a_row(asked: _Asked, of_files: Mapping[str, _Rows]) -> bool:
    """Say whether any name has all words of an ASCII text, which SQLite takes apart as we do."""
    words = {run.lower() for run in runs_of(asked.text)}.intersection(asked.in_files)
    rows = [of_files[word].ids for word in words]
    counts = _sums(np.concatenate(rows), np.ones(sum(map(len, rows))))[1]
    return bool((counts == len(words)).any())


def _pictures(
    files: Sequence[_Rows], captions: Sequence[_Rows], limit: int | None
) -> tuple[Ids, Floats]:
    """Return pictures and their scores, best first: of names, and of the best caption, added up."""
    ids, scores, _ = _added(files)
    if captions:
        most = None if limit is None else limit * CAPTIONS_EACH
        _, best, pictures = _best(*_added(captions), most)
        # The best caption of a picture comes first.
        pictures, _, first = _sums(pictures, best)
        ids, scores, _ = _sums(
            np.concatenate([ids, pictures]), np.concatenate([scores, best[first]])
        )
    ids, scores, _ = _best(ids, scores, ids, limit)
    return ids, scores


def _added(rows: Sequence[_Rows]) -> tuple[Ids, Floats, Ids]:
    """Return ids, ascending, the sums of what words score there, and the pictures of the ids."""
    if not rows:
        return np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64)
    if len(rows) == 1:
        return rows[0].ids, rows[0].scores, rows[0].files
    ids, scores, first = _sums(
        np.concatenate([each.ids for each in rows]), np.concatenate([each.scores for each in rows])
    )
    return ids, scores, np.concatenate([each.files for each in rows])[first]


def _sums(ids: Ids, scores: Floats) -> tuple[Ids, Floats, Ids]:
    """Return each id once, the sum of its scores in the order given, and where it first stands."""
    # As `np.unique` does it, which would load NumPy's masked arrays.
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    new = np.ones(len(ids), dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    sums = np.bincount(np.cumsum(new) - 1, scores[order], int(new.sum()))
    return ordered[new], sums.astype(np.float64, copy=False), order[new]


def _best(ids: Ids, scores: Floats, files: Ids, limit: int | None) -> tuple[Ids, Floats, Ids]:
    order = np.lexsort((ids, -scores))[:limit]
    return ids[order], scores[order], files[order]


def _among(ids: Ids, allowed: Ids | Condition) -> NDArray[np.bool_]:
    """Say which of a few ids are among many ascending ones, which `np.isin` would sort."""
    if isinstance(allowed, Condition):
        return np.isin(ids, allowed.within(ids)) if len(ids) else np.zeros(0, dtype=np.bool_)
    places = np.searchsorted(allowed, ids)
    there: NDArray[np.bool_] = places < len(allowed)
    there[there] = allowed[places[there]] == ids[there]
    return there


def _counted(connection: Connection, terms: Sequence[str]) -> list[tuple[int, int]]:
    if is_postgresql(connection):
        from mmsearch.retrieval.catalog import words_postgresql

        return words_postgresql.counted(connection, terms, MOST_MATCHES + 1)
    asked = {"terms": json.dumps([*map(quoted, terms)]), "n": MOST_MATCHES + 1}
    return [(a, b) for a, b in fetched(connection, _COUNTS, asked)]


def _scored(connection: Connection, table: str, terms: Sequence[str]) -> dict[str, _Rows]:
    """Return the rows that each term is in, and what FTS5 says it scores there."""
    if is_postgresql(connection):
        from mmsearch.retrieval.catalog import words_postgresql

        rows = words_postgresql.scored(connection, table, terms)
    else:
        asked = json.dumps([*map(quoted, terms)])
        # Straight from the driver into arrays: a word may be in all of millions of names.
        rows = np.fromiter(driver_of(connection).execute(_SCORES[table], (asked,)), dtype=_ROW)
    ends = np.searchsorted(rows["term"], np.arange(1, len(terms) + 1))
    starts = [0, *ends[:-1].tolist()]
    return {
        term: _Rows(
            rows["id"][start:end].copy(),
            rows["score"][start:end].copy(),
            rows["file"][start:end].copy(),
        )
        for term, start, end in zip(terms, starts, ends.tolist(), strict=True)
    }


def _named(connection: Connection, texts: Sequence[str]) -> list[list[int]]:
    """Return, for each text, the files whose name, or path from some folder on, it is.

    Literal ones come first.
    """
    asked = [legible(text).strip() for text in texts]
    wanted: dict[tuple[str, ...], list[int]] = {}
    keys: set[str] = set()
    for number, text in enumerate(asked):
        name = text.rpartition("/")[2]
        keys |= {key_of(name), key_of(stem_of(name))}
        wanted.setdefault(tuple(plain_words(name)), []).append(number)
    found: list[list[tuple[bool, int]]] = [[] for _ in texts]
    ordered = sorted(keys - {""})
    for start in range(0, len(ordered), KEYS_AT_ONCE):
        for id_, there in _files_by_key(connection, ordered[start : start + KEYS_AT_ONCE]):
            path = legible(there)
            own = path.rpartition("/")[2]
            names = {tuple(plain_words(own)), tuple(plain_words(stem_of(own)))}
            for number in {number for name in names for number in wanted.get(name, ())}:
                literal = _is_named(asked[number], path)
                if literal is not None and (not literal, id_) not in found[number]:
                    found[number].append((not literal, id_))
    return [[id_ for _, id_ in sorted(each)] for each in found]


def _files_by_key(connection: Connection, keys: Sequence[str]) -> Iterable[tuple[int, str]]:
    if is_postgresql(connection):
        from mmsearch.retrieval.catalog import words_postgresql

        return words_postgresql.files_by_key(connection, keys)
    expression = " OR ".join(f"key : {quoted(key)}" for key in keys)
    rows = fetched(connection, _BY_KEY, (expression,))
    return ((id_, os.fsdecode(stored)) for id_, stored in rows)


def _is_named(asked: str, path: str) -> bool | None:
    """Say whether a text is literally the name of a path that has its words; None if elsewhere."""
    *folders, name = asked.split("/")
    *there, own = path.split("/")
    above, lying = [plain_words(each) for each in folders], [plain_words(each) for each in there]
    # An absolute path begins above the library.
    deep = min(len(above), len(lying)) if asked.startswith("/") else len(above)
    if above[len(above) - deep :] != lying[max(0, len(lying) - deep) :]:
        return None
    return name in (own, stem_of(own))


_BY_KEY = (
    "SELECT file.id, file.path FROM file_word JOIN file ON file.id = file_word.rowid "
    "WHERE file_word MATCH ?"
)
_COUNT = "(SELECT count(*) FROM (SELECT 1 FROM {0} WHERE {0} MATCH term.value LIMIT :n))"
_COUNTS = f"""
SELECT {_COUNT.format("caption_word")}, {_COUNT.format("file_word")}
FROM json_each(:terms) AS term
"""
# `CROSS JOIN` keeps the order: one term after the other, each with its rows.
_SCORES = {
    "caption_word": """
    SELECT term.key, found.rowid, -found.rank, caption.file_id
    FROM json_each(?) AS term CROSS JOIN caption_word AS found
    CROSS JOIN caption ON caption.id = found.rowid
    WHERE caption_word MATCH term.value
    """,
    "file_word": f"""
    SELECT term.key, found.rowid, -found.rank, found.rowid
    FROM json_each(?) AS term CROSS JOIN file_word AS found
    WHERE file_word MATCH term.value AND found.rank MATCH '{COLUMN_WEIGHTS}'
    """,
}
_ROW = np.dtype([("term", "<i4"), ("id", "<i8"), ("score", "<f8"), ("file", "<i8")])
