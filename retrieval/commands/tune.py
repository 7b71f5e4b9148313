"""`mmsearch tune`: learn how a library's own texts are meant."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmsearch.retrieval.commands.options import (
    EXIT_INTERRUPTED,
    EXIT_NOTHING_MATCHED,
    Json,
    LibraryOption,
    Wait,
    chosen_library,
    path_argument,
)
from mmsearch.retrieval.terminal import (
    print_json,
    printable,
    progress_bar,
    say,
    terminate_like_interrupt,
)

if TYPE_CHECKING:
    from mmsearch.retrieval.tuning import TuneReport

__all__ = ["tune"]


def tune(
    library: LibraryOption = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            parser=path_argument,
            metavar="FILE",
            help="Learn from chosen results instead of the library's captions: TSV, CSV, JSONL or "
            "Parquet with the columns path (the picture that was chosen) and caption (the query).",
        ),
    ] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Take the last tuning back.")] = False,
    reset: Annotated[bool, typer.Option("--reset", help="Take every tuning back.")] = False,
    seed: Annotated[
        int, typer.Option(min=0, help="Chooses which pictures are held out to measure on.")
    ] = 0,
    wait: Wait = None,
    as_json: Json = False,
) -> None:
    """Fit queries to a library, by its captions or by results that were chosen.

    No picture is read again. A quarter of the captioned pictures is held out, and nothing changes
    unless they are found better (otherwise the exit code is 3).

    \b
    Examples: mmsearch tune
              mmsearch tune --pairs chosen.tsv
              mmsearch tune --undo
    """  # noqa: D301 (the backspace keeps the lines apart)
    from mmsearch.retrieval import tuning

    if undo + reset + (pairs is not None) > 1:
        raise typer.BadParameter("--pairs, --undo and --reset exclude each other")
    folder = chosen_library(library)
    if undo or reset:
        _take_back(folder, everything=reset, wait=wait or 0, as_json=as_json)
        return
    terminate_like_interrupt()
    try:
        with progress_bar() as show:
            report = tuning.tune(folder, pairs=pairs, seed=seed, wait=wait or 0, progress=show)
    except KeyboardInterrupt:
        say("Interrupted.")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if as_json:
        print_json(report.to_json())
    say(_summary(report))
    if report.adapter is None:
        raise typer.Exit(EXIT_NOTHING_MATCHED)


def _take_back(folder: Path, *, everything: bool, wait: float, as_json: bool) -> None:
    from mmsearch.retrieval import tuning

    take_back = tuning.reset if everything else tuning.undo
    count, adapter = take_back(folder, wait=wait)
    if as_json:
        print_json({"schema": 1, "library": str(folder), "taken_back": count, "adapter": adapter})
    if count == 0:
        say("There is no tuning to take back.")
        raise typer.Exit(EXIT_NOTHING_MATCHED)
    now = "the model's own vectors" if adapter is None else "the tuning before it"
    say(f"Taken back: {count}. Queries use {now} again.")


def _summary(report: TuneReport) -> str:
    lines = [
        f"Learned from {report.texts - report.held_out_texts:,} texts; measured on "
        f"{report.held_out_texts:,} texts of {report.held_out_pictures:,} held-out pictures "
        f"({report.seconds:.1f} s)"
    ]
    for name, gain in (
        ("text→image", report.text_to_image),
        ("image→text", report.image_to_text),
    ):
        before, after = gain.before, gain.after
        low, high = gain.mrr_gain
        lines.append(
            f"{name}  R@1 {before['R@1']:.1f} → {after['R@1']:.1f}  "
            f"R@10 {before['R@10']:.1f} → {after['R@10']:.1f}  "
            f"MRR {before['mrr']:.3f} → {after['mrr']:.3f} (gain {low:+.3f} to {high:+.3f})"
        )
    if report.unmatched:
        lines.append(
            f"{len(report.unmatched):,} rows of {printable(report.learned_from)} name no picture "
            f"of this library (the first: {printable(report.unmatched[0])})"
        )
    if report.refusal is None:
        lines.append("In use from now on. The way back: mmsearch tune --undo")
    else:
        lines.append(f"Refused: {report.refusal}. Nothing was changed.")
    return "\n".join(lines)
