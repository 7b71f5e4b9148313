"""`mmsearch browse`: look around in a library."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from mmsearch.errors import MmsearchError
from mmsearch.retrieval.commands.options import (
    LibraryArgument,
    LibraryOption,
    chosen_library,
    named_once,
)
from mmsearch.retrieval.commands.showing import open_file
from mmsearch.retrieval.terminal import read_large_pictures

__all__ = ["browse"]


def browse(
    folder: LibraryArgument = None,
    library: LibraryOption = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many pictures an answer has.")] = 30,
) -> None:
    """Ask, look at thumbnails, and go on from there, in the terminal (extra show).

    s finds more like a picture, + and - refine the answer, o opens, y copies the path, ? helps.

    \b
    Examples: mmsearch browse
              mmsearch browse ./photos
    """  # noqa: D301 (the backspace keeps the lines apart)
    from mmsearch.retrieval.terminal_graphics import ask_terminal, check_extra

    named = named_once(folder, library)
    for package in ("textual", "textual-image"):
        check_extra(package)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise MmsearchError(
            "browse needs a terminal. Without one: mmsearch query TEXT --html sheet.html"
        )
    path = chosen_library(named)
    # Before Textual reads what the terminal says, and before the engine takes its time.
    abilities = ask_terminal()
    read_large_pictures()
    from mmsearch.retrieval.engine import open_engine
    from mmsearch.retrieval.terminal_browser import Browser

    with open_engine(path, device="cpu") as engine:
        Browser(engine, abilities, k=k, opener=open_file).run()
