"""`mmsearch train-reranker`: a reranker for the bundled encoder, or for one's own."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmsearch.errors import MissingExtra, quoted
from mmsearch.retrieval.commands.options import EXIT_INTERRUPTED, Json, path_argument
from mmsearch.retrieval.commands.train import stop_on_signal
from mmsearch.retrieval.terminal import print_json, progress_bar, read_large_pictures, say
from mmsearch.retrieval.training.reranker.recipe import RerankerRecipe

if TYPE_CHECKING:
    from mmsearch.retrieval.training.reranker.session import RerankerReport

__all__ = ["train_reranker"]

_DEFAULT = RerankerRecipe()


def train_reranker(
    pairs: Annotated[
        str,
        typer.Argument(
            metavar="PAIRS", help="Pictures and captions, in any form that mmsearch train reads."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(parser=path_argument, metavar="FOLDER", help="The reranker's folder to make."),
    ],
    images: Annotated[
        Path | None,
        typer.Option(
            parser=path_argument, metavar="DIR", help="The folder that paths are relative to."
        ),
    ] = None,
    encoder: Annotated[
        str,
        typer.Option(
            help="Whose answers it reranks: compact, or a folder that mmsearch train made from it."
        ),
    ] = "compact",
    validation: Annotated[
        str | None,
        typer.Option(help="Pairs to measure with; without it a part of PAIRS is held out."),
    ] = None,
    held_out: Annotated[float, typer.Option(help="Share of the pictures to hold out.")] = 0.1,
    split: Annotated[
        str | None, typer.Option(help="Which part of a file that has several (train, val, test).")
    ] = None,
    late_epochs: Annotated[
        int, typer.Option(help="Passes of late interaction alone, which are cheap.")
    ] = _DEFAULT.late_epochs,
    epochs: Annotated[
        int, typer.Option(help="Passes of co-attention after these.")
    ] = _DEFAULT.epochs,
    group: Annotated[
        int, typer.Option(help="Pictures that are easily confused, shown together.")
    ] = _DEFAULT.group,
    groups: Annotated[int, typer.Option(help="Groups in a batch.")] = _DEFAULT.groups,
    pool: Annotated[
        int, typer.Option(help="How many of the nearest pictures groups are drawn from.")
    ] = _DEFAULT.pool,
    learning_rate: Annotated[float, typer.Option(help="Highest rate.")] = _DEFAULT.learning_rate,
    dropout: Annotated[
        float, typer.Option(help="Of the numbers of words and regions.")
    ] = _DEFAULT.dropout,
    width: Annotated[int, typer.Option(help="Of both streams.")] = _DEFAULT.width,
    layers: Annotated[int, typer.Option(help="Of co-attention.")] = _DEFAULT.layers,
    views: Annotated[
        int, typer.Option(help="Ways each picture is seen: itself, mirrored, crops.")
    ] = _DEFAULT.views,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = _DEFAULT.seed,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a training that was stopped.")
    ] = False,
    skip_broken: Annotated[
        bool,
        typer.Option("--skip-broken", help="Leave out pictures that are missing or damaged."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a reranker on pictures with captions; the result works wherever --rerank is asked.

    It reads what the encoder's own towers see, with hard negatives that the encoder confuses. It
    may be interrupted; the same command with --resume continues.

    Example: mmsearch train-reranker pairs.tsv --images photos --output my-reranker
    """
    given: dict[str, Any] = locals()
    named = {field.name for field in fields(RerankerRecipe)}
    recipe = RerankerRecipe(**{name: value for name, value in given.items() if name in named})
    try:
        from mmsearch.retrieval.training.loop import Interrupted
        from mmsearch.retrieval.training.reranker.session import train_reranker as run_training
        from mmsearch.retrieval.training.session import Pairs, Run
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "torch", "models") from error
    read_large_pictures()
    try:
        with progress_bar() as show:
            report = run_training(
                Pairs(
                    pairs,
                    images,
                    split=split,
                    validation=validation,
                    held_out=held_out,
                    skip_broken=skip_broken,
                ),
                output,
                encoder=encoder,
                recipe=recipe,
                run=Run(
                    resume=resume,
                    progress=show,
                    on_validation=_say_validation,
                    should_stop=stop_on_signal(),
                ),
            )
    except Interrupted as stopped:
        say(
            f"Interrupted after step {stopped.step:,} of {stopped.steps:,}. Saved; continue with "
            "the same command and --resume."
        )
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if as_json:
        print_json(report.to_json())
    say(_summary(report))


def _say_validation(row: dict[str, float]) -> None:
    measured = "  ".join(
        f"{name} {value:.1f}" for name, value in row.items() if name not in {"epoch", "loss"}
    )
    say(f"pass {row['epoch']:.0f}  loss {row['loss']:.3f}  {measured}")


def _summary(report: RerankerReport) -> str:
    record = report.record
    measured = record["validation"]
    before, after = measured["before"]["R@1"], measured["after"]["R@1"]
    return (
        f"{report.folder}: text to image R@1 {before:.1f} → {after:.1f} on "
        f"{measured['captions']:,} held-out captions ({record['seconds']:,.0f} s)\n"
        f'Try: mmsearch query "a dog on a beach" --rerank {quoted(report.folder)}'
    )
