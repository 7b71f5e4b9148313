"""Losses that bring photos and texts into one space.

Embeddings are unit rows, so a product of two of them is a cosine in [-1, 1].
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import distributed, nn
from torch.nn import functional

__all__ = [
    "MAX_LOG_SCALE",
    "LogScale",
    "class_distillation",
    "gather_rows",
    "info_nce",
    "same_group",
    "sigmoid_loss",
    "similarity_distillation",
]

MAX_LOG_SCALE = math.log(100.0)
"""Highest logarithm of the scale (1 / temperature) of the cosines; above it CLIP was unstable."""


class LogScale(nn.Module):
    """The learned logarithm of the scale of the cosines, never above `MAX_LOG_SCALE`."""

    def __init__(self, initial_temperature: float = 0.07) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(-math.log(initial_temperature)))

    def forward(self) -> torch.Tensor:
        """Return the clamped logarithm, a scalar."""
        return self.value.clamp(max=MAX_LOG_SCALE)

    @torch.no_grad()
    def clamp_(self) -> None:
        """Bring the parameter itself back; above the limit it would get no gradient any more."""
        self.value.clamp_(max=MAX_LOG_SCALE)


def same_group(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return bool[n, m]: where int64[n] and int64[m] name the same group.

    >>> same_group(torch.tensor([7, 8]), torch.tensor([8, 7, 7])).tolist()
    [[False, True, True], [True, False, False]]
    """
    return rows.unsqueeze(1) == columns.unsqueeze(0)


def info_nce(
    images: torch.Tensor,
    texts: torch.Tensor,
    positives: torch.Tensor | None,
    log_scale: torch.Tensor,
    *,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""Return the symmetric InfoNCE loss of a batch, a scalar.

    With `s = exp(min(log_scale, MAX_LOG_SCALE))` and `z_ij = s * <image_i, text_j>`, one positive
    per row (van den Oord et al. 2018, "Representation Learning with Contrastive Predictive
    Coding", eq. 4; symmetric with a learned scale: Radford et al. 2021, "Learning Transferable
    Visual Models From Natural Language Supervision", fig. 3)::

        L = 1/2 * mean_i(logsumexp_j z_ij - z_ii) + 1/2 * mean_j(logsumexp_i z_ij - z_jj)

    Several positives of one row are each contrasted with the row's negatives alone, and their
    losses are averaged (`P_i` the positives of row i, `N_i` all else)::

        L_i = 1/|P_i| * sum_{p in P_i} (log(exp z_ip + sum_{j in N_i} exp z_ij) - z_ip)

    so captions of one photo, or equal texts of two, are never negatives of each other.

    Args:
        images: float32[n, dim], unit rows.
        texts: float32[m, dim], unit rows.
        positives: bool[n, m]; `None` (only where n = m) means that row i belongs to column i alone.
            A row or column without a positive is a negative for the others and has no loss itself.
        log_scale: scalar, the logarithm of the inverse temperature.
        weights: float32[n, m], how much each positive counts; `None` counts all alike. Rows are
            averaged over the weights of their positives, and the batch over its rows' weights.
    """
    positives = _checked(positives, images, texts)
    scale = log_scale.clamp(max=MAX_LOG_SCALE).exp()
    logits = scale * images @ texts.T
    counts = positives.to(logits.dtype) if weights is None else weights * positives
    return 0.5 * (
        _rows_loss(logits, positives, counts) + _rows_loss(logits.T, positives.T, counts.T)
    )


def class_distillation(
    images: torch.Tensor,
    classes: torch.Tensor,
    teacher: torch.Tensor,
    log_scale: torch.Tensor,
) -> torch.Tensor:
    """Return the soft cross-entropy of photos against class names, a scalar.

    The student's probability of a class is the softmax of the scaled cosines between a photo and
    the names of all classes; the target is what an image classifier says (Hinton et al. 2015,
    "Distilling the Knowledge in a Neural Network", without the second temperature)::

        L = -mean_i sum_c teacher_ic * log softmax_c(s * <image_i, class_c>)

    Args:
        images: float32[n, dim], unit rows.
        classes: float32[classes, dim], unit rows: embedded class names.
        teacher: float32[n, classes], rows that sum to one.
        log_scale: scalar, the logarithm of the inverse temperature.
    """
    scale = log_scale.clamp(max=MAX_LOG_SCALE).exp()
    return -(teacher * functional.log_softmax(scale * images @ classes.T, dim=1)).sum(dim=1).mean()


def sigmoid_loss(
    images: torch.Tensor,
    texts: torch.Tensor,
    positives: torch.Tensor | None,
    log_scale: torch.Tensor,
    log_bias: torch.Tensor,
    *,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""Return the sigmoid loss of a batch, a scalar: every pair is a question of yes or no.

    With `z_ij = s * <image_i, text_j> + b` and `y_ij` = 1 for a positive, -1 otherwise (Zhai et
    al. 2023, "Sigmoid Loss for Language Image Pre-Training", eq. 1)::

        L = -1/n * sum_ij log sigmoid(y_ij * z_ij)

    Args:
        images: float32[n, dim], unit rows.
        texts: float32[m, dim], unit rows.
        positives: as for `info_nce`.
        log_scale: scalar, the logarithm of s.
        log_bias: scalar, b itself (the paper starts it at -10; the name is open_clip's).
        weights: float32[n, m], how much each positive counts; `None` counts all alike.
    """
    positives = _checked(positives, images, texts)
    logits = log_scale.clamp(max=MAX_LOG_SCALE).exp() * images @ texts.T + log_bias
    each = functional.softplus(torch.where(positives, -logits, logits))
    if weights is not None:
        each = torch.where(positives, weights * each, each)
    return each.sum() / len(images)


def similarity_distillation(
    images: torch.Tensor,
    texts: torch.Tensor,
    teacher: torch.Tensor,
    log_scale: torch.Tensor,
) -> torch.Tensor:
    """Return how far a batch's similarities are from a teacher's, a scalar, 0 where they agree.

    The divergence of the student's softmax over the batch from the teacher's, rows and columns
    alike (Wu et al. 2023, "TinyCLIP", affinity mimicking, eq. 4)::

        L = 1/2 * mean_i KL(softmax_j teacher_ij || softmax_j s * <image_i, text_j>)
          + 1/2 * the same over columns

    Args:
        images: float32[n, dim], unit rows.
        texts: float32[m, dim], unit rows.
        teacher: float32[n, m], the teacher's cosines times its own scale.
        log_scale: scalar, the logarithm of the student's inverse temperature.
    """
    logits = log_scale.clamp(max=MAX_LOG_SCALE).exp() * images @ texts.T

    def divergence(student: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return functional.kl_div(
            student.log_softmax(dim=1),
            target.log_softmax(dim=1),
            reduction="batchmean",
            log_target=True,
        )

    return 0.5 * (divergence(logits, teacher) + divergence(logits.T, teacher.T))


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """Return the rows of all processes, in the order of their ranks; equal counts are expected.

    Gradients flow back to the process that a row came from, summed over the processes that used
    it. When each process computes the loss of the whole batch and gradients of parameters are
    averaged over processes, they are those of one process with that batch. One process, or none
    set up, gets its rows back.
    """
    if not distributed.is_available() or not distributed.is_initialized():
        return rows
    if distributed.get_world_size() == 1:
        return rows
    if not rows.is_floating_point():
        parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)
    gathered: torch.Tensor = _GatherRows.apply(rows)
    return gathered


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        ctx.count = len(rows)
        parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        total = gradient.contiguous().clone()
        distributed.all_reduce(total)
        first = distributed.get_rank() * ctx.count
        return total[first : first + ctx.count]


def _checked(
    positives: torch.Tensor | None, images: torch.Tensor, texts: torch.Tensor
) -> torch.Tensor:
    if positives is None:
        positives = torch.eye(len(images), dtype=torch.bool, device=images.device)
    if positives.shape != (len(images), len(texts)):
        raise ValueError(
            f"positives has the shape {tuple(positives.shape)}; "
            f"expected ({len(images)}, {len(texts)})"
        )
    return positives


def _rows_loss(logits: torch.Tensor, positives: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    # The lowest finite number, not -inf: the gradient of logsumexp over a row of -inf is NaN.
    lowest = torch.finfo(logits.dtype).min
    negatives = logits.masked_fill(positives, lowest).logsumexp(dim=1, keepdim=True)
    # log(exp(z) + exp(negatives)) - z = softplus(negatives - z), which cannot overflow.
    each = torch.where(counts > 0, functional.softplus(negatives - logits), 0.0) * counts
    has = counts.sum(dim=1)
    rows = each.sum(dim=1) / has.clamp(min=torch.finfo(logits.dtype).tiny)
    # A row counts as much as the mean of its positives does.
    row_weight = has / positives.sum(dim=1).clamp(min=1)
    return (rows * row_weight).sum() / row_weight.sum().clamp(min=torch.finfo(logits.dtype).tiny)
