"""Captions by a BLIP of transformers (Li et al. 2022).

Decoding is beam search with three beams and at most 30 tokens, without any sampling: the caption
of a picture is the same in every run. Whatever else the checkpoint's generation_config.json asks
for (a least length, a penalty for repeating) holds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mmsearch.errors import MissingExtra, ModelError
from mmsearch.retrieval.captioners.base import Captioner
from mmsearch.retrieval.encoders.sources import reading
from mmsearch.retrieval.preprocess import KEPT

try:
    import torch
    from transformers import AutoConfig, AutoProcessor, BlipForConditionalGeneration

    from mmsearch.retrieval.encoders.huggingface import read_weights
except ImportError as error:
    raise MissingExtra(error.name or "transformers", "models") from error

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["BEAMS", "MAX_TOKENS", "BlipCaptioner", "load"]

ADVICE = (
    "Where the model hub cannot be reached, download the model elsewhere and give its folder: "
    "hf:PATH, with config.json, model.safetensors, preprocessor_config.json and tokenizer.json."
)

BEAMS = 3
MAX_TOKENS = 30
BATCH_ON_GPU = 32


class BlipCaptioner(Captioner):
    """A `BlipForConditionalGeneration` behind the contract of captioners."""

    def __init__(
        self,
        model: Any,  # noqa: ANN401
        processor: Any,  # noqa: ANN401
        label: str,
        device: torch.device | str | None = None,
    ) -> None:
        """Move the model to its device.

        Args:
            model: taken over.
            processor: the checkpoint's own.
            label: name and revision.
            device: where it runs; by default the GPU where there is one.
        """
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = model.to(device).eval()
        self._processor = processor
        self._label = label
        # The first position is that of the token with which every caption begins.
        positions = int(model.config.text_config.max_position_embeddings)
        self._longest = min(MAX_TOKENS, positions - 2)
        sides = dict(processor.image_processor.size).values()
        self.decode_size = round(KEPT * max(int(side) for side in sides if side))
        if torch.device(device).type != "cpu":
            self.batch_size = BATCH_ON_GPU

    @property
    def label(self) -> str:
        """Name and revision: `hf:NAME@REVISION`."""
        return self._label

    @torch.inference_mode()
    def describe(self, pictures: Sequence[Image.Image]) -> list[str]:
        """Return one sentence for each picture."""
        if not pictures:
            return []
        pixels = self._processor.image_processor(images=list(pictures), return_tensors="pt")
        tokens = self._model.generate(
            pixel_values=pixels["pixel_values"].to(self._model.device),
            num_beams=BEAMS,
            do_sample=False,
            max_new_tokens=self._longest,
        )
        texts = self._processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]


def load(source: str, revision: Callable[[], str]) -> Captioner:
    """Return the captioner of a source.

    Args:
        source: `hf:NAME_OR_PATH`.
        revision: asked when the model's files are here.

    Raises:
        ModelError: there is no such model, it cannot be had, it is no BLIP for captions, or
            weights are missing.
    """
    path = os.path.expanduser(source.removeprefix("hf:"))  # noqa: PTH111
    with reading(source, ADVICE):
        config = AutoConfig.from_pretrained(path)
        named = [str(name) for name in config.architectures or ()]
        if BlipForConditionalGeneration.__name__ not in named:
            raise ModelError(
                f"The model {source} ({', '.join(named) or config.model_type}) writes no captions "
                "that mmsearch can ask for. Give a BlipForConditionalGeneration, such as "
                "hf:Salesforce/blip-image-captioning-base."
            )
        model = read_weights(BlipForConditionalGeneration, path, config)
        processor = AutoProcessor.from_pretrained(path)
        return BlipCaptioner(model, processor, f"{source}@{revision()}")
