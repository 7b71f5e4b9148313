"""Indexes that look in part of the vectors, indexes that grow, and files that rot."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mmsearch import indexes
from mmsearch.indexes import checked_file, faiss_approximate, faiss_hnsw
from mmsearch.indexes.base import IndexFileError, VectorIndex
from mmsearch.indexes.checked_file import CheckedFile
from mmsearch.indexes.exact import ExactIndex
from mmsearch.indexes.faiss import FaissIndex
from mmsearch.indexes.faiss_approximate import ApproximateIndex, Kind
from mmsearch.indexes.faiss_hnsw import HnswIndex
from mmsearch.indexes.faiss_ivf import IvfIndex, train
from mmsearch.indexes.grown import GrownIndex

DIM, N = 32, 3_000
IDS = np.arange(N) * 3 + 2**40


def clusters(n: int, seed: int) -> NDArray[np.float32]:
    """Vectors around 60 centres, as embeddings of pictures are."""
    centres = np.random.default_rng(0).normal(size=(60, DIM))
    generator = np.random.default_rng(seed)
    rows = centres[generator.integers(0, 60, n)] + 0.9 * generator.normal(size=(n, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


BASE, QUERIES = clusters(N, 1), clusters(100, 2)


def empty(kind: Kind) -> ApproximateIndex:
    return HnswIndex(DIM) if kind == "hnsw" else train(BASE, 40, kind, strides=(1,) * 4)


@pytest.fixture(scope="module", params=["ivf-rabitq", "ivf-sq8", "hnsw"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    index = empty(request.param)
    index.add(IDS, BASE)
    index.effort, index.shortlist = 16, 80
    path = tmp_path_factory.mktemp(request.param) / "index"
    index.save(path)
    return path


def opened(path: Path, *, mmap: bool = True) -> ApproximateIndex:
    index = indexes.open(path, mmap=mmap)
    assert isinstance(index, ApproximateIndex)
    return index


def oracle() -> ExactIndex:
    index = ExactIndex(DIM)
    index.add(IDS, BASE)
    return index


def overlap(found: NDArray[np.int64], right: NDArray[np.int64]) -> float:
    pairs = zip(found.tolist(), right.tolist(), strict=True)
    return float(np.mean([len(set(a) & set(b)) / len(set(b)) for a, b in pairs]))


def true_score(index: VectorIndex, queries: NDArray[np.float32], ids: NDArray[np.int64]) -> None:
    """Whatever is found, its score is that of the vector itself."""
    found = index.search(queries, 10)
    for query, row, scores in zip(queries, found.ids, found.scores, strict=True):
        np.testing.assert_allclose(scores, BASE[(row - ids[0]) // 3] @ query, atol=2e-3)


@pytest.mark.parametrize("mmap", [True, False])
def test_part_of_the_lists_gives_most_of_the_answers_and_true_scores(
    saved: Path, mmap: bool
) -> None:
    index = opened(saved, mmap=mmap)
    right = oracle().search(QUERIES, 10)
    assert not index.exact
    assert overlap(index.search(QUERIES, 10).ids, right.ids) > 0.9
    true_score(index, QUERIES, IDS)
    # One by one as all at once.
    batch = index.search(QUERIES, 10)
    for i in range(20):
        np.testing.assert_array_equal(index.search(QUERIES[i], 10).ids[0], batch.ids[i])


def test_effort_buys_recall_for_one_call_alone(saved: Path) -> None:
    index = opened(saved)
    right = oracle().search(QUERIES, 10).ids
    efforts = (10, 20, 80, 1_000) if index.kind == "hnsw" else (1, 4, 16, 40)
    shares = [overlap(index.search(QUERIES, 10, effort=e).ids, right) for e in efforts]
    assert shares == sorted(shares)
    assert shares[0] < shares[-1] - (0.01 if index.kind == "hnsw" else 0.05)
    assert shares[-1] > 0.995
    before = index.search(QUERIES, 10).ids
    index.search(QUERIES, 10, effort=1)
    np.testing.assert_array_equal(index.search(QUERIES, 10).ids, before)


@pytest.mark.parametrize("k", [1, 50, 700, N, N + 5])
def test_k_answers_come_wherever_k_exist(saved: Path, k: int) -> None:
    index = opened(saved)
    found = index.search(QUERIES[:5], k, effort=1)
    assert ((found.ids >= 0).sum(axis=1) == min(k, N)).all()
    assert all(len(set(row[row >= 0].tolist())) == min(k, N) for row in found.ids)


@pytest.mark.parametrize("m", [1, 10, 400, 2_500])
@pytest.mark.parametrize("exact_up_to", [0, 50_000])
def test_filters_give_k_and_are_exact_where_few_are_left(
    saved: Path, m: int, exact_up_to: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faiss_approximate, "EXACT_AMONG", exact_up_to)
    among = np.random.default_rng(m).choice(IDS, m, replace=False)
    index, right = opened(saved), oracle().search(QUERIES, 10, among=among)
    found = index.search(QUERIES, 10, among=np.append(among, [5, 2**60]))
    assert set(found.ids[found.ids >= 0].tolist()) <= set(among.tolist())
    np.testing.assert_array_equal(found.ids < 0, right.ids < 0)
    if exact_up_to:
        np.testing.assert_allclose(found.scores, right.scores, atol=2e-3)
    else:
        assert overlap(found.ids, right.ids) > 0.9


def test_a_file_says_what_was_measured(saved: Path) -> None:
    index = opened(saved)
    assert index.recall is None
    index.facts = {"recall": {"images": 0.99, "texts": 0.97}}
    index.save(saved.with_name("other"))
    again = opened(saved.with_name("other"))
    assert again.recall == 0.97
    assert type(again) is type(index)
    assert (again.effort, again.shortlist, again.kind) == (16, 80, index.kind)


def test_the_place_of_the_vectors_in_the_file_is_known(saved: Path, tmp_path: Path) -> None:
    flat = FaissIndex(DIM)
    flat.add(IDS, BASE)
    flat.save(tmp_path / "flat")
    for path in (saved, tmp_path / "flat"):
        rows = CheckedFile(path).rows
        assert rows is not None
        content = path.read_bytes()[rows.start : rows.stop]
        stored = np.frombuffer(content, dtype="<f2").reshape(N, DIM)
        np.testing.assert_allclose(stored, BASE, atol=5e-4)


# Histories.

KEYS = [*range(20), 2**41, 2**62]
few = st.lists(st.sampled_from(KEYS), max_size=8, unique=True)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), few, st.integers(0, 99)),
        st.tuples(st.just("remove"), few, st.just(0)),
        st.tuples(st.just("reopen"), st.just([]), st.integers(0, 1)),
        st.tuples(st.just("merge"), st.just([]), st.just(0)),
        st.tuples(st.just("among"), few, st.integers(1, 9)),
    ),
    max_size=14,
)


def start(kind: str, effort: int) -> FaissIndex | ApproximateIndex:
    if kind == "flat":
        return FaissIndex(DIM)
    if kind == "graph":
        graph = HnswIndex(DIM)
        graph.effort = effort
        return graph
    index = IvfIndex(DIM, clusters(6, 3), clusters(50, 4), kind="ivf-rabitq")
    index.effort, index.shortlist = effort, 2
    return index


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS, k=st.integers(1, 25))
@pytest.mark.parametrize("kind", ["flat", "lists", "graph"])
def test_any_history_of_a_grown_index_gives_the_answers_of_exact_search(
    kind: str, steps: list[tuple[str, list[int], int]], k: int, tmp_path: Path
) -> None:
    base = start(kind, effort=6)
    base.add(KEYS[:12], clusters(12, 5))
    right = ExactIndex(DIM)
    right.add(KEYS[:12], clusters(12, 5))
    held, saves = set(KEYS[:12]), 0
    base.save(tmp_path / "base 0")
    index = GrownIndex(indexes.open(tmp_path / "base 0"), tmp_path / "base 0")  # type: ignore[arg-type]
    for step, keys, number in steps:
        match step:
            case "add":
                new = [key for key in keys if key not in held]
                for each in (index, right):
                    each.add(new, clusters(len(new), number))
                held |= set(new)
                for key in sorted(held)[:1]:
                    with pytest.raises(ValueError, match="in use"):
                        index.add([key], clusters(1, 0))
            case "remove":
                assert index.remove(keys) == right.remove(keys) == len(held & set(keys))
                held -= set(keys)
            case "reopen":
                saves += 1
                index.save(tmp_path / f"changes {saves}")
                again = indexes.open(tmp_path / f"changes {saves}", mmap=bool(number))
                assert isinstance(again, GrownIndex)
                index = again
            case "merge":
                saves += 1
                path = tmp_path / f"base {saves}"
                index.merged().save(path)
                index = GrownIndex(indexes.open(path), path)  # type: ignore[arg-type]
            case "among":
                found = index.search(QUERIES[:3], number, among=keys)
                expected = right.search(QUERIES[:3], number, among=keys)
                np.testing.assert_allclose(found.scores, expected.scores, atol=2e-3)
                np.testing.assert_array_equal(found.ids, expected.ids)
        assert len(index) == len(held)
        assert set(index.ids.tolist()) == held
        found, expected = index.search(QUERIES[:3], k), right.search(QUERIES[:3], k)
        np.testing.assert_allclose(found.scores, expected.scores, atol=2e-3)
        assert [set(row) for row in found.ids.tolist()] == [
            set(row) for row in expected.ids.tolist()
        ] or k < len(held)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS, k=st.integers(1, 25))
@pytest.mark.parametrize("kind", ["lists", "graph"])
@pytest.mark.parametrize("walk", [False, True])
def test_a_hasty_search_never_returns_what_is_gone_and_always_k(
    kind: str, walk: bool, steps: list[tuple[str, list[int], int]], k: int, tmp_path: Path
) -> None:
    index: VectorIndex = start(kind, effort=1)
    # Such small graphs are otherwise never walked.
    instead = 0 if walk else faiss_hnsw.SCAN_INSTEAD
    held: dict[int, NDArray[np.float32]] = {}
    for step, keys, number in steps:
        if step == "add":
            new = [key for key in keys if key not in held]
            rows = clusters(len(new), number)
            index.add(new, rows)
            held |= dict(zip(new, rows, strict=True))
        elif step == "remove":
            index.remove(keys)
            for key in keys:
                held.pop(key, None)
        elif step in {"reopen", "merge"}:
            index.save(tmp_path / "index")
            index = opened(tmp_path / "index", mmap=bool(number))
        with patch.object(faiss_hnsw, "SCAN_INSTEAD", instead):
            found = index.search(QUERIES[:3], k)
        for query, ids, scores in zip(QUERIES[:3], found.ids, found.scores, strict=True):
            known = ids[ids >= 0].tolist()
            assert len(known) == len(set(known)) == min(k, len(held))
            true = [held[id_] @ query for id_ in known]
            np.testing.assert_allclose(scores[: len(known)], true, atol=2e-3)


def test_growing_writes_the_changes_alone_and_merging_is_for_many(tmp_path: Path) -> None:
    base = FaissIndex(DIM)
    base.add(IDS, BASE)
    base.save(tmp_path / "base")
    written = (tmp_path / "base").read_bytes()
    index = GrownIndex(FaissIndex.open(tmp_path / "base"), tmp_path / "base")
    index.add([1, 2], QUERIES[:2])
    index.remove(IDS[:5])
    index.save(tmp_path / "changes")
    assert (tmp_path / "changes").stat().st_size < 2_000
    assert (tmp_path / "base").read_bytes() == written
    assert index.changes == 7
    assert not index.worth_merging
    again = indexes.open(tmp_path / "changes")
    assert again.search(QUERIES[0], 1).ids.tolist() == [[1]]
    assert again.has([1, int(IDS[0]), int(IDS[9])]).tolist() == [True, False, True]
    # Elsewhere the file stands alone.
    (tmp_path / "elsewhere").mkdir()
    again.save(tmp_path / "elsewhere" / "index")
    (tmp_path / "base").unlink()
    assert len(indexes.open(tmp_path / "elsewhere" / "index")) == N - 3
    with pytest.raises(IndexFileError, match="base"):
        indexes.open(tmp_path / "changes")
    base.remove(IDS[-1:])
    base.save(tmp_path / "base")
    with pytest.raises(IndexFileError, match="is not the one"):
        indexes.open(tmp_path / "changes")


# Rot.


def rot(path: Path, at: int, length: int = 4096) -> None:
    """Turn every bit of a part of a file."""
    with path.open("r+b") as file:
        file.seek(at)
        old = file.read(length)
        file.seek(at)
        file.write(bytes(byte ^ 255 for byte in old))


def test_rot_in_a_small_file_is_noticed_on_opening(saved: Path, tmp_path: Path) -> None:
    content = saved.read_bytes()
    path = tmp_path / "index"
    for at in range(0, len(content), len(content) // 23):
        path.write_bytes(content)
        rot(path, at)
        with pytest.raises(IndexFileError, match=r"damaged|torn"):
            indexes.open(path)
        for byte in (at, min(at + 5, len(content) - 1)):
            path.write_bytes(content)
            rot(path, byte, 1)
            with pytest.raises(IndexFileError, match=r"damaged|torn"):
                indexes.open(path, mmap=False)


@pytest.mark.parametrize("kind", ["flat", "lists"])
def test_rot_in_a_large_file_is_noticed_before_it_decides_an_answer(
    kind: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked_file, "SMALL", 0)
    path = tmp_path / "index"
    if kind == "flat":
        flat = FaissIndex(DIM)
        flat.add(IDS, BASE)
        flat.save(path)
    else:
        path.write_bytes(saved.read_bytes())
    rows = CheckedFile(path).rows
    assert rows is not None
    # The middle of the third block: rows 256 to 383.
    rot(path, rows.start + 2 * rows.block + 10 * rows.length, 4 * rows.length)
    index = indexes.open(path)
    with pytest.raises(IndexFileError, match="damaged"):
        index.check()
    with pytest.raises(IndexFileError, match="damaged"):
        index.search(BASE[300], 1)
    if kind == "lists":
        far = index.search(BASE[2_000], 1)
        assert far.ids.tolist() == [[IDS[2_000]]]
    with pytest.raises(IndexFileError, match="damaged"):
        indexes.open(path, mmap=False)
    rot(path, rows.stop + 20, 8)
    with pytest.raises(IndexFileError, match="damaged"):
        indexes.open(path)


@pytest.mark.skipif(os.name == "nt", reason="a file that is mapped cannot be deleted there")
def test_a_file_that_was_deleted_meanwhile_is_still_read_and_checked(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked_file, "SMALL", 0)
    path = tmp_path / "index"
    path.write_bytes(saved.read_bytes())
    index = opened(path)
    path.unlink()
    assert index.search(BASE[2_000], 1).ids.tolist() == [[IDS[2_000]]]
    index.check()


SAVER = """
import os, sys
from pathlib import Path
from mmsearch import indexes
index = indexes.open(Path(sys.argv[1]))
index.add([1], index.search([1] + [0] * 31, 1).scores.repeat(32, 1) * 0 + 32 ** -0.5)
path, stop, count = sys.argv[2], int(sys.argv[3]), 0
def die(event, arguments):
    global count
    # Every system call by which Python opens or moves a file.
    if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "tempfile.mkdtemp"):
        count += 1
        if count == stop:
            os.kill(os.getpid(), 9)
sys.addaudithook(die)
index.save(Path(path))
"""


@pytest.mark.skipif(os.name == "nt", reason="kills a process")
def test_killed_at_any_step_of_saving_the_old_or_the_new_index_is_there(
    saved: Path, tmp_path: Path
) -> None:
    path = tmp_path / "index"
    path.write_bytes(saved.read_bytes())
    sizes = set()
    for stop in range(1, 30):
        done = subprocess.run([sys.executable, "-c", SAVER, str(saved), str(path), str(stop)])
        sizes.add(len(indexes.open(path)))
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
    assert done.returncode == 0
    assert stop > 3
    assert sizes == {N, N + 1}


class Dying:
    """A file whose process is killed in the middle of the write of a given number."""

    def __init__(self, file: Any, stop: int) -> None:
        self.file, self.left = file, stop

    def write(self, data: Any) -> int:
        self.left -= 1
        if self.left == 0:
            self.file.write(bytes(data)[: len(data) // 2])
            self.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.file.write(data)

    def __enter__(self) -> Dying:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a copy of this process")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # the copy only writes
def test_killed_in_any_write_the_old_index_is_there(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "index"
    path.write_bytes(saved.read_bytes())
    index = opened(saved, mmap=False)
    index.add([1], BASE[:1])
    real = io.open

    def dying(stop: int, *arguments: Any, **more: Any) -> Dying:
        return Dying(real(*arguments, **more), stop)

    stop, code = 0, -1
    while code != 0:
        stop += 1
        child = os.fork()
        if child == 0:
            with patch.object(io, "open", partial(dying, stop)):
                index.save(path)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL)
        assert len(indexes.open(path)) == (N if code else N + 1)
    assert stop > 20
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == ["index"]


def test_kinds_that_do_not_exist_are_refused() -> None:
    with pytest.raises(KeyError):
        train(BASE, 4, "lsh")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ivf-rabitq, ivf-sq8, hnsw, not 'lsh'"):
        indexes.build(IDS, BASE, kind="lsh")  # type: ignore[arg-type]


def test_removed_vectors_stay_in_a_graph_until_they_are_too_many() -> None:
    index = indexes.build(IDS, BASE, kind="hnsw")
    assert isinstance(index, HnswIndex)
    assert index.recall is not None
    assert index.recall >= 0.98
    index.remove(IDS[: N // 5])
    assert index.wasted == 0.2
    assert not indexes.outgrown(index)
    assert not np.isin(index.search(BASE[: N // 5], 10).ids, IDS[: N // 5]).any()
    index.remove(IDS[: N // 2])
    assert indexes.outgrown(index)


def test_a_kind_that_was_asked_for_is_made_whatever_came_first(tmp_path: Path) -> None:
    index = indexes.build(IDS, BASE, kind="hnsw", for_now=True)
    assert index.exact
    index.save(tmp_path / "index")
    assert indexes.outgrown(indexes.open(tmp_path / "index"))
    asked = indexes.settings_of(tmp_path / "index")
    assert asked is not None
    index = indexes.build(IDS, BASE, **asked)
    assert isinstance(index, HnswIndex)
    index.save(tmp_path / "index")
    assert indexes.settings_of(tmp_path / "index") == asked
    assert not indexes.outgrown(indexes.open(tmp_path / "index"))
    assert indexes.search_of(tmp_path / "index") == (False, index.recall)
