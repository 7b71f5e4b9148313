"""Connections: how many, how long they may be silent, and what happens when one is lost.

uvicorn waits for the head of a request, and for a client that does not read, as long as it takes.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from mmsearch.retrieval.web.settings import Limits

__all__ = ["Abandoning", "protocol"]

LAST_S = 0.2
"""What a request that is on its way has when the server ends."""

_TASK = "mmsearch.task"
_GONE = "mmsearch.gone"


def protocol(limits: Limits) -> type[asyncio.Protocol]:
    """Return the class of connections that uvicorn shall make."""
    return type("BoundedProtocol", (_Bounded,), {"limits": limits})


class _Bounded(H11Protocol):
    limits: ClassVar[Limits]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._silent_since = self.loop.time()
        self._ending = False
        if len(self.connections) > self.limits.connections:
            self._make_room()
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        scope: Any = None
        if self.cycle is not None and not self.cycle.response_complete:
            scope = self.cycle.scope
        super().connection_lost(exc)
        for timer in (self._timer, self._stalled, self.timeout_keep_alive_task):
            if timer is not None:
                timer.cancel()
        if scope is not None and _TASK in scope:
            # Nobody reads the answer: whatever waits for its turn need not have it.
            scope[_GONE] = True
            scope[_TASK].cancel()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()
        if self._ending and not self._silent:
            self.cycle.keep_alive = False

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(self.limits.stall_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def shutdown(self) -> None:
        # What was sent already may not have been read yet.
        self._ending = True
        if self._silent:
            self.loop.call_later(LAST_S, self._end)
        else:
            super().shutdown()

    def _end(self) -> None:
        if not self.transport.is_closing():
            super().shutdown()

    def on_response_complete(self) -> None:
        self._silent_since = self.loop.time()
        super().on_response_complete()

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # Closing would wait until the client has read.
        else:
            super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "request", "This is no request of HTTP, or its head is too large.")

    @property
    def _silent(self) -> bool:
        """Whether a request is waited for, or the rest of its head."""
        return self.cycle is None or self.cycle.response_complete

    def _watch_head(self) -> None:
        if self._silent and not self.transport.is_closing():
            if self._timer is None:
                self._timer = self.loop.call_later(self.limits.head_seconds, self._too_slow)
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if not self._silent or self.transport.is_closing():
            return
        if self.conn.trailing_data[0]:
            seconds = self.limits.head_seconds
            self._refuse(408, "slow", f"The request's head did not come within {seconds:.0f} s.")
        else:
            self.transport.close()

    def _refuse(self, status: int, kind: str, detail: str) -> None:
        body = json.dumps({"detail": detail, "kind": kind}).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        try:
            for event in (
                h11.Response(status_code=status, headers=headers),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:
            # In the middle of another response: there is no way to tell.
            self.transport.abort()
            return
        self.transport.close()
        self.loop.call_later(self.limits.stall_seconds, self.transport.abort)

    def _make_room(self) -> None:
        """Close the connection that has been silent longest; where none is, the one that came."""
        silent = [
            each
            for each in self.connections
            if isinstance(each, _Bounded) and each is not self and each._silent
        ]
        if silent:
            min(silent, key=lambda each: each._silent_since).transport.abort()
        else:
            self.transport.abort()


class Abandoning:
    """An ASGI middleware that lets a request be dropped whose client is gone."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, unless its connection is lost first."""
        task = asyncio.current_task()
        scope[_TASK] = task
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if not scope.get(_GONE):
                raise
            if task is not None:
                task.uncancel()
