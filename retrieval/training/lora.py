"""Low-rank updates of a model's matrices (Hu et al. 2021, "LoRA"), by the library `peft`."""

from __future__ import annotations

from typing import Any

from torch import nn

from mmsearch.errors import MissingExtra, TrainingError

__all__ = ["insert_lora", "merge_lora"]

ADAPTER = "mmsearch"


def insert_lora(tower: nn.Module, rank: int) -> Any:  # noqa: ANN401
    """Freeze a tower and put updates of rank `rank` beside its matrices, in place.

    Returns:
        A handle for `merge_lora`.

    Raises:
        MissingExtra: peft is not installed.
        TrainingError: the tower has no matrices that could be updated so.
    """
    try:
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel
    except ImportError as error:
        raise MissingExtra("peft", "models") from error
    attention = [name for name, m in tower.named_modules() if isinstance(m, nn.MultiheadAttention)]
    targets = attention + [
        name
        for name, module in tower.named_modules()
        if isinstance(module, nn.Linear) and not any(name.startswith(f"{a}.") for a in attention)
    ]
    if not targets:
        raise TrainingError(
            "This image or text tower has no linear layers for low-rank updates (it is made of "
            "convolutions). Use --trainable all, text or heads."
        )
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)
    return LoraModel(tower, config, ADAPTER)


def merge_lora(handle: Any) -> nn.Module:  # noqa: ANN401
    """Add the updates to the matrices and return the tower as it was built."""
    tower: nn.Module = handle.merge_and_unload()
    return tower
