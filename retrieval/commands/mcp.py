"""`mmsearch mcp`: tools for a language model on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from mmsearch.errors import MissingExtra
from mmsearch.retrieval.commands.options import Libraries, chosen_library
from mmsearch.retrieval.terminal import read_large_pictures, say

__all__ = ["mcp"]


def mcp(
    libraries: Libraries = None,
    follow_links: Annotated[
        bool,
        typer.Option(
            "--follow-links",
            help="Show pictures that links lead to outside a library's folder.",
        ),
    ] = False,
) -> None:
    """Let a desktop assistant search, by the Model Context Protocol over stdin and stdout.

    The assistant starts this command: name it in its configuration. For others over the network
    there is mmsearch serve, which has the same tools at /mcp (extra serve).

    \b
    Example: mmsearch mcp ~/Pictures
    """  # noqa: D301 (the backspace keeps the lines apart)
    try:
        from mmsearch.retrieval.web.mcp import serve_stdio
        from mmsearch.retrieval.web.services import opened_services
    except ImportError as error:
        raise MissingExtra(error.name or "mcp", "serve") from error
    from mmsearch.retrieval.web.settings import Settings

    read_large_pictures()
    paths = list(libraries or []) or [chosen_library(None)]
    with opened_services(paths, Settings(follow_links=follow_links)) as services:
        say(f"Answering for {', '.join(served.name for served in services.shelf)}.")
        serve_stdio(services)
