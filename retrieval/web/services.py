"""What every route needs, and how a route gets it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import Depends, Request

from mmsearch.retrieval.web.explanations import Explanations
from mmsearch.retrieval.web.indexing import Runs
from mmsearch.retrieval.web.metrics import Metrics
from mmsearch.retrieval.web.settings import Settings
from mmsearch.retrieval.web.shelf import Shelf

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
        threads: how much runs beside the event loop at a time, and is not answered in batches.
        explanations: why pictures match, the latest of them kept.
        runs: indexing, where it is allowed.
    """

    shelf: Shelf
    settings: Settings
    metrics: Metrics
    threads: CapacityLimiter
    explanations: Explanations = field(default_factory=Explanations)
    runs: Runs = field(default_factory=Runs)

    async def in_thread(self, work: Callable[[], _Told]) -> _Told:
        """Run what takes long beside the event loop, a few at a time."""
        return await anyio.to_thread.run_sync(work, limiter=self.threads)


def create_services(
    libraries: Sequence[Path], settings: Settings, *, device: str | None = None
) -> Services:
    """Open libraries and join what serves them; the shelf is the caller's to close.

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
    return Services(shelf, settings, metrics, CapacityLimiter(THREADS))


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
        services.shelf.close()


def _services(request: Request) -> Services:
    found: Services = request.app.state.services
    return found


Given = Annotated[Services, Depends(_services)]
"""The type of a route's parameter that is given the services."""
