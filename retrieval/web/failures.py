"""Every error as a response: a status, a kind for programs and a sentence for people."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from mmsearch.errors import (
    LibraryError,
    LibraryLocked,
    MediaError,
    MissingExtra,
    MmsearchError,
    ModelError,
    QueryError,
    quoted,
)
from mmsearch.retrieval.web.batching import Busy, Closed
from mmsearch.retrieval.web.files import NoSuchItem
from mmsearch.retrieval.web.shelf import UnknownLibrary
from mmsearch.retrieval.web.wire import Failure

if TYPE_CHECKING:
    from fastapi import FastAPI, Request

    from mmsearch.retrieval.web.shelf import Shelf

__all__ = ["ALWAYS", "FAILURES", "described", "failure", "install"]

logger = logging.getLogger(__name__)

_KINDS: tuple[tuple[type[Exception], int, str], ...] = (
    (QueryError, 400, "query"),
    (NoSuchItem, 404, "not-found"),
    (UnknownLibrary, 404, "not-found"),
    # The picture was there when it was indexed.
    (MediaError, 410, "picture"),
    (LibraryLocked, 409, "indexing"),
    (MissingExtra, 501, "missing-extra"),
    (LibraryError, 503, "library"),
    (ModelError, 503, "model"),
    (MmsearchError, 503, "library"),
)

_REASONS = {
    401: "token",
    403: "forbidden",
    404: "not-found",
    405: "method",
    408: "slow",
    413: "too-large",
    416: "range",
}
_PATH = re.compile(r"(?<![\w.:/\\])(?:[A-Za-z]:)?(?:[/\\][^\s/\\'\"<>|:;,]+){2,}")
"""A path of the server's, as it stands in a sentence."""

FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure, "description": description}
    for status, description in (
        (400, "The question cannot be asked."),
        (401, "The token is missing or wrong."),
        (403, "Asked by a name, or from a page, that is not this server's."),
        (404, "There is no such library or picture."),
        (408, "The body did not come in time."),
        (409, "The library is being indexed already."),
        (410, "The picture is gone, changed, or cannot be read any more."),
        (413, "The body is too large."),
        (422, "A parameter is out of its range."),
        (429, "Too many requests from one address."),
        (431, "The address or the headers are too long."),
        (501, "Something is not installed on the server."),
        (503, "Busy, or the library cannot be used now."),
    )
}


ALWAYS: dict[int | str, dict[str, Any]] = {
    status: FAILURES[status] for status in (400, 403, 408, 413, 429, 431, 503)
}
"""What every address may answer."""


def failure(status: int, kind: str, detail: str, **headers: str) -> JSONResponse:
    """Return a response that tells what went wrong."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return JSONResponse({"detail": detail, "kind": kind}, status, named)


def install(app: FastAPI) -> None:
    """Have an application tell its errors in this way."""
    app.add_exception_handler(MmsearchError, _told)
    app.add_exception_handler(Busy, _busy)
    app.add_exception_handler(Closed, _busy)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _broken)


def described(error: Exception, shelf: Shelf) -> tuple[int, str, str]:
    """Return status, kind and sentence of an error, as a client may know them.

    What is told to the owner of a library names folders of this machine: clients are told less, and
    the log has the rest.
    """
    if isinstance(error, Busy):
        return 503, "busy", f"Too many questions are waiting. Come back in {error.seconds:.0f} s."
    if isinstance(error, Closed):
        return 503, "closing", "The server is going down."
    status, kind = next((s, k) for of, s, k in _KINDS if isinstance(error, of))
    if status >= 500:
        logger.warning("%s", error)
    # What is no valid text (a name in bytes) would break the encoding of the response.
    text = str(error).encode("utf-8", "backslashreplace").decode()
    return status, kind, discreet(text, shelf, every=not isinstance(error, QueryError))


def discreet(text: str, shelf: Shelf, *, every: bool) -> str:
    """Return what a message says without telling where on this machine it is.

    Args:
        text: the message.
        shelf: libraries, whose names stand for their folders.
        every: whether other paths lose their folders too; in what was asked they are the client's.
    """
    for served in shelf:
        root = served.root
        for folder in {str(root), os.path.realpath(root)} - {root.anchor}:
            text = text.replace(quoted(folder), served.name).replace(folder, served.name)
    home = str(Path.home())
    if home != Path(home).anchor:
        text = text.replace(home, "~")
    if every:
        text = _PATH.sub(lambda found: re.split(r"[/\\]", found[0])[-1], text)
    return text


async def _broken(_: Request, __: Exception) -> JSONResponse:
    # uvicorn writes what it was to standard error.
    return failure(500, "internal", "Something went wrong here; its cause is in the server's log.")


async def _told(request: Request, error: Exception) -> JSONResponse:
    return failure(*described(error, request.app.state.services.shelf))


async def _busy(request: Request, error: Exception) -> JSONResponse:
    seconds = error.seconds if isinstance(error, Busy) else 5.0
    told = described(error, request.app.state.services.shelf)
    return failure(*told, Retry_After=f"{seconds:.0f}")


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    faults = error.errors() if isinstance(error, RequestValidationError) else []
    told = "; ".join(
        f"{'.'.join(str(part) for part in fault['loc'][1:]) or 'body'}: {fault['msg']}"
        for fault in faults
    )
    return failure(422, "parameters", told.encode("utf-8", "backslashreplace").decode())


async def _http(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HTTPException):
        raise error
    headers = dict(error.headers or {})
    if error.status_code == 405:
        # Each route tells its own methods; others may have the same address.
        headers["Allow"] = ", ".join(sorted(_methods(request)))
    kind = _REASONS.get(error.status_code, "request")
    return JSONResponse({"detail": str(error.detail), "kind": kind}, error.status_code, headers)


def _methods(request: Request) -> set[str]:
    """Return the methods that the address of a request has."""
    found: set[str] = set()
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        scope = {**request.scope, "method": method}
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes):
            found.add(method)
    return found
