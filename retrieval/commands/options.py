"""What several commands take or say in the same way."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer
from typer.core import TyperCommand

from mmsearch.retrieval.terminal import say

__all__ = [
    "EXIT_INTERRUPTED",
    "EXIT_NEEDS_ATTENTION",
    "EXIT_NOTHING_MATCHED",
    "TOKEN_VARIABLE",
    "Command",
    "Json",
    "Libraries",
    "LibraryArgument",
    "LibraryOption",
    "Rerank",
    "RerankDepth",
    "ServerOption",
    "TokenOption",
    "Wait",
    "chosen_library",
    "described_search",
    "duration_argument",
    "milliseconds_argument",
    "named_once",
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
LibraryArgument = Annotated[
    Path | None,
    typer.Argument(
        parser=path_argument,
        metavar="LIBRARY",
        help="The folder that was indexed, as with --library.",
    ),
]
Libraries = Annotated[
    list[Path] | None,
    typer.Argument(
        parser=path_argument,
        metavar="LIBRARY",
        help="Folders that were indexed; without any, the one that --library would find.",
    ),
]
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


class Command(TyperCommand):
    """A command whose options of `ALONE` may stand alone, which Typer's options may not."""

    ALONE: ClassVar = {"--wait": "forever", "--poll": "2s"}
    """What such an option means where no time follows it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 (Typer's own class)
        """Say in full what is meant where an option stands alone."""
        spelled = []
        for place, word in enumerate(args):
            following = args[place + 1] if place + 1 < len(args) else ""
            alone = word in self.ALONE and _DURATION.fullmatch(following) is None
            if alone and "--" not in args[:place]:
                word = f"{word}={self.ALONE[word]}"
            spelled.append(word)
        return super().parse_args(ctx, spelled)


_DURATION = re.compile(r"(\d+(?:\.\d+)?)(s|m|min|h|d)|forever", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def duration_argument(text: str) -> float:
    """Parse a time, `90s`, `5m`, `1h` or `forever`, into seconds; else it is a usage error."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise typer.BadParameter(f"'{text}' is no time: say 30s, 5m, 1h or forever")
    return math.inf if found[2] is None else float(found[1]) * _SECONDS[found[2]]


Wait = Annotated[
    float | None,
    typer.Option(
        "--wait",
        parser=duration_argument,
        metavar="[TIME]",
        help="Where another mmsearch is writing to this library, wait until it has finished; for "
        "30s, 5m or 1h at most where a time is given.",
    ),
]

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


def named_once(argument: Path | None, option: Path | None) -> Path | None:
    """Return the library that a command names, as its argument or with --library."""
    if argument is not None and option is not None:
        raise typer.BadParameter("LIBRARY and --library exclude each other. Give one.")
    return argument or option


def described_search(exact: bool, recall: float | None) -> str:
    """Say in words whether a search compares everything and, if not, what it finds."""
    if exact:
        return "exact"
    return "approximate" if recall is None else f"approximate (recall {recall:.3f} measured)"
