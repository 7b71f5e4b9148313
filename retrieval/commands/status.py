"""`mmsearch status`: what a library holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmsearch.retrieval.commands.options import (
    Json,
    LibraryOption,
    ServerOption,
    TokenOption,
    chosen_library,
    described_search,
)
from mmsearch.retrieval.commands.remote import Remote, chosen_server
from mmsearch.retrieval.terminal import print_json, printable, say

if TYPE_CHECKING:
    from mmsearch.retrieval.catalog import AdapterRow, EncoderRow
    from mmsearch.retrieval.schema import Problem

__all__ = ["model_lines", "percent_done", "status"]


def status(
    library: LibraryOption = None,
    problems: Annotated[
        bool, typer.Option("--problems", help="List the files that could not be indexed.")
    ] = False,
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: Json = False,
) -> None:
    """Show what a library holds, and which files could not be indexed.

    Example: mmsearch status --problems
    """
    from mmsearch.errors import QueryError

    there = chosen_server(server, token, library)
    if there is not None:
        if problems:
            raise QueryError("A server does not tell of problems; ask where the library is.")
        _print_there(there, as_json)
        return
    from mmsearch.retrieval.library import Library
    from mmsearch.retrieval.library_status import status_fields

    opened = Library.open(chosen_library(library))
    try:
        fields = status_fields(opened)
        listed = opened.catalog.problems() if problems else []
        row = opened.catalog.library()
        adapter = None if row.adapter_id is None else opened.catalog.adapter(row.adapter_id)
        encoders = opened.catalog.encoders()
    finally:
        opened.close()
    if as_json:
        if problems:
            fields["problem_files"] = [problem.to_json() for problem in listed]
        print_json(fields)
    elif problems:
        _print_problems(listed)
    else:
        typer.echo(_line(str(opened.root), fields))
        if adapter is not None:
            typer.echo(_adapter_line(adapter))
        for line in model_lines(encoders, fields["files"]):
            typer.echo(line)


def _line(name: str, fields: dict[str, Any]) -> str:
    return (
        f"{printable(name)}  {fields['files']:,} pictures · "
        f"{fields['captions']:,} captions · {fields['problems']:,} problems · "
        f"{fields['model']} · "
        f"{described_search(fields['search'] == 'exact', fields['recall'])} search"
    )


def _print_there(there: Remote, as_json: bool) -> None:
    from mmsearch.errors import NotServed

    with there.client() as client:
        fields = client.status()
    asked = [each for each in fields["libraries"] if there.library in {None, each["library"]}]
    if there.library is not None and not asked:
        names = ", ".join(each["library"] for each in fields["libraries"])
        raise NotServed(f"No library is called {there.library!r} there; there are: {names}.")
    if as_json:
        print_json(fields | {"libraries": asked})
        return
    for each in asked:
        typer.echo(_line(each["library"], each))


def model_lines(encoders: list[EncoderRow], files: int) -> list[str]:
    """Say what models there are beside the active one, if any."""
    lines = []
    for row in encoders:
        label = printable(row.spec.label)
        if row.next:
            lines.append(
                f"migrating to {label}: {percent_done(row, files)} % "
                f"({row.vectors:,} of {files:,} pictures; go on: mmsearch migrate)"
            )
        elif not row.active:
            lines.append(
                f"kept: {row.vectors:,} vectors of {label}, {row.vector_bytes / 1e6:,.1f} MB "
                "(free them: mmsearch migrate --drop-old)"
            )
    return lines


def percent_done(row: EncoderRow, files: int) -> int:
    """Return how much of a change of model is done, rounded down: 100 means all of it."""
    return 100 * row.vectors // max(files, 1)


def _adapter_line(adapter: AdapterRow) -> str:
    gain, held_out = adapter.report["text_to_image"], adapter.report["held_out"]
    before, after = gain["before"], gain["after"]
    return (
        f"tuned {adapter.created_at.date().isoformat()} by "
        f"{printable(adapter.report['learned_from'])}: on {held_out['pictures']:,} held-out "
        f"pictures R@1 {before['R@1']:.1f} → {after['R@1']:.1f}, "
        f"MRR {before['mrr']:.3f} → {after['mrr']:.3f} (back: mmsearch tune --undo)"
    )


def _print_problems(problems: list[Problem]) -> None:
    for problem in problems:
        typer.echo(f"{problem.kind}\t{printable(problem.path)}\t{printable(problem.reason)}")
    if not problems:
        say("No problems: every picture is indexed.")
