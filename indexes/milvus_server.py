"""Talking to a Milvus server: its address, what is tried again, and what its refusals mean.

`pymilvus` is loaded at the first connection, and its logger, which writes a traceback for whatever
a server refuses, is kept quiet: what is refused becomes one `StoreError`.
"""

from __future__ import annotations

import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from mmsearch.errors import MissingExtra, StoreError, StoreUnavailable

if TYPE_CHECKING:
    from pymilvus import MilvusClient

__all__ = ["OLDEST", "Address", "Server", "in_flight"]

TOKEN = "MMSEARCH_MILVUS_TOKEN"
PORT = 19530
DATABASE = "default"
OLDEST = (2, 3)
"""The server's version from which on everything that is asked of it is there."""
ANSWER_S = 10.0
"""How long one call may take."""
WRITING_S = 180.0
"""How long a writer tries what may succeed later: a server that was killed needs a minute."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0

# Of Milvus's own codes (pkg/util/merr), those that pass: a server that is starting, full for a
# moment or slowing writers down, and parts of a collection that move between its nodes.
PASSING = frozenset({2, 3, 4, 5, 7, 8, 9, 103, 400, 500, 501, 503, 600, 601, 602, 901, 902, 903})
_PASSING_WORDS = re.compile(
    r"not ready|no available|not available|unavailable|context deadline|connection refused|"
    r"rate limit|node offline|being closed",
    re.IGNORECASE,
)
"""Older servers say some of these with a number that means anything."""
NO_DATABASE = 800
FORBIDDEN = frozenset({1400, 1401})

_Result = TypeVar("_Result")
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is, and who asks.

    Attributes:
        host: its name or number.
        port: usually 19530.
        database: one of the server's.
        encrypted: whether the connection is TLS, checked by the certificates of this machine.
        token: `user:password`, or a key.
    """

    host: str
    port: int = PORT
    database: str = DATABASE
    encrypted: bool = False
    token: str = field(default="", repr=False)

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read `milvus://[user:password@]host[:port][/database]`, or `milvus+tls://…`.

        Where the address names no user, the environment's MMSEARCH_MILVUS_TOKEN says who asks.

        Raises:
            ValueError: it is none.
        """
        parts = urlsplit(url)
        database = unquote(parts.path.strip("/"))
        if parts.scheme not in {"milvus", "milvus+tls"} or not parts.hostname or "/" in database:
            raise ValueError("an address is milvus://host:19530/database")
        token = os.environ.get(TOKEN, "")
        if parts.username:
            token = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        return cls(
            parts.hostname,
            PORT if parts.port is None else parts.port,
            database or DATABASE,
            parts.scheme == "milvus+tls",
            token,
        )

    def __str__(self) -> str:
        """Without the token, as it may be shown."""
        scheme = "milvus+tls" if self.encrypted else "milvus"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}/{self.database}"

    @property
    def _uri(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.encrypted else 'http'}://{host}:{self.port}"

    def connect(self, timeout: float) -> MilvusClient:
        """Return a client that was answered; its errors are pymilvus's."""
        try:
            from pymilvus import MilvusClient
        except ImportError as error:
            raise MissingExtra("pymilvus", "milvus") from error
        if not os.environ.get("MMSEARCH_DEBUG"):
            logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
        # Of its own: pymilvus shares connections to one host and port whether or not encryption
        # was asked for (3.0.2), and would send in the clear what must not be.
        return MilvusClient(
            self._uri,
            token=self.token,
            db_name=self.database,
            timeout=timeout,
            dedicated=True,
            secure=self.encrypted,
        )


class Server:
    """A server that is asked again where that makes sense. Threads may share it."""

    def __init__(
        self,
        address: Address | str,
        *,
        answer_s: float = ANSWER_S,
        connect: Callable[[Address, float], MilvusClient] = Address.connect,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Connect at the first call.

        Args:
            address: where.
            answer_s: how long one call may take, and how long a reader tries.
            connect: makes a client, given the address and a time-out.
            sleep: waits.
            clock: seconds that only grow.
        """
        self.address = Address.parse(address) if isinstance(address, str) else address
        self.answer_s = answer_s
        self._connect, self._sleep, self._clock = connect, sleep, clock

    @cached_property
    def client(self) -> MilvusClient:
        """The client; connecting may fail as any call does."""
        return self._connect(self.address, self.answer_s)

    def call(
        self,
        method: str,
        /,
        *args: Any,  # noqa: ANN401 (pymilvus takes and returns what it likes)
        writing: bool = False,
        timeout: float | None = None,
        **how: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Call one of the client's methods; again, after a pause, where what failed may pass.

        Args:
            method: its name.
            args: what it takes.
            writing: whether the caller has time: it then tries for minutes.
            timeout: seconds that one try may take.
            how: what else it takes.

        Raises:
            StoreUnavailable: nobody answers, or not in time.
            StoreError: the server refuses.
        """
        limit = self.answer_s if timeout is None else timeout

        def once() -> Any:  # noqa: ANN401
            return getattr(self.client, method)(*args, timeout=limit, **how)

        return self.patiently(once, WRITING_S if writing else limit)

    def patiently(self, once: Callable[[], _Result], seconds: float) -> _Result:
        """Return what a call returns, trying for so many seconds where what fails may pass."""
        ends, pause = self._clock() + seconds, FIRST_PAUSE_S
        while True:
            try:
                return once()
            except (StoreError, MissingExtra):
                raise
            except Exception as error:
                if not _is_from_server(error):
                    raise
                # Full jitter (Brooker, "Exponential Backoff and Jitter", 2015): clients that
                # failed together do not come back together.
                waited = pause * (0.5 + random.random() / 2)
                if not _passes(error) or self._clock() + waited >= ends:
                    raise self.explained(error) from error
                self._sleep(waited)
                pause = min(2 * pause, LONGEST_PAUSE_S)

    def check(self, *, writing: bool = False) -> tuple[int, int]:
        """Connect, see whether we are let in, and return the server's version.

        Raises:
            StoreUnavailable: nobody answers.
            StoreError: it does not let us in, or is too old.
        """
        said = str(self.call("get_server_version", writing=writing))
        self.call("list_collections", writing=writing)
        found = re.match(r"v?(\d+)\.(\d+)", said)
        # What a branch was built from has no number; it is not old.
        version = (int(found[1]), int(found[2])) if found else (99, 0)
        if version < OLDEST:
            raise StoreError(
                f"The server at {self.address} is Milvus {said}; {OLDEST[0]}.{OLDEST[1]} is the "
                "oldest that mmsearch can use. Update it."
            )
        return version

    def explained(self, error: Exception) -> StoreError:
        """Return what a server's error means, as an instruction."""
        code, where = _code(error), self.address
        said = " ".join(str(getattr(error, "message", "") or error).split())
        if code in {"UNAUTHENTICATED", "PERMISSION_DENIED"} or code in FORBIDDEN:
            return StoreError(
                f"The server at {where} does not allow that ({_short(said)}). Name a user that may "
                f"do it: put user:password@ before the host, or set {TOKEN}."
            )
        if code == NO_DATABASE:
            return StoreError(
                f"The server at {where} has no database '{where.database}'. Make it there, or name "
                "another one after the port."
            )
        if _passes(error):
            return StoreUnavailable(
                f"The server at {where} does not answer, or not in time ({_short(said)}). Check "
                "host, port and whether it runs; then run the same command again."
            )
        return StoreError(f"The server at {where} refuses: {_short(said)}")


def in_flight(
    work: Callable[[_Item], _Result], items: Iterable[_Item], most: int
) -> Iterator[tuple[_Item, _Result]]:
    """Do the work of each item, at most so many at once; yield them in their order.

    The next item is taken when one before it is done, so what is slowed down slows its source.
    Where one fails, none is begun any more, and those before it were yielded.
    """
    with ThreadPoolExecutor(most, thread_name_prefix="mmsearch-store") as pool:
        running: list[tuple[_Item, Future[_Result]]] = []
        try:
            for item in items:
                running.append((item, pool.submit(work, item)))
                while len(running) >= most:
                    done, result = running[0]
                    wait([result], return_when=FIRST_COMPLETED)
                    yield done, result.result()
                    running.pop(0)
            for done, result in running:
                yield done, result.result()
        finally:
            for _, result in running:
                result.cancel()


def _is_from_server(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0] in {"pymilvus", "grpc"}


def _code(error: Exception) -> int | str:
    """Return Milvus's number, or the name that gRPC has for what happened."""
    code = getattr(error, "code", None)
    if callable(code):
        code = code()
    if isinstance(code, int):
        return int(code)
    return str(getattr(code, "name", code))


def _passes(error: Exception) -> bool:
    code = _code(error)
    # 8 and 49 are the numbers of "rate limit" of newer and older servers.
    limited = getattr(error, "compatible_code", None) == 49
    if limited or code in PASSING or code in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}:
        return True
    return code in {1, 65535} and _PASSING_WORDS.search(str(error)) is not None


def _short(text: str, most: int = 200) -> str:
    """Return the beginning of what a server says, which may be a trace of all its functions."""
    text = re.split(r"(?: at /|: stack trace|, debug=|\nTraceback)", text)[0]
    return text if len(text) <= most else text[: most - 1] + "…"
