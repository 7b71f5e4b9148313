"""`mmsearch index`: bring the index of a folder of pictures up to date."""

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
    from mmsearch.retrieval.ingest import IndexReport

__all__ = ["index"]

WORTH_A_WORD_S = 5.0
"""Runs that took longer say what held them up."""


def index(
    path: Annotated[
        Path,
        typer.Argument(
            parser=path_argument,
            metavar="PATH",
            help="The folder of pictures; it is only read. Or tar files ('shards/{000..012}.tar'), "
            "a Parquet file, a list of paths (.txt, .jsonl), - for a list on standard input, or an "
            "object store (s3://bucket/photos, with --root).",
        ),
    ],
    root: Annotated[
        Path | None,
        typer.Option(
            parser=path_argument,
            metavar="FOLDER",
            help="The library's folder, for lists, shards and object stores.",
            show_default="the nearest library above the files, or their common folder",
        ),
    ] = None,
    catalog: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Keep a new library's catalog in PostgreSQL: postgresql+psycopg://user@host/db "
            "(extra postgresql). mmsearch move changes that of an existing one.",
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Search a new library's vectors in Milvus: milvus://host:19530/db (extra milvus). "
            "mmsearch move changes that of an existing one.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="The encoder of a new library: compact (bundled), a folder, or a name; see: "
            "mmsearch models. mmsearch migrate changes that of an existing one."
        ),
    ] = None,
    captions: Annotated[
        Path | None,
        typer.Option(
            parser=path_argument,
            metavar="FILE",
            help="Captions of the pictures: TSV, CSV, JSONL or Parquet with the columns path and "
            "caption, or COCO's JSON.",
        ),
    ] = None,
    describe: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Write captions of pictures without any, with a model: blip, hf:NAME_OR_PATH or a "
            "folder (extra models).",
        ),
    ] = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="Read files again that could not be indexed before.")
    ] = False,
    on: Annotated[
        str | None,
        typer.Option(
            metavar="CLUSTER",
            help="Have a cluster of Ray read and embed: ray://HOST:10001, auto (the one that runs "
            "here) or local (this machine alone). It must see the pictures at the same place "
            "(extra ray).",
            show_default="this process",
        ),
    ] = None,
    wait: Wait = None,
    as_json: Json = False,
) -> None:
    """Index a folder of pictures, or bring its index up to date.

    Only new and changed files are read. It is safe to interrupt; the same command continues.

    \b
    Examples: mmsearch index ./photos
              find . -name "*.jpg" -print0 | mmsearch index -
    """  # noqa: D301 (the backspace keeps the lines apart)
    from mmsearch.retrieval import ingest
    from mmsearch.retrieval.library import remember_library

    terminate_like_interrupt()
    read_large_pictures()
    last = ingest.Progress("scan", 0, 0)
    try:
        with progress_bar() as show:

            def follow(progress: ingest.Progress) -> None:
                nonlocal last
                if progress.stage not in {"names", "index"}:  # of which nothing is lost
                    last = progress
                show(progress.stage, progress.done, progress.total, progress.remark)

            report = ingest.index(
                path,
                root=root,
                catalog=catalog,
                store=store,
                model=model,
                captions=captions,
                describe=describe,
                retry=retry,
                on=on,
                wait=wait or 0,
                progress=follow,
            )
    except KeyboardInterrupt:
        what = "new or changed " + last.stage
        if last.stage == "describe":
            what = "pictures described"
        saved = f"{last.done:,} of {last.total:,} {what}"
        say(
            f"Interrupted. Saved: {saved if last.total else 'nothing new yet'}. "
            "Run the same command to continue."
        )
        raise typer.Exit(EXIT_INTERRUPTED) from None
    remember_library(report.library)
    if as_json:
        print_json(report.to_json())
    say(_summary(report, path))
    if report.files == 0:
        raise typer.Exit(EXIT_NEEDS_ATTENTION)


def _summary(report: IndexReport, path: Path) -> str:
    parts = [f"{report.files:,} pictures in {report.library}"]
    changes = {
        "new": report.added,
        "changed": report.updated,
        "moved": report.moved,
        "removed": report.removed,
    }
    said = [f"{count:,} {name}" for name, count in changes.items() if count]
    parts.append(", ".join(said) if said else "nothing changed")
    if report.captions:
        written = f", {report.described:,} written now" if report.described else ""
        parts.append(f"{report.captions:,} captions{written}")
    rate = f", {report.embedded / report.seconds:,.0f} pictures/s" if report.embedded else ""
    if rate and report.seconds >= WORTH_A_WORD_S and report.bottleneck:
        rate += f", {report.bottleneck}-bound"
    lines = [f"{' · '.join(parts)} ({report.seconds:.1f} s{rate})"]
    lines += [
        f"{node.node}: {node.pictures:,} pictures, {node.images_per_second:,.0f}/s"
        for node in report.nodes
    ]
    if report.problems:
        files = "1 file needs" if report.problems == 1 else f"{report.problems:,} files need"
        lines.append(
            f"{files} attention: mmsearch status --problems "
            f"--library {quoted(path if path.is_dir() else report.library)}"
        )
    if report.unmatched:
        lines.append(
            f"{len(report.unmatched):,} rows of the captions file name no picture of this library "
            f"(the first: {printable(report.unmatched[0])})"
        )
    if report.added and report.files:
        lines.append('Try: mmsearch query "a dog on a beach"')
    return "\n".join(lines)
