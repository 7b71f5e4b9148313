"""An image tower in ONNX at work: ONNX Runtime, and whatever turns out to be faster for many."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from mmsearch.retrieval.encoders.bfloat16 import faster_tower
from mmsearch.retrieval.encoders.inner_outputs import with_outputs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mmsearch.retrieval.encoders.bfloat16 import Tower

__all__ = ["ImageTower", "session"]

MANY = 128
"""Pictures embedded before another way is tried, which costs as much as a few batches."""

BATCH = 8
"""Fewer pictures at once are questions, of which none should wait for that."""


class ImageTower:
    """One tower with the outputs that are wanted of it; it loads when it is first used."""

    def __init__(
        self, load: Callable[[Callable[[bytes], Any]], Any], inner: tuple[str, ...]
    ) -> None:
        """Take what is needed to load it.

        Args:
            load: hands the checked bytes of the ONNX file to what it is given.
            inner: tensors of the graph that are returned beside the vectors.
        """
        self._load = load
        self._inner = inner
        self._embedded = 0
        self._in_bfloat16: Tower | None = None

    def __call__(self, pixels: NDArray[Any]) -> list[NDArray[np.float32]]:
        """Return the vectors `float32[n, dim]`, and the inner tensors, of a batch."""
        if self._in_bfloat16 is not None:
            return self._in_bfloat16(pixels)
        started = time.perf_counter()
        outputs: list[NDArray[np.float32]] = self._session.run(None, {"pixels": pixels})
        seconds = time.perf_counter() - started
        if len(pixels) < BATCH:
            return outputs
        before, self._embedded = self._embedded, self._embedded + len(pixels)
        if before < MANY <= self._embedded:
            faster = partial(faster_tower, pixels=pixels, expected=outputs[0], seconds=seconds)
            self._in_bfloat16 = self._load(lambda data: faster(with_outputs(data, self._inner)))
            if self._in_bfloat16 is not None:
                # And the memory it holds; it loads again if another thread is just about to.
                self.__dict__.pop("_session", None)
        return outputs

    @cached_property
    def _session(self) -> Any:  # noqa: ANN401
        return self._load(lambda data: session(with_outputs(data, self._inner)))


def session(data: bytes) -> Any:  # noqa: ANN401
    """Return a session of ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Threads that spin while they wait would take the cores that decode pictures.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
