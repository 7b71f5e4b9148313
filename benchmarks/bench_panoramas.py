"""Whether a question about a part of a panorama finds it, by the way the panorama becomes vectors.

Photos are put side by side (or one above the other), and each is asked for with its captions. Ways:
the middle cut out, as CLIP's transform does; the whole squeezed into the square, as `compact` does;
the whole on grey; the mean of the vectors of overlapping squares, as `tiles:` before a model's name
does; the best of these vectors, which takes several vectors a picture. Recall among the panoramas
alone, and with ordinary photos beside them; what the ways do to those who ask for the ordinary
photos. 95 % bootstrap intervals over photos, of the difference to squeezing, and to the middle.

usage: python bench_panoramas.py DATA [--model compact]
DATA holds val.tsv (path, caption), images/ and demo_photos/ with captions.tsv (image, caption).
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from report import write_report

import mmsearch
from mmsearch.retrieval.bootstrap import draws, percentile_interval
from mmsearch.retrieval.media import load_rgb

SHORT = 400
ORDINARY = 500
RESAMPLES = 1_000
SHAPES = ((2, False), (3, False), (4, False), (6, False), (3, True))

Vectors = NDArray[np.float32]


def captions_of(path: Path, column: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            found.setdefault(row[column], []).append(row["caption"])
    return found


def joined(photos: list[Image.Image], *, tall: bool) -> Image.Image:
    turned = [photo.transpose(Image.Transpose.TRANSPOSE) if tall else photo for photo in photos]
    scaled = [each.resize((round(SHORT * each.width / each.height), SHORT)) for each in turned]
    whole = Image.new("RGB", (sum(each.width for each in scaled), SHORT))
    at = 0
    for each in scaled:
        whole.paste(each, (at, 0))
        at += each.width
    return whole.transpose(Image.Transpose.TRANSPOSE) if tall else whole


def middle(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def on_grey(image: Image.Image) -> Image.Image:
    side = max(image.size)
    ground = Image.new("RGB", (side, side), (128, 128, 128))
    ground.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return ground


def squares(image: Image.Image) -> list[Image.Image]:
    """Squares of the shorter side along the longer one, each half over the one before."""
    long, side = max(image.size), min(image.size)
    count = 1 + max(1, -(-2 * (long - side) // side))
    starts = (round((long - side) * i / (count - 1)) for i in range(count))
    if image.width > image.height:
        return [image.crop((at, 0, at + side, side)) for at in starts]
    return [image.crop((0, at, side, at + side)) for at in starts]


def scores(texts: Vectors, pictures: list[Vectors]) -> Vectors:
    """Of every text with every picture: the best of its vectors."""
    return np.stack([(texts @ each.T).max(axis=1) for each in pictures], axis=1)


def recall(ranks: NDArray[np.int64], k: int) -> float:
    return round(100 * float((ranks <= k).mean()), 1)


def gain(
    ranks: NDArray[np.int64], base: NDArray[np.int64], photo: NDArray[np.int64], k: int
) -> list[float]:
    """Difference of recall at k in points, and its interval."""
    difference = (ranks <= k).astype(float) - (base <= k)
    count = int(photo.max()) + 1
    sums, sizes = (np.bincount(photo, weight, count) for weight in (difference, None))
    drawn = [
        100 * (times @ sums) / max(1, times @ sizes) for times in draws(count, RESAMPLES, seed=0)
    ]
    low, high = percentile_interval(np.array(drawn)[:, None]).ravel()
    return [round(float(value), 1) for value in (100 * difference.mean(), low, high)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="compact")
    options = parser.parse_args()
    data, encoder = options.data, mmsearch.load_encoder(options.model)
    whole = mmsearch.load_encoder(f"tiles:{options.model}")

    captions = captions_of(data / "demo_photos" / "captions.tsv", "image")
    photos = {name: load_rgb(data / "demo_photos" / name) for name in sorted(captions)}
    others = dict(list(captions_of(data / "val.tsv", "path").items())[:ORDINARY])
    ordinary = encoder.encode_images([data / "images" / name for name in others])
    asked_others = encoder.encode_texts([texts[0] for texts in others.values()])
    beside = asked_others @ ordinary.T
    own_beside = np.diag(beside)[:, None]

    generator = np.random.default_rng(0)
    figures: dict[str, Any] = {"ordinary photos": len(others)}
    for count, tall in SHAPES:
        order = list(generator.permutation(sorted(photos)))
        groups = [order[at : at + count] for at in range(0, len(order) - count + 1, count)]
        panoramas = [joined([photos[name] for name in group], tall=tall) for group in groups]
        tiled = [encoder.encode_images(squares(panorama)) for panorama in panoramas]
        ways: dict[str, list[Vectors]] = {
            "squeezed": list(encoder.encode_images(panoramas)[:, None]),
            "middle": list(encoder.encode_images([middle(each) for each in panoramas])[:, None]),
            "on grey": list(encoder.encode_images([on_grey(each) for each in panoramas])[:, None]),
            "mean of squares": list(whole.encode_images(panoramas)[:, None]),
            "best of squares": tiled,
        }
        questions = [
            (place, text)
            for place, group in enumerate(groups)
            for name in group
            for text in captions[name]
        ]
        texts = encoder.encode_texts([text for _, text in questions])
        target = np.array([place for place, _ in questions])
        photo = np.repeat(
            np.arange(len(groups) * count), [len(captions[name]) for g in groups for name in g]
        )
        far = texts @ ordinary.T
        told: dict[str, Any] = {
            "panoramas": len(panoramas),
            "questions": len(questions),
            "mean aspect": round(float(np.mean([max(p.size) / min(p.size) for p in panoramas])), 1),
        }
        ranks: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        for way, vectors in ways.items():
            among = scores(texts, vectors)
            own = among[np.arange(len(texts)), target][:, None]
            alone = 1 + (among > own).sum(axis=1)
            ranks[way] = alone, alone + (far > own).sum(axis=1)
        for way, vectors in ways.items():
            alone, mixed = ranks[way]
            # Those who ask for an ordinary photo: how often panoramas come before it.
            theirs = 1 + (beside > own_beside).sum(axis=1)
            theirs += (scores(asked_others, vectors) > own_beside).sum(axis=1)
            told[way] = {
                "vectors a panorama": round(float(np.mean([len(each) for each in vectors])), 1),
                "alone R@1": recall(alone, 1),
                "alone R@10": recall(alone, 10),
                "alone R@10, gain": gain(alone, ranks["squeezed"][0], photo, 10),
                "alone R@10, gain over the middle": gain(alone, ranks["middle"][0], photo, 10),
                "among ordinary R@1": recall(mixed, 1),
                "among ordinary R@10": recall(mixed, 10),
                "among ordinary R@10, gain": gain(mixed, ranks["squeezed"][1], photo, 10),
                "among ordinary R@10, gain over the middle": gain(
                    mixed, ranks["middle"][1], photo, 10
                ),
                "ordinary photos R@10": recall(theirs, 10),
            }
        figures[f"{count} photos {'above each other' if tall else 'side by side'}"] = told
    write_report("panoramas", figures, seed=0)


if __name__ == "__main__":
    main()
