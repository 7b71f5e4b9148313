"""The adapter's mathematics, against torch, finite differences and hand-made spaces."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mmsearch.retrieval.adapter import Adapter, Captioned, _batch, fit_gate, info_nce, train
from mmsearch.retrieval.everyday import everyday_sentences


def units(draw: np.random.Generator, n: int, dim: int) -> NDArray[np.float32]:
    rows = draw.normal(size=(n, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def pairing(draw: np.random.Generator, n: int, m: int) -> NDArray[np.bool_]:
    """Several positives for some, none for others."""
    positives = draw.random((n, m)) < 0.2
    positives[0] = False
    positives[:, 1] = False
    return positives


@pytest.mark.parametrize("scale", [1.0, 20.0, 100.0])
def test_the_loss_and_its_slope_are_those_of_the_trainer(scale: float) -> None:
    torch = pytest.importorskip("torch")
    from mmsearch.retrieval import losses

    draw = np.random.default_rng(0)
    images, texts = units(draw, 7, 5), units(draw, 9, 5)
    positives = pairing(draw, 7, 9)
    theirs = torch.tensor(texts, requires_grad=True)
    expected = losses.info_nce(
        torch.tensor(images),
        theirs,
        torch.tensor(positives),
        torch.tensor(float(np.log(scale))),
    )
    expected.backward()
    loss, slope = info_nce(images, texts, positives, scale)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert np.allclose(slope, theirs.grad.numpy(), atol=1e-5 * scale)


def test_the_slope_is_what_small_changes_of_the_texts_do() -> None:
    draw = np.random.default_rng(1)
    images, texts = units(draw, 6, 4), units(draw, 5, 4)
    positives = pairing(draw, 6, 5)
    _, slope = info_nce(images, texts, positives, 5.0)
    for row, column in ((0, 0), (2, 3), (4, 1)):
        change = np.zeros_like(texts)
        change[row, column] = 1e-2
        up, _ = info_nce(images, texts + change, positives, 5.0)
        down, _ = info_nce(images, texts - change, positives, 5.0)
        assert (up - down) / 2e-2 == pytest.approx(slope[row, column], abs=2e-4)


def test_the_loss_by_hand() -> None:
    # One right and one wrong answer each way, cosines 1 and 0, scale 1: log(1 + exp(0 - 1)).
    eye = np.eye(2, dtype=np.float32)
    loss, _ = info_nce(eye, eye, np.eye(2, dtype=bool), 1.0)
    assert loss == pytest.approx(np.log(1 + np.exp(-1)))


def test_positives_are_never_negatives_of_each_other() -> None:
    eye = np.eye(2, dtype=np.float32)
    loss, slope = info_nce(eye, eye, np.ones((2, 2), dtype=bool), 20.0)
    assert loss == 0
    assert not slope.any()


def test_a_batch_knows_the_links_that_were_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmsearch.retrieval.adapter.BATCH", 3)
    draw = np.random.default_rng(0)
    links = np.array([[text, picture] for text in range(3) for picture in range(3)])
    data = Captioned(units(draw, 3, 4), units(draw, 3, 4), links)
    for _ in range(20):
        texts, pictures, positives = _batch(data, draw)
        assert positives.shape == (len(pictures), len(texts))
        assert positives.all()


def test_bytes_come_back_and_others_are_refused() -> None:
    draw = np.random.default_rng(2)
    adapter = Adapter(
        draw.normal(size=5).astype(np.float32), draw.normal(size=(5, 4)).astype(np.float32)
    )
    raw = adapter.to_bytes()
    back = Adapter.from_bytes(raw, 4)
    assert np.array_equal(back.gate, adapter.gate)
    assert np.array_equal(back.weights, adapter.weights)
    assert raw[:4] == np.array(adapter.gate[0], dtype="<f4").tobytes()
    with pytest.raises(ValueError, match="120 bytes, 100 were expected"):
        Adapter.from_bytes(raw + bytes(20), 4)
    with pytest.raises(ValueError, match="not all numbers"):
        Adapter.from_bytes(np.full(30, np.nan, dtype="<f4").tobytes()[:100], 4)


def test_applying_is_the_formula_and_gives_unit_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmsearch.retrieval.adapter.ROWS_AT_ONCE", 2)
    draw = np.random.default_rng(3)
    gate = draw.normal(size=5).astype(np.float32)
    weights = draw.normal(size=(5, 4)).astype(np.float32)
    texts = units(draw, 5, 4)
    adapted = Adapter(gate, weights).apply(texts)
    for text, found in zip(texts, adapted, strict=True):
        longer = np.append(text, 1)
        changed = text + longer @ weights / (1 + np.exp(-(longer @ gate)))
        assert np.allclose(found, changed / np.linalg.norm(changed), atol=1e-6)
    halves = Adapter(gate, weights).apply(texts.astype(np.float16))
    assert halves.dtype == np.float32
    assert np.allclose(np.linalg.norm(halves, axis=1), 1, atol=1e-6)


def shifted(seed: int, n: int = 120, dim: int = 16) -> tuple[Captioned, NDArray[np.float32]]:
    """Pictures, texts that mean them but are turned and pushed aside, and texts of other things."""
    draw = np.random.default_rng(seed)
    pictures = units(draw, n, dim)
    turn = np.linalg.qr(draw.normal(size=(dim, dim)))[0]
    aside = units(draw, 1, dim) * 2
    texts = pictures @ (0.4 * np.eye(dim) + 0.6 * turn) + 0.1 * draw.normal(size=(n, dim)) + aside
    texts = (texts / np.linalg.norm(texts, axis=1, keepdims=True)).astype(np.float32)
    links = np.stack([np.arange(n), np.arange(n)], axis=1)
    return Captioned(pictures, texts, links), units(draw, 200, dim)


def first(data: Captioned, texts: NDArray[np.float32], rows: slice) -> float:
    best = (texts[rows] @ data.pictures.T).argmax(axis=1)
    return float(np.mean(best == np.arange(len(data.pictures))[rows]))


def test_what_is_learned_holds_for_new_texts_and_leaves_others_alone() -> None:
    data, others = shifted(0, n=400)
    gate = fit_gate(data.texts[:300], others)
    learned = Captioned(data.pictures, data.texts, data.links[:300])
    adapter = train(learned, gate, steps=150)
    new = slice(300, None)
    assert first(data, adapter.apply(data.texts), new) > 2 * first(data, data.texts, new) + 0.1
    kept = (adapter.apply(others) * others).sum(axis=1)
    moved = (adapter.apply(data.texts) * data.texts).sum(axis=1)
    assert np.median(kept) > 0.95 > np.median(moved)


def test_no_steps_are_no_change_and_the_same_seed_the_same_result() -> None:
    data, others = shifted(1)
    gate = fit_gate(data.texts, others)
    assert np.allclose(train(data, gate, steps=0).apply(others), others, atol=1e-6)
    once, again = (train(data, gate, steps=5, seed=3).to_bytes() for _ in range(2))
    assert once == again


def test_looking_can_end_the_training() -> None:
    data, others = shifted(2)
    seen = []

    def look(_: Adapter, step: int) -> bool:
        seen.append(step)
        return step < 20

    train(data, fit_gate(data.texts, others), look=look)
    assert seen == [10, 20]


def test_everyday_sentences_are_distinct_and_plenty() -> None:
    sentences = everyday_sentences()
    assert len(set(sentences)) == len(sentences) > 300
    assert sentences == everyday_sentences()
