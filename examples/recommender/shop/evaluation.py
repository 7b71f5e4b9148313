"""Offline evaluation: would the next product that a user came to have been recommended?

Of each user the product that they came to last is held out (leave one out, in time), and each
method recommends from what was known at that moment: the user's own earlier events, and what was
popular until then. Whatever the user had seen before is left out of every list.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch import Recommender, Signals
from shop.database import Event, Kind
from shop.histories import Taste, taste_of
from shop.recommendations import DIVERSITY, HALF_LIFE_DAYS

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Case", "Items", "Measured", "cases_of", "discounted_gains", "evaluate", "ranks"]

RESAMPLES = 2_000


@dataclass(frozen=True, slots=True)
class Case:
    """One user at the moment before the last product.

    Attributes:
        at: that moment, in seconds since 1970.
        taste: what was known of the user.
        seen: products that the user had done anything with.
        target: the product that the user then came to.
    """

    user: str
    at: float
    taste: Taste
    seen: frozenset[str]
    target: str


@dataclass(frozen=True, slots=True)
class Items:
    """The catalogue as methods see it: ids, categories and `float32[n, dim]` vectors, in step."""

    ids: Sequence[str]
    categories: Sequence[str]
    vectors: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Measured:
    """The figures of a method; intervals hold 95 % of 2,000 resamples of the users.

    Attributes:
        hit_rate: the share of users whose product is among the `k` that were recommended.
        ndcg: the mean of `discounted_gains`.
        coverage: the share of the catalogue that anybody was recommended. It has no interval: a
            resample holds fewer different users, so its coverage is lower by construction.
    """

    method: str
    hit_rate: float
    hit_rate_interval: tuple[float, float]
    ndcg: float
    ndcg_interval: tuple[float, float]
    coverage: float

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


Lists = list[list[int]]
"""For each case the rows of the recommended items, best first."""
Method = Callable[[Sequence[Case], Items, int, Mapping[str, Sequence[Event]]], Lists]


def cases_of(events: Mapping[str, Sequence[Event]]) -> list[Case]:
    """Hold out the product that each user came to last; users of one product are left out.

    Args:
        events: of each user, in the order of time. Dislikes tell of a taste, but nobody came to a
            product by disliking it.
    """
    cases = []
    for user, own in events.items():
        first: dict[str, float] = {}
        for event in own:
            if event.kind is not Kind.DISLIKE:
                first.setdefault(event.product_id, event.at)
        if len(first) < 2:
            continue
        target, at = max(first.items(), key=lambda each: each[1])
        before = [event for event in own if event.at < at]
        seen = frozenset(event.product_id for event in before)
        if target not in seen and before:
            cases.append(Case(user, at, taste_of(before, at), seen, target))
    return cases


def evaluate(
    events: Mapping[str, Sequence[Event]], items: Items, *, k: int, seed: int = 0
) -> list[Measured]:
    """Measure every method on the same users.

    Args:
        events: of each user, in the order of time, of products that are among the items.
        items: the catalogue.
        k: how many products are recommended, at least 1.
        seed: of the random method, and of the resamples.
    """
    cases = cases_of(events)
    row = {id_: number for number, id_ in enumerate(items.ids)}
    targets = [row[case.target] for case in cases]
    return [
        _measured(name, method(cases, items, k, events), targets, len(items.ids), seed)
        for name, method in _methods(seed).items()
    ]


def ranks(lists: Lists, targets: Sequence[int]) -> NDArray[np.int64]:
    """Return `int64[n]`: where each target stands in its list, from 1; 0 where it does not.

    >>> ranks([[7, 8, 9], [7, 8, 9]], [8, 1])
    array([2, 0])
    """
    places = [
        one.index(target) + 1 if target in one else 0
        for one, target in zip(lists, targets, strict=True)
    ]
    return np.array(places, dtype=np.int64)


def discounted_gains(places: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each user's nDCG, `float64[n]`: 1/log2(1 + rank), and 0 without a hit.

    With one product to be found, the best that can be reached is 1, so that nothing is left to
    normalize (Järvelin and Kekäläinen 2002).

    >>> discounted_gains(np.array([1, 3, 0]))
    array([1. , 0.5, 0. ])
    """
    found = places > 0
    gains: NDArray[np.float64] = np.zeros(len(places))
    gains[found] = 1 / np.log2(1 + places[found])
    return gains


def _measured(name: str, lists: Lists, targets: list[int], size: int, seed: int) -> Measured:
    places = ranks(lists, targets)
    hits, gains = (places > 0).astype(np.float64), discounted_gains(places)
    shown = {row for one in lists for row in one}
    return Measured(
        name,
        float(hits.mean()),
        _interval(hits, seed),
        float(gains.mean()),
        _interval(gains, seed),
        len(shown) / size,
    )


def _interval(values: NDArray[np.float64], seed: int) -> tuple[float, float]:
    """Return the 95 % percentile interval of a mean over users (Efron and Tibshirani 1993)."""
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def _methods(seed: int) -> dict[str, Method]:
    """Return the methods by name: those of mmsearch, then what they must be better than."""
    return {
        f"mmsearch, as served (diversity {DIVERSITY:g})": _by_pictures(diversity=DIVERSITY),
        "mmsearch, average": _by_pictures(),
        "mmsearch, best score": _by_pictures(strategy="best_score"),
        "popular": _popular,
        "popular in the user's categories": _popular_in_categories,
        "random": _random(seed),
    }


def _by_pictures(**options: Any) -> Method:  # noqa: ANN401 (those of `recommend_many`)
    def method(cases: Sequence[Case], items: Items, k: int, _: object) -> Lists:
        row = {id_: number for number, id_ in enumerate(items.ids)}
        recommender = Recommender(np.arange(len(items.ids)), items.vectors)
        signals = [
            Signals(
                like=[row[id_] for id_ in case.taste.liked],
                dislike=[row[id_] for id_ in case.taste.disliked],
                history=[(row[id_], age) for id_, age in case.taste.viewed.items()],
            )
            for case in cases
        ]
        found = recommender.recommend_many(signals, k=k, half_life=HALF_LIFE_DAYS, **options)
        return [answer.ids.tolist() for answer in found]

    return method


def _popular(
    cases: Sequence[Case], items: Items, k: int, events: Mapping[str, Sequence[Event]]
) -> Lists:
    counts = _popularity(cases, items, events)
    return [_best(score, case, items, k) for score, case in zip(counts, cases, strict=True)]


def _popular_in_categories(
    cases: Sequence[Case], items: Items, k: int, events: Mapping[str, Sequence[Event]]
) -> Lists:
    """Weigh popularity by the share of the user's likes and views that a category has."""
    category = dict(zip(items.ids, items.categories, strict=True))
    lists = []
    for score, case in zip(_popularity(cases, items, events), cases, strict=True):
        own = Counter(category[id_] for id_ in (*case.taste.liked, *case.taste.viewed))
        share = np.array([own[name] for name in items.categories])
        lists.append(_best(share * (score + 1), case, items, k))
    return lists


def _random(seed: int) -> Method:
    def method(cases: Sequence[Case], items: Items, k: int, _: object) -> Lists:
        generator = np.random.default_rng(seed)
        return [_best(generator.random(len(items.ids)), case, items, k) for case in cases]

    return method


def _popularity(
    cases: Sequence[Case], items: Items, events: Mapping[str, Sequence[Event]]
) -> NDArray[np.float64]:
    """Return `float64[cases, n]`: how many users had come to each item before a case's moment."""
    row = {id_: number for number, id_ in enumerate(items.ids)}
    first: dict[tuple[str, str], float] = {}
    for user, own in events.items():
        for event in own:
            if event.kind is not Kind.DISLIKE:
                first.setdefault((user, event.product_id), event.at)
    arrivals = sorted((at, row[product]) for (_, product), at in first.items())
    counts = np.zeros((len(cases), len(items.ids)))
    now, done = np.zeros(len(items.ids)), 0
    for number in sorted(range(len(cases)), key=lambda number: cases[number].at):
        while done < len(arrivals) and arrivals[done][0] < cases[number].at:
            now[arrivals[done][1]] += 1
            done += 1
        counts[number] = now
    return counts


def _best(scores: NDArray[np.float64], case: Case, items: Items, k: int) -> list[int]:
    """Return the rows of the best items that the user had not seen; by row among equals."""
    order = np.argsort(-scores, kind="stable")
    unseen = (row for row in order.tolist() if items.ids[row] not in case.seen)
    return [row for row, _ in zip(unseen, range(k), strict=False)]
