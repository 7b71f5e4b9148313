"""Micro-batching: questions that arrive while others are answered are answered together."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Batcher", "Busy", "Closed"]

_Asked = TypeVar("_Asked")
_Told = TypeVar("_Told")

SMOOTHING = 0.1
"""How much the last batch counts in the running mean of what a question takes."""


class Busy(Exception):
    """More questions wait than may; come back after `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"too many questions are waiting; come back in {seconds:.0f} s")
        self.seconds = seconds


class Closed(Exception):
    """No more questions are taken: the server is going down."""


class Batcher(Generic[_Asked, _Told]):
    """Threads that answer questions in batches of whatever has arrived.

    Nothing waits for a batch to fill: a question that comes alone is answered alone, at once. While
    threads are at work others gather, and go together. Two threads are enough: one batch goes
    through an encoder, which leaves the interpreter alone, while the other's answers are made.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[_Asked]], Sequence[_Told | Exception]],
        *,
        largest: int = 16,
        waiting: int = 256,
        threads: int = 2,
        batched: Callable[[int], None] | None = None,
    ) -> None:
        """Start the threads.

        Args:
            answer: returns as many answers as it is given questions; an exception is the answer to
                one of them. One it raises is the answer to all.
            largest: questions in a batch at most.
            waiting: questions that may wait at most.
            threads: how many batches are worked on at a time.
            batched: called with the size of each batch, from its thread.
        """
        self._answer = answer
        self._largest = largest
        self._most = waiting
        self._batched = batched or (lambda _: None)
        self._waiting: deque[tuple[_Asked, Future[_Told]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._seconds = 0.01
        self._threads = [
            threading.Thread(target=self._work, name=f"mmsearch-batch-{i}", daemon=True)
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        """Return how many questions wait."""
        return len(self._waiting)

    @property
    def closing(self) -> bool:
        """Whether no more questions are taken."""
        return self._closed

    async def ask(self, question: _Asked) -> _Told:
        """Return the answer, or raise what stands in its place.

        Raises:
            Busy: too many wait.
            Closed: the server is going down.
        """
        return await asyncio.wrap_future(self.submit(question))

    def submit(self, question: _Asked) -> Future[_Told]:
        """Put a question into the queue; one that is cancelled while it waits is never asked.

        Raises:
            Busy: too many wait.
            Closed: the server is going down.
        """
        future: Future[_Told] = Future()
        with self._changed:
            if self._closed:
                raise Closed
            if len(self._waiting) >= self._most:
                raise Busy(max(1.0, len(self._waiting) * self._seconds))
            self._waiting.append((question, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Answer what waits, take nothing more, and wait until that is done."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return
                count = min(self._largest, len(self._waiting))
                taken = [self._waiting.popleft() for _ in range(count)]
            # Whoever asked may be gone.
            batch = [
                (question, future)
                for question, future in taken
                if future.set_running_or_notify_cancel()
            ]
            if batch:
                self._answer_all(batch)

    def _answer_all(self, batch: list[tuple[_Asked, Future[_Told]]]) -> None:
        self._batched(len(batch))
        started = time.perf_counter()
        try:
            answers = self._answer([question for question, _ in batch])
        except Exception as error:
            answers = [error] * len(batch)
        each = (time.perf_counter() - started) / len(batch)
        self._seconds += SMOOTHING * (each - self._seconds)
        for (_, future), told in zip(batch, answers, strict=True):
            if isinstance(told, Exception):
                future.set_exception(told)
            else:
                future.set_result(told)
