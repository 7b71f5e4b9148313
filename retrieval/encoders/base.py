"""The contract every encoder keeps."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from mmsearch.retrieval.encoders.tokens import TextPreprocess
    from mmsearch.retrieval.preprocess import Box, ImagePreprocess
    from mmsearch.retrieval.schema import EncoderSpec

__all__ = ["Encoder", "canonical", "unit_rows"]


class Encoder(ABC):
    """Pictures and texts into one space, with the preprocessing that belongs to it.

    Training, indexing and querying all use `prepare` and `encode_pixels`, so they cannot differ.
    An implementation writes the underscored methods for one batch of clean input. Encoding is
    safe from several threads.
    """

    batch_size = 32
    """How many pictures go through a tower at once, and texts where nothing else is said."""

    text_batch_size: int | None = None
    """How many texts go through a tower at once, where other than `batch_size`."""

    device = ""
    """What computes, for people; the CPU where nothing is said."""

    differentiable = False
    """Whether the model of torch itself is at hand, so that scores have gradients."""

    @property
    @abstractmethod
    def spec(self) -> EncoderSpec:
        """What makes this encoder's vectors comparable with others."""

    @property
    @abstractmethod
    def location(self) -> str:
        """What `load_encoder` takes to get this encoder again: a bundled name or a path."""

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.spec.dim

    @property
    @abstractmethod
    def decode_size(self) -> int:
        """Shortest side, in pixels, that decoding a picture must keep."""

    @abstractmethod
    def prepare(self, image: Image.Image) -> NDArray[Any]:
        """Return one upright RGB picture as the array that `encode_pixels` stacks."""

    def encode_pixels(self, pixels: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """Embed prepared pictures: `float32[n, dim]`, unit rows."""
        return self._in_batches(pixels, lambda batch: self._encode_pixels(np.stack(batch)))

    def encode_images(self, images: Sequence[Path | str | Image.Image]) -> NDArray[np.float32]:
        """Embed pictures, given as paths or Pillow images: `float32[n, dim]`, unit rows.

        Raises:
            MediaError: a picture cannot be read; the message names it.
        """
        # What questions in words do not need is loaded where it is.
        from mmsearch.retrieval.media import load_rgb

        def encode(batch: Sequence[Path | str | Image.Image]) -> NDArray[np.float32]:
            upright = (load_rgb(image, at_least=self.decode_size) for image in batch)
            return self._encode_pixels(np.stack([self.prepare(image) for image in upright]))

        return self._in_batches(images, encode)

    def encode_regions(self, image: Image.Image) -> tuple[NDArray[np.float32], Box] | None:
        """Embed the overlapping regions of one upright RGB picture, where an encoder can.

        Returns:
            `float32[n, n, dim]`, unit rows, by row and column: region (i, j) of the square that is
            encoded covers from `i / (n + 1)` to `(i + 2) / (n + 1)` of its height, and so on for
            its width; and where the square's edges lie, see `ImagePreprocess.seen`. None where an
            encoder knows pictures as a whole only, as most do.
        """
        del image
        return None

    def encode_texts(
        self, texts: Sequence[str], *, progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        """Embed texts: `float32[n, dim]`, unit rows; what exceeds the tower's length is cut off.

        A batch is padded to its longest text, so texts of like length share one: a third less work
        for captions. Give all there are in one call.

        Args:
            texts: any number.
            progress: called with how many are embedded, before each batch.
        """
        if isinstance(texts, str):
            raise TypeError("encode_texts takes a list of texts; wrap a single one: [text]")
        # A word that is no valid text (a lone surrogate from the command line) becomes "?".
        clean = [text.encode(errors="replace").decode() for text in texts]
        size = self.text_batch_size or self.batch_size
        if len(clean) <= size:
            return self._in_batches(clean, self._encode_texts, size, progress)
        # The longest first: whatever memory is needed is taken once.
        order = np.argsort(-self._text_lengths(clean), kind="stable")
        found = self._in_batches([clean[i] for i in order], self._encode_texts, size, progress)
        vectors = np.empty_like(found)
        vectors[order] = found
        return vectors

    @abstractmethod
    def _encode_pixels(self, pixels: NDArray[Any]) -> NDArray[np.float32]: ...

    @abstractmethod
    def _encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]: ...

    def _text_lengths(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return `int64[n]`, what texts grow by beside each other; tokens, where a tower has any.

        Characters serve nearly as well: sorted by them, captions of Flickr8k in batches of 16 are
        padded to 1.17 times their tokens, by tokens to 1.02, and as they come to 1.55 times.
        """
        return np.array([len(text) for text in texts], dtype=np.int64)

    def _in_batches(
        self,
        items: Sequence[Any],
        encode: Callable[[Sequence[Any]], NDArray[np.float32]],
        size: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> NDArray[np.float32]:
        parts = []
        size = size or self.batch_size
        for start in range(0, len(items), size):
            if progress is not None:
                progress(start)
            parts.append(encode(items[start : start + size]))
        if not parts:
            return np.empty((0, self.dim), dtype=np.float32)
        return unit_rows(np.concatenate(parts))


def unit_rows(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Return `float32[n, dim]` with rows of unit length, whatever precision a tower worked in."""
    rows: NDArray[np.float32] = vectors.astype(np.float32, copy=False)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return rows


def canonical(preprocess: ImagePreprocess, texts: TextPreprocess) -> str:
    """Return both transforms as canonical JSON, for `EncoderSpec.preprocessing`.

    The text transform is left out where it only cuts: the first catalogs were written without it.
    """
    fields = preprocess.to_json()
    if texts.to_json().keys() != {"max_tokens"}:
        fields["text"] = texts.to_json()
    return json.dumps(fields, sort_keys=True)
