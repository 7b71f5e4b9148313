"""What a reranker gains, beside an oracle that ranks everything by itself, slowly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import mmsearch
from mmsearch.errors import MediaError, ModelError, QueryError
from mmsearch.retrieval.evaluation import evaluate
from mmsearch.retrieval.library_evaluation import evaluate_library, evaluate_pairs_in_library
from mmsearch.retrieval.quality import Sampling, rank_vectors
from mmsearch.retrieval.ranking import best_items, exact_scores
from mmsearch.retrieval.rerank_quality import SecondLook, gain, rank_after
from mmsearch.retrieval.rerankers import Pair, Reranker, View
from tests.conftest import ColourEncoder
from tests.test_reranking import Darkness, asked, indexed, stand_in

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["indexed", "stand_in"]

NAN = float("nan")


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


class Table(Reranker):
    """Says of text i and picture j what stands in a table, NaN included."""

    name = "table"
    batch_size = 3

    def __init__(self, table: NDArray[np.float32]) -> None:
        self.table = table
        self.calls: list[list[tuple[int, int]]] = []
        self.similar: dict[tuple[int, int], float] = {}

    def rerank(self, pairs: Sequence[Pair], *, budget_s: float | None = None):
        self.calls.append([(int(pair.text), int(pair.view.key)) for pair in pairs])
        self.similar |= dict(zip(self.calls[-1], [pair.similarity for pair in pairs], strict=True))
        return super().rerank(pairs, budget_s=budget_s)

    def _score(self, batch: Sequence[Pair]) -> NDArray[np.float32]:
        told = [self.table[int(pair.text), int(pair.view.key)] for pair in batch]
        if len(batch) > 1 and np.isnan(told).any():
            raise MediaError("damaged", "one of them")
        if np.isnan(told).any():
            raise MediaError("damaged", f"picture {batch[0].view.key}")
        return np.array(told, dtype=np.float32)


def numbered(count: int) -> list[View]:
    return [View(i, lambda _: Image.new("RGB", (8, 8))) for i in range(count)]


def slow_rank(cosines: list[float], told: list[float], right: list[bool], depth: int) -> int:
    """Rank from 1 of the first right answer, by sorting twice as the definition says."""
    first = sorted(range(len(cosines)), key=lambda j: (-cosines[j], right[j], j))
    head, rest = first[:depth], first[depth:]
    scored = [j for j in head if not np.isnan(told[j])]
    silent = [j for j in head if np.isnan(told[j])]
    order = sorted(scored, key=lambda j: (-told[j], right[j])) + silent + rest
    return 1 + next(place for place, j in enumerate(order) if right[j])


@pytest.mark.parametrize(("seed", "folds", "depth"), [(0, 1, 4), (1, 1, 50), (2, 3, 3), (3, 2, 1)])
def test_ranks_are_those_of_an_oracle(seed: int, folds: int, depth: int) -> None:
    generator = np.random.default_rng(seed)
    images = unit(generator.normal(size=(12, 5)))
    images[3] = images[2]  # equal vectors tie
    image_of = generator.permutation(np.repeat(np.arange(11), 2))  # one is asked nothing
    texts = unit(images[image_of] + generator.normal(size=(22, 5)))
    texts[5] = texts[9]
    # Few different scores, so that these tie as well, and a picture that cannot be read.
    table = generator.integers(0, 4, (22, 12)).astype(np.float32)
    table[:, 7] = NAN
    sampling = Sampling(folds=folds, resamples=50)
    before = rank_vectors(images, texts, image_of, folds)
    reranker = Table(table)
    look = SecondLook(reranker, depth, [str(i) for i in range(22)], numbered(12))
    steps: list[tuple[int, int]] = []
    found = look.measure(
        images, texts, image_of, before, sampling, lambda *step: steps.append(step)
    )
    cosines = exact_scores(texts, images)
    to_image, to_text = [], []
    for part in np.array_split(np.arange(12), folds):
        mine = [i for i in range(22) if image_of[i] in part]
        to_image.append(
            [
                slow_rank(
                    cosines[i, part].tolist(),
                    table[i, part].tolist(),
                    (part == image_of[i]).tolist(),
                    depth,
                )
                for i in mine
            ]
        )
        to_text.append(
            [
                slow_rank(
                    cosines[mine, j].tolist(),
                    table[mine, j].tolist(),
                    (image_of[mine] == j).tolist(),
                    depth,
                )
                for j in part
                if j in image_of
            ]
        )
    for way, slow in ((found.text_to_image, to_image), (found.image_to_text, to_text)):
        for k in (1, 5, 10):
            share = np.mean([100 * np.mean(np.array(ranks) <= k) for ranks in slow])
            assert way.recall[k] == pytest.approx(share)
        assert way.mrr == pytest.approx(np.mean([np.mean(1 / np.array(ranks)) for ranks in slow]))
    # One call a question; those whose right answers are beyond the depth are not asked.
    reached = sum(int((ranks <= depth).sum()) for way in before for ranks, _ in way)
    assert len(reranker.calls) == reached
    assert all(len(call) <= depth for call in reranker.calls)
    for (text, picture), similar in reranker.similar.items():
        assert similar == pytest.approx(cosines[text, picture])
    total = sum(len(ranks) for way in before for ranks, _ in way)
    assert steps[-1] == (total, total)
    assert found.unreadable == any(7 in (j for _, j in call) for call in reranker.calls)
    assert found.pairs == sum(j != 7 for call in reranker.calls for _, j in call)


@given(st.data())
def test_ranks_after_are_those_of_a_sort(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 12))
    told = data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, NAN]), min_size=size, max_size=size))
    right = data.draw(st.lists(st.booleans(), min_size=size, max_size=size).filter(any))
    # As they stand: the first stage's scores fall, so that nothing ties there.
    expected = slow_rank([-float(i) for i in range(size)], told, right, size)
    assert rank_after(np.array(told, dtype=np.float32), np.array(right)) == expected


def test_the_best_items_put_right_ones_last_among_equals(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(4)
    items = unit(generator.normal(size=(30, 4)))[generator.integers(0, 12, 30)]
    queries = unit(generator.normal(size=(9, 4)))
    label, of_item = generator.integers(0, 6, 9), generator.integers(0, 6, 30)
    scores = exact_scores(queries, items)
    slow = [
        sorted(range(30), key=lambda j: (-scores[i, j], of_item[j] == label[i], j))[:7]
        for i in range(9)
    ]
    assert best_items(queries, items, 7, label, of_item).tolist() == slow
    # Whatever the size of a block.
    monkeypatch.setattr("mmsearch.retrieval.ranking.BLOCK", (2, 30))
    assert best_items(queries, items, 7, label, of_item).tolist() == slow
    assert best_items(queries, items, 99, label, of_item).shape == (9, 30)


def test_gains_are_paired() -> None:
    generator = np.random.default_rng(6)
    owners = np.repeat(np.arange(40), 5)
    before = generator.integers(1, 30, 200)
    same = gain([(before, owners)], [(before.copy(), owners)], Sampling(resamples=200))
    # The same ranks twice gain nothing, for certain: only pairing can say so.
    assert set(same.values.values()) == {0.0}
    assert set(same.confidence.values()) == {(0.0, 0.0)}
    # By hand: two of four questions, each about a picture of its own, come first afterwards.
    first, second = np.array([1, 2, 4, 4]), np.array([1, 1, 1, 4])
    told = gain([(first, np.arange(4))], [(second, np.arange(4))], Sampling(resamples=2000))
    assert told.values["R@1"] == 50.0
    assert told.values["mrr"] == pytest.approx((1 - 1 / 2 + 1 - 1 / 4) / 4)
    low, high = told.confidence["R@1"]
    assert 0.0 <= low < 50 < high <= 100
    assert gain([(first, np.arange(4))], [(second, np.arange(4))], Sampling(resamples=0)).to_json()[
        "R@1"
    ] == 50.0  # fmt: skip


class Kept(Darkness):
    """Keeps the grey of a picture, and counts how often one is read."""

    decode_size = 16

    def __init__(self) -> None:
        super().__init__()
        self.read: list[tuple[int, int]] = []

    def regions(self, images: Sequence[Image.Image]) -> list[NDArray[np.uint8]] | None:
        assert len(images) <= self.batch_size
        self.read += [image.size for image in images]
        return [np.asarray(image.convert("L")) for image in images]

    def _score(self, batch: Sequence[Pair]) -> NDArray[np.float32]:
        grey = []
        for pair in batch:
            assert pair.view.regions is not None
            grey.append(pair.view.regions.mean())
        return -np.array(grey, dtype=np.float32)


PAIRS = (
    "path\tcaption\ntrip/black.jpg\tblack\nred.jpg\tred\nred.jpg\ta red one\n"
    "red.jpg\tsomething\ngreen.jpg\tblue\n"
)


def test_files_are_read_once_where_the_reranker_keeps_what_it_saw(
    photos: Path, encoder: ColourEncoder, tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text(PAIRS)
    stages: set[str] = set()
    kept = Kept()
    found = evaluate(
        pairs, photos, model=encoder, rerank=kept, progress=lambda stage, *_: stages.add(stage)
    )
    assert "reranking" in stages
    assert len(kept.read) == 3
    assert found.reranked is not None
    assert found.reranked.depth == 50
    plain = evaluate(pairs, photos, model=encoder)
    assert (plain.text_to_image, plain.image_to_text) == (found.text_to_image, found.image_to_text)
    assert plain.reranked is None
    assert "reranked" not in plain.to_json()
    # Black comes first whatever is asked: one of five captions finds its picture.
    assert found.reranked.text_to_image.recall[1] == 20.0
    told = found.to_json()["reranked"]
    assert set(told) == {"model", "depth", "text_to_image", "image_to_text", "pairs", "seconds",
                         "unreadable"}  # fmt: skip
    before, after = found.to_json()["text_to_image"]["R@1"], told["text_to_image"]["R@1"]
    assert told["text_to_image"]["gain"]["R@1"] == pytest.approx(after - before)
    low, high = told["text_to_image"]["gain"]["confidence"]["R@1"]
    assert low <= after - before <= high
    # Read again for each question, the same comes out.
    again = evaluate(pairs, photos, model=encoder, rerank=Darkness())
    assert again.reranked is not None
    assert again.reranked.text_to_image == found.reranked.text_to_image


def test_a_broken_picture_of_the_gallery_moves_no_other_one(
    photos: Path, encoder: ColourEncoder, tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text(PAIRS)
    whole = evaluate(pairs, photos, model=encoder, gallery=True, rerank=Kept())
    (photos / "a-broken.jpg").write_bytes(b"no picture")
    found = evaluate(pairs, photos, model=encoder, gallery=True, rerank=Kept())
    assert found.images == 6
    assert whole.reranked is not None
    assert found.reranked is not None
    assert found.reranked.unreadable == 0
    assert found.reranked.image_to_text == whole.reranked.image_to_text
    assert found.reranked.text_to_image == whole.reranked.text_to_image


def test_a_library_is_measured_by_its_files(photos: Path, encoder: ColourEncoder) -> None:
    (photos / "pairs.tsv").write_text(PAIRS)
    mmsearch.index(photos, model=encoder, captions=photos / "pairs.tsv")
    direct = evaluate(photos / "pairs.tsv", photos, model=encoder, gallery=True, rerank=Darkness())
    own = evaluate_library(photos, model=encoder, rerank=Darkness(), rerank_depth=4)
    by_pairs = evaluate_pairs_in_library(
        photos, photos / "pairs.tsv", model=encoder, gallery=True, rerank=Darkness()
    )
    some = evaluate_pairs_in_library(photos, photos / "pairs.tsv", model=encoder, rerank=Darkness())
    few = evaluate(photos / "pairs.tsv", photos, model=encoder, rerank=Darkness())
    for one in (direct, own, by_pairs, some, few):
        assert one.reranked is not None
    assert own.reranked.depth == 4
    assert by_pairs.reranked.text_to_image.recall == direct.reranked.text_to_image.recall
    assert by_pairs.reranked.image_to_text.recall == direct.reranked.image_to_text.recall
    assert some.reranked.text_to_image.recall == few.reranked.text_to_image.recall
    assert some.reranked.image_to_text.recall == few.reranked.image_to_text.recall


def test_a_library_without_its_files_is_measured_as_it_stood(
    photos: Path, encoder: ColourEncoder
) -> None:
    (photos / "pairs.tsv").write_text(PAIRS)
    mmsearch.index(photos, model=encoder, captions=photos / "pairs.tsv")
    for picture in photos.rglob("*.jpg"):
        picture.unlink()
    found = evaluate_library(photos, model=encoder, rerank=Darkness())
    assert found.reranked is not None
    assert found.reranked.pairs == 0
    assert found.reranked.unreadable == 6
    assert found.reranked.text_to_image == found.text_to_image


def test_what_cannot_be_measured_is_refused_before_anything_is_embedded(
    photos: Path, encoder: ColourEncoder, tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text(PAIRS)
    with pytest.raises(ModelError, match="no reranker"):
        evaluate(pairs, photos, model=encoder, rerank="slow")
    with pytest.raises(QueryError, match="depth"):
        evaluate(pairs, photos, model=encoder, rerank=Darkness(), rerank_depth=0)
    assert encoder.prepared == 0


def test_the_command_shows_both(indexed: Path, stand_in: list[Darkness], tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("path\tcaption\ncard-red.jpg\ta red card\ncard-blue.jpg\ta blue card\n")
    there = (pairs, "--images", indexed, "--rerank", "stand-in:0", "--rerank-depth", 2)
    told = json.loads(asked("evaluate", *there, "--json").stdout)["reranked"]
    assert (told["model"], told["depth"]) == ("darkness", 2)
    assert told["text_to_image"]["R@1"] == 50.0
    lines = asked("evaluate", *there).stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [
        "text→image", "reranked", "gain", "image→text", "reranked", "gain", "darkness",
    ]  # fmt: skip
    own = json.loads(asked("evaluate", "-L", indexed, *there[3:], "--json").stdout)
    assert own["reranked"]["pairs"] > 0
    assert "--rerank NAME" in asked("evaluate", "--rerank-depth", 2, code=2).stderr
