"""Approximate search by FAISS: a graph from vector to vector."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np

from mmsearch.indexes.faiss_approximate import ApproximateIndex, K
from mmsearch.indexes.faiss_rows import is_half_precision, scan

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["HnswIndex"]

NEIGHBORS = 32
SCAN_INSTEAD = 8
"""Vectors that a step through the graph compares, about: beyond, comparing all is no slower."""


class HnswIndex(ApproximateIndex):
    """A graph over the vectors in half precision (Malkov and Yashunin, 2016, "HNSW").

    A search walks from neighbour to neighbour and keeps the `effort` best it met. It needs no
    training and answers soon where queries lie among the vectors; it takes more memory than lists
    of codes, is slower to build, and a removed vector stays a part of the graph until the index
    is made anew.
    """

    shortlists = (K,)
    _rows_end = 0
    # A walk follows whatever numbers it finds.
    _checked_on_opening = None

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        half, metric = faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        self._take("hnsw", faiss.IndexHNSWSQ(dim, half, NEIGHBORS, metric))
        self.effort, self.shortlist = 64, K

    def _parts(self) -> Any:  # noqa: ANN401
        return faiss.downcast_index(self._index.storage)

    @classmethod
    def _fits(cls, index: Any, kind: str) -> bool:  # noqa: ANN401
        return (
            kind == "hnsw"
            and isinstance(index, faiss.IndexHNSW)
            and index.metric_type == faiss.METRIC_INNER_PRODUCT
            and is_half_precision(faiss.downcast_index(index.storage))
        )

    @property
    def most_effort(self) -> int:
        """As many as would compare every vector."""
        return max(1, len(self._ids) // SCAN_INSTEAD)

    def efforts(self) -> Iterator[int]:
        """Yield rising numbers of vectors to keep, each about 1.4 times the one before."""
        steps = (round(2 ** (i / 2)) for i in range(8, 25))
        yield from (step for step in steps if step < self.most_effort)

    def _approximately(
        self,
        queries: NDArray[np.float32],
        k: int,
        effort: int,
        allowed: NDArray[np.int64] | None,
        n: int,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]] | None:
        # Those that may not be found are passed through and kept all the same.
        walked = round(effort * max(1.0, k / K) * len(self._ids) / max(1, n))
        if walked * SCAN_INSTEAD >= len(self._ids):
            return None
        settings: dict[str, Any] = {"efSearch": max(k, walked)}
        living = self._living(allowed)
        if living is not None:
            settings["sel"] = self._selector(living)
        parameters = faiss.SearchParametersHNSW(**settings)
        scores, rows = self._index.search(queries, k, params=parameters)
        short = (rows < 0).any(axis=1)
        if short.any():
            scores[short], rows[short] = scan(self._flat, queries[short], k, living)
        return scores, rows

    def _forget(self, rows: NDArray[np.int64]) -> None:
        pass  # FAISS cannot take a vector out of the graph; what has no id is not returned.

    def close_gaps(self) -> None:
        """Do nothing: the graph leads through them."""
