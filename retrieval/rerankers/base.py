"""The contract every reranker keeps, and how it puts answers in a new order."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mmsearch.errors import MediaError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

__all__ = ["DEPTH", "Pair", "Reranked", "Reranker", "View", "reorder"]

DEPTH = 50
"""How many of the best answers are reranked, if nobody says otherwise."""


@dataclass(eq=False, slots=True)
class View:
    """A picture as a reranker is given it.

    Attributes:
        key: equal for views of one picture.
        open: decodes it, upright and RGB, its shortest side at least so many pixels where it has
            them; raises MediaError.
        regions: what `Reranker.regions` says of it, where that is known; a reranker that had to
            find it out puts it here.
    """

    key: int | str
    open: Callable[[int], Image.Image]
    regions: NDArray[np.uint8] | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """A text and a picture that may belong together.

    Attributes:
        similarity: cosine that the first stage gave them, in [-1, 1].
    """

    text: str
    view: View
    similarity: float


@dataclass(frozen=True, slots=True)
class Reranked:
    """What a reranker said before its time was over.

    Attributes:
        scores: `float32[n]`, one for each pair, higher is better, comparable within one call; NaN
            where there was no time left, or the picture could not be read.
        unread: what is wrong with pictures that could not be read.
        late: for how many pairs there was no time left.
    """

    scores: NDArray[np.float32]
    unread: tuple[str, ...] = ()
    late: int = 0

    @property
    def count(self) -> int:
        """How many pairs have a score."""
        return int(np.isfinite(self.scores).sum())


class Reranker(ABC):
    """Reads a text and a picture together, which a dual encoder never does.

    An implementation writes `_score` for one batch. Scoring is safe from several threads.
    """

    batch_size = 8
    """Pairs scored at once: between two batches the clock is looked at."""

    decode_size = 384
    """Pixels of the shortest side, where they have them, of pictures given to `regions`."""

    kind: str | None = None
    """Names the bytes that `regions` gives: others make other bytes. None: nothing is kept."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What `load_reranker` takes to get this one again."""

    def rerank(self, pairs: Sequence[Pair], *, budget_s: float | None = None) -> Reranked:
        """Score pairs in their order, as many as the time allows.

        Args:
            pairs: the most promising first; one text with several pictures, or the reverse.
            budget_s: seconds after which no further batch is begun, nor one that would probably
                end later; the first batch is always scored.
        """
        started = time.perf_counter()
        scores = np.full(len(pairs), np.nan, dtype=np.float32)
        unread: list[str] = []
        slowest = 0.0
        late = 0
        for start in range(0, len(pairs), self.batch_size):
            begun = time.perf_counter()
            if budget_s is not None and start and begun + slowest - started > budget_s:
                late = len(pairs) - start
                break
            batch = pairs[start : start + self.batch_size]
            scores[start : start + len(batch)] = self._readable(batch, unread)
            slowest = max(slowest, time.perf_counter() - begun)
        return Reranked(scores, tuple(dict.fromkeys(unread)), late)

    def regions(self, images: Sequence[Image.Image]) -> list[NDArray[np.uint8]] | None:
        """Return what `View.regions` gives back later, so that a picture is read once only.

        None where nothing is worth keeping, and then for all pictures alike.

        Args:
            images: upright RGB, at most `batch_size`.
        """
        return None

    def _readable(self, batch: Sequence[Pair], unread: list[str]) -> NDArray[np.float32]:
        """Score a batch; where a picture cannot be read, the others one by one."""
        try:
            return self._score(batch)
        except MediaError as error:
            if len(batch) == 1:
                unread.append(str(error))
                return np.full(1, np.nan, dtype=np.float32)
        return np.concatenate([self._readable([pair], unread) for pair in batch])

    @abstractmethod
    def _score(self, batch: Sequence[Pair]) -> NDArray[np.float32]:
        """Return `float32[n]` for 1 to `batch_size` pairs; raise MediaError for a bad picture."""


def reorder(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return `int64[n]`: places in the new order; what has no score (NaN) follows as it stood.

    >>> reorder(np.array([0.1, 0.9, np.nan, 0.5], dtype=np.float32)).tolist()
    [1, 3, 0, 2]
    """
    keys = np.where(np.isfinite(scores), -scores, np.inf)
    order: NDArray[np.int64] = np.argsort(keys, kind="stable")
    return order
