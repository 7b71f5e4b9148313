"""A text tower of the project's own: a BERT written out plainly.

Written out rather than taken from `transformers` because its graph is exported: the type
embeddings are folded into the positions, query, key and value are one product, and there is no
pooler, no type input and no mask machinery to strip afterwards.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MAX_TOKENS", "Layer", "TextTower"]

logger = logging.getLogger(__name__)

MAX_TOKENS = 64
"""Longest text in tokens; the tower keeps no position embeddings beyond it."""


class Layer(nn.Module):
    """One transformer layer of BERT: attention and a perceptron, each normalised afterwards."""

    def __init__(self, width: int, heads: int, inner: int, epsilon: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_in = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=epsilon)
        self.inner = nn.Linear(width, inner)
        self.outer = nn.Linear(inner, width)
        self.outer_norm = nn.LayerNorm(width, eps=epsilon)

    def forward(self, states: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Map float32[n, t, width] to the same shape; `bias` float32[n, 1, 1, t] hides padding."""
        n, t = states.shape[0], states.shape[1]
        # Taken from the weights: the exporter would make a tensor of a shape's entry.
        width = self.attention_out.in_features
        queries, keys, values = (
            part.reshape(n, t, self.heads, width // self.heads).transpose(1, 2)
            for part in self.attention_in(states).split(width, dim=-1)
        )
        # The square root of the width is folded into the queries' weights.
        attention = (queries @ keys.transpose(2, 3) + bias).softmax(dim=-1)
        mixed = (attention @ values).transpose(1, 2).reshape(n, t, width)
        states = self.attention_norm(states + self.attention_out(mixed))
        bent = self.outer(functional.gelu(self.inner(states)))
        normed: torch.Tensor = self.outer_norm(states + bent)
        return normed


class TextTower(nn.Module):
    """Token ids to the unit mean of the last layer's states."""

    def __init__(
        self, *, vocabulary: int, width: int, heads: int, inner: int, layers: int, epsilon: float
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(MAX_TOKENS, width)
        self.norm = nn.LayerNorm(width, eps=epsilon)
        self.layers = nn.ModuleList(Layer(width, heads, inner, epsilon) for _ in range(layers))

    @torch.no_grad()
    def reset(self) -> None:
        """Start from random weights, as BERT does (Devlin et al. 2019)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
            if isinstance(module, Layer):
                width = module.attention_out.in_features
                module.attention_in.weight[:width] /= math.sqrt(width // module.heads)

    @classmethod
    def from_folder(cls, folder: Path) -> TextTower:
        """Load the weights of a BERT from an unpacked Hugging Face folder, frozen."""
        from safetensors.torch import load_file

        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tower = cls(
            vocabulary=config["vocab_size"],
            width=config["hidden_size"],
            heads=config["num_attention_heads"],
            inner=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            epsilon=config["layer_norm_eps"],
        )
        tower.load_state_dict(
            _from_bert(
                load_file(folder / "model.safetensors"),
                layers=config["num_hidden_layers"],
                scale=math.sqrt(config["hidden_size"] // config["num_attention_heads"]),
            )
        )
        return tower.eval().requires_grad_(False)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return unit rows float32[n, width] for int64[n, t] ids and their 0/1 mask."""
        mask = attention_mask.to(torch.float32)
        bias = (1.0 - mask)[:, None, None, :] * -10000.0
        positions = self.positions.weight[: input_ids.shape[1]]
        states = self.norm(self.words(input_ids) + positions)
        for layer in self.layers:
            states = layer(states, bias)
        pooled = (states * mask.unsqueeze(-1)).sum(dim=1)
        # The number of tokens does not matter for the direction, and a unit row is returned.
        return functional.normalize(pooled, dim=-1)

    @torch.inference_mode()
    def encode(
        self, texts: Sequence[str], tokenizer_file: Path, *, batch: int = 128
    ) -> NDArray[np.float32]:
        """Return unit rows float32[n, width], one a text, in the order given."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(tokenizer_file))
        tokenizer.no_padding()
        tokenizer.enable_truncation(MAX_TOKENS)
        tokens = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
        # Texts of equal length together: most of the time would go into padding otherwise.
        order = sorted(range(len(tokens)), key=lambda row: len(tokens[row]))
        found = np.zeros((len(texts), self.words.embedding_dim), dtype=np.float32)
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            ids = torch.zeros(len(rows), len(tokens[rows[-1]]), dtype=torch.int64)
            mask = torch.zeros_like(ids)
            for place, row in enumerate(rows):
                ids[place, : len(tokens[row])] = torch.tensor(tokens[row])
                mask[place, : len(tokens[row])] = 1
            found[rows] = self(ids, mask).float().numpy()
            if start // batch % 100 == 99:
                logger.info("%d of %d texts", start + batch, len(texts))
        return found


def _from_bert(
    bert: dict[str, torch.Tensor], *, layers: int, scale: float
) -> dict[str, torch.Tensor]:
    plain = {
        "words.weight": bert["embeddings.word_embeddings.weight"],
        # Every token here is of type 0, so its embedding is part of the position.
        "positions.weight": bert["embeddings.position_embeddings.weight"][:MAX_TOKENS]
        + bert["embeddings.token_type_embeddings.weight"][0],
        "norm.weight": bert["embeddings.LayerNorm.weight"],
        "norm.bias": bert["embeddings.LayerNorm.bias"],
    }
    names = {
        "attention_out": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "inner": "intermediate.dense",
        "outer": "output.dense",
        "outer_norm": "output.LayerNorm",
    }
    for number in range(layers):
        source = f"encoder.layer.{number}"
        for kind in ("weight", "bias"):
            query, key, value = (
                bert[f"{source}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")
            )
            plain[f"layers.{number}.attention_in.{kind}"] = torch.cat([query / scale, key, value])
            for ours, theirs in names.items():
                plain[f"layers.{number}.{ours}.{kind}"] = bert[f"{source}.{theirs}.{kind}"]
    return plain
