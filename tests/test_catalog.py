from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import inspect

from mmsearch.errors import LibraryLocked, LibraryNotFound, LibraryTooNew, StorageError
from mmsearch.retrieval.catalog import Address, Catalog, migrations, tables
from mmsearch.retrieval.catalog import connection as connections
from mmsearch.retrieval.ingest import index
from mmsearch.retrieval.schema import Caption, EncoderSpec, Picture, Problem
from tests.conftest import ColourEncoder, draw

SPEC = EncoderSpec("test", "four", "1", "ab" * 32, "{}", 4)


def picture(path: str = "a.jpg", sha256: bytes = b"\1" * 32) -> Picture:
    return Picture(
        path=path,
        size=10,
        mtime_ns=20,
        sha256=sha256,
        format="JPEG",
        width=3,
        height=2,
        orientation=1,
        taken_at=datetime(2023, 8, 12, 17, 2, 11),
        latitude=48.85,
        longitude=2.35,
        camera="Canon EOS R5",
        sidecars="",
    )


def unit(*values: float) -> np.ndarray:
    return (np.array(values) / np.linalg.norm(values)).astype(np.float32)


@pytest.fixture
def catalog(tmp_path: Path, address_of_catalog: Callable[[], Address | None]) -> Iterator[Catalog]:
    opened = Catalog.create(tmp_path / "catalog.sqlite", address=address_of_catalog())
    yield opened
    opened.close()


def reopened(catalog: Catalog) -> Catalog:
    """The same catalog, as another process opens it."""
    address = None if catalog._server is None else catalog._server.address
    return Catalog.open(catalog.path, address=address)


@pytest.fixture
def encoder_id(catalog: Catalog) -> int:
    with catalog.write() as transaction:
        key = transaction.encoder_id(SPEC, "four")
        transaction.activate(key)
    return key


def test_migrations_make_the_schema_that_the_code_expects(catalog: Catalog) -> None:
    found = inspect(catalog._engine)
    # FTS5 keeps an index of words in several tables; PostgreSQL has no functions in Python.
    beside = ("_word", "word_", "_text")
    names = {name for name in found.get_table_names() if not any(part in name for part in beside)}
    assert names == {*tables.metadata.tables, "migration"}
    for name, table in tables.metadata.tables.items():
        columns = {column["name"]: column for column in found.get_columns(name)}
        assert list(columns) == [column.name for column in table.columns], name
        for column in table.columns:
            assert columns[column.name]["nullable"] == column.nullable or column.primary_key
            declared = column.type.compile(catalog._engine.dialect)
            there = columns[column.name]["type"].compile(catalog._engine.dialect)
            assert there == declared, (name, column.name)
        wanted = {(key.parent.name, key.target_fullname) for key in table.foreign_keys}
        there = {
            (key["constrained_columns"][0], f"{key['referred_table']}.id")
            for key in found.get_foreign_keys(name)
        }
        assert there == wanted, name


def test_migrations_are_named_in_order_and_recorded(catalog: Catalog) -> None:
    names = [step.__name__ for step in migrations.MIGRATIONS]
    assert [name[:5] for name in names] == [f"m{n:03}_" for n in range(1, len(names) + 1)]
    with catalog._connect() as connection:
        assert migrations.applied(connection) == names


def test_a_failing_migration_leaves_the_catalog_as_it_was(
    tmp_path: Path,
    address_of_catalog: Callable[[], Address | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, address = tmp_path / "catalog.sqlite", address_of_catalog()
    Catalog.create(path, address=address).close()

    def m002_broken(connection: object) -> None:
        connection.exec_driver_sql("CREATE TABLE half (id INTEGER)")
        raise RuntimeError("power loss")

    monkeypatch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, m002_broken))
    with pytest.raises(RuntimeError, match="power loss"):
        Catalog.open(path, address=address)
    monkeypatch.undo()
    catalog = Catalog.open(path, address=address)
    assert not inspect(catalog._engine).has_table("half")
    catalog.close()


def test_a_catalog_of_a_later_version_is_refused_and_untouched(catalog: Catalog) -> None:
    with catalog._connect(immediate=True) as connection:
        connection.exec_driver_sql("INSERT INTO migration VALUES ('m999_future', '2099-01-01')")
    catalog.close()
    before = catalog.path.read_bytes() if not catalog.served else b""
    address = None if catalog._server is None else catalog._server.address
    for open_ in (Catalog.open, Catalog.create):
        with pytest.raises(LibraryTooNew, match=r"m999_future.*pip install --upgrade"):
            open_(catalog.path, address=address)
    assert catalog.served or catalog.path.read_bytes() == before


def test_missing_foreign_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(LibraryNotFound):
        Catalog.open(tmp_path / "catalog.sqlite")
    path = tmp_path / "catalog.sqlite"
    path.write_bytes(b"this is no database" * 1000)
    with pytest.raises(StorageError, match="damaged"):
        Catalog.open(path)


def test_what_is_written_comes_back(catalog: Catalog, encoder_id: int) -> None:
    with catalog.write() as transaction:
        file_id = transaction.put_file(picture(), encoder_id, unit(1, 2, 3, 4))
        transaction.set_captions(file_id, [Caption("a red door", "sidecar")])
    (hit,) = catalog.file_hits([(file_id, 0.5)])
    assert (hit.rank, hit.path, hit.score, hit.taken_at) == (
        1,
        "a.jpg",
        0.5,
        datetime(2023, 8, 12, 17, 2, 11),
    )
    ids, vectors = catalog.file_vectors(encoder_id, 4)
    assert ids.tolist() == [file_id]
    assert np.allclose(vectors[0], unit(1, 2, 3, 4), atol=1e-3)
    assert catalog.captions_to_embed(encoder_id, 10) == [(1, "a red door")]
    assert catalog.library().encoder == SPEC
    with catalog._connect() as connection:
        row = connection.execute(tables.file.select()).one()
    assert (row.latitude, row.longitude, row.camera) == (48.85, 2.35, "Canon EOS R5")


def test_a_transaction_happens_whole_or_not_at_all(catalog: Catalog, encoder_id: int) -> None:
    stamp = catalog.stamp()

    def fail_halfway() -> None:
        with catalog.write() as transaction:
            transaction.put_file(picture(), encoder_id, unit(1, 0, 0, 0))
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        fail_halfway()
    assert catalog.counts().files == catalog.counts().vectors == 0
    assert catalog.stamp() == stamp


def test_the_stamp_changes_with_what_an_index_holds_and_only_then(
    catalog: Catalog, encoder_id: int
) -> None:
    stamps = [catalog.stamp()]
    with catalog.write() as transaction:
        file_id = transaction.put_file(picture(), encoder_id, unit(1, 0, 0, 0))
    stamps.append(catalog.stamp())
    with catalog.write() as transaction:
        transaction.remove_files([file_id])
    stamps.append(catalog.stamp())
    assert len(set(stamps)) == 3
    with catalog.write() as transaction:
        transaction.put_problem(Problem("b.jpg", "empty", "zero bytes"), 0, 0)
    assert catalog.stamp() == stamps[-1]
    assert catalog.library().generation == int(stamps[-1].split("-")[0])


def test_removing_a_file_removes_its_vector_and_captions(catalog: Catalog, encoder_id: int) -> None:
    with catalog.write() as transaction:
        file_id = transaction.put_file(picture(), encoder_id, unit(1, 0, 0, 0))
        transaction.set_captions(file_id, [Caption("x", "sidecar")])
        transaction.put_caption_vectors(encoder_id, [1], unit(1, 0, 0, 0)[None])
        transaction.remove_files([file_id])
    counts = catalog.counts()
    assert (counts.files, counts.captions, counts.vectors) == (0, 0, 0)
    assert len(catalog.caption_vectors(encoder_id, 4)[0]) == 0


def test_ids_are_never_given_twice(catalog: Catalog, encoder_id: int) -> None:
    with catalog.write() as transaction:
        first = transaction.put_file(picture(), encoder_id, unit(1, 0, 0, 0))
        transaction.remove_files([first])
        second = transaction.put_file(picture(), encoder_id, unit(1, 0, 0, 0))
    assert second > first


def test_new_content_at_a_path_drops_every_encoders_vector(
    catalog: Catalog, encoder_id: int
) -> None:
    with catalog.write() as transaction:
        other = transaction.encoder_id(EncoderSpec("test", "two", "1", "cd" * 32, "{}", 2), "two")
        transaction.put_file(picture(), encoder_id, unit(1, 0, 0, 0))
        transaction.put_file(picture(), other, unit(1, 0))
    assert len(catalog.file_vectors(encoder_id, 4)[0]) == catalog.counts().vectors == 1
    assert len(catalog.file_vectors(other, 2)[0]) == 1
    with catalog.write() as transaction:
        transaction.put_file(picture(sha256=b"\2" * 32), other, unit(0, 1))
    assert len(catalog.file_vectors(encoder_id, 4)[0]) == catalog.counts().vectors == 0
    assert catalog.file_vectors(other, 2)[1].tolist() == [[0, 1]]


def test_captions_of_different_sources_live_apart(catalog: Catalog, encoder_id: int) -> None:
    with catalog.write() as transaction:
        file_id = transaction.put_file(picture(), encoder_id, unit(1, 0, 0, 0))
        transaction.set_captions(file_id, [Caption("x", "sidecar"), Caption("x", "exif")])
        pairs = [Caption("x", "file:p.tsv"), Caption("y", "file:p.tsv")]
        transaction.set_captions(file_id, pairs, sources=["file:p.tsv"])

    def captions() -> set[tuple[str, str]]:
        with catalog._connect() as connection:
            return {(row.text, row.source) for row in connection.execute(tables.caption.select())}

    assert captions() == {("x", "sidecar"), ("x", "file:p.tsv"), ("y", "file:p.tsv")}
    hits = catalog.caption_hits([(1, 0.9), (2, 0.9), (3, 0.5)])
    assert [(hit.rank, hit.caption) for hit in hits] == [(1, "x"), (2, "y")]
    with catalog.write() as transaction:
        transaction.set_captions(file_id, [])
    assert captions() == {("x", "file:p.tsv"), ("y", "file:p.tsv")}


@given(name=st.binary(min_size=1, max_size=40).filter(lambda raw: b"\0" not in raw))
def test_any_file_name_comes_back_byte_for_byte(name: bytes) -> None:
    path = os.fsdecode(name)
    column = tables.FilePath()
    with sqlite3.connect(":memory:") as connection:
        connection.execute("CREATE TABLE t (path TEXT UNIQUE)")
        stored = column.process_bind_param(path, None)
        connection.execute("INSERT INTO t VALUES (?)", (stored,))
        (value,) = connection.execute("SELECT path FROM t WHERE path = ?", (stored,)).fetchone()
    connection.close()
    assert os.fsencode(column.process_result_value(value, None)) == name
    # And as PostgreSQL has it, where the order of bytes is the order of SQLite's.
    assert tables.path_of(tables.path_stored(path)) == path


@given(first=st.binary(min_size=1, max_size=8), second=st.binary(min_size=1, max_size=8))
def test_paths_have_one_order_everywhere(first: bytes, second: bytes) -> None:
    paths = [os.fsdecode(name) for name in (first, second)]
    as_bytes = sorted(paths, key=tables.path_stored)
    column = tables.FilePath()
    with sqlite3.connect(":memory:") as connection:
        connection.execute("CREATE TABLE t (path TEXT)")
        rows = [(column.process_bind_param(path, None),) for path in paths]
        connection.executemany("INSERT INTO t VALUES (?)", rows)
        found = connection.execute("SELECT path FROM t ORDER BY path").fetchall()
    connection.close()
    assert [column.process_result_value(value, None) for (value,) in found] == as_bytes


@given(text=st.text(max_size=12) | st.just("\U0010ffff") | st.just("a\0b"))
def test_any_text_comes_back_from_postgresql(text: str) -> None:
    stored = tables.text_stored(text)
    assert "\0" not in stored
    assert tables.text_of(stored) == text


def test_a_locked_catalog_says_so(
    catalog: Catalog, encoder_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "BUSY_TIMEOUT_S", 0.1)
    second = reopened(catalog)
    with catalog.write() as transaction:
        transaction.put_problem(Problem("b.jpg", "empty", "zero bytes"), 0, 0)
        told = pytest.raises(LibraryLocked, match=r"in use by another (process|mmsearch \(pid)")
        with told, second.write():
            pytest.fail("two writers at once")
        assert second.counts().problems == 0
    assert second.counts().problems == 1
    second.close()


def test_a_damaged_vector_is_named(catalog: Catalog, encoder_id: int) -> None:
    with catalog.write() as transaction:
        transaction.put_file(picture(), encoder_id, unit(1, 0, 0, 0))
    with catalog._connect(immediate=True) as connection:
        connection.execute(tables.file_vector.update().values(vector=b"\0\1"))
    with pytest.raises(StorageError, match="2 bytes, 8 were expected"):
        catalog.file_vectors(encoder_id, 4)


def test_a_full_disk_says_so_and_loses_nothing(tmp_path: Path) -> None:
    """A real file system of 8 MiB, where mounting one is allowed."""
    disk = tmp_path / "small disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    try:
        allowed = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        for i in range(100):
            draw(disk / f"{i:03}.png", "red", (40 + i, 30))
            (disk / f"{i:03}.txt").write_text(f"a caption of number {i} " * 80)
        filler = disk / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(disk).free - 600_000))
        with pytest.raises(StorageError, match=r"(full|failed to read or write)"):
            index(disk, model=ColourEncoder())
        filler.unlink()
        encoder = ColourEncoder()
        report = index(disk, model=encoder)
        assert report.files == 100
        assert report.captions == 100
        assert 0 < encoder.embedded_images < 100
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
