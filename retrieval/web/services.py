"""What every route needs, and how a route gets it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import Depends, Request

from mmsearch.retrieval.web.explanations import Explanations
from mmsearch.retrieval.web.indexing import Runs
from mmsearch.retrieval.web.metrics import Metrics
from mmsearch.retrieval.web.settings import Settings
from mmsearch.retrieval.web.shelf import Shelf

__all__ = ["Given", "Services"]

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
    explanations: Explanations
    runs: Runs

    async def in_thread(self, work: Callable[[], _Told]) -> _Told:
        """Run what takes long beside the event loop, a few at a time."""
        return await anyio.to_thread.run_sync(work, limiter=self.threads)


def _services(request: Request) -> Services:
    found: Services = request.app.state.services
    return found


Given = Annotated[Services, Depends(_services)]
"""The type of a route's parameter that is given the services."""
