"""How good a library's retrieval is, by the vectors it has stored and the indexes it answers with.

Pictures whose files have the same content count as one picture, and a picture's captions of the
same words as one caption. Texts are as `tune` left them: a library that was tuned on the very
captions it is measured with looks better than it is for others.
"""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmsearch.errors import MissingExtra, ModelError, SourceError, quoted
from mmsearch.retrieval.encoders import DEFAULT_MODEL, load_encoder
from mmsearch.retrieval.engine import SearchEngine
from mmsearch.retrieval.evaluation import (
    DEFAULT_SPLIT,
    Evaluation,
    Progress,
    check_folds,
    embed_texts,
    measured,
    second_look,
)
from mmsearch.retrieval.index_quality import (
    Answers,
    IndexQuality,
    measure_index,
    measure_latency,
)
from mmsearch.retrieval.library import Library
from mmsearch.retrieval.pairs import Locator, Pair, locate_all, read_pairs
from mmsearch.retrieval.quality import Sampling
from mmsearch.retrieval.schema import Target

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.adapter import Adapter
    from mmsearch.retrieval.catalog import LibraryRow
    from mmsearch.retrieval.encoders import Encoder
    from mmsearch.retrieval.ranking import Vectors
    from mmsearch.retrieval.rerankers import Reranker, View
    from mmsearch.retrieval.schema import EncoderSpec

__all__ = ["evaluate_library", "evaluate_pairs_in_library"]

logger = logging.getLogger(__name__)


def evaluate_library(
    library: Path | str,
    *,
    model: str | Path | Encoder | None = None,
    sampling: Sampling | None = None,
    rerank: str | Path | Reranker | None = None,
    rerank_depth: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a library on its own captions: exactly, and through its indexes.

    Nothing is embedded again. Pictures without captions are asked nothing but may be wrong
    answers. Latency is that of up to 200 of the captions, asked as texts; without the library's
    encoder it is left out.

    Args:
        library: the folder that was indexed.
        model: the encoder; the one the library was built with when not given.
        sampling: the intervals wanted, in one fold; 95 % intervals from 1,000 resamples when not
            given.
        rerank: a reranker to measure beside it, see `load_reranker`; it reads the pictures' files.
        rerank_depth: how many of the best answers to each question it reads; 50 if not given.
        progress: called as the work goes on.

    Raises:
        LibraryNotFound: the folder was never indexed.
        ModelMismatch: the library was built with another encoder than `model`.
        ModelError: there is no such reranker.
        MissingExtra: the reranker's library is not installed.
        QueryError: the depth is below 1.
        SourceError: the library has no captions.
        ValueError: folds are asked for.
    """
    sampling = sampling or Sampling()
    if sampling.folds > 1:
        raise ValueError("a library's own captions are measured in one fold")
    notify = progress or (lambda *_: None)
    with closing(Library.open(Path(library))) as opened:
        stored = _Stored.read(opened)
        engine = _engine(opened, model)
        second = second_look(rerank, rerank_depth, None if engine is None else engine.encoder)
        captions, texts = stored.captions(opened)
        if second is not None:
            second = second.on(texts, stored.views(opened, second.reranker))
        to_image, to_text, reranked = measured(
            stored.pictures.vectors, captions.vectors, captions.label, sampling, second, notify
        )
        asked = np.unique(captions.label)
        total = len(texts) + len(asked)
        image_index = opened.open_index(Target.IMAGES, stored.row)
        by_image_index = measure_index(
            image_index,
            stored.pictures,
            captions.vectors,
            captions.label,
            lambda done, _: notify("index", done, total),
        )
        by_caption_index = measure_index(
            opened.open_index(Target.CAPTIONS, stored.row),
            captions,
            stored.pictures.vectors[asked],
            asked,
            lambda done, _: notify("index", len(texts) + done, total),
        )
        latency = None
        if engine is not None:
            latency = measure_latency(engine, image_index, texts, captions.vectors, sampling.seed)
        return Evaluation(
            model=stored.spec.label,
            images=len(stored.pictures.vectors),
            captions=len(texts),
            text_to_image=to_image,
            image_to_text=to_text,
            sampling=sampling,
            library=opened.root,
            tuned=stored.adapter is not None,
            image_index=by_image_index,
            caption_index=by_caption_index,
            latency=latency,
            reranked=reranked,
        )


def evaluate_pairs_in_library(
    library: Path | str,
    pairs: Path | str,
    *,
    model: str | Path | Encoder | None = None,
    gallery: bool = False,
    split: str | None = None,
    sampling: Sampling | None = None,
    rerank: str | Path | Reranker | None = None,
    rerank_depth: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a library on a file of (picture, caption) pairs about its pictures.

    Only the captions are embedded; the pictures' vectors are those that the library has stored.

    Args:
        library: the folder that was indexed.
        pairs: see `read_pairs` and `Locator`.
        model: the encoder; the one the library was built with when not given.
        gallery: let every picture of the library take part as a possible answer, and measure
            text→image through its index too; otherwise only pictures that have captions.
        split: of a file with splits; `test` when not given.
        sampling: the intervals and folds wanted; 95 % intervals from 1,000 resamples when not
            given.
        rerank: a reranker to measure beside it, see `load_reranker`; it reads the pictures' files.
        rerank_depth: how many of the best answers to each question it reads; 50 if not given.
        progress: called as the work goes on.

    Raises:
        LibraryNotFound: the folder was never indexed.
        ModelMismatch: the library was built with another encoder than `model`.
        ModelError: there is no such reranker.
        MissingExtra: the reranker's library is not installed.
        QueryError: the depth is below 1.
        SourceError: the pairs cannot be read, or name a picture that the library has not.
    """
    source, sampling = Path(pairs), sampling or Sampling()
    notify = progress or (lambda *_: None)
    rows = read_pairs(source, split, default=DEFAULT_SPLIT)
    with closing(Library.open(Path(library))) as opened:
        stored = _Stored.read(opened)
        picture = stored.locate(opened, rows, source)
        named = np.array(list(dict.fromkeys(picture.tolist())))
        check_folds(sampling, len(named), gallery=gallery)
        encoder = load_encoder(model or opened.model or DEFAULT_MODEL)
        SearchEngine(opened, encoder)  # Refuses another encoder than the library's.
        second = second_look(rerank, rerank_depth, encoder)
        texts = [pair.caption for pair in rows]
        vectors = stored.adapted(embed_texts(encoder, texts, notify))
        images, image_of = stored.pictures.vectors, picture
        if not gallery:
            place = np.empty(len(images), dtype=np.int64)
            place[named] = np.arange(len(named))
            images, image_of = images[named], place[picture]
        if second is not None:
            views = stored.views(opened, second.reranker)
            second = second.on(texts, views if gallery else [views[row] for row in named.tolist()])
        to_image, to_text, reranked = measured(images, vectors, image_of, sampling, second, notify)
        through: IndexQuality | None = None
        if gallery:
            through = measure_index(
                opened.open_index(Target.IMAGES, stored.row),
                stored.pictures,
                vectors,
                picture,
                lambda done, total: notify("index", done, total),
            )
        return Evaluation(
            model=stored.spec.label,
            images=len(images),
            captions=len(rows),
            text_to_image=to_image,
            image_to_text=to_text,
            sampling=sampling,
            library=opened.root,
            tuned=stored.adapter is not None,
            image_index=through,
            reranked=reranked,
        )


@dataclass(frozen=True, slots=True)
class _Stored:
    """What a library has stored, in the state that `row` names."""

    row: LibraryRow
    encoder_id: int
    spec: EncoderSpec
    pictures: Answers
    adapter: Adapter | None

    @classmethod
    def read(cls, library: Library) -> _Stored:
        row = library.catalog.library()
        encoder_id, spec = library.active_encoder(row)
        ids, vectors = library.catalog.file_vectors(encoder_id, spec.dim)
        contents = library.catalog.contents()
        number: dict[object, int] = {}
        picture = np.array(
            [number.setdefault(contents.get(id_, id_), len(number)) for id_ in ids.tolist()],
            dtype=np.int64,
        )
        # One content has one vector, whichever of its files it is read from.
        distinct = vectors[np.unique(picture, return_index=True)[1]]
        pictures = Answers(ids, picture, distinct, np.arange(len(number)))
        return cls(row, encoder_id, spec, pictures, library.adapter(row))

    def views(self, library: Library, reranker: Reranker) -> list[View]:
        """Return the pictures as a reranker is given them, in the order of their vectors."""
        from mmsearch.retrieval.reranking import KeptRegions, library_views

        files = library.catalog.known_files(self.encoder_id)
        path_of = {file.id: path for path, file in files.items()}
        paths: dict[int, str] = {}
        ids: dict[int, int] = {}
        for id_, row in zip(self.pictures.ids.tolist(), self.pictures.row_of.tolist(), strict=True):
            if id_ in path_of:
                paths.setdefault(row, path_of[id_])
                ids.setdefault(row, id_)
        # What another process took out of the catalog meanwhile is like a file that is gone.
        rows = range(len(self.pictures.vectors))
        kept = KeptRegions(library, reranker, list(ids.values()))
        found = library_views(
            library.root,
            {row: paths.get(row, f"picture {row}") for row in rows},
            {row: kept.found[id_] for row, id_ in ids.items() if id_ in kept.found},
        )
        return list(found.values())

    def adapted(self, texts: Vectors) -> Vectors:
        """Return texts as the library's queries and its index of captions have them."""
        return texts if self.adapter is None else self.adapter.apply(texts)

    def captions(self, library: Library) -> tuple[Answers, list[str]]:
        """Return the captions that have vectors, as do their pictures, and their texts."""
        ids, vectors = library.catalog.caption_vectors(self.encoder_id, self.spec.dim)
        about = {id_: (file_id, text) for id_, file_id, text in library.catalog.captions()}
        pictures = dict(zip(self.pictures.ids.tolist(), self.pictures.row_of.tolist(), strict=True))
        number: dict[tuple[int, str], int] = {}
        kept, row_of = [], []
        for i, id_ in enumerate(ids.tolist()):
            file_id, text = about.get(id_, (-1, ""))
            if file_id in pictures:
                kept.append(i)
                row_of.append(number.setdefault((pictures[file_id], text), len(number)))
        if not number:
            root = quoted(library.root)
            raise SourceError(
                f"The library at {library.root} has no captions to measure with. Give a file of "
                "pictures and captions (mmsearch evaluate PAIRS --images FOLDER), or index with "
                f"one: mmsearch index {root} --captions FILE"
            )
        first = np.unique(row_of, return_index=True)[1]
        label = np.array([picture for picture, _ in number], dtype=np.int64)
        # The index keeps what an adapter made in half precision.
        distinct = self.adapted(vectors[kept][first]).astype(np.float16)
        answers = Answers(ids[kept], np.array(row_of), distinct, label)
        return answers, [text for _, text in number]

    def locate(self, library: Library, rows: list[Pair], source: Path) -> NDArray[np.int64]:
        """Return `int64[n]`, the picture of each row."""
        known = set(self.pictures.ids.tolist())
        files = library.catalog.known_files(self.encoder_id)
        ids = {path: file.id for path, file in files.items() if file.id in known}
        places = locate_all(
            (pair.path for pair in rows), Locator(library.root, source.absolute().parent, ids)
        )
        found = []
        for pair in rows:
            place = places[pair.path]
            if place is None:
                raise SourceError(
                    f"{source}, row {pair.line}: the library at {library.root} has no picture "
                    f"{pair.path}. Index it (mmsearch index {quoted(library.root)}), or delete the "
                    "row; mmsearch status --problems lists what could not be indexed."
                )
            found.append(place)
        return self.pictures.rows(np.array(found))


def _engine(library: Library, model: str | Path | Encoder | None) -> SearchEngine | None:
    """Return an engine to time; None where the library's own encoder is not at hand."""
    try:
        encoder = load_encoder(model or library.model or DEFAULT_MODEL)
    except (ModelError, MissingExtra) as error:
        if model is not None:
            raise
        logger.warning("latency is not measured: %s", error)
        return None
    return SearchEngine(library, encoder)
