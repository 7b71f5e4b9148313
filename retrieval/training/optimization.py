"""Steps of the weights: AdamW by groups, warm-up and cosine, the running average."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from mmsearch.retrieval.training.recipe import Recipe

__all__ = ["Average", "load_weights", "make_optimizer", "rate_at", "set_rate"]

BETAS = (0.9, 0.98)
EPSILON = 1e-6
"""Both CLIP's (Radford et al. 2021, table 18)."""


def make_optimizer(
    model: nn.Module, heads: Iterable[nn.Parameter], recipe: Recipe
) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov, Hutter 2019) over what may be trained, in four groups.

    Heads learn at the recipe's rate, everything else at `tower_rate` of it; matrices decay,
    biases, norms and scales do not.
    """
    head_ids = {id(p) for p in heads}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            key = id(parameter) in head_ids, parameter.ndim > 1
            groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": recipe.weight_decay if decays else 0.0,
                "factor": 1.0 if is_head else recipe.tower_rate,
            }
            for (is_head, decays), parameters in groups.items()
        ],
        lr=recipe.learning_rate,
        betas=BETAS,
        eps=EPSILON,
    )


def rate_at(step: int, steps: int, warmup: float) -> float:
    """Return the share of the learning rate at a step: linear up, then a cosine down to zero.

    >>> [round(rate_at(step, 10, 0.2), 2) for step in range(0, 10, 3)]
    [0.5, 0.96, 0.5, 0.04]
    """
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    done = (step - rising + 1) / max(1, steps - rising)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group its own fraction of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


class Average:
    """The running average of the trained weights (Polyak, Juditsky 1992).

    Early on it forgets faster, so that it does not drag the random start along.
    """

    def __init__(self, model: nn.Module, keep: float) -> None:
        """Start at the weights as they are; with `keep` 0 the average is the weights."""
        self.keep = keep
        self.updates = 0
        self._model = model
        self.weights = {
            name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad
        }

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the model's present weights."""
        self.updates += 1
        keep = min(self.keep, (1 + self.updates) / (10 + self.updates)) if self.keep else 0.0
        for name, parameter in self._model.named_parameters():
            if name in self.weights:
                self.weights[name].lerp_(parameter, 1 - keep)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model have the averaged weights for a while."""
        current = {
            name: p.detach().clone()
            for name, p in self._model.named_parameters()
            if name in self.weights
        }
        load_weights(self._model, self.weights)
        try:
            yield
        finally:
            load_weights(self._model, current)


@torch.no_grad()
def load_weights(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Copy weights into the parameters and buffers of these names."""
    places = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, value in weights.items():
        places[name].copy_(value)
