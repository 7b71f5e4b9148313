"""Smaller ONNX graphs: weights of 8 or 16 bits.

Weights are stored as bytes with one scale per output channel, or per block of a row, and are read
back as float32 or multiplied as they are. Where activations become bytes too, each block of a
token has a scale of its own: one scale for a whole batch, as dynamic quantisation usually has it,
would make the embedding of a text depend on the texts beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["pack_halves", "pack_matrices", "pack_stored", "pack_words"]

BLOCK = 128
"""Weights of a row that share a scale in `MatMulNBits`."""

SMALLEST_PACKED = 4096
"""Smaller tensors stay as they are: the nodes around them would cost more than they save."""


def pack_halves(model: onnx.ModelProto) -> None:
    """Store large float32 weights as float16; ONNX Runtime unfolds them once, at load time."""
    graph = model.graph
    unfold = []
    for tensor in list(graph.initializer):
        values = numpy_helper.to_array(tensor)
        if tensor.data_type != TensorProto.FLOAT or values.size < SMALLEST_PACKED:
            continue
        limit = np.finfo(np.float16).max
        halves = np.clip(values, -limit, limit).astype(np.float16)
        graph.initializer.remove(tensor)
        graph.initializer.append(numpy_helper.from_array(halves, f"{tensor.name}_half"))
        unfold.append(
            helper.make_node("Cast", [f"{tensor.name}_half"], [tensor.name], to=TensorProto.FLOAT)
        )
    _prepend(model, unfold)


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
