"""A catalogue for people without one: drawn products, a file of them and a folder of pictures."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw

__all__ = ["COLOURS", "THINGS", "draw_catalogue"]

SIDE = 256
COLOURS = {
    "red": (205, 30, 35),
    "orange": (240, 130, 20),
    "yellow": (240, 205, 30),
    "green": (40, 150, 60),
    "blue": (35, 80, 200),
    "purple": (125, 50, 160),
    "brown": (120, 75, 40),
    "black": (25, 25, 30),
}

Colour = tuple[int, int, int]
Drawing = Callable[[ImageDraw.ImageDraw, Colour], None]


def _mug(pen: ImageDraw.ImageDraw, colour: Colour) -> None:
    pen.ellipse((150, 95, 220, 175), outline=colour, width=16)
    pen.rounded_rectangle((60, 70, 180, 205), 16, fill=colour)
    pen.ellipse((60, 58, 180, 84), fill=(250, 250, 250), outline=colour, width=6)


def _shirt(pen: ImageDraw.ImageDraw, colour: Colour) -> None:
    sleeves = [(85, 50), (171, 50), (235, 105), (205, 140), (51, 140), (21, 105)]
    pen.polygon(sleeves, fill=colour)
    pen.rectangle((80, 52, 176, 220), fill=colour)
    pen.pieslice((100, 25, 156, 78), 0, 180, fill=(255, 255, 255))


def _chair(pen: ImageDraw.ImageDraw, colour: Colour) -> None:
    pen.rectangle((70, 25, 88, 235), fill=colour)
    pen.rectangle((88, 40, 168, 60), fill=colour)
    pen.rectangle((88, 80, 168, 96), fill=colour)
    pen.rectangle((70, 130, 186, 154), fill=colour)
    pen.rectangle((168, 25, 186, 235), fill=colour)


def _ball(pen: ImageDraw.ImageDraw, colour: Colour) -> None:
    pen.ellipse((45, 45, 211, 211), fill=colour)
    pen.arc((-40, 45, 110, 211), -70, 70, fill=(250, 250, 250), width=6)
    pen.arc((146, 45, 296, 211), 110, 250, fill=(250, 250, 250), width=6)


def _lamp(pen: ImageDraw.ImageDraw, colour: Colour) -> None:
    pen.rectangle((122, 110, 134, 220), fill=(90, 90, 90))
    pen.ellipse((80, 208, 176, 234), fill=(90, 90, 90))
    pen.polygon([(95, 30), (161, 30), (205, 125), (51, 125)], fill=colour)


def _umbrella(pen: ImageDraw.ImageDraw, colour: Colour) -> None:
    pen.rectangle((124, 120, 132, 215), fill=(90, 90, 90))
    pen.arc((92, 195, 132, 235), 0, 180, fill=(90, 90, 90), width=8)
    pen.pieslice((20, 30, 236, 230), 180, 360, fill=colour)


THINGS: dict[str, tuple[str, Drawing]] = {
    "mugs": ("mug", _mug),
    "shirts": ("shirt", _shirt),
    "chairs": ("chair", _chair),
    "balls": ("ball", _ball),
    "lamps": ("lamp", _lamp),
    "umbrellas": ("umbrella", _umbrella),
}
"""By category: what its products are called, and how they look."""


def draw_catalogue(
    folder: Path,
    *,
    categories: Sequence[str] = tuple(THINGS),
    colours: Sequence[str] = tuple(COLOURS),
    sizes: Sequence[str] = ("small", "large"),
    seed: int = 0,
) -> Path:
    """Draw a product for each category, colour and size; return the file that names them.

    Args:
        folder: gets `products.csv` and `pictures/`, and `new.png`, a product to be added later.
        categories: of `THINGS`.
        colours: of `COLOURS`.
        sizes: `small` ones fill half of their picture.
        seed: of prices, shades and places.
    """
    random = Random(seed)
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    products = folder / "products.csv"
    with products.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "title", "category", "price", "picture"])
        for category in categories:
            name, drawing = THINGS[category]
            for colour in colours:
                for size in sizes:
                    id_ = f"{name}-{colour}-{size}"
                    _picture(drawing, colour, size, random).save(pictures / f"{id_}.png")
                    price = f"{random.randint(5, 60)}.{random.choice(['00', '50', '90'])}"
                    title = f"{size} {colour} {name}"
                    rows.writerow([id_, title, category, price, f"{id_}.png"])
    new = Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
    _mug(ImageDraw.Draw(new), (190, 45, 55))
    new.save(folder / "new.png")
    return products


def _picture(drawing: Drawing, colour: str, size: str, random: Random) -> Image.Image:
    """Draw one product on a light ground."""
    red, green, blue = (max(0, min(255, c + random.randint(-18, 18))) for c in COLOURS[colour])
    thing = Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
    drawing(ImageDraw.Draw(thing), (red, green, blue))
    if size != "small":
        return thing
    half = SIDE // 2
    picture = Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
    place = random.randint(half // 4, 3 * half // 4), random.randint(half // 4, 3 * half // 4)
    picture.paste(thing.resize((half, half), Image.Resampling.LANCZOS), place)
    return picture
