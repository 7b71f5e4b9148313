"""Where a server is, and what it is shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import parse_qsl, urlsplit

from mmsearch.errors import ServerError

__all__ = ["Address"]

LIKE = "it looks like http://127.0.0.1:8000"


@dataclass(frozen=True, slots=True)
class Address:
    """A server.

    Attributes:
        url: scheme, host, port and whatever path all of its routes begin with; no slash at the end.
        token: what it is shown with every request; never told.
    """

    url: str
    token: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, url: str, token: str | None = None) -> Address:
        """Read an address, also the one that `mmsearch serve` prints, with its token.

        Raises:
            ServerError: it is none, or the token cannot be sent.
        """
        try:
            parts = urlsplit(url.strip())
            host, _ = parts.hostname, parts.port
        except ValueError as error:
            raise ServerError(f"This is no address of a server; {LIKE}.") from error
        if parts.username is not None or parts.password is not None:
            raise ServerError("A server's address holds no user and no password; give a token.")
        if parts.scheme not in {"http", "https"} or not host:
            # A token may stand behind the question mark.
            raise ServerError(f"{url.partition('?')[0]!r} is no address of a server; {LIKE}.")
        given = token or dict(parse_qsl(parts.query)).get("token")
        if given is not None and not (given.isascii() and given.isprintable() and " " not in given):
            raise ServerError("A token is made of letters, digits and signs of ASCII.")
        return cls(f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}", given)

    @property
    def secure(self) -> bool:
        """Whether it is asked over TLS."""
        return self.url.startswith("https:")

    @property
    def loopback(self) -> bool:
        """Whether it is on this machine."""
        host = urlsplit(self.url).hostname or ""
        try:
            return ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"
