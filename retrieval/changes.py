"""Where something changes in a folder: told by the system, or found by looking again and again.

Either says too much rather than too little: what it names is looked at, and what turns out to be
as it was costs no more than that. The system's events do not cross networks, and some get lost (a
queue that overflows, a folder that is new), so whoever listens to them looks at the whole folder
now and then.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmsearch.errors import MissingExtra, SourceError
from mmsearch.retrieval.scan import concerns, scan

if TYPE_CHECKING:
    import threading

    from watchfiles.main import FileChange

__all__ = ["Changes", "EventsFailed", "Polling", "Seen", "SystemEvents", "network_file_system"]

NETWORKS = (
    *("9p", "afpfs", "afs", "beegfs", "ceph", "cifs", "davfs", "drvfs", "glusterfs", "gpfs"),
    *("lustre", "ncpfs", "nfs", "nfs4", "orangefs", "prl_fs", "smb2", "smb3", "smbfs", "vboxsf"),
    *("virtiofs", "vmhgfs", "webdav"),
)
"""File systems on which others change files without a word to this machine's kernel."""
LOCAL_FUSE = frozenset({"fuseblk", "fuse.ext2", "fuse.exfat", "fuse.ntfs", "fusectl"})
STEP_MS = 50
GATHER_MS = 100
SCANS_TO_PAUSE = 10
"""Looking takes a tenth of the time at most."""


class EventsFailed(Exception):
    """The system cannot tell of changes, for the reason that this says.

    Attributes:
        advice: what to do about it, where something can be done.
    """

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(reason)
        self.advice = advice


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen.

    Attributes:
        places: paths relative to the folder, of files and folders that changed, came or went.
        everything: something was missed, so all of the folder may have changed.
    """

    places: frozenset[str] = frozenset()
    everything: bool = False


class Changes(ABC):
    """Says where something changes in a folder, from the moment it is made."""

    period = 0.0
    """Seconds that may pass before a change is seen."""

    @abstractmethod
    def wait(self, seconds: float) -> Seen:
        """Return what changed since the last call, after `seconds` at most where that is nothing.

        Raises:
            EventsFailed: no more can be said.
        """

    def close(self) -> None:  # noqa: B027 (looking needs no end)
        """Stop."""


class SystemEvents(Changes):
    """What the system tells (inotify, FSEvents, ReadDirectoryChangesW), through watchfiles."""

    def __init__(self, root: Path, stop: threading.Event) -> None:
        """Begin to listen.

        Raises:
            EventsFailed: the system does not tell.
            MissingExtra: watchfiles is not installed.
        """
        try:
            import watchfiles
        except ImportError as error:
            raise MissingExtra("watchfiles", "watch") from error
        self._watchfiles = watchfiles
        self._stop = stop
        # Events name what links lead to.
        self._root = os.path.realpath(root)
        self._events = self._listen(self._root)
        # Only now does it begin.
        self._begun = self._take()

    def wait(self, seconds: float) -> Seen:
        """Return what changed; see `Changes.wait`. It waits for a fixed fraction of a second."""
        begun, self._begun = self._begun, set()
        return Seen(frozenset(begun | self._take()))

    def close(self) -> None:
        """Stop listening."""
        self._events.close()

    def _take(self) -> set[str]:
        """Return what the system told since it was last asked.

        Raises:
            EventsFailed: it cannot.
        """
        try:
            changes = next(self._events, set())
        except (OSError, RuntimeError, UnicodeError) as error:
            raise _explained(error) from error
        places = {self._place(path) for _, path in changes}
        places = {place for place in places if place and concerns(place)}
        self._make_sure_of(places)
        return places

    def _listen(self, folder: str, *, recursive: bool = True) -> Generator[set[FileChange]]:
        return self._watchfiles.watch(
            folder,
            watch_filter=None,
            step=STEP_MS,
            debounce=GATHER_MS,
            rust_timeout=2 * GATHER_MS,
            yield_on_timeout=True,
            stop_event=self._stop,
            force_polling=False,
            recursive=recursive,
            # To ignore one folder that may not be read would be to miss those after it, too.
            ignore_permission_denied=False,
        )

    def _place(self, path: str) -> str:
        place = os.path.relpath(path, self._root)
        return "" if place == "." else place.replace(os.sep, "/")

    def _make_sure_of(self, places: set[str]) -> None:
        """See whether folders that are new are listened to, which is not told otherwise.

        Raises:
            EventsFailed: the system has no room for more.
        """
        for place in places:
            path = os.path.join(self._root, place)  # noqa: PTH118 (for each of thousands of events)
            if os.path.isdir(path) and not os.path.islink(path):  # noqa: PTH112, PTH114
                try:
                    # Fails where another folder would not be heard.
                    probe = self._listen(path, recursive=False)
                    next(probe)
                    probe.close()
                except FileNotFoundError:
                    continue
                except (OSError, RuntimeError) as error:
                    raise _explained(error) from error
                return


class Polling(Changes):
    """Lists the folder again and again, as `index` does, and compares."""

    def __init__(self, root: Path, stop: threading.Event, interval: float) -> None:
        """Take what is there at present for known."""
        self._root = root
        self._stop = stop
        self._interval = interval
        self._next = 0.0
        self._known: dict[str, object] = {}
        self._look()

    def wait(self, seconds: float) -> Seen:
        """Return what changed; see `Changes.wait`."""
        self._stop.wait(max(0.0, min(seconds, self._next - time.monotonic())))
        if time.monotonic() < self._next:
            return Seen()
        before = self._known
        self._look()
        now = self._known
        return Seen(
            frozenset(
                path for path in before.keys() | now.keys() if before.get(path) != now.get(path)
            )
        )

    def _look(self) -> None:
        began = time.monotonic()
        try:
            found = scan(self._root)
        except SourceError:
            pass  # whether the folder is there is for others to judge
        else:
            self._known = {**found.files, **found.containers, **found.unusable}
        took = time.monotonic() - began
        self.period = max(self._interval, SCANS_TO_PAUSE * took)
        self._next = time.monotonic() + self.period


def network_file_system(folder: Path) -> str | None:
    """Return the kind of network file system that a folder, or one below it, lies on.

    None where there is none, or that cannot be told.

    Raises:
        MissingExtra: psutil is not installed.
    """
    try:
        import psutil
    except ImportError as error:
        raise MissingExtra("psutil", "watch") from error
    real = Path(os.path.realpath(folder))
    home = -1
    kind: str | None = None
    for mounted in psutil.disk_partitions(all=True):
        place = Path(mounted.mountpoint)
        far = _is_network(mounted.fstype, mounted.opts)
        if place != real and place.is_relative_to(real) and far:
            return str(mounted.fstype)
        # The last one mounted hides those before it.
        if real.is_relative_to(place) and len(place.parts) >= home:
            home, kind = len(place.parts), str(mounted.fstype) if far else None
    if kind is None and str(real).startswith("\\\\"):
        return "a network path"
    return kind


def _is_network(kind: str, options: str) -> bool:
    name = kind.lower()
    fuse = name.startswith("fuse") and name not in LOCAL_FUSE
    return name in NETWORKS or fuse or "remote" in options.split(",")


def _explained(error: Exception) -> EventsFailed:
    """Return why the system does not tell of changes, and how that is put right."""
    said = str(error)
    if "limit reached" in said or "No space left" in said:
        return EventsFailed(
            "the system watches no more folders for you"
            + _limit("max_user_watches", "fs.inotify.max_user_watches is {}"),
            "sudo sysctl fs.inotify.max_user_watches=1048576",
        )
    if "Too many open files" in said:
        return EventsFailed(
            "too many programs of yours watch folders"
            + _limit("max_user_instances", "fs.inotify.max_user_instances is {}"),
            "sudo sysctl fs.inotify.max_user_instances=1024",
        )
    return EventsFailed(said)


def _limit(name: str, words: str) -> str:
    try:
        value = Path("/proc/sys/fs/inotify", name).read_text().strip()
    except OSError:
        return ""
    return f" ({words.format(value)})"
