"""Bodies of requests: how large, how quickly, in how many parts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request

from mmsearch.retrieval.web.failures import failure

if TYPE_CHECKING:
    from starlette._utils import AwaitableOrContextManager
    from starlette.datastructures import FormData
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from mmsearch.retrieval.web.settings import Limits

__all__ = ["Bodies", "FormRoute"]

logger = logging.getLogger(__name__)

LINGER_S = 2.0
"""How long what a refused client still sends is thrown away, so that it comes to read why."""
FILES = 32
"""Files in a form, of which the routes take fewer."""
FIELDS = 128
FIELD_BYTES = 64 << 10


class Bodies:
    """An ASGI middleware that stops bodies that are too large, or do not come."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        length = _length(scope)
        if length == 0:
            await self._app(scope, receive, send)
            return
        body = _Body(self._limits, receive, send)
        app = self._app
        if length is not None and length > self._limits.upload_bytes:
            app = failure(413, "too-large", body.too_large, Connection="close")
        await app(scope, body.receive, body.send)


class _Body:
    """One request's body, and the response to it."""

    def __init__(self, limits: Limits, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._most = limits.upload_bytes
        self._seconds = limits.body_seconds
        self._until = asyncio.get_running_loop().time() + limits.body_seconds
        self._taken = 0
        self._whole = False
        self._late = False
        self.too_large = (
            f"The body is larger than {self._most / (1 << 20):,.0f} MiB, the most that is taken "
            "here; send smaller pictures, or fewer."
        )

    async def receive(self) -> Message:
        """Return the next part.

        Raises:
            HTTPException: it is too large, or late.
        """
        if self._whole:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            self._late = True
            raise HTTPException(
                408,
                f"The body did not come within {self._seconds:.0f} s; send less, or faster.",
                {"Connection": "close"},
            ) from None
        self._note(message)
        if self._taken > self._most:
            raise HTTPException(413, self.too_large, {"Connection": "close"})
        return message

    async def send(self, message: Message) -> None:
        """Pass the response on; what comes of the body after it is thrown away for a while.

        A connection that is closed while its client still sends is reset, and takes the response
        with it before the client could read it.
        """
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if not last or self._whole or self._late:
            await self._send(message)
            return
        await self._send({**message, "more_body": True})
        try:
            async with asyncio.timeout(LINGER_S):
                while not self._whole and self._taken <= 2 * self._most:
                    self._note(await self._receive())
        except TimeoutError:
            logger.debug("a refused body goes on and on")
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def _note(self, message: Message) -> None:
        self._taken += len(message.get("body", b""))
        self._whole = message["type"] != "http.request" or not message.get("more_body", False)


def _length(scope: Scope) -> int | None:
    """Return how long a request says that its body is; None where it does not say."""
    if scope["type"] != "http":
        return 0
    length: int | None = 0
    for name, value in scope["headers"]:
        if name == b"transfer-encoding":
            return None
        if name == b"content-length":
            # What is no number the protocol has refused; here it is as long as may be.
            length = int(value) if value.isdigit() else None
    return length


class _FormRequest(Request):
    def form(
        self,
        *,
        max_files: int | float = FILES,
        max_fields: int | float = FIELDS,
        max_part_size: int = FIELD_BYTES,
    ) -> AwaitableOrContextManager[FormData]:
        """Return the form, of so many parts at most."""
        return super().form(
            max_files=min(max_files, FILES),
            max_fields=min(max_fields, FIELDS),
            max_part_size=min(max_part_size, FIELD_BYTES),
        )


class FormRoute(APIRoute):
    """A route whose forms have not too many parts."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request."""
        answer = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            return await answer(_FormRequest(request.scope, request.receive))

        return bounded
