"""The process that serves: uvicorn around the application."""

from __future__ import annotations

import logging
import os
import signal
import socket
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import uvicorn

from mmsearch.errors import MmsearchError
from mmsearch.retrieval.web.app import create_app
from mmsearch.retrieval.web.connections import protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from types import FrameType

    from fastapi import FastAPI

    from mmsearch.retrieval.web.settings import Limits, Settings

__all__ = ["Server", "listening", "serve"]

GRACE_S = 20
"""What requests that are being answered have at the end."""


def serve(
    libraries: Sequence[Path],
    settings: Settings,
    *,
    device: str | None = None,
    started: Callable[[int], None],
) -> None:
    """Serve libraries until the process is told to stop.

    What is being answered then is answered first; a second Ctrl-C ends the process at once.

    Args:
        libraries: folders that were indexed.
        settings: where and what.
        device: where vectors are compared, see `open_engine`.
        started: called with the port, once requests are taken.

    Raises:
        MmsearchError: a library cannot be opened, or the address cannot be listened on.
        KeyboardInterrupt: it was told so by Ctrl-C.
    """
    # Before libraries are opened, which may take long.
    with listening(settings) as at:
        app = create_app(libraries, settings, device=device)
        Server(app, settings.limits, lambda: started(at.getsockname()[1])).run(sockets=[at])


class Server(uvicorn.Server):
    """uvicorn, with connections that are bounded and an end that is in order."""

    def __init__(self, app: FastAPI, limits: Limits, begun: Callable[[], None]) -> None:
        """Prepare to serve.

        Args:
            app: what answers.
            limits: what a client may do to connections.
            begun: called once requests are taken.
        """
        limits = replace(limits, connections=_affordable(limits.connections))
        config = uvicorn.Config(
            app,
            http=protocol(limits),
            ws="none",
            # What a client does wrong is told to the client; it could fill a log.
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=limits.idle_seconds,
            timeout_graceful_shutdown=GRACE_S,
        )
        super().__init__(config)
        logging.getLogger("python_multipart").setLevel(logging.ERROR)
        self._begun = begun

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take requests."""
        await super().startup(sockets)
        if self.started:
            self._begun()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals that end the process, while it serves."""
        with super().capture_signals():
            yield
            # A process that was asked to end, and did, ends well. Ctrl-C is told on.
            self._captured_signals = [
                each for each in self._captured_signals if each == signal.SIGINT
            ][:1]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; by a second Ctrl-C at once, whatever is being done."""
        if self.should_exit and sig == signal.SIGINT:
            os._exit(128 + signal.SIGINT)
        super().handle_exit(sig, frame)


def _affordable(connections: int) -> int:
    """Return how many connections may be open: half of the files that this process may open.

    The other half is for libraries, thumbnails and uploads.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit.
        return connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < 2 * connections:
        wanted = 2 * connections if hard == resource.RLIM_INFINITY else min(2 * connections, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            wanted = soft
        return min(connections, max(wanted, soft) // 2)
    return connections


def listening(settings: Settings) -> socket.socket:
    """Return a socket at the address.

    Raises:
        MmsearchError: it cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    at = socket.socket(family, socket.SOCK_STREAM)
    try:
        at.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        at.bind((settings.host, settings.port))
    except OSError as error:
        at.close()
        raise MmsearchError(
            f"The address {settings.host}:{settings.port} cannot be listened on: {error.strerror}. "
            "Choose another with --port (0 for any that is free)."
        ) from error
    return at
