"""`mmsearch watch`: keep the index of a folder up to date while it changes."""

from __future__ import annotations

import math
import signal
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from mmsearch.retrieval.commands.options import (
    EXIT_INTERRUPTED,
    duration_argument,
    path_argument,
)
from mmsearch.retrieval.terminal import print_json, progress_bar, read_large_pictures, say

if TYPE_CHECKING:
    from mmsearch.retrieval.watching import WatchEvent

__all__ = ["watch"]


def watch(
    folder: Annotated[
        Path,
        typer.Argument(
            parser=path_argument, metavar="FOLDER", help="The folder of pictures; it is only read."
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(help="The encoder of a new library: compact (bundled), a folder, or a name."),
    ] = None,
    poll: Annotated[
        float | None,
        typer.Option(
            "--poll",
            parser=duration_argument,
            metavar="[TIME]",
            help="List the folder every 2s, or as often as is said, instead of being told of "
            "changes. On network folders that is done anyway.",
        ),
    ] = None,
    settle: Annotated[
        float | None,
        typer.Option(
            parser=duration_argument,
            metavar="TIME",
            help="How long a file must be quiet before it is read.",
            show_default="0.5s",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a line of whatever happens.")
    ] = False,
) -> None:
    """Index a folder, then follow what is added, changed, moved and deleted (extra watch).

    New pictures can be found about a second after they are there. It works in the background, and
    other commands may write to the library meanwhile. Ctrl-C ends it, and nothing is lost.

    \b
    Examples: mmsearch watch ./photos
              mmsearch watch /mnt/nas/photos --poll 30s
    """  # noqa: D301 (the backspace keeps the lines apart)
    from mmsearch.retrieval import embedding, watching
    from mmsearch.retrieval.library import remember_library

    if poll is not None and not 0 < poll < math.inf:
        raise typer.BadParameter("--poll takes a time such as 2s or 1m")
    asked_to_stop = False

    def stop(_: int, __: FrameType | None) -> None:
        # A polite request to stop, of a system that shuts down, is no interruption of a service.
        nonlocal asked_to_stop
        asked_to_stop = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    read_large_pictures()
    begun = False
    try:
        with progress_bar() as show:

            def follow(progress: embedding.Progress) -> None:
                if not begun:
                    show(progress.stage, progress.done, progress.total, progress.remark)

            events = watching.watch(
                folder,
                model=model,
                poll=poll,
                settle=watching.SETTLE_S if settle is None else settle,
                progress=follow,
            )
            for event in events:
                _tell(event, as_json=as_json)
                if event.report is not None:
                    begun = True
                    remember_library(event.report.library)
                    break
        for event in events:
            _tell(event, as_json=as_json)
    except KeyboardInterrupt:
        say("Stopped. What was indexed is saved; the same command goes on.")
        raise typer.Exit(0 if asked_to_stop else EXIT_INTERRUPTED) from None


def _tell(event: WatchEvent, *, as_json: bool) -> None:
    # Words first: whoever reads the JSON may end this process as soon as it is there.
    words = _in_words(event)
    if words:
        say(f"{time.strftime('%H:%M:%S')}  {words}")
    if as_json:
        print_json(event.to_json())


def _in_words(event: WatchEvent) -> str:
    report = event.report
    if report is None:
        return event.message or "Watching. Ctrl-C ends it."
    changes = {
        "new": report.added,
        "changed": report.updated,
        "moved": report.moved,
        "removed": report.removed,
    }
    said = ", ".join(f"{count:,} {name}" for name, count in changes.items() if count)
    if not said and event.places is not None:
        return ""
    parts = [said or "up to date", f"{report.files:,} pictures"]
    if report.problems:
        parts.append(f"{report.problems:,} need attention")
    return f"{' · '.join(parts)} ({report.seconds:.1f} s)"
