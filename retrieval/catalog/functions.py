"""What filters ask of SQLite that it cannot do by itself: functions in Python.

Their names begin with `mm_`, so that none of SQLite's own is changed for anyone else.
"""

from __future__ import annotations

import math
import os
import sqlite3
from datetime import UTC, datetime, timedelta

from mmsearch.retrieval.filters.texts import ESCAPE, Pattern, fold, part

__all__ = ["epoch_ns", "in_utc", "register"]

EPOCH = datetime(1970, 1, 1)
LARGEST = 2**63 - 1


def register(connection: sqlite3.Connection) -> None:
    """Make the functions known to a connection."""
    add = connection.create_function
    add("mm_part", 2, _part, deterministic=True)
    add("mm_like", 2, _like, deterministic=True)
    add("mm_like_part", 3, _like_part, deterministic=True)
    add("mm_name_key", 1, _name_key, deterministic=True)
    add("mm_local_time", 1, _local_time)
    try:
        connection.execute("SELECT sin(0), cos(0)")
    except sqlite3.OperationalError:
        # A SQLite that was made without mathematics.
        add("sin", 1, lambda x: None if x is None else math.sin(x), deterministic=True)
        add("cos", 1, lambda x: None if x is None else math.cos(x), deterministic=True)


def in_utc(moment: datetime) -> datetime:
    """Return in UTC, without saying so, a time by this machine's clock."""
    try:
        return moment.astimezone(UTC).replace(tzinfo=None)
    except (OSError, OverflowError, ValueError):
        # At the ends of the calendar time zones do not matter.
        return moment


def epoch_ns(moment: datetime) -> int:
    """Return nanoseconds since 1970 of a time by this machine's clock, within SQLite's integers."""
    nanoseconds = (in_utc(moment) - EPOCH) // timedelta(microseconds=1) * 1_000
    return max(-LARGEST, min(LARGEST, nanoseconds))


def _text(value: str | bytes) -> str:
    """Return a path that may be no valid UTF-8 as `FilePath` does."""
    return os.fsdecode(value) if isinstance(value, bytes) else value


def _part(path: str | bytes | None, column: str) -> str | bytes | None:
    if path is None:
        return None
    if isinstance(path, str):
        return part(path, column)
    found = os.fsencode(part(_text(path), column))
    try:
        return found.decode("utf-8")
    except UnicodeDecodeError:
        return found


def _like(value: str | bytes | None, pattern: str | bytes) -> bool | None:
    return None if value is None else Pattern.of(_text(pattern), ESCAPE).matches(_text(value))


def _like_part(path: str | bytes, pattern: str | bytes, column: str) -> bool:
    return Pattern.of(_text(pattern), ESCAPE).matches(part(_text(path), column))


def _name_key(path: str | bytes) -> str | bytes:
    key = fold(part(_text(path), "name"))
    try:
        key.encode("utf-8")
    except UnicodeEncodeError:
        return os.fsencode(key)
    return key


def _local_time(moment: int | str | None) -> str | None:
    """Return nanoseconds since 1970, or a stored time in UTC, as it is stored, by local time."""
    if moment is None:
        return None
    try:
        if isinstance(moment, str):
            utc = datetime.fromisoformat(moment)
        else:
            utc = EPOCH + timedelta(microseconds=moment // 1_000)
        local = utc.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
    except (OSError, OverflowError, ValueError):
        # No date of the calendar.
        return None
    return local.isoformat(" ", "microseconds")
