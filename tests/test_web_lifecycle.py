"""From the first request to the last: indexing beside it, the end, and what cannot begin."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from mmsearch.retrieval.ingest import index
from mmsearch.retrieval.web import batching
from mmsearch.retrieval.web.settings import Settings
from tests.conftest import COLOURS, ColourEncoder, draw, heed_interrupts
from tests.serving import Reply, read_reply, served

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "my photos"
    for colour in COLOURS:
        draw(folder / f"{colour}.jpg", colour)
    index(folder)
    return folder


@contextmanager
def command(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run `mmsearch serve` until it serves; yield it and its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mmsearch.cli", "serve", *map(str, arguments), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        preexec_fn=None if sys.platform == "win32" else heed_interrupts,
    )
    try:
        assert process.stderr is not None
        found = re.search(r"http://[^/]*:(\d+)/", process.stderr.readline())
        assert found, process.stderr.read()
        yield process, int(found[1])
    finally:
        process.kill()
        process.communicate()


def begin(port: int, path: str) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=60)
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return sock


def get(port: int, path: str) -> Reply:
    with begin(port, path) as sock:
        return read_reply(sock)


def test_asked_without_pause_while_it_is_indexed_no_request_is_lost(photos: Path):
    with command(photos) as (_, port):
        ends, errors, counts = threading.Event(), [], []

        def ask(i: int) -> None:
            count = 0
            with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
                while not ends.is_set():
                    path = f"/api/v1/search?q=a+photo+{i}+{count}&all=true&group=false&k=50"
                    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                    reply = read_reply(sock)
                    if reply.status != 200:
                        errors.append((reply.status, reply.body))
                    count += 1
            counts.append(count)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        try:
            for i in range(2):
                draw(photos / f"new {i}.jpg", "blue", (300 + i, 200))
                subprocess.run(
                    [sys.executable, "-m", "mmsearch.cli", "index", photos, "--json"],
                    env=ENVIRONMENT,
                    check=True,
                    capture_output=True,
                )
                # The next question sees it.
                found = get(port, "/api/v1/search?q=blue&all=true&group=false&k=50").json
                assert f"new {i}.jpg" in [hit["path"] for hit in found["results"]]
                assert found["considered"] == 6 + i + 1
        finally:
            ends.set()
            for thread in threads:
                thread.join(60)
        assert not errors
        assert len(counts) == 4
        assert min(counts) > 3


@pytest.mark.parametrize(
    ("ended", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"]
)
def test_what_is_being_answered_is_answered_before_the_end(photos: Path, ended, code):
    with command(photos) as (process, port), ExitStack() as open_:
        explain = "/api/v1/items/my-photos/1/explain?q=red"
        for path in ("/api/v1/search?q=red", explain):
            assert get(port, path).status == 200
        waiting = [begin(port, f"/api/v1/search?q=question+{i}&all=true") for i in range(20)]
        waiting.append(begin(port, explain))
        for sock in waiting:
            open_.enter_context(sock)
        idle = socket.create_connection(("127.0.0.1", port), timeout=60)
        process.send_signal(ended)
        statuses = [read_reply(sock).status for sock in waiting]
        assert statuses == [200] * 21
        with idle:
            assert idle.recv(1) == b""
        assert process.wait(30) == code
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
        with pytest.raises(ConnectionRefusedError):
            get(port, "/health")


def test_a_second_ctrl_c_ends_at_once(photos: Path):
    with ExitStack() as open_:
        process, port = open_.enter_context(command(photos))
        # A body that does not come keeps its request for long.
        sock = open_.enter_context(socket.create_connection(("127.0.0.1", port)))
        sock.sendall(
            b"POST /api/v1/recommend HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n"
            b"Content-Type: application/json\r\n\r\n"
        )
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert time.monotonic() - started < 1


def refused(*arguments: object, code: int = 1) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "mmsearch.cli", "serve", *map(str, arguments)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("mmsearch: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_what_cannot_be_served_gets_one_clear_line(photos: Path, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        told = refused(photos, "--port", taken.getsockname()[1])
        assert "--port" in told
        assert "in use" in told
    assert "mmsearch index" in refused(tmp_path)
    assert "cannot be listened on" in refused(photos, "--host", "192.0.2.1")
    (tmp_path / ".mmsearch").mkdir()
    (tmp_path / ".mmsearch/catalog.sqlite").write_bytes(b"no database at all" * 100)
    assert "damaged" in refused(tmp_path)
    assert "damaged" in refused(photos, tmp_path)


def test_without_the_extra_it_says_what_to_install(photos: Path, tmp_path: Path):
    code = (
        "import sys; sys.modules['uvicorn'] = None; sys.argv = ['mmsearch', 'serve', sys.argv[1]]\n"
        "from mmsearch.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, photos],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "mmsearch[serve]" in done.stderr


def test_while_it_closes_further_questions_are_told_so(tmp_path: Path):
    draw(tmp_path / "photos/red.jpg", "red")
    index(tmp_path / "photos", model=ColourEncoder())
    with served([tmp_path / "photos"]) as running:
        batcher: batching.Batcher = running.shelf["photos"]._batcher
        batcher.close()
        reply = running.ask("/api/v1/search?q=red")
        assert (reply.status, reply.kind) == (503, "closing")
        assert int(reply.headers["retry-after"]) >= 1


def test_too_many_questions_are_told_when_to_come_back(tmp_path: Path):
    draw(tmp_path / "photos/red.jpg", "red")
    index(tmp_path / "photos", model=ColourEncoder())
    settings = Settings(port=0)
    with served([tmp_path / "photos"], settings) as running:
        library = running.shelf["photos"]
        go = threading.Event()
        asked, answer = [], library._batcher._answer

        def slowly(requests):
            asked.extend(request["text"] for request in requests)
            go.wait(20)
            return answer(requests)

        library._batcher._answer = slowly
        library._batcher._most = 3
        path = "/api/v1/search?all=true&q="
        # Two threads take one each, as many as there are batches; three wait.
        waiting = []
        for i in range(2):
            waiting.append(begin(running.address[1], f"{path}first{i}"))
            while len(asked) <= i:
                time.sleep(0.01)
        waiting += [begin(running.address[1], f"{path}more{i}") for i in range(3)]
        while library.waiting < 3:
            time.sleep(0.01)
        reply = running.ask(f"{path}late")
        assert (reply.status, reply.kind) == (503, "busy")
        assert int(reply.headers["retry-after"]) >= 1
        # Who goes away makes room.
        waiting.pop().close()
        time.sleep(1)
        go.set()
        assert [read_reply(sock).status for sock in waiting] == [200] * 4
        assert ["more2"] not in asked
        assert json.loads(running.ask(f"{path}late").body)["results"]
        for sock in waiting:
            sock.close()
