"""How good vectors are for retrieval, in both directions, and how sure that is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch.retrieval.bootstrap import LEVEL, percentile_interval, resample
from mmsearch.retrieval.metrics import CUTOFFS, measures
from mmsearch.retrieval.ranking import ranks_both_ways

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.ranking import Vectors

    Ranked = tuple[NDArray[np.int64], NDArray[np.int64]]

__all__ = [
    "Fold",
    "Retrieval",
    "Sampling",
    "evaluate_vectors",
    "folds_of",
    "rank_vectors",
    "rounded",
    "summarise",
]

DIGITS = {"median_rank": 1, "mrr": 4}
"""Of a measure in JSON; two for the percentages."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which samples of the pictures the figures come from.

    Attributes:
        folds: how many equal parts, in the order of the pictures, are measured each by itself and
            then averaged; 5 for the COCO-1K protocol over the 5,000 test pictures.
        resamples: of the bootstrap that gives the intervals; 0 for none.
        seed: of the draws.
    """

    folds: int = 1
    resamples: int = 1000
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the keys that tell how the intervals of `evaluate --json` came about."""
        if not self.resamples:
            return {}
        drawn = {"resamples": self.resamples, "seed": self.seed, "unit": "picture"}
        return {"confidence_level": LEVEL, "bootstrap": drawn}


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Quality in one direction.

    Attributes:
        recall: percentage (0 to 100) of queries with a right answer among the first k, by k.
        median_rank: of the first right answer, from 1.
        mrr: mean reciprocal rank, in (0, 1].
        confidence: lower and upper bound of each measure, by its name in JSON; empty where
            nothing was resampled.
    """

    recall: dict[int, float]
    median_rank: float
    mrr: float
    confidence: dict[str, tuple[float, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return one direction of `evaluate --json`."""
        recall = {f"R@{k}": round(value, 2) for k, value in self.recall.items()}
        fields = recall | {"median_rank": self.median_rank, "mrr": round(self.mrr, 4)}
        return fields | rounded(self.confidence)


def rounded(confidence: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """Return intervals by measure under the key `confidence`; nothing where there are none."""
    bounds = {
        name: [round(bound, DIGITS.get(name, 2)) for bound in both]
        for name, both in confidence.items()
    }
    return {"confidence": bounds} if bounds else {}


@dataclass(frozen=True, slots=True)
class Fold:
    """A part of the pictures, with their texts.

    Attributes:
        pictures: the rows of its pictures.
        texts: `int64[m]`, the rows of its texts.
        image_of: `int64[m]`, each text's picture, counted within the fold.
    """

    pictures: slice
    texts: NDArray[np.int64]
    image_of: NDArray[np.int64]


def folds_of(images: int, image_of: NDArray[np.int64], folds: int) -> Iterator[Fold]:
    """Yield equal parts of the pictures, in their order.

    Raises:
        ValueError: a fold has no text.
    """
    for pictures in np.array_split(np.arange(images), folds):
        mine = np.flatnonzero(np.isin(image_of, pictures))
        if not len(pictures) or not len(mine):
            raise ValueError(f"{folds} folds of {images} pictures leave one empty")
        first = int(pictures[0])
        yield Fold(slice(first, first + len(pictures)), mine, image_of[mine] - first)


def evaluate_vectors(
    images: Vectors,
    texts: Vectors,
    image_of: NDArray[np.int64],
    sampling: Sampling | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> tuple[Retrieval, Retrieval]:
    """Return text→image and image→text quality, see `rank_vectors`.

    Args:
        images: `float[n, dim]` (half or single precision), unit rows.
        texts: `float[m, dim]`, unit rows, at least one.
        image_of: `int64[m]`, the row in `images` of each text's picture.
        sampling: the intervals and folds wanted; none when not given.
        progress: called with how many texts are compared and how many there are.

    Raises:
        ValueError: a fold has no text.
    """
    sampling = sampling or Sampling(resamples=0)
    to_image, to_text = rank_vectors(images, texts, image_of, sampling.folds, progress)
    return summarise(to_image, sampling), summarise(to_text, sampling)


def rank_vectors(
    images: Vectors,
    texts: Vectors,
    image_of: NDArray[np.int64],
    folds: int = 1,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> tuple[list[Ranked], list[Ranked]]:
    """Return the ranks of right answers, text→image and image→text, of every fold.

    A text's right answer is its one picture; a picture's are all of its texts, and the best of
    them counts. Pictures without a text are asked nothing but may be wrong answers. Memory beyond
    the vectors is bounded: scores are computed block by block.

    Args:
        images: `float[n, dim]` (half or single precision), unit rows.
        texts: `float[m, dim]`, unit rows, at least one.
        image_of: `int64[m]`, the row in `images` of each text's picture.
        folds: how many equal parts are measured each by itself.
        progress: called with how many texts are compared and how many there are.

    Raises:
        ValueError: a fold has no text.
    """
    to_image, to_text = [], []
    done = 0
    for fold in folds_of(len(images), image_of, folds):
        text_ranks, image_ranks = ranks_both_ways(
            texts[fold.texts] if folds > 1 else texts,  # a copy of all may not fit
            images[fold.pictures],
            fold.image_of,
            lambda n, _, before=done: progress(before + n, len(texts)),  # type: ignore[misc]
        )
        done += len(fold.texts)
        to_image.append((text_ranks, np.unique(fold.image_of, return_inverse=True)[1]))
        to_text.append((image_ranks, np.arange(len(image_ranks))))
    return to_image, to_text


def summarise(parts: Sequence[Ranked], sampling: Sampling) -> Retrieval:
    """Return the measures, averaged over parts, with their intervals.

    Args:
        parts: for each fold `int64[q]` ranks from 1 and the `int64[q]` number, 0 to n-1, of the
            picture that each query belongs to.
        sampling: how often to resample, with which seed.
    """
    found = [measures(ranks) for ranks, _ in parts]
    mean = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
    confidence: dict[str, tuple[float, float]] = {}
    if sampling.resamples:
        values = [
            resample(ranks, picture, resamples=sampling.resamples, seed=(sampling.seed, fold))
            for fold, (ranks, picture) in enumerate(parts)
        ]
        bounds = percentile_interval(np.mean(values, axis=0)).T.tolist()
        confidence = {name: (low, high) for name, (low, high) in zip(mean, bounds, strict=True)}
    recall = {k: mean[f"R@{k}"] for k in CUTOFFS}
    return Retrieval(recall, mean["median_rank"], mean["mrr"], confidence)
