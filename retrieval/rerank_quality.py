"""What a reranker gains: the ranks of right answers before and after it read the best again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch.errors import MediaError
from mmsearch.retrieval.bootstrap import percentile_interval, resample
from mmsearch.retrieval.metrics import measures
from mmsearch.retrieval.quality import (
    DIGITS,
    Fold,
    Retrieval,
    Sampling,
    folds_of,
    rounded,
    summarise,
)
from mmsearch.retrieval.ranking import best_items, pair_scores
from mmsearch.retrieval.rerankers import Pair, Reranker, View
from mmsearch.retrieval.reranking import tell_unread

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.quality import Ranked
    from mmsearch.retrieval.ranking import Vectors

__all__ = ["Gain", "RerankQuality", "SecondLook", "gain", "rank_after"]


@dataclass(frozen=True, slots=True)
class Gain:
    """How much higher each measure is after reranking.

    Attributes:
        values: by the measure's name in JSON; below 0 where it is lower.
        confidence: lower and upper bound of each, from paired resamples: the same pictures are
            drawn before and after. Empty where nothing was resampled.
    """

    values: dict[str, float]
    confidence: dict[str, tuple[float, float]]

    def to_json(self) -> dict[str, Any]:
        """Return the object under `gain` in one direction of `reranked`."""
        values = {name: round(value, DIGITS.get(name, 2)) for name, value in self.values.items()}
        return values | rounded(self.confidence)


@dataclass(frozen=True, slots=True)
class RerankQuality:
    """Quality in both directions with the best answers reranked.

    Attributes:
        model: the reranker's name.
        depth: how many answers to each question it read.
        text_to_image: quality afterwards.
        image_to_text: quality afterwards.
        gains: of both directions, in this order.
        pairs: how many pairs were scored. Questions whose right answers are all beyond the depth
            are not asked: nothing can change for them.
        seconds: how long that took, reading pictures included.
        unreadable: how many pictures could not be read.
    """

    model: str
    depth: int
    text_to_image: Retrieval
    image_to_text: Retrieval
    gains: tuple[Gain, Gain]
    pairs: int
    seconds: float
    unreadable: int

    def to_json(self) -> dict[str, Any]:
        """Return the object under `reranked` in `evaluate --json`."""
        return {
            "model": self.model,
            "depth": self.depth,
            "text_to_image": self.text_to_image.to_json() | {"gain": self.gains[0].to_json()},
            "image_to_text": self.image_to_text.to_json() | {"gain": self.gains[1].to_json()},
            "pairs": self.pairs,
            "seconds": round(self.seconds, 3),
            "unreadable": self.unreadable,
        }


@dataclass(frozen=True, slots=True)
class SecondLook:
    """What is reranked.

    Attributes:
        reranker: reads words and picture together.
        depth: how many of the best answers to each question it reads, at least 1.
        captions: the words of each text vector.
        views: the picture of each picture vector.
    """

    reranker: Reranker
    depth: int
    captions: Sequence[str] = ()
    views: Sequence[View] = ()

    def on(self, captions: Sequence[str], views: Sequence[View]) -> SecondLook:
        """Return the same with what is to be reranked."""
        return replace(self, captions=captions, views=views)

    def measure(
        self,
        images: Vectors,
        texts: Vectors,
        image_of: NDArray[np.int64],
        before: tuple[list[Ranked], list[Ranked]],
        sampling: Sampling,
        progress: Callable[[int, int], None] = lambda *_: None,
    ) -> RerankQuality:
        """Rerank both directions: each text's best pictures, each picture's best texts.

        Args:
            images: `float[n, dim]`, unit rows.
            texts: `float[m, dim]`, unit rows.
            image_of: `int64[m]`, the row in `images` of each text's picture.
            before: what `rank_vectors` says of these.
            sampling: the intervals and folds wanted.
            progress: called with how many questions are done and how many there are.
        """
        started = time.perf_counter()
        work = _Work(self)
        total = sum(len(ranks) for way in before for ranks, _ in way)
        to_image: list[Ranked] = []
        to_text: list[Ranked] = []
        done = 0
        for i, fold in enumerate(folds_of(len(images), image_of, sampling.folds)):
            pictures, captions = images[fold.pictures], texts[fold.texts]
            number, asked = np.arange(len(pictures)), np.unique(fold.image_of)
            ways = (
                (to_image, before[0][i], captions, pictures, fold.image_of, number),
                (to_text, before[1][i], pictures[asked], captions, asked, fold.image_of),
            )
            for found, (ranks, owners), queries, items, label, of_item in ways:
                near = best_items(queries, items, self.depth, label, of_item)
                scores = pair_scores(queries, items, near)
                after = ranks.copy()
                for query in range(len(queries)):
                    progress(done, total)
                    done += 1
                    if ranks[query] > self.depth:
                        continue
                    row, similar = near[query], scores[query].tolist()
                    if found is to_image:
                        pairs = work.pictures(fold, query, row, similar)
                    else:
                        pairs = work.captions(fold, int(asked[query]), row, similar)
                    after[query] = rank_after(work.score(pairs), of_item[row] == label[query])
                found.append((after, owners))
        progress(total, total)
        tell_unread(list(work.unread))
        return RerankQuality(
            model=self.reranker.name,
            depth=self.depth,
            text_to_image=summarise(to_image, sampling),
            image_to_text=summarise(to_text, sampling),
            gains=(gain(before[0], to_image, sampling), gain(before[1], to_text, sampling)),
            pairs=work.count,
            seconds=time.perf_counter() - started,
            unreadable=len(work.unread),
        )


class _Work:
    """Scores pairs, and keeps of each picture what the reranker wants kept: it is read once."""

    def __init__(self, look: SecondLook) -> None:
        self._look = look
        self._views = list(look.views)
        self._known = [view.regions is not None for view in self._views]
        self._keeps = True
        self.count = 0
        self.unread: dict[str, None] = {}

    def pictures(
        self, fold: Fold, text: int, rows: NDArray[np.int64], similar: Sequence[float]
    ) -> list[Pair]:
        """Return a text of the fold with several of its pictures."""
        caption = self._look.captions[int(fold.texts[text])]
        views = self._seen([fold.pictures.start + row for row in rows.tolist()])
        return [Pair(caption, view, score) for view, score in zip(views, similar, strict=True)]

    def captions(
        self, fold: Fold, picture: int, rows: NDArray[np.int64], similar: Sequence[float]
    ) -> list[Pair]:
        """Return a picture of the fold with several of its texts."""
        (view,) = self._seen([fold.pictures.start + picture])
        told = [self._look.captions[row] for row in fold.texts[rows].tolist()]
        return [Pair(text, view, score) for text, score in zip(told, similar, strict=True)]

    def score(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """Return `float32[n]`, NaN where a picture cannot be read."""
        found = self._look.reranker.rerank(pairs)
        self.count += found.count
        self.unread |= dict.fromkeys(found.unread)
        return found.scores

    def _seen(self, rows: Sequence[int]) -> list[View]:
        size = self._look.reranker.batch_size
        lacking = [row for row in rows if not self._known[row]]
        for start in range(0, len(lacking), size):
            if self._keeps:
                self._keep(lacking[start : start + size])
        return [self._views[row] for row in rows]

    def _keep(self, rows: Sequence[int]) -> None:
        images, readable = [], []
        for row in rows:
            self._known[row] = True
            try:
                images.append(self._views[row].open(self._look.reranker.decode_size))
            except MediaError:
                continue  # Scoring it says so.
            readable.append(row)
        regions = self._look.reranker.regions(images) if images else []
        if regions is None:
            self._keeps = False
            return
        for row, one in zip(readable, regions, strict=True):
            self._views[row] = replace(self._views[row], regions=one)


def rank_after(scores: NDArray[np.float32], right: NDArray[np.bool_]) -> int:
    """Return the rank, from 1, of the first right candidate in the reranker's order.

    Ties count against the question. What has no score (NaN) follows as it stood.

    Args:
        scores: `float32[n]`, of the candidates in the order of the first stage.
        right: `bool[n]`, at least one of them true.

    >>> rank_after(np.array([0.2, 0.9, 0.9], dtype=np.float32), np.array([False, True, False]))
    2
    """
    known = np.isfinite(scores)
    order = np.lexsort((right & known, np.where(known, -scores, np.inf)))
    return int(np.argmax(right[order])) + 1


def gain(before: Sequence[Ranked], after: Sequence[Ranked], sampling: Sampling) -> Gain:
    """Return how much higher measures are after than before, averaged over folds.

    Args:
        before: for each fold the ranks, and the number of the picture that each question is about.
        after: the same questions in the same order.
        sampling: how often to resample, with which seed.
    """
    first, second = ([measures(ranks) for ranks, _ in part] for part in (before, after))
    values = {
        name: float(np.mean([one[name] for one in second]) - np.mean([one[name] for one in first]))
        for name in first[0]
    }
    confidence: dict[str, tuple[float, float]] = {}
    if sampling.resamples:
        # One seed draws the same pictures twice, so what both have in common cancels out.
        moved = [
            resample(new, owner, resamples=sampling.resamples, seed=(sampling.seed, fold))
            - resample(old, owner, resamples=sampling.resamples, seed=(sampling.seed, fold))
            for fold, ((old, owner), (new, _)) in enumerate(zip(before, after, strict=True))
        ]
        bounds = percentile_interval(np.mean(moved, axis=0)).T.tolist()
        confidence = {name: (low, high) for name, (low, high) in zip(values, bounds, strict=True)}
    return Gain(values, confidence)
