"""What is kept about the parts of pictures: by content, and never in the way of anything."""

from __future__ import annotations

import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsearch.retrieval.catalog import RegionStore

hashes = st.binary(min_size=32, max_size=32)


def regions(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint8)


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(hashes, st.binary(min_size=1, max_size=64), max_size=8))
def test_what_is_put_is_what_is_got(
    tmp_path_factory: pytest.TempPathFactory, kept: dict[bytes, bytes]
) -> None:
    store = RegionStore(tmp_path_factory.mktemp("regions") / "regions.sqlite")
    store.put("one", {key: np.frombuffer(data, np.uint8) for key, data in kept.items()})
    found = store.get("one", [*kept, b"?" * 32])
    assert {key: value.tobytes() for key, value in found.items()} == kept
    assert store.get("another", list(kept)) == {}
    store.close()


def test_nothing_is_made_where_nothing_is_kept(tmp_path: Path) -> None:
    store = RegionStore(tmp_path / "regions.sqlite")
    assert store.get("one", [b"a" * 32]) == {}
    store.put("one", {})
    store.tidy("one", 0, dict)
    store.close()
    assert list(tmp_path.iterdir()) == []


def test_another_process_sees_it_and_nothing_is_kept_twice(tmp_path: Path) -> None:
    first, second = (RegionStore(tmp_path / "regions.sqlite") for _ in range(2))
    first.put("one", {b"a" * 32: regions(1, 2)})
    second.put("one", {b"a" * 32: regions(9, 9), b"b" * 32: regions(3)})
    found = first.get("one", [b"a" * 32, b"b" * 32])
    assert {key: value.tolist() for key, value in found.items()} == {
        b"a" * 32: [1, 2],
        b"b" * 32: [3],
    }


def test_threads_may_share_it(tmp_path: Path) -> None:
    store = RegionStore(tmp_path / "regions.sqlite")

    def work(number: int) -> int:
        key = bytes([number]) * 32
        store.put("one", {key: regions(number)})
        return int(store.get("one", [key])[key][0])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(40))) == list(range(40))


def test_a_damaged_file_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "regions.sqlite"
    path.write_bytes(b"this is no database" * 1000)
    store = RegionStore(path)
    assert store.get("one", [b"a" * 32]) == {}
    store.put("one", {b"a" * 32: regions(7)})
    store.close()
    assert RegionStore(path).get("one", [b"a" * 32])[b"a" * 32].tolist() == [7]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_file_that_may_not_be_written_to_is_read(tmp_path: Path) -> None:
    path = tmp_path / "regions.sqlite"
    store = RegionStore(path)
    store.put("one", {b"a" * 32: regions(7)})
    store.close()
    tmp_path.chmod(0o555)
    path.chmod(0o444)
    try:
        store = RegionStore(path)
        assert store.get("one", [b"a" * 32])[b"a" * 32].tolist() == [7]
        store.put("one", {b"b" * 32: regions(8)})
        assert store.get("one", [b"b" * 32]) == {}
    finally:
        tmp_path.chmod(0o755)


def test_tidying_forgets_other_kinds_and_what_is_gone_once_it_is_much(tmp_path: Path) -> None:
    path = tmp_path / "regions.sqlite"
    store = RegionStore(path)
    keys = [number.to_bytes(32, "big") for number in range(300)]
    store.put("old", {keys[0]: regions(1)})
    store.put("new", {key: regions(1) for key in keys})
    here = dict(enumerate(keys[:250]))
    store.tidy("new", len(here), lambda: pytest.fail("not yet worth a look"))
    assert count(path) == 300
    here = dict(enumerate(keys[:10]))
    store.tidy("new", len(here), lambda: here)
    assert count(path) == 10
    assert set(store.get("new", keys)) == set(keys[:10])


def count(path: Path) -> int:
    connection = sqlite3.connect(path)
    try:
        return int(connection.execute("SELECT count(*) FROM regions").fetchone()[0])
    finally:
        connection.close()
