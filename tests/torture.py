"""A folder of everything that can be wrong with pictures, their names and what lies beside them.

usage: python tests/torture.py FOLDER     makes the folder, which must be new or empty
       python tests/torture.py            prints what is in it and what becomes of it, in Markdown

Each `Kind` makes one thing and says what indexing must make of it. All of it is made by Pillow,
pillow-heif and the standard library, without a network: the same bytes with the same versions.
"""

from __future__ import annotations

import io
import os
import random
import stat
import struct
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, partial
from inspect import signature
from pathlib import Path
from typing import Any

from PIL import Image, ImageCms, ImageDraw, ImageOps
from pillow_heif import register_heif_opener

__all__ = ["KINDS", "REFERENCES", "Kind", "Outcome", "grow", "make_folder", "table"]

SIZE = (288, 192)

STORED_AS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""What a camera stores, by EXIF orientation, of the scene that is to be seen upright."""


class Outcome(StrEnum):
    """What indexing makes of a thing."""

    INDEXED = "indexed"
    """A picture of the library, whose vector is that of the reference."""

    DUPLICATE = "duplicate"
    """A picture of the library, known to have the content of another."""

    SKIPPED = "skipped"
    """A problem of its own, with a kind and a reason."""

    IGNORED = "ignored"
    """Neither a picture nor a problem."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One thing in the folder.

    Attributes:
        path: where it lies, relative to the folder; bytes that are no UTF-8 as Python spells them.
        title: what it is, in a few words.
        outcome: what becomes of it.
        of: the reference that it must be seen as, the problem's kind, or the path it repeats.
        make: makes it at an absolute path; what lies beside it too.
        below: whether the problem is told of something below `path`.
        missing: says why this machine cannot have it; nothing where it can.
    """

    path: str
    title: str
    outcome: Outcome
    of: str
    make: Callable[[Path], None]
    below: bool
    missing: Callable[[Path], str | None]

    @property
    def group(self) -> str:
        """The folder it lies in, which says what it tries."""
        return self.path.split("/")[0]


KINDS: list[Kind] = []
"""In the order in which they are made."""


def make_folder(folder: Path) -> tuple[list[Kind], dict[str, str]]:
    """Make the folder; return the kinds that are in it, and why others are not, by their titles."""
    register_heif_opener()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty. Give a folder that is new.")
    made, left_out = [], {}
    for kind in KINDS:
        path = folder / kind.path
        reason = kind.missing(folder)
        if reason is not None:
            left_out[kind.title] = reason
            continue
        # What lies in a tar file was made with it.
        if not path.parent.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
        kind.make(path)
        made.append(kind)
    return made, left_out


def table() -> str:
    """Return what is in the folder and what becomes of it, as Markdown: the kinds by group."""
    # Told in `docs/reliability.md`, which a test holds to this.
    lines = ["| group | kinds | what becomes of them |", "|---|---|---|"]
    groups: dict[str, list[Kind]] = {}
    for kind in KINDS:
        groups.setdefault(kind.group, []).append(kind)
    for group, kinds in groups.items():
        by_outcome: dict[str, list[str]] = {}
        for kind in kinds:
            reason = f" ({kind.of})" if kind.outcome is Outcome.SKIPPED else ""
            by_outcome.setdefault(f"**{kind.outcome}**{reason}", []).append(kind.title)
        told = "<br>".join(f"{each}: {'; '.join(titles)}" for each, titles in by_outcome.items())
        lines.append(f"| {group} | {len(kinds)} | {told} |")
    lines.append(f"| all | {len(KINDS)} | |")
    return "\n".join(lines) + "\n"


# --- What is to be seen -----------------------------------------------------------------------


@cache
def scene() -> Image.Image:
    """A house, a tree and a sun: no turn and no mirror leaves it as it is."""
    image = Image.linear_gradient("L").resize(SIZE)
    image = ImageOps.colorize(image, (90, 150, 230), (220, 235, 250))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 130, 288, 192), (60, 140, 50))
    draw.ellipse((16, 12, 62, 58), (250, 215, 40))
    draw.rectangle((150, 80, 250, 150), (190, 60, 40))
    draw.polygon(((138, 82), (262, 82), (200, 34)), (80, 40, 30))
    draw.rectangle((162, 96, 186, 118), (235, 235, 200))
    draw.rectangle((210, 104, 234, 150), (70, 45, 30))
    draw.rectangle((66, 96, 78, 156), (100, 70, 40))
    draw.ellipse((38, 50, 106, 112), (30, 100, 40))
    draw.line((200, 150, 130, 192), (210, 200, 170), 14)
    return image


def cut_out() -> Image.Image:
    """The scene, of which everything around the house and the tree can be seen through."""
    mask = Image.new("L", SIZE, 0)
    draw = ImageDraw.Draw(mask)
    draw.rectangle((130, 30, 270, 155), 255)
    draw.ellipse((34, 46, 110, 160), 255)
    image = scene().convert("RGBA")
    image.putalpha(mask)
    return image


def on_white(image: Image.Image) -> Image.Image:
    """What is seen of a transparent picture."""
    layer = image.convert("RGBA")
    ground = Image.new("RGB", layer.size, "white")
    ground.paste(layer, mask=layer.getchannel("A"))
    return ground


@cache
def palette_scene() -> Image.Image:
    """The scene in 64 colours, without dithering."""
    return scene().quantize(64, dither=Image.Dither.NONE)


def flat(colour: str, size: tuple[int, int] = (32, 32)) -> Image.Image:
    """Nothing but one colour."""
    return Image.new("RGB", size, colour)


REFERENCES: dict[str, Callable[[], Image.Image]] = {
    "the scene": scene,
    "the scene in grey": lambda: scene().convert("L").convert("RGB"),
    "the scene in 64 colours": lambda: palette_scene().convert("RGB"),
    "the scene in black and white": lambda: scene().convert("1").convert("RGB"),
    "the cut-out on white": lambda: on_white(cut_out()),
    "the cut-out in grey on white": lambda: on_white(cut_out().convert("LA")),
    "the tall scene": lambda: scene().resize((2, 30_000)),
    "the wide scene": lambda: scene().resize((30_000, 2)),
    "red": partial(flat, "red"),
    "white": partial(flat, "white"),
    "black": partial(flat, "black"),
}
"""Pictures in memory, plainly made, whose vectors those of the files must have."""


# --- Making files -----------------------------------------------------------------------------


def encoded(image: Image.Image, format_: str, **options: Any) -> bytes:
    """Return a picture's bytes in a format."""
    stream = io.BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


def jpeg(**options: Any) -> bytes:
    """Return the scene as a good JPEG."""
    return encoded(scene(), "JPEG", quality=95, subsampling=0, **options)


def chunk(name: bytes, body: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(
    size: tuple[int, int], depth: int, colour: int, rows: bytes, *more: bytes, interlace: int = 0
) -> bytes:
    """Return a PNG of rows that each begin with the byte of their filter."""
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, interlace)
    body = chunk(b"IDAT", zlib.compress(rows, 9))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(more) + body + chunk(b"IEND", b"")
    )


def filtered(pixels: bytes, stride: int) -> bytes:
    """Return rows with the byte before each that says it is stored as it is."""
    return b"".join(b"\0" + pixels[at : at + stride] for at in range(0, len(pixels), stride))


def deep_png(mode: str, colour: int, image: Image.Image, *more: bytes) -> bytes:
    """Return a PNG of 16 bits a channel, whose lower bytes repeat the upper ones."""
    pixels = bytes(byte for value in image.convert(mode).tobytes() for byte in (value, value))
    return png(SIZE, 16, colour, filtered(pixels, 2 * SIZE[0] * len(mode)), *more)


def interlaced_png() -> bytes:
    """Return the scene in the seven passes of Adam7."""
    pixels, (width, height) = scene().tobytes(), SIZE
    rows = bytearray()
    starts = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
    for left, top, across, down in (*starts, (0, 1, 1, 2)):
        for y in range(top, height, down):
            line = (pixels[3 * (y * width + x) :][:3] for x in range(left, width, across))
            rows += b"\0" + b"".join(line)
    return png(SIZE, 8, 2, bytes(rows), interlace=1)


def huge_png(side: int, depth: int, colour: int, sample: bytes, *more: bytes) -> bytes:
    """Return a PNG of a square whose every byte of a row repeats `sample`, packed very small."""
    packer = zlib.compressobj(9)
    row = b"\0" + sample * (side * depth // 8 if colour in {0, 3} else side)
    body = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def png_with(*more: bytes) -> bytes:
    """Return the scene with further chunks before its pixels."""
    return png(SIZE, 8, 2, filtered(scene().tobytes(), 3 * SIZE[0]), *more)


def tiff(tags: dict[int, tuple[int, tuple[int, ...]]], pixels: bytes, size: Any = SIZE) -> bytes:
    """Return a little-endian TIFF of one strip; tags are type (3 short, 4 long) and values."""
    all_tags = {
        256: (4, (size[0],)),
        257: (4, (size[1],)),
        259: (3, (1,)),
        278: (4, (size[1],)),
        279: (4, (len(pixels),)),
    } | tags
    at = 8 + len(pixels)
    outside = b""
    entries = []
    for tag in sorted([*all_tags, 273]):
        type_, values = all_tags.get(tag, (4, (8,)))
        value = struct.pack(f"<{len(values)}{'H' if type_ == 3 else 'I'}", *values)
        if len(value) > 4:
            offset = at + len(outside)
            outside += value
            value = struct.pack("<I", offset)
        entries.append(struct.pack("<HHI", tag, type_, len(values)) + value.ljust(4, b"\0"))
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", at + len(outside)) + pixels + outside + directory


def float_tiff(*, holes: bool) -> bytes:
    """Return the scene in grey as numbers from -1 to 1, maybe with some that are none."""
    grey = scene().convert("L").tobytes()
    nothing = float("nan")
    values = [nothing if holes and i < 40 else v / 127.5 - 1 for i, v in enumerate(grey)]
    tags = {258: (3, (32,)), 262: (3, (1,)), 277: (3, (1,)), 339: (3, (3,))}
    return tiff(tags, struct.pack(f"<{len(values)}f", *values))


def after_start(data: bytes, marker: int, body: bytes) -> bytes:
    """Return a JPEG with one more segment at its start."""
    return data[:2] + bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body + data[2:]


def exif_of(**tags: Any) -> Image.Exif:
    """Return EXIF data of tags by their numbers, written `t274=6`."""
    exif = Image.Exif()
    for name, value in tags.items():
        exif[int(name[1:])] = value
    return exif


def turned(orientation: int) -> Image.Image:
    """Return the scene as a camera stores it that was held so."""
    change = STORED_AS.get(orientation)
    return scene() if change is None else scene().transpose(change)


def noise(count: int) -> bytes:
    """Return bytes that look like nothing, the same each time."""
    return random.Random(count).randbytes(count)


def blotches() -> Image.Image:
    """A picture that does not pack well, so that a share of a file is a share of its pixels."""
    return Image.frombytes("RGB", (96, 72), noise(96 * 72 * 3)).resize((192, 144))


def grow(path: Path, data: bytes, pieces: int) -> Iterator[None]:
    """Write a file piece by piece, one for each step."""
    step = -(-len(data) // pieces)
    with path.open("ab", buffering=0) as file:
        for at in range(0, len(data), step):
            file.write(data[at : at + step])
            yield


# --- What a machine may lack ------------------------------------------------------------------


def anywhere(folder: Path) -> str | None:
    """Every machine can have it."""
    del folder
    return None


def posix(folder: Path) -> str | None:
    """Links, pipes and free names."""
    del folder
    return "Windows has no such files or names" if sys.platform == "win32" else None


def linux(folder: Path) -> str | None:
    """Any bytes as a name, /proc, sockets made by mknod."""
    del folder
    return None if sys.platform == "linux" else "only Linux has such files or names"


def cased(folder: Path) -> str | None:
    """Names that differ in case alone."""
    probe = folder / "CaSe"
    probe.touch()
    same = (folder / "case").exists()
    probe.unlink()
    return "this file system takes upper and lower case for the same" if same else None


def composed(folder: Path) -> str | None:
    """Names that differ in how an accent is written alone."""
    probe = folder / "\u00e9"
    probe.touch()
    same = (folder / "e\u0301").exists()
    probe.unlink()
    return "this file system takes both ways to write an accent for the same" if same else None


def not_root(folder: Path) -> str | None:
    """Permissions that keep the one who indexes out."""
    if posix(folder) is not None or os.geteuid() == 0:
        return "whoever runs this may read everything"
    return None


def far_times(folder: Path) -> str | None:
    """Times that do not fit 63 bits of nanoseconds."""
    probe = folder / "time"
    probe.touch()
    try:
        os.utime(probe, ns=(0, 2**63))
        kept = probe.stat().st_mtime_ns == 2**63
    except (OSError, OverflowError):
        kept = False
    probe.unlink()
    return None if kept else "this file system has no such times"


# --- Putting kinds on the list ----------------------------------------------------------------


def add(
    path: str,
    title: str,
    outcome: Outcome,
    of: str,
    make: Callable[[Path], None] | Callable[[], bytes],
    *,
    below: bool = False,
    missing: Callable[[Path], str | None] = anywhere,
) -> None:
    """Put a kind on the list; `make` takes the path, or returns the file's bytes."""
    KINDS.append(Kind(path, title, outcome, of, _writer(make), below, missing))


def indexed(path: str, title: str, make: Any, of: str = "the scene", **more: Any) -> None:
    """Put something on the list that must be seen as a reference."""
    add(path, title, Outcome.INDEXED, of, make, **more)


def skipped(path: str, title: str, make: Any, of: str, **more: Any) -> None:
    """Put something on the list that is a problem of a kind."""
    add(path, title, Outcome.SKIPPED, of, make, **more)


def ignored(path: str, title: str, make: Any = jpeg, **more: Any) -> None:
    """Put something on the list that nothing is said of."""
    add(path, title, Outcome.IGNORED, "", make, **more)


def _writer(make: Callable[..., Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        if "path" in signature(make).parameters:
            make(path)
        else:
            path.write_bytes(make())

    return write


def named(name: str) -> Callable[[], bytes]:
    """Return what makes the scene as a file that no other name has the content of."""
    return lambda: jpeg(comment=os.fsencode(name))


# --- The kinds: orientation -------------------------------------------------------------------

for turn in range(1, 9):
    indexed(
        f"orientation/{turn}.jpg",
        f"JPEG with EXIF orientation {turn}",
        lambda turn=turn: encoded(
            turned(turn), "JPEG", quality=95, subsampling=0, exif=exif_of(t274=turn)
        ),
    )
for format_, ending, options in (
    ("PNG", "png", {}),
    ("TIFF", "tif", {}),
    ("WEBP", "webp", {"lossless": True}),
    ("AVIF", "avif", {"quality": 95, "subsampling": "4:4:4"}),
    ("HEIF", "heic", {"quality": 95, "chroma": 444}),
):
    indexed(
        f"orientation/6.{ending}",
        f"{format_} with orientation 6",
        lambda format_=format_, options=options: encoded(
            turned(6), format_, exif=exif_of(t274=6).tobytes(), **options
        ),
    )
indexed(
    "orientation/9.jpg",
    "JPEG with orientation 9, which is none",
    lambda: jpeg(exif=exif_of(t274=9)),
)
indexed(
    "orientation/text.jpg",
    "JPEG whose orientation is a text",
    lambda: after_start(
        jpeg(),
        0xE1,
        b"Exif\0\0MM\0*" + struct.pack(">IHHHI4sI", 8, 1, 274, 2, 4, b"up\0\0", 0),
    ),
)

# --- The kinds: formats -----------------------------------------------------------------------

indexed("formats/plain.jpg", "JPEG", jpeg)
indexed("formats/progressive.jpg", "progressive JPEG", lambda: jpeg(progressive=True))
indexed(
    "formats/grey.jpg",
    "grey JPEG",
    lambda: encoded(scene().convert("L"), "JPEG", quality=95),
    "the scene in grey",
)
indexed(
    "formats/cmyk.jpg", "CMYK JPEG", lambda: encoded(scene().convert("CMYK"), "JPEG", quality=95)
)
indexed("formats/rgb.jpg", "JPEG that stores RGB", lambda: jpeg(keep_rgb=True))
indexed("formats/restarts.jpg", "JPEG with restart markers", lambda: jpeg(restart_marker_rows=1))
indexed(
    "formats/mpo.jpg",
    "MPO, of which a JPEG of another picture is the second",
    lambda: encoded(
        scene(), "MPO", quality=95, subsampling=0, save_all=True, append_images=[flat("red", SIZE)]
    ),
)
indexed(
    "formats/motion.jpg",
    "JPEG with a film behind it",
    lambda: jpeg() + b"\0\0\0\x18ftypmp42\0\0\0\0" + noise(5000),
)
indexed("formats/plain.png", "PNG", lambda: encoded(scene(), "PNG"))
indexed("formats/interlaced.png", "interlaced PNG", interlaced_png)
indexed("formats/plain.webp", "WebP", lambda: encoded(scene(), "WEBP", quality=95))
indexed(
    "formats/alpha.webp",
    "WebP with alpha",
    lambda: encoded(cut_out(), "WEBP", lossless=True),
    "the cut-out on white",
)
indexed(
    "formats/plain.gif", "GIF", lambda: encoded(palette_scene(), "GIF"), "the scene in 64 colours"
)
indexed("formats/plain.bmp", "BMP", lambda: encoded(scene(), "BMP"))


def upside_down_bmp() -> bytes:
    """Return a BMP whose rows go down: its height is negative."""
    data = bytearray(encoded(scene().transpose(Image.Transpose.FLIP_TOP_BOTTOM), "BMP"))
    data[22:26] = struct.pack("<i", -SIZE[1])
    return bytes(data)


indexed("formats/down.bmp", "BMP stored from the top", upside_down_bmp)
indexed("formats/plain.heic", "HEIC", lambda: encoded(scene(), "HEIF", quality=95, chroma=444))
indexed(
    "formats/alpha.heic",
    "HEIC with alpha",
    lambda: encoded(cut_out(), "HEIF", quality=95, chroma=444),
    "the cut-out on white",
)
indexed(
    "formats/second.heic",
    "HEIC whose second picture is the one meant",
    lambda: encoded(
        flat("red", SIZE),
        "HEIF",
        quality=95,
        chroma=444,
        save_all=True,
        append_images=[scene()],
        primary_index=1,
    ),
)
indexed(
    "formats/plain.avif", "AVIF", lambda: encoded(scene(), "AVIF", quality=95, subsampling="4:4:4")
)
indexed(
    "formats/alpha.avif",
    "AVIF with alpha",
    lambda: encoded(cut_out(), "AVIF", quality=95, subsampling="4:4:4"),
    "the cut-out on white",
)
indexed("formats/plain.jp2", "JPEG 2000", lambda: encoded(scene(), "JPEG2000"))
indexed(
    "formats/alpha.jp2",
    "JPEG 2000 with alpha",
    lambda: encoded(cut_out(), "JPEG2000"),
    "the cut-out on white",
)
indexed("formats/plain.ppm", "PPM", lambda: encoded(scene(), "PPM"))
indexed(
    "formats/words.ppm",
    "PPM whose numbers are written out",
    lambda: (
        b"P3\n# by hand\n%d %d\n255\n" % SIZE
        + b" ".join(b"%d" % value for value in scene().tobytes())
    ),
)
indexed(
    "formats/bits.pbm",
    "PBM",
    lambda: encoded(scene().convert("1"), "PPM"),
    "the scene in black and white",
)

# --- The kinds: animations and several pages --------------------------------------------------

ANIMATED: dict[str, Any] = {"save_all": True, "duration": 100, "loop": 0}

for format_, ending, options in (
    ("PNG", "png", {}),
    ("WEBP", "webp", {"lossless": True}),
    ("AVIF", "avif", {"quality": 95, "subsampling": "4:4:4"}),
):
    indexed(
        f"frames/animated.{ending}",
        f"animated {format_}",
        lambda format_=format_, options=options: encoded(
            scene(), format_, append_images=[flat("red", SIZE)], **ANIMATED, **options
        ),
    )
indexed(
    "frames/animated.gif",
    "animated GIF",
    lambda: encoded(palette_scene(), "GIF", append_images=[flat("red", SIZE)], **ANIMATED),
    "the scene in 64 colours",
)
indexed(
    "frames/pages.tif",
    "TIFF of several pages",
    lambda: encoded(scene(), "TIFF", save_all=True, append_images=[flat("red"), flat("black")]),
)
indexed(
    "frames/several.heic",
    "HEIC of several pictures",
    lambda: encoded(
        scene(), "HEIF", quality=95, chroma=444, save_all=True, append_images=[flat("red", SIZE)]
    ),
)
indexed(
    "frames/many.gif",
    "GIF of 500 frames",
    lambda: encoded(
        flat("red"),
        "GIF",
        append_images=[flat("white"), flat("red")] * 249 + [flat("black")],
        **ANIMATED,
    ),
    "red",
)

# --- The kinds: depth, palettes, alpha --------------------------------------------------------

indexed("depth/rgb16.png", "PNG, RGB of 16 bits", lambda: deep_png("RGB", 2, scene()))
indexed(
    "depth/rgba16.png",
    "PNG, RGB and alpha of 16 bits",
    lambda: deep_png("RGBA", 6, cut_out()),
    "the cut-out on white",
)
indexed(
    "depth/grey16.png",
    "PNG, grey of 16 bits",
    lambda: deep_png("L", 0, scene()),
    "the scene in grey",
)
indexed(
    "depth/grey-alpha16.png",
    "PNG, grey and alpha of 16 bits",
    lambda: deep_png("LA", 4, cut_out()),
    "the cut-out in grey on white",
)


def keyed16_png() -> bytes:
    """Return grey of 16 bits, of which one shade stands for nothing."""
    grey = on_white(cut_out().convert("LA")).convert("L")
    shown = [1 if value == 255 else value for value in grey.tobytes()]
    pixels = b"".join(struct.pack(">H", 257 * value) for value in shown)
    return png(SIZE, 16, 0, filtered(pixels, 2 * SIZE[0]), chunk(b"tRNS", struct.pack(">H", 257)))


indexed(
    "depth/keyed16.png",
    "PNG, grey of 16 bits with one shade transparent",
    keyed16_png,
    "the cut-out in grey on white",
)


def keyed_png(depth: int) -> bytes:
    """Return RGB, of which one colour stands for nothing."""
    key = (255, 0, 255)
    ground = Image.new("RGB", SIZE, key)
    ground.paste(cut_out(), mask=cut_out().getchannel("A"))
    scale = 257 if depth == 16 else 1
    more = chunk(b"tRNS", struct.pack(">HHH", *(scale * value for value in key)))
    if depth == 16:
        return deep_png("RGB", 2, ground, more)
    return png(SIZE, 8, 2, filtered(ground.tobytes(), 3 * SIZE[0]), more)


indexed(
    "depth/keyed.png",
    "PNG, RGB with one colour transparent",
    lambda: keyed_png(8),
    "the cut-out on white",
)
indexed(
    "depth/keyed-rgb16.png",
    "PNG, RGB of 16 bits with one colour transparent",
    lambda: keyed_png(16),
    "the cut-out on white",
)
indexed(
    "depth/rgba.png", "PNG with alpha", lambda: encoded(cut_out(), "PNG"), "the cut-out on white"
)
indexed(
    "depth/grey-alpha.png",
    "PNG, grey and alpha",
    lambda: encoded(cut_out().convert("LA"), "PNG"),
    "the cut-out in grey on white",
)
indexed(
    "depth/clear.png",
    "PNG that is transparent all over",
    lambda: encoded(Image.new("RGBA", (32, 32), (0, 0, 0, 0)), "PNG"),
    "white",
)
indexed(
    "depth/palette.png",
    "PNG with a palette",
    lambda: encoded(palette_scene(), "PNG"),
    "the scene in 64 colours",
)


def palette_alpha() -> tuple[Image.Image, bytes]:
    """Return the cut-out on a palette whose last entry is clear, and the alpha of all entries."""
    image = on_white(cut_out()).quantize(64, dither=Image.Dither.NONE)
    image.paste(64, mask=ImageOps.invert(cut_out().getchannel("A")))
    return image, bytes([255] * 64 + [0])


def palette_alpha_png() -> bytes:
    """Return a PNG with an alpha for each entry of its palette."""
    image, alpha = palette_alpha()
    image.putpalette([*(image.getpalette() or [])[:192], 0, 0, 0])
    return encoded(image, "PNG", transparency=alpha)


indexed(
    "depth/palette-alpha.png",
    "PNG with a palette that has alpha",
    palette_alpha_png,
    "the cut-out on white",
)


def see_through_gif() -> bytes:
    """Return a GIF with one entry that stands for nothing."""
    image, _ = palette_alpha()
    image.putpalette([*(image.getpalette() or [])[:192], 0, 0, 0])
    return encoded(image, "GIF", transparency=64)


indexed(
    "depth/transparent.gif",
    "GIF with a transparent colour",
    see_through_gif,
    "the cut-out on white",
)
for bits in (1, 2, 4):
    indexed(
        f"depth/grey{bits}.png",
        f"PNG, grey of {bits} bit{'s' if bits > 1 else ''}",
        lambda bits=bits: huge_png(64, bits, 0, b"\xff"),
        "white",
    )
indexed(
    "depth/bits.tif",
    "TIFF of one bit, as fax machines pack it",
    lambda: encoded(scene().convert("1"), "TIFF", compression="group4"),
    "the scene in black and white",
)
indexed("depth/cmyk.tif", "CMYK TIFF", lambda: encoded(scene().convert("CMYK"), "TIFF"))
indexed(
    "depth/lzw.tif",
    "TIFF packed with LZW",
    lambda: encoded(scene(), "TIFF", compression="tiff_lzw"),
)
indexed(
    "depth/jpeg.tif",
    "TIFF packed as JPEG",
    lambda: encoded(scene(), "TIFF", compression="jpeg", quality=95),
)
indexed(
    "depth/alpha.tif", "TIFF with alpha", lambda: encoded(cut_out(), "TIFF"), "the cut-out on white"
)
indexed("depth/big.tif", "BigTIFF", lambda: encoded(scene(), "TIFF", big_tiff=True))
indexed(
    "depth/rgb16.tif",
    "TIFF, RGB of 16 bits",
    lambda: tiff(
        {258: (3, (16, 16, 16)), 262: (3, (2,)), 277: (3, (3,))},
        bytes(byte for value in scene().tobytes() for byte in (value, value)),
    ),
)
indexed(
    "depth/grey16.tif",
    "TIFF, grey of 16 bits",
    lambda: tiff(
        {258: (3, (16,)), 262: (3, (1,)), 277: (3, (1,))},
        bytes(byte for value in scene().convert("L").tobytes() for byte in (value, value)),
    ),
    "the scene in grey",
)
indexed(
    "depth/float.tif",
    "TIFF of floating-point numbers",
    lambda: float_tiff(holes=False),
    "the scene in grey",
)
indexed(
    "depth/holes.tif",
    "TIFF of floating-point numbers, some of which are none",
    lambda: float_tiff(holes=True),
    "the scene in grey",
)


def lab_tiff() -> bytes:
    """Return the scene in CIELAB, as Photoshop stores it."""
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(scene(), *profiles, outputMode="LAB")
    assert image is not None
    return encoded(image, "TIFF")


indexed("depth/lab.tif", "TIFF in CIELAB", lab_tiff)

# --- The kinds: profiles and metadata ---------------------------------------------------------


def profile(space: str = "sRGB") -> bytes:
    """Return an ICC profile."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes()  # type: ignore[arg-type]


indexed("profiles/srgb.jpg", "JPEG with a profile", lambda: jpeg(icc_profile=profile()))
indexed(
    "profiles/lab.jpg",
    "JPEG with the profile of another colour space",
    lambda: jpeg(icc_profile=profile("LAB")),
)
indexed(
    "profiles/noise.jpg", "JPEG with noise for a profile", lambda: jpeg(icc_profile=noise(3000))
)
indexed(
    "profiles/cut.jpg",
    "JPEG with the first of three parts of a profile",
    lambda: after_start(jpeg(), 0xE2, b"ICC_PROFILE\0\x01\x03" + profile()[:200]),
)
indexed(
    "profiles/huge.jpg", "JPEG with a profile of 500 kB", lambda: jpeg(icc_profile=noise(500_000))
)
indexed(
    "profiles/noise.png",
    "PNG with a profile that does not unpack",
    lambda: png_with(chunk(b"iCCP", b"x\0\0" + noise(400))),
)
indexed(
    "profiles/bomb.png",
    "PNG with a profile that unpacks to 30 MB",
    lambda: png_with(chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(30 << 20), 9))),
)
indexed(
    "profiles/text-bomb.png",
    "PNG with a text that unpacks to 30 MB",
    lambda: png_with(chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(30 << 20), 9))),
)

LAUGHS = (
    b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "ha">'
    + b"".join(b'<!ENTITY %c "%s">' % (98 + i, (b"&%c;" % (97 + i)) * 10) for i in range(9))
    + b']><x:xmpmeta xmlns:x="adobe:ns:meta/"><a>&j;</a></x:xmpmeta>'
)
indexed(
    "profiles/laughs.jpg",
    "JPEG whose XMP unpacks to a billion words",
    lambda: after_start(jpeg(), 0xE1, b"http://ns.adobe.com/xap/1.0/\0" + LAUGHS),
)
indexed(
    "profiles/exif.jpg",
    "JPEG with noise for EXIF",
    lambda: after_start(jpeg(), 0xE1, b"Exif\0\0" + noise(2000)),
)
indexed(
    "profiles/loop.jpg",
    "JPEG whose EXIF leads back to itself",
    lambda: after_start(
        jpeg(),
        0xE1,
        b"Exif\0\0MM\0*" + struct.pack(">IHHHIIHHIII", 8, 2, 0x8769, 4, 1, 8, 0x8825, 4, 1, 8, 8),
    ),
)
indexed(
    "profiles/steering.jpg",
    "JPEG whose description steers terminals",
    lambda: jpeg(exif=exif_of(t270="a dog\x1b[2J\x1b]0;owned\x07\r\non grass")),
)

# --- The kinds: damage ------------------------------------------------------------------------


def cut(format_: str, kept: float, **options: Any) -> bytes:
    """Return the beginning of a file."""
    whole = encoded(blotches(), format_, **options)
    return whole[: int(len(whole) * kept)]


for format_, ending, kind_ in (
    ("JPEG", "jpg", "truncated"),
    ("PNG", "png", "truncated"),
    ("GIF", "gif", "truncated"),
    ("TIFF", "tif", "truncated"),
    ("BMP", "bmp", "truncated"),
    ("PPM", "ppm", "truncated"),
    ("HEIF", "heic", "truncated"),
    ("WEBP", "webp", "damaged"),
    ("AVIF", "avif", "damaged"),
    ("JPEG2000", "jp2", "damaged"),
):
    for share in (10, 50, 90):
        skipped(
            f"damage/{share}.{ending}",
            f"{format_} cut off after {share} %",
            lambda format_=format_, share=share: cut(format_, share / 100),
            kind_,
        )
skipped(
    "damage/progressive.jpg",
    "progressive JPEG cut off in the middle",
    lambda: cut("JPEG", 0.5, progressive=True),
    "truncated",
)
skipped("damage/header.jpg", "JPEG cut off within its header", lambda: jpeg()[:100], "damaged")
skipped(
    "damage/zeros.jpg",
    "JPEG whose second half is zeros, as of a copy under way",
    lambda: cut("JPEG", 0.5).ljust(len(cut("JPEG", 1)), b"\0"),
    "truncated",
)
skipped(
    "damage/zeros.png",
    "PNG whose second half is zeros",
    lambda: cut("PNG", 0.5).ljust(len(cut("PNG", 1)), b"\0"),
    "damaged",
)
skipped(
    "damage/bits.png",
    "PNG with a byte that changed",
    lambda: png_with()[:400] + b"\xaa\x55" + png_with()[402:],
    "damaged",
)
skipped("damage/end.jpg", "JPEG without its end mark", lambda: jpeg()[:-2], "truncated")
skipped(
    "damage/film.jpg",
    "JPEG whose second half is that of another file",
    lambda: cut("JPEG", 0.5) + noise(9000).replace(b"\xff", b""),
    "truncated",
)
indexed("damage/end.png", "PNG without its end mark", lambda: encoded(scene(), "PNG")[:-12])
indexed("damage/tail.jpg", "JPEG with zeros behind its end", lambda: jpeg() + bytes(5000))
indexed(
    "damage/tail.png", "PNG with noise behind its end", lambda: encoded(scene(), "PNG") + noise(500)
)

# --- The kinds: what is no picture ------------------------------------------------------------

for name, title, content, kind_ in (
    ("empty.jpg", "zero bytes", b"", "empty"),
    ("byte.jpg", "one byte", b"\xff", "not-an-image"),
    ("zeros.jpg", "a thousand zeros", bytes(1000), "not-an-image"),
    ("noise.jpg", "noise", noise(1000), "not-an-image"),
    ("page.jpg", "a web page", b"<!DOCTYPE html><html>404</html>", "not-an-image"),
    ("svg.png", "SVG", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not-an-image"),
    ("text.jpg", "a text", "kein Bild, 没有图\n".encode(), "not-an-image"),
    ("json.jpg", "JSON", b'{"error": "not found"}', "not-an-image"),
    ("film.jpg", "a film", b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + noise(999), "not-an-image"),
    ("document.png", "PDF", b"%PDF-1.7\n" + noise(99), "not-an-image"),
    (
        "script.jpg",
        "PostScript",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "not-an-image",
    ),
    ("archive.jpg", "a ZIP archive", b"PK\3\4" + noise(99), "not-an-image"),
    (
        "git-lfs.jpg",
        "a pointer of Git LFS",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "not-an-image",
    ),
):
    skipped(
        f"no picture/{name}", f"{title}, named .{name[-3:]}", lambda content=content: content, kind_
    )
indexed("no picture/png.jpg", "PNG named .jpg", lambda: encoded(scene(), "PNG", compress_level=1))
indexed("no picture/jpeg.heic", "JPEG named .heic", lambda: jpeg(comment=b"heic"))
indexed(
    "no picture/heic.JPG",
    "HEIC named .JPG",
    lambda: encoded(scene(), "HEIF", quality=96, chroma=444),
)
indexed("no picture/webp.png", "WebP named .png", lambda: encoded(scene(), "WEBP", quality=96))

# --- The kinds: sizes -------------------------------------------------------------------------

indexed("sizes/1x1.png", "one pixel", lambda: encoded(flat("red", (1, 1)), "PNG"), "red")
indexed(
    "sizes/2x30000.png",
    "2 × 30,000 pixels",
    lambda: encoded(scene().resize((2, 30_000)), "PNG"),
    "the tall scene",
)
indexed(
    "sizes/30000x2.jpg",
    "30,000 × 2 pixels",
    lambda: encoded(scene().resize((30_000, 2)), "JPEG", quality=98, subsampling=0),
    "the wide scene",
)
indexed(
    "sizes/1x30000.png",
    "1 × 30,000 pixels",
    lambda: encoded(flat("red", (1, 30_000)), "PNG"),
    "red",
)
indexed(
    "sizes/bomb.png",
    "25 megapixels with a palette and alpha in 30 kB",
    lambda: huge_png(5000, 8, 3, b"\0", chunk(b"PLTE", b"\xff\0\0"), chunk(b"tRNS", b"\xfe")),
    "red",
)
indexed(
    "sizes/bomb16.png",
    "25 megapixels, grey of 16 bits, in 50 kB",
    lambda: huge_png(5000, 16, 0, b"\xff"),
    "white",
)
indexed(
    "sizes/bomb.gif",
    "a GIF of 16 megapixels",
    lambda: encoded(Image.new("P", (4000, 4000), 0), "GIF"),
    "black",
)
skipped(
    "sizes/60000.png",
    "a PNG whose header says 60,000 × 60,000",
    lambda: png((60_000, 60_000), 8, 2, bytes(99)),
    "too-large",
)
skipped(
    "sizes/65500.jpg",
    "a JPEG whose header says 65,500 × 65,500",
    lambda: with_size(jpeg()),
    "too-large",
)
skipped(
    "sizes/60000.tif",
    "a TIFF whose header says 60,000 × 60,000",
    lambda: tiff(
        {258: (3, (8, 8, 8)), 262: (3, (2,)), 277: (3, (3,))}, bytes(99), (60_000, 60_000)
    ),
    "too-large",
)
skipped(
    "sizes/65535.gif",
    "a GIF whose header says 65,535 × 65,535",
    lambda: b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\x02\x4c\x01\0;",
    "too-large",
)
skipped(
    "sizes/limit.png",
    "a PNG one pixel a side beyond the limit",
    lambda: png((16_385, 16_385), 1, 0, bytes(99)),
    "too-large",
)


def with_size(data: bytes) -> bytes:
    """Return a JPEG whose header says that it is 65,500 pixels wide and high."""
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + struct.pack(">HH", 65_500, 65_500) + data[at + 9 :]


def sparse(path: Path) -> None:
    """Make a file of more than a gibibyte that takes no room on the disk."""
    with path.open("wb") as file:
        file.write(jpeg())
        file.truncate((1 << 30) + 1)


skipped("sizes/sparse.jpg", "a file of more than 1 GiB", sparse, "too-large", missing=linux)

# --- The kinds: names -------------------------------------------------------------------------

for name in (
    "Grüße aus Köln.jpg",
    "Ελληνικά.jpg",
    "Привет.jpg",
    "עברית.jpg",
    "العربية.jpg",
    "हिन्दी.jpg",
    "தமிழ்.jpg",
    "ภาษาไทย.jpg",
    "ქართული.jpg",
    "አማርኛ.jpg",
    "中文.jpg",
    "日本語 カタカナ.jpg",
    "한국어.jpg",
    "ᏣᎳᎩ.jpg",
    "😀 👩‍👩‍👧‍👦 🏳️‍🌈.jpg",
    "turkish İı.JPG",
    "formula=1+1.jpg",
    "=1+1.jpg",
    "semi;colon, comma.jpg",
    "per%20cent %s %n.jpg",
    "#hash & amp; {brace} ~tilde $HOME.jpg",
    "'single'.jpg",
    "two..dots..jpg",
    "no-break\u00a0space.jpg",
):
    indexed(f"names/{name}", f"the name `{name}`", named(name))
for name, title in (
    ("`touch owned`$(touch owned).jpg", "a name that holds commands"),
    ("two\nlines.jpg", "a name with a line break"),
    ("carriage\rreturn.jpg", "a name with a carriage return"),
    ("tab\tand bell\a.jpg", "a name with a tab and a bell"),
    ("\x1b[31mred\x1b[2J.jpg", "a name that steers terminals"),
    ("\u202egpj.exe.jpg", "a name that is read from the right"),
    ("zero\u200bwidth\ufeff.jpg", "a name with letters that are not seen"),
    ("\u009b31mC1.jpg", "a name with a control letter of the second set"),
    ("-rf.jpg", "a name with a leading dash"),
    ("--help.jpg", "a name like an option"),
    ('double "quotes".jpg', "a name with double quotes"),
    ("back\\slash.jpg", "a name with a backslash"),
    ("*?[a]<>|:.jpg", "a name of wildcards"),
    (" spaces .jpg", "a name with spaces around"),
    ("CON.jpg", "a name that Windows keeps for itself"),
    ("x" * 251 + ".jpg", "a name of 255 bytes"),
    ("長" * 83 + "xx.jpg", "a name of 255 bytes in 89 letters"),
    ("https:/host/picture.jpg", "a folder like an address"),
    ("folder.jpg/inside.jpg", "a folder named .jpg"),
    ("/".join(["deep"] * 60) + "/down.jpg", "sixty folders down"),
):
    indexed(f"names/{name}", title, named(name), missing=posix)
for raw, title in (
    (b"\xff\xfe latin \xfc.jpg", "a name that is no UTF-8"),
    (b"\xc0\xaf overlong.jpg", "a name with an overlong form"),
    (b"\xed\xa0\x80 surrogate.jpg", "a name with half a surrogate pair"),
    (b"\x9b31m raw C1.jpg", "a name with a raw byte that steers old terminals"),
):
    text = raw.decode("utf-8", "surrogateescape")
    indexed(f"names/{text}", title, named(text), missing=linux)
for name in ("case/photo.jpg", "case/Photo.jpg", "case/PHOTO.JPG"):
    indexed(
        f"names/{name}",
        f"names that differ in case alone: `{name[5:]}`",
        named(name),
        missing=cased,
    )
indexed("names/\u00e9.jpg", "an accent in one letter", named("\u00e9"), missing=composed)
indexed("names/e\u0301.jpg", "the same accent in two letters", named("e\u0301"), missing=composed)

# --- The kinds: what is left alone ------------------------------------------------------------

for path_, title in (
    (".hidden.jpg", "a hidden file"),
    (".trash/deleted.jpg", "a hidden folder"),
    ("._photo.jpg", "what macOS adds to a file"),
    ("@eaDir/thumb.jpg", "thumbnails of a network drive"),
    ("node_modules/logo.png", "a folder of a tool"),
    (".jpg", "a name that is nothing but an ending"),
    ("jpg", "a name without an ending"),
    ("photo.jpg~", "what an editor keeps"),
    ("photo.jpg.part", "a download under way"),
    ("photo.jpg ", "a space behind the ending"),
    ("raw.cr2", "a raw picture"),
    ("film.mp4", "a film"),
):
    ignored(f"left alone/{path_}", title, missing=posix)

# --- The kinds: what is no ordinary file ------------------------------------------------------


def link_to(target: str) -> Callable[[Path], None]:
    """Return what makes a symbolic link."""

    def make(path: Path) -> None:
        path.symlink_to(target)

    return make


def pipe(path: Path) -> None:
    """Make a named pipe: whoever opens it to read waits for ever."""
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    """Make what a server listens on."""
    os.mknod(path, stat.S_IFSOCK | 0o600)


def loop(path: Path) -> None:
    """Make a folder with links to itself, to what is above it and to each other."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(named("loop")())
    for name, target in (("self", "."), ("up", "../.."), ("one", "two"), ("two", "one")):
        (path.parent / name).symlink_to(target, target_is_directory=True)


def copied(path: Path) -> None:
    """Make another file with the same content."""
    path.write_bytes((path.parent / "original.jpg").read_bytes())


def hard_link(path: Path) -> None:
    """Make another name of the same file."""
    path.hardlink_to(path.parent / "original.jpg")


indexed("files/original.jpg", "a picture", named("original"))
for name, title, make_ in (
    ("copy.jpg", "a copy of it", copied),
    ("hard.jpg", "a hard link to it", hard_link),
    ("link.jpg", "a symbolic link to it", link_to("original.jpg")),
):
    add(f"files/{name}", title, Outcome.DUPLICATE, "files/original.jpg", make_, missing=posix)
for name, title, make_ in (
    ("broken.jpg", "a link to nothing", link_to("nowhere.jpg")),
    ("circle.jpg", "a link to itself", link_to("circle.jpg")),
    ("pipe.jpg", "a named pipe", pipe),
    ("pipe.tar", "a named pipe named .tar", pipe),
    ("zero.jpg", "a link to /dev/zero", link_to("/dev/zero")),
):
    skipped(f"files/{name}", title, make_, "not-a-file", missing=posix)
skipped("files/socket.jpg", "a socket", unix_socket, "not-a-file", missing=linux)
skipped(
    "files/proc.jpg",
    "a link to a file of /proc, which has no size",
    link_to("/proc/cpuinfo"),
    "not-an-image",
    missing=linux,
)
indexed("files/loop/inside.jpg", "folders that are links to each other", loop, missing=posix)
ignored("files/empty folder.jpg", "an empty folder named .jpg", lambda path: path.mkdir())


def locked(path: Path) -> None:
    """Make a file that nobody may read."""
    path.write_bytes(named("locked")())
    path.chmod(0)


skipped("files/locked.jpg", "a file that may not be read", locked, "unreadable", missing=not_root)


def too_deep(path: Path) -> None:
    """Make folders in folders until no path can name the last, each made within the one above."""
    path.mkdir()
    above = os.open(path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=above)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=above)
        os.close(above)
        above = below
    os.close(above)


skipped(
    "files/abyss",
    "folders too deep for any path",
    too_deep,
    "unreadable",
    below=True,
    missing=linux,
)

# --- The kinds: times -------------------------------------------------------------------------


def at_time(nanoseconds: int) -> Callable[[Path], None]:
    """Return what makes a picture that was changed at a time."""

    def make(path: Path) -> None:
        path.write_bytes(named(str(nanoseconds))())
        os.utime(path, ns=(nanoseconds, nanoseconds))

    return make


indexed("times/1970.jpg", "changed at second 0", at_time(0))
indexed("times/1903.jpg", "changed in 1903", at_time(-2_114_380_800 * 10**9), missing=posix)
indexed(
    "times/2400.jpg", "changed in the year 2400", at_time(13_569_465_600 * 10**9), missing=far_times
)

# --- The kinds: what lies beside --------------------------------------------------------------


def beside(name: str, make: Callable[[Path], None]) -> Callable[[Path], None]:
    """Return what makes a picture with a side-car."""

    def both(path: Path) -> None:
        path.write_bytes(named(f"beside {name}")())
        make(path.with_name(name))

    return both


def text_file(content: bytes) -> Callable[[Path], None]:
    """Return what writes a file."""

    def make(path: Path) -> None:
        path.write_bytes(content)

    return make


for name, title, make_ in (
    ("pipe", "a named pipe", pipe),
    ("noise", "noise", text_file(noise(3000))),
    ("long", "a text of 3 MB", text_file(b"many words " * 300_000)),
    ("nested", "JSON of a hundred thousand brackets", text_file(b"[" * 100_000)),
    ("link", "a link to /dev/zero", link_to("/dev/zero")),
    ("circle", "a link to itself", link_to("circle.txt")),
):
    ending = "json" if name == "nested" else "txt"
    indexed(
        f"beside/{name}.jpg",
        f"{title} where a caption would be",
        beside(f"{name}.{ending}", make_),
        missing=posix,
    )

# --- The kinds: containers --------------------------------------------------------------------


def tar_of(*members: tuple[str, bytes]) -> bytes:
    """Return a tar file."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def in_tar(content: Callable[[], bytes]) -> Callable[[Path], None]:
    """Return what makes the tar file that a picture lies in."""

    def make(path: Path) -> None:
        tar = next(above for above in path.parents if above.suffix == ".tar")
        tar.rmdir()
        tar.write_bytes(content())

    return make


def cut_tar() -> bytes:
    """Return a tar file that ends within its second picture."""
    return tar_of(("whole.jpg", named("in cut tar")()), ("cut.jpg", named("cut")()))[:-15_000]


def nothing_more(path: Path) -> None:
    """Make nothing: the kind before has made it."""
    del path


indexed(
    "containers/cut.tar/whole.jpg",
    "a picture in a tar file that was cut off behind it",
    in_tar(cut_tar),
)
skipped("containers/cut.tar", "a tar file that was cut off", nothing_more, "truncated")
skipped(
    "containers/cut.tar/cut.jpg", "the picture that it was cut off in", nothing_more, "truncated"
)
indexed(
    "containers/climbing.tar/../../up.jpg",
    "a picture in a tar file whose name climbs out",
    in_tar(lambda: tar_of(("../../up.jpg", named("up")()))),
)
skipped(
    "containers/packed.tar",
    "a packed tar file named .tar",
    lambda: b"\x1f\x8b" + noise(99),
    "compressed",
)
skipped("containers/text.tar", "a text named .tar", lambda: b"no tar file\n" * 100, "damaged")


def main() -> None:
    """Make the folder that is named, or print what it would hold."""
    if len(sys.argv) < 2:
        sys.stdout.write(table())
        return
    made, left_out = make_folder(Path(sys.argv[1]))
    sys.stdout.write(f"{len(made)} kinds in {sys.argv[1]}\n")
    for title, reason in left_out.items():
        sys.stdout.write(f"left out: {title}: {reason}\n")


if __name__ == "__main__":
    main()
