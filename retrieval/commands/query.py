"""`mmsearch query`: ask a library."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmsearch.retrieval.commands.options import (
    EXIT_NOTHING_MATCHED,
    Json,
    LibraryOption,
    chosen_library,
    described_search,
    path_argument,
)
from mmsearch.retrieval.schema import Fusion
from mmsearch.retrieval.terminal import print_json, printable, read_large_pictures, say

if TYPE_CHECKING:
    from mmsearch.retrieval.schema import Results

__all__ = ["query"]


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
    as_json: Json = False,
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
    if as_json:
        print_json(results.to_json())
    else:
        _print_results(results)
    if not results.hits:
        say("Nothing in this library to choose from." if not results.considered else "No match.")
        raise typer.Exit(EXIT_NOTHING_MATCHED)


def _print_results(results: Results) -> None:
    """Print aligned columns for a person, tab-separated ones for a program."""
    rows = [
        (
            str(hit.rank),
            f"{hit.score:.3f}",
            hit.taken_at.date().isoformat() if hit.taken_at else "-",
            printable(hit.path),
            *([printable(hit.caption)] if hit.caption is not None else []),
        )
        for hit in results.hits
    ]
    if not sys.stdout.isatty():
        for row in rows:
            typer.echo("\t".join(row))
        return
    width = len(str(len(rows)))
    for rank, score, date, *rest in rows:
        typer.echo(f"{rank:>{width}}  {score:>6}  {date:<10}  {'  '.join(rest)}")
    search = described_search(results.exact, results.recall)
    say(f"{len(rows)} of {results.considered:,} · {search} · {results.took_ms:.0f} ms")
