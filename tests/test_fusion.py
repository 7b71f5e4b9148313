"""Fusion against formulas worked by hand, and what any fusion must keep."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsearch.retrieval.fusion import calibrated, early, ranks_of, reciprocal_rank, weighted


def test_early_is_the_direction_of_the_weighted_sum():
    vectors = np.array([[1, 0], [0, 1]], dtype=np.float32)
    np.testing.assert_allclose(early(vectors, np.array([3.0, 4.0])), [[0.6, 0.8]], atol=1e-7)
    with pytest.raises(ValueError, match="cancel"):
        early(np.array([[1, 0], [-1, 0]], dtype=np.float32), np.ones(2))


def test_the_weighted_mean():
    scores = np.array([[0.1, 0.5], [0.7, 0.3]])
    np.testing.assert_allclose(weighted(scores, np.array([1.0, 3.0])), [0.55, 0.35])


def test_calibrated_scores_by_hand():
    # The first part's background has mean 2 and deviation 1, the second's mean 10 and deviation 2.
    background = np.array([[1.0, 3.0], [8.0, 12.0]])
    scores = np.array([[4.0, 2.0], [10.0, 16.0]])
    found = calibrated(scores, np.array([3.0, 4.0]), background)
    # z is (2, 0) and (0, 3); the length of the weights is 5.
    np.testing.assert_allclose(found, [6 / 5, 12 / 5])


def test_a_part_that_scores_everything_alike_decides_nothing():
    scores = np.array([[0.5, 0.5], [0.1, 0.2]])
    found = calibrated(scores, np.ones(2), np.array([[0.5, 0.5], [0.1, 0.3]]))
    assert np.isfinite(found).all()
    assert found[1] > found[0]


def test_ranks_and_their_reciprocals_by_hand():
    ranks = ranks_of(np.array([[0.2, 0.9, 0.2], [0.5, 0.4, 0.3]]))
    assert ranks.tolist() == [[2, 1, 2], [1, 2, 3]]
    found = reciprocal_rank(ranks, np.array([1.0, 2.0]))
    np.testing.assert_allclose(found, [1 / 62 + 2 / 61, 1 / 61 + 2 / 62, 1 / 62 + 2 / 63])


numbers = st.floats(-1, 1, width=32)


@given(
    scores=st.lists(st.tuples(numbers, numbers, numbers), min_size=2, max_size=12),
    weights=st.tuples(*[st.floats(0.1, 10)] * 3),
    shift=st.floats(-5, 5),
    stretch=st.floats(0.5, 20),
)
def test_what_is_better_in_every_part_is_better_and_scales_do_not_matter(
    scores, weights, shift, stretch
):
    table, weighing = np.array(scores).T, np.array(weights)
    ahead = table[:, :1] > table[:, 1:2]
    for fused in (
        weighted(table, weighing),
        calibrated(table, weighing, table),
        reciprocal_rank(ranks_of(table), weighing),
    ):
        if ahead.all():
            assert fused[0] >= fused[1]
    # Another scale of one part, as pictures have beside words.
    scaled = table.copy()
    scaled[0] = shift + stretch * table[0]
    if table[0].std() > 1e-3:
        np.testing.assert_allclose(
            calibrated(scaled, weighing, scaled), calibrated(table, weighing, table), atol=1e-4
        )
