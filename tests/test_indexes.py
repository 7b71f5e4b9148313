from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mmsearch import indexes
from mmsearch.indexes import faiss_rows
from mmsearch.indexes.base import IndexFileError, Neighbors, VectorIndex, replacing
from mmsearch.indexes.exact import ExactIndex
from mmsearch.indexes.faiss import FaissIndex
from mmsearch.indexes.faiss_hnsw import HnswIndex
from mmsearch.indexes.faiss_ivf import IvfIndex


class Lists(IvfIndex):
    """Four lists, all of them looked into: the answers must be those of exact search."""

    __module__ = "mmsearch.indexes.faiss"

    def __init__(self, dim: int) -> None:
        sample = vectors(50, max(1, dim), seed=8)
        super().__init__(dim, sample[:4], sample)
        self.effort = 4


class Graph(HnswIndex):
    """A graph so well searched that the answers must be those of exact search."""

    __module__ = "mmsearch.indexes.faiss"

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.effort = 4_000


KINDS = [
    pytest.param(FaissIndex, id="faiss"),
    pytest.param(Lists, id="lists"),
    pytest.param(Graph, id="graph"),
    pytest.param(ExactIndex, id="exact"),
]
HALF = 2e-3
"""What storing vectors in half precision may move a score by."""


def vectors(n: int, dim: int = 16, seed: int = 0) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def filled(kind: type[VectorIndex], n: int = 200, dim: int = 16) -> VectorIndex:
    index = kind(dim)
    index.add(np.arange(n) * 3, vectors(n, dim))
    return index


def assert_same(found: Neighbors, expected: Neighbors) -> None:
    """The same answer, but that near-equal scores may change places."""
    assert found.ids.shape == found.scores.shape == expected.ids.shape
    assert (found.ids.dtype, found.scores.dtype) == (np.int64, np.float32)
    np.testing.assert_array_equal(found.ids < 0, expected.ids < 0)
    np.testing.assert_allclose(found.scores, expected.scores, atol=HALF)
    assert (found.scores[:, :-1] >= found.scores[:, 1:]).all()
    for ids, scores, right, right_scores in zip(
        found.ids, found.scores, expected.ids, expected.scores, strict=True
    ):
        known = ids[ids >= 0]
        assert len(set(known.tolist())) == len(known)
        by_id = dict(zip(right.tolist(), right_scores.tolist(), strict=True))
        for id_, score in zip(known.tolist(), scores.tolist(), strict=False):
            # An id that exact search does not have can only be one that ties with its last.
            assert score == pytest.approx(by_id.get(id_, right_scores[-1]), abs=HALF)


@pytest.mark.parametrize("k", [1, 10, 200, 500])
def test_faiss_finds_what_exact_search_finds(k: int) -> None:
    queries = vectors(20, seed=1)
    found = filled(FaissIndex).search(queries, k)
    expected = filled(ExactIndex).search(queries, k)
    assert_same(found, expected)
    np.testing.assert_array_equal(found.ids[:, 0], expected.ids[:, 0])
    assert (found.ids[:, :5] == expected.ids[:, :5]).mean() > 0.95


def test_neighbours_by_hand() -> None:
    for kind in (FaissIndex, ExactIndex):
        index = kind(2)
        index.add([10, 20, 30], [[1, 0], [0.6, 0.8], [-1, 0]])
        found = index.search([[1, 0], [0, 1]], 2)
        assert found.ids.tolist()[0] == [10, 20]
        assert found.ids[1, 0] == 20
        np.testing.assert_allclose(found.scores[0], [1, 0.6], atol=HALF)


@pytest.mark.parametrize("kind", KINDS)
def test_a_vector_finds_itself_with_a_score_of_one(kind: type[VectorIndex]) -> None:
    found = filled(kind).search(vectors(200), 1)
    assert found.ids[:, 0].tolist() == (np.arange(200) * 3).tolist()
    np.testing.assert_allclose(found.scores, 1, atol=HALF)


@pytest.mark.parametrize("kind", KINDS)
def test_more_than_there_are_is_padded(kind: type[VectorIndex]) -> None:
    found = filled(kind, 3).search(vectors(2, seed=1), 5)
    assert sorted(found.ids[0, :3].tolist()) == [0, 3, 6]
    assert found.ids[:, 3:].tolist() == [[-1, -1]] * 2
    assert np.isneginf(found.scores[:, 3:]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_index_finds_nothing(kind: type[VectorIndex], tmp_path: Path) -> None:
    index = kind(16)
    index.add(np.empty(0, dtype=np.int64), np.empty((0, 16), dtype=np.float32))
    index.save(tmp_path / "index")
    for empty in (index, kind.open(tmp_path / "index"), kind.open(tmp_path / "index", mmap=False)):
        assert len(empty) == 0
        assert empty.search(vectors(2), 3).ids.tolist() == [[-1] * 3] * 2
        assert empty.remove([1, 2]) == 0
        empty.add([5], vectors(1))
        assert empty.search(vectors(1), 2).ids.tolist() == [[5, -1]]


@pytest.mark.parametrize("kind", KINDS)
def test_no_queries_and_one_query(kind: type[VectorIndex]) -> None:
    index = filled(kind)
    assert index.search(np.empty((0, 16)), 4).ids.shape == (0, 4)
    one = index.search(vectors(1)[0], 4)
    np.testing.assert_array_equal(one.ids, index.search(vectors(1), 4).ids)
    assert index.exact
    assert index.search(vectors(1), 4, effort=7).ids.shape == (1, 4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [0, -1])
def test_a_search_for_nothing_is_refused(kind: type[VectorIndex], k: int) -> None:
    with pytest.raises(ValueError, match="k must be"):
        filled(kind).search(vectors(1), k)
    with pytest.raises(ValueError, match="dim must be"):
        kind(k)


@pytest.mark.parametrize("kind", KINDS)
def test_queries_of_another_dimension_are_refused(kind: type[VectorIndex]) -> None:
    for queries in (vectors(2, dim=8), vectors(8).reshape(1, 8, 16)):
        with pytest.raises(ValueError, match=r"\[n, 16\]"):
            filled(kind).search(queries, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_duplicate_vectors_are_all_found(kind: type[VectorIndex]) -> None:
    index = kind(16)
    index.add(np.arange(50), np.repeat(vectors(5), 10, axis=0))
    found = index.search(vectors(5), 10)
    for i, ids in enumerate(found.ids):
        assert sorted(ids.tolist()) == list(range(i * 10, i * 10 + 10))


@pytest.mark.parametrize("kind", KINDS)
def test_ids_keep_all_64_bits(kind: type[VectorIndex], tmp_path: Path) -> None:
    ids = [0, 2**40 + 1, 2**53 + 1, 2**63 - 1]
    index = kind(16)
    index.add(ids, vectors(4))
    index.save(tmp_path / "index")
    for each in (index, kind.open(tmp_path / "index")):
        assert each.search(vectors(4), 1).ids[:, 0].tolist() == ids
        assert each.search(vectors(4), 1, among=ids[1:2]).ids[:, 0].tolist() == [ids[1]] * 4
        assert each.remove(ids[1:]) == 3
        assert each.search(vectors(4), 2).ids.tolist() == [[0, -1]] * 4


@pytest.mark.parametrize("among", [[], [3], [0, 3, 6, 9, 9], [1, 2], [3, 4, 10**15], range(600)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("few", [True, False])
def test_only_the_ids_asked_for_are_returned(
    kind: type[VectorIndex], among: Any, few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not few:
        monkeypatch.setattr(faiss_rows, "FEW_ROWS", 0)
    queries, allowed = vectors(5, seed=1), np.array(list(among), dtype=np.int64)
    found = filled(kind).search(queries, 6, among=allowed)
    assert_same(found, filled(ExactIndex).search(queries, 6, among=allowed))
    assert set(found.ids[found.ids >= 0].tolist()) <= set(allowed.tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_removed_vectors_are_not_found_and_ids_can_be_used_again(kind: type[VectorIndex]) -> None:
    index = filled(kind)
    assert index.remove([3, 3, 6, 7, -1, 10**12]) == 2
    assert len(index) == 198
    assert index.remove([3, 6]) == 0
    assert index.remove([]) == 0
    assert not {3, 6} & set(index.search(vectors(200), 198).ids.ravel().tolist())
    index.add([3], vectors(1, seed=9))
    assert index.search(vectors(1, seed=9), 1).ids.tolist() == [[3]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("ids", "rows", "reason"),
    [
        ([1, 2, 4], vectors(2), "need ids"),
        ([[1, 2]], vectors(2), "need ids"),
        ([1], vectors(1)[0], r"\[n, 16\]"),
        ([1, 2], vectors(2, dim=15), r"\[n, 16\]"),
        ([1, 1], vectors(2), "distinct"),
        ([1, -2], vectors(2), "not negative"),
        ([1, 2], vectors(2) * 1.01, "length 1"),
        ([1, 2], vectors(2) * 0, "length 1"),
        ([1, 2], vectors(2) * np.float32([[1], [np.nan]]), "length 1"),
        ([1, 2], vectors(2) * np.float32([[1], [np.inf]]), "length 1"),
        ([1, 3], vectors(2), "in use"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_cannot_be_added_changes_nothing(
    kind: type[VectorIndex], ids: Any, rows: NDArray[np.float32], reason: str
) -> None:
    index = filled(kind)
    before = index.search(vectors(3, seed=1), 200)
    with pytest.raises(ValueError, match=reason):
        index.add(ids, rows)
    assert len(index) == 200
    np.testing.assert_array_equal(index.search(vectors(3, seed=1), 200).ids, before.ids)


@pytest.mark.parametrize("ids", [["a", "b"], [None, 1], [2**63, 1]])
@pytest.mark.parametrize("kind", KINDS)
def test_ids_that_are_no_whole_numbers_are_refused(kind: type[VectorIndex], ids: Any) -> None:
    index = filled(kind)
    with pytest.raises((ValueError, TypeError, OverflowError)):
        index.add(ids, vectors(2))
    assert len(index) == 200


def test_vectors_that_came_from_the_catalog_in_half_precision_are_accepted() -> None:
    rows = vectors(500, dim=512).astype(np.float16)
    index = indexes.build(np.arange(500), rows)
    assert index.search(rows[:9], 1).ids[:, 0].tolist() == list(range(9))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mmap", [True, False])
def test_a_saved_index_answers_as_before(
    kind: type[VectorIndex], mmap: bool, tmp_path: Path
) -> None:
    index, queries = filled(kind), vectors(5, seed=1)
    index.save(tmp_path / "an index")
    opened = kind.open(tmp_path / "an index", mmap=mmap)
    assert (opened.dim, len(opened), opened.exact) == (16, 200, True)
    found, expected = opened.search(queries, 9), index.search(queries, 9)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.parametrize("mmap", [True, False])
def test_an_opened_index_changes_in_memory_only(mmap: bool, tmp_path: Path) -> None:
    path = tmp_path / "index"
    filled(FaissIndex).save(path)
    written = path.read_bytes()
    index, oracle = FaissIndex.open(path, mmap=mmap), filled(ExactIndex)
    for each in (index, oracle):
        each.add([1, 4], vectors(2, seed=5))
        each.remove([0, 3, 6])
    assert_same(index.search(vectors(5, seed=1), 20), oracle.search(vectors(5, seed=1), 20))
    assert path.read_bytes() == written
    # Saved over the very file that it was opened from.
    index.save(path)
    again = FaissIndex.open(path, mmap=mmap)
    assert_same(again.search(vectors(5, seed=1), 20), oracle.search(vectors(5, seed=1), 20))


def test_saving_over_a_mapped_file_leaves_its_readers_alone(tmp_path: Path) -> None:
    path = tmp_path / "index"
    filled(FaissIndex).save(path)
    reader = FaissIndex.open(path)
    filled(FaissIndex, 3).save(path)
    assert_same(
        reader.search(vectors(5, seed=1), 9), filled(ExactIndex).search(vectors(5, seed=1), 9)
    )
    assert len(indexes.open(path)) == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mmap", [True, False])
def test_torn_files_are_refused(kind: type[VectorIndex], mmap: bool, tmp_path: Path) -> None:
    filled(kind).save(tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    for kept in (0, 3, 16, 20, 60, len(whole) // 2, *range(len(whole) - 40, len(whole))):
        (tmp_path / "torn").write_bytes(whole[:kept])
        with pytest.raises(IndexFileError, match="torn"):
            kind.open(tmp_path / "torn", mmap=mmap)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mmap", [True, False])
def test_foreign_files_are_refused(kind: type[VectorIndex], mmap: bool, tmp_path: Path) -> None:
    other = ExactIndex if kind is FaissIndex else FaissIndex
    filled(other).save(tmp_path / "other kind")
    (tmp_path / "text").write_text("no index at all, but long enough to be taken for one" * 9)
    (tmp_path / "zeros").write_bytes(bytes(4096))
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "array.npy", vectors(3))
    np.savez(tmp_path / "flat.npz", ids=np.arange(3), vectors=np.arange(3))
    np.savez(tmp_path / "uneven.npz", ids=np.arange(2), vectors=vectors(3))
    for name, made in foreign_indexes():
        faiss.write_index(made, str(tmp_path / name))
        if kind is FaissIndex:
            disguised = FaissIndex(16)
            disguised._index = made
            disguised.save(tmp_path / f"disguised {name}")
    for path in [*tmp_path.iterdir(), tmp_path / "missing"]:
        with pytest.raises(IndexFileError, match=path.name):
            kind.open(path, mmap=mmap)


def foreign_indexes() -> Iterator[tuple[str, Any]]:
    flat = faiss.IndexFlatIP(16)
    flat.add(vectors(5))
    yield "flat", flat
    mapped = faiss.IndexIDMap(faiss.IndexFlatIP(16))
    mapped.add_with_ids(vectors(5), np.arange(5))
    yield "float32 under ids", mapped
    for name, type_, metric in (
        ("eight bits", faiss.ScalarQuantizer.QT_8bit_direct, faiss.METRIC_INNER_PRODUCT),
        ("distances", faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_L2),
    ):
        yield name, faiss.IndexIDMap(faiss.IndexScalarQuantizer(16, type_, metric))


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_save_leaves_the_old_file(
    kind: type[VectorIndex], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "index"
    filled(kind, 5).save(path)
    written = path.read_bytes()

    def torn(*arguments: Any, **_: Any) -> None:
        for argument in arguments:
            if isinstance(argument, str):
                Path(argument).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    for target in ("faiss.write_index", "numpy.savez", "os.fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(target, torn)
            if target == "os.fsync" or target.startswith(kind.__module__.rpartition(".")[2]):
                with pytest.raises(OSError, match="No space"):
                    filled(kind, 9).save(path)
        assert path.read_bytes() == written
        assert [entry.name for entry in tmp_path.iterdir()] == ["index"]
    assert len(kind.open(path)) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_a_save_leaves_nothing_but_the_file(kind: type[VectorIndex], tmp_path: Path) -> None:
    for n in (5, 3):
        filled(kind, n).save(tmp_path / "index")
        assert [entry.name for entry in tmp_path.iterdir()] == ["index"]
        assert len(kind.open(tmp_path / "index")) == n


def test_replacing_shows_the_new_content_all_at_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208


@pytest.mark.parametrize("mmap", [True, False])
def test_threads_share_an_index(mmap: bool, tmp_path: Path) -> None:
    filled(FaissIndex, 2_000).save(tmp_path / "index")
    index = FaissIndex.open(tmp_path / "index", mmap=mmap)
    queries, among = vectors(8, seed=1), np.arange(0, 6_000, 9)

    def ask(i: int) -> Neighbors:
        return index.search(queries, 7, among=among if i % 2 else None)

    expected = [ask(0), ask(1)]
    with ThreadPoolExecutor(6) as pool:
        for i, found in enumerate(pool.map(ask, range(60))):
            np.testing.assert_array_equal(found.ids, expected[i % 2].ids)
            np.testing.assert_array_equal(found.scores, expected[i % 2].scores)


ids = st.lists(st.sampled_from([*range(12), 2**41, 2**62]), max_size=6, unique=True)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), ids, st.integers(0, 99)),
        st.tuples(st.just("remove"), ids, st.just(0)),
        st.tuples(st.just("reopen"), st.just([]), st.integers(0, 1)),
        st.tuples(st.just("among"), ids, st.integers(1, 9)),
    ),
    max_size=12,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=steps, k=st.integers(1, 20))
@pytest.mark.parametrize("kind", KINDS[:2])
def test_any_history_gives_the_answers_of_exact_search(
    kind: type[VectorIndex], steps: list[tuple[str, list[int], int]], k: int, tmp_path: Path
) -> None:
    index = kind(8)
    oracle, held = ExactIndex(8), set[int]()
    queries = vectors(3, dim=8, seed=100)
    for step, keys, number in steps:
        match step:
            case "add":
                new = [key for key in keys if key not in held]
                for each in (index, oracle):
                    each.add(new, vectors(len(new), dim=8, seed=number))
                held |= set(new)
            case "remove":
                gone = len(held & set(keys))
                assert index.remove(keys) == oracle.remove(keys) == gone
                held -= set(keys)
            case "reopen":
                index.save(tmp_path / "index")
                index = kind.open(tmp_path / "index", mmap=bool(number))
            case "among":
                found = index.search(queries, number, among=keys)
                assert_same(found, oracle.search(queries, number, among=keys))
        assert len(index) == len(oracle) == len(held)
        assert_same(index.search(queries, k), oracle.search(queries, k))
