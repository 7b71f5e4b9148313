"""The parts of the bundled encoder that learn, stage by stage, from what the frozen parts said.

1. *Heads*: both projections, on pooled features and sentence embeddings.
2. *Image*: the upper half of the image tower and the heads, on the lower half's cells.
3. *Text*: the upper layers of the text tower too, on tokens.
4. *Hard*: the same, with batches of photos that are easily confused.
5. *Final*: the same again, with the validation's photos and captions as well.

Each is a model for `TrainingLoop`; they share their modules, so a stage goes on where the one
before it ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from mmsearch.retrieval.training.augment import generator
from mmsearch.retrieval.training.batches import Batch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.encoders.dual_encoder import DualEncoder
    from mmsearch.retrieval.encoders.edge_tower import EdgeTower
    from mmsearch.retrieval.training.compact.frozen import Seen
    from mmsearch.retrieval.training.compact.pseudo_captions import PseudoCaptions
    from mmsearch.retrieval.training.hard_negatives import Memory

__all__ = ["CELLS", "Mixture", "Photos", "Stage", "StageBatches", "alike", "words"]

CELLS = (96, 14, 14)
BELOW = 384
"""Features that the lower half gives."""

FLIPPED, CROPPED = 0.3, 0.3
"""Shares of the photos whose cells are mirrored and cropped: cheap stand-ins for more views."""

SMALLEST_CROP = 0.6
"""Of a side."""

AT_ONCE = 96

NAMES_AT_ONCE = 256
"""Names of classes in a batch: those that its photos most probably show."""

DETECTOR = 1 / 3
"""How much of what the teachers say is the detector's, where it sees anything."""


class Stage(nn.Module):
    """The trained part of a model; what it reads depends on which towers learn."""

    def __init__(
        self, model: DualEncoder, sentences: torch.Tensor, *, image: bool, text: bool
    ) -> None:
        """Share a model's modules.

        Args:
            model: whose towers and heads learn.
            sentences: float32[texts, width] of the frozen text tower.
            image: whether the image tower's upper half learns; else pixels are pooled features.
            text: whether the text tower learns; else ids are rows of `sentences`.
        """
        super().__init__()
        self.image_tower: EdgeTower = model.image_tower  # type: ignore[assignment]
        self.image_head, self.text_head = model.image_head, model.text_head
        self.text_tower = model.text_tower
        self.log_scale = model.log_scale
        self.log_bias = None
        self._sentences = sentences
        self._image, self._text = image, text

    def encode_images(self, seen: torch.Tensor) -> torch.Tensor:
        """Return unit rows for float16[n, 2432] features, or [n, 18816 + 384] cells and means."""
        # Few at a time stay in the processor's cache on their way through the layers.
        parts = seen.split(AT_ONCE) if self._image else [seen]
        features = torch.cat([self._upper(part) if self._image else part for part in parts])
        embedding = self.image_head(features.float())
        return functional.normalize(embedding, dim=-1)

    def encode_texts(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return unit rows for int64[n, 1] rows of sentences, or int64[n, t] token ids."""
        states = self.text_tower(ids, mask) if self._text else self._sentences[ids[:, 0]]
        embedding = self.text_head(states.float())
        return functional.normalize(embedding, dim=-1)

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """Yield what learns at the full rate."""
        for part in (self.image_head, self.text_head, self.log_scale):
            yield from part.parameters()

    def _upper(self, seen: torch.Tensor) -> torch.Tensor:
        cells = seen[:, :-BELOW].reshape(len(seen), *CELLS).float()
        if self.training:
            cells = _varied(cells)
        cells = cells.contiguous(memory_format=torch.channels_last)
        return self.image_tower.upper(cells, seen[:, -BELOW:].float())


@dataclass(frozen=True, slots=True)
class Photos:
    """The photos of a training set, in one order.

    Attributes:
        views: what the frozen tower says of the photos as they are, and of other views of some;
            the first one that has a photo shows it as it is.
        rows: for each view, the row of each photo in it, -1 where it has none; `int64[photos]`.
        texts: for each photo, rows of its texts.
        weight: how much a text of the photo counts; `float32[photos]`.
        detections: `float32[photos, objects]`, rows sum to one, or to zero where nothing was found.
        names: rows of the texts that name the classifier's classes and the detector's objects.
    """

    views: list[Seen]
    rows: list[NDArray[np.int64]]
    texts: list[list[int]]
    weight: torch.Tensor
    detections: torch.Tensor
    names: torch.Tensor


@dataclass(frozen=True, slots=True)
class Mixture:
    """What a batch is made of.

    Attributes:
        main: rows of photos that an epoch shows once each.
        main_size: how many of them are in a batch.
        others: (rows, how many in a batch), drawn at random.
        captions: texts of a main photo in a batch, at most.
        plain: how often a photo is seen as it is, where there are other views of it.
        pseudo: texts for photos without captions of people's own; None leaves them out.
        pseudo_captions: how many of these a photo gets.
        pseudo_weight: how much they count.
        neighbours: `int64[photos, k]`, for each photo of `main` those of `main` most like it; they
            come into its batch. None mixes by chance alone.
        together: how many photos that are alike come together.
    """

    main: NDArray[np.int64]
    main_size: int
    others: list[tuple[NDArray[np.int64], int]]
    captions: int = 5
    plain: float = 0.5
    pseudo: PseudoCaptions | None = None
    pseudo_captions: int = 3
    pseudo_weight: float = 0.4
    neighbours: NDArray[np.int64] | None = None
    together: int = 4


class StageBatches:
    """Batches of a stage; see `batches.BatchSource`."""

    def __init__(
        self,
        photos: Photos,
        mixture: Mixture,
        *,
        cells: bool,
        tokens: list[list[int]] | None,
        equal: NDArray[np.int64],
        seed: int,
    ) -> None:
        """Take what batches are made of.

        Args:
            photos: the training set.
            mixture: shares of its parts.
            cells: whether images are cells or pooled features.
            tokens: token ids of every text; None gives rows of sentences instead.
            equal: `int64[texts]`, equal numbers are equal texts.
            seed: of order and choice.
        """
        self._photos, self._mixture = photos, mixture
        self._cells, self._tokens, self._equal, self._seed = cells, tokens, equal, seed

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return len(self._mixture.main) // self._mixture.main_size

    def epoch(self, number: int, first: int, memory: Memory | None) -> Iterator[Batch]:
        """Yield an epoch's batches from step `first` on; `memory` is not used."""
        del memory
        order = self._order(generator(self._seed, number))
        size = self._mixture.main_size
        for step in range(first, self.steps):
            random = generator(self._seed, number, step)
            parts = [order[step * size : (step + 1) * size]]
            parts += [random.choice(rows, count, False) for rows, count in self._mixture.others]
            yield self._batch(np.concatenate(parts), random)

    def _order(self, random: np.random.Generator) -> NDArray[np.int64]:
        mixture = self._mixture
        order: NDArray[np.int64] = random.permutation(mixture.main)
        if mixture.neighbours is None:
            return order
        grouped: dict[int, None] = {}
        for row in order.tolist():
            if row not in grouped:
                alike = (int(near) for near in mixture.neighbours[row] if near not in grouped)
                grouped |= dict.fromkeys([row, *islice(alike, mixture.together - 1)])
        return np.fromiter(grouped, dtype=np.int64)

    def _batch(self, rows: NDArray[np.int64], random: np.random.Generator) -> Batch:
        photos = self._photos
        texts, owners, weights = [], [], []
        for row in rows:
            said, weight = self._texts(int(row), random)
            texts += said
            owners += [int(row)] * len(said)
            weights += [weight] * len(said)
        places = torch.from_numpy(rows)
        images, logits = self._images(rows, random)
        classes = _both_teachers(torch.from_numpy(logits), photos.detections[places])
        shown = classes.sum(dim=0).topk(min(NAMES_AT_ONCE, classes.shape[1])).indices.sort().values
        classes = classes[:, shown] / classes[:, shown].sum(dim=1, keepdim=True).clamp(min=1e-6)
        ids, mask = words([*texts, *photos.names[shown].tolist()], self._tokens)
        return Batch(
            images=torch.from_numpy(images),
            ids=ids,
            mask=mask,
            pairs=len(rows),
            pictures=places,
            texts=torch.from_numpy(self._equal[texts]),
            rows=places,
            captions=torch.tensor(texts),
            classes=classes,
            weights=torch.tensor(weights),
            owners=torch.tensor(owners),
        )

    def _texts(self, row: int, random: np.random.Generator) -> tuple[list[int], float]:
        mixture, own = self._mixture, self._photos.texts[row]
        weight = float(self._photos.weight[row])
        # Weak texts of a photo take turns with captions that were chosen for it.
        chosen_for = mixture.pseudo if weight < 1 else None
        if own and (chosen_for is None or random.random() < 0.5):
            count = min(mixture.captions, len(own))
            return [int(text) for text in random.choice(own, count, False)], weight
        if chosen_for is None:
            return [], weight
        share = chosen_for.probabilities[row].double().numpy()
        found = random.choice(
            chosen_for.captions[row].numpy(), mixture.pseudo_captions, False, share / share.sum()
        )
        return [int(text) for text in found], mixture.pseudo_weight

    def _images(
        self, rows: NDArray[np.int64], random: np.random.Generator
    ) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
        """Return what the frozen tower said of a random view of each photo, and the classifier."""
        views = self._photos.views
        width = int(np.prod(CELLS)) + BELOW if self._cells else views[0].features.shape[1]
        images = np.empty((len(rows), width), dtype=np.float16)
        logits = np.empty((len(rows), views[0].logits.shape[1]), dtype=np.float16)
        for place, row in enumerate(rows):
            having = [view for view in range(len(views)) if self._photos.rows[view][row] >= 0]
            # What a caption mentions may lie outside of a crop.
            plain = random.random() < self._mixture.plain
            view = having[0] if plain else int(random.choice(having))
            at = self._photos.rows[view][row]
            features, logits[place] = views[view].features[at], views[view].logits[at]
            if self._cells:
                images[place, :-BELOW] = views[view].cells[at].reshape(-1)
                images[place, -BELOW:] = features[-BELOW:]
            else:
                images[place] = features
        return images, logits


def alike(images: torch.Tensor, main: NDArray[np.int64], k: int = 12) -> NDArray[np.int64]:
    """Return `int64[photos, k]`: for the rows `main`, the others of `main` that are most like them.

    Args:
        images: float32[photos, dim], unit rows.
        main: rows of photos, more than `k`; the other rows of the answer are -1.
        k: how many.
    """
    near = np.full((len(images), k), -1)
    shown = images[torch.from_numpy(main)]
    for start in range(0, len(main), 1024):
        some = slice(start, start + 1024)
        similar = shown[some] @ shown.T
        similar[torch.arange(len(similar)), torch.arange(start, start + len(similar))] = -2.0
        near[main[some]] = main[similar.topk(k, dim=1).indices.numpy()]
    return near


def words(texts: list[int], tokens: list[list[int]] | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask, int64[n, t]: of tokens, or, without them, the texts' own numbers."""
    if tokens is None:
        rows = torch.tensor(texts).unsqueeze(1)
        return rows, torch.ones_like(rows)
    said = [tokens[text] for text in texts]
    ids = torch.zeros(len(said), max(map(len, said)), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for place, found in enumerate(said):
        ids[place, : len(found)] = torch.tensor(found)
        mask[place, : len(found)] = 1
    return ids, mask


def _both_teachers(logits: torch.Tensor, detections: torch.Tensor) -> torch.Tensor:
    """Return float32[n, classes + objects]: what both teachers say, rows sum to one."""
    heard = DETECTOR * (detections.sum(dim=1, keepdim=True) > 0)
    return torch.cat([(1 - heard) * logits.float().softmax(dim=1), heard * detections], dim=1)


def _varied(cells: torch.Tensor) -> torch.Tensor:
    """Return cells of which some are mirrored and some cropped and stretched again."""
    count = len(cells)
    flipped = torch.rand(count) < FLIPPED
    side = torch.where(
        torch.rand(count) < CROPPED, torch.empty(count).uniform_(SMALLEST_CROP, 1), torch.ones(())
    )
    shift = (2 * torch.rand(2, count) - 1) * (1 - side)
    change = torch.zeros(count, 2, 3)
    change[:, 0, 0] = torch.where(flipped, -side, side)
    change[:, 1, 1] = side
    change[:, :, 2] = shift.T
    grid = functional.affine_grid(change, [count, *CELLS], align_corners=False)
    return functional.grid_sample(cells, grid, padding_mode="border", align_corners=False)
