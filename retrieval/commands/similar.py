"""`mmsearch similar`: pictures like a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmsearch.retrieval.commands.options import (
    EXIT_NOTHING_MATCHED,
    LibraryOption,
    chosen_library,
    path_argument,
)
from mmsearch.retrieval.commands.showing import Showing, with_showing
from mmsearch.retrieval.terminal import read_large_pictures, say

__all__ = ["similar"]


@with_showing
def similar(
    image: Annotated[
        Path,
        typer.Argument(
            parser=path_argument,
            metavar="IMAGE",
            help="A picture, anywhere; also by its path from the library's folder on.",
        ),
    ],
    k: Annotated[int, typer.Option("-k", help="How many answers.")] = 10,
    library: LibraryOption = None,
    *,
    showing: Showing,
) -> None:
    """Find pictures like a picture; the picture itself, and copies of it, are left out.

    \b
    Examples: mmsearch similar dog.jpg
              mmsearch similar 2023/IMG_2041.jpg -k 3 --library ~/Pictures
    """  # noqa: D301 (the backspace keeps the lines apart)
    from mmsearch.errors import QueryError
    from mmsearch.retrieval.engine import open_engine
    from mmsearch.retrieval.similar import similar

    if k < 1:
        raise QueryError(f"-k must be at least 1, not {k}.")
    read_large_pictures()
    with open_engine(chosen_library(library), device="cpu") as engine:
        results = similar(engine, image, k)
    showing(results)
    if not results.hits:
        say("This library has no other picture.")
        raise typer.Exit(EXIT_NOTHING_MATCHED)
