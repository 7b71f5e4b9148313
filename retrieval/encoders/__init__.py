"""Encoders: pictures and texts into one space. `load_encoder` finds one by name."""

from __future__ import annotations

import os
from pathlib import Path

from mmsearch.errors import ModelError
from mmsearch.retrieval.encoders.base import Encoder

__all__ = ["DEFAULT_MODEL", "Encoder", "load_encoder"]

DEFAULT_MODEL = "compact"

BUNDLED = Path(__file__).parent
"""Encoders that come with the package, one folder each."""


def load_encoder(name: str | Path | Encoder = DEFAULT_MODEL) -> Encoder:
    """Return the encoder called `name`: a bundled one, or a folder that holds one.

    An encoder of the caller's own is returned as it is.

    Opening is cheap: a tower is loaded when it is first used.

    Raises:
        ModelError: there is no such encoder, or its folder is incomplete or altered.
    """
    if isinstance(name, Encoder):
        return name
    from mmsearch.retrieval.encoders.onnx import OnnxEncoder

    bundled = str(name) == DEFAULT_MODEL
    folder = BUNDLED / DEFAULT_MODEL if bundled else Path(os.path.expanduser(name))  # noqa: PTH111
    if not os.path.isfile(folder / "encoder.json"):  # noqa: PTH113
        raise ModelError(
            f"There is no encoder '{name}'. Use '{DEFAULT_MODEL}', or the path of a folder that "
            "holds an encoder.json."
        )
    return OnnxEncoder(folder, location=DEFAULT_MODEL if bundled else None)
