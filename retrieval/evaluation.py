"""How good an encoder's retrieval is: recall in both directions over pictures with captions."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch.errors import MediaError, SourceError
from mmsearch.retrieval.encoders import DEFAULT_MODEL, Encoder, load_encoder
from mmsearch.retrieval.media import load_rgb
from mmsearch.retrieval.metrics import (
    first_relevant_rank,
    mean_reciprocal_rank,
    median_rank,
    recall_at,
)
from mmsearch.retrieval.pairs import Pair, read_pairs
from mmsearch.retrieval.scan import scan

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Evaluation", "Retrieval", "evaluate", "evaluate_vectors"]

logger = logging.getLogger(__name__)

QUERIES_AT_ONCE = 1024
"""Rows of the score matrix held in memory."""


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Quality in one direction.

    Attributes:
        recall: percentage (0 to 100) of queries with a right answer among the first k, by k.
        median_rank: of the first right answer, from 1.
        mrr: mean reciprocal rank, in (0, 1].
    """

    recall: dict[int, float]
    median_rank: float
    mrr: float

    @classmethod
    def from_ranks(cls, ranks: NDArray[np.int64]) -> Retrieval:
        """Summarise `int64[q]` ranks of first right answers."""
        return cls(
            recall={k: recall_at(ranks, k) for k in (1, 5, 10)},
            median_rank=median_rank(ranks),
            mrr=mean_reciprocal_rank(ranks),
        )

    def to_json(self) -> dict[str, float]:
        """Return one direction of `evaluate --json`."""
        recall = {f"R@{k}": round(value, 2) for k, value in self.recall.items()}
        return recall | {"median_rank": self.median_rank, "mrr": round(self.mrr, 4)}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Quality in both directions."""

    model: str
    images: int
    captions: int
    text_to_image: Retrieval
    image_to_text: Retrieval

    def to_json(self) -> dict[str, Any]:
        """Return the object that `evaluate --json` prints."""
        return {
            "schema": 1,
            "model": self.model,
            "images": self.images,
            "captions": self.captions,
            "text_to_image": self.text_to_image.to_json(),
            "image_to_text": self.image_to_text.to_json(),
        }


def evaluate(
    pairs: Path | str,
    images: Path | str,
    *,
    model: str | Path | Encoder = DEFAULT_MODEL,
    gallery: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Measure an encoder on a file of (picture, caption) pairs.

    Args:
        pairs: see `read_pairs`; a picture may have several captions.
        images: the folder that the pairs' paths are relative to.
        model: the encoder to measure.
        gallery: let every picture of the folder take part as a possible answer, not only those
            that have captions.
        progress: called with what is embedded (`pictures`, `captions`), how many are done and
            how many there are.

    Raises:
        SourceError: the pairs cannot be read, or name a picture that is missing or broken.
    """
    source, folder = Path(pairs), Path(images)
    rows = read_pairs(source)
    named = [_picture(folder, source, pair).resolve() for pair in rows]
    others = [(folder / path).resolve() for path in scan(folder).files] if gallery else []
    number = {path: i for i, path in enumerate(dict.fromkeys(named))}
    pictures = list(dict.fromkeys([*number, *others]))
    encoder = load_encoder(model)
    notify = progress or (lambda *_: None)
    image_vectors = _embed_pictures(encoder, pictures, len(number), notify)
    text_vectors = _embed_texts(encoder, [pair.caption for pair in rows], notify)
    image_of = np.array([number[path] for path in named])
    to_image, to_text = evaluate_vectors(image_vectors, text_vectors, image_of)
    return Evaluation(encoder.spec.label, len(image_vectors), len(rows), to_image, to_text)


def evaluate_vectors(
    images: NDArray[np.float32], texts: NDArray[np.float32], image_of: NDArray[np.int64]
) -> tuple[Retrieval, Retrieval]:
    """Return text→image and image→text quality.

    A text's right answer is its one picture; a picture's are all of its texts, and the best of
    them counts. Pictures without a text are asked nothing but may be wrong answers.

    Args:
        images: `float32[n, dim]`, unit rows.
        texts: `float32[m, dim]`, unit rows.
        image_of: `int64[m]`, the row in `images` of each text's picture.
    """
    of_text = _ranks(texts, images, lambda rows: image_of[rows, None] == np.arange(len(images)))
    asked = np.unique(image_of)
    of_image = _ranks(images[asked], texts, lambda rows: asked[rows, None] == image_of)
    return Retrieval.from_ranks(of_text), Retrieval.from_ranks(of_image)


def _ranks(
    queries: NDArray[np.float32],
    items: NDArray[np.float32],
    relevant: Callable[[NDArray[np.int64]], NDArray[np.bool_]],
) -> NDArray[np.int64]:
    parts = [
        first_relevant_rank(queries[rows] @ items.T, relevant(rows))
        for rows in np.array_split(
            np.arange(len(queries)), max(1, -(-len(queries) // QUERIES_AT_ONCE))
        )
    ]
    return np.concatenate(parts)


def _embed_pictures(
    encoder: Encoder, pictures: list[Path], asked: int, progress: Callable[[str, int, int], None]
) -> NDArray[np.float32]:
    """Return one row for each picture: of the first `asked` all, of the others the readable."""
    rows: list[NDArray[np.float32]] = []
    batch: list[NDArray[Any]] = []
    for i, path in enumerate(pictures):
        try:
            batch.append(encoder.prepare(load_rgb(path, at_least=encoder.decode_size)))
        except MediaError as error:
            if i < asked:
                raise SourceError(
                    f"A picture of the evaluation cannot be read: {error}. Mend it, or delete its "
                    "rows."
                ) from error
            logger.warning("left out of the gallery: %s", error)
        if len(batch) == encoder.batch_size:
            rows.append(encoder.encode_pixels(batch))
            batch = []
            progress("pictures", i + 1, len(pictures))
    rows.append(encoder.encode_pixels(batch))
    progress("pictures", len(pictures), len(pictures))
    return np.concatenate(rows)


def _embed_texts(
    encoder: Encoder, texts: Sequence[str], progress: Callable[[str, int, int], None]
) -> NDArray[np.float32]:
    rows = []
    for start in range(0, len(texts), encoder.batch_size):
        progress("captions", start, len(texts))
        rows.append(encoder.encode_texts(texts[start : start + encoder.batch_size]))
    progress("captions", len(texts), len(texts))
    return np.concatenate(rows)


def _picture(folder: Path, source: Path, pair: Pair) -> Path:
    for base in (folder, source.parent):
        # `Path.is_file` raises for absurd names, such as a caption in the column of paths.
        if os.path.isfile(base / pair.path):  # noqa: PTH113
            return base / pair.path
    raise SourceError(
        f"{source}, row {pair.line}: there is no picture {pair.path} in {folder}. Give the folder "
        "that the paths are relative to with --images."
    )
