"""A real PostgreSQL for the tests, on this machine's own loopback and for nobody else.

Started when a test first asks, once for each process of the tests, and stopped with it, however it
ends. `MMSEARCH_TEST_POSTGRESQL_URL` names one that is there already instead: of a database whose
user may create schemas. Every test takes a schema of its own.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

from mmsearch.retrieval.catalog import Address

ENVIRONMENT = "MMSEARCH_TEST_POSTGRESQL_URL"
BINARIES = Path("/usr/lib/postgresql")
PASSWORD = "not a secret: 1/2"
SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "60",
    "shared_buffers": "32MB",
    "max_wal_size": "256MB",
    "logging_collector": "off",
    "autovacuum": "off",
    "dynamic_shared_memory_type": "mmap",
}
MISSING = (
    "PostgreSQL is not installed, so nothing of a catalog on a server is tested. "
    "Run: apt-get install postgresql (or name one in " + ENVIRONMENT + ")"
)


@dataclass(frozen=True)
class Postgres:
    """A server that answers.

    Attributes:
        url: its address, with a password.
        data: its folder, where these tests started it.
    """

    url: str
    data: Path | None

    def address(self, uid: str | None = None, schema: str | None = None) -> Address:
        """An address of a schema that nothing is in yet."""
        url = self.url if schema is None else self.with_schema(schema)
        return Address.of(url, uid or str(uuid.uuid4()))

    def with_schema(self, schema: str) -> str:
        return f"{self.url}{'&' if '?' in self.url else '?'}schema={schema}"

    def connect(self) -> psycopg.Connection:
        return psycopg.connect(self.url.replace("+psycopg", ""), autocommit=True)

    @property
    def port(self) -> int:
        with self.connect() as connection:
            return connection.info.port


def find_binaries() -> Path | None:
    """The newest PostgreSQL that is installed."""
    found = sorted(BINARIES.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    initdb = shutil.which("initdb")
    return None if initdb is None else Path(initdb).resolve().parent


def as_another_user() -> list[str]:
    """What a command is begun with: PostgreSQL does not run as root."""
    if os.getuid() != 0:
        return ["setpriv", "--pdeathsig", "INT"] if shutil.which("setpriv") else []
    user = pwd.getpwnam(owner())
    return [
        "setpriv",
        f"--reuid={user.pw_uid}",
        f"--regid={user.pw_gid}",
        "--clear-groups",
        # Stopped, at once and in good order, also when the tests are killed.
        "--pdeathsig",
        "INT",
    ]


def owner() -> str:
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        return "nobody"


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def made() -> Iterator[tuple[Callable[[], Postgres], Callable[[], None]]]:
    """What starts a server of these tests' own, and what stops it; stopped in any case."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip(MISSING)
    folder = Path(tempfile.mkdtemp(prefix="mmsearch-postgres-", dir="/tmp"))
    port = free_port()
    running: list[subprocess.Popen[bytes]] = []

    def start() -> Postgres:
        running.append(_process(binaries, folder, port))
        url = f"postgresql+psycopg://tester:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/postgres"
        server = Postgres(url, folder)
        _wait_for(server, running[-1])
        return server

    def stop() -> None:
        while running:
            process = running.pop()
            process.send_signal(signal.SIGINT)  # fast: connections are cut
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    try:
        _initialise(binaries, folder)
        yield start, stop
    finally:
        stop()
        shutil.rmtree(folder, ignore_errors=True)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name[:2] != "PG"}


def _initialise(binaries: Path, folder: Path) -> None:
    folder.chmod(0o755)
    data, secret = folder / "data", folder / "password"
    data.mkdir()
    secret.write_text(PASSWORD)
    if os.getuid() == 0:
        for path in (data, secret, folder):
            shutil.chown(path, owner())
    subprocess.run(
        [
            *as_another_user(), binaries / "initdb", "-D", data, "--username=tester",
            f"--pwfile={secret}", "--auth-host=scram-sha-256", "--auth-local=trust",
            "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", "--no-instructions",
        ],
        check=True, capture_output=True, cwd="/", env=_environment(),
    )  # fmt: skip


def _process(binaries: Path, folder: Path, port: int) -> subprocess.Popen[bytes]:
    options = [part for item in SETTINGS.items() for part in ("-c", "=".join(item))]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [
                *as_another_user(), binaries / "postgres", "-D", folder / "data",
                "-c", "listen_addresses=127.0.0.1", "-p", str(port), "-k", str(folder), *options,
            ],
            stdout=log, stderr=log, cwd="/", env=_environment(),
        )  # fmt: skip


def _wait_for(server: Postgres, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            server.connect().close()
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > end:
                assert server.data is not None
                raise AssertionError((server.data / "log").read_text()) from None
            time.sleep(0.1)
        else:
            return


@contextmanager
def postgres_of_tests() -> Iterator[Postgres]:
    """The user's own server, or one that is started."""
    given = os.environ.get(ENVIRONMENT)
    if given:
        yield Postgres(given, None)
    else:
        with made() as (start, _):
            yield start()
