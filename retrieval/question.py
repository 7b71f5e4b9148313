"""Questions of one part or several, words and pictures: checked, embedded, put to an index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mmsearch.errors import MediaError, QueryError
from mmsearch.retrieval.containers import read_inside
from mmsearch.retrieval.fusion import calibrated, early, ranks_of, reciprocal_rank, weighted
from mmsearch.retrieval.media import open_picture
from mmsearch.retrieval.schema import Fusion, Query, QueryPart, Target

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.indexes import VectorIndex
    from mmsearch.retrieval.adapter import Adapter
    from mmsearch.retrieval.encoders import Encoder

__all__ = ["ImageSource", "Question", "search_composed"]

ImageSource = Path | str | Image.Image
"""A path or a picture in memory."""

DEPTH = 200
"""Answers of each part that are compared with every part, at least, and five for each of `k`."""
BACKGROUND = 1_000
"""Vectors whose scores say what a score means."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked.

    Attributes:
        texts: descriptions.
        images: pictures that look like it.
        weights: of the texts, then of the images; above 0.
        fusion: how several parts become one answer.
    """

    texts: tuple[str, ...]
    images: tuple[ImageSource, ...]
    weights: tuple[float, ...]
    fusion: Fusion

    @classmethod
    def of(
        cls,
        text: str | Sequence[str] | None,
        image: ImageSource | Sequence[ImageSource] | None,
        weights: Sequence[float] | None,
        fusion: Fusion,
    ) -> Question:
        """Check what was asked.

        Raises:
            QueryError: nothing is, a text is empty, or weights do not fit.
        """
        texts = () if text is None else (text,) if isinstance(text, str) else tuple(text)
        images = (
            () if image is None else (image,) if isinstance(image, ImageSource) else tuple(image)
        )
        count = len(texts) + len(images)
        if count == 0:
            raise QueryError("Ask with words, with a picture or with both.")
        if not all(each.strip() for each in texts):
            raise QueryError('The query is empty. Describe a picture: "a dog on a beach".')
        weighed = (1.0,) * count if weights is None else tuple(float(weight) for weight in weights)
        if len(weighed) != count:
            raise QueryError(
                f"{count} parts are asked and {len(weighed)} weights given. Give one weight for "
                "each text, then one for each picture, or none."
            )
        if not all(0 < weight < float("inf") for weight in weighed):
            raise QueryError(f"Weights must be above 0, not {min(weighed):g}.")
        return cls(texts, images, weighed, fusion)

    def embedded(
        self, encoder: Encoder, adapter: Adapter | None
    ) -> tuple[NDArray[np.float32], bool]:
        """Return `float32[p, dim]`, a unit row for each part, and whether the adapter was applied.

        Raises:
            QueryError: a picture cannot be read.
        """
        rows = []
        if self.texts:
            vectors = encoder.encode_texts(self.texts)
            rows.append(vectors if adapter is None else adapter.apply(vectors))
        if self.images:
            try:
                rows.append(encoder.encode_images([_readable(image) for image in self.images]))
            except MediaError as error:
                raise QueryError(f"The query picture cannot be used: {error}.") from error
        return np.concatenate(rows), bool(self.texts) and adapter is not None

    def search(
        self, index: VectorIndex, vectors: NDArray[np.float32], k: int
    ) -> list[tuple[int, float]]:
        """Return ids and scores, best first, of up to `k` answers to the embedded parts.

        Raises:
            QueryError: the parts cancel each other out.
            IndexFileError: as from `VectorIndex.search`.
        """
        if len(vectors) == 1:
            found = index.search(vectors, k)
            pairs = zip(found.ids[0].tolist(), found.scores[0].tolist(), strict=True)
            return [(id_, score) for id_, score in pairs if id_ >= 0]
        try:
            ids, scores = search_composed(index, vectors, np.array(self.weights), self.fusion, k)
        except ValueError as error:
            raise QueryError(f"Nothing is like all of it: {error}.") from error
        return list(zip(ids.tolist(), scores.tolist(), strict=True))

    def told(self, target: Target) -> Query:
        """Return the question as results tell it."""
        names = [QueryPart(text=text) for text in self.texts]
        names += [
            QueryPart(image=str(getattr(image, "filename", None) or image)) for image in self.images
        ]
        if len(names) == 1:
            return Query((names[0],), target)
        parts = tuple(
            QueryPart(part.text, part.image, weight)
            for part, weight in zip(names, self.weights, strict=True)
        )
        return Query(parts, target, self.fusion)


def _readable(image: ImageSource) -> ImageSource:
    """Return a picture that lies inside a tar or Parquet file as one in memory."""
    inside = read_inside(Path(image)) if isinstance(image, (str, Path)) else None
    return image if inside is None else open_picture(inside)


def search_composed(
    index: VectorIndex,
    vectors: NDArray[np.float32],
    weights: NDArray[np.float64],
    fusion: Fusion,
    k: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the ids and fused scores, best first, of up to `k` answers.

    All ways but the early one choose among what is near to at least one part, and compare that
    with every part.

    Args:
        index: of what is looked for.
        vectors: `float32[p, dim]`, unit rows, one a part.
        weights: `float64[p]`, above 0.
        fusion: how.
        k: at least 1.

    Raises:
        ValueError: the parts cancel each other out, where that matters.
        IndexFileError: as from `VectorIndex.search`.
    """
    if fusion is Fusion.EARLY:
        found = index.search(early(vectors, weights), k)
        known = found.ids[0] >= 0
        return found.ids[0][known], found.scores[0][known].astype(np.float64)
    asked = (
        np.concatenate([vectors, early(vectors, weights)]) if fusion is Fusion.HYBRID else vectors
    )
    near = index.search(asked, max(DEPTH, 5 * k)).ids
    ids = np.unique(near[near >= 0])
    if len(ids) == 0:
        return ids, np.empty(0)
    scores = _scores(index, asked, ids)
    match fusion:
        case Fusion.SCORES:
            fused = weighted(scores, weights)
        case Fusion.RANKS:
            fused = reciprocal_rank(ranks_of(scores), weights)
        case Fusion.CALIBRATED:
            fused = calibrated(scores, weights, _background(index, vectors))
        case Fusion.HYBRID:
            late = calibrated(scores[:-1], weights, _background(index, vectors))
            both = ranks_of(np.stack([scores[-1], late]))
            fused = reciprocal_rank(both, np.ones(2))
    best = np.lexsort((ids, -fused))[:k]
    return ids[best], fused[best]


def _background(index: VectorIndex, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    ids = np.sort(index.ids)
    return _scores(index, vectors, ids[:: max(1, len(ids) // BACKGROUND)])


def _scores(
    index: VectorIndex, vectors: NDArray[np.float32], ids: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return `float64[p, n]`, the similarity of each part with each of the ascending ids."""
    found = index.search(vectors, len(ids), among=ids)
    scores = np.empty(found.scores.shape)
    places = np.searchsorted(ids, found.ids)
    np.put_along_axis(scores, places, found.scores.astype(np.float64), axis=1)
    return scores
