"""What asking with several parts gains over each part alone, by each way of fusion.

The gallery is a set of photos with captions that the encoder was not trained on. Each photo is
looked for in two ways: with a caption and a sixteenth cut out of it (`words and a part`), and with
two captions (`two captions`). Recall among the first ten, with 95 % bootstrap intervals over
photos, also of the difference to the better part alone.

usage: python bench_composition.py DATA [--pairs test.tsv] [--model compact]
DATA holds the pairs (path, caption) and images/.
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
from mmsearch import indexes
from mmsearch.retrieval.bootstrap import draws, percentile_interval
from mmsearch.retrieval.media import load_rgb
from mmsearch.retrieval.question import search_composed
from mmsearch.retrieval.schema import Fusion

K = 10
RESAMPLES = 2_000


def part(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Cut a sixteenth of the area out of a picture, somewhere."""
    width, height = image.width // 4, image.height // 4
    left, top = (int(generator.integers(0, 3 * side + 1)) for side in (width, height))
    return image.crop((left, top, left + width, top + height))


def summary(hits: NDArray[np.float64]) -> dict[str, Any]:
    samples = np.array([weight @ hits / len(hits) for weight in draws(len(hits), RESAMPLES, 0)])
    low, high = percentile_interval(100 * samples[:, None])[:, 0]
    return {"mean": round(100 * float(hits.mean()), 1), "95%": [round(low, 1), round(high, 1)]}


def compared(index: indexes.VectorIndex, parts: dict[str, NDArray[np.float32]]) -> dict[str, Any]:
    """Return recall of each part alone and of all fusions; row i of each part looks for id i."""
    right = np.arange(len(index))
    hits = {}
    for name, rows in parts.items():
        hits[name] = (index.search(rows, K).ids == right[:, None]).any(axis=1).astype(float)
    alone = max(hits, key=lambda name: hits[name].mean())
    weights = np.ones(len(parts))
    for fusion in Fusion:
        found = []
        for i, vectors in enumerate(np.stack([*parts.values()], axis=1)):
            ids, _ = search_composed(index, vectors, weights, fusion, K)
            found.append(i in ids)
        hits[f"fusion {fusion.value}"] = np.array(found, dtype=float)
    return {
        name: {"R@10": summary(row)}
        | ({} if name in parts else {f"gain over {alone}": summary(row - hits[alone])})
        for name, row in hits.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--pairs", default="test.tsv")
    parser.add_argument("--model", default="compact")
    options = parser.parse_args()
    captions: dict[str, list[str]] = {}
    with (options.data / options.pairs).open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            captions.setdefault(row["path"], []).append(row["caption"])
    encoder = mmsearch.load_encoder(options.model)
    generator = np.random.default_rng(0)
    paths = [options.data / "images" / path for path in captions]
    pictures = [load_rgb(path) for path in paths]
    vectors = encoder.encode_images(pictures)
    cut = encoder.encode_images([part(picture, generator) for picture in pictures])
    first, second = (
        encoder.encode_texts([texts[number] for texts in captions.values()]) for number in (0, 1)
    )
    index = indexes.build(np.arange(len(vectors)), vectors)
    figures = {
        "photos": len(vectors),
        "model": encoder.spec.label,
        "words and a part": compared(index, {"words": first, "a part": cut}),
        "two captions": compared(index, {"first": first, "second": second}),
    }
    write_report("composition", figures, seed=0)


if __name__ == "__main__":
    main()
