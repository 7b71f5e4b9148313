"""Questions with AND, OR and NOT: a small grammar, and probabilities put together by it.

    expression := both {"OR" both}
    both       := not {["AND"] not}
    not        := "NOT" not | "(" expression ")" | words

Operators are in capitals; words are as many as stand together; what is in quotes is words, whatever
it says. `dog NOT people` is `dog AND NOT people`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmsearch.retrieval.filters.pointing import pointed

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from mmsearch.errors import QueryError

    Floats = NDArray[np.float64]

__all__ = [
    "And",
    "Concept",
    "Expression",
    "Not",
    "Or",
    "concepts",
    "parse",
    "probability",
    "wanted",
]

_TOKEN = re.compile(r'\s*(?:(?P<mark>[()])|"(?P<quoted>[^"]*)(?P<end>"?)|(?P<word>[^\s()"]+))')
_OPERATORS = {"AND", "OR", "NOT"}


@dataclass(frozen=True, slots=True)
class Concept:
    """Words that describe what a picture shows."""

    text: str


@dataclass(frozen=True, slots=True)
class Not:
    """What a picture does not show."""

    part: Expression


@dataclass(frozen=True, slots=True)
class And:
    """All of it."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Any of it."""

    parts: tuple[Expression, ...]


Expression = Concept | Not | And | Or


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int


def parse(text: str) -> Expression | None:
    """Return what a text with operators says; None for one without, which is words and no more.

    Raises:
        QueryError: the operators make no sense; the message points at the place.
    """
    tokens = _tokens(text)
    if not any(token.kind in _OPERATORS for token in tokens):
        return None
    return _Parser(text, tokens).parse()


def concepts(expression: Expression) -> list[Concept]:
    """Return the concepts, each once, in the order of their first appearance."""
    match expression:
        case Concept():
            return [expression]
        case Not(part):
            return concepts(part)
        case And(parts) | Or(parts):
            return list(dict.fromkeys(each for part in parts for each in concepts(part)))


def wanted(expression: Expression, *, negated: bool = False) -> set[Concept]:
    """Return the concepts that make an answer better where they are shown."""
    match expression:
        case Concept():
            return set() if negated else {expression}
        case Not(part):
            return wanted(part, negated=not negated)
        case And(parts) | Or(parts):
            return {each for part in parts for each in wanted(part, negated=negated)}


def probability(expression: Expression, shown: Callable[[Concept], Floats]) -> Floats:
    """Return `float64[n]`, how probable the expression is of each of `n` pictures.

    Concepts count as independent: `P(a AND b) = P(a) P(b)`, `P(NOT a) = 1 - P(a)`,
    `P(a OR b) = 1 - (1 - P(a)) (1 - P(b))`.

    Args:
        expression: what `parse` returned.
        shown: returns `float64[n]`, the probability that each picture shows a concept.
    """
    match expression:
        case Concept():
            return shown(expression)
        case Not(part):
            return 1 - probability(part, shown)
        case And(parts):
            both = probability(parts[0], shown)
            for part in parts[1:]:
                both = both * probability(part, shown)
            return both
        case Or(parts):
            neither = 1 - probability(parts[0], shown)
            for part in parts[1:]:
                neither = neither * (1 - probability(part, shown))
            return 1 - neither


def _tokens(text: str) -> list[_Token]:
    found = []
    for match in _TOKEN.finditer(text):
        at = match.start(match.lastgroup or 0)
        if match["mark"]:
            found.append(_Token(match["mark"], match["mark"], at))
        elif match["word"] in _OPERATORS:
            found.append(_Token(match["word"], match["word"], at))
        elif match["word"]:
            found.append(_Token("words", match["word"], at))
        elif match["quoted"] is not None:
            kind = "quoted" if match["end"] else "unclosed"
            found.append(_Token(kind, match["quoted"], match.start("quoted") - 1))
    return found


class _Parser:
    def __init__(self, text: str, tokens: list[_Token]) -> None:
        self._text = text
        self._tokens = tokens
        self._next = 0

    def parse(self) -> Expression:
        expression = self._either()
        if token := self._peek():
            raise self._error(token, "there is no '(' that this closes")
        return expression

    def _peek(self) -> _Token | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def _take(self, kind: str) -> bool:
        token = self._peek()
        if token is None or token.kind != kind:
            return False
        self._next += 1
        return True

    def _either(self) -> Expression:
        parts = [self._both()]
        while self._take("OR"):
            parts.append(self._both())
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _both(self) -> Expression:
        parts = [self._one()]
        while self._take("AND") or (
            (token := self._peek()) is not None and token.kind not in {"OR", ")"}
        ):
            parts.append(self._one())
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _one(self) -> Expression:
        token = self._peek()
        if token is None:
            raise self._error(None, "words are expected here")
        self._next += 1
        match token.kind:
            case "NOT":
                return Not(self._one())
            case "(":
                inside = self._either()
                if not self._take(")"):
                    raise self._error(token, "this is never closed with ')'")
                return inside
            case "words" | "quoted":
                words = [token.text.strip()]
                # Quotes set a concept apart; words without them belong together.
                while token.kind == "words" and (more := self._peek()) and more.kind == "words":
                    words.append(more.text)
                    self._next += 1
                if not words[0]:
                    raise self._error(token, "there is nothing between the quotes")
                return Concept(" ".join(words))
            case "unclosed":
                raise self._error(token, "this quote is never closed")
        raise self._error(token, f"words are expected here, not '{token.text}'")

    def _error(self, token: _Token | None, problem: str) -> QueryError:
        at = len(self._text) if token is None else token.at
        return pointed(
            self._text,
            at,
            at + 1,
            f"The query cannot be understood: {problem}.",
            'AND, OR and NOT in capitals join descriptions: "dog AND (beach OR snow) NOT people". '
            "To ask with such a word, put it in quotes.",
        )
