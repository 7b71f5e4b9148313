"""`mmsearch recommend`: pictures that somebody with this taste would like."""

from __future__ import annotations

from enum import StrEnum
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
from mmsearch.retrieval.schema import Basis, Strategy, TasteQuery
from mmsearch.retrieval.terminal import read_large_pictures, say

__all__ = ["recommend"]

NAMED = 3


class _Strategy(StrEnum):
    """The names of `Strategy` as a command line spells them."""

    AVERAGE = "average"
    BEST_SCORE = "best-score"


@with_showing
def recommend(
    like: Annotated[
        list[Path] | None,
        typer.Option(
            parser=path_argument,
            metavar="FILE",
            help="A picture that is liked, of the library or any other; again for more.",
        ),
    ] = None,
    dislike: Annotated[
        list[Path] | None,
        typer.Option(
            parser=path_argument, metavar="FILE", help="One that is not liked; again for more."
        ),
    ] = None,
    history: Annotated[
        Path | None,
        typer.Option(
            parser=path_argument,
            metavar="FILE",
            help="Pictures that were looked at: a path, a tabulator, and the age in days or an ISO "
            "date on each line.",
        ),
    ] = None,
    half_life: Annotated[
        float, typer.Option(help="Days after which a picture of the history counts half.")
    ] = 30.0,
    strategy: Annotated[
        _Strategy,
        typer.Option(
            help="average: like the middle of what is liked; best-score: like one of them, "
            "and not more like a disliked one."
        ),
    ] = _Strategy.AVERAGE,
    diversity: Annotated[
        float, typer.Option(help="From 0, what fits best, to 1, as different as can be.")
    ] = 0.0,
    include_seen: Annotated[
        bool, typer.Option("--include-seen", help="Also what is liked or in the history.")
    ] = False,
    k: Annotated[int, typer.Option("-k", help="How many answers.")] = 10,
    where: Annotated[
        str | None,
        typer.Option(metavar="FILTER", help="Only what is like this: \"taken >= '2023-06'\"."),
    ] = None,
    library: LibraryOption = None,
    *,
    showing: Showing,
) -> None:
    """Recommend pictures from what is liked, what is not, and what was looked at.

    With none of these: pictures that stand for the whole library.

    \b
    Examples: mmsearch recommend --like a.jpg --like b.jpg --dislike c.jpg
              mmsearch recommend --history seen.tsv --half-life 7 --diversity 0.3
    """  # noqa: D301 (the backspace keeps the lines apart)
    from datetime import UTC, datetime

    from mmsearch.errors import QueryError
    from mmsearch.retrieval.engine import open_engine
    from mmsearch.retrieval.liked import read_history

    if k < 1:
        raise QueryError(f"-k must be at least 1, not {k}.")
    past = [] if history is None else read_history(history, datetime.now(UTC))
    read_large_pictures()
    with open_engine(chosen_library(library), device="cpu") as engine:
        results = engine.recommend(
            [*map(_from_here, like or [])],
            [*map(_from_here, dislike or [])],
            past,
            k=k,
            where=where,
            exclude_seen=not include_seen,
            diversity=diversity,
            strategy=Strategy[strategy.name],
            half_life=half_life,
        )
    asked = results.query
    assert isinstance(asked, TasteQuery)
    showing(results)
    if asked.ignored:
        named = ", ".join(asked.ignored[:NAMED]) + (", …" if asked.ignored[NAMED:] else "")
        say(
            f"{len(asked.ignored):,} of {len(asked.history):,} pictures of the history are not in "
            f"the library: {named}"
        )
    if results.hits and asked.basis is Basis.REPRESENTATIVE:
        say("Nothing to go by, so these stand for the whole library. Say more with --like FILE.")
    if not results.hits:
        say("Nothing in this library to choose from.")
        raise typer.Exit(EXIT_NOTHING_MATCHED)


def _from_here(path: Path) -> Path:
    """Return what a shell completes, from the working directory; else a path in the library."""
    return path.absolute() if path.exists() else path
