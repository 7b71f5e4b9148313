"""The process that serves: uvicorn around the application."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import uvicorn

from mmsearch.errors import MmsearchError
from mmsearch.retrieval.web.app import create_app

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from mmsearch.retrieval.web.settings import Settings

__all__ = ["serve"]

GRACE_S = 10
"""What requests that are being answered have at the end."""


def serve(
    libraries: Sequence[Path],
    settings: Settings,
    *,
    device: str | None = None,
    started: Callable[[int], None],
) -> None:
    """Serve libraries until the process is told to stop.

    Args:
        libraries: folders that were indexed.
        settings: where and what.
        device: where vectors are compared, see `open_engine`.
        started: called with the port, once requests are taken.

    Raises:
        MmsearchError: a library cannot be opened, or the address cannot be listened on.
    """
    listening = _listening(settings)
    app = create_app(libraries, settings, device=device)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=GRACE_S,
        limit_concurrency=settings.limits.requests,
    )
    server = _Server(config, lambda: started(listening.getsockname()[1]))
    with listening:
        server.run(sockets=[listening])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, begun: Callable[[], None]) -> None:
        super().__init__(config)
        self._begun = begun

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._begun()


def _listening(settings: Settings) -> socket.socket:
    """Return a socket that listens; before libraries are opened, which may take long."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((settings.host, settings.port))
    except OSError as error:
        listening.close()
        raise MmsearchError(
            f"The address {settings.host}:{settings.port} cannot be listened on: {error.strerror}. "
            "Choose another with --port (0 for any that is free)."
        ) from error
    return listening
