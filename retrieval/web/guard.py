"""What stands before every route: who may ask, by which name, and how often."""

from __future__ import annotations

import math
import re
import secrets
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse

from mmsearch.retrieval.web.failures import failure
from mmsearch.retrieval.web.rate import Buckets, who
from mmsearch.retrieval.web.settings import is_loopback

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from mmsearch.retrieval.web.settings import Settings

__all__ = ["COOKIE", "Guard"]

COOKIE = "mmsearch-token"
OPEN = frozenset({"/health"})
"""What is answered without a token: it tells nothing."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; font-src 'self'; manifest-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    # With none at all, browsers hide the origin of the page's own forms as well.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+?)\.?(?::[0-9]{1,5})?", re.IGNORECASE)
"""A name or an address, with or without a port: nothing before it, nothing after it."""
HEAD_BYTES = 32 << 10
"""The longest address and headers; uvicorn's own bound is of what comes in pieces only."""
WRONG = 10
"""A wrong token counts as so many requests, so that guessing is slower than asking."""


class Guard:
    """An ASGI middleware that turns away what may not be asked."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._buckets = Buckets(settings.limits.rate, settings.limits.burst)
        self._busy = 0
        self._names = {name.lower() for name in (settings.host, *settings.hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)

        async def hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                told = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    told.setdefault(name, value)
            await send(message)

        refused = self._refusal(scope, headers)
        if refused is not None:
            await refused(scope, receive, hardened)
            return
        self._busy += 1
        try:
            await self._app(scope, receive, hardened)
        finally:
            self._busy -= 1

    def _refusal(self, scope: Scope, headers: Headers) -> ASGIApp | None:
        head = len(scope["raw_path"]) + len(scope["query_string"])
        if head + sum(len(name) + len(value) for name, value in scope["headers"]) > HEAD_BYTES:
            return failure(431, "too-large", "The address, or the headers, are too long.")
        host = headers.get("host", "")
        if not self._is_own(host):
            return failure(
                403,
                "host",
                f"This server is not called {host!r}. Ask it by the address it listens on, or "
                "start it with --allow-host.",
            )
        if not _is_same_site(scope["method"], headers, host):
            return failure(403, "origin", "Other pages may not ask this server.")
        address = who((scope.get("client") or ("",))[0])
        if wait := self._buckets.take(address):
            return _too_many(wait)
        if self._busy >= self._settings.limits.requests:
            return failure(
                503, "busy", "Too many requests are worked on. Come back soon.", Retry_After="1"
            )
        token = self._settings.token
        if token is None or scope["path"] in OPEN:
            return None
        pairs = _pairs(scope["query_string"])
        given = dict(pairs).get("token")
        if given is not None and scope["path"] == "/" and _same(given, token):
            # From the address, which is seen and kept, to a cookie, which is not.
            rest = urlencode([pair for pair in pairs if pair[0] != "token"])
            response = RedirectResponse(f"/?{rest}" if rest else "/", status_code=303)
            response.set_cookie(
                COOKIE, quote(token, safe=""), httponly=True, samesite="strict", path="/"
            )
            return response
        shown = _shown(headers)
        if any(_same(each, token) for each in shown):
            return None
        if (given is not None or shown) and (wait := self._buckets.take(address, WRONG)):
            return _too_many(wait)
        return failure(
            401,
            "token",
            "This server asks for its token: Authorization: Bearer TOKEN, or open the address that "
            "`mmsearch serve` printed.",
            WWW_Authenticate="Bearer",
        )

    def _is_own(self, host: str) -> bool:
        """Return whether a Host header names this server: another name may be a page's trick.

        A page can have its own name point at this machine (DNS rebinding), and then reads what it
        asks for as its own. It cannot do so with a numeric address.
        """
        found = HOST.fullmatch(host)
        if found is None:
            return False
        name = found[1].strip("[]").lower()
        if name == "localhost" or name in self._names:
            return True
        try:
            address = ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not is_loopback(self._settings.host)


def _is_same_site(method: str, headers: Headers, host: str) -> bool:
    """Return whether a request comes from this server's page, or from no page at all."""
    if headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}:
        # A link from elsewhere that opens the page is no request of that page's; a form that it
        # sends is.
        return (
            method == "GET"
            and headers.get("sec-fetch-mode") == "navigate"
            and headers.get("sec-fetch-dest") in {"document", None}
        )
    origin = headers.get("origin")
    if origin is None:
        return True
    try:
        return urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:
        return False


def _too_many(wait: float) -> ASGIApp:
    seconds = math.ceil(wait)
    return failure(
        429,
        "rate",
        f"Too many requests from your address. Come back in {seconds} s.",
        Retry_After=str(seconds),
    )


def _shown(headers: Headers) -> list[str]:
    """Return the tokens that a request shows."""
    shown = []
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        shown.append(given.strip())
    for part in headers.get("cookie", "").split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE:
            shown.append(unquote(value))
    return shown


def _pairs(query: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    except ValueError:
        return []


def _same(given: str, token: str) -> bool:
    return secrets.compare_digest(given.encode("utf-8", "replace"), token.encode())
