"""`mmsearch move`: a library's catalog, or its index, to a server and back."""

from __future__ import annotations

from typing import Annotated

import typer

from mmsearch.retrieval.commands.options import (
    Json,
    LibraryArgument,
    LibraryOption,
    Wait,
    chosen_library,
    named_once,
)
from mmsearch.retrieval.terminal import print_json, progress_bar, say

__all__ = ["move"]


def move(
    to: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="postgresql+psycopg://user@host/db for the catalog, milvus://host:19530/db for "
            "the search of vectors, or local: both in the library's folder.",
        ),
    ],
    folder: LibraryArgument = None,
    library: LibraryOption = None,
    wait: Wait = None,
    as_json: Json = False,
) -> None:
    """Move a library's catalog, or its vectors, to a server and back, embedding nothing again.

    What arrived is compared with what was sent, to the last bit, before the library uses it. What
    lay where it was is left there.

    \b
    Examples: mmsearch move ./photos --to milvus://localhost:19530/default
              mmsearch move ./photos --to local
    """  # noqa: D301 (the backspace keeps the lines apart)
    named = named_once(folder, library)
    from mmsearch.retrieval import moving

    with progress_bar() as show:
        done = moving.move(chosen_library(named), to, wait=wait or 0, progress=show)
    if as_json:
        print_json(done.to_json())
    parts = " and ".join(done.parts)
    where = "its own folder" if done.to == moving.LOCAL else done.to
    rows = sum(each.rows for each in done.tables.values())
    told = [f"{rows:,} rows"] if rows else []
    told += [f"{count:,} vectors of {name}" for name, count in done.vectors.items() if count]
    say(f"Moved the {parts} of {done.library} to {where} ({done.seconds:.1f} s).")
    say(f"Compared with what was there: {', '.join(told)}.")
    say("Programs that have this library open must open it again.")
    for place in done.left:
        say(f"Left where it was, and not used any more: {place}")
