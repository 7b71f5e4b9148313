"""Filters as trees of frozen values, and the columns they speak of.

Each filter is true, false or unknown of a picture, as in SQL: a comparison with what is missing is
unknown, and so is its negation. What is not true does not match.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import TypeAlias

from mmsearch.retrieval.filters.dates import Date

__all__ = [
    "And",
    "Between",
    "Column",
    "Compare",
    "Filter",
    "IsNull",
    "Kind",
    "Like",
    "Near",
    "Not",
    "OneOf",
    "Operator",
    "Or",
    "Value",
]


class Kind(Enum):
    """What a column holds; only the same kinds can be compared."""

    TEXT = "a text"
    NUMBER = "a number"
    DATE = "a date"


class Column(StrEnum):
    """What is known of a picture.

    `caption` stands for all captions of a picture: a comparison is true where it is for any of
    them, unknown where there are none. `caption != 'x'` is `NOT (caption = 'x')`: none is 'x'.
    Where captions are looked for, it is the caption's own text.
    """

    PATH = "path"
    NAME = "name"
    FOLDER = "folder"
    EXT = "ext"
    FORMAT = "format"
    SIZE = "size"
    MODIFIED = "modified"
    TAKEN = "taken"
    WIDTH = "width"
    HEIGHT = "height"
    PIXELS = "pixels"
    ORIENTATION = "orientation"
    CAMERA = "camera"
    LATITUDE = "latitude"
    LONGITUDE = "longitude"
    INDEXED = "indexed"
    CAPTION = "caption"

    @property
    def kind(self) -> Kind:
        """What it holds."""
        if self in _NUMBERS:
            return Kind.NUMBER
        return Kind.DATE if self in _DATES else Kind.TEXT


_NUMBERS = {
    Column.SIZE,
    Column.WIDTH,
    Column.HEIGHT,
    Column.PIXELS,
    Column.ORIENTATION,
    Column.LATITUDE,
    Column.LONGITUDE,
}
_DATES = {Column.MODIFIED, Column.TAKEN, Column.INDEXED}


class Operator(StrEnum):
    """Comparisons."""

    EQUAL = "="
    UNEQUAL = "!="
    BELOW = "<"
    AT_MOST = "<="
    ABOVE = ">"
    AT_LEAST = ">="

    @property
    def flipped(self) -> Operator:
        """The one that says the same with its sides exchanged."""
        return Operator(self.value.translate({ord("<"): ">", ord(">"): "<"}))


Value: TypeAlias = str | int | float | Date
"""Of a kind with the column that it is compared with."""


@dataclass(frozen=True, slots=True)
class Filter:
    """What pictures must be like; `str` gives it as `parse_where` reads it."""

    @staticmethod
    def all_of(filters: Iterable[Filter | None]) -> Filter | None:
        """Return what holds where all of these hold; None, which holds everywhere, for none."""
        return _joined(And, filters)

    @staticmethod
    def any_of(filters: Iterable[Filter | None]) -> Filter | None:
        """Return what holds where at least one of these holds; None for none."""
        return _joined(Or, filters)

    def columns(self) -> frozenset[Column]:
        """Return the columns it speaks of."""
        return frozenset(_columns(self))

    def __str__(self) -> str:
        return _written(self)


@dataclass(frozen=True, slots=True)
class Compare(Filter):
    """`column operator value`; with a date, the whole of its span is meant."""

    column: Column
    operator: Operator
    value: Value | Column


@dataclass(frozen=True, slots=True)
class Between(Filter):
    """`column >= low AND column <= high`."""

    column: Column
    low: Value | Column
    high: Value | Column


@dataclass(frozen=True, slots=True)
class OneOf(Filter):
    """`column IN (values)`; there is at least one."""

    column: Column
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Like(Filter):
    """`column LIKE pattern ESCAPE escape`, see `texts.Pattern`."""

    column: Column
    pattern: str
    escape: str | None = None


@dataclass(frozen=True, slots=True)
class IsNull(Filter):
    """The picture does not say."""

    column: Column


@dataclass(frozen=True, slots=True)
class Near(Filter):
    """No further than so many metres from a place, in degrees; unknown without coordinates."""

    latitude: float
    longitude: float
    metres: float


@dataclass(frozen=True, slots=True)
class Not(Filter):
    """The negation."""

    item: Filter


@dataclass(frozen=True, slots=True)
class And(Filter):
    """All of at least two, none of which is an `And`."""

    items: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Or(Filter):
    """At least one of at least two, none of which is an `Or`."""

    items: tuple[Filter, ...]


def _joined(kind: type[And] | type[Or], filters: Iterable[Filter | None]) -> Filter | None:
    items: list[Filter] = []
    for each in filters:
        if isinstance(each, kind):
            items += each.items
        elif each is not None:
            items.append(each)
    return kind(tuple(items)) if len(items) > 1 else items[0] if items else None


def _columns(filter_: Filter) -> Iterator[Column]:
    match filter_:
        case And(items) | Or(items):
            for item in items:
                yield from _columns(item)
        case Not(item):
            yield from _columns(item)
        case Near():
            yield from (Column.LATITUDE, Column.LONGITUDE)
        case Compare(column, _, value):
            yield from (each for each in (column, value) if isinstance(each, Column))
        case Between(column, low, high):
            yield from (each for each in (column, low, high) if isinstance(each, Column))
        case OneOf(column) | Like(column) | IsNull(column):
            yield column


def _written(filter_: Filter) -> str:
    match filter_:
        case Not(Between() | OneOf() | Like() | IsNull() as item):
            return _condition(item, "NOT ")
        case Not(And() | Or() as item):
            return f"NOT ({item})"
        case Not(item):
            return f"NOT {item}"
        case And(items):
            return " AND ".join(
                f"({each})" if isinstance(each, Or) else str(each) for each in items
            )
        case Or(items):
            return " OR ".join(map(str, items))
    return _condition(filter_)


def _condition(filter_: Filter, no: str = "") -> str:
    """Return the text; `no` is `NOT ` within the negation of what has a word for it."""
    match filter_:
        case Compare(column, operator, value):
            return f"{column} {operator} {_value(value)}"
        case Between(column, low, high):
            return f"{column} {no}BETWEEN {_value(low)} AND {_value(high)}"
        case OneOf(column, values):
            return f"{column} {no}IN ({', '.join(map(_value, values))})"
        case Like(column, pattern, escape):
            end = "" if escape is None else f" ESCAPE {_value(escape)}"
            return f"{column} {no}LIKE {_value(pattern)}{end}"
        case IsNull(column):
            return f"{column} IS {no}NULL"
        case Near(latitude, longitude, metres):
            return f"NEAR({_value(latitude)}, {_value(longitude)}, {_value(metres)}m)"
    raise TypeError(f"{filter_!r} is no filter")


def _value(value: Value | Column) -> str:
    match value:
        case Column():
            return value.value
        case Date(text):
            return f"'{text}'"
        case str():
            doubled = value.replace("'", "''")
            return f"'{doubled}'"
    return repr(value)
