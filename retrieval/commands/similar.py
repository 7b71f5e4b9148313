"""`mmsearch similar`: pictures like a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmsearch.retrieval.commands.options import (
    EXIT_NOTHING_MATCHED,
    LibraryOption,
    ServerOption,
    TokenOption,
    chosen_library,
    path_argument,
)
from mmsearch.retrieval.commands.remote import chosen_server, picture_of, show
from mmsearch.retrieval.commands.showing import Showing, with_showing
from mmsearch.retrieval.terminal import read_large_pictures, say

if TYPE_CHECKING:
    from mmsearch.retrieval.schema import Results

__all__ = ["similar"]


@with_showing
def similar(
    image: Annotated[
        Path,
        typer.Argument(
            parser=path_argument,
            metavar="IMAGE",
            help="A picture, anywhere; also by its path from the library's folder on, or as "
            "NAME/ID of a server.",
        ),
    ],
    k: Annotated[int, typer.Option("-k", help="How many answers.")] = 10,
    library: LibraryOption = None,
    server: ServerOption = None,
    token: TokenOption = None,
    *,
    showing: Showing,
) -> None:
    """Find pictures like a picture; the picture itself, and copies of it, are left out.

    \b
    Examples: mmsearch similar dog.jpg
              mmsearch similar 2023/IMG_2041.jpg -k 3 --library ~/Pictures
    """  # noqa: D301 (the backspace keeps the lines apart)
    from mmsearch.errors import QueryError

    if k < 1:
        raise QueryError(f"-k must be at least 1, not {k}.")
    there = chosen_server(server, token, library)
    if there is not None:
        with there.client() as client:
            results = client.similar(picture_of(image), k, library=there.library)
            show(showing, client, results)
    else:
        results = _asked_here(image, k, library)
        showing(results)
    if not results.hits:
        say("This library has no other picture.")
        raise typer.Exit(EXIT_NOTHING_MATCHED)


def _asked_here(image: Path, k: int, library: Path | None) -> Results:
    from mmsearch.retrieval.engine import open_engine
    from mmsearch.retrieval.similar import similar

    read_large_pictures()
    with open_engine(chosen_library(library), device="cpu") as engine:
        return similar(engine, image, k)
