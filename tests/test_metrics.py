from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from mmsearch.errors import SourceError
from mmsearch.retrieval import evaluation
from mmsearch.retrieval.evaluation import Retrieval, evaluate, evaluate_vectors
from mmsearch.retrieval.metrics import (
    first_relevant_rank,
    mean_reciprocal_rank,
    median_rank,
    recall_at,
)
from tests.conftest import ColourEncoder, draw

ranks = arrays(np.int64, st.integers(1, 40), elements=st.integers(1, 10_000))


def slow_rank(scores: list[float], relevant: list[bool]) -> int:
    """The definition: an irrelevant item goes before a relevant one of the same score."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], relevant[i]))
    return next(place for place, i in enumerate(order, 1) if relevant[i])


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_the_best_relevant_item_counts() -> None:
    scores = np.array([[0.9, 0.8, 0.7, 0.6], [0.1, 0.4, 0.2, 0.3]], dtype=np.float32)
    relevant = np.array([[False, True, False, True], [True, False, True, False]])
    assert first_relevant_rank(scores, relevant).tolist() == [2, 3]


def test_ties_count_against_the_query() -> None:
    same = np.full((1, 5), 0.3, dtype=np.float32)
    assert first_relevant_rank(same, np.array([[True] + [False] * 4])).tolist() == [5]
    assert first_relevant_rank(same, np.array([[False] * 4 + [True]])).tolist() == [5]
    assert first_relevant_rank(same, np.array([[True, True, False, True, False]])).tolist() == [3]
    assert first_relevant_rank(same, np.ones((1, 5), dtype=bool)).tolist() == [1]


def test_ranks_need_a_relevant_item_and_one_shape() -> None:
    scores = np.zeros((2, 3), dtype=np.float32)
    with pytest.raises(ValueError, match="at least one relevant"):
        first_relevant_rank(scores, np.array([[True] * 3, [False] * 3]))
    with pytest.raises(ValueError, match="shape"):
        first_relevant_rank(scores, np.ones((3, 2), dtype=bool))


def test_measures_by_hand() -> None:
    found = np.array([1, 2, 5, 11])
    assert recall_at(found, 1) == 100 * 1 / 4
    assert recall_at(found, 5) == 100 * 3 / 4
    assert recall_at(found, 10) == 100 * 3 / 4
    assert recall_at(found, 11) == 100
    assert median_rank(found) == (2 + 5) / 2
    assert mean_reciprocal_rank(found) == pytest.approx((1 / 1 + 1 / 2 + 1 / 5 + 1 / 11) / 4)
    assert Retrieval.from_ranks(found).to_json() == {
        "R@1": 25.0,
        "R@5": 75.0,
        "R@10": 75.0,
        "median_rank": 3.5,
        "mrr": 0.4477,
    }


@given(st.data())
def test_ranks_equal_the_slow_definition(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 8)))
    # Few values, so that ties abound.
    values = st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0])
    scores = data.draw(arrays(np.float32, shape, elements=values))
    relevant = data.draw(arrays(np.bool_, shape))
    relevant[:, data.draw(st.integers(0, shape[1] - 1))] = True
    expected = [slow_rank(*row) for row in zip(scores.tolist(), relevant.tolist(), strict=True)]
    assert first_relevant_rank(scores, relevant).tolist() == expected


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
    assert recall_at(shuffled, 5) == recall_at(found, 5)
    assert median_rank(shuffled) == median_rank(found)
    assert mean_reciprocal_rank(shuffled) == pytest.approx(mean_reciprocal_rank(found))


@given(ranks)
def test_a_better_rank_never_lowers_a_measure(found: NDArray[np.int64]) -> None:
    better = np.maximum(found - 1, 1)
    assert recall_at(better, 5) >= recall_at(found, 5)
    assert median_rank(better) <= median_rank(found)
    assert mean_reciprocal_rank(better) >= mean_reciprocal_rank(found)


def slow_evaluation(
    images: NDArray[np.float32], texts: NDArray[np.float32], image_of: list[int]
) -> tuple[list[int], list[int]]:
    scores = (images.astype(np.float64) @ texts.T.astype(np.float64)).tolist()
    to_image = [
        slow_rank([row[t] for row in scores], [i == right for i in range(len(images))])
        for t, right in enumerate(image_of)
    ]
    to_text = [
        slow_rank(scores[i], [i == right for right in image_of]) for i in sorted(set(image_of))
    ]
    return to_image, to_text


@pytest.mark.parametrize("at_once", [1, 7, 12, 1024])
@pytest.mark.parametrize("seed", range(4))
def test_evaluation_equals_the_slow_one(
    at_once: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "QUERIES_AT_ONCE", at_once)
    rng = np.random.default_rng(seed)
    images = unit(rng.normal(size=(12, 6)))
    # Five captions a picture at most, in no order; some pictures have none.
    image_of = rng.choice(9, size=24)
    texts = unit(images[image_of] + rng.normal(size=(24, 6)))
    to_image, to_text = evaluate_vectors(images, texts, image_of)
    slow_to_image, slow_to_text = slow_evaluation(images, texts, image_of.tolist())
    assert to_image == Retrieval.from_ranks(np.array(slow_to_image))
    assert to_text == Retrieval.from_ranks(np.array(slow_to_text))
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


def test_files_are_evaluated_as_their_vectors_are(
    photos: Path, encoder: ColourEncoder, tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text(
        "path\tcaption\ntrip/black.jpg\tblack\nred.jpg\tred\nred.jpg\ta red one\n"
        "./red.jpg\treddish\ngreen.jpg\tblue\n"
    )
    steps: list[tuple[str, int, int]] = []
    found = evaluate(pairs, photos, model=encoder, progress=lambda *step: steps.append(step))
    assert (found.images, found.captions) == (3, 5)
    assert found.text_to_image.recall[1] == 80
    assert found.image_to_text.recall[1] == pytest.approx(100 * 2 / 3)
    assert [step for step in steps if step[1] == step[2]] == [
        ("pictures", 3, 3),
        ("captions", 5, 5),
    ]
    everything = evaluate(pairs, photos, model=encoder, gallery=True)
    assert everything.images == 6
    assert everything.to_json()["text_to_image"]["R@1"] == 80


def test_a_number_of_pictures_that_fills_its_batches(
    photos: Path, encoder: ColourEncoder, tmp_path: Path
) -> None:
    names = ["red", "green", "trip/blue", "trip/black"]
    rows = [f"{name}.jpg\t{name}\n" for name in names]
    (tmp_path / "pairs.tsv").write_text("path\tcaption\n" + "".join(rows))
    found = evaluate(tmp_path / "pairs.tsv", photos, model=encoder)
    assert found.images == encoder.batch_size == 4
    assert found.text_to_image.recall[1] == found.image_to_text.recall[1] == 100


def test_a_broken_picture_that_nobody_asked_about_is_left_out_of_the_gallery(
    photos: Path, encoder: ColourEncoder
) -> None:
    (photos / "broken.jpg").write_bytes((photos / "red.jpg").read_bytes()[:300])
    (photos / "pairs.tsv").write_text("path\tcaption\nred.jpg\tred\n")
    assert evaluate(photos / "pairs.tsv", photos, model=encoder, gallery=True).images == 6


@pytest.mark.parametrize("name", ["missing.jpg", "a dog on grass " * 300, "."])
def test_a_pair_without_its_picture_is_named(
    name: str, photos: Path, encoder: ColourEncoder, tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text(f"path\tcaption\nred.jpg\tred\n{name}\ta dog\n")
    with pytest.raises(SourceError, match="row 3: there is no picture"):
        evaluate(pairs, photos, model=encoder)


def test_a_broken_picture_stops_the_evaluation(
    photos: Path, encoder: ColourEncoder, tmp_path: Path
) -> None:
    whole = draw(tmp_path / "whole.jpg").read_bytes()
    (photos / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "pairs.tsv").write_text("path\tcaption\nbroken.jpg\ta dog\n")
    with pytest.raises(SourceError, match=r"broken\.jpg"):
        evaluate(photos / "pairs.tsv", photos, model=encoder)
