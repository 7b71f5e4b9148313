"""What stands before every route: who may ask, by which name, and how much."""

from __future__ import annotations

import secrets
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse

from mmsearch.retrieval.web.failures import failure
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


class Guard:
    """An ASGI middleware that turns away what may not be asked."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

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
        await (refused or self._app)(scope, receive, hardened)

    def _refusal(self, scope: Scope, headers: Headers) -> ASGIApp | None:
        host = headers.get("host", "")
        if not self._is_own(host):
            return failure(
                403,
                "host",
                f"This server is not called {host!r}. Ask it by the address it listens on, or "
                "start it with --allow-host.",
            )
        if not _is_same_site(headers, host):
            return failure(403, "origin", "Other pages may not ask this server.")
        token = self._settings.token
        if token is None or scope["path"] in OPEN:
            return None
        pairs = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = dict(pairs).get("token")
        if given is not None and scope["path"] == "/" and _same(given, token):
            # From the address, which is seen and kept, to a cookie, which is not.
            rest = urlencode([pair for pair in pairs if pair[0] != "token"])
            response = RedirectResponse(f"/?{rest}" if rest else "/", status_code=303)
            response.set_cookie(COOKIE, token, httponly=True, samesite="strict", path="/")
            return response
        if any(_same(shown, token) for shown in _shown(headers)):
            return None
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
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name == "localhost" or name in {self._settings.host, *self._settings.hosts}:
            return True
        try:
            address = ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not is_loopback(self._settings.host)


def _is_same_site(headers: Headers, host: str) -> bool:
    """Return whether a request comes from this server's page, or from no page at all."""
    if headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}:
        # A link from elsewhere that opens the page is no request of that page's.
        return headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") in {
            "document",
            None,
        }
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc == host


def _shown(headers: Headers) -> list[str]:
    """Return the tokens that a request shows."""
    shown = []
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        shown.append(given.strip())
    for part in headers.get("cookie", "").split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE:
            shown.append(value)
    return shown


def _same(given: str, token: str) -> bool:
    return secrets.compare_digest(given.encode(), token.encode())
