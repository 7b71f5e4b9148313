"""What a query costs beside the encoder and the index, in a library of 100,000 pictures.

Files and captions are made up, vectors are those of a few thousand real photos with noise, so that
the catalog, the full-text index and the vectors index are as large as they would be. Each query is
timed whole and its encoder and index by themselves; the rest is the overhead.

usage: python bench_overhead.py DATA [--files 100000] [--queries 200]
DATA holds val.tsv (path, caption) and images/.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from report import write_report

import mmsearch
from mmsearch.indexes import VectorIndex
from mmsearch.retrieval.confidence import CUT
from mmsearch.retrieval.encoders import Encoder
from mmsearch.retrieval.library import Library
from mmsearch.retrieval.schema import Caption, Picture

CAMERAS = ("FUJIFILM X100V", "Canon EOS R6", "Pixel 8", None)


def fill(root: Path, encoder: Encoder, data: Path, files: int) -> list[str]:
    """Make a library; return captions that can be asked."""
    with (data / "val.tsv").open(encoding="utf-8", newline="") as file:
        rows = [*csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    paths = list(dict.fromkeys(row["path"] for row in rows))
    photos = encoder.encode_images([data / "images" / path for path in paths])
    captions = [row["caption"] for row in rows]
    generator = np.random.default_rng(7)
    library = Library.create(root)
    with library.catalog.write() as transaction:
        encoder_id = transaction.encoder_id(encoder.spec, encoder.location)
        transaction.activate(encoder_id)
        for i in range(files):
            vector = photos[i % len(photos)] + 0.02 * generator.standard_normal(
                encoder.dim, dtype=np.float32
            )
            picture = Picture(
                path=f"{2000 + i % 25}/trip {i % 400}/IMG_{i:06}.jpg",
                size=2_000_000 + i,
                mtime_ns=i,
                sha256=hashlib.sha256(str(i).encode()).digest(),
                format="JPEG",
                width=4000 if i % 3 else 3000,
                height=3000 if i % 3 else 4000,
                orientation=1,
                taken_at=datetime(2000, 1, 1) + timedelta(hours=2 * i) if i % 5 else None,
                latitude=None,
                longitude=None,
                camera=CAMERAS[i % 4],
                sidecars="",
            )
            id_ = transaction.put_file(picture, encoder_id, vector / np.linalg.norm(vector))
            if i % 10 == 0:
                text = captions[int(generator.integers(len(captions)))]
                transaction.set_captions(id_, [Caption(text, "sidecar")])
    library.close()
    return captions


def timed(into: list[float], call: Callable[..., Any]) -> Callable[..., Any]:
    """Return what does the same and adds its milliseconds to the last of a list."""

    def measured(*arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return call(*arguments, **named)
        finally:
            into[-1] += 1000 * (time.perf_counter() - started)

    return measured


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=200)
    options = parser.parse_args()
    encoder = mmsearch.load_encoder()
    kinds: dict[str, dict[str, Any]] = {
        "plain, words=False": {"words": False},
        "as the API asks": {},
        "as the command line asks": {"cut": CUT, "group": True},
        "filtered by date": {"where": "taken >= '2015-06'", "words": False},
        "filtered by camera and shape": {
            "where": "camera LIKE '%fuji%' AND width > height",
            "words": False,
        },
        "sorted by date": {"sort": "date", "words": False},
    }
    figures: dict[str, Any] = {"files": options.files, "model": encoder.spec.label}
    with tempfile.TemporaryDirectory() as folder:
        captions = fill(Path(folder), encoder, options.data, options.files)
        chosen = np.random.default_rng(1).choice(len(captions), options.queries, replace=False)
        with mmsearch.open(folder, model=encoder, device="cpu") as engine:
            engine.search("a dog", cut=CUT, group=True)
            beside = [0.0]
            # Only what they take is taken off; nothing else of them changes.
            encoder.encode_texts = timed(beside, encoder.encode_texts)  # type: ignore[method-assign]
            search = VectorIndex.search
            VectorIndex.search = timed(beside, search)  # type: ignore[method-assign]
            for kind, arguments in kinds.items():
                whole, rest = [], []
                for i in chosen:
                    beside.append(0.0)
                    started = time.perf_counter()
                    engine.search(captions[i], **arguments)
                    whole.append(1000 * (time.perf_counter() - started))
                    rest.append(whole[-1] - beside[-1])
                figures[kind] = {
                    "whole_ms": np.percentile(whole, [50, 95]).round(2).tolist(),
                    "overhead_ms": np.percentile(rest, [50, 95]).round(2).tolist(),
                }
                print(kind, figures[kind])
            VectorIndex.search = search  # type: ignore[method-assign]
            asked = [captions[i] for i in chosen]
            started = time.perf_counter()
            engine.search_many(asked)
            figures["search_many_ms_each"] = round(
                1000 * (time.perf_counter() - started) / len(asked), 2
            )
    write_report("overhead", figures, seed=7)


if __name__ == "__main__":
    main()
