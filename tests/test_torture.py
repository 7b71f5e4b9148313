"""One run of the command over the folder that `torture.py` makes, and what must come of it."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import mmsearch
from mmsearch.retrieval import reading
from mmsearch.retrieval.ingest import index
from tests import torture
from tests.conftest import ColourEncoder
from tests.test_cli import MMSEARCH
from tests.torture import Kind, Outcome

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="its names and files are POSIX's")

ROOT = Path(__file__).parents[1]
LARGEST_HASHED = 1 << 26
MEMORY = 1_200 << 20
"""Bytes: the encoder and its libraries take about half of it, the largest pictures the rest."""


@dataclass
class Tortured:
    """The folder, and what one run of `mmsearch index` made of it."""

    folder: Path
    kinds: list[Kind]
    left_out: dict[str, str]
    before: dict[str, tuple[Any, ...]]
    environment: dict[str, str]
    code: int = -1
    peak: int = 0
    output: str = ""
    talk: str = ""

    def run(self, *arguments: object, text: bool = True, code: int = 0) -> Any:
        done = subprocess.run(
            [MMSEARCH, *map(str, arguments)],
            capture_output=True,
            env=self.environment,
            cwd=self.folder.parent,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == code, (arguments, done.stdout[-900:], done.stderr[-900:])
        assert b"Traceback" not in done.stderr
        return done.stdout.decode(errors="surrogateescape") if text else done.stdout

    def paths(self, *outcomes: Outcome) -> list[str]:
        return sorted(kind.path for kind in self.kinds if kind.outcome in outcomes)


MEASURED = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
open(sys.argv[1], "w").write(str(peak * (1 if sys.platform == "darwin" else 1024)))
sys.exit(code)
"""
"""Runs a command and writes its peak. By way of a small process: before it becomes another program,
a child is as large as whoever started it, and Linux counts that."""


@pytest.fixture(scope="module")
def tortured(tmp_path_factory: pytest.TempPathFactory, _names_of_compact: Path) -> Tortured:
    here = tmp_path_factory.mktemp("torture")
    folder, home = here / "tortured photos", here / "home"
    kinds, left_out = torture.make_folder(folder)
    names = ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")
    # In float32, so that no time goes into trying what is faster.
    environment = os.environ | dict.fromkeys(names, str(home)) | {"MMSEARCH_BFLOAT16": "0"}
    shutil.copytree(_names_of_compact, home / "mmsearch" / "tags")
    made = Tortured(folder, kinds, left_out, snapshot(folder), environment)
    with (here / "out").open("w+") as out, (here / "err").open("w+") as err:
        command = [MMSEARCH, "index", str(folder), "--json"]
        measured = [sys.executable, "-c", MEASURED, str(here / "peak"), *command]
        made.code = subprocess.call(measured, stdout=out, stderr=err, env=environment)
        made.peak = int((here / "peak").read_text())
        out.seek(0), err.seek(0)
        made.output, made.talk = out.read(), err.read()
    return made


def snapshot(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Everything there is in a folder but the library: kinds, modes, times, sizes, contents."""
    found = {}
    for above, folders, files, handle in os.fwalk(folder, follow_symlinks=False):
        if Path(above) == folder and ".mmsearch" in folders:
            folders.remove(".mmsearch")
        for name in [*folders, *files]:
            status = os.stat(name, dir_fd=handle, follow_symlinks=False)
            facts: tuple[Any, ...] = (status.st_mode, status.st_nlink, status.st_size)
            if not stat.S_ISDIR(status.st_mode) or Path(above) != folder:
                facts += (status.st_mtime_ns,)
            if stat.S_ISLNK(status.st_mode):
                facts += (os.readlink(name, dir_fd=handle),)
            elif stat.S_ISREG(status.st_mode) and status.st_size < LARGEST_HASHED:
                with os.fdopen(os.open(name, os.O_RDONLY, dir_fd=handle), "rb") as file:
                    facts += (sha256(file.read()).digest(),)
            found[f"{above}/{name}"] = facts
    return found


def vectors(folder: Path) -> dict[str, NDArray[np.float32]]:
    with closing(sqlite3.connect(folder / ".mmsearch" / "catalog.sqlite")) as connection:
        connection.text_factory = bytes
        rows = connection.execute(
            "SELECT path, vector FROM file JOIN file_vector ON file_vector.file_id = file.id"
        ).fetchall()
    return {os.fsdecode(path): np.frombuffer(row, "<f2").astype(np.float32) for path, row in rows}


@pytest.fixture(scope="module")
def references() -> dict[str, NDArray[np.float32]]:
    encoder = mmsearch.load_encoder("compact")
    images = [make() for make in torture.REFERENCES.values()]
    return dict(zip(torture.REFERENCES, encoder.encode_images(images), strict=True))


def test_there_are_many_kinds_and_each_is_one() -> None:
    assert len(torture.KINDS) >= 60
    assert len({kind.path for kind in torture.KINDS}) == len(torture.KINDS)
    assert len({kind.title for kind in torture.KINDS}) == len(torture.KINDS)
    assert {kind.outcome for kind in torture.KINDS} == set(Outcome)


def test_the_documents_tell_of_every_kind() -> None:
    told = (ROOT / "docs" / "reliability.md").read_text("utf-8")
    # To bring it up to date: python tests/torture.py
    assert told.partition("<!-- table -->\n")[2].partition("<!-- /table -->")[0] == torture.table()
    count = f"{len(torture.KINDS)} kinds"
    assert f"| kinds of things tried in one folder | {len(torture.KINDS)} |" in told
    assert count in (ROOT / "tests" / "README.md").read_text("utf-8")


def test_making_the_folder_twice_makes_the_same(tmp_path: Path, tortured: Tortured) -> None:
    kinds = [kind for kind in tortured.kinds if kind.group in {"formats", "damage", "names"}]
    for kind in kinds[::9]:
        again = tmp_path / str(kinds.index(kind)) / "again.jpg"
        again.parent.mkdir()
        kind.make(again)
        assert again.read_bytes() == (tortured.folder / kind.path).read_bytes(), kind.title


def test_the_run_ends_well_within_memory(tortured: Tortured) -> None:
    assert tortured.code == 0, tortured.talk[-2000:]
    assert "Traceback" not in tortured.talk
    assert tortured.peak < MEMORY, tortured.peak >> 20


def test_every_kind_has_its_outcome(tortured: Tortured) -> None:
    in_library = set(vectors(tortured.folder))
    document = json.loads(
        tortured.run("status", "--problems", "--json", "--library", tortured.folder)
    )
    problems = {each["path"]: each["kind"] for each in document["problem_files"]}
    assert len(problems) == len(document["problem_files"]), "one is listed twice"
    assert all(each["reason"] for each in document["problem_files"])
    expected = {
        next((path for path in problems if path.startswith(f"{kind.path}/")), kind.path)
        if kind.below
        else kind.path: kind.of
        for kind in tortured.kinds
        if kind.outcome is Outcome.SKIPPED
    }
    assert problems == expected
    assert sorted(in_library) == tortured.paths(Outcome.INDEXED, Outcome.DUPLICATE)
    report = json.loads(tortured.output)
    assert report["files"] == report["added"] == len(in_library)
    assert report["problems"] == len(problems)


def test_every_picture_is_seen_as_what_it_shows(
    tortured: Tortured, references: dict[str, NDArray[np.float32]]
) -> None:
    found = vectors(tortured.folder)
    wrong = {
        kind.path: round(float(found[kind.path] @ references[kind.of]), 4)
        for kind in tortured.kinds
        if kind.outcome is Outcome.INDEXED and found[kind.path] @ references[kind.of] < 0.99
    }
    assert wrong == {}
    for kind in tortured.kinds:
        if kind.outcome is Outcome.DUPLICATE:
            np.testing.assert_array_equal(found[kind.path], found[kind.of])
    # References differ enough that one cannot pass for another, but for shades of the scene.
    names = ["the scene", "the cut-out on white", "red", "white", "black"]
    cosines = np.stack([references[name] for name in names])
    assert (cosines @ cosines.T - np.eye(len(names))).max() < 0.97


def test_every_orientation_is_nearest_to_the_upright_scene(tortured: Tortured) -> None:
    encoder = mmsearch.load_encoder("compact")
    turned = encoder.encode_images([torture.turned(turn) for turn in range(1, 9)])
    found = vectors(tortured.folder)
    for kind in tortured.kinds:
        if kind.group == "orientation":
            assert int(np.argmax(turned @ found[kind.path])) == 0, kind.title


def test_nothing_in_the_folder_was_touched(tortured: Tortured) -> None:
    after = snapshot(tortured.folder)
    assert after == tortured.before
    assert len(after) > len(tortured.kinds)


def test_a_second_run_reads_nothing_and_changes_nothing(
    tortured: Tortured, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = vectors(tortured.folder)
    opened = []
    monkeypatch.setattr(reading, "read_bytes", lambda path: opened.append(path) or b"")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    report = index(tortured.folder)
    again = {path.relative_to(tortured.folder).as_posix() for path in opened}
    # Only what may be over while the file stays the same is tried again.
    transient = {kind.path for kind in tortured.kinds if kind.of == "unreadable"}
    assert again <= transient
    counted = (report.added, report.updated, report.moved, report.removed, report.embedded)
    assert counted == (0, 0, 0, 0, 0)
    assert report.unchanged == report.files == len(before)
    after = vectors(tortured.folder)
    assert after.keys() == before.keys()
    assert all((after[path] == before[path]).all() for path in after)


ASKED = ("query", "a house and a tree", "-k", 999, "--no-group", "--all")


def test_every_way_to_print_takes_every_name(tortured: Tortured, tmp_path: Path) -> None:
    where = ("--library", tortured.folder)
    expected = tortured.paths(Outcome.INDEXED, Outcome.DUPLICATE)
    document = json.loads(tortured.run(*ASKED, "--json", *where))
    assert sorted(hit["path"] for hit in document["results"]) == expected
    raw = tortured.run(*ASKED, "--paths", "-0", *where, text=False)
    inside = tortured.folder.name
    names = [os.fsencode(f"{inside}/{path}") for path in expected]
    assert sorted(raw.split(b"\0")[:-1]) == sorted(names)
    table = csv.DictReader(io.StringIO(tortured.run(*ASKED, "--csv", *where), newline=""))
    assert sorted(row["path"] for row in table) == expected
    sheet = tmp_path / "sheet.html"
    tortured.run(*ASKED, "--html", sheet, *where)
    page = sheet.read_text("utf-8")
    assert page.count("<li>") == len(expected)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", page)


def test_names_cannot_steer_a_terminal(tortured: Tortured) -> None:
    count = len(tortured.paths(Outcome.INDEXED, Outcome.DUPLICATE))
    for arguments, least in (
        ((*ASKED, "--paths"), count),
        (ASKED, count),
        (("status", "--problems"), len(tortured.paths(Outcome.SKIPPED))),
    ):
        shown = on_a_terminal(tortured, *arguments, "--library", tortured.folder)
        lines = shown.replace(b"\r\n", b"\n").split(b"\n")
        assert least <= len(lines) <= least + 2
        for line in lines:
            text = line.decode("utf-8", "surrogateescape")
            assert not re.search(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u202a-\u202e]", text), line
            assert not re.search("[\udc80-\udc9f]", text), line


def on_a_terminal(tortured: Tortured, *arguments: object) -> bytes:
    """Run the command with a terminal for its output, and return what it was sent."""
    mine, its = pty.openpty()
    environment = tortured.environment | {"TERM": "xterm-256color", "COLUMNS": "80"}
    process = subprocess.Popen(
        [MMSEARCH, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=its,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd=tortured.folder.parent,
    )
    os.close(its)
    parts = []
    try:
        while part := os.read(mine, 1 << 16):
            parts.append(part)
    except OSError:
        pass  # How Linux says that nobody holds the other end any more.
    finally:
        os.close(mine)
    assert process.wait() == 0
    return b"".join(parts)


# --- Files that grow --------------------------------------------------------------------------


def growing(folder: Path) -> dict[str, tuple[Iterator[None], NDArray[np.float32]]]:
    """Files by name, each written a piece a step, and the vectors that they have when whole."""
    encoder, picture = ColourEncoder(), torture.blotches()
    complete = folder.with_name("complete")
    complete.mkdir()
    files = {}
    for name, format_, options in (
        ("plain.jpg", "JPEG", {}),
        ("progressive.jpg", "JPEG", {"progressive": True}),
        ("plain.png", "PNG", {}),
        ("plain.gif", "GIF", {}),
        ("plain.tif", "TIFF", {}),
        ("plain.bmp", "BMP", {}),
        ("plain.webp", "WEBP", {}),
        ("plain.heic", "HEIF", {}),
        ("plain.avif", "AVIF", {}),
        ("plain.jp2", "JPEG2000", {}),
        ("plain.ppm", "PPM", {}),
    ):
        data = torture.encoded(picture, format_, **options)
        (complete / name).write_bytes(data)
        whole = encoder.encode_images([complete / name])[0]
        files[name] = torture.grow(folder / name, data, 9), whole
    return files


def test_a_growing_file_is_a_problem_until_it_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    torture.flat("red").save(folder / "still.jpg")
    files = growing(folder)
    encoder = ColourEncoder()
    for _ in range(9):
        for file, _ in files.values():
            next(file)
        index(folder, model=encoder)
        check_whole_or_missing(folder, files)
    assert set(vectors(folder)) == {"still.jpg", *files}
    with mmsearch.open(folder, model=encoder) as engine:
        assert engine.library.catalog.problems() == []


def check_whole_or_missing(folder: Path, files: dict[str, Any]) -> None:
    for path, vector in vectors(folder).items():
        if path in files:
            # All but the last bits, which 16 bits do not hold.
            assert vector @ files[path][1] > 0.9999, path


@pytest.mark.parametrize("room_taken", [False, True])
def test_a_file_that_grows_during_a_run_is_never_half_grey(
    room_taken: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(40):
        torture.blotches().rotate(i).save(folder / f"{i:02}.png")
    data = torture.encoded(torture.blotches(), "JPEG", quality=95)
    path = folder / "39a.jpg"
    if room_taken:
        # As copying programs do that ask for all the room before they begin.
        path.write_bytes(bytes(len(data)))
    stopped = threading.Event()

    def write() -> None:
        with path.open("r+b" if room_taken else "wb", buffering=0) as file:
            for at in range(0, len(data), 500):
                file.write(data[at : at + 500])
                time.sleep(0.001)
        stopped.set()

    encoder = ColourEncoder()
    (tmp_path / "whole.jpg").write_bytes(data)
    whole = encoder.encode_images([tmp_path / "whole.jpg"])[0]
    writer = threading.Thread(target=write)
    writer.start()
    runs = 0
    while not stopped.is_set() or not runs:
        index(folder, model=encoder)
        runs += 1
        if (vector := vectors(folder).get("39a.jpg")) is not None:
            assert vector @ whole > 0.9999
    writer.join()
    index(folder, model=encoder)
    assert vectors(folder)["39a.jpg"] @ whole > 0.9999
