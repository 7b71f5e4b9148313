"""Running a `DualEncoder` on a device as fast as it goes, with vectors that stay what they are.

On a GPU: 16-bit numbers where they are seen to give the same vectors, channels last, batches of
the size that was found to be best, copies beside the computation. On a CPU: plainly.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmsearch.retrieval.encoders.batch_size import BatchSize, Settings, largest_useful
from mmsearch.retrieval.encoders.pipeline import Transfer, overlapped
from mmsearch.retrieval.encoders.samples import sample_pictures

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.encoders.dual_encoder import DualEncoder

__all__ = ["Runner", "best_precision"]

ON_CPU = 32
"""Pictures at once on a CPU, where more are no faster."""

PARTS = 2
"""Pieces of a batch on a GPU, so that the copies of one can go on beside another's computation."""

LEAST_COSINE = 0.999
"""Between vectors of 16-bit and of 32-bit numbers; below it a library would hold two kinds."""

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def best_precision(cosine: Callable[[str], float]) -> str:
    """Return `fp16`, else `bf16`, else `fp32`: the first whose vectors are those of `fp32`.

    Args:
        cosine: the least cosine between the vectors of a precision and those of `fp32`; not a
            number where one overflows.
    """
    for precision in _DTYPES:
        # Half precision first: it has three bits more for the number than bfloat16.
        if cosine(precision) >= LEAST_COSINE:
            return precision
    return "fp32"


class Runner:
    """A model on its device.

    Attributes:
        batch_size: how many pictures to hand over at once.
        settings: what was measured; on a CPU nothing is.
        label: the GPU and the numbers it computes with; empty on a CPU.
    """

    def __init__(self, model: DualEncoder, device: torch.device, fingerprint: str) -> None:
        """Move the model to its device; on a GPU, measure what was not measured before."""
        self._device = device
        self._fingerprint = fingerprint
        self._model = model.to(device).eval()
        self._transfer = Transfer(device)
        self.settings = Settings(ON_CPU, "fp32")
        on_gpu = device.type == "cuda"
        if on_gpu:
            model.image_tower.to(memory_format=torch.channels_last)
            self.settings = Settings.read(self._device_name, fingerprint) or self._measured()
        self._sizes = BatchSize(
            self.settings.batch, out_of_memory=torch.OutOfMemoryError, changed=self._shrink
        )
        self._parts = PARTS if on_gpu else 1
        self.label = f"{self._device_name}, {self.settings.precision}" if on_gpu else ""

    @property
    def batch_size(self) -> int:
        """Several pieces on a GPU, which are copied and computed side by side."""
        return self._parts * self._sizes.size

    @torch.inference_mode()
    def images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32[n, dim] for uint8[n, size, size, 3]."""

        def compute(sent: tuple[torch.Tensor, Any]) -> torch.Tensor:
            there = self._transfer.arrived(sent)
            found = self._sizes.run(len(there), lambda a, b: self._encode(there[a:b]))
            return torch.cat(found)

        size = self._sizes.size
        pieces = (pixels[start : start + size] for start in range(0, len(pixels), size))
        found = overlapped(pieces, self._transfer.send, compute, self._transfer.receive)
        return np.concatenate(list(found))

    @torch.inference_mode()
    def texts(self, ids: torch.Tensor, mask: torch.Tensor) -> NDArray[np.float32]:
        """Return float32[n, dim] for int64[n, t] ids and their mask."""

        def encode(start: int, end: int) -> NDArray[np.float32]:
            given = (part[start:end].to(self._device) for part in (ids, mask))
            with self._numbers(self.settings.precision):
                found = self._model.encode_texts(*given)
            return np.asarray(found.float().cpu().numpy(), dtype=np.float32)

        return np.concatenate(self._sizes.run(len(ids), encode))

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        with self._numbers(self.settings.precision):
            return self._model.encode_images(pixels)

    def _numbers(self, precision: str) -> AbstractContextManager[Any]:
        if precision == "fp32":
            return nullcontext()
        return torch.autocast(self._device.type, dtype=_DTYPES[precision])

    def _shrink(self, size: int) -> None:
        torch.cuda.empty_cache()
        self.settings = Settings(size, self.settings.precision)
        self.settings.write(self._device_name, self._fingerprint)

    @property
    def _device_name(self) -> str:
        facts = torch.cuda.get_device_properties(self._device)
        return f"{facts.name} {facts.total_memory >> 20} MiB"

    @torch.inference_mode()
    def _measured(self) -> Settings:
        preprocess = self._model.preprocess
        samples = np.stack([preprocess(image) for image in sample_pictures()])
        pixels = torch.from_numpy(samples).to(self._device)

        def vectors(precision: str) -> torch.Tensor:
            with self._numbers(precision):
                return self._model.encode_images(pixels).float()

        whole = vectors("fp32")
        precision = best_precision(lambda name: float((vectors(name) * whole).sum(dim=1).min()))

        def seconds(size: int) -> float:
            # Two: the next piece is there while one is computed.
            batch = torch.zeros(
                (2, size, *pixels.shape[1:]), dtype=torch.uint8, device=self._device
            )
            with self._numbers(precision):
                self._model.encode_images(batch[0])  # The first one plans.
                torch.cuda.synchronize(self._device)
                started = time.perf_counter()
                self._model.encode_images(batch[1])
                torch.cuda.synchronize(self._device)
            return time.perf_counter() - started

        found = Settings(largest_useful(seconds, out_of_memory=torch.OutOfMemoryError), precision)
        torch.cuda.empty_cache()
        found.write(self._device_name, self._fingerprint)
        return found
