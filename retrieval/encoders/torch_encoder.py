"""Models of torch as encoders: any named source, on the GPU where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmsearch.errors import ModelError
from mmsearch.retrieval.encoders.base import Encoder, canonical
from mmsearch.retrieval.encoders.sources import load_dual_encoder
from mmsearch.retrieval.schema import EncoderSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from mmsearch.retrieval.encoders.dual_encoder import DualEncoder

__all__ = ["TorchEncoder", "load"]


class TorchEncoder(Encoder):
    """A `DualEncoder` behind the contract of indexing and asking."""

    def __init__(
        self, model: DualEncoder, *, location: str, device: torch.device | str | None = None
    ) -> None:
        """Move the model to its device.

        Args:
            model: taken over, set to evaluation.
            location: what `load_encoder` takes to get it again.
            device: where it runs; by default the GPU where there is one.
        """
        sha256 = model.fingerprint()
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = torch.device(device)
        self._model = model.to(self._device).eval()
        self._location = location
        self._spec = EncoderSpec(
            kind="torch",
            name=model.name,
            revision=sha256[:12],
            weights_sha256=sha256,
            preprocessing=canonical(model.preprocess, model.description.texts),
            dim=model.dim,
        )

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
        """Twice the side that pictures are resized to."""
        return self._model.preprocess.decode_size

    def prepare(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return `uint8[size, size, 3]`."""
        return self._model.preprocess(image)

    @torch.inference_mode()
    def _encode_pixels(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        vectors = self._model.encode_images(torch.from_numpy(pixels).to(self._device))
        return np.asarray(vectors.float().cpu().numpy(), dtype=np.float32)

    @torch.inference_mode()
    def _encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        ids, mask = (part.to(self._device) for part in self._model.tokenize(texts))
        return np.asarray(self._model.encode_texts(ids, mask).float().cpu().numpy(), np.float32)


def load(source: str) -> TorchEncoder:
    """Return the encoder of a named source, such as `hf:NAME`; see `load_dual_encoder`.

    Raises:
        ModelError: the source cannot be opened, or its weights are random.
    """
    model = load_dual_encoder(source)
    if model.untrained:
        raise ModelError(
            f"{source} is a model that has not learned anything yet. Train it first "
            f"(mmsearch train … --from {source}), or name weights: open_clip:MODEL/PRETRAINED"
        )
    return TorchEncoder(model, location=source)
