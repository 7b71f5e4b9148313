"""A real server on loopback, in a thread, and clients that say what they like to it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mmsearch.retrieval.engine import open_engine
from mmsearch.retrieval.web import shelf as shelves
from mmsearch.retrieval.web.app import create_app
from mmsearch.retrieval.web.server import Server, listening
from mmsearch.retrieval.web.settings import Settings
from tests.conftest import ColourEncoder


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def kind(self) -> str:
        return self.json["kind"]


class Running:
    """A server that runs, and how to talk to it."""

    def __init__(self, app: Any, address: tuple[str, int]) -> None:
        self.app = app
        self.address = address
        self.host = f"127.0.0.1:{address[1]}"

    @property
    def shelf(self) -> shelves.Shelf:
        return self.app.state.services.shelf

    def connect(self, timeout: float = 20) -> socket.socket:
        return socket.create_connection(self.address, timeout=timeout)

    def raw(self, request: bytes, timeout: float = 20) -> Reply:
        """Send bytes, and read until the server closes or the response is whole."""
        with self.connect(timeout) as sock:
            sock.sendall(request)
            return read_reply(sock)

    def ask(
        self,
        path: str,
        method: str = "GET",
        body: bytes = b"",
        host: str | None = None,
        **headers: str,
    ) -> Reply:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host or self.host}", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        return self.raw("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def upload(self, path: str, *files: tuple[str, bytes], **fields: str) -> Reply:
        body, kind = form(files, fields)
        return self.ask(path, "POST", body, Content_Type=kind)


def form(files: Sequence[tuple[str, bytes]], fields: dict[str, str]) -> tuple[bytes, str]:
    """Return a multipart body and its media type."""
    parts = [
        f'--frontier\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    for name, data in files:
        head = f'--frontier\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
        parts.append(head.encode() + b"Content-Type: image/jpeg\r\n\r\n" + data + b"\r\n")
    return b"".join(parts) + b"--frontier--\r\n", "multipart/form-data; boundary=frontier"


def read_reply(sock: socket.socket) -> Reply:
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(65536)
        if not more:
            raise ConnectionResetError(f"closed after {data!r}")
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(": ")
        name = name.lower()
        headers[name] = f"{headers[name]}\n{value}" if name in headers else value
    length = int(headers.get("content-length", -1))
    while length < 0 or len(body) < length:
        more = sock.recv(65536)
        if not more:
            break
        body += more
    return Reply(int(first.split()[1]), headers, body)


@contextmanager
def served(
    libraries: Sequence[Path], settings: Settings | None = None, *, colours: bool = True
) -> Iterator[Running]:
    """Serve libraries; those that were indexed with the encoder of colours, if they were."""
    settings = settings or Settings(port=0)
    begun = threading.Event()
    with listening(settings) as at:
        try:
            if colours:
                shelves.open_engine = partial(open_engine, model=ColourEncoder())
            app = create_app(libraries, settings)
        finally:
            shelves.open_engine = open_engine
        server = Server(app, settings.limits, begun.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [at]})
        thread.start()
        assert begun.wait(20)
        try:
            yield Running(app, at.getsockname()[:2])
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
