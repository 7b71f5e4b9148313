"""What every route needs, and how a route gets it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import Depends, Request

from mmsearch.retrieval.web.metrics import Metrics
from mmsearch.retrieval.web.settings import Settings
from mmsearch.retrieval.web.shelf import Shelf
from mmsearch.retrieval.web.slow_lane import SlowLane

__all__ = ["Given", "Services"]

_Told = TypeVar("_Told")


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of a server.

    Attributes:
        shelf: the libraries.
        settings: what is allowed.
        metrics: what is counted.
        slow: what runs beside the event loop, and is not answered in batches.
    """

    shelf: Shelf
    settings: Settings
    metrics: Metrics
    slow: SlowLane

    async def in_thread(self, work: Callable[[], _Told]) -> _Told:
        """Run what takes long beside the event loop, a few at a time.

        Raises:
            Busy: too much waits already.
        """
        return await self.slow.run(work)


def _services(request: Request) -> Services:
    found: Services = request.app.state.services
    return found


Given = Annotated[Services, Depends(_services)]
"""The type of a route's parameter that is given the services."""
