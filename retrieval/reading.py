"""Reading pictures ahead of the encoder: files in, pixels and facts out, in order.

Threads read, hash and decode (Pillow's decoders let go of the interpreter's lock) a bounded number
of files ahead, and never more than `media.MAX_PIXELS` pixels and `media.MAX_FILE_BYTES` bytes of
files at once. How many of them work at the
same time is for `Workers` to find out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Generator, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import Condition
from typing import TYPE_CHECKING, Any

from mmsearch.errors import MediaError
from mmsearch.retrieval.captions import read_sidecar, sidecar_names
from mmsearch.retrieval.media import (
    MAX_FILE_BYTES,
    MAX_PIXELS,
    open_picture,
    orientation,
    read_bytes,
    upright_rgb,
)
from mmsearch.retrieval.metadata import EMBEDDED, read_metadata
from mmsearch.retrieval.pace import Pace, Stage
from mmsearch.retrieval.schema import Caption, Picture
from mmsearch.retrieval.workers import Workers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.encoders.base import Encoder
    from mmsearch.retrieval.scan import FoundFile

__all__ = ["PictureReader", "Read", "Unread"]

UNREAD = "unread"
"""In place of a fingerprint of side-cars: no scan finds it."""

BATCHES_AHEAD = 4
"""Enough that the encoder rarely waits; prepared pixels are small."""


@dataclass(frozen=True, slots=True)
class Read:
    """A file that was read.

    Attributes:
        picture: what it is.
        captions: what its side-cars and its own metadata say.
        pixels: prepared for the encoder, unless the content is known.
        unread: why a side-car that is there cannot be read. Then `picture` names none that a scan
            can find, so that the next run reads it again.
    """

    picture: Picture
    captions: list[Caption]
    pixels: NDArray[Any] | None
    unread: MediaError | None = None

    @property
    def path(self) -> str:
        """The file's path."""
        return self.picture.path

    @property
    def sources(self) -> tuple[str, ...] | None:
        """The sources that `captions` speaks for, as `Transaction.set_captions` takes them.

        What a side-car said before stays while it cannot be read.
        """
        return None if self.unread is None else EMBEDDED


@dataclass(frozen=True, slots=True)
class Unread:
    """A file that could not be read, and why."""

    path: str
    error: MediaError


class PictureReader:
    """Reads the files of one library for one encoder."""

    def __init__(
        self,
        root: Path,
        encoder: Encoder,
        contents: Container[bytes],
        *,
        pace: Pace | None = None,
        workers: Workers | None = None,
    ) -> None:
        """Prepare to read the files of one library for one encoder.

        Args:
            root: the library's root.
            encoder: prepares the pixels.
            contents: the hashes whose vectors are known.
            pace: hears how long threads are at work.
            workers: says how many may be.
        """
        self._root = root
        self._encoder = encoder
        self._contents = contents
        self._pixels = _Budget(MAX_PIXELS)
        self._bytes = _Budget(MAX_FILE_BYTES)
        self._pace = pace or Pace()
        self._workers = workers or Workers()
        self._stopped = False

    def stop(self) -> None:
        """Let `batches`, which another thread may be waiting for, end with `CancelledError`."""
        self._stopped = True

    def batches(self, files: Mapping[str, FoundFile]) -> Generator[list[Read | Unread], None, None]:
        """Yield what became of `files`, in their order, an encoder's batch at a time."""
        size = self._encoder.batch_size
        batch: list[Read | Unread] = []
        with ThreadPoolExecutor(self._workers.most, "read") as pool:
            ahead: deque[Future[Read | Unread]] = deque()
            try:
                for path, file in files.items():
                    ahead.append(pool.submit(self._read_or_say_why, path, file))
                    if len(ahead) >= BATCHES_AHEAD * size:
                        batch.append(ahead.popleft().result())
                    if len(batch) == size:
                        yield batch
                        batch = []
                while ahead:
                    batch.append(ahead.popleft().result())
                    if len(batch) == size:
                        yield batch
                        batch = []
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        if batch:
            yield batch

    def _read_or_say_why(self, path: str, file: FoundFile) -> Read | Unread:
        with self._workers.place():
            if self._stopped:
                raise CancelledError
            # What lies in a container may not know its size before it is read.
            held = 0 if file.place else min(file.size, MAX_FILE_BYTES)
            with self._bytes.spend(held), self._pace.at_work(Stage.DECODE):
                try:
                    return self._read(path, file)
                except MediaError as error:
                    return Unread(path, error)

    def _read(self, path: str, file: FoundFile) -> Read:
        absolute = self._root / path
        data = read_bytes(absolute) if file.place is None else file.place.read()
        digest = sha256(data).digest()
        image = open_picture(data)
        facts = read_metadata(image)
        turn = orientation(image)
        width, height = image.size if turn < 5 else image.size[::-1]
        format_ = image.format or "unknown"
        pixels = None
        if digest not in self._contents:
            with self._pixels.spend(width * height):
                upright = upright_rgb(image, at_least=self._encoder.decode_size)
                pixels = self._encoder.prepare(upright)
        captions = list(facts.captions)
        sidecars, unread = file.sidecars, None
        if file.place is not None:
            captions = file.place.captions() + captions
        elif file.sidecars:
            beside = (absolute.with_name(name) for name in sidecar_names(absolute.name))
            try:
                captions = [caption for path in beside for caption in read_sidecar(path)] + captions
            except OSError as error:
                reason = f"a caption file beside it cannot be read: {error.strerror}"
                sidecars, unread = UNREAD, MediaError("unreadable", reason)
        picture = Picture(
            path=path,
            size=file.size,
            mtime_ns=file.mtime_ns,
            sha256=digest,
            format=format_,
            width=width,
            height=height,
            orientation=turn,
            taken_at=facts.taken_at,
            latitude=facts.latitude,
            longitude=facts.longitude,
            camera=facts.camera,
            sidecars=sidecars,
        )
        return Read(picture, captions, pixels, unread)


class _Budget:
    """Lets threads spend at most `total` at the same time; each waits until its part is free."""

    def __init__(self, total: int) -> None:
        self._free = total
        self._changed = Condition()

    @contextmanager
    def spend(self, amount: int) -> Iterator[None]:
        """Hold `amount`, which is at most the total, while the block runs."""
        with self._changed:
            self._changed.wait_for(lambda: self._free >= amount)
            self._free -= amount
        try:
            yield
        finally:
            with self._changed:
                self._free += amount
                self._changed.notify_all()
