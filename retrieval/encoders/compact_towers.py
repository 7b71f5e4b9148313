"""The bundled encoder as a model to train: its weights are read back from the ONNX files.

The graphs are read by what they compute more than by names: convolutions, products and additions
in their order. So any export of an `EdgeTower` and a `TextTower`, each with a `ResidualHead`, can
be read, packed to bytes or not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from tokenizers import Tokenizer
from torch import nn

from mmsearch.errors import ModelError
from mmsearch.retrieval.encoders import BUNDLED, DEFAULT_MODEL
from mmsearch.retrieval.encoders.dual_encoder import Description, DualEncoder, Towers
from mmsearch.retrieval.encoders.edge_tower import EdgeTower
from mmsearch.retrieval.encoders.heads import ResidualHead
from mmsearch.retrieval.encoders.onnx import OnnxEncoder
from mmsearch.retrieval.encoders.onnx_weights import Graph, Layer
from mmsearch.retrieval.encoders.sources import reading
from mmsearch.retrieval.encoders.text_tower import Layer as TextLayer
from mmsearch.retrieval.encoders.text_tower import TextTower
from mmsearch.retrieval.encoders.tokens import TextPreprocess
from mmsearch.retrieval.preprocess import ImagePreprocess

__all__ = ["build", "load", "load_folder"]

_MEAN, _DEVIATION = (128.0,) * 3, (1.0 / 0.007874016,) * 3
"""What the published weights of the image tower expect."""

_HEAD_WIDTH = 32
"""Width of an attention head of all-MiniLM, which no file states."""


def load(rest: str, captions: Sequence[str] | None) -> DualEncoder:
    """Return the bundled encoder; the arguments are those every source takes."""
    del rest, captions
    return load_folder(BUNDLED / DEFAULT_MODEL)


def load_folder(folder: Path) -> DualEncoder:
    """Return the encoder in a folder laid out like the bundled one.

    Raises:
        ModelError: a file is missing or altered, or the graphs are of another architecture.
    """
    encoder = OnnxEncoder(folder)
    with reading(str(folder), "Its graphs are read by the version of mmsearch they came with."):
        fields = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
        image = Graph(onnx.load_from_string(encoder.read("image")))
        text = Graph(onnx.load_from_string(encoder.read("text")))
        architecture = _architecture(image, text)
        towers = build(architecture)
        _fill_image(towers, image)
        _fill_text(towers, text)
        return DualEncoder(
            towers,
            Description(
                name=encoder.spec.name,
                architecture=architecture,
                preprocess=ImagePreprocess.from_json(fields["image"]["preprocess"]),
                mean=_MEAN,
                deviation=_DEVIATION,
                texts=TextPreprocess.from_json(fields["text"]),
            ),
            Tokenizer.from_buffer(encoder.read("tokenizer")),
        )


def build(architecture: dict[str, Any]) -> Towers:
    """Return towers with random weights."""
    try:
        image = EdgeTower(**architecture["image"])
        text = TextTower(**architecture["text"])
        hidden, dim = architecture["hidden"], int(architecture["dim"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ModelError(f"The architecture of the model is damaged ({error!r}).") from error
    text.reset()
    return Towers(
        image,
        ResidualHead.plain(image.width, dim, int(hidden["image"])),
        text,
        ResidualHead.plain(text.words.embedding_dim, dim, int(hidden["text"])),
        dim,
    )


def _architecture(image: Graph, text: Graph) -> dict[str, Any]:
    places = {conv.output: number for number, conv in enumerate(image.convolutions())}
    words, layers = text.table(), text.dense()[:-3]
    straight, bent = image.dense()[-3:-1]
    width = words.shape[1]
    return {
        "kind": "compact",
        "image": {
            "taps": [places[name] for name in image.pooled()],
            "limits": [list(limits) for limits in image.limits()],
        },
        "text": {
            "vocabulary": len(words),
            "width": width,
            "heads": width // _HEAD_WIDTH,
            "inner": len(layers[2].weight),
            "layers": len(layers) // 4,
            "epsilon": text.norms()[0].epsilon,
        },
        "dim": len(straight.weight),
        "hidden": {"image": len(bent.weight), "text": len(text.dense()[-2].weight)},
    }


@torch.no_grad()
def _fill_image(towers: Towers, graph: Graph) -> None:
    assert isinstance(towers.image, EdgeTower)
    for conv, layer in zip(towers.image.convolutions(), graph.convolutions(), strict=True):
        _fill(conv, layer)
    _fill_head(towers.image_head, graph)


@torch.no_grad()
def _fill_text(towers: Towers, graph: Graph) -> None:
    tower = towers.text
    assert isinstance(tower, TextTower)
    tower.words.weight.copy_(torch.from_numpy(graph.table()))
    shape = (tower.positions.num_embeddings, tower.positions.embedding_dim)
    tower.positions.weight.copy_(torch.from_numpy(graph.stored("positions.weight", shape)))
    dense, norms = iter(graph.dense()), iter(graph.norms())
    _fill(tower.norm, next(norms))
    for layer in tower.layers:
        assert isinstance(layer, TextLayer)
        for part in (layer.attention_in, layer.attention_out, layer.inner, layer.outer):
            _fill(part, next(dense))
        for norm in (layer.attention_norm, layer.outer_norm):
            _fill(norm, next(norms))
    _fill_head(towers.text_head, graph)


def _fill_head(head: nn.Module, graph: Graph) -> None:
    assert isinstance(head, ResidualHead)
    shape = tuple(head.mean.shape)
    head.mean.copy_(torch.from_numpy(graph.stored("mean", shape)))
    head.deviation.copy_(torch.from_numpy(graph.stored("deviation", shape)))
    linear = [module for module in head.modules() if isinstance(module, nn.Linear)]
    for part, layer in zip(linear, graph.dense()[-3:], strict=True):
        _fill(part, layer)


def _fill(part: nn.Module, layer: Layer) -> None:
    for name, values in (("weight", layer.weight), ("bias", layer.bias)):
        parameter = part.get_parameter(name)
        if parameter.shape != values.shape:
            raise ValueError(
                f"a weight has the shape {values.shape}, expected {tuple(parameter.shape)}"
            )
        parameter.copy_(torch.from_numpy(values.copy()))
