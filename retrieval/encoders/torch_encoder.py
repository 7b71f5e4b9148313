"""Models of torch as encoders: any named source, on the GPU where there is one."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmsearch.errors import ModelError
from mmsearch.retrieval.encoders import exported, exporting
from mmsearch.retrieval.encoders.base import Encoder
from mmsearch.retrieval.encoders.parallel import ParallelEncoder
from mmsearch.retrieval.encoders.sources import load_dual_encoder
from mmsearch.retrieval.encoders.torch_runner import Runner
from mmsearch.retrieval.schema import Quantize

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from mmsearch.retrieval.encoders.dual_encoder import DualEncoder
    from mmsearch.retrieval.schema import EncoderSpec

__all__ = ["TorchEncoder", "load"]

logger = logging.getLogger(__name__)


class TorchEncoder(Encoder):
    """A `DualEncoder` behind the contract of indexing and asking."""

    differentiable = True

    def __init__(
        self, model: DualEncoder, *, location: str, device: torch.device | str | None = None
    ) -> None:
        """Move the model to its device.

        Args:
            model: taken over, set to evaluation.
            location: what `load_encoder` takes to get it again.
            device: where it runs; by default the GPU where there is one.
        """
        self._spec = model.spec()
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._runner = Runner(model, torch.device(device), self._spec.weights_sha256)
        self._model = model
        self._location = location
        self.batch_size = self._runner.batch_size
        self.device = self._runner.label

    @property
    def model(self) -> DualEncoder:
        """What computes the vectors."""
        return self._model

    @property
    def spec(self) -> EncoderSpec:
        """Name and fingerprints; the revision is the beginning of the weights' own."""
        return self._spec

    @property
    def location(self) -> str:
        """The source it was loaded from."""
        return self._location

    @property
    def decode_size(self) -> int:
        """As the transform says."""
        return self._model.preprocess.decode_size

    def prepare(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return `uint8[size, size, 3]`."""
        return self._model.preprocess(image)

    def _encode_pixels(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        vectors = self._runner.images(pixels)
        self.batch_size = self._runner.batch_size
        return vectors

    def _encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._runner.texts(*self._model.tokenize(texts))

    def _text_lengths(self, texts: Sequence[str]) -> NDArray[np.int64]:
        return self._model.text_lengths(texts)


def load(source: str, quantize: Quantize = Quantize.NONE, *, export: bool = False) -> Encoder:
    """Return the encoder of a named source, such as `hf:NAME`; see `load_dual_encoder`.

    Args:
        source: absolute, without `int8:`.
        quantize: how the weights are stored; torch itself runs them whole only.
        export: answer from an ONNX folder in the user's cache, made here, even if torch has a GPU.

    Raises:
        ModelError: the source cannot be opened, its weights are random, or it is to be quantised
            and cannot be exported.
    """
    export = export or not torch.cuda.is_available()
    name = source if quantize is Quantize.NONE else f"{quantize}:{source}"
    found = exported.find(name) if export else None
    if found is not None:
        return found.open()
    before = exported.source_state(source)
    model = load_dual_encoder(source)
    if model.untrained:
        raise ModelError(
            f"{source} is a model that has not learned anything yet. Train it first "
            f"(mmsearch train … --from {source}), or name weights: open_clip:MODEL/PRETRAINED"
        )
    if export:
        reason = exported.refusal(name)
        if reason is None:
            try:
                return exporting.export(model, name, before, quantize).open()
            except (ModelError, OSError) as error:
                reason = str(error)
        if quantize is not Quantize.NONE:
            raise ModelError(f"{name} cannot be had: {reason} Use the whole model: {source}")
        logger.warning("%s runs through torch, which starts slowly: %s", source, reason)
    devices = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    # Where torchrun started several processes, each has its GPU already.
    if not export and len(devices) > 1 and "LOCAL_RANK" not in os.environ:
        return ParallelEncoder(source, devices, model.spec(), model.preprocess)
    return TorchEncoder(model, location=source)
