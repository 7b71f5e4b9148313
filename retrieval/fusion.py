"""One ranking of several questions: pure functions, each with its formula and source."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["calibrated", "early", "ranks_of", "reciprocal_rank", "weighted"]

SMOOTHING = 60.0
"""Ranks that count as nearly the same in reciprocal rank fusion: its authors' choice."""


def early(vectors: NDArray[np.float32], weights: Floats) -> NDArray[np.float32]:
    """Return the unit vector `Σ wᵢ vᵢ / |Σ wᵢ vᵢ|` as `float32[1, dim]`.

    Args:
        vectors: `float32[p, dim]`, unit rows.
        weights: `float64[p]`.

    Raises:
        ValueError: the parts cancel each other out.
    """
    mixed = weights @ vectors.astype(np.float64)
    length = float(np.linalg.norm(mixed))
    if length < 1e-6:
        raise ValueError("the parts cancel each other out")
    return (mixed / length).astype(np.float32)[None]


def weighted(scores: Floats, weights: Floats) -> Floats:
    """Return the weighted mean of scores, `Σ wᵢ sᵢ / Σ wᵢ` ("CombSUM", Fox and Shaw 1994).

    Args:
        scores: `float64[p, n]`.
        weights: `float64[p]`.
    """
    mean: Floats = weights @ scores / weights.sum()
    return mean


def calibrated(scores: Floats, weights: Floats, background: Floats) -> Floats:
    """Return `Σ wᵢ zᵢ / √(Σ wᵢ²)` with `zᵢ = (sᵢ - mean) / deviation` of the background.

    Similarities of pictures with a picture are higher, and lie closer together, than those with
    words; z-scores of what a library holds are of one scale. Weighted as Stouffer's method has it
    (Stouffer et al. 1949; Mosteller and Bush 1954).

    Args:
        scores: `float64[p, n]`.
        weights: `float64[p]`.
        background: `float64[p, b]`, the scores of a sample of the library.
    """
    middle = background.mean(axis=1, keepdims=True)
    # Where all scores are the same, none tells anything.
    spread = np.maximum(background.std(axis=1, keepdims=True), 1e-6)
    found: Floats = weights @ ((scores - middle) / spread) / np.sqrt((weights**2).sum())
    return found


def reciprocal_rank(ranks: NDArray[np.int64], weights: Floats) -> Floats:
    """Return `Σ wᵢ / (60 + rankᵢ)` (Cormack, Clarke and Büttcher 2009).

    Args:
        ranks: `int64[p, n]`, 1 for the best.
        weights: `float64[p]`.
    """
    found: Floats = weights @ (1.0 / (SMOOTHING + ranks))
    return found


def ranks_of(scores: Floats) -> NDArray[np.int64]:
    """Return `int64[p, n]` ranks, 1 for the highest of each row; equal scores share the best."""
    ordered = -np.sort(-scores, axis=1)
    return np.stack(
        [
            np.searchsorted(-order, -row, side="left") + 1
            for order, row in zip(ordered, scores, strict=True)
        ]
    ).astype(np.int64)
