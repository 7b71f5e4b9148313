"""What is handed out is what was indexed: a file that is another now is not."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from mmsearch.errors import MediaError
from mmsearch.retrieval.media import read_bytes
from mmsearch.retrieval.thumbnails import picture_bytes

if TYPE_CHECKING:
    from mmsearch.retrieval.schema import Picture

__all__ = ["content_of"]


def content_of(file: Path, picture: Picture) -> tuple[Path, os.stat_result] | bytes:
    """Return where the content lies that was indexed, or the content where it is inside a file.

    Args:
        file: what `file_of` returns.
        picture: what the catalog knows of it.

    Returns:
        The file without links in its path, which may be changed while it is read, with its size;
        or the bytes.

    Raises:
        MediaError: it is gone, or something else lies there now.
    """
    real = Path(os.path.realpath(file))
    try:
        facts = real.stat()
    except OSError:
        facts = None  # It is gone, or inside a container.
    if facts is None or not stat.S_ISREG(facts.st_mode):
        data = picture_bytes(file)
        _check(data, picture)
        return data
    if facts.st_size != picture.size:
        raise _changed()
    if facts.st_mtime_ns != picture.mtime_ns:
        # Copied back, or only touched: the content decides.
        _check(read_bytes(real), picture)
    return real, facts


def _check(data: bytes, picture: Picture) -> None:
    if hashlib.sha256(data).digest() != picture.sha256:
        raise _changed()


def _changed() -> MediaError:
    return MediaError("changed", "it changed since it was indexed; run: mmsearch index")
