"""Image-text matching with models of transformers: BLIP and ViLT.

Li et al. 2022 (BLIP), Kim et al. 2021 (ViLT). A pair's score is what the model's own head for
matching says, in logits; how a picture begins is computed once for all texts it is paired with.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mmsearch.errors import MissingExtra, ModelError
from mmsearch.retrieval.encoders.sources import absolute, reading
from mmsearch.retrieval.preprocess import KEPT
from mmsearch.retrieval.rerankers.base import Pair, Reranked, Reranker

try:
    import torch
    from torch.nn.utils.rnn import pad_sequence
    from transformers import (
        AutoConfig,
        AutoProcessor,
        BlipForImageTextRetrieval,
        ViltForImageAndTextRetrieval,
    )

    from mmsearch.retrieval.encoders.huggingface import read_weights
except ImportError as error:
    raise MissingExtra(error.name or "transformers", "models") from error

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from mmsearch.retrieval.encoders import Encoder

__all__ = ["MatchingReranker", "load"]

ADVICE = (
    "Where the model hub cannot be reached, download the model elsewhere and give its folder: "
    "hf:PATH, with config.json, model.safetensors, preprocessor_config.json and tokenizer.json."
)

BATCH_ON_GPU = 32


class _Matcher(ABC):
    """A model that says how well texts and pictures belong together, in two steps."""

    auto: Any
    """The class of transformers that reads it."""

    def __init__(self, model: Any, processor: Any, positions: int) -> None:  # noqa: ANN401
        self.model = model
        self.image_processor = processor.image_processor
        self.tokenizer = processor.tokenizer
        self.longest = min(int(self.tokenizer.model_max_length), positions)
        size = dict(self.image_processor.size)
        self.shortest_side = max(int(side) for side in size.values() if side)

    @classmethod
    @abstractmethod
    def positions(cls, config: Any) -> int:  # noqa: ANN401
        """Return the longest text, in tokens."""

    @abstractmethod
    def look(self, pictures: list[Image.Image]) -> list[torch.Tensor]:
        """Return `float32[parts, hidden]` of each picture: what no text changes."""

    @abstractmethod
    def match(self, texts: list[str], seen: list[torch.Tensor]) -> torch.Tensor:
        """Return `float32[n]` logits: text i and what was seen of its picture."""

    def _tokens(self, texts: list[str]) -> Any:  # noqa: ANN401
        tokens = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.longest, return_tensors="pt"
        )
        return tokens.to(self.model.device)


class _Blip(_Matcher):
    auto = BlipForImageTextRetrieval

    @classmethod
    def positions(cls, config: Any) -> int:  # noqa: ANN401
        return int(config.text_config.max_position_embeddings)

    def look(self, pictures: list[Image.Image]) -> list[torch.Tensor]:
        pixels = self.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
        seen = self.model.vision_model(pixel_values=pixels.to(self.model.device))
        return list(seen.last_hidden_state)

    def match(self, texts: list[str], seen: list[torch.Tensor]) -> torch.Tensor:
        tokens = self._tokens(texts)
        patches = torch.stack(seen)
        read = self.model.text_encoder(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            encoder_hidden_states=patches,
            encoder_attention_mask=torch.ones(patches.shape[:2], device=patches.device),
        )
        # The log-odds of "matches" against "does not": unlike the probability it never saturates.
        head: torch.Tensor = self.model.itm_head(read.last_hidden_state[:, 0])
        return head[:, 1] - head[:, 0]


class _Vilt(_Matcher):
    auto = ViltForImageAndTextRetrieval

    _dice = threading.Lock()

    @classmethod
    def positions(cls, config: Any) -> int:  # noqa: ANN401
        return int(config.max_position_embeddings)

    def look(self, pictures: list[Image.Image]) -> list[torch.Tensor]:
        # One by one: pictures keep their shape, and so none is padded to another's.
        return [self._patches(picture) for picture in pictures]

    def _patches(self, picture: Image.Image) -> torch.Tensor:
        inputs = self.image_processor(images=[picture], return_tensors="pt").to(self.model.device)
        # Patches come in an order by chance, which moves the last bits; and where the number of
        # patches is bounded (-1: it is not), a random part of them is dropped.
        with self._dice, torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            patches, _, _ = self.model.vilt.embeddings.visual_embed(
                inputs["pixel_values"], inputs["pixel_mask"], max_image_length=-1
            )
        found: torch.Tensor = patches[0]
        return found

    def match(self, texts: list[str], seen: list[torch.Tensor]) -> torch.Tensor:
        tokens = self._tokens(texts)
        masks = [
            torch.ones(len(patches), dtype=torch.long, device=patches.device) for patches in seen
        ]
        answer = self.model(
            **tokens,
            image_embeds=pad_sequence(seen, batch_first=True),
            pixel_mask=pad_sequence(masks, batch_first=True),
        )
        logits: torch.Tensor = answer.logits[:, 0]
        return logits


_FAMILIES: dict[str, type[_Matcher]] = {
    "BlipForImageTextRetrieval": _Blip,
    "ViltForImageAndTextRetrieval": _Vilt,
}
"""By the architecture that a checkpoint's config.json names."""


class MatchingReranker(Reranker):
    """A matching model behind the contract of rerankers."""

    def __init__(
        self, matcher: _Matcher, name: str, device: torch.device | str | None = None
    ) -> None:
        """Move the model to its device.

        Args:
            matcher: taken over.
            name: what `load_reranker` takes to get it again.
            device: where it runs; by default the GPU where there is one.
        """
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        matcher.model.to(device).eval()
        self._matcher = matcher
        self._name = name
        self._thread = threading.local()
        if torch.device(device).type != "cpu":
            self.batch_size = BATCH_ON_GPU

    @property
    def name(self) -> str:
        """The source it was loaded from."""
        return self._name

    def rerank(self, pairs: Sequence[Pair], *, budget_s: float | None = None) -> Reranked:
        """As the contract says."""
        try:
            return super().rerank(pairs, budget_s=budget_s)
        finally:
            # A later call's picture of this key may have changed.
            self._thread.seen = {}

    @torch.inference_mode()
    def _score(self, batch: Sequence[Pair]) -> NDArray[np.float32]:
        seen = self._look(batch)
        scores = self._matcher.match(
            [pair.text for pair in batch], [seen[pair.view.key] for pair in batch]
        )
        found: NDArray[np.float32] = scores.float().cpu().numpy()
        return found

    def _look(self, batch: Sequence[Pair]) -> dict[int | str, torch.Tensor]:
        """Return what is seen of each picture; what the batch before saw is not looked at again."""
        views = {pair.view.key: pair.view for pair in batch}
        before = getattr(self._thread, "seen", {})
        seen = {key: before[key] for key in views if key in before}
        new = [view for key, view in views.items() if key not in seen]
        side = round(KEPT * self._matcher.shortest_side)
        if new:
            looks = self._matcher.look([view.open(side) for view in new])
            seen |= {view.key: look for view, look in zip(new, looks, strict=True)}
        self._thread.seen = seen
        return seen


def load(rest: str, encoder: Encoder | None = None) -> Reranker:
    """Return the reranker `hf:REST`.

    Raises:
        ModelError: there is no such model, it cannot be had, is no model for matching, or weights
            are missing, such as those of the head for matching.
    """
    del encoder  # It looks at pictures itself.
    source = f"hf:{rest}"
    path = os.path.expanduser(rest)  # noqa: PTH111
    with reading(source, ADVICE):
        config = AutoConfig.from_pretrained(path)
        family = _family(config, source)
        model = read_weights(family.auto, path, config)
        matcher = family(model, AutoProcessor.from_pretrained(path), family.positions(config))
    return MatchingReranker(matcher, absolute(source))


def _family(config: Any, source: str) -> type[_Matcher]:  # noqa: ANN401
    """Return what knows this checkpoint; refuse others before their weights are read."""
    named = [str(name) for name in config.architectures or ()]
    for name in named:
        if name in _FAMILIES:
            return _FAMILIES[name]
    said = ", ".join(named) or f"of the type '{config.model_type}'"
    towers = [getattr(config, "vision_config", None), getattr(config, "text_config", None)]
    advice = f"Give a {' or a '.join(_FAMILIES)}."
    if any(name.endswith("ForConditionalGeneration") for name in named):
        advice = f"It writes captions: mmsearch index FOLDER --describe {source}. {advice}"
    elif None not in towers:
        advice = (
            f"It is an encoder, which finds the answers: use it with --model {source}. {advice}"
        )
    raise ModelError(f"The model {source} ({said}) is none for image-text matching. {advice}")
