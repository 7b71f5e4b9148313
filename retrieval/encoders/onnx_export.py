"""From a `DualEncoder` to the files that `OnnxEncoder` runs without torch, checked against it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from mmsearch.errors import ModelError
from mmsearch.retrieval.encoders.files import hashes, put, put_json
from mmsearch.retrieval.encoders.graph import export_graph, verify_graph
from mmsearch.retrieval.encoders.onnx import OnnxEncoder
from mmsearch.retrieval.encoders.packing import (
    pack_halves,
    pack_matrices,
    pack_stored,
    pack_words,
)
from mmsearch.retrieval.encoders.samples import sample_pictures, sample_texts
from mmsearch.retrieval.schema import Quantize

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from mmsearch.retrieval.encoders.dual_encoder import DualEncoder

__all__ = ["Agreement", "agreement", "at_rest", "write_encoder"]

LARGEST_GRAPH = 2**31 - 2**20
"""An ONNX file is one protobuf message, which ends at 2 GiB."""

_LEAST_COSINE = {Quantize.NONE: None, Quantize.FP16: 0.999, Quantize.INT8: 0.95}
"""Least cosine between a packed graph's answer to noise and torch's; noise is the worst case."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Least cosine between the vectors of the files and those of the model, over the samples."""

    images: float
    texts: float

    @property
    def least(self) -> float:
        """The lower of the two."""
        return min(self.images, self.texts)


def write_encoder(model: DualEncoder, folder: Path, quantize: Quantize) -> None:
    """Write `image.onnx`, `text.onnx`, `tokenizer.json` and `encoder.json` into a folder.

    Args:
        model: its mode and device stay as they are.
        folder: exists; files of these names are replaced.
        quantize: how the weights are stored.

    Raises:
        ModelError: the model is too large for ONNX, or the files do not answer as it does.
        OSError: the disk is full or read-only.
    """
    for name, tower in (("image", model.image_tower), ("text", model.text_tower)):
        if sum(p.numel() for p in tower.parameters()) * 4 > LARGEST_GRAPH:
            raise ModelError(
                f"The {name} tower of {model.name} is larger than the 2 GiB of an ONNX file. "
                "Choose a smaller model, for instance ViT-L-14 in place of ViT-bigG-14."
            )
    with at_rest(model):
        put(folder / "tokenizer.json", _plain_tokenizer(model).encode())
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
            put(folder / name, graph.SerializeToString())
        with torch.inference_mode():
            expected = model.encode_images(pixels), model.encode_texts(ids, mask)
    least = _LEAST_COSINE[quantize]
    verify_graph(folder / "image.onnx", {"pixels": pixels}, expected[0], least_cosine=least)
    verify_graph(
        folder / "text.onnx",
        {"input_ids": ids, "attention_mask": mask},
        expected[1],
        least_cosine=least,
    )
    put_json(folder / "encoder.json", _encoder_json(model, folder))


def agreement(model: DualEncoder, folder: Path) -> Agreement:
    """Compare what `write_encoder` wrote with the model, from pictures and texts to vectors."""
    encoder = OnnxEncoder(folder)
    images, texts = sample_pictures(), sample_texts()
    pixels = torch.from_numpy(np.stack([model.preprocess(image) for image in images]))
    with at_rest(model), torch.inference_mode():
        of_images = model.encode_images(pixels).numpy()
        of_texts = model.encode_texts(*model.tokenize(texts)).numpy()
    return Agreement(
        _least_cosine(encoder.encode_images(images), of_images),
        _least_cosine(encoder.encode_texts(texts), of_texts),
    )


@contextmanager
def at_rest(model: DualEncoder) -> Iterator[None]:
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


def _encoder_json(model: DualEncoder, folder: Path) -> dict[str, Any]:
    sha256 = hashes(folder, ("image.onnx", "text.onnx", "tokenizer.json"))
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


def _least_cosine(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """Return the least cosine between rows; -1 where a number is not finite.

    By their distance, which for rows of unit length is the same and takes two rows of zeros, as a
    tower without biases makes of a black picture, for equal.
    """
    cosine = 1.0 - float(((found - wanted) ** 2).sum(axis=1).max()) / 2.0
    return cosine if np.isfinite(cosine) else -1.0
