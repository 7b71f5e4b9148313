"""`mmsearch query`: ask a library."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmsearch.retrieval.commands.options import (
    EXIT_NOTHING_MATCHED,
    LibraryOption,
    Rerank,
    RerankDepth,
    ServerOption,
    TokenOption,
    chosen_library,
    milliseconds_argument,
    path_argument,
)
from mmsearch.retrieval.commands.remote import Remote, chosen_server, picture_of, show
from mmsearch.retrieval.commands.showing import Showing, with_showing
from mmsearch.retrieval.confidence import CUT, confidence
from mmsearch.retrieval.schema import Fusion, SortKey, Target
from mmsearch.retrieval.terminal import read_large_pictures, say

if TYPE_CHECKING:
    from mmsearch.retrieval.schema import Results

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
    where: Annotated[
        str | None,
        typer.Option(metavar="FILTER", help="Only what is like this: \"taken >= '2023-06'\"."),
    ] = None,
    sort: Annotated[
        SortKey | None, typer.Option(help="Order what matches by this instead of by its score.")
    ] = None,
    reverse: Annotated[
        bool, typer.Option(help="With --sort: the greatest or latest first.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Show the nearest pictures even where nothing matches.")
    ] = False,
    group: Annotated[
        bool, typer.Option(help="Count near-duplicates and pictures of one burst as one answer.")
    ] = True,
    diversity: Annotated[
        float, typer.Option(help="From 0 to 1: how different from each other answers shall be.")
    ] = 0.0,
    words_too: Annotated[
        bool,
        typer.Option("--words/--no-words", help="Count words in captions and names as well."),
    ] = True,
    rerank: Rerank = None,
    rerank_depth: RerankDepth = None,
    rerank_budget: Annotated[
        float | None,
        typer.Option(
            parser=milliseconds_argument,
            metavar="TIME",
            help="The time that reranking may take, 200ms or 1s; what is left keeps its order.",
        ),
    ] = None,
    library: LibraryOption = None,
    server: ServerOption = None,
    token: TokenOption = None,
    *,
    showing: Showing,
) -> None:
    """Find pictures by words, by pictures or by both; find captions of a picture.

    \b
    Examples: mmsearch query "a dog on a beach"
              mmsearch query --image dog.jpg --to captions -k 3
              mmsearch query "but in green" --image sofa.jpg
              mmsearch query "dog AND beach NOT people" after:2023-06 folder:2023/
              mmsearch query "receipt" --where "width > height" --sort date
              mmsearch query "a dog on a sofa" --rerank fast
              mmsearch query "a dog" --server http://nas.local:8000 --copy-to dogs
    """  # noqa: D301 (the backspace keeps the lines apart)
    from mmsearch.errors import QueryError

    # Refused before a library is looked for: the same question is wrong everywhere.
    if k < 1:
        raise QueryError(f"-k must be at least 1, not {k}.")
    if text is not None and not text.strip():
        raise QueryError('The query is empty. Describe a picture: "a dog on a beach".')
    if rerank is None and (rerank_depth is not None or rerank_budget is not None):
        raise typer.BadParameter(
            "--rerank-depth and --rerank-budget are about reranking: say --rerank NAME too"
        )
    asked: dict[str, Any] = {
        "weights": weight or None,
        "fusion": fusion,
        "to": to,
        "k": k,
        "sort": sort,
        "descending": reverse,
        "group": group and to == Target.IMAGES,
        "diversity": diversity,
        "words": words_too,
        "rerank": rerank,
        "rerank_depth": rerank_depth,
        "rerank_budget_ms": rerank_budget,
    }
    there = chosen_server(server, token, library)
    if there is not None:
        texts = ([] if text is None else [text]) + (also or [])
        images = [picture_of(each) for each in image or []]
        asked |= {"image": images or None, "where": where, "all": everything}
        results = _asked_there(there, texts, asked, showing)
    else:
        asked |= {"image": image or None, "cut": None if everything else CUT}
        results = _asked_here(library, text, also or [], where, asked)
        showing(results)
    if not results.hits:
        say(_nothing(results))
        raise typer.Exit(EXIT_NOTHING_MATCHED)


def _asked_here(
    library: Path | None,
    text: str | None,
    also: list[str],
    where: str | None,
    asked: dict[str, Any],
) -> Results:
    from mmsearch.retrieval.engine import open_engine
    from mmsearch.retrieval.filters import Filter, parse_where, split_inline

    if asked["image"] or asked["rerank"] is not None:
        read_large_pictures()
    words, inline = (None, None) if text is None else split_inline(text)
    filter_ = Filter.all_of([inline, None if where is None else parse_where(where)])
    texts = ([words] if words else []) + also
    with open_engine(chosen_library(library), device="cpu") as engine:
        return engine.search(texts or None, where=filter_, **asked)


def _asked_there(
    there: Remote, texts: list[str], asked: dict[str, Any], showing: Showing
) -> Results:
    with there.client() as client:
        results = client.search(texts or None, library=there.library, **asked)
        show(showing, client, results)
    return results


def _nothing(results: Results) -> str:
    """Say why there is no answer."""
    if results.nearest is not None:
        # Bytes of a terminal that are no valid text would break what reads this line as text.
        asked = (results.query.text or "").encode("utf-8", "backslashreplace").decode()
        return (
            f'Nothing in this library clearly matches "{asked}". Closest: '
            f"{results.nearest.path} ({confidence(results.nearest.match or 0.0)}). "
            "Use --all to see what is nearest."
        )
    if results.where is not None:
        return f"No picture in this library is like this: {results.where}"
    return "Nothing in this library to choose from."
