"""The trainable model: an image tower and a text tower that meet in one space.

Whatever a model is made from (`retrieval.encoders.sources` lists it), training, export and the
command line see this one class.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from mmsearch.retrieval.encoders.base import canonical
from mmsearch.retrieval.encoders.heads import ResidualHead
from mmsearch.retrieval.losses import LogScale
from mmsearch.retrieval.schema import EncoderSpec, Quantize

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from mmsearch.retrieval.encoders.tokens import TextPreprocess
    from mmsearch.retrieval.preprocess import ImagePreprocess

__all__ = ["Description", "DualEncoder", "Towers"]

EXAMPLES_AT_ONCE = 32

PACKING = 1
"""Counts the changes of `packing` that change vectors."""


@dataclass(frozen=True, slots=True)
class Towers:
    """The four parts of a dual encoder, and how long the vectors are that come out.

    Attributes:
        image: float32[n, 3, size, size], scaled, to features.
        image_head: those features to float32[n, dim]; `nn.Identity` where the tower ends there.
        text: int64[n, t] ids and their 0/1 mask to features.
        text_head: those features to float32[n, dim].
        dim: length of a vector.
    """

    image: nn.Module
    image_head: nn.Module
    text: nn.Module
    text_head: nn.Module
    dim: int


@dataclass(frozen=True, slots=True)
class Description:
    """What a model is besides its weights.

    Attributes:
        name: what people call it.
        architecture: JSON from which the towers are rebuilt, with random weights and no network;
            its `kind` names the module that does it.
        preprocess: the image transform, to bytes.
        mean: what is subtracted from the bytes of each channel, 0 to 255.
        deviation: what the difference is divided by.
        texts: the text transform.
    """

    name: str
    architecture: dict[str, Any]
    preprocess: ImagePreprocess
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    texts: TextPreprocess


class DualEncoder(nn.Module):
    """Pictures and texts to unit rows of one space; see `Description` and `Towers`.

    Every parameter is exactly one of `image_parameters`, `text_parameters`, `head_parameters`.
    """

    image_mean: torch.Tensor
    image_deviation: torch.Tensor

    def __init__(
        self,
        towers: Towers,
        description: Description,
        tokenizer: Tokenizer,
        *,
        log_scale: float | None = None,
        log_bias: float | None = None,
        untrained: bool = False,
    ) -> None:
        """Join the towers.

        Args:
            towers: what the pixels and ids pass through.
            description: names, transforms and the architecture.
            tokenizer: its truncation and padding are set here.
            log_scale: the logarithm of 1 / temperature, where the model brings one.
            log_bias: the bias of the sigmoid loss (Zhai et al. 2023, "Sigmoid Loss for Language
                Image Pre-Training"); `None` where the model has none.
            untrained: weights that the vectors depend on are still random.
        """
        super().__init__()
        self.untrained = untrained
        self.description = description
        self.dim = towers.dim
        self.tokenizer = description.texts.configure(tokenizer)
        self.image_tower, self.image_head = towers.image, towers.image_head
        self.text_tower, self.text_head = towers.text, towers.text_head
        self.log_scale = LogScale()
        if log_scale is not None:
            nn.init.constant_(self.log_scale.value, log_scale)
        self.log_bias = None if log_bias is None else nn.Parameter(torch.tensor(float(log_bias)))
        for name, values in (
            ("image_mean", description.mean),
            ("image_deviation", description.deviation),
        ):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self._locked: set[str] = set()

    @property
    def name(self) -> str:
        """What people call the model."""
        return self.description.name

    @property
    def architecture(self) -> dict[str, Any]:
        """JSON from which the module is rebuilt with random weights, without a network."""
        return self.description.architecture

    @property
    def preprocess(self) -> ImagePreprocess:
        """The transform from a picture to `uint8[size, size, 3]`."""
        return self.description.preprocess

    @property
    def max_tokens(self) -> int:
        """Longest text in tokens."""
        return self.description.texts.max_tokens

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return unit rows float[n, dim] for uint8[n, size, size, 3]."""
        features = self.image_head(self.image_tower(self._scaled(pixels)))
        return functional.normalize(features, dim=-1)

    def encode_texts(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return unit rows float[n, dim] for what `tokenize` returned, int64[n, t] each."""
        features = self.text_head(self.text_tower(input_ids, attention_mask))
        return functional.normalize(features, dim=-1)

    def forward(
        self, pixels: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `(images, texts)`, unit rows: one call, as data-parallel wrappers need it."""
        return self.encode_images(pixels), self.encode_texts(input_ids, attention_mask)

    def tokenize(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `(input_ids, attention_mask)` int64[n, t] of at least one text, on the CPU."""
        ids, mask = self.description.texts(self.tokenizer, texts)
        return torch.from_numpy(ids), torch.from_numpy(mask)

    def text_lengths(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return `int64[n]`, how many tokens each text has, see `TextPreprocess.lengths`."""
        return self.description.texts.lengths(self.tokenizer, texts)

    def image_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the image tower's parameters, without its head's."""
        yield from self.image_tower.parameters()

    def text_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the text tower's parameters, without its head's."""
        yield from self.text_tower.parameters()

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of both projections, the scale and the bias."""
        for part in (self.image_head, self.text_head, self.log_scale):
            yield from part.parameters()
        if self.log_bias is not None:
            yield self.log_bias

    def lock_image_tower(self) -> None:
        """Leave the image tower as it is, its running statistics too; the head goes on learning.

        Zhai et al. 2022, "LiT: Zero-Shot Transfer with Locked-image text Tuning".
        """
        self._lock("image_tower")

    def lock_text_tower(self) -> None:
        """Leave the text tower as it is; the head goes on learning."""
        self._lock("text_tower")

    def train(self, mode: bool = True) -> DualEncoder:
        """Set the mode of everything that is not locked; locked towers stay in evaluation."""
        super().train(mode)
        for name in self._locked:
            getattr(self, name).eval()
        return self

    @torch.no_grad()
    def standardise_heads(
        self, pixels: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> None:
        """Set the statistics of new heads from a batch of examples, some hundreds if possible.

        For models described by their parts, once, before the first step; heads that came with
        weights of another shape than `ResidualHead` have no statistics and stay as they are.
        """
        was_training = self.training
        self.eval()
        # In parts: hundreds of pictures at once would need more memory than training does.
        size = EXAMPLES_AT_ONCE
        if isinstance(self.image_head, ResidualHead):
            shown = [self.image_tower(self._scaled(part)) for part in pixels.split(size)]
            self.image_head.standardise(torch.cat(shown))
        if isinstance(self.text_head, ResidualHead):
            texts = zip(input_ids.split(size), attention_mask.split(size), strict=True)
            self.text_head.standardise(torch.cat([self.text_tower(*part) for part in texts]))
        self.train(was_training)

    def fingerprint(self) -> str:
        """Return the SHA-256 of weights and tokenizer: equal means equal vectors."""
        digest = hashlib.sha256(self.tokenizer.to_str().encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def spec(self, quantize: Quantize = Quantize.NONE) -> EncoderSpec:
        """Return what makes this model's vectors comparable; the same for torch and for ONNX.

        Weights stored in fewer bits are other weights: another name, another fingerprint.
        """
        name, sha256 = self.name, self.fingerprint()
        if quantize is not Quantize.NONE:
            name = f"{quantize}:{name}"
            sha256 = hashlib.sha256(f"{quantize} {PACKING} {sha256}".encode()).hexdigest()
        return EncoderSpec(
            kind="torch",
            name=name,
            revision=sha256[:12],
            weights_sha256=sha256,
            preprocessing=canonical(self.preprocess, self.description.texts),
            dim=self.dim,
        )

    def _scaled(self, pixels: torch.Tensor) -> torch.Tensor:
        values = pixels.permute(0, 3, 1, 2).to(self.image_mean.dtype)
        return (values - self.image_mean) / self.image_deviation

    def _lock(self, name: str) -> None:
        self._locked.add(name)
        getattr(self, name).requires_grad_(False).eval()
