"""How good an encoder's retrieval is: recall in both directions over pictures with captions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch.errors import MediaError, SourceError
from mmsearch.retrieval.bleu import bleu, words
from mmsearch.retrieval.captioners import load_captioner
from mmsearch.retrieval.encoders import DEFAULT_MODEL, Encoder, load_encoder
from mmsearch.retrieval.media import load_rgb
from mmsearch.retrieval.pairs import Pair, find_picture, locate_all, read_pairs
from mmsearch.retrieval.quality import Retrieval, Sampling, rank_vectors, summarise
from mmsearch.retrieval.scan import scan

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.captioners import Captioner
    from mmsearch.retrieval.index_quality import IndexQuality, Latency
    from mmsearch.retrieval.ranking import Vectors
    from mmsearch.retrieval.rerank_quality import RerankQuality, SecondLook
    from mmsearch.retrieval.rerankers import Reranker

__all__ = [
    "DEFAULT_SPLIT",
    "Evaluation",
    "Progress",
    "check_folds",
    "embed_texts",
    "evaluate",
    "measured",
    "second_look",
]

logger = logging.getLogger(__name__)

DEFAULT_SPLIT = "test"
"""Of a file with splits: what published figures are measured on."""

Progress = Callable[[str, int, int], None]
"""Told a stage (`pictures`, `captions`, `scores`, `reranking`, `describe`, `index`), how much is
done and how much there is."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Quality in both directions.

    Attributes:
        images: how many pictures took part, asked about or not.
        captions: how many captions were asked.
        sampling: where the intervals come from.
        library: the folder whose stored vectors were measured.
        tuned: whether that library's texts are adapted by what `tune` learned.
        image_index: text→image through the library's index.
        caption_index: image→text through the library's index.
        latency: of a text query to the library.
        reranked: what a reranker makes of both directions.
        bleu: BLEU-1 to BLEU-4, 0 to 100, of what a captioner writes about the pictures.
        captioner: which one.
    """

    model: str
    images: int
    captions: int
    text_to_image: Retrieval
    image_to_text: Retrieval
    sampling: Sampling
    library: Path | None = None
    tuned: bool = False
    image_index: IndexQuality | None = None
    caption_index: IndexQuality | None = None
    latency: Latency | None = None
    reranked: RerankQuality | None = None
    bleu: dict[str, float] | None = None
    captioner: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the object that `evaluate --json` prints."""
        fields: dict[str, Any] = {"schema": 1, "model": self.model}
        if self.library is not None:
            fields |= {"library": str(self.library), "tuned": self.tuned}
        fields |= {"images": self.images, "captions": self.captions}
        for name, direction, index in (
            ("text_to_image", self.text_to_image, self.image_index),
            ("image_to_text", self.image_to_text, self.caption_index),
        ):
            fields[name] = direction.to_json() | ({"index": index.to_json()} if index else {})
        if self.reranked is not None:
            fields["reranked"] = self.reranked.to_json()
        if self.sampling.folds > 1:
            fields["folds"] = self.sampling.folds
        fields |= self.sampling.to_json()
        if self.latency is not None:
            fields["latency_ms"] = self.latency.to_json()
        if self.bleu is not None:
            fields |= {"captioner": self.captioner, "bleu": self.bleu}
        return fields


def evaluate(
    pairs: Path | str,
    images: Path | str,
    *,
    model: str | Path | Encoder = DEFAULT_MODEL,
    gallery: bool = False,
    split: str | None = None,
    describe: str | Path | Captioner | None = None,
    sampling: Sampling | None = None,
    rerank: str | Path | Reranker | None = None,
    rerank_depth: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure an encoder on a file of (picture, caption) pairs.

    Args:
        pairs: see `read_pairs`; a picture may have several captions.
        images: the folder that the pairs' paths are relative to; or one that holds all of their
            pictures by their bare names.
        model: the encoder to measure.
        gallery: let every picture of the folder take part as a possible answer, not only those
            that have captions.
        split: of a file with splits; `test` when not given.
        describe: a captioner, see `load_captioner`, whose captions of the pictures are measured by
            BLEU against those of the pairs.
        sampling: the intervals and folds wanted; 95 % intervals from 1,000 resamples when not
            given.
        rerank: a reranker to measure beside it, see `load_reranker`.
        rerank_depth: how many of the best answers to each question it reads; 50 if not given.
        progress: called as the work goes on.

    Raises:
        SourceError: the pairs cannot be read, or name a picture that is missing or broken.
        ModelError: there is no such encoder, or no such reranker.
        MissingExtra: the encoder's or the reranker's library is not installed.
        QueryError: the depth is below 1.
    """
    source, folder = Path(pairs), Path(images)
    sampling = sampling or Sampling()
    rows = read_pairs(source, split, default=DEFAULT_SPLIT)
    named = _pictures(rows, source, folder)
    others = [(folder / path).resolve() for path in scan(folder).files] if gallery else []
    number = {path: i for i, path in enumerate(dict.fromkeys(named))}
    check_folds(sampling, len(number), gallery=gallery)
    pictures = list(dict.fromkeys([*number, *others]))
    encoder = load_encoder(model)
    second = second_look(rerank, rerank_depth, encoder)
    notify = progress or (lambda *_: None)
    pictures, image_vectors = _embed_pictures(encoder, pictures, len(number), notify)
    captions = [pair.caption for pair in rows]
    text_vectors = embed_texts(encoder, captions, notify)
    if second is not None:
        from mmsearch.retrieval.reranking import source_view

        second = second.on(captions, [source_view(i, path) for i, path in enumerate(pictures)])
    to_image, to_text, reranked = measured(
        image_vectors,
        text_vectors,
        np.array([number[path] for path in named]),
        sampling,
        second,
        notify,
    )
    label = encoder.spec.label
    found = Evaluation(
        label, len(pictures), len(rows), to_image, to_text, sampling, reranked=reranked
    )
    if describe is None:
        return found
    captioner = load_captioner(describe)
    references: dict[Path, list[list[str]]] = {}
    for path, pair in zip(named, rows, strict=True):
        references.setdefault(path, []).append(words(pair.caption))
    texts = _described(captioner, list(references), notify)
    figures = bleu([words(text) for text in texts], list(references.values()))
    return replace(found, bleu=figures, captioner=captioner.label)


def _described(captioner: Captioner, pictures: list[Path], progress: Progress) -> list[str]:
    texts: list[str] = []
    for start in range(0, len(pictures), captioner.batch_size):
        progress("describe", start, len(pictures))
        batch = pictures[start : start + captioner.batch_size]
        # All of them could be read a moment ago.
        texts += captioner.describe(
            [load_rgb(path, at_least=captioner.decode_size) for path in batch]
        )
    progress("describe", len(pictures), len(pictures))
    return texts


def second_look(
    rerank: str | Path | Reranker | None, depth: int | None, encoder: Encoder | None
) -> SecondLook | None:
    """Return what reranks, before anything is embedded that would be in vain; None for nothing.

    Raises:
        ModelError: there is no such reranker.
        MissingExtra: the reranker's library is not installed.
        QueryError: the depth is below 1.
    """
    if rerank is None:
        return None
    # What is measured without needs none of it.
    from mmsearch.retrieval.rerank_quality import SecondLook
    from mmsearch.retrieval.rerankers import load_reranker
    from mmsearch.retrieval.reranking import checked_depth

    return SecondLook(load_reranker(rerank, encoder), checked_depth(depth))


def measured(
    images: Vectors,
    texts: Vectors,
    image_of: NDArray[np.int64],
    sampling: Sampling,
    second: SecondLook | None,
    notify: Progress,
) -> tuple[Retrieval, Retrieval, RerankQuality | None]:
    """Return text→image and image→text quality, and what a reranker makes of both.

    Args:
        images: `float[n, dim]`, unit rows.
        texts: `float[m, dim]`, unit rows.
        image_of: `int64[m]`, the row in `images` of each text's picture.
        sampling: the intervals and folds wanted.
        second: what reranks, with the pictures and texts of these rows.
        notify: called as the work goes on.
    """
    ranks = rank_vectors(
        images, texts, image_of, sampling.folds, lambda *done: notify("scores", *done)
    )
    reranked = None
    if second is not None:
        reranked = second.measure(
            images, texts, image_of, ranks, sampling, lambda *done: notify("reranking", *done)
        )
    return summarise(ranks[0], sampling), summarise(ranks[1], sampling), reranked


def check_folds(sampling: Sampling, pictures: int, *, gallery: bool) -> None:
    """Refuse folds that cannot be made.

    Raises:
        SourceError: there are fewer pictures than folds, or pictures that no fold asks about.
    """
    if sampling.folds > 1 and gallery:
        raise SourceError("Folds hold only pictures with captions: leave away folds or gallery.")
    if sampling.folds > pictures:
        raise SourceError(
            f"{sampling.folds} folds need at least as many pictures; there are {pictures}. Ask "
            "for fewer folds."
        )


def embed_texts(encoder: Encoder, texts: Sequence[str], progress: Progress) -> NDArray[np.float32]:
    """Return `float32[n, dim]` of at least one text."""
    total = len(texts)
    rows = encoder.encode_texts(texts, progress=lambda done: progress("captions", done, total))
    progress("captions", total, total)
    return rows


def _embed_pictures(
    encoder: Encoder, pictures: list[Path], asked: int, progress: Progress
) -> tuple[list[Path], NDArray[np.float32]]:
    """Return pictures and a row for each: the first `asked`, and those others that are readable."""
    kept: list[Path] = []
    rows: list[NDArray[np.float32]] = []
    batch: list[NDArray[Any]] = []
    for i, path in enumerate(pictures):
        try:
            batch.append(encoder.prepare(load_rgb(path, at_least=encoder.decode_size)))
            kept.append(path)
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
    return kept, np.concatenate(rows)


def _pictures(rows: Sequence[Pair], source: Path, folder: Path) -> list[Path]:
    """Return the file of each row's picture."""

    def locate(path: str) -> Path | None:
        found = find_picture((folder, source.parent), path)
        return None if found is None else found.resolve()

    places = locate_all((pair.path for pair in rows), locate)
    found = []
    for pair in rows:
        place = places[pair.path]
        if place is None:
            raise SourceError(
                f"{source}, row {pair.line}: there is no picture {pair.path} in {folder}. Give the "
                "folder that the paths are relative to with --images."
            )
        found.append(place)
    return found
