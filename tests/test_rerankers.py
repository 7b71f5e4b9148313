from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmsearch.errors import ModelError
from mmsearch.retrieval.media import load_rgb
from mmsearch.retrieval.rerankers import Pair, Reranker, View, load_reranker, reorder

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Brightness(Reranker):
    """The brighter a picture the better; a batch takes `seconds`."""

    name = "brightness"
    batch_size = 4

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.batches: list[int] = []

    def _score(self, batch: Sequence[Pair]) -> NDArray[np.float32]:
        self.batches.append(len(batch))
        time.sleep(self.seconds)
        shown = [np.asarray(pair.view.open(8)).mean() for pair in batch]
        return np.array(shown, dtype=np.float32)


def grey(value: int) -> View:
    return View(value, lambda _: Image.new("RGB", (8, 8), (value,) * 3))


def pairs(views: Sequence[View]) -> list[Pair]:
    return [Pair("a text", view, 0.0) for view in views]


def test_scores_stand_in_the_order_of_the_pairs() -> None:
    values = [9, 200, 7, 30, 31, 5, 90]
    reranker = Brightness()
    found = reranker.rerank(pairs([grey(value) for value in values]))
    assert found.scores.tolist() == values
    assert (found.count, found.unread, reranker.batches) == (7, (), [4, 3])


def test_a_budget_scores_the_first_batch_and_those_that_fit() -> None:
    views = [grey(value) for value in range(12)]
    assert Brightness(0.05).rerank(pairs(views), budget_s=0.0).count == 4
    assert Brightness(0.05).rerank(pairs(views), budget_s=60.0).count == 12
    found = Brightness(0.2).rerank(pairs(views), budget_s=0.3)
    assert found.count == 4  # a second batch would have ended at 0.4
    assert np.isnan(found.scores[4:]).all()


def test_a_picture_that_cannot_be_read_costs_no_other_its_score(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")

    def broken(at_least: int) -> Image.Image:
        return load_rgb(tmp_path / "broken.jpg", at_least=at_least)

    views = [grey(1), View("broken", broken), grey(3)]
    found = Brightness().rerank(pairs(views))
    assert found.scores[[0, 2]].tolist() == [1, 3]
    assert np.isnan(found.scores[1])
    assert found.count == 2
    assert len(found.unread) == 1
    assert "broken.jpg" in found.unread[0]


def test_nothing_to_rerank_is_no_error() -> None:
    found = Brightness().rerank([])
    assert (len(found.scores), found.count) == (0, 0)


@given(st.lists(st.one_of(st.just(float("nan")), st.floats(-5, 5, width=32)), max_size=20))
def test_a_new_order_keeps_everyone_and_those_without_a_score_as_they_stood(
    values: list[float],
) -> None:
    order = reorder(np.array(values, dtype=np.float32)).tolist()
    assert sorted(order) == list(range(len(values)))
    scored = [place for place in order if not np.isnan(values[place])]
    slow = sorted((i for i, v in enumerate(values) if not np.isnan(v)), key=lambda i: -values[i])
    assert order == slow + [i for i, v in enumerate(values) if np.isnan(v)]
    assert order[: len(scored)] == scored


@pytest.mark.parametrize("name", ["slow", "hf", "hf:", "fast:x", "", "cross-encoder"])
def test_an_unknown_reranker_names_those_there_are(name: str) -> None:
    with pytest.raises(ModelError, match="Use 'fast', a folder"):
        load_reranker(name)


def test_a_reranker_of_the_callers_own_is_taken_as_it_is() -> None:
    mine = Brightness()
    assert load_reranker(mine) is mine


def test_an_error_of_another_kind_is_not_swallowed() -> None:
    class Failing(Brightness):
        def _score(self, batch: Sequence[Pair]) -> NDArray[np.float32]:
            raise RuntimeError("a mistake in the program")

    with pytest.raises(RuntimeError, match="mistake"):
        Failing().rerank(pairs([grey(0)]))
