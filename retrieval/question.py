"""Questions of one part or several, words and pictures: checked, embedded, put to an index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mmsearch.errors import MediaError, QueryError
from mmsearch.indexes.base import Condition
from mmsearch.retrieval import logic
from mmsearch.retrieval.fusion import calibrated, early, ranks_of, reciprocal_rank, weighted
from mmsearch.retrieval.schema import Fusion, Query, QueryPart, Target

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.indexes import VectorIndex
    from mmsearch.retrieval.calibration import Calibration
    from mmsearch.retrieval.encoders import Encoder
    from mmsearch.retrieval.logic import Expression

__all__ = ["ImageSource", "Question", "embedded", "search_composed", "search_logic"]

ImageSource = Path | str | Image.Image
"""A path or a picture in memory."""

DEPTH = 200
"""Answers of each part that are compared with every part, at least, and five for each of `k`."""
ALL = 20_000
"""Pictures up to which each is compared with every concept of an expression."""
NEAR = 2_000
"""In a larger library, how many near to each concept are, at least, and five for each of `k`."""
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
        expression: what one text with AND, OR and NOT says; `texts` are then its concepts.
        words: that text, as it was asked.
    """

    texts: tuple[str, ...]
    images: tuple[ImageSource, ...]
    weights: tuple[float, ...]
    fusion: Fusion
    expression: Expression | None = None
    words: str | None = None

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
            QueryError: nothing is, a text is empty, weights do not fit, or operators make no
                sense.
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
        expressions = [logic.parse(each) for each in texts]
        if not any(expressions):
            return cls(texts, images, weighed, fusion)
        expression = expressions[0]
        if count > 1 or expression is None:
            raise QueryError(
                "AND, OR and NOT are understood in a question that is one text. Ask without other "
                "parts, or put such words in quotes."
            )
        named = tuple(each.text for each in logic.concepts(expression))
        return cls(named, (), (1.0,) * len(named), fusion, expression, texts[0])

    @property
    def of_words(self) -> bool:
        """Whether it is one text, with operators or without: what probabilities are known of."""
        return self.expression is not None or (len(self.texts) == 1 and not self.images)

    def one_vector(self, vectors: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Return `float32[1, dim]`, what an index is asked; None where it takes more than that.

        Args:
            vectors: `float32[p, dim]`, one for each part.

        Raises:
            QueryError: the parts cancel each other out.
        """
        if self.expression is not None:
            return None
        if len(vectors) == 1:
            return vectors
        if self.fusion is not Fusion.EARLY:
            return None
        try:
            return early(vectors, np.array(self.weights))
        except ValueError as error:
            raise _unlike_all(error) from error

    def search(
        self,
        index: VectorIndex,
        vectors: NDArray[np.float32],
        k: int,
        among: NDArray[np.int64] | Condition | None = None,
        calibration: Calibration | None = None,
    ) -> list[tuple[int, float]]:
        """Return ids and scores, best first, of up to `k` answers to the embedded parts.

        Args:
            index: of what is looked for.
            vectors: `float32[p, dim]`, as `embedded` returns them.
            k: at least 1.
            among: `int64[m]`, ascending, the only ids that may be answers; or a condition of the
                index.
            calibration: what scores mean; a question with operators needs it.

        Raises:
            QueryError: the parts cancel each other out, or operators where no picture is asked for.
            IndexFileError: as from `VectorIndex.search`.
        """
        if self.expression is not None:
            if calibration is None:
                raise QueryError("AND, OR and NOT choose among pictures, not among captions.")
            ids, scores = search_logic(index, self.expression, vectors, calibration, k, among)
            return list(zip(ids.tolist(), scores.tolist(), strict=True))
        if (vector := self.one_vector(vectors)) is not None:
            found = index.search(vector, k, among=among)
            pairs = zip(found.ids[0].tolist(), found.scores[0].tolist(), strict=True)
            return [(id_, score) for id_, score in pairs if id_ >= 0]
        try:
            ids, scores = search_composed(
                index, vectors, np.array(self.weights), self.fusion, k, among
            )
        except ValueError as error:
            raise _unlike_all(error) from error
        return list(zip(ids.tolist(), scores.tolist(), strict=True))

    def told(self, target: Target) -> Query:
        """Return the question as results tell it."""
        if self.expression is not None:
            return Query((QueryPart(text=self.words),), target)
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


def embedded(
    questions: Sequence[Question], encoder: Encoder
) -> list[NDArray[np.float32] | QueryError]:
    """Embed questions: all their texts at once, and all their pictures.

    Returns:
        For each `float32[p, dim]`, a unit row for each part, as the encoder sees it; or that one
        of its pictures cannot be read.
    """
    pixels: list[NDArray[Any]] = []
    places: list[tuple[int, ...] | QueryError] = []
    for question in questions:
        before = len(pixels)
        try:
            pixels += [_pixels(image, encoder) for image in question.images]
        except MediaError as error:
            unreadable = QueryError(f"The query picture cannot be used: {error}.")
            unreadable.__cause__ = error
            places.append(unreadable)
        else:
            places.append(tuple(range(before, len(pixels))))
    asked = zip(questions, places, strict=True)
    texts = {text: None for each, place in asked if isinstance(place, tuple) for text in each.texts}
    rows = {text: n for n, text in enumerate(texts)}
    nothing = np.empty((0, encoder.dim), dtype=np.float32)
    of_texts = encoder.encode_texts([*texts]) if texts else nothing
    of_images = encoder.encode_pixels(pixels) if pixels else nothing
    return [
        place
        if isinstance(place, QueryError)
        else np.concatenate([of_texts[[rows[text] for text in each.texts]], of_images[[*place]]])
        for each, place in zip(questions, places, strict=True)
    ]


def _pixels(image: ImageSource, encoder: Encoder) -> NDArray[Any]:
    # What questions in words do not need is loaded where it is.
    from mmsearch.retrieval.containers import openable
    from mmsearch.retrieval.media import load_rgb

    source = openable(Path(image)) if isinstance(image, (str, Path)) else image
    return encoder.prepare(load_rgb(source, at_least=encoder.decode_size))


def _unlike_all(error: ValueError) -> QueryError:
    return QueryError(f"Nothing is like all of it: {error}.")


def search_composed(
    index: VectorIndex,
    vectors: NDArray[np.float32],
    weights: NDArray[np.float64],
    fusion: Fusion,
    k: int,
    among: NDArray[np.int64] | Condition | None = None,
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
        among: `int64[m]`, ascending, the only ids that may be answers; or the index's condition.

    Raises:
        ValueError: the parts cancel each other out, where that matters.
        IndexFileError: as from `VectorIndex.search`.
    """
    if fusion is Fusion.EARLY:
        found = index.search(early(vectors, weights), k, among=among)
        known = found.ids[0] >= 0
        return found.ids[0][known], found.scores[0][known].astype(np.float64)
    asked = (
        np.concatenate([vectors, early(vectors, weights)]) if fusion is Fusion.HYBRID else vectors
    )
    ids = _near(index, asked, max(DEPTH, 5 * k), among)
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


def search_logic(
    index: VectorIndex,
    expression: Expression,
    vectors: NDArray[np.float32],
    calibration: Calibration,
    k: int,
    among: NDArray[np.int64] | Condition | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the ids and probabilities, best first, of up to `k` pictures that fit an expression.

    In a library of up to `ALL` pictures, or where nothing but a NOT is asked, all are compared;
    else what is near to a concept that is wanted.

    Args:
        index: of pictures.
        expression: what `logic.parse` returned.
        vectors: `float32[p, dim]`, unit rows, one for each of `logic.concepts`.
        calibration: what scores mean.
        k: at least 1.
        among: `int64[m]`, ascending, the only ids that may be answers; or the index's condition.

    Raises:
        IndexFileError: as from `VectorIndex.search`.
    """
    named = logic.concepts(expression)
    wanted = logic.wanted(expression)
    rows = [i for i, each in enumerate(named) if each in wanted]
    if rows and len(index) > ALL:
        ids = _near(index, vectors[rows], max(NEAR, 5 * k), among)
    else:
        ids = np.sort(index.ids)
        if isinstance(among, Condition):
            ids = among.within(ids)
        elif among is not None:
            ids = np.intersect1d(ids, among, assume_unique=True)
    if len(ids) == 0:
        return ids, np.empty(0)
    shown = dict(zip(named, calibration.shown(vectors, _scores(index, vectors, ids)), strict=True))
    fits = logic.probability(expression, shown.__getitem__)
    best = np.lexsort((ids, -fits))[:k]
    return ids[best], fits[best]


def _near(
    index: VectorIndex,
    vectors: NDArray[np.float32],
    k: int,
    among: NDArray[np.int64] | Condition | None,
) -> NDArray[np.int64]:
    """Return the ascending ids of what is near to any of the vectors."""
    near = index.search(vectors, k, among=among).ids
    return np.unique(near[near >= 0])


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
