"""The projection that the project's own models end in."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

__all__ = ["ResidualHead"]


class ResidualHead(nn.Module):
    """A linear map plus a small multi-layer perceptron, to unit rows.

    The features are standardised first, by statistics of the training set that are part of the
    head.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, features: torch.Tensor, dim: int, hidden: int, dropout: float) -> None:
        """Take the statistics from float[n, width] features; the weights start at random."""
        super().__init__()
        width = features.shape[1]
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        self.standardise(features)
        self.straight = nn.Linear(width, dim)
        self.bent = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim)
        )
        self.dropout = nn.Dropout(dropout / 2)

    @classmethod
    def plain(cls, width: int, dim: int, hidden: int, dropout: float = 0.0) -> ResidualHead:
        """Return a head without statistics: mean 0, deviation 1."""
        return cls(torch.empty(0, width), dim, hidden, dropout)

    def set_dropout(self, share: float) -> None:
        """Leave out this share of the perceptron's inner values, and half of it of the inputs."""
        self.dropout.p = share / 2
        for layer in self.bent:
            if isinstance(layer, nn.Dropout):
                layer.p = share

    def standardise(self, features: torch.Tensor) -> None:
        """Take the statistics from float[n, width] features; fewer than two have none."""
        sample = features.detach().float()
        if len(sample) > 1:
            self.mean.copy_(sample.mean(dim=0))
            self.deviation.copy_(sample.std(dim=0).clamp(min=1e-4))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return unit rows float32[n, dim] for float32[n, width] features."""
        # A few channels fire rarely and hard; a hundred deviations of one would drown the rest.
        scaled = ((features - self.mean) / self.deviation).clamp(-8.0, 8.0)
        scaled = self.dropout(scaled)
        return functional.normalize(self.straight(scaled) + self.bent(scaled), dim=-1)
