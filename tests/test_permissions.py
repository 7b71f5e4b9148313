"""Permissions that go in the middle of a run: nothing saved is lost, nothing is taken for gone.

The command line itself runs in a process that root's rights were taken from, with the encoder of
colours, and is stopped between two batches while permissions are taken away.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from mmsearch.retrieval.ingest import index
from tests.conftest import COLOURS, ColourEncoder, draw
from tests.test_cli import wait_for_files
from tests.test_faults import assert_sound, originals_of

pytestmark = pytest.mark.skipif(
    not hasattr(os, "geteuid") or (os.geteuid() == 0 and shutil.which("setpriv") is None),
    reason="whoever runs this cannot be denied anything",
)

COMMAND = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from tests.conftest import ColourEncoder
from mmsearch import cli
from mmsearch.retrieval import ingest

class Slow(ColourEncoder):
    def _encode_pixels(self, pixels):
        time.sleep(0.05)
        return super()._encode_pixels(pixels)

ingest.load_encoder = lambda *_, **__: Slow()
cli.main()
"""

PICTURES = 72
"""In two folders; an encoder's batch is 4 and 16 are read ahead, so that some are in time."""


def started(*arguments: object) -> subprocess.Popen[str]:
    """Start the command without the rights that let root read and write everything."""
    without = "-dac_override,-dac_read_search"
    prefix = ["setpriv", f"--bounding-set={without}", f"--inh-caps={without}"]
    command = [sys.executable, "-c", COMMAND, *map(str, arguments)]
    return subprocess.Popen(
        [*(prefix if os.geteuid() == 0 else []), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str], code: int) -> tuple[str, str]:
    out, talk = process.communicate(timeout=300)
    assert process.returncode == code, talk
    assert "Traceback" not in talk
    return out, talk


def indexed_without(folder: Path) -> dict[str, int]:
    """Index while permissions are missing."""
    report: dict[str, int] = json.loads(ended(started("index", folder, "--json"), 0)[0])
    return report


def interrupted_by(
    take_away: Callable[[], object],
    folder: Path,
    code: int,
    begun: Callable[[], bool] | None = None,
) -> str:
    """Take permissions away while a run is between two batches; return what it then says."""
    process = started("index", folder)
    try:
        if begun is None:
            wait_for_files(folder, 8)
        else:
            while not begun() and process.poll() is None:
                time.sleep(0.01)
        process.send_signal(signal.SIGSTOP)
        take_away()
    finally:
        process.send_signal(signal.SIGCONT)
    return ended(process, code)[1]


def state(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything that is known of each picture, but for ids, which tell who came first."""
    with closing(sqlite3.connect(folder / ".mmsearch" / "catalog.sqlite")) as connection:
        pictures = connection.execute(
            "SELECT file.id, path, size, mtime_ns, sha256, width, height, sidecars, vector "
            "FROM file JOIN file_vector ON file_id = file.id"
        ).fetchall()
        captions = connection.execute(
            "SELECT file_id, text, source, vector FROM caption "
            "JOIN caption_vector ON caption_id = caption.id ORDER BY text"
        ).fetchall()
    return {
        path: (*facts, [caption[1:] for caption in captions if caption[0] == id_])
        for id_, path, *facts in pictures
    }


def problems(folder: Path) -> dict[str, str]:
    with closing(sqlite3.connect(folder / ".mmsearch" / "catalog.sqlite")) as connection:
        return dict(connection.execute("SELECT path, kind FROM problem"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "my photos"
    names = list(COLOURS)
    for number in range(PICTURES):
        path = folder / ("first" if number < 24 else "second") / f"{number:03}.png"
        draw(path, names[number % len(names)], (30 + number, 24))
        if number % 3 == 0:
            path.with_suffix(".txt").write_text(f"number {number}")
    return folder


@pytest.fixture
def uninterrupted(photos: Path, tmp_path: Path) -> Callable[[], dict[str, tuple[object, ...]]]:
    """What a run that nothing happens to makes of the pictures as they are when it is asked."""

    def made() -> dict[str, tuple[object, ...]]:
        other = tmp_path / "whole" / "my photos"
        shutil.copytree(
            photos, other, copy_function=shutil.copy2, ignore=shutil.ignore_patterns(".mmsearch")
        )
        index(other, model=ColourEncoder())
        return state(other)

    return made


@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_a_folder_of_pictures_may_no_longer_be_read(
    photos: Path, uninterrupted: Callable[[], object], mode: int
) -> None:
    before = originals_of(photos)
    second = photos / "second"
    talk = interrupted_by(lambda: second.chmod(mode), photos, 0)
    assert "mmsearch status --problems" in talk
    unread = problems(photos)
    assert 0 < len(unread) < 48
    assert set(unread.values()) == {"unreadable"}
    kept = state(photos)
    assert kept.keys() | unread.keys() == {str(path) for path in before if path.endswith("png")}
    # While it lasts, what is known of that folder stays as it is.
    report = indexed_without(photos)
    assert (report["removed"], report["updated"], report["embedded"]) == (0, 0, 0)
    assert state(photos) == kept
    second.chmod(0o755)
    report = index(photos, model=ColourEncoder())
    assert (report.removed, report.problems) == (0, 0)
    assert report.embedded == len(unread)
    assert state(photos) == uninterrupted()
    assert originals_of(photos) == before
    assert_sound(photos)


def test_pictures_that_changed_and_may_not_be_read_stay_what_they_were(
    photos: Path, uninterrupted: Callable[[], object]
) -> None:
    index(photos, model=ColourEncoder())
    kept = state(photos)
    for number, path in enumerate(sorted(photos.rglob("*.png"))):
        draw(path, list(COLOURS)[(number + 1) % len(COLOURS)], (30 + number, 30))

    def shut() -> None:
        for path in (photos / "second").iterdir():
            path.chmod(0)

    interrupted_by(shut, photos, 0, begun=lambda: state(photos) != kept)
    unread = problems(photos)
    assert unread
    now = state(photos)
    assert now.keys() == kept.keys()
    assert all(now[path] == kept[path] for path in unread)
    for path in (photos / "second").iterdir():
        path.chmod(0o644)
    report = index(photos, model=ColourEncoder())
    assert (report.removed, report.updated, report.problems) == (0, len(unread), 0)
    assert state(photos) == uninterrupted()
    assert_sound(photos)


def test_captions_beside_pictures_may_no_longer_be_read(
    photos: Path, uninterrupted: Callable[[], object]
) -> None:
    def shut() -> None:
        for path in (photos / "second").glob("*.txt"):
            path.chmod(0)

    interrupted_by(shut, photos, 0)
    unread = problems(photos)
    assert unread
    kept = state(photos)
    assert len(kept) == PICTURES, "the pictures themselves are indexed"
    assert {path for path, facts in kept.items() if facts[-3] == "unread"} == unread.keys()
    # Known captions outlive that their files cannot be read; nothing is embedded again.
    (photos / "first/000.txt").chmod(0)
    os.utime(photos / "first/000.png")
    report = indexed_without(photos)
    assert (report["embedded"], report["removed"]) == (0, 0)
    assert state(photos)["first/000.png"][-1] == kept["first/000.png"][-1] != []
    for path in photos.rglob("*.txt"):
        path.chmod(0o644)
    report = index(photos, model=ColourEncoder())
    assert (report.embedded, report.problems) == (0, 0)
    assert state(photos) == uninterrupted()
    assert_sound(photos)


@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_the_library_may_no_longer_be_written_to(
    photos: Path, uninterrupted: Callable[[], object], mode: int
) -> None:
    """The catalog is open already, which no permission ends: what cannot be made is the index."""
    before = originals_of(photos)
    library = photos / ".mmsearch"

    def shut() -> None:
        for path in library.rglob("*"):
            path.chmod(path.stat().st_mode & 0o555)
        library.chmod(mode)

    talk = interrupted_by(shut, photos, 0)
    assert "cannot be saved (Permission denied)" in talk
    assert f"{PICTURES} new" in talk
    told = ended(started("index", photos), 1)[1].splitlines()
    assert len(told) == 1
    assert "cannot be written" in told[0]
    for path in (library, *library.rglob("*")):
        path.chmod(path.stat().st_mode | 0o700)
    report = index(photos, model=ColourEncoder())
    assert (report.unchanged, report.embedded) == (PICTURES, 0)
    assert state(photos) == uninterrupted()
    assert originals_of(photos) == before
    assert_sound(photos)


def test_the_catalog_may_no_longer_be_written_to(
    photos: Path, uninterrupted: Callable[[], object]
) -> None:
    """As after a disk that failed was made read-only: writing ends, opened or not."""
    catalog = photos / ".mmsearch" / "catalog.sqlite"
    files = [str(catalog), f"{catalog}-wal"]
    probe = photos / "probe"
    probe.touch()
    if shutil.which("chattr") is None or _immutable([str(probe)], True):
        pytest.skip("no file can be made unchangeable here")
    _immutable([str(probe)], False)
    probe.unlink()
    before = originals_of(photos)
    try:
        told = interrupted_by(lambda: _immutable(files, True), photos, 1).splitlines()
    finally:
        _immutable(files, False)
    assert len(told) == 1
    assert "what was saved before is safe" in told[0]
    saved = state(photos)
    assert 8 <= len(saved) < PICTURES
    assert_sound(photos)
    report = index(photos, model=ColourEncoder())
    assert (report.unchanged, report.removed) == (len(saved), 0)
    assert state(photos) == uninterrupted()
    assert originals_of(photos) == before
    assert_sound(photos)


def _immutable(files: list[str], on: bool) -> int:
    """Set or clear the attribute that stops even those who have a file open; return the status."""
    done = subprocess.run(["chattr", "+i" if on else "-i", *files], capture_output=True)
    return done.returncode
