"""Search on a GPU: what is decided about it, tried with FAISS on the CPU in the GPU's place.

Marked tests do the same on a real one.
"""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mmsearch import indexes
from mmsearch.indexes import faiss_devices, faiss_gpu
from mmsearch.indexes.base import Neighbors, VectorIndex
from mmsearch.indexes.exact import ExactIndex
from mmsearch.indexes.faiss import FaissIndex
from mmsearch.indexes.faiss_devices import Devices, gpu_bytes, pays_on_gpu
from mmsearch.indexes.faiss_gpu import GpuIndex
from mmsearch.indexes.faiss_hnsw import HnswIndex
from mmsearch.indexes.faiss_ivf import IvfIndex, Kind, train
from mmsearch.indexes.grown import GrownIndex
from mmsearch.retrieval import index_files
from mmsearch.retrieval.engine import open_engine
from mmsearch.retrieval.ingest import index as index_library
from mmsearch.retrieval.schema import Target
from tests.conftest import ColourEncoder, draw

DIM, N = 32, 4_000
IDS = np.arange(N) * 3 + 2**40
HALF = 2e-3
"""What storing vectors in half precision may move a score by."""
FULL = RuntimeError(
    "Error in allocMemory(const AllocRequest&)\nat StandardGpuResources.cpp:452: "
    "(cudaMalloc error out of memory [2])"
)


def clusters(n: int, seed: int) -> NDArray[np.float32]:
    centres = np.random.default_rng(0).normal(size=(60, DIM))
    generator = np.random.default_rng(seed)
    rows = centres[generator.integers(0, 60, n)] + 0.9 * generator.normal(size=(n, DIM))
    unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit.astype(np.float32)


BASE = clusters(N, 1).astype(np.float16).astype(np.float32)
QUERIES = clusters(400, 2)


class Copy:
    """FAISS's index as the owner has it: says who asks what, and can block or fail."""

    def __init__(self, index: Any, device: FakeDevices) -> None:
        self._index, self._device = index, device

    def search(self, queries: NDArray[np.float32], k: int, params: Any = None) -> Any:
        device = self._device
        device.called()
        device.batches.append(len(queries))
        assert k <= faiss_gpu.MOST
        assert params is None or params.nprobe <= faiss_gpu.MOST
        assert device.open.wait(20)
        if len(device.batches) == device.fails_at:
            raise type(device.failure)(*device.failure.args)  # One that nobody keeps.
        return self._index.search(queries, k, params=params)


class FakeDevices(Devices):
    """GPUs made of the CPU, which hold fp32 where a GPU rounds queries too."""

    def __init__(self, count: int = 1, failure: Exception = FULL, fails_at: int = -1) -> None:
        self.names = [f"cuda:{number}" for number in range(count)]
        self.failure, self.fails_at = failure, fails_at
        self.batches: list[int] = []
        self.threads: set[int] = set()
        self.open = threading.Event()
        self.open.set()
        self.largest_block = 0
        self.made: Any = None

    def called(self) -> None:
        self.threads.add(threading.get_ident())
        assert threading.get_ident() != threading.main_thread().ident

    def free_bytes(self) -> int | None:
        self.called()
        if self.fails_at == 0:
            raise type(self.failure)(*self.failure.args)
        return None

    def flat(self, n: int, dim: int, rows: Any) -> Any:
        def recorded(start: int, stop: int) -> NDArray[np.float32]:
            self.largest_block = max(self.largest_block, stop - start)
            return rows(start, stop)  # type: ignore[no-any-return]

        self.called()
        return self._kept(super().flat(n, dim, recorded))

    def lists(self, lists: Any) -> Any:
        self.called()
        return self._kept(super().lists(lists))

    def _kept(self, index: Any) -> Copy:
        copy = Copy(index, self)
        self.made = weakref.ref(copy)
        return copy

    def _resources(self) -> Any:
        return None

    def _piece(self, name: str, dim: int, resources: Any) -> Any:
        return faiss.IndexFlatIP(dim)

    def _lists(self, name: str, lists: Any, resources: Any) -> Any:
        return faiss.clone_index(lists)


def flat(n: int = N) -> FaissIndex:
    index = FaissIndex(DIM)
    index.add(IDS[:n], BASE[:n])
    return index


def lists(kind: Kind) -> IvfIndex:
    index = train(BASE, 40, kind, strides=(1,) * 4)
    index.add(IDS, BASE)
    index.effort, index.shortlist = 16, 80
    return index


def on_gpu(index: VectorIndex, devices: Devices | None = None, **more: Any) -> GpuIndex:
    copy = faiss_gpu.to_gpu(index, devices or FakeDevices(), **more)
    assert isinstance(copy, GpuIndex)
    return copy


def oracle(n: int = N) -> ExactIndex:
    index = ExactIndex(DIM)
    index.add(IDS[:n], BASE[:n])
    return index


def overlap(found: NDArray[np.int64], right: NDArray[np.int64]) -> float:
    pairs = zip(found.tolist(), right.tolist(), strict=True)
    return float(np.mean([len(set(a) & set(b)) / len(set(b)) for a, b in pairs]))


@contextmanager
def piled_up(
    index: GpuIndex, fake: FakeDevices, calls: Sequence[Callable[[], Neighbors]]
) -> Iterator[list[Future[Neighbors]]]:
    """Ask everything at once: the GPU is busy with the first while the others queue up."""
    done = len(fake.batches)
    fake.open.clear()
    with ThreadPoolExecutor(len(calls)) as pool:
        try:
            futures = [pool.submit(calls[0])]
            until(lambda: len(fake.batches) > done)
            futures += [pool.submit(call) for call in calls[1:]]
            until(lambda: len(index._owner._requests) == len(calls) - 1)
            yield futures
        finally:
            fake.open.set()


def until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture
def warnings_logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING)
    return caplog


# Answers.


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    first=st.integers(0, 380),
    count=st.integers(1, 20),
    k=st.one_of(st.integers(1, 60), st.sampled_from([2_040, 2_048, 2_049, N, N + 5])),
    among=st.one_of(st.none(), st.sets(st.integers(0, N + 9), max_size=40)),
    devices=st.integers(1, 3),
)
def test_a_flat_copy_answers_as_exact_search_does(
    first: int,
    count: int,
    k: int,
    among: set[int] | None,
    devices: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Several pieces on each GPU, several blocks in each piece.
    monkeypatch.setattr(faiss_devices, "PIECE_BYTES", 600 * 2 * DIM)
    monkeypatch.setattr(faiss_devices, "BLOCK", 250 * DIM)
    fake = FakeDevices(devices)
    index = on_gpu(flat(), fake)
    queries = QUERIES[first : first + count]
    allowed = None if among is None else [3 * one + 2**40 for one in among]
    found = index.search(queries, k, among=allowed)
    right = oracle().search(queries, k, among=allowed)
    np.testing.assert_allclose(found.scores, right.scores, atol=HALF)
    np.testing.assert_array_equal(found.ids < 0, right.ids < 0)
    assert overlap(found.ids, right.ids) > 0.97
    assert (len(fake.batches) > 0) == (k <= faiss_gpu.MOST and among is None)
    assert len(fake.threads) == 1
    assert fake.largest_block <= 250
    assert (index.form, index.exact, index.recall) == ("flat", True, 1.0)
    index.close()


@pytest.mark.parametrize("devices", [1, 2])
def test_lists_of_bytes_find_what_they_find_on_the_cpu(devices: int) -> None:
    index, fake = lists("ivf-sq8"), FakeDevices(devices)
    before = {e: index.search(QUERIES, 10, effort=e) for e in (1, 4, None)}
    copy = on_gpu(index, fake)
    assert (copy.form, copy.exact, copy.recall) == ("ivf-sq8", False, None)
    for effort, right in before.items():
        found = copy.search(QUERIES, 10, effort=effort)
        np.testing.assert_array_equal(found.ids, right.ids)
        np.testing.assert_array_equal(found.scores, right.scores)
    assert fake.batches == [400, 400, 400]
    # All lists, and more candidates than a GPU names, are the CPU's.
    right = oracle().search(QUERIES, 10)
    assert overlap(copy.search(QUERIES, 10, effort=40).ids, right.ids) > 0.999
    copy.search(QUERIES, 1_500)
    assert len(fake.batches) == 3


def test_what_was_removed_from_a_graph_is_not_found_on_the_gpu_either() -> None:
    graph = HnswIndex(DIM)
    graph.add(IDS, BASE)
    graph.remove(IDS[::3])
    right = ExactIndex(DIM)
    right.add(IDS, BASE)
    right.remove(IDS[::3])
    index = on_gpu(graph)
    index.wait()
    assert index.form == "flat"
    for k in (1, 10, 100):
        found, expected = index.search(QUERIES, k), right.search(QUERIES, k)
        assert (found.ids >= 0).all()
        np.testing.assert_allclose(found.scores, expected.scores, atol=2e-3)
    index.close()


@pytest.mark.parametrize("devices", [1, 3])
def test_lists_of_bits_become_exact_where_they_fit_and_bytes_where_not(devices: int) -> None:
    index = lists("ivf-rabitq")
    measured = overlap(index.search(QUERIES, 10).ids, oracle().search(QUERIES, 10).ids)
    copy = on_gpu(index, FakeDevices(devices), memory_bytes=gpu_bytes(N, DIM, "flat"))
    assert (copy.form, copy.exact) == ("flat", True)
    right = oracle().search(QUERIES, 10)
    assert overlap(copy.search(QUERIES, 10).ids, right.ids) > 0.999
    index.remove(IDS[:50])
    left = oracle()
    left.remove(IDS[:50])
    fake = FakeDevices(devices)
    copy = on_gpu(copy, fake, memory_bytes=gpu_bytes(N, DIM, "ivf-sq8"))
    assert (copy.form, copy.exact) == ("ivf-sq8", False)
    found = copy.search(QUERIES, 10)
    assert overlap(found.ids, left.search(QUERIES, 10).ids) >= measured - 0.01
    assert not set(found.ids.ravel().tolist()) & set(IDS[:50].tolist())
    by_id = {int(id_): row for id_, row in zip(IDS, BASE, strict=True)}
    true = [[by_id[i] @ q for i in ids] for q, ids in zip(QUERIES, found.ids.tolist(), strict=True)]
    np.testing.assert_allclose(found.scores, true, atol=HALF)
    assert fake.batches == [400]


def test_an_exact_index_with_lists_becomes_flat() -> None:
    index = lists("ivf-sq8")
    index.effort = 40
    assert on_gpu(index).form == "flat"


def test_a_grown_index_has_its_base_on_the_gpu(tmp_path: Path) -> None:
    flat().save(tmp_path / "base")
    path = tmp_path / "base"
    right, fake = oracle(), FakeDevices()
    grown = GrownIndex(FaissIndex.open(path), path)
    for each in (grown, right):
        each.remove(IDS[::7])
        each.add([1, 2, 3], QUERIES[:3])
    index = faiss_gpu.to_gpu(grown, fake)
    assert isinstance(index, GrownIndex)
    for among in (None, np.append(IDS[:200], 2)):
        found = index.search(QUERIES, 10, among=among)
        expected = right.search(QUERIES, 10, among=among)
        np.testing.assert_allclose(found.scores, expected.scores, atol=HALF)
        assert overlap(found.ids, expected.ids) > 0.99
    assert fake.batches
    index.remove([1])
    index.add([5], QUERIES[5:6])
    assert index.search(QUERIES[5], 1).ids.tolist() == [[5]]
    index.save(tmp_path / "changes")
    assert (tmp_path / "changes").stat().st_size < 9_000
    assert indexes.open(tmp_path / "changes").search(QUERIES[5], 1).ids.tolist() == [[5]]
    # What is merged changes the base: its copy goes.
    merged = index.merged()
    assert isinstance(merged, GpuIndex)
    assert merged.form is None
    assert len(merged) == len(right)
    assert merged.search(QUERIES[5], 1).ids.tolist() == [[5]]


# Threads.


def test_what_waits_is_one_batch_and_everybody_gets_his_own() -> None:
    fake = FakeDevices()
    index, right = on_gpu(flat(), fake), oracle().search(QUERIES, 20)
    asked = [(0, 1, 5), *((3 * i, 3, k) for i in range(16) for k in (5, 20))]
    calls = [partial(index.search, QUERIES[at : at + n], k) for at, n, k in asked]
    with piled_up(index, fake, calls) as futures:
        fake.open.set()
        for future, (at, n, k) in zip(futures, asked, strict=True):
            np.testing.assert_array_equal(future.result(20).ids, right.ids[at : at + n, :k])
    assert fake.batches[0] == 1
    assert sorted(fake.batches[1:]) == [48, 48]
    assert len(fake.threads) == 1


def test_a_full_batch_does_not_keep_others_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss_gpu, "TOGETHER", 10)
    fake = FakeDevices()
    index, right = on_gpu(flat(), fake), oracle().search(QUERIES, 1)
    calls = [partial(index.search, QUERIES[i : i + 4], 1) for i in range(12)]
    with piled_up(index, fake, calls) as futures:
        fake.open.set()
        for i, future in enumerate(futures):
            np.testing.assert_array_equal(future.result(20).ids, right.ids[i : i + 4])
    assert fake.batches == [4, 12, 12, 12, 8]


def test_the_cpu_answers_until_the_copy_is_there() -> None:
    fake, started, go = FakeDevices(), threading.Event(), threading.Event()

    def free_bytes() -> None:
        started.set()
        assert go.wait(20)

    fake.free_bytes = free_bytes  # type: ignore[method-assign]
    index = on_gpu(flat(), fake, wait=False)
    assert started.wait(20)
    right = oracle().search(QUERIES, 10)
    np.testing.assert_array_equal(index.search(QUERIES, 10).ids, right.ids)
    assert (index.form, fake.batches) == (None, [])
    go.set()
    index.wait()
    np.testing.assert_array_equal(index.search(QUERIES, 10).ids, right.ids)
    assert (index.form, fake.batches) == ("flat", [400])


# Failures.


def test_no_memory_for_the_copy(warnings_logged: pytest.LogCaptureFixture) -> None:
    for devices, more in ((FakeDevices(fails_at=0), {}), (FakeDevices(), {"memory_bytes": 1000})):
        warnings_logged.clear()
        index = on_gpu(flat(), devices, **more)
        found = index.search(QUERIES, 10)
        np.testing.assert_array_equal(found.ids, oracle().search(QUERIES, 10).ids)
        assert (index.form, index.exact, devices.batches) == (None, True, [])
        (record,) = warnings_logged.records
        assert "memory" in record.getMessage()
        assert "the CPU answers" in record.getMessage()
        assert "\n" not in record.getMessage()


@pytest.mark.parametrize("failure", [FULL, MemoryError("std::bad_alloc")])
def test_memory_that_ends_loses_no_answer(
    failure: Exception, warnings_logged: pytest.LogCaptureFixture
) -> None:
    fake = FakeDevices(failure=failure, fails_at=3)
    index, right = on_gpu(lists("ivf-rabitq"), fake), oracle().search(QUERIES, 10)
    assert index.exact
    for _ in range(2):
        index.search(QUERIES[0], 10)
    calls = [partial(index.search, QUERIES[i], 10 + i % 2) for i in range(16)]
    with piled_up(index, fake, calls) as futures:
        fake.open.set()
        found = [future.result(20).ids[0, :10] for future in futures]
    assert overlap(np.array(found), right.ids[:16]) > 0.9
    assert len(warnings_logged.records) == 1
    index._owner._thread.join(5)
    assert (index.form, index.exact, len(fake.batches)) == (None, False, 3)
    assert fake.made() is None
    index.search(QUERIES, 10)
    assert len(warnings_logged.records) == 1


def test_errors_reach_who_asked_and_the_next_is_answered() -> None:
    fake = FakeDevices(failure=RuntimeError("CUDA error 77"), fails_at=1)
    index = on_gpu(flat(), fake)
    with pytest.raises(RuntimeError, match="77"):
        index.search(QUERIES, 10)
    assert index.search(BASE[3], 1).ids.tolist() == [[IDS[3]]]
    assert fake.batches == [400, 1]


def test_errors_of_copying_reach_who_waits(warnings_logged: pytest.LogCaptureFixture) -> None:
    fake = FakeDevices(failure=RuntimeError("CUDA error 999"), fails_at=0)
    with pytest.raises(RuntimeError, match="999"):
        on_gpu(flat(), fake)
    index = on_gpu(flat(), fake, wait=False)
    index._owner.ready.wait(20)
    assert index.search(BASE[3], 1).ids.tolist() == [[IDS[3]]]
    assert len(warnings_logged.records) == 2


# Changes and the end.


@pytest.mark.parametrize("kind", ["flat", "ivf-sq8"])
def test_a_change_drops_the_copy(kind: str) -> None:
    fake = FakeDevices()
    index = on_gpu(flat() if kind == "flat" else lists("ivf-sq8"), fake)
    index.search(QUERIES, 10)
    assert fake.made() is not None
    index.add([7], QUERIES[:1])
    assert index.search(QUERIES[0], 1).ids.tolist() == [[7]]
    assert fake.made() is None
    again = on_gpu(index, fake)
    assert (again.form,) == (kind,)
    assert again.search(QUERIES[0], 1).ids.tolist() == [[7]]
    assert again.remove([7, 8]) == 1
    assert 7 not in again.search(QUERIES[:1], 5).ids
    assert again.form is None
    assert len(fake.batches) == 2


def test_a_copy_is_saved_as_what_it_is_a_copy_of(tmp_path: Path) -> None:
    index = on_gpu(lists("ivf-rabitq"))
    index.save(tmp_path / "index")
    opened = indexes.open(tmp_path / "index")
    assert isinstance(opened, IvfIndex)
    np.testing.assert_array_equal(opened.ids, index.ids)
    index.check()


def test_closing_gives_the_gpu_back_and_the_cpu_goes_on() -> None:
    fake = FakeDevices()
    index = on_gpu(flat(), fake)
    right = index.search(QUERIES, 10)
    calls = [partial(index.search, QUERIES[i], 10) for i in range(8)]
    with piled_up(index, fake, calls) as futures:
        ending = threading.Thread(target=index.close)
        ending.start()
        until(lambda: index._owner.closed)
        fake.open.set()
        for i, future in enumerate(futures):
            np.testing.assert_array_equal(future.result(20).ids, right.ids[i : i + 1])
        ending.join(5)
    assert fake.batches[1:] == [1]
    assert not index._owner._thread.is_alive()
    assert fake.made() is None
    index.close()
    np.testing.assert_array_equal(index.search(QUERIES, 10).ids, right.ids)


def test_what_nobody_holds_any_more_ends() -> None:
    fake = FakeDevices()
    index = on_gpu(flat(), fake)
    thread = index._owner._thread
    del index
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()
    assert fake.made() is None


def test_a_copy_serves_on_for_the_same_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "base"
    flat().save(path)
    fake = FakeDevices()
    first = on_gpu(indexes.open(path), fake)
    grown = GrownIndex(FaissIndex.open(path), path)
    grown.add([7], QUERIES[:1])
    second = faiss_gpu.to_gpu(grown, fake, instead_of=first)
    assert isinstance(second, GrownIndex)
    assert second.base is first
    third = faiss_gpu.to_gpu(indexes.open(path), fake, instead_of=second)
    assert third is first
    flat(100).save(tmp_path / "other")
    other = on_gpu(indexes.open(tmp_path / "other"), fake, instead_of=third)
    assert other is not first
    assert (first.form, other.form) == (None, "flat")
    # In memory there is nothing to tell them apart by.
    assert on_gpu(flat(100), fake, instead_of=other) is not other


# Engines.


@pytest.fixture
def gpu_seen(monkeypatch: pytest.MonkeyPatch) -> list[FakeDevices]:
    """One GPU is there; everything that is copied to it."""
    made: list[FakeDevices] = []

    def devices(names: Sequence[str] | None = None) -> FakeDevices:
        made.append(FakeDevices())
        made[-1].names = list(names or ["cuda:0"])
        return made[-1]

    monkeypatch.setattr(faiss_devices, "Devices", devices)
    monkeypatch.setattr(faiss_devices, "gpus", lambda: ["cuda:0"])
    return made


@pytest.fixture
def library(photos: Path, encoder: ColourEncoder, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(index_files, "GROWN_FROM_BYTES", 0)
    index_library(photos, model=encoder)
    return photos


def test_an_engine_copies_beside_its_work_and_keeps_what_stays(
    library: Path, encoder: ColourEncoder, gpu_seen: list[FakeDevices]
) -> None:
    with open_engine(library, model=encoder, device="cpu") as on_cpu:
        right = on_cpu.search("red", k=4)
    with open_engine(library, model=encoder, device="cuda") as engine:
        assert gpu_seen == []
        first = engine.search("red", k=4)
        index = engine._states[Target.IMAGES].index
        assert isinstance(index, GpuIndex)
        index.wait()
        second = engine.search("red", k=4)
        assert first.hits == second.hits == right.hits
        assert gpu_seen[0].batches[-1:] == [1]
        (library / "red.jpg").rename(library / "crimson.jpg")
        draw(library / "another.jpg", "red", (70, 32))
        index_library(library, model=encoder)
        found = {hit.path for hit in engine.search("red", k=2).hits}
        assert found == {"another.jpg", "crimson.jpg"}
        grown = engine._states[Target.IMAGES].index
        assert isinstance(grown, GrownIndex)
        assert grown.base is index
        assert sum(bool(fake.made) for fake in gpu_seen) == 1
    assert index.form is None


def test_an_engine_asks_for_a_gpu_only_where_it_pays(
    library: Path,
    encoder: ColourEncoder,
    gpu_seen: list[FakeDevices],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never() -> list[str]:
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(faiss_devices, "gpus", never)
        for device in (None, "cpu"):
            with open_engine(library, model=encoder, device=device) as engine:
                assert len(engine.search("red", k=4).hits) == 4
    assert gpu_seen == []
    monkeypatch.setattr(faiss_devices, "pays_on_gpu", lambda *_: True)
    with open_engine(library, model=encoder) as engine:
        assert len(engine.search("red", k=4).hits) == 4
    assert [fake.names for fake in gpu_seen] == [["cuda:0"]]
    monkeypatch.setattr(faiss_devices, "gpus", list)
    with open_engine(library, model=encoder) as engine:
        assert len(engine.search("red", k=4).hits) == 4
    assert len(gpu_seen) == 1
    for device in ("cuda", "cuda:0"):
        with pytest.raises(ValueError, match=f"{device} is not there; FAISS sees no GPU"):
            open_engine(library, model=encoder, device=device)


# The end, what is there, what fits, what pays.


AT_EXIT = """
import numpy as np, sys
sys.path.insert(0, {folder!r})
from tests.test_gpu_index import FakeDevices, QUERIES, flat, on_gpu
index = on_gpu(flat())
index.search(QUERIES, 3)
busy = on_gpu(flat(), wait=False)
print(index.form)
"""


def test_the_interpreter_ends_in_silence() -> None:
    folder = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT.format(folder=folder)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "flat\n", "")


def test_gpus_are_named_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
    assert indexes.gpus() == ["cuda:0", "cuda:1"]
    assert Devices().names == ["cuda:0", "cuda:1"]
    assert Devices(["cuda:1"]).names == ["cuda:1"]
    for wrong in (["cuda:2"], []):
        with pytest.raises(ValueError, match="FAISS sees cuda:0, cuda:1"):
            indexes.to_gpu(flat(), wrong)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    with pytest.raises(ValueError, match="a GPU is not there; FAISS sees no GPU"):
        indexes.to_gpu(flat())


def test_free_memory_is_shared_and_has_a_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {0: 10 * 10**9, 1: 8 * 10**9}
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 3)
    monkeypatch.setattr(faiss_devices, "_free_bytes", free.get)
    assert Devices(["cuda:0", "cuda:1"]).free_bytes() == 2 * (
        7_200_000_000 - faiss_devices.WORKSPACE
    )
    assert Devices().free_bytes() is None


def test_an_empty_index_and_other_kinds() -> None:
    empty = FaissIndex(DIM)
    assert faiss_gpu.to_gpu(empty, FakeDevices()) is empty
    with pytest.raises(ValueError, match="ExactIndex has no form on a GPU"):
        faiss_gpu.to_gpu(oracle(), FakeDevices())


def test_one_query_never_pays_and_a_long_life_with_many_vectors_does() -> None:
    for n in (10**4, 10**6, 10**8):
        assert not pays_on_gpu(n, 512, 1)
    for n, queries, pays in [
        (15_000, 10**6, False),  # No slower on the CPU.
        (100_000, 1_000, False),
        (200_000, 1_000, True),
        (10**6, 100, False),
        (10**6, 1_000, True),
        (10**8, 100, True),
    ]:
        assert indexes.pays_on_gpu(n, 512, queries) == pays


def test_the_table_of_what_fits_is_what_is_calculated() -> None:
    text = (Path(__file__).parents[1] / "ARCHITECTURE.md").read_text()
    for form in ("flat", "ivf-sq8"):
        for card in (24, 80, 141):
            room = faiss_devices.USABLE * card * 10**9 - faiss_devices.WORKSPACE
            cells = []
            for dim in (256, 512, 768, 1024):
                millions = next(
                    m for m in range(10_000) if indexes.gpu_bytes((m + 1) * 10**6, dim, form) > room
                )
                cells.append(str(millions))
            assert f"| {form}, {card} GB | {' | '.join(cells)} |" in text
    assert gpu_bytes(10**8, 512, "flat") < faiss_devices.USABLE * 141e9 - faiss_devices.WORKSPACE


# On a real GPU.


@pytest.mark.gpu
def test_gpu_flat_answers_as_exact_search_does() -> None:
    for devices in (["cuda:0"], None):
        index = indexes.to_gpu(flat(), devices)
        assert isinstance(index, GpuIndex)
        assert index.form == "flat"
        for k in (1, 10, 2_048, 2_049):
            found, right = index.search(QUERIES, k), oracle().search(QUERIES, k)
            np.testing.assert_allclose(found.scores, right.scores, atol=HALF)
            assert overlap(found.ids, right.ids) > 0.99
        index.close()


@pytest.mark.gpu
def test_gpu_flat_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss_devices, "PIECE_BYTES", 600 * 2 * DIM)
    monkeypatch.setattr(faiss_devices, "BLOCK", 250 * DIM)
    index = indexes.to_gpu(flat())
    # A piece has fewer rows than are asked for.
    for k in (10, 1_000):
        found, right = index.search(QUERIES, k), oracle().search(QUERIES, k)
        np.testing.assert_allclose(found.scores, right.scores, atol=HALF)
    index.close()


@pytest.mark.gpu
def test_gpu_lists_of_bytes_have_the_recall_of_the_cpu() -> None:
    index, right = lists("ivf-sq8"), oracle().search(QUERIES, 10).ids
    on_cpu = {e: overlap(index.search(QUERIES, 10, effort=e).ids, right) for e in (1, 4, 16)}
    copy = indexes.to_gpu(index)
    assert isinstance(copy, GpuIndex)
    assert copy.form == "ivf-sq8"
    for effort, recall in on_cpu.items():
        found = overlap(copy.search(QUERIES, 10, effort=effort).ids, right)
        assert found == pytest.approx(recall, abs=0.01)
    copy.close()


@pytest.mark.gpu
def test_gpu_lists_of_bits_become_bytes() -> None:
    index, right = lists("ivf-rabitq"), oracle().search(QUERIES, 10).ids
    measured = overlap(index.search(QUERIES, 10).ids, right)
    copy = indexes.to_gpu(index, memory_bytes=gpu_bytes(N, DIM, "ivf-sq8"))
    assert isinstance(copy, GpuIndex)
    assert copy.form == "ivf-sq8"
    assert overlap(copy.search(QUERIES, 10).ids, right) >= measured - 0.01
    copy.close()


@pytest.mark.gpu
def test_gpu_many_threads() -> None:
    index, right = indexes.to_gpu(flat()), oracle().search(QUERIES, 10)
    with ThreadPoolExecutor(16) as pool:
        for i, found in enumerate(pool.map(lambda q: index.search(q, 10), QUERIES)):
            np.testing.assert_allclose(found.scores[0], right.scores[i], atol=HALF)
    index.close()


@pytest.mark.gpu
def test_gpu_free_memory_is_told() -> None:
    free = Devices(["cuda:0"]).free_bytes()
    assert free is not None
    assert 0 < free < 10**12


@pytest.mark.gpu
def test_gpu_out_of_memory_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, warnings_logged: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(faiss_devices, "WORKSPACE", 1 << 50)
    index = indexes.to_gpu(flat(), memory_bytes=10**12)
    np.testing.assert_array_equal(index.search(QUERIES, 10).ids, oracle().search(QUERIES, 10).ids)
    assert len(warnings_logged.records) == 1
