"""Weights out of an ONNX graph, in the order in which they are used, packed to bytes or not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Graph", "Layer"]

Limits = tuple[float | None, float | None]


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer with constant weights.

    Attributes:
        weight: float32; of a dense layer [outputs, inputs].
        bias: float32[outputs]; zeros where there is none.
        output: name of the tensor that carries the result on, cut to its limits.
        limits: the range the result is cut to.
        epsilon: of a normalisation.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    output: str
    limits: Limits = (None, None)
    epsilon: float = 0.0


class Graph:
    """An ONNX graph, to be read layer by layer."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._nodes = list(model.graph.node)
        self._stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self._made = {name: node for node in self._nodes for name in node.output}
        self._users: dict[str, list[onnx.NodeProto]] = {}
        for node in self._nodes:
            for name in node.input:
                self._users.setdefault(name, []).append(node)

    def constant(self, name: str) -> NDArray[Any] | None:
        """Return the values of a tensor that depends on no input, or None."""
        if name in self._stored:
            return np.asarray(numpy_helper.to_array(self._stored[name]))
        node = self._made.get(name)
        if node is None:
            return None
        if node.op_type == "Constant":
            return np.asarray(numpy_helper.to_array(node.attribute[0].t))
        if node.op_type not in {"Cast", "Mul", "Identity"}:
            return None
        parts = [self.constant(part) for part in node.input]
        found = [part for part in parts if part is not None]
        if len(found) != len(parts):
            return None
        product: NDArray[Any] = np.asarray(
            found[0] if node.op_type != "Mul" else found[0] * found[1]
        )
        return product.astype(np.float32) if node.op_type == "Cast" else product

    def stored(self, suffix: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return the one stored tensor of this shape whose name ends so; ValueError if none."""
        for name, tensor in self._stored.items():
            if name.endswith(suffix) and tuple(tensor.dims) == shape:
                # A copy: what onnx hands out may not be written to.
                return np.array(numpy_helper.to_array(tensor), dtype=np.float32)
        raise ValueError(f"no tensor …{suffix} of the shape {shape}")

    def convolutions(self) -> list[Layer]:
        """Return the convolutions in their order."""
        found = []
        for node in self._nodes:
            if node.op_type == "Conv":
                weight, bias = (self._value(name) for name in node.input[1:3])
                found.append(Layer(weight, bias, *self._cut(node.output[0])))
        return found

    def limits(self) -> list[Limits]:
        """Return the range of every convolution and every addition of two maps, in their order."""
        found = []
        for node in self._nodes:
            if node.op_type == "ReduceMean":
                break
            varies = all(self.constant(name) is None for name in node.input)
            if node.op_type == "Conv" or (node.op_type == "Add" and varies):
                found.append(self._cut(node.output[0])[1])
        return found

    def pooled(self) -> list[str]:
        """Return the tensors whose means over the picture are joined to features, in order."""
        means = {
            node.output[0]: node.input[0] for node in self._nodes if node.op_type == "ReduceMean"
        }
        for node in self._nodes:
            if node.op_type == "Concat" and all(name in means for name in node.input):
                return [means[name] for name in node.input]
        return list(means.values())[:1]

    def dense(self) -> list[Layer]:
        """Return the products with constant matrices, in their order."""
        return list(self._dense())

    def norms(self) -> list[Layer]:
        """Return the layer normalisations in their order."""
        return [
            Layer(
                self._value(node.input[1]),
                self._value(node.input[2]),
                node.output[0],
                epsilon=_attributes(node).get("epsilon", 1e-5),
            )
            for node in self._nodes
            if node.op_type == "LayerNormalization"
        ]

    def table(self) -> NDArray[np.float32]:
        """Return the largest table that is read by rows: the words."""
        tables = []
        for node in self._nodes:
            values = self.constant(node.input[0]) if node.op_type == "Gather" else None
            if values is None or values.ndim != 2 or values.shape[1] == 1:
                continue
            name = node.input[0].removesuffix("_bytes")
            table = values.astype(np.float32)
            tables.append(table if name == node.input[0] else table * self._value(f"{name}_scale"))
        if not tables:
            raise ValueError("no table of words")
        return max(tables, key=lambda table: table.size)

    def _dense(self) -> Iterator[Layer]:
        for node in self._nodes:
            attributes = _attributes(node)
            if node.op_type == "MatMulNBits":
                weight = self._blocks(node, attributes)
            elif node.op_type in {"Gemm", "MatMul"} and self.constant(node.input[1]) is not None:
                values = self._value(node.input[1])
                weight = values if attributes.get("transB") else values.T
            else:
                continue
            bias, output = np.zeros(len(weight), np.float32), node.output[0]
            if node.op_type == "Gemm" and len(node.input) > 2:
                bias = self._value(node.input[2])
            else:
                for user in self._users.get(output, []):
                    for name in user.input if user.op_type == "Add" else ():
                        added = self.constant(name)
                        if added is not None and added.shape == bias.shape:
                            bias, output = added.astype(np.float32), user.output[0]
            yield Layer(weight, bias, output)

    def _blocks(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> NDArray[np.float32]:
        """Return the matrix [N, K] of a `MatMulNBits` of 8 bits."""
        if attributes["bits"] != 8 or len(node.input) > 3:
            raise ValueError("only MatMulNBits of 8 bits around 128 can be read")
        outputs, inputs = attributes["N"], attributes["K"]
        packed = self._value(node.input[1]).reshape(outputs, -1, attributes["block_size"])
        scale = self._value(node.input[2]).reshape(outputs, -1, 1)
        unpacked: NDArray[np.float32] = ((packed - 128.0) * scale).reshape(outputs, -1)
        return unpacked[:, :inputs].astype(np.float32)

    def _value(self, name: str) -> NDArray[np.float32]:
        values = self.constant(name)
        if values is None:
            raise ValueError(f"the tensor {name} is no constant")
        return values.astype(np.float32)

    def _cut(self, name: str) -> tuple[str, Limits]:
        """Follow a tensor to where it is cut to a range; return that tensor and the range."""
        for user in self._users.get(name, []):
            if user.op_type == "Relu":
                return user.output[0], (0.0, None)
            if user.op_type == "Clip":
                bounds = [self.constant(bound) if bound else None for bound in user.input[1:3]]
                low, high = (None if bound is None else float(bound.ravel()[0]) for bound in bounds)
                return user.output[0], (low, high)
        return name, (None, None)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {field.name: helper.get_attribute_value(field) for field in node.attribute}
