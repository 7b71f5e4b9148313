"""ZIP archives that are sent while they are made: no more than a piece of one is in memory."""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["zipped"]

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time that the format knows."""


def zipped(
    members: Iterable[tuple[str, tuple[int, ...] | None, Iterable[bytes]]],
) -> Iterator[bytes]:
    """Yield the bytes of a ZIP archive, uncompressed: pictures are compressed already.

    Args:
        members: name, local time (year to second; None if not known), and content in pieces.
    """
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for name, when, pieces in members:
            time = EPOCH if when is None or when < EPOCH else when[:6]
            entry = zipfile.ZipInfo(name, time)  # type: ignore[arg-type]
            entry.external_attr = 0o644 << 16
            with archive.open(entry, "w", force_zip64=True) as member:
                for piece in pieces:
                    member.write(piece)
                    yield sink.taken()
            yield sink.taken()
    yield sink.taken()


class _Sink(io.RawIOBase):
    """A file that can only be written to, and is emptied all the time."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        piece = bytes(data)  # type: ignore[call-overload]
        self._pieces.append(piece)
        return len(piece)

    def taken(self) -> bytes:
        """Return what was written since the last time."""
        data = b"".join(self._pieces)
        self._pieces.clear()
        return data
