"""The two clients: what they ask is made in `calls`; here it is sent, and waited for."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import anyio
import anyio.to_thread
import httpx

import mmsearch
from mmsearch.errors import MmsearchError
from mmsearch.retrieval.client import calls
from mmsearch.retrieval.client.address import Address
from mmsearch.retrieval.client.answers import Outcome, checked
from mmsearch.retrieval.client.retrying import Attempts

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence
    from typing import Self, Unpack

    from mmsearch.retrieval.client.answers import ServedItem
    from mmsearch.retrieval.client.calls import Call, SearchOptions, TasteOptions, TextOptions
    from mmsearch.retrieval.client.uploads import ItemName, PictureSource
    from mmsearch.retrieval.schema import Results

__all__ = ["AsyncClient", "Client"]

TIMEOUT_S = 30.0
CONNECT_S = 5.0
CONNECTIONS = 8
"""Requests that are under way at a time, those of `search_many` among them."""
RETRIES = 3

_Told = TypeVar("_Told")


class _Settings(TypedDict):
    base_url: str
    headers: dict[str, str]
    timeout: httpx.Timeout
    limits: httpx.Limits
    verify: bool | ssl.SSLContext
    trust_env: bool
    follow_redirects: bool


def _settings(address: Address, timeout: float) -> _Settings:
    headers = {"User-Agent": f"mmsearch/{mmsearch.__version__}"}
    if address.token is not None:
        headers["Authorization"] = f"Bearer {address.token}"
    return _Settings(
        base_url=address.url,
        headers=headers,
        timeout=httpx.Timeout(timeout, connect=min(timeout, CONNECT_S)),
        limits=httpx.Limits(max_connections=CONNECTIONS, keepalive_expiry=20.0),
        # Reading the certificates takes long, and without TLS there is nothing to verify.
        verify=address.secure,
        # A proxy leads away from this machine.
        trust_env=not address.loopback,
        # Where another host would be shown the token.
        follow_redirects=False,
    )


class _Request(TypedDict, total=False):
    method: str
    url: str
    params: tuple[tuple[str, str], ...]
    data: dict[str, list[str]]
    files: list[tuple[str, tuple[str, bytes, str]]]
    json: dict[str, Any]


def _request(call: Call[Any]) -> _Request:
    asked = _Request(method=call.method, url=call.path)
    if call.body is not None:
        asked["json"] = call.body
    elif call.uploads:
        form: dict[str, list[str]] = {}
        for name, value in call.fields:
            form.setdefault(name, []).append(value)
        asked["data"] = form
        asked["files"] = [
            ("image", (each.name, each.content, "application/octet-stream"))
            for each in call.uploads
        ]
    else:
        asked["params"] = call.fields
    return asked


async def _made(make: Callable[[], Call[_Told]]) -> Call[_Told]:
    """Make a call that may read pictures from disk, beside the event loop."""
    return await anyio.to_thread.run_sync(make)


class Client:
    """A server's libraries. Safe to use from several threads; close it, or use it with `with`.

    Methods raise errors of `mmsearch.errors`: `QueryError` where a question makes no sense,
    `NotServed`, `TokenRefused`, `RequestTooLarge`, `ServerBusy`, `ServerUnreachable` …
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeout: float = TIMEOUT_S,
        retries: int = RETRIES,
    ) -> None:
        """Prepare to ask a server; nothing is sent yet.

        Args:
            url: its address, also the one that `mmsearch serve` prints, with its token.
            token: what it asks for.
            timeout: seconds that it may take to say something.
            retries: how often a request is sent again where that is safe, see `Attempts`.

        Raises:
            ServerError: that is no address.
        """
        self._address = Address.of(url, token)
        self._retries = retries
        self._http = httpx.Client(**_settings(self._address, timeout))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._address.url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def search(
        self, text: str | Sequence[str] | None = None, **asked: Unpack[SearchOptions]
    ) -> Results:
        """Return what `SearchEngine.search` returns, see `calls.search` for all it takes."""
        return self._send(calls.search(text, **asked))

    def search_many(self, texts: Sequence[str], **asked: Unpack[TextOptions]) -> list[Results]:
        """Return the answers to many texts, asked side by side, see `calls.search_many`."""
        with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="mmsearch-client") as pool:
            waiting = [pool.submit(self._send, each) for each in calls.search_many(texts, **asked)]
            try:
                return [each.result() for each in waiting]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def similar(
        self, image: PictureSource, k: int = 10, *, library: str | Sequence[str] | None = None
    ) -> Results:
        """Return pictures like one, without itself, see `calls.similar`."""
        return self._send(calls.similar(image, k, library=library))

    def caption(
        self,
        image: PictureSource,
        k: int = 5,
        *,
        rerank: str | None = None,
        library: str | Sequence[str] | None = None,
    ) -> Results:
        """Return the captions that fit a picture best, see `calls.caption`."""
        return self._send(calls.caption(image, k, rerank=rerank, library=library))

    def recommend(
        self,
        like: Sequence[ItemName] = (),
        dislike: Sequence[ItemName] = (),
        history: Sequence[tuple[ItemName, float]] = (),
        **asked: Unpack[TasteOptions],
    ) -> Results:
        """Return what `SearchEngine.recommend` returns, see `calls.recommend`."""
        return self._send(calls.recommend(like, dislike, history, **asked))

    def item(self, name: ItemName) -> ServedItem:
        """Return what is known of a picture, `NAME/ID` or a hit."""
        return self._send(calls.item(name))

    def thumbnail(self, name: ItemName, side: int = 320) -> bytes:
        """Return a small upright JPEG, see `calls.thumbnail`."""
        return self._send(calls.thumbnail(name, side))

    def original(self, name: ItemName) -> bytes:
        """Return the picture's own file."""
        return self._send(calls.original(name))

    def explain(self, name: ItemName, text: str) -> dict[str, Any]:
        """Return why a picture matches words, see `calls.explain`."""
        return self._send(calls.explain(name, text))

    def heat(self, name: ItemName, text: str, side: int = 640) -> bytes:
        """Return a JPEG of where a picture matches words, see `calls.heat`."""
        return self._send(calls.heat(name, text, side))

    def status(self) -> dict[str, Any]:
        """Return what is served: `libraries`, `rerankers`, `version` and more."""
        return self._send(calls.status())

    def health(self) -> dict[str, Any]:
        """Return `status` and `version` of a server that answers; needs no token."""
        return self._send(calls.health())

    def _send(self, call: Call[_Told]) -> _Told:
        attempts = Attempts(call.method, self._retries)
        while True:
            outcome: Outcome
            try:
                outcome = self._http.request(**_request(call))
            except httpx.HTTPError as error:
                outcome = error
            wait = attempts.wait(outcome)
            if wait is None:
                return call.read(checked(outcome, self._address))
            time.sleep(wait)


class AsyncClient:
    """The same for asyncio and trio: close it with `aclose`, or use it with `async with`."""

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeout: float = TIMEOUT_S,
        retries: int = RETRIES,
    ) -> None:
        """Prepare to ask a server, as `Client` does."""
        self._address = Address.of(url, token)
        self._retries = retries
        self._http = httpx.AsyncClient(**_settings(self._address, timeout))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._address.url!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def search(
        self, text: str | Sequence[str] | None = None, **asked: Unpack[SearchOptions]
    ) -> Results:
        """Return what `SearchEngine.search` returns, see `calls.search` for all it takes."""
        return await self._send(await _made(lambda: calls.search(text, **asked)))

    async def search_many(
        self, texts: Sequence[str], **asked: Unpack[TextOptions]
    ) -> list[Results]:
        """Return the answers to many texts, asked side by side, see `calls.search_many`."""
        found: dict[int, Results] = {}
        failed: list[MmsearchError] = []
        gate = anyio.Semaphore(CONNECTIONS)

        async def one(place: int, call: Call[Results]) -> None:
            async with gate:
                try:
                    found[place] = await self._send(call)
                except MmsearchError as error:
                    failed.append(error)
                    group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            for place, call in enumerate(calls.search_many(texts, **asked)):
                group.start_soon(one, place, call)
        if failed:
            raise failed[0]
        return [found[place] for place in range(len(found))]

    async def similar(
        self, image: PictureSource, k: int = 10, *, library: str | Sequence[str] | None = None
    ) -> Results:
        """Return pictures like one, without itself, see `calls.similar`."""
        return await self._send(await _made(lambda: calls.similar(image, k, library=library)))

    async def caption(
        self,
        image: PictureSource,
        k: int = 5,
        *,
        rerank: str | None = None,
        library: str | Sequence[str] | None = None,
    ) -> Results:
        """Return the captions that fit a picture best, see `calls.caption`."""
        call = await _made(lambda: calls.caption(image, k, rerank=rerank, library=library))
        return await self._send(call)

    async def recommend(
        self,
        like: Sequence[ItemName] = (),
        dislike: Sequence[ItemName] = (),
        history: Sequence[tuple[ItemName, float]] = (),
        **asked: Unpack[TasteOptions],
    ) -> Results:
        """Return what `SearchEngine.recommend` returns, see `calls.recommend`."""
        return await self._send(calls.recommend(like, dislike, history, **asked))

    async def item(self, name: ItemName) -> ServedItem:
        """Return what is known of a picture, `NAME/ID` or a hit."""
        return await self._send(calls.item(name))

    async def thumbnail(self, name: ItemName, side: int = 320) -> bytes:
        """Return a small upright JPEG, see `calls.thumbnail`."""
        return await self._send(calls.thumbnail(name, side))

    async def original(self, name: ItemName) -> bytes:
        """Return the picture's own file."""
        return await self._send(calls.original(name))

    async def explain(self, name: ItemName, text: str) -> dict[str, Any]:
        """Return why a picture matches words, see `calls.explain`."""
        return await self._send(calls.explain(name, text))

    async def heat(self, name: ItemName, text: str, side: int = 640) -> bytes:
        """Return a JPEG of where a picture matches words, see `calls.heat`."""
        return await self._send(calls.heat(name, text, side))

    async def status(self) -> dict[str, Any]:
        """Return what is served: `libraries`, `rerankers`, `version` and more."""
        return await self._send(calls.status())

    async def health(self) -> dict[str, Any]:
        """Return `status` and `version` of a server that answers; needs no token."""
        return await self._send(calls.health())

    async def _send(self, call: Call[_Told]) -> _Told:
        attempts = Attempts(call.method, self._retries)
        while True:
            outcome: Outcome
            try:
                outcome = await self._http.request(**_request(call))
            except httpx.HTTPError as error:
                outcome = error
            wait = attempts.wait(outcome)
            if wait is None:
                return call.read(checked(outcome, self._address))
            await anyio.sleep(wait)
