"""Pictures to ask with: those of a server by name, others as files that are sent."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from mmsearch.errors import MediaError, QueryError
from mmsearch.retrieval.schema import Hit

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ItemName", "PictureSource", "Upload", "asked_with", "item_name"]

ItemName = str | Hit
"""A picture of a server: `NAME/ID`, or a hit of its answers."""

PictureSource: TypeAlias = "Path | str | Hit | Image"
"""What `asked_with` takes."""

_ITEM = re.compile(r"[^/]+/[0-9]{1,18}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that is sent."""

    name: str
    content: bytes


def item_name(item: ItemName) -> str:
    """Return the `NAME/ID` of a picture of a server.

    Raises:
        QueryError: it is none.
    """
    name = item.item if isinstance(item, Hit) else item
    if name is None or not _ITEM.fullmatch(name):
        told = name or "A hit of a folder's answers"
        raise QueryError(f"{told} names no picture of a server; that looks like NAME/ID: photos/17")
    return name


def asked_with(source: PictureSource) -> str | Upload:
    """Return the name of a picture of a server, or a picture as it is sent.

    Args:
        source: a `str` that looks like `NAME/ID`, or a hit of a server's answers, is a picture of
            its libraries. Other strings, and every `Path`, are files, also in a tar or Parquet
            file. A Pillow image is sent as PNG, which loses nothing.

    Raises:
        QueryError: it cannot be read.
    """
    if isinstance(source, Hit) or (isinstance(source, str) and _ITEM.fullmatch(source)):
        return item_name(source)
    # Pillow is loaded where there is a picture only.
    from mmsearch.retrieval.media import load_rgb
    from mmsearch.retrieval.thumbnails import picture_bytes

    try:
        if isinstance(source, (str, Path)):
            return Upload(Path(source).name, picture_bytes(Path(source)))
        buffer = io.BytesIO()
        load_rgb(source).save(buffer, "PNG", compress_level=1)
    except MediaError as error:
        raise QueryError(f"The query picture cannot be used: {source}: {error}.") from error
    name = Path(getattr(source, "filename", None) or "picture.png").name
    return Upload(name, buffer.getvalue())
