"""More outputs for an ONNX model, by its bytes alone.

Protocol Buffers merge what is concatenated: "if you concatenate two encoded messages, the result
is the same as if the two messages were merged", and repeated fields append (protobuf.dev,
"Encoding", section "Last One Wins"). So a second `ModelProto` whose graph holds nothing but
outputs, behind the first, makes tensors inside the graph outputs, without the package `onnx` and
without a copy of the file that could differ from the one that was checked.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["with_outputs"]

_GRAPH, _OUTPUT, _NAME = 7, 12, 1
"""Numbers of `ModelProto.graph`, `GraphProto.output` and `ValueInfoProto.name` in onnx.proto."""


def with_outputs(model: bytes, names: Sequence[str]) -> bytes:
    """Return the model with tensors of its graph as further outputs, behind those it has.

    Types and shapes are left for whoever loads the model to infer, as ONNX Runtime does; it
    refuses a name that no node gives.

    Args:
        model: a serialised `ModelProto`.
        names: outputs of nodes, as the graph calls them.
    """
    graph = b"".join(_field(_OUTPUT, _field(_NAME, name.encode())) for name in names)
    return model + _field(_GRAPH, graph)


def _field(number: int, content: bytes) -> bytes:
    """Return a length-delimited field (wire type 2)."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
