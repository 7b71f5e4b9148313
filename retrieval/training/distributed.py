"""Several processes that train one model, as `torchrun` starts them."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import distributed

from mmsearch.errors import TrainingError

__all__ = [
    "average_gradients",
    "choose_device",
    "is_first",
    "mean_everywhere",
    "process",
    "processes_joined",
    "same_everywhere",
    "share_weights",
]

STARTED = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
"""What `torchrun` sets; schedulers of clusters set some of it for single processes too."""

LETTING_GO = 0.3
"""Seconds for the threads of a group to let go of what it worked on."""


@contextmanager
def processes_joined(device: torch.device) -> Iterator[None]:
    """Join the processes that `torchrun` started; alone, do nothing.

    Raises:
        TrainingError: another of the processes ended.
    """
    if not os.environ.keys() >= STARTED or distributed.is_initialized():
        yield
        return
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    except RuntimeError as error:
        # Gloo has no exception of its own.
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        traceback.clear_frames(error.__traceback__)
        raise TrainingError(
            "Another process of this training ended, or cannot be reached; it says why. Start all "
            "of them again, with --resume where steps were saved."
        ) from error
    finally:
        # Gloo's thread may still hold the last operation's tensors, and needs the interpreter to
        # let them go. Were that to end first, the whole process would be aborted.
        time.sleep(LETTING_GO)
        distributed.destroy_process_group()


def process() -> tuple[int, int]:
    """Return this process's rank and how many there are."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def is_first() -> bool:
    """Return whether this process is the one that writes and talks."""
    return process()[0] == 0


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes; all have the same parameters."""
    count = process()[1]
    if count == 1:
        return
    # A parameter without a gradient here may have one elsewhere.
    trained = [p for p in parameters if p.requires_grad]
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [p.grad for p in trained if p.grad is not None]
    # One message for all of them: hundreds of small ones cost more than their bytes.
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= count
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()


def mean_everywhere(value: float, device: torch.device) -> float:
    """Return the mean of all processes' values in all processes; no number if one has none."""
    count = process()[1]
    if count == 1:
        return value
    shared = torch.tensor(value, dtype=torch.float64, device=device)
    distributed.all_reduce(shared)
    return float(shared) / count


def same_everywhere(value: float, device: torch.device) -> float:
    """Return the first process's value in all processes."""
    if process()[1] == 1:
        return value
    shared = torch.tensor(value, dtype=torch.float64, device=device)
    distributed.broadcast(shared, src=0)
    return float(shared)


def share_weights(model: torch.nn.Module) -> None:
    """Give all processes the first one's weights."""
    if process()[1] > 1:
        for tensor in model.state_dict().values():
            distributed.broadcast(tensor, src=0)


def choose_device(name: str | None) -> torch.device:
    """Return the device called `name`; a GPU of this process's own where there is one.

    Raises:
        TrainingError: there is no such device.
    """
    known = f"There is no device '{name}'. Give cpu, cuda, cuda:1 …, or leave --device away."
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise TrainingError(known) from error
    if device.type not in {"cpu", "cuda"}:
        raise TrainingError(known)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise TrainingError(
                f"There is no GPU that torch can use here; --device {name} asks for one. Leave it "
                "away, or give --device cpu."
            )
        if name in {None, "cuda"}:
            # Each of torchrun's processes has its own.
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        count = torch.cuda.device_count()
        if device.index >= count:
            raise TrainingError(
                f"There is no {device}: torch sees {count} of them, counted from 0. Start no more "
                "processes than there are GPUs."
            )
        torch.cuda.set_device(device)
    return device
