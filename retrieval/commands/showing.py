"""The ways to show what was found, for every command that finds pictures.

A command gets the options by `with_showing` and calls the `Showing` that comes of them:

    @with_showing
    def similar(image: ..., library: LibraryOption = None, *, showing: Showing) -> None:
        ...
        showing(results)
"""

from __future__ import annotations

import csv
import inspect
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmsearch.errors import MmsearchError
from mmsearch.retrieval.commands.options import Json, described_search, path_argument
from mmsearch.retrieval.listing import (
    cells_of,
    described_reranking,
    each_picture_once,
    field_names,
    record_of,
    row_of,
    shell_path,
)
from mmsearch.retrieval.terminal import print_json, printable, read_large_pictures, say

if TYPE_CHECKING:
    from mmsearch.retrieval.copies import Placed
    from mmsearch.retrieval.schema import Results

__all__ = ["Fetch", "Form", "Showing", "open_file", "print_table", "with_showing"]

Fetch = Callable[["Results", int | None], "Results"]
"""Returns results whose pictures can be read here, with so many pixels along their longer side, or
their own files where that is None."""

GRID_SIDE = 640
"""Pixels of a thumbnail for a terminal, which has 24 columns or a few more for it."""

OPENED = 3
"""Pictures that --open opens at most: each is a window."""
LISTED = 5


class Form(StrEnum):
    """What is printed to stdout, named by the option that asks for it."""

    TABLE = "the table"
    PATHS = "--paths"
    NULL = "--null"
    JSON = "--json"
    JSONL = "--jsonl"
    CSV = "--csv"
    PICTURES = "--pictures"


@dataclass(frozen=True, slots=True)
class Showing:
    """What is done with results.

    Attributes:
        form: what is printed.
        opened: whether the first are opened in the desktop's viewer.
        sheet: where a contact sheet goes.
        copies: the folder that pictures are copied to.
        links: the folder that links to them go to.
    """

    form: Form = Form.TABLE
    opened: bool = False
    sheet: Path | None = None
    copies: Path | None = None
    links: Path | None = None

    def __call__(self, results: Results, fetch: Fetch = lambda results, _: results) -> None:
        """Print results, and do what else was asked with them.

        Args:
            results: what was found.
            fetch: brings pictures here that are elsewhere.

        Raises:
            SourceError: a sheet or a folder cannot be written.
            MissingExtra: pictures in the terminal, without the extra `show`.
        """
        if self.sheet is not None or self.form is Form.PICTURES:
            read_large_pictures()
        pictures = self.form is Form.PICTURES
        _PRINTERS[self.form](fetch(results, GRID_SIDE) if pictures else results)
        # Nothing found makes no sheet and no folder, and the command says so itself.
        if not results.hits:
            return
        if self.sheet is not None:
            from mmsearch.retrieval.contact_sheet import SIDE, write_sheet

            write_sheet(fetch(results, SIDE), self.sheet)
            say(f"{len(results.hits)} on {self.sheet}")
        if self.copies is not None:
            from mmsearch.retrieval.copies import copy_pictures

            _tell(copy_pictures(fetch(results, None), self.copies), "copied")
        if self.links is not None:
            from mmsearch.retrieval.copies import link_pictures

            _tell(link_pictures(results, self.links), "linked")
        if self.opened:
            if self.sheet is not None:
                open_file(self.sheet)
            else:
                first = tuple(each_picture_once(results)[:OPENED])
                _open(fetch(replace(results, hits=first), None))


def with_showing(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of this module, as one keyword `showing`.

    What cannot be done is refused before the command begins: options that exclude each other, a
    sheet where something else lies, a package that is missing.
    """
    options = inspect.signature(_showing, eval_str=True).parameters
    own = inspect.signature(command, eval_str=True).parameters
    parameters = [each for name, each in own.items() if name != "showing"]
    parameters += options.values()

    @wraps(command)
    def shown(**arguments: Any) -> None:  # noqa: ANN401 (what the signature below says)
        chosen = {name: arguments.pop(name) for name in options}
        command(**arguments, showing=_showing(**chosen))

    # What typer reads. `__wrapped__` would lead it on to the command's own.
    shown.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    shown.__annotations__ = {each.name: each.annotation for each in parameters}
    return shown


def _showing(
    paths: Annotated[
        bool,
        typer.Option(
            "--paths",
            help="Print paths alone, one a line, as a shell here can use them: relative where the "
            "library is in the working directory, else absolute.",
        ),
    ] = False,
    null: Annotated[
        bool,
        typer.Option(
            "--null", "-0", help="The same, each ended by a NUL, for xargs -0: any name is safe."
        ),
    ] = False,
    as_json: Json = False,
    jsonl: Annotated[
        bool, typer.Option("--jsonl", help="Print one JSON object an answer and line.")
    ] = False,
    as_csv: Annotated[
        bool,
        typer.Option(
            "--csv",
            help="Print CSV (RFC 4180) with a header, values as they are: import what others "
            "named or wrote as text, since a spreadsheet takes =… for a formula.",
        ),
    ] = False,
    pictures: Annotated[
        bool,
        typer.Option("--pictures", "-p", help="Show thumbnails in the terminal (extra show)."),
    ] = False,
    open_: Annotated[
        bool,
        typer.Option(
            "--open",
            help=f"Open the first {OPENED} in the desktop's viewer; with --html, the sheet.",
        ),
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            parser=path_argument,
            metavar="FILE",
            help="Write a contact sheet that holds its thumbnails; only a former one is replaced.",
        ),
    ] = None,
    copy_to: Annotated[
        Path | None,
        typer.Option(
            parser=path_argument,
            metavar="FOLDER",
            help="Copy the pictures there, named by rank; nothing is overwritten.",
        ),
    ] = None,
    link_to: Annotated[
        Path | None,
        typer.Option(
            parser=path_argument,
            metavar="FOLDER",
            help="Put symbolic links to the pictures there, in the same way.",
        ),
    ] = None,
) -> Showing:
    """Return what the options ask for.

    Raises:
        typer.BadParameter: some exclude each other.
        SourceError: a sheet would go where something else lies.
        MissingExtra: pictures in the terminal, without the extra `show`.
    """
    asked = {
        # -0 is a way of printing paths.
        Form.PATHS: paths and not null,
        Form.NULL: null,
        Form.JSON: as_json,
        Form.JSONL: jsonl,
        Form.CSV: as_csv,
        Form.PICTURES: pictures,
    }
    forms = [form for form, given in asked.items() if given]
    if len(forms) > 1:
        raise typer.BadParameter(
            f"{' and '.join(forms)} exclude each other: each says what is printed. Give one."
        )
    if copy_to is not None and link_to is not None:
        raise typer.BadParameter("--copy-to and --link-to exclude each other. Give one.")
    if html is not None:
        from mmsearch.retrieval.contact_sheet import check_place

        check_place(html)
    form = forms[0] if forms else Form.TABLE
    if form is Form.PICTURES:
        if sys.stdout.isatty():
            from mmsearch.retrieval.terminal_graphics import check_extra

            check_extra("textual-image")
        else:
            say("--pictures needs a terminal; this is the table. A file instead: --html FILE")
            form = Form.TABLE
    return Showing(form, open_, html, copy_to, link_to)


def open_file(file: Path) -> None:
    """Open a picture, or a page, in the desktop's viewer; what lies in a container is taken out.

    Raises:
        MediaError: it is gone, or cannot be read.
        MmsearchError: there is no viewer.
    """
    from mmsearch.errors import MediaError
    from mmsearch.retrieval.containers import read_inside

    data = read_inside(file)
    if data is not None:
        # Kept after this process, for the viewer; the system clears it away.
        folder = Path(tempfile.mkdtemp(prefix="mmsearch-"))
        file = folder / file.name
        file.write_bytes(data)
    elif not file.is_file():
        raise MediaError("vanished", f"{file} is gone since it was indexed.")
    if typer.launch(str(file.absolute())) != 0:
        raise MmsearchError(
            f"No viewer was found to open {file} with. On Linux it is xdg-open that finds one "
            "(package xdg-utils)."
        )


def _open(results: Results) -> None:
    from mmsearch.errors import MediaError

    for hit in results.hits:
        try:
            open_file(results.file(hit))
        except MediaError as error:
            say(f"Not opened: {error}")


def _tell(placed: Placed, how: str) -> None:
    count = len(placed.files) - (placed.unpacked if how == "linked" else 0)
    parts = [f"{count} {how} to {placed.folder}"]
    if how == "linked" and placed.unpacked:
        parts.append(f"{placed.unpacked} copied there from inside a tar or Parquet file")
    if placed.present:
        parts.append(f"{len(placed.present)} there already")
    say(" · ".join(parts))
    for path, reason in placed.skipped[:LISTED]:
        say(f"Skipped {path}: {reason}")
    if len(placed.skipped) > LISTED:
        say(f"… and {len(placed.skipped) - LISTED} more")


def print_table(results: Results) -> None:
    """Print aligned columns for a person, tab-separated ones for a program."""
    people = sys.stdout.isatty()
    rows = [row_of(hit, people=people) for hit in results.hits]
    # Where several libraries of a server answered, a path alone names no picture.
    several = len(results.libraries) > 1
    texts = [
        (
            *row.facts,
            *(
                printable(text)
                for text in (
                    hit.library if several else None,
                    row.path,
                    row.caption,
                    row.similar,
                )
                if text is not None
            ),
        )
        for hit, row in zip(results.hits, rows, strict=True)
    ]
    if not people:
        for text in texts:
            typer.echo("\t".join(text))
        return
    width = len(str(len(rows)))
    fit = max((len(row.score) for row in rows), default=0)
    for rank, score, date, *rest in texts:
        typer.echo(f"{rank:>{width}}  {score:>{fit}}  {date:<10}  {'  '.join(rest)}")
    _say_summary(results)


def _say_summary(results: Results) -> None:
    facts = [
        f"{len(results.hits)} of {results.considered:,}",
        described_search(results.exact, results.recall),
        *([described_reranking(results.rerank)] if results.rerank is not None else []),
        f"{results.took_ms:.0f} ms",
    ]
    say(" · ".join(facts))


def _print_paths(results: Results, end: bytes = b"\n") -> None:
    names = [shell_path(results, hit, Path.cwd()) for hit in each_picture_once(results)]
    if end == b"\n" and sys.stdout.isatty():
        for name in names:
            typer.echo(printable(name))
        return
    # Bytes as the file system has them, whatever the locale says.
    _write(b"".join(os.fsencode(name) + end for name in names))


def _print_csv(results: Results) -> None:
    records = [record_of(results, hit) for hit in results.hits]
    names = field_names(records)
    text = io.StringIO(newline="")
    writer = csv.writer(text)  # RFC 4180 is its default dialect.
    writer.writerow(names)
    writer.writerows(cells_of(record, names) for record in records)
    _write(text.getvalue().encode("utf-8", "surrogateescape"))


def _print_jsonl(results: Results) -> None:
    lines = [json.dumps(record_of(results, hit)) + "\n" for hit in results.hits]
    _write("".join(lines).encode())


def _print_pictures(results: Results) -> None:
    from mmsearch.retrieval.terminal_pictures import print_pictures

    print_pictures(results)
    _say_summary(results)


def _write(data: bytes) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


_PRINTERS: dict[Form, Callable[[Results], None]] = {
    Form.TABLE: print_table,
    Form.PATHS: _print_paths,
    Form.NULL: lambda results: _print_paths(results, b"\0"),
    Form.JSON: lambda results: print_json(results.to_json()),
    Form.JSONL: _print_jsonl,
    Form.CSV: _print_csv,
    Form.PICTURES: _print_pictures,
}
