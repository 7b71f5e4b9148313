"""Search on GPUs by FAISS: a copy of an opened index, asked by one thread for all others."""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from threading import Condition, Event, Thread, current_thread
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np

from mmsearch.indexes.base import Neighbors, VectorIndex
from mmsearch.indexes.faiss import FaissIndex
from mmsearch.indexes.faiss_approximate import ApproximateIndex
from mmsearch.indexes.faiss_devices import Devices, Form, gpu_bytes
from mmsearch.indexes.faiss_ivf import IvfIndex
from mmsearch.indexes.grown import GrownIndex

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["GpuIndex", "to_gpu"]

logger = logging.getLogger(__name__)

MOST = 2_048
"""How many rows one search may return, and lists look into: FAISS's limit for GPUs."""
SPARE = 16
"""Rows beyond `k` that a flat copy returns: it rounds queries to 16 bits, which moves scores."""
TOGETHER = 1_024
"""Queries from which a batch is full: who asks one should not wait for thousands."""


class GpuIndex(VectorIndex):
    """An opened index, with a copy on GPUs that answers what it can; made by `to_gpu`.

    The copy names candidates and the CPU compares these once more, so scores are those of search
    without a GPU. A flat copy compares every vector, with the query rounded to 16 bits: what ties
    to within that may change places at the end of the answer, as any ties do. The CPU answers
    alone what FAISS cannot do on GPUs (`among`, `k` or lists beyond 2,048, all lists of an index
    with lists), until the copy is there, and from when it is closed or the GPU's memory ends.

    FAISS allows one thread at a time on a GPU. One thread owns the copy: callers queue up, and
    what waits with equal settings is one batch. `add` and `remove` change the index on the CPU and
    drop the copy: `to_gpu` makes another.
    """

    def __init__(
        self,
        index: FaissIndex | ApproximateIndex,
        devices: Devices,
        memory_bytes: int | None = None,
    ) -> None:
        """Begin to copy an index; the arguments are those of `to_gpu`."""
        super().__init__(index.dim)
        if isinstance(index, ApproximateIndex):
            index.close_gaps()
        self.cpu = index
        self._owner = _Owner(lambda stopped: _copied(index, devices, memory_bytes, stopped))
        # Also at exit, before the interpreter stops threads wherever they are.
        self._end = weakref.finalize(self, self._owner.close)

    @property
    def form(self) -> Form | None:
        """How the vectors stand on the GPU; None while, or from when, they do not."""
        return self._owner.form

    @property
    def exact(self) -> bool:
        """Whether the copy, or the index without it, compares every vector."""
        return self.form == "flat" or self.cpu.exact

    @property
    def recall(self) -> float | None:
        """That of the index itself, unless the copy is exact."""
        return 1.0 if self.exact else self.cpu.recall

    @property
    def ids(self) -> NDArray[np.int64]:
        """Those of the index itself."""
        return self.cpu.ids

    @property
    def facts(self) -> dict[str, Any]:
        """Those of the index itself."""
        return self.cpu.facts

    def wait(self) -> None:
        """Wait until the vectors are copied, or cannot be.

        Raises:
            RuntimeError: something else than memory failed.
        """
        self._owner.ready.wait()
        if self._owner.error is not None:
            raise self._owner.error

    def stands_for(self, index: VectorIndex) -> bool:
        """Say whether this is, or will be, a copy of an index of the same file's content."""
        content = index.content if isinstance(index, (FaissIndex, ApproximateIndex)) else None
        return content is not None and content == self.cpu.content and not self._owner.closed

    def check(self) -> None:
        """Check every byte of the file that was opened.

        Raises:
            IndexFileError: it is damaged.
        """
        self.cpu.check()

    def close(self) -> None:
        """Drop the copy and end its thread; the CPU answers what waits and what comes."""
        self._end()

    def save(self, path: Path) -> None:
        """Write the index itself."""
        self.cpu.save(path)

    @classmethod
    def open(cls, path: Path, *, mmap: bool = True) -> VectorIndex:
        """Open an index and copy it to every GPU."""
        from mmsearch import indexes

        return to_gpu(indexes.open(path, mmap=mmap), Devices())

    def _count(self) -> int:
        return len(self.cpu)

    def _add(self, ids: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        self.close()
        self.cpu.add(ids, vectors)

    def _remove(self, ids: NDArray[np.int64]) -> int:
        self.close()
        return self.cpu.remove(ids)

    def _search(
        self,
        queries: NDArray[np.float32],
        k: int,
        effort: int | None,
        among: NDArray[np.int64] | None,
    ) -> Neighbors:
        reach = self._reach(k, effort) if among is None else None
        candidates = None if reach is None else self._owner.ask(queries, *reach)
        if candidates is None:
            return self.cpu.search(queries, k, effort=effort, among=among)
        return self.cpu.refined(queries, k, candidates)

    def _reach(self, k: int, effort: int | None) -> tuple[int, int] | None:
        """Return how many lists the copy looks into and how many rows it names, if it can."""
        least, lists, named = k, 0, k + SPARE
        if self.form is None:
            return None
        if self.form == "ivf-sq8":
            assert isinstance(self.cpu, IvfIndex)
            reach = self.cpu.reach(k, effort, len(self))
            if reach is None:
                return None
            # Codes of a byte lose so little that fewer candidates than planned do.
            least, (lists, named) = 2 * k, reach
        return None if max(least, lists) > MOST else (lists, min(named, MOST, len(self)))


def to_gpu(
    index: VectorIndex,
    devices: Devices,
    *,
    memory_bytes: int | None = None,
    wait: bool = True,
    instead_of: VectorIndex | None = None,
) -> VectorIndex:
    """Copy an index to GPUs, as `indexes.to_gpu` does."""
    base = index.base if isinstance(index, GrownIndex) else index
    old = instead_of.base if isinstance(instead_of, GrownIndex) else instead_of
    if isinstance(old, GpuIndex) and old.stands_for(base):
        copy = old
    else:
        if instead_of is not None:
            instead_of.close()
        if isinstance(base, GpuIndex):
            base.close()
            base = base.cpu
        if not isinstance(base, (FaissIndex, ApproximateIndex)):
            raise ValueError(f"{type(base).__name__} has no form on a GPU")
        if len(base) == 0:
            return index
        copy = GpuIndex(base, devices, memory_bytes)
    if wait:
        copy.wait()
    return index.on(copy) if isinstance(index, GrownIndex) else copy


def _copied(
    index: FaissIndex | ApproximateIndex,
    devices: Devices,
    memory_bytes: int | None,
    stopped: Callable[[], bool],
) -> tuple[Form, Any]:
    """Return how an index stands on GPUs, and FAISS's index there.

    Raises:
        MemoryError: it does not fit.
    """

    def rows(start: int, stop: int) -> NDArray[np.float32]:
        if stopped():
            raise _Stopped
        return index.vectors(start, stop)

    n, dim = index.rows, index.dim
    room = devices.free_bytes() if memory_bytes is None else memory_bytes
    forms: tuple[Form, ...] = ("flat",)
    if isinstance(index, IvfIndex) and not index.exact:
        # One-bit codes have no form on a GPU.
        forms = ("ivf-sq8",) if index.kind == "ivf-sq8" else ("flat", "ivf-sq8")
    for form in forms:
        if room is not None and gpu_bytes(n, dim, form) > room:
            continue
        if form == "flat":
            return form, devices.flat(n, dim, rows)
        assert isinstance(index, IvfIndex)
        return form, devices.lists(index.lists_of_bytes(rows))
    needed = gpu_bytes(n, dim, forms[-1]) / 1e9
    raise MemoryError(f"{n:,} vectors take {needed:.1f} GB of memory")


class _Stopped(Exception):
    """The copy is not wanted any more."""


@dataclass(frozen=True, slots=True)
class _Request:
    queries: NDArray[np.float32]
    settings: tuple[int, int]
    """How many lists, and how many rows to return."""
    answer: Future[NDArray[np.int64] | None] = field(default_factory=Future)


class _Owner:
    """The one thread that makes, asks and drops FAISS's index on GPUs.

    Attributes:
        form: what there is on the GPU; None before and after.
        ready: set when the index is made, or cannot be.
        closed: whether the thread ends, or has ended.
        error: why it could not be made, if that was not for want of memory.
    """

    def __init__(self, make: Callable[[Callable[[], bool]], tuple[Form, Any]]) -> None:
        """Begin to make an index: `make` is given what says whether to stop."""
        self.form: Form | None = None
        self.ready, self.closed = Event(), False
        self.error: Exception | None = None
        self._changed = Condition()
        self._requests: deque[_Request] = deque()
        self._thread = Thread(target=self._run, args=(make,), name="mmsearch GPU", daemon=True)
        self._thread.start()

    def ask(self, queries: NDArray[np.float32], lists: int, named: int) -> Any:  # noqa: ANN401
        """Return `int64[q, named]` rows, -1 where there are fewer; None if there is no index."""
        request = _Request(queries, (lists, named))
        with self._changed:
            # After a fork the thread is not there.
            if self.form is None or self.closed or not self._thread.is_alive():
                return None
            self._requests.append(request)
            self._changed.notify()
        return request.answer.result()

    def close(self) -> None:
        """End the thread, after what it is doing."""
        with self._changed:
            self.closed = True
            self._changed.notify()
        if self._thread is not current_thread():  # where it is what collects the garbage
            self._thread.join()

    def _run(self, make: Callable[[Callable[[], bool]], tuple[Form, Any]]) -> None:
        try:
            form, index = make(lambda: self.closed)
            with self._changed:
                self.form = form
            self.ready.set()
            while batch := self._next():
                self._answer(index, batch)
        except _Stopped:
            pass
        except Exception as error:
            reason = " ".join(str(error).split())
            logger.warning("the GPU cannot go on (%s); the CPU answers from now on", reason)
            # A traceback would keep what was made so far.
            self.error = None if _is_out_of_memory(error) else error.with_traceback(None)
        index = None  # Given back before anybody is told that it is over.
        with self._changed:
            self.form, self.closed = None, True
            waiting = list(self._requests)
            self._requests.clear()
        for request in waiting:
            request.answer.set_result(None)
        self.ready.set()

    def _next(self) -> list[_Request]:
        """Wait for requests, and take those with the settings of the first; none at the end."""
        with self._changed:
            while not self._requests and not self.closed:
                self._changed.wait()
            if self.closed:
                return []
            settings, count, taken = self._requests[0].settings, 0, []
            left: deque[_Request] = deque()
            for request in self._requests:
                if request.settings == settings and count < TOGETHER:
                    taken.append(request)
                    count += len(request.queries)
                else:
                    left.append(request)
            self._requests = left
            return taken

    def _answer(self, index: Any, batch: list[_Request]) -> None:  # noqa: ANN401
        lists, named = batch[0].settings
        queries = np.concatenate([request.queries for request in batch])
        parameters = faiss.SearchParametersIVF(nprobe=lists) if lists else None
        try:
            rows = index.search(queries, named, params=parameters)[1]
        except Exception as error:
            if _is_out_of_memory(error):
                with self._changed:
                    self._requests.extendleft(batch)
                raise
            for request in batch:
                request.answer.set_exception(error)
            return
        cuts = np.cumsum([len(request.queries) for request in batch])[:-1]
        for request, part in zip(batch, np.split(rows, cuts), strict=True):
            request.answer.set_result(part)


def _is_out_of_memory(error: Exception) -> bool:
    """Say whether memory ended: FAISS tells it in words alone."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "memory" in text or "cudamalloc" in text
