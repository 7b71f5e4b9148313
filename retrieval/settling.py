"""When a change is ready to be looked at: once it has been quiet, or has waited long enough."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Settling"]


@dataclass(slots=True)
class _Change:
    """A place where something changes.

    Attributes:
        first: when that was first seen, or when the file was last seen to grow.
        last: when it was last seen.
        size: of the file at `first`; -1 where there is none.
    """

    first: float
    last: float
    size: int


class Settling:
    """Places where something changes, and which of them are quiet.

    A file that others still write to is let be: it is due once nothing happened to it for `settle`
    seconds. Where something happens again and again it is due after `patience` seconds all the
    same, unless the file has grown meanwhile, which a copy under way does. What is gone waits until
    all that came is quiet, so that a file that moved is seen to leave and to arrive together.

    Attributes:
        settle: seconds of quiet.
        patience: seconds after which constant change is waited for no longer.
        linger: seconds that what is gone waits in addition, for where it went to be seen; 0 where
            both are seen at once.
    """

    def __init__(
        self,
        root: Path,
        *,
        settle: float,
        patience: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root = root
        self.settle = settle
        self.patience = patience
        self.linger = 0.0
        self._clock = clock
        self._changes: dict[str, _Change] = {}

    def __len__(self) -> int:
        return len(self._changes)

    def note(self, places: Iterable[str]) -> None:
        """Note that something happened at some places just now."""
        now = self._clock()
        for place in places:
            change = self._changes.get(place)
            if change is None:
                self._changes[place] = _Change(now, now, self._size(place))
            else:
                change.last = now

    def due(self) -> set[str]:
        """Return the places to look at now."""
        now = self._clock()
        overdue: set[str] = set()
        came: set[str] = set()
        gone: set[str] = set()
        restless = lingering = False
        for place, change in self._changes.items():
            quiet = now - change.last
            late = now - change.first >= self.patience
            if quiet < self.settle and not late:
                restless = True
                continue
            size = self._size(place)
            if quiet < self.settle and size > change.size >= 0:
                change.first, change.size = now, size
                restless = True
            elif late:
                overdue.add(place)
            elif size >= 0:
                came.add(place)
            elif quiet < self.settle + self.linger:
                lingering = True
            else:
                gone.add(place)
        if lingering:
            # What came may be what is gone, by its new name.
            return overdue
        return overdue | came if restless else overdue | came | gone

    def rest(self, due: Collection[str]) -> set[str]:
        """Return the places that are not due, and not to be looked at yet."""
        return self._changes.keys() - set(due)

    def done(self, places: Iterable[str]) -> None:
        """Forget places that were looked at since the last call of `note`."""
        for place in places:
            self._changes.pop(place, None)

    def clear(self) -> None:
        """Forget all of them."""
        self._changes.clear()

    def _size(self, place: str) -> int:
        try:
            return os.lstat(self._root / place).st_size
        except OSError:
            return -1
