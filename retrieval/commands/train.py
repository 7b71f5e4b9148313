"""`mmsearch train`: a model of one's own."""

from __future__ import annotations

import signal
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmsearch.errors import MissingExtra, quoted
from mmsearch.retrieval.commands.options import EXIT_INTERRUPTED, Json, path_argument
from mmsearch.retrieval.schema import Quantize
from mmsearch.retrieval.terminal import print_json, progress_bar, read_large_pictures, say
from mmsearch.retrieval.training.recipe import Loss, Precision, Recipe, Trainable

if TYPE_CHECKING:
    from collections.abc import Callable

    from mmsearch.retrieval.training.loop import Row
    from mmsearch.retrieval.training.report import TrainingReport

__all__ = ["stop_on_signal", "train"]

_DEFAULT = Recipe()


def train(
    pairs: Annotated[
        str,
        typer.Argument(
            metavar="PAIRS",
            help="Pictures and captions: TSV, CSV, JSONL, Parquet, COCO's or Karpathy's JSON, or "
            "WebDataset shards (a .tar, a folder of them, or a pattern like {000..012}.tar).",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(parser=path_argument, metavar="FOLDER", help="The model's folder to make."),
    ],
    images: Annotated[
        Path | None,
        typer.Option(
            parser=path_argument, metavar="DIR", help="The folder that paths are relative to."
        ),
    ] = None,
    source: Annotated[
        str,
        typer.Option(
            "--from",
            help="What to start from: compact, open_clip:MODEL/PRETRAINED, "
            "open_clip:local-dir:PATH, hf:NAME_OR_PATH, timm:IMAGE_MODEL+hf:TEXT_FOLDER, a "
            "description in JSON, or a folder that was trained before.",
        ),
    ] = "compact",
    validation: Annotated[
        str | None,
        typer.Option(help="Pairs to measure with; without it a part of PAIRS is held out."),
    ] = None,
    held_out: Annotated[
        float, typer.Option(help="Share of the pictures to hold out; 0: train on all.")
    ] = 0.1,
    split: Annotated[
        str | None, typer.Option(help="Which part of a file that has several (train, val, test).")
    ] = None,
    trainable: Annotated[
        Trainable,
        typer.Option(
            help="What learns: everything, the text side (locked image tower), the heads, or "
            "low-rank updates."
        ),
    ] = _DEFAULT.trainable,
    loss: Annotated[Loss, typer.Option(help="The contrastive loss.")] = _DEFAULT.loss,
    epochs: Annotated[int, typer.Option(help="Passes over the pictures.")] = _DEFAULT.epochs,
    batch: Annotated[int, typer.Option(help="Pairs contrasted at once.")] = _DEFAULT.batch,
    chunk: Annotated[
        int,
        typer.Option(help="Pairs in memory at once; a smaller number changes no gradient. 0: all."),
    ] = _DEFAULT.chunk,
    learning_rate: Annotated[
        float, typer.Option(help="Highest rate, of the heads.")
    ] = _DEFAULT.learning_rate,
    tower_rate: Annotated[
        float, typer.Option(help="The towers' rate, as a fraction of it.")
    ] = _DEFAULT.tower_rate,
    warmup: Annotated[
        float, typer.Option(help="Share of the steps in which the rate climbs.")
    ] = _DEFAULT.warmup,
    weight_decay: Annotated[float, typer.Option(help="AdamW's.")] = _DEFAULT.weight_decay,
    clip_norm: Annotated[
        float, typer.Option(help="Longest gradient; 0: any.")
    ] = _DEFAULT.clip_norm,
    dropout: Annotated[
        float, typer.Option(help="Of the heads' inputs and of words.")
    ] = _DEFAULT.dropout,
    crop: Annotated[
        float, typer.Option(help="Smallest share of a picture that a random crop keeps.")
    ] = _DEFAULT.crop,
    flip: Annotated[bool, typer.Option("--flip", help="Mirror half of the pictures.")] = False,
    colour: Annotated[
        float, typer.Option(help="Random changes of brightness, contrast and saturation.")
    ] = _DEFAULT.colour,
    average: Annotated[
        float, typer.Option(help="Of the running average of weights; 0: none.")
    ] = _DEFAULT.average,
    patience: Annotated[
        int, typer.Option(help="Stop after so many validations without a gain; 0: never.")
    ] = _DEFAULT.patience,
    validate_every: Annotated[
        int, typer.Option(help="Steps between validations; 0: once an epoch.")
    ] = _DEFAULT.validate_every,
    hard_negatives: Annotated[
        float, typer.Option(help="Share of a batch that is chosen to be easily confused.")
    ] = _DEFAULT.hard_negatives,
    teacher: Annotated[
        str | None, typer.Option(help="An encoder whose similarities are imitated.")
    ] = None,
    distillation: Annotated[
        float | None, typer.Option(help="Weight of the teacher; 1 where there is one.")
    ] = None,
    class_probabilities: Annotated[
        Path | None,
        typer.Option(
            parser=path_argument,
            metavar="FILE",
            help="What a classifier says of the pictures: an .npz file with names, paths and "
            "probabilities.",
        ),
    ] = None,
    classes: Annotated[
        float | None, typer.Option(help="Weight of these probabilities; 0.5 where there are any.")
    ] = None,
    lora_rank: Annotated[int, typer.Option(help="Of low-rank updates.")] = _DEFAULT.lora_rank,
    temperature: Annotated[
        float, typer.Option(help="To begin with; 0: the model's own.")
    ] = _DEFAULT.temperature,
    precision: Annotated[
        Precision, typer.Option(help="What the towers compute with.")
    ] = _DEFAULT.precision,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = _DEFAULT.seed,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a training that was stopped.")
    ] = False,
    skip_broken: Annotated[
        bool,
        typer.Option("--skip-broken", help="Leave out pictures that are missing or damaged."),
    ] = False,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 200,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1; the GPU where there is one.")
    ] = None,
    threads: Annotated[
        int, typer.Option(help="That prepare pictures; 0: one a core, at most 8.")
    ] = 0,
    quantize: Annotated[
        Quantize, typer.Option(help="How the ONNX files store their weights.")
    ] = Quantize.NONE,
    as_json: Json = False,
) -> None:
    """Train a model on pictures with captions; the result works wherever --model is asked.

    It may be interrupted; the same command with --resume continues exactly. On several GPUs:
    torchrun --nproc-per-node 4 -m mmsearch.cli train …

    Example: mmsearch train pairs.tsv --images photos --output my-model
    """
    given = locals()
    settings = {name: given[name] for name in (field.name for field in fields(Recipe))}
    if distillation and teacher is None:
        raise typer.BadParameter("--distillation weighs a --teacher: name one, or leave it away")
    if classes and class_probabilities is None:
        raise typer.BadParameter(
            "--classes weighs --class-probabilities: name their file, or leave it away"
        )
    settings["distillation"] = _weight(distillation, teacher, 1.0)
    settings["classes"] = _weight(classes, class_probabilities, 0.5)
    recipe = Recipe(**settings)
    try:
        from mmsearch.retrieval.training.loop import Interrupted
        from mmsearch.retrieval.training.session import Pairs, Run
        from mmsearch.retrieval.training.session import train as run_training
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
                    classes=class_probabilities,
                ),
                output,
                source=source,
                recipe=recipe,
                teacher=teacher,
                run=Run(
                    resume=resume,
                    checkpoint_every=checkpoint_every,
                    threads=threads,
                    device=device,
                    quantize=quantize,
                    progress=show,
                    on_validation=_say_validation,
                    should_stop=stop_on_signal(),
                ),
            )
    except Interrupted as stopped:
        if stopped.is_first:
            say(
                f"Interrupted after step {stopped.step:,} of {stopped.steps:,}. Saved; continue "
                "with the same command and --resume."
            )
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if not report.is_first:
        return
    if as_json:
        print_json(report.to_json())
    say(_summary(report))


def _weight(given: float | None, source: object, usual: float) -> float:
    return given if given is not None else usual if source is not None else 0.0


def stop_on_signal() -> Callable[[], bool]:
    """Finish the step on the first Ctrl-C or polite kill; the second one ends at once.

    Weights that were half updated must not be saved. Before the first step nothing can be, so that
    nobody waits for pictures to be checked.
    """
    asked = stepping = False

    def stop(number: int, frame: object) -> None:
        nonlocal asked
        if asked or not stepping:
            raise KeyboardInterrupt
        asked = True

    def should_stop() -> bool:
        nonlocal stepping
        stepping = True
        return asked

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return should_stop


def _say_validation(row: Row) -> None:
    recall = "  ".join(f"{name} {value:.1f}" for name, value in row.items() if "R@" in name)
    say(f"step {row['step']:,}  loss {row['loss']:.3f}  {recall}")


def _summary(report: TrainingReport) -> str:
    record = report.record
    kept = f", weights of step {record['best_step']:,}" if record["validation"] else ""
    early = ", stopped early" if record["stopped_early"] else ""
    lines = [
        f"{report.model}: {record['steps']:,} steps on {record['captions']:,} pairs "
        f"({record['seconds']:,.0f} s, {record['steps_per_second']:g} steps/s{early}{kept})"
    ]
    if record["skipped"]:
        lines.append(f"{len(record['skipped']):,} pictures were left out; see model.json there")
    lines.append(f"Try: mmsearch index PHOTOS --model {quoted(report.model)}")
    return "\n".join(lines)
