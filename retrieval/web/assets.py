"""What the page is made of beside its answers: templates, styles, scripts, icons."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from mimetypes import types_map
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.resources.abc import Traversable

__all__ = ["Asset", "Assets", "assets", "templates"]

_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_OTHERS = {".webmanifest": "application/manifest+json", ".txt": "text/plain"}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of the page."""

    content: bytes
    media_type: str


@dataclass(frozen=True, slots=True)
class Assets:
    """All files of the page, in memory: no path that a client names is ever opened.

    Attributes:
        version: a hash of all of them. It is a folder in their addresses, so that modules, which
            name each other relatively, are of one version, and may be kept for ever.
        files: by name.
    """

    version: str
    files: dict[str, Asset]

    def url(self, name: str) -> str:
        """Return a file's address; `KeyError` where there is none of that name."""
        _ = self.files[name]
        return f"/static/{self.version}/{name}"


@cache
def assets() -> Assets:
    """Return the files of the page."""
    found = {
        name: Asset(content, _type(name)) for name, content in _read(_folder("static"), prefix="")
    }
    digest = hashlib.sha256()
    for name in sorted(found):
        digest.update(name.encode() + b"\0" + found[name].content + b"\0")
    return Assets(digest.hexdigest()[:16], found)


@cache
def templates() -> dict[str, str]:
    """Return the texts of the page's templates by name."""
    return {name: text.decode() for name, text in _read(_folder("templates"), prefix="")}


def _folder(name: str) -> Traversable:
    return files("mmsearch.retrieval.web") / name


def _read(folder: Traversable, *, prefix: str) -> Iterator[tuple[str, bytes]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _read(entry, prefix=f"{prefix}{entry.name}/")
        elif not entry.name.startswith("."):
            yield prefix + entry.name, entry.read_bytes()


def _type(name: str) -> str:
    suffix = "." + name.rpartition(".")[2]
    # Not from the system's table alone, which a machine's owner may have changed.
    known = _TYPES | _OTHERS
    return known.get(suffix) or types_map.get(suffix, "application/octet-stream")
