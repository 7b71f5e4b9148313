"""Faults, injected for real: what was saved stays, and the end is that of a run without them.

`kill -9` at instants drawn from a seed: 20 by default, 200 with the marker `slow`.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mmsearch
from mmsearch.retrieval.backup import back_up
from mmsearch.retrieval.doctor import examination, examine
from mmsearch.retrieval.ingest import index
from mmsearch.retrieval.library import Library
from mmsearch.retrieval.schema import Target
from tests.conftest import COLOURS, ColourEncoder, draw

PICTURES = 60
VECTORS = 1_500
"""From a thousand on an index may be approximate."""


class Server:
    """Processes that work, and can be killed."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fault_server.py")), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def run(self, kind: str, folder: Path, after: float | None = None) -> tuple[int, float]:
        """Have work done, killed `after` so many seconds; return its exit status and its time."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = {"kind": kind, "folder": str(folder), "after": after}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        told = json.loads(self._process.stdout.readline())
        return told["status"], told["seconds"]

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    made = Server()
    yield made
    made.close()


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, some of them with captions, one broken, two the same."""
    folder = tmp_path_factory.mktemp("originals") / "my photos"
    names = list(COLOURS)
    for number in range(PICTURES):
        path = folder / f"{number % 7}" / f"{number:03}.png"
        draw(path, names[number % len(names)], (30 + number, 24))
        if number % 3 == 0:
            path.with_suffix(".txt").write_text(f"number {number}\nof many\n")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xffcut off")
    shutil.copy2(folder / "0" / "000.png", folder / "a copy.png")
    return folder


@pytest.fixture
def library(originals: Path, tmp_path: Path) -> Path:
    """The pictures in a place of their own, times included."""
    folder = tmp_path / "my photos"
    shutil.copytree(originals, folder, copy_function=shutil.copy2)
    return folder


def content(folder: Path) -> list[list[tuple[object, ...]]]:
    """All that a catalog says, keys included, but for names of states and times of writing."""
    with closing(sqlite3.connect(folder / ".mmsearch" / "catalog.sqlite")) as connection:
        return [
            connection.execute(statement).fetchall()
            for statement in (
                "SELECT id, path, size, mtime_ns, sha256, width, height FROM file ORDER BY id",
                "SELECT file_id, text, source FROM caption ORDER BY file_id, text",
                "SELECT name, revision, file_id, vector FROM file_vector JOIN encoder "
                "ON encoder.id = encoder_id ORDER BY encoder_id, file_id",
                "SELECT name, revision, caption_id, vector FROM caption_vector JOIN encoder "
                "ON encoder.id = encoder_id ORDER BY encoder_id, caption_id",
                "SELECT path, kind, reason FROM problem ORDER BY path",
                "SELECT rowid, key, name, folder, facts FROM file_word ORDER BY rowid",
            )
        ]


def originals_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".mmsearch" not in path.parts
    }


def assert_sound(folder: Path, revision: str = "1") -> None:
    """Nothing serious is found; what is missing after a kill is only missing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(examination, "load_encoder", lambda _: ColourEncoder(revision))
        found = examine(folder, deep=True)
    serious = [finding.problem for finding in found.findings if finding.serious]
    assert [problem for problem in serious if "have no vector" not in problem] == []


def instants(count: int, seconds: float, seed: int) -> list[float]:
    """Return when to kill, over the whole of a run and a little beyond."""
    chance = random.Random(seed)
    return [chance.uniform(0, 1.1 * seconds) for _ in range(count)]


def killed_and_continued(
    server: Server, kind: str, folder: Path, seconds: float, count: int, seed: int
) -> int:
    """Kill a run `count` times, checking after each, then let it end; return the kills that hit."""
    hit = 0
    for after in instants(count, seconds, seed):
        status, _ = server.run(kind, folder, after)
        hit += status == -signal.SIGKILL
        if (folder / ".mmsearch" / "catalog.sqlite").is_file() and _begun(folder):
            assert_sound(folder, "2" if kind == "migrate" and _revision(folder) == "2" else "1")
    assert server.run(kind, folder)[0] == 0
    return hit


def _begun(folder: Path) -> bool:
    """Say whether a library can be opened: the very first instants make none yet."""
    try:
        Library.open(folder).close()
    except mmsearch.MmsearchError:
        return False
    return True


def _revision(folder: Path) -> str:
    with closing(Library.open(folder)) as opened:
        encoder = opened.catalog.library().encoder
    return "1" if encoder is None else encoder.revision


def check_index(server: Server, library: Path, tmp_path: Path, count: int, seed: int) -> None:
    whole = tmp_path / "uninterrupted"
    shutil.copytree(library, whole, copy_function=shutil.copy2)
    before = originals_of(library)
    status, seconds = server.run("index", whole)
    assert status == 0
    assert killed_and_continued(server, "index", library, seconds, count, seed) > 0
    assert content(library) == content(whole)
    assert originals_of(library) == before
    assert_sound(library)


def check_migrate(server: Server, library: Path, tmp_path: Path, count: int, seed: int) -> None:
    assert server.run("index", library)[0] == 0
    whole = tmp_path / "uninterrupted"
    shutil.copytree(library, whole, copy_function=shutil.copy2)
    status, seconds = server.run("migrate", whole)
    assert status == 0
    killed_and_continued(server, "migrate", library, seconds, count, seed)
    assert _revision(library) == "2"
    assert content(library) == content(whole)
    assert_sound(library, "2")


def check_optimize(server: Server, tmp_path: Path, count: int, seed: int) -> None:
    folder = tmp_path / "many"
    encoder, vectors = fill(folder)
    with closing(Library.open(folder)) as opened:
        opened.build_index(Target.IMAGES, opened.catalog.library())
    _, seconds = server.run("optimize", folder)
    for after in instants(count, seconds, seed):
        server.run("optimize", folder, after)
        with mmsearch.open(folder, model=encoder) as engine:
            for row in (3, 77, 1_400):
                index_ = engine._state(Target.IMAGES).index
                assert index_.search(vectors[row], 1).ids[0, 0] == row + 1
        assert_sound(folder)
    assert server.run("optimize", folder)[0] == 0
    assert_sound(folder)


def fill(folder: Path) -> tuple[ColourEncoder, np.ndarray]:
    """Make a library of vectors alone."""
    folder.mkdir()
    draw(folder / "first.png")
    encoder = ColourEncoder()
    index(folder, model=encoder)
    rows = np.random.default_rng(0).standard_normal((VECTORS, encoder.dim)).astype(np.float32)
    # The one picture that is there keeps its own.
    rows[0] = encoder.encode_images([folder / "first.png"])[0]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    with closing(sqlite3.connect(folder / ".mmsearch" / "catalog.sqlite")) as connection:
        connection.execute("DELETE FROM file_vector")
        columns = [row[1] for row in connection.execute("PRAGMA table_info(file)")][2:]
        for number in range(1, VECTORS):
            connection.execute(
                f"INSERT INTO file (path, {', '.join(columns)}) "
                f"SELECT 'made/{number}.png', {', '.join(columns)} FROM file WHERE id = 1"
            )
        connection.executemany(
            "INSERT INTO file_vector VALUES (1, ?, ?)",
            [(i + 1, row.astype("<f2").tobytes()) for i, row in enumerate(rows)],
        )
        connection.execute("UPDATE library SET generation = 99, stamp = '99-made'")
        connection.commit()
    with closing(Library.open(folder)) as opened:
        opened.catalog.rebuild_words()
    return encoder, rows


def check_repair(server: Server, library: Path, count: int, seed: int) -> None:
    assert server.run("index", library)[0] == 0
    good = content(library)
    for after in instants(count, 0.4, seed):
        with closing(sqlite3.connect(library / ".mmsearch" / "catalog.sqlite")) as connection:
            connection.execute("UPDATE file_vector SET vector = zeroblob(26) WHERE file_id % 2")
            connection.execute("DELETE FROM file_word WHERE rowid % 3 = 0")
            connection.commit()
        server.run("repair", library, after)
        assert server.run("repair", library)[0] == 0
        assert content(library) == good


def check_restore(server: Server, library: Path, count: int, seed: int) -> None:
    assert server.run("index", library)[0] == 0
    good = content(library)
    back_up(library, library.with_name("kept"))
    draw(library / "late.png", "blue", (20, 20))
    assert server.run("index", library)[0] == 0
    newer = content(library)
    for after in instants(count, 0.3, seed):
        server.run("restore", library, after)
        aside = library / ".mmsearch" / "set-aside"
        there = (library / ".mmsearch" / "catalog.sqlite").is_file()
        # Between two renames there may be neither: then the former one is set aside, whole.
        assert there or any(aside.rglob("catalog.sqlite"))
        if there:
            assert content(library) in (good, newer)
        assert server.run("restore", library)[0] == 0
        assert content(library) == good


def test_killed_while_indexing(server: Server, library: Path, tmp_path: Path) -> None:
    check_index(server, library, tmp_path, 8, seed=1)


def test_killed_while_changing_the_model(server: Server, library: Path, tmp_path: Path) -> None:
    check_migrate(server, library, tmp_path, 4, seed=2)


def test_killed_while_making_an_index(server: Server, tmp_path: Path) -> None:
    check_optimize(server, tmp_path, 3, seed=3)


def test_killed_while_repairing(server: Server, library: Path) -> None:
    check_repair(server, library, 3, seed=4)


def test_killed_while_restoring(server: Server, library: Path) -> None:
    check_restore(server, library, 2, seed=5)


@pytest.mark.slow
def test_killed_at_two_hundred_instants(server: Server, library: Path, tmp_path: Path) -> None:
    places = []
    for name in ("index", "migrate", "repair", "restore"):
        places.append(tmp_path / name / "my photos")
        shutil.copytree(library, places[-1], copy_function=shutil.copy2)
    check_index(server, places[0], tmp_path / "index", 80, seed=11)
    check_migrate(server, places[1], tmp_path / "migrate", 50, seed=12)
    (tmp_path / "optimize").mkdir()
    check_optimize(server, tmp_path / "optimize", 30, seed=13)
    check_repair(server, places[2], 20, seed=14)
    check_restore(server, places[3], 20, seed=15)


def asked(folder: Path, encoder: ColourEncoder) -> list[tuple[str, float]]:
    with mmsearch.open(folder, model=encoder) as engine:
        return [(hit.path, hit.score) for hit in engine.search("blue", k=20).hits]


@pytest.mark.parametrize("seed", range(12))
def test_an_index_file_that_is_cut_or_has_a_flipped_bit_never_changes_an_answer(
    library: Path, encoder: ColourEncoder, seed: int
) -> None:
    index(library, model=encoder)
    before = asked(library, encoder)
    path = next((library / ".mmsearch" / "index").glob("images-*.faiss"))
    chance = random.Random(seed)
    data = bytearray(path.read_bytes())
    if seed % 2:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    else:
        del data[chance.randrange(len(data)) :]
    path.write_bytes(data)
    assert asked(library, encoder) == before
    assert asked(library, encoder) == before


def test_a_log_that_was_left_behind_is_worked_in(
    library: Path, encoder: ColourEncoder, tmp_path: Path
) -> None:
    """As after a loss of power: the catalog with its log, copied while a writer had it open."""
    index(library, model=encoder)
    draw(library / "late.png", "blue", (20, 20))
    copy = tmp_path / "copy"
    with closing(Library.open(library)) as opened:
        index(library, model=encoder)
        assert opened.catalog.counts().files == PICTURES + 2
        log = library / ".mmsearch" / "catalog.sqlite-wal"
        assert log.stat().st_size > 0
        shutil.copytree(library, copy, copy_function=shutil.copy2)
    (copy / ".mmsearch" / "catalog.sqlite-shm").unlink(missing_ok=True)
    assert content(copy) == content(library)
    assert asked(copy, encoder) == asked(library, encoder)
    assert_sound(copy)


def test_a_clock_that_went_back_hides_no_change(library: Path, encoder: ColourEncoder) -> None:
    index(library, model=encoder)
    changed = library / "0" / "000.png"
    facts = changed.stat()
    later = time.time_ns() + 10**18
    for when in (later, 1, facts.st_mtime_ns - 1):
        # The same size, another time, however old.
        draw(changed, "blue" if when == 1 else "green", (30, 24))
        os.utime(changed, ns=(when, when))
        before = encoder.embedded_images
        report = index(library, model=encoder)
        assert report.updated == 1
        assert encoder.embedded_images == before + 1
    assert index(library, model=encoder).unchanged == PICTURES + 1
    assert_sound(library)


def test_files_that_change_while_they_are_read_end_as_what_they_are(
    library: Path, encoder: ColourEncoder
) -> None:
    done = threading.Event()
    names = list(COLOURS)

    def rewrite() -> None:
        chance = random.Random(0)
        while not done.is_set():
            number = chance.randrange(PICTURES)
            path = library / f"{number % 7}" / f"{number:03}.png"
            data = draw(path.with_name("new.tmp.png"), chance.choice(names), (50, 20)).read_bytes()
            path.with_name("new.tmp.png").unlink()
            # In place, so that a reader may see half of it.
            with path.open("wb") as file:
                file.write(data[: len(data) // 2])
                file.flush()
                file.write(data[len(data) // 2 :])

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for _ in range(3):
            index(library, model=encoder)
    finally:
        done.set()
        writer.join()
    index(library, model=encoder)
    assert_sound(library)
    with closing(Library.open(library)) as opened:
        row = opened.catalog.library()
        assert row.encoder_id is not None
        known = opened.catalog.known_files(row.encoder_id)
        assert len(known) == PICTURES + 1
        for path, file in known.items():
            _, stored = opened.catalog.vectors_of(
                Target.IMAGES, row.encoder_id, encoder.dim, np.array([file.id])
            )
            with Image.open(library / path) as picture:
                now = encoder.encode_images([picture])[0]
            assert float(stored[0].astype(np.float32) @ now) > 0.999, path


def test_a_folder_that_moves_while_it_is_indexed_is_whole_in_its_new_place(
    server: Server, library: Path, tmp_path: Path, encoder: ColourEncoder
) -> None:
    whole = tmp_path / "uninterrupted"
    shutil.copytree(library, whole, copy_function=shutil.copy2)
    _, seconds = server.run("index", whole)
    moved = tmp_path / "moved"
    mover = threading.Timer(seconds / 2, library.rename, [moved])
    mover.start()
    server.run("index", library)
    mover.join()
    assert moved.is_dir()
    index(moved, model=encoder)
    assert [rows[1:] for rows in content(moved)[0]] == [rows[1:] for rows in content(whole)[0]]
    assert_sound(moved)
    # Whatever the run left at the old place is a library's folder and no picture.
    assert not any(path.suffix == ".png" for path in library.rglob("*"))
