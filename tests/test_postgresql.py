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
from tests.postgres_server import Postgres, made

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
    with closing(Library.open(photos)) as library:  # noqa: SIM117
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


# Real processes.

PICTURES = 150


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "mmsearch.cli", *map(str, arguments)]


def run_json(*arguments: str | Path) -> Any:
    done = subprocess.run(command(*arguments, "--json"), capture_output=True, text=True)
    assert done.returncode in (0, 3), done.stderr  # 3: nothing clearly matches
    return json.loads(done.stdout)


def draw_many(folder: Path, count: int = PICTURES) -> Path:
    """Small pictures, no two the same, with captions beside some."""
    chance = np.random.default_rng(3)
    names = [*COLOURS]
    for number in range(count):
        name = names[number % len(names)]
        below = f"{2015 + number % 7}/" if number % 5 else ""
        stem = f"{below}{name} holiday {number:03}" if number % 3 else f"{below}IMG_{number:04}"
        size = (40 + int(chance.integers(0, 60)), 40 + number // 5)
        draw(folder / f"{stem}.png", name, size)
        if number % 4 == 0:
            (folder / f"{stem}.txt").write_text(f"a {name} wall in picture {number}\n")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_many(tmp_path_factory.mktemp("many") / "photos")


@pytest.fixture(scope="module")
def stored(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures in a library in its own folder."""
    folder = tmp_path_factory.mktemp("stored") / "photos"
    shutil.copytree(pictures, folder)
    index(folder)
    return folder


def facts(folder: Path) -> dict[str, Any]:
    """What a catalog says of its pictures, whatever their ids are."""
    with closing(Library.open(folder)) as library:
        catalog = library.catalog
        row = catalog.library()
        assert row.encoder_id is not None
        assert row.encoder is not None
        known = catalog.known_files(row.encoder_id)
        vectors = catalog.stored_vectors(
            Target.IMAGES, row.encoder_id, row.encoder.dim, [file.id for file in known.values()]
        )
        paths = {file.id: path for path, file in known.items()}
        assert catalog.words_damage() == []
        assert catalog.count_captions_to_embed(row.encoder_id) == 0
        return {
            "pictures": {path: vectors[file.id] for path, file in known.items()},
            "captions": sorted((paths[of], text) for _, of, text in catalog.captions()),
            "counts": catalog.counts(),
        }


def same_pictures(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours["counts"] == theirs["counts"]
    assert ours["captions"] == theirs["captions"]
    assert ours["pictures"].keys() == theirs["pictures"].keys()
    for path, vector in ours["pictures"].items():
        # The last bits depend on which pictures share a batch.
        first, second = (
            np.frombuffer(each, "<f2").astype(float) for each in (vector, theirs["pictures"][path])
        )
        assert first @ second / np.linalg.norm(first) / np.linalg.norm(second) > 0.999, path


def indexing(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("index", folder, "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def indexed(folder: Path) -> int:
    try:
        with closing(Library.open(folder)) as library:
            return library.catalog.counts().files
    except (LibraryNotFound, StorageError):
        return 0


def test_two_processes_index_one_library_at_once(
    stored: Path, pictures: Path, postgres: Postgres, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(pictures, folder)
    Library.create(folder, catalog=postgres.url).close()
    processes = [indexing(folder) for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    reports = [json.loads(output) for output, _ in outputs]
    assert [report["files"] for report in reports] == [PICTURES] * 2
    assert sum(report["added"] for report in reports) == PICTURES
    # No picture was embedded twice.
    assert sum(report["embedded"] for report in reports) == PICTURES
    same_pictures(facts(folder), facts(stored))


def is_connected(postgres: Postgres, process: subprocess.Popen[str]) -> bool:
    with postgres.connect() as connection:
        rows = connection.execute("SELECT application_name FROM pg_stat_activity").fetchall()
    return any(f" {process.pid}@" in (name or "") for (name,) in rows)


def test_what_a_killed_process_leaves_the_other_finishes(
    stored: Path, pictures: Path, postgres: Postgres, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(pictures, folder)
    Library.create(folder, catalog=postgres.url).close()
    killed = indexing(folder)
    end = time.monotonic() + 120
    while indexed(folder) == 0 and time.monotonic() < end:
        time.sleep(0.02)
    # In the middle of its work, with blocks of pictures that are its own, until the other has come.
    killed.send_signal(signal.SIGSTOP)
    done = indexed(folder)
    assert 0 < done < PICTURES, "it was too fast"
    left = indexing(folder)
    while not is_connected(postgres, left) and time.monotonic() < end:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    output, errors = left.communicate(timeout=300)
    assert left.returncode == 0, errors
    report = json.loads(output)
    assert report["files"] == PICTURES
    # What the killed one had saved is not embedded again.
    assert report["embedded"] <= PICTURES - done
    same_pictures(facts(folder), facts(stored))
    # Nothing holds the library any more.
    with closing(Library.open(folder)) as library, library.indexing():
        pass


QUESTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("a red wall", {}),
    ("IMG_0042", {}),
    ("holiday 2017", {"k": 20}),
    ("green", {"where": "folder LIKE '201%' AND width > 50"}),
    ("blue wall", {"to": "captions"}),
    ("red", {"where": "name LIKE 'RED%'", "sort": "name"}),
    ("yellow wall NOT red", {}),
    ("white", {"sort": "size", "descending": True, "where": "modified > '2001' AND NOT ext='gif'"}),
)


def test_answers_are_those_of_a_library_in_its_folder(
    stored: Path, pictures: Path, postgres: Postgres, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(pictures, folder)
    # The same order makes the same batches, and those the same vectors.
    assert run_json("index", folder, "--catalog", postgres.url)["embedded"] == PICTURES
    assert facts(folder) == facts(stored)
    with mmsearch.open(folder) as ours, mmsearch.open(stored) as theirs:
        for text, options in QUESTIONS:
            answers = [engine.search(text, **options).to_json() for engine in (ours, theirs)]
            assert compared(answers[0], folder) == compared(answers[1], stored), text
    asked = ("holiday", "--where", "name LIKE '%GREEN%'", "--all")
    answers = [run_json("query", *asked, "--library", each) for each in (folder, stored)]
    assert answers[0]["results"]
    assert compared(answers[0], folder) == compared(answers[1], stored)
    status = [run_json("status", "--library", library) for library in (folder, stored)]
    assert status[0].pop("catalog").startswith("postgresql+psycopg://127.0.0.1")
    assert status[1].pop("catalog") is None
    assert compared(status[0], folder) == compared(status[1], stored)


def compared(answer: Any, library: Path) -> Any:
    """An answer without where the library is and what it took."""
    if isinstance(answer, dict):
        kept = {key: value for key, value in answer.items() if not key.endswith("_ms")}
        return {key: compared(value, library) for key, value in kept.items()}
    if isinstance(answer, list):
        return [compared(each, library) for each in answer]
    return answer.replace(str(library), "") if isinstance(answer, str) else answer


def test_threads_share_a_library(
    tmp_path: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small batches, so that each has its part; copies and broken files among the pictures."""
    folder = draw_many(tmp_path / "photos", 200)
    shutil.copyfile(folder / "IMG_0000.png", folder / "zz copy.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    Library.create(folder, catalog=postgres.url).close()
    encoders = [Slow() for _ in range(3)]
    together = threading.Barrier(3)
    reports: list[Any] = []

    def run(encoder: Slow) -> None:
        together.wait()
        reports.append(index(folder, model=encoder))

    threads = [threading.Thread(target=run, args=(encoder,)) for encoder in encoders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [(report.files, report.problems) for report in reports] == [(201, 1)] * 3
    assert sum(report.added for report in reports) == 201
    assert all(encoder.embedded_images > 0 for encoder in encoders)
    # A copy, in a block of its own, may have been in flight at the same time.
    assert 200 <= sum(encoder.embedded_images for encoder in encoders) <= 201
    with closing(Library.open(folder)) as library:
        assert library.catalog.words_damage() == []
        assert library.catalog.counts().vectors == 201


class Slow(ColourEncoder):
    """Takes its time, as encoders do."""

    def _encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        time.sleep(0.02)
        return super()._encode_pixels(pixels)


def test_runs_at_once_move_and_remove_what_changed(tmp_path: Path, postgres: Postgres) -> None:
    folder = draw_many(tmp_path / "photos", 120)
    assert index(folder, model=ColourEncoder(), catalog=postgres.url).added == 120
    moved = [*sorted(folder.rglob("*.png"))[:60]]
    for number, path in enumerate(moved):
        path.rename(folder / f"moved {number:02}.png")
    gone = sorted(folder.rglob("*.png"))[-5:]
    for path in gone:
        path.unlink()
    encoders = [Slow(), Slow()]
    reports: list[Any] = []
    threads = [
        threading.Thread(target=lambda e=encoder: reports.append(index(folder, model=e)))
        for encoder in encoders
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [report.files for report in reports] == [115, 115]
    assert sum(report.removed for report in reports) == 5
    assert sum(report.moved for report in reports) == 60
    assert sum(encoder.embedded_images for encoder in encoders) == 0
    with closing(Library.open(folder)) as library:
        known = library.catalog.known_files(1)
        assert sorted(known) == sorted(
            path.relative_to(folder).as_posix() for path in folder.rglob("*.png")
        )


COMMANDS = (
    ("status", "--problems"),
    ("similar", "{photos}/red.jpg"),
    ("recommend", "--like", "{photos}/red.jpg"),
    ("caption", "{photos}/red.jpg"),
    ("dedup",),
    ("export", "{out}"),
    ("doctor", "--deep"),
    ("optimize",),
    ("migrate", "--status"),
    ("query", "a dog", "--sort", "date", "--where", "taken IS NULL"),
)


def test_every_command_works(photos: Path, tmp_path: Path, postgres: Postgres) -> None:
    from typer.testing import CliRunner

    from mmsearch.cli import make_app

    (photos / "red.txt").write_text("a red card")
    index(photos, catalog=postgres.url)
    app, runner = make_app(), CliRunner()
    for name, *arguments in COMMANDS:
        places = {"photos": photos, "out": tmp_path / "out"}
        given = [each.format(**places) for each in arguments]
        done = runner.invoke(app, [name, *given, "--library", str(photos)])
        assert done.exit_code in (0, 3), (name, done.output, done.exception)
    assert [*(tmp_path / "out").rglob("*.npy")]


# Connections that are cut.


class Cutting(ColourEncoder):
    """Has something done when half of the pictures are embedded."""

    def __init__(self, act: Any) -> None:
        super().__init__()
        self._act = act

    def _encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        if self._act is not None and self.embedded_images >= 24:
            act, self._act = self._act, None
            act()
        return super()._encode_pixels(pixels)


def cut_all(postgres: Postgres) -> int:
    """End every connection of this process as an administrator does."""
    with postgres.connect() as connection:
        return len(
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name LIKE %s AND pid <> pg_backend_pid()",
                (f"% {os.getpid()}@%",),
            ).fetchall()
        )


def test_a_run_goes_on_where_its_connections_were_cut(
    tmp_path: Path, postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    folder = draw_many(tmp_path / "photos", 60)
    encoder = Cutting(lambda: cut_all(postgres))
    report = index(folder, model=encoder, catalog=postgres.url)
    assert (report.files, encoder.embedded_images) == (60, 60)
    assert "was cut" in caplog.text
    assert "Trying again" in caplog.text
    with closing(Library.open(folder)) as library:
        assert library.catalog.words_damage() == []
        # What was held by the connection that was cut is held by nobody.
        with library.indexing():
            pass


def test_a_server_that_goes_away_is_one_line_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of a run, and started again for the next one."""
    folder = draw_many(tmp_path / "photos", 60)
    monkeypatch.setattr(catalog_store, "PAUSES_S", (0.1, 0.1))
    with made() as (start, stop):
        server = start()
        with pytest.raises(ConnectionLost, match=r"cannot be reached|was cut") as told:
            index(folder, model=Cutting(stop), catalog=server.url)
        assert "\n" not in str(told.value)
        assert "not a secret" not in str(told.value)
        assert start().url == server.url
        before = indexed(folder)
        assert 0 < before < 60
        encoder = ColourEncoder()
        assert index(folder, model=encoder).files == 60
        assert encoder.embedded_images == 60 - before
