"""Tar files as WebDataset writes them: read where they lie, a member being a stretch of bytes.

Shards may be named by a pattern such as `shards/{000..012}.tar` (format: Aizman, Maltby, Breuel
2019, "High Performance I/O For Large Scale Deep Learning").
"""

from __future__ import annotations

import glob
import itertools
import re
import tarfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from mmsearch.errors import MediaError, SourceError

__all__ = [
    "TAR_ENDINGS",
    "Member",
    "Openable",
    "TarDamaged",
    "TarUnended",
    "expand_pattern",
    "members",
    "read_stretch",
]

COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"(\xb5/\xfd": "unzstd",
}
"""What compressed files begin with, and the program that makes them whole."""

TAR_ENDINGS = (".tar", *(f".tar.{ending}" for ending in ("gz", "bz2", "xz", "zst")), ".tgz")
BLOCK = tarfile.BLOCKSIZE


class TarDamaged(Exception):
    """A tar file that cannot be read, or not to its end; says what to do about it.

    Attributes:
        kind: `truncated`, `compressed` or `damaged`.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class TarUnended(TarDamaged):
    """All that is there was read, but there is no end mark: it may have been cut off."""


class Openable(Protocol):
    """A path, or what else can be opened and read from any place on."""

    def open(self, mode: Literal["rb"]) -> AbstractContextManager[Any]:
        """Open it for reading."""


@dataclass(frozen=True, slots=True)
class Member:
    """An ordinary file inside a tar file: `size` bytes from `offset` on."""

    name: str
    offset: int
    size: int


def members(tar: Openable) -> Iterator[Member]:
    """Yield the visible files of a tar file in their order, by its headers alone.

    Raises:
        TarDamaged: it is compressed, no tar file, or ends in the middle; what came before was
            yielded.
        TarUnended: it ends after a member, without the mark.
        OSError: it cannot be read.
    """
    try:
        with tar.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as opened:
            for member in opened:
                # Hidden ones are what macOS adds beside each file.
                if member.isfile() and not member.name.rpartition("/")[2].startswith("."):
                    yield Member(member.name, member.offset_data, member.size)
            end = opened.offset
        _check_end(tar, end)
    except tarfile.TarError as error:
        raise TarDamaged(*_reason(tar, error)) from error


def read_stretch(tar: Openable, offset: int, size: int) -> bytes:
    """Return `size` bytes from `offset` on.

    Raises:
        MediaError: they cannot be read, or the file ends before.
    """
    try:
        with tar.open("rb") as file:
            file.seek(offset)
            data: bytes = file.read(size)
    except OSError as error:
        raise MediaError("unreadable", f"{tar}: {error.strerror or error}") from error
    if len(data) < size:
        raise MediaError("truncated", f"{tar} ends in the middle of it")
    return data


def expand_pattern(source: Path | str) -> list[Path]:
    """Return the tar files that a name, a folder or a pattern stands for.

    Raises:
        SourceError: there are none, or one of them is missing.
    """
    text = str(source)
    if Path(source).is_dir():
        found = sorted(Path(source).glob("*.tar"))
    else:
        names = itertools.chain.from_iterable(
            # A file may well have brackets in its name.
            sorted(glob.glob(name))  # noqa: PTH207
            if glob.has_magic(name) and not Path(name).is_file()
            else [name]
            for name in ([text] if Path(text).is_file() else _expand(text))
        )
        found = [Path(name) for name in names]
    missing = [shard for shard in found if not shard.is_file()]
    if missing or not found:
        what = f"There is no shard {missing[0]}" if missing else f"There are no .tar files: {text}"
        raise SourceError(f"{what}. Give a .tar file, a folder of them, or a pattern.")
    return found


def _expand(text: str) -> list[str]:
    """Return the names that a pattern such as `a-{000..012}.tar` stands for."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", text)
    if match is None:
        return [text]
    first, last = match.groups()
    return [
        name
        for number in range(int(first), int(last) + 1)
        for name in _expand(
            f"{text[: match.start()]}{number:0{len(first)}d}{text[match.end() :]}",
        )
    ]


def _check_end(tar: Openable, offset: int) -> None:
    """Raise where no member begins although the tar file goes on: tarfile just stops there."""
    with tar.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(min(offset, size))
        block = file.read(BLOCK)
    if block.strip(b"\0"):
        raise tarfile.ReadError(f"no member begins at byte {offset:,}")
    if not block:
        raise TarUnended("truncated", f"{tar} has no end mark: it may have been cut off")


def _reason(tar: Openable, error: tarfile.TarError) -> tuple[str, str]:
    with tar.open("rb") as file:
        start = file.read(8)
    program = next((name for magic, name in COMPRESSED.items() if start.startswith(magic)), None)
    if program is None:
        kind = "truncated" if "end of data" in str(error) else "damaged"
        return kind, f"{tar} is not a tar file, or damaged: {error}. Copy or make it again."
    return (
        "compressed",
        f"{tar} is a compressed tar file, in which pictures cannot be read in any order. "
        f"Uncompress it first: {program}",
    )
