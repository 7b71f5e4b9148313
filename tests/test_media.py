from __future__ import annotations

import io
import random
import struct
import warnings
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from mmsearch.errors import MediaError
from mmsearch.retrieval import media
from mmsearch.retrieval.media import load_rgb, open_picture, orientation, read_bytes, upright_rgb
from mmsearch.retrieval.rgb import to_rgb

# How the camera was held: what it stores is the upright picture after this change.
STORED_AS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def corners(size: tuple[int, int] = (48, 32)) -> Image.Image:
    """A picture whose four quarters differ, so that no turn or mirror leaves it as it is."""
    width, height = size
    image = Image.new("RGB", size, (230, 20, 20))
    image.paste((20, 200, 20), (width // 2, 0, width, height // 2))
    image.paste((20, 20, 230), (0, height // 2, width // 2, height))
    image.paste((240, 240, 20), (width // 2, height // 2, width, height))
    return image


def turned(turn: int) -> tuple[Image.Image, Image.Exif]:
    change, exif = STORED_AS[turn], Image.Exif()
    exif[0x0112] = turn
    return (corners() if change is None else corners().transpose(change)), exif


def encoded(image: Image.Image, format_: str, **options: Any) -> bytes:
    media._register_heif()
    stream = io.BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


def pixels(image: Image.Image) -> NDArray[np.int16]:
    return np.asarray(image, dtype=np.int16)


def decoded(data: bytes) -> NDArray[np.int16]:
    image = upright_rgb(open_picture(data))
    assert image.mode == "RGB"
    return pixels(image)


def kind_of(data: bytes) -> str:
    with pytest.raises(MediaError) as caught:
        upright_rgb(open_picture(data))
    assert str(caught.value)
    return caught.value.kind


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99))


@pytest.mark.parametrize("turn", STORED_AS)
@pytest.mark.parametrize(
    ("format_", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("TIFF", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("JPEG", {"quality": 95, "subsampling": 0}, 3),
        ("AVIF", {"quality": 90, "subsampling": "4:4:4"}, 8),
        ("HEIF", {"quality": 90, "chroma": 444}, 8),
    ],
)
def test_every_orientation_comes_upright(
    turn: int, format_: str, options: dict[str, Any], tolerance: int
) -> None:
    stored, exif = turned(turn)
    # Given as an object, pillow_heif would store the tag without the turn that HEIC goes by.
    image = open_picture(encoded(stored, format_, exif=exif.tobytes(), **options))
    told = image.size if orientation(image) < 5 else image.size[::-1]
    upright = upright_rgb(image)
    assert upright.size == told == (48, 32)
    assert np.abs(pixels(upright) - pixels(corners())).mean() <= tolerance
    assert upright.getexif().get(0x0112, 1) == 1


def test_orientation_is_told_before_decoding() -> None:
    stored, exif = turned(6)
    image = open_picture(encoded(stored, "JPEG", exif=exif))
    assert orientation(image) == 6
    assert image.size == (32, 48)


@pytest.mark.parametrize("nonsense", [0, 9, 65535])
def test_a_nonsensical_orientation_counts_as_upright(nonsense: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = nonsense
    image = open_picture(encoded(corners(), "PNG", exif=exif))
    assert orientation(image) == 1
    np.testing.assert_array_equal(pixels(upright_rgb(image)), pixels(corners()))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_broken_exif_does_not_keep_a_picture_from_being_read() -> None:
    whole = encoded(corners(), "JPEG", quality=95)
    entry = struct.pack(">HHII", 0x010F, 2, 9_999, 8)
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 40) + entry
    data = whole[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + whole[2:]
    image = open_picture(data)
    assert orientation(image) == 1
    np.testing.assert_array_equal(pixels(upright_rgb(image)), decoded(whole))


@pytest.mark.parametrize(
    ("mode", "format_"),
    [
        ("RGBA", "PNG"),
        ("RGBA", "TIFF"),
        ("RGBA", "WEBP"),
        ("LA", "PNG"),
        ("LA", "TIFF"),
        ("P", "PNG"),
        ("P", "GIF"),
    ],
)
def test_transparency_lies_over_white(mode: str, format_: str) -> None:
    options: dict[str, Any] = {"lossless": True} if format_ == "WEBP" else {}
    if mode == "P":
        image = Image.new("P", (4, 2), 0)
        image.putpalette([0, 0, 0, 10, 20, 30])
        image.paste(1, (2, 0, 4, 2))
        options["transparency"] = 0
        right = [10, 20, 30]
    else:
        clear, solid = ((0,) * len(mode), (40,) * (len(mode) - 1) + (255,))
        image = Image.new(mode, (4, 2), clear)
        image.paste(solid, (2, 0, 4, 2))
        right = [40, 40, 40]
    rows = decoded(encoded(image, format_, **options))
    assert rows[0].tolist() == [[255, 255, 255]] * 2 + [right] * 2


def test_half_transparency_is_mixed_with_white() -> None:
    rows = decoded(encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 128)), "PNG"))
    assert rows[0, 0].tolist() == [127, 127, 127]


@pytest.mark.parametrize("transparency", [b"\xff\x00", b"\x00"])
def test_palettes_with_a_transparency_for_each_entry(transparency: bytes) -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([200, 0, 0, 0, 200, 0])
    image.putpixel((1, 0), 1)
    rows = decoded(encoded(image, "PNG", transparency=transparency))
    expected = {b"\xff\x00": [[200, 0, 0], [255] * 3], b"\x00": [[255] * 3, [0, 200, 0]]}
    assert rows[0].tolist() == expected[transparency]


def test_cmyk_becomes_rgb() -> None:
    for ink, rgb in (((0, 0, 0, 0), (255,) * 3), ((0, 255, 255, 0), (255, 0, 0))):
        rows = decoded(encoded(Image.new("CMYK", (16, 16), ink), "JPEG", quality=95))
        np.testing.assert_allclose(rows[8, 8], rgb, atol=30)


@pytest.mark.parametrize("format_", ["PNG", "TIFF", "PPM"])
def test_grey_of_16_bits_keeps_its_shades(format_: str) -> None:
    shades = np.linspace(0, 65535, 256).astype(np.uint16)
    rows = decoded(encoded(Image.fromarray(np.tile(shades, (4, 1))), format_))
    np.testing.assert_allclose(rows[0, :, 0], np.arange(256), atol=1)
    assert (rows[..., 0] == rows[..., 2]).all()


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_deeper_numbers_are_spread_over_the_shades(dtype: type) -> None:
    values = np.array([[-1000, 0, 1000]], dtype=dtype)
    rows = decoded(encoded(Image.fromarray(values), "TIFF"))
    assert rows[0, :, 0].tolist() == [0, 128, 255]


def test_one_bit_pictures_are_black_and_white() -> None:
    image = Image.new("1", (2, 1), 0)
    image.putpixel((1, 0), 1)
    for format_ in ("PNG", "BMP", "TIFF", "PPM"):
        assert decoded(encoded(image, format_))[0].tolist() == [[0] * 3, [255] * 3]


@pytest.mark.parametrize("format_", ["PNG", "GIF", "BMP", "TIFF"])
def test_palettes_give_their_colours(format_: str) -> None:
    flat = corners().convert("P", palette=Image.Palette.ADAPTIVE)
    np.testing.assert_array_equal(decoded(encoded(flat, format_)), pixels(flat.convert("RGB")))


@pytest.mark.parametrize("format_", ["PNG", "GIF", "TIFF", "WEBP", "AVIF", "HEIF"])
def test_of_several_frames_the_first_is_taken(format_: str) -> None:
    others = [Image.new("RGB", (48, 32), colour) for colour in ("black", "white")]
    data = encoded(corners(), format_, save_all=True, append_images=others)
    image = open_picture(data)
    assert getattr(image, "n_frames", 1) == 3
    image.seek(1)
    assert np.abs(pixels(upright_rgb(image)) - pixels(corners())).mean() < 12


@pytest.mark.parametrize("primary", [0, 1, 2])
def test_of_a_heic_the_picture_is_taken_that_it_says_is_meant(primary: int) -> None:
    sizes = [(64, 48), (48, 32), (80, 64)]
    first, *others = (Image.new("RGB", size, "black") for size in sizes)
    several = [first, *others]
    several[primary] = corners(sizes[primary])
    data = encoded(
        several[0], "HEIF", save_all=True, append_images=several[1:], primary_index=primary
    )
    image = open_picture(data)
    assert image.size == sizes[primary]
    assert np.abs(pixels(upright_rgb(image)) - pixels(corners(sizes[primary]))).mean() < 12


@pytest.mark.parametrize("filling", [b"\0", b"\x55"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_whose_room_was_taken_beforehand_is_not_all_there(
    filling: bytes, progressive: bool
) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    exif = Image.Exif()
    # As the thumbnail of a camera has it: an end mark before the picture's own pixels.
    exif[0x010E] = "\xff\xd9"
    whole = encoded(Image.fromarray(noise), "JPEG", progressive=progressive, exif=exif)
    for kept in (0.3, 0.6, 0.95):
        assert kind_of(whole[: int(len(whole) * kept)].ljust(len(whole), filling)) == "truncated"
    np.testing.assert_array_equal(decoded(whole + filling * 999), decoded(whole))


def test_a_png_whose_pixels_changed_is_damaged() -> None:
    whole = encoded(corners((480, 320)), "PNG")
    at = whole.index(b"IDAT") + 4
    kinds = set()
    for place in range(at, len(whole) - 16, 7):
        changed = bytearray(whole)
        changed[place] ^= 0x10
        kinds.add(kind_of(bytes(changed)))
    assert kinds == {"damaged"}


@pytest.mark.parametrize("name", [b"zTXt", b"iCCP"])
def test_what_a_text_unpacks_to_says_nothing_of_the_pixels(name: bytes) -> None:
    whole = encoded(corners(), "PNG")
    bomb = chunk(name, b"x\0\0" + zlib.compress(bytes(70 << 20)))
    np.testing.assert_array_equal(decoded(whole[:33] + bomb + whole[33:]), pixels(corners()))


def test_numbers_that_are_none_are_white_and_leave_the_others_alone() -> None:
    values = np.array([[-1000, 0, 1000, np.nan, np.inf]], dtype=np.float32)
    rows = decoded(encoded(Image.fromarray(values), "TIFF"))
    assert rows[0, :, 0].tolist() == [0, 128, 255, 255, 255]
    nothing = np.full((2, 2), np.nan, dtype=np.float32)
    assert (decoded(encoded(Image.fromarray(nothing), "TIFF")) == 255).all()


def test_a_transparent_shade_of_16_bits_is_white() -> None:
    values = np.array([[0, 257, 65535]], dtype=np.uint16)
    image = Image.fromarray(values)
    rows = decoded(encoded(image, "PNG", transparency=257))
    assert rows[0, :, 0].tolist() == [0, 255, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16", "F"])
def test_bands_make_no_difference(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(4).integers(0, 256, (50, 33, 4), dtype=np.uint8)
    image = Image.fromarray(values)
    if mode == "F":
        image = Image.fromarray(values[..., 0].astype(np.float32) * 9 - 400)
    elif mode == "I;16":
        image = Image.fromarray(values[..., 0].astype(np.uint16) * 200)
    elif mode == "P":
        image = image.convert("RGB").quantize(200)
        image.info["transparency"] = bytes(range(200))
    else:
        image = image.convert(mode)
    whole = pixels(to_rgb(image))
    monkeypatch.setattr("mmsearch.retrieval.rgb.BAND_PIXELS", 100)
    np.testing.assert_array_equal(pixels(to_rgb(image)), whole)


@pytest.mark.parametrize("format_", ["JPEG", "WEBP", "BMP", "AVIF", "HEIF", "JPEG2000", "PPM"])
def test_every_format_is_read_whatever_the_name_says(format_: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.JPG"
    path.write_bytes(encoded(corners(), format_))
    assert np.abs(pixels(load_rgb(path)) - pixels(corners())).mean() < 12
    assert load_rgb(str(path)).mode == "RGB"


def test_a_picture_in_memory_is_turned_and_left_as_it_was() -> None:
    stored, exif = turned(8)
    given_ = Image.open(io.BytesIO(encoded(stored, "PNG", exif=exif)))
    np.testing.assert_array_equal(pixels(load_rgb(given_)), pixels(corners()))
    np.testing.assert_array_equal(pixels(given_), pixels(stored))
    assert given_.getexif()[0x0112] == 8
    plain = corners()
    load_rgb(plain).putpixel((0, 0), (1, 2, 3))
    assert plain.getpixel((0, 0)) == (230, 20, 20)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "GIF", "TIFF", "BMP", "HEIF", "WEBP", "AVIF"])
@pytest.mark.parametrize("kept", [0.15, 0.4, 0.7, 0.95])
def test_pictures_that_end_early_say_so(format_: str, kept: float) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise), format_)
    # The decoders of WebP and AVIF want the whole file before they tell its size.
    expected = "damaged" if format_ in {"WEBP", "AVIF"} else "truncated"
    assert kind_of(whole[: int(len(whole) * kept)]) == expected


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "GIF", "TIFF", "HEIF", "WEBP", "AVIF"])
@pytest.mark.parametrize("kept", [16, 20, 30, 60])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_header_cut_short_is_no_other_kind_of_file(format_: str, kept: int) -> None:
    assert kind_of(encoded(corners(), format_)[:kept]) in {"truncated", "damaged"}


def test_only_a_missing_end_marker_is_forgiven() -> None:
    whole = encoded(corners(), "PNG")
    np.testing.assert_array_equal(decoded(whole[:-12]), pixels(corners()))


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (b"<!DOCTYPE html><html>gone</html>", "web page"),
        (b"\n <HTML><body>", "web page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"<?xml version='1.0'?>", "SVG"),
        (b"no picture at all", "not an image"),
        (b"\0" * 1000, "not an image"),
    ],
)
def test_other_files_named_like_pictures_are_no_images(
    start: bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "page.jpg"
    path.write_bytes(start)
    with pytest.raises(MediaError, match=reason) as caught:
        load_rgb(path)
    assert caught.value.kind == "not-an-image"
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "start",
    [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\xc5\xd0\xd3\xc6" + b"\0" * 99],
)
def test_postscript_is_never_handed_to_ghostscript(start: bytes) -> None:
    assert kind_of(start) == "not-an-image"


@pytest.mark.parametrize("side", [20_000, 60_000, 2**31 - 1])
@pytest.mark.parametrize("pillows_limit", [None, 10**6])
def test_a_huge_header_is_refused_before_anything_is_decoded(
    side: int, pillows_limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def must_not_decode(*_: object) -> None:
        raise AssertionError("pixels were asked for")

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows_limit)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", must_not_decode)
    with pytest.raises(MediaError) as caught:
        open_picture(png_header(side, side))
    assert caught.value.kind == "too-large"


def test_pictures_of_just_the_limit_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "MAX_PIXELS", 48 * 32)
    assert open_picture(encoded(corners(), "PNG")).size == (48, 32)
    with pytest.raises(MediaError, match="48×33"):
        open_picture(encoded(corners((48, 33)), "PNG"))


def test_files_without_content_or_with_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media, "MAX_FILE_BYTES", 1 << 20)
    files = {"empty": b"", "too-large": b"\xff" * ((1 << 20) + 1), "vanished": None}
    for kind, content in files.items():
        path = tmp_path / kind
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(MediaError) as caught:
            read_bytes(path)
        assert caught.value.kind == kind
    # It is not read to find that out.
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(MediaError, match="larger than 1 MiB"):
        read_bytes(sparse)
    (tmp_path / "just fits").write_bytes(b"\xff" * (1 << 20))
    assert len(read_bytes(tmp_path / "just fits")) == 1 << 20


def test_a_folder_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(MediaError) as caught:
        read_bytes(tmp_path)
    assert caught.value.kind == "unreadable"


@pytest.mark.parametrize("size", [(4000, 3000), (3000, 4000)])
def test_large_jpegs_are_decoded_at_a_smaller_scale(size: tuple[int, int]) -> None:
    small = Image.effect_noise((40, 30), 90).convert("RGB").resize(size, Image.Resampling.BICUBIC)
    data = encoded(small, "JPEG", quality=90)
    whole = upright_rgb(open_picture(data))
    assert whole.size == size
    for at_least in (224, 375, 376):
        reduced = upright_rgb(open_picture(data), at_least=at_least)
        assert at_least <= min(reduced.size) < min(size) / 3
        assert reduced.size[0] * size[1] == pytest.approx(reduced.size[1] * size[0], rel=0.01)
        thumbs = [pixels(image.resize((64, 64), reducing_gap=2.0)) for image in (whole, reduced)]
        assert np.abs(thumbs[0] - thumbs[1]).mean() < 2


def test_at_least_more_than_there_is_changes_nothing() -> None:
    data = encoded(corners(), "JPEG")
    reduced = upright_rgb(open_picture(data), at_least=4096)
    np.testing.assert_array_equal(pixels(reduced), decoded(data))


@cache
def small_files() -> tuple[bytes, ...]:
    noise = np.random.default_rng(2).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    image, (_, exif) = Image.fromarray(noise), turned(6)
    exif[0x010E] = "a dog on grass"
    several: dict[str, Any] = {"save_all": True, "append_images": [corners((32, 24))]}
    return (
        encoded(image, "JPEG", exif=exif),
        encoded(image, "JPEG", progressive=True),
        encoded(image, "MPO", **several),
        encoded(image, "PNG", exif=exif, **several),
        encoded(image.convert("P"), "PNG", transparency=b"\x00\x80\xff"),
        encoded(Image.fromarray(noise[..., 0].astype(np.uint16) << 8), "PNG"),
        encoded(image, "GIF", **several),
        encoded(image, "TIFF", exif=exif),
        encoded(image, "TIFF", tiffinfo={317: 2}),
        encoded(image, "WEBP", exif=exif),
        encoded(image, "BMP"),
        encoded(image, "AVIF", exif=exif),
        encoded(image, "HEIF", exif=exif),
        encoded(image, "JPEG2000"),
        encoded(image, "PPM"),
    )


@pytest.mark.parametrize("action", ["error", "ignore"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_files_decode_or_raise_media_error(action: Any, data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from(small_files()))
    chance = random.Random(data.draw(st.integers(0, 2**32)))
    damaged = bytearray(whole)
    if data.draw(st.booleans()):
        del damaged[chance.randrange(len(damaged)) :]
    for _ in range(data.draw(st.integers(0, 8))):
        # Headers break decoders more often than pixels do.
        reach = min(len(damaged), chance.choice([64, 512, len(whole)]))
        if reach:
            damaged[chance.randrange(reach)] = chance.choice([0, 1, 255, chance.randrange(256)])
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # `ignore` is what the command line does; `error` shows that no warning gets out.
        warnings.simplefilter(action)
        patch.setattr(media, "MAX_PIXELS", 1 << 22)
        try:
            image = open_picture(bytes(damaged))
            rgb = upright_rgb(image, at_least=data.draw(st.sampled_from([None, 8])))
        except MediaError as error:
            outcome = error.kind
        else:
            outcome = rgb.mode
            assert pixels(rgb).shape == (rgb.height, rgb.width, 3)
    kinds = {"truncated", "damaged", "not-an-image", "too-large", "pillow-limit"}
    assert outcome in kinds | {"RGB"}
