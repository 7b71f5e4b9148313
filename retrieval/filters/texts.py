"""Texts in filters: the parts of a path, and LIKE with upper and lower case alike."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property, lru_cache

__all__ = ["ESCAPE", "Pattern", "ascii_lower", "escaped", "fold", "part"]

ESCAPE = "\\"
"""What takes the meaning from `%` and `_` in the patterns that are made here."""

_ASCII_LOWER = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}


def fold(text: str) -> str:
    """Return the text as LIKE compares it: composed (NFC), and Unicode's case folding done."""
    return text.lower() if text.isascii() else _folded(text)


@lru_cache(maxsize=256)
def _folded(text: str) -> str:
    # Kept, because several patterns are compared with the same text one after the other.
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def ascii_lower(text: str) -> str:
    """Return the text with A to Z in lower case, as SQLite's `lower` does it."""
    return text.lower() if text.isascii() else text.translate(_ASCII_LOWER)


def part(path: str, column: str) -> str:
    """Return the `name`, `folder` or `ext` of a path with forward slashes.

    The folder of what lies at the top is empty. The extension is what follows the last dot of the
    name, in lower case; empty without a dot.
    """
    folder, _, name = path.rpartition("/")
    if column == "name":
        return name
    if column == "folder":
        return folder
    return ascii_lower(name.rpartition(".")[2]) if "." in name else ""


def escaped(text: str) -> str:
    """Return a text as a pattern that matches nothing else, with `ESCAPE`."""
    return re.sub(r"[%_\\]", lambda found: ESCAPE + found.group(), text)


@dataclass(frozen=True)
class Pattern:
    """A pattern of LIKE: `%` is any text, `_` any one character, all else itself, folded.

    Attributes:
        text: the pattern.
        escape: the character that takes the meaning from the one after it.
    """

    text: str
    escape: str | None = None

    @classmethod
    @lru_cache(maxsize=256)
    def of(cls, text: str, escape: str | None) -> Pattern:
        """Return the pattern, the same for the same text: compiling takes longer than matching."""
        return cls(text, escape)

    @cached_property
    def folded(self) -> str:
        """The same pattern with its texts folded and `ESCAPE`."""
        return "".join(
            each if literal is None else escaped(fold(literal)) for each, literal in self._tokens
        )

    def matches(self, text: str) -> bool:
        """Return whether a text matches, in time that grows with the lengths of both."""
        text = fold(text)
        head, *rest = self._pieces
        found = head.match(text)
        if found is None:
            return False
        if not rest:
            return found.end() == len(text)
        place = found.end()
        # Between two `%` the first place is as good as any later one.
        for piece in rest[:-1]:
            found = piece.search(text, place)
            if found is None:
                return False
            place = found.end()
        tail = rest[-1]
        start = len(text) - self._tail_length
        return start >= place and tail.match(text, start) is not None

    @cached_property
    def _tokens(self) -> list[tuple[str, str | None]]:
        """`(wildcard, None)` and `("", text)`, in their order."""
        tokens: list[tuple[str, str | None]] = []
        characters = iter(self.text)
        for character in characters:
            if character == self.escape:
                literal = next(characters, character)
            elif character in "%_":
                tokens.append((character, None))
                continue
            else:
                literal = character
            if tokens and tokens[-1][1] is not None:
                literal = tokens.pop()[1] + literal  # type: ignore[operator]
            tokens.append(("", literal))
        return tokens

    @cached_property
    def _pieces(self) -> list[re.Pattern[str]]:
        """What stands between the `%`; each matches texts of one length."""
        return [re.compile(source, re.DOTALL) for source, _ in self._sources]

    @property
    def _tail_length(self) -> int:
        return self._sources[-1][1]

    @cached_property
    def _sources(self) -> list[tuple[str, int]]:
        sources = [("", 0)]
        for wildcard, literal in self._tokens:
            source, length = sources[-1]
            if wildcard == "%":
                sources.append(("", 0))
            elif literal is None:
                sources[-1] = (f"{source}.", length + 1)
            else:
                folded = fold(literal)
                sources[-1] = (source + re.escape(folded), length + len(folded))
        return sources
