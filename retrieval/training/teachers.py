"""Teachers: what another encoder finds similar, and what a classifier sees in a picture."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from mmsearch.errors import SourceError
from mmsearch.retrieval.training.corpus import Corpus, PictureFile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.encoders import Encoder

__all__ = ["ClassTeacher", "SimilarityTeacher", "read_class_teacher"]

_DAMAGED = (OSError, EOFError, ValueError, TypeError, KeyError, zipfile.BadZipFile, zlib.error)
"""What numpy says of files that are no archive, or damaged ones, or hold other things."""

SCALE = 50.0
"""Of a teacher's cosines before the softmax: between CLIP's first (14) and its last (100)."""


@dataclass(frozen=True, slots=True)
class SimilarityTeacher:
    """Another encoder's vectors of a corpus.

    Attributes:
        images: `float32[pictures, d]`, unit rows.
        texts: `float32[captions, d]`, unit rows, in the corpus's order.
    """

    images: torch.Tensor
    texts: torch.Tensor

    @classmethod
    def embed(
        cls, corpus: Corpus, encoder: Encoder, progress: Callable[[str, int, int], None]
    ) -> SimilarityTeacher:
        """Embed every picture, as it is, and every caption once."""
        images, size = [], encoder.batch_size
        for start in range(0, len(corpus), size):
            rows = range(start, min(start + size, len(corpus)))
            loaded = (corpus.load(row, at_least=encoder.decode_size) for row in rows)
            images.append(encoder.encode_pixels([encoder.prepare(image) for image in loaded]))
            progress("teacher", rows.stop, len(corpus))
        texts = encoder.encode_texts([text for each in corpus.captions for text in each])
        return cls(torch.from_numpy(np.concatenate(images)), torch.from_numpy(texts))

    def similarities(self, rows: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
        """Return scaled cosines `float32[n, m]` of pictures and captions."""
        return SCALE * self.images[rows.cpu()] @ self.texts[captions.cpu()].T


@dataclass(frozen=True, slots=True)
class ClassTeacher:
    """What a classifier says of the pictures of a corpus.

    Attributes:
        probabilities: `float16[pictures, classes]`; rows sum to one, or to zero where the
            classifier was not asked.
        names: what the classes are called, as a caption would say it.
    """

    probabilities: NDArray[np.float16]
    names: Sequence[str]

    def targets(self, rows: Sequence[int], at_most: int) -> tuple[list[str], NDArray[np.float32]]:
        """Return the classes that these pictures most probably show, and how probably each does.

        Returns:
            Names, and `float32[n, names]` with rows that sum to one (or to zero).
        """
        said = self.probabilities[np.asarray(rows)].astype(np.float32)
        # Stable: which of two equal ones is kept must not depend on the machine.
        chosen = np.sort(np.argsort(-said.sum(axis=0), kind="stable")[:at_most])
        kept = said[:, chosen]
        total = kept.sum(axis=1, keepdims=True)
        shares = np.divide(kept, total, out=np.zeros_like(kept), where=total > 0)
        return [self.names[i] for i in chosen], shares


def _checked(corpus: Corpus) -> Corpus:
    return corpus.checked(
        skip_broken=False, threads=min(8, os.cpu_count() or 1), progress=lambda *_: None
    )


def read_class_teacher(
    source: Path,
    corpus: Corpus,
    images: Path | None,
    *,
    held_out: Corpus | None = None,
    check: Callable[[Corpus], Corpus] = _checked,
) -> tuple[ClassTeacher, Corpus]:
    """Read class probabilities, and add the pictures that only they describe to the corpus.

    Args:
        source: an `.npz` file with `names` (text[classes]), `paths` (text[n], as the pairs file
            writes them) and `probabilities` (float[n, classes], not negative).
        corpus: pictures with captions; what it skipped is not added again.
        images: the folder that the paths are relative to; without it no pictures are added.
        held_out: what will be measured with, and so is not added either.
        check: reads the pictures to add, see `Corpus.checked`.

    Raises:
        SourceError: the file is missing or damaged, lacks an array, or shapes disagree; or a
            picture to add cannot be read.
    """
    try:
        # Opened here: numpy leaves files open that it cannot read.
        with source.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            names = [str(name) for name in arrays["names"]]
            paths = [str(path) for path in arrays["paths"]]
            values = arrays["probabilities"].astype(np.float32)
    except _DAMAGED as error:
        raise SourceError(
            f"The class probabilities {source} cannot be read: {error}. Give an .npz file with "
            "the arrays names, paths and probabilities."
        ) from error
    if values.shape != (len(paths), len(names)) or not names:
        raise SourceError(
            f"{source}: probabilities has the shape {values.shape}; {len(paths)} paths and "
            f"{len(names)} names ask for ({len(paths)}, {len(names)}), with one name at least."
        )
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise SourceError(f"{source}: probabilities must be finite and not negative.")
    taken = {picture.name for picture in corpus.pictures} | {name for name, _ in corpus.skipped}
    if held_out is not None:
        taken |= {picture.name for picture in held_out.pictures}
    extra = [
        PictureFile(images / path, path)
        for path in dict.fromkeys(paths)
        # `Path.is_file` raises for absurd names.
        if images is not None and path not in taken and os.path.isfile(images / path)  # noqa: PTH113
    ]
    whole = _with(corpus, check(Corpus(extra, [[] for _ in extra]))) if extra else corpus
    row_of = {path: row for row, path in enumerate(paths)}
    rows = [row_of.get(picture.name) for picture in whole.pictures]
    if all(row is None for row in rows):
        raise SourceError(
            f"{source} names no picture of the training set (its first path: {paths[:1]}). Write "
            "paths as the pairs file does."
        )
    table = np.zeros((len(rows), len(names)), dtype=np.float16)
    for place, row in enumerate(rows):
        if row is not None:
            table[place] = values[row] / max(values[row].sum(), 1e-12)
    return ClassTeacher(table, names), whole


def _with(corpus: Corpus, extra: Corpus) -> Corpus:
    unused = max(corpus.contents, default=0) + 1
    return Corpus(
        [*corpus.pictures, *extra.pictures],
        [*corpus.captions, *extra.captions],
        [*corpus.contents, *range(unused, unused + len(extra))] if corpus.contents else (),
        [*corpus.skipped, *extra.skipped],
    )
