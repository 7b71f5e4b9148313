"""Keeping the library of a folder up to date while the folder changes.

The first run is an `index`; then places where something changed are looked at by runs of the same
kind, once they are quiet (`settling`). Many places at once, or a doubt whether all was told, and
the whole folder is looked at. The library is open, and its lock held, during a run only.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from mmsearch.errors import (
    LibraryError,
    LibraryLocked,
    LibraryNotFound,
    ModelMismatch,
    SourceError,
    StorageError,
)
from mmsearch.retrieval.captions import SIDECAR_SUFFIXES
from mmsearch.retrieval.changes import (
    Changes,
    EventsFailed,
    Polling,
    SystemEvents,
    network_file_system,
)
from mmsearch.retrieval.embedding import Progress
from mmsearch.retrieval.encoders import DEFAULT_MODEL, Encoder, load_encoder
from mmsearch.retrieval.ingest import IndexReport, expanded, index
from mmsearch.retrieval.library import Library, catalog_of
from mmsearch.retrieval.scan import IGNORE_FILE, may_be_listed
from mmsearch.retrieval.settling import Settling

__all__ = ["WatchEvent", "WatchKind", "watch"]

logger = logging.getLogger(__name__)

SETTLE_S = 0.5
PATIENCE_S = 30.0
POLL_S = 2.0
TICK_S = 0.25
MANY = 1_000
"""Places; beyond, to list the whole folder takes less than to look at each."""
DOUBT_S = 600.0
"""Some time after something changed the whole folder is looked at, for what was not told."""
AWAY_S = 1.0
LONGEST_PAUSE_S = 60.0
FAILURES = 3
"""Times in a minute that the system's events may fail before they are done without."""


class WatchKind(StrEnum):
    """What a `WatchEvent` is about."""

    WATCHING = "watching"
    """The system tells of changes."""
    POLLING = "polling"
    """The folder is listed again and again instead."""
    INDEXED = "indexed"
    """A run has ended; readers see what it did."""
    WAITING = "waiting"
    """Another process writes to the library; what changed is looked at afterwards."""
    GONE = "gone"
    """The folder is not there; nothing is forgotten."""
    BACK = "back"
    """The folder is there again."""
    FAILED = "failed"
    """A run could not do its work; it is tried again."""


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """Something that happened while a folder was watched.

    Attributes:
        message: in words, where there is more to say than the kind does.
        report: what a run did.
        places: the paths, relative to the folder, that a run looked at; None for all of them.
    """

    kind: WatchKind
    message: str = ""
    report: IndexReport | None = None
    places: tuple[str, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the object that `watch --json` prints on a line."""
        fields: dict[str, Any] = {
            "schema": 1,
            "event": self.kind.value,
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
        if self.message:
            fields["message"] = self.message
        if self.report is not None:
            fields["places"] = None if self.places is None else list(self.places)
            fields |= self.report.to_json()
        return fields


def watch(
    folder: Path | str,
    *,
    model: str | Path | Encoder | None = None,
    poll: float | None = None,
    settle: float = SETTLE_S,
    stop: threading.Event | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Iterator[WatchEvent]:
    """Index a folder, and keep its library up to date while the folder changes.

    Adds, changes, moves and deletes of pictures, their captions and `.mmsearchignore` are followed.
    On network folders, of which the system does not tell, the folder is listed again and again.

    Args:
        folder: the pictures, as for `index`; it may be empty at first.
        model: the encoder of a new library.
        poll: seconds between two listings of the folder, to list it whatever system it is on.
        settle: seconds for which a file must be quiet before it is read, so that none is that is
            still being copied.
        stop: ends the watching when set, from any thread.
        progress: called often during runs, from this thread.

    Yields:
        What happens, as it happens. The watching goes on while the next event is asked for, and
        ends when the iterator is closed.

    Raises:
        SourceError: there is no such folder.
        MissingExtra: the extra `watch` is missing.
        ModelError: a model cannot be used.
        ModelMismatch: another model than the library's.
        StorageError: the library cannot be made.
    """
    place = expanded(folder).absolute()
    if not place.is_dir():
        raise SourceError(f"There is no folder {place} to watch. Check the path.")
    watcher = _Watcher(place, model, poll, settle, stop or threading.Event(), progress)
    return watcher.events()


class _Stopped(Exception):
    """The watching is to end, in the middle of a run."""


class _Watcher:
    """One folder, and what is known of its changes."""

    def __init__(
        self,
        root: Path,
        model: str | Path | Encoder | None,
        poll: float | None,
        settle: float,
        stop: threading.Event,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self._root = root
        self._poll = poll
        self._settle = settle
        self._stop = stop
        self._progress = progress
        self._encoder = _encoder(root, model)
        self._settling = Settling(root, settle=settle, patience=max(PATIENCE_S, 2 * settle))
        self._source: Changes | None = None
        self._failures: list[float] = []
        self._identity: tuple[int, int] | None = None
        self._had_library = False
        self._whole = True
        """The whole folder is to be looked at."""
        self._doubt = False
        """Something changed since the whole folder was looked at."""
        self._looked_at = 0.0
        self._not_before = 0.0
        self._pause = 1.0
        self._told: tuple[WatchKind, str] | None = None

    def events(self) -> Iterator[WatchEvent]:
        """Yield what happens."""
        try:
            yield from self._listen()
            while not self._stop.is_set():
                if not self._is_there():
                    yield from self._away()
                    continue
                assert self._source is not None
                try:
                    seen = self._source.wait(0.0 if self._whole else TICK_S)
                except EventsFailed as failure:
                    yield from self._listen(failure)
                    continue
                self._note(seen.places, everything=seen.everything)
                yield from self._work()
        except _Stopped:
            return
        finally:
            self._close()

    def _listen(self, failure: EventsFailed | None = None) -> Iterator[WatchEvent]:
        """Begin to listen, or to look again and again; what happened before is not known."""
        self._close()
        self._whole = True
        try:
            status = self._root.stat()
        except OSError:
            self._identity = None
            return
        self._identity = status.st_dev, status.st_ino
        reason = None if self._poll is not None else self._reason_to_poll(failure)
        if self._poll is None and reason is None:
            try:
                self._source = SystemEvents(self._root, self._stop)
            except EventsFailed as error:
                reason = error
            else:
                self._settling.settle, self._settling.linger = self._settle, 0.0
                if failure is None:
                    yield WatchEvent(WatchKind.WATCHING)
                return
        self._poll = self._poll or POLL_S
        self._source = Polling(self._root, self._stop, self._poll)
        words = f"{self._root} is listed every {self._source.period:.3g} s"
        if reason is not None:
            words += f", because {reason}"
            words += f". To change that: {reason.advice}" if reason.advice else ""
        yield WatchEvent(WatchKind.POLLING, words)

    def _reason_to_poll(self, failure: EventsFailed | None) -> EventsFailed | None:
        """Return why the system's events are not to be relied on; None where they are."""
        if failure is not None:
            now = time.monotonic()
            self._failures = [*(at for at in self._failures if now - at < 60), now]
            return failure if failure.advice or len(self._failures) >= FAILURES else None
        network = network_file_system(self._root)
        if network is None:
            return None
        return EventsFailed(f"it lies on a network ({network}), which does not tell of changes")

    def _away(self) -> Iterator[WatchEvent]:
        """Wait until the folder is back."""
        self._close()
        yield WatchEvent(WatchKind.GONE, f"{self._root} is not there; nothing is forgotten")
        while not self._stop.wait(AWAY_S):
            if self._root.is_dir() and (not self._had_library or _has_library(self._root)):
                self._settling.clear()
                yield WatchEvent(WatchKind.BACK, f"{self._root} is there again")
                yield from self._listen()
                return

    def _is_there(self) -> bool:
        try:
            status = self._root.stat()
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._identity

    def _note(self, places: Collection[str], *, everything: bool) -> None:
        if IGNORE_FILE in places or everything:
            self._whole = True
        looked_at = [place for place in places if self._matters(place)]
        if looked_at:
            self._doubt = True
            self._settling.note(looked_at)

    def _matters(self, place: str) -> bool:
        """Say whether a scan would look at a place, or below it, now or before."""
        if may_be_listed(place) or place.endswith(SIDECAR_SUFFIXES):
            return True
        path = self._root / place
        try:
            return path.is_dir() or not path.exists()
        except OSError:
            return True

    def _work(self) -> Iterator[WatchEvent]:
        """Do what is due, where something is."""
        now = time.monotonic()
        if now < self._not_before:
            return
        assert self._source is not None
        if self._source.period:
            # Not before it was looked at again.
            self._settling.settle = max(self._settle, 1.1 * self._source.period)
            self._settling.linger = self._source.period
        due = self._settling.due()
        idle = not self._settling and now - self._looked_at > DOUBT_S
        if self._doubt and idle and not self._source.period:
            self._whole = True
        if len(due) > MANY:
            self._whole = True
        if self._whole:
            yield from self._run(None, due)
        elif due:
            yield from self._run(self._worth_a_run(due), due)

    def _worth_a_run(self, due: set[str]) -> set[str]:
        """Leave out what is gone and was neither a picture nor a folder of pictures."""
        odd = {p for p in due if not may_be_listed(p) and not p.endswith(SIDECAR_SUFFIXES)}
        odd = {place for place in odd if not (self._root / place).exists()}
        if not odd:
            return due
        try:
            with closing(Library.open(self._root)) as library:
                return due - {place for place in odd if not library.catalog.holds_below(place)}
        except LibraryError:
            return due

    def _run(self, only: set[str] | None, due: set[str]) -> Iterator[WatchEvent]:
        """Bring the library up to date, and say how that went."""
        if only is not None and not only:
            self._settling.done(due)
            return
        began = time.monotonic()
        try:
            report = index(
                self._root,
                model=self._encoder,
                only=only,
                later=self._settling.rest(due),
                progress=self._follow,
            )
        except LibraryLocked as error:
            self._not_before = time.monotonic() + 1.0
            yield from self._tell(WatchKind.WAITING, str(error), of="")
        except LibraryNotFound:
            # Somebody deleted the library; the folder is there.
            self._whole = True
        except ModelMismatch:
            # Somebody gave the library another model meanwhile.
            if not self._had_library:
                raise
            self._encoder = _encoder(self._root, None)
        except (SourceError, StorageError, OSError) as error:
            yield from self._failed(error, due)
        else:
            self._settling.done(due)
            self._had_library = True
            self._pause, self._told = 1.0, None
            if only is None:
                self._whole, self._doubt = False, bool(self._settling)
                self._looked_at = time.monotonic()
            # Others get their turn to write, however much happens.
            took = time.monotonic() - began
            self._not_before = time.monotonic() + min(took, 5.0) / 2
            places = None if only is None else tuple(sorted(only))
            yield WatchEvent(WatchKind.INDEXED, report=report, places=places)

    def _failed(self, error: Exception, due: set[str]) -> Iterator[WatchEvent]:
        """Put a run off that could not do its work."""
        if not self._is_there():
            return
        if isinstance(error, SourceError):
            # Nothing changes that until something in the folder does.
            self._settling.done(due)
            self._whole = False
        elif not self._had_library:
            raise error
        self._not_before = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE_S)
        yield from self._tell(WatchKind.FAILED, str(error), of=str(error))

    def _tell(self, kind: WatchKind, message: str, *, of: str) -> Iterator[WatchEvent]:
        """Say something once, until a run succeeds or something else is to be said."""
        if self._told != (kind, of):
            self._told = kind, of
            yield WatchEvent(kind, message)

    def _follow(self, progress: Progress) -> None:
        """Pass on how far a run is, or end it: what it has written so far is whole."""
        if self._stop.is_set():
            raise _Stopped
        if self._progress is not None:
            self._progress(progress)

    def _close(self) -> None:
        if self._source is not None:
            self._source.close()
            self._source = None


def _encoder(root: Path, model: str | Path | Encoder | None) -> Encoder:
    """Load the encoder once, for all runs."""
    if model is None:
        try:
            with closing(Library.open(root)) as library:
                model = library.model
        except LibraryNotFound:
            model = None
    return load_encoder(model or DEFAULT_MODEL)


def _has_library(root: Path) -> bool:
    try:
        catalog_of(root)
    except LibraryError:
        return False
    return True
