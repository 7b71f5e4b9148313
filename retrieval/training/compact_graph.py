"""From trained heads on frozen towers to the bundled encoder's files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import onnx
import torch
from onnx import compose
from torch import nn

from mmsearch.retrieval.encoders.text_tower import MAX_TOKENS, TextTower
from mmsearch.retrieval.training.features import PREPROCESS
from mmsearch.retrieval.training.graph import export_graph

__all__ = ["export_head", "export_image", "export_text", "write_folder"]


class _TextEncoder(nn.Module):
    def __init__(self, tower: TextTower, head: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.head = head

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        embedding: torch.Tensor = self.head(self.tower(input_ids, attention_mask))
        return embedding


def export_head(head: nn.Module, width: int) -> onnx.ModelProto:
    """Return a head's graph: `features` float32[n, width] to `embedding` float32[n, dim]."""
    return export_graph(head, {"features": torch.zeros(2, width)}, {"features": {0: "n"}})


def export_image(trunk: onnx.ModelProto, head: nn.Module, width: int) -> onnx.ModelProto:
    """Return the image encoder's graph, in float32.

    Input `pixels` uint8[n, 224, 224, 3], output `embedding` float32[n, dim], unit rows.

    Args:
        trunk: what `image_trunk` returned; its classifier is dropped.
        head: maps the trunk's features to unit rows.
        width: number of those features.
    """
    part = compose.add_prefix(export_head(head, width), "head_")
    part.ir_version = trunk.ir_version
    model = compose.merge_models(
        trunk, part, io_map=[("features", "head_features")], outputs=["head_embedding"]
    )
    _rename(model, "head_embedding", "embedding")
    _prune(model)
    return model


def export_text(tower: TextTower, head: nn.Module) -> onnx.ModelProto:
    """Return the text encoder's graph, in float32.

    Inputs `input_ids` and `attention_mask` int64[n, t], t at most 64; output `embedding`
    float32[n, dim], unit rows.
    """
    axes = {0: "n", 1: "t"}
    ids = torch.ones(2, 7, dtype=torch.int64)
    return export_graph(
        _TextEncoder(tower, head).eval(),
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        {"input_ids": axes, "attention_mask": axes},
    )


def write_folder(
    folder: Path,
    *,
    image: onnx.ModelProto,
    text: onnx.ModelProto,
    tokenizer: Path,
    revision: str,
    dim: int,
) -> None:
    """Write the graphs, the tokenizer and `encoder.json`, which names them with their SHA-256."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in (("image.onnx", image), ("text.onnx", text)):
        onnx.checker.check_model(model)
        (folder / name).write_bytes(model.SerializeToString())
    fields = json.loads(tokenizer.read_text(encoding="utf-8"))
    fields |= {"truncation": None, "padding": None}
    compact = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(compact, encoding="utf-8")
    shipped = ("image.onnx", "text.onnx", "tokenizer.json")
    description = {
        "format": 1,
        "kind": "onnx",
        "name": "compact",
        "revision": revision,
        "dim": dim,
        "image": {"file": "image.onnx", "preprocess": PREPROCESS.to_json()},
        "text": {"file": "text.onnx", "tokenizer": "tokenizer.json", "max_tokens": MAX_TOKENS},
        "sha256": {
            name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in shipped
        },
    }
    (folder / "encoder.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def _rename(model: onnx.ModelProto, old: str, new: str) -> None:
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    for value in model.graph.output:
        value.name = new if value.name == old else value.name


def _prune(model: onnx.ModelProto) -> None:
    graph = model.graph
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    tensors = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(tensors)
