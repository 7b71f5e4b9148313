"""Contrastive gradients of a batch that does not fit into memory.

Embed everything in chunks without a graph, take the loss's gradient with respect to the
embeddings, then embed each chunk again with a graph and push its part of that gradient through
(Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup"). Loss
and gradients are those of the whole batch: dropout draws the same in both passes. Only batch
normalisation in training mode differs, because it looks at what is in a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

__all__ = ["backward_in_chunks"]

Encode = Callable[[Sequence[torch.Tensor]], torch.Tensor]


def backward_in_chunks(
    sides: Sequence[tuple[Encode, Sequence[torch.Tensor]]],
    loss_of: Callable[[Sequence[torch.Tensor]], torch.Tensor],
    *,
    chunk: int,
    scale: Callable[[torch.Tensor], torch.Tensor] = lambda loss: loss,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Add the gradients of a loss of embeddings to the parameters behind them.

    Args:
        sides: what to embed, each as an encoder and its inputs with equal first dimensions.
        loss_of: maps the sides' embeddings to a scalar.
        chunk: inputs of a side that are embedded at once; 0 means all, with a single pass.
        scale: multiplies the loss before its gradient is taken (loss scaling in fp16).

    Returns:
        The loss, unscaled, and the sides' embeddings, without graphs.
    """
    if chunk <= 0 or all(len(inputs[0]) <= chunk for _, inputs in sides):
        embeddings = [encode(inputs) for encode, inputs in sides]
        loss = loss_of(embeddings)
        scale(loss).backward()
        return loss.detach(), [rows.detach() for rows in embeddings]
    kept, states = [], []
    with torch.no_grad():
        for encode, inputs in sides:
            parts = []
            for part in _chunks(inputs, chunk):
                states.append(_random_state(part[0].device))
                parts.append(encode(part))
            kept.append(torch.cat(parts).requires_grad_())
    # What is drawn in the second pass was drawn before: afterwards chance goes on from here.
    after = _random_state(kept[0].device)
    loss = loss_of(kept)
    scale(loss).backward()
    waiting = iter(states)
    for (encode, inputs), rows in zip(sides, kept, strict=True):
        assert rows.grad is not None
        for part, gradient in zip(_chunks(inputs, chunk), rows.grad.split(chunk), strict=True):
            _restore(next(waiting))
            again = encode(part)
            if again.requires_grad:
                again.backward(gradient)
    _restore(after)
    return loss.detach(), [rows.detach() for rows in kept]


def _chunks(inputs: Sequence[torch.Tensor], chunk: int) -> list[tuple[torch.Tensor, ...]]:
    return list(zip(*(tensor.split(chunk) for tensor in inputs), strict=True))


def _random_state(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    on_gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), on_gpu


def _restore(state: tuple[torch.Tensor, torch.Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])
