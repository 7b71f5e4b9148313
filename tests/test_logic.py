"""AND, OR and NOT: the grammar against trees written by hand, probabilities against all cases."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsearch.errors import QueryError
from mmsearch.retrieval.logic import And, Concept, Not, Or, concepts, parse, probability, wanted

A, B, C = Concept("dog"), Concept("a red car"), Concept("night")


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("dog AND a red car", And((A, B))),
        ("dog NOT night", And((A, Not(C)))),
        ("NOT NOT dog", Not(Not(A))),
        ("dog OR a red car AND night", Or((A, And((B, C))))),
        ("(dog OR a red car) night NOT dog", And((Or((A, B)), C, Not(A)))),
        ('dog AND "cats AND dogs"', And((A, Concept("cats AND dogs")))),
        ('"dog" "night" OR a red car', Or((And((A, C)), B))),
        ("((dog)) AND night", And((A, C))),
    ],
)
def test_operators_bind_as_they_should(text, tree):
    assert parse(text) == tree


@pytest.mark.parametrize(
    "text", ["a dog and a cat", "dog (old)", '"dog AND cat"', "ANDROID NOTE", "sand or snow", "("]
)
def test_words_without_operators_are_no_expression(text):
    assert parse(text) is None


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        ("dog AND", 7, "words are expected"),
        ("AND dog", 0, "not 'AND'"),
        ("dog AND (cat OR fox", 8, "never closed"),
        ("dog) AND cat", 3, "no '('"),
        ("dog AND ()", 9, "not ')'"),
        ('dog AND "cat', 8, "quote is never closed"),
        ('dog AND ""', 8, "nothing between"),
        ("NOT", 3, "words are expected"),
    ],
)
def test_errors_point_at_the_place(text, place, problem):
    with pytest.raises(QueryError) as error:
        parse(text)
    first, asked, caret, *_ = str(error.value).split("\n")
    assert problem in first
    assert asked == f"  {text}"
    assert caret.index("^") == place + 2


EXPRESSIONS = st.recursive(
    st.sampled_from([A, B, C]),
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.builds(And, st.lists(inner, min_size=2, max_size=3).map(tuple)),
        st.builds(Or, st.lists(inner, min_size=2, max_size=3).map(tuple)),
    ),
    max_leaves=8,
)


def written(tree):
    match tree:
        case Concept(text):
            return f'"{text}"'
        case Not(part):
            return f"NOT ({written(part)})"
        case And(parts):
            return " AND ".join(f"({written(part)})" for part in parts)
        case Or(parts):
            return " OR ".join(f"({written(part)})" for part in parts)


def true(tree, facts):
    match tree:
        case Concept():
            return facts[tree]
        case Not(part):
            return not true(part, facts)
        case And(parts):
            return all(true(part, facts) for part in parts)
        case Or(parts):
            return any(true(part, facts) for part in parts)


@given(EXPRESSIONS)
def test_what_is_written_is_read_again_and_certain_facts_give_truth(tree):
    again = parse(written(tree)) or tree
    cases = [dict(zip((A, B, C), facts, strict=True)) for facts in product([0, 1], repeat=3)]
    certain = {each: np.array([facts[each] for facts in cases], float) for each in (A, B, C)}
    right = [true(tree, facts) for facts in cases]
    assert probability(again, certain.__getitem__).tolist() == right
    assert concepts(again) == concepts(tree)


@given(EXPRESSIONS, st.sampled_from([A, B, C]), st.floats(0, 1), st.floats(0, 1))
def test_more_of_what_is_wanted_alone_is_never_worse(tree, more, low, high):
    if more in wanted(Not(tree)) or more not in wanted(tree):
        return
    shown = {each: np.full(2, 0.4) for each in (A, B, C)}
    shown[more] = np.array(sorted([low, high]))
    worse, better = probability(tree, shown.__getitem__)
    assert better >= worse - 1e-12


def test_probabilities_by_hand():
    shown = {A: np.array([0.9]), B: np.array([0.5]), C: np.array([0.2])}
    tree = parse("(dog OR a red car) NOT night")
    assert probability(tree, shown.__getitem__)[0] == pytest.approx((1 - 0.1 * 0.5) * 0.8)
