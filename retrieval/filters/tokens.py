"""What a filter's text is made of: words, numbers with units, texts in quotes and signs."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, TypeAlias

from mmsearch.retrieval.filters.pointing import pointed
from mmsearch.retrieval.filters.tree import Column

__all__ = ["Token", "as_number", "check_unicode", "degrees", "metres", "tokens_of"]

TokenKind: TypeAlias = Literal["word", "number", "date", "text", "operator", "sign", "end"]

RESERVED = frozenset({"AND", "OR", "NOT", "IN", "IS", "LIKE", "BETWEEN", "ESCAPE"})

BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
    "TIB": 1 << 40,
}
UNITS = {Column.SIZE: BYTES, Column.PIXELS: {"MP": 10**6}}
METRES = {"M": 1, "KM": 1_000}

_NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_NUMBER_AND_UNIT = re.compile(f"({_NUMBER})([A-Za-z]*)")
_TOKEN = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<text>'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\")"
    r"|(?P<date>[0-9]{4}-[0-9]{2}(?:-[0-9]{2})?)"
    rf"|(?P<number>{_NUMBER}\w*)"
    r"|(?P<word>[^\W\d]\w*)"
    r"|(?P<operator><=|>=|<>|!=|==|=|<|>)"
    r"|(?P<sign>[(),])"
)
LARGEST = 2**63 - 1
"""SQLite's integers end here."""


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of the text.

    Attributes:
        kind: what it is.
        text: itself; of a text in quotes, what they hold.
        start: index of its first character.
        end: index after its last character.
    """

    kind: TokenKind
    text: str
    start: int
    end: int

    @property
    def word(self) -> str:
        """A word in upper case, or a sign; empty for all else."""
        return self.text.upper() if self.kind in ("word", "sign") else ""

    @property
    def reserved(self) -> bool:
        """Whether it cannot be a column."""
        return self.word in RESERVED


def tokens_of(text: str) -> list[Token]:
    """Return the tokens, the last of which is the end.

    Raises:
        QueryError: a quote is not closed, or a character belongs to nothing.
    """
    tokens = []
    place = 0
    while place < len(text):
        found = _TOKEN.match(text, place)
        if found is None:
            if text[place] in "'\"":
                raise pointed(
                    text,
                    place,
                    place + 1,
                    "This quote is not closed.",
                    f"Close it with {text[place]}; double one that belongs to the text.",
                )
            raise pointed(
                text,
                place,
                place + 1,
                "This character means nothing here.",
                "Texts stand in quotes: 'fuji'.",
            )
        kind, place = found.lastgroup, found.end()
        if kind == "text":
            quote = found.group()[0]
            content = found.group()[1:-1].replace(quote * 2, quote)
            check_unicode(text, content, found.start(), place)
            tokens.append(Token("text", content, found.start(), place))
        elif kind != "space":
            tokens.append(Token(kind, found.group(), found.start(), place))  # type: ignore[arg-type]
    tokens.append(Token("end", "", len(text), len(text)))
    return tokens


def check_unicode(text: str, content: str, start: int, end: int) -> None:
    """Let through what a file's name can be: valid Unicode, or bytes in the manner of PEP 383."""
    try:
        content.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise pointed(text, start, end, "This text holds half a character (a surrogate).") from None


def as_number(text: str, token: Token, column: Column) -> int | float:
    """Return what a number token means for a column.

    Raises:
        QueryError: it is too large, or has a unit that is not the column's.
    """
    return _number(text, token, UNITS.get(column, {}), f"{column} is a number without a unit")


def metres(text: str, token: Token) -> float:
    """Return a distance in metres; without a unit, kilometres are meant.

    Raises:
        QueryError: it is none, or not above 0.
    """
    distance = float(_number(text, token, {"": 1_000, **METRES}, "A distance is in km or m"))
    if distance <= 0:
        raise pointed(text, token.start, token.end, "A distance must be above 0.")
    return distance


def degrees(text: str, token: Token, most: float) -> float:
    """Return a latitude or longitude of at most `most` degrees either way.

    Raises:
        QueryError: it is beyond that.
    """
    value = float(_number(text, token, {}, "Degrees are a number without a unit"))
    if abs(value) > most:
        what = "latitude" if most == 90 else "longitude"
        raise pointed(
            text,
            token.start,
            token.end,
            f"A {what} is from -{most:g} to {most:g} degrees.",
            "The latitude comes first: 48.85, 2.35 is Paris.",
        )
    return value


def _number(text: str, token: Token, units: dict[str, int], rule: str) -> int | float:
    found = _NUMBER_AND_UNIT.fullmatch(token.text)
    unit = found.group(2).upper() if found else None
    factor = units.get(unit, 1 if unit == "" else None) if unit is not None else None
    if found is None or factor is None:
        known = ", ".join(sorted((each for each in units if each), key=units.__getitem__))
        rule = f"Known units: {known}" if known else rule
        raise pointed(text, token.start, token.end, "This number cannot be read.", f"{rule}.")
    written = found.group(1)
    # A float bounds the exponent before it is made exact: 1e999999999 has a billion digits.
    if not math.isfinite(float(written) * factor):
        raise pointed(text, token.start, token.end, "This number is too large.")
    if factor == 1 and not re.fullmatch(r"[+-]?[0-9]+", written):
        return float(written)
    exact = Decimal(written) * factor
    whole = int(exact)
    return whole if whole == exact and abs(whole) <= LARGEST else float(exact)
