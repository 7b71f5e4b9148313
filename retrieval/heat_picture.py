"""A map of heat laid over its picture, and that as a PNG file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mmsearch.errors import SourceError, quoted
from mmsearch.indexes.base import replacing

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["check_place", "heat_picture", "write_png"]

LONGEST = 1_600
"""Longer side in pixels."""

_RAMP = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)])
"""From cold to hot, evenly brighter: matplotlib's "inferno" (Smith and van der Walt, CC0)."""

LEAST, MOST = 0.45, 0.7
"""How much of a cold and of a hot place is the map's colour."""


def heat_picture(
    picture: Image.Image, heat: NDArray[np.float32], longest: int = LONGEST
) -> Image.Image:
    """Return an RGB picture with the map over it, at most `longest` pixels long.

    Args:
        picture: upright RGB.
        heat: `float32[h, w]` in [0, 1], over the whole picture.
        longest: longer side at most.
    """
    shown = picture.copy()
    shown.thumbnail((longest, longest))
    wide = Image.fromarray(heat).resize(shown.size, Image.Resampling.BICUBIC)
    warm = np.clip(np.asarray(wide, dtype=np.float64), 0, 1)
    places = np.linspace(0, 1, len(_RAMP))
    colours = np.stack([np.interp(warm, places, _RAMP[:, c]) for c in range(3)], axis=-1)
    share = (LEAST + (MOST - LEAST) * warm)[..., None]
    mixed = np.asarray(shown, dtype=np.float64) * (1 - share) + colours * share
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def check_place(path: Path, picture: Path, *, force: bool = False) -> None:
    """Check that a PNG can go to `path`.

    Args:
        path: where to.
        picture: the file that is explained, which is never written to.
        force: whether another file there may be replaced.

    Raises:
        SourceError: something is there, or the folder is missing, or another kind is asked for.
    """
    if path.suffix.lower() != ".png":
        raise SourceError(f"{path} would be a PNG: let its name end in .png.")
    if not path.parent.is_dir():
        raise SourceError(f"There is no folder {path.parent} to write {path.name} into.")
    if not os.path.lexists(path):
        return
    if path.is_dir() or (picture.exists() and path.exists() and path.samefile(picture)):
        raise SourceError(
            f"{path} is left alone: no picture of yours is overwritten. Choose another name."
        )
    if not force:
        raise SourceError(
            f"{path} exists, so it is left alone. Choose another name, or replace it with --force, "
            f"or move it away: mv {quoted(path)} {quoted(path)}.old"
        )


def write_png(shown: Image.Image, path: Path, said: str, *, force: bool = False) -> None:
    """Write a picture whole or not at all.

    Args:
        shown: what `heat_picture` returned.
        path: where to, see `check_place`.
        said: what it shows, for its metadata.
        force: whether a file there may be replaced.

    Raises:
        SourceError: something is there meanwhile, or the file cannot be written.
    """
    about = PngInfo()
    about.add_itxt("Description", said.encode(errors="replace").decode())
    about.add_text("Software", "mmsearch")
    try:
        if force:
            with replacing(path) as temporary:
                shown.save(temporary, "PNG", pnginfo=about)
        else:
            # Fails should another program have made the file meanwhile.
            with path.open("xb") as file:
                shown.save(file, "PNG", pnginfo=about)
    except OSError as error:
        raise SourceError(f"{path} cannot be written: {error.strerror}.") from error
