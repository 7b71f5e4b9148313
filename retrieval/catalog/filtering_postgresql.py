"""Filters as SQL of PostgreSQL: the same answers as `filtering` gets from SQLite.

Texts are compared as bytes of UTF-8, whose order is that of code points whatever the database's
collation is, and so are the parts of paths, which lie in `file_text`. LIKE compares what Python
folded when it was written. Numbers are compared exactly, whatever their size.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    DateTime,
    Double,
    LargeBinary,
    Numeric,
    Text,
    any_,
    case,
    cast,
    func,
    literal,
    select,
    type_coerce,
)

from mmsearch.retrieval.catalog import tables
from mmsearch.retrieval.catalog.filtering import Clauses
from mmsearch.retrieval.catalog.functions import epoch_ns
from mmsearch.retrieval.catalog.tables import path_stored
from mmsearch.retrieval.catalog.texts_postgresql import (
    caption_text,
    file_text,
    for_like,
    local_offsets,
)
from mmsearch.retrieval.filters.texts import ESCAPE
from mmsearch.retrieval.filters.tree import Column, Kind
from mmsearch.retrieval.schema import SortKey

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from sqlalchemy import Case, ColumnElement, Select

    from mmsearch.retrieval.catalog.filtering import Clause

__all__ = ["PostgresqlClauses"]

SMALLEST_DEGREES = 1e-100
"""Squared, and shrunk as meridians are at a pole, it is still a float."""

_FILE, _CAPTION = tables.file.c, tables.caption.c
_PLACES = (Column.LATITUDE, Column.LONGITUDE)


class PostgresqlClauses(Clauses):
    """Filters as PostgreSQL understands them."""

    def files(self, *, indexed: bool = False) -> Select[tuple[int]]:
        """Return the ids of pictures, with their texts beside them."""
        return select(_FILE.id).join_from(tables.file, file_text, file_text.c.file_id == _FILE.id)

    def captions(self) -> Select[tuple[int]]:
        """Return the ids of captions, with their pictures and all texts beside them."""
        return (
            select(_CAPTION.id)
            .join_from(tables.caption, tables.file)
            .join(file_text, file_text.c.file_id == _FILE.id)
            .join(caption_text, caption_text.c.caption_id == _CAPTION.id)
        )

    def in_one_text(self, ids: ColumnElement[int]) -> ColumnElement[str]:
        """Return all ids with commas between them."""
        return func.string_agg(cast(ids, Text), ",")

    def among(self, id_: ColumnElement[int], ids: NDArray[np.int64]) -> Clause:
        """Return whether an id is one of these, by a statement of one length."""
        return id_ == any_(literal(ids.tolist(), ARRAY(BigInteger)))

    def order(self, key: SortKey) -> ColumnElement[Any]:
        """Return what is sorted by."""
        match key:
            case SortKey.DATE:
                return _FILE.taken_at
            case SortKey.NAME:
                return file_text.c.name_key
        return super().order(key)

    def _captioned(self) -> Select[tuple[int]]:
        joined = caption_text.c.caption_id == _CAPTION.id
        return select(_CAPTION.file_id).join_from(tables.caption, caption_text, joined)

    def _caption_is(self, values: Sequence[str]) -> Clause:
        # A text that is no UTF-8 can be a path, but no caption.
        texts = [value for value in values if value.isascii() or _is_unicode(value)]
        return _CAPTION.text.in_([literal(text, tables.TEXT) for text in texts])

    def _caption_like(self, folded: str) -> Clause:
        return caption_text.c.folded.like(for_like(folded), escape=ESCAPE)

    def _expression(self, column: Column) -> Clause:
        match column:
            case Column.NAME | Column.FOLDER | Column.EXT | Column.CAMERA | Column.FORMAT:
                return file_text.c[column.value]
            case Column.PATH:
                return type_coerce(_FILE.path, LargeBinary)
            case Column.TAKEN:
                return _FILE.taken_at
        return super()._expression(column)

    def _text(self, value: str) -> Clause:
        return literal(path_stored(value), LargeBinary())

    def _number(self, column: Column, value: float) -> Clause:
        if column in _PLACES:
            return literal(float(value), Double())
        # Where it is a float, exactly that number: a bigint would be rounded to one otherwise.
        return literal(Decimal(value), Numeric())

    def _moment(self, column: Column, moment: datetime) -> Clause:
        if column is Column.MODIFIED:
            return literal(epoch_ns(moment), BigInteger())
        return super()._moment(column, moment)

    def _local(self, column: Column) -> Clause:
        """Return a column of dates as a local time of this machine's, not of the server's."""
        if column is Column.TAKEN:
            return _FILE.taken_at
        utc = self._expression(column)
        if column is Column.MODIFIED:
            utc = func.mm_utc(utc)
        clock = (literal(each, ARRAY(Double)) for each in local_offsets())
        return func.mm_local_time(utc, *clock, type_=DateTime())

    def _degrees(self, angle: Clause) -> Clause:
        # A product that is too small for a float is an error, where elsewhere it is zero.
        return case((func.abs(angle) < SMALLEST_DEGREES, 0.0), else_=angle)

    def _true(self, said: Case[Any]) -> Clause:
        return type_coerce(said, Boolean)

    def _is_part(self, column: Column, value: str) -> Clause:
        return self._expression(column) == self._text(value)

    def _like(self, column: Column, folded: str) -> Clause:
        assert column.kind is Kind.TEXT
        texts = file_text.c[f"{column.value}_folded"]
        return texts.like(for_like(folded), escape=ESCAPE)


def _is_unicode(value: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in value)
