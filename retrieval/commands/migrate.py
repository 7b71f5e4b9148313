"""`mmsearch migrate`: change the model of a library while it goes on answering."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmsearch.errors import quoted
from mmsearch.retrieval.commands.options import (
    EXIT_INTERRUPTED,
    EXIT_NEEDS_ATTENTION,
    EXIT_NOTHING_MATCHED,
    Json,
    LibraryOption,
    Wait,
    chosen_library,
)
from mmsearch.retrieval.commands.status import model_lines, percent_done
from mmsearch.retrieval.terminal import (
    print_json,
    progress_bar,
    read_large_pictures,
    say,
    terminate_like_interrupt,
)

if TYPE_CHECKING:
    from mmsearch.retrieval.model_change import ModelChange

__all__ = ["migrate"]


def migrate(
    library: LibraryOption = None,
    model: Annotated[
        str | None,
        typer.Option(help="The new model; not needed to go on with an interrupted change."),
    ] = None,
    keep_old: Annotated[
        bool,
        typer.Option(
            "--keep-old",
            help="Keep the old model's vectors, and what was tuned for it, after the switch: the "
            "way back then costs nothing.",
        ),
    ] = False,
    leave_out: Annotated[
        bool,
        typer.Option(
            "--leave-out",
            help="Make the switch even though some pictures cannot be read at present.",
        ),
    ] = False,
    show_status: Annotated[
        bool, typer.Option("--status", help="Show how far a change is, and what was kept.")
    ] = False,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Forget an unfinished change and its vectors.")
    ] = False,
    drop_old: Annotated[
        bool, typer.Option("--drop-old", help="Drop what --keep-old has kept.")
    ] = False,
    wait: Wait = None,
    as_json: Json = False,
) -> None:
    """Embed a library again with another model, and switch to it once that is complete.

    Queries go on with the old vectors meanwhile, and nothing is dropped before the switch. It is
    safe to interrupt; mmsearch migrate alone continues. The folder is not searched for new
    pictures: that is for mmsearch index.

    \b
    Examples: mmsearch migrate --model my-model
              mmsearch migrate --status
    """  # noqa: D301 (the backspace keeps the lines apart)
    from mmsearch.retrieval import embedding, model_change

    if show_status + cancel + drop_old + (model is not None or keep_old or leave_out) > 1:
        raise typer.BadParameter("--status, --cancel and --drop-old each stand alone")
    folder = chosen_library(library)
    if show_status:
        _print_status(folder, as_json=as_json)
        return
    if cancel or drop_old:
        _drop(folder, cancel=cancel, wait=wait or 0, as_json=as_json)
        return
    terminate_like_interrupt()
    read_large_pictures()
    try:
        with progress_bar() as show:

            def follow(progress: embedding.Progress) -> None:
                show(progress.stage, progress.done, progress.total, progress.remark)

            report = model_change.migrate(
                folder,
                model=model,
                keep_old=keep_old,
                leave_out=leave_out,
                wait=wait or 0,
                progress=follow,
            )
    except KeyboardInterrupt:
        _say_interrupted(folder)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if as_json:
        print_json(report.to_json())
    say(_summary(report))
    if not report.switched:
        raise typer.Exit(EXIT_NEEDS_ATTENTION)


def _print_status(folder: Path, *, as_json: bool) -> None:
    from mmsearch.retrieval.library import Library

    opened = Library.open(folder)
    try:
        encoders, files = opened.catalog.encoders(), opened.catalog.counts().files
    finally:
        opened.close()
    model = next((row.spec.label for row in encoders if row.active), None)
    if as_json:
        fields = {"schema": 1, "library": str(opened.root), "model": model}
        from mmsearch.retrieval.library_status import model_fields

        print_json(fields | model_fields(encoders, files))
        return
    lines = model_lines(encoders, files)
    for line in lines:
        typer.echo(line)
    if not lines:
        say(f"No change of model is under way; {model} answers.")


def _drop(folder: Path, *, cancel: bool, wait: float, as_json: bool) -> None:
    from mmsearch.retrieval import model_change

    if cancel:
        unfinished = model_change.cancel(folder, wait=wait)
        rows = [] if unfinished is None else [unfinished]
    else:
        rows = model_change.drop_old(folder, wait=wait)
    if as_json:
        names = [row.spec.label for row in rows]
        print_json({"schema": 1, "library": str(folder), "dropped": names})
    for row in rows:
        megabytes = f"{row.vector_bytes / 1e6:,.1f} MB"
        say(f"Dropped {row.vectors:,} vectors of {row.spec.label}, {megabytes}.")
    if not rows:
        say("No change of model is under way." if cancel else "No old vectors are kept.")
        raise typer.Exit(EXIT_NOTHING_MATCHED)


def _say_interrupted(folder: Path) -> None:
    from mmsearch.retrieval.library import Library

    opened = Library.open(folder)
    try:
        encoders, files = opened.catalog.encoders(), opened.catalog.counts().files
    finally:
        opened.close()
    following = next((row for row in encoders if row.next), None)
    if following is None:
        say("Interrupted. Run the same command to continue.")
        return
    say(
        f"Interrupted. Saved: {percent_done(following, files)} % ({following.vectors:,} of "
        f"{files:,} pictures). Queries go on with the old model. Continue with: mmsearch migrate "
        f"--library {quoted(folder)}"
    )


def _summary(report: ModelChange) -> str:
    where = f"--library {quoted(report.library)}"
    if report.switched and report.model == report.before and not report.embedded:
        return f"{report.model} answers already: nothing to do."
    rate = f", {report.embedded / report.seconds:,.0f} pictures/s" if report.embedded else ""
    if report.bottleneck and rate:
        rate += f", {report.bottleneck}-bound"
    timing = f"({report.seconds:.1f} s{rate})"
    lines = []
    if report.switched:
        lines.append(f"{report.model} answers now, with {report.files:,} pictures {timing}")
    else:
        lines.append(
            f"{report.files:,} pictures are embedded with {report.model} {timing}, but "
            f"{report.unreadable:,} cannot be read at present, so {report.before} goes on "
            f"answering. Mend that and run the same command again, or do without them: "
            f"mmsearch migrate --leave-out {where}"
        )
    left = {
        "vanished": report.vanished,
        "changed": report.changed,
        "cannot be read": report.unreadable if report.switched else 0,
        "cannot be decoded any more": report.damaged,
    }
    said = [f"{count:,} {what}" for what, count in left.items() if count]
    if said:
        lines.append(f"Without: {', '.join(said)}. Run: mmsearch index {quoted(report.library)}")
    if report.switched and report.kept:
        lines.append(
            f"Old vectors are kept, {report.kept / 1e6:,.1f} MB: mmsearch migrate --model MODEL "
            f"goes back at once, mmsearch migrate --drop-old {where} frees them."
        )
    return "\n".join(lines)
