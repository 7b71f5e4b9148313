"""From similarities to probabilities: what a score means in one library, for one encoder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["SAMPLE", "Calibration"]

SAMPLE = 1_000
"""Vectors of a library that stand for all of it."""
RIVALS = 50
"""Names that fit a picture best, of all in the background."""
PRIOR = 20
"""How many vectors the encoder's usual scores count for, where a library is small."""

WEIGHTS = (1.157, 0.893, -0.663)
"""Of a match: deviations of the query's own scores beyond the best by chance, deviations beyond
the names that fit the picture best, and a constant. Learned by `bench_no_match.py` from half of its
concepts."""
SHOWN, SOFTNESS = 1.75, 1.0
"""Deviations beyond the mean at which a picture as likely shows a concept as not, and how fast
that changes. Learned by `bench_negation.py` from half of its pairs."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Scores of pictures by words that they have nothing to do with, mostly.

    Such null distributions tell speakers apart in the same way ("T-norm" of the query's own scores
    and "Z-norm" by other queries; Auckenthaler, Carey and Lloyd-Thomas 2000).

    Attributes:
        background: `float32[b, dim]`, vectors of texts that have nothing to do with the library.
        sample: `float32[n, dim]`, vectors of the library's pictures, at least one.
        size: how many pictures the library has.
        middle: mean score of background and sample.
        spread: its deviation.
    """

    background: NDArray[np.float32]
    sample: NDArray[np.float32]
    size: int
    middle: float
    spread: float

    @classmethod
    def of(
        cls, background: NDArray[np.float32], sample: NDArray[np.float32], size: int
    ) -> Calibration:
        """Compare background and sample; see the attributes."""
        scores = background @ sample.T
        return cls(background, sample, size, float(scores.mean()), max(float(scores.std()), 1e-6))

    def own(self, queries: NDArray[np.float32]) -> tuple[Floats, Floats]:
        """Return `float64[q]` each, mean and deviation of what each query usually scores.

        The fewer pictures a library has, the more its encoder's usual scores count as well.

        Args:
            queries: `float32[q, dim]`, unit rows.
        """
        own = queries @ self.sample.T
        n = own.shape[1]
        mean = (own.sum(axis=1) + PRIOR * self.middle) / (n + PRIOR)
        squares = ((own - mean[:, None]) ** 2).sum(axis=1) + PRIOR * self.spread**2
        return mean, np.sqrt(squares / (n + PRIOR))

    def deviations(self, queries: NDArray[np.float32], scores: Floats) -> Floats:
        """Return `float64[q, n]`: how many deviations scores lie beyond the query's usual ones.

        Args:
            queries: `float32[q, dim]`, unit rows.
            scores: `float64[q, n]`.
        """
        mean, deviation = self.own(queries)
        found: Floats = (scores - mean[:, None]) / deviation[:, None]
        return found

    def shown(self, queries: NDArray[np.float32], scores: Floats) -> Floats:
        """Return `float64[q, n]`, the probability that a picture shows what a query names.

        Args:
            queries: `float32[q, dim]`, unit rows, one a concept.
            scores: `float64[q, n]`.
        """
        return _logistic((self.deviations(queries, scores) - SHOWN) / SOFTNESS)

    def usual(self, vectors: NDArray[np.float32]) -> Floats:
        """Return `float64[n]`, the mean score of the names that fit each picture best.

        Args:
            vectors: `float32[n, dim]`, of pictures.
        """
        rivals = vectors @ self.background.T
        most = min(RIVALS, rivals.shape[1])
        found: Floats = np.partition(rivals, -most, axis=1)[:, -most:].mean(axis=1)
        return found

    def beyond(self, mean: float, deviation: float, scores: Floats, usual: Floats) -> Floats:
        """Return `float64[n, 2]`, what `WEIGHTS` weigh.

        The best of `n` normal deviates lies near `√(2 ln n)`: what is beyond is no chance.

        Args:
            mean: of the query's usual scores, see `own`.
            deviation: theirs.
            scores: `float64[n]`, similarities of pictures.
            usual: `float64[n]`, of the pictures.
        """
        chance = math.sqrt(2 * math.log(max(self.size, 2)))
        found = np.empty((len(scores), 2))
        found[:, 0] = (scores - mean) / deviation - chance
        found[:, 1] = (scores - usual) / self.spread
        return found

    def probability(self, mean: float, deviation: float, scores: Floats, usual: Floats) -> Floats:
        """Return `float64[n]`, the probability that each picture matches; see `beyond`."""
        *weights, constant = WEIGHTS
        return _logistic(self.beyond(mean, deviation, scores, usual) @ np.array(weights) + constant)

    def evidence(
        self, query: NDArray[np.float32], scores: Floats, vectors: NDArray[np.float32]
    ) -> Floats:
        """Return `float64[n, 2]`, see `beyond`.

        Args:
            query: `float32[1, dim]`, a unit row.
            scores: `float64[n]`, similarities of the pictures.
            vectors: `float32[n, dim]`, of the pictures.
        """
        (mean,), (deviation,) = self.own(query)
        return self.beyond(mean, deviation, scores, self.usual(vectors))

    def match(
        self, query: NDArray[np.float32], scores: Floats, vectors: NDArray[np.float32]
    ) -> Floats:
        """Return `float64[n]`, the probability that each picture matches; see `evidence`."""
        (mean,), (deviation,) = self.own(query)
        return self.probability(mean, deviation, scores, self.usual(vectors))


def _logistic(x: Floats) -> Floats:
    return np.exp(-np.logaddexp(0, -x))
