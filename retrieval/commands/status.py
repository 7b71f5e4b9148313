"""`mmsearch status`: what a library holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmsearch.retrieval.commands.options import (
    Json,
    LibraryOption,
    chosen_library,
    described_search,
)
from mmsearch.retrieval.terminal import print_json, printable, say

if TYPE_CHECKING:
    from mmsearch.retrieval.catalog import AdapterRow, EncoderRow
    from mmsearch.retrieval.schema import Problem

__all__ = ["model_fields", "model_lines", "percent_done", "status"]


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
    from mmsearch.retrieval.schema import Target

    opened = Library.open(chosen_library(library))
    try:
        row, counts = opened.catalog.library(), opened.catalog.counts()
        listed = opened.catalog.problems() if problems else []
        adapter = None if row.adapter_id is None else opened.catalog.adapter(row.adapter_id)
        encoders = opened.catalog.encoders()
        exact, recall = opened.search_of(Target.IMAGES, row)
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
            "search": "exact" if exact else "approximate",
            "recall": recall,
            "generation": row.generation,
            "adapter": None if adapter is None else _adapter_fields(adapter),
            **model_fields(encoders, counts.files),
        }
        if problems:
            fields["problem_files"] = [problem.to_json() for problem in listed]
        print_json(fields)
    elif problems:
        _print_problems(listed)
    else:
        typer.echo(
            f"{printable(str(opened.root))}  {counts.files:,} pictures · "
            f"{counts.captions:,} captions · {counts.problems:,} problems · {model} · "
            f"{described_search(exact, recall)} search"
        )
        if adapter is not None:
            typer.echo(_adapter_line(adapter))
        for line in model_lines(encoders, counts.files):
            typer.echo(line)


def model_fields(encoders: list[EncoderRow], files: int) -> dict[str, Any]:
    """Return what the JSON of `status` and `migrate --status` says of models beside the active."""
    following = next((row for row in encoders if row.next), None)
    return {
        "migration": None
        if following is None
        else {"model": following.spec.label, "done": following.vectors, "total": files},
        "kept_models": [
            {"model": row.spec.label, "vectors": row.vectors, "vector_bytes": row.vector_bytes}
            for row in encoders
            if not row.active and not row.next
        ],
    }


def model_lines(encoders: list[EncoderRow], files: int) -> list[str]:
    """Return the same for people; nothing where there is only the active model."""
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


def _adapter_fields(adapter: AdapterRow) -> dict[str, Any]:
    return {"id": adapter.id, "created": adapter.created_at.isoformat(), **adapter.report}


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
