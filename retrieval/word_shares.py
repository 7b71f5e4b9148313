"""Which words of a query pulled: its score shared out among them.

Shapley's value (Shapley 1953, "A Value for n-Person Games"; for models Lundberg and Lee 2017, "A
Unified Approach to Interpreting Model Predictions", arXiv:1705.07874): what a word adds to the
score, averaged over all orders in which the query could have been put together, word by word,

    share[i] = mean over orders of  score(words up to i) - score(words before i).

Shares add up to the score of the whole query less that of no words. Leaving one word out of the
whole, which is simpler, gives both of two words that say the same nothing. All subsets are embedded
where there are few; otherwise orders are drawn (Castro, Gómez and Tejada 2009, "Polynomial
calculation of the Shapley value based on sampling"), each also backwards.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import comb

__all__ = ["MOST_EXACT", "word_shares"]

MOST_EXACT = 7
"""Words up to which every subset is embedded: 127 texts."""

ORDERS, TEXTS = 16, 640
"""Orders that are drawn for more words, and texts that these make at most, of long queries."""


def word_shares(
    words: Sequence[str], scores: Callable[[list[str]], Sequence[float]], nothing: float
) -> list[float]:
    """Return what each word adds to a query's score; the same for the same words.

    Args:
        words: of the query, in its order.
        scores: gives the score of each of many texts.
        nothing: the score of no words.
    """
    count = len(words)
    exact = count <= MOST_EXACT
    orders = [] if exact else _drawn(count)
    subsets = list(_subsets(count)) if exact else list(dict.fromkeys(_prefixes(orders)))
    texts = [" ".join(word for i, word in enumerate(words) if each >> i & 1) for each in subsets]
    known = dict(zip(subsets, map(float, scores(texts)), strict=True)) | {0: nothing}
    if exact:
        return [_share(i, count, known) for i in range(count)]
    total = [0.0] * count
    for order in orders:
        before = 0
        for i in order:
            total[i] += known[before | 1 << i] - known[before]
            before |= 1 << i
    return [each / len(orders) for each in total]


def _subsets(count: int) -> Iterator[int]:
    """Yield every subset but the empty one, as bits."""
    yield from range(1, 1 << count)


def _share(i: int, count: int, known: dict[int, float]) -> float:
    """Return a word's share from the scores of all subsets."""
    share = 0.0
    for before in range(1 << count):
        if not before >> i & 1:
            # So many of all orders have just these words before it: s! (n - s - 1)! / n!.
            weight = 1 / (count * comb(count - 1, before.bit_count()))
            share += weight * (known[before | 1 << i] - known[before])
    return share


def _drawn(count: int) -> list[list[int]]:
    """Return orders and their reverses; the same ones every time."""
    draw = random.Random(0)
    orders = []
    for _ in range(max(1, min(ORDERS, TEXTS // count) // 2)):
        order = list(range(count))
        draw.shuffle(order)
        orders += [order, order[::-1]]
    return orders


def _prefixes(orders: Iterable[Sequence[int]]) -> Iterator[int]:
    for order in orders:
        before = 0
        for i in order:
            before |= 1 << i
            yield before
