"""From trained heads to the files that ship: ONNX graphs with 8-bit weights.

Weights are stored as bytes with one scale per output channel, or per block of a row, and are read
back as float32 or multiplied as they are. Where activations become bytes too, each block of a
token has a scale of its own: one scale for a whole batch, as dynamic quantisation usually has it,
would make the embedding of a text depend on the texts beside it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, compose, helper, numpy_helper
from torch import nn

from mmsearch.retrieval.training.features import PREPROCESS
from mmsearch.retrieval.training.text_tower import MAX_TOKENS, TextTower

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = [
    "export_head",
    "export_image",
    "export_text",
    "pack_matrices",
    "pack_stored",
    "pack_words",
    "write_folder",
]

logger = logging.getLogger(__name__)

OPSET = 17
BLOCK = 128
"""Weights of a row that share a scale in `MatMulNBits`."""

SMALLEST_PACKED = 4096
"""Smaller tensors stay as they are: the nodes around them would cost more than they save."""


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
    return _export(head, {"features": torch.zeros(2, width)}, {"features": {0: "n"}})


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
    return _export(
        _TextEncoder(tower, head).eval(),
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        {"input_ids": axes, "attention_mask": axes},
    )


def pack_stored(model: onnx.ModelProto, *, operators: tuple[str, ...]) -> None:
    """Store the weights of `operators` as bytes; ONNX Runtime unfolds them once, at load time.

    `Cast` and `Mul` of constants are folded by the runtime, `DequantizeLinear` is not: it would
    run again for every batch.
    """
    _unfold_halves(model)
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    unfold = []
    for name, axis in _weights(model, operators):
        values = numpy_helper.to_array(stored[name]).astype(np.float32)
        if values.size < SMALLEST_PACKED:
            continue
        packed, scale = _to_bytes(values, axis)
        graph.initializer.remove(stored[name])
        graph.initializer.append(numpy_helper.from_array(packed, f"{name}_bytes"))
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
        unfold += [
            helper.make_node("Cast", [f"{name}_bytes"], [f"{name}_float"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{name}_float", f"{name}_scale"], [name]),
        ]
    _prepend(model, unfold)


def pack_words(model: onnx.ModelProto) -> None:
    """Store the largest table that is read with `Gather` as bytes, with a scale per row."""
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        table = stored.get(node.input[0]) if node.op_type == "Gather" else None
        if table is None or len(table.dims) != 2 or table.dims[0] * table.dims[1] < 1 << 20:
            nodes.append(node)
            continue
        packed, scale = _to_bytes(numpy_helper.to_array(table), axis=0)
        name, ids, out = table.name, node.input[1], node.output[0]
        graph.initializer.remove(table)
        graph.initializer.append(numpy_helper.from_array(packed, f"{name}_bytes"))
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
        nodes += [
            helper.make_node("Gather", [f"{name}_bytes", ids], [f"{out}_bytes"]),
            helper.make_node("Gather", [f"{name}_scale", ids], [f"{out}_scale"]),
            helper.make_node("Cast", [f"{out}_bytes"], [f"{out}_float"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{out}_float", f"{out}_scale"], [out]),
        ]
    del graph.node[:]
    graph.node.extend(nodes)


def pack_matrices(model: onnx.ModelProto, *, accuracy_level: int = 0) -> None:
    """Turn products with constant matrices into `MatMulNBits` of 8 bits, a scale per block.

    Args:
        model: changed in place.
        accuracy_level: the operator's own: 0 multiplies in float32, 4 in bytes (each block of a
            token's activations with its own scale), which is faster and a little coarser.
    """
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        weight = stored.get(node.input[1]) if node.op_type in {"MatMul", "Gemm"} else None
        if weight is None or len(weight.dims) != 2 or np.prod(weight.dims) < SMALLEST_PACKED:
            nodes.append(node)
            continue
        values = numpy_helper.to_array(weight).astype(np.float32)
        # Rows of the packed matrix are outputs; that is how `Gemm` from a Linear has them already.
        rows = values if node.op_type == "Gemm" else values.T
        outputs, inputs = rows.shape
        blocks = -(-inputs // BLOCK)
        padded = np.zeros((outputs, blocks * BLOCK), dtype=np.float32)
        padded[:, :inputs] = rows
        packed, scale = _to_bytes(padded.reshape(outputs * blocks, BLOCK), axis=0)
        shifted = (packed.astype(np.int16) + 128).astype(np.uint8)
        graph.initializer.remove(weight)
        name = weight.name
        graph.initializer.append(
            numpy_helper.from_array(shifted.reshape(outputs, blocks, BLOCK), f"{name}_bytes")
        )
        graph.initializer.append(numpy_helper.from_array(scale.reshape(-1), f"{name}_scale"))
        bias = node.input[2] if node.op_type == "Gemm" else ""
        product = f"{node.output[0]}_product" if bias else node.output[0]
        nodes.append(
            helper.make_node(
                "MatMulNBits",
                [node.input[0], f"{name}_bytes", f"{name}_scale"],
                [product],
                domain="com.microsoft",
                K=inputs,
                N=outputs,
                bits=8,
                block_size=BLOCK,
                accuracy_level=accuracy_level,
            )
        )
        if bias:
            nodes.append(helper.make_node("Add", [product, bias], [node.output[0]]))
    del graph.node[:]
    graph.node.extend(nodes)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


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


def _export(
    module: nn.Module, inputs: dict[str, torch.Tensor], axes: dict[str, dict[int, str]]
) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            output_names=["embedding"],
            dynamic_axes={**axes, "embedding": {0: "n"}},
            opset_version=OPSET,
            dynamo=False,
        )
        model = onnx.load(path)
    for node in model.graph.node:
        # Names of modules are of no use to a reader of the graph, and take space.
        node.name = ""
        node.doc_string = ""
    return model


def _to_bytes(values: NDArray[Any], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    others = tuple(other for other in range(values.ndim) if other != axis)
    scale = np.maximum(np.abs(values).max(axis=others, keepdims=True) / 127.0, 1e-12)
    return np.rint(values / scale).astype(np.int8), scale.astype(np.float32)


def _weights(model: onnx.ModelProto, operators: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    seen: set[str] = set()
    stored = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in operators and node.input[1] in stored - seen:
            seen.add(node.input[1])
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            yield (
                node.input[1],
                1 if node.op_type == "MatMul" or (node.op_type == "Gemm" and not transposed) else 0,
            )


def _unfold_halves(model: onnx.ModelProto) -> None:
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        half = stored.get(node.input[0]) if node.op_type == "Cast" else None
        if half is None or half.data_type != TensorProto.FLOAT16:
            nodes.append(node)
            continue
        graph.initializer.remove(half)
        values = numpy_helper.to_array(half).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
    del graph.node[:]
    graph.node.extend(nodes)


def _prepend(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes + rest)


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
