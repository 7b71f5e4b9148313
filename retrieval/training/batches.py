"""Batches of pairs: which, in which order, prepared in threads ahead of the training step.

All of it follows from the seed, the epoch and the step, so a training that was stopped goes on
with the batches that it would have had, and several processes take their parts of one batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from mmsearch.errors import TrainingError
from mmsearch.retrieval.training.augment import augment_caption, augment_picture, generator
from mmsearch.retrieval.training.hard_negatives import with_neighbours

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.preprocess import ImagePreprocess
    from mmsearch.retrieval.training.corpus import Corpus
    from mmsearch.retrieval.training.hard_negatives import Memory
    from mmsearch.retrieval.training.recipe import Recipe
    from mmsearch.retrieval.training.teachers import ClassTeacher

__all__ = ["Batch", "BatchSource", "PairBatches", "Reads"]

BATCHES_AHEAD = 3
CLASSES_AT_ONCE = 256
"""Class names embedded for a batch: those that its pictures most probably show."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step of one process learns from.

    The first `pairs` pictures are contrasted with the first `len(texts)` texts: as many, row by
    row, or several texts a picture where `owners` says whose they are. Pictures after them have no
    caption, texts after them are names of classes; both serve the class probabilities alone.

    Attributes:
        images: what the model's image tower reads, `[n, …]`.
        ids: token ids, `int64[m, t]`.
        mask: 0/1, `int64[m, t]`.
        pairs: number of pictures that are contrasted.
        pictures: `int64[pairs]`: equal numbers are the same picture.
        texts: `int64[texts]`: equal numbers are the same caption.
        rows: `int64[pairs]`, rows of the corpus, for what is kept by row.
        captions: `int64[texts]`, number of each caption in the corpus.
        classes: probabilities `float32[n, names]`, or None.
        weights: `float32[texts]`, how much each text counts, or None.
        owners: `int64[texts]`, the picture that each text belongs to; row by row when None.
    """

    images: torch.Tensor
    ids: torch.Tensor
    mask: torch.Tensor
    pairs: int
    pictures: torch.Tensor
    texts: torch.Tensor
    rows: torch.Tensor
    captions: torch.Tensor
    classes: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    owners: torch.Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Return the batch on another device."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for name in self.__slots__
            for value in [getattr(self, name)]
        }
        return Batch(**moved)


class Reads(Protocol):
    """The part of a model that prepares its inputs."""

    @property
    def preprocess(self) -> ImagePreprocess:
        """The image transform."""

    def tokenize(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids and mask, `int64[n, t]` each."""


class BatchSource(Protocol):
    """Anything a training can take its batches from."""

    @property
    def steps(self) -> int:
        """Steps in an epoch."""

    def epoch(self, number: int, first: int, memory: Memory | None) -> Iterator[Batch]:
        """Yield the batches of an epoch from step `first` on."""


class PairBatches:
    """Batches of a corpus: every picture once an epoch, with one of its captions."""

    def __init__(
        self,
        corpus: Corpus,
        model: Reads,
        recipe: Recipe,
        *,
        threads: int,
        process: tuple[int, int] = (0, 1),
        classes: ClassTeacher | None = None,
    ) -> None:
        """Join a corpus with the model that will read it.

        Args:
            corpus: what to learn from.
            model: prepares pixels and tokens.
            recipe: size of a batch, augmentation, seed.
            threads: how many prepare pictures.
            process: rank and number of processes.
            classes: says what pictures show, also those without captions.

        Raises:
            TrainingError: a batch would have no pair for each of the processes.
        """
        self.corpus = corpus
        self._model = model
        self._recipe = recipe
        self._threads = threads
        self._rank, self._processes = process
        self._teacher = classes
        self._paired = np.array([row for row in range(len(corpus)) if corpus.captions[row]])
        self._others = np.array([row for row in range(len(corpus)) if not corpus.captions[row]])
        self._first = np.cumsum([0, *map(len, corpus.captions)])
        # Smaller than asked for where there are not as many pairs; equal in all processes.
        self._size = min(recipe.batch, len(self._paired)) // self._processes * self._processes
        if not self._size:
            raise TrainingError(
                f"{self._processes} processes cannot share batches of {recipe.batch} from "
                f"{len(self._paired)} pictures with captions: each needs at least one. Use a "
                "larger --batch, or fewer processes."
            )
        texts = [" ".join(text.lower().split()) for each in corpus.captions for text in each]
        numbers: dict[str, int] = {}
        self._same_text = np.array([numbers.setdefault(text, len(numbers)) for text in texts])

    @property
    def steps(self) -> int:
        """Steps in an epoch; pictures that do not fill a batch wait for another epoch's order."""
        return len(self._paired) // self._size

    def epoch(self, number: int, first: int, memory: Memory | None) -> Iterator[Batch]:
        """Yield this process's part of an epoch's batches, from step `first` on."""
        order = generator(self._recipe.seed, number).permutation(self._paired)
        groups = [order[i * self._size : (i + 1) * self._size] for i in range(self.steps)]
        if memory is not None and self._recipe.hard_negatives:
            if first == 0:
                memory.settle()
            groups = with_neighbours(order, self._size, self._recipe.hard_negatives, memory)
        # One thread assembles batches ahead of the training; the others decode pictures for it.
        with ThreadPoolExecutor(self._threads) as pool, ThreadPoolExecutor(1) as assembler:
            ahead: deque[Future[Batch]] = deque()
            try:
                for step in range(first, len(groups)):
                    ahead.append(assembler.submit(self._batch, groups[step], number, step, pool))
                    if len(ahead) > BATCHES_AHEAD:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for waiting in ahead:
                    waiting.cancel()

    def _batch(
        self, group: NDArray[np.int64], epoch: int, step: int, pool: ThreadPoolExecutor
    ) -> Batch:
        part = self._size // self._processes
        rows = group[self._rank * part : (self._rank + 1) * part]
        others = self._without_captions(len(rows), epoch, step)
        recipe, model = self._recipe, self._model

        def prepare(row: int) -> NDArray[np.uint8]:
            random = generator(recipe.seed, epoch, row, 1)
            # Decoded with room for the smallest crop to fill the model's input.
            at_least = round(model.preprocess.decode_size / recipe.crop**0.5)
            image = self.corpus.load(row, at_least=at_least)
            return model.preprocess(augment_picture(image, recipe, random))

        pixels = list(pool.map(prepare, [int(row) for row in (*rows, *others)]))
        numbers, texts = [], []
        for row in rows:
            random = generator(recipe.seed, epoch, int(row), 2)
            chosen = int(random.integers(len(self.corpus.captions[row])))
            numbers.append(int(self._first[row]) + chosen)
            texts.append(augment_caption(self.corpus.captions[row][chosen], recipe.dropout, random))
        classes = None
        if self._teacher is not None:
            names, classes = self._teacher.targets((*rows, *others), CLASSES_AT_ONCE)
            texts += names
        ids, mask = model.tokenize(texts)
        same = self.corpus.contents or range(len(self.corpus))
        return Batch(
            images=torch.from_numpy(np.stack(pixels)),
            ids=ids,
            mask=mask,
            pairs=len(rows),
            pictures=torch.tensor([same[row] for row in rows]),
            texts=torch.from_numpy(self._same_text[numbers]),
            rows=torch.from_numpy(rows.copy()),
            captions=torch.tensor(numbers),
            classes=None if classes is None else torch.from_numpy(classes),
        )

    def _without_captions(self, pairs: int, epoch: int, step: int) -> NDArray[np.int64]:
        if self._teacher is None or len(self._others) == 0:
            return np.empty(0, dtype=np.int64)
        random = generator(self._recipe.seed, epoch, step, self._rank, 3)
        count = min(max(1, pairs // 4), len(self._others))
        chosen: NDArray[np.int64] = random.choice(self._others, count, replace=False)
        return chosen
