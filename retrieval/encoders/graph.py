"""One module of torch as an ONNX graph, and the proof that it answers as the module does."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import nn

from mmsearch.errors import ModelError

__all__ = ["export_graph", "verify_graph"]

OPSET = 17


def export_graph(
    module: nn.Module,
    inputs: dict[str, torch.Tensor],
    axes: dict[str, dict[int, str]],
    output: str = "embedding",
) -> onnx.ModelProto:
    """Return a module's graph in float32, with one output of `n` rows.

    Args:
        module: takes the inputs in their order; set to evaluation.
        inputs: examples, at least two rows each.
        axes: which sides of the inputs may change, and what they are called.
        output: what the output is called.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        torch.inference_mode(),
        warnings.catch_warnings(),
        _plain_attention(),
    ):
        # The tracer warns of every shape it takes for constant, and that it will go one day. Its
        # successor takes ten times as long and its graphs were not all valid (torch 2.15).
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            output_names=[output],
            dynamic_axes={**axes, output: {0: "n"}},
            opset_version=OPSET,
            dynamo=False,
        )
        graph = onnx.load(path)
    for node in graph.graph.node:
        # Names of modules are of no use to a reader of the graph, and take space.
        node.name = ""
        node.doc_string = ""
    return graph


def verify_graph(
    path: Path,
    inputs: dict[str, torch.Tensor],
    expected: torch.Tensor,
    *,
    least_cosine: float | None = None,
) -> None:
    """Raise `ModelError` where a graph's `embedding` is another than expected.

    Args:
        path: the graph's file.
        inputs: what to ask; inputs the graph does not have are left out.
        expected: float32[n, dim], unit rows, the module's own answer.
        least_cosine: of packed graphs, between the rows; `None` allows each number 1e-3.
    """
    session = ort.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    taken = {value.name for value in session.get_inputs()}
    feed = {name: value.numpy() for name, value in inputs.items() if name in taken}
    found = session.run(None, feed)[0]
    wanted = expected.float().numpy()
    if found.shape == wanted.shape and np.isfinite(found).all():
        difference = float(np.abs(found - wanted).max())
        cosine = float((found * wanted).sum(axis=1).min())
        if (least_cosine is None and difference < 1e-3) or (
            least_cosine is not None and cosine > least_cosine
        ):
            return
        reason = f"the largest difference is {difference:.2g}, the least cosine {cosine:.4f}"
    else:
        reason = f"the shape is {found.shape}, expected {wanted.shape}, or numbers are not finite"
    raise ModelError(
        f"The exported {path.name} does not answer as the model does: {reason}. Nothing "
        "was written. Try without quantisation, and with another version of torch."
    )


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Turn off the fused attention that only runs in evaluation and has no ONNX operator."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
