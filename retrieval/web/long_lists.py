"""Long answers that pages are cut from: made a piece at a time, kept until the library changes.

The first answers of a question are those that were asked for, grouped, spread or reranked, words
fused in. Of what follows only what vectors say counts: to compare each of 50,000 answers with all
before it would take minutes, and nobody looks that far for near-duplicates.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    from mmsearch.retrieval.schema import Hit, Results

__all__ = ["FIRST", "FURTHER", "LongLists", "Page", "Step", "key_of"]

FIRST = (100, 500)
"""Answers that are made as they were asked for: few at once, the rest when they are needed."""
FURTHER = (5_000, 20_000)
"""The next answers; beyond them all that there may be are made together."""
KEPT_HITS = 250_000
"""Answers kept of all questions together, the latest questions' first."""


@dataclass(frozen=True, slots=True)
class Page:
    """A piece of a long answer.

    Attributes:
        results: its hits, ranked within the whole.
        total: how many answers there are in all; None until that is known.
    """

    results: Results
    total: int | None


@dataclass(frozen=True, slots=True)
class Step:
    """How a list is made longer.

    Attributes:
        count: how many answers it has afterwards, if there are as many.
        ask: returns so many of the first answers.
        kept: whether it is done even where more are needed, as what it makes is made by no other.
    """

    count: int
    ask: Callable[[int], Awaitable[Results]]
    kept: bool = False


@dataclass(slots=True, eq=False)
class _Long:
    stamp: str
    results: Results | None = None
    hits: list[Hit] = field(default_factory=list)
    seen: set[tuple[str, str | None]] = field(default_factory=set)
    made: int = 0  # steps that were done, or passed over
    complete: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def extend(self, results: Results, without: Collection[int]) -> None:
        """Put what is new behind what is there."""
        if self.results is None:
            self.results = replace(results, hits=())
        for hit in results.hits:
            name = hit.path, hit.caption
            # What was shown as another's near-duplicate is not shown again.
            if hit.id not in without and name not in self.seen:
                self.hits.append(hit)
            self.seen.add(name)
            self.seen.update((path, hit.caption) for path in hit.others)


class LongLists:
    """The long answers of one library. To be used from one event loop."""

    def __init__(self, depth: int) -> None:
        """Keep lists of at most `depth` answers."""
        self._depth = depth
        self._lists: OrderedDict[str, _Long] = OrderedDict()

    async def page(
        self,
        key: str,
        stamp: str,
        steps: Sequence[Step],
        offset: int,
        k: int,
        *,
        without: Collection[int] = (),
    ) -> Page:
        """Return answers `offset + 1` to `offset + k` of a question.

        Args:
            key: tells questions apart, what is left out included.
            stamp: the library's state.
            steps: how the list is made, as far as it is needed; where the last ends, it ends.
            offset: at least 0.
            k: at least 1.
            without: ids of pictures that are left out; answers grouped with them go, too.
        """
        long = self._lists.get(key)
        if long is None or long.stamp != stamp:
            long = self._lists[key] = _Long(stamp)
        self._lists.move_to_end(key)
        end = min(offset + k, self._depth)
        async with long.lock:
            while long.results is None or (len(long.hits) < end and not long.complete):
                at = long.made
                while not (steps[at].kept or steps[at].count >= end or at == len(steps) - 1):
                    at += 1
                step = steps[at]
                asked = min(step.count, self._depth) + len(without)
                found = await step.ask(asked)
                extending = asyncio.ensure_future(asyncio.to_thread(long.extend, found, without))
                try:
                    await asyncio.shield(extending)
                except asyncio.CancelledError:
                    # Whoever asked is gone; the list is for the next, and whole.
                    await extending
                    raise
                finally:
                    long.made = at + 1
                last = long.made == len(steps) or step.count >= self._depth
                long.complete = last or len(found.hits) < asked
        self._forget(key)
        count = min(len(long.hits), self._depth)
        rows = long.hits[offset : min(end, count)]
        hits = tuple(replace(hit, rank=rank) for rank, hit in enumerate(rows, offset + 1))
        return Page(replace(long.results, hits=hits), count if long.complete else None)

    def _forget(self, kept: str) -> None:
        total = sum(len(long.hits) for long in self._lists.values())
        while total > KEPT_HITS and next(iter(self._lists)) != kept:
            _, long = self._lists.popitem(last=False)
            total -= len(long.hits)


def key_of(asked: Mapping[str, Any], without: Collection[int] = ()) -> str:
    """Return what tells questions apart; pictures are told by their pixels."""
    return repr((sorted((name, _told(value)) for name, value in asked.items()), sorted(without)))


def _told(value: object) -> str:
    if isinstance(value, Image.Image):
        return f"{value.size} {hashlib.sha256(value.tobytes()).hexdigest()}"
    if isinstance(value, (list, tuple)):
        return repr([_told(each) for each in value])
    return repr(value)
