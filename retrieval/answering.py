"""Questions put to one state of a library: candidates, what they mean, which are shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mmsearch.errors import QueryError
from mmsearch.retrieval import hybrid
from mmsearch.retrieval.diversity import maximal_marginal_relevance
from mmsearch.retrieval.duplicates import collapse, seconds_of
from mmsearch.retrieval.schema import Hit, SortKey, Target

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.indexes.base import Condition
    from mmsearch.retrieval.calibration import Calibration
    from mmsearch.retrieval.catalog import FileRow
    from mmsearch.retrieval.filters import Filter
    from mmsearch.retrieval.question import Question
    from mmsearch.retrieval.reranking import SecondStage
    from mmsearch.retrieval.schema import Reranking
    from mmsearch.retrieval.state import State

    Ids = NDArray[np.int64]
    Vectors = NDArray[np.float32]
    Ranking = list[tuple[int, float]]

__all__ = ["Answer", "Asked", "OutdatedError", "Wanted", "answer", "listed"]

DEPTH = 100
"""Answers of which those that match are sorted, at least, and five for each of `k`."""
NEAR = hybrid.DEPTH
"""The same of those that are grouped, spread, or fused with what words find."""
FIRST = 20
"""Answers of which the most probable decides whether there is any."""


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


@dataclass(frozen=True, slots=True)
class Asked:
    """An embedded question.

    Attributes:
        question: what is asked.
        vectors: `float32[p, dim]`, its parts.
        wanted: which answers.
        second: what reads the best of them again, where that is asked.
    """

    question: Question
    vectors: Vectors
    wanted: Wanted
    second: SecondStage | None = None


class _Found(NamedTuple):
    """A candidate: a picture, or one of its captions."""

    id: int
    score: float
    file: FileRow
    caption: str | None


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


class OutdatedError(Exception):
    """The library has changed since the state that was to answer."""


def answer(
    state: State, asked: Sequence[Asked], *, outdated: bool = True
) -> list[Answer | QueryError]:
    """Return the answer to each embedded question, its best reranked where a second stage is given.

    What several questions need of the index and of the catalog is had at once. Whether anything
    matches at all is for the first stage to say; near-duplicates are grouped, and answers spread,
    in the order of the second.

    Args:
        state: of what is looked for.
        asked: questions about the same target.
        outdated: answer even if the library has changed since: then what is near is told by the
            state, and what is read of it by the catalog as it is now.

    Returns:
        For each an answer, or why there is none: its parts cancel each other out.

    Raises:
        IndexFileError: as from `VectorIndex.search`.
        OutdatedError: it has, and the state is not to answer then.
    """
    # A second stage may take its time; the catalog is not held that long.
    patient = any(each.second for each in asked)
    with nullcontext() if patient else state.catalog.at_once():
        stamp = state.catalog.stamp()
        if stamp != state.stamp and not outdated:
            raise OutdatedError
        state = state.beside(stamp)
        works = [_Work(state, each) for each in asked]
        _look_for_words(state, works)
        left = [work for work in works if work.told is None]
        _compare_with_sample(left)
        while left:
            _rank(state, left)
            _fuse(state, [work for work in left if work.told is None])
            left = [work for work in left if work.told is None]
            _look_up(state, left)
            for work in left:
                work.choose()
            left = [work for work in left if work.told is None]
    return [work.told for work in works if work.told is not None]


class _Work:
    """One question on the way to its answer.

    Attributes:
        told: the answer, or why there is none, as soon as it is known.
        depth: how many candidates are looked for.
        own: mean and deviation of what the question usually scores, see `Calibration.own`.
        ranked: candidates and their scores, best first.
        files: pictures that were looked up, by id.
        captions: the same of captions.
    """

    def __init__(self, state: State, asked: Asked) -> None:
        self.state = state
        self.question, self.vectors, self.wanted = asked.question, asked.vectors, asked.wanted
        self.second = asked.second
        self.told: Answer | QueryError | None = None
        wanted = self.wanted
        self.among: Ids | Condition | None = None
        if wanted.filter is not None:
            self.among = state.among(wanted.filter, wanted.target)
        self.considered = len(state.index) if self.among is None else len(self.among)
        self.calibration: Calibration | None = None
        if self.considered == 0:
            self.told = self._answered(())
        elif wanted.target is Target.IMAGES and self.question.of_words:
            self.calibration = state.calibration
        self.words: Ranking = []
        self.ranked: Ranking = []
        self.files: dict[int, FileRow] = {}
        self.captions: dict[int, tuple[FileRow, str]] = {}
        self.depth = wanted.k
        self.own = math.nan, math.nan
        self._match: dict[int, float] = {}

    @property
    def asks_for_words(self) -> bool:
        """Whether words may count."""
        plain = self.calibration is not None and self.question.expression is None
        return self.wanted.words and plain

    @property
    def first(self) -> int:
        """How many candidates are weighed at least."""
        return self.wanted.k if self.cut is None else max(self.wanted.k, FIRST)

    @property
    def needed(self) -> Ranking:
        """As many of the first candidates as are needed, at least."""
        if self.wanted.deep:
            return self.ranked
        read = self.second.depth if self.second else 0
        return self.ranked[: max(self.first, read)]

    @property
    def cut(self) -> float | None:
        """The cut, where probabilities are known."""
        return None if self.calibration is None else self.wanted.cut

    def start(self, words: Ranking) -> None:
        """Begin, with what words found."""
        self.words = words
        if self.wanted.deep or hybrid.helps(words):
            self.depth = max(DEPTH if self.wanted.sort else NEAR, 5 * self.wanted.k)
        if self.second is not None:
            self.depth = max(self.depth, self.second.depth)
        self.depth = min(self.depth, self.considered)

    def choose(self) -> None:
        """Tell which of the candidates are shown, or have more of them looked for."""
        wanted = self.wanted
        found = self._found(self.needed)
        if len(found) < len(self.needed) < len(self.ranked):
            # A picture that is gone since gives way to the next.
            _look_up(self.state, [self], everything=True)
            found = self._found(self.ranked)
        nearest = None
        if wanted.target is Target.IMAGES and (
            self.calibration or wanted.group or wanted.diversity
        ):
            hits, nearest = self._shown(found)
        else:
            ordered, reranked = self._reranked(self._sorted(found))
            hits = self._hits(ordered[: wanted.k], reranked)
        # Near-duplicates count once, and so does a caption that two sources give; a picture may
        # be gone since. What is sorted is what matches, however few.
        enough = len(hits) >= wanted.k or bool(wanted.sort and wanted.cut)
        if enough or nearest is not None or self.depth >= self.considered:
            self.told = self._answered(hits, nearest)
        self.depth = min(2 * self.depth, self.considered)

    def _answered(self, hits: tuple[Hit, ...], nearest: Hit | None = None) -> Answer:
        told = None if self.second is None else self.second.told
        return Answer(hits, self.considered, nearest, told)

    def _found(self, ranked: Ranking) -> list[_Found]:
        if self.wanted.target is Target.IMAGES:
            files = self.files
            return [_Found(id_, score, files[id_], None) for id_, score in ranked if id_ in files]
        # A text that several sources give for one picture counts once.
        found: dict[tuple[int, str], _Found] = {}
        for id_, score in ranked:
            if id_ in self.captions:
                file, text = self.captions[id_]
                found.setdefault((file.id, text), _Found(id_, score, file, text))
        return [*found.values()]

    def _shown(self, found: list[_Found]) -> tuple[tuple[Hit, ...], Hit | None]:
        """Say how probable answers are; leave out, rerank, sort, group and spread as is wanted."""
        wanted, cut = self.wanted, self.cut
        try:
            kept = self._sorted(found) if cut is None else found
            if cut is not None and found:
                # Nobody looks at more than a few of what does not match.
                first = found[:FIRST]
                matches = self._matches(first)
                best = max(range(len(first)), key=matches.__getitem__)
                if matches[best] < cut:
                    return (), self._hits(first, {}, matches)[best]
                if wanted.sort is not None:
                    each = zip(self._matches(kept), kept, strict=True)
                    kept = self._sorted([one for match, one in each if match >= cut])
            kept, reranked = self._reranked(kept)
            others: list[tuple[FileRow, ...]] = []
            if kept and (wanted.group or wanted.diversity):
                kept, others = self._apart(kept, bool(reranked))
            kept = kept[: wanted.k]
            match = None if self.calibration is None else self._matches(kept)
            return self._hits(kept, reranked, match, others), None
        except _VectorsReplacedError:
            # The order is known, and no more.
            kept, reranked = self._reranked(self._sorted(found))
            return self._hits(kept[: wanted.k], reranked), None

    def _matches(self, found: Sequence[_Found]) -> list[float]:
        """Return how probably each matches; a file that is named so does for certain."""
        known = self._match
        new = [each for each in found if each.id not in known]
        if self.question.expression is not None:  # whose scores are probabilities already
            known.update((each.id, each.score) for each in new)
        elif new and self.calibration is not None:
            usual = self.state.usual([each.id for each in new])
            if len(usual) < len(new):
                raise _VectorsReplacedError
            matches = self.calibration.probability(
                *self.own,
                np.array([each.score for each in new]),
                np.array([usual[each.id] for each in new]),
            )
            known.update(zip([each.id for each in new], matches.tolist(), strict=True))
            known.update((each.id, 1.0) for each in new if each.id in self.named)
        return [known[each.id] for each in found]

    def _apart(
        self, found: list[_Found], reranked: bool
    ) -> tuple[list[_Found], list[tuple[FileRow, ...]]]:
        """Spread and group candidates as far as is wanted.

        Returns:
            Which are left, and of groups the others.
        """
        wanted = self.wanted
        rows = self.state.vectors_in_order([each.id for each in found])
        if len(rows) < len(found):
            raise _VectorsReplacedError
        if wanted.diversity:
            scores = np.array([each.score for each in found])
            if reranked:
                # Scores of two stages have no common scale: who stands first now counts as the
                # first did before, and so on.
                scores = np.sort(scores)[::-1]
            chosen = maximal_marginal_relevance(
                (scores - scores.min()) / (float(np.ptp(scores)) or 1.0),
                rows,
                len(found) if wanted.group else wanted.k,
                wanted.diversity,
            ).tolist()
            found, rows = [found[i] for i in chosen], rows[chosen]
        if not wanted.group:
            return found, []
        taken = np.array([seconds_of(each.file.taken_at) for each in found])
        groups = collapse(rows, wanted.k, self.state.likeness, taken=taken)
        others = [tuple(found[i].file for i in each.others) for each in groups]
        return [found[each.row] for each in groups], others

    def _sorted(self, found: list[_Found]) -> list[_Found]:
        wanted = self.wanted
        if wanted.sort is None:
            return found
        ids = np.unique(np.array([each.file.id for each in found], dtype=np.int64))
        in_order = self.state.catalog.in_order(ids, wanted.sort, descending=wanted.descending)
        place = {id_: i for i, id_ in enumerate(in_order.tolist())}
        # Captions of one picture stay together.
        return sorted(found, key=lambda each: place.get(each.file.id, len(place)))

    @property
    def named(self) -> set[int]:
        """Ids of files whose name is what was asked: they match for certain."""
        return {id_ for id_, score in self.words if score == math.inf}

    def _reranked(self, found: list[_Found]) -> tuple[list[_Found], dict[int, Hit]]:
        """Return candidates in the second stage's order, and what it says of each, by id."""
        if self.second is None:
            return found, {}
        keys = {(each.file.id, each.caption): each for each in found}
        named = self.named if self.wanted.target is Target.IMAGES else ()
        hits = self.second.reorder(self._hits(found, {}), named)
        ordered = [(keys[hit.id, hit.caption], hit) for hit in hits]
        return [each for each, _ in ordered], {each.id: hit for each, hit in ordered}

    def _hits(
        self,
        found: Sequence[_Found],
        reranked: dict[int, Hit],
        match: Sequence[float] | None = None,
        others: Sequence[tuple[FileRow, ...]] = (),
    ) -> tuple[Hit, ...]:
        """Return what is told of candidates: they are numbered as they stand."""
        hits = []
        for n, (id_, score, file, caption) in enumerate(found):
            read = reranked.get(id_)
            alike = others[n] if others else ()
            hits.append(
                Hit(
                    n + 1,
                    file.id,
                    file.path,
                    score,
                    caption,
                    file.taken_at,
                    file.width,
                    file.height,
                    None if match is None else match[n],
                    tuple(each.path for each in alike),
                    None if read is None else read.rerank_score,
                    None if read is None else read.first_rank,
                    other_ids=tuple(each.id for each in alike),
                )
            )
        return tuple(hits)


class _VectorsReplacedError(Exception):
    """Vectors of candidates are gone: another run is replacing them."""


def _compare_with_sample(works: Sequence[_Work]) -> None:
    """Find out what each question of one text usually scores."""
    works = [work for work in works if work.calibration and work.question.expression is None]
    if not works or works[0].calibration is None:
        return
    both = works[0].calibration.own(np.concatenate([work.vectors for work in works]))
    for work, *own in zip(works, *(numbers.tolist() for numbers in both), strict=True):
        work.own = own[0], own[1]


def _look_for_words(state: State, works: Sequence[_Work]) -> None:
    """Have each question begin with what words of it are found."""
    left = [work for work in works if work.told is None]
    asking = [work for work in left if work.asks_for_words]
    found: dict[_Work, Ranking] = {}
    if asking:
        texts = [work.question.texts[0] for work in asking]
        words = state.words(texts, NEAR, [work.among for work in asking])
        found = dict(zip(asking, words, strict=True))
    for work in left:
        work.start(found.get(work, []))


def _rank(state: State, works: Sequence[_Work]) -> None:
    """Have the index find candidates: those of questions that are one vector at once."""
    together: dict[int, list[tuple[_Work, Vectors]]] = {}
    for work in works:
        try:
            vector = work.question.one_vector(work.vectors)
            if vector is None or work.among is not None:
                work.ranked = work.question.search(
                    state.index, work.vectors, work.depth, work.among, work.calibration
                )
            else:
                together.setdefault(work.depth, []).append((work, vector))
        except QueryError as error:
            work.told = error
    # Which of several copies come first, and how hard an approximate index looks, depends on how
    # many answers it is asked for: each question is asked as deeply as if it were alone.
    for depth, some in together.items():
        found = state.index.search(np.concatenate([vector for _, vector in some]), depth)
        for (work, _), ids, scores in zip(some, found.ids, found.scores, strict=True):
            known = ids >= 0
            work.ranked = list(zip(ids[known].tolist(), scores[known].tolist(), strict=True))


def _fuse(state: State, works: Sequence[_Work]) -> None:
    """Put what words found among the candidates, each with its similarity."""
    works = [work for work in works if hybrid.helps(work.words)]
    # Of what words found it need not be asked whether they could.
    undecided = [
        {id_ for id_, _ in work.ranked}.difference(id_ for id_, _ in work.words) for work in works
    ]
    described = state.described(set().union(*undecided)) if works else set()
    for work in works:
        fused = hybrid.fuse_words(work.ranked, work.words, work.depth, described=described)
        scores = dict(work.ranked)
        lacking = [id_ for id_, _ in fused if id_ not in scores]
        if lacking:
            among = np.array(sorted(lacking), dtype=np.int64)
            found = state.index.search(work.vectors, len(among), among=among)
            scores |= dict(zip(found.ids[0].tolist(), found.scores[0].tolist(), strict=True))
        work.ranked = [(id_, scores[id_]) for id_, _ in fused if id_ in scores]


def _look_up(state: State, works: Sequence[_Work], *, everything: bool = False) -> None:
    """Read of the catalog what all questions need of their candidates."""
    ids = {id_ for work in works for id_, _ in (work.ranked if everything else work.needed)}
    if not ids:
        return
    if works[0].wanted.target is Target.IMAGES:
        files = state.files(ids)
        for work in works:
            work.files = files
        # What each will ask for itself is looked up for all.
        if any(work.wanted.group or work.wanted.diversity for work in works):
            state.vectors_in_order([*ids])
        if weighed := [work for work in works if work.calibration and not work.question.expression]:
            state.usual({id_ for work in weighed for id_, _ in work.needed[: work.first]})
    else:
        captions = state.catalog.files_of_captions(ids)
        for work in works:
            work.captions = captions
