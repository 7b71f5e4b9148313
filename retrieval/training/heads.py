"""The two heads that meet in one space, and the loop that trains them on frozen features."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from mmsearch.retrieval.encoders.heads import ResidualHead
from mmsearch.retrieval.losses import LogScale, class_distillation, info_nce, same_group

__all__ = ["Heads", "Recipe", "ResidualHead", "TrainingSet", "recall_at", "train_heads"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything a training run depends on besides its data."""

    dim: int = 256
    hidden_image: int = 640
    hidden_text: int = 512
    epochs: int = 8
    batch: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    warmup: float = 0.1
    dropout: float = 0.4
    distillation: float = 0.5
    average: float = 0.99
    seed: int = 0


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Frozen features, and which of them belong together.

    Attributes:
        image_views: float16[photos, features] each: the photos, and their mirror images.
        teacher_views: float16[photos, classes] each: the classifier's logits for those views.
        texts: float32[texts, width], distinct texts.
        pairs: int64[pairs, 2], a row of the photos and a row of the texts.
        weights: float32[pairs], how much each pair counts.
        classes: float32[classes, width], the names of the teacher's classes.
    """

    image_views: list[torch.Tensor]
    teacher_views: list[torch.Tensor]
    texts: torch.Tensor
    pairs: torch.Tensor
    weights: torch.Tensor
    classes: torch.Tensor


class Heads(nn.Module):
    """An image head, a text head and the scale of their cosines."""

    def __init__(self, images: torch.Tensor, texts: torch.Tensor, recipe: Recipe) -> None:
        """Size and standardise the heads by example features float[n, width] of each side."""
        super().__init__()
        self.image = ResidualHead(images, recipe.dim, recipe.hidden_image, recipe.dropout)
        self.text = ResidualHead(texts, recipe.dim, recipe.hidden_text, recipe.dropout)
        self.log_scale = LogScale()
        self.class_log_scale = LogScale()


def train_heads(
    data: TrainingSet,
    recipe: Recipe,
    score: Callable[[Heads], float] | None = None,
) -> Heads:
    """Return heads trained with InfoNCE on the pairs and class distillation on all photos.

    The heads returned are a running average of the weights (exponential, `recipe.average` a
    step), from the epoch that scored highest, or from the last one where there is no `score`.
    """
    random = torch.Generator().manual_seed(recipe.seed)
    torch.manual_seed(recipe.seed)
    heads = Heads(data.image_views[0], data.texts, recipe)
    average = copy.deepcopy(heads).eval().requires_grad_(False)
    best, best_score = average, -math.inf
    optimizer = _optimizer(heads, recipe)
    steps = recipe.epochs * max(1, len(data.pairs) // recipe.batch)
    step = 0
    for epoch in range(recipe.epochs):
        heads.train()
        total = torch.zeros(())
        for rows in _batches(len(data.pairs), recipe.batch, random):
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * _schedule(step / steps, recipe.warmup)
            loss = _loss(heads, data, rows, recipe, random)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            heads.log_scale.clamp_()
            heads.class_log_scale.clamp_()
            step += 1
            _follow(average, heads, min(recipe.average, step / (step + 10)))
            total += loss.detach()
        found = score(average) if score else float(epoch)
        logger.info(
            "epoch %d: loss %.3f, scale %.1f, score %.4f",
            epoch + 1,
            total.item() / max(1, len(data.pairs) // recipe.batch),
            heads.log_scale().exp().item(),
            found,
        )
        if found > best_score:
            best, best_score = copy.deepcopy(average), found
    return best


def recall_at(
    queries: torch.Tensor, gallery: torch.Tensor, relevant: torch.Tensor, ranks: tuple[int, ...]
) -> list[float]:
    """Return, for each k in `ranks`, the share of queries with a relevant item in the best k.

    Args:
        queries: float32[n, dim], unit rows.
        gallery: float32[m, dim], unit rows.
        relevant: bool[n, m].
        ranks: the values of k.
    """
    order = (queries @ gallery.T).argsort(dim=1, descending=True, stable=True)[:, : max(ranks)]
    hits = relevant.gather(1, order).cumsum(dim=1) > 0
    return [hits[:, k - 1].float().mean().item() for k in ranks]


def _loss(
    heads: Heads,
    data: TrainingSet,
    rows: torch.Tensor,
    recipe: Recipe,
    random: torch.Generator,
) -> torch.Tensor:
    photos, texts = data.pairs[rows].T
    view = int(torch.randint(len(data.image_views), (), generator=random))
    images = heads.image(data.image_views[view][photos].float())
    captions = heads.text(data.texts[texts])
    positives = same_group(photos, photos) | same_group(texts, texts)
    weights = torch.maximum(data.weights[rows].unsqueeze(1), data.weights[rows].unsqueeze(0))
    loss = info_nce(images, captions, positives, heads.log_scale(), weights=weights)
    if recipe.distillation:
        any_photos = torch.randint(len(data.image_views[0]), (len(rows),), generator=random)
        view = int(torch.randint(len(data.image_views), (), generator=random))
        teacher = data.teacher_views[view][any_photos].float().softmax(dim=1)
        names = heads.text(data.classes)
        seen = heads.image(data.image_views[view][any_photos].float())
        loss = loss + recipe.distillation * class_distillation(
            seen, names, teacher, heads.class_log_scale()
        )
    return loss


def _optimizer(heads: Heads, recipe: Recipe) -> torch.optim.Optimizer:
    matrices = [p for p in heads.parameters() if p.ndim > 1]
    others = [p for p in heads.parameters() if p.ndim <= 1]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": recipe.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
    )


def _schedule(done: float, warmup: float) -> float:
    if done < warmup:
        return done / warmup + 1e-3
    return 0.5 * (1.0 + math.cos(math.pi * (done - warmup) / (1.0 - warmup)))


def _follow(average: nn.Module, current: nn.Module, keep: float) -> None:
    with torch.no_grad():
        for old, new in zip(average.parameters(), current.parameters(), strict=True):
            old.lerp_(new, 1.0 - keep)


def _batches(count: int, size: int, random: torch.Generator) -> Iterator[torch.Tensor]:
    order = torch.randperm(count, generator=random)
    for start in range(0, max(1, count - size + 1), size):
        yield order[start : start + size]
