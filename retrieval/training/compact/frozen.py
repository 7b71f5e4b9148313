"""What the frozen parts say about photos and texts, computed once and kept on disk.

The lower half of the image tower takes most of the time and is never trained; neither is the text
tower in the first two stages. An epoch then costs what the rest costs.
"""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from torch import nn

from mmsearch.retrieval.encoders.edge_tower import EdgeTower
from mmsearch.retrieval.encoders.onnx_weights import Graph
from mmsearch.retrieval.encoders.text_tower import TextTower
from mmsearch.retrieval.media import load_rgb
from mmsearch.retrieval.preprocess import ImagePreprocess
from mmsearch.retrieval.training.augment import augment_picture, generator
from mmsearch.retrieval.training.recipe import Recipe

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MEAN", "PREPROCESS", "SCALE", "SHIPPED", "TAPS", "Frozen", "Seen"]

logger = logging.getLogger(__name__)

PREPROCESS = ImagePreprocess(size=224)
"""What training shows of a photo."""

SHIPPED = ImagePreprocess(size=256)
"""What the finished encoder is shown. Crops in training make things larger than they are in whole
photos; whole photos at more pixels make up for that (Touvron et al. 2019, arXiv:1906.06423)."""

MEAN, SCALE = 128.0, 0.007874016
"""What the published weights of the image tower expect."""

TAPS = (57, 42, 18)
"""Convolutions that are averaged over the picture: the last one, which feeds the classifier, and
two earlier ones, which still know colours and textures that the classifier has no use for."""

VIEW = Recipe(crop=0.4, flip=True, colour=0.3)
"""How further views of a photo differ from the photo."""

BATCH = 64


@dataclass(frozen=True, slots=True)
class Seen:
    """What the frozen image tower says about photos.

    Attributes:
        cells: `float16[n, 96, 14, 14]`, what its lower half gives (on disk).
        features: `float16[n, 2432]`, the means of `TAPS`, the last 384 of them from the lower half.
        logits: `float16[n, 1001]`, the classifier's.
    """

    cells: NDArray[np.float16]
    features: NDArray[np.float16]
    logits: NDArray[np.float16]


class Frozen:
    """The pretrained parts, and where their answers are kept."""

    def __init__(self, images: Path, backbone: Path, bert: Path, cache: Path) -> None:
        """Load the image tower (an ONNX file) and the text tower (a Hugging Face folder)."""
        self._images = images
        self._cache = cache
        self.tower, self._classifier = _image_tower(backbone)
        self.text_tower = TextTower.from_folder(bert)
        self.tokenizer = bert / "tokenizer.json"
        cache.mkdir(parents=True, exist_ok=True)

    def see(self, names: Sequence[str], view: int = 0) -> Seen:
        """Return what the image tower says of the photos called `names`.

        Args:
            names: relative to the folder of photos.
            view: 0 is each photo as it is; others are random crops, colours and mirror images.
        """
        key = _key(("see", list(names), view, TAPS, VIEW if view else None))
        paths = [self._cache / f"{part}-{key}.npy" for part in ("cells", "features", "logits")]
        if not all(path.exists() for path in paths):
            parts = [path.with_suffix(".part") for path in paths]
            self._look(names, view, parts)
            for part, path in zip(parts, paths, strict=True):
                part.rename(path)
        cells, features, logits = (np.load(path, mmap_mode="r") for path in paths)
        return Seen(cells, np.array(features), np.array(logits))

    def read(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the sentence embeddings of `texts`, float32[n, 384], unit rows."""

        def compute() -> NDArray[np.float32]:
            with torch.autocast("cpu", torch.bfloat16):
                return self.text_tower.encode(texts, self.tokenizer)

        return torch.from_numpy(self.kept("texts", list(texts), compute))

    def kept(self, name: str, key: object, compute: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """Return what `compute` returns, from disk where an equal `key` was seen before."""
        path = self._cache / f"{name}-{_key(key)}.npy"
        if not path.exists():
            part = path.with_suffix(".part")
            with part.open("wb") as file:
                np.save(file, compute(), allow_pickle=False)
            part.rename(path)
        loaded: NDArray[Any] = np.load(path, allow_pickle=False)
        return loaded

    def _look(self, names: Sequence[str], view: int, paths: Sequence[Path]) -> None:
        shapes = [(len(names), 96, 14, 14), (len(names), self.tower.width), (len(names), 1001)]
        tables = [
            np.lib.format.open_memmap(path, "w+", np.float16, shape)
            for path, shape in zip(paths, shapes, strict=True)
        ]
        starts = range(0, len(names), BATCH)
        with ThreadPoolExecutor(2) as pool:

            def load(start: int) -> list[Any]:
                chosen = names[start : start + BATCH]
                return [pool.submit(self._pixels, name, view) for name in chosen]

            waiting = load(0)
            for start in starts:
                pixels = np.stack([future.result() for future in waiting])
                waiting = load(start + BATCH)
                for table, values in zip(tables, self._answers(pixels), strict=True):
                    table[start : start + len(pixels)] = values
                if start // BATCH % 50 == 49:
                    logger.info("view %d: %d of %d photos", view, start + BATCH, len(names))
        for table in tables:
            table.flush()  # type: ignore[attr-defined]

    @torch.inference_mode()
    def _answers(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float16], ...]:
        scaled = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - MEAN) * SCALE
        with torch.autocast("cpu", torch.bfloat16):
            lower = self.tower.lower(scaled.contiguous(memory_format=torch.channels_last))
            features = self.tower.upper(*lower).float()
        logits = self._classifier(features[:, : self._classifier.in_features])
        found = (lower[0], features, logits)
        return tuple(values.half().contiguous().numpy() for values in found)

    def _pixels(self, name: str, view: int) -> NDArray[np.uint8]:
        image = load_rgb(self._images / name, at_least=PREPROCESS.decode_size)
        if view:
            image = augment_picture(image, VIEW, generator(view, zlib.crc32(name.encode())))
        return PREPROCESS(image)


def _image_tower(backbone: Path) -> tuple[EdgeTower, nn.Linear]:
    tower = EdgeTower(TAPS)
    layers = Graph(onnx.load(backbone)).convolutions()
    with torch.no_grad():
        for conv, layer in zip(tower.convolutions(), layers, strict=False):
            conv.weight.copy_(torch.from_numpy(layer.weight))
            assert conv.bias is not None
            conv.bias.copy_(torch.from_numpy(layer.bias))
        last = layers[len(tower.convolutions())]
        classifier = nn.Linear(last.weight.shape[1], len(last.weight))
        classifier.weight.copy_(torch.from_numpy(last.weight).flatten(1))
        classifier.bias.copy_(torch.from_numpy(last.bias))
    frozen = tower.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return frozen.eval().requires_grad_(False), classifier.requires_grad_(False)


def _key(key: object) -> str:
    return hashlib.sha256(repr(key).encode()).hexdigest()[:16]
