"""Thumbnails on disk: made once, upright, in a few threads, never more than there is room for.

They lie in the library's own folder (`.mmsearch/thumbnails`), named after the picture's content, so
that a copy or a picture that moved needs none anew; where that folder cannot be written to, in the
user's cache.
"""

from __future__ import annotations

import logging
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from mmsearch.indexes.base import replacing
from mmsearch.retrieval.thumbnails import thumbnail

if TYPE_CHECKING:
    from mmsearch.retrieval.library import Library

__all__ = ["SIDES", "ThumbnailCache"]

logger = logging.getLogger(__name__)

SIDES = (160, 320, 640, 1600)
"""Longer sides in pixels; a thumbnail has the least that is enough."""
QUALITY = 82
MOST_BYTES = 1 << 30
"""What all thumbnails of a library take at most; those that were not asked for longest go first."""
TIDIED = 64 << 20
"""Bytes written between two looks at how much there is."""
THREADS = 2


class ThumbnailCache:
    """The thumbnails of one library. Safe to use from several threads."""

    def __init__(self, library: Library, *, most_bytes: int = MOST_BYTES) -> None:
        self.folder = _folder(library)
        self._most = most_bytes
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="mmsearch-thumbnails")
        self._making: dict[Path, Future[Path]] = {}
        self._lock = Lock()
        self._written = TIDIED

    def place(self, sha256: bytes, side: int) -> Path:
        """Return where the thumbnail of a content lies, whether it is there or not."""
        name = sha256.hex()
        fits = next((each for each in SIDES if each >= side), SIDES[-1])
        return self.folder / name[:2] / f"{name}-{fits}.jpg"

    def get(self, file: Path, sha256: bytes, side: int) -> Future[Path]:
        """Return the file of a thumbnail, made if there is none.

        Args:
            file: the picture, as `thumbnail` takes it.
            sha256: hash of its content.
            side: pixels that the longer side needs.

        Raises (in the future):
            MediaError: the picture is gone, or cannot be decoded.
            OSError: there is no room for it.
        """
        place = self.place(sha256, side)
        with self._lock:
            making = self._making.get(place)
            if making is not None:
                return making
            making = self._pool.submit(self._made, file, place)
            self._making[place] = making
        making.add_done_callback(lambda _: self._forget(place))
        return making

    def close(self) -> None:
        """Let go of the threads; what they have not begun is not made."""
        self._pool.shutdown(cancel_futures=True)

    def _forget(self, place: Path) -> None:
        with self._lock:
            self._making.pop(place, None)

    def _made(self, file: Path, place: Path) -> Path:
        try:
            os.utime(place)  # Asked for just now: the last to go.
        except OSError:
            pass
        else:
            return place
        side = int(place.stem.rpartition("-")[2])
        picture = thumbnail(file, side)
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing(place) as temporary:
            picture.save(temporary, "JPEG", quality=QUALITY, progressive=True)
        with self._lock:
            self._written += place.stat().st_size
            tidy = self._written >= TIDIED
            self._written %= TIDIED
        if tidy:
            self._tidy()
        return place

    def _tidy(self) -> None:
        """Remove what was not asked for longest, where there is too much."""
        found = []
        for path in self.folder.glob("??/*.jpg"):
            try:
                facts = path.stat()
            except OSError:
                continue
            found.append((facts.st_mtime_ns, facts.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self._most:
                return
            path.unlink(missing_ok=True)
            total -= size


def _folder(library: Library) -> Path:
    beside = library.folder / "thumbnails"
    try:
        beside.mkdir(exist_ok=True)
        if os.access(beside, os.W_OK):
            return beside
    except OSError as error:
        logger.info("thumbnails are kept in the user's cache: %s", error)
    from platformdirs import user_cache_path

    name = library.catalog.library().uid
    return user_cache_path("mmsearch", appauthor=False) / "thumbnails" / name
