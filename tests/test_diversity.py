"""Diverse choices against slow ways that follow the formulas word by word."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsearch.retrieval.diversity import facility_location, maximal_marginal_relevance


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def slow_mmr(relevance, vectors, k, diversity):
    rows = vectors.astype(np.float64)
    chosen = [int(np.argmax(relevance))]
    while len(chosen) < min(k, len(rows)):
        best, best_value = None, None
        for i in range(len(rows)):
            if i in chosen:
                continue
            nearest = max(float(rows[i] @ rows[j]) for j in chosen)
            value = (1 - diversity) * relevance[i] - diversity * nearest
            if best_value is None or value > best_value + 1e-12:
                best, best_value = i, value
        chosen.append(best)
    return chosen


@given(
    n=st.integers(1, 25),
    k=st.integers(1, 30),
    diversity=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_mmr_is_what_the_formula_says(n, k, diversity, seed):
    generator = np.random.default_rng(seed)
    vectors = unit(generator.normal(size=(n, 5)))
    relevance = generator.uniform(-1, 1, n)
    found = maximal_marginal_relevance(relevance, vectors, k, diversity)
    assert found.tolist() == slow_mmr(relevance, vectors, k, diversity)
    assert found.dtype == np.int64
    assert len(set(found.tolist())) == min(n, k)


def test_mmr_by_hand():
    # The second is nearly the first; the third is another thing, and less relevant.
    vectors = np.array([[1, 0], [0.8, 0.6], [0, 1]], dtype=np.float32)
    relevance = np.array([0.9, 0.8, 0.3])
    assert maximal_marginal_relevance(relevance, vectors, 3, 0.0).tolist() == [0, 1, 2]
    # 0.5 · 0.8 - 0.5 · 0.8 = 0 against 0.5 · 0.3 - 0.5 · 0 = 0.15.
    assert maximal_marginal_relevance(relevance, vectors, 2, 0.5).tolist() == [0, 2]
    # 0.7 · 0.8 - 0.3 · 0.8 = 0.32 against 0.7 · 0.3 = 0.21.
    assert maximal_marginal_relevance(relevance, vectors, 2, 0.3).tolist() == [0, 1]


def test_more_diversity_brings_less_alike_answers():
    generator = np.random.default_rng(1)
    vectors = unit(np.repeat(generator.normal(size=(6, 16)), 20, axis=0) + 0.1)
    vectors = unit(vectors + 0.05 * generator.normal(size=vectors.shape))
    relevance = (vectors @ vectors[0]).astype(np.float64)
    alike = []
    for diversity in (0.0, 0.3, 0.7):
        rows = vectors[maximal_marginal_relevance(relevance, vectors, 6, diversity)]
        alike.append((rows @ rows.T)[np.triu_indices(6, 1)].mean())
    assert alike == sorted(alike, reverse=True)
    assert alike[0] > alike[-1] + 0.3


def test_what_cannot_be_asked():
    vectors = np.eye(2, dtype=np.float32)
    for arguments, words in (
        ((np.ones(2), vectors, 0, 0.5), "k must be"),
        ((np.ones(2), vectors, 1, 1.5), "diversity must be"),
        ((np.ones(2), vectors, 1, float("nan")), "diversity must be"),
        ((np.ones(3), vectors, 1, 0.5), "as many relevances"),
    ):
        with pytest.raises(ValueError, match=words):
            maximal_marginal_relevance(*arguments)
    empty = np.empty((0, 2), dtype=np.float32)
    assert len(maximal_marginal_relevance(np.empty(0), empty, 3, 0.5)) == 0
    with pytest.raises(ValueError, match="k must be"):
        facility_location(vectors, 0)


@given(n=st.integers(1, 20), k=st.integers(1, 22), seed=st.integers(0, 1000))
def test_greedy_representatives_each_add_most(n, k, seed):
    vectors = unit(np.random.default_rng(seed).normal(size=(n, 4)))
    rows, brought = facility_location(vectors, k)
    similarity = vectors.astype(np.float64) @ vectors.T.astype(np.float64)

    def covered(chosen):
        return np.maximum(similarity[chosen].max(axis=0), -1).mean() if chosen else -1.0

    chosen = []
    for row, gain in zip(rows.tolist(), brought, strict=True):
        best = max(covered([*chosen, i]) for i in range(n) if i not in chosen)
        assert covered([*chosen, row]) == pytest.approx(best, abs=1e-9)
        assert gain == pytest.approx(best - covered(chosen), abs=1e-9)
        chosen.append(row)
    assert len(set(chosen)) == min(n, k)
    assert (np.diff(brought) <= 1e-9).all()
    fewer = facility_location(vectors, max(1, k // 2))[0]
    assert rows[: len(fewer)].tolist() == fewer.tolist()


def test_representatives_come_from_every_heap():
    generator = np.random.default_rng(2)
    heaps = unit(generator.normal(size=(4, 12)))
    of = np.repeat(np.arange(4), (30, 5, 40, 10))
    vectors = unit(heaps[of] + 0.05 * generator.normal(size=(len(of), 12)))
    rows, _ = facility_location(vectors, 4)
    assert set(of[rows].tolist()) == {0, 1, 2, 3}
