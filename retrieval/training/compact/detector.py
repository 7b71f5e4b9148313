"""The second teacher: which of COCO's objects a detector finds in a photo."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import local
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch.retrieval.media import load_rgb

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["detect"]

logger = logging.getLogger(__name__)

SIDE = 300


def detect(model: Path, paths: Sequence[Path], classes: int) -> NDArray[np.float16]:
    """Return the best score of every class in every photo, `float16[n, classes]` in [0, 1].

    Args:
        model: a TensorFlow Lite detector with the usual four outputs (boxes, classes, scores,
            count), 300 × 300 bytes in.
        paths: the photos.
        classes: how many the detector knows.
    """
    from ai_edge_litert.interpreter import Interpreter

    # An interpreter works on one photo at a time: each thread has its own.
    own = local()
    found = np.zeros((len(paths), classes), dtype=np.float16)

    def look(row: int) -> None:
        if not hasattr(own, "interpreter"):
            own.interpreter = Interpreter(str(model), num_threads=1)
            own.interpreter.allocate_tensors()
        for kind, score in _answers(own.interpreter, paths[row]):
            if kind < classes:
                found[row, kind] = max(found[row, kind], score)

    with ThreadPoolExecutor(2) as pool:
        for row, _ in enumerate(pool.map(look, range(len(paths)))):
            if row % 2000 == 1999:
                logger.info("detector: %d of %d photos", row + 1, len(paths))
    return found


def _answers(interpreter: Any, path: Path) -> list[tuple[int, float]]:  # noqa: ANN401
    pixels = np.asarray(load_rgb(path, at_least=SIDE).resize((SIDE, SIDE)), dtype=np.uint8)
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], pixels[None])
    interpreter.invoke()
    outputs = interpreter.get_output_details()
    _, kinds, scores, count = (interpreter.get_tensor(out["index"])[0] for out in outputs)
    many = int(np.ravel(count)[0])
    return [(int(k), float(s)) for k, s in zip(kinds[:many], scores[:many], strict=True)]
