"""Who writes to a library, who waits, and what a killed writer leaves."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmsearch.cli import app
from mmsearch.errors import LibraryLocked, StorageError
from mmsearch.retrieval.backup import back_up
from mmsearch.retrieval.doctor import examine
from mmsearch.retrieval.ingest import index
from mmsearch.retrieval.library import Library
from mmsearch.retrieval.writer_lock import HOLDER, LOCK, Holder, writing
from tests.conftest import ColourEncoder, draw
from tests.test_cli import MMSEARCH

HOLDING = """
import sys, time
from pathlib import Path
from mmsearch.retrieval.writer_lock import writing
folder = Path(sys.argv[1])
with writing(folder, folder):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder_process(folder: Path, seconds: float = 60) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(folder), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_writer_names_the_first(tmp_path: Path) -> None:
    process = holder_process(tmp_path)
    try:
        with pytest.raises(LibraryLocked) as raised, writing(tmp_path, Path("photos")):
            pass
        said = str(raised.value)
        assert f"Another mmsearch (pid {process.pid}, -c, for 0 s) is writing to photos" in said
        assert "--wait" in said
    finally:
        process.kill()
        process.communicate()


def test_a_killed_holder_is_no_obstacle_and_is_not_named(tmp_path: Path) -> None:
    process = holder_process(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (tmp_path / HOLDER).exists()
    with writing(tmp_path, tmp_path) as waited:
        assert not waited
        said = Holder.read(tmp_path / HOLDER)
        assert said is not None
        assert said.pid == os.getpid()
        # What the dead one left must not be taken for the one who holds it now.
        dead = {"pid": process.pid, "host": socket.gethostname(), "command": "x", "since": 0.0}
        (tmp_path / HOLDER).write_text(json.dumps(dead))
        with (
            pytest.raises(LibraryLocked, match="Another mmsearch is writing"),
            writing(tmp_path, tmp_path),
        ):
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK]


def test_waiting_ends_with_the_other_and_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    process = holder_process(tmp_path, 0.5)
    with caplog.at_level(logging.WARNING), writing(tmp_path, tmp_path, wait=math.inf) as waited:
        assert waited
    process.communicate()
    assert [f"pid {process.pid}" in record.message for record in caplog.records] == [True]


def test_waiting_has_an_end(tmp_path: Path) -> None:
    with writing(tmp_path, tmp_path):
        began = time.monotonic()
        with pytest.raises(LibraryLocked), writing(tmp_path, tmp_path, wait=0.3):
            pass
        assert 0.3 <= time.monotonic() - began < 10


@pytest.mark.parametrize("content", ["", "[]", "{", '{"pid": "x"}', '{"pid": 1}'])
def test_a_holder_file_of_any_content_does_no_harm(tmp_path: Path, content: str) -> None:
    (tmp_path / HOLDER).write_text(content)
    with writing(tmp_path, tmp_path):
        (tmp_path / HOLDER).write_text(content)
        with pytest.raises(LibraryLocked, match="Another mmsearch is"), writing(tmp_path, tmp_path):
            pass


def test_a_writer_elsewhere_that_did_not_say_goodbye_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = {"pid": 1, "host": "elsewhere", "command": "mmsearch index", "since": time.time() - 200}
    (tmp_path / HOLDER).write_text(json.dumps(other))
    with caplog.at_level(logging.WARNING), writing(tmp_path, tmp_path):
        pass
    assert "pid 1 on elsewhere, mmsearch index, for 3 minutes" in caplog.text


@pytest.mark.skipif(os.name == "nt", reason="flock is of Unix")
@pytest.mark.parametrize("code", ["ENOSYS", "ENOLCK"])
def test_without_locks_nothing_is_pretended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    import errno
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(getattr(errno, code), "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StorageError, match="files cannot be locked"), writing(tmp_path, tmp_path):
        pass


def test_what_the_other_writer_added_meanwhile_is_not_forgotten(
    photos: Path, encoder: ColourEncoder
) -> None:
    index(photos, model=encoder)
    with closing(Library.open(photos)) as library:
        scanned = threading.Event()

        def second() -> None:
            reports.append(
                index(photos, model=ColourEncoder(), wait=60, progress=lambda _: scanned.set())
            )

        reports: list = []
        thread = threading.Thread(target=second)
        with library.indexing():
            thread.start()
            assert scanned.wait(30)
            time.sleep(0.3)  # it has scanned, and waits
            draw(photos / "new.jpg", "red", (99, 40))
        thread.join(60)
    # Its first look at the folder did not see the new one, the one after the wait does.
    assert (reports[0].added, reports[0].removed, reports[0].files) == (1, 0, 7)


def test_a_damaged_catalog_is_not_replaced_under_a_writer(
    photos: Path, encoder: ColourEncoder
) -> None:
    index(photos, model=encoder)
    catalog = photos / ".mmsearch/catalog.sqlite"
    with writing(catalog.parent, photos):
        content = bytearray(catalog.read_bytes())
        content[8192:12288] = os.urandom(4096)
        catalog.write_bytes(content)
        with pytest.raises(LibraryLocked):
            examine(photos, mend=True)
        assert catalog.read_bytes() == bytes(content)


def test_commands_wait_or_say_who_writes(
    photos: Path, tmp_path: Path, encoder: ColourEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    index(photos, model=encoder)
    back_up(photos, tmp_path / "backup")
    process = holder_process(photos / ".mmsearch", 3600)
    where = ("--library", str(photos))
    try:
        for command in (
            ("index", str(photos)),
            ("restore", str(tmp_path / "backup"), str(photos), "--wait", "0.1s"),
            ("doctor", str(photos), "--repair"),
            ("optimize", *where),
            ("migrate", "--cancel", *where),
            ("tune", "--undo", *where),
        ):
            caplog.clear()
            error = CliRunner().invoke(app, command).exception
            assert isinstance(error, LibraryLocked), command
            assert f"Another mmsearch (pid {process.pid}, -c, for " in str(error), command
            waited = [record for record in caplog.records if "waiting for" in record.message]
            assert len(waited) == command.count("--wait"), command
        waiting = subprocess.Popen(
            [MMSEARCH, "tune", "--undo", "--wait", *where], stderr=subprocess.PIPE, text=True
        )
        assert waiting.stderr is not None
        assert f"waiting for another mmsearch (pid {process.pid}" in waiting.stderr.readline()
    finally:
        process.kill()
        process.communicate()
    rest = waiting.communicate(timeout=60)[1]
    assert (waiting.returncode, rest) == (3, "There is no tuning to take back.\n")


def test_a_time_that_is_none_is_a_usage_error(tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["index", str(tmp_path), "--wait=5"])
    assert (told.exit_code, "is no time" in told.stderr) == (2, True)
    # A folder after --wait is a folder.
    error = CliRunner().invoke(app, ["index", "--wait", str(tmp_path)]).exception
    assert "No pictures were found" in str(error)
