"""`mmsearch import`: take over the vectors of another tool."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmsearch.errors import quoted
from mmsearch.retrieval.commands.options import (
    EXIT_INTERRUPTED,
    EXIT_NEEDS_ATTENTION,
    Json,
    Wait,
    path_argument,
)
from mmsearch.retrieval.terminal import (
    print_json,
    printable,
    progress_bar,
    read_large_pictures,
    say,
    terminate_like_interrupt,
)

if TYPE_CHECKING:
    from mmsearch.retrieval.exchange.adoption import ImportReport

__all__ = ["import_"]

LISTED = 5


def import_(
    source: Annotated[
        Path,
        typer.Argument(
            parser=path_argument,
            metavar="SOURCE",
            help="The output folder of clip-retrieval or of mmsearch export, or the db.sqlite3 of "
            "rclip; it is only read.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="The encoder that made the vectors.",
            show_default="rclip's own, or what mmsearch export noted",
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            parser=path_argument,
            metavar="FOLDER",
            help="The folder of the pictures.",
            show_default="the one they were all recorded in",
        ),
    ] = None,
    unchecked: Annotated[
        bool,
        typer.Option("--unchecked", help="Do not compare any vector with the encoder's own."),
    ] = False,
    wait: Wait = None,
    as_json: Json = False,
) -> None:
    """Take over vectors of clip-retrieval or rclip, without embedding again.

    Pictures are read and hashed, and a few are embedded to see that the vectors are the model's.

    \b
    Examples: mmsearch import ./embeddings --model open_clip:ViT-B-32-quickgelu/openai
              mmsearch import ~/.local/share/rclip/db.sqlite3 --root ~/Pictures
    """  # noqa: D301 (the backspace keeps the lines apart)
    from mmsearch.retrieval import ingest
    from mmsearch.retrieval.exchange.adoption import import_library
    from mmsearch.retrieval.library import remember_library

    terminate_like_interrupt()
    read_large_pictures()
    try:
        with progress_bar() as show:

            def follow(progress: ingest.Progress) -> None:
                show(progress.stage, progress.done, progress.total)

            report = import_library(
                source,
                model=model,
                root=root,
                unchecked=unchecked,
                wait=wait or 0,
                progress=follow,
            )
    except KeyboardInterrupt:
        say("Interrupted. Run the same command to continue.")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    remember_library(report.library)
    if as_json:
        print_json(report.to_json())
    say(_summary(report))
    if report.files == 0:
        raise typer.Exit(EXIT_NEEDS_ATTENTION)


def _summary(report: ImportReport) -> str:
    lines = [
        f"{report.taken:,} of {report.recorded:,} pictures taken over from {report.source} · "
        f"{report.files:,} pictures in {report.library} ({report.seconds:.1f} s)",
    ]
    how = "not compared with any picture (--unchecked)"
    if report.lowest_cosine is not None:
        how = f"{report.checked} compared, lowest cosine {report.lowest_cosine:.3f}"
    lines.append(f"The vectors are recorded as {report.model}, which queries need: {how}")
    left = {
        "already there": report.present,
        "outside the folder": report.outside,
        "hidden or ignored": report.ignored,
        "changed since": report.changed,
        "embedded lying on their side": report.turned,
        "with a damaged vector": report.damaged,
    }
    said = [f"{count:,} {name}" for name, count in left.items() if count]
    if said:
        lines.append("Not taken over: " + ", ".join(said))
    if report.missing:
        shown = ", ".join(printable(path) for path in report.missing[:LISTED])
        more = " … (all of them: --json)" if len(report.missing) > LISTED else ""
        lines.append(f"{len(report.missing):,} are missing: {shown}{more}")
    lines.append(
        f"What the source did not have is embedded by: mmsearch index {quoted(report.library)}"
    )
    return "\n".join(lines)
