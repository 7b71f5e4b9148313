"""The query layer: a question in, ranked answers out."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

from mmsearch import indexes
from mmsearch.errors import MmsearchError, ModelError, ModelMismatch, QueryError, quoted
from mmsearch.indexes import IndexFileError
from mmsearch.retrieval.encoders import DEFAULT_MODEL, load_encoder
from mmsearch.retrieval.library import Library
from mmsearch.retrieval.liked import Liked
from mmsearch.retrieval.question import Question
from mmsearch.retrieval.schema import Fusion, Hit, Results, Strategy, Target, tell_apart
from mmsearch.retrieval.taste import HALF_LIFE_DAYS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from mmsearch.indexes import VectorIndex
    from mmsearch.retrieval.adapter import Adapter
    from mmsearch.retrieval.catalog import LibraryRow
    from mmsearch.retrieval.encoders import Encoder
    from mmsearch.retrieval.liked import PictureItem
    from mmsearch.retrieval.question import ImageSource

__all__ = ["SearchEngine", "open_engine"]

logger = logging.getLogger(__name__)

_Named = TypeVar("_Named", bound=StrEnum)

LONG_LIFE = 1_000
"""Queries that an engine is expected to answer, where that decides whether a GPU pays."""


@dataclass(frozen=True, slots=True)
class _State:
    """One index, and what makes queries fit it, in one state of the library."""

    stamp: str
    encoder: Encoder
    index: VectorIndex
    adapter_id: int | None
    adapter: Adapter | None


class SearchEngine:
    """One library, ready to be asked. Safe to use from several threads.

    Answers follow the catalog: when the library is indexed again, or tuned, by this or another
    process, the next search sees it.
    """

    def __init__(
        self,
        library: Library,
        encoder: Encoder,
        *,
        follow: bool = False,
        device: str | None = "cpu",
    ) -> None:
        """Join a library with the encoder that its vectors were made with.

        Args:
            library: taken over.
            encoder: embeds queries.
            follow: load the library's new encoder after a change of model (see `migrate`),
                instead of refusing to compare what cannot be compared.
            device: where vectors are compared, see `open_engine`.

        Raises:
            ModelMismatch: the library was built with another encoder.
            ValueError: FAISS does not see that GPU.
        """
        if device not in {None, "cpu"}:
            there = indexes.gpus()
            if device not in there and not (there and device == "cuda"):
                raise ValueError(
                    f"{device} is not there; FAISS sees {', '.join(there) or 'no GPU'}"
                )
        self._device = device
        self.library = library
        self.encoder = encoder
        self._follow = follow
        self._lock = Lock()
        self._states: dict[Target, _State] = {}
        self.check(library.catalog.library())

    def __len__(self) -> int:
        """Return how many pictures can be found."""
        return len(self._state(Target.IMAGES).index)

    def __enter__(self) -> SearchEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the library, and the GPU where there is one."""
        with self._lock:
            for state in self._states.values():
                state.index.close()
        self.library.close()

    def search(
        self,
        text: str | Sequence[str] | None = None,
        *,
        image: ImageSource | Sequence[ImageSource] | None = None,
        weights: Sequence[float] | None = None,
        fusion: Fusion | str = Fusion.EARLY,
        to: Target | str = Target.IMAGES,
        k: int = 10,
    ) -> Results:
        """Return the `k` pictures, or captions, most similar to words, to pictures or to both.

        Args:
            text: words that describe what is looked for, or several descriptions.
            image: a picture that looks like it, or several: paths or Pillow images.
            weights: how much each part counts, texts before pictures; above 0, all the same if
                not given.
            fusion: how several parts become one answer, see `Fusion`.
            to: look among the library's `images` or its `captions`.
            k: how many answers, at least 1; fewer come where the library holds fewer.

        Raises:
            QueryError: nothing is asked, a text is empty, `k` is below 1, weights that do not fit,
                an unknown fusion, or a picture that cannot be read.
            ModelMismatch: the library was meanwhile embedded again with another encoder, and this
                engine was opened with one of its caller's choice.
            ModelError: the library's new encoder cannot be loaded.
        """
        started = time.perf_counter()
        if k < 1:
            raise QueryError(f"k must be at least 1, not {k}.")
        target = _member(Target, to, "to")
        question = Question.of(text, image, weights, _member(Fusion, fusion, "fusion"))
        state = self._state(target)
        vectors, adapted = question.embedded(state.encoder, state.adapter)
        index = state.index
        try:
            hits = self._hits(index, question, vectors, target, k)
        except IndexFileError as error:
            logger.warning("%s; making it anew from the catalog", error)
            index = self._renewed(target)
            hits = self._hits(index, question, vectors, target, k)
        return Results(
            query=question.told(target),
            library=self.library.root,
            model=state.encoder.spec.label,
            hits=hits,
            exact=index.exact,
            took_ms=(time.perf_counter() - started) * 1000,
            recall=index.recall,
            considered=len(index),
            adapter=state.adapter_id if adapted else None,
        )

    def recommend(
        self,
        like: Sequence[PictureItem] = (),
        dislike: Sequence[PictureItem] = (),
        history: Sequence[tuple[PictureItem, float]] = (),
        *,
        k: int = 10,
        among: ArrayLike | None = None,
        exclude_seen: bool = True,
        diversity: float = 0.0,
        strategy: Strategy | str = Strategy.AVERAGE,
        half_life: float = HALF_LIFE_DAYS,
    ) -> Results:
        """Return up to `k` pictures that somebody with this taste would like.

        Of whom nothing is known they get pictures that stand for the whole library. Recommending to
        many at once, and from vectors alone, is what `Recommender` is for.

        Args:
            like: pictures that are liked: ids, paths in the library (relative to it or absolute),
                or picture files elsewhere, which are embedded.
            dislike: the same of what is not liked; never among the answers.
            history: pictures of the library with how many days ago they were seen: liked the less
                the longer ago. What is no picture of the library is ignored, and told.
            k: at least 1; fewer come only where there are not as many.
            among: `int64[m]`, the only ids that may be answers.
            exclude_seen: leave out what is liked or in the history.
            diversity: 0 (the most fitting) to 1 (as different from each other as can be).
            strategy: see `Strategy`.
            half_life: days after which a picture of the history counts half.

        Raises:
            QueryError: a picture cannot be found or read, or an argument is out of its range.
            ModelMismatch: as from `search`.
            ModelError: as from `search`.
        """
        started = time.perf_counter()
        liked = Liked(like, dislike, history, strategy, diversity, half_life, exclude_seen)
        while True:
            state, row = self._state(Target.IMAGES), self.library.catalog.library()
            if row.stamp == state.stamp:
                break
        try:
            found = liked.recommend(self.library, row, state.encoder, state.index, k, among)
        except IndexFileError as error:
            logger.warning("%s; making it anew from the catalog", error)
            index = self._renewed(Target.IMAGES)
            found = liked.recommend(self.library, row, state.encoder, index, k, among)
        return replace(found, took_ms=(time.perf_counter() - started) * 1000)

    def _hits(
        self,
        index: VectorIndex,
        question: Question,
        vectors: NDArray[np.float32],
        target: Target,
        k: int,
    ) -> tuple[Hit, ...]:
        """Return `k` hits if there are as many: a caption that two sources give counts once."""
        catalog = self.library.catalog
        look_up = catalog.file_hits if target is Target.IMAGES else catalog.caption_hits
        asked = max(1, min(k, len(index)))
        while True:
            found = question.search(index, vectors, asked)
            hits = look_up(found)
            if len(hits) >= k or asked >= len(index):
                return hits[:k]
            asked = min(2 * asked, len(index))

    def _state(self, target: Target) -> _State:
        stamp = self.library.catalog.stamp()
        with self._lock:
            known = self._states.get(target)
            if known is None or known.stamp != stamp:
                known = self._states[target] = self._load(target)
            return known

    def _load(self, target: Target) -> _State:
        while True:
            row = self.library.catalog.library()
            if self._follow and row.encoder not in {None, self.encoder.spec}:
                self.encoder = load_encoder(row.model or DEFAULT_MODEL, asking=True)
            self.check(row)
            index = self.library.open_index(target, row)
            adapter = self.library.adapter(row)
            # Made from vectors that a change of model dropped meanwhile, it may lack some.
            if self.library.catalog.library().encoder_id == row.encoder_id:
                index = self._placed(target, index)
                return _State(row.stamp, self.encoder, index, row.adapter_id, adapter)

    def _placed(self, target: Target, index: VectorIndex) -> VectorIndex:
        """Return the index where its vectors shall be compared; the one before gives its GPU back.

        The CPU answers while vectors are copied.
        """
        before = self._states.get(target)
        old = None if before is None else before.index
        pays = self._device is None and indexes.pays_on_gpu(len(index), index.dim, LONG_LIFE)
        if self._device == "cpu" or (self._device is None and not (pays and indexes.gpus())):
            if old is not None:
                old.close()
            return index
        devices = None if self._device in {None, "cuda"} else [self._device]
        return indexes.to_gpu(index, devices, wait=False, instead_of=old)

    def _renewed(self, target: Target) -> VectorIndex:
        """Make an index anew whose file turned out to be damaged."""
        with self._lock:
            row = self.library.catalog.library()
            self.check(row)
            index = self._placed(target, self.library.build_index(target, row, train=False))
            self._states[target] = _State(
                row.stamp, self.encoder, index, row.adapter_id, self.library.adapter(row)
            )
            return index

    def check(self, row: LibraryRow) -> None:
        """Check that the library, in the state that `row` names, is of this engine's encoder.

        Raises:
            ModelMismatch: it was built with another.
        """
        if row.encoder is None or row.encoder == self.encoder.spec:
            return
        built, ours = tell_apart(row.encoder, self.encoder.spec)
        root = self.library.root
        raise ModelMismatch(
            f"The library at {root} was built with {built}; its pictures cannot be compared with "
            f"queries by {ours}. Embed them again with: mmsearch migrate "
            f"--model {quoted(self.encoder.location)} --library {quoted(root)}"
        )


def _member(kind: type[_Named], name: str, argument: str) -> _Named:
    try:
        return kind(name)
    except ValueError:
        names = ", ".join(f"'{each.value}'" for each in kind)
        raise QueryError(f"'{argument}' is one of {names}, not {name!r}.") from None


def open_engine(
    path: Path | str,
    *,
    model: str | Path | Encoder | None = None,
    device: str | None = None,
) -> SearchEngine:
    """Open the library of a folder of pictures for searching.

    Args:
        path: the folder that was indexed.
        model: the encoder; the one the library was built with when not given, and then its next
            one after a change of model.
        device: where vectors are compared: `cpu`; `cuda` for every GPU, `cuda:1` for one; by
            default a GPU where FAISS sees one and a thousand queries are worth the copy, which is
            from about 170,000 pictures on. Vectors are copied at the first search, and the CPU
            answers meanwhile.

    Raises:
        LibraryNotFound: the folder was never indexed.
        ModelError: the library's encoder is no longer where it was.
        ModelMismatch: the library was built with another encoder, or another revision of it.
        ValueError: FAISS does not see that GPU.
    """
    library = Library.open(Path(path))
    try:
        encoder = load_encoder(model or library.model or DEFAULT_MODEL, asking=True)
    except ModelError as error:
        library.close()
        raise ModelError(
            f"{error} The library at {library.root} was built with it; if its folder was moved, "
            f"run: mmsearch index {quoted(library.root)} --model NEW_FOLDER"
        ) from error
    try:
        return SearchEngine(library, encoder, follow=model is None, device=device)
    except (MmsearchError, ValueError):
        library.close()
        raise
