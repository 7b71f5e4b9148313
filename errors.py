"""Every error mmsearch raises on purpose.

A message says what happened, what was expected and what to do about it; faces print it as it is.

* MmsearchError
  x LibraryError          a library on disk cannot be used
    - LibraryNotFound
    - LibraryLocked       another process is writing to it
    - LibraryTooNew       made by a later version of mmsearch
    - ModelMismatch       built with another encoder than the one asked for
    - StorageError        the disk is full, read-only or damaged
      + ConnectionLost    a catalog's server cannot be reached, or the connection was cut
    - StoreError          what searches the vectors elsewhere refuses, or holds something else
      + StoreUnavailable  nobody answers there, or not in time; to be tried again
  x SourceError           a folder to index, a captions file or a pairs file cannot be used
  x ModelError            an encoder is unknown, incomplete or altered
  x TrainingError         a training cannot start or go on
  x QueryError            the question itself cannot be asked (also a ValueError)
    - RequestTooLarge     what is sent is more than a server takes
  x MediaError            one picture cannot be read; carries the `kind` of the problem
  x ClusterError          machines that were to share the work cannot be reached or used
  x ServerError           a server did not answer as one should
    - ServerUnreachable   nobody answers there, or not in time
    - TokenRefused        it asks for a token, or for another one
    - ServerBusy          too much is asked of it; carries the `seconds` to wait
    - NotServed           it has no such library or picture
  x MissingExtra          an optional dependency is not installed (also an ImportError)
"""

from __future__ import annotations

import shlex
from pathlib import Path

__all__ = [
    "ClusterError",
    "ConnectionLost",
    "LibraryError",
    "LibraryLocked",
    "LibraryNotFound",
    "LibraryTooNew",
    "MediaError",
    "MissingExtra",
    "MmsearchError",
    "ModelError",
    "ModelMismatch",
    "NotServed",
    "QueryError",
    "RequestTooLarge",
    "ServerBusy",
    "ServerError",
    "ServerUnreachable",
    "SourceError",
    "StorageError",
    "StoreError",
    "StoreUnavailable",
    "TokenRefused",
    "TrainingError",
    "first_line",
    "quoted",
]


def quoted(path: Path | str) -> str:
    """Return a path as one word of a command that can be pasted into a shell."""
    return shlex.quote(str(path))


def first_line(error: BaseException) -> str:
    """Return the first line that a library's error says, without a stop; its name if it says none.

    What follows are often many lines of a trace.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")


class MmsearchError(Exception):
    """Root of every error raised on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class LibraryError(MmsearchError):
    """A library on disk cannot be used."""


class LibraryNotFound(LibraryError):
    """There is no library where one was looked for."""


class LibraryLocked(LibraryError):
    """Another process is writing to the library."""


class LibraryTooNew(LibraryError):
    """The library was made by a later version of mmsearch."""


class ModelMismatch(LibraryError):
    """The library was built with another encoder than the one asked for."""


class StorageError(LibraryError):
    """The disk is full, read-only or damaged."""


class ConnectionLost(StorageError):
    """The server that keeps a catalog cannot be reached, or the connection to it was cut."""


class StoreError(LibraryError):
    """What searches a library's vectors elsewhere refuses, or holds something else."""


class StoreUnavailable(StoreError):
    """Nobody answers where the vectors are searched, or not in time; it may be tried again."""


class SourceError(MmsearchError):
    """A folder to index, a captions file or a pairs file cannot be used."""


class ModelError(MmsearchError):
    """An encoder is unknown, incomplete or altered."""


class TrainingError(MmsearchError):
    """A training cannot start or go on."""


class QueryError(MmsearchError, ValueError):
    """The question itself cannot be asked."""

    exit_code = 2


class RequestTooLarge(QueryError):
    """What is sent, a picture most often, is more than a server takes."""


class ClusterError(MmsearchError):
    """Machines that were to share the work cannot be reached or used."""


class ServerError(MmsearchError):
    """A server did not answer as one should."""


class ServerUnreachable(ServerError):
    """Nobody answers at an address, or not in time."""


class TokenRefused(ServerError):
    """A server asks for a token, or for another one."""


class ServerBusy(ServerError):
    """Too much is asked of a server at once.

    Attributes:
        seconds: when it may be asked again.
    """

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class NotServed(ServerError):
    """A server has no such library or picture."""


class MediaError(MmsearchError):
    """One picture cannot be read.

    Attributes:
        kind: a stable word for the problem (`truncated`, `not-an-image`, `too-large` …).
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind

    def __reduce__(self) -> tuple[type[MediaError], tuple[str, str]]:
        return type(self), (self.kind, str(self))


class MissingExtra(MmsearchError, ImportError):
    """An optional dependency is not installed.

    Attributes:
        extra: the extra of the `mmsearch` distribution that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f'This needs {package}, which is not installed. Run: pip install "mmsearch[{extra}]"'
        )
        self.extra = extra
