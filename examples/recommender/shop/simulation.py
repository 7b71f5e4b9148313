"""Simulated users, for trying the service and its evaluation without anybody's data.

What is assumed, all of it drawn from one seed:

- A user likes two or three categories, one of them most (half of the events, or more).
- One event in seven is not of the user's taste, but any product.
- Within a category, as among all, products are picked by popularity: the n-th most popular has
  the weight 1/n (Zipf), in an order that has nothing to do with how products look.
- Of ten events, seven are views, two are likes and one is a purchase. A product that is not of the
  user's taste is disliked one time in four.
- Nobody picks a product twice. Events lie within the last ninety days.

So a user's taste is told by categories, and only through these by pictures: see the README for what
figures of such users show, and what they cannot.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shop.database import Event, Kind, Product

__all__ = ["simulate"]

DAYS = 90
FEWEST, MOST = 5, 25
"""Events of a user."""
NOISE = 1 / 7
DISLIKED = 1 / 4
POSITIVE = [Kind.VIEW, Kind.LIKE, Kind.BUY]
SHARES = [0.7, 0.2, 0.1]


def simulate(
    products: Sequence[Product], users: int, *, seed: int, now: float
) -> dict[str, list[Event]]:
    """Return the events of simulated users, in the order of time.

    Args:
        products: the catalogue, of at least one category.
        users: how many.
        seed: of everything that is drawn.
        now: seconds since 1970; no event is later.
    """
    generator = np.random.default_rng(seed)
    popularity = 1 / generator.permutation(np.arange(1, len(products) + 1))
    category = np.array([product.category for product in products])
    names = np.unique(category)
    found = {}
    for number in range(1, users + 1):
        several = min(len(names), int(generator.integers(2, 4)))
        liked = generator.choice(names, several, replace=False)
        shares = np.array([0.6, 0.25, 0.15])[: len(liked)]
        # What the products of a category weigh together is the user's share for it.
        weights = NOISE * popularity / popularity.sum()
        for name, share in zip(liked, shares / shares.sum(), strict=True):
            of = np.where(category == name, popularity, 0)
            weights += (1 - NOISE) * share * of / of.sum()
        count = min(int(generator.integers(FEWEST, MOST + 1)), len(products))
        picked = generator.choice(len(products), count, replace=False, p=weights / weights.sum())
        # As they were drawn, the popular ones would come first.
        picked = generator.permutation(picked)
        times = np.sort(now - 86_400 * generator.uniform(0, DAYS, count))
        kinds = generator.choice(len(POSITIVE), count, p=SHARES)
        disliked = (generator.random(count) < DISLIKED) & ~np.isin(category[picked], liked)
        id_ = f"simulated-{number}"
        found[id_] = [
            Event(
                user_id=id_,
                product_id=products[row].id,
                kind=Kind.DISLIKE if bad else POSITIVE[kind],
                at=float(at),
            )
            for row, at, kind, bad in zip(picked, times, kinds, disliked, strict=True)
        ]
    return found
