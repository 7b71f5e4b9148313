"""Searching a store through a filter, with a graph that loses what the filter cuts off."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from mmsearch.indexes.exact import ExactIndex
from mmsearch.indexes.milvus import MilvusIndex
from mmsearch.indexes.milvus_choice import choose
from tests.test_indexes import assert_same, vectors

N = 3_000
ROWS = vectors(N)
QUERIES = vectors(40, seed=1)


class Graph:
    """Rows found as by a graph: all without a filter, every other one through it."""

    dim, spec = 16, choose(N, 16, (2, 3), kind="hnsw")

    def __init__(self, allowed):
        self.allowed = allowed
        self.asked = []

    def count(self, expression="", **_):
        return len(self.allowed) if expression else N

    def those_of(self, ids, expression, **_):
        assert (np.diff(ids) > 0).all()
        return np.intersect1d(ids, self.allowed)

    def ids(self, expression="", **_):
        return self.allowed

    def search(self, queries, k, effort, expression, **_):
        self.asked.append((len(queries), k, expression))
        kept = np.arange(N)
        if expression.startswith("id in "):
            kept = np.array(json.loads(expression.removeprefix("id in ")))
        elif expression:
            kept = np.union1d(self.allowed[::2], self.allowed[-5:])
        scores = queries @ ROWS[kept].T
        order = np.argsort(-scores, axis=1)[:, :k]
        return [
            SimpleNamespace(ids=kept[row], distances=found[row])
            for row, found in zip(order, scores, strict=True)
        ]


def searched(allowed, k):
    graph = Graph(allowed)
    index = MilvusIndex(graph)
    oracle = ExactIndex(16)
    oracle.add(np.arange(N), ROWS)
    return (
        graph,
        index.search(QUERIES, k, among=index.where("f")),
        oracle.search(QUERIES, k, among=allowed),
    )


@pytest.mark.parametrize("k", [1, 10, 90])
def test_a_filter_hides_nothing_that_a_graph_finds_without_it(k):
    graph, found, true = searched(np.flatnonzero(np.arange(N) % 10 < 3), k)
    assert_same(found, true)
    assert all(not expression for _, _, expression in graph.asked)
    assert max(depth for _, depth, _ in graph.asked) <= graph.spec.deepest


def test_what_is_near_and_kept_out_is_looked_past():
    """Of half of the queries the nearest hundred are kept out: one deeper look for these alone."""
    near = np.argsort(-(QUERIES[:20] @ ROWS.T), axis=1)[:, :100]
    graph, found, true = searched(np.setdiff1d(np.arange(N), near)[::2], 10)
    assert_same(found, true)
    assert len(graph.asked) >= 2
    assert graph.asked[1][0] < graph.asked[0][0] == 40


def test_beyond_that_depth_both_ways_are_put_together():
    """One hundred far pictures, of which the walk through the filter finds every other one."""
    centre = QUERIES.mean(axis=0)
    far = np.sort(np.argsort(ROWS @ centre)[:400])
    graph, found, true = searched(far, 60)
    assert graph.asked[-1][2] == "f"
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in found.ids)
    assert np.isin(found.ids, far).all()
    through = far[::2]
    for row, exact in zip(found.ids, true.ids, strict=True):
        assert set(exact) & set(through) <= set(row)
    assert (np.diff(found.scores, axis=1) <= 0).all()
    np.testing.assert_allclose(
        found.scores, np.take_along_axis(QUERIES @ ROWS.T, found.ids, axis=1), atol=1e-6
    )


def test_a_walk_that_gives_up_is_made_good():
    """A filter lets two hundred through; of the 150 asked for, the walk comes to fewer."""
    graph, found, true = searched(np.arange(200), 150)
    assert_same(found, true)
    assert [expression[:5] for _, _, expression in graph.asked] == ["f", "id in"]


@pytest.mark.parametrize("count", [1, 3, 140, N])
def test_little_and_all_are_left_to_the_server(count):
    """What it compares as a whole, or walks without a filter, is one question."""
    graph, _, _ = searched(np.arange(count), min(10, count))
    assert [expression for _, _, expression in graph.asked] == ["f"]
