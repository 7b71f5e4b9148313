"""One question put to one state of a library: candidates, what they mean, which are shown."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from mmsearch.retrieval import hybrid
from mmsearch.retrieval.calibration import SAMPLE, Calibration
from mmsearch.retrieval.diversity import maximal_marginal_relevance
from mmsearch.retrieval.duplicates import Likeness, collapse, likeness, seconds_of
from mmsearch.retrieval.schema import Hit, SortKey, Target
from mmsearch.retrieval.tags import background

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from mmsearch.indexes import VectorIndex
    from mmsearch.retrieval.adapter import Adapter
    from mmsearch.retrieval.catalog import Catalog, LibraryRow
    from mmsearch.retrieval.encoders import Encoder
    from mmsearch.retrieval.filters import Filter
    from mmsearch.retrieval.question import Question
    from mmsearch.retrieval.reranking import SecondStage
    from mmsearch.retrieval.schema import Reranking

    Floats = NDArray[np.float64]

__all__ = ["Answer", "State", "Wanted", "answer", "answer_many", "listed"]

DEPTH = 100
"""Answers of which those that match are sorted, at least, and five for each of `k`."""
NEAR = hybrid.DEPTH
"""The same of those that are grouped, spread, or fused with what words find."""
FIRST = 20
"""Answers of which the most probable decides whether there is any."""
FILTERS = 16
"""Filters whose ids are kept: a service asks with the same ones again and again."""


class State:
    """One index, and what makes queries fit it, in one state of the library."""

    def __init__(
        self,
        catalog: Catalog,
        row: LibraryRow,
        encoder: Encoder,
        index: VectorIndex,
        adapter: Adapter | None,
    ) -> None:
        self.catalog = catalog
        self.row = row
        self.encoder = encoder
        self.index = index
        self.adapter = adapter
        self._matching: dict[tuple[Filter, Target], NDArray[np.int64]] = {}

    @property
    def stamp(self) -> str:
        """The name of the state of the catalog."""
        return self.row.stamp

    def vectors(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return those of the pictures that have a vector, ascending, and `float32[n, dim]`."""
        if self.row.encoder_id is None:
            return np.empty(0, dtype=np.int64), np.empty((0, self.index.dim), dtype=np.float32)
        found, vectors = self.catalog.vectors_of(
            Target.IMAGES, self.row.encoder_id, self.index.dim, ids
        )
        return found, vectors.astype(np.float32)

    def matching(self, filter_: Filter, target: Target) -> NDArray[np.int64]:
        """Return `int64[n]`, ascending ids of vectors that a filter lets through.

        Those of late are kept.
        """
        key = (filter_, target)
        found = self._matching.get(key)
        if found is None:
            found = self.catalog.matching(filter_, target)
            found = found[self.index.has(found)]
            if self.catalog.stamp() == self.stamp:
                if len(self._matching) >= FILTERS:
                    self._matching.clear()
                self._matching[key] = found
        return found

    # Two threads that come first both compute these, and to the same end.
    @cached_property
    def sample(self) -> NDArray[np.float32]:
        """`float32[n, dim]`, vectors that stand for the library's pictures."""
        ids = np.sort(self.index.ids)
        return self.vectors(ids[:: max(1, len(ids) // SAMPLE)])[1]

    @cached_property
    def calibration(self) -> Calibration | None:
        """What scores of pictures by words mean; None in an empty library."""
        if len(self.sample) == 0:
            return None
        names = background(self.encoder)
        if self.adapter is not None:
            names = self.adapter.apply(names)
        return Calibration.of(names, self.sample, len(self.index))

    @cached_property
    def likeness(self) -> Likeness:
        """How similar near-duplicates are."""
        return likeness(self.sample)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which answers.

    Attributes:
        target: what is looked for.
        k: how many.
        filter: what they must be like.
        sort: what they are put in order by, instead of by how well they match.
        descending: whether the greatest comes first.
        cut: the least probability of the best answer; None answers whatever it is.
        group: whether near-duplicates and bursts count as one.
        diversity: 0 (none) to 1, how different answers shall be from each other.
        words: whether words in captions and names count beside what pictures look like.
    """

    target: Target
    k: int
    filter: Filter | None = None
    sort: SortKey | None = None
    descending: bool = False
    cut: float | None = None
    group: bool = False
    diversity: float = 0.0
    words: bool = True

    @property
    def deep(self) -> bool:
        """Whether more than `k` must be looked at."""
        return self.sort is not None or self.group or self.diversity > 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What is told.

    Attributes:
        hits: best first, at most `k`.
        considered: how many the answer was chosen from.
        nearest: where `hits` is empty because nothing clearly matches, what comes nearest.
        rerank: what the second stage did, where there is one.
    """

    hits: tuple[Hit, ...]
    considered: int
    nearest: Hit | None = None
    rerank: Reranking | None = None


def _with_words(
    state: State,
    vectors: NDArray[np.float32],
    ranked: list[tuple[int, float]],
    words: list[tuple[int, float]],
    k: int,
) -> list[tuple[int, float]]:
    """Return both rankings as one, each answer with its similarity."""
    ids = [id_ for id_, _ in (*ranked, *words)]
    fused = hybrid.fuse_words(ranked, words, k, described=state.catalog.described(ids))
    lacking = np.setdiff1d([id_ for id_, _ in fused], [id_ for id_, _ in ranked])
    scores = dict(ranked)
    if len(lacking):
        found = state.index.search(vectors, len(lacking), among=lacking)
        scores |= dict(zip(found.ids[0].tolist(), found.scores[0].tolist(), strict=True))
    return [(id_, scores[id_]) for id_, _ in fused if id_ in scores]


def listed(state: State, wanted: Wanted, key: SortKey) -> Answer:
    """Return what a filter lets through, in order: nothing else was asked."""
    hits = state.catalog.listed(
        wanted.filter,
        key,
        descending=wanted.descending,
        limit=wanted.k,
        target=wanted.target,
    )
    if wanted.filter is None:
        return Answer(hits, len(state.index))
    return Answer(hits, len(state.matching(wanted.filter, wanted.target)))


def answer(
    state: State,
    question: Question,
    vectors: NDArray[np.float32],
    wanted: Wanted,
    second: SecondStage | None = None,
) -> Answer:
    """Return the answer to an embedded question, its best reranked where a second stage is given.

    Whether anything matches at all is for the first stage to say; near-duplicates are grouped, and
    answers spread, in the order of the second.

    Raises:
        QueryError: the parts cancel each other out.
        IndexFileError: as from `VectorIndex.search`.
    """
    among = None if wanted.filter is None else state.matching(wanted.filter, wanted.target)
    considered = len(state.index) if among is None else len(among)
    if considered == 0:
        return Answer((), 0, rerank=None if second is None else second.told)
    calibration = None
    if wanted.target is Target.IMAGES and question.of_words:
        calibration = state.calibration
    words: list[tuple[int, float]] = []
    if wanted.words and calibration is not None and question.expression is None:
        words = state.catalog.words(question.texts[0], wanted.target, NEAR, among=among)
    asked = wanted.k
    with_words = hybrid.helps(words)
    if wanted.deep or with_words:
        asked = max(DEPTH if wanted.sort else NEAR, 5 * wanted.k)
    if second is not None:
        asked = max(asked, second.depth)
    while True:
        asked = min(asked, considered)
        ranked = question.search(state.index, vectors, asked, among, calibration)
        if with_words:
            ranked = _with_words(state, vectors, ranked, words, asked)
        hits, nearest = _looked_up(state, wanted.target, ranked), None
        if wanted.target is Target.IMAGES and (calibration or wanted.group or wanted.diversity):
            named = {id_ for id_, score in words if score == math.inf}
            hits, nearest = _shown(
                state, question, vectors, wanted, hits, calibration, named, second
            )
        else:
            kept = _reranked(second, _sorted(state, wanted, list(hits)))
            hits = _numbered(kept[: wanted.k])
        # Near-duplicates count once, and so does a caption that two sources give; a picture may
        # be gone since. What is sorted is what matches, however few.
        enough = len(hits) >= wanted.k or bool(wanted.sort and wanted.cut)
        if enough or nearest is not None or asked >= considered:
            return Answer(hits, considered, nearest, None if second is None else second.told)
        asked *= 2


def answer_many(
    state: State, questions: Sequence[Question], vectors: NDArray[np.float32], wanted: Wanted
) -> list[Answer]:
    """Return the answers to several questions of one text each, `float32[q, dim]`.

    Raises:
        IndexFileError: as from `VectorIndex.search`.
    """
    size = len(state.index)
    if size == 0:
        return [Answer((), 0) for _ in questions]
    found = state.index.search(vectors, min(wanted.k, size))
    ids, rows = np.unique(found.ids[found.ids >= 0]), None
    calibration = state.calibration if wanted.target is Target.IMAGES else None
    if calibration is not None:
        ids, rows = state.vectors(ids)
    there = set(ids.tolist())
    answers = []
    for i, question in enumerate(questions):
        pairs = zip(found.ids[i].tolist(), found.scores[i].tolist(), strict=True)
        hits = _looked_up(state, wanted.target, [pair for pair in pairs if pair[0] >= 0])
        if len(hits) < min(wanted.k, size):
            # A caption that two sources give counts once; a picture may be gone since.
            answers.append(answer(state, question, vectors[i : i + 1], wanted))
            continue
        known = there.issuperset(hit.id for hit in hits)
        if calibration is not None and rows is not None and known:
            hits = _weighed(calibration, vectors[i : i + 1], hits, ids, rows)
        answers.append(Answer(hits, size))
    return answers


def _weighed(
    calibration: Calibration,
    query: NDArray[np.float32],
    hits: Sequence[Hit],
    ids: NDArray[np.int64],
    rows: NDArray[np.float32],
) -> tuple[Hit, ...]:
    """Return hits with their probabilities, given the vectors `rows` of ascending `ids`."""
    own = rows[np.searchsorted(ids, [hit.id for hit in hits])]
    match = calibration.match(query, np.array([hit.score for hit in hits]), own)
    return tuple(replace(hit, match=p) for hit, p in zip(hits, match.tolist(), strict=True))


def _shown(
    state: State,
    question: Question,
    query: NDArray[np.float32],
    wanted: Wanted,
    hits: tuple[Hit, ...],
    calibration: Calibration | None,
    named: set[int],
    second: SecondStage | None,
) -> tuple[tuple[Hit, ...], Hit | None]:
    """Say how probable answers are; leave out, rerank, sort, group and spread as is wanted.

    What is `named` by the question matches for certain.
    """
    # What is neither compared with other answers nor shown needs no vector.
    near = hits if wanted.deep or second else hits[: max(wanted.k, FIRST)]
    ids, found = state.vectors(np.array([hit.id for hit in near], dtype=np.int64))
    if not set(ids.tolist()).issuperset(hit.id for hit in near):
        # Vectors that another run is replacing: the order is known, and no more.
        kept = _reranked(second, _sorted(state, wanted, list(hits)), named)
        return _numbered(kept[: wanted.k]), None

    def weighed(some: Sequence[Hit]) -> list[Hit]:
        if calibration is None or not some:
            return list(some)
        if question.expression is not None:  # whose scores are probabilities already
            return [replace(hit, match=hit.score) for hit in some]
        told = _weighed(calibration, query, some, ids, found)
        return [replace(hit, match=1.0) if hit.id in named else hit for hit in told]

    if wanted.cut is not None and hits and calibration is not None:
        # Nobody looks at more than a few of what does not match.
        best = max(weighed(hits[:FIRST]), key=lambda hit: hit.match or 0.0)
        if (best.match or 0.0) < wanted.cut:
            return (), best
    kept = list(hits)
    if wanted.sort is not None:
        if wanted.cut is not None and calibration is not None:
            kept = [hit for hit in weighed(kept) if (hit.match or 0.0) >= (wanted.cut or 0.0)]
        kept = _sorted(state, wanted, kept)
    kept = _reranked(second, kept, named)
    if kept and (wanted.group or wanted.diversity):
        kept = _apart(state, wanted, kept, found[np.searchsorted(ids, [hit.id for hit in kept])])
    return _numbered(weighed(kept[: wanted.k])), None


def _apart(state: State, wanted: Wanted, hits: list[Hit], rows: NDArray[np.float32]) -> list[Hit]:
    """Spread and group hits, given their vectors, as far as is wanted."""
    if wanted.diversity:
        scores = np.array([hit.score for hit in hits])
        if any(hit.rerank_score is not None for hit in hits):
            # Scores of two stages have no common scale: who stands first now counts as the first
            # did before, and so on.
            scores = np.sort(scores)[::-1]
        chosen = maximal_marginal_relevance(
            (scores - scores.min()) / (float(np.ptp(scores)) or 1.0),
            rows,
            len(hits) if wanted.group else wanted.k,
            wanted.diversity,
        ).tolist()
        hits, rows = [hits[i] for i in chosen], rows[chosen]
    if wanted.group:
        taken = np.array([seconds_of(hit.taken_at) for hit in hits])
        groups = collapse(rows, wanted.k, state.likeness, taken=taken)
        hits = [
            replace(hits[each.row], others=tuple(hits[i].path for i in each.others))
            for each in groups
        ]
    return hits


def _reranked(
    second: SecondStage | None, hits: list[Hit], named: Collection[int] = ()
) -> list[Hit]:
    return hits if second is None else second.reorder(hits, named)


def _sorted(state: State, wanted: Wanted, hits: list[Hit]) -> list[Hit]:
    if wanted.sort is None:
        return hits
    ids = np.unique(np.array([hit.id for hit in hits], dtype=np.int64))
    order = state.catalog.in_order(ids, wanted.sort, descending=wanted.descending).tolist()
    place = {id_: i for i, id_ in enumerate(order)}
    # Hits of captions have their picture's id: those of one picture stay together.
    return sorted(hits, key=lambda hit: place.get(hit.id, len(place)))


def _numbered(hits: Sequence[Hit]) -> tuple[Hit, ...]:
    return tuple(replace(hit, rank=rank) for rank, hit in enumerate(hits, 1))


def _looked_up(state: State, target: Target, ranked: list[tuple[int, float]]) -> tuple[Hit, ...]:
    look_up = state.catalog.file_hits if target is Target.IMAGES else state.catalog.caption_hits
    return look_up(ranked)
