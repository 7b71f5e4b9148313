"""How fast an encoder is on this machine: measured when asked for, and kept."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmsearch.retrieval.encoders.cache import file_name, read_json, root, write_json

if TYPE_CHECKING:
    from mmsearch.retrieval.encoders.base import Encoder

__all__ = ["Speed", "measure"]

SECONDS = 3.0
"""How long each tower is measured, at least."""
LONGEST_SETTLING = 15.0
"""How long an image tower may take before that, in seconds, until it has found its best way."""


@dataclass(frozen=True, slots=True)
class Speed:
    """What was measured.

    Attributes:
        name: what `load_encoder` takes.
        images_per_second: through the image tower in full batches, decoding and resizing left out.
        query_ms: one text through the text tower, in milliseconds.
        device: what it ran on.
        dim: length of a vector.
        measured: when, in seconds since 1970.
    """

    name: str
    images_per_second: float
    query_ms: float
    device: str
    dim: int
    measured: float

    @classmethod
    def read(cls, name: str) -> Speed | None:
        """Return what was kept of an encoder; `None` where nothing was, or it is damaged."""
        return cls._from(_file(name))

    @classmethod
    def kept(cls) -> list[Speed]:
        """Return all that was kept."""
        found = (cls._from(path) for path in sorted((root() / "speeds").glob("*.json")))
        return [speed for speed in found if speed is not None]

    def write(self) -> None:
        """Keep it, in place of what was measured before.

        Raises:
            OSError: the cache cannot be written to.
        """
        write_json(_file(self.name), asdict(self))

    @classmethod
    def _from(cls, path: Path) -> Speed | None:
        fields = read_json(path)
        try:
            return cls(
                name=str(fields["name"]),
                images_per_second=float(fields["images_per_second"]),
                query_ms=float(fields["query_ms"]),
                device=str(fields["device"]),
                dim=int(fields["dim"]),
                measured=float(fields["measured"]),
            )
        except (KeyError, TypeError, ValueError):
            return None


def measure(encoder: Encoder, *, seconds: float = SECONDS) -> Speed:
    """Measure both towers of an encoder, loaded and, if that takes no age, settled."""
    from mmsearch.retrieval.encoders.image_tower import MANY
    from mmsearch.retrieval.encoders.samples import sample_pictures, sample_texts

    samples = [encoder.prepare(image) for image in sample_pictures()]
    size = encoder.batch_size
    batch = (samples * (size // len(samples) + 1))[:size]
    texts = sample_texts()
    started = time.perf_counter()
    for _ in range(-(-MANY // size)):
        encoder.encode_pixels(batch)
        if time.perf_counter() - started > LONGEST_SETTLING:
            break
    image_seconds = _each(lambda _: encoder.encode_pixels(batch), seconds)
    text_seconds = _each(lambda turn: encoder.encode_texts([texts[turn % len(texts)]]), seconds)
    return Speed(
        name=encoder.location,
        images_per_second=round(len(batch) / image_seconds, 2),
        query_ms=round(1000 * text_seconds, 2),
        device=encoder.device or f"CPU, {os.cpu_count() or 1} cores",
        dim=encoder.dim,
        measured=time.time(),
    )


def _each(do: Callable[[int], object], seconds: float) -> float:
    """Return how long one turn takes, over as many as fill the time, at least one."""
    do(0)
    turns, started = 0, time.perf_counter()
    while True:
        turns += 1
        do(turns)
        passed = time.perf_counter() - started
        if passed >= seconds:
            return passed / turns


def _file(name: str) -> Path:
    return root() / "speeds" / (file_name(name, name) + ".json")
