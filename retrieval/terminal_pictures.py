"""Pictures in a terminal: one, or answers as a grid of thumbnails with their names below."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from mmsearch.errors import MediaError
from mmsearch.retrieval.listing import row_of
from mmsearch.retrieval.terminal import printable
from mmsearch.retrieval.terminal_graphics import Graphics, ask_terminal, drawing
from mmsearch.retrieval.thumbnails import fitted, thumbnail

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.console import Console
    from rich.text import Text

    from mmsearch.retrieval.schema import Hit, Results
    from mmsearch.retrieval.terminal_graphics import Abilities

__all__ = ["print_picture", "print_pictures"]

BOX_COLUMNS = 24
"""Of a thumbnail, at least; a narrower window shows one that fills it."""
GAP = 2
LABEL_ROWS = 4
"""What stands below a thumbnail, and a row to breathe: the window need not scroll within a box."""


def print_pictures(results: Results, abilities: Abilities | None = None) -> None:
    """Print a thumbnail of each hit, best first, as many in a row as the window is wide for.

    A picture that is gone or broken has its place, with the reason.

    Args:
        results: what was found.
        abilities: of the terminal on stdout; it is asked when they are not given.

    Raises:
        MissingExtra: the extra `show` is not installed.
    """
    able = abilities or ask_terminal()
    renderable, _ = drawing(able)
    window = shutil.get_terminal_size()
    console = _console(able)
    across = max(1, (window.columns + GAP) // (BOX_COLUMNS + GAP))
    columns = max(1, (window.columns + GAP) // across - GAP)
    # Three quarters as high as wide, as most photos are; and never higher than the window.
    rows = max(1, round(columns * able.cell[0] * 3 / 4 / able.cell[1]))
    box = columns, min(rows, max(1, window.lines - LABEL_ROWS))
    hits = iter(results.hits)
    while line := list(islice(hits, across)):
        shown = [_shown(results, hit, box, able.drawn_cell) for hit in line]
        pictures = [picture for picture, _ in shown]
        _print_row(console, pictures, box, able, renderable)
        _print_labels(console, line, [problem for _, problem in shown], columns)
    console.file.flush()


def print_picture(picture: Image, abilities: Abilities | None = None) -> None:
    """Print one picture, as wide as the window and at most half as high.

    Args:
        picture: RGB.
        abilities: of the terminal on stdout; it is asked when they are not given.

    Raises:
        MissingExtra: the extra `show` is not installed.
    """
    able = abilities or ask_terminal()
    renderable, _ = drawing(able)
    window = shutil.get_terminal_size()
    console = _console(able)
    # No wider than the picture, so that drawn pixels stand at the left.
    box = fitted(picture.size, (window.columns, max(1, window.lines // 2)), able.cell)
    _print_row(console, [picture], box, able, renderable)
    console.file.flush()


def _console(able: Abilities) -> Console:
    from rich.console import Console

    if able.graphics is Graphics.KITTY:
        # The colour of the placing characters is the picture's number: it must not be changed.
        return Console(file=sys.stdout, color_system="truecolor", no_color=False, highlight=False)
    return Console(file=sys.stdout, highlight=False)


def _shown(
    results: Results, hit: Hit, box: tuple[int, int], cell: tuple[int, int]
) -> tuple[Image | None, str]:
    """Return a hit's thumbnail, or why there is none."""
    side = max(box[0] * cell[0], box[1] * cell[1])
    try:
        return thumbnail(results.file(hit), side), ""
    except MediaError as error:
        return None, str(error)


def _print_row(
    console: Console,
    pictures: list[Image | None],
    box: tuple[int, int],
    able: Abilities,
    renderable: Any,  # noqa: ANN401 (a class of a package that may be missing)
) -> None:
    if able.graphics in {Graphics.KITTY, Graphics.SIXEL, Graphics.ITERM2}:
        _print_strip(console, pictures, box, able, renderable)
    else:
        _print_cells(console, pictures, box, able, renderable)


def _print_strip(
    console: Console,
    pictures: list[Image | None],
    box: tuple[int, int],
    able: Abilities,
    renderable: Any,  # noqa: ANN401 (a class of a package that may be missing)
) -> None:
    """Print a line of pictures as one: Rich cannot set drawn pixels beside one another."""
    from PIL import Image

    width, cell = len(pictures) * (box[0] + GAP) - GAP, able.drawn_cell
    clear = able.graphics is not Graphics.SIXEL
    strip = Image.new(
        "RGBA" if clear else "RGB",
        (width * cell[0], box[1] * cell[1]),
        (*able.background, 0) if clear else able.background,
    )
    for place, picture in enumerate(pictures):
        if picture is not None:
            covered = fitted(picture.size, box, cell)
            pixels = picture.resize((covered[0] * cell[0], covered[1] * cell[1]))
            left = place * (box[0] + GAP) * cell[0]
            strip.paste(pixels, (left, strip.height - pixels.height))
    console.print(renderable(strip, width=width, height=box[1]), crop=False, end="")


def _print_cells(
    console: Console,
    pictures: list[Image | None],
    box: tuple[int, int],
    able: Abilities,
    renderable: Any,  # noqa: ANN401
) -> None:
    """Print a line of pictures that are made of characters."""
    cells = []
    for picture in pictures:
        if picture is None:
            cells.append("")
        else:
            covered = fitted(picture.size, box, able.cell)
            cells.append(renderable(picture, width=covered[0], height=covered[1]))
    grid = _grid(len(pictures), box[0], "bottom")
    grid.add_row(*cells)
    console.print(grid)


def _print_labels(console: Console, hits: list[Hit], problems: list[str], columns: int) -> None:
    grid = _grid(len(hits), columns, "top")
    labels = [list(_label(hit, problem)) for hit, problem in zip(hits, problems, strict=True)]
    for number in range(max(map(len, labels))):
        grid.add_row(*(lines[number] if number < len(lines) else "" for lines in labels))
    console.print(grid)
    console.print()


def _label(hit: Hit, problem: str) -> Iterator[Text]:
    from rich.text import Text

    row = row_of(hit)
    lines = ["  ".join(row.about), row.name, row.caption, problem]
    for line in lines:
        if line:
            yield Text(printable(line), no_wrap=True, overflow="ellipsis")


def _grid(count: int, columns: int, vertical: Any) -> Any:  # noqa: ANN401
    from rich.table import Table

    grid = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
    for _ in range(count):
        grid.add_column(width=columns, vertical=vertical, no_wrap=True, overflow="ellipsis")
    return grid
