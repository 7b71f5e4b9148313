"""Clusters of Ray as they are: raylets and actors of their own, in a network namespace."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("ray.data", reason="the extra ray is not installed: no cluster is tested")

ALONE = ["unshare", "-n", "-p", "-f", "--mount-proc", "sh", "-c"]
"""Ray listens on other interfaces than the loopback where there are any; nothing outlives the
first process of its namespace."""

pytestmark = pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run([*ALONE, "true"], check=False).returncode != 0,
    reason="unshare -n is not permitted here: NO CLUSTER OF RAY IS TESTED",
)

FEW = 500


def take(folder: Path, count: int) -> Path:
    """Draw small photos, each of a content of its own, and a broken one."""
    random = np.random.default_rng(7)
    for number in range(count):
        file = folder / f"{number % 7}" / f"{number:04d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        blocks = random.integers(0, 255, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((96, 96)).save(file)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    # The same content twice in one run.
    shutil.copy2(folder / "3" / "0003.jpg", folder / "4" / "again.jpg")
    return folder


def environment() -> dict[str, str]:
    package = Path(__file__).resolve().parent.parent.parent
    paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "MMSEARCH_BFLOAT16": "0"}


def index(folder: Path, *options: str) -> str:
    words = [sys.executable, "-m", "mmsearch.cli", "index", str(folder), "--json", *options]
    return " ".join(f"'{word}'" for word in words)


def alone(script: str, timeout: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ALONE, f"ip link set lo up; {script}"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@contextmanager
def cluster(tmp_path: Path, workers: int, then: str) -> Iterator[subprocess.Popen[str]]:
    """Run a cluster, and a script when it is ready, which finds its address in $ADDRESS."""
    ready = tmp_path / "ready.json"
    helper = Path(__file__).with_name("ray_cluster.py")
    script = f"""
        ip link set lo up
        mkfifo {tmp_path}/hold
        sleep 1000 > {tmp_path}/hold &
        '{sys.executable}' '{helper}' {workers} 1 '{ready}' < {tmp_path}/hold > /dev/null 2>&1 &
        while [ ! -f '{ready}' ]; do sleep 0.2; kill -0 $! || exit 9; done
        ADDRESS=$('{sys.executable}' -c 'import json; print(json.load(open("{ready}"))["address"])')
        {then}
    """
    running = subprocess.Popen(
        [*ALONE, script],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield running
    finally:
        running.kill()
        running.communicate()


def rows(folder: Path) -> dict[str, list[tuple[object, ...]]]:
    """Return what a catalog says, but for when it was written."""
    what = {
        "file": "id, path, size, mtime_ns, sha256, format, width, height, orientation, sidecars",
        "file_vector": "file_id, vector",
        "problem": "path, kind, reason, size, mtime_ns",
        "caption": "*",
    }
    with sqlite3.connect(f"file:{folder}/.mmsearch/catalog.sqlite?mode=ro", uri=True) as database:
        return {
            table: database.execute(f"SELECT {columns} FROM {table} ORDER BY 1, 2").fetchall()
            for table, columns in what.items()
        }


def committed(folder: Path) -> int:
    try:
        return len(rows(folder)["file"])
    except sqlite3.Error:
        return 0


def until(true, seconds: float, running: subprocess.Popen[str]) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two thousand photos, indexed by one process."""
    folder = take(tmp_path_factory.mktemp("plain") / "photos", 2000)
    done = alone(index(folder), 400)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some hundred photos, indexed by one process."""
    folder = take(tmp_path_factory.mktemp("few") / "photos", FEW)
    done = alone(index(folder), 400)
    assert done.returncode == 0, done.stderr
    return folder


def copy_of(folder: Path, to: Path) -> Path:
    return shutil.copytree(folder, to, ignore=shutil.ignore_patterns(".mmsearch"))


def left_over() -> list[str]:
    """Return the command lines of processes of Ray."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if b"raylet" in words or b"ray::" in words or b"gcs_server" in words:
            found.append(words.decode(errors="replace"))
    return found


@pytest.mark.slow
def test_this_machine_alone_makes_the_same_catalog_and_resumes(few, tmp_path):
    folder = copy_of(few, tmp_path / "photos")
    before = set(Path("/tmp").glob("mms-*"))
    first = alone(f"TMPDIR='{tmp_path}' {index(folder, '--on', 'local')}", 400)
    assert first.returncode == 0, first.stderr
    report = json.loads(first.stdout)
    assert (report["added"], report["problems"]) == (FEW + 1, 1)
    assert [node["pictures"] for node in report["nodes"]] == [FEW + 2]
    assert report["nodes"][0]["images_per_second"] > 0
    # Nothing of Ray's own is told, and nothing of it stays.
    assert "ray" not in first.stderr.lower().replace(str(tmp_path).lower(), "")
    assert set(Path("/tmp").glob("mms-*")) <= before
    assert rows(folder) == rows(few)
    # Nothing to do: nothing is started.
    again = alone(index(folder, "--on", "local"), 60)
    report = json.loads(again.stdout)
    assert (report["unchanged"], report["embedded"], report["nodes"]) == (FEW + 1, 0, [])


@pytest.mark.slow
def test_a_machine_is_lost_in_the_middle_and_nothing_else(plain, tmp_path):
    folder = copy_of(plain, tmp_path / "photos")
    with cluster(tmp_path, 2, index(folder, "--on", "'$ADDRESS'")) as running:
        until(lambda: committed(folder) >= 300, 200, running)
        before = committed(folder)
        assert before < 1500
        # The processes lie in a namespace: by their number in ours.
        victim = json.loads((tmp_path / "ready.json").read_text())["raylets"][0]
        os.kill(outside(running.pid, victim), signal.SIGKILL)
        said, told = running.communicate(timeout=400)
        assert running.returncode == 0, told
    report = json.loads(said)
    assert (report["added"], report["embedded"]) == (2001, 2001)
    assert sum(node["pictures"] for node in report["nodes"]) == 2002
    assert len(report["nodes"]) >= 2
    found, expected = rows(folder), rows(plain)
    for table in ("file", "problem", "caption"):
        assert found[table] == expected[table]
    assert_same_vectors(found["file_vector"], expected["file_vector"])


def assert_same_vectors(found, expected) -> None:
    assert [id_ for id_, _ in found] == [id_ for id_, _ in expected]
    ours, theirs = (
        np.array([np.frombuffer(vector, np.float16) for _, vector in both]).astype(np.float32)
        for both in (found, expected)
    )
    # Rounded to sixteen bits, they have not quite the length 1.
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    assert ((ours * theirs).sum(axis=1) / lengths).min() >= 0.9999


def outside(leader: int, inside: int) -> int:
    """Return a process's number here, of its number in the namespace that `leader` made."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            numbers = next(
                line.split()[1:]
                for line in status.read_text().splitlines()
                if line.startswith("NSpid:")
            )
            command = (status.parent / "cmdline").read_bytes()
        except (OSError, StopIteration):
            continue
        if numbers[-1] == str(inside) and len(numbers) > 1 and b"raylet" in command:
            return int(numbers[0])
    raise AssertionError(f"no raylet {inside} below {leader}")


@pytest.mark.slow
def test_a_killed_driver_goes_on_where_it_was(few, tmp_path):
    folder = copy_of(few, tmp_path / "photos")
    script = f"ip link set lo up; exec {index(folder, '--on', 'local')}"
    # Without a namespace of processes, so that what is left would be seen.
    running = subprocess.Popen(
        ["unshare", "-n", "sh", "-c", script],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: committed(folder) > 64, 200, running)
    os.kill(running.pid, signal.SIGKILL)
    running.communicate()
    done = committed(folder)
    assert 64 < done < FEW
    again = alone(index(folder, "--on", "local"), 400)
    assert again.returncode == 0, again.stderr
    report = json.loads(again.stdout)
    assert report["unchanged"] == done
    # A copy of what is known needs no embedding.
    assert report["embedded"] in {FEW + 1 - done, FEW - done}
    assert rows(folder)["file"] == rows(few)["file"]
    assert_same_vectors(rows(folder)["file_vector"], rows(few)["file_vector"])


@pytest.mark.slow
def test_an_interrupt_ends_politely_and_leaves_nothing(few, tmp_path):
    folder = copy_of(few, tmp_path / "photos")
    before = left_over()
    running = subprocess.Popen(
        ["unshare", "-n", "sh", "-c", f"ip link set lo up; exec {index(folder, '--on', 'local')}"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: committed(folder) >= 32, 200, running)
    running.send_signal(signal.SIGINT)
    said, told = running.communicate(timeout=60)
    assert running.returncode == 130
    assert said == ""
    assert told.startswith("Interrupted. Saved: ")
    assert told.count("\n") == 1, told
    end = time.monotonic() + 20
    while (there := [one for one in left_over() if one not in before]) and time.monotonic() < end:
        time.sleep(0.5)
    assert not there


POISON = """
import os
from pathlib import Path
from mmsearch.retrieval import reading
plain = reading.read_bytes
def read_bytes(path):
    if Path(path).name == "0100.jpg":
        os._exit(1)  # As the system does to a process that takes all memory.
    return plain(path)
reading.read_bytes = read_bytes
"""

ONLY_IN_ACTORS = """
import sys
if any("default_worker.py" in word for word in sys.orig_argv):
    import poison
"""


@pytest.mark.slow
def test_a_picture_that_kills_its_process_is_left_out(tmp_path):
    folder = take(tmp_path / "photos", 300)
    site = tmp_path / "site"
    site.mkdir()
    (site / "poison.py").write_text(POISON)
    # What Python does at its start, in the processes of actors alone.
    (site / "sitecustomize.py").write_text(ONLY_IN_ACTORS)
    path = f'PYTHONPATH="{site}:$PYTHONPATH"'
    done = alone(f"{path} {index(folder, '--on', 'local')}", 300)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["added"], report["problems"]) == (300, 2)
    problems = {path: kind for path, kind, *_ in rows(folder)["problem"]}
    assert problems == {"broken.jpg": "damaged", "2/0100.jpg": "worker-died"}


@pytest.mark.slow
def test_a_client_of_a_cluster_makes_the_same_catalog(tmp_path):
    folder = take(tmp_path / "photos", 300)
    other = copy_of(folder, tmp_path / "other")
    assert alone(index(other), 400).returncode == 0
    with cluster(tmp_path, 1, index(folder, "--on", "ray://127.0.0.1:10001")) as running:
        said, told = running.communicate(timeout=300)
        assert running.returncode == 0, told
    assert json.loads(said)["added"] == 301
    assert rows(folder) == rows(other)
