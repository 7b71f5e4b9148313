"""Tensors inside an ONNX model as its outputs."""

from __future__ import annotations

import numpy as np
import pytest

from mmsearch.retrieval.encoders import BUNDLED
from mmsearch.retrieval.encoders.inner_outputs import with_outputs

MEANS = "/image_tower/Concat_output_0"
CELLS = "/image_tower/blocks.23/convs.0/Relu_output_0"


def bundled() -> bytes:
    return (BUNDLED / "compact" / "image.onnx").read_bytes()


def session(model: bytes):
    import onnxruntime

    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


def test_inner_tensors_come_after_the_models_own_output():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    (plain,) = session(bundled()).run(None, {"pixels": pixels})
    embedding, cells, means = session(with_outputs(bundled(), [CELLS, MEANS])).run(
        None, {"pixels": pixels}
    )
    np.testing.assert_allclose(embedding, plain, atol=1e-6)
    assert cells.shape == (2, 1280, 8, 8)
    # The means that the head reads begin with those of these cells.
    np.testing.assert_allclose(means[:, :1280], cells.mean(axis=(2, 3)), atol=1e-5)


def test_a_name_that_no_node_gives_is_refused():
    with pytest.raises(Exception, match="nowhere"):
        session(with_outputs(bundled(), ["nowhere"]))


def test_the_package_onnx_reads_the_same_model_with_these_outputs():
    onnx = pytest.importorskip("onnx")
    # Longer than 127 bytes, so that lengths take two.
    names = [CELLS, "x" * 200]
    model, more = (
        onnx.load_from_string(bundled()),
        onnx.load_from_string(with_outputs(bundled(), names)),
    )
    assert [value.name for value in more.graph.output] == ["embedding", *names]
    del more.graph.output[1:]
    assert more == model
