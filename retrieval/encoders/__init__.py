"""Encoders: pictures and texts into one space. `load_encoder` finds one by name."""

from __future__ import annotations

import os
from pathlib import Path

from mmsearch.errors import ModelError
from mmsearch.retrieval.encoders.base import Encoder
from mmsearch.retrieval.encoders.sources import TILES, absolute, is_source

__all__ = ["DEFAULT_MODEL", "Encoder", "load_encoder"]

DEFAULT_MODEL = "compact"

BUNDLED = Path(__file__).parent
"""Encoders that come with the package, one folder each."""


def load_encoder(name: str | Path | Encoder = DEFAULT_MODEL, *, asking: bool = False) -> Encoder:
    """Return the encoder called `name`: a bundled one, a folder, or a model of another library.

    An encoder of the caller's own is returned as it is. A folder is what `mmsearch train` wrote;
    other libraries' models are named `open_clip:MODEL/PRETRAINED` or `hf:NAME_OR_PATH`, and need
    the extra `models` once: they are exported to ONNX when first used (see `exported`), and torch
    is loaded after that only where there is a GPU. `int8:` before such a name stores the weights
    as bytes: a smaller and coarser encoder, whose vectors are not comparable with the whole one's.
    `tiles:` before any name shows long pictures to the encoder in parts, see `tiles`.

    Opening a folder is cheap: a tower is loaded when it is first used.

    Args:
        name: which one.
        asking: only a few texts or pictures follow, so that no GPU is started for them.

    Raises:
        ModelError: there is no such encoder, or its folder is incomplete or altered.
        MissingExtra: the model's library is not installed.
    """
    if isinstance(name, Encoder):
        return name
    if str(name).startswith(TILES):
        from mmsearch.retrieval.encoders.tiles import Tiled

        return Tiled(load_encoder(str(name).removeprefix(TILES), asking=asking))
    if is_source(str(name)):
        from mmsearch.retrieval.encoders import exported

        return exported.load(absolute(str(name)), asking=asking)
    from mmsearch.retrieval.encoders.onnx import OnnxEncoder

    bundled = str(name) == DEFAULT_MODEL
    folder = BUNDLED / DEFAULT_MODEL if bundled else Path(os.path.expanduser(name))  # noqa: PTH111
    if not os.path.isfile(folder / "encoder.json"):  # noqa: PTH113
        raise ModelError(
            f"There is no encoder '{name}'. Use '{DEFAULT_MODEL}', the path of a folder that "
            "holds an encoder.json, or a name such as open_clip:MODEL/PRETRAINED or hf:NAME."
        )
    return OnnxEncoder(folder, location=DEFAULT_MODEL if bundled else None)
