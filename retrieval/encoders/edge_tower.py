"""MobileNet-EdgeTPU, written out plainly: the image tower of the bundled encoder.

The layers of timm's `mobilenet_edgetpu_100` with batch norm folded into the convolutions and
TensorFlow's padding. Written out because it keeps what the published weights came with and timm
has no place for: the range of every activation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional

__all__ = ["EdgeTower", "Limits", "SameConv"]

Limits = tuple[float | None, float | None]
"""The range that values are cut to; `None` is no limit."""

_FUSED = [(16, 128, 32, 3, 2), *3 * [(32, 128, 32, 3, 1)]]
_FUSED += [(32, 256, 48, 3, 2), *3 * [(48, 192, 48, 3, 1)]]
"""Blocks that open with a dense convolution: inputs, inner channels, outputs, kernel, stride."""

_INVERTED = [(48, 384, 96, 3, 2), *3 * [(96, 384, 96, 3, 1)]]
_INVERTED += [(96, 768, 96, 3, 1), *3 * [(96, 384, 96, 3, 1)]]
_INVERTED += [(96, 768, 160, 5, 2), *3 * [(160, 640, 160, 5, 1)], (160, 1280, 192, 3, 1)]
"""Blocks that widen, look at each channel, and narrow again."""

_WITHOUT_SKIP = {(96, 768, 96, 3, 1)}
"""It could add its input to its output by its shape, but does not."""


LOWER_BLOCKS = 14
"""Blocks up to the first ones that see cells of 16 by 16 pixels: six sevenths of the work."""


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's "SAME" padding, its outputs cut to `limits`."""

    limits: Limits = (None, None)

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        """Map float32[n, inputs, h, w] to float32[n, outputs, ceil(h / stride), …]."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        height, width = (
            max(0, (-(-int(side) // stride) - 1) * stride + kernel - int(side))
            for side in cells.shape[2:]
        )
        even = (height // 2, width // 2)
        if height % 2 or width % 2:
            # What is odd goes to the right and below, and costs a copy of the cells.
            sides = [width // 2, width - width // 2, height // 2, height - height // 2]
            cells, even = functional.pad(cells, sides), (0, 0)
        found = functional.conv2d(cells, self.weight, self.bias, stride, even, 1, self.groups)
        return _cut(found, self)


class _Block(nn.Module):
    """Convolutions one after another, and the input added where `skip` says so."""

    limits: Limits = (None, None)

    def __init__(self, convs: Sequence[SameConv], *, skip: bool) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.skip = skip

    def forward(self, cells: torch.Tensor, seen: list[torch.Tensor]) -> torch.Tensor:
        """Return the block's output; every convolution's goes to `seen`."""
        found = cells
        for conv in self.convs:
            found = conv(found)
            seen.append(found)
        return _cut(found + cells, self) if self.skip else found


class EdgeTower(nn.Module):
    """Pixels to the means over the picture of what chosen convolutions give."""

    def __init__(self, taps: Sequence[int], limits: Sequence[Limits] | None = None) -> None:
        """Lay the blocks, with random weights.

        Args:
            taps: numbers of the convolutions that are read, in the order of the features.
            limits: the range of every convolution and every addition, in their order; without
                it, they are (0, no limit) where the architecture has a ReLU.
        """
        super().__init__()
        self.blocks = nn.ModuleList(_blocks())
        self.taps = list(taps)
        convs = self.convolutions()
        self.width = sum(convs[tap].out_channels for tap in self.taps)
        self._first = len(convs) - len(self.upper_convolutions())
        self._below = {tap: convs[tap].out_channels for tap in self.taps if tap < self._first}
        if limits is not None:
            for place, pair in zip(self._places(), limits, strict=True):
                place.limits = (pair[0], pair[1])

    def convolutions(self) -> list[SameConv]:
        """Return the 58 convolutions in their order."""
        return [module for module in self.modules() if isinstance(module, SameConv)]

    def upper_convolutions(self) -> list[SameConv]:
        """Return the convolutions that `upper` runs."""
        upper = self.blocks[LOWER_BLOCKS:]
        return [module for module in upper.modules() if isinstance(module, SameConv)]

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return float32[n, width] for float32[n, 3, size, size]."""
        seen: list[torch.Tensor] = []
        cells = pixels
        for block in self.blocks:
            cells = block(cells, seen)
        # All means at the end, joined at once: so `onnx_weights` finds them in a graph.
        return torch.cat([seen[tap].mean(dim=(2, 3)) for tap in self.taps], dim=1)

    def lower(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the first blocks give, for `upper`, and the means that are read there.

        They take most of the time; where they are locked, their answers can be kept.

        Returns:
            float32[n, 96, size / 16, size / 16] and float32[n, means].
        """
        seen: list[torch.Tensor] = []
        cells = pixels
        for block in self.blocks[:LOWER_BLOCKS]:
            cells = block(cells, seen)
        below = [seen[tap].mean(dim=(2, 3)) for tap in self.taps if tap < len(seen)]
        return cells, torch.cat(below, dim=1) if below else cells.new_zeros(len(cells), 0)

    def upper(self, cells: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
        """Return float32[n, width] for what `lower` returned."""
        seen: list[torch.Tensor] = []
        for block in self.blocks[LOWER_BLOCKS:]:
            cells = block(cells, seen)
        below = means.split(list(self._below.values()), dim=1) if self._below else ()
        found = dict(zip(self._below, below, strict=True))
        parts = [
            found[tap] if tap in found else seen[tap - self._first].mean(dim=(2, 3))
            for tap in self.taps
        ]
        return torch.cat(parts, dim=1)

    def _places(self) -> Iterator[SameConv | _Block]:
        for block in self.blocks:
            assert isinstance(block, _Block)
            yield from (conv for conv in block.convs if isinstance(conv, SameConv))
            if block.skip:
                yield block


def _blocks() -> Iterator[_Block]:
    yield _Block([_conv(3, 32, 3, 2, relu=True)], skip=False)
    yield _Block([_conv(32, 16, 1)], skip=False)
    for inputs, inner, outputs, kernel, stride in _FUSED:
        convs = [_conv(inputs, inner, kernel, stride, relu=True), _conv(inner, outputs, 1)]
        yield _Block(convs, skip=inputs == outputs)
    for inputs, inner, outputs, kernel, stride in _INVERTED:
        convs = [
            _conv(inputs, inner, 1, relu=True),
            _conv(inner, inner, kernel, stride, groups=inner, relu=True),
            _conv(inner, outputs, 1),
        ]
        skip = inputs == outputs and (inputs, inner, outputs, kernel, stride) not in _WITHOUT_SKIP
        yield _Block(convs, skip=skip)
    yield _Block([_conv(192, 1280, 1, relu=True)], skip=False)


def _conv(
    inputs: int, outputs: int, kernel: int, stride: int = 1, *, groups: int = 1, relu: bool = False
) -> SameConv:
    conv = SameConv(inputs, outputs, kernel, stride=stride, groups=groups)
    if relu:
        conv.limits = (0.0, None)
    return conv


def _cut(cells: torch.Tensor, place: SameConv | _Block) -> torch.Tensor:
    low, high = place.limits
    if high is None:
        return cells if low is None else functional.relu(cells)
    return cells.clamp(low, high)
