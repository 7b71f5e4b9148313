"""Counts every request, and what becomes of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from mmsearch.retrieval.web.metrics import Metrics

__all__ = ["Counted"]

GONE = 499
"""The status of what was not answered, as nginx counts it: the client was gone before."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Counted:
    """An ASGI middleware that counts requests by route, method and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = GONE

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        metrics, started = self._metrics, time.perf_counter()
        metrics.busy.inc()
        try:
            await self._app(scope, receive, noted)
        finally:
            metrics.busy.dec()
            # The pattern, not the address: a client could ask for any number of addresses, and
            # with any number of methods.
            path = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in METHODS else "other"
            metrics.requests.labels(path, method, status).inc()
            metrics.seconds.labels(path).observe(time.perf_counter() - started)
