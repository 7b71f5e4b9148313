"""The query layer: a question in, ranked answers out."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

from mmsearch import indexes
from mmsearch.errors import MmsearchError, ModelError, ModelMismatch, QueryError, quoted
from mmsearch.indexes import IndexFileError
from mmsearch.retrieval.answering import Answer, Asked, OutdatedError, answer, listed
from mmsearch.retrieval.encoders import DEFAULT_MODEL, load_encoder
from mmsearch.retrieval.filters import Filter, parse_where
from mmsearch.retrieval.library import Library
from mmsearch.retrieval.question import embedded
from mmsearch.retrieval.request import SearchRequest
from mmsearch.retrieval.schema import Fusion, Query, Results, SortKey, Strategy, Target, tell_apart
from mmsearch.retrieval.state import State
from mmsearch.retrieval.taste import HALF_LIFE_DAYS

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from mmsearch.indexes import VectorIndex
    from mmsearch.retrieval.answering import Wanted
    from mmsearch.retrieval.catalog import LibraryRow
    from mmsearch.retrieval.encoders import Encoder
    from mmsearch.retrieval.explanation import Explanation, Method
    from mmsearch.retrieval.liked import PictureItem
    from mmsearch.retrieval.question import ImageSource, Question
    from mmsearch.retrieval.rerankers import Reranker
    from mmsearch.retrieval.reranking import SecondStage
    from mmsearch.retrieval.schema import EncoderSpec

__all__ = ["SearchEngine", "open_engine"]

logger = logging.getLogger(__name__)

_Told = TypeVar("_Told")

LOOKS = 5
"""How often a library that changes meanwhile is looked at for an answer of one state."""
LONG_LIFE = 1_000
"""Queries that an engine is expected to answer, where that decides whether a GPU pays."""


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
        self._states: dict[Target, State] = {}
        self._loading = Lock()
        self._rerankers: dict[tuple[str, EncoderSpec], Reranker] = {}
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
        where: str | Filter | None = None,
        sort: SortKey | str | None = None,
        descending: bool = False,
        cut: float | None = None,
        group: bool = False,
        diversity: float = 0.0,
        words: bool = True,
        rerank: str | Path | Reranker | None = None,
        rerank_depth: int | None = None,
        rerank_budget_ms: float | None = None,
    ) -> Results:
        """Return the `k` pictures, or captions, most similar to words, to pictures or to both.

        Args:
            text: words that describe what is looked for, with AND, OR and NOT where they are
                wanted (see `retrieval.logic`), or several descriptions.
            image: a picture that looks like it, or several: paths or Pillow images.
            weights: how much each part counts, texts before pictures; above 0, all the same if
                not given.
            fusion: how several parts become one answer, see `Fusion`.
            to: look among the library's `images` or its `captions`.
            k: how many answers, at least 1; fewer come where the library holds fewer.
            where: what answers must be like (`taken >= '2023-06' AND width > height`), see
                `retrieval.filters`; without words and pictures, all that is like this is listed.
            sort: put answers in this order instead, see `SortKey`; of the best 100, or `5 k`, those
                that match, where a cut says so.
            descending: whether the greatest, or latest, comes first.
            cut: there is no answer where the best has a lower probability (0 to 1) of matching;
                `retrieval.confidence.CUT` is what the command line uses. Probabilities are known
                where one text asks for pictures.
            group: near-duplicates and pictures of one burst count as one answer.
            diversity: 0 (none) to 1, how different from each other answers shall be.
            words: where one text asks for pictures, words in their captions, names and metadata
                count beside what they look like; scores stay similarities.
            rerank: what reads the best answers again, see `load_reranker`, and puts them in its
                order: of one text the pictures, of one picture the captions. Both scores are kept
                (`Hit.score`, `Hit.rerank_score`); what it cannot read, or has no time for, follows
                as it stood. A reranker is loaded once for an engine.
            rerank_depth: how many of the best it reads; 50 if not given, and never fewer than `k`.
            rerank_budget_ms: the time it may take; what it has begun it finishes. Without it, the
                time it needs.

        Raises:
            QueryError: nothing is asked, a text is empty, `k` is below 1, weights that do not fit,
                an unknown fusion, a filter or operators that make no sense, a picture that
                cannot be read, or a question that cannot be reranked.
            ModelMismatch: the library was meanwhile embedded again with another encoder, and this
                engine was opened with one of its caller's choice.
            ModelError: the library's new encoder cannot be loaded, or there is no such reranker.
            MissingExtra: the reranker's library is not installed.
        """
        request = SearchRequest(
            text=text,
            image=image,
            weights=weights,
            fusion=fusion,
            to=to,
            k=k,
            where=where,
            sort=sort,
            descending=descending,
            cut=cut,
            group=group,
            diversity=diversity,
            words=words,
            rerank=rerank,
            rerank_depth=rerank_depth,
            rerank_budget_ms=rerank_budget_ms,
        )
        (told,) = self.search_batch([request])
        if isinstance(told, MmsearchError):
            raise told
        return told

    def search_batch(self, requests: Sequence[SearchRequest]) -> list[Results | MmsearchError]:
        """Return the answers to different questions, each as `search` gives it, in one go.

        All texts are embedded together, and all pictures; questions that are one vector, about the
        same target and without a filter, are one search of the index; and what is looked up in the
        catalog is looked up for all. A server that has several questions at the same time answers
        them so. Each result's `took_ms` is its share.

        Args:
            requests: any number, each of its own kind.

        Returns:
            In the place of each request its answer, or the error that `search` raises where that
            one question is wrong, its picture cannot be read, or there is no such reranker.

        Raises:
            ModelMismatch: as from `search`, which concerns all.
            ModelError: the library's new encoder cannot be loaded.
        """
        started = time.perf_counter()
        told: list[Results | MmsearchError | None] = [None] * len(requests)
        pending: list[_Pending] = []
        for place, request in enumerate(requests):
            try:
                pending.append(self._checked(place, request))
            except MmsearchError as error:
                told[place] = error
        answered = self._in_one_state(pending)
        for each in pending:
            if each.failed is not None:
                told[each.place] = each.failed
        share = (time.perf_counter() - started) * 1000 / max(1, len(requests))
        for each, state, answer_ in answered:
            told[each.place] = (
                answer_
                if isinstance(answer_, MmsearchError)
                else self._told(each, state, answer_, share)
            )
        return [each for each in told if each is not None]

    def search_many(
        self,
        texts: Sequence[str],
        *,
        to: Target | str = Target.IMAGES,
        k: int = 10,
        rerank: str | Path | Reranker | None = None,
        rerank_depth: int | None = None,
        rerank_budget_ms: float | None = None,
    ) -> list[Results]:
        """Return the answers to many texts, each as `search` gives it, in one go.

        Texts are embedded together and put to the index together, which is several times as quick
        as one after the other; words in captions and names do not count (`words=False`). Each
        result's `took_ms` is its share.

        Args:
            texts: descriptions, without operators.
            to: look among the library's `images` or its `captions`.
            k: how many answers to each, at least 1.
            rerank: as in `search`.
            rerank_depth: as in `search`.
            rerank_budget_ms: as in `search`, for each text.

        Raises:
            QueryError: a text is empty or has operators, `k` is below 1, or captions are to be
                reranked.
            ModelMismatch: as from `search`.
            ModelError: as from `search`.
            MissingExtra: as from `search`.
        """
        questions = [
            SearchRequest(
                text=text,
                to=to,
                k=k,
                words=False,
                rerank=rerank,
                rerank_depth=rerank_depth,
                rerank_budget_ms=rerank_budget_ms,
            )
            for text in texts
        ]
        for question, _ in (each.checked() for each in questions):
            if question is not None and question.expression:
                raise QueryError("AND, OR and NOT are not understood here; ask with `search`.")
        found = []
        for told in self.search_batch(questions):
            if isinstance(told, MmsearchError):
                raise told
            found.append(told)
        return found

    def _checked(self, place: int, request: SearchRequest) -> _Pending:
        question, wanted = request.checked()
        second = None
        if question is not None:
            second = self._second_stage(request, question, wanted)
        return _Pending(place, question, wanted, second)

    def _in_one_state(
        self, pending: Sequence[_Pending]
    ) -> list[tuple[_Pending, State, Answer | MmsearchError]]:
        """Answer checked requests by one state of the library.

        It may change between the look at its state and the answer; then all is asked once more. To
        a library that changes with each of several looks, what is near is told by the last of
        these states, and what is gone since is left out.
        """
        looks = LOOKS
        while True:
            looks -= 1
            states = {each.target: self._state(each.target) for each in pending}
            with suppress(OutdatedError):
                return self._by(states, pending, outdated=looks == 0)

    def _by(
        self, states: Mapping[Target, State], pending: Sequence[_Pending], *, outdated: bool
    ) -> list[tuple[_Pending, State, Answer | MmsearchError]]:
        """Answer requests by these states, though they be `outdated`, or not at all then."""
        answered = self._listed(pending, states)
        asked = _embed([each for each in pending if each.question is not None], states)
        for target, state in states.items():
            some = [each for each in asked if each.target is target and each.failed is None]
            first = [each for each in some if not each.second]
            answered += self._answered(state, target, first, outdated=outdated)
            for each in some:
                if each.second:
                    answered += self._answered(state, target, [each], outdated=outdated)
        return answered

    def _listed(
        self, pending: Sequence[_Pending], states: Mapping[Target, State]
    ) -> list[tuple[_Pending, State, Answer | MmsearchError]]:
        """Answer those where nothing is asked but a filter, or an order."""
        return [
            (each, state, listed(state, each.wanted, each.wanted.sort or SortKey.PATH))
            for each in pending
            if each.question is None
            for state in [states[each.target]]
        ]

    def _answered(
        self, state: State, target: Target, some: Sequence[_Pending], *, outdated: bool
    ) -> list[tuple[_Pending, State, Answer | MmsearchError]]:
        """Answer embedded questions; one alone may have an error of its own."""
        asked = [
            Asked(each.question, each.vectors, each.wanted, each.second)
            for each in some
            if each.question is not None and each.vectors is not None
        ]
        if not asked:
            return []
        try:
            now, answers = self._asked(
                state, target, lambda now: answer(now, asked, outdated=outdated)
            )
        except MmsearchError as error:
            if not some[0].second:
                raise
            return [(some[0], state, error)]
        return [(each, now, told) for each, told in zip(some, answers, strict=True)]

    def _told(self, each: _Pending, state: State, answered: Answer, took_ms: float) -> Results:
        wanted, question = each.wanted, each.question
        adapted = question is not None and question.texts and state.adapter is not None
        return Results(
            query=Query((), wanted.target) if question is None else question.told(wanted.target),
            library=self.library.root,
            model=state.encoder.spec.label,
            hits=answered.hits,
            exact=state.index.exact,
            took_ms=took_ms,
            recall=state.index.recall,
            considered=answered.considered,
            adapter=state.row.adapter_id if adapted else None,
            cut=wanted.cut,
            nearest=answered.nearest,
            where=None if wanted.filter is None else str(wanted.filter),
            rerank=answered.rerank,
        )

    def recommend(
        self,
        like: Sequence[PictureItem] = (),
        dislike: Sequence[PictureItem] = (),
        history: Sequence[tuple[PictureItem, float]] = (),
        *,
        k: int = 10,
        where: str | Filter | None = None,
        among: NDArray[np.int64] | Sequence[PictureItem] | None = None,
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
            where: what answers must be like, as in `search`.
            among: the only pictures that may be answers: ids, or paths in the library, of which
                those that it does not hold are ignored.
            exclude_seen: leave out what is liked or in the history.
            diversity: 0 (the most fitting) to 1 (as different from each other as can be).
            strategy: see `Strategy`.
            half_life: days after which a picture of the history counts half.

        Raises:
            QueryError: a picture cannot be found or read, or an argument is out of its range.
            ModelMismatch: as from `search`.
            ModelError: as from `search`.
        """
        # What questions do not need is loaded where it is.
        from mmsearch.retrieval.liked import Liked

        started = time.perf_counter()
        liked = Liked(like, dislike, history, strategy, diversity, half_life, exclude_seen)
        state, row = self._state_and_row()
        filter_ = _filter(where)
        matching = None if filter_ is None else state.matching(filter_, Target.IMAGES)
        _, found = self._asked(
            state,
            Target.IMAGES,
            lambda now: liked.recommend(
                self.library, row, now.encoder, now.index, k, among, matching
            ),
        )
        return replace(found, took_ms=(time.perf_counter() - started) * 1000)

    def vectors(self, pictures: Sequence[PictureItem]) -> NDArray[np.float32]:
        """Return the vectors of pictures, such as to say how alike two of them are.

        Args:
            pictures: ids, paths in the library (relative to it or absolute), whose vectors are
                stored, or picture files elsewhere and Pillow images, which are embedded.

        Returns:
            `float32[n, dim]`, unit rows (stored ones with the precision of float16), in the order
            of `pictures`.

        Raises:
            QueryError: a picture cannot be found or read.
            ModelMismatch: as from `search`.
            ModelError: as from `search`.
        """
        from mmsearch.retrieval.liked import vectors_of_pictures

        state, row = self._state_and_row()
        return vectors_of_pictures(self.library, row, state.encoder, pictures)

    def explain(
        self,
        image: ImageSource,
        text: str,
        *,
        method: Method | str | None = None,
        k: int = 5,
    ) -> Explanation:
        """Say why a picture matches a text: where, by which words, how probably, and what else.

        Args:
            image: a path, also in the library (from its folder on), or a Pillow image.
            text: words that describe a picture, without operators.
            method: how the map is made, see `Method`; by default the first that is at hand.
            k: how many of the picture's own captions are told, at least 1, and how many others.

        Raises:
            QueryError: the text is empty or has operators, the picture cannot be read, `k` is
                below 1, or there is no such method.
            ModelMismatch: as from `search`.
            ModelError: as from `search`, or there is no model of torch for a gradient.
            MissingExtra: a gradient without the extra `models`.
        """
        from mmsearch.retrieval.explanation import explain_in

        return explain_in(self, self._state(Target.IMAGES), image, text, method, k)

    def _asked(
        self, state: State, target: Target, ask: Callable[[State], _Told]
    ) -> tuple[State, _Told]:
        """Return what was told, and by which state: a new one where an index was damaged."""
        try:
            return state, ask(state)
        except IndexFileError as error:
            logger.warning("%s; making it anew from the catalog", error)
            state = self._renewed(target)
            return state, ask(state)

    def _second_stage(
        self, request: SearchRequest, question: Question, wanted: Wanted
    ) -> SecondStage | None:
        if request.rerank is None:
            return None
        # What questions do not need is loaded where it is.
        from mmsearch.retrieval.reranking import SecondStage, check_rerankable

        depth, budget_ms = request.rerank_depth, request.rerank_budget_ms
        check_rerankable(question, wanted.target, depth, budget_ms)
        return SecondStage(
            self._reranker(request.rerank),
            question,
            wanted.target,
            self.library,
            k=wanted.k,
            depth=depth,
            budget_ms=budget_ms,
        )

    def _reranker(self, name: str | Path | Reranker) -> Reranker:
        from mmsearch.retrieval.rerankers import Reranker, load_reranker

        if isinstance(name, Reranker):
            return name
        # It may read the towers of the encoder, which a change of model replaces.
        key = (str(name), self.encoder.spec)
        with self._loading:
            if key not in self._rerankers:
                self._rerankers[key] = load_reranker(name, self.encoder)
            return self._rerankers[key]

    def _state_and_row(self) -> tuple[State, LibraryRow]:
        """Return a state of the pictures, and the library's row that belongs to it."""
        while True:
            state, row = self._state(Target.IMAGES), self.library.catalog.library()
            if row.stamp == state.stamp:
                return state, row

    def _state(self, target: Target) -> State:
        stamp = self.library.catalog.stamp()
        with self._lock:
            known = self._states.get(target)
            if known is None or known.stamp != stamp:
                known = self._states[target] = self._load(target)
            return known

    def _load(self, target: Target) -> State:
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
                return State(self.library, row, self.encoder, index, adapter)

    def _placed(self, target: Target, index: VectorIndex) -> VectorIndex:
        """Return the index where its vectors shall be compared; the one before gives its GPU back.

        The CPU answers while vectors are copied.
        """
        before = self._states.get(target)
        old = None if before is None else before.index
        if index.remote:
            return index
        pays = self._device is None and indexes.pays_on_gpu(len(index), index.dim, LONG_LIFE)
        if self._device == "cpu" or (self._device is None and not (pays and indexes.gpus())):
            if old is not None:
                old.close()
            return index
        devices = None if self._device in {None, "cuda"} else [self._device]
        return indexes.to_gpu(index, devices, wait=False, instead_of=old)

    def _renewed(self, target: Target) -> State:
        """Make an index anew whose file turned out to be damaged."""
        with self._lock:
            row = self.library.catalog.library()
            self.check(row)
            index = self._placed(target, self.library.build_index(target, row, train=False))
            adapter = self.library.adapter(row)
            state = State(self.library, row, self.encoder, index, adapter)
            self._states[target] = state
            return state

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


def _filter(where: str | Filter | None) -> Filter | None:
    return parse_where(where) if isinstance(where, str) else where


@dataclass(slots=True)
class _Pending:
    """A request that was checked, and what became of it.

    Attributes:
        place: among the requests.
        question: what is asked; None where a filter, or an order, is all.
        wanted: which answers.
        second: what reads the best of them again.
        vectors: `float32[p, dim]`, the question's parts, once they are embedded.
        failed: why they cannot be.
    """

    place: int
    question: Question | None
    wanted: Wanted
    second: SecondStage | None
    vectors: NDArray[np.float32] | None = None
    failed: QueryError | None = None

    @property
    def target(self) -> Target:
        """What is looked for."""
        return self.wanted.target


def _embed(pending: Sequence[_Pending], states: Mapping[Target, State]) -> Sequence[_Pending]:
    """Embed questions, each as its state's texts are adapted; return them."""
    # One encoder, but while a change of model comes between the states.
    encoders = {id(state.encoder): state.encoder for state in states.values()}
    for key, encoder in encoders.items():
        some = [each for each in pending if id(states[each.target].encoder) == key]
        questions = [each.question for each in some if each.question is not None]
        for each, question, vectors in zip(
            some, questions, embedded(questions, encoder), strict=True
        ):
            if isinstance(vectors, QueryError):
                each.failed = vectors
                continue
            each.failed = None
            adapter, texts = states[each.target].adapter, len(question.texts)
            if adapter is not None and texts:
                vectors[:texts] = adapter.apply(vectors[:texts])
            each.vectors = vectors
    return pending


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
