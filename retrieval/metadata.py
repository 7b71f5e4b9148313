"""What a picture says about itself: when, where and with what it was taken, and its description.

Reads headers only. Metadata is written by cameras, phones and web sites of every kind, so each
field is read on its own and a broken one is simply absent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from PIL import ExifTags, Image, ImageFile, IptcImagePlugin

from mmsearch.retrieval.schema import Caption

__all__ = ["EMBEDDED", "Metadata", "read_metadata"]

T = TypeVar("T")

EMBEDDED = ("xmp", "iptc", "exif", "png")
"""The sources of captions that lie in a picture's own file."""

MAX_CAPTION_CHARACTERS = 2_000

# What cameras and programs put into the description field by themselves.
_BOILERPLATE = re.compile(
    r"^(olympus digital camera|sony dsc|minolta digital camera|konica minolta.*|samsung( camera.*)?"
    r"|kodak digital still camera|digital camera|default|untitled|screenshot|dcim[\\/].*"
    r"|exif_jpeg_picture|jpeg picture|created with.*|lead technologies.*|img_?\d+|dsc_?\d+"
    r"|<digimax.*|[\w-]+\.(jpe?g|png|tiff?|heic)|\W*)$",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Metadata:
    """A picture's own metadata; what is missing or broken is None.

    Attributes:
        taken_at: local time by the camera's clock, without a time zone.
        latitude: degrees, north positive.
        longitude: degrees, east positive.
        camera: maker and model.
        captions: descriptions embedded in the file, with their source.
    """

    taken_at: datetime | None = None
    latitude: float | None = None
    longitude: float | None = None
    camera: str | None = None
    captions: tuple[Caption, ...] = ()


def read_metadata(image: Image.Image) -> Metadata:
    """Return the metadata of a picture that was opened but need not be decoded."""
    exif = _attempt(image.getexif) or Image.Exif()
    details = _attempt(lambda: exif.get_ifd(ExifTags.IFD.Exif)) or {}
    gps = _attempt(lambda: exif.get_ifd(ExifTags.IFD.GPSInfo)) or {}
    place = _attempt(lambda: _place(gps))
    return Metadata(
        taken_at=_attempt(lambda: _taken_at(exif, details)),
        latitude=place[0] if place else None,
        longitude=place[1] if place else None,
        camera=_attempt(lambda: _camera(exif)),
        captions=tuple(_captions(image, exif)),
    )


def clean_caption(value: object) -> str | None:
    """Return one line of text fit to be a caption, or None where it says nothing."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if not isinstance(value, str):
        return None
    line = _one_line(value)[:MAX_CAPTION_CHARACTERS].strip()
    return None if _BOILERPLATE.match(line) else line


def _one_line(text: str) -> str:
    """Return the text without anything that could steer a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _attempt(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except Exception:
        return None


def _taken_at(exif: Image.Exif, details: dict[int, Any]) -> datetime | None:
    for tags, tag in (
        (details, ExifTags.Base.DateTimeOriginal),
        (details, ExifTags.Base.DateTimeDigitized),
        (exif, ExifTags.Base.DateTime),
    ):
        value = tags.get(tag)
        if isinstance(value, str):
            text = value.replace("\0", "").strip()[:19].replace("-", ":").replace("T", " ")
            with suppress(ValueError):
                return datetime.strptime(text, "%Y:%m:%d %H:%M:%S")
    return None


def _place(gps: dict[int, Any]) -> tuple[float, float] | None:
    latitude = _degrees(gps[ExifTags.GPS.GPSLatitude], gps[ExifTags.GPS.GPSLatitudeRef], "S")
    longitude = _degrees(gps[ExifTags.GPS.GPSLongitude], gps[ExifTags.GPS.GPSLongitudeRef], "W")
    if not (abs(latitude) <= 90 and abs(longitude) <= 180):
        return None
    # Phones without a fix write zeros: nobody photographs that point of the Atlantic.
    return None if latitude == longitude == 0 else (latitude, longitude)


def _degrees(parts: Any, reference: str, negative: str) -> float:  # noqa: ANN401
    degrees, minutes, seconds = (float(part) for part in parts)
    value = degrees + minutes / 60 + seconds / 3600
    return -value if reference.strip("\0 ").upper() == negative else value


def _camera(exif: Image.Exif) -> str | None:
    maker, model = (
        _one_line(str(exif.get(tag, ""))) for tag in (ExifTags.Base.Make, ExifTags.Base.Model)
    )
    # Most models repeat their maker: "Canon" + "Canon EOS R5".
    if maker and not model.lower().startswith(maker.split()[0].lower()):
        model = f"{maker} {model}"
    return model.strip()[:200] or None


def _captions(image: Image.Image, exif: Image.Exif) -> Iterator[Caption]:
    seen = set()
    for source, value in _descriptions(image, exif):
        text = clean_caption(value)
        if text and text not in seen:
            seen.add(text)
            yield Caption(text, source)


def _descriptions(image: Image.Image, exif: Image.Exif) -> Iterator[tuple[str, object]]:
    for value in _attempt(lambda: _xmp_texts(image.getxmp())) or ():
        yield "xmp", value
    if isinstance(image, ImageFile.ImageFile):
        opened = image
        iptc = _attempt(lambda: IptcImagePlugin.getiptcinfo(opened)) or {}
        yield "iptc", iptc.get((2, 120))
    yield "exif", exif.get(ExifTags.Base.ImageDescription)
    for tag in (ExifTags.Base.XPTitle, ExifTags.Base.XPComment, ExifTags.Base.XPSubject):
        raw = exif.get(tag)
        if isinstance(raw, (bytes, tuple)):
            yield "exif", bytes(raw).decode("utf-16-le", errors="replace").rstrip("\0")
    if image.format == "PNG":
        for key in ("Description", "Title"):
            yield "png", image.info.get(key)


def _xmp_texts(xmp: dict[str, Any]) -> list[str]:
    """Return the default-language `dc:description` and `dc:title` of Pillow's XMP dictionary."""
    texts = []
    blocks = xmp.get("xmpmeta", {}).get("RDF", {}).get("Description", [])
    for block in blocks if isinstance(blocks, list) else [blocks]:
        for key in ("description", "title"):
            value = block.get(key)
            while isinstance(value, (dict, list)):
                if isinstance(value, list):
                    value = value[0] if value else None
                else:
                    value = value.get("Alt") or value.get("li") or value.get("text")
            if isinstance(value, str):
                texts.append(value)
    return texts
