"""BLEU: how much written captions have in common with those of people.

Papineni et al. 2002, "BLEU: a method for automatic evaluation of machine translation".
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

__all__ = ["ORDERS", "bleu", "words"]

ORDERS = 4
"""The longest sequences of words that are compared."""

_WORD = re.compile(r"[^\W_]+(?:['\u2019\-][^\W_]+)*")


def words(text: str) -> list[str]:
    """Return a caption's words in lower case, without punctuation, as captions are compared.

    >>> words("A man's red hat, on-line!")
    ['a', "man's", 'red', 'hat', 'on-line']
    """
    return _WORD.findall(text.lower())


def bleu(
    candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> dict[str, float]:
    """Return BLEU-1 to BLEU-4 of a whole corpus, each 0 to 100.

    BLEU-N = 100 · BP · exp(1/N · Σ log p_n, n = 1 … N). p_n is the part of all candidates'
    sequences of n words that stand in a reference of theirs, each counted at most as often as in
    the reference that has it most often. BP = min(1, exp(1 - r / c)) punishes brevity: c is the
    length of all candidates, r that of the references nearest to them in length, the shorter one
    of two equally near. Nothing is smoothed: where no sequence of N words is right, BLEU-N is 0.

    Args:
        candidates: n texts as words.
        references: for each of them at least one text that would be right.

    >>> bleu([["a", "dog", "runs"]], [[["a", "dog", "sleeps"]]])["BLEU-1"]
    66.66666666666666
    """
    right, all_ = [0] * ORDERS, [0] * ORDERS
    length = nearest = 0
    for text, known in zip(candidates, references, strict=True):
        length += len(text)
        nearest += min((abs(len(one) - len(text)), len(one)) for one in known)[1]
        for n in range(1, ORDERS + 1):
            most: Counter[tuple[str, ...]] = Counter()
            for one in known:
                most |= _sequences(one, n)
            found = _sequences(text, n)
            right[n - 1] += (found & most).total()
            all_[n - 1] += found.total()
    brevity = 1.0 if length >= nearest else math.exp(1 - nearest / length) if length else 0.0
    logs = [math.log(one / of) if one else -math.inf for one, of in zip(right, all_, strict=True)]
    return {f"BLEU-{n}": 100 * brevity * math.exp(sum(logs[:n]) / n) for n in range(1, ORDERS + 1)}


def _sequences(text: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1))
