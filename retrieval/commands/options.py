"""What several commands take or say in the same way."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from mmsearch.retrieval.terminal import say

__all__ = [
    "EXIT_INTERRUPTED",
    "EXIT_NEEDS_ATTENTION",
    "EXIT_NOTHING_MATCHED",
    "TOKEN_VARIABLE",
    "Json",
    "LibraryOption",
    "Rerank",
    "RerankDepth",
    "ServerOption",
    "TokenOption",
    "chosen_library",
    "described_search",
    "milliseconds_argument",
    "path_argument",
]

EXIT_NOTHING_MATCHED = 3
EXIT_NEEDS_ATTENTION = 4
EXIT_INTERRUPTED = 130

TOKEN_VARIABLE = "MMSEARCH_TOKEN"


def path_argument(text: str) -> Path:
    """Parse an argument that names a file or folder; an empty one is a usage error."""
    if not text:
        raise typer.BadParameter("it is empty")
    return Path(text)


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
LibraryOption = Annotated[
    Path | None,
    typer.Option(
        "--library",
        "-L",
        parser=path_argument,
        metavar="FOLDER",
        help="The folder that was indexed. Without it: $MMSEARCH_LIBRARY, the nearest library "
        "here or above, the only one just below, or the one indexed last.",
    ),
]

ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="URL",
        help="Ask what mmsearch serve serves there; --library NAME is then one of its libraries. "
        "Without it: $MMSEARCH_SERVER, unless --library is given (extra client).",
    ),
]
TokenOption = Annotated[
    str | None,
    typer.Option(
        "--token",
        envvar=TOKEN_VARIABLE,
        help="What the server asks for. Other processes see options: the variable is better.",
    ),
]


def milliseconds_argument(text: str) -> float:
    """Parse a time, `200ms` or `0.5s`, into milliseconds; anything else is a usage error."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s)", text.strip(), re.ASCII)
    if found is None:
        raise typer.BadParameter(f"'{text}' is no time: say 200ms, 0.5s or 1s")
    return float(found[1]) * (1000 if found[2] == "s" else 1)


Rerank = Annotated[
    str | None,
    typer.Option(
        "--rerank",
        metavar="NAME",
        help="Read the best answers again, words and picture together: fast, "
        "hf:NAME_OR_PATH or cross-encoder:NAME_OR_PATH.",
    ),
]
RerankDepth = Annotated[
    int | None,
    typer.Option(
        "--rerank-depth",
        metavar="N",
        min=1,
        help="How many of the best are read again.",
        show_default="50",
    ),
]


def chosen_library(given: Path | None) -> Path:
    """Return the library that should answer, saying so where nobody named it."""
    from mmsearch.retrieval.library import find_library

    path, how = find_library(given)
    if how == "last":
        say(f"No library here; asking the one indexed last: {path}")
    return path


def described_search(exact: bool, recall: float | None) -> str:
    """Say in words whether a search compares everything and, if not, what it finds."""
    if exact:
        return "exact"
    return "approximate" if recall is None else f"approximate (recall {recall:.3f} measured)"
