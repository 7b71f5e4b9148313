"""Pictures that clients send: checked by their header, decoded only as far as an encoder needs."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from mmsearch.errors import MediaError, QueryError
from mmsearch.retrieval.media import open_picture, upright_rgb

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["decoded"]


def decoded(data: bytes, name: str | None, *, most_pixels: int, at_least: int) -> Image.Image:
    """Return the upright RGB picture that bytes of a client's hold.

    Args:
        data: the whole file.
        name: what the client calls it; told in answers.
        most_pixels: larger ones are refused before anything is decoded.
        at_least: shortest side in pixels that is enough.

    Raises:
        QueryError: it is no picture, is too large, or is damaged.
    """
    # Only what stands last, whatever the client's system separates with.
    called = PurePosixPath((name or "picture").replace("\\", "/")).name[:100] or "picture"
    try:
        rgb = _decoded(data, most_pixels, at_least)
    except MediaError as error:
        raise QueryError(f"The picture {called} cannot be used: {error}.") from error
    # What `Question` tells a picture by.
    rgb.filename = called  # type: ignore[attr-defined]
    return rgb


def _decoded(data: bytes, most_pixels: int, at_least: int) -> Image.Image:
    if not data:
        raise MediaError("empty", "the file has zero bytes")
    picture = open_picture(data)
    width, height = picture.size
    if width * height > most_pixels:
        raise MediaError(
            "too-large",
            f"{width}×{height} is more than the {most_pixels / 1e6:,.0f} megapixels that are taken "
            "here; send a smaller one",
        )
    return upright_rgb(picture, at_least=at_least)
