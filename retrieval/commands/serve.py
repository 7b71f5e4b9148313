"""`mmsearch serve`: libraries over HTTP."""

from __future__ import annotations

import os
import secrets
from typing import Annotated

import typer

from mmsearch.errors import MissingExtra
from mmsearch.retrieval.commands.options import TOKEN_VARIABLE, Libraries, chosen_library
from mmsearch.retrieval.terminal import read_large_pictures, say

__all__ = ["serve"]

RATE = 100.0
"""Requests a second that another machine may send: a page full of thumbnails, again and again."""
BURST_S = 4
"""Seconds' worth of them at once."""


def serve(
    libraries: Libraries = None,
    host: Annotated[
        str, typer.Option(help="The address to listen on; 0.0.0.0 for every one of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            envvar=TOKEN_VARIABLE,
            help="What clients must show. Other processes see options: the variable is better. Off "
            "this machine one is made up if none is given.",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A name by which this server may be called; again for more."
        ),
    ] = None,
    allow_indexing: Annotated[
        bool, typer.Option("--allow-indexing", help="Let clients have a library indexed again.")
    ] = False,
    follow_links: Annotated[
        bool,
        typer.Option(
            "--follow-links",
            help="Hand out pictures that links lead to outside a library's folder.",
        ),
    ] = False,
    rerank: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A reranker that clients may ask for, beside fast; again for more."
        ),
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, max=256, help="Questions that are answered together at most.")
    ] = 16,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Requests a second from one address; 0 for any number.",
            show_default="any number on this machine only, else 100",
        ),
    ] = None,
    upload: Annotated[
        int, typer.Option(min=1, max=1024, metavar="MIB", help="The largest upload that is taken.")
    ] = 32,
    device: Annotated[
        str | None, typer.Option(help="Where vectors are compared: cpu, cuda, cuda:1.")
    ] = None,
) -> None:
    """Serve libraries: a page to look at, an API for programs (extra serve).

    Nothing but this machine can reach it, unless --host says so; then a token is needed.

    \b
    Examples: mmsearch serve ./photos
              MMSEARCH_TOKEN=... mmsearch serve ~/Pictures --host 0.0.0.0 --allow-host nas.local
    """  # noqa: D301 (the backspace keeps the lines apart)
    # Matrices of a question are small. Threads that wait for each other over them take as much of
    # the processor again as all the rest; there are enough questions for every core. NumPy reads
    # this when it is loaded, which it is not yet.
    for variable in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
        os.environ.setdefault(variable, "1")
    # Two batches scan side by side: FAISS's threads shall not spin while they wait for each other.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from mmsearch.retrieval.web.server import serve as serve_libraries
    except ImportError as error:
        raise MissingExtra(error.name or "fastapi", "serve") from error
    from mmsearch.retrieval.web.settings import MIB, Limits, Settings, is_loopback

    paths = list(libraries or []) or [chosen_library(None)]
    if not token and not is_loopback(host):
        token = secrets.token_urlsafe(24)
    if rate is None:
        rate = 0.0 if is_loopback(host) else RATE
    settings = Settings(
        host=host,
        port=port,
        token=token or None,
        hosts=tuple(allow_host or ()),
        allow_indexing=allow_indexing,
        follow_links=follow_links,
        rerankers=("fast", *(rerank or ())),
        batch=batch,
        limits=Limits(upload_bytes=upload * MIB, rate=rate, burst=max(1, round(BURST_S * rate))),
    )
    read_large_pictures()

    def started(port: int) -> None:
        shown = f"[{host}]" if ":" in host else host
        query = "" if settings.token is None else f"?token={settings.token}"
        say(f"Serving at http://{shown}:{port}/{query}")
        say("Ctrl-C ends it.")

    serve_libraries(paths, settings, device=device, started=started)
