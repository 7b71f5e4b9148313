"""Near-duplicates and bursts by vectors: pairs, groups of a whole library, a ranking collapsed.

How alike is alike differs from encoder to encoder: random photos have a cosine of 0.1 with one, of
0.6 with another. So thresholds are shares of a library's own typical distance, see `likeness`.

No group is a chain: every member is alike to the group's first one, not only to some other member.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.indexes import VectorIndex

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float32]

__all__ = [
    "BURST_SECONDS",
    "Collapsed",
    "Likeness",
    "Pairs",
    "alike_pairs",
    "burst_pairs",
    "bursts",
    "collapse",
    "groups",
    "likeness",
    "seconds_of",
    "short_of_candidates",
]

CANDIDATE = 0.20
"""Share of the typical distance up to which pictures are worth comparing by their pixels."""

ALONE = 0.08
"""The same where vectors alone must tell."""

BURST = 0.30
"""The same for pictures taken within seconds of each other, which says most of it already."""

BURST_SECONDS = 10.0

SAMPLE = 1_000
FEW = 100
TYPICAL_OF_FEW = 0.4
"""What the typical distance is at least where the pictures are too few to tell."""

NEIGHBOURS = 64
"""Pairs that are kept of one picture, the most alike: 100,000 pictures cannot fill the memory."""

BLOCK_BYTES = 64 << 20

COLLAPSED_AT_ONCE = 16
"""Answers of a ranking that are compared with the rest in one product: of fifty so few that BLAS
takes one thread, where more would wait for each other on a busy machine."""


EPOCH = datetime(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class Likeness:
    """How similar pictures of one library must be, as cosines.

    Attributes:
        candidate: to be compared by their pixels.
        alone: to count as near-duplicates by their vectors alone.
        burst: to be of one burst, taken within `BURST_SECONDS` of each other.
    """

    candidate: float
    alone: float
    burst: float


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of rows, each once.

    Attributes:
        first: `int64[p]`, ascending.
        second: `int64[p]`, each greater than the `first` beside it.
        similarity: `float32[p]`, cosines.
    """

    first: Ints
    second: Ints
    similarity: Floats

    def where(self, kept: NDArray[np.bool_]) -> Pairs:
        """Return some of the pairs."""
        return Pairs(self.first[kept], self.second[kept], self.similarity[kept])

    def stretches(self) -> list[tuple[int, int]]:
        """Return where the pairs of each `first` begin and end."""
        starts = np.nonzero(np.diff(self.first, prepend=-1))[0].tolist()
        return list(pairwise([*starts, len(self.first)]))


@dataclass(frozen=True, slots=True)
class Collapsed:
    """An answer with what duplicates it.

    Attributes:
        row: the answer's place in the ranking, from 0.
        others: places of what duplicates it, ascending.
    """

    row: int
    others: tuple[int, ...]


def likeness(vectors: NDArray[np.float16] | Floats) -> Likeness:
    """Return thresholds that fit an encoder and a library.

    The typical distance is the upper quartile of `1 - cosine` between pairs of up to a thousand
    vectors: of the upper half, because many may be copies of each other. A threshold is the cosine
    at a set share of it.

    Args:
        vectors: `float[n, dim]`, unit rows, of different contents.
    """
    sample = np.asarray(vectors[:: max(1, len(vectors) // SAMPLE)], dtype=np.float32)
    distances = 1 - (sample @ sample.T)[~np.tri(len(sample), dtype=np.bool_)]
    typical = float(np.quantile(distances, 0.75)) if len(distances) else TYPICAL_OF_FEW
    if len(sample) < FEW:
        typical = max(typical, TYPICAL_OF_FEW)
    # fp16 storage moves a cosine by up to 1e-3: equal pictures must always be alike.
    distance = max(typical, 0.02)
    return Likeness(1 - CANDIDATE * distance, 1 - ALONE * distance, 1 - BURST * distance)


def alike_pairs(
    vectors: NDArray[np.float16] | Floats,
    least: float,
    *,
    index: VectorIndex | None = None,
    ids: Ints | None = None,
) -> Pairs:
    """Return the pairs of rows whose cosine is at least `least`.

    Of one row, the `NEIGHBOURS` most similar later ones are kept. Time is that of the product of
    all rows with each other, a block at a time, or, with an index, that of a search for each row.

    Args:
        vectors: `float[n, dim]`, unit rows.
        least: a cosine.
        index: holds the rows, and perhaps others; where it is approximate, pairs may be missed.
        ids: `int64[n]`, under which the index holds them; 0 to n - 1 if not given.
    """
    if index is not None:
        keys = np.arange(len(vectors)) if ids is None else ids
        return _found_pairs(vectors, least, index, keys)
    rows = np.asarray(vectors, dtype=np.float32)
    block = max(1, BLOCK_BYTES // (4 * max(1, len(rows))))
    found: list[tuple[Ints, Ints, Floats]] = []
    for start in range(0, len(rows), block):
        # Only what comes later: each pair is seen once.
        scores = rows[start : start + block] @ rows[start:].T
        i, j = np.nonzero(scores >= least)
        later = j > i
        i, j = i[later], j[later]
        i, j, similarity = _most_alike(i, j, scores[i, j])
        found.append((i + start, j + start, similarity))
    return _joined(found)


def short_of_candidates(
    vectors: NDArray[np.float16] | Floats, like: Likeness, most: int = 400
) -> Pairs:
    """Return up to `most` pairs that are alike, but not enough to be candidates.

    They are of different pictures, as far as that can be known without looking, and the hardest to
    tell apart; see `alignment.least_agreement`.

    Args:
        vectors: `float[n, dim]`, unit rows; up to 5,000 of them, from all over, are paired.
        like: the thresholds.
        most: how many pairs, at least 1.
    """
    rows = np.arange(len(vectors))[:: -(-max(1, len(vectors)) // 5_000)]
    pairs = alike_pairs(vectors[rows], like.burst)
    short = np.nonzero(pairs.similarity < like.candidate)[0]
    short = short[:: -(-max(1, len(short)) // most)]
    return Pairs(rows[pairs.first[short]], rows[pairs.second[short]], pairs.similarity[short])


def burst_pairs(
    vectors: NDArray[np.float16] | Floats,
    taken: NDArray[np.float64],
    least: float,
    seconds: float = BURST_SECONDS,
) -> Pairs:
    """Return the pairs taken within `seconds` of each other whose cosine is at least `least`.

    Each picture is compared with the `NEIGHBOURS` that were taken next.

    Args:
        vectors: `float[n, dim]`, unit rows.
        taken: `float64[n]`, seconds; NaN where it is not known.
        least: a cosine.
        seconds: the most between two pictures of one burst.
    """
    order = np.argsort(taken, kind="stable")
    order = order[~np.isnan(taken[order])]
    times, rows = taken[order], np.asarray(vectors[order], dtype=np.float32)
    found: list[tuple[Ints, Ints, Floats]] = []
    for step in range(1, min(NEIGHBOURS + 1, len(order))):
        close = np.nonzero(times[step:] - times[:-step] <= seconds)[0]
        if len(close) == 0:
            break
        similarity = np.einsum("ij,ij->i", rows[close], rows[close + step])
        alike = similarity >= least
        ends = np.stack([order[close], order[close + step]])[:, alike]
        found.append((ends.min(axis=0), ends.max(axis=0), similarity[alike]))
    return _joined(found)


def groups(
    ids: Ints,
    vectors: NDArray[np.float16] | Floats,
    *,
    least: float,
    check: Callable[[Pairs], NDArray[np.bool_]] | None = None,
    index: VectorIndex | None = None,
) -> list[Ints]:
    """Return the groups of near-duplicates, at least two in each, as ids.

    Rows are given the best first: whichever is not in a group yet leads one, and takes in all later
    rows that are alike to it. So every member is alike to the first of its group, and a row of
    pictures, each a little different from the last, never becomes one group.

    Args:
        ids: `int64[n]`.
        vectors: `float[n, dim]`, unit rows.
        least: the cosine from which on pictures are alike.
        check: says of pairs that are which of them stay so.
        index: see `alike_pairs`.
    """
    pairs = alike_pairs(vectors, least, index=index, ids=ids)
    if check is not None:
        pairs = pairs.where(check(pairs))
    return [ids[rows] for rows in _stars(pairs)]


def bursts(
    ids: Ints,
    vectors: NDArray[np.float16] | Floats,
    taken: NDArray[np.float64],
    *,
    least: float,
    seconds: float = BURST_SECONDS,
) -> list[Ints]:
    """Return the groups of pictures taken within seconds of each other and alike; see `groups`.

    Args:
        ids: `int64[n]`.
        vectors: `float[n, dim]`, unit rows, the best picture first.
        taken: `float64[n]`, seconds; NaN where it is not known.
        least: the cosine from which on they are alike.
        seconds: the most between the first of a group and another.
    """
    return [ids[rows] for rows in _stars(burst_pairs(vectors, taken, least, seconds))]


def seconds_of(taken_at: datetime | None) -> float:
    """Return a capture time as what `bursts` and `collapse` compare; NaN where it is not known."""
    # A local time without a zone: only differences count.
    return np.nan if taken_at is None else (taken_at - EPOCH).total_seconds()


def collapse(
    vectors: Floats,
    k: int,
    like: Likeness,
    *,
    taken: NDArray[np.float64] | None = None,
    seconds: float = BURST_SECONDS,
) -> list[Collapsed]:
    """Return the first `k` different answers of a ranking, each with what duplicates it.

    An answer joins the best-ranked one before it that it duplicates (a near-duplicate by vectors
    alone, or of one burst); one that duplicates none is itself among the `k`. All of the ranking is
    looked through, so that the number of duplicates is that among the candidates; what neither is
    among the `k` nor duplicates one of them is left out. A greater `k` changes nothing in the
    first ones.

    Args:
        vectors: `float32[n, dim]`, unit rows, the best answer first.
        k: how many, at least 1; fewer come where fewer are different.
        like: the thresholds.
        taken: `float64[n]`, seconds; NaN where it is not known.
        seconds: the most between two pictures of one burst.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    found: list[Collapsed] = []
    left = np.arange(len(vectors))
    while len(left) and len(found) < k:
        # Not all with all: what is led needs no comparing, and k is small.
        first = left[:COLLAPSED_AT_ONCE]
        similarity = vectors[first] @ vectors[left].T
        same = similarity >= like.alone
        if taken is not None:
            # NaN is close to nothing.
            close = np.abs(taken[left] - taken[first][:, None]) <= seconds
            same |= close & (similarity >= like.burst)
        free = np.ones(len(left), dtype=np.bool_)
        for place, row in enumerate(first.tolist()):
            if not free[place]:
                continue
            if len(found) == k:
                break
            free[place] = False
            others = np.flatnonzero(same[place] & free)
            free[others] = False
            found.append(Collapsed(row, tuple(left[others].tolist())))
        left = left[free]
    return found


def _stars(pairs: Pairs) -> list[Ints]:
    """Return groups of rows: each leader, in the order of rows, and the unled ones alike to it."""
    led: set[int] = set()
    found = []
    for start, end in pairs.stretches():
        leader = int(pairs.first[start])
        if leader in led:
            continue
        members = [row for row in pairs.second[start:end].tolist() if row not in led]
        if members:
            led.update(members)
            found.append(np.array([leader, *sorted(members)], dtype=np.int64))
    return found


def _found_pairs(
    vectors: NDArray[np.float16] | Floats, least: float, index: VectorIndex, ids: Ints
) -> Pairs:
    order = np.argsort(ids)
    found = []
    for start in range(0, len(vectors), 4096):
        neighbours = index.search(vectors[start : start + 4096], NEIGHBOURS + 1)
        i, place = np.nonzero(neighbours.scores >= least)
        seen, similarity = neighbours.ids[i, place], neighbours.scores[i, place]
        at = np.minimum(np.searchsorted(ids, seen, sorter=order), len(ids) - 1)
        j, i = order[at], i + start
        ours = (ids[j] == seen) & (i != j)
        i, j, similarity = i[ours], j[ours], similarity[ours]
        found.append((np.minimum(i, j), np.maximum(i, j), similarity))
    pairs = _joined(found)
    # Either of two may have found the other, or both.
    new = np.ones(len(pairs.first), dtype=bool)
    new[1:] = (np.diff(pairs.first) != 0) | (np.diff(pairs.second) != 0)
    return pairs.where(new)


def _most_alike(i: Ints, j: Ints, similarity: Floats) -> tuple[Ints, Ints, Floats]:
    """Keep the best `NEIGHBOURS` of each `i`, which ascend."""
    counts = np.bincount(i) if len(i) else np.zeros(0, dtype=np.int64)
    if len(counts) == 0 or counts.max() <= NEIGHBOURS:
        return i, j, similarity
    order = np.lexsort((j, -similarity, i))
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = order[place < NEIGHBOURS]
    return i[kept], j[kept], similarity[kept]


def _joined(found: list[tuple[Ints, Ints, Floats]]) -> Pairs:
    """Return pairs in ascending order."""
    if not found:
        return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    first, second, similarity = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((second, first))
    return Pairs(first[order], second[order], similarity[order])
