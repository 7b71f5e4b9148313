"""How good a reranker is while it is trained, and what it weighs its parts by at the end."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch

from mmsearch.retrieval.rerankers import DEPTH

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.rerankers.co_attention import CoAttention
    from mmsearch.retrieval.training.reranker.features import Features

__all__ = ["Candidates", "Parts", "best_shares"]

SIMILARITY = 20.0
HUBNESS = (0.0, -0.25, -0.5, -0.75, -1.0)
LATE = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)
MATCH = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
"""What `best_shares` tries; hubness in parts of the similarity's share, which stays
the same: only ratios matter."""

DEPTHS = (1, 5, 10)

CAUTION = 0.5
"""How much of the best shares is taken. Libraries hold other photos than those that were held out:
with all of it the bundled reranker lost 6 points of R@1 on photos unlike its own, with half of it
nothing that could be told from chance."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Scores of questions with their candidates, `float32[questions, depth]` each."""

    similarity: NDArray[np.float32]
    hubness: NDArray[np.float32]
    late: NDArray[np.float32]
    match: NDArray[np.float32]

    def fused(self, shares: tuple[float, float, float, float]) -> NDArray[np.float32]:
        """Return the weighted sum."""
        stacked = np.stack([self.similarity, self.hubness, self.late, self.match])
        fused: NDArray[np.float32] = np.tensordot(np.array(shares, dtype=np.float32), stacked, 1)
        return fused


class Candidates:
    """Validation captions, each with the pictures that the encoder finds for it."""

    def __init__(self, features: Features, *, at_most: int, seed: int, depth: int = DEPTH) -> None:
        """Ask the encoder.

        Args:
            features: of the validation's pictures, as they are.
            at_most: captions, drawn at random.
            seed: of the drawing.
            depth: candidates of a caption.
        """
        self._features = features
        count = len(features.texts)
        drawn = np.random.default_rng(seed).permutation(count)[: min(at_most, count)]
        self.rows = np.sort(drawn)
        similar = features.texts[self.rows] @ features.images.T
        self.near = np.argsort(-similar, axis=1, kind="stable")[:, :depth]
        self._similarity = np.take_along_axis(similar, self.near, axis=1)

    @torch.inference_mode()
    def parts(self, model: CoAttention) -> Parts:
        """Return what the model says of every candidate."""
        features, matcher = self._features, model.matcher
        code = torch.cat(
            [
                model.code.from_bytes(
                    model.code.to_bytes(model.code(torch.from_numpy(some.copy())))
                )
                for some in np.array_split(features.cells[0], max(1, len(features.images) // 256))
            ]
        )
        late = np.empty_like(self._similarity)
        match = np.empty_like(self._similarity)
        for place, row in enumerate(self.rows.tolist()):
            length = int(features.mask[row].sum())
            states = torch.from_numpy(features.states[row : row + 1, :length].copy())
            near = code[torch.from_numpy(self.near[place])]
            words = matcher.words(states).expand(len(near), -1, -1)
            mask = torch.ones(words.shape[:2], dtype=torch.bool)
            late[place] = matcher.late_pairs(words, mask, near).numpy()
            match[place] = matcher.match(words, mask, near).numpy()
        hubness = model.hubness(torch.from_numpy(features.images.copy())).numpy()
        return Parts(self._similarity, hubness[self.near], late, match)

    def recall(self, scores: NDArray[np.float32], k: int = 1) -> float:
        """Return R@k, in percent: how often the caption's own picture is among the best `k`."""
        return float((self._ranks(scores) <= k).mean() * 100)

    def mean_reciprocal_rank(self, scores: NDArray[np.float32]) -> float:
        """Return the mean of 1 / rank, in percent; 0 where the picture is no candidate."""
        return float((1 / self._ranks(scores)).mean() * 100)

    def _ranks(self, scores: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return ranks from 1, ties against the question; infinite where it is no candidate."""
        right = self.near == self._features.owner[self.rows][:, None]
        own = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
        ranks: NDArray[np.float64] = (scores >= own).sum(axis=1).astype(np.float64)
        ranks[~right.any(axis=1)] = np.inf
        return ranks


def best_shares(candidates: Candidates, parts: Parts) -> tuple[float, float, float, float]:
    """Return the weights with the highest mean of recalls at 1, 5 and 10, with `CAUTION`."""

    def mean_recall(shares: tuple[float, float, float, float]) -> float:
        scores = parts.fused(shares)
        return statistics.fmean(candidates.recall(scores, k) for k in DEPTHS)

    tried = (
        (SIMILARITY, SIMILARITY * hubness, late, match)
        for hubness, late, match in product(HUBNESS, LATE, MATCH)
    )
    similarity, *others = max(tried, key=mean_recall)
    hubness, late, match = (CAUTION * share for share in others)
    return similarity, hubness, late, match
