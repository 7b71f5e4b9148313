"""What exact ranks in both directions cost: time over bare matrix products, and memory.

usage: python bench_evaluate.py [--images 10000] [--captions 50000] [--dim 256] [--sample N]
Random unit vectors, five captions a picture. The bare product is the same blocks in float32 without
a look at the scores: what cannot be avoided. `--images 100000 --captions 500000` takes a quarter of
an hour on two cores; with `--sample 20480` only so many captions are compared, while all vectors
are in memory, and the time for all of them is told by proportion.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time

import numpy as np
from numpy.typing import NDArray
from report import write_report

from mmsearch.retrieval.bootstrap import resample
from mmsearch.retrieval.ranking import BLOCK, ranks_both_ways

RESAMPLES = 1000


def vectors(n: int, dim: int, seed: int) -> NDArray[np.float16]:
    draw = np.random.default_rng(seed)
    rows = np.empty((n, dim), dtype=np.float16)
    for start in range(0, n, 8192):
        part = draw.standard_normal((min(8192, n - start), dim), dtype=np.float32)
        rows[start : start + 8192] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return rows


def bare_products(texts: NDArray[np.float16], images: NDArray[np.float16]) -> None:
    height, width = BLOCK
    scores = np.empty(BLOCK, dtype=np.float32)
    for top in range(0, len(texts), height):
        block = texts[top : top + height].astype(np.float32)
        for left in range(0, len(images), width):
            other = images[left : left + width].astype(np.float32)
            np.matmul(block, other.T, out=scores[: len(block), : len(other)])


def seconds(run: object, *arguments: object, **options: object) -> float:
    started = time.perf_counter()
    run(*arguments, **options)  # type: ignore[operator]
    return time.perf_counter() - started


def peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--captions", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--sample", type=int, help="how many captions are compared")
    options = parser.parse_args()
    compared = min(options.sample or options.captions, options.captions)
    images = vectors(options.images, options.dim, 0)
    texts = vectors(options.captions, options.dim, 1)
    image_of = np.arange(options.captions) % options.images
    before = peak_bytes()
    ranking = seconds(ranks_both_ways, texts[:compared], images, image_of[:compared])
    beyond = peak_bytes() - before
    bare = seconds(bare_products, texts[:compared], images)
    drawn = np.random.default_rng(2).integers(1, options.images, options.captions)
    bootstrap = seconds(resample, drawn, image_of, resamples=RESAMPLES, seed=0)
    write_report(
        "evaluate",
        {
            "images": options.images,
            "captions": options.captions,
            "dim": options.dim,
            "captions_compared": compared,
            "seconds": round(ranking, 1),
            "seconds_for_all": round(ranking * options.captions / compared, 1),
            "over_bare_float32_products": round(ranking / bare, 2),
            "gflops": round(2e-9 * compared * options.images * options.dim / ranking, 1),
            "vectors_mib": round((images.nbytes + texts.nbytes) / 2**20),
            "peak_mib_beyond_vectors": round(beyond / 2**20),
            "whole_matrix_mib": round(4 * options.images * options.captions / 2**20),
            f"bootstrap_{RESAMPLES}_seconds": round(bootstrap, 2),
        },
        seed=0,
    )


if __name__ == "__main__":
    main()
