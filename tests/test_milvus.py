"""`MilvusIndex` and libraries with a store, against a real Milvus server.

Marked `milvus`: `tests/milvus_server.py` starts one beside them, or MMSEARCH_TEST_MILVUS_URI names
one of yours (its collections whose names begin with `mmsearch_` are dropped).
`test_milvus_server.py` runs this file in that way.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmsearch.errors import StoreError, StoreUnavailable
from mmsearch.indexes.base import IndexFileError
from mmsearch.indexes.exact import ExactIndex
from mmsearch.indexes.milvus import MilvusIndex
from mmsearch.indexes.milvus_choice import choose
from mmsearch.indexes.milvus_collection import Collection, Field
from mmsearch.indexes.milvus_server import Address, Server
from tests.milvus_server import ADDRESS
from tests.test_indexes import assert_same, vectors

pytestmark = [
    pytest.mark.milvus,
    pytest.mark.skipif(
        ADDRESS not in os.environ,
        reason=f"needs a Milvus server: run tests/milvus_server.py pytest …, or set {ADDRESS}",
    ),
    # pandas, which pymilvus loads.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
]

FIELDS = (Field("width", "integer"), Field("latitude", "number"), Field("folder", "text"))
KINDS = ["flat", "hnsw", "ivf-sq8"]
if "MMSEARCH_TEST_MILVUS_GPU" in os.environ:
    KINDS.append("gpu-cagra")


@pytest.fixture(scope="module")
def server() -> Server:
    return Server(os.environ[ADDRESS])


@pytest.fixture
def make(server: Server) -> Iterator[Any]:
    made: list[Collection] = []

    def new(
        dim: int = 16, kind: str = "flat", n: int = 200, vectors_of: Any = None, **how: Any
    ) -> MilvusIndex:
        name = f"mmsearch_test_{uuid.uuid4().hex}"
        spec = choose(n, dim, server.check(), kind=kind)
        collection = Collection.create(server, name, dim, spec, fields=FIELDS, **how)
        made.append(collection)
        return MilvusIndex(collection, writes=True, vectors_of=vectors_of)

    yield new
    for collection in made:
        collection.drop()


def looked_up(dim: int = 16, n: int = 200, step: int = 3) -> Any:
    """What `vectors_of` is: here of the vectors that `filled` adds."""
    rows = vectors(n, dim)

    def vectors_of(ids: Any) -> Any:
        known = ids[(ids % step == 0) & (ids < n * step)]
        return known, rows[known // step]

    return vectors_of


def filled(index: MilvusIndex, n: int = 200) -> ExactIndex:
    oracle = ExactIndex(index.dim)
    for each in (index, oracle):
        each.add(np.arange(n) * 3, vectors(n, index.dim))
    return oracle


def unit_rows(rows: Any) -> Any:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_it_finds_what_exact_search_finds(make: Any, kind: str) -> None:
    index = make(kind=kind, vectors_of=looked_up() if kind == "ivf-sq8" else None)
    oracle = filled(index)
    queries = vectors(20, seed=1)
    for k in (1, 10, 200, 500):
        found = index.search(queries, k, effort=10_000)
        assert_same(found, oracle.search(queries, k))
        np.testing.assert_allclose(
            found.scores[:, :5], oracle.search(queries, k).scores[:, :5], atol=1e-5
        )
    assert index.exact == (kind == "flat")
    assert index.recall == (1.0 if index.exact else None)
    assert len(index) == 200


def test_an_empty_index_finds_nothing(make: Any) -> None:
    index = make()
    index.add(np.empty(0, dtype=np.int64), np.empty((0, 16), dtype=np.float32))
    assert len(index) == 0
    assert index.ids.tolist() == []
    assert index.search(vectors(2), 3).ids.tolist() == [[-1] * 3] * 2
    assert index.remove([1, 2]) == 0
    index.add([5], vectors(1))
    assert index.search(vectors(1), 2).ids.tolist() == [[5, -1]]
    assert index.search(np.empty((0, 16)), 4).ids.shape == (0, 4)
    one = index.search(vectors(1)[0], 4)
    np.testing.assert_array_equal(one.ids, index.search(vectors(1), 4).ids)


def test_what_cannot_be_asked_or_added_changes_nothing(make: Any) -> None:
    index = make()
    filled(index, 20)
    for ids, rows, reason in [
        ([1, 2, 4], vectors(2), "need ids"),
        ([1], vectors(1)[0], r"\[n, 16\]"),
        ([1, 2], vectors(2, dim=15), r"\[n, 16\]"),
        ([1, 1], vectors(2), "distinct"),
        ([1, -2], vectors(2), "not negative"),
        ([1, 2], vectors(2) * 1.01, "length 1"),
        ([1, 2], vectors(2) * np.float32([[1], [np.nan]]), "length 1"),
        ([1, 3], vectors(2), "in use"),
        ([1, 2**63 - 1], vectors(2), "at most"),
    ]:
        with np.errstate(invalid="ignore"), pytest.raises(ValueError, match=reason):
            index.add(ids, rows)
    with pytest.raises(ValueError, match="k must be"):
        index.search(vectors(1), 0)
    with pytest.raises(ValueError, match=r"\[n, 16\]"):
        index.search(vectors(2, dim=8), 1)
    assert sorted(index.ids.tolist()) == [3 * i for i in range(20)]


def test_ids_keep_all_64_bits(make: Any, tmp_path: Path) -> None:
    ids = [0, 2**40 + 1, 2**53 + 1, 2**63 - 2]
    index = make()
    index.add(ids, vectors(4))
    index.save(tmp_path / "index")
    for each in (index, MilvusIndex.open(tmp_path / "index")):
        assert each.search(vectors(4), 1).ids[:, 0].tolist() == ids
        assert each.search(vectors(4), 1, among=ids[1:2]).ids[:, 0].tolist() == [ids[1]] * 4
    assert index.remove(ids[1:]) == 3
    assert index.search(vectors(4), 2).ids.tolist() == [[0, -1]] * 4
    (tmp_path / "torn").write_text('{"kind": "milv')
    with pytest.raises(IndexFileError, match="torn"):
        MilvusIndex.open(tmp_path / "torn")


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_ids_asked_for_are_returned(make: Any, kind: str) -> None:
    index = make(kind=kind, vectors_of=looked_up() if kind == "ivf-sq8" else None)
    oracle = filled(index)
    queries = vectors(5, seed=1)
    for among in ([], [3], [0, 3, 6, 9, 9], [1, 2], [3, 4, 10**15], range(600)):
        allowed = np.array(list(among), dtype=np.int64)
        for k in (6, 600):
            found = index.search(queries, k, among=allowed)
            assert_same(found, oracle.search(queries, k, among=allowed))
    assert index.has([3, 4, 6]).tolist() == [True, False, True]


def test_ids_in_many_parts_and_more_answers_than_a_server_gives(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = make()
    oracle = filled(index)
    monkeypatch.setattr("mmsearch.indexes.milvus.PART", 60)
    monkeypatch.setattr("mmsearch.indexes.milvus.DEEPEST", 40)
    monkeypatch.setattr("mmsearch.indexes.milvus.ANSWERS_AT_ONCE", 50)
    monkeypatch.setattr("mmsearch.indexes.milvus_collection.IDS_AT_ONCE", 50)
    queries = vectors(9, seed=1)
    for k in (5, 50, 300):
        assert_same(index.search(queries, k), oracle.search(queries, k))
        among = np.arange(0, 300, 2)
        assert_same(index.search(queries, k, among=among), oracle.search(queries, k, among=among))
    assert index.ids.tolist() == (np.arange(200) * 3).tolist()
    assert index.remove(np.arange(100)) == 34
    assert len(index) == 166


def test_what_is_removed_is_gone_at_once_and_twice_is_once(make: Any) -> None:
    index = make()
    filled(index)
    assert index.remove([3, 3, 6, 7, -1, 10**12]) == 2
    assert len(index) == 198
    assert not {3, 6} & set(index.search(vectors(200), 198).ids.ravel().tolist())
    index.add([3], vectors(1, seed=9))
    assert index.search(vectors(1, seed=9), 1).ids.tolist() == [[3]]
    for seed in (10, 11):
        index.upsert([3, 6], vectors(2, seed=seed))
    assert len(index) == 200
    assert index.collection.count(consistency="Strong") == 200
    found = index.search(vectors(2, seed=11), 2)
    assert found.ids[:, 0].tolist() == [3, 6]
    np.testing.assert_allclose(found.scores[:, 0], 1, atol=1e-5)
    assert found.ids.tolist()[0].count(3) == 1


def test_fields_choose_without_a_list_of_ids(make: Any) -> None:
    index = make()
    rows, folders = vectors(300), ["", "ü/日本 \"'\\", "a%_"]
    fields = {
        "width": [i % 7 for i in range(300)],
        "latitude": [i / 7 for i in range(300)],
        "folder": [folders[i % 3] for i in range(300)],
    }
    index.upsert(np.arange(300), rows, fields)
    oracle = ExactIndex(16)
    oracle.add(np.arange(300), rows)
    queries = vectors(4, seed=1)
    for expression, allowed in [
        ("width == 3 and latitude < 20.0", [i for i in range(300) if i % 7 == 3 and i / 7 < 20]),
        ('folder == "ü/日本 \\"\'\\\\"', [i for i in range(300) if i % 3 == 1]),
        ("id < 0", []),
    ]:
        condition = index.where(expression)
        assert len(condition) == len(allowed)
        assert condition.within(np.arange(100)).tolist() == [i for i in allowed if i < 100]
        found = index.search(queries, 8, among=condition)
        assert_same(found, oracle.search(queries, 8, among=allowed))
    with pytest.raises(TypeError, match="keeps nothing"):
        oracle.search(queries, 8, among=index.where("width == 3"))


def test_a_graph_is_tuned_and_says_what_it_finds(make: Any) -> None:
    index = make(dim=32, kind="hnsw")
    rows = vectors(6_000, 32)
    index.upsert(np.arange(6_000), rows)
    index.collection.settle()
    queries = vectors(200, 32, seed=5)
    true = np.argsort(-(queries @ rows.T), axis=1)[:, :10]
    assert index.recall is None
    index.tune([(queries, true)], 0.98)
    found = index.search(queries, 10).ids
    share = share_found(found, true)
    assert index.recall == pytest.approx(share, abs=0.02)
    assert share >= 0.97
    assert index.search(rows[:50], 1).ids[:, 0].tolist() == list(range(50))


def test_a_graph_finds_what_a_filter_lets_through(make: Any) -> None:
    index = make(dim=256, kind="hnsw")
    n, generator = 20_000, np.random.default_rng(3)
    # Subjects of which there are many and few pictures, and as many directions as matter: such a
    # graph loses what a filter cuts off, which it does not of vectors from anywhere.
    spread = 1 / np.sqrt(1 + np.arange(256))
    subjects = generator.normal(size=(4_000, 256)) * spread
    shares = 1 / (1 + np.arange(4_000))
    of = generator.choice(4_000, n, p=shares / shares.sum())
    rows = unit_rows(subjects[of] + 0.6 * generator.normal(size=(n, 256)) * spread)
    day, width = of % 10, generator.integers(0, 10, n)
    fields = {"width": width.tolist(), "latitude": day.tolist(), "folder": [""] * n}
    index.upsert(np.arange(n), rows, fields)
    index.collection.settle()
    index.collection.wait_until_served()
    oracle = ExactIndex(256)
    oracle.add(np.arange(n), rows)
    queries = unit_rows(rows[:500] + 0.03 * generator.normal(size=(500, 256)))
    for expression, allowed in {
        "width < 3": width < 3,
        "latitude < 3.0": day < 3,
        "latitude < 5.0 and width < 5": (day < 5) & (width < 5),
    }.items():
        ids, condition = np.flatnonzero(allowed), index.where(expression)
        true = oracle.search(queries, 10, among=ids).ids
        found = index.search(queries, 10, effort=256, among=condition).ids
        assert np.isin(found, ids).all()
        # Through the filter alone a graph finds 0.990 of the first and 0.991 of the last.
        assert share_found(found, true) >= 0.993, expression


def share_found(found: Any, true: Any) -> float:
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, true, strict=True)]))


def test_an_index_can_be_changed_and_the_answers_stay(make: Any, server: Server) -> None:
    index = make(dim=32)
    rows = vectors(3_000, 32)
    index.upsert(np.arange(3_000), rows)
    assert index.collection.settle() == 3_000
    queries = vectors(20, 32, seed=1)
    before = index.search(queries, 10)
    for kind in ("hnsw", "ivf-sq8", "scann", "flat"):
        index.collection.reindex(choose(3_000, 32, server.check(), kind=kind))
        assert index.collection.settle() == 3_000
        opened = Collection.open(server, index.collection.name)
        assert opened is not None
        assert opened.spec.kind == kind
        found = MilvusIndex(opened, vectors_of=looked_up(32, 3_000, 1)).search(
            queries, 10, effort=10_000
        )
        agreeing = (found.ids == before.ids).mean()
        assert agreeing >= (0.85 if kind == "scann" else 0.98)
        top = found.ids[:, 0] == before.ids[:, 0]
        np.testing.assert_allclose(found.scores[top, 0], before.scores[top, 0], atol=1e-5)


def test_threads_share_an_index(make: Any) -> None:
    index = make()
    filled(index)
    queries = vectors(8, seed=1)
    expected = index.search(queries, 7)
    with ThreadPoolExecutor(6) as pool:
        for found in pool.map(lambda _: index.search(queries, 7), range(40)):
            np.testing.assert_array_equal(found.ids, expected.ids)


def test_what_a_server_cannot_make_is_refused_at_once(make: Any, server: Server) -> None:
    if server.check() < (2, 4):
        with pytest.raises(StoreError, match=r"needs Milvus 2\.4 or later"):
            make(kind="gpu-cagra")
    with pytest.raises(StoreError, match="has no index 'diskann'"):
        make(kind="diskann")


def test_a_collection_says_whose_it_is_and_in_which_state(make: Any, server: Server) -> None:
    index = make(about={"library": "ü"})
    index.collection.mark("5-abc")
    opened = Collection.open(server, index.collection.name)
    assert opened is not None
    assert (opened.about, opened.state) == ({"library": "ü"}, "5-abc")
    assert (opened.dim, opened.fields) == (16, FIELDS)
    assert Collection.open(server, "mmsearch_nothing_here") is None


def test_a_collection_of_somebody_else_is_not_touched(server: Server) -> None:
    name = f"mmsearch_test_{uuid.uuid4().hex}"
    server.client.create_collection(name, dimension=4)
    try:
        with pytest.raises(StoreError, match="none that mmsearch made"):
            Collection.open(server, name)
    finally:
        server.client.drop_collection(name)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"host": "nobody.invalid"}, StoreUnavailable, "does not answer"),
        ({"port": 1}, StoreUnavailable, "does not answer"),
        ({"database": "nowhere"}, StoreError, "no database 'nowhere'"),
    ],
)
def test_a_wrong_address_is_one_line(change: Any, error: Any, said: str, server: Server) -> None:
    own = server.address
    place = {"host": own.host, "port": own.port, "database": own.database, "token": "root:secret"}
    wrong = Server(Address(**{**place, **change}), answer_s=2)
    with pytest.raises(error, match=said) as caught:
        wrong.check()
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
