"""A library whose catalog a server of PostgreSQL's keeps, end to end and with what can go wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

import mmsearch
from mmsearch.errors import (
    ConnectionLost,
    LibraryLocked,
    LibraryNotFound,
    LibraryTooNew,
    SourceError,
    StorageError,
)
from mmsearch.retrieval import backup, model_change
from mmsearch.retrieval.catalog import Catalog, advisory
from mmsearch.retrieval.catalog import store as catalog_store
from mmsearch.retrieval.doctor import examination, examine
from mmsearch.retrieval.ingest import index
from mmsearch.retrieval.library import Library
from mmsearch.retrieval.library_config import LibraryConfig
from mmsearch.retrieval.schema import Target
from tests.conftest import COLOURS, ColourEncoder, draw
from tests.postgres_server import Postgres, find_binaries, free_port, running, started

pytestmark = pytest.mark.postgresql

CLONE = Path(__file__).parents[1]


def config_of(folder: Path) -> LibraryConfig:
    return LibraryConfig.read(folder / ".mmsearch")


def test_a_library_is_made_indexed_and_asked(
    photos: Path, encoder: ColourEncoder, postgres: Postgres
) -> None:
    (photos / "red.txt").write_text("a red door")
    report = index(photos, model=encoder, catalog=postgres.url)
    assert (report.added, report.files, report.captions) == (6, 6, 1)
    assert not (photos / ".mmsearch" / "catalog.sqlite").exists()
    config = config_of(photos)
    assert config.catalog == postgres.url
    assert (photos / ".mmsearch" / "library.toml").stat().st_mode & 0o77 == 0
    with mmsearch.open(photos, model=encoder) as engine:
        assert engine.search("red", k=1).hits[0].path == "red.jpg"
        assert engine.search("red.jpg", k=1).hits[0].path == "red.jpg"
        assert "red.jpg" in {hit.path for hit in engine.search("door", k=2).hits}
        assert [hit.path for hit in engine.search("blue", k=9, where="folder = 'trip'").hits] == [
            "trip/blue.jpg",
            "trip/black.jpg",
        ]
    # Again, without naming the address, and named again.
    assert index(photos, model=encoder).unchanged == 6
    assert index(photos, model=encoder, catalog=postgres.url).unchanged == 6
    assert encoder.embedded_images == 6
    (photos / "red.jpg").rename(photos / "rouge.jpg")
    (photos / "red.txt").unlink()
    report = index(photos, model=encoder)
    assert (report.moved, report.removed, report.captions) == (1, 0, 0)


# Addresses, folders and what is in them.


def test_each_library_has_a_schema_of_its_own_in_one_database(
    tmp_path: Path, encoder: ColourEncoder, postgres: Postgres
) -> None:
    for name in ("one", "two"):
        draw(tmp_path / name / "photos" / f"{name}.jpg", "red")
        index(tmp_path / name / "photos", model=encoder, catalog=postgres.url)
    configs = [config_of(tmp_path / name / "photos") for name in ("one", "two")]
    assert configs[0].uid != configs[1].uid
    for name in ("one", "two"):
        with closing(Library.open(tmp_path / name / "photos")) as library:
            assert [*library.catalog.known_files(1)] == [f"{name}.jpg"]


def test_a_new_folder_is_kept_from_an_occupied_schema(
    photos: Path, tmp_path: Path, encoder: ColourEncoder, postgres: Postgres
) -> None:
    url = postgres.with_schema("occupied")
    index(photos, model=encoder, catalog=url)
    other = tmp_path / "other"
    draw(other / "x.jpg", "blue")
    with pytest.raises(LibraryNotFound, match=r"holds another library.*Nothing was changed"):
        index(other, model=encoder, catalog=url)
    assert not (other / ".mmsearch" / "library.toml").exists()
    with closing(Library.open(photos)) as library:
        assert library.catalog.counts().files == 6
    # A copy of library.toml beside the same pictures is the same library.
    copy = tmp_path / "elsewhere" / "my photos"
    shutil.copytree(photos, copy, ignore=shutil.ignore_patterns("index", "lock*"))
    assert index(copy, model=encoder).unchanged == 6
    with mmsearch.open(copy, model=encoder) as engine:
        found = engine.search("red.jpg", k=1)
        assert found.file(found.hits[0]) == copy / "red.jpg"
    # A folder that says another uid than the schema does is refused by every command.
    replace(config_of(photos), uid="0" * 32).write(photos / ".mmsearch")
    with pytest.raises(LibraryNotFound, match="holds another library"):
        Library.open(photos)


def test_what_is_not_ours_is_left_alone(photos: Path, postgres: Postgres) -> None:
    with postgres.connect() as connection:
        connection.execute("CREATE SCHEMA theirs")
        connection.execute("CREATE TABLE theirs.file (id INTEGER)")
    with pytest.raises(StorageError, match="holds tables that are not mmsearch's"):
        Library.create(photos, catalog=postgres.with_schema("theirs"))
    assert not (photos / ".mmsearch").exists() or not [*(photos / ".mmsearch").glob("*.toml")]
    with pytest.raises(SourceError, match="no name of a schema"):
        Library.create(photos, catalog=postgres.with_schema("No-Name"))


def test_a_beginning_that_was_cut_short_goes_on(
    photos: Path, encoder: ColourEncoder, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.url

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for step in ("_migrate", "_connect"):
        monkeypatch.setattr(Catalog, step, killed)
        with pytest.raises(KeyboardInterrupt):
            Library.create(photos, catalog=url)
        monkeypatch.undo()
        uid = config_of(photos).uid
        assert uid is not None
    with pytest.raises(LibraryNotFound, match="only just being made"):
        Library.open(photos)
    assert index(photos, model=encoder, catalog=url).added == 6
    assert config_of(photos).uid == uid


def test_two_that_begin_at_the_same_moment_make_one_library(
    photos: Path, postgres: Postgres
) -> None:
    uids: list[str] = []

    def begin() -> None:
        with closing(Library.create(photos, catalog=postgres.url)) as library:
            uids.append(library.catalog.library().uid)

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(uids) == 4
    assert set(uids) == {config_of(photos).uid}


def test_a_library_in_its_folder_is_not_moved_by_naming_an_address(
    photos: Path, encoder: ColourEncoder, postgres: Postgres
) -> None:
    index(photos, model=encoder)
    with pytest.raises(SourceError, match=r"keeps its catalog in its folder.*mmsearch move"):
        index(photos, model=encoder, catalog=postgres.url)


# Errors, each one line and without a password.


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (("{port}", "1"), ConnectionLost, "cannot be reached.*Check host and port"),
        (("127.0.0.1", "no-such-host.invalid"), ConnectionLost, "cannot be reached"),
        (("{password}", "wrong"), StorageError, "refuses this user or password"),
        (("tester", "stranger"), StorageError, "refuses this user or password"),
        (("/postgres", "/nowhere"), StorageError, "no database.*createdb nowhere"),
        (("/postgres", "/latin"), StorageError, "keeps text as LATIN1.*createdb --encoding=UTF8"),
    ],
)
def test_what_is_wrong_with_an_address_is_said(
    photos: Path,
    postgres: Postgres,
    change: tuple[str, str],
    error: type[Exception],
    match: str,
) -> None:
    if postgres.data is None:
        pytest.skip("the server is not these tests' own")
    with postgres.connect() as connection:
        there = connection.execute("SELECT 1 FROM pg_database WHERE datname = 'latin'").fetchone()
        if there is None:
            connection.execute(
                "CREATE DATABASE latin ENCODING LATIN1 LOCALE 'C' TEMPLATE template0"
            )
    password = postgres.url.split(":")[2].split("@")[0]
    before = change[0].format(port=postgres.port, password=password)
    with pytest.raises(error, match=match) as told:
        Library.create(photos, catalog=postgres.url.replace(before, change[1]))
    assert "\n" not in str(told.value)
    for secret in (password, "not a secret", "wrong", "tester:"):
        assert secret not in str(told.value).replace("wrong host", "")
    assert not [*photos.glob(".mmsearch/library.toml")]


def test_no_address_at_all_is_refused_without_its_password(photos: Path) -> None:
    with pytest.raises(SourceError) as told:
        Library.create(photos, catalog="mysql://me:hidden@host/database")
    assert "hidden" not in str(told.value)


def test_an_old_server_and_a_later_schema_are_refused(
    photos: Path, encoder: ColourEncoder, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmsearch.retrieval.catalog import postgresql

    index(photos, model=encoder, catalog=postgres.url)
    monkeypatch.setattr(postgresql, "OLDEST", 990_000)
    with pytest.raises(StorageError, match="mmsearch needs 99 or later"):
        Library.open(photos)
    monkeypatch.undo()
    with closing(Library.open(photos)) as library:
        with library.catalog._connect(immediate=True) as connection:
            connection.exec_driver_sql("INSERT INTO migration VALUES ('m999_future', '')")
    with pytest.raises(LibraryTooNew, match="m999_future"):
        Library.open(photos)


def test_who_may_only_read_can_ask_and_not_write(
    photos: Path, encoder: ColourEncoder, postgres: Postgres
) -> None:
    index(photos, model=encoder, catalog=postgres.with_schema("readable"))
    with postgres.connect() as connection:
        connection.execute("CREATE ROLE reader LOGIN PASSWORD 'read/er'")
        connection.execute("GRANT USAGE ON SCHEMA readable TO reader")
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA readable TO reader")
    config = config_of(photos)
    host = postgres.url.split("@")[1]
    url = f"postgresql://reader:read%2Fer@{host}"
    replace(config, catalog=f"{url}?schema=readable").write(photos / ".mmsearch")
    with mmsearch.open(photos, model=encoder) as engine:
        assert engine.search("red.jpg", k=1, where="name LIKE 'RED%'").hits[0].path == "red.jpg"
    draw(photos / "new.jpg", "red", (99, 32))
    with pytest.raises(StorageError, match=r"may not do that.*permission denied"):
        index(photos, model=encoder)
    replace(config, catalog=url, uid="1" * 32).write(photos / ".mmsearch")
    with pytest.raises(StorageError, match="needs CREATE on the database"):
        index(photos, model=encoder)


def test_backups_are_left_to_postgresql(
    photos: Path, encoder: ColourEncoder, postgres: Postgres, tmp_path: Path
) -> None:
    index(photos, model=encoder, catalog=postgres.url)
    with pytest.raises(SourceError, match="pg_dump"):
        backup.back_up(photos, tmp_path / "x.backup")
    plain = tmp_path / "plain"
    draw(plain / "a.jpg", "red")
    index(plain, model=encoder)
    backup.back_up(plain, tmp_path / "plain.backup")
    with pytest.raises(SourceError, match="pg_restore"):
        backup.restore(tmp_path / "plain.backup", photos)
    with closing(Library.open(photos)) as library:
        assert library.catalog.counts().files == 6


def test_doctor_finds_and_mends_what_is_derived(
    photos: Path, encoder: ColourEncoder, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "red.txt").write_text("a red door")
    index(photos, model=encoder, catalog=postgres.url)
    monkeypatch.setattr(examination, "load_encoder", lambda _: encoder)
    assert examine(photos, deep=True).sound
    with closing(Library.open(photos)) as library:
        with library.catalog._connect(immediate=True) as connection:
            run = connection.exec_driver_sql
            run("UPDATE caption_word SET terms = 'x:1'")
            run("DELETE FROM file_word WHERE id = 1")
            run("UPDATE file_vector SET vector = '\\x0000' WHERE file_id = 2")
        assert library.catalog.words_damage() == ["caption_word", "file_word"]
    assert not examine(photos).sound
    mended = examine(photos, mend=True)
    assert all(finding.repaired for finding in mended.findings if finding.serious)
    assert examine(photos, deep=True).sound


# One writer at a time, and several indexers.


def test_what_must_be_alone_says_who_is_at_it(
    photos: Path, encoder: ColourEncoder, postgres: Postgres
) -> None:
    index(photos, model=encoder, catalog=postgres.url)
    with closing(Library.open(photos)) as library, library.indexing():
        with pytest.raises(LibraryLocked, match=rf"\(pid {os.getpid()}, .*\) is writing to"):
            index(photos, model=encoder)
        with pytest.raises(LibraryLocked, match="is writing to"):
            model_change.cancel(photos)
    with closing(Library.open(photos)) as library, library.indexing(together=True):
        with pytest.raises(LibraryLocked, match="is writing to"):
            model_change.cancel(photos)
        assert index(photos, model=encoder).unchanged == 6
    assert model_change.cancel(photos) is None


def test_who_waits_is_let_in(photos: Path, encoder: ColourEncoder, postgres: Postgres) -> None:
    index(photos, model=encoder, catalog=postgres.url)
    with closing(Library.open(photos)) as library:
        with library.indexing():
            later = threading.Timer(0.5, lambda: None)
            later.start()
            thread = threading.Thread(target=index, args=(photos,), kwargs={
                "model": encoder, "wait": 30.0})  # fmt: skip
            thread.start()
            later.join()
            assert thread.is_alive()
        thread.join(30)
        assert not thread.is_alive()


def test_slots_are_far_apart() -> None:
    places = [advisory.place_of(slot) for slot in range(8)]
    assert places == [0, 1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8, 3 / 8, 7 / 8]
