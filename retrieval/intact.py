"""Whether a file is whole, where decoders do not ask.

Pillow compares no checksum of a PNG's pixels, and of a JPEG whose end is missing it paints the rest
grey where other bytes stand in its place: what comes out looks like a picture and is none.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from mmsearch.errors import MediaError

__all__ = ["PNG_START", "check_jpeg", "check_png", "without_packed_texts"]

PNG_START = b"\x89PNG\r\n\x1a\n"

_PACKED = frozenset({b"zTXt", b"iTXt", b"iCCP"})

_SCAN, _END = 0xDA, b"\xff\xd9"
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers of a JPEG that no length follows."""


def check_png(png: bytes) -> None:
    """Raise `MediaError` (`damaged`) where pixels are not those that were written."""
    view = memoryview(png)
    for name, start, end in _chunks(png):
        if name == b"IDAT":
            written = int.from_bytes(view[end - 4 : end], "big")
            if zlib.crc32(view[start + 4 : end - 4]) != written:
                raise MediaError("damaged", "a checksum is wrong: bytes of its pixels have changed")


def without_packed_texts(png: bytes) -> bytes:
    """Return a PNG without its profile and packed texts, which may unpack to anything."""
    chunks = (png[start:end] for name, start, end in _chunks(png) if name not in _PACKED)
    return PNG_START + b"".join(chunks)


def check_jpeg(jpeg: bytes) -> None:
    """Raise `MediaError` (`truncated`) where the pixels of a JPEG have no end mark.

    So it is of a copy under way whose room was taken beforehand, and after a crash: the rest of the
    file is zeros, or whatever lay on the disk.
    """
    pixels = _first_scan(jpeg)
    # Within pixels, a byte 0xFF is followed by a zero or a restart mark: this is the end or none.
    if pixels is not None and jpeg.find(_END, pixels) < 0:
        raise MediaError("truncated", "the end mark is missing: the file is not all there")


def _chunks(png: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and end (its checksum included) of every chunk that is there whole."""
    at = len(PNG_START)
    while at + 12 <= len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        name = png[at + 4 : at + 8]
        if end > len(png):
            return
        yield name, at, end
        if name == b"IEND":
            return
        at = end


def _first_scan(jpeg: bytes) -> int | None:
    """Return where the pixels begin; None where segments lead to none."""
    at = 2
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF:
        marker = jpeg[at + 1]
        if marker == _SCAN:
            return at + 2
        if marker == 0xFF:  # Filling.
            at += 1
        elif marker in _BARE:
            at += 2
        else:
            at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return None
