"""Several runs over the same files at once: each takes blocks of them that no other has.

Files are cut into blocks by their own names, so that every run finds the same ones wherever it
began to look. A run begins at a place of its own and goes round. What it takes it asks about once
more: another run may have finished it. Blocks of a run that died are free again, and whoever is
left takes them.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from threading import Lock
from typing import Protocol, TypeVar

__all__ = ["Claims", "Shared", "blocks_of"]

BLOCK = 32
"""Files of a block, on average."""
LOOK_AGAIN_S = 0.2

_File = TypeVar("_File")


class Claims(Protocol):
    """What tells which blocks are others'."""

    def take(self, block: str) -> bool:
        """Take a block, called after its first path; say whether it was free."""

    def free(self, blocks: Iterable[str]) -> None:
        """Let others have blocks again."""

    def close(self) -> None:
        """Let others have all of them."""


def blocks_of(paths: Iterable[str]) -> list[list[str]]:
    """Cut paths where their names say so.

    A path begins a block by its own hash: one more or less moves no other end of a block.
    """
    blocks: list[list[str]] = []
    for path in paths:
        number = zlib.crc32(path.encode("utf-8", "surrogateescape"))
        if not blocks or number % BLOCK == 0:
            blocks.append([])
        blocks[-1].append(path)
    return blocks


class Shared(Mapping[str, _File]):
    """Files of which a run reads those that no other is at; to be gone through until `wait` ends.

    Going through it takes the blocks, each just before its first file. Safe to be gone through in
    one thread while another says what is done.
    """

    def __init__(
        self,
        files: Mapping[str, _File],
        paths: Iterable[str],
        place: float,
        claims: Claims,
        finished: Callable[[list[str]], Collection[str]],
    ) -> None:
        """Cut files into blocks.

        Args:
            files: what is to be read.
            paths: of all files there are, in the order in which they are read.
            place: where to begin, 0 to 1.
            claims: tells which blocks are others'.
            finished: says which of some paths need not be read any more.
        """
        self._files = files
        self._claims = claims
        self._finished = finished
        blocks = [
            (block[0], some)
            for block in blocks_of(paths)
            if (some := [path for path in block if path in files])
        ]
        start = int(place * len(blocks))
        self._waiting = [*blocks[start:], *blocks[:start]]
        self._open: dict[str, set[str]] = {}
        self._block_of: dict[str, str] = {}
        self._lock = Lock()
        self.skipped = 0
        """Files that other runs have finished."""

    def __getitem__(self, path: str) -> _File:
        return self._files[path]

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[str]:
        put_off = []
        while self._waiting:
            name, paths = self._waiting.pop(0)
            if not self._claims.take(name):
                put_off.append((name, paths))
                continue
            rest = self._rest(paths)
            if not rest:
                self._claims.free([name])
                continue
            with self._lock:
                self._open[name] = set(rest)
                self._block_of.update(dict.fromkeys(rest, name))
            yield from rest
        self._waiting = put_off

    def done(self, paths: Iterable[str]) -> None:
        """Say that these files are written: whole blocks are let go."""
        ended = []
        with self._lock:
            for path in paths:
                name = self._block_of.pop(path)
                self._open[name].discard(path)
                if not self._open[name]:
                    del self._open[name]
                    ended.append(name)
        self._claims.free(ended)

    def wait(self, progress: Callable[[], None]) -> bool:
        """Wait for blocks that others are at; say whether one has come free and is not finished.

        Args:
            progress: called often meanwhile.
        """
        while self._waiting:
            for block in [*self._waiting]:
                name, paths = block
                if not self._claims.take(name):
                    continue
                # Asked while nobody else is at it; taken again when it is gone through.
                unfinished = set(paths) - set(self._finished(paths))
                self._claims.free([name])
                if unfinished:
                    return True
                self.skipped += len(paths)
                self._waiting.remove(block)
            progress()
            if self._waiting:
                time.sleep(LOOK_AGAIN_S)
        return False

    def _rest(self, paths: list[str]) -> list[str]:
        finished = set(self._finished(paths))
        self.skipped += len(finished)
        return [path for path in paths if path not in finished]
