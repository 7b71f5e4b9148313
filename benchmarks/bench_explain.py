"""Whether the map of `mmsearch explain` is hottest where what was asked for is, and its cost.

Collages of two by two photos, each squeezed into a square of 224 pixels, are asked with a caption
of one of them: the share whose map has its greatest value in that photo's quarter (chance: 25 %),
with 95 % bootstrap intervals over collages, and the time of a map. `--pairs val.tsv` is for
choosing how maps are made; figures told are of the test set, once. Windows and gradients take
longer, so the first `--fewer` collages are theirs, and on these all ways are compared.

usage: python bench_explain.py DATA [--pairs test.tsv] [--count 500] [--fewer 100]
DATA holds the pairs (path, caption) and images/.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from report import write_report

import mmsearch
from mmsearch.retrieval.bootstrap import draws, percentile_interval
from mmsearch.retrieval.encoders import Encoder
from mmsearch.retrieval.explanation import Method, heat_of
from mmsearch.retrieval.tags import background

SIDE = 224


def collages(data: Path, pairs: str, count: int) -> Iterator[tuple[Image.Image, str, int]]:
    """Yield collage, caption, and the quarter that it is of: by rows, from 0."""
    captions: dict[str, list[str]] = {}
    with (data / pairs).open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            captions.setdefault(row["path"], []).append(row["caption"])
    paths, random = sorted(captions), np.random.default_rng(0)
    for _ in range(count):
        four = [paths[i] for i in random.choice(len(paths), 4, replace=False)]
        right = int(random.integers(4))
        of_it = captions[four[right]]
        caption = of_it[int(random.integers(len(of_it)))]
        collage = Image.new("RGB", (2 * SIDE, 2 * SIDE))
        for quarter, path in enumerate(four):
            with Image.open(data / "images" / path) as photo:
                part = photo.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            collage.paste(part, (quarter % 2 * SIDE, quarter // 2 * SIDE))
        yield collage, caption, right


def hottest(heat: np.ndarray) -> int:
    row, column = np.unravel_index(int(heat.argmax()), heat.shape)
    return int(2 * (row >= heat.shape[0] / 2) + (column >= heat.shape[1] / 2))


def with_gradient(encoder: Encoder) -> Encoder | None:
    """Return the same model in torch, loaded once; None without the extra `models`."""
    try:
        from mmsearch.retrieval.encoders.gradients import model_of
        from mmsearch.retrieval.encoders.torch_encoder import TorchEncoder
    except ImportError:
        return None
    return TorchEncoder(model_of(encoder), location=encoder.location, device="cpu")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--pairs", default="test.tsv")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--fewer", type=int, default=100)
    parser.add_argument("--model", default="compact")
    options = parser.parse_args()
    encoder = mmsearch.load_encoder(options.model)
    names = background(encoder)
    torch_encoder = with_gradient(encoder) if options.fewer else None
    found: dict[Method, list[bool]] = {}
    seconds: dict[Method, list[float]] = {}
    for number, (collage, caption, right) in enumerate(
        collages(options.data, options.pairs, options.count)
    ):
        query = encoder.encode_texts([caption])[0]
        for method in Method:
            asked = torch_encoder if method is Method.GRADIENT else encoder
            if asked is None or (method is not Method.REGIONS and number >= options.fewer):
                continue
            started = time.perf_counter()
            heat, _ = heat_of(asked, collage, query, names, method)
            seconds.setdefault(method, []).append(time.perf_counter() - started)
            found.setdefault(method, []).append(hottest(heat) == right)
    figures = {}
    for method, hits in found.items():
        right_ones = np.array(hits, dtype=np.float64)
        drawn = np.stack([*draws(len(hits), 2_000, seed=1)])
        low, high = percentile_interval((drawn @ right_ones / len(hits))[:, None]).ravel()
        figures[str(method)] = {
            "collages": len(hits),
            "in_the_right_quarter": round(100 * float(right_ones.mean()), 1),
            "interval": [round(100 * float(low), 1), round(100 * float(high), 1)],
            # Over the same collages as all other ways.
            "of_the_first": {
                str(count): round(100 * float(right_ones[:count].mean()), 1)
                for count in {options.fewer} - {0}
            },
            "ms_median": round(1000 * float(np.median(seconds[method])), 1),
            "times_that_of_regions": round(
                float(np.median(seconds[method]) / np.median(seconds[Method.REGIONS])), 1
            ),
        }
    # Choosing leaves no file: it is the test set whose figures are told.
    if options.pairs == "test.tsv":
        write_report("explain", {"model": encoder.spec.label, "chance": 25.0} | figures, seed=0)
    else:
        print(figures)


if __name__ == "__main__":
    main()
