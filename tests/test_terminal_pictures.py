"""Thumbnails in a terminal: the real command on a pseudo-terminal that answers as real ones do."""

from __future__ import annotations

import base64
import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import termios
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from mmsearch.retrieval import terminal_graphics
from mmsearch.retrieval.terminal_graphics import Abilities, Graphics, ask_terminal
from mmsearch.retrieval.thumbnails import fitted
from tests.conftest import draw
from tests.test_cli import MMSEARCH
from tests.test_showing import turned

QUESTION = b"\x1b[c"
PLAIN = b"\x1b[?62;22c"
SIXEL = b"\x1b]11;rgb:ffff/8080/0000\x1b\\\x1b[6;20;10t\x1b[?62;4;22c"
KITTY = b"\x1b_Gi=31;OK\x1b\\\x1b]11;rgb:ff/ff/ff\x1b\\\x1b[6;20;10t\x1b[?62c"
ITERM2 = (
    b"\x1b_Gi=31;OK\x1b\\\x1b]11;rgb:ffff/ffff/ffff\x1b\\\x1b[6;20;10t"
    b"\x1b]1337;ReportCellSize=20.00;10.00;2.0\x1b\\\x1bP>|iTerm2 3.5.10\x1b\\\x1b[?64;1;4;22c"
)
COLOUR = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "NO_COLOR": ""}


@dataclass
class Seen:
    code: int
    output: bytes
    left: bytes
    """What the command did not read of what the terminal told it."""

    @property
    def shown(self) -> str:
        """Everything after the questions."""
        return self.output.partition(b"\r\x1b[K")[2].decode()

    @property
    def text(self) -> str:
        return re.sub(r"\x1b\[[0-9;]*m", "", self.shown)


def on_terminal(
    folder: Path,
    *arguments: str,
    answer: bytes,
    size: tuple[int, int] = (40, 80),
    command: tuple[str, ...] = ("query", "red", "-p"),
    **environment: str,
) -> Seen:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    # A control terminal, as in a shell: the command must be in its foreground to ask.
    process = subprocess.Popen(
        [MMSEARCH, *command, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=folder,
        env={**os.environ, **COLOUR, **environment},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    output, answered = b"", False
    while True:
        if select.select([ours], [], [], 0.05)[0]:
            output += os.read(ours, 1 << 16)
        elif process.poll() is not None:
            break
        if not answered and QUESTION in output:
            os.write(ours, answer)
            answered = True
    mode = termios.tcgetattr(theirs)
    assert mode[3] & termios.ECHO
    assert mode[3] & termios.ICANON
    # As the shell would get it at its next prompt.
    mode[3] &= ~termios.ICANON
    termios.tcsetattr(theirs, termios.TCSANOW, mode)
    left = os.read(theirs, 999) if select.select([theirs], [], [], 0)[0] else b""
    os.close(ours)
    os.close(theirs)
    return Seen(process.wait(), output, left)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lib")
    draw(folder / "wide.jpg", "red", (320, 240))
    draw(folder / "turned.jpg", "blue", (320, 240), exif=turned())
    draw(folder / "gone.jpg", "green", (64, 64))
    draw(folder / "a-name-that-is-longer-than-a-thumbnail.png", "yellow", (300, 20))
    subprocess.run([MMSEARCH, "index", folder], check=True, capture_output=True)
    (folder / "gone.jpg").unlink()
    return folder


def test_half_blocks_where_the_terminal_knows_nothing_better(library: Path) -> None:
    seen = on_terminal(library, answer=PLAIN)
    assert seen.code == 0
    assert seen.left == b""
    assert "▀" in seen.text
    # Two pixels a character, in the picture's own colours: red, as drawn.
    assert re.search(r"\x1b\[38;2;2[23]\d;[12]\d;[12]\d;48;2;", seen.shown)
    lines = seen.text.split("\r\n")
    assert max(map(len, lines)) <= 80
    for name in ("wide.jpg", "turned.jpg", "gone.jpg", "a-name-that-is-longer-th"):
        assert name in seen.text
    assert "a-name-that-is-longer-than-a-thumbnail.png" not in seen.text
    assert "it is gone since it was" in seen.text
    assert "4 of 4 · exact" in seen.text


def test_every_window_gets_a_grid_that_fits(library: Path) -> None:
    across = {}
    for columns, rows in ((20, 8), (60, 12), (200, 50)):
        seen = on_terminal(library, answer=PLAIN, size=(rows, columns))
        lines = [line for line in seen.text.split("\r\n") if "exact" not in line]
        assert max(map(len, lines)) <= columns
        across[columns] = max(len(re.findall(r"▀+", line)) for line in lines)
        # As high as three quarters of the width, never more than the window.
        run = longest_run("▀" in line for line in lines)
        assert run <= rows - 4
    # One is gone, so three are drawn of four.
    assert across == {20: 1, 60: 2, 200: 3}


def longest_run(flags: object) -> int:
    best = now = 0
    for flag in flags:  # type: ignore[attr-defined]
        now = now + 1 if flag else 0
        best = max(best, now)
    return best


def test_sixels_where_the_terminal_says_so(library: Path) -> None:
    seen = on_terminal(library, answer=SIXEL)
    assert seen.code == 0
    assert seen.left == b""
    images = re.findall(r"\x1bP[\d;]*q(.*?)\x1b\\", seen.shown, re.S)
    # Two lines: three across, then one; each the height of its box in pixels.
    sizes = [re.match(r'"1;1;(\d+);(\d+)', image) for image in images]
    assert [size and size.groups() for size in sizes] == [("790", "180"), ("250", "180")]
    assert all(image for image in images)
    assert len(images) == 2
    # The gaps have the terminal's own colour: 100 %, 50 % and nothing.
    assert all(re.search(r"#\d+;2;100;50;0", image) for image in images)
    assert "▀" not in seen.shown
    assert "wide.jpg" in seen.shown


@pytest.mark.parametrize("no_color", ["", "1"])
def test_kitty_gets_png_and_the_characters_that_place_it(library: Path, no_color: str) -> None:
    seen = on_terminal(library, answer=KITTY, NO_COLOR=no_color)
    assert seen.code == 0
    assert seen.left == b""
    chunks = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", seen.shown)
    images: dict[str, str] = {}
    for keys, data in chunks:
        number = re.search(r"i=(\d+)", keys)
        assert number
        images[number[1]] = images.get(number[1], "") + data
    assert len(images) == 2
    for data in images.values():
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        picture.load()
        assert picture.format == "PNG"
        assert picture.height == 180
    # Their number is in the colour, which nothing may take away.
    for number in map(int, images):
        colour = f"38;2;{number >> 16 & 255};{number >> 8 & 255};{number & 255}m"
        assert f"\x1b[{colour}\U0010eeee" in seen.shown


def test_iterm2_gets_whole_files_as_sharp_as_the_screen(library: Path) -> None:
    seen = on_terminal(library, answer=ITERM2)
    assert seen.code == 0
    assert seen.left == b""
    found = re.findall(r"\x1b7\x1b\[9A\x1b\]1337;File=([^:]*):([^\x07]*)\x07\x1b8", seen.shown)
    assert len(found) == 2
    shapes = []
    for told, data in found:
        raw = base64.b64decode(data, validate=True)
        keys = dict(pair.split("=") for pair in told.split(";"))
        assert keys.items() >= {"inline": "1", "preserveAspectRatio": "0"}.items()
        assert keys["size"] == str(len(raw))
        shapes.append((keys["width"], keys["height"]))
        picture = Image.open(io.BytesIO(raw))
        assert (picture.format, picture.mode) == ("PNG", "RGBA")
        # Twice the cells of 10 by 20 that the terminal told.
        assert picture.size == (20 * int(keys["width"]), 40 * int(keys["height"]))
    assert shapes == [("79", "9"), ("25", "9")]
    # The gaps let the terminal's own colour through, the picture does not.
    first = Image.open(io.BytesIO(base64.b64decode(found[0][1])))
    assert first.getpixel((25 * 20 + 20, 300))[3] == 0
    assert first.getpixel((100, 300))[3] == 255
    assert "\x1bP" not in seen.shown
    assert "wide.jpg" in seen.text


def test_without_colour_it_is_shades(library: Path) -> None:
    for environment in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        seen = on_terminal(library, answer=PLAIN, **environment)
        shown = seen.shown or seen.output.decode()
        assert "▓" in shown or "▒" in shown
        assert "\x1b[38" not in shown


def test_a_terminal_that_is_mute_gets_blocks(library: Path) -> None:
    seen = on_terminal(library, answer=b"")
    assert seen.code == 0
    assert "▀" in seen.text


def test_the_console_that_shows_questions_is_asked_none(library: Path) -> None:
    seen = on_terminal(library, answer=b"", TERM="linux")
    assert b"\x1b_G" not in seen.output
    assert "▀" in seen.output.decode()


def answers(answer: bytes, monkeypatch: pytest.MonkeyPatch, **environment: str) -> Abilities:
    monkeypatch.setattr(terminal_graphics, "_answer", lambda: answer)
    for name, value in {**COLOUR, "TERM_PROGRAM": "", **environment}.items():
        monkeypatch.setenv(name, value)
    return ask_terminal()


def test_answers_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    assert answers(SIXEL, monkeypatch) == Abilities(Graphics.SIXEL, (10, 20), (255, 128, 0))
    assert answers(KITTY, monkeypatch) == Abilities(Graphics.KITTY, (10, 20), (255, 255, 255))
    # WezTerm and Konsole say yes to both.
    both = b"\x1b_Gi=31;OK\x1b\\" + SIXEL
    assert answers(both, monkeypatch).graphics is Graphics.SIXEL
    iterm2 = Abilities(Graphics.ITERM2, (10, 20), (255, 255, 255), 2.0)
    assert answers(ITERM2, monkeypatch) == iterm2
    # Within tmux its variables are set, and it is tmux that answers.
    tmux = ITERM2.replace(b"iTerm2 3.5.10", b"tmux 3.4")
    within = answers(tmux, monkeypatch, TERM_PROGRAM="iTerm.app", LC_TERMINAL="iTerm2")
    assert within.graphics is Graphics.SIXEL
    assert within.density == 1
    older = re.sub(rb"\x1b\]1337[^\\]*\\", b"", ITERM2)
    assert answers(older, monkeypatch).drawn_cell == (10, 20)
    # 4 is sixels; 64 and 14 are not.
    assert answers(b"\x1b[?64;14c", monkeypatch).graphics is Graphics.BLOCKS
    warp = answers(KITTY, monkeypatch, TERM_PROGRAM="WarpTerminal")
    assert warp.graphics is Graphics.BLOCKS
    refused = b"\x1b_Gi=31;ENOTSUP:no\x1b\\" + PLAIN
    assert answers(refused, monkeypatch).graphics is Graphics.BLOCKS
    assert answers(PLAIN, monkeypatch, NO_COLOR="1").graphics is Graphics.SHADES
    assert answers(SIXEL, monkeypatch, NO_COLOR="1").graphics is Graphics.SIXEL


def test_pictures_are_fitted_undistorted() -> None:
    # A cell is twice as high as wide: a square picture covers twice as many columns as rows.
    assert fitted((100, 100), (24, 9), (10, 20)) == (18, 9)
    assert fitted((400, 300), (24, 9), (10, 20)) == (24, 9)
    assert fitted((300, 400), (24, 9), (10, 20)) == (14, 9)
    assert fitted((4000, 10), (24, 9), (10, 20)) == (24, 1)
    assert fitted((1, 4000), (24, 9), (10, 20)) == (1, 9)
