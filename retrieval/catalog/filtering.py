"""Filters as SQL: trees of `retrieval.filters` in, clauses with bound parameters out.

No text of the user's becomes SQL: the clauses are made of the tables' own columns, and every value
is a parameter.

- `taken` is by the camera's clock; `modified` and `indexed` are moments, compared by the clock of
  this machine.
- LIKE sets aside upper and lower case, of all of Unicode, and how accents are composed. SQLite's
  own LIKE, which only knows that of ASCII but is much faster, answers for texts that are ASCII.
- Other comparisons of texts are exact and by code point. A path that is no valid UTF-8 comes after
  all others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from sqlalchemy import (
    DateTime,
    LargeBinary,
    and_,
    case,
    cast,
    false,
    func,
    literal,
    not_,
    null,
    or_,
    select,
    true,
)
from sqlalchemy.sql.elements import Case, UnaryExpression
from sqlalchemy.sql.operators import custom_op

from mmsearch.retrieval.catalog import tables
from mmsearch.retrieval.catalog.connection import is_postgresql
from mmsearch.retrieval.catalog.functions import epoch_ns, in_utc
from mmsearch.retrieval.filters.dates import Date
from mmsearch.retrieval.filters.texts import ESCAPE, Pattern, escaped
from mmsearch.retrieval.filters.tree import (
    And,
    Between,
    Column,
    Compare,
    Filter,
    IsNull,
    Kind,
    Like,
    Near,
    Not,
    OneOf,
    Operator,
    Or,
    Value,
)
from mmsearch.retrieval.schema import SortKey, Target

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sqlalchemy import ColumnElement, Connection, Select

    Clause: TypeAlias = ColumnElement[Any]

__all__ = ["Clauses", "clause", "clauses_of", "matching"]

EARTH_RADIUS_M = 6_371_008.8
"""The mean radius (IUGG): distances are off by at most half a percent."""
MARGIN_DEGREES = 1e-6
"""By which the box around a place is too large, so that rounding loses nothing: 11 cm."""

_FILE, _CAPTION = tables.file.c, tables.caption.c


def scanned(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return a column that SQLite looks for in no index.

    Its planner takes seconds over hundreds of alternatives with one; a scan of 100,000 rows takes
    ten milliseconds.
    """
    return UnaryExpression(column, operator=custom_op("+"), type_=column.type)


_PARTS = (Column.NAME, Column.FOLDER, Column.EXT)
"""Columns that are part of the path."""

_PATH, _TAKEN, _TEXT = map(scanned, (_FILE.path, _FILE.taken_at, _CAPTION.text))


def clauses_of(connection: Connection) -> Clauses:
    """Return what says filters as a catalog's own database understands them."""
    if not is_postgresql(connection):
        return _SQLITE
    # What a library in its folder does not need is loaded where it is.
    from mmsearch.retrieval.catalog.filtering_postgresql import PostgresqlClauses

    return PostgresqlClauses()


def matching(connection: Connection, filter_: Filter, target: Target) -> NDArray[np.int64]:
    """Return `int64[n]`, ascending: the pictures, or captions, of which the filter is true."""
    own = clauses_of(connection)
    where = own.clause(filter_, target)
    if target is Target.IMAGES:
        ids = own.files().where(where)
    elif Column.CAPTION in filter_.columns():
        ids = own.captions().where(where)
    else:
        ids = select(_CAPTION.id).where(_CAPTION.file_id.in_(own.files().where(where)))
    # One text of all ids takes a quarter of the time of a row for each.
    found = connection.scalar(select(own.in_one_text(ids.subquery().c.id)))
    return np.sort(np.fromstring(found or "", dtype=np.int64, sep=","))


class Clauses:
    """Filters as SQLite understands them; what another database says otherwise it overrides."""

    def files(self, *, indexed: bool = False) -> Select[tuple[int]]:
        """Return the ids of pictures; if not by an index, in the order in which they are stored."""
        ids = select(_FILE.id)
        return ids if indexed else ids.with_hint(tables.file, "NOT INDEXED", "sqlite")

    def captions(self) -> Select[tuple[int]]:
        """Return the ids of captions, with their pictures beside them."""
        return select(_CAPTION.id).join_from(tables.caption, tables.file)

    def in_one_text(self, ids: ColumnElement[int]) -> ColumnElement[str]:
        """Return all ids with commas between them."""
        return func.group_concat(ids)

    def among(self, id_: ColumnElement[int], ids: NDArray[np.int64]) -> Clause:
        """Return whether an id is one of these, by a statement of one length."""
        given = func.json_each(json.dumps(ids.tolist())).table_valued("value")
        return id_.in_(select(given.c.value))

    def order(self, key: SortKey) -> ColumnElement[Any]:
        """Return what is sorted by."""
        match key:
            case SortKey.DATE:
                # Its index would have every row looked up in the table by itself.
                return _TAKEN
            case SortKey.NAME:
                return func.mm_name_key(_FILE.path)
            case SortKey.PIXELS:
                return _FILE.width * _FILE.height
        return _FILE[key.value]

    def clause(self, filter_: Filter, target: Target, *, negated: bool = False) -> Clause:
        """Return the condition on rows of `file`, for captions joined with `caption`.

        Args:
            filter_: what they must be like.
            target: pictures or captions.
            negated: whether the condition will be negated, which decides what is best said where
                it is unknown: it must not be true in the end.
        """
        match filter_:
            case And(items):
                return and_(*(self.clause(item, target, negated=negated) for item in items))
            case Or(items):
                return or_(*(self.clause(item, target, negated=negated) for item in items))
            case Not(item):
                return not_(self.clause(item, target, negated=not negated))
        if Column.CAPTION in filter_.columns():
            return self._caption(filter_, target, negated)
        return self._condition(filter_)

    def _condition(self, filter_: Filter) -> Clause:
        match filter_:
            case Near():
                return self._near(filter_)
            case IsNull(column):
                return self._expression(column).is_(None)
            case Between(column, low, high):
                return and_(
                    self._compare(column, Operator.AT_LEAST, low),
                    self._compare(column, Operator.AT_MOST, high),
                )
            case Compare(column, operator, value):
                return self._compare(column, operator, value)
            case OneOf(column, values):
                return self._one_of(column, values)
            case Like(column, pattern, escape):
                return self._like(column, Pattern.of(pattern, escape).folded)
        raise TypeError(f"{filter_!r} is no filter")

    def _caption(self, filter_: Filter, target: Target, negated: bool) -> Clause:
        match filter_:
            case IsNull():
                if target is Target.CAPTIONS:
                    return false()
                return _FILE.id.not_in(select(_CAPTION.file_id))
            case Compare(column, Operator.UNEQUAL, value):
                return not_(
                    self._caption(Compare(column, Operator.EQUAL, value), target, not negated)
                )
            case Compare(_, Operator.EQUAL, str(value)):
                fits = self._caption_is([value])
            case OneOf(_, values):
                fits = self._caption_is([str(value) for value in values])
            case Like(_, pattern, escape):
                fits = self._caption_like(Pattern.of(pattern, escape).folded)
            case _:
                raise TypeError(f"{filter_!r} is no filter of captions")
        if target is Target.CAPTIONS:
            return fits
        found = _FILE.id.in_(self._captioned().where(fits))
        # Without captions it is unknown. To ask for that takes longer than all else, and need not
        # be where false comes to the same.
        return or_(found, _FILE.id.not_in(select(_CAPTION.file_id))) if negated else found

    def _captioned(self) -> Select[tuple[int]]:
        return select(_CAPTION.file_id)

    def _caption_is(self, values: Sequence[str]) -> Clause:
        if len(values) == 1:
            return self._text(values[0]) == _TEXT
        return _TEXT.in_([self._text(value) for value in values])

    def _caption_like(self, folded: str) -> Clause:
        return self._like_stored(_TEXT, folded)

    def _compare(self, column: Column, operator: Operator, value: Value | Column) -> Clause:
        if isinstance(value, Column):
            if column.kind is Kind.DATE:
                return _operated(self._local(column), operator, self._local(value))
            return _operated(self._expression(column), operator, self._expression(value))
        if isinstance(value, Date):
            return self._compare_date(column, operator, value)
        if isinstance(value, str):
            if operator is Operator.EQUAL and column in _PARTS:
                return self._is_part(column, value)
            if operator is Operator.UNEQUAL and column in _PARTS:
                return not_(self._is_part(column, value))
            return _operated(self._expression(column), operator, self._text(value))
        return _operated(self._expression(column), operator, self._number(column, value))

    def _compare_date(self, column: Column, operator: Operator, date: Date) -> Clause:
        stored = self._expression(column)
        start, end = self._moment(column, date.start), self._moment(column, date.end)
        match operator:
            case Operator.EQUAL:
                return and_(stored >= start, stored < end)
            case Operator.UNEQUAL:
                return or_(stored < start, stored >= end)
            case Operator.BELOW:
                return stored < start
            case Operator.AT_MOST:
                return stored < end
            case Operator.ABOVE:
                return stored >= end
            case Operator.AT_LEAST:
                return stored >= start

    def _one_of(self, column: Column, values: tuple[Value, ...]) -> Clause:
        if column.kind is Kind.DATE or column is Column.EXT:
            return or_(*(self._compare(column, Operator.EQUAL, value) for value in values))
        bound = [
            self._text(value) if isinstance(value, str) else self._number(column, value)
            for value in values
            if not isinstance(value, Date)
        ]
        return self._expression(column).in_(bound)

    def _expression(self, column: Column) -> Clause:
        match column:
            case Column.NAME | Column.FOLDER | Column.EXT:
                return func.mm_part(_PATH, column.value, type_=tables.FilePath())
            case Column.PIXELS:
                return _FILE.width * _FILE.height
            case Column.MODIFIED:
                return _FILE.mtime_ns
            case Column.TAKEN:
                return _TAKEN
            case Column.PATH:
                return _PATH
            case Column.INDEXED:
                return _FILE.indexed_at
        return _FILE[column.value]

    def _moment(self, column: Column, moment: datetime) -> Clause:
        """Return a time by the clock on the wall as the column stores it."""
        if column is Column.TAKEN:
            return literal(moment, DateTime())
        if column is Column.MODIFIED:
            return literal(epoch_ns(moment))
        return literal(in_utc(moment), DateTime())

    def _local(self, column: Column) -> Clause:
        """Return a column of dates as the text of a local time, to be compared with another."""
        stored = self._expression(column)
        return stored if column is Column.TAKEN else func.mm_local_time(stored, type_=DateTime())

    def _text(self, value: str) -> Clause:
        """Return a text as a parameter; as bytes where it names a file that is no valid UTF-8."""
        return literal(value, tables.FilePath())

    def _number(self, column: Column, value: float) -> Clause:
        return literal(value)

    def _true(self, said: Case[Any]) -> Clause:
        """Return whether what a CASE comes to is true."""
        return said == 1

    def _is_part(self, column: Column, value: str) -> Clause:
        """Return whether a path has this name, folder or extension, told by it where it tells."""
        exactly = func.mm_part(_PATH, column.value, type_=tables.FilePath()) == self._text(value)
        # SQLite counts the bytes of bytes, and the characters of a text up to the first zero.
        if not value or "\0" in value or not _is_valid(value):
            return exactly
        match column:
            case Column.FOLDER:
                head = f"{value}/"
                below = func.substr(_PATH, len(head) + 1)
                native = and_(
                    func.substr(_PATH, 1, len(head)) == self._text(head),
                    func.instr(below, "/") == 0,
                )
            case Column.NAME if "/" not in value:
                tail = f"/{value}"
                native = or_(
                    _operated(_PATH, Operator.EQUAL, self._text(value)),
                    func.substr(_PATH, -len(tail)) == self._text(tail),
                )
            case Column.EXT if value.isascii() and not {"/", "."} & set(value):
                if value != value.lower():
                    return false()
                native = _PATH.like(f"%.{escaped(value)}", escape=ESCAPE)
            case _:
                return exactly
        return case((func.typeof(_PATH) == "text", native), else_=exactly)

    def _like(self, column: Column, folded: str) -> Clause:
        if column not in _PARTS:
            return self._like_stored(self._expression(column), folded)
        exactly = func.mm_like_part(_PATH, self._text(folded), column.value)
        # A cheap look at the whole path tells most of those whose part cannot match.
        if not folded.isascii():
            maybe: Clause = false()
        elif column is Column.FOLDER:
            top = func.instr(_PATH, "/") == 0
            maybe = or_(_PATH.like(f"{folded}/%", escape=ESCAPE), top)
        else:
            maybe = _PATH.like(f"%{folded}", escape=ESCAPE)
        return case((and_(_is_ascii(_PATH), not_(maybe)), 0), else_=exactly) == 1

    def _like_stored(self, stored: Clause, folded: str) -> Clause:
        native = stored.like(folded, escape=ESCAPE) if folded.isascii() else false()
        return (
            case(
                (stored.is_(None), null()),
                (_is_ascii(stored), native),
                else_=func.mm_like(stored, self._text(folded)),
            )
            == 1
        )

    def _near(self, place: Near) -> Clause:
        """Return whether the great circle is short enough, by the haversine formula.

        hav(d / R) = hav(φ₂ - φ₁) + cos φ₁ cos φ₂ hav(λ₂ - λ₁) with hav x = sin²(x / 2);
        R. W. Sinnott, "Virtues of the haversine", Sky and Telescope 68 (1984), 159.
        """
        latitude, longitude = _FILE.latitude, _FILE.longitude
        unknown = or_(latitude.is_(None), longitude.is_(None))
        angle = place.metres / EARTH_RADIUS_M
        if angle >= math.pi:
            return self._true(case((unknown, null()), else_=true()))
        half = math.radians(1) / 2
        north = func.sin(self._degrees(latitude - place.latitude) * half)
        east = func.sin(self._degrees(longitude - place.longitude) * half)
        cosine = func.cos(self._degrees(latitude) * (2 * half))
        shrunk = math.cos(math.radians(place.latitude)) * cosine
        close = north * north + shrunk * east * east <= math.sin(angle / 2) ** 2
        near = case((unknown, null()), (not_(_box(place, angle)), false()), else_=close)
        return self._true(near)

    def _degrees(self, angle: Clause) -> Clause:
        """Return an angle that may be multiplied, however small it is."""
        return angle


def _operated(left: Clause, operator: Operator, right: Clause) -> Clause:
    match operator:
        case Operator.EQUAL:
            return left == right
        case Operator.UNEQUAL:
            return left != right
        case Operator.BELOW:
            return left < right
        case Operator.AT_MOST:
            return left <= right
        case Operator.ABOVE:
            return left > right
        case Operator.AT_LEAST:
            return left >= right


def _is_valid(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _is_ascii(stored: Clause) -> Clause:
    bytes_ = func.length(cast(stored, LargeBinary))
    return and_(func.typeof(stored) == "text", func.length(stored) == bytes_)


def _box(place: Near, angle: float) -> Clause:
    """Return whether a picture lies between the outermost latitudes and longitudes of a circle."""
    reach = math.degrees(angle) + MARGIN_DEGREES
    south, north = place.latitude - reach, place.latitude + reach
    box = _FILE.latitude.between(south, north)
    if south <= -90 or north >= 90:
        # All meridians meet in what the circle holds.
        return box
    # The meridian that touches the circle does so nearer to the pole than its centre.
    sine = math.sin(math.radians(reach)) / math.cos(math.radians(place.latitude))
    wide = math.degrees(math.asin(min(1.0, sine))) + MARGIN_DEGREES
    west, east = place.longitude - wide, place.longitude + wide
    longitude = _FILE.longitude
    if west < -180:
        return and_(box, or_(longitude >= west + 360, longitude <= east))
    if east > 180:
        return and_(box, or_(longitude >= west, longitude <= east - 360))
    return and_(box, longitude.between(west, east))


_SQLITE = Clauses()


def clause(filter_: Filter, target: Target) -> Clause:
    """Return a filter's condition on rows of `file`, as SQLite understands it."""
    return _SQLITE.clause(filter_, target)
