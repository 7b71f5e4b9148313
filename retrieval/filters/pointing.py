"""Errors that show the place in what was typed."""

from __future__ import annotations

import unicodedata

from mmsearch.errors import QueryError

__all__ = ["pointed"]

BEFORE, AFTER = 50, 30
"""Characters shown on either side of the place; more would not fit a line."""


def pointed(text: str, start: int, end: int, message: str, hint: str = "") -> QueryError:
    """Return an error with the text, a caret under the place, and what to do.

    Args:
        text: all that was typed.
        start: index of the first character of the place; `len(text)` for its end.
        end: index after its last character.
        message: what is wrong, one sentence.
        hint: what was expected, or what to write instead.
    """
    first = max(0, start - BEFORE)
    end = min(max(end, start + 1), start + AFTER)
    last = min(len(text), end + AFTER)
    before = ("…" if first else "") + _line(text[first:start])
    marked = _line(text[start:end])
    after = _line(text[end:last]) + ("…" if last < len(text) else "")
    carets = "^" * max(1, _cells(marked))
    lines = [message, f"  {before}{marked}{after}", f"  {' ' * _cells(before)}{carets}"]
    return QueryError("\n".join(lines + ([hint] if hint else [])))


def _line(text: str) -> str:
    """Return the text on one line, without anything that could steer a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def _cells(text: str) -> int:
    """Return how many columns of a terminal the text takes."""
    return sum(
        0
        if unicodedata.combining(character)
        else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )
