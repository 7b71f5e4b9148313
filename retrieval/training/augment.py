"""Random changes to pictures and captions, against learning them by heart.

Everything is drawn from a generator of the sample's own, not from a process-wide one: samples are
made in threads, and a training that was stopped must continue with exactly the same ones.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageEnhance

if TYPE_CHECKING:
    from mmsearch.retrieval.training.recipe import Recipe

__all__ = ["augment_caption", "augment_picture", "generator"]

ASPECTS = (3 / 4, 4 / 3)
ATTEMPTS = 10


def generator(*key: int) -> np.random.Generator:
    """Return the generator of one sample, named by numbers such as seed, epoch and row."""
    return np.random.default_rng(key)


def augment_picture(image: Image.Image, recipe: Recipe, random: np.random.Generator) -> Image.Image:
    """Return a random crop, perhaps mirrored, with other brightness, contrast and saturation.

    The crop keeps `recipe.crop` to 1 of the area with an aspect changed by up to 4/3 (Szegedy et
    al. 2015, "Going Deeper with Convolutions", section 6).
    """
    if recipe.crop < 1:
        image = image.crop(_box(image.size, recipe.crop, random))
    if recipe.flip and random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if recipe.colour > 0:
        for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            strength = random.uniform(1 - recipe.colour, 1 + recipe.colour)
            image = change(image).enhance(strength)
    return image


def augment_caption(caption: str, share: float, random: np.random.Generator) -> str:
    """Return the caption without a random `share` of its words; never without all of them."""
    words = caption.split()
    if share <= 0 or len(words) < 2:
        return caption
    kept = [word for word in words if random.random() >= share]
    return " ".join(kept or [words[int(random.integers(len(words)))]])


def _box(
    size: tuple[int, int], smallest: float, random: np.random.Generator
) -> tuple[int, int, int, int]:
    width, height = size
    narrow, wide = map(math.log, ASPECTS)
    for _ in range(ATTEMPTS):
        area = width * height * random.uniform(smallest, 1.0)
        # Relative to the picture's own aspect: it is the whole picture that becomes a square.
        aspect = width / height * math.exp(random.uniform(narrow, wide))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left = int(random.integers(width - w + 1))
            top = int(random.integers(height - h + 1))
            return left, top, left + w, top + h
    return 0, 0, width, height
