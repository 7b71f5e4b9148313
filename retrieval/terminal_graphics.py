"""What a terminal can draw, by asking it, and the library that draws.

`textual-image` asks while it is imported, gives the terminal a tenth of a second, and fails where
stdin is no terminal; an answer that comes later, over a slow line, ends up on the prompt. So the
terminal is asked here, once, and the library is told.
"""

from __future__ import annotations

import io
import os
import re
import select
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from mmsearch.errors import MissingExtra

__all__ = ["Abilities", "Graphics", "ask_terminal", "check_extra", "drawing"]

PATIENCE_S = 2.0
"""How long to wait for an answer. Nearly every terminal gives one at once, and then it is over."""

MOST_DENSITY = 4.0
"""That is believed: no screen is finer, and pictures grow by its square."""

USUAL_CELL = (10, 20)
"""Pixels of a character cell where the terminal tells none: those of the VT340."""

_QUESTIONS = (
    "\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\"  # kitty: would you take this picture?
    "\x1b]11;?\x1b\\"  # the background's colour
    "\x1b[16t"  # pixels of a cell
    "\x1b]1337;ReportCellSize\x07"  # iTerm2: how many of the screen's a point has
    "\x1b[>q"  # what is your name?
    "\x1b[c"  # what are you? Every terminal answers this, and answers come in order.
)
_NAME = re.compile(rb"\x1b\[\?([\d;]*)c")
_KITTY = re.compile(rb"\x1b_Gi=31;OK\x1b\\")
_BACKGROUND = re.compile(rb"\x1b\]11;rgb:([0-9a-fA-F]+)/([0-9a-fA-F]+)/([0-9a-fA-F]+)")
_CELL = re.compile(rb"\x1b\[6;(\d+);(\d+)t")
_DENSITY = re.compile(rb"\x1b\]1337;ReportCellSize=[\d.]+;[\d.]+;(\d+(?:\.\d+)?)")
_ITERM2 = re.compile(rb"\x1bP>\|iTerm2 \d")
_SIXEL = b"4"


class Graphics(StrEnum):
    """How pictures get onto a terminal, see `Abilities.graphics`."""

    SIXEL = "sixel"
    """Pixels in DEC's format: WezTerm, Konsole, foot, Windows Terminal, xterm …"""

    ITERM2 = "iterm2"
    """Whole picture files by iTerm2's protocol, see `terminal_iterm2`; sixels in the browser."""

    KITTY = "kitty"
    """Pixels by kitty's protocol, placed by characters: kitty, Ghostty."""

    BLOCKS = "blocks"
    """Two coloured pixels a character, anywhere."""

    SHADES = "shades"
    """A shade a character, without colour."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a terminal can draw.

    Attributes:
        graphics: the best way of drawing that works.
        cell: width and height of a character in pixels.
        background: its red, green and blue, 0 to 255.
        density: pixels of the screen, along a line, for each of those (2 on a Retina screen), where
            pictures can be as sharp as that.
    """

    graphics: Graphics
    cell: tuple[int, int] = USUAL_CELL
    background: tuple[int, int, int] = (0, 0, 0)
    density: float = 1.0

    @property
    def drawn_cell(self) -> tuple[int, int]:
        """Pixels of a character in a picture that is drawn."""
        return round(self.cell[0] * self.density), round(self.cell[1] * self.density)


def check_extra(package: str) -> None:
    """Check that a package of the extra `show` is installed.

    Raises:
        MissingExtra: it is not.
    """
    if find_spec(package.replace("-", "_")) is None:
        raise MissingExtra(package, "show")


def ask_terminal() -> Abilities:
    """Ask the terminal on stdout what it can draw.

    Where both are offered, sixels are taken: WezTerm and Konsole know kitty's protocol without the
    characters that place a picture, and kitty itself knows no sixels. iTerm2 is known by the name
    it gives: its variables are also set within tmux, which shows none of its pictures. Without
    colour (`NO_COLOR`, or a terminal that has none) what is left is shades, while pixels go on,
    since whoever asks for pictures has asked for their colours.
    """
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM", "") in {"", "dumb"}
    fallback = Graphics.SHADES if plain and os.name == "posix" else Graphics.BLOCKS
    answer = _answer()
    name = _NAME.search(answer)
    graphics, density = fallback, 1.0
    if _ITERM2.search(answer):
        graphics = Graphics.ITERM2
        told = _DENSITY.search(answer)
        density = min(max(float(told[1]), 1.0), MOST_DENSITY) if told else 1.0
    elif name and _SIXEL in name[1].split(b";"):
        graphics = Graphics.SIXEL
    elif _KITTY.search(answer) and os.environ.get("TERM_PROGRAM") != "WarpTerminal":
        # Warp says yes, and then shows the placing characters.
        graphics = Graphics.KITTY
    return Abilities(graphics, _cell_size(answer), _background(answer), density)


def drawing(abilities: Abilities) -> tuple[Any, Any]:
    """Return the Rich renderable and the Textual widget that draw pictures in a terminal's way.

    Both are made of a Pillow image; the renderable takes `width` and `height` in cells.

    Raises:
        MissingExtra: the extra `show` is not installed.
    """
    check_extra("textual-image")
    with _told(abilities.cell):
        names = {
            Graphics.SIXEL: ("sixel", "widget.sixel", "Image"),
            Graphics.KITTY: ("tgp", "widget", "TGPImage"),
            Graphics.BLOCKS: ("halfcell", "widget", "HalfcellImage"),
            Graphics.SHADES: ("unicode", "widget", "UnicodeImage"),
        }
        if abilities.graphics is Graphics.ITERM2:
            from mmsearch.retrieval.terminal_iterm2 import InlineImage

            return InlineImage, import_module("textual_image.widget.sixel").Image
        renderable, widget, name = names[abilities.graphics]
        return (
            import_module(f"textual_image.renderable.{renderable}").Image,
            getattr(import_module(f"textual_image.{widget}"), name),
        )


@contextmanager
def _told(cell: tuple[int, int]) -> Iterator[None]:
    """Have textual-image see no terminal to ask, and the size of a cell where it looks for it."""
    sizes = {"TEXTUAL_CELL_WIDTH": str(cell[0]), "TEXTUAL_CELL_HEIGHT": str(cell[1])}
    stdout, before = sys.__stdout__, {name: os.environ.get(name) for name in sizes}
    os.environ.update(sizes)
    setattr(sys, "__stdout__", io.StringIO())  # noqa: B010 (declared to be final)
    try:
        yield
    finally:
        setattr(sys, "__stdout__", stdout)  # noqa: B010
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _answer() -> bytes:
    """Return what the terminal says to all questions; nothing where it must not be asked."""
    # The Linux console shows questions that it does not know.
    if os.name != "posix" or os.environ.get("TERM", "") in {"", "dumb", "linux"}:
        return b""
    import termios
    import tty

    try:
        terminal = sys.stdout.fileno()
        if not os.isatty(terminal) or not _in_foreground(terminal):
            return b""
        before = termios.tcgetattr(terminal)
        tty.setcbreak(terminal, termios.TCSANOW)
    except (OSError, termios.error):
        return b""
    try:
        sys.stdout.flush()
        # What a terminal shows of a question that it does not understand is wiped out.
        os.write(terminal, f"{_QUESTIONS}\r\x1b[K".encode())
        return _read_answer(terminal)
    except OSError:
        return b""
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)


def _read_answer(terminal: int) -> bytes:
    answer = b""
    until = time.monotonic() + PATIENCE_S
    while not _NAME.search(answer) and (left := until - time.monotonic()) > 0:
        if not select.select([terminal], [], [], left)[0]:
            break
        some = os.read(terminal, 1024)
        if not some:
            break
        answer += some
    return answer


def _in_foreground(terminal: int) -> bool:
    """Say whether this process may read: one in the background would be stopped for it."""
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return True  # Not the terminal that controls us, so it stops nobody.


def _cell_size(answer: bytes) -> tuple[int, int]:
    told = _CELL.search(answer)
    if told and int(told[1]) and int(told[2]):
        return int(told[2]), int(told[1])
    if os.name == "posix":
        import fcntl
        import termios

        try:
            raw = fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, bytes(8))
        except OSError:
            return USUAL_CELL
        rows, columns, width, height = struct.unpack("HHHH", raw)
        if rows and columns and width >= columns and height >= rows:
            return width // columns, height // rows
    return USUAL_CELL


def _background(answer: bytes) -> tuple[int, int, int]:
    told = _BACKGROUND.search(answer)
    if told is None:
        return 0, 0, 0
    # One to four hexadecimal digits each, of a full scale of as many.
    red, green, blue = (round(255 * int(c, 16) / (16 ** len(c) - 1)) for c in told.groups())
    return red, green, blue
