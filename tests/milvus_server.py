"""A real Milvus server for tests: PyPI's `milvus`, in a network of its own.

The server listens on all addresses and has ports that cannot be changed, so it and whoever talks
to it run in a private network namespace (`unshare -n`), where there is nothing but a loopback.

    python tests/milvus_server.py pytest -n 0 -m milvus tests/test_milvus.py

runs a command in such a network, with a server whose address is in MMSEARCH_TEST_MILVUS_URI.
Set that variable yourself to run the tests against a cluster of your own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

ADDRESS = "MMSEARCH_TEST_MILVUS_URI"
FOLDER = "MMSEARCH_TEST_MILVUS_FOLDER"
"""Where the data of a server of our own lies, so that tests can kill and start it again."""
PORT = 19530


class Server:
    """One server, started in the present network, its data below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pid_file = folder / "server.pid"
        self._health = folder / "health.url"

    def start(self) -> None:
        """Start it and wait until it says that it is well."""
        # A session that died with its server is believed to be alive for so many seconds.
        os.environ["COMMON_SESSION_TTL"] = "5"
        os.environ["no_proxy"] = "127.0.0.1"
        from milvus import MilvusServer

        server = MilvusServer()
        server.set_base_dir(str(self.folder / "data"))
        server.listen_port = PORT
        server.start()
        assert server.server_proc is not None
        self._pid_file.write_text(str(server.server_proc.pid))
        self._health.write_text(f"http://127.0.0.1:{server.webservice_port}/healthz")
        self._process = server.server_proc
        server.server_proc = None  # else it would be stopped with this object

    def start_again(self) -> None:
        """Start what was killed, on the ports it had.

        `MilvusServer` would take others: the old ones are not free for a minute.
        """
        base, health = self.folder / "data", self._health.read_text()
        environment = {
            "DEPLOY_MODE": "STANDALONE",
            "METRICS_PORT": str(urlsplit(health).port),
            "MILVUS_RUN_DIR": str(base / "run"),
            "LD_LIBRARY_PATH": str(base / "bin"),
            "COMMON_SESSION_TTL": "5",
        }
        # In the background of a shell that ends, so that it is no child that must be waited for.
        started = subprocess.run(
            ["sh", "-c", "bin/milvus run standalone > logs/again.log 2>&1 & echo $!"],
            cwd=base,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        pid = int(started.stdout)
        self._pid_file.write_text(str(pid))
        ends = time.monotonic() + 150
        while not _is_well(health):
            assert _alive(pid), "the server ended"
            assert time.monotonic() < ends, "the server does not become well"
            time.sleep(0.3)

    def kill(self) -> None:
        """End it at once, as a loss of power does."""
        self._end(9)

    def stop(self) -> None:
        """End it, for good."""
        self._end(9)

    def _end(self, signal: int) -> None:
        pid = int(self._pid_file.read_text())
        try:
            os.kill(pid, signal)
        except ProcessLookupError:
            return
        while _alive(pid):
            time.sleep(0.05)


def _is_well(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return b"OK" in answer.read()
    except OSError:
        return False


def _alive(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def what_is_missing() -> str | None:
    """Say what a server of our own lacks here; None where it can be started."""
    if importlib.util.find_spec("milvus") is None:
        return 'Milvus itself is not installed: pip install "mmsearch[test]" (Linux on x86-64)'
    tried = subprocess.run(
        ["unshare", "-n", "sh", "-c", "ip link set lo up"], capture_output=True, text=True
    )
    if tried.returncode:
        return f"no private network can be made (unshare -n): {tried.stderr.strip()}"
    return None


def in_own_network(command: list[str]) -> list[str]:
    """Return the command that runs a command beside a server, in a private network."""
    script = 'ip link set lo up && exec "$@"'
    here = [sys.executable, str(Path(__file__).absolute()), "--inside", *command]
    return ["unshare", "-n", "sh", "-c", script, "sh", *here]


def main() -> int:
    command = sys.argv[1:]
    if command[:1] != ["--inside"]:
        return subprocess.run(in_own_network(command)).returncode
    with tempfile.TemporaryDirectory(prefix="milvus-") as folder:
        server = Server(Path(folder))
        server.start()
        environment = {ADDRESS: f"milvus://127.0.0.1:{PORT}/default", FOLDER: folder}
        try:
            return subprocess.run(command[1:], env={**os.environ, **environment}).returncode
        finally:
            server.stop()


if __name__ == "__main__":
    sys.exit(main())
