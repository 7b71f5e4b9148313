"""What a server answers, read: values of ours, or errors of ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import httpx

from mmsearch.errors import (
    LibraryError,
    MediaError,
    MmsearchError,
    ModelError,
    NotServed,
    QueryError,
    RequestTooLarge,
    ServerBusy,
    ServerError,
    ServerUnreachable,
    TokenRefused,
)
from mmsearch.retrieval.schema import Results

if TYPE_CHECKING:
    from mmsearch.retrieval.client.address import Address

__all__ = ["Outcome", "ServedItem", "checked", "item", "plain", "results", "seconds_to_wait"]

_Read = TypeVar("_Read")

Outcome = httpx.Response | httpx.HTTPError
"""What came of a request."""

BUSY = frozenset({429, 503})
"""Statuses that say: not now."""
_BROKEN: dict[str, type[MmsearchError]] = {"library": LibraryError, "model": ModelError}
"""Kinds of failures that waiting does not end."""
_PLAIN: dict[int, type[MmsearchError]] = {
    400: QueryError,
    404: NotServed,
    413: RequestTooLarge,
    422: QueryError,
}
"""Statuses whose sentence says it all."""


@dataclass(frozen=True, slots=True)
class ServedItem:
    """What a server knows of a picture.

    Attributes:
        library: the library's name.
        id: the picture's key there.
        path: relative to the library's folder, with forward slashes.
        size: bytes.
        format: as Pillow calls it (`JPEG`).
        width: upright width in pixels.
        height: upright height in pixels.
        taken_at: local time by the camera's clock.
        camera: its model.
        latitude: degrees, north positive.
        longitude: degrees, east positive.
        captions: what is said about it.
    """

    library: str
    id: int
    path: str
    size: int
    format: str
    width: int
    height: int
    taken_at: datetime | None
    camera: str | None
    latitude: float | None
    longitude: float | None
    captions: tuple[str, ...]


def results(response: httpx.Response) -> Results:
    """Return the answer to a question."""
    return _read(response, Results.from_json)


def item(response: httpx.Response) -> ServedItem:
    """Return what is known of a picture."""

    def read(told: dict[str, Any]) -> ServedItem:
        fields = {name: told[name] for name in ServedItem.__slots__ if name in told}
        taken = None if told["taken"] is None else datetime.fromisoformat(told["taken"])
        return ServedItem(**fields | {"taken_at": taken, "captions": tuple(told["captions"])})

    return _read(response, read)


def plain(response: httpx.Response) -> dict[str, Any]:
    """Return the object as it is."""
    return _read(response, dict)


def _read(response: httpx.Response, read: Callable[[dict[str, Any]], _Read]) -> _Read:
    try:
        return read(json.loads(response.content))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ServerError(
            f"{_origin(response)} answered what is no answer of mmsearch's. Is it the right "
            "address, and is the server of this version?"
        ) from error


def checked(outcome: Outcome, address: Address) -> httpx.Response:
    """Return a response that is an answer.

    Raises:
        MmsearchError: it is none; see `mmsearch.errors`.
    """
    if isinstance(outcome, httpx.HTTPError):
        _unanswered(outcome, address)
    if outcome.is_success:
        return outcome
    if outcome.is_redirect:
        goal = outcome.headers.get("location", "elsewhere").partition("?")[0]
        raise ServerError(
            f"{address.url} sends us on to {goal}, where we do not follow it with a question and a "
            "token. Give that address if it is the one that is meant."
        )
    raise _error(outcome, address)


def seconds_to_wait(response: httpx.Response) -> float | None:
    """Return when a server that is busy wants to be asked again; None where it does not say."""
    told = response.headers.get("retry-after", "").strip()
    if told.isascii() and told.isdecimal():
        return float(told)
    try:
        when = parsedate_to_datetime(told)
        return max(0.0, (when - datetime.now(when.tzinfo)).total_seconds())
    except (TypeError, ValueError):
        return None


def _error(response: httpx.Response, address: Address) -> MmsearchError:
    status, (kind, detail) = response.status_code, _failure(response)
    if status == 401:
        if address.token is not None:
            return TokenRefused(f"{address.url} has another token than the one it was shown.")
        return TokenRefused(
            f"{address.url} asks for its token, which `mmsearch serve` printed behind `token=`. "
            "Give it with token=, --token or $MMSEARCH_TOKEN."
        )
    if status in BUSY and kind not in _BROKEN:
        wait = seconds_to_wait(response) or 1.0
        return ServerBusy(f"{address.url} is busy. Ask again in {wait:.0f} s.", wait)
    if kind in _BROKEN:
        return _BROKEN[kind](f"{address.url}: {detail}")
    if status == 410:
        return MediaError("vanished", detail)
    if status == 404 and (kind != "not-found" or detail == "Not Found"):
        return ServerError(f"There is no server of mmsearch at {address.url}, or an older one.")
    if status in _PLAIN:
        return _PLAIN[status](detail)
    return ServerError(f"{address.url} failed with status {status}: {detail}")


def _failure(response: httpx.Response) -> tuple[str, str]:
    """Return the kind and the sentence of a failure, also of one that is not the server's own."""
    try:
        told = json.loads(response.content)
        return str(told["kind"]), str(told["detail"])
    except (ValueError, KeyError, TypeError):
        # A proxy's page, most often: nothing to show anybody.
        return "", response.reason_phrase or "no reason given"


def _unanswered(error: httpx.HTTPError, address: Address) -> NoReturn:
    if isinstance(error, httpx.TimeoutException):
        raise ServerUnreachable(
            f"{address.url} did not answer in time. Ask again, or give it longer with timeout=."
        ) from error
    if isinstance(error, httpx.ConnectError):
        raise ServerUnreachable(
            f"Nobody answers at {address.url} ({error}). Start a server with: mmsearch serve "
            "FOLDER; or check the address."
        ) from error
    if isinstance(error, httpx.NetworkError | httpx.ProtocolError):
        raise ServerUnreachable(
            f"The connection to {address.url} broke ({type(error).__name__}). Ask again."
        ) from error
    raise ServerError(f"{address.url} could not be asked: {type(error).__name__}.") from error


def _origin(response: httpx.Response) -> str:
    url = response.request.url
    return f"{url.scheme}://{url.netloc.decode('ascii')}"
