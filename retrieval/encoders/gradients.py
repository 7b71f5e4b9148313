"""Where a picture matches, by the gradient of the score: for models of torch.

Grad-CAM (Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via
Gradient-based Localization", arXiv:1610.02391) in the form that multiplies gradient and activation
cell by cell (Draelos and Carin 2020, "Use HiResCAM instead of Grad-CAM for faithful explanations of
convolutional neural networks", arXiv:2011.08891). For a network that ends in a mean over its cells
both are the same; a transformer has no such mean, and its gradients differ from cell to cell.

What is multiplied is how far a cell is from the picture's mean cell,

    map[i, j] = sum over c of  d score / d A[c, i, j]  *  (A[c, i, j] - mean of A[c]),

to first order what the score would lose if the cell looked like the rest of the picture. Where A
is taken follows from the gradient itself: the last block of the image tower whose every cell still
counts. In a convolutional network that is the last one; in a transformer that answers with its
class token the last but one, since only that token of the last block is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from mmsearch.errors import ModelError
from mmsearch.retrieval.encoders.sources import TILES, load_dual_encoder, split_quantize
from mmsearch.retrieval.encoders.torch_encoder import TorchEncoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.encoders.base import Encoder
    from mmsearch.retrieval.encoders.dual_encoder import DualEncoder

__all__ = ["gradient_map", "model_of"]


def model_of(encoder: Encoder) -> DualEncoder:
    """Return the model of torch behind an encoder: its own, or that of the source it came from.

    Raises:
        ModelError: there is none.
        MissingExtra: torch, or the model's library, is not installed.
    """
    if isinstance(encoder, TorchEncoder):
        return encoder.model
    return load_dual_encoder(split_quantize(encoder.location.removeprefix(TILES))[1])


def gradient_map(
    model: DualEncoder, pixels: NDArray[np.uint8], direction: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return `float64[h, w]`, what each cell of a picture adds to its score, to first order.

    Args:
        model: in evaluation mode; its weights and their gradients stay as they are.
        pixels: `uint8[size, size, 3]`, what the model's own transform gave.
        direction: `float32[dim]`; the score is its product with the picture's unit vector.

    Raises:
        ModelError: no block of the image tower has cells that all count.
    """
    seen: list[torch.Tensor] = []
    # Blocks stand in lists, whoever wrote the model; what they are made of mostly does not.
    blocks = [
        child
        for parent in model.image_tower.modules()
        if isinstance(parent, nn.ModuleList | nn.Sequential)
        for child in parent
    ]
    hooks = [block.register_forward_hook(_keep(seen)) for block in blocks]
    # The gradient has a way back from here on, though no weight may want one.
    hooks.append(
        model.image_tower.register_forward_pre_hook(
            lambda _, given: (given[0].detach().requires_grad_(), *given[1:])
        )
    )
    device = model.image_mean.device
    try:
        with torch.enable_grad():
            there = torch.from_numpy(pixels.copy()).unsqueeze(0).to(device)
            vector = model.encode_images(there)[0]
            score = vector @ torch.from_numpy(direction).to(vector)
            gradients: Sequence[torch.Tensor | None] = ()
            if seen:
                gradients = torch.autograd.grad(score, seen, allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    for activation, gradient in zip(reversed(seen), reversed(gradients), strict=True):
        if gradient is None:
            continue
        cells, slopes = _cells(activation), _cells(gradient)
        if cells is None or slopes is None or not bool(slopes.abs().sum(dim=-1).gt(0).all()):
            continue
        found = (slopes * (cells - cells.mean(dim=(0, 1)))).sum(dim=-1)
        return np.asarray(found.detach().double().cpu().numpy(), dtype=np.float64)
    raise ModelError(
        f"{model.name} has no block whose cells could be told apart by their gradient. "
        "Take the map of windows instead: --method windows"
    )


def _keep(seen: list[torch.Tensor]) -> Callable[..., None]:
    def hook(_: nn.Module, given: Any, found: Any) -> None:  # noqa: ANN401
        del given
        # Blocks of transformers return what they computed and, some, what they attended to.
        first = found[0] if isinstance(found, tuple | list) and found else found
        if isinstance(first, torch.Tensor) and first.requires_grad:
            seen.append(first)

    return hook


def _cells(values: torch.Tensor) -> torch.Tensor | None:
    """Return float[h, w, channels] of one picture; None where there are not several cells."""
    if values.ndim == 4 and len(values) == 1:
        # Channels first, or last where only that makes the picture a square.
        first = values[0].permute(1, 2, 0)
        found = values[0] if first.shape[0] != first.shape[1] else first
        return found if found.shape[0] == found.shape[1] > 1 else None
    if values.ndim != 3 or 1 not in values.shape[:2]:
        return None
    tokens = values.flatten(0, 1)
    side = int(len(tokens) ** 0.5)
    # Tokens of the whole picture (class, registers) come first.
    return tokens[len(tokens) - side * side :].unflatten(0, (side, side)) if side > 1 else None
