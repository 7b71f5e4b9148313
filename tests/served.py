"""A server of small libraries, on this machine, in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

import mmsearch
from mmsearch.retrieval.web.app import create_app
from mmsearch.retrieval.web.settings import Settings
from tests.conftest import draw

TOKEN = "a-token-of-the-tests"


def make_libraries(here: Path, *, odd: bool = False) -> tuple[Path, Path]:
    """Make two libraries of the bundled encoder: one with captions, and one more.

    Args:
        here: where they lie.
        odd: whether a name is no valid text, as old archives have them.
    """
    photos, work = here / "my photos", here / "work"
    for i, colour in enumerate(("red", "green", "blue", "yellow", "white")):
        draw(photos / "plain" / f"{colour}.jpg", colour, (160 + 8 * i, 120))
        (photos / "plain" / f"{colour}.txt").write_text(f"a {colour} card on a table\n")
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape") if odd else "night.png"
    draw(photos / name, "black", (120, 120))
    for colour in ("red", "black"):
        draw(work / f"{colour}.png", colour, (100, 90))
    for folder in (photos, work):
        mmsearch.index(folder)
    return photos, work


@contextmanager
def serving(*folders: Path, **settings: Any) -> Iterator[str]:
    """Serve libraries, and yield the server's address."""
    app = create_app(folders, Settings(**settings), device="cpu")
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive(), "the server did not end"
