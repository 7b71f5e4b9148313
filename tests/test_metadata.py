from __future__ import annotations

import io
import random
import warnings
from datetime import datetime
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from mmsearch.errors import MediaError
from mmsearch.retrieval.media import open_picture
from mmsearch.retrieval.metadata import (
    MAX_CAPTION_CHARACTERS,
    Metadata,
    clean_caption,
    read_metadata,
)
from mmsearch.retrieval.schema import Caption

TAG, GPS = ExifTags.Base, ExifTags.GPS
TAKEN = datetime(2021, 7, 4, 15, 16, 17)


def picture(format_: str = "JPEG", *, xmp: bytes | None = None, **options: Any) -> bytes:
    if xmp is not None:
        match format_:
            case "PNG":
                options["pnginfo"] = PngInfo()
                options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode())
            case "TIFF":
                options["tiffinfo"] = {700: xmp}
            case _:
                options["xmp"] = xmp
    if "exif" in options:
        # Given as an object, Pillow leaves the dates and places out of TIFF.
        options["exif"] = options["exif"].tobytes()
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(stream, format_, **options)
    return stream.getvalue()


def metadata(data: bytes) -> Metadata:
    return read_metadata(open_picture(data))


def with_exif(
    base: dict[int, Any] | None = None,
    *,
    details: dict[int, Any] | None = None,
    gps: dict[int, Any] | None = None,
    format_: str = "JPEG",
) -> Metadata:
    exif = Image.Exif()
    exif.update(base or {})
    exif.get_ifd(ExifTags.IFD.Exif).update(details or {})
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(gps or {})
    return metadata(picture(format_, exif=exif))


def place(latitude: Any, north: str, longitude: Any, east: str) -> tuple[float, float] | None:
    found = with_exif(
        gps={
            GPS.GPSLatitude: latitude,
            GPS.GPSLatitudeRef: north,
            GPS.GPSLongitude: longitude,
            GPS.GPSLongitudeRef: east,
        }
    )
    if found.latitude is None or found.longitude is None:
        assert found.latitude is found.longitude is None
        return None
    return found.latitude, found.longitude


def xmp(*descriptions: str) -> bytes:
    blocks = "".join(
        f'<rdf:Description rdf:about="">{body}</rdf:Description>' for body in descriptions
    )
    return (
        '<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" '
        f'xmlns:dc="http://purl.org/dc/elements/1.1/">{blocks}</rdf:RDF></x:xmpmeta>'
    ).encode()


def alt(tag: str, *texts: str) -> str:
    languages = ("x-default", "de", "fr")
    items = "".join(
        f'<rdf:li xml:lang="{language}">{text}</rdf:li>'
        for language, text in zip(languages, texts, strict=False)
    )
    return f"<dc:{tag}><rdf:Alt>{items}</rdf:Alt></dc:{tag}>"


def with_iptc(caption: bytes) -> bytes:
    record = b"\x1c\x02\x78" + len(caption).to_bytes(2, "big") + caption
    block = (
        b"8BIM\x04\x04\0\0" + len(record).to_bytes(4, "big") + record + b"\0" * (len(record) % 2)
    )
    body = b"Photoshop 3.0\0" + block
    whole = picture()
    return whole[:2] + b"\xff\xed" + (len(body) + 2).to_bytes(2, "big") + body + whole[2:]


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_time_of_the_shutter_comes_before_that_of_the_file(format_: str) -> None:
    later = {TAG.DateTime: "2022:01:01 00:00:00"}
    shot = {TAG.DateTimeOriginal: "2021:07:04 15:16:17"}
    assert with_exif(later, details=shot, format_=format_).taken_at == TAKEN
    digitized = {TAG.DateTimeDigitized: "2021:07:04 15:16:17"}
    assert with_exif(later, details=digitized, format_=format_).taken_at == TAKEN
    assert with_exif(later, format_=format_).taken_at == datetime(2022, 1, 1)
    assert with_exif(format_=format_).taken_at is None


@pytest.mark.parametrize(
    "written",
    [
        "2021:07:04 15:16:17",
        "2021-07-04T15:16:17",
        " 2021:07:04 15:16:17.25+02:00",
        "2021-07-04 15:16:17",
    ],
)
def test_dates_are_read_as_programs_write_them(written: str) -> None:
    assert with_exif(details={TAG.DateTimeOriginal: written}).taken_at == TAKEN


@pytest.mark.parametrize(
    "broken",
    [
        "0000:00:00 00:00:00",
        "    :  :     :  :  ",
        "2021:13:04 15:16:17",
        "yesterday",
        "",
        "2021:07:04",
    ],
)
def test_a_broken_date_gives_way_to_the_next(broken: str) -> None:
    assert with_exif(details={TAG.DateTimeOriginal: broken}).taken_at is None
    good = {TAG.DateTime: "2021:07:04 15:16:17"}
    assert with_exif(good, details={TAG.DateTimeOriginal: broken}).taken_at == TAKEN


@pytest.mark.parametrize(
    ("north", "east", "signs"),
    [("N", "E", (1, 1)), ("S", "E", (-1, 1)), ("N", "W", (1, -1)), ("s", "w", (-1, -1))],
)
def test_south_and_west_are_negative(north: str, east: str, signs: tuple[int, int]) -> None:
    found = place((48.0, 30.0, 36.0), north, (2.0, 15.0, 0.0), east)
    assert found == pytest.approx((signs[0] * (48 + 30 / 60 + 36 / 3600), signs[1] * (2 + 15 / 60)))


@pytest.mark.parametrize(
    ("latitude", "longitude"),
    [
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
        ((91.0, 0.0, 0.0), (2.0, 0.0, 0.0)),
        ((48.0, 0.0, 0.0), (180.0, 1.0, 0.0)),
        ((48.0, 0.0), (2.0, 0.0)),
        ((48.0, 0.0, 0.0), (2.0,)),
    ],
)
def test_zeros_and_nonsense_are_no_place(latitude: object, longitude: object) -> None:
    assert place(latitude, "N", longitude, "E") is None


def test_a_division_by_zero_is_no_place() -> None:
    from PIL.TiffImagePlugin import IFDRational

    nothing = IFDRational(0, 0)
    assert place((nothing, nothing, nothing), "N", (2.0, 0.0, 0.0), "E") is None


def test_the_equator_and_the_meridian_are_places() -> None:
    assert place((0.0, 0.0, 0.0), "N", (30.0, 0.0, 0.0), "E") == (0, 30)
    assert place((51.0, 0.0, 0.0), "N", (0.0, 0.0, 0.0), "E") == (51, 0)


@pytest.mark.parametrize("missing", [GPS.GPSLatitude, GPS.GPSLatitudeRef, GPS.GPSLongitudeRef])
def test_half_a_place_is_none(missing: int) -> None:
    gps: dict[int, Any] = {
        GPS.GPSLatitude: (48.0, 0.0, 0.0),
        GPS.GPSLatitudeRef: "N",
        GPS.GPSLongitude: (2.0, 0.0, 0.0),
        GPS.GPSLongitudeRef: "E",
    }
    del gps[missing]
    assert with_exif(gps=gps).latitude is None


@pytest.mark.parametrize(
    ("maker", "model", "camera"),
    [
        ("Canon", "Canon EOS R5", "Canon EOS R5"),
        ("NIKON CORPORATION", "NIKON D90", "NIKON D90"),
        ("Apple", "iPhone 12", "Apple iPhone 12"),
        ("SONY  ", " ILCE-7M3", "SONY ILCE-7M3"),
        ("", "X100V", "X100V"),
        ("FUJIFILM", "", "FUJIFILM"),
        ("", "", None),
    ],
)
def test_camera_is_maker_and_model_said_once(maker: str, model: str, camera: str | None) -> None:
    assert with_exif({TAG.Make: maker, TAG.Model: model}).camera == camera


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_captions_from_xmp(format_: str) -> None:
    body = alt("title", "A dog", "Ein Hund") + alt("description", "a dog on grass", "Hund im Gras")
    assert metadata(picture(format_, xmp=xmp(body))).captions == (
        Caption("a dog on grass", "xmp"),
        Caption("A dog", "xmp"),
    )


@pytest.mark.parametrize(
    "body",
    [
        "<dc:description>a dog on grass</dc:description>",
        "<dc:description><rdf:Alt><rdf:li>a dog on grass</rdf:li></rdf:Alt></dc:description>",
        alt("description", "a dog on grass"),
    ],
)
def test_captions_from_xmp_as_other_programs_write_it(body: str) -> None:
    for blocks in ((body,), ("", body), ("<dc:format>image/jpeg</dc:format>", body)):
        assert metadata(picture(xmp=xmp(*blocks))).captions == (Caption("a dog on grass", "xmp"),)


def test_captions_from_xmp_attributes() -> None:
    data = xmp("").replace(b'rdf:about=""', b'rdf:about="" dc:description="a dog on grass"')
    assert metadata(picture(xmp=data)).captions == (Caption("a dog on grass", "xmp"),)


def test_captions_from_iptc() -> None:
    found = metadata(with_iptc("ein Hund im Grün".encode())).captions
    assert found == (Caption("ein Hund im Grün", "iptc"),)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_captions_from_exif(format_: str) -> None:
    found = with_exif({TAG.ImageDescription: "a dog on grass"}, format_=format_)
    assert found.captions == (Caption("a dog on grass", "exif"),)


@pytest.mark.parametrize("tag", [TAG.XPTitle, TAG.XPComment, TAG.XPSubject])
def test_captions_from_windows(tag: int) -> None:
    found = with_exif({tag: "Hündin 🐕\0".encode("utf-16-le")})
    assert found.captions == (Caption("Hündin 🐕", "exif"),)


@pytest.mark.parametrize("key", ["Description", "Title"])
def test_captions_from_png_texts(key: str) -> None:
    for international in (False, True):
        texts = PngInfo()
        (texts.add_itxt if international else texts.add_text)(key, "a dog on grass")
        texts.add_text("Software", "no caption")
        found = metadata(picture("PNG", pnginfo=texts))
        assert found.captions == (Caption("a dog on grass", "png"),)


def test_a_camera_cannot_steer_the_terminal() -> None:
    found = with_exif({TAG.Make: "\x1b]0;owned\x07Canon", TAG.Model: "EOS\x1b[2J"})
    assert found.camera == "]0;owned Canon EOS [2J"


def test_the_same_caption_in_two_places_counts_once() -> None:
    exif = Image.Exif()
    exif[TAG.ImageDescription] = " a dog  on grass "
    data = picture(exif=exif, xmp=xmp(alt("description", "a dog on grass")))
    assert metadata(data).captions == (Caption("a dog on grass", "xmp"),)


@pytest.mark.parametrize(
    "text",
    [
        "OLYMPUS DIGITAL CAMERA         ",
        "SONY DSC",
        "SAMSUNG",
        "DSC_0001",
        "IMG_20200101",
        "dsc01234.jpg",
        "KONICA MINOLTA DIGITAL CAMERA",
        "DCIM\\100MEDIA\\DJI_0001.JPG",
        "default",
        "Untitled",
        "Created with GIMP",
        "...",
        "",
        " \0 ",
    ],
)
def test_what_cameras_write_by_themselves_is_no_caption(text: str) -> None:
    assert clean_caption(text) is None
    assert with_exif({TAG.ImageDescription: text}).captions == ()


@pytest.mark.parametrize(
    "text", ["a dog", "Samsung phone on a table", "Default city, 2020", "犬", "IMG tag"]
)
def test_what_people_write_is_a_caption(text: str) -> None:
    assert clean_caption(text) == text


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("a\tdog\r\non\0grass", "a dog on grass"),
        ("\x1b[31ma dog\x1b[0m", "[31ma dog [0m"),
        ("a\u202egod\u2066 \x9b2J", "a god 2J"),
        (b"a d\xf6g", "a d\N{REPLACEMENT CHARACTER}g"),
        (None, None),
        (42, None),
        ("x" * 9_999, "x" * MAX_CAPTION_CHARACTERS),
    ],
)
def test_captions_are_one_printable_line(raw: object, clean: str | None) -> None:
    assert clean_caption(raw) == clean


@given(st.one_of(st.text(), st.binary()))
def test_clean_captions_are_printable_and_stay_as_they_are(raw: str | bytes) -> None:
    clean = clean_caption(raw)
    if clean is not None:
        assert clean.isprintable()
        assert 0 < len(clean) <= MAX_CAPTION_CHARACTERS
        assert clean_caption(clean) == clean


@cache
def described() -> tuple[bytes, ...]:
    exif = Image.Exif()
    exif.update({TAG.ImageDescription: "a dog on grass", TAG.Make: "Canon", TAG.Model: "EOS"})
    exif[TAG.XPTitle] = "a dog".encode("utf-16-le")
    exif.get_ifd(ExifTags.IFD.Exif)[TAG.DateTimeOriginal] = "2021:07:04 15:16:17"
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(
        {GPS.GPSLatitude: (48.0, 1.0, 2.0), GPS.GPSLatitudeRef: "N"}
        | {GPS.GPSLongitude: (2.0, 1.0, 2.0), GPS.GPSLongitudeRef: "E"}
    )
    body = xmp(alt("description", "a dog on grass", "ein Hund"))
    return (
        *(picture(format_, exif=exif, xmp=body) for format_ in ("JPEG", "PNG", "WEBP")),
        picture("TIFF", exif=exif),
        with_iptc(b"a dog"),
    )


def test_the_described_pictures_say_everything() -> None:
    for data in described()[:-1]:
        found = metadata(data)
        assert found.captions
        assert (found.taken_at, found.camera) == (TAKEN, "Canon EOS")
        assert found.latitude == pytest.approx(48 + 1 / 60 + 2 / 3600)


def check(found: Metadata) -> None:
    assert found.latitude is None or -90 <= found.latitude <= 90
    assert found.longitude is None or -180 <= found.longitude <= 180
    assert found.camera is None or found.camera.isprintable()
    assert all(caption.text.isprintable() for caption in found.captions)


@pytest.mark.parametrize("action", ["error", "ignore"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_metadata_never_raises(action: Any, data: st.DataObject) -> None:
    damaged = bytearray(data.draw(st.sampled_from(described())))
    chance = random.Random(data.draw(st.integers(0, 2**32)))
    for _ in range(data.draw(st.integers(1, 12))):
        damaged[chance.randrange(len(damaged))] = chance.choice([0, 1, 255, chance.randrange(256)])
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        try:
            image = open_picture(bytes(damaged))
        except MediaError:
            return
        check(read_metadata(image))


@settings(max_examples=100, deadline=None)
@given(exif=st.binary(max_size=200), body=st.binary(max_size=200), xml=st.booleans())
def test_arbitrary_exif_and_xmp_never_raise(exif: bytes, body: bytes, *, xml: bool) -> None:
    image = Image.new("RGB", (1, 1))
    image.info["exif"] = b"Exif\0\0II*\0\x08\0\0\0" + exif
    image.info["xmp"] = xmp(body.decode("latin-1")) if xml else body
    check(read_metadata(image))


@pytest.mark.parametrize(
    "body",
    [
        b"<x",
        b'<!DOCTYPE a [<!ENTITY b "c"><!ENTITY d "&b;&b;">]><a>&d;</a>',
        b"<xmpmeta>text</xmpmeta>",
        b"<xmpmeta><RDF>text</RDF></xmpmeta>",
        b"<xmpmeta><RDF><Description>text</Description></RDF></xmpmeta>",
        b"<xmpmeta><RDF><Description><description><Alt/></description></Description></RDF></xmpmeta>",
        b"<a>" * 5_000,
    ],
)
def test_other_xml_holds_no_captions(body: bytes) -> None:
    image = Image.new("RGB", (1, 1))
    image.info["xmp"] = body
    assert read_metadata(image) == Metadata()
