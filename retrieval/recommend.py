"""Recommendation: what somebody likes in, a ranking out. Needs vectors only, no picture at all.

>>> import numpy as np
>>> items = Recommender([7, 8, 9], np.eye(3, dtype=np.float32))
>>> items.recommend(like=[7], k=5).ids
array([8, 9])

Answers do not depend on who else is in the same batch, see `retrieval.candidates`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mmsearch import indexes
from mmsearch.errors import QueryError
from mmsearch.retrieval.candidates import Candidates
from mmsearch.retrieval.diversity import facility_location, maximal_marginal_relevance
from mmsearch.retrieval.schema import Basis, Strategy
from mmsearch.retrieval.signals import Signals, Taste, tastes
from mmsearch.retrieval.taste import HALF_LIFE_DAYS

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from mmsearch.indexes import VectorIndex
    from mmsearch.retrieval.signals import Item

    Ids = NDArray[np.int64]
    Floats = NDArray[np.float64]
    VectorsOf = Callable[[Ids], tuple[Ids, NDArray[np.float16]]]

__all__ = ["Recommendation", "Recommender", "Signals"]

USERS_AT_ONCE = 8_192
POOL = 100
"""Candidates among which diversity chooses, at least, and five for each of `k`."""
SAMPLE = 1_000
"""Items among which those are chosen that stand for all."""

_NOTHING = np.empty(0, dtype=np.int64), np.empty(0)


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The answer to one user.

    Attributes:
        ids: `int64[m]`, best first; `m` is `k`, or less where there are not as many.
        scores: `float64[m]`. Of a taste see `retrieval.taste`: a cosine for the average strategy;
            of what is popular, its popularity; of a representative set, by how much each item
            brings the whole nearer to the set (`retrieval.diversity.facility_location`). Falling,
            unless diversity has a say in the order.
        basis: what it was made from.
        ignored: those of the user's ids that are no items.
    """

    ids: Ids
    scores: Floats
    basis: Basis
    ignored: tuple[int, ...] = ()


class Recommender:
    """Items by id with their vectors. Recommending changes nothing, so threads may share one."""

    def __init__(
        self, ids: ArrayLike, vectors: ArrayLike, *, popularity: ArrayLike | None = None
    ) -> None:
        """Take over items; their vectors are kept in half precision, as a library's are.

        Args:
            ids: `int64[n]`, distinct and not negative.
            vectors: `float32[n, dim]` or `float16[n, dim]`, unit rows.
            popularity: `float64[n]`, higher is more popular: what somebody of whom nothing is known
                is recommended. Without it they get a set that stands for all items.

        Raises:
            ValueError: shapes disagree, a vector is no unit vector, an id is negative or given
                twice, or a popularity is no number.
        """
        keys = np.ascontiguousarray(ids, dtype=np.int64)
        rows = np.asarray(vectors).astype(np.float16)
        if rows.ndim != 2 or rows.shape[:1] != keys.shape:
            raise ValueError(f"vectors of shape [{keys.size}, dim] are expected, not {rows.shape}")
        order = np.argsort(keys)
        self._index: VectorIndex = indexes.build(keys, rows, kind="flat")
        self._vectors_of: VectorsOf = _Rows(keys[order], rows[order])
        self._popularity: Floats | None = None
        if popularity is not None:
            values = np.asarray(popularity, dtype=np.float64)
            if values.shape != keys.shape or not np.isfinite(values).all():
                raise ValueError(f"popularity must be {len(keys)} finite numbers, one an item")
            self._popularity = values[order]
        self._ids = keys[order]

    @classmethod
    def over(cls, index: VectorIndex, vectors_of: VectorsOf) -> Recommender:
        """Recommend the items of an index that is there already; as exact as that index is.

        Args:
            index: searched for candidates.
            vectors_of: called with `int64[m]`, ascending ids; returns those that have a vector,
                ascending, and their `float16[m, dim]`.
        """
        made = cls.__new__(cls)
        made._index, made._vectors_of, made._popularity = index, vectors_of, None
        made._ids = np.sort(index.ids)
        return made

    def __len__(self) -> int:
        return len(self._ids)

    def recommend(
        self,
        like: Sequence[Item] = (),
        dislike: Sequence[Item] = (),
        history: Sequence[tuple[int, float]] = (),
        *,
        k: int = 10,
        among: ArrayLike | None = None,
        exclude_seen: bool = True,
        diversity: float = 0.0,
        strategy: Strategy | str = Strategy.AVERAGE,
        half_life: float = HALF_LIFE_DAYS,
    ) -> Recommendation:
        """Recommend up to `k` items to one user.

        Args:
            like: ids, or vectors (`float32[dim]`, length 1) of what is not among the items.
            dislike: the same of what is not liked; never recommended, whatever is asked for.
            history: ids and how many days ago they were seen, bought, … ; liked, by weights that
                halve every `half_life`.
            k: at least 1; fewer come only where there are not as many.
            among: `int64[m]`, the only ids that may be recommended.
            exclude_seen: do not recommend what is liked or in the history.
            diversity: 0 to 1, see `retrieval.diversity.maximal_marginal_relevance`; chosen among
                the best hundred, or `5 k`.
            strategy: see `Strategy`; `best_score` takes time for each liked item.
            half_life: days, above 0; infinite where age does not matter.

        Raises:
            QueryError: an id is no item's, or an argument is out of its range.
            IndexFileError: as from `VectorIndex.search`.
        """
        (found,) = self.recommend_many(
            [Signals(like, dislike, history)],
            k=k,
            among=among,
            exclude_seen=exclude_seen,
            diversity=diversity,
            strategy=strategy,
            half_life=half_life,
        )
        if found.ignored:
            named = ", ".join(map(str, found.ignored[:5])) + (", …" if found.ignored[5:] else "")
            raise QueryError(f"No item has the id {named}. Recommend from ids that are there.")
        return found

    def recommend_many(
        self,
        users: Sequence[Signals],
        *,
        k: int = 10,
        among: ArrayLike | None = None,
        exclude_seen: bool = True,
        diversity: float = 0.0,
        strategy: Strategy | str = Strategy.AVERAGE,
        half_life: float = HALF_LIFE_DAYS,
    ) -> list[Recommendation]:
        """Recommend to many users at once: the answers of `recommend`, in less time for each.

        An id that is no item's is ignored here, and told in the answer: of thousands of histories
        some hold an item that is gone. Of whom nothing else is known, nothing is known.

        Args:
            users: what each of them likes.
            k: as in `recommend`, like everything that follows.
            among: for all users.
            exclude_seen: see there.
            diversity: see there.
            strategy: see there.
            half_life: see there.

        Raises:
            QueryError: an argument is out of its range.
            IndexFileError: as from `VectorIndex.search`.
        """
        way = _checked(k, diversity, strategy, half_life)
        ids = self._ids
        if among is not None:
            ids = np.intersect1d(np.asarray(among, dtype=np.int64), ids)
        candidates = Candidates(self._index, self._vectors_of, ids, among is None)
        pool = k if diversity == 0 else max(POOL, 5 * k)
        found: list[Recommendation] = []
        cold: dict[int, tuple[Taste, Ids]] = {}
        for start in range(0, len(users), USERS_AT_ONCE):
            block = users[start : start + USERS_AT_ONCE]
            read = tastes(block, self._vectors_of, self._index.dim, half_life)
            hidden = [taste.hidden(exclude_seen) for taste in read]
            for number, ranked in enumerate(_ranked(candidates, read, hidden, way, pool), start):
                taste, left_out = read[number - start], hidden[number - start]
                if ranked is None:
                    cold[number] = taste, left_out
                    ranked = _NOTHING
                ranked = self._diverse(*ranked, k, diversity)
                found.append(Recommendation(*ranked, Basis.TASTE, taste.ignored))
        if cold:
            basis, order, scores = self._unknown(ids, k + max(len(out) for _, out in cold.values()))
            for number, (taste, left_out) in cold.items():
                shown = np.flatnonzero(~np.isin(order, left_out))[:k]
                found[number] = Recommendation(order[shown], scores[shown], basis, taste.ignored)
        return found

    def _diverse(self, ids: Ids, scores: Floats, k: int, diversity: float) -> tuple[Ids, Floats]:
        """Choose among candidates that are sorted by score."""
        if diversity == 0 or len(ids) == 0:
            return ids[:k], scores[:k]
        found, vectors = self._vectors_of(np.sort(ids))
        rows = np.searchsorted(found, ids)
        there = found[np.minimum(rows, len(found) - 1)] == ids
        ids, scores, rows = ids[there], scores[there], rows[there]
        chosen = maximal_marginal_relevance(scores, vectors[rows], k, diversity)
        return ids[chosen], scores[chosen]

    def _unknown(self, ids: Ids, count: int) -> tuple[Basis, Ids, Floats]:
        """Return what to recommend to somebody of whom nothing is known: the first of it, in order.

        Args:
            ids: ascending, those that may be recommended.
            count: how many.
        """
        if self._popularity is not None:
            popularity = self._popularity[np.searchsorted(self._ids, ids)]
            order = np.argsort(-popularity, kind="stable")[:count]
            return Basis.POPULAR, ids[order], popularity[order]
        step = max(1, -(-len(ids) // SAMPLE))
        found, vectors = self._vectors_of(ids[::step])
        rows, brought = facility_location(vectors, count)
        # Beyond the sample nothing is known of what an item brings.
        rest = np.setdiff1d(ids, found, assume_unique=True)[: count - len(rows)]
        order = np.concatenate([found[rows], rest])
        return Basis.REPRESENTATIVE, order, np.concatenate([brought, np.zeros(len(rest))])


class _Rows:
    """Vectors in memory, looked up by id."""

    def __init__(self, ids: Ids, vectors: NDArray[np.float16]) -> None:
        """Take `int64[n]` ids, ascending, and their `float16[n, dim]`."""
        self._ids, self._vectors = ids, vectors

    def __call__(self, ids: Ids) -> tuple[Ids, NDArray[np.float16]]:
        rows = np.searchsorted(self._ids, ids)
        there = rows < len(self._ids)
        there[there] = self._ids[rows[there]] == ids[there]
        return ids[there], self._vectors[rows[there]]


def _ranked(
    candidates: Candidates,
    read: Sequence[Taste],
    hidden: Sequence[Ids],
    strategy: Strategy,
    count: int,
) -> list[tuple[Ids, Floats] | None]:
    """Return the best items for each taste; None where it says nothing."""
    answers: list[tuple[Ids, Floats] | None] = [None] * len(read)
    if strategy is Strategy.AVERAGE:
        directions = {i: each.direction() for i, each in enumerate(read) if each.known}
        queries = [row for row in directions.values() if row is not None]
        if not queries:
            return answers
        asked = [i for i, row in directions.items() if row is not None]
        found = candidates.towards(
            np.stack(queries).astype(np.float32), [hidden[i] for i in asked], count
        )
    else:
        asked = [i for i, each in enumerate(read) if each.known]
        found = candidates.like([read[i] for i in asked], [hidden[i] for i in asked], count)
    for i, answer in zip(asked, found, strict=True):
        answers[i] = answer
    return answers


def _checked(k: int, diversity: float, strategy: Strategy | str, half_life: float) -> Strategy:
    if k < 1:
        raise QueryError(f"k must be at least 1, not {k}.")
    if not 0 <= diversity <= 1:
        raise QueryError(f"diversity must be between 0 and 1, not {diversity:g}.")
    if not half_life > 0:
        raise QueryError(f"The half-life must be above 0 days, not {half_life:g}.")
    try:
        return Strategy(strategy)
    except ValueError:
        names = " or ".join(f"'{each.value}'" for each in Strategy)
        raise QueryError(f"'strategy' is {names}, not {strategy!r}.") from None
