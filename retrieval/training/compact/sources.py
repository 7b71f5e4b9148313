"""The training material of the bundled encoder: one numbering of photos, one of texts."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["WEIGHTS", "Sources", "read_sources"]

WEIGHTS = {"human_caption": 1.0, "human_qa": 0.3, "product_title": 0.3, "label": 0.3}
"""How much a text counts by its sort: only the captions describe the whole photo."""

UNLABELLED = "unlabelled"


@dataclass(frozen=True, slots=True)
class Sources:
    """Photos, texts and what belongs together; everything else refers to rows of these.

    Attributes:
        photos: file names, relative to the folder of photos.
        kinds: of each photo's texts (a key of `WEIGHTS`), or `unlabelled`.
        weights: how much a text of each photo counts.
        texts: every text there is, validation included.
        texts_of: rows of each photo's texts.
        loose_texts: rows of texts without photos.
        names: rows of the texts that name the classifier's classes, then the detector's objects.
        objects: what the detector's objects are called.
        equal: `int64[texts]`, equal numbers are equal texts.
        validation_photos: file names of photos to measure with.
        validation_texts: rows of their captions.
        validation_owners: `int64[validation_texts]`, the photo of each.
    """

    photos: Sequence[str]
    kinds: Sequence[str]
    weights: Sequence[float]
    texts: Sequence[str]
    texts_of: list[list[int]]
    loose_texts: list[int]
    names: list[int]
    objects: Sequence[str]
    equal: NDArray[np.int64]
    validation_photos: Sequence[str]
    validation_texts: list[int]
    validation_owners: NDArray[np.int64]

    def with_validation(self) -> Sources:
        """Return sources that learn from the photos and captions to measure with, too.

        These come last, so that rows of photos and texts stay what they were.
        """
        count = len(self.validation_photos)
        said: list[list[int]] = [[] for _ in range(count)]
        for text, owner in zip(self.validation_texts, self.validation_owners, strict=True):
            said[owner].append(text)
        return replace(
            self,
            photos=[*self.photos, *self.validation_photos],
            kinds=[*self.kinds, *["human_caption"] * count],
            weights=[*self.weights, *[WEIGHTS["human_caption"]] * count],
            texts_of=[*self.texts_of, *said],
        )


def read_sources(data: Path, models: Path) -> Sources:
    """Read `train.tsv`, `val.tsv`, `unlabelled.tsv`, the loose captions and the teachers' names."""
    said: dict[str, list[str]] = {}
    kinds: dict[str, str] = {}
    for row in _rows(data / "train.tsv"):
        if row["kind"] in WEIGHTS:
            said.setdefault(row["path"], []).append(row["caption"])
            kinds[row["path"]] = row["kind"]
    for path, kind in kinds.items():
        if kind == "human_qa":
            # Each answer says a little of the photo; together they are something like a caption.
            said[path] = [" ".join(said[path])]
    for row in _rows(data / "unlabelled.tsv"):
        kinds.setdefault(row["path"], UNLABELLED)
    photos = sorted(kinds)
    texts: list[str] = []

    def number(new: Sequence[str]) -> list[int]:
        texts.extend(new)
        return list(range(len(texts) - len(new), len(texts)))

    texts_of = [number(said.get(photo, [])) for photo in photos]
    classes = [line.split(",")[0] for line in _lines(models / "imagenet_labels_1001.txt")]
    objects = _lines(models / "coco_labels.txt")
    names = number([f"a photo of a {name}" for name in [*classes, *objects]])
    loose = number(list(dict.fromkeys(_lines(data / "text_only_coco_captions.txt"))))
    held_out = list(_rows(data / "val.tsv"))
    shown = sorted({row["path"] for row in held_out})
    place = {path: i for i, path in enumerate(shown)}
    asked = number([row["caption"] for row in held_out])
    numbers: dict[str, int] = {}
    equal = [numbers.setdefault(" ".join(text.lower().split()), len(numbers)) for text in texts]
    return Sources(
        photos=photos,
        kinds=[kinds[photo] for photo in photos],
        weights=[WEIGHTS.get(kinds[photo], 0.0) for photo in photos],
        texts=texts,
        texts_of=texts_of,
        loose_texts=loose,
        names=names,
        objects=objects,
        equal=np.array(equal),
        validation_photos=shown,
        validation_texts=asked,
        validation_owners=np.array([place[row["path"]] for row in held_out]),
    )


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
