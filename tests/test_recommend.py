"""Recommendation: formulas by hand, answers against a slow way, and what must always hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsearch.errors import QueryError
from mmsearch.indexes.exact import ExactIndex
from mmsearch.retrieval import candidates, recommend
from mmsearch.retrieval.recommend import Recommender, Signals
from mmsearch.retrieval.schema import Basis
from mmsearch.retrieval.taste import best_scores, decayed, rocchio

N, DIM = 300, 8
GENERATOR = np.random.default_rng(5)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


VECTORS = unit(GENERATOR.normal(size=(N, DIM))).astype(np.float16)
# Pictures are often there twice, and some ten times.
VECTORS[100:130] = VECTORS[40:70]
VECTORS[200:240] = VECTORS[7]
IDS = GENERATOR.permutation(np.arange(N) * 3 + 11)
ITEMS = Recommender(IDS, VECTORS)
ROW = {id_: row for row, id_ in enumerate(IDS.tolist())}


def slowly(user, k, strategy, half_life=30.0, exclude_seen=True, among=None):
    """Follow the definitions for one user, everything compared in double precision."""
    rows = VECTORS.astype(np.float64)
    liked = [(id_, 1.0) for id_ in user.like]
    liked += [(id_, 0.5 ** (age / half_life)) for id_, age in user.history]
    if strategy == "average":
        direction = np.zeros(DIM)
        if liked:
            total = sum(weight for _, weight in liked)
            direction += 0.75 * sum(weight * rows[ROW[id_]] for id_, weight in liked) / total
        if user.dislike:
            direction -= 0.15 * sum(rows[ROW[id_]] for id_ in user.dislike) / len(user.dislike)
        scores = rows @ (direction / np.linalg.norm(direction))
    else:
        scores = np.empty(N)
        for i, row in enumerate(rows):
            best = max((weight * (rows[ROW[id_]] @ row) for id_, weight in liked), default=-np.inf)
            worst = max((rows[ROW[id_]] @ row for id_ in user.dislike), default=-np.inf)
            scores[i] = best if best > worst else -2 - worst
    hidden = set(user.dislike)
    if exclude_seen:
        hidden |= {id_ for id_, _ in liked}
    allowed = set(IDS.tolist() if among is None else among) - hidden
    ranked = sorted((-scores[row], id_) for id_, row in ROW.items() if id_ in allowed)
    return [id_ for _, id_ in ranked[:k]], [-score for score, _ in ranked[:k]], scores


def check(found, user, k, strategy, **options):
    ids, expected, scores = slowly(user, k, strategy, **options)
    assert len(found.ids) == len(ids)
    # Scores decide; ids may differ only where scores are equal but for rounding.
    np.testing.assert_allclose(found.scores, expected, atol=2e-6)
    np.testing.assert_allclose([scores[ROW[i]] for i in found.ids.tolist()], expected, atol=2e-6)
    assert len(set(found.ids.tolist())) == len(ids)
    if strategy == "best_score":
        # Rounded nowhere: the order of equal ones is that of ids.
        assert (np.diff(found.scores) <= 0).all()
        tied = np.diff(found.scores) == 0
        assert (np.diff(found.ids)[tied] > 0).all()


some_ids = st.lists(st.sampled_from(IDS.tolist()), max_size=6, unique=True)
ages = st.floats(0, 400)
users = st.builds(
    Signals,
    like=some_ids,
    dislike=some_ids,
    history=st.lists(st.tuples(st.sampled_from(IDS.tolist()), ages), max_size=8),
)


def test_decay_by_hand():
    found = decayed(np.array([0.0, 30.0, 60.0, 15.0]), 30.0)
    np.testing.assert_allclose(found, [1, 1 / 2, 1 / 4, 2**-0.5])
    assert decayed(np.array([7.0]), float("inf")) == 1
    assert decayed(np.array([1e9]), 1.0) > 0


def test_rocchio_by_hand():
    liked = np.array([[1.0, 0, 0], [0, 1, 0]])
    # 0.75 · (1 · a + 3 · b) / 4 - 0.15 · c
    found = rocchio(liked, np.array([1.0, 3.0]), np.array([[0.0, 0, 1]]))
    expected = np.array([0.1875, 0.5625, -0.15])
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected))
    alone = rocchio(liked[:1], np.ones(1), np.empty((0, 3)))
    np.testing.assert_allclose(alone, [1, 0, 0])
    away = rocchio(np.empty((0, 3)), np.empty(0), liked)
    np.testing.assert_allclose(away, [-(0.5**0.5), -(0.5**0.5), 0])
    assert rocchio(np.empty((0, 3)), np.empty(0), np.empty((0, 3))) is None
    opposite = np.array([[1.0, 0, 0], [-1, 0, 0]])
    assert rocchio(opposite, np.ones(2), np.empty((0, 3))) is None


def test_weights_of_long_ago_still_point_somewhere():
    ancient = decayed(np.array([1e6, 1e6]), 1.0)
    found = rocchio(np.eye(2), ancient, np.empty((0, 2)))
    np.testing.assert_allclose(found, [0.5**0.5, 0.5**0.5])


def test_best_scores_by_hand():
    liked = np.array([[0.9, 0.2, 0.5], [0.4, 0.8, 0.5]])
    disliked = np.array([[0.1, 0.3, 0.7]])
    found = best_scores(liked, np.array([1.0, 0.5]), disliked)
    # The third is nearer to what is disliked; the second counts half.
    np.testing.assert_allclose(found, [0.9, 0.4, -2.7])
    np.testing.assert_allclose(
        best_scores(np.empty((0, 3)), np.empty(0), disliked), -2 - disliked[0]
    )


@pytest.mark.parametrize("strategy", ["average", "best_score"])
@given(user=users, k=st.integers(1, 40), exclude_seen=st.booleans())
@settings(max_examples=60, deadline=None)
def test_answers_are_those_of_comparing_everything(strategy, user, k, exclude_seen):
    found = ITEMS.recommend(
        user.like, user.dislike, user.history, k=k, strategy=strategy, exclude_seen=exclude_seen
    )
    if found.basis is Basis.TASTE:
        check(found, user, k, strategy, exclude_seen=exclude_seen)
    hidden = set(user.dislike)
    if exclude_seen:
        hidden |= {*user.like, *(id_ for id_, _ in user.history)}
    assert not hidden & set(found.ids.tolist())
    assert len(found.ids) == min(k, N - len(hidden))


@pytest.mark.parametrize("strategy", ["average", "best_score"])
@pytest.mark.parametrize("diversity", [0.0, 0.4])
@given(many=st.lists(users, max_size=12), among=st.none() | some_ids.map(lambda ids: [*ids, 1]))
@settings(max_examples=40, deadline=None)
def test_a_batch_answers_as_each_alone(strategy, diversity, many, among):
    options = {"k": 5, "strategy": strategy, "diversity": diversity, "among": among}
    together = ITEMS.recommend_many(many, **options)
    assert len(together) == len(many)
    for user, found in zip(many, together, strict=True):
        alone = ITEMS.recommend(user.like, user.dislike, user.history, **options)
        assert alone.ids.tolist() == found.ids.tolist()
        assert alone.scores.tolist() == found.scores.tolist()
        assert alone.basis is found.basis
        if among is not None:
            assert set(found.ids.tolist()) <= set(among)


def test_many_batches_and_deep_histories_change_nothing(monkeypatch):
    generator = np.random.default_rng(0)
    many = [
        Signals(history=[(int(id_), 1.0) for id_ in generator.choice(IDS, size, replace=False)])
        for size in (1, 250, 3, 295, 298, 2, 300, 40)
    ]
    whole = ITEMS.recommend_many(many, k=5)
    monkeypatch.setattr(recommend, "USERS_AT_ONCE", 3)
    monkeypatch.setattr(candidates, "SLACK", 1)
    monkeypatch.setattr(candidates, "ITEMS_AT_ONCE", 7)
    parts = ITEMS.recommend_many(many, k=5)
    for user, one, other in zip(many, whole, parts, strict=True):
        check(one, user, 5, "average")
        assert one.ids.tolist() == other.ids.tolist()
    assert [len(found.ids) for found in whole] == [5, 5, 5, 5, 2, 5, 0, 5]
    for strategy in ("average", "best_score"):
        (found,) = ITEMS.recommend_many([Signals([IDS[7]])], k=60, strategy=strategy)
        check(found, Signals([int(IDS[7])]), 60, strategy)


def test_copies_stand_in_the_order_of_their_ids():
    # Row 7 is there forty times more: they are all as near to row 7 as can be.
    found = ITEMS.recommend(like=[int(IDS[7])], k=40)
    assert found.ids.tolist() == sorted(IDS[200:240].tolist())
    few = ITEMS.recommend(like=[int(IDS[7])], k=3)
    assert few.ids.tolist() == found.ids[:3].tolist()


def test_recent_history_counts_more():
    east, north = unit(np.array([[1.0, 0, 0], [0, 1, 0]]))
    near = unit(np.array([[1.0, 0.1, 0], [0.1, 1, 0], [0, 0, 1]]))
    items = Recommender(range(5), np.stack([east, north, *near]))
    assert items.recommend(history=[(0, 1), (1, 300)]).ids.tolist() == [2, 3, 4]
    assert items.recommend(history=[(0, 300), (1, 1)]).ids.tolist() == [3, 2, 4]
    assert items.recommend(history=[(0, 300), (1, 1)], strategy="best_score").ids[0] == 3
    forever = items.recommend(history=[(0, 300), (1, 1)], half_life=float("inf"))
    assert forever.scores[0] == pytest.approx(forever.scores[1], abs=1e-3)


def test_vectors_of_what_is_no_item_are_liked_too():
    outside = unit(GENERATOR.normal(size=(1, DIM)))[0]
    found = ITEMS.recommend(like=[outside], k=5)
    expected = np.argsort(-(VECTORS.astype(np.float64) @ outside), kind="stable")[:5]
    np.testing.assert_allclose(
        found.scores, (VECTORS.astype(np.float64) @ outside)[expected], atol=2e-6
    )
    both = ITEMS.recommend(like=[outside, int(IDS[3])], dislike=[-outside], k=5)
    assert IDS[3] not in both.ids
    with pytest.raises(QueryError, match="8 numbers and length 1"):
        ITEMS.recommend(like=[2 * outside])
    with pytest.raises(QueryError, match="8 numbers"):
        ITEMS.recommend(like=[outside[:3]])


def test_diversity_spreads_answers():
    liked = [int(IDS[7])]
    same = ITEMS.recommend(like=liked, k=5)
    spread = ITEMS.recommend(like=liked, k=5, diversity=0.5)
    assert len(spread.ids) == 5
    assert same.ids[0] == spread.ids[0]
    assert len(set(np.round(spread.scores, 3))) > len(set(np.round(same.scores, 3)))


def test_cold_start_is_popular_or_representative():
    popularity = np.arange(N) % 50
    popular = Recommender(IDS, VECTORS, popularity=popularity).recommend(k=6)
    assert popular.basis is Basis.POPULAR
    assert popular.scores.tolist() == [49.0] * 6
    assert popular.ids.tolist() == sorted(IDS[popularity == 49].tolist())[:6]

    heaps = unit(GENERATOR.normal(size=(5, 12)))
    of = np.repeat(np.arange(5), (100, 20, 60, 30, 40))
    vectors = unit(heaps[of] + 0.02 * GENERATOR.normal(size=(len(of), 12)))
    found = Recommender(np.arange(len(of)), vectors).recommend(k=5)
    assert found.basis is Basis.REPRESENTATIVE
    assert sorted(of[found.ids].tolist()) == [0, 1, 2, 3, 4]
    assert (np.diff(found.scores) <= 0).all()
    again = Recommender(np.arange(len(of)), vectors).recommend(k=5)
    assert again.ids.tolist() == found.ids.tolist()


def test_cold_start_keeps_k_beyond_its_sample(monkeypatch):
    monkeypatch.setattr(recommend, "SAMPLE", 10)
    found = ITEMS.recommend(k=N + 5)
    assert sorted(found.ids.tolist()) == sorted(IDS.tolist())
    few = ITEMS.recommend(k=4, among=IDS[:7])
    assert len(few.ids) == 4
    assert set(few.ids.tolist()) <= set(IDS[:7].tolist())


def test_a_taste_that_cancels_out_is_none():
    items = Recommender([1, 2, 3], unit(np.array([[1.0, 0], [-1, 0], [0, 1]])))
    found = items.recommend(like=[1, 2])
    assert found.basis is Basis.REPRESENTATIVE
    assert found.ids.tolist() == [3]


def test_unknown_ids_are_named_or_ignored():
    with pytest.raises(QueryError, match="No item has the id 5, 6"):
        ITEMS.recommend(like=[int(IDS[0]), 5], history=[(6, 1.0)])
    first, second = ITEMS.recommend_many([Signals([5], [6]), Signals([int(IDS[0]), 5])], k=3)
    assert first.ignored == (5, 6)
    assert first.basis is Basis.REPRESENTATIVE
    assert second.ignored == (5,)
    assert second.ids.tolist() == ITEMS.recommend([int(IDS[0])], k=3).ids.tolist()


def test_what_cannot_be_asked():
    for arguments, words in (
        ({"k": 0}, "k must be"),
        ({"diversity": -0.1}, "diversity must be"),
        ({"diversity": float("nan")}, "diversity must be"),
        ({"half_life": 0}, "half-life must be above 0"),
        ({"half_life": float("nan")}, "half-life must be above 0"),
        ({"strategy": "worst"}, "'average' or 'best_score'"),
        ({"history": [(int(IDS[0]), -1.0)]}, "an age of -1 days"),
        ({"history": [(int(IDS[0]), float("nan"))]}, "an age of nan"),
    ):
        with pytest.raises(QueryError, match=words):
            ITEMS.recommend(**arguments)
    with pytest.raises(ValueError, match="shape"):
        Recommender([1, 2], VECTORS)
    with pytest.raises(ValueError, match="popularity"):
        Recommender(IDS, VECTORS, popularity=[1.0])
    with pytest.raises(ValueError, match="distinct"):
        Recommender(np.zeros(N), VECTORS)


def test_nobody_and_nothing():
    assert ITEMS.recommend_many([]) == []
    assert len(ITEMS) == N
    empty = Recommender([], np.empty((0, 4), dtype=np.float32))
    assert len(empty.recommend(k=3).ids) == 0
    assert len(ITEMS.recommend([int(IDS[0])], among=[]).ids) == 0


def test_over_an_index_that_is_there_already():
    index = ExactIndex(DIM)
    index.add(IDS, VECTORS.astype(np.float32))
    order = np.argsort(IDS)

    def vectors_of(ids):
        known = IDS[order][np.isin(IDS[order], ids)]
        return known, VECTORS[[ROW[id_] for id_ in known.tolist()]].reshape(-1, DIM)

    over = Recommender.over(index, vectors_of)
    for strategy in ("average", "best_score"):
        options = {"k": 9, "strategy": strategy, "diversity": 0.2}
        signals = [IDS[0], IDS[9]], [IDS[50]], [(int(IDS[70]), 9.0)]
        one, other = over.recommend(*signals, **options), ITEMS.recommend(*signals, **options)
        assert one.ids.tolist() == other.ids.tolist()
        assert one.scores.tolist() == other.scores.tolist()
