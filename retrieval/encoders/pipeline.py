"""Bringing batches to a device while it computes on the one before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Transfer", "overlapped"]

Batch = TypeVar("Batch")
Sent = TypeVar("Sent")
Answer = TypeVar("Answer")
Received = TypeVar("Received")


def overlapped(
    batches: Iterable[Batch],
    send: Callable[[Batch], Sent],
    compute: Callable[[Sent], Answer],
    receive: Callable[[Answer], Received],
) -> Iterator[Received]:
    """Yield `receive(compute(send(batch)))` for every batch, in order.

    The next batch is sent after a computation was started and before its answer is waited for. It
    gains time where `send` and `compute` only start what a device does; at most two batches are
    there at once.
    """
    waiting: list[Sent] = []
    rest = iter(batches)
    for batch in rest:
        waiting.append(send(batch))
        break
    while waiting:
        answer = compute(waiting.pop())
        for batch in rest:
            waiting.append(send(batch))
            break
        yield receive(answer)


class Transfer:
    """Copies to and from a device; to a GPU from pinned memory, on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def send(self, batch: NDArray[Any]) -> tuple[torch.Tensor, Any]:
        """Start to copy an array; return the tensor, and the event that says it is there."""
        values = torch.from_numpy(batch)
        if self._copies is None:
            return values.to(self._device), None
        with torch.cuda.stream(self._copies):
            # Pinned memory is kept by torch until the copies of this stream have used it.
            there = values.pin_memory().to(self._device, non_blocking=True)
            return there, self._copies.record_event()

    def arrived(self, sent: tuple[torch.Tensor, Any]) -> torch.Tensor:
        """Return a tensor that what is computed next may use; does not hold up this thread."""
        there, event = sent
        if event is not None:
            computing = torch.cuda.current_stream(self._device)
            computing.wait_event(event)
            # Its memory belongs to the stream of the copies, which must not reuse it too early.
            there.record_stream(computing)
        return there

    def receive(self, answer: torch.Tensor) -> NDArray[Any]:
        """Wait for a tensor, and return it as an array."""
        found: NDArray[Any] = answer.float().cpu().numpy()
        return found
