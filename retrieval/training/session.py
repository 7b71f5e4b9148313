"""A training from beginning to end: pairs and a model in, a folder that `--model` takes out."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmsearch.errors import SourceError, StorageError, TrainingError, quoted
from mmsearch.retrieval.encoders import load_encoder
from mmsearch.retrieval.encoders.sources import load_dual_encoder
from mmsearch.retrieval.schema import Quantize
from mmsearch.retrieval.training.batches import PairBatches
from mmsearch.retrieval.training.checkpoint import Checkpoint
from mmsearch.retrieval.training.corpus import Corpus, read_corpus
from mmsearch.retrieval.training.curves import write_curve_picture, write_curve_table
from mmsearch.retrieval.training.distributed import (
    choose_device,
    is_first,
    process,
    processes_joined,
    share_weights,
)
from mmsearch.retrieval.training.export import refuse_foreign, save_model
from mmsearch.retrieval.training.hard_negatives import Memory
from mmsearch.retrieval.training.loop import Outcome, Row, TrainingLoop
from mmsearch.retrieval.training.objective import Objective
from mmsearch.retrieval.training.preparation import choose_what_learns, prepare
from mmsearch.retrieval.training.recipe import Recipe
from mmsearch.retrieval.training.report import TrainingReport, training_record
from mmsearch.retrieval.training.teachers import SimilarityTeacher, read_class_teacher
from mmsearch.retrieval.training.validation import Validation

if TYPE_CHECKING:
    from mmsearch.retrieval.encoders.dual_encoder import DualEncoder

__all__ = [
    "CHECKPOINT",
    "Pairs",
    "Run",
    "TrainingReport",
    "check_both",
    "prepare_folder",
    "read_both",
    "train",
    "working_folder",
]

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True, slots=True)
class Pairs:
    """What to learn from, and what to measure with.

    Attributes:
        source: a pairs file or WebDataset shards, see `corpus.read_corpus`.
        images: the folder that paths are relative to.
        split: which part of a file that holds several; `train`, and `val` of `validation`, where
            it is not given.
        validation: pairs to measure with; a `held_out` share of the pictures when not given.
        held_out: 0 trains on everything and measures nothing.
        skip_broken: leave out pictures that are missing or cannot be read, and record them.
        classes: an `.npz` file of class probabilities, see `teachers.read_class_teacher`.
    """

    source: Path | str
    images: Path | None = None
    split: str | None = None
    validation: Path | str | None = None
    held_out: float = 0.1
    skip_broken: bool = False
    classes: Path | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise TrainingError(f"--held-out must be 0 or more, and below 1, not {self.held_out}.")


@dataclass(frozen=True, slots=True)
class Run:
    """How a training runs, which changes nothing about what is learned.

    Attributes:
        resume: continue from the last checkpoint.
        checkpoint_every: steps; 0 leaves it at validations.
        threads: that prepare pictures; 0 means as many as there are cores, at most 8.
        device: `cpu`, `cuda`, `cuda:1` …; the GPU where there is one when not given.
        quantize: how the ONNX files store their weights.
        progress: called with (stage, done, total).
        on_validation: called with each row of the history that has a validation.
        should_stop: asked after each step.
    """

    resume: bool = False
    checkpoint_every: int = 200
    threads: int = 0
    device: str | None = None
    quantize: Quantize = Quantize.NONE
    progress: Callable[[str, int, int], None] = lambda *_: None
    on_validation: Callable[[Row], None] = lambda _: None
    should_stop: Callable[[], bool] = lambda: False

    @property
    def preparing(self) -> int:
        """How many threads prepare pictures."""
        return self.threads or min(8, os.cpu_count() or 1)

    def __post_init__(self) -> None:
        for option, value in (
            ("--checkpoint-every", self.checkpoint_every),
            ("--threads", self.threads),
        ):
            if value < 0:
                raise TrainingError(f"{option} must be 0 or more, not {value}.")


def working_folder(output: Path) -> Path:
    """Return where the state of the training of `output` is kept until it is complete."""
    return output.with_name(f"{output.name}.training")


def train(
    pairs: Pairs,
    output: Path,
    *,
    source: str = "compact",
    recipe: Recipe | None = None,
    teacher: str | None = None,
    run: Run | None = None,
) -> TrainingReport:
    """Train a model on pairs of pictures and captions, and write its folder.

    Args:
        pairs: what to learn from.
        output: the folder to make; its state is kept in a folder beside it until it is complete.
        source: what to start from, see `encoders.sources.load_dual_encoder`.
        recipe: the settings.
        teacher: an encoder whose similarities are imitated, where the recipe gives them weight.
        run: how it runs.

    Raises:
        SourceError: the pairs cannot be used; the message names the row or file.
        ModelError: the model to start from cannot be loaded, or `output` is something else than
            a model.
        TrainingError: a setting is impossible, the loss is no number, or memory does not suffice.
        StorageError: `output` cannot be written.
        Interrupted: `run.should_stop` said so; `resume` continues.
    """
    recipe, run = recipe or Recipe(), run or Run()
    device = choose_device(run.device)
    refuse_foreign(output)
    with processes_joined(device):
        try:
            if not is_first():
                # What all of them do, one of them shows.
                run = replace(run, progress=lambda *_: None, on_validation=lambda _: None)
            return _train(pairs, output, source, recipe, teacher, run, device)
        except BaseException:
            # Empty: there is nothing to continue, so there is nothing to leave behind.
            if is_first():
                with suppress(OSError):
                    working_folder(output).rmdir()
            raise


def _train(
    pairs: Pairs,
    output: Path,
    source: str,
    recipe: Recipe,
    teacher: str | None,
    run: Run,
    device: torch.device,
) -> TrainingReport:
    started = time.perf_counter()
    folder = working_folder(output)
    prepare_folder(output, resume=run.resume)
    # Whatever can be wrong is found before every picture is decoded, which takes a while.
    corpus, held_out = read_both(pairs)
    imitated = load_encoder(teacher) if teacher is not None and recipe.distillation else None
    # Two processes that begin with different random heads would never agree.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        captions = [text for each in corpus.captions for text in each]
        model = load_dual_encoder(source, captions=captions)
    corpus, held_out = check_both(pairs, corpus, held_out, seed=recipe.seed, run=run)
    classes = None
    if pairs.classes is not None and recipe.classes:
        classes, corpus = read_class_teacher(
            pairs.classes,
            corpus,
            pairs.images,
            held_out=held_out,
            check=lambda extra: extra.checked(
                skip_broken=pairs.skip_broken, threads=run.preparing, progress=run.progress
            ),
        )
    prepare(model, corpus, recipe)
    model.to(device)
    finish = choose_what_learns(model, recipe)
    share_weights(model)
    similarities = None
    if imitated is not None:
        similarities = SimilarityTeacher.embed(corpus, imitated, run.progress)
    memory = Memory.empty(len(corpus), model.dim) if recipe.hard_negatives else None
    loop = TrainingLoop(
        model,
        PairBatches(
            corpus, model, recipe, threads=run.preparing, process=process(), classes=classes
        ),
        recipe,
        heads=model.head_parameters(),
        objective=Objective(recipe, similarities),
        validate=Validation(held_out, model) if held_out is not None else None,
        device=device,
        memory=memory,
    )

    outcome = loop.run(
        checkpoint=folder / CHECKPOINT,
        checkpoint_every=run.checkpoint_every,
        settings={
            "source": source,
            # Whoever runs out of memory goes on with smaller chunks, which change no gradient.
            "recipe": {k: v for k, v in recipe.to_json().items() if k != "chunk"},
            "pairs": corpus.fingerprint(),
            "teacher": teacher,
            "processes": process()[1],
        },
        resume=run.resume,
        progress=run.progress,
        on_validation=run.on_validation,
        should_stop=run.should_stop,
    )
    finish()
    seconds = time.perf_counter() - started
    record = training_record(str(pairs.source), source, recipe, corpus, held_out, outcome, seconds)
    if is_first():
        _write(model.cpu(), output, folder, outcome, record, run)
    return TrainingReport(output, outcome, record, is_first())


def read_both(pairs: Pairs) -> tuple[Corpus, Corpus | None]:
    """Return the pairs to learn from, and those to measure with where they have a file."""

    def read(source: Path | str, split: str | None, default: str) -> Corpus:
        return read_corpus(
            source, pairs.images, split=split, default=default, skip_missing=pairs.skip_broken
        )

    corpus = read(pairs.source, pairs.split, "train")
    return corpus, None if pairs.validation is None else read(pairs.validation, None, "val")


def check_both(
    pairs: Pairs, corpus: Corpus, held_out: Corpus | None, *, seed: int, run: Run
) -> tuple[Corpus, Corpus | None]:
    """Decode every picture once, and hold some out where nothing is given to measure with."""

    def check(some: Corpus) -> Corpus:
        return some.checked(
            skip_broken=pairs.skip_broken, threads=run.preparing, progress=run.progress
        )

    corpus = check(corpus)
    if held_out is not None:
        held_out = check(held_out)
    elif pairs.held_out:
        corpus, held_out = corpus.split(pairs.held_out, seed=seed)
    needed = max(2, process()[1])
    if len(corpus) < needed:
        raise SourceError(
            f"Training needs at least {needed} pictures to contrast with each other; there is "
            f"{len(corpus)} left. Add pairs."
        )
    return corpus, held_out


def prepare_folder(output: Path, *, resume: bool, state: str = CHECKPOINT) -> None:
    """Make the folder for the state of a training, or check that there is one to continue.

    Args:
        output: what is to be trained.
        resume: whether to continue.
        state: name of the file that continuing takes.

    Raises:
        TrainingError: there is none to continue, or one that was not completed.
        StorageError: it cannot be made.
    """
    folder = working_folder(output)
    # In every process: where one alone gave up, the others would wait for it.
    if resume and not (folder / state).exists() and any(output.glob("*.json")):
        raise TrainingError(
            f"There is no training to continue: the model at {output} is complete. To train it "
            "anew, start without --resume."
        )
    if resume:
        Checkpoint.require(folder / state)
    elif (folder / state).exists():
        raise TrainingError(
            f"An earlier training of this model was not completed; its state is in {folder}. "
            f"Continue it with --resume, or give it up: rm -r {quoted(folder)}"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{folder}, for the state of the training, cannot be made: {error.strerror}. Give "
            "another place with --output."
        ) from error


def _write(
    model: DualEncoder,
    output: Path,
    folder: Path,
    outcome: Outcome,
    record: dict[str, Any],
    run: Run,
) -> None:
    # Its own name: what it began as is another model, and may be in use beside it.
    model.description = replace(model.description, name=output.absolute().name)
    try:
        save_model(model, output, extra={"training": record}, quantize=run.quantize)
        write_curve_table(outcome.history, output / "curve.csv")
        write_curve_picture(outcome.history, output / "curve.png", best_step=outcome.best_step)
    except OSError as error:
        raise StorageError(
            f"The model cannot be written to {output}: {error.strerror or error}. Nothing is lost: "
            "make room and run the same command with --resume."
        ) from error
    shutil.rmtree(folder)
