"""Files that tell what they hold and notice when it was damaged.

    content   what an index wrote; part of it may be rows of one length
    tables    a CRC-32 for each block of the content, uint32
    facts     JSON
    ending    lengths of content and facts, CRC-32 of tables and facts, a mark

A torn file has no ending. Rot is found by the block: what is small is checked on opening, rows when
they first decide an answer (a block holds whole rows, so that this reads little), everything by
`check_all`. It is read by itself, not through a map: the pages are the same, and a map of its own
would count as memory of the process.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import weakref
import zlib
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from mmsearch.indexes.base import IndexFileError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["CheckedFile", "Rows", "seal"]

_MARK = b"mmindex3"
_ENDING = struct.Struct("<QQI8s")
_BLOCK = 1 << 20
_ROW_BLOCK = 8 << 10
CHECKED_ON_OPENING = 128 << 20
"""Bytes beside rows up to which opening checks them (about 0.5 ms a MiB)."""
SMALL = 16 << 20
"""Bytes of rows up to which opening checks them too."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Where rows of one length lie in the content, in bytes.

    Attributes:
        start: where the first begins.
        count: how many there are.
        length: of each.
    """

    start: int
    count: int
    length: int

    @property
    def stop(self) -> int:
        """Where the last ends."""
        return self.start + self.count * self.length

    @property
    def block(self) -> int:
        """Bytes in one checked block: whole rows."""
        return max(1, _ROW_BLOCK // max(1, self.length)) * self.length


def seal(file: BinaryIO, facts: dict[str, Any], rows: Rows | None = None) -> None:
    """Append tables, facts and ending to a file (open for reading and writing) of content."""
    length = file.seek(0, 2)
    facts = facts | {"rows": None if rows is None else [rows.start, rows.count, rows.length]}
    tables = bytearray()
    for start, stop, block in _sections(length, rows):
        file.seek(start)
        for at in range(start, stop, block):
            tables += zlib.crc32(file.read(min(block, stop - at))).to_bytes(4, "little")
    facts["content"] = hashlib.sha256(tables).hexdigest()[:32]
    text = json.dumps(facts).encode()
    file.seek(0, 2)
    file.write(tables + text)
    file.write(_ENDING.pack(length, len(text), zlib.crc32(tables + text), _MARK))


class CheckedFile:
    """A file that `seal` ended.

    Attributes:
        path: the file.
        facts: what its writer said of it; `content` is the same in files of the same content.
        length: bytes of content.
        rows: where its rows lie; None where it has none.
    """

    def __init__(self, path: Path) -> None:
        """Read the ending of a file.

        Raises:
            IndexFileError: the file is missing, torn or of another kind.
        """
        self.path = path
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - _ENDING.size))
                ending = file.read()
                torn = IndexFileError(f"{path} is torn, or no index of mmsearch")
                if len(ending) < _ENDING.size or ending[-len(_MARK) :] != _MARK:
                    raise torn
                self.length, facts_length, crc, _ = _ENDING.unpack(ending)
                rest = size - _ENDING.size - self.length
                if not 0 <= facts_length <= rest:
                    raise torn
                file.seek(self.length)
                tables_and_facts = file.read(rest)
        except OSError as error:
            raise IndexFileError(f"{path} cannot be read: {error.strerror}") from error
        if zlib.crc32(tables_and_facts) != crc:
            raise IndexFileError(f"{path} is torn or damaged: its ending does not fit")
        self.facts: dict[str, Any] = json.loads(tables_and_facts[rest - facts_length :])
        place = self.facts.pop("rows")
        self.rows = None if place is None else Rows(*place)
        table = np.frombuffer(tables_and_facts[: rest - facts_length], dtype="<u4")
        sections = list(_sections(self.length, self.rows))
        counts = [-(-(stop - start) // block) for start, stop, block in sections]
        if sum(counts) != len(table):
            raise IndexFileError(f"{path} is damaged: its tables do not fit its content")
        cuts = np.cumsum(counts)[:-1]
        self._tables = list(zip(sections, np.split(table, cuts), strict=True))
        self._seen: NDArray[np.bool_] | None = None
        self._descriptor: int | None = None
        self._reading = Lock()

    def check_on_opening(self, most: int | None = CHECKED_ON_OPENING) -> None:
        """Check what opening can afford to.

        Args:
            most: bytes beside rows up to which these are checked; None is all.

        Raises:
            IndexFileError: a block is damaged.
        """
        row_bytes = 0 if self.rows is None else self.rows.stop - self.rows.start
        if most is None or self.length - row_bytes <= most:
            for section in (0, 2):
                self._check_section(section)
        if row_bytes <= SMALL:
            self._check_section(1)

    def check_all(self) -> None:
        """Check every block (about half a second a GiB).

        Raises:
            IndexFileError: a block is damaged.
        """
        for section in range(3):
            self._check_section(section)

    def check_rows(self, rows: NDArray[np.int64]) -> None:
        """Check the blocks that hold these rows, where that was not done before.

        Raises:
            IndexFileError: one is damaged.
        """
        assert self.rows is not None
        (start, stop, size), table = self._tables[1]
        if self._seen is None:
            self._seen = np.zeros(len(table), dtype=np.bool_)
        blocks = rows // (size // self.rows.length)
        unseen = np.unique(blocks[~self._seen[blocks]])
        if len(unseen) == 0:
            return
        for block in unseen.tolist():
            at = start + block * size
            self._check_block(at, min(at + size, stop), table[block])
        self._seen[unseen] = True

    def _check_section(self, number: int) -> None:
        (start, stop, size), table = self._tables[number]
        for crc, at in zip(table, range(start, stop, size), strict=True):
            self._check_block(at, min(at + size, stop), crc)
        if number == 1:
            self._seen = np.ones(len(table), dtype=np.bool_)

    def _check_block(self, start: int, stop: int, crc: np.uint32) -> None:
        try:
            found = zlib.crc32(self._read(start, stop - start))
        except OSError as error:
            raise IndexFileError(f"{self.path} cannot be read: {error.strerror}") from error
        if found != int(crc):
            raise IndexFileError(f"{self.path} is damaged between bytes {start:,} and {stop:,}")

    def _read(self, start: int, length: int) -> bytes:
        with self._reading:
            if self._descriptor is None:
                # Kept: whoever makes the next index may delete this file while it is in use.
                binary = getattr(os, "O_BINARY", 0)
                self._descriptor = os.open(self.path, os.O_RDONLY | binary)
                weakref.finalize(self, os.close, self._descriptor)
            os.lseek(self._descriptor, start, os.SEEK_SET)
            return os.read(self._descriptor, length)


def _sections(length: int, rows: Rows | None) -> Iterator[tuple[int, int, int]]:
    """Yield start, stop and block size of what is before, in and after the rows."""
    if rows is None:
        rows = Rows(length, 0, 1)
    yield 0, rows.start, _BLOCK
    yield rows.start, rows.stop, rows.block
    yield rows.stop, length, _BLOCK
