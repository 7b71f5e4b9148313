"""What takes long and is not answered in batches: a few threads, and a queue that ends."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from mmsearch.retrieval.web.batching import Busy

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SlowLane"]

_Told = TypeVar("_Told")

RETRY_S = 2.0


class SlowLane:
    """Threads for explanations, uploads, recommendations. Safe to use from several threads.

    Work that nobody waits for any more is not begun; what was begun keeps its thread to its end,
    so that clients who come and go cannot have more done at a time than there are threads.
    """

    def __init__(self, threads: int, waiting: int) -> None:
        """Make the lane.

        Args:
            threads: how much is worked on at a time.
            waiting: how much may wait.
        """
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="mmsearch-slow")
        self._most = threads + waiting
        self._count = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return how much is worked on or waits."""
        return self._count

    async def run(self, work: Callable[[], _Told]) -> _Told:
        """Return what `work` returns, in a thread.

        Raises:
            Busy: too much waits.
        """
        with self._lock:
            if self._count >= self._most:
                raise Busy(RETRY_S)
            self._count += 1
        try:
            future = self._pool.submit(work)
        except BaseException:
            self._one_less()
            raise
        future.add_done_callback(self._one_less)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Let go of the threads; what they have not begun is not done."""
        self._pool.shutdown(cancel_futures=True)

    def _one_less(self, _: Future[_Told] | None = None) -> None:
        with self._lock:
            self._count -= 1
