"""Where the time of a run goes, and which of its stages holds the others up.

Two clocks for each stage. *At work* says how busy it is; stages overlap, so these parts need not
add up to one. *In the way* says for how long nothing could be embedded because of it: the encoder
is the stage that all pictures pass one batch at a time, so whatever its thread spends its time on,
or waits for, is what the run's speed depends on.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from threading import Lock

__all__ = ["Pace", "Stage"]

REMEMBERED = 16
"""How many remarks ago the remark of a long run begins to look: it tells of now, not of hours."""


class Stage(StrEnum):
    """What a picture goes through on its way into a library."""

    SCAN = "scan"
    """Listing the folder."""

    DECODE = "decode"
    """Reading, hashing and decoding, by several threads."""

    ENCODE = "encode"
    """Embedding pictures and captions."""

    WRITE = "write"
    """Transactions of the catalog."""


@dataclass(frozen=True, slots=True)
class _Reading:
    """Both clocks of every stage, and the seconds that threads were there to decode."""

    at: float
    worked: dict[Stage, float]
    in_the_way: dict[Stage, float]
    reading: float


class Pace:
    """The clocks of one run. Safe to use from several threads."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        """Start the clocks; `now` tells the time in seconds."""
        self._now = now
        self._lock = Lock()
        self._worked = dict.fromkeys(Stage, 0.0)
        self._in_the_way = dict.fromkeys(Stage, 0.0)
        self._workers = 1
        self._reading = 0.0
        self._read_until = now()
        self._start = self._look()
        self._recent = deque([self._start], maxlen=REMEMBERED)

    @property
    def workers(self) -> int:
        """How many threads may decode at once."""
        return self._workers

    @workers.setter
    def workers(self, count: int) -> None:
        with self._lock:
            self._count_reading()
            self._workers = count

    @contextmanager
    def at_work(self, stage: Stage) -> Iterator[None]:
        """Add the block's time to what `stage` was at work."""
        with self._timed(self._worked, stage):
            yield

    @contextmanager
    def in_the_way(self, stage: Stage) -> Iterator[None]:
        """Add the block's time to what the encoder waited for `stage`."""
        with self._timed(self._in_the_way, stage):
            yield

    def waited(self, stage: Stage, seconds: float) -> None:
        """Add `seconds` to what the encoder waited for `stage`."""
        with self._lock:
            self._in_the_way[stage] += seconds

    @contextmanager
    def alone(self, stage: Stage) -> Iterator[None]:
        """Add the block's time to both: `stage` is at work, and nothing is embedded meanwhile.

        Of the encoder's own work the second half means: it goes no faster than this.
        """
        with self.at_work(stage), self.in_the_way(stage):
            yield

    def shares(self) -> dict[Stage, float]:
        """Return the part of the run so far that each stage was at work, 0 to 1.

        That of decoding is the mean of the threads that were there for it.
        """
        return _shares(self._start, self._look())

    def bottleneck(self) -> Stage | None:
        """Return the stage that held the run up for longest; None when nothing took any time."""
        return _longest(self._start, self._look())

    def remark(self) -> str:
        """Return what holds the run up at present, for people; empty before there is a word to say.

        "decode-bound: 3 workers, encoder 41 % busy"
        """
        with self._lock:
            before = self._recent[0]
        look = self._look()
        with self._lock:
            self._recent.append(look)
        stage = _longest(before, look)
        if stage is None:
            return ""
        workers = f"{self._workers} worker{'' if self._workers == 1 else 's'}"
        busy = _shares(before, look)
        encoder = f"{100 * busy[Stage.ENCODE]:.0f} %"
        match stage:
            case Stage.DECODE:
                return f"decode-bound: {workers}, encoder {encoder} busy"
            case Stage.ENCODE:
                return f"encode-bound: {workers}, {100 * busy[Stage.DECODE]:.0f} % busy"
            case _:
                return f"{stage}-bound: encoder {encoder} busy"

    @contextmanager
    def _timed(self, clock: dict[Stage, float], stage: Stage) -> Iterator[None]:
        started = self._now()
        try:
            yield
        finally:
            with self._lock:
                clock[stage] += self._now() - started

    def _count_reading(self) -> None:
        now = self._now()
        self._reading += (now - self._read_until) * self._workers
        self._read_until = now

    def _look(self) -> _Reading:
        with self._lock:
            self._count_reading()
            return _Reading(
                self._read_until, dict(self._worked), dict(self._in_the_way), self._reading
            )


def _shares(first: _Reading, last: _Reading) -> dict[Stage, float]:
    seconds = dict.fromkeys(Stage, last.at - first.at)
    seconds[Stage.DECODE] = last.reading - first.reading
    return {
        # A block that ends between two looks is counted whole in the second.
        stage: min(1.0, (last.worked[stage] - first.worked[stage]) / max(seconds[stage], 1e-9))
        for stage in Stage
    }


def _longest(first: _Reading, last: _Reading) -> Stage | None:
    waited = {stage: last.in_the_way[stage] - first.in_the_way[stage] for stage in Stage}
    longest = max(Stage, key=waited.__getitem__)
    return longest if waited[longest] > 0 else None
