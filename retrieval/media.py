"""Pictures from files: bytes in, an upright RGB picture out.

Opening reads the header only; nothing is decoded before its size was checked. Every picture that
cannot be read raises `MediaError` with a `kind` that the catalog records.
"""

from __future__ import annotations

import io
import os
import re
from functools import cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from mmsearch.errors import MediaError
from mmsearch.retrieval.intact import PNG_START, check_jpeg, check_png, without_packed_texts
from mmsearch.retrieval.rgb import to_rgb

__all__ = [
    "MAX_FILE_BYTES",
    "MAX_PIXELS",
    "SUFFIXES",
    "TRANSIENT_KINDS",
    "load_rgb",
    "open_picture",
    "orientation",
    "read_bytes",
    "upright_rgb",
]

_ENDINGS = "jpg jpeg jpe jfif png webp gif bmp tif tiff heic heif hif avif jp2 ppm pgm pbm pnm"
SUFFIXES = frozenset(f".{ending}" for ending in _ENDINGS.split())
"""File name endings (lower case) of what is taken for a picture; the content decides the rest."""

MAX_PIXELS = 256 * 1024 * 1024
"""Pictures with more pixels are not decoded: 768 MiB of RGB, more than any camera makes."""

MAX_FILE_BYTES = 1 << 30
"""Larger files are not read: a picture is held in memory while it is decoded."""

TRANSIENT_KINDS = frozenset({"unreadable", "vanished", "out-of-memory", "pillow-limit"})
"""Problems that are not the content's: they may be over while size and time stay the same."""

EXIF_ORIENTATION = 0x0112

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow can open more, some of it by starting other programs (EPS runs Ghostscript).
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "HEIF", "AVIF", "JPEG2000", "PPM")


def read_bytes(path: Path) -> bytes:
    """Return the file's bytes; raise `MediaError` where there is nothing to decode."""
    try:
        with path.open("rb") as file:
            # A buffer of the file's size: one of the limit's costs more than the reading. One byte
            # more, to see a file that grows.
            size = os.fstat(file.fileno()).st_size
            data = b"" if size > MAX_FILE_BYTES else file.read(size + 1)
            if len(data) > size:
                data += file.read(MAX_FILE_BYTES + 1 - len(data))
    except FileNotFoundError as error:
        raise MediaError("vanished", "the file disappeared while it was being read") from error
    except OSError as error:
        raise MediaError("unreadable", f"the file cannot be read: {error.strerror}") from error
    if max(size, len(data)) > MAX_FILE_BYTES:
        limit = f"{MAX_FILE_BYTES >> 20} MiB"
        raise MediaError("too-large", f"the file is larger than {limit}, the most that is read")
    if not data:
        raise MediaError("empty", "the file has zero bytes")
    return data


def open_picture(data: bytes) -> Image.Image:
    """Open a picture by its header, without decoding it.

    Raises:
        MediaError: the bytes are no picture (`not-an-image`), one with more than `MAX_PIXELS`
            pixels (`too-large`), the header is cut off or broken (`damaged`), or the file is known
            not to be whole although it would decode (see `intact`).
    """
    _register_heif()
    try:
        image = _opened(data)
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\((\d+) pixels\)", str(error))
        if pixels and int(pixels[1]) > MAX_PIXELS:
            raise MediaError("too-large", _too_large(int(pixels[1]))) from error
        raise MediaError(
            "pillow-limit",
            f"{error} Raise PIL.Image.MAX_IMAGE_PIXELS, or use the command line, which does.",
        ) from error
    except UnidentifiedImageError as error:
        if _begins_like_a_picture(data):
            reason = "it begins like a picture, but its header is damaged or incomplete"
            raise MediaError("damaged", reason) from error
        raise MediaError("not-an-image", _describe(data)) from error
    except Exception as error:
        raise MediaError("damaged", f"the header cannot be read: {error}") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise MediaError("too-large", _too_large(width * height, f"{width}×{height}"))
    if image.format == "PNG":
        check_png(data)
    elif image.format in {"JPEG", "MPO"}:
        check_jpeg(data)
    return image


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) to 8; 1 where it is missing or nonsense.

    Also 1 for formats whose decoder brings them upright, size included: HEIC and TIFF.
    """
    if image.format == "TIFF":
        return 1  # HEIC says so itself; TIFF keeps the tag until its pixels are decoded.
    try:
        value = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def upright_rgb(image: Image.Image, *, at_least: int | None = None) -> Image.Image:
    """Decode an opened picture to RGB, upright, transparency over white.

    Of several frames or pages the first is taken, in a HEIC the one that it says is the picture.

    Args:
        image: what `open_picture` returned.
        at_least: shortest side in pixels that is enough; lets the JPEG decoder skip detail by
            working at 1/2, 1/4 or 1/8 scale.

    Raises:
        MediaError: the file ends early (`truncated`) or is damaged in another way (`damaged`).
    """
    turn = orientation(image)
    try:
        if at_least is not None:
            image.draft(None, (at_least, at_least))
        image.seek(_main_frame(image))
        image.load()
        rgb = to_rgb(image)
        if turn != 1:
            rgb = rgb.transpose(_TURNS[turn])
            # The tag would turn it once more if it came back here.
            rgb.info.pop("exif", None)
    except MemoryError as error:
        raise MediaError("out-of-memory", "there is not enough memory to decode it") from error
    except Exception as error:
        text = str(error)
        kind = "truncated" if "truncated" in text or "unexpected end" in text.lower() else "damaged"
        raise MediaError(kind, text or type(error).__name__) from error
    return rgb


def load_rgb(source: Path | str | Image.Image, *, at_least: int | None = None) -> Image.Image:
    """Return an upright RGB picture from a path, or from a picture the caller opened."""
    if isinstance(source, Image.Image):
        upright = upright_rgb(source)
        return upright.copy() if upright is source else upright
    try:
        return upright_rgb(open_picture(read_bytes(Path(source))), at_least=at_least)
    except MediaError as error:
        raise MediaError(error.kind, f"{source}: {error}") from error


@cache
def _register_heif() -> None:
    from pillow_heif import register_heif_opener

    register_heif_opener(thumbnails=False)


def _opened(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except ValueError:
        # A text or a profile that unpacks to more than Pillow allows says nothing of the pixels.
        if not data.startswith(PNG_START):
            raise
        return Image.open(io.BytesIO(without_packed_texts(data)), formats=_FORMATS)


def _main_frame(image: Image.Image) -> int:
    """Return which frame of an opened picture is meant."""
    if image.format == "HEIF":
        for frame in range(getattr(image, "n_frames", 1)):
            image.seek(frame)
            if image.info.get("primary"):
                return frame
    return 0


def _begins_like_a_picture(data: bytes) -> bool:
    return data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*")) or (
        data[4:12] in {b"ftypavif", b"ftypavis", b"ftypheic", b"ftypheix", b"ftypmif1"}
    )


def _too_large(pixels: int, what: str = "it") -> str:
    limit = f"at most {MAX_PIXELS / 1e6:,.0f} are decoded"
    return f"{what} is a picture of {pixels / 1e6:,.0f} megapixels; {limit}"


def _describe(data: bytes) -> str:
    start = data[:256].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "not an image: the file holds a web page"
    if start.startswith((b"<svg", b"<?xml")):
        return "not an image that is read here: the file holds XML or SVG"
    return "not an image in any format that is read here"
