"""Filters within a question: `sunset after:2023-06 camera:fuji -ext:png`.

    after: before: on:           a date: from its start on, before its start, within it
    camera: name:                contains the text; with a `*` (any text), all of it is like this
    ext:                         one or several with commas
    folder:                      lies in that folder or below it, wherever that folder lies
    near:                        latitude,longitude[,distance]
    width: height: pixels: size: a number, or >, >=, <, <= or = and a number
    is:                          portrait, landscape or square
    has:                         caption, gps or date

A key stands where a word begins, in upper or lower case, and its value follows without a space, in
double quotes where it holds one. Text in double quotes is never looked into, and what has no known
key stays text. All must hold, but of several `ext`, `camera`, `name`, `folder`, `near`, `on` or
`is`, of which a picture can have one only, any. A `-` before the key keeps the pictures of which it
is not known to be true: `-camera:fuji` keeps those that name no camera.

`folder:2023/` and `folder:2023` find `2023/a.jpg` and `trips/2023/b/c.jpg`, not `2023b/a.jpg` or
`2023.jpg`: the path must have these folders one after the other, whole, in upper or lower case.
`folder:/2023` finds what begins with them. A `*` stands for any text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from mmsearch.errors import QueryError
from mmsearch.retrieval.filters.dates import DATE_FORMS, Date
from mmsearch.retrieval.filters.pointing import pointed
from mmsearch.retrieval.filters.texts import ESCAPE, ascii_lower, escaped
from mmsearch.retrieval.filters.tokens import Token, as_number, check_unicode, degrees, metres
from mmsearch.retrieval.filters.tree import (
    Column,
    Compare,
    Filter,
    IsNull,
    Like,
    Near,
    Not,
    OneOf,
    Operator,
)
from mmsearch.retrieval.filters.where import MAX_CHARACTERS, MAX_PARTS, NEAR_METRES

__all__ = ["split_inline"]

_PHRASE = re.compile(r'"[^"]*"')
_KEY = re.compile(r"(-?)([A-Za-z]+):")
_RUN = re.compile(r'[^\s"()]+|.')
_VALUE = re.compile(r'"([^"]*)(")?|([^\s"]*)')
_COMPARED = re.compile(r"(>=|<=|>|<|=)?(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Word:
    """What stays, and where it stands."""

    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Given:
    """A key and its value, and where they stand in the whole text."""

    whole: str
    key: str
    negated: bool
    value: str
    start: int
    value_start: int
    end: int

    def error(self, message: str, hint: str) -> QueryError:
        """Point at the value, or at the key where there is none."""
        start = self.value_start if self.value else self.start
        quoted = f'To look for the word itself, put it in quotes: "{self.key}:".'
        return pointed(self.whole, start, self.end, message, f"{hint} {quoted}")

    def misplaced(self, where: str) -> QueryError:
        """Say that it holds for the whole question."""
        hint = "It holds for the whole question: put it at the end, or use --where."
        return pointed(self.whole, self.start, self.end, f"A filter cannot stand {where}.", hint)


def split_inline(text: str) -> tuple[str, Filter | None]:
    """Return the question without its filters, and what these ask for; None where there are none.

    A text without filters comes back as it is. An AND that joined a filter to the rest goes too.

    Raises:
        QueryError: a known key has a value that it cannot have, or stands where it would hold for
            a part of the question only: in parentheses, or beside OR or NOT.
    """
    pieces = _pieces(text)
    given = [piece for piece in pieces if isinstance(piece, _Given)]
    if not given:
        return text, None
    if len(given) > MAX_PARTS or len(text) > MAX_CHARACTERS:
        raise QueryError(
            f"A question may have {MAX_CHARACTERS:,} characters and {MAX_PARTS:,} filters."
        )
    _check_places(pieces)
    return _rest(text, pieces), _combined(given)


def _pieces(text: str) -> list[_Word | _Given]:
    pieces: list[_Word | _Given] = []
    place = 0
    while place < len(text):
        if text[place].isspace():
            place += 1
            continue
        found: _Word | _Given | None = None
        if place == 0 or text[place - 1].isspace() or text[place - 1] == "(":
            found = _given(text, place)
        if found is None:
            word = _PHRASE.match(text, place) or _RUN.match(text, place)
            assert word is not None
            found = _Word(word.group(), place, word.end())
        pieces.append(found)
        place = found.end
    return pieces


def _given(text: str, start: int) -> _Given | None:
    key = _KEY.match(text, start)
    if key is None or key.group(2).lower() not in _READERS:
        return None
    found = _VALUE.match(text, key.end())
    assert found is not None
    quoted, closed, plain = found.groups()
    value, end = (plain, found.end()) if quoted is None else (quoted, found.end())
    if quoted is None:
        # A parenthesis that closes one before the key is none of the value's.
        while value.endswith(")") and value.count(")") > value.count("("):
            value, end = value[:-1], end - 1
    elif closed is None:
        raise pointed(text, key.end(), key.end() + 1, "This quote is not closed.", 'Close it: ".')
    value_start = key.end() + (quoted is not None)
    sign, name = key.groups()
    given = _Given(text, name.lower(), sign == "-", value, start, value_start, end)
    check_unicode(text, value, start, end)
    if not value.strip():
        raise given.error(f"{given.key}: needs a value.", "It follows without a space.")
    return given


def _check_places(pieces: list[_Word | _Given]) -> None:
    words = [piece.text if isinstance(piece, _Word) else "" for piece in pieces]
    opened: list[int] = []
    enclosed = [False] * len(words)
    for i, word in enumerate(words):
        if word == "(":
            opened.append(i)
        elif word == ")" and opened:
            start = opened.pop()
            enclosed[start:i] = [True] * (i - start)
    for i, piece in enumerate(pieces):
        if isinstance(piece, _Given):
            if enclosed[i]:
                raise piece.misplaced("in parentheses")
            if i > 0 and words[i - 1] in ("OR", "NOT"):
                raise piece.misplaced(f"after {words[i - 1]}")
            if words[i + 1 : i + 2] == ["OR"]:
                raise piece.misplaced("before OR")


def _rest(text: str, pieces: list[_Word | _Given]) -> str:
    kept: list[int] = []
    skipped = -1
    for i, piece in enumerate(pieces):
        if isinstance(piece, _Word):
            if i != skipped:
                kept.append(i)
        elif kept and _is_and(pieces[kept[-1]]):
            kept.pop()
        elif not kept and i + 1 < len(pieces) and _is_and(pieces[i + 1]):
            skipped = i + 1
    rest = ""
    for before, i in zip([None, *kept], kept, strict=False):
        if before is not None:
            between = text[pieces[before].end : pieces[i].start]
            rest += between if before == i - 1 else " "
        rest += text[pieces[i].start : pieces[i].end]
    return rest


def _is_and(piece: _Word | _Given) -> bool:
    return isinstance(piece, _Word) and piece.text == "AND"


def _combined(given: list[_Given]) -> Filter | None:
    every: list[Filter] = []
    alternatives: dict[str, list[Filter]] = {}
    for each in given:
        found = _READERS[each.key](each)
        if each.negated:
            every.append(_not_known(found, each.key))
        elif each.key in _ANY_OF:
            alternatives.setdefault(each.key, []).append(found)
        else:
            every.append(found)
    return Filter.all_of([*map(Filter.any_of, alternatives.values()), *every])


def _not_known(filter_: Filter, key: str) -> Filter:
    """Return what holds where the filter is false or unknown."""
    missing = () if key == "has" else sorted(filter_.columns() & _MAY_LACK)
    negated = filter_.item if isinstance(filter_, Not) else Not(filter_)
    found = Filter.any_of([*map(IsNull, missing), negated])
    assert found is not None
    return found


def _date(given: _Given) -> Filter:
    try:
        date = Date.parse(given.value)
    except ValueError as error:
        raise given.error(f"This is no date: {error}.", f"A date is {DATE_FORMS}.") from None
    operators = {"after": Operator.AT_LEAST, "before": Operator.BELOW, "on": Operator.EQUAL}
    return Compare(Column.TAKEN, operators[given.key], date)


def _like(column: Column, pattern: str) -> Like:
    return Like(column, pattern, ESCAPE if ESCAPE in pattern else None)


def _wildcards(text: str) -> str:
    return escaped(text).replace("*", "%")


def _text(given: _Given) -> Filter:
    pattern = _wildcards(given.value)
    return _like(Column(given.key), pattern if "*" in given.value else f"%{pattern}%")


def _ext(given: _Given) -> Filter:
    names = [ascii_lower(each.strip()).lstrip(".") for each in given.value.split(",")]
    if not all(names):
        raise given.error("An extension is missing.", "For example: ext:heic,jpg.")
    if len(names) == 1:
        return Compare(Column.EXT, Operator.EQUAL, names[0])
    return OneOf(Column.EXT, tuple(names))


def _folder(given: _Given) -> Filter:
    path = _wildcards(given.value.strip("/"))
    if not path:
        raise given.error("This names no folder.", "For example: folder:2023/ or folder:/2023.")
    from_top = _like(Column.PATH, f"{path}/%")
    if given.value.startswith("/"):
        return from_top
    found = Filter.any_of([from_top, _like(Column.PATH, f"%/{path}/%")])
    assert found is not None
    return found


def _near(given: _Given) -> Filter:
    tokens = []
    start = given.value_start
    for each in given.value.split(","):
        tokens.append(Token("number", each.strip(), start, start + len(each)))
        start += len(each) + 1
    if len(tokens) not in (2, 3):
        raise given.error(
            "A place is a latitude, a longitude and a distance.",
            "For example: near:48.85,2.35,10km (without a distance, 10 km).",
        )
    distance = metres(given.whole, tokens[2]) if len(tokens) == 3 else NEAR_METRES
    return Near(degrees(given.whole, tokens[0], 90), degrees(given.whole, tokens[1], 180), distance)


def _number(given: _Given) -> Filter:
    found = _COMPARED.fullmatch(given.value)
    assert found is not None
    column = Column(given.key)
    token = Token("number", found.group(2).strip(), given.value_start + found.start(2), given.end)
    operator = Operator(found.group(1) or "=")
    return Compare(column, operator, as_number(given.whole, token, column))


def _is(given: _Given) -> Filter:
    shapes = {"portrait": Operator.BELOW, "landscape": Operator.ABOVE, "square": Operator.EQUAL}
    operator = shapes.get(given.value.lower())
    if operator is None:
        raise given.error("There is no such shape.", f"Shapes: {', '.join(shapes)}.")
    return Compare(Column.WIDTH, operator, Column.HEIGHT)


def _has(given: _Given) -> Filter:
    known = {
        "caption": (Column.CAPTION,),
        "gps": (Column.LATITUDE, Column.LONGITUDE),
        "date": (Column.TAKEN,),
    }
    columns = known.get(given.value.lower())
    if columns is None:
        raise given.error("There is no such thing to have.", f"Things: {', '.join(known)}.")
    found = Filter.all_of(Not(IsNull(column)) for column in columns)
    assert found is not None
    return found


_READERS: dict[str, Callable[[_Given], Filter]] = {
    **dict.fromkeys(("after", "before", "on"), _date),
    **dict.fromkeys(("camera", "name"), _text),
    **dict.fromkeys(("width", "height", "pixels", "size"), _number),
    "ext": _ext,
    "folder": _folder,
    "near": _near,
    "is": _is,
    "has": _has,
}
_ANY_OF = frozenset({"ext", "camera", "name", "folder", "near", "on", "is"})
_MAY_LACK = frozenset({Column.TAKEN, Column.CAMERA, Column.LATITUDE, Column.LONGITUDE})
