"""The steps of a reranker's training: a contrastive loss, a matching loss, and where it is best."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from mmsearch.errors import TrainingError
from mmsearch.retrieval.training.checkpoint import Checkpoint, optimizer_state, restore_optimizer
from mmsearch.retrieval.training.loop import Interrupted
from mmsearch.retrieval.training.optimization import (
    BETAS,
    EPSILON,
    Average,
    load_weights,
    rate_at,
)

if TYPE_CHECKING:
    from mmsearch.retrieval.rerankers.co_attention import CoAttention
    from mmsearch.retrieval.training.reranker.groups import GroupBatches, GroupedBatch
    from mmsearch.retrieval.training.reranker.recipe import RerankerRecipe

__all__ = ["RerankerLoop", "Row", "losses"]

Row = dict[str, float]
"""One line of the history: `epoch`, `loss` and what was measured."""


class RerankerLoop:
    """Trains a `CoAttention` on groups; it goes on where it was."""

    def __init__(
        self,
        model: CoAttention,
        batches: GroupBatches,
        recipe: RerankerRecipe,
        *,
        late_only: bool,
        validate: Callable[[], Mapping[str, float]] | None,
    ) -> None:
        """Join everything that takes part.

        Args:
            model: learns.
            batches: where from.
            recipe: the settings.
            late_only: train late interaction alone.
            validate: measures the model as it is; the first of its values decides what is kept.
        """
        self._model, self._batches, self._recipe = model, batches, recipe
        self._late_only, self._validate = late_only, validate
        self._rate = recipe.learning_rate * (2 if late_only else 1)
        decaying = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim <= 1]
        self._optimizer = torch.optim.AdamW(
            [
                {"params": decaying, "weight_decay": recipe.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=self._rate,
            betas=BETAS,
            eps=EPSILON,
        )
        self._average = Average(model, recipe.average)
        self._epochs = recipe.late_epochs if late_only else recipe.epochs
        self._step = 0
        self._best = -math.inf
        self._kept: dict[str, torch.Tensor] = {}
        self.history: list[Row] = []

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self._batches.steps * self._epochs

    def run(
        self,
        checkpoint: Path,
        settings: Mapping[str, Any],
        *,
        progress: Callable[[str, int, int], None],
        on_validation: Callable[[Row], None],
        should_stop: Callable[[], bool],
    ) -> None:
        """Train to the end, from `checkpoint` where it is there, and leave the best weights.

        Raises:
            Interrupted: `should_stop` said so; the state is saved.
            TrainingError: the loss is no number, or the checkpoint is of another training.
        """
        if checkpoint.exists():
            self._restore(Checkpoint.load(checkpoint), settings)
        stage = "late interaction" if self._late_only else "co-attention"
        with torch.random.fork_rng(devices=[]):
            while self._step < self.steps:
                epoch, first = divmod(self._step, self._batches.steps)
                total = 0.0
                for batch in self._batches.epoch(epoch, first):
                    total += self._learn(batch)
                    progress(stage, self._step, self.steps)
                    if should_stop() and self._step < self.steps:
                        self._save(checkpoint, settings)
                        raise Interrupted(self._step, self.steps)
                row = {"epoch": epoch + 1.0, "loss": total / max(1, self._batches.steps - first)}
                on_validation(self._measured(row))
                self._save(checkpoint, settings)
        load_weights(self._model, self._kept)
        self._model.eval()

    def _learn(self, batch: GroupedBatch) -> float:
        recipe = self._recipe
        torch.manual_seed((recipe.seed * 1_000_003 + self._step) % 2**63)
        self._model.train()
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * rate_at(self._step, self.steps, recipe.warmup)
        self._optimizer.zero_grad(set_to_none=True)
        loss = losses(
            self._model,
            batch,
            late_only=self._late_only,
            matching=recipe.matching,
            word_dropout=recipe.word_dropout,
        )
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"The loss of step {self._step + 1} is no finite number. Train with a lower "
                "--learning-rate."
            )
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._model.parameters(), recipe.clip_norm)
        self._optimizer.step()
        self._average.update()
        self._step += 1
        return value

    def _measured(self, row: Row) -> Row:
        self._model.eval()
        with self._average.in_place(), torch.inference_mode():
            found = dict(self._validate()) if self._validate else {}
        score = next(iter(found.values()), float(self._step))
        if score > self._best:
            self._best = score
            self._kept = {name: value.clone() for name, value in self._average.weights.items()}
        row |= found
        self.history.append(row)
        return row

    def _save(self, path: Path, settings: Mapping[str, Any]) -> None:
        parts: dict[str, Mapping[str, torch.Tensor]] = {
            "model": dict(self._model.named_parameters()),
            "average": self._average.weights,
            "best": self._kept,
            "optimizer": optimizer_state(self._optimizer, self._model),
        }
        Checkpoint(
            {f"{part}.{name}": value for part, of in parts.items() for name, value in of.items()},
            {
                "step": self._step,
                "updates": self._average.updates,
                "best": self._best if self._kept else None,
                "history": self.history,
            },
            dict(settings),
        ).save(path)

    def _restore(self, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> None:
        checkpoint.refuse_other(settings)
        load_weights(self._model, checkpoint.part("model"))
        self._average.weights = checkpoint.part("average")
        self._average.updates = int(checkpoint.state["updates"])
        self._kept = checkpoint.part("best")
        self._best = -math.inf if checkpoint.state["best"] is None else checkpoint.state["best"]
        restore_optimizer(self._optimizer, self._model, checkpoint.part("optimizer"))
        self._step = int(checkpoint.state["step"])
        self.history = list(checkpoint.state["history"])


def losses(
    model: CoAttention,
    batch: GroupedBatch,
    *,
    late_only: bool,
    matching: float,
    word_dropout: float,
) -> torch.Tensor:
    """Return the sum of the losses of a batch.

    Late interaction tells each caption's picture from all others of the batch, and the reverse
    (InfoNCE); co-attention, which is dearer, from the others of its group. Beside that, every pair
    of a group is told to match or not (the matching loss of ViLBERT and ALBEF, Li et al. 2021,
    arXiv:2107.07651), the one that does weighing as much as all those that do not.
    """
    mask = batch.mask
    if word_dropout:
        left_out = torch.rand(mask.shape) < word_dropout
        left_out[:, 0] = False
        mask = mask & ~left_out
    words, code = model.matcher.words(batch.states), model.code(batch.cells)
    loss = _contrast(model.matcher.late(words, mask, code))
    if late_only:
        return loss
    size, groups = batch.size, len(mask) // batch.size

    def crossed(rows: torch.Tensor, *, texts: bool) -> torch.Tensor:
        """Repeat rows so that each text of a group meets each picture of it."""
        grouped = rows.view(groups, size, *rows.shape[1:]).unsqueeze(2 if texts else 1)
        return grouped.expand(groups, size, size, *rows.shape[1:]).flatten(0, 2)

    logits = model.matcher.match(
        crossed(words, texts=True), crossed(mask, texts=True), crossed(code, texts=False)
    ).view(groups, size, size)
    right = torch.eye(size).expand(groups, -1, -1)
    pair_by_pair = functional.binary_cross_entropy_with_logits(
        logits, right, pos_weight=torch.tensor(float(size - 1))
    )
    by_group = torch.stack([_contrast(group) for group in logits]).mean()
    return loss + by_group + matching * pair_by_pair


def _contrast(logits: torch.Tensor) -> torch.Tensor:
    """Return symmetric InfoNCE of a square of logits whose diagonal is right."""
    right = torch.arange(len(logits))
    by_row, by_column = (functional.cross_entropy(some, right) for some in (logits, logits.T))
    both: torch.Tensor = (by_row + by_column) / 2
    return both
