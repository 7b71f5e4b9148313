"""The language of filters: comparisons with AND, OR, NOT and parentheses, as in SQL.

    filter    = all { OR all }            all  = one { AND one }
    one       = NOT one | "(" filter ")" | NEAR "(" number "," number [ "," distance ] ")"
              | operand operator operand | column IS [NOT] NULL
              | column [NOT] (BETWEEN operand AND operand | IN "(" literal { "," literal } ")"
                              | LIKE text [ESCAPE text])
    operator  = "=" | "==" | "!=" | "<>" | "<" | "<=" | ">" | ">="
    operand   = column | literal          literal = number [unit] | text

Words mean the same in upper and lower case. Texts stand in ' or ", and doubling that makes it part
of the text. What a text means depends on the column beside it: a date for dates.
"""

from __future__ import annotations

import difflib
from typing import NoReturn

from mmsearch.errors import QueryError
from mmsearch.retrieval.filters.dates import DATE_FORMS, Date
from mmsearch.retrieval.filters.pointing import pointed
from mmsearch.retrieval.filters.texts import ascii_lower
from mmsearch.retrieval.filters.tokens import Token, as_number, degrees, metres, tokens_of
from mmsearch.retrieval.filters.tree import (
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
    Value,
)

__all__ = ["MAX_CHARACTERS", "MAX_PARTS", "parse_where"]

MAX_CHARACTERS = 10_000
"""SQLite takes patterns of 50,000 bytes."""
MAX_PARTS = 400
"""Comparisons and listed values; SQLite's expressions may be 1,000 deep."""
MAX_DEPTH = 50

NEAR_METRES = 10_000.0
"""How near is near, where that is not said."""

# What other tools call the columns.
_OTHER_NAMES = {
    "date": Column.TAKEN,
    "datetime": Column.TAKEN,
    "mtime": Column.MODIFIED,
    "filename": Column.NAME,
    "file": Column.NAME,
    "directory": Column.FOLDER,
    "dir": Column.FOLDER,
    "extension": Column.EXT,
    "suffix": Column.EXT,
    "type": Column.FORMAT,
    "bytes": Column.SIZE,
    "lat": Column.LATITUDE,
    "lon": Column.LONGITUDE,
    "lng": Column.LONGITUDE,
    "model": Column.CAMERA,
    "text": Column.CAPTION,
    "description": Column.CAPTION,
}
_SAME = {"==": "=", "<>": "!="}


def parse_where(text: str) -> Filter:
    """Return the filter that a text means.

    Raises:
        QueryError: it means none; the message points at the place.
    """
    if len(text) > MAX_CHARACTERS:
        raise QueryError(
            f"The filter has {len(text):,} characters; {MAX_CHARACTERS:,} is the most that is read."
        )
    return _Parser(text).whole()


class _Parser:
    """One text, read from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = tokens_of(text)
        self._place = 0
        self._depth = 0
        self._parts = 0

    def whole(self) -> Filter:
        if self._at_end():
            raise QueryError(
                "The filter is empty. Write a comparison: taken >= '2023-06' AND width > height."
            )
        found = self._any()
        if not self._at_end():
            self._expected("AND, OR or the end")
        return found

    def _any(self) -> Filter:
        items = [self._all()]
        while self._took("OR"):
            items.append(self._all())
        joined = Filter.any_of(items)
        assert joined is not None
        return joined

    def _all(self) -> Filter:
        items = [self._one()]
        while self._took("AND"):
            items.append(self._one())
        joined = Filter.all_of(items)
        assert joined is not None
        return joined

    def _one(self) -> Filter:
        token = self._token
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(token, f"This is nested more than {MAX_DEPTH} deep.")
        found: Filter
        if self._took("NOT"):
            found = Not(self._one())
        elif self._took("("):
            found = self._any()
            self._take(")", 'AND, OR or ")"')
        elif token.word == "NEAR" and self._tokens[self._place + 1].word == "(":
            found = self._near()
        else:
            found = self._condition()
        self._depth -= 1
        return found

    def _near(self) -> Filter:
        self._count(self._next())
        self._take("(", '"("')
        latitude = degrees(self._text, self._number(), 90)
        self._take(",", '","')
        longitude = degrees(self._text, self._number(), 180)
        distance = NEAR_METRES
        if self._took(","):
            distance = metres(self._text, self._number())
        self._take(")", '")"')
        return Near(latitude, longitude, distance)

    def _condition(self) -> Filter:
        left = self._operand('a column, NOT or "("')
        self._count(left)
        column = self._column(left) if left.kind == "word" else None
        operator = self._token
        if operator.kind == "operator":
            self._next()
            right = self._operand("a column, a number or a text in quotes")
            return self._comparison(left, column, operator, right)
        if column is None:
            self._expected("=, !=, <, <=, > or >= and a column")
        if self._took("IS"):
            negated = self._took("NOT")
            self._take("NULL", "NULL or NOT NULL")
            return Not(IsNull(column)) if negated else IsNull(column)
        negated = self._took("NOT")
        found = self._worded(column)
        return Not(found) if negated else found

    def _worded(self, column: Column) -> Filter:
        word = self._token
        if self._took("LIKE"):
            return self._like(column, word)
        if self._took("IN"):
            self._take("(", '"(" and a list of values')
            values = [self._value(column, self._literal())]
            while self._took(","):
                self._count(self._token)
                values.append(self._value(column, self._literal()))
            self._take(")", '"," or ")"')
            return OneOf(column, tuple(values))
        if self._took("BETWEEN"):
            self._not_captions(column, word)
            low = self._side(column, self._operand("a value or a column"))
            self._take("AND", "AND and the upper end")
            high = self._side(column, self._operand("a value or a column"))
            return Between(column, low, high)
        self._expected("=, !=, <, <=, >, >=, LIKE, IN, BETWEEN or IS NULL")

    def _like(self, column: Column, word: Token) -> Filter:
        if column.kind is not Kind.TEXT:
            raise self._error(
                word, f"LIKE compares texts, and {column} is {column.kind.value}.", _example(column)
            )
        pattern = self._literal()
        if pattern.kind != "text":
            raise self._error(pattern, "LIKE takes a text.", "For example: camera LIKE '%fuji%'.")
        escape = None
        if self._took("ESCAPE"):
            token = self._literal()
            escape = token.text
            if token.kind != "text" or len(escape) != 1:
                raise self._error(token, "ESCAPE takes a text of one character.")
        return Like(column, pattern.text, escape)

    def _comparison(self, left: Token, column: Column | None, token: Token, right: Token) -> Filter:
        operator = Operator(_SAME.get(token.text, token.text))
        if column is None:
            if right.kind != "word":
                raise self._error(left, "A comparison needs a column on one side.", _columns())
            column, right, operator = self._column(right), left, operator.flipped
        if operator not in (Operator.EQUAL, Operator.UNEQUAL):
            self._not_captions(column, token)
        return Compare(column, operator, self._side(column, right))

    def _side(self, column: Column, token: Token) -> Value | Column:
        if token.kind != "word":
            return self._value(column, token)
        other = self._column(token)
        if other.kind is not column.kind:
            raise self._error(
                token, f"{other} is {other.kind.value} and {column} is {column.kind.value}."
            )
        self._not_captions(Column.CAPTION if column is Column.CAPTION else other, token)
        return other

    def _not_captions(self, column: Column, token: Token) -> None:
        if column is Column.CAPTION:
            raise self._error(
                token, "A caption can only be compared with a text.", _example(column)
            )

    def _value(self, column: Column, token: Token) -> Value:
        if column.kind is Kind.NUMBER:
            if token.kind == "number":
                return as_number(self._text, token, column)
        elif token.kind == "text":
            if column.kind is Kind.TEXT:
                return ascii_lower(token.text).lstrip(".") if column is Column.EXT else token.text
            try:
                return Date.parse(token.text)
            except ValueError as error:
                raise self._error(token, f"This is no date: {error}.", _example(column)) from None
        raise self._error(
            token,
            f"{column} is {column.kind.value}, and this is {_KINDS.get(token.kind, 'none')}.",
            _example(column),
        )

    def _column(self, token: Token) -> Column:
        name = token.text.lower()
        if name == "null":
            raise self._error(token, "Nothing equals NULL.", "Write IS NULL or IS NOT NULL.")
        try:
            return Column(name)
        except ValueError:
            known = [*map(str, Column), *_OTHER_NAMES]
            close = difflib.get_close_matches(name, known, 1)
            meant = f"Did you mean {_OTHER_NAMES.get(close[0], close[0])}? " if close else ""
            raise self._error(
                token,
                f"There is no column {''.join(c if c.isprintable() else ' ' for c in token.text)}.",
                f"{meant}{_columns()} Texts stand in quotes: 'fuji'.",
            ) from None

    def _operand(self, expected: str) -> Token:
        if self._token.kind in ("text", "number", "date"):
            return self._literal()
        if self._token.kind != "word" or self._token.reserved:
            self._expected(expected)
        return self._next()

    def _literal(self) -> Token:
        token = self._token
        if token.kind == "date":
            raise self._error(token, "Dates stand in quotes.", f"Write '{token.text}'.")
        if token.kind not in ("text", "number"):
            self._expected("a number or a text in quotes")
        return self._next()

    def _number(self) -> Token:
        if self._token.kind != "number":
            self._expected("a number")
        return self._next()

    @property
    def _token(self) -> Token:
        return self._tokens[self._place]

    def _at_end(self) -> bool:
        return self._token.kind == "end"

    def _next(self) -> Token:
        token = self._token
        self._place += 1
        return token

    def _took(self, word: str) -> bool:
        if self._token.word != word:
            return False
        self._place += 1
        return True

    def _take(self, word: str, expected: str) -> None:
        if not self._took(word):
            self._expected(expected)

    def _count(self, token: Token) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise self._error(
                token, f"This has more than {MAX_PARTS} comparisons and listed values."
            )

    def _expected(self, what: str) -> NoReturn:
        end = self._at_end()
        raise self._error(
            self._token,
            "The filter ends too early." if end else "This is not expected here.",
            f"Expected {what}.",
        )

    def _error(self, token: Token, message: str, hint: str = "") -> QueryError:
        return pointed(self._text, token.start, token.end, message, hint)


_KINDS = {"text": "a text", "number": "a number"}


def _columns() -> str:
    return f"Columns: {', '.join(Column)}."


def _example(column: Column) -> str:
    if column is Column.CAPTION:
        return "For example: caption LIKE '%dog%', caption = 'a dog' or caption IS NULL."
    if column.kind is Kind.NUMBER:
        unit = {Column.SIZE: "4MB", Column.PIXELS: "12MP"}.get(column, "2000")
        return f"For example: {column} > {unit}."
    if column.kind is Kind.DATE:
        return f"For example: {column} >= '2023-06'. A date is {DATE_FORMS}, in quotes."
    return f"For example: {column} = 'text' or {column} LIKE '%text%'."
