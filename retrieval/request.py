"""What may be asked of a library at once, as values that can be handed on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mmsearch.errors import QueryError
from mmsearch.retrieval.answering import Wanted
from mmsearch.retrieval.filters import Filter, parse_where
from mmsearch.retrieval.question import Question
from mmsearch.retrieval.schema import Fusion, SortKey, Target

if TYPE_CHECKING:
    from mmsearch.retrieval.question import ImageSource
    from mmsearch.retrieval.rerankers import Reranker

__all__ = ["SearchRequest"]

_Named = TypeVar("_Named", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """One question to a library, with all that `SearchEngine.search` takes.

    Attributes:
        text: words that describe what is looked for, with AND, OR and NOT where they are wanted
            (see `retrieval.logic`), or several descriptions.
        image: a picture that looks like it, or several: paths or Pillow images.
        weights: how much each part counts, texts before pictures; above 0, all the same if not
            given.
        fusion: how several parts become one answer, see `Fusion`.
        to: look among the library's `images` or its `captions`.
        k: how many answers, at least 1; fewer come where the library holds fewer.
        where: what answers must be like (`taken >= '2023-06' AND width > height`), see
            `retrieval.filters`; without words and pictures, all that is like this is listed.
        sort: put answers in this order instead, see `SortKey`; of the best 100, or `5 k`, those
            that match, where a cut says so.
        descending: whether the greatest, or latest, comes first.
        cut: there is no answer where the best has a lower probability (0 to 1) of matching;
            `retrieval.confidence.CUT` is what the command line uses. Probabilities are known where
            one text asks for pictures.
        group: near-duplicates and pictures of one burst count as one answer.
        diversity: 0 (none) to 1, how different from each other answers shall be.
        words: where one text asks for pictures, words in their captions, names and metadata count
            beside what they look like; scores stay similarities.
        rerank: what reads the best answers again, see `load_reranker`, and puts them in its order:
            of one text the pictures, of one picture the captions. Both scores are kept
            (`Hit.score`, `Hit.rerank_score`); what it cannot read, or has no time for, follows as
            it stood. A reranker is loaded once for an engine.
        rerank_depth: how many of the best it reads; 50 if not given, and never fewer than `k`.
        rerank_budget_ms: the time it may take; what it has begun it finishes. Without it, the time
            it needs.
    """

    text: str | Sequence[str] | None = None
    image: ImageSource | Sequence[ImageSource] | None = None
    weights: Sequence[float] | None = None
    fusion: Fusion | str = Fusion.EARLY
    to: Target | str = Target.IMAGES
    k: int = 10
    where: str | Filter | None = None
    sort: SortKey | str | None = None
    descending: bool = False
    cut: float | None = None
    group: bool = False
    diversity: float = 0.0
    words: bool = True
    rerank: str | Path | Reranker | None = None
    rerank_depth: int | None = None
    rerank_budget_ms: float | None = None

    def checked(self) -> tuple[Question | None, Wanted]:
        """Return what is asked, and which answers; no question where a filter, or order, is all.

        Raises:
            QueryError: nothing is asked, a text is empty, a number is out of its range, weights
                that do not fit, an unknown fusion, target or order, a filter or operators that
                make no sense, or a question that cannot be grouped or reranked.
        """
        if self.k < 1:
            raise QueryError(f"k must be at least 1, not {self.k}.")
        if not 0 <= self.diversity <= 1:
            raise QueryError(f"diversity is between 0 and 1, not {self.diversity:g}.")
        if self.cut is not None and not 0 <= self.cut <= 1:
            raise QueryError(f"The cut is a probability between 0 and 1, not {self.cut:g}.")
        target = _member(Target, self.to, "to")
        where = self.where
        filter_ = parse_where(where) if isinstance(where, str) else where
        sort = None if self.sort is None else _member(SortKey, self.sort, "sort")
        if target is Target.CAPTIONS and (self.group or self.diversity):
            raise QueryError("Captions cannot be grouped or spread; leave `group` and `diversity`.")
        nothing = self.text is None and self.image is None
        if self.rerank is not None and (sort is not None or nothing):
            raise QueryError(
                "A reranker orders answers by how well they fit a text or a picture: leave the "
                "other order away, and ask with one of them; or leave reranking away."
            )
        question = None
        if not (nothing and (filter_ or sort)):
            fusion = _member(Fusion, self.fusion, "fusion")
            question = Question.of(self.text, self.image, self.weights, fusion)
        known = target is Target.IMAGES and question is not None and question.of_words
        wanted = Wanted(
            target=target,
            k=self.k,
            filter=filter_,
            sort=sort,
            descending=self.descending,
            # Where no probability is known, nothing is cut.
            cut=self.cut if known else None,
            group=self.group,
            diversity=self.diversity,
            words=self.words,
        )
        return question, wanted


def _member(kind: type[_Named], name: str, argument: str) -> _Named:
    try:
        return kind(name)
    except ValueError:
        names = ", ".join(f"'{each.value}'" for each in kind)
        raise QueryError(f"'{argument}' is one of {names}, not {name!r}.") from None
