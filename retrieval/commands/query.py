"""`mmsearch query`: ask a library."""

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
from mmsearch.retrieval.schema import Fusion
from mmsearch.retrieval.terminal import read_large_pictures, say

__all__ = ["query"]


@with_showing
def query(
    text: Annotated[str | None, typer.Argument(help="What the picture shows.")] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(
            "--image",
            "-i",
            parser=path_argument,
            metavar="FILE",
            help="Ask with this picture, instead of words or beside them; may be given again.",
        ),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="More words that count by themselves; again for more."),
    ] = None,
    weight: Annotated[
        list[float] | None,
        typer.Option(help="How much each part counts: TEXT, every --also, every --image."),
    ] = None,
    fusion: Annotated[
        Fusion, typer.Option(help="How several parts become one answer.")
    ] = Fusion.EARLY,
    to: Annotated[str, typer.Option(help="Look for images or for captions.")] = "images",
    k: Annotated[int, typer.Option("-k", help="How many answers.")] = 10,
    library: LibraryOption = None,
    *,
    showing: Showing,
) -> None:
    """Find pictures by words, by pictures or by both; find captions of a picture.

    \b
    Examples: mmsearch query "a dog on a beach"
              mmsearch query --image dog.jpg --to captions -k 3
              mmsearch query "but in green" --image sofa.jpg
    """  # noqa: D301 (the backspace keeps the lines apart)
    from mmsearch.errors import QueryError
    from mmsearch.retrieval.engine import open_engine

    # Refused before a library is looked for: the same question is wrong everywhere.
    if k < 1:
        raise QueryError(f"-k must be at least 1, not {k}.")
    if text is not None and not text.strip():
        raise QueryError('The query is empty. Describe a picture: "a dog on a beach".')
    if image:
        read_large_pictures()
    texts = [] if text is None else [text]
    texts += also or []
    with open_engine(chosen_library(library), device="cpu") as engine:
        results = engine.search(
            texts or None, image=image or None, weights=weight or None, fusion=fusion, to=to, k=k
        )
    showing(results)
    if not results.hits:
        say("Nothing in this library to choose from." if not results.considered else "No match.")
        raise typer.Exit(EXIT_NOTHING_MATCHED)
