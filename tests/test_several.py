import math
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from mmsearch.retrieval.schema import Hit, Query, QueryPart, Results
from mmsearch.retrieval.several import merged


def results(rows, *, model="m@1", match=True):
    hits = tuple(
        Hit(rank, 100 + rank, f"{rank}.jpg", score, match=p if match else None)
        for rank, (score, p) in enumerate(rows, 1)
    )
    return Results(Query((QueryPart("q"),)), Path("x"), model, hits, True, 1.0, 10)


def places(found):
    return [(each.library, each.hit.rank) for each in found]


def test_probabilities_decide_whatever_the_models():
    answers = {
        "a": results([(0.9, 0.5), (0.8, 0.3)]),
        "b": results([(0.1, 0.7), (0.05, 0.4)], model="other@1"),
    }
    found = merged(answers)
    assert places(found) == [("b", 1), ("a", 1), ("b", 2), ("a", 2)]
    assert [each.rank for each in found] == [1, 2, 3, 4]
    assert places(merged(answers, 2)) == [("b", 1), ("a", 1)]


def test_scores_decide_where_there_is_one_model_and_no_probability():
    answers = {
        "a": results([(0.9, 0), (0.2, 0)], match=False),
        "b": results([(0.5, 0), (0.1, 0)], match=False),
    }
    assert places(merged(answers)) == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]


def test_different_models_without_probabilities_take_turns():
    answers = {
        "a": results([(0.9, 0), (0.8, 0), (0.7, 0)], match=False),
        "b": results([(0.1, 0)], model="other@1", match=False),
    }
    assert places(merged(answers)) == [("a", 1), ("b", 1), ("a", 2), ("a", 3)]


def test_what_was_not_compared_takes_turns():
    answers = {name: results([(math.nan, 0)] * 2, match=False) for name in "ab"}
    assert places(merged(answers)) == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]


def test_one_library_keeps_its_ranks():
    page = results([(0.9, 0.5), (0.8, 0.3)])
    assert merged({"a": page})[0].rank == 1


@given(
    st.dictionaries(
        st.sampled_from("abc"), st.lists(st.floats(0, 1), max_size=6), min_size=2, max_size=3
    )
)
def test_the_order_of_each_library_is_kept_and_nothing_is_lost(rows):
    answers = {name: results([(0.5, p) for p in ps]) for name, ps in rows.items()}
    found = places(merged(answers))
    assert len(found) == sum(map(len, rows.values()))
    for name, ps in rows.items():
        assert [rank for library, rank in found if library == name] == [*range(1, len(ps) + 1)]
