"""Small upright pictures of the files of a library, wherever they lie."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mmsearch.errors import MediaError
from mmsearch.retrieval.containers import read_inside
from mmsearch.retrieval.media import open_picture, read_bytes, upright_rgb

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["fitted", "picture_bytes", "thumbnail"]


def picture_bytes(file: Path) -> bytes:
    """Return the bytes of a picture: those of a file, or of what lies in a tar or Parquet file.

    Raises:
        MediaError: it is gone (`vanished`) or cannot be read.
    """
    inside = read_inside(file)
    if inside is not None:
        return inside
    try:
        if not file.exists():
            raise MediaError("vanished", "it is gone since it was indexed")
        if not file.is_file():
            raise MediaError("unreadable", "it is no file any more")
    except OSError as error:
        raise MediaError("unreadable", f"it cannot be looked at: {error.strerror}") from error
    return read_bytes(file)


def thumbnail(file: Path, side: int) -> Image.Image:
    """Return an upright RGB picture whose longer side is at most `side` pixels.

    Raises:
        MediaError: it is gone, or cannot be read or decoded.
    """
    picture = upright_rgb(open_picture(picture_bytes(file)), at_least=side)
    picture.thumbnail((side, side))
    return picture


def fitted(
    picture: tuple[int, int], box: tuple[int, int], cell: tuple[int, int]
) -> tuple[int, int]:
    """Return the columns and rows that a picture covers in a box of a terminal, undistorted.

    Args:
        picture: width and height in pixels.
        box: columns and rows that there are, each at least 1.
        cell: width and height of a cell in pixels.
    """
    scale = min(box[0] * cell[0] / picture[0], box[1] * cell[1] / picture[1])
    columns = round(picture[0] * scale / cell[0])
    rows = round(picture[1] * scale / cell[1])
    return min(max(columns, 1), box[0]), min(max(rows, 1), box[1])
