"""An image tower in bfloat16 by OpenVINO: half the time on processors that multiply it.

ONNX Runtime computes in float32 on a CPU. Recent x86 processors (AVX-512 BF16, AMX) multiply
bfloat16 at twice the rate or more, and OpenVINO (extra `fast`) does so. What a processor gains is
not known before it was tried, so it is: the same batch goes through both, and OpenVINO takes over
where its vectors agree and it was faster.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Tower = Callable[[NDArray[Any]], list[NDArray[np.float32]]]

__all__ = ["LEAST_COSINE", "faster_tower"]

logger = logging.getLogger(__name__)

LEAST_COSINE = 0.999
"""As of exports: what a vector may be from its float32 self."""

GAIN = 1.2
"""A tower takes over only where it is faster by this factor: one batch is a short measurement."""


def faster_tower(
    model: bytes, pixels: NDArray[Any], expected: NDArray[np.float32], seconds: float
) -> Tower | None:
    """Return the tower in bfloat16; None where it is not to be had, not right or not faster.

    Never where the environment variable `MMSEARCH_BFLOAT16` is 0.

    It returns every output of the model; the first is the vectors.

    Args:
        model: the ONNX file.
        pixels: a batch, as the tower takes it.
        expected: `float32[n, dim]`, what float32 made of it.
        seconds: what that took.
    """
    if os.environ.get("MMSEARCH_BFLOAT16") == "0":
        return None
    try:
        import openvino
    except ImportError:
        return None
    try:
        core = openvino.Core()
        if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            return None
        settings = {"INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "LATENCY"}
        compiled = core.compile_model(core.read_model(model), "CPU", settings)

        def tower(pixels: NDArray[Any]) -> list[NDArray[np.float32]]:
            # A request of its own for each call: threads may share a tower, not a request.
            answer = compiled.create_infer_request().infer({0: pixels})
            return [np.array(answer[i], dtype=np.float32) for i in range(len(compiled.outputs))]

        # The first run also prepares for the shape of the batch.
        cosines = _cosines(tower(pixels)[0], expected)
        started = time.perf_counter()
        tower(pixels)
        took = time.perf_counter() - started
    # Whatever OpenVINO cannot do with a model, ONNX Runtime has just done.
    except Exception as error:
        logger.info("OpenVINO does not run this image tower: %s", error)
        return None
    if not cosines.min() >= LEAST_COSINE:
        logger.info("bfloat16 moves a vector to a cosine of %.5f; not used", cosines.min())
        return None
    if took * GAIN > seconds:
        logger.info("bfloat16 takes %.2f s instead of %.2f s; not used", took, seconds)
        return None
    logger.info("bfloat16 takes %.2f s instead of %.2f s; used from here on", took, seconds)
    return tower


def _cosines(found: NDArray[np.float32], expected: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    cosines: NDArray[np.float32] = (found * expected).sum(axis=1) / lengths
    return cosines
