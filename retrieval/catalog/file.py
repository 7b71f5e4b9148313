"""A catalog's file, and the log that SQLite keeps beside it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["remove", "work_log_in"]


def work_log_in(path: Path) -> None:
    """Leave one file of a catalog that nobody has open: a log would be lost where it is moved."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")


def remove(path: Path) -> None:
    """Remove a catalog's file and its log, as far as they are there."""
    for end in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + end).unlink(missing_ok=True)
