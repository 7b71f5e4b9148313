"""Object stores (S3, Google Cloud Storage …): listed, and read by ranges of bytes, by fsspec.

What a network does to a request for a moment is tried again a few times, with pauses that differ
by chance, so that many processes do not come back at once. Everything else is an `OSError` whose
text can be shown. This is the one door to fsspec.
"""

from __future__ import annotations

import io
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from types import SimpleNamespace
from typing import Any, TypeVar
from urllib.parse import urlsplit

from mmsearch.errors import MediaError, MissingExtra, SourceError, first_line
from mmsearch.retrieval.media import MAX_FILE_BYTES
from mmsearch.retrieval.offline import Offline

__all__ = ["StoredObject", "check_driver", "join", "list_objects", "object_exists"]

TRIES = 4
FIRST_PAUSE_S = 0.25
"""Doubled after each try, and multiplied by half to one and a half."""

BUFFER_BYTES = 1 << 20
"""Read at once of a file that is gone through: shards are, from front to end."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A file in a store; it has those methods of a `Path` that reading takes."""

    address: str

    def __str__(self) -> str:
        return self.address

    @property
    def name(self) -> str:
        """What stands behind the last slash."""
        return self.address.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The ending of the name, with its dot."""
        return os.path.splitext(self.name)[1]  # noqa: PTH122 (it is no path)

    def stat(self) -> Any:  # noqa: ANN401
        """Return `st_size` and `st_mtime_ns`, as of now.

        Raises:
            OSError: it is not there, or cannot be looked at.
        """
        system, path = _system(self.address)

        def look() -> Any:  # noqa: ANN401
            system.invalidate_cache()
            return system.info(path)

        facts = _tried(look, self.address)
        if facts.get("type") != "file":
            raise FileNotFoundError(f"{self.address} is no object")
        size, mtime_ns = _size_and_time(facts)
        return SimpleNamespace(st_size=size, st_mtime_ns=mtime_ns)

    def read_range(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` to before `end`, fewer where it ends.

        Raises:
            OSError: it is not there, or cannot be read.
        """
        system, path = _system(self.address)
        return bytes(
            _tried(lambda: system.cat_file(path, start=start, end=end), self.address) or b""
        )

    def read(self) -> bytes:
        """Return its bytes.

        Raises:
            MediaError: there is nothing to decode, or it cannot be had.
        """
        try:
            data = self.read_range(0, MAX_FILE_BYTES + 1)
        except FileNotFoundError as error:
            raise MediaError("vanished", "the object is gone since it was listed") from error
        except OSError as error:
            raise MediaError("unreadable", str(error)) from error
        if len(data) > MAX_FILE_BYTES:
            limit = f"{MAX_FILE_BYTES >> 20} MiB"
            raise MediaError(
                "too-large", f"the object is larger than {limit}, the most that is read"
            )
        if not data:
            raise MediaError("empty", "the object has zero bytes")
        return data

    def open(self, mode: str = "rb") -> io.BufferedReader:
        """Open it for reading, with seeks.

        Raises:
            OSError: it is not there, or cannot be looked at.
        """
        assert mode == "rb"
        return io.BufferedReader(_Ranges(self, self.stat().st_size), BUFFER_BYTES)


class _Ranges(io.RawIOBase):
    """An object as a file: each read is a request for a range."""

    def __init__(self, stored: StoredObject, size: int) -> None:
        super().__init__()
        self._stored = stored
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401
        end = min(self._size, self._at + len(buffer))
        if end <= self._at:
            return 0
        data = self._stored.read_range(self._at, end)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def list_objects(address: str) -> dict[str, tuple[int, int]]:
    """Return size and time of everything below an address, or of the one object there, by address.

    The time is in nanoseconds, or made of the object's tag where the store tells no time: it is
    another when the object is.

    Raises:
        SourceError: it is no address, cannot be reached or read, or there is nothing.
        MissingExtra: fsspec is not installed.
    """
    with suppress(ValueError):
        if urlsplit(address).password:
            raise SourceError(
                "The address holds a password, which would be shown with every picture. Leave it "
                "away; drivers find theirs in their own settings or the environment."
            )
    try:
        system, path = _system(address)

        def look() -> dict[str, Any]:
            system.invalidate_cache()
            return dict(system.find(path, detail=True))

        found = _tried(look, address)
    except FileNotFoundError:
        found = {}
    except OSError as error:
        raise SourceError(f"{error}.") from error
    if not found:
        raise SourceError(f"There is nothing at {address}. Check the bucket's name and the path.")
    top = path.rstrip("/")
    return {
        address if name.rstrip("/") == top else join(address, name.removeprefix(top)): (
            _size_and_time(facts)
        )
        for name, facts in sorted(found.items())
        if facts.get("type") == "file"
    }


def object_exists(address: str) -> bool:
    """Say whether there is an object at an address.

    Raises:
        OSError: that cannot be found out.
    """
    try:
        StoredObject(address).stat()
    except FileNotFoundError:
        return False
    return True


def check_driver(address: str) -> None:
    """See whether there is what reads an address; nothing is asked of the store.

    Raises:
        SourceError: the driver is missing, or it is no address.
        MissingExtra: fsspec is missing.
    """
    _system(address)


def join(address: str, name: str) -> str:
    """Return the address of what is called `name` below another."""
    return f"{address.rstrip('/')}/{name.lstrip('/')}"


def _system(address: str) -> tuple[Any, str]:
    """Return what reads an address, and its path there."""
    try:
        from fsspec.core import url_to_fs
        from fsspec.registry import known_implementations
    except ImportError as error:
        raise MissingExtra("fsspec", "objects") from error
    scheme = address.partition("://")[0]
    try:
        system, path = url_to_fs(address)
    except ImportError as error:
        known = known_implementations.get(scheme, {})
        driver = str(known.get("class", scheme)).partition(".")[0]
        raise SourceError(
            f"Addresses that begin with {scheme}:// are read by {driver}, which is not installed. "
            f"Run: pip install {driver}"
        ) from error
    except Exception as error:
        raise SourceError(f"{address} cannot be used: {first_line(error)}.") from error
    return system, str(path)


def _tried(ask: Callable[[], _T], address: str) -> _T:
    """Return what `ask` does, after several tries where it is the network's fault.

    Raises:
        FileNotFoundError: there is nothing.
        OSError: what went wrong, with the address.
    """
    for number in range(TRIES):
        try:
            return ask()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise FileNotFoundError(f"there is nothing at {address}") from error
        except PermissionError as error:
            raise PermissionError(f"{address} may not be read: {first_line(error)}") from error
        except Offline as error:
            raise OSError(f"{address} is not read: {first_line(error)}") from error
        except Exception as error:
            # Each driver has its own: that nobody said who asks comes from botocore, from google.
            if "credential" in type(error).__name__.lower():
                raise PermissionError(f"{address} may not be read: {first_line(error)}") from error
            if number + 1 == TRIES:
                raise OSError(
                    f"{address} cannot be read, after {TRIES} tries: {first_line(error)}"
                ) from error
        time.sleep(FIRST_PAUSE_S * 2**number * random.uniform(0.5, 1.5))
    raise AssertionError


def _size_and_time(facts: dict[str, Any]) -> tuple[int, int]:
    """Return what an object is known again by."""
    # By the names that drivers give it: s3fs, gcsfs, adlfs and sftp, local files, memory.
    names = ("LastModified", "updated", "last_modified", "mtime", "modified", "created")
    when = next((facts[name] for name in names if facts.get(name)), None)
    if isinstance(when, str):
        with suppress(ValueError):
            when = datetime.fromisoformat(when.replace("Z", "+00:00"))
    if isinstance(when, datetime):
        whole = int(when.replace(microsecond=0).timestamp())
        mtime_ns = whole * 10**9 + when.microsecond * 1000
    elif isinstance(when, (int, float)):
        mtime_ns = int(when * 10**6) * 1000
    else:
        tag = str(facts.get("ETag") or facts.get("etag") or facts.get("md5Hash") or "")
        mtime_ns = int.from_bytes(blake2b(tag.encode(), digest_size=8).digest()) >> 1
    return int(facts.get("size") or 0), mtime_ns
