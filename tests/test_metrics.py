from __future__ import annotations

import doctest
from collections import Counter
from fractions import Fraction
from statistics import median
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from mmsearch.retrieval import bootstrap, ranking
from mmsearch.retrieval.bootstrap import draws, percentile_interval, resample
from mmsearch.retrieval.metrics import mean_reciprocal_rank, measures, median_rank, recall_at
from mmsearch.retrieval.quality import Sampling, evaluate_vectors, summarise
from mmsearch.retrieval.ranking import kth_best_scores, pair_scores, ranks_both_ways

ranks = arrays(np.int64, st.integers(1, 40), elements=st.integers(1, 10_000))


def slow_rank(scores: list[Fraction], relevant: list[bool]) -> int:
    """The definition: an irrelevant item goes before a relevant one of the same score."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], relevant[i]))
    return next(place for place, i in enumerate(order, 1) if relevant[i])


def exact_scores(texts: NDArray, images: NDArray) -> list[list[Fraction]]:
    """The whole matrix, without any floating point: coordinates as whole numbers of 2⁻²⁴."""
    left, right = (
        [[round(float(x) * 2**24) for x in row] for row in rows] for rows in (texts, images)
    )
    return [
        [Fraction(sum(x * y for x, y in zip(a, b, strict=True)), 2**48) for b in right]
        for a in left
    ]


def slow_ranks(texts: NDArray, images: NDArray, image_of: list[int]) -> tuple[list[int], list[int]]:
    scores = exact_scores(texts, images)
    to_image = [
        slow_rank(scores[t], [i == right for i in range(len(images))])
        for t, right in enumerate(image_of)
    ]
    to_text = [
        slow_rank([row[i] for row in scores], [i == right for right in image_of])
        for i in sorted(set(image_of))
    ]
    return to_image, to_text


def in_blocks(height: int, width: int):
    return mock.patch.object(ranking, "BLOCK", (height, width))


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def retrieval(found: NDArray[np.int64]):
    return summarise([(found, np.arange(len(found)))], Sampling(resamples=0))


def test_measures_by_hand() -> None:
    found = np.array([1, 2, 5, 11])
    assert recall_at(found, 1) == 100 * 1 / 4
    assert recall_at(found, 5) == 100 * 3 / 4
    assert recall_at(found, 10) == 100 * 3 / 4
    assert recall_at(found, 11) == 100
    assert median_rank(found) == (2 + 5) / 2
    assert mean_reciprocal_rank(found) == pytest.approx((1 / 1 + 1 / 2 + 1 / 5 + 1 / 11) / 4)
    assert retrieval(found).to_json() == {
        "R@1": 25.0,
        "R@5": 75.0,
        "R@10": 75.0,
        "median_rank": 3.5,
        "mrr": 0.4477,
    }


@given(ranks)
def test_measures_stay_in_their_ranges(found: NDArray[np.int64]) -> None:
    recalls = [recall_at(found, k) for k in (1, 5, 10, 10_000)]
    assert recalls == sorted(recalls)
    assert recalls[-1] == 100
    assert found.min() <= median_rank(found) <= found.max()
    assert 1 / found.max() - 1e-12 <= mean_reciprocal_rank(found) <= 1
    assert mean_reciprocal_rank(found) >= recalls[0] / 100 - 1e-12


@given(ranks, st.randoms())
def test_measures_do_not_depend_on_the_order_of_queries(found: NDArray[np.int64], chance) -> None:
    shuffled = np.array(chance.sample(found.tolist(), len(found)))
    assert measures(shuffled) == pytest.approx(measures(found))


@given(ranks)
def test_a_better_rank_never_lowers_a_measure(found: NDArray[np.int64]) -> None:
    better = np.maximum(found - 1, 1)
    assert recall_at(better, 5) >= recall_at(found, 5)
    assert median_rank(better) <= median_rank(found)
    assert mean_reciprocal_rank(better) >= mean_reciprocal_rank(found)


def test_ties_count_against_the_query() -> None:
    images = np.float32([[0.6, 0.8], [0.6, 0.8], [1, 0], [0.6, 0.8]])
    texts = np.float32([[0.6, 0.8], [0.6, 0.8], [0, 1]])
    # Three equal pictures: each text's own comes last of them. Picture 0 is as near to its own
    # text as to the one of picture 1; picture 2 has only a text that another picture likes more.
    to_image, to_text = ranks_both_ways(texts, images, np.array([0, 1, 2]))
    assert to_image.tolist() == [3, 3, 4]
    assert to_text.tolist() == [2, 2, 3]
    # Both of a picture's texts share the best score: neither stands in the other's way.
    assert ranks_both_ways(texts[:2], images, np.array([0, 0]))[1].tolist() == [1]


coordinates = st.sampled_from([-1.0, -0.6, 0.0, 0.1, 0.6, 1 / 3])


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_ranks_equal_the_whole_matrix_for_every_block_size(data: st.DataObject) -> None:
    n, m, dim = (data.draw(st.integers(1, top)) for top in (7, 9, 4))
    precision = data.draw(st.sampled_from([np.float16, np.float32]))
    # Few values, so that ties abound.
    images = data.draw(arrays(np.float64, (n, dim), elements=coordinates)).astype(precision)
    texts = data.draw(arrays(np.float64, (m, dim), elements=coordinates)).astype(precision)
    image_of = data.draw(arrays(np.int64, m, elements=st.integers(0, n - 1)))
    with in_blocks(data.draw(st.integers(1, 10)), data.draw(st.integers(1, 8))):
        to_image, to_text = ranks_both_ways(texts, images, image_of)
    assert (to_image.tolist(), to_text.tolist()) == slow_ranks(texts, images, image_of.tolist())


@pytest.mark.parametrize("block", [(1, 1), (3, 7), (16, 5), (40, 33), (64, 64), (1024, 4096)])
def test_equal_pictures_tie_wherever_they_stand(block: tuple[int, int]) -> None:
    """In float32 and through BLAS, the last bits of equal pairs differ from place to place."""
    rng = np.random.default_rng(3)
    distinct = unit(rng.normal(size=(13, 48)))
    images = distinct[np.arange(39) % 13]
    texts = unit(distinct[rng.choice(13, 50)] + 0.2 * rng.normal(size=(50, 48)))
    image_of = rng.choice(39, size=50)
    with in_blocks(*block):
        to_image, to_text = ranks_both_ways(texts, images, image_of)
    assert (to_image.tolist(), to_text.tolist()) == slow_ranks(texts, images, image_of.tolist())
    assert set(to_image % 3) == {0}


@pytest.mark.parametrize("seed", range(3))
def test_evaluation_equals_the_slow_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = unit(rng.normal(size=(12, 6)))
    # Five captions a picture at most, in no order; some pictures have none.
    image_of = rng.choice(9, size=24)
    texts = unit(images[image_of] + rng.normal(size=(24, 6)))
    to_image, to_text = evaluate_vectors(images, texts, image_of)
    slow_to_image, slow_to_text = slow_ranks(texts, images, image_of.tolist())
    assert to_image == retrieval(np.array(slow_to_image))
    assert to_text == retrieval(np.array(slow_to_text))
    assert 1 < to_image.median_rank < 12


def test_evaluation_by_hand() -> None:
    images = np.eye(3, dtype=np.float32)
    texts = unit(np.array([[1, 0, 0.1], [0.6, 0.5, 0.1], [0.2, 0.1, 1]]))
    # The second text is of picture 1, but nearer to picture 0; picture 2 has none; the third is
    # of picture 0 and ranks it second.
    to_image, to_text = evaluate_vectors(images, texts, np.array([0, 1, 0]))
    assert to_image.recall == pytest.approx({1: 100 * 1 / 3, 5: 100, 10: 100})
    assert to_image.mrr == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert (to_text.recall[1], to_text.mrr, to_text.median_rank) == (100, 1, 1)


def test_a_model_that_says_the_same_of_everything_gets_no_credit() -> None:
    same = np.tile(np.float32([1, 0]), (10, 1))
    to_image, to_text = evaluate_vectors(same, same, np.arange(10))
    assert (to_image.median_rank, to_text.median_rank) == (10, 10)
    assert (to_image.recall[1], to_image.recall[10]) == (0, 100)


def test_pictures_without_captions_can_only_make_it_harder() -> None:
    rng = np.random.default_rng(5)
    images, texts = unit(rng.normal(size=(30, 8))), unit(rng.normal(size=(10, 8)))
    few, _ = evaluate_vectors(images[:10], texts, np.arange(10))
    many, of_image = evaluate_vectors(images, texts, np.arange(10))
    assert many.mrr < few.mrr
    assert of_image == evaluate_vectors(images[:10], texts, np.arange(10))[1]


def test_half_precision_is_taken_as_it_is() -> None:
    rng = np.random.default_rng(6)
    images, texts = (unit(rng.normal(size=(20, 8))).astype(np.float16) for _ in range(2))
    image_of = np.arange(20)
    wide = evaluate_vectors(images.astype(np.float32), texts.astype(np.float32), image_of)
    assert evaluate_vectors(images, texts, image_of) == wide


def test_progress_ends_with_every_text() -> None:
    steps: list[tuple[int, int]] = []
    vectors = unit(np.random.default_rng(0).normal(size=(10, 4)))
    with in_blocks(3, 4):
        evaluate_vectors(
            vectors, vectors, np.arange(10), Sampling(2, 0), lambda *step: steps.append(step)
        )
    assert steps == [(3, 10), (5, 10), (8, 10), (10, 10)]


@pytest.mark.parametrize("block", [(1, 1), (4, 3), (1024, 4096)])
def test_the_kth_best_score_is_that_of_a_full_sort(block: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    queries, items = unit(rng.normal(size=(9, 5))), unit(rng.normal(size=(11, 5)))
    whole = np.array(exact_scores(queries, items), dtype=np.float64)
    with in_blocks(*block):
        for k in (1, 4, 11, 20):
            assert np.array_equal(
                kth_best_scores(queries, items, k), np.sort(whole, axis=1)[:, -min(k, 11)]
            )
        chosen = rng.integers(0, 11, size=(9, 3))
        scores = pair_scores(queries, items, chosen)
        assert np.array_equal(scores, np.take_along_axis(whole, chosen, axis=1))
        assert np.array_equal(pair_scores(queries, items, chosen[:, 0]), scores[:, 0])


def test_folds_are_measured_apart_and_averaged() -> None:
    rng = np.random.default_rng(4)
    images = unit(rng.normal(size=(20, 4)))
    image_of = np.repeat(np.arange(20), 2)[::-1].copy()
    texts = unit(images[image_of] + rng.normal(size=(40, 4)))
    both = evaluate_vectors(images, texts, image_of, Sampling(folds=2, resamples=50))
    halves = []
    for start in (0, 10):
        mine = (image_of >= start) & (image_of < start + 10)
        halves.append(
            evaluate_vectors(images[start : start + 10], texts[mine], image_of[mine] - start)
        )
    for direction in (0, 1):
        apart = [half[direction] for half in halves]
        assert both[direction].mrr == pytest.approx((apart[0].mrr + apart[1].mrr) / 2)
        for k in (1, 5, 10):
            mean = (apart[0].recall[k] + apart[1].recall[k]) / 2
            assert both[direction].recall[k] == pytest.approx(mean)
            low, high = both[direction].confidence[f"R@{k}"]
            assert low <= mean <= high
    with pytest.raises(ValueError, match="leave one empty"):
        evaluate_vectors(images, texts[:20], image_of[:20], Sampling(folds=2, resamples=0))


clustered = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=5), min_size=1, max_size=8)


@settings(deadline=None)
@given(clustered, st.integers(0, 2**32), st.randoms())
def test_the_bootstrap_equals_a_slow_one_with_the_same_draws(
    pictures: list[list[int]], seed: int, chance
) -> None:
    rows = [(rank, i) for i, of_picture in enumerate(pictures) for rank in of_picture]
    chance.shuffle(rows)
    found, cluster = (np.array(column) for column in zip(*rows, strict=True))
    fast = resample(found, cluster, resamples=5, seed=seed)
    for row, counts in zip(fast.tolist(), draws(len(pictures), 5, seed), strict=True):
        assert counts.sum() == len(pictures)
        drawn = [
            rank
            for count, of_picture in zip(counts.tolist(), pictures, strict=True)
            for rank in of_picture * count
        ]
        assert row == pytest.approx(
            [
                *(100 * sum(rank <= k for rank in drawn) / len(drawn) for k in (1, 5, 10)),
                median(drawn),
                sum(1 / rank for rank in drawn) / len(drawn),
            ]
        )


def test_every_picture_is_drawn_as_often_as_any_other() -> None:
    counts = np.array(list(draws(4, 20_000, 0)))
    assert counts.mean(axis=0) == pytest.approx([1, 1, 1, 1], abs=0.03)
    # A resample of four holds a given one 0, 1, 2 … times by the binomial law of 4 and 1/4.
    often = Counter(counts[:, 0].tolist())
    assert often[0] / 20_000 == pytest.approx(0.75**4, abs=0.01)
    assert often[4] / 20_000 == pytest.approx(0.25**4, abs=0.002)


def test_intervals_hold_the_truth_as_often_as_they_say_where_captions_depend() -> None:
    """Of 60 pictures each is found by all of its 5 captions or by none: truly half of them."""
    rng = np.random.default_rng(0)
    held = Counter()
    for seed in range(200):
        found = np.repeat(rng.choice([1, 20], size=60), 5)
        for name, cluster in (("pictures", np.repeat(np.arange(60), 5)), ("captions", None)):
            cluster = np.arange(300) if cluster is None else cluster
            values = resample(found, cluster, resamples=200, seed=seed)
            low, high = percentile_interval(values)[:, 0]
            held[name] += low <= 50 <= high
    assert 0.90 <= held["pictures"] / 200 <= 0.99
    # What resampling captions one by one would have promised as 95 %.
    assert held["captions"] / 200 < 0.75


def test_intervals_come_from_the_seed_and_surround_the_figures() -> None:
    rng = np.random.default_rng(2)
    images = unit(rng.normal(size=(50, 8)))
    image_of = np.repeat(np.arange(50), 3)
    texts = unit(images[image_of] + rng.normal(size=(150, 8)))
    first, again, other = (
        evaluate_vectors(images, texts, image_of, Sampling(seed=seed, resamples=200))
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    for way in first:
        values = way.to_json()
        assert set(values["confidence"]) == set(values) - {"confidence"}
        for name, (low, high) in values["confidence"].items():
            assert low <= values[name] <= high


def test_the_example_of_an_interval_is_true() -> None:
    assert doctest.testmod(bootstrap) == (0, 1)


def test_one_pair_alone_works() -> None:
    one = np.float32([[1, 0]])
    for way in evaluate_vectors(one, one, np.array([0]), Sampling()):
        assert (way.recall[1], way.median_rank, way.mrr) == (100, 1, 1)
        assert set(way.confidence.values()) == {(100.0, 100.0), (1.0, 1.0)}
