"""The folder of a trained model: `model.json`, `model.safetensors`, `tokenizer.json`.

`retrieval.training.export` writes it, together with the ONNX files that `OnnxEncoder` runs:

    {"format": 1, "name": "birds", "architecture": {"kind": "open_clip", …},
     "image": {"preprocess": {…}, "mean": […], "deviation": […]},
     "text": {"max_tokens": 77, "padding": {"to": 77, "id": 0}, "clean": "lower"},
     "sha256": {"model.safetensors": "…", "tokenizer.json": "…"},
     "extra": {…}}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from tokenizers import Tokenizer

from mmsearch.errors import ModelError
from mmsearch.retrieval.encoders.dual_encoder import Description, DualEncoder
from mmsearch.retrieval.encoders.sources import build_towers
from mmsearch.retrieval.encoders.tokens import TextPreprocess
from mmsearch.retrieval.preprocess import ImagePreprocess

__all__ = ["FORMAT", "describe", "load"]

FORMAT = 1

_OTHER_KINDS = {
    "open_clip_config.json": "It looks like a model of open_clip: give open_clip:local-dir:{0}",
    "config.json": "It looks like a model of transformers: give hf:{0}",
    "encoder.json": "It holds a finished encoder without the weights to train on.",
}


def describe(model: DualEncoder) -> dict[str, Any]:
    """Return what `model.json` says of a model, without hashes."""
    description = model.description
    return {
        "format": FORMAT,
        "name": description.name,
        "architecture": description.architecture,
        "image": {
            "preprocess": description.preprocess.to_json(),
            "mean": list(description.mean),
            "deviation": list(description.deviation),
        },
        "text": description.texts.to_json(),
    }


def load(rest: str, captions: Sequence[str] | None) -> DualEncoder:
    """Return the model in the folder `rest`; `captions` are not used."""
    del captions
    folder = Path(rest)
    fields = _read_description(folder)
    try:
        description = Description(
            name=str(fields["name"]),
            architecture=dict(fields["architecture"]),
            preprocess=ImagePreprocess.from_json(fields["image"]["preprocess"]),
            mean=_three(fields["image"]["mean"]),
            deviation=_three(fields["image"]["deviation"]),
            texts=TextPreprocess.from_json(fields["text"]),
        )
        sha256 = {str(name): str(value) for name, value in fields["sha256"].items()}
        state = load_tensors(_checked(folder, "model.safetensors", sha256))
        tokenizer = Tokenizer.from_buffer(_checked(folder, "tokenizer.json", sha256))
        model = DualEncoder(
            build_towers(description.architecture),
            description,
            tokenizer,
            log_bias=0.0 if "log_bias" in state else None,
        )
        model.load_state_dict(state)
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"The model folder {folder} cannot be used: its files do not fit together "
            f"({type(error).__name__}: {' '.join(str(error).split())[:300]}). Train it again, or "
            "get the folder again."
        ) from error
    return model


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / "model.json"
    if not path.is_file():
        hints = [hint for name, hint in _OTHER_KINDS.items() if (folder / name).is_file()]
        hint = hints[0].format(folder) if hints else "Give a folder that mmsearch train wrote."
        raise ModelError(f"{folder} holds no model.json. {hint}")
    try:
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = fields["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is damaged ({error!r}). Get the folder again.") from error
    if not known:
        raise ModelError(
            f"{path} has format {fields['format']!r}, which this version of mmsearch does not "
            "read. Run: pip install --upgrade mmsearch"
        )
    return fields


def _checked(folder: Path, name: str, sha256: dict[str, str]) -> bytes:
    path = folder / name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"The model lacks {path} ({error}). Get its folder again.") from error
    if hashlib.sha256(data).hexdigest() != sha256[name]:
        raise ModelError(
            f"{path} is not the file this model was saved with (its SHA-256 differs): it is "
            "damaged or was altered. Get the folder again."
        )
    return data


def _three(values: Any) -> tuple[float, ...]:  # noqa: ANN401
    found = tuple(float(value) for value in values)
    if len(found) != 3:
        raise ValueError(f"{values!r} are not three numbers")
    return found
