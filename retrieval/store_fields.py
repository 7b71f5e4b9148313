"""What a store keeps of a picture beside its vector, and filters as expressions over that.

What is missing is a value that no picture has, so that an expression can ask for it: SQL's NULL.
Filters are told to a store where it can say exactly what the catalog would: dates, numbers, and
texts that are equal. What it cannot say (LIKE, NEAR, captions, which of two texts comes first) is
for the catalog to answer.

No text of a user's becomes syntax: it is a quoted value, or the catalog is asked.
"""

from __future__ import annotations

import hashlib
import math
import os
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from mmsearch.indexes.milvus_collection import Field
from mmsearch.retrieval.catalog.functions import EPOCH, epoch_ns, in_utc
from mmsearch.retrieval.filters.dates import Date
from mmsearch.retrieval.filters.texts import part
from mmsearch.retrieval.filters.tree import (
    And,
    Between,
    Column,
    Compare,
    Filter,
    IsNull,
    Kind,
    Not,
    OneOf,
    Operator,
    Or,
    Value,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmsearch.retrieval.catalog.stored import Described

__all__ = ["FIELDS", "expression", "values"]

FIELDS = (
    *(
        Field(column.value, "integer")
        for column in (
            Column.SIZE,
            Column.MODIFIED,
            Column.TAKEN,
            Column.INDEXED,
            Column.WIDTH,
            Column.HEIGHT,
            Column.PIXELS,
            Column.ORIENTATION,
        )
    ),
    *(Field(column.value, "number") for column in (Column.LATITUDE, Column.LONGITUDE)),
    *(
        Field(column.value, "text")
        for column in (Column.NAME, Column.FOLDER, Column.EXT, Column.FORMAT, Column.CAMERA)
    ),
)
"""Dates are microseconds since 1970, by the clock they were told by; `modified` is nanoseconds."""

NO_DATE, NO_DEGREES, NO_TEXT = -(2**62), 1e300, ""
NEVER, ALWAYS = "id < 0", "id >= 0"
LARGEST = 2**63 - 1
LONGEST = 60_000
"""Bytes of a text that is kept as it is."""
BYTES = "\N{REPLACEMENT CHARACTER}"
"""What a text begins with that cannot be kept as it is."""

_TYPES = {field.name: field.type for field in FIELDS}
_MISSING: dict[Column, int | float | str] = {
    Column.TAKEN: NO_DATE,
    Column.LATITUDE: NO_DEGREES,
    Column.LONGITUDE: NO_DEGREES,
    Column.CAMERA: NO_TEXT,
}
_NEGATED = {
    Operator.EQUAL: Operator.UNEQUAL,
    Operator.UNEQUAL: Operator.EQUAL,
    Operator.BELOW: Operator.AT_LEAST,
    Operator.AT_LEAST: Operator.BELOW,
    Operator.ABOVE: Operator.AT_MOST,
    Operator.AT_MOST: Operator.ABOVE,
}


def values(pictures: Sequence[Described]) -> dict[str, list[Any]]:
    """Return what is kept of pictures, a list for each of `FIELDS`."""
    columns: dict[str, list[Any]] = {field.name: [] for field in FIELDS}
    for picture in pictures:
        told = {
            Column.SIZE: picture.size,
            Column.MODIFIED: picture.mtime_ns,
            Column.TAKEN: NO_DATE if picture.taken_at is None else _micros(picture.taken_at),
            Column.INDEXED: _micros(picture.indexed_at),
            Column.WIDTH: picture.width,
            Column.HEIGHT: picture.height,
            Column.PIXELS: picture.width * picture.height,
            Column.ORIENTATION: picture.orientation,
            Column.LATITUDE: NO_DEGREES if picture.latitude is None else float(picture.latitude),
            Column.LONGITUDE: NO_DEGREES if picture.longitude is None else float(picture.longitude),
            Column.NAME: _kept(part(picture.path, "name")),
            Column.FOLDER: _kept(part(picture.path, "folder")),
            Column.EXT: _kept(part(picture.path, "ext")),
            Column.FORMAT: _kept(picture.format),
            Column.CAMERA: NO_TEXT if picture.camera is None else _kept(picture.camera),
        }
        for column, value in told.items():
            columns[column.value].append(value)
    return columns


def expression(filter_: Filter) -> str | None:
    """Return a filter as an expression over `FIELDS`; None where only the catalog can answer it."""
    try:
        return _said(filter_, negated=False)
    except _UnsaidError:
        return None


class _UnsaidError(Exception):
    """A store cannot say this."""


def _said(filter_: Filter, *, negated: bool) -> str:
    """Return what is true where the filter is true, or, negated, where it is false.

    Where it is unknown neither is, so that a negation never needs one of Milvus's.
    """
    match filter_:
        case And(items) | Or(items):
            joint = " and " if isinstance(filter_, And) != negated else " or "
            return "(" + joint.join(_said(item, negated=negated) for item in items) + ")"
        case Not(item):
            return _said(item, negated=not negated)
        case Between(column, low, high):
            both = And(
                (Compare(column, Operator.AT_LEAST, low), Compare(column, Operator.AT_MOST, high))
            )
            return _said(both, negated=negated)
        case OneOf(column, values_):
            equal = tuple(Compare(column, Operator.EQUAL, value) for value in values_)
            return _said(Or(equal) if len(equal) > 1 else equal[0], negated=negated)
        case Compare(column, operator, value):
            operator = _NEGATED[operator] if negated else operator
            if isinstance(value, Column):
                return _columns(column, operator, value)
            return _compared(column, operator, value)
        case IsNull(column) if column is not Column.CAPTION:
            if column not in _MISSING:
                return ALWAYS if negated else NEVER
            return f"{column} {'!=' if negated else '=='} {_literal(_MISSING[column])}"
    raise _UnsaidError


def _known(column: Column, said: str) -> str:
    """Return what is true where the picture says, and as it says."""
    if column not in _MISSING:
        return said
    return f"({column} != {_literal(_MISSING[column])} and {said})"


def _columns(column: Column, operator: Operator, other: Column) -> str:
    same = column.value in _TYPES and _TYPES[column.value] == _TYPES.get(other.value)
    if not same or column.kind is not Kind.NUMBER or other.kind is not Kind.NUMBER:
        # Dates are by different clocks; texts have an order of their own.
        raise _UnsaidError
    return _known(column, _known(other, f"{column} {_symbol(operator)} {other}"))


def _compared(column: Column, operator: Operator, value: Value) -> str:
    if isinstance(value, Date):
        return _known(column, _date(column, operator, value))
    if isinstance(value, str):
        return _text(column, operator, value)
    if column.value not in _TYPES:
        raise _UnsaidError
    if _TYPES[column.value] == "integer":
        return _known(column, _integer(column, operator, value))
    number = _as_float(value)
    if number is None:
        raise _UnsaidError
    return _known(column, f"{column} {_symbol(operator)} {number!r}")


def _as_float(value: float) -> float | None:
    """Return the same number as a float; None where there is none."""
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and number == value else None


def _date(column: Column, operator: Operator, date: Date) -> str:
    start, end = _moment(column, date.start), _moment(column, date.end)
    match operator:
        case Operator.EQUAL:
            return f"({column} >= {start} and {column} < {end})"
        case Operator.UNEQUAL:
            return f"({column} < {start} or {column} >= {end})"
        case Operator.BELOW:
            return f"{column} < {start}"
        case Operator.AT_MOST:
            return f"{column} < {end}"
        case Operator.ABOVE:
            return f"{column} >= {end}"
    return f"{column} >= {start}"


def _moment(column: Column, moment: datetime) -> int:
    if column is Column.MODIFIED:
        return epoch_ns(moment)
    return _micros(moment if column is Column.TAKEN else in_utc(moment))


def _micros(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def _integer(column: Column, operator: Operator, value: float) -> str:
    """Compare whole numbers with any number, as a comparison of whole numbers."""
    if math.isnan(value):
        raise _UnsaidError
    if math.isinf(value) or abs(value) > LARGEST:
        above = value > 0
        true = operator is Operator.UNEQUAL or (
            operator in {Operator.BELOW, Operator.AT_MOST}
            if above
            else operator in {Operator.ABOVE, Operator.AT_LEAST}
        )
        return ALWAYS if true else NEVER
    whole = math.floor(value)
    if whole == value:
        return f"{column} {_symbol(operator)} {whole}"
    match operator:
        case Operator.EQUAL:
            return NEVER
        case Operator.UNEQUAL:
            return ALWAYS
        case Operator.BELOW | Operator.AT_MOST:
            return f"{column} <= {whole}"
    return f"{column} > {whole}"


def _text(column: Column, operator: Operator, value: str) -> str:
    equality = operator in {Operator.EQUAL, Operator.UNEQUAL}
    if column is Column.PATH and equality:
        folder, slash, name = value.rpartition("/")
        if slash and not folder:  # a path in a library does not begin with one
            return NEVER if operator is Operator.EQUAL else ALWAYS
        joint = " and " if operator is Operator.EQUAL else " or "
        parts = ((Column.FOLDER, folder), (Column.NAME, name))
        return "(" + joint.join(_text(each, operator, text) for each, text in parts) + ")"
    if column.value not in _TYPES or not equality:
        raise _UnsaidError
    return _known(column, f"{column} {_symbol(operator)} {_literal(_kept(value))}")


def _kept(text: str) -> str:
    """Return a text as it is kept: never empty, and what is no UTF-8 as its bytes in hexadecimal.

    Different texts stay different.
    """
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError:
        data = os.fsencode(text)
        plain = False
    else:
        plain = "\0" not in text and not text.startswith(BYTES)
    if len(data) > LONGEST:
        return f"={BYTES}#{hashlib.sha256(data).hexdigest()}"
    return f"={text}" if plain else f"={BYTES}{data.hex()}"


def _literal(value: float | str) -> str:
    if not isinstance(value, str):
        return repr(value)
    if not value.isprintable():
        # Whatever a server makes of such signs, it is not asked.
        raise _UnsaidError
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _symbol(operator: Operator) -> str:
    return "==" if operator is Operator.EQUAL else operator.value
