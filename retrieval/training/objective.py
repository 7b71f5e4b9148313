"""What a batch's embeddings are worth: the contrastive loss, and what teachers add to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from mmsearch.retrieval.losses import (
    LogScale,
    class_distillation,
    gather_rows,
    info_nce,
    same_group,
    sigmoid_loss,
    similarity_distillation,
)
from mmsearch.retrieval.training.recipe import Loss

if TYPE_CHECKING:
    from mmsearch.retrieval.training.batches import Batch
    from mmsearch.retrieval.training.recipe import Recipe
    from mmsearch.retrieval.training.teachers import SimilarityTeacher

__all__ = ["Objective", "TrainsJointSpace"]


class TrainsJointSpace(Protocol):
    """The part of a model that a training needs: two towers and a learned scale."""

    log_scale: LogScale
    log_bias: torch.Tensor | None

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Return unit rows `float32[n, dim]`."""

    def encode_texts(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return unit rows `float32[n, dim]`."""


@dataclass(frozen=True, slots=True)
class Objective:
    """Embeddings of a batch to a loss, over all processes.

    Attributes:
        recipe: weights of the parts.
        teacher: similarities to imitate, or None.
    """

    recipe: Recipe
    teacher: SimilarityTeacher | None = None

    def __call__(
        self,
        images: torch.Tensor,
        texts: torch.Tensor,
        batch: Batch,
        model: TrainsJointSpace,
        class_log_scale: torch.Tensor,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss and its parts by name.

        Args:
            images: `float32[n, dim]` of all the batch's pictures.
            texts: `float32[m, dim]` of all its texts.
            batch: says which of them belong together.
            model: has the scale (and the bias) of the cosines.
            class_log_scale: the scale of the cosines with names of classes.
        """
        said = len(batch.texts)
        all_images, all_texts = gather_rows(images[: batch.pairs]), gather_rows(texts[:said])
        pictures, captions = gather_rows(batch.pictures), gather_rows(batch.texts)
        owners = pictures if batch.owners is None else gather_rows(batch.owners)
        positives = _belonging(pictures, owners, captions)
        weights = None
        if batch.weights is not None:
            weights = gather_rows(batch.weights).unsqueeze(0).expand_as(positives)
        scale = model.log_scale()
        if self.recipe.loss is Loss.SIGMOID:
            assert model.log_bias is not None
            loss = sigmoid_loss(
                all_images, all_texts, positives, scale, model.log_bias, weights=weights
            )
        else:
            loss = info_nce(all_images, all_texts, positives, scale, weights=weights)
        parts = {"contrastive": float(loss.detach())}
        if self.teacher is not None and self.recipe.distillation:
            target = self.teacher.similarities(gather_rows(batch.rows), gather_rows(batch.captions))
            part = similarity_distillation(all_images, all_texts, target.to(loss), scale)
            parts["distillation"] = float(part.detach())
            loss = loss + self.recipe.distillation * part
        if batch.classes is not None and self.recipe.classes:
            # Each process has pictures and names of its own here: gradients are averaged anyway.
            part = class_distillation(images, texts[said:], batch.classes, class_log_scale)
            parts["classes"] = float(part.detach())
            loss = loss + self.recipe.classes * part
        return loss, parts


def _belonging(
    pictures: torch.Tensor, owners: torch.Tensor, captions: torch.Tensor
) -> torch.Tensor:
    """Return bool[n, m]: which texts are right for which pictures.

    Those of the picture itself (or of one equal to it), and texts equal to one of these.
    """
    different, places = captions.unique(return_inverse=True)
    own = same_group(pictures, owners).float()
    # By caption rather than by pairs of captions: batches have thousands of these.
    said = own.new_zeros(len(pictures), len(different)).index_add_(1, places, own)
    return said[:, places] > 0
