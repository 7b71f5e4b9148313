"""`mmsearch export`: write vectors and metadata for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmsearch.retrieval.commands.options import (
    EXIT_INTERRUPTED,
    Json,
    LibraryOption,
    chosen_library,
    path_argument,
)
from mmsearch.retrieval.terminal import print_json, progress_bar, say, terminate_like_interrupt

if TYPE_CHECKING:
    from mmsearch.retrieval.exchange.export import ExportReport

__all__ = ["export"]


def export(
    out: Annotated[
        Path,
        typer.Argument(
            parser=path_argument,
            metavar="OUT",
            help="The folder to make; a former export there is replaced, nothing else ever.",
        ),
    ],
    library: LibraryOption = None,
    what: Annotated[str, typer.Option(help="Vectors of images, captions or all.")] = "images",
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="npy (arrays in clip-retrieval's layout), parquet (a column of vectors) or both.",
        ),
    ] = "both",
    dtype: Annotated[
        str, typer.Option(help="Of the arrays: float16, as they are stored, or float32.")
    ] = "float16",
    as_json: Json = False,
) -> None:
    """Write vectors and metadata as .npy and Parquet, in clip-retrieval's layout.

    The metadata's image_path is absolute, its path relative to the library. Needs the extra
    parquet.

    \b
    Examples: mmsearch export ./vectors
              mmsearch export ./vectors --what all --format npy
    """  # noqa: D301 (the backspace keeps the lines apart)
    from mmsearch.retrieval.exchange.export import Format, What, export_library

    for option, value, known in (
        ("--what", what, list(What)),
        ("--format", format_, list(Format)),
        ("--dtype", dtype, ["float16", "float32"]),
    ):
        if value not in known:
            raise typer.BadParameter(f"{option} is one of {', '.join(known)}, not {value!r}")
    terminate_like_interrupt()
    try:
        with progress_bar() as show:
            report = export_library(
                chosen_library(library), out, what=what, format=format_, dtype=dtype, progress=show
            )
    except KeyboardInterrupt:
        say("Interrupted. Nothing was written.")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if as_json:
        print_json(report.to_json())
    say(_summary(report))


def _summary(report: ExportReport) -> str:
    counts = [
        f"{count:,} vectors of {name}"
        for name, count in (("pictures", report.images), ("captions", report.captions))
        if count
    ]
    return (
        f"{' and '.join(counts)} by {report.model} in {report.folder} ({report.seconds:.1f} s)\n"
        f"image_path is absolute, path is relative to {report.library}"
    )
