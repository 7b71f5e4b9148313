"""What every route needs, and how a route gets it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

from fastapi import Depends, Request

from mmsearch.retrieval.web.explanations import Explanations
from mmsearch.retrieval.web.indexing import Runs
from mmsearch.retrieval.web.metrics import Metrics
from mmsearch.retrieval.web.settings import Settings
from mmsearch.retrieval.web.shelf import Shelf
from mmsearch.retrieval.web.slow_lane import SlowLane

__all__ = ["Given", "Services", "create_services", "opened_services"]

THREADS = 4
"""What is not answered in batches (explanations, uploads, recommendations): so many at a time."""

_Told = TypeVar("_Told")


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of a server.

    Attributes:
        shelf: the libraries.
        settings: what is allowed.
        metrics: what is counted.
        slow: what runs beside the event loop, and is not answered in batches.
        explanations: why pictures match, the latest of them kept.
        runs: indexing, where it is allowed.
    """

    shelf: Shelf
    settings: Settings
    metrics: Metrics
    slow: SlowLane
    explanations: Explanations = field(default_factory=Explanations)
    runs: Runs = field(default_factory=Runs)

    async def in_thread(self, work: Callable[[], _Told]) -> _Told:
        """Run what takes long beside the event loop, a few at a time.

        Raises:
            Busy: too much waits already.
        """
        return await self.slow.run(work)

    def close(self) -> None:
        """Answer what waits, then release every library."""
        self.runs.close()
        self.slow.close()
        self.shelf.close()


def create_services(
    libraries: Sequence[Path], settings: Settings, *, device: str | None = None
) -> Services:
    """Open libraries and join what serves them; `close` is the caller's to call.

    Args:
        libraries: folders that were indexed.
        settings: what is allowed.
        device: where vectors are compared, see `open_engine`.

    Raises:
        MmsearchError: a library cannot be opened.
    """
    metrics = Metrics()
    shelf = Shelf.open(libraries, settings, device=device, batched=metrics.batches.observe)
    for served in shelf:
        metrics.watch(served)
    return Services(shelf, settings, metrics, SlowLane(THREADS, settings.limits.slow))


@contextmanager
def opened_services(libraries: Sequence[Path], settings: Settings) -> Iterator[Services]:
    """Yield services without HTTP, compared on the CPU; they are closed afterwards.

    Raises:
        MmsearchError: a library cannot be opened.
    """
    services = create_services(libraries, settings, device="cpu")
    try:
        yield services
    finally:
        services.close()


# Asynchronous though it waits for nothing: FastAPI hands others to a thread.
async def _services(request: Request) -> Services:
    found: Services = request.app.state.services
    return found


Given = Annotated[Services, Depends(_services)]
"""The type of a route's parameter that is given the services."""
