"""Several GPUs: one process each, with a model of its own; every batch is shared out among them."""

from __future__ import annotations

import multiprocessing
import signal
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch.errors import ModelError
from mmsearch.retrieval.encoders.base import Encoder

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from mmsearch.retrieval.encoders.torch_encoder import TorchEncoder
    from mmsearch.retrieval.preprocess import ImagePreprocess
    from mmsearch.retrieval.schema import EncoderSpec

__all__ = ["ParallelEncoder"]

_encoder: TorchEncoder | None = None
"""Of a worker process: its model."""


class ParallelEncoder(Encoder):
    """The encoder of a named source on several devices of torch."""

    def __init__(
        self, source: str, devices: Sequence[str], spec: EncoderSpec, preprocess: ImagePreprocess
    ) -> None:
        """Start one process a device, and wait until each has loaded its model.

        Args:
            source: what each of them loads.
            devices: names of torch, such as `cuda:0`.
            spec: of the source.
            preprocess: of the source.

        Raises:
            ModelError: a process could not load it.
        """
        self._source, self._spec, self._preprocess = source, spec, preprocess
        self.device = ", ".join(devices)
        # Never forked: CUDA cannot be used in a fork of a process that used it.
        context = multiprocessing.get_context("spawn")
        self._workers = [
            ProcessPoolExecutor(1, context, initializer=_start, initargs=(source, device))
            for device in devices
        ]
        weakref.finalize(self, _stop, self._workers)
        self.batch_size = sum(self._everywhere(_size, [()] * len(devices)))

    @property
    def spec(self) -> EncoderSpec:
        """As that of one device."""
        return self._spec

    @property
    def location(self) -> str:
        """The source it was loaded from."""
        return self._source

    @property
    def decode_size(self) -> int:
        """As the transform says."""
        return self._preprocess.decode_size

    def prepare(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return `uint8[size, size, 3]`."""
        return self._preprocess(image)

    def _encode_pixels(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        parts = np.array_split(pixels, min(len(pixels), len(self._workers)))
        return np.concatenate(self._everywhere(_pixels, [(part,) for part in parts]))

    def _encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        count = min(len(texts), len(self._workers))
        parts = [(list(texts[number::count]),) for number in range(count)]
        found = self._everywhere(_texts, parts)
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        for number, part in enumerate(found):
            vectors[number::count] = part
        return vectors

    def _everywhere(self, work: Callable[..., Any], given: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Return what the first workers make of what they are given, one each, in order."""
        try:
            started: list[Future[Any]] = [
                worker.submit(work, *arguments)
                for worker, arguments in zip(self._workers, given, strict=False)
            ]
            return [future.result() for future in started]
        except BrokenProcessPool as error:
            raise ModelError(
                f"A process that computes on one of {self.device} ended, probably for lack of "
                "memory. What was embedded is saved. Use fewer devices: "
                "CUDA_VISIBLE_DEVICES=0 mmsearch …"
            ) from error


def _start(source: str, device: str) -> None:
    # Ctrl-C goes to every process of a terminal; the one that started this one decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from mmsearch.retrieval.encoders.sources import load_dual_encoder
    from mmsearch.retrieval.encoders.torch_encoder import TorchEncoder

    global _encoder
    _encoder = TorchEncoder(load_dual_encoder(source), location=source, device=device)


def _stop(workers: Sequence[ProcessPoolExecutor]) -> None:
    for worker in workers:
        worker.shutdown(wait=False, cancel_futures=True)


def _mine() -> TorchEncoder:
    if _encoder is None:
        raise RuntimeError("this worker process was not started by ParallelEncoder")
    return _encoder


def _size() -> int:
    return _mine().batch_size


def _pixels(pixels: NDArray[Any]) -> NDArray[np.float32]:
    return _mine().encode_pixels(list(pixels))


def _texts(texts: list[str]) -> NDArray[np.float32]:
    return _mine().encode_texts(texts)
