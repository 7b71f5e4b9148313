"""How long an encoder takes for one text and for one photo, each alone, after it is warm.

On a machine with more cores than wanted, start it with `taskset`: ONNX Runtime takes as many
threads as there are cores.

usage: python bench_encode.py PHOTOS CAPTIONS.tsv [--model compact] [--runs 100]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from report import write_report

from mmsearch.retrieval.encoders import load_encoder
from mmsearch.retrieval.media import load_rgb
from mmsearch.retrieval.pairs import read_pairs

WARM_UP = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("captions", type=Path)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--runs", type=int, default=100)
    options = parser.parse_args()
    encoder = load_encoder(options.model)
    pairs = read_pairs(options.captions)
    paths = sorted({options.photos / pair.path for pair in pairs})
    texts = [pair.caption for pair in pairs]
    pixels = [encoder.prepare(load_rgb(path, at_least=encoder.decode_size)) for path in paths]
    write_report(
        "encode",
        {
            "model": encoder.spec.label,
            "one_text_ms": _times(lambda i: encoder.encode_texts([texts[i % len(texts)]]), options),
            "one_photo_ms": _times(
                lambda i: encoder.encode_pixels([pixels[i % len(pixels)]]), options
            ),
        },
    )


def _times(run: Callable[[int], Any], options: argparse.Namespace) -> dict[str, float]:
    for i in range(WARM_UP):
        run(i)
    taken = []
    for i in range(options.runs):
        start = time.perf_counter()
        run(i)
        taken.append(1000 * (time.perf_counter() - start))
    return {
        "p50": round(statistics.median(taken), 2),
        "p95": round(statistics.quantiles(taken, n=20)[-1], 2),
    }


if __name__ == "__main__":
    main()
