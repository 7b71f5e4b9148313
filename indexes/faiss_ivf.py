"""Approximate search by FAISS: the nearest lists of small codes, then the vectors themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np

from mmsearch.indexes.checked_file import CHECKED_ON_OPENING
from mmsearch.indexes.faiss_approximate import ApproximateIndex, K, Kind
from mmsearch.indexes.faiss_rows import (
    BLOCK_ROWS,
    codes_of,
    half_precision,
    is_half_precision,
    refine,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["IvfIndex"]

CODES = {"ivf-rabitq": faiss.IndexIVFRaBitQ, "ivf-sq8": faiss.IndexIVFScalarQuantizer}
QUERY_BITS = 8
"""RaBitQ compares codes with queries of so many bits a coordinate; unrounded ones cost 20 times."""

SAMPLED = 50_000
"""Vectors that set the range of eight-bit codes where one-bit ones were trained."""
STRIDES = (4, 4, 4, 2, 2, 1)
"""Centroids find their place among a part of the sample, and settle among all of it."""
FEWEST_PER_LIST = 8


class IvfIndex(ApproximateIndex):
    """Vectors in lists around centroids, as small codes, beside the vectors in half precision.

    A search compares codes in the lists whose centroids are nearest (`effort` is their number),
    and the vectors of the best (`shortlist` of them for ten answers). With an effort of as many
    lists as there are, every vector is compared.

    Attributes:
        lists: how many there are.
    """

    shortlists = (40, 100, 200, 400, 800)
    _rows_end = 4  # IndexRefine's k_factor
    _checked_on_opening = CHECKED_ON_OPENING

    def __init__(
        self,
        dim: int,
        centroids: NDArray[np.float32],
        sample: NDArray[np.float32],
        kind: Kind = "ivf-rabitq",
    ) -> None:
        """Make an empty index.

        Args:
            dim: the vectors' length.
            centroids: `float32[lists, dim]`.
            sample: `float32[n, dim]` of the vectors to come; sets the range of 8-bit codes.
            kind: how vectors are coded in the lists.
        """
        super().__init__(dim)
        lists = _empty_lists(centroids, sample, kind)
        index = faiss.IndexRefine(lists, half_precision(dim))
        index.is_trained = True
        self._take(kind, index)
        self.effort, self.shortlist = 16, 100

    def _parts(self) -> Any:  # noqa: ANN401
        self._lists = faiss.downcast_index(self._index.base_index)
        self.lists = int(self._lists.nlist)
        return faiss.downcast_index(self._index.refine_index)

    @classmethod
    def _fits(cls, index: Any, kind: str) -> bool:  # noqa: ANN401
        return (
            kind in CODES
            and isinstance(index, faiss.IndexRefine)
            and isinstance(faiss.downcast_index(index.base_index), CODES[kind])
            and is_half_precision(faiss.downcast_index(index.refine_index))
        )

    @property
    def most_effort(self) -> int:
        """As many as there are lists."""
        return self.lists

    def efforts(self) -> Iterator[int]:
        """Yield rising numbers of lists, each about 1.4 times the one before, up to half of all."""
        steps = [round(2 ** (i / 2)) for i in range(2, 2 * int(math.log2(max(4, self.lists))))]
        yield from (a for a, b in pairwise([*steps, 0]) if a != b and a < self.lists)

    def _approximately(
        self,
        queries: NDArray[np.float32],
        k: int,
        effort: int,
        allowed: NDArray[np.int64] | None,
        n: int,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]] | None:
        reach = self.reach(k, effort, n)
        if reach is None:
            return None
        lists, shortlist = reach
        settings: dict[str, Any] = {"nprobe": lists}
        if allowed is not None:
            settings["sel"] = self._selector(allowed)
        if self.kind == "ivf-rabitq":
            settings["qb"] = QUERY_BITS
            parameters = faiss.IVFRaBitQSearchParameters(**settings)
        else:
            parameters = faiss.SearchParametersIVF(**settings)
        _, candidates = self._lists.search(queries, shortlist, params=parameters)
        return refine(self._flat, queries, k, candidates, lambda: self._living(allowed))

    def reach(self, k: int, effort: int | None, n: int) -> tuple[int, int] | None:
        """Return how many lists a search looks into and how many vectors it then compares.

        Args:
            k: how many answers.
            effort: as in `search`.
            n: how many vectors may be among the answers.

        Returns:
            None where all vectors are to be compared.
        """
        effort = self.effort if effort is None else max(1, effort)
        growth = max(1.0, effort / self.effort) * max(1.0, k / K)
        shortlist = max(k, round(self.shortlist * growth))
        # Enough lists to fill the shortlist, were they all alike and the allowed spread evenly.
        effort = max(effort, -(-2 * shortlist * self.lists // max(1, n)))
        return None if effort >= self.lists or 4 * shortlist >= n else (effort, shortlist)

    def lists_of_bytes(self, vectors: Callable[[int, int], NDArray[np.float32]]) -> Any:  # noqa: ANN401
        """Return FAISS's lists of eight-bit codes: the index's own, or others of the same rows.

        Others take a byte a coordinate of memory; centroids, and which rows a list holds, are the
        same.

        Args:
            vectors: `self.vectors`, or what calls it.
        """
        if self.kind == "ivf-sq8":
            return self._lists
        centroids = self._lists.quantizer.reconstruct_n(0, self.lists)
        sample = np.arange(0, len(self._ids), max(1, len(self._ids) // SAMPLED))
        trained = self._flat.reconstruct_batch(sample)
        coded = _empty_lists(centroids, trained, "ivf-sq8")
        list_of = np.full(len(self._ids), -1, dtype=np.int64)
        for i in range(self.lists):
            size = self._lists.invlists.list_size(i)
            if size:
                list_of[faiss.rev_swig_ptr(self._lists.invlists.get_ids(i), size)] = i
        # In the order of rows, not of lists: a map of a file is read from its beginning to its end.
        for start in range(0, len(self._ids), BLOCK_ROWS):
            rows = np.arange(start, min(start + BLOCK_ROWS, len(self._ids)))
            given = vectors(start, start + len(rows)), rows, list_of[rows]
            coded.add_core(len(rows), *map(faiss.swig_ptr, given))
        return coded

    def _forget(self, rows: NDArray[np.int64]) -> None:
        self._lists.remove_ids(faiss.IDSelectorBatch(rows))

    def close_gaps(self) -> None:
        """Drop the vectors of removed ids and number the others anew, in the lists too."""
        if not self._removed:
            return
        self._id_map = None
        living = np.flatnonzero(self._ids >= 0)
        codes = codes_of(self._flat)[living]
        self._flat.reset()
        if len(living):
            self._flat.add_sa_codes(codes)
        number = np.full(len(self._ids), -1, dtype=np.int64)
        number[living] = np.arange(len(living))
        lists = self._lists.invlists
        for i in range(self.lists):
            size = lists.list_size(i)
            if size:
                rows = faiss.rev_swig_ptr(lists.get_ids(i), size)
                rows[:] = number[rows]
        self._lists.ntotal = self._index.ntotal = len(living)
        self._ids = self._ids[living]
        self._removed = 0


def _empty_lists(
    centroids: NDArray[np.float32],
    sample: NDArray[np.float32],
    kind: Kind,
) -> Any:  # noqa: ANN401
    dim = centroids.shape[1]
    quantizer = faiss.IndexFlatIP(dim)
    quantizer.add(centroids)
    arguments: tuple[Any, ...] = (quantizer, dim, len(centroids))
    if kind == "ivf-sq8":
        arguments = (*arguments, faiss.ScalarQuantizer.QT_8bit)
    lists = CODES[kind](*arguments, faiss.METRIC_INNER_PRODUCT)
    lists.train(sample)
    return lists


def train(
    vectors: NDArray[np.float32],
    lists: int,
    kind: Kind,
    *,
    strides: Sequence[int] = STRIDES,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> IvfIndex:
    """Return an empty index with centroids found among `float32[n, dim]` vectors by k-means.

    Args:
        vectors: a sample of those to come, at least `lists`.
        lists: how many centroids.
        kind: how vectors are coded in the lists.
        strides: one for each iteration of k-means, which reads every so many-th vector.
        progress: called with how many iterations are done and how many there are.
    """
    dim = vectors.shape[1]
    parameters = faiss.ClusteringParameters()
    # One at a time, from where the last one ended, so that progress can be told.
    parameters.niter, parameters.spherical = 1, True
    parameters.min_points_per_centroid, parameters.max_points_per_centroid = 1, len(vectors)
    clustering = faiss.Clustering(dim, lists, parameters)
    nearest = faiss.IndexFlatIP(dim)
    for done, stride in enumerate(strides):
        progress(done, len(strides))
        nearest.reset()
        enough = len(vectors) // stride >= FEWEST_PER_LIST * lists
        clustering.train(np.ascontiguousarray(vectors[::stride]) if enough else vectors, nearest)
    centroids = faiss.vector_to_array(clustering.centroids).reshape(lists, dim)
    progress(len(strides), len(strides))
    return IvfIndex(dim, centroids, vectors, kind)
