"""The training loop: steps, validation, early stopping, checkpoints; it goes on where it was.

What a step draws follows from the seed, the step and the process alone, so that a training that
was killed and continued ends with the weights of one that was not.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmsearch.errors import TrainingError
from mmsearch.retrieval.losses import LogScale, gather_rows
from mmsearch.retrieval.training.batches import Batch, BatchSource
from mmsearch.retrieval.training.checkpoint import Checkpoint, optimizer_state, restore_optimizer
from mmsearch.retrieval.training.distributed import (
    average_gradients,
    is_first,
    mean_everywhere,
    process,
    same_everywhere,
)
from mmsearch.retrieval.training.gradient_cache import backward_in_chunks
from mmsearch.retrieval.training.hard_negatives import Memory
from mmsearch.retrieval.training.objective import Objective
from mmsearch.retrieval.training.optimization import (
    Average,
    load_weights,
    make_optimizer,
    rate_at,
    set_rate,
)
from mmsearch.retrieval.training.recipe import Precision, Recipe

__all__ = ["Interrupted", "Outcome", "TrainingLoop"]

logger = logging.getLogger(__name__)

Row = dict[str, float]
"""One line of the history: `step`, `epoch`, `loss`, … and, where it was measured, `R@1` …"""


class Interrupted(Exception):
    """The training was asked to stop; its state is saved, by the first process, which says so."""

    def __init__(self, step: int, steps: int) -> None:
        super().__init__(f"stopped after step {step} of {steps}")
        self.step = step
        self.steps = steps
        self.is_first = is_first()


@dataclass(slots=True)
class Outcome:
    """How a training ended; the model has the weights of its best validation.

    Attributes:
        history: a row a step, with validation where it took place.
        best_step: the step after which the kept weights were measured.
        best: what was measured then, by name; empty without validation.
        stopped_early: whether validation stopped getting better before the last epoch.
    """

    history: list[Row]
    best_step: int
    best: dict[str, float]
    stopped_early: bool


@dataclass(slots=True)
class _State:
    step: int = 0
    best_step: int = 0
    best_score: float = -math.inf
    best: dict[str, float] = field(default_factory=dict)
    waited: int = 0
    history: list[Row] = field(default_factory=list)


class TrainingLoop:
    """Trains one model on one source of batches."""

    def __init__(
        self,
        model: nn.Module,
        source: BatchSource,
        recipe: Recipe,
        *,
        heads: Iterable[nn.Parameter],
        objective: Objective | None = None,
        validate: Callable[[], Mapping[str, float]] | None = None,
        device: torch.device | None = None,
        memory: Memory | None = None,
    ) -> None:
        """Join everything that takes part.

        Args:
            model: see `objective.TrainsJointSpace`; already on `device`, with `requires_grad` set
                on what may learn.
            source: the batches.
            recipe: the settings.
            heads: the parameters that learn at the full rate.
            objective: the loss; of the recipe alone when not given.
            validate: measures the model as it is; the mean of its values decides what is kept.
            device: where to compute.
            memory: of the embeddings, where the recipe asks for hard negatives.
        """
        self._model: Any = model
        self._source = source
        self._recipe = recipe
        self._objective = objective or Objective(recipe)
        self._validate = validate
        self._device = device or torch.device("cpu")
        self._memory = memory
        self._class_scale = LogScale().to(self._device)
        self._whole = nn.ModuleDict({"model": model, "class_scale": self._class_scale})
        if not any(p.requires_grad for p in model.parameters()):
            raise TrainingError("Nothing of this model would learn with these settings.")
        trained_heads = [*heads, *self._class_scale.parameters()]
        self._optimizer = make_optimizer(self._whole, trained_heads, recipe)
        self._average = Average(self._whole, recipe.average)
        self._scaler = torch.amp.GradScaler(
            self._device.type, enabled=recipe.precision is Precision.FP16
        )
        self._state = _State()
        self._kept: dict[str, torch.Tensor] = {}

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self._source.steps * self._recipe.epochs

    def run(
        self,
        *,
        checkpoint: Path | None = None,
        checkpoint_every: int = 0,
        settings: Mapping[str, Any] | None = None,
        resume: bool = False,
        progress: Callable[[str, int, int], None] = lambda *_: None,
        on_validation: Callable[[Row], None] = lambda _: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Outcome:
        """Train to the end, and leave the best weights in the model.

        Args:
            checkpoint: the file that holds the state; written every `checkpoint_every` steps, at
                each validation, when stopped, and after the last step.
            checkpoint_every: 0 writes at the others only.
            settings: kept with the state; a training continues only where they are equal.
            resume: continue from `checkpoint`.
            progress: called with ("training", step, steps).
            on_validation: called with each row of the history that has a validation.
            should_stop: asked after each step.

        Raises:
            Interrupted: `should_stop` said so.
            TrainingError: the loss is no number, memory does not suffice, or `checkpoint` is
                missing, damaged or of another training.
        """
        asked = dict(settings or {})
        if resume:
            assert checkpoint is not None
            self._restore(Checkpoint.load(checkpoint), asked)
        # Continued after the last validation, which then is not to be had another time.
        stopped = self._has_waited()
        every = self._recipe.validate_every or self._source.steps
        # Whatever the process drew before, and draws afterwards, is not touched.
        with torch.random.fork_rng(devices=_gpus(self._device)):
            while self._state.step < self.steps and not stopped:
                epoch, first = divmod(self._state.step, self._source.steps)
                batches = self._source.epoch(epoch, first, self._memory if epoch else None)
                for batch in batches:
                    row = self._step(batch.to(self._device), epoch)
                    done = self._state.step
                    measured = self._validate is not None and (
                        done % every == 0 or done == self.steps
                    )
                    if measured:
                        stopped = self._measure(row)
                        on_validation(row)
                    progress("training", done, self.steps)
                    # Whichever process was asked: all end with the same step.
                    stopping = mean_everywhere(float(should_stop()), self._device) > 0
                    due = checkpoint_every and done % checkpoint_every == 0
                    # What writes the model afterwards may fail, and be tried again.
                    due = due or done == self.steps
                    if checkpoint is not None and is_first() and (measured or due or stopping):
                        self._snapshot(asked).save(checkpoint)
                    if stopping and not stopped and done < self.steps:
                        raise Interrupted(done, self.steps)
                    if stopped:
                        break
        self._finish()
        state = self._state
        early = stopped and state.step < self.steps
        return Outcome(state.history, state.best_step, state.best, early)

    def _step(self, batch: Batch, epoch: int) -> Row:
        recipe, state, started = self._recipe, self._state, time.perf_counter()
        rank = process()[0]
        torch.manual_seed(((recipe.seed * 1_000_003 + state.step) * 1_009 + rank) % 2**63)
        self._model.train()
        rate = rate_at(state.step, self.steps, recipe.warmup)
        set_rate(self._optimizer, recipe.learning_rate * rate)
        self._optimizer.zero_grad(set_to_none=True)
        parts: dict[str, float] = {}

        def loss_of(sides: Sequence[torch.Tensor]) -> torch.Tensor:
            loss, found = self._objective(
                sides[0], sides[1], batch, self._model, self._class_scale()
            )
            parts.update(found)
            return loss

        try:
            loss, (images, texts) = backward_in_chunks(
                [
                    (self._embed_images, (batch.images,)),
                    (self._embed_texts, (batch.ids, batch.mask)),
                ],
                loss_of,
                chunk=recipe.chunk,
                scale=self._scaler.scale,
            )
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise self._too_little_memory() from error
        except RuntimeError as error:
            # The CPU's allocator has no exception of its own.
            if "not enough memory" in str(error) or "can't allocate memory" in str(error):
                raise self._too_little_memory() from error
            raise
        # Judged together: one process must not go on where another gives up.
        if not math.isfinite(mean_everywhere(float(loss), self._device)):
            raise TrainingError(
                f"The loss of step {state.step + 1} is no finite number. Train with a lower "
                "--learning-rate or --clip-norm, or in another --precision; --resume goes back to "
                "the last checkpoint."
            )
        if self._memory is not None:
            # Every process must remember the same: their batches are parts of one.
            self._memory.remember(
                *(gather_rows(r) for r in (batch.rows, images[: batch.pairs], texts[: batch.pairs]))
            )
        average_gradients(self._whole.parameters())
        self._scaler.unscale_(self._optimizer)
        trained = [p for p in self._whole.parameters() if p.grad is not None]
        limit = recipe.clip_norm or math.inf
        norm = float(nn.utils.clip_grad_norm_(trained, limit))
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._model.log_scale.clamp_()
        self._class_scale.clamp_()
        self._average.update()
        state.step += 1
        row = {"step": state.step, "epoch": epoch + 1, "loss": float(loss), **parts}
        row |= {
            "learning_rate": recipe.learning_rate * rate,
            "gradient_norm": norm,
            "scale": math.exp(float(self._model.log_scale().detach())),
            "seconds": time.perf_counter() - started,
        }
        state.history.append(row)
        return row

    def _embed_images(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        with self._autocast():
            embeddings: torch.Tensor = self._model.encode_images(*inputs)
        return embeddings.float()

    def _embed_texts(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        with self._autocast():
            embeddings: torch.Tensor = self._model.encode_texts(*inputs)
        return embeddings.float()

    def _autocast(self) -> torch.autocast:
        types = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}
        dtype = types.get(self._recipe.precision)
        return torch.autocast(self._device.type, dtype=dtype, enabled=dtype is not None)

    def _measure(self, row: Row) -> bool:
        """Validate, keep the weights where they are the best, and say whether to stop."""
        assert self._validate is not None
        state = self._state
        scores: dict[str, float] = {}
        score = 0.0
        if is_first():
            self._model.eval()
            with self._average.in_place():
                scores = dict(self._validate())
            score = statistics.fmean(scores.values())
        score = same_everywhere(score, self._device)
        row |= scores
        logger.info("step %d: loss %.4f, validation %.2f", state.step, row["loss"], score)
        if score > state.best_score:
            state.best_score, state.best_step, state.best = score, state.step, scores
            state.waited = 0
            self._kept = self._weights()
            return False
        state.waited += 1
        return self._has_waited()

    def _has_waited(self) -> bool:
        return 0 < self._recipe.patience <= self._state.waited

    def _weights(self) -> dict[str, torch.Tensor]:
        """Return the averaged weights, and what is not averaged as it is."""
        buffers = {name: value.clone() for name, value in self._whole.named_buffers()}
        averaged = {name: value.clone() for name, value in self._average.weights.items()}
        return buffers | averaged

    def _finish(self) -> None:
        if not self._kept:
            self._kept = self._weights()
            self._state.best_step = self._state.step
        load_weights(self._whole, self._kept)
        self._model.eval()

    def _snapshot(self, settings: dict[str, Any]) -> Checkpoint:
        state = self._state
        parts: dict[str, Mapping[str, torch.Tensor]] = {
            "model": {
                name: value
                for name, value in [*self._whole.named_parameters(), *self._whole.named_buffers()]
                if name in self._average.weights or not isinstance(value, nn.Parameter)
            },
            "average": self._average.weights,
            "best": self._kept,
            "optimizer": optimizer_state(self._optimizer, self._whole),
        }
        if self._memory is not None:
            parts["memory"] = {"images": self._memory.images, "texts": self._memory.texts}
        return Checkpoint(
            {f"{part}.{name}": value for part, of in parts.items() for name, value in of.items()},
            {
                "step": state.step,
                "updates": self._average.updates,
                "best_step": state.best_step,
                "best_score": state.best_score if state.best else None,
                "best": state.best,
                "waited": state.waited,
                "history": state.history,
                "scaler": self._scaler.state_dict(),
            },
            settings,
        )

    def _restore(self, checkpoint: Checkpoint, settings: dict[str, Any]) -> None:
        checkpoint.refuse_other(settings)
        state = checkpoint.state
        load_weights(self._whole, checkpoint.part("model"))
        restore_optimizer(self._optimizer, self._whole, checkpoint.part("optimizer"))
        for name, value in checkpoint.part("average").items():
            self._average.weights[name].copy_(value)
        self._average.updates = state["updates"]
        self._kept = {n: v.to(self._device) for n, v in checkpoint.part("best").items()}
        if self._memory is not None:
            memory = checkpoint.part("memory")
            self._memory.images, self._memory.texts = memory["images"], memory["texts"]
        with suppress(RuntimeError):  # An empty state: scaling is off.
            self._scaler.load_state_dict(state["scaler"])
        best = state["best_score"]
        self._state = _State(
            step=state["step"],
            best_step=state["best_step"],
            best_score=-math.inf if best is None else best,
            best=state["best"],
            waited=state["waited"],
            history=state["history"],
        )

    def _too_little_memory(self) -> TrainingError:
        now = self._recipe.chunk or self._recipe.batch // process()[1]
        return TrainingError(
            f"There is not enough memory for {now} pairs at once. Add --chunk {max(1, now // 2)}: "
            "the batch, and what is learned, stay the same."
        )


def _gpus(device: torch.device) -> list[int]:
    return [device.index or 0] if device.type == "cuda" else []
