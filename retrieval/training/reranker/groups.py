"""Batches in which pictures meet those that the encoder confuses with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from mmsearch.retrieval.training.augment import generator

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.training.reranker.features import Features
    from mmsearch.retrieval.training.reranker.recipe import RerankerRecipe

__all__ = ["GroupBatches", "GroupedBatch", "confused_with"]

CLOSEST = 1 / 6
"""Half of the groups are drawn from this share of the pool: the hardest."""

ROWS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class GroupedBatch:
    """Groups of pictures one after another, and a caption of each picture.

    Attributes:
        cells: float16[n, regions, channels], of a random view.
        states: float16[n, words, channels].
        mask: bool[n, words].
        size: pictures in a group.
    """

    cells: torch.Tensor
    states: torch.Tensor
    mask: torch.Tensor
    size: int


class GroupBatches:
    """Draws batches; the same for the same seed, epoch and step."""

    def __init__(
        self, features: Features, near: NDArray[np.int64], recipe: RerankerRecipe, *, groups: int
    ) -> None:
        """Take what batches are made of.

        Args:
            features: of the training pictures.
            near: `int64[pictures, pool]`, see `confused_with`.
            recipe: the settings.
            groups: in a batch.
        """
        self._features, self._near, self._recipe = features, near, recipe
        self._groups = min(groups, max(1, len(near) // recipe.group))
        ends = np.searchsorted(features.owner, np.arange(len(near) + 1))
        self._captions = list(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True))

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return max(1, len(self._near) // self._groups)

    def epoch(self, number: int, first: int) -> Iterator[GroupedBatch]:
        """Yield an epoch's batches from step `first` on."""
        order = generator(self._recipe.seed, number).permutation(len(self._near))
        for step in range(first, self.steps):
            seeds = order[step * self._groups : (step + 1) * self._groups]
            yield self._batch(seeds, generator(self._recipe.seed, number, step))

    def _batch(self, seeds: NDArray[np.int64], random: np.random.Generator) -> GroupedBatch:
        recipe, features = self._recipe, self._features
        size = min(recipe.group, len(self._near))
        # No picture twice: its other caption would count as wrong.
        used = set(seeds.tolist())
        rows: list[int] = []
        for seed in seeds.tolist():
            pool = self._near[seed]
            if random.random() < 0.5:
                pool = pool[: max(size, round(len(pool) * CLOSEST))]
            drawn = [row for row in random.permutation(pool).tolist() if row not in used]
            others = drawn[: size - 1]
            used.update(others)
            while len(others) < size - 1:
                row = int(random.integers(len(self._near)))
                if row not in used or len(used) == len(self._near):
                    others.append(row)
                    used.add(row)
            rows += [seed, *others]
        views = random.integers(len(features.cells), size=len(rows))
        captions = [int(random.integers(*self._captions[row])) for row in rows]
        longest = int(features.mask[captions].sum(axis=1).max())
        return GroupedBatch(
            torch.from_numpy(
                np.stack([features.cells[v][r] for v, r in zip(views, rows, strict=True)])
            ),
            torch.from_numpy(np.stack([features.states[c, :longest] for c in captions])),
            torch.from_numpy(features.mask[captions, :longest]),
            size,
        )


def confused_with(features: Features, pool: int) -> NDArray[np.int64]:
    """Return `int64[pictures, pool]`: for each picture those that the encoder confuses with it.

    By the similarity of either picture to the mean of the other's captions, which is what InfoNCE
    pushed apart and did not part.
    """
    count = len(features.images)
    said = np.zeros_like(features.images)
    np.add.at(said, features.owner, features.texts)
    said /= np.maximum(np.linalg.norm(said, axis=1, keepdims=True), 1e-12)
    pictures, captions = torch.from_numpy(features.images), torch.from_numpy(said)
    near = np.empty((count, min(pool, count - 1)), dtype=np.int64)
    for start in range(0, count, ROWS_AT_ONCE):
        rows = slice(start, min(start + ROWS_AT_ONCE, count))
        similar = pictures[rows] @ captions.T + captions[rows] @ pictures.T
        similar[torch.arange(len(similar)), torch.arange(rows.start, rows.stop)] = -torch.inf
        near[rows] = similar.topk(near.shape[1], dim=1).indices.numpy()
    return near
