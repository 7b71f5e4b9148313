"""The command line: stdout is data, stderr is talk."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmsearch import __version__
from mmsearch.errors import MmsearchError, quoted
from mmsearch.retrieval.terminal import printable, progress_bar, say, set_up_process

if TYPE_CHECKING:
    from mmsearch.retrieval.ingest import IndexReport
    from mmsearch.retrieval.schema import Problem, Results

__all__ = ["app", "main"]

EXIT_NOTHING_MATCHED = 3
EXIT_NEEDS_ATTENTION = 4
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="mmsearch",
    help="Find pictures with words, and words with pictures. Offline, on your own machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _path(text: str) -> Path:
    if not text:
        raise typer.BadParameter("it is empty")
    return Path(text)


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
LibraryOption = Annotated[
    Path | None,
    typer.Option(
        "--library",
        "-L",
        parser=_path,
        metavar="FOLDER",
        help="The folder that was indexed. Without it: $MMSEARCH_LIBRARY, the nearest library "
        "here or above, the only one just below, or the one indexed last.",
    ),
]


def main() -> None:
    """Run the command line and end the process with its exit code."""
    set_up_process()
    try:
        app()
    except MmsearchError as error:
        if os.environ.get("MMSEARCH_DEBUG"):
            raise
        say(f"mmsearch: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except OSError as error:
        if os.environ.get("MMSEARCH_DEBUG"):
            raise
        place = f"{error.filename}: " if error.filename else ""
        say(f"mmsearch: {place}{error.strerror or error}")
        sys.exit(1)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"mmsearch {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Find pictures with words, and words with pictures. Offline, on your own machine."""


@app.command()
def index(
    path: Annotated[
        Path,
        typer.Argument(
            parser=_path, metavar="PATH", help="The folder of pictures; it is only read."
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(help="The encoder: compact (bundled), or a folder that holds one."),
    ] = None,
    captions: Annotated[
        Path | None,
        typer.Option(
            parser=_path,
            metavar="FILE",
            help="Captions of the pictures: TSV, CSV, JSONL or Parquet with the columns path and "
            "caption, or COCO's JSON.",
        ),
    ] = None,
    reembed: Annotated[
        bool, typer.Option("--reembed", help="Allow another model: embed every picture again.")
    ] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Read files again that could not be indexed before.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Index a folder of pictures, or bring its index up to date.

    Only new and changed files are read. It is safe to interrupt; the same command continues.

    Example: mmsearch index ./photos
    """
    from mmsearch.retrieval import ingest
    from mmsearch.retrieval.library import remember_library

    _terminate_like_interrupt()
    _read_large_pictures()
    last = ingest.Progress("scan", 0, 0)
    try:
        with progress_bar() as show:

            def follow(progress: ingest.Progress) -> None:
                nonlocal last
                last = progress
                show(progress.stage, progress.done, progress.total)

            report = ingest.index(
                path,
                model=model,
                captions=captions,
                reembed=reembed,
                retry=retry,
                progress=follow,
            )
    except KeyboardInterrupt:
        saved = f"{last.done:,} of {last.total:,} new or changed {last.stage}"
        say(
            f"Interrupted. Saved: {saved if last.total else 'nothing new yet'}. "
            "Run the same command to continue."
        )
        raise typer.Exit(EXIT_INTERRUPTED) from None
    remember_library(report.library)
    if as_json:
        _print_json(report.to_json())
    say(_summary(report, path))
    if report.files == 0:
        raise typer.Exit(EXIT_NEEDS_ATTENTION)


@app.command()
def query(
    text: Annotated[str | None, typer.Argument(help="What the picture shows.")] = None,
    image: Annotated[
        Path | None,
        typer.Option(
            "--image",
            "-i",
            parser=_path,
            metavar="FILE",
            help="Ask with this picture instead.",
        ),
    ] = None,
    to: Annotated[str, typer.Option(help="Look for images or for captions.")] = "images",
    k: Annotated[int, typer.Option("-k", help="How many answers.")] = 10,
    library: LibraryOption = None,
    as_json: Json = False,
) -> None:
    """Find pictures by words or by a picture; find captions of a picture.

    \b
    Examples: mmsearch query "a dog on a beach"
              mmsearch query --image dog.jpg --to captions -k 3
    """  # noqa: D301 (the backspace keeps the lines apart)
    from mmsearch.errors import QueryError
    from mmsearch.retrieval.engine import open_engine

    # Refused before a library is looked for: the same question is wrong everywhere.
    if k < 1:
        raise QueryError(f"-k must be at least 1, not {k}.")
    if text is not None and not text.strip():
        raise QueryError('The query is empty. Describe a picture: "a dog on a beach".')
    if image is not None:
        _read_large_pictures()
    with open_engine(_find_library(library)) as engine:
        results = engine.search(text, image=image, to=to, k=k)
    if as_json:
        _print_json(results.to_json())
    else:
        _print_results(results)
    if not results.hits:
        say("Nothing in this library to choose from." if not results.considered else "No match.")
        raise typer.Exit(EXIT_NOTHING_MATCHED)


@app.command()
def evaluate(
    pairs: Annotated[
        Path,
        typer.Argument(help="Pictures and captions: TSV, CSV, JSONL, Parquet or COCO's JSON."),
    ],
    images: Annotated[Path, typer.Option(help="The folder that the paths are relative to.")],
    model: Annotated[str, typer.Option(help="The encoder to measure.")] = "compact",
    gallery: Annotated[
        bool,
        typer.Option("--gallery", help="Let every picture of the folder be a possible answer."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure how well an encoder finds pictures by their captions, and captions by pictures.

    Example: mmsearch evaluate captions.tsv --images ./photos
    """
    from mmsearch.retrieval import evaluation

    _read_large_pictures()
    with progress_bar() as show:
        report = evaluation.evaluate(pairs, images, model=model, gallery=gallery, progress=show)
    if as_json:
        _print_json(report.to_json())
        return
    typer.echo(f"{report.model}: {report.images:,} pictures, {report.captions:,} captions")
    for name, way in (("text→image", report.text_to_image), ("image→text", report.image_to_text)):
        recall = "  ".join(f"R@{k} {value:5.1f}" for k, value in way.recall.items())
        typer.echo(f"{name}  {recall}  median rank {way.median_rank:g}  MRR {way.mrr:.3f}")


@app.command()
def status(
    library: LibraryOption = None,
    problems: Annotated[
        bool, typer.Option("--problems", help="List the files that could not be indexed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what a library holds, and which files could not be indexed.

    Example: mmsearch status --problems
    """
    from mmsearch.retrieval.library import Library

    opened = Library.open(_find_library(library))
    try:
        row, counts = opened.catalog.library(), opened.catalog.counts()
        listed = opened.catalog.problems() if problems else []
    finally:
        opened.close()
    model = row.encoder.label if row.encoder else None
    if as_json:
        fields: dict[str, Any] = {
            "schema": 1,
            "library": str(opened.root),
            "model": model,
            "dim": row.encoder.dim if row.encoder else None,
            "files": counts.files,
            "captions": counts.captions,
            "problems": counts.problems,
            "vectors": counts.vectors,
            "vector_bytes": counts.vector_bytes,
            "search": "exact",
            "generation": row.generation,
        }
        if problems:
            fields["problem_files"] = [problem.to_json() for problem in listed]
        _print_json(fields)
    elif problems:
        _print_problems(listed)
    else:
        typer.echo(
            f"{printable(str(opened.root))}  {counts.files:,} pictures · "
            f"{counts.captions:,} captions · {counts.problems:,} problems · {model} · exact search"
        )


def _find_library(given: Path | None) -> Path:
    from mmsearch.retrieval.library import find_library

    path, how = find_library(given)
    if how == "last":
        say(f"No library here; asking the one indexed last: {path}")
    return path


def _print_results(results: Results) -> None:
    """Print aligned columns for a person, tab-separated ones for a program."""
    rows = [
        (
            str(hit.rank),
            f"{hit.score:.3f}",
            hit.taken_at.date().isoformat() if hit.taken_at else "-",
            printable(hit.path),
            *([printable(hit.caption)] if hit.caption is not None else []),
        )
        for hit in results.hits
    ]
    if not sys.stdout.isatty():
        for row in rows:
            typer.echo("\t".join(row))
        return
    width = len(str(len(rows)))
    for rank, score, date, *rest in rows:
        typer.echo(f"{rank:>{width}}  {score:>6}  {date:<10}  {'  '.join(rest)}")
    search = "exact" if results.exact else "approximate"
    say(f"{len(rows)} of {results.considered:,} · {search} · {results.took_ms:.0f} ms")


def _print_problems(problems: list[Problem]) -> None:
    for problem in problems:
        typer.echo(f"{problem.kind}\t{printable(problem.path)}\t{printable(problem.reason)}")
    if not problems:
        say("No problems: every picture is indexed.")


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
        parts.append(f"{report.captions:,} captions")
    rate = f", {report.embedded / report.seconds:,.0f} pictures/s" if report.embedded else ""
    lines = [f"{' · '.join(parts)} ({report.seconds:.1f} s{rate})"]
    if report.problems:
        lines.append(
            f"{report.problems:,} files need attention: mmsearch status --problems "
            f"--library {quoted(path)}"
        )
    if report.unmatched:
        lines.append(
            f"{len(report.unmatched):,} rows of the captions file name no picture of this library "
            f"(the first: {printable(report.unmatched[0])})"
        )
    if report.added and report.files:
        lines.append('Try: mmsearch query "a dog on a beach"')
    return "\n".join(lines)


def _read_large_pictures() -> None:
    """Lift Pillow's limit to ours, which is checked from the header before anything is decoded.

    Pillow's is lower than what today's phones make; it is a setting of the whole process, so only
    a program that owns the process may change it.
    """
    from PIL import Image

    from mmsearch.retrieval.media import MAX_PIXELS

    Image.MAX_IMAGE_PIXELS = MAX_PIXELS


def _terminate_like_interrupt() -> None:
    """Let a polite request to stop (kill, a system shutting down) end a run like Ctrl-C does."""
    import signal

    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _print_json(document: dict[str, Any]) -> None:
    typer.echo(json.dumps(document))
