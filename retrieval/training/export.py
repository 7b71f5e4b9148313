"""From a trained `DualEncoder` to the folder that `--model` takes.

The folder holds the weights to train further (`model.json`, `model.safetensors`) and the same
model as ONNX graphs (`encoder.json`), which run without torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch
from safetensors.torch import save as save_tensors
from torch import nn

from mmsearch.errors import ModelError
from mmsearch.retrieval.encoders.folder import describe
from mmsearch.retrieval.training.graph import export_graph, verify_graph
from mmsearch.retrieval.training.packing import (
    pack_halves,
    pack_matrices,
    pack_stored,
    pack_words,
)
from mmsearch.retrieval.training.recipe import Quantize

if TYPE_CHECKING:
    from mmsearch.retrieval.encoders.dual_encoder import DualEncoder

__all__ = ["Quantize", "refuse_foreign", "save_model"]

LARGEST_GRAPH = 2**31 - 2**20
"""An ONNX file is one protobuf message, which ends at 2 GiB."""

OWN_FILES = frozenset(
    {
        "encoder.json",
        "image.onnx",
        "model.json",
        "model.safetensors",
        "text.onnx",
        "tokenizer.json",
    }
)


_LEAST_COSINE = {Quantize.NONE: None, Quantize.FP16: 0.999, Quantize.INT8: 0.95}
"""Least cosine between a packed graph's answer to noise and torch's; noise is the worst case."""


def save_model(
    model: DualEncoder,
    folder: Path,
    *,
    extra: dict[str, Any] | None = None,
    quantize: Quantize = Quantize.NONE,
) -> None:
    """Write a model; the folder appears whole or not at all, and replaces a former model.

    Files of others in a folder that held a model are kept.

    Args:
        model: adapters (LoRA) are merged already; its mode and device stay as they are.
        folder: where to; its parent is made if need be.
        extra: anything JSON, kept in `model.json`: how the model was trained.
        quantize: how the ONNX files store their weights.

    Raises:
        ModelError: `folder` holds something else, the model is too large for ONNX, or the ONNX
            files do not answer as the model does.
        OSError: the disk is full or read-only.
    """
    folder = folder.absolute()
    refuse_foreign(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    part.mkdir()
    try:
        _write(model, part, extra or {}, Quantize(quantize))
        _replace(folder, part)
    finally:
        shutil.rmtree(part, ignore_errors=True)


class _Images(nn.Module):
    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model.encode_images(pixels)


class _Texts(nn.Module):
    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model.encode_texts(input_ids, attention_mask)


def _write(model: DualEncoder, part: Path, extra: dict[str, Any], quantize: Quantize) -> None:
    for name, tower in (("image", model.image_tower), ("text", model.text_tower)):
        if sum(p.numel() for p in tower.parameters()) * 4 > LARGEST_GRAPH:
            raise ModelError(
                f"The {name} tower of {model.name} is larger than the 2 GiB of an ONNX file. Train "
                "a smaller model, for instance ViT-L-14 in place of ViT-bigG-14."
            )
    with _at_rest(model):
        state = {
            name: tensor.cpu().contiguous().clone() for name, tensor in model.state_dict().items()
        }
        _put(part / "model.safetensors", save_tensors(state))
        _put(part / "tokenizer.json", _plain_tokenizer(model).encode())
        pixels, ids, mask = _examples(model)
        image = export_graph(_Images(model), {"pixels": pixels}, {"pixels": {0: "n"}})
        sides = {0: "n"} if model.description.texts.pad_to else {0: "n", 1: "t"}
        text = export_graph(
            _Texts(model),
            {"input_ids": ids, "attention_mask": mask},
            {"input_ids": sides, "attention_mask": sides},
        )
        _pack(image, text, quantize)
        for name, graph in (("image.onnx", image), ("text.onnx", text)):
            _put(part / name, graph.SerializeToString())
        with torch.inference_mode():
            expected = model.encode_images(pixels), model.encode_texts(ids, mask)
    least = _LEAST_COSINE[quantize]
    verify_graph(part / "image.onnx", {"pixels": pixels}, expected[0], least_cosine=least)
    verify_graph(
        part / "text.onnx",
        {"input_ids": ids, "attention_mask": mask},
        expected[1],
        least_cosine=least,
    )
    _put_json(
        part / "model.json",
        {
            **describe(model),
            "sha256": _hashes(part, ("model.safetensors", "tokenizer.json")),
            "extra": extra,
        },
    )
    _put_json(part / "encoder.json", _encoder_json(model, part))
    _sync(part)


def _encoder_json(model: DualEncoder, part: Path) -> dict[str, Any]:
    sha256 = _hashes(part, ("image.onnx", "text.onnx", "tokenizer.json"))
    lines = "".join(f"{sha256[name]}  {name}\n" for name in sorted(sha256))
    return {
        "format": 1,
        "kind": "onnx",
        "name": model.name,
        "revision": hashlib.sha256(lines.encode()).hexdigest()[:12],
        "dim": model.dim,
        "image": {"file": "image.onnx", "preprocess": model.preprocess.to_json()},
        "text": {
            "file": "text.onnx",
            "tokenizer": "tokenizer.json",
            **model.description.texts.to_json(),
        },
        "sha256": sha256,
    }


def _examples(model: DualEncoder) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return noise to look at and texts to read, three of each, of different lengths."""
    size = model.preprocess.size
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, size, size, 3), generator=random, dtype=torch.uint8)
    texts = ["a dog", "two children play football in the rain", "red"]
    return pixels, *model.tokenize(texts)


def _pack(image: onnx.ModelProto, text: onnx.ModelProto, quantize: Quantize) -> None:
    match quantize:
        case Quantize.NONE:
            return
        case Quantize.FP16:
            pack_halves(image)
            pack_halves(text)
        case Quantize.INT8:
            pack_stored(image, operators=("Conv", "Gemm", "MatMul"))
            pack_words(text)
            pack_matrices(text, accuracy_level=4)


def _plain_tokenizer(model: DualEncoder) -> str:
    # What the loader sets itself is left out, so that it is said in one place.
    fields = json.loads(model.tokenizer.to_str()) | {"truncation": None, "padding": None}
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))


@contextmanager
def _at_rest(model: DualEncoder) -> Iterator[None]:
    """Bring the model to the CPU, in float32 and evaluation, for a while."""
    was_training = model.training
    devices = {parameter.device for parameter in model.parameters()}
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if len(devices) > 1 or len(dtypes) > 1:
        raise ModelError(
            "The model to save is spread over several devices or number types. Bring it together "
            "first: model.to('cpu', torch.float32)"
        )
    try:
        model.to("cpu", torch.float32).eval()
        yield
    finally:
        model.to(devices.pop(), dtypes.pop())
        model.train(was_training)


def refuse_foreign(folder: Path) -> None:
    """Raise `ModelError` where a model cannot take the place of what is at `folder`."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ModelError(f"{folder} is no folder. Give another place for the model.")
    if folder.is_dir():
        names = {path.name for path in folder.iterdir()}
        if names and not names & {"model.json", "encoder.json"}:
            raise ModelError(
                f"{folder} holds other files, and no model that could be replaced. Give a new or "
                "empty folder."
            )


def _replace(folder: Path, part: Path) -> None:
    if not folder.exists():
        part.rename(folder)
    else:
        former = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.former")
        folder.rename(former)
        part.rename(folder)
        for path in former.iterdir():
            if path.name not in OWN_FILES:
                path.rename(folder / path.name)
        shutil.rmtree(former)
    _sync(folder.parent)


def _hashes(folder: Path, names: Sequence[str]) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def _put(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _put_json(path: Path, fields: dict[str, Any]) -> None:
    _put(path, (json.dumps(fields, indent=2, ensure_ascii=False) + "\n").encode())


def _sync(folder: Path) -> None:
    if os.name == "posix":  # Elsewhere a folder cannot be opened, and need not be synced.
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
