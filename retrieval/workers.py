"""How many threads read pictures at once: found by trying, while the work goes on.

What is best depends on the disk (a slow one is waited for, by many threads at once), on the
pictures and on what the encoder leaves of the cores. So neighbouring sizes are tried in turn, and
the one that brings more pictures through the whole run is kept.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition

__all__ = ["Climb", "Workers"]

GAIN = 1.05
"""A size must be better by this factor to be moved to: rates of two windows differ by chance."""

WINDOW_S = 1.0
BATCHES_PER_WINDOW = 12
"""A rate is that of at least so many batches in at least so many seconds."""

SETTLING = 6
"""Batches after a change that tell of the size before: as many as may lie ahead, and two more."""

FIRST_REST = 4
LONGEST_REST = 64
"""Windows between two looks around: doubled each time that nothing better was found."""


class Climb:
    """Walks to the size with the highest rate, one neighbour at a time, and looks again later.

    Every try is compared with the window just before it, so that a folder whose pictures change
    from small to large does not look like a gain or a loss.
    """

    def __init__(self, start: int, most: int) -> None:
        """Begin at `start`, between 1 and `most`."""
        self.size = start
        self._most = most
        self._home = start
        self._home_rate = 0.0
        self._direction = 1
        self._failed = 0
        self._rest = 0
        self._next_rest = FIRST_REST

    def saw(self, rate: float) -> int:
        """Take the rate reached at `size`; return the size to try now."""
        if self.size != self._home and rate > GAIN * self._home_rate:
            self._home = self.size
            self._failed = 0
            self._next_rest = FIRST_REST
        elif self.size != self._home:
            self.size = self._home
            self._turn()
            return self.size
        self._home_rate = rate
        if self._rest:
            self._rest -= 1
            return self.size
        self.size = self._neighbour()
        if self.size == self._home:
            self._turn()
            self.size = self._neighbour() if not self._rest else self._home
        return self.size

    def _neighbour(self) -> int:
        step = max(1, self._home // 4)
        return min(self._most, max(1, self._home + self._direction * step))

    def _turn(self) -> None:
        """Look the other way next; rest when neither way was better."""
        self._direction = -self._direction
        self._failed += 1
        if self._failed == 2:
            self._failed = 0
            self._rest = self._next_rest
            self._next_rest = min(2 * self._next_rest, LONGEST_REST)


class Workers:
    """A changing number of places for threads that read.

    Attributes:
        most: how many places there can ever be, for whoever makes the threads.
    """

    def __init__(
        self,
        *,
        start: int | None = None,
        most: int | None = None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Begin with `start` places, one more than cores when not given.

        Args:
            start: how many may read at first.
            most: how many may ever; twice the cores and four where it is not given, since a
                network's disk is waited for rather than worked for.
            now: tells the time in seconds.
        """
        cores = os.cpu_count() or 1
        self.most = most or 2 * cores + 4
        self._climb = Climb(min(start or cores + 1, self.most), self.most)
        self._now = now
        self._window = now(), 0, 0
        self._settling = 1
        self._taken = 0
        self._changed = Condition()

    @property
    def size(self) -> int:
        """How many may read at once, at present."""
        return self._climb.size

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold one of the places while the block runs; wait until one is free."""
        with self._changed:
            self._changed.wait_for(lambda: self._taken < self.size)
            self._taken += 1
        try:
            yield
        finally:
            with self._changed:
                self._taken -= 1
                self._changed.notify_all()

    def finished(self, pictures: int) -> None:
        """Hear that so many more pictures, a batch, have gone through; called by one thread."""
        now = self._now()
        if self._settling:
            # What came before was also the loading of a model, or was read by as many as before:
            # fewer readers leave the encoder more, and for a while it lives on what lies ahead.
            self._settling -= 1
            self._window = now, 0, 0
            return
        since, before, batches = self._window
        self._window = since, before + pictures, batches + 1
        if now - since < WINDOW_S or batches + 1 < BATCHES_PER_WINDOW:
            return
        self._window = now, 0, 0
        with self._changed:
            tried = self.size
            self._climb.saw((before + pictures) / (now - since))
            if self.size != tried:
                self._settling = SETTLING
            self._changed.notify_all()
