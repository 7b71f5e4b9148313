"""Nothing leaves this machine: with sockets blocked all works, and --offline blocks them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mmsearch.retrieval import offline
from tests.conftest import draw

BLOCKED = """
import json, sys
from typer.testing import CliRunner
from mmsearch.cli import app

def block(event, arguments):
    if event.startswith("socket.") and event != "socket.gethostname":
        raise SystemExit(f"a socket was used: {event} {arguments}")

sys.addaudithook(block)
for command in json.loads(sys.argv[1]):
    ran = CliRunner().invoke(app, command)
    if ran.exit_code:
        raise SystemExit(f"{command}: {ran.exit_code} {ran.output} {ran.exception!r}")
    sys.stdout.write(json.dumps(ran.stdout) + "\\n")
"""
"""The command line in a process that may not even make a socket."""


def test_every_command_that_needs_no_hub_works_with_sockets_blocked(tmp_path: Path) -> None:
    photos = tmp_path / "my photos"
    for colour in ("red", "blue", "green"):
        draw(photos / f"{colour}.jpg", colour, (64, 48))
    (photos / "red.txt").write_text("all red")
    red, here = str(photos / "red.jpg"), ["--library", str(photos)]
    commands = [
        ["query", "red", "--all", "--json", *here],
        ["similar", red, *here],
        ["caption", red, *here],
        ["recommend", "--like", "red.jpg", *here],
        ["explain", red, "red", *here],
        ["doctor", str(photos)],
        ["backup", str(tmp_path / "kept"), *here],
        ["status", *here],
        ["models"],
    ]
    commands.insert(0, ["index", str(photos), "--json"])
    program = [sys.executable, "-c", BLOCKED, json.dumps(commands)]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(commands)
    assert json.loads(answers[1])["considered"] == 3


def offline_run(program: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"MMSEARCH_OFFLINE": "1"} | more
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


CONNECTS = """
import socket
from mmsearch.retrieval.offline import stay_offline
stay_offline()
def refused(call):
    try:
        call()
    except OSError as error:
        assert "offline, as asked" in str(error), error
    else:
        raise SystemExit("it was let through")
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
refused(lambda: socket.create_connection(("192.0.2.1", 80), timeout=1))
refused(lambda: socket.create_connection(("example.com", 80), timeout=1))
refused(lambda: socket.getaddrinfo("example.com", 80))
refused(lambda: socket.gethostbyname("example.com"))
refused(lambda: udp.sendto(b"x", ("192.0.2.1", 53)))
refused(lambda: socket.socket(socket.AF_INET6).connect(("2001:db8::1", 80)))
import urllib.request
refused(lambda: urllib.request.urlopen("http://192.0.2.1/", timeout=1))
listening = socket.create_server(("127.0.0.1", 0))
socket.create_connection(listening.getsockname()).close()
socket.getaddrinfo("localhost", 80)
import os
assert os.environ["HF_HUB_OFFLINE"] == "1"
"""


def test_nothing_is_let_through_to_another_machine() -> None:
    done = offline_run(CONNECTS)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("value", "expected"),
    [("1", True), ("yes", True), ("", False), ("0", False), ("False", False), (None, False)],
)
def test_the_environment_says_so(
    value: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(offline.ENVIRONMENT, raising=False)
    if value is not None:
        monkeypatch.setenv(offline.ENVIRONMENT, value)
    assert offline.is_offline() is expected


@pytest.mark.parametrize("how", ["option", "variable"])
def test_the_command_line_enforces_it(how: str, tmp_path: Path) -> None:
    draw(tmp_path / "photos" / "red.jpg")
    option = ["--offline"] if how == "option" else []
    environment = os.environ | ({"MMSEARCH_OFFLINE": "1"} if how == "variable" else {})
    program = (
        "import sys, socket, typer\n"
        "from mmsearch import cli\n"
        "app = cli.make_app()\n"
        "@app.command()\n"
        "def reach() -> None:\n"
        "    socket.create_connection(('192.0.2.1', 80), timeout=1)\n"
        "cli.make_app = lambda names: app\n"
        "sys.argv[0] = 'mmsearch'\n"
        "cli.main()\n"
    )
    command = [sys.executable, "-c", program, *option, "reach"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "offline, as asked: 192.0.2.1 is not looked up" in done.stderr
    works = [sys.executable, "-m", "mmsearch.cli", *option, "index", str(tmp_path / "photos")]
    assert subprocess.run(works, env=environment, capture_output=True).returncode == 0


def test_a_model_of_a_hub_says_why_it_cannot_be_had(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    draw(tmp_path / "photos" / "red.jpg")
    command = [sys.executable, "-m", "mmsearch.cli", "--offline", "index", str(tmp_path / "photos")]
    done = subprocess.run(
        [*command, "--model", "hf:somebody/some-model"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "cannot be opened" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_here_is_told_from_what_is_not() -> None:
    for here in (None, "", "localhost", "127.0.0.1", b"127.0.0.9", "::1", "0.0.0.0", "::1%lo"):
        assert offline.is_here(here)
    for elsewhere in ("example.com", "192.168.1.4", b"10.0.0.1", "fe80::1%eth0", "127.0.0.1.org"):
        assert not offline.is_here(elsewhere)
    assert socket.has_ipv6 in {True, False}
