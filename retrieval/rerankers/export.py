"""From a trained `CoAttention` to the folder that `bundled` runs without torch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from mmsearch.errors import ModelError
from mmsearch.retrieval.encoders.files import hashes, put, put_json
from mmsearch.retrieval.encoders.graph import export_graph
from mmsearch.retrieval.encoders.image_tower import session
from mmsearch.retrieval.rerankers.co_attention import CODE, GRID, CoAttention, cells_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmsearch.retrieval.schema import EncoderSpec

__all__ = ["OWN_FILES", "shapes_of", "write_reranker"]

OWN_FILES = ("match.onnx", "regions.onnx", "reranker.json")

CLOSE = 1e-3
"""How far a score of the graph may be from torch's."""


class _Regions(nn.Module):
    """Vectors and inner tensors of the image tower to bytes."""

    def __init__(self, model: CoAttention) -> None:
        super().__init__()
        self.model = model

    def forward(self, vectors: torch.Tensor, *maps: torch.Tensor) -> torch.Tensor:
        return self.model.to_bytes(vectors, cells_of(list(maps)))


class _Match(nn.Module):
    """Words, bytes and similarities to scores, each text and picture read once."""

    def __init__(self, model: CoAttention) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        mask: torch.Tensor,
        regions: torch.Tensor,
        similarity: torch.Tensor,
        text_of: torch.Tensor,
        picture_of: torch.Tensor,
        *states: torch.Tensor,
    ) -> torch.Tensor:
        model = self.model
        words = model.matcher.words(torch.cat(states, dim=-1))[text_of]
        shown = mask[text_of] > 0
        code, hubness = (part[picture_of] for part in model.from_bytes(regions))
        return model.fused(
            similarity,
            hubness,
            model.matcher.late_pairs(words, shown, code),
            model.matcher.match(words, shown, code),
        )


def write_reranker(
    model: CoAttention,
    folder: Path,
    *,
    name: str,
    encoder: EncoderSpec,
    image_inner: dict[str, tuple[int, ...]],
    text_inner: dict[str, int],
    extra: dict[str, Any],
) -> None:
    """Write `regions.onnx`, `match.onnx` and `reranker.json` into a folder.

    Args:
        model: in evaluation afterwards.
        folder: exists.
        name: what it is called.
        encoder: whose towers it reads.
        image_inner: names of tensors of its image tower, and their shapes without the first side.
        text_inner: names of tensors of its text tower, and their channels.
        extra: anything JSON: how it was trained.

    Raises:
        ModelError: the graphs do not answer as the model does.
        OSError: the disk is full or read-only.
    """
    model.eval()
    random = torch.Generator().manual_seed(0)
    vectors = torch.randn(3, encoder.dim, generator=random)
    maps = {"vectors": torch.nn.functional.normalize(vectors, dim=1)} | {
        f"map_{i}": torch.randn(3, *shape, generator=random)
        for i, shape in enumerate(image_inner.values())
    }
    _write(_Regions(model), maps, folder / "regions.onnx", "regions")
    counts = {"text_of": torch.tensor([0, 1, 1, 0]), "picture_of": torch.tensor([2, 1, 0, 0])}
    feed = {
        "mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
        "regions": torch.randint(1, 256, (3, GRID * GRID * CODE + 2), generator=random).byte(),
        "similarity": torch.linspace(-1, 1, 4),
        **counts,
        **{
            f"states_{i}": torch.randn(2, 5, channels, generator=random)
            for i, channels in enumerate(text_inner.values())
        },
    }
    _write(_Match(model), feed, folder / "match.onnx", "score")
    sha256 = hashes(folder, ("match.onnx", "regions.onnx"))
    lines = "".join(f"{sha256[name]}  {name}\n" for name in sorted(sha256))
    put_json(
        folder / "reranker.json",
        {
            "format": 1,
            "kind": "co-attention",
            "name": name,
            "revision": hashlib.sha256(lines.encode()).hexdigest()[:12],
            "encoder": {"name": encoder.label, "weights_sha256": encoder.weights_sha256},
            "image": {"inner": list(image_inner)},
            "text": {"inner": list(text_inner)},
            "regions": {"file": "regions.onnx"},
            "match": {"file": "match.onnx"},
            "sha256": sha256,
            "extra": extra,
        },
    )


def _write(module: nn.Module, feed: dict[str, torch.Tensor], path: Path, output: str) -> None:
    axes = {name: _axes(name) for name in feed}
    graph = export_graph(module, feed, axes, output)
    data = graph.SerializeToString()
    with torch.inference_mode():
        expected = module(*feed.values()).numpy()
    found = session(data).run(None, {name: value.numpy() for name, value in feed.items()})[0]
    apart = float(np.abs(found.astype(np.float32) - expected.astype(np.float32)).max())
    # A byte may round the other way.
    if not apart <= (1 if found.dtype == np.uint8 else CLOSE):
        raise ModelError(
            f"The exported {path.name} does not answer as the model does: the largest difference "
            f"is {apart:.2g}. Nothing was written. Try with another version of torch."
        )
    put(path, data)


def _axes(name: str) -> dict[int, str]:
    if name == "mask" or name.startswith("states"):
        return {0: "texts", 1: "t"}
    return {0: {"regions": "pictures"}.get(name, "n")}


def shapes_of(names: Sequence[str], tensors: Sequence[Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors without their first side, by name."""
    return {name: tuple(tensor.shape[1:]) for name, tensor in zip(names, tensors, strict=True)}
