"""What an encoder's towers see of pictures and read of captions, computed once, kept on disk."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import ImageOps

from mmsearch.errors import ModelError
from mmsearch.retrieval.rerankers.co_attention import GRID, cells_of
from mmsearch.retrieval.training.augment import augment_picture, generator
from mmsearch.retrieval.training.recipe import Recipe

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from mmsearch.retrieval.encoders.onnx import OnnxEncoder
    from mmsearch.retrieval.training.corpus import Corpus

__all__ = ["IMAGE_INNER", "TEXT_INNER", "Features", "Watcher"]

IMAGE_INNER = (
    "/image_tower/blocks.22/convs.2/Conv_output_0",
    "/image_tower/blocks.13/Add_output_0",
    "/image_tower/blocks.17/Add_output_0",
)
"""Of an exported `EdgeTower`: what feeds its last convolution, and two earlier layers that still
know colours and textures; the first of these two is never trained."""

TEXT_INNER = (
    "/text_tower/layers.5/outer_norm/LayerNormalization_output_0",
    "/text_tower/layers.2/outer_norm/LayerNormalization_output_0",
)
"""Of an exported `TextTower`: its last layer, and the last one that is never trained."""

VIEW = Recipe(crop=0.5, flip=True, colour=0.3)
"""How the third and further views of a picture differ from it."""

BATCH = 16


@dataclass(frozen=True, slots=True)
class Features:
    """Pictures and captions as the towers give them.

    Attributes:
        cells: for each view, `float16[pictures, regions, channels]` (on disk).
        images: `float32[pictures, dim]`, the encoder's vectors.
        states: `float16[captions, words, channels]`, padded (on disk).
        mask: `bool[captions, words]`.
        texts: `float32[captions, dim]`, the encoder's vectors.
        owner: `int64[captions]`, the picture of each.
    """

    cells: list[NDArray[np.float16]]
    images: NDArray[np.float32]
    states: NDArray[np.float16]
    mask: NDArray[np.bool_]
    texts: NDArray[np.float32]
    owner: NDArray[np.int64]


class Watcher:
    """Looks at a corpus through an encoder, or remembers that it did."""

    def __init__(
        self,
        encoder: OnnxEncoder,
        folder: Path,
        progress: Callable[[str, int, int], None] = lambda *_: None,
    ) -> None:
        """Prepare to look.

        Args:
            encoder: whose towers the reranker reads.
            folder: where what was seen is kept.
            progress: called with (stage, done, total).
        """
        self._encoder = encoder
        self._folder = folder
        self._progress = progress
        folder.mkdir(parents=True, exist_ok=True)

    def see(self, corpus: Corpus, *, views: int, longest: int) -> Features:
        """Return what the towers give.

        Args:
            corpus: pictures with captions; broken ones were left out.
            views: see `RerankerRecipe`.
            longest: words that are kept of a caption; the last one is always among them.

        Raises:
            ModelError: the encoder has other towers than a reranker can read.
            MediaError: a picture cannot be read any more.
        """
        texts = [text for captions in corpus.captions for text in captions]
        owner = np.repeat(np.arange(len(corpus)), [len(said) for said in corpus.captions])
        key = (self._encoder.spec.weights_sha256, corpus.fingerprint())
        seen = [
            self._kept((*key, view), ("cells", "images"), lambda at: self._look(corpus, view, at))  # noqa: B023
            for view in range(views)
        ]
        states, mask, vectors = self._kept(
            (*key, longest), ("states", "mask", "texts"), lambda at: self._read(texts, longest, at)
        )
        return Features(
            [cells for cells, _ in seen], np.array(seen[0][1]), states, mask, vectors, owner
        )

    def _kept(
        self, key: object, names: Sequence[str], compute: Callable[[list[Path]], None]
    ) -> list[NDArray[Any]]:
        """Return arrays from disk, computed where an equal `key` was never seen."""
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
        paths = [self._folder / f"{name}-{digest}.npy" for name in names]
        if not all(path.exists() for path in paths):
            parts = [path.with_suffix(".part") for path in paths]
            compute(parts)
            for part, path in zip(parts, paths, strict=True):
                part.replace(path)
        return [np.load(path, mmap_mode="r", allow_pickle=False) for path in paths]

    def _look(self, corpus: Corpus, view: int, paths: list[Path]) -> None:
        encoder, count = self._encoder, len(corpus)
        tables: list[NDArray[Any]] = []

        def prepared(row: int) -> NDArray[Any]:
            image = corpus.load(row, at_least=encoder.decode_size)
            return encoder.prepare(_seen_as(image, view, corpus.pictures[row].name))

        with ThreadPoolExecutor(2) as pool:
            ahead = _in_batches(pool.map(prepared, range(count)), BATCH)
            for number, pixels in enumerate(ahead):
                try:
                    vectors, maps = encoder.look(pixels, IMAGE_INNER)
                    cells = cells_of([torch.from_numpy(part) for part in maps]).numpy()
                # Whatever ONNX Runtime says of tensors that are not there or have other shapes.
                except Exception as error:
                    raise ModelError(
                        f"A reranker cannot be trained for {encoder.spec.label}: its towers are "
                        f"not those of compact ({' '.join(str(error).split())[:200]}). Train for "
                        "compact, or for a model that mmsearch train made from it."
                    ) from error
                if not tables:
                    shapes = (count, GRID * GRID, cells.shape[2]), (count, vectors.shape[1])
                    tables = [
                        np.lib.format.open_memmap(path, "w+", dtype, shape)
                        for path, dtype, shape in zip(
                            paths, (np.float16, np.float32), shapes, strict=True
                        )
                    ]
                rows = slice(number * BATCH, number * BATCH + len(pixels))
                tables[0][rows], tables[1][rows] = cells, vectors
                self._progress("pictures", rows.stop, count)

    def _read(self, texts: list[str], longest: int, paths: list[Path]) -> None:
        encoder = self._encoder
        vectors = encoder.encode_texts(texts)
        # Texts of equal length together: most of the time would go into padding otherwise.
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        states: NDArray[Any] | None = None
        shown = np.zeros((len(texts), longest), dtype=np.bool_)
        for start in range(0, len(order), encoder.batch_size):
            rows = order[start : start + encoder.batch_size]
            mask, tensors = encoder.read_words([texts[row] for row in rows], TEXT_INNER)
            joined = np.concatenate(tensors, axis=2)
            if states is None:
                shape = (len(texts), longest, joined.shape[2])
                states = np.lib.format.open_memmap(paths[0], "w+", np.float16, shape)
            for row, length, words in zip(rows, mask.sum(axis=1).tolist(), joined, strict=True):
                kept = np.arange(min(length, longest))
                kept[-1] = length - 1
                states[row, : len(kept)] = words[kept]
                shown[row, : len(kept)] = True
            self._progress("captions", start + len(rows), len(texts))
        for path, array in zip(paths[1:], (shown, vectors), strict=True):
            with path.open("wb") as file:
                np.save(file, array, allow_pickle=False)


def _seen_as(image: Image.Image, view: int, name: str) -> Image.Image:
    if view == 0:
        return image
    if view == 1:
        return ImageOps.mirror(image)
    return augment_picture(image, VIEW, generator(view, zlib.crc32(name.encode())))


def _in_batches(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
