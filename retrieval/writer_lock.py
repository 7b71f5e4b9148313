"""The lock of the one process that writes to a library, and who that is.

The lock is the operating system's: it ends with the process that holds it, however that ends, so a
lock file that lies around means nothing. Who holds it is said in a file beside it, because a locked
file cannot be read on Windows.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmsearch.errors import LibraryLocked, StorageError

if TYPE_CHECKING:
    from filelock import BaseFileLock

__all__ = ["HOLDER", "LOCK", "Holder", "writing"]

logger = logging.getLogger(__name__)

LOCK = "lock"
HOLDER = "lock.holder"
OURSELVES = ("cli.py", "mmsearch", "mmsearch.exe")
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}
"""What a file system without locks answers, such as NFS without its lock service."""
LOOK_AGAIN_S = 0.1
SIGNED_WITHIN_S = 0.5
"""How long whoever took the lock is given to say so."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who writes to a library.

    Attributes:
        pid: of the process.
        host: the name of its machine.
        command: its program and, if that is mmsearch, the command; none of its other arguments.
        since: when it began to, in seconds since 1970.
    """

    pid: int
    host: str
    command: str
    since: float

    @classmethod
    def this_process(cls) -> Holder:
        """Return what this process would say of itself."""
        program = Path(sys.argv[0] if sys.argv else "").name
        if program in OURSELVES:
            program = " ".join(["mmsearch", *sys.argv[1:2]])
        return cls(os.getpid(), socket.gethostname(), program or "python", time.time())

    @classmethod
    def read(cls, file: Path) -> Holder | None:
        """Return what a file says; None where there is none, or nothing that makes sense."""
        try:
            said = json.loads(file.read_bytes())
            return cls(
                int(said["pid"]), str(said["host"]), str(said["command"]), float(said["since"])
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def is_here(self) -> bool:
        """Whether it runs on this machine."""
        return self.host == socket.gethostname()

    @property
    def may_live(self) -> bool:
        """Whether the process may still exist; for certain on this machine only."""
        if not self.is_here or os.name == "nt":
            return True
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except OSError:
            pass  # another user's
        return True

    def __str__(self) -> str:
        where = "" if self.is_here else f" on {self.host}"
        return f"pid {self.pid}{where}, {self.command}, {_duration(time.time() - self.since)}"


@contextmanager
def writing(folder: Path, what: Path, *, wait: float = 0.0) -> Iterator[bool]:
    """Be the one process that writes; yield whether another one had to be waited for.

    Args:
        folder: the library's own folder.
        what: what messages call it.
        wait: seconds to wait for another one to finish; `math.inf` for as long as it takes. Who
            is waited for is logged once, as a warning.

    Raises:
        LibraryLocked: another one is at it, and was not done in time.
        StorageError: the folder cannot be written to, or lies where locks do not work.
    """
    lock = _lock(folder / LOCK)
    try:
        waited = _acquire(lock, folder / HOLDER, what, wait)
    except NotImplementedError as error:
        raise _without_locks(folder, str(error)) from error
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise _without_locks(folder, error.strerror or str(error)) from error
        raise StorageError(
            f"The library {folder} cannot be written to: {error.strerror}."
        ) from error
    try:
        _sign(folder / HOLDER)
        yield waited
    finally:
        with suppress(OSError):
            (folder / HOLDER).unlink()
        lock.release()


def _acquire(lock: BaseFileLock, holder: Path, what: Path, wait: float) -> bool:
    from filelock import Timeout

    with suppress(Timeout):
        lock.acquire(blocking=False)
        return False
    if wait > 0:
        logger.warning("waiting for %s to finish with %s", _named(holder), what)
        with suppress(Timeout):
            lock.acquire(timeout=-1 if math.isinf(wait) else wait, poll_interval=LOOK_AGAIN_S)
            return True
    raise LibraryLocked(
        f"{_named(holder, capital=True)} is writing to {what}. Queries work meanwhile; run this "
        "command again when it has finished, or let it wait for that with --wait."
    )


def _named(holder: Path, *, capital: bool = False) -> str:
    another = f"{'A' if capital else 'a'}nother mmsearch"
    ends = time.monotonic() + SIGNED_WITHIN_S
    while True:
        said = Holder.read(holder)
        if said is not None and said.may_live:
            return f"{another} ({said})"
        # One that is dead was killed, and whoever holds the lock now has not said so yet.
        if time.monotonic() > ends:
            return another
        time.sleep(LOOK_AGAIN_S / 10)


def _sign(file: Path) -> None:
    """Say that this process holds the lock."""
    former = Holder.read(file)
    if former is not None and not former.is_here:
        # Some file systems of networks lock for one machine only, and do not say so.
        logger.warning(
            "mmsearch on %s began to write here (%s) and did not say that it ended. If it is still "
            "at it, locks do not reach from one machine to the other: stop one of them",
            former.host,
            former,
        )
    # Nothing depends on it: on a full disk the work itself says so.
    with suppress(OSError):
        temporary = file.with_name(f"{file.name}.{os.getpid()}")
        temporary.write_text(json.dumps(asdict(Holder.this_process())))
        temporary.replace(file)


def _lock(path: Path) -> BaseFileLock:
    from filelock import FileLock

    try:
        # A file whose presence is a lock outlives a process that was killed.
        return FileLock(path, fallback_to_soft=False)
    except TypeError:
        return FileLock(path)  # an earlier version, which has no such thing


def _without_locks(folder: Path, reason: str) -> StorageError:
    return StorageError(
        f"{folder} lies where files cannot be locked ({reason}), and two writers at once would "
        "damage a library. Mount it with locks (NFS: with its lock service, or local_lock=all "
        "where only this machine writes), or keep the pictures on another disk."
    )


def _duration(seconds: float) -> str:
    """Say for how long, in the unit that a person would choose."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"for {count} {unit}{'s' if count > 1 else ''}"
    return f"for {max(0, int(seconds))} s"
