"""How many pictures go through a tower at once: searched for, reduced when memory ends, kept.

No torch here: what runs a batch, and what it raises when memory ends, is handed in.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from mmsearch.errors import ModelError
from mmsearch.retrieval.encoders.cache import file_name, read_json, root, write_json

__all__ = ["BatchSize", "Settings", "largest_useful"]

SMALLEST, LARGEST = 16, 512
"""Beyond the largest no tower is faster, and the pictures read ahead take several batches."""

LEAST_GAIN = 1.05
"""A batch twice as large must bring this many times the pictures a second to be worth it."""

KEPT_SECONDS = 14 * 24 * 3600
"""What was found holds so long: another program may have held the memory at the time."""

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Settings:
    """What was measured for one model on one device.

    Attributes:
        batch: pictures at once.
        precision: numbers that its towers compute with: `fp32`, `fp16` or `bf16`.
    """

    batch: int
    precision: str

    @classmethod
    def read(cls, device: str, model: str) -> Settings | None:
        """Return what was kept for a device and a model; `None` where it is missing or old."""
        fields = read_json(_file(device, model))
        try:
            fresh = 0 <= time.time() - float(fields["written"]) < KEPT_SECONDS
            found = cls(int(fields["batch"]), str(fields["precision"]))
        except (KeyError, TypeError, ValueError):
            return None
        return found if fresh and found.batch > 0 else None

    def write(self, device: str, model: str) -> None:
        """Keep it; a cache that cannot be written to keeps nothing."""
        try:
            write_json(_file(device, model), asdict(self) | {"written": time.time()})
        except OSError:
            return


class BatchSize:
    """Runs batches in pieces that fit, and learns from every one that does not.

    Attributes:
        size: the largest piece.
    """

    def __init__(
        self,
        size: int,
        *,
        out_of_memory: type[BaseException],
        changed: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Start with a size.

        Args:
            size: pieces of a batch, at most.
            out_of_memory: what running a piece raises when it is too large.
            changed: told of a new size; also the place to let go of what memory is held.
        """
        self.size = size
        self._out_of_memory = out_of_memory
        self._changed = changed

    def run(
        self,
        count: int,
        piece: Callable[[int, int], Found],
    ) -> list[Found]:
        """Return `piece(start, end)` for pieces that cover `count` rows, in their order.

        Raises:
            ModelError: not even one row fits.
        """
        found: list[Found] = []
        start = 0
        while start < count:
            end = min(count, start + self.size)
            try:
                found.append(piece(start, end))
            except self._out_of_memory:
                size = (end - start) // 2
            else:
                start = end
                continue
            # Outside of the handler: its traceback holds the tensors that are in the way.
            if size < 1:
                raise ModelError(
                    "The GPU has not enough free memory for one picture with this model. End "
                    "other programs on it, or run on the CPU: CUDA_VISIBLE_DEVICES= mmsearch …"
                )
            self.size = size
            self._changed(size)
        return found


def largest_useful(
    seconds: Callable[[int], float],
    *,
    out_of_memory: type[BaseException],
    smallest: int = SMALLEST,
    largest: int = LARGEST,
) -> int:
    """Return the size beyond which a batch runs out of memory or gets no faster per picture.

    Args:
        seconds: runs a batch of a size and tells how long it took.
        out_of_memory: what it raises where the batch is too large.
        smallest: first size tried; halved where it does not fit.
        largest: last size tried.
    """
    size, best, best_rate = smallest, 0, 0.0
    while size <= largest:
        try:
            rate = size / max(seconds(size), 1e-9)
        except out_of_memory:
            if best or size == 1:
                break
            size = largest = size // 2
            continue
        if rate < best_rate * LEAST_GAIN:
            break
        best, best_rate = size, rate
        size *= 2
    return max(best, 1)


def _file(device: str, model: str) -> Path:
    return root() / "batches" / (file_name(device, device, model) + ".json")
