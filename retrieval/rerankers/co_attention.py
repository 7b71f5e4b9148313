"""Two streams that read each other: words of a text and regions of a picture, in torch.

The bundled reranker as it is trained and exported; `bundled` runs what comes of it. Both streams
are last layers of the encoder's own towers, so that nothing heavy runs twice.

- Regions: cells of the image tower, a grid of `GRID` by `GRID`, each coded as `CODE` bytes.
- Late interaction: every word looks for its most similar region, and the weighted mean over words
  counts (Khattab, Zaharia 2020, arXiv:2004.12832; Yao et al. 2022, FILIP, arXiv:2111.07783).
- Co-attention: words attend to regions and regions to words, layer by layer (Lu et al. 2019,
  ViLBERT, arXiv:1908.02265; Tan, Bansal 2019, LXMERT, arXiv:1908.07490), and a perceptron reads
  from what both streams have become whether they match.
- Hubness: some pictures are near to many texts and answer what they should not. How near a picture
  is to a bank of texts is taken off (Radovanović et al. 2010, JMLR 11; Bogolin et al. 2022, "Cross
  Modal Retrieval with Querybank Normalisation", arXiv:2112.12777).
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

__all__ = ["CODE", "GRID", "CoAttention", "Hubness", "Matcher", "RegionCode", "cells_of"]

GRID = 4
"""Regions along each side of a picture."""

CODE = 64
"""Bytes that are kept of a region."""

_HIDDEN = -1e4
"""Added to, or in place of, what attention must not see."""


def cells_of(maps: list[torch.Tensor]) -> torch.Tensor:
    """Return float32[n, regions, channels] for square maps float32[n, channels, side, side].

    Sides are multiples of `GRID`: every map is averaged down to it, and channels are joined.
    """
    averaged = [
        functional.avg_pool2d(cells, int(cells.shape[-1]) // GRID).flatten(2) for cells in maps
    ]
    return torch.cat(averaged, dim=1).transpose(1, 2)


class RegionCode(nn.Module):
    """Cells of the image tower as a few numbers between -1 and 1, kept as bytes."""

    STEPS = 127
    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(channels, CODE)

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        """Map float[n, regions, channels] to float32[n, regions, CODE] in [-1, 1]."""
        standard = (cells.float() - self.mean) / self.deviation
        code = torch.tanh(self.project(self.dropout(standard)))
        if self.training:
            # As rounding to bytes will move it.
            code = code + (torch.rand_like(code) - 0.5) / self.STEPS
        return code

    def to_bytes(self, code: torch.Tensor) -> torch.Tensor:
        """Return uint8 of the same shape."""
        return (torch.round(code * self.STEPS) + 128).to(torch.uint8)

    def from_bytes(self, data: torch.Tensor) -> torch.Tensor:
        """Return float32 of the same shape, what `to_bytes` rounded."""
        return (data.float() - 128) / self.STEPS


class Hubness(nn.Module):
    """How near a picture is to texts in general."""

    SCALE = 20.0
    STEPS = 65535

    bank: torch.Tensor

    def __init__(self, bank: torch.Tensor) -> None:
        """Keep vectors of texts, float32[texts, dim], unit rows."""
        super().__init__()
        self.register_buffer("bank", bank)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return float32[n] in [-1, 1] for pictures' vectors float32[n, dim].

        The inverted softmax's denominator (Smith et al. 2017, arXiv:1702.03859) as a cosine:
        log(mean(exp(SCALE · cosine))) / SCALE over the bank.
        """
        scaled = self.SCALE * (vectors @ self.bank.T)
        return (scaled.exp().mean(dim=1)).log() / self.SCALE

    def to_bytes(self, hubness: torch.Tensor) -> torch.Tensor:
        """Return uint8[n, 2]."""
        steps = torch.round((hubness.clamp(-1, 1) + 1) / 2 * self.STEPS)
        high = torch.floor(steps / 256)
        return torch.stack([high, steps - 256 * high], dim=1).to(torch.uint8)

    def from_bytes(self, data: torch.Tensor) -> torch.Tensor:
        """Return float32[n], what `to_bytes` rounded."""
        steps = data.float()
        return (steps[:, 0] * 256 + steps[:, 1]) / self.STEPS * 2 - 1


class _Attention(nn.Module):
    """Rows of one stream read rows of the other."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries = nn.Linear(width, width)
        self.keys_values = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)

    def forward(
        self, rows: torch.Tensor, others: torch.Tensor, hidden: torch.Tensor | None
    ) -> torch.Tensor:
        width = self.queries.in_features
        shape = (self.heads, width // self.heads)
        queries = self.queries(rows).unflatten(-1, shape).transpose(1, 2)
        keys, values = (
            part.unflatten(-1, shape).transpose(1, 2)
            for part in self.keys_values(others).split(width, dim=-1)
        )
        logits = queries @ keys.transpose(2, 3) / math.sqrt(shape[1])
        if hidden is not None:
            logits = logits + hidden
        mixed = (logits.softmax(dim=-1) @ values).transpose(1, 2).flatten(2)
        found: torch.Tensor = self.output(mixed)
        return found


class _Stream(nn.Module):
    """What one stream does in a layer: read the other, then think; each normalised afterwards."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = _Attention(width, heads)
        self.attention_norm = nn.LayerNorm(width)
        self.perceptron = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )
        self.perceptron_norm = nn.LayerNorm(width)

    def forward(
        self, rows: torch.Tensor, others: torch.Tensor, hidden: torch.Tensor | None = None
    ) -> torch.Tensor:
        rows = self.attention_norm(rows + self.attention(rows, others, hidden))
        found: torch.Tensor = self.perceptron_norm(rows + self.perceptron(rows))
        return found


class _Layer(nn.Module):
    """Co-attention: each stream reads the other as it was before the layer."""

    def __init__(self, width: int, heads: int, *, last: bool) -> None:
        super().__init__()
        self.words = _Stream(width, heads)
        # Nothing would read what regions learn in the last layer but the pooling; it is left out.
        self.regions = None if last else _Stream(width, heads)

    def forward(
        self, words: torch.Tensor, regions: torch.Tensor, hidden: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        after = self.words(words, regions)
        return after, regions if self.regions is None else self.regions(regions, words, hidden)


class Matcher(nn.Module):
    """Words and regions to scores, by late interaction and by co-attention."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(
        self,
        channels: int,
        *,
        width: int = 128,
        layers: int = 2,
        heads: int = 4,
        late: int = 64,
        dropout: float = 0.0,
    ) -> None:
        """Lay random weights.

        Args:
            channels: numbers that the text tower gives for a word.
            width: of both streams.
            layers: of co-attention.
            heads: of each attention.
            late: length of vectors of words and regions for late interaction.
            dropout: share of a word's numbers that training leaves out.
        """
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))
        self.dropout = nn.Dropout(dropout)
        self.words_in = nn.Linear(channels, width)
        self.words_norm = nn.LayerNorm(width)
        self.regions_in = nn.Linear(CODE, width)
        self.places = nn.Parameter(torch.zeros(GRID * GRID, width))
        self.regions_norm = nn.LayerNorm(width)
        self.late_words = nn.Linear(width, late)
        self.late_regions = nn.Linear(CODE, late)
        self.importance = nn.Linear(width, 1)
        self.log_scale = nn.Parameter(torch.tensor(math.log(20.0)))
        self.layers = nn.ModuleList(
            _Layer(width, heads, last=number == layers - 1 > 0) for number in range(layers)
        )
        self.pool_words = nn.Linear(width, 1)
        self.pool_regions = nn.Linear(width, 1)
        self.head = nn.Sequential(nn.Linear(3 * width, width), nn.ReLU(), nn.Linear(width, 1))

    def words(self, states: torch.Tensor) -> torch.Tensor:
        """Map float[n, t, channels] of the text tower to float32[n, t, width]."""
        standard = (states.float() - self.mean) / self.deviation
        found: torch.Tensor = self.words_norm(self.words_in(self.dropout(standard)))
        return found

    def late(self, words: torch.Tensor, mask: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """Return float32[n, m]: how well each of n texts fits each of m pictures.

        Args:
            words: float32[n, t, width].
            mask: bool[n, t], where there is a word.
            code: float32[m, regions, CODE].
        """
        ours, theirs = self._late_rows(words, code)
        n, t, length = ours.shape
        m, regions, _ = theirs.shape
        similar = (ours.reshape(n * t, length) @ theirs.reshape(m * regions, length).T).view(
            n, t, m, regions
        )
        weights = _shares(self.importance(words), mask)
        return (similar.amax(dim=-1) * weights.unsqueeze(-1)).sum(dim=1) * self.log_scale.exp()

    def late_pairs(
        self, words: torch.Tensor, mask: torch.Tensor, code: torch.Tensor
    ) -> torch.Tensor:
        """Return float32[n], as `late`, of texts and pictures that stand in the same row."""
        ours, theirs = self._late_rows(words, code)
        weights = _shares(self.importance(words), mask)
        best = (ours @ theirs.transpose(1, 2)).amax(dim=-1)
        return (best * weights).sum(dim=1) * self.log_scale.exp()

    def match(self, words: torch.Tensor, mask: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """Return float32[n]: by co-attention, how well texts and pictures of the same row match."""
        regions = self.regions_norm(self.regions_in(code) + self.places)
        hidden = (~mask).to(words.dtype)[:, None, None, :] * _HIDDEN
        for layer in self.layers:
            words, regions = layer(words, regions, hidden)
        said = (_shares(self.pool_words(words), mask).unsqueeze(-1) * words).sum(dim=1)
        seen = (self.pool_regions(regions).softmax(dim=1) * regions).sum(dim=1)
        found: torch.Tensor = self.head(torch.cat([said, seen, said * seen], dim=-1)).squeeze(-1)
        return found

    def _late_rows(
        self, words: torch.Tensor, code: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return (
            functional.normalize(self.late_words(words), dim=-1),
            functional.normalize(self.late_regions(code), dim=-1),
        )


class CoAttention(nn.Module):
    """The whole reranker; what the towers see goes in, what they said of the pair counts too."""

    shares: torch.Tensor

    def __init__(
        self,
        image_channels: int,
        text_channels: int,
        bank: torch.Tensor,
        *,
        width: int = 128,
        layers: int = 2,
        dropout: float = 0.0,
    ) -> None:
        """Lay random weights.

        Args:
            image_channels: numbers that the image tower gives for a region.
            text_channels: numbers that the text tower gives for a word.
            bank: float32[texts, dim], see `Hubness`.
            width: of both streams.
            layers: of co-attention.
            dropout: of the numbers of words and regions.
        """
        super().__init__()
        self.hubness = Hubness(bank)
        self.code = RegionCode(image_channels, dropout)
        self.matcher = Matcher(text_channels, width=width, layers=layers, dropout=dropout)
        # Of similarity, hubness, late interaction and co-attention: chosen on validation.
        self.register_buffer("shares", torch.tensor([0.0, 0.0, 0.5, 0.5]))

    def to_bytes(self, vectors: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        """Return uint8[n, bytes], all that is kept of pictures, for their vectors and cells."""
        code = self.code.to_bytes(self.code(cells)).flatten(1)
        return torch.cat([code, self.hubness.to_bytes(self.hubness(vectors))], dim=1)

    def from_bytes(self, data: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what `to_bytes` was given: code float32[n, regions, CODE], hubness float32[n]."""
        split = GRID * GRID * CODE
        code = self.code.from_bytes(data[:, :split].unflatten(1, (GRID * GRID, CODE)))
        return code, self.hubness.from_bytes(data[:, split:])

    def fused(
        self,
        similarity: torch.Tensor,
        hubness: torch.Tensor,
        late: torch.Tensor,
        match: torch.Tensor,
    ) -> torch.Tensor:
        """Return float32[n]: the weighted sum of all four."""
        shares = self.shares
        return shares[0] * similarity + shares[1] * hubness + shares[2] * late + shares[3] * match


def _shares(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return float32[n, t] that sum to one over what the mask shows, for logits [n, t, 1]."""
    return logits.squeeze(-1).masked_fill(~mask, _HIDDEN).softmax(dim=-1)
