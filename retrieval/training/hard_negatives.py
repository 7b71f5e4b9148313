"""Hard negatives: batches in which pictures meet those they are easily confused with.

What is near is judged by the embeddings of the last epoch: they cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Memory", "with_neighbours"]

ROWS_AT_ONCE = 2048
CANDIDATES = 16_384
"""Rows among which the neighbours of a batch are sought: time grows with the pictures, not with
their square."""


@dataclass(slots=True)
class Memory:
    """The embeddings of every picture and its caption when they were last seen.

    There are two of each: as they were when the epoch began, which chooses its batches, and as
    they are by now. A training that goes on in the middle of an epoch thus chooses the same ones.

    Attributes:
        images: `float16[2, n, dim]` by row of the corpus, then and now; zero where never seen.
        texts: the same of the captions that were shown with them.
    """

    images: torch.Tensor
    texts: torch.Tensor

    @classmethod
    def empty(cls, rows: int, dim: int) -> Memory:
        """Return a memory of nothing."""
        nothing = torch.zeros(2, rows, dim, dtype=torch.float16)
        return cls(nothing, nothing.clone())

    def remember(self, rows: torch.Tensor, images: torch.Tensor, texts: torch.Tensor) -> None:
        """Keep the embeddings of a batch."""
        where = rows.cpu()
        self.images[1, where] = images.detach().to("cpu", torch.float16)
        self.texts[1, where] = texts.detach().to("cpu", torch.float16)

    def settle(self) -> None:
        """Begin an epoch: what is known now chooses its batches."""
        for table in (self.images, self.texts):
            table[0] = table[1]


def with_neighbours(
    order: NDArray[np.int64], size: int, share: float, memory: Memory
) -> list[NDArray[np.int64]]:
    """Return batches of `size` rows: some from `order`, the rest nearest to those and unused.

    Args:
        order: every row once, in random order.
        size: rows in a batch; what does not fill one is left out.
        share: of a batch, filled with neighbours, in [0, 1).
        memory: what is near.
    """
    seeds = max(1, round(size * (1 - share)))
    window = seeds + max(size, CANDIDATES)
    batches = []
    waiting, taken = order[:0], 0
    for _ in range(len(order) // size):
        taken, before = taken + window - len(waiting), taken
        waiting = np.concatenate([waiting, order[before:taken]])
        chosen, others = waiting[:seeds], waiting[seeds:]
        images = memory.images[0, torch.from_numpy(others)].float()
        texts = memory.texts[0, torch.from_numpy(chosen)].float()
        # Wanted by several seeds counts once; the nearest come first.
        near = torch.full((len(others),), -torch.inf)
        for start in range(0, seeds, ROWS_AT_ONCE):
            part = texts[start : start + ROWS_AT_ONCE] @ images.T
            near = torch.maximum(near, part.amax(dim=0))
        more = near.topk(size - len(chosen)).indices.numpy()
        batches.append(np.concatenate([chosen, others[more]]))
        waiting = np.delete(others, more)
    return batches
