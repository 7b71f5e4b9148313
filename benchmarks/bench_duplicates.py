"""How well near-duplicates are told from other photos, and how long a library takes.

Of real photos, altered copies are made; all the photos themselves are different ones, among them
many of one kind. The agreement of pixels from which on two pictures are one photo is chosen on one
half of the photos (the middle of the widest gap between errors of both kinds) and measured on the
other, with the default threshold; so is what perceptual hashes find with as few false pairs
(imagehash, where it is installed). Photos below 256 pixels lose much more when halved than those of
a camera do, so the larger demonstration photos are measured too.

A pair of different photos that is called one is a false one. All pairs of photos count, also those
whose vectors are far apart; precision is that among the altered copies and all pairs of photos.

usage: python bench_duplicates.py DATA [--model compact] [--photos 400]
DATA holds val.tsv, test.tsv, unlabelled.tsv (path, …), images/ and demo_photos/images/.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from report import write_report

import mmsearch
from mmsearch.retrieval.alignment import agreement, least_agreement, thumbnail
from mmsearch.retrieval.duplicates import (
    Likeness,
    Pairs,
    alike_pairs,
    collapse,
    groups,
    likeness,
    short_of_candidates,
)
from mmsearch.retrieval.encoders import Encoder
from mmsearch.retrieval.media import load_rgb

Alteration = Callable[[Image.Image, np.random.Generator], Image.Image]
NOT_THE_SAME = ("mirrored", "another frame")


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def cut(image: Image.Image, share: float, generator: np.random.Generator) -> Image.Image:
    """Cut a share of width and height off, on whichever sides."""
    width, height = (round(side * (1 - share)) for side in image.size)
    left = int(generator.integers(0, image.width - width + 1))
    top = int(generator.integers(0, image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


def turned(image: Image.Image, degrees: float) -> Image.Image:
    """Turn a picture, and cut its black corners off."""
    margin = math.ceil(max(image.size) * math.sin(math.radians(degrees)) / 1.6)
    whole = image.rotate(degrees, Image.Resampling.BICUBIC)
    return whole.crop((margin, margin, image.width - margin, image.height - margin))


ALTERATIONS: dict[str, Alteration] = {
    "half the size": lambda image, _: image.resize(
        (image.width // 2, image.height // 2), Image.Resampling.LANCZOS
    ),
    "JPEG quality 30": lambda image, _: jpeg(image, 30),
    "5 % cut off": lambda image, generator: cut(image, 0.05, generator),
    "10 % cut off": lambda image, generator: cut(image, 0.10, generator),
    "brighter by 30 %": lambda image, _: ImageEnhance.Brightness(image).enhance(1.3),
    "darker by 30 %": lambda image, _: ImageEnhance.Brightness(image).enhance(0.7),
    "contrast × 1.4": lambda image, _: ImageEnhance.Contrast(image).enhance(1.4),
    "grey": lambda image, _: image.convert("L").convert("RGB"),
    "turned by 2°": lambda image, _: turned(image, 2),
    "white border of 5 %": lambda image, _: ImageOps.expand(
        image, round(0.05 * min(image.size)), "white"
    ),
    "mirrored": lambda image, _: ImageOps.mirror(image),
    "another frame": lambda image, generator: cut(image, 0.25, generator),
}


def paths_of(file: Path) -> list[str]:
    with file.open(encoding="utf-8", newline="") as lines:
        rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        return list(dict.fromkeys(row["path"] for row in rows))


class Half:
    """Different photos, and altered copies of some of them."""

    def __init__(
        self, files: list[Path], altered: int, encoder: Encoder, generator: np.random.Generator
    ) -> None:
        self.images = [load_rgb(file) for file in files]
        self.vectors = encoder.encode_images(self.images)
        self.thumbs = np.stack([thumbnail(image) for image in self.images])
        self.like = likeness(self.vectors)
        self.pairs = alike_pairs(self.vectors, self.like.candidate)
        self.between = between(self.thumbs, self.pairs)
        short = short_of_candidates(self.vectors, self.like)
        self.agreed = least_agreement(between(self.thumbs, short))
        self.chosen = generator.choice(len(files), min(altered, len(files)), replace=False)
        self.copies: dict[str, list[Image.Image]] = {}
        self.cosines: dict[str, NDArray[np.float32]] = {}
        self.agreements: dict[str, NDArray[np.float64]] = {}
        for name, alter in ALTERATIONS.items():
            copies = [alter(self.images[i], generator) for i in self.chosen]
            vectors = encoder.encode_images(copies)
            self.copies[name] = copies
            self.cosines[name] = (self.vectors[self.chosen] * vectors).sum(axis=1)
            self.agreements[name] = np.array(
                [
                    agreement(self.thumbs[i], thumbnail(copy)[None])[0]
                    for i, copy in zip(self.chosen, copies, strict=True)
                ]
            )

    def best_threshold(self) -> float:
        """Return the middle of the widest range that makes the fewest errors."""
        same = np.sort(np.concatenate([self.agreements[name] for name in wanted()]))
        different = np.sort(self.between)
        steps = np.linspace(0.5, 1, 501)
        errors = np.searchsorted(same, steps) + len(different) - np.searchsorted(different, steps)
        least = steps[errors == errors.min()]
        return round(float(least.mean()), 3)

    def measured(self) -> dict[str, Any]:
        """Return recall by alteration, and precision, at the default thresholds."""
        agreed = self.agreed
        false = int((self.between >= agreed).sum())
        alone = int((self.pairs.similarity >= self.like.alone).sum())
        by_kind = {
            name: {
                "candidates": share(self.cosines[name] >= self.like.candidate),
                "pixels agree": share(self.agreements[name] >= agreed),
                "recall": share(
                    (self.cosines[name] >= self.like.candidate) & (self.agreements[name] >= agreed)
                ),
                "recall by vectors alone": share(self.cosines[name] >= self.like.alone),
                "as a burst": share(self.cosines[name] >= self.like.burst),
            }
            for name in ALTERATIONS
        }
        right = sum(by_kind[name]["recall"] * len(self.chosen) for name in wanted()) / 100
        right_alone = (
            sum(by_kind[name]["recall by vectors alone"] for name in wanted())
            * len(self.chosen)
            / 100
        )
        return {
            "photos": len(self.images),
            "altered": len(self.chosen),
            "thresholds": {
                "agreement": round(agreed, 3),
                "cosine of candidates": round(self.like.candidate, 4),
                "cosine alone": round(self.like.alone, 4),
                "cosine of bursts": round(self.like.burst, 4),
            },
            "candidate pairs of different photos": len(self.between),
            "false pairs": false,
            "precision": round(100 * right / max(right + false, 1), 2),
            "recall": round(float(np.mean([by_kind[name]["recall"] for name in wanted()])), 1),
            "false pairs by vectors alone": alone,
            "precision by vectors alone": round(100 * right_alone / max(right_alone + alone, 1), 2),
            "by alteration": by_kind,
        }

    def hashes(self, false: int) -> dict[str, Any]:
        """Return what perceptual hashes find with at most so many false pairs."""
        try:
            import imagehash
        except ImportError:
            return {}
        figures = {}
        for name in ("phash", "dhash"):
            make = getattr(imagehash, name)
            bits = np.stack([make(image).hash.ravel() for image in self.images])
            signs = np.where(bits, 1, -1).astype(np.float32)
            apart = (64 - signs @ signs.T)[np.triu_indices(len(signs), 1)] / 2
            distances = {
                kind: (
                    np.stack([make(copy).hash.ravel() for copy in copies]) != bits[self.chosen]
                ).sum(axis=1)
                for kind, copies in self.copies.items()
            }
            most = next(most for most in range(64, -2, -1) if (apart <= most).sum() <= false)
            figures[name] = {
                "bits that may differ": most,
                "false pairs": int((apart <= most).sum()),
                "recall": round(
                    float(np.mean([share(distances[kind] <= most) for kind in wanted()])), 1
                ),
                "by alteration": {kind: share(apart <= most) for kind, apart in distances.items()},
            }
        return figures


def between(thumbs: NDArray[np.uint8], pairs: Pairs) -> NDArray[np.float64]:
    """Return the agreement of each pair."""
    found = [
        agreement(thumbs[i], thumbs[j][None])[0]
        for i, j in zip(pairs.first, pairs.second, strict=True)
    ]
    return np.array(found)


def wanted() -> list[str]:
    return [name for name in ALTERATIONS if name not in NOT_THE_SAME]


def share(found: NDArray[np.bool_]) -> float:
    return round(100 * float(found.mean()), 1)


def products(data: Path, encoder: Encoder) -> dict[str, Any]:
    """Return how many products of one shape, on white, are called one photo: the hardest case."""
    files = sorted((data / "images" / "fashion_small").rglob("*.jpg"))
    if not files:
        return {}
    images = [load_rgb(file) for file in files]
    vectors = encoder.encode_images(images)
    thumbs = np.stack([thumbnail(image) for image in images])
    like = likeness(vectors)
    pairs = alike_pairs(vectors, like.candidate)
    found = between(thumbs, pairs)
    agreed = least_agreement(between(thumbs, short_of_candidates(vectors, like)))
    return {
        "products": len(files),
        "candidate pairs": len(found),
        "least agreement": round(agreed, 3),
        "called one photo": int((found >= agreed).sum()),
        "called alike by vectors alone": int((pairs.similarity >= like.alone).sum()),
    }


def timed(generator: np.random.Generator) -> dict[str, Any]:
    """Return how long groups of 100,000 vectors take, and one ranking of 200."""
    figures: dict[str, Any] = {}
    for dim in (256, 512):
        centres = generator.standard_normal((2_000, dim), dtype=np.float32)
        rows = centres[generator.integers(0, len(centres), 100_000)]
        rows += 0.7 * generator.standard_normal(rows.shape, dtype=np.float32)
        rows[50_000:51_000] = rows[:1_000] + 0.05 * rows[1_000:2_000]
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        vectors = rows.astype(np.float16)
        started = time.perf_counter()
        like = likeness(vectors)
        found = groups(np.arange(len(vectors)), vectors, least=like.alone)
        figures[f"100,000 × {dim}"] = {
            "seconds": round(time.perf_counter() - started, 1),
            "groups": len(found),
        }
    ranking = rows[:200]
    like = Likeness(0.9, 0.95, 0.8)
    taken = np.arange(200.0) * 5
    times = []
    for _ in range(200):
        started = time.perf_counter()
        collapse(ranking, 20, like, taken=taken)
        times.append(1000 * (time.perf_counter() - started))
    figures["collapse 200 × 512 to 20"] = {"p50 ms": round(float(np.median(times)), 3)}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--photos", type=int, default=300, help="altered in each half")
    options = parser.parse_args()
    data: Path = options.data
    encoder = mmsearch.load_encoder(options.model)
    generator = np.random.default_rng(0)
    coco = paths_of(data / "unlabelled.tsv")[:3_000]
    half = len(coco) // 2
    halves = []
    for name, part in (("val.tsv", coco[:half]), ("test.tsv", coco[half:])):
        files = [data / "images" / path for path in [*paths_of(data / name), *part]]
        halves.append(Half(files, options.photos, encoder, generator))
    chosen = halves[0].best_threshold()
    measured = halves[1].measured()
    demo = sorted((data / "demo_photos" / "images").rglob("*.jpg"))
    figures = {
        "model": encoder.spec.label,
        "chosen on the first half": chosen,
        "second half": measured,
        "second half, hashes with as few false pairs": halves[1].hashes(measured["false pairs"]),
        "larger photos": Half(demo, len(demo), encoder, generator).measured(),
        "fashion products": products(data, encoder),
        "time": timed(generator),
    }
    write_report("duplicates", figures, seed=0)


if __name__ == "__main__":
    main()
