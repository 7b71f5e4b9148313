"""Files of a library that are handed out: those the catalog knows, and nothing outside it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from mmsearch.errors import MediaError, MmsearchError
from mmsearch.retrieval.web.shelf import Served, Shelf

if TYPE_CHECKING:
    from mmsearch.retrieval.catalog.items import Item

__all__ = ["NoSuchItem", "file_of", "item_of", "located_item", "media_type"]

_TYPES = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
    "HEIF": "image/heic",
    "AVIF": "image/avif",
    "JPEG2000": "image/jp2",
}


class NoSuchItem(MmsearchError):
    """A library has no such picture."""


def located_item(shelf: Shelf, reference: str) -> tuple[Served, Item]:
    """Return the library and the picture that `NAME/ID` names.

    Raises:
        UnknownLibrary: no library has that name.
        NoSuchItem: it has no such picture.
    """
    name, _, number = reference.rpartition("/")
    if not (number.isascii() and number.isdecimal() and len(number) <= 18):
        raise NoSuchItem(f"{reference!r} names no picture; it looks like NAME/ID: photos/17.")
    served = shelf[name]
    return served, item_of(served, int(number))


def item_of(served: Served, id_: int) -> Item:
    """Return a picture of a library.

    Raises:
        NoSuchItem: there is none with this id.
    """
    found = served.engine.library.catalog.item(id_)
    if found is None:
        raise NoSuchItem(f"The library {served.name} has no picture {id_}.")
    return found


def file_of(served: Served, item: Item) -> Path:
    """Return where a picture lies: a file, or what leads into a tar or Parquet file.

    Raises:
        MediaError: a link leads out of the library's folder, and is not to be followed.
    """
    root = served.root
    path = root / item.picture.path
    if served.follow_links:
        return path
    real, home = os.path.realpath(path), os.path.realpath(root)
    if os.path.commonpath([real, home]) != home:
        raise MediaError(
            "unreadable",
            "a link leads out of the library's folder; serve --follow-links allows that",
        )
    return path


def media_type(item: Item) -> str:
    """Return what a browser calls the format."""
    return _TYPES.get(item.picture.format, "application/octet-stream")
