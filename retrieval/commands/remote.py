"""Asking a server instead of a library on this machine, for the commands that can."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import typer

from mmsearch.errors import MediaError, NotServed
from mmsearch.retrieval.schema import Hit, Results

if TYPE_CHECKING:
    from mmsearch.retrieval.client import Client
    from mmsearch.retrieval.commands.showing import Showing

__all__ = ["Remote", "chosen_server", "picture_of", "show"]

SERVER_VARIABLE = "MMSEARCH_SERVER"
FETCHED = 4
"""Pictures that are fetched at a time."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A server to ask.

    Attributes:
        url: its address.
        token: what it asks for.
        library: the name of one of its libraries; None for all.
    """

    url: str
    token: str | None = field(repr=False)
    library: str | None

    @contextmanager
    def client(self) -> Iterator[Client]:
        """Yield a client of the server.

        Raises:
            MissingExtra: the extra `client` is not installed.
            ServerError: the address is none.
        """
        from mmsearch.retrieval.client import Client

        with Client(self.url, self.token) as client:
            yield client


def chosen_server(given: str | None, token: str | None, library: Path | None) -> Remote | None:
    """Return the server that should answer; None where a library on this machine should."""
    if given is None and library is None:
        given = os.environ.get(SERVER_VARIABLE) or None
    if given is None:
        return None
    return Remote(given, token, None if library is None else str(library))


def picture_of(argument: Path) -> Path | str:
    """Return a picture as a client takes it: a file here, else `NAME/ID` of the server."""
    # A picture may lie inside a tar or Parquet file.
    here = argument.exists() or argument.parent.is_file()
    return argument if here else str(argument)


def show(showing: Showing, client: Client, results: Results) -> None:
    """Show what a server found; pictures are fetched as far as that needs them.

    Raises:
        typer.BadParameter: links were asked for.
        ServerError: the server has gone meanwhile.
    """
    if showing.links is not None:
        raise typer.BadParameter(
            "--link-to needs a library on this machine: links cannot lead to a server. Copy the "
            "pictures with --copy-to FOLDER"
        )
    if showing.opened and showing.sheet is None:
        # Kept after this process, for the viewer; the system clears it away.
        _show(showing, client, results, Path(tempfile.mkdtemp(prefix="mmsearch-")))
        return
    with tempfile.TemporaryDirectory(prefix="mmsearch-") as folder:
        _show(showing, client, results, Path(folder))


def _show(showing: Showing, client: Client, results: Results, folder: Path) -> None:
    showing(results, lambda found, side: _fetched(client, found, side, folder))


@dataclass(frozen=True, slots=True)
class _Fetched(Results):
    """What a server found, with files of this machine that were fetched from it."""

    files: Mapping[str | None, Path] = field(default_factory=dict)

    def file(self, hit: Hit) -> Path:
        """Return where a picture was put; nothing is there where it could not be had."""
        return self.files[hit.item]


def _fetched(client: Client, results: Results, side: int | None, folder: Path) -> Results:
    """Return results whose pictures are on this machine.

    Args:
        client: of the server.
        results: what it found.
        side: pixels that the longer side needs; None for the pictures' own files.
        folder: where they go.
    """
    # Several captions may have found one picture.
    hits = {hit.item: hit for hit in results.hits}
    kind = "original" if side is None else str(side)

    def fetch(number: int, hit: Hit) -> Path:
        place = folder / kind / str(number) / _file_name(hit)
        try:
            data = client.original(hit) if side is None else client.thumbnail(hit, side)
        except (MediaError, NotServed):
            return place  # Whoever looks for it says that it is gone.
        place.parent.mkdir(parents=True, exist_ok=True)
        if side is None and "." not in place.name:
            # A row of a Parquet file.
            from mmsearch.retrieval.copies import name_inside

            place = place.with_name(name_inside(_clean(hit.path), data))
        place.write_bytes(data)
        return place

    with ThreadPoolExecutor(FETCHED) as pool:
        files = pool.map(fetch, range(len(hits)), hits.values())
        found = dict(zip(hits, files, strict=True))
    own = {
        each.name: getattr(results, each.name) for each in dataclass_fields(Results) if each.init
    }
    return _Fetched(**own, files=found)


def _file_name(hit: Hit) -> str:
    """Return the last part of a path that a server told: a name, and nothing that leads away."""
    name = PurePosixPath(_clean(hit.path)).name
    return name if name not in {"", ".", ".."} else str(hit.id)


def _clean(path: str) -> str:
    return path.replace("\\", "/").replace("\0", "")
