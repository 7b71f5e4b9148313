"""Likes, dislikes and histories of many users, looked up at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mmsearch.errors import QueryError
from mmsearch.retrieval.taste import decayed, rocchio

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ids = NDArray[np.int64]
    Floats = NDArray[np.float64]
    VectorsOf = Callable[[Ids], tuple[Ids, NDArray[np.float16]]]
    Item = int | np.integer | NDArray[np.floating]

__all__ = ["Signals", "Taste", "tastes"]


@dataclass(frozen=True, slots=True)
class Signals:
    """What is known of one user.

    Attributes:
        like: ids of items, or vectors (`float32[dim]`, length 1) of what is no item.
        dislike: the same.
        history: ids, and how many days ago each was seen, bought, …: not negative.
    """

    like: Sequence[Item] = ()
    dislike: Sequence[Item] = ()
    history: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True, slots=True)
class Taste:
    """Signals with their vectors.

    Attributes:
        vectors: `float32[m, dim]`, unit rows, those of other users among them.
        liked: `int64[p]`, rows of `vectors`: what is liked, then the history.
        weights: `float64[p]`, in (0, 1]: 1, or less with age.
        disliked: `int64[d]`, rows of `vectors`.
        liked_ids: `int64[≤ p]`, those that are items.
        disliked_ids: `int64[≤ d]`, the same.
        ignored: ids that are no item's.
    """

    vectors: NDArray[np.float32]
    liked: Ids
    weights: Floats
    disliked: Ids
    liked_ids: Ids
    disliked_ids: Ids
    ignored: tuple[int, ...]

    @property
    def known(self) -> bool:
        """Whether there is anything to go by."""
        return len(self.liked) + len(self.disliked) > 0

    def direction(self) -> Floats | None:
        """Return the middle of it all, see `taste.rocchio`; None where there is none."""
        rows = self.vectors
        liked, disliked = (rows[of].astype(np.float64) for of in (self.liked, self.disliked))
        return rocchio(liked, self.weights, disliked)

    def hidden(self, exclude_seen: bool) -> Ids:
        """Return the items that are not to be recommended, ascending."""
        seen = [self.liked_ids, self.disliked_ids] if exclude_seen else [self.disliked_ids]
        return np.unique(np.concatenate(seen))


def tastes(
    users: Sequence[Signals], vectors_of: VectorsOf, dim: int, half_life: float
) -> list[Taste]:
    """Look up what users like and do not.

    Args:
        users: what is known of each.
        vectors_of: called with `int64[m]`, ascending ids; returns those that are items, ascending,
            and their `float16[m, dim]`.
        dim: length of a vector.
        half_life: days after which an item of a history counts half.

    Raises:
        QueryError: an age is negative or no number, or a vector is no unit vector.
    """
    foreign: list[NDArray[np.float32]] = []
    keys: list[int] = []
    # Row in `foreign`; -1 for what has an id.
    places: list[int] = []
    ends, ages = [], []
    for number, user in enumerate(users):
        for item in user.like:
            _note(item, keys, places, foreign, dim)
        end_of_likes = len(keys)
        if user.history:
            past, days = zip(*user.history, strict=True)
            keys += past
            places += [-1] * len(past)
            ages.append(_checked(days, number))
        else:
            ages.append(np.empty(0))
        end_of_history = len(keys)
        for item in user.dislike:
            _note(item, keys, places, foreign, dim)
        ends.append((end_of_likes, end_of_history, len(keys)))
    ids, place = np.array(keys, dtype=np.int64), np.array(places, dtype=np.int64)
    named = place < 0
    found, vectors = vectors_of(np.unique(ids[named]))
    matrix = vectors.astype(np.float32)
    if foreign:
        matrix = np.concatenate([matrix, foreign])
    rows = np.searchsorted(found, ids)
    there = np.zeros(len(ids), dtype=np.bool_)
    if len(found):
        there = named & (found[np.minimum(rows, len(found) - 1)] == ids)
    rows = np.where(named, rows, len(found) + place)
    usable = there | ~named
    made, start = [], 0
    for (likes, history, end), age in zip(ends, ages, strict=True):
        of_likes, of_dislikes = slice(start, history), slice(history, end)
        weights = np.concatenate([np.ones(likes - start), decayed(age, half_life)])
        good, bad = usable[of_likes], usable[of_dislikes]
        lost = ids[start:end][named[start:end] & ~there[start:end]]
        made.append(
            Taste(
                matrix,
                rows[of_likes][good],
                weights[good],
                rows[of_dislikes][bad],
                ids[of_likes][there[of_likes]],
                ids[of_dislikes][there[of_dislikes]],
                tuple(lost.tolist()),
            )
        )
        start = end
    return made


def _note(
    item: Item,
    keys: list[int],
    places: list[int],
    foreign: list[NDArray[np.float32]],
    dim: int,
) -> None:
    if isinstance(item, (int, np.integer)):
        keys.append(int(item))
        places.append(-1)
        return
    row = np.asarray(item, dtype=np.float32)
    if row.shape != (dim,) or not abs(float(np.linalg.norm(row)) - 1) < 2e-3:
        raise QueryError(
            f"An item is an id, or a vector of {dim} numbers and length 1; one of shape "
            f"{row.shape} and length {float(np.linalg.norm(row)):.3g} was given."
        )
    keys.append(-1)
    places.append(len(foreign))
    foreign.append(row)


def _checked(days: Sequence[float], number: int) -> Floats:
    ages = np.array(days, dtype=np.float64)
    if not (np.isfinite(ages) & (ages >= 0)).all():
        wrong = ages[~(np.isfinite(ages) & (ages >= 0))][0]
        raise QueryError(
            f"The history of user {number} holds an age of {wrong:g} days. Ages are finite and not "
            "negative: 0 for today."
        )
    return ages
