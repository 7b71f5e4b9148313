"""What a query costs beside the encoder and the index, in a library of 100,000 pictures.

Also what it costs in a batch of different questions, as a server asks them (`search_batch`). The
first time, nothing of what an engine keeps is known; each question is a new one.

Files and captions are made up, vectors are those of a few thousand real photos with noise, so that
the catalog, the full-text index and the vectors index are as large as they would be. Each query is
timed whole and its encoder and index by themselves; the rest is the overhead.

usage: python bench_overhead.py DATA [--files 100000] [--queries 200] [--batch 16]
DATA holds val.tsv (path, caption) and images/.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from made_up import picture
from report import write_report

import mmsearch
from mmsearch.indexes import VectorIndex
from mmsearch.retrieval.confidence import CUT
from mmsearch.retrieval.encoders import Encoder
from mmsearch.retrieval.library import Library
from mmsearch.retrieval.schema import Caption

CAMERAS = ("FUJIFILM X100V", "Canon EOS R6", "Pixel 8", None)


def rows_of(data: Path) -> list[dict[str, str]]:
    with (data / "val.tsv").open(encoding="utf-8", newline="") as file:
        return [*csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]


def captions_of(data: Path) -> list[str]:
    return [row["caption"] for row in rows_of(data)]


def fill(root: Path, encoder: Encoder, data: Path, files: int) -> list[str]:
    """Make a library; return captions that can be asked."""
    paths = list(dict.fromkeys(row["path"] for row in rows_of(data)))
    photos = encoder.encode_images([data / "images" / path for path in paths])
    captions = captions_of(data)
    generator = np.random.default_rng(7)
    library = Library.create(root)
    with library.catalog.write() as transaction:
        encoder_id = transaction.encoder_id(encoder.spec, encoder.location)
        transaction.activate(encoder_id)
        for i in range(files):
            vector = photos[i % len(photos)] + 0.02 * generator.standard_normal(
                encoder.dim, dtype=np.float32
            )
            id_ = transaction.put_file(
                picture(i, CAMERAS[i % 4]), encoder_id, vector / np.linalg.norm(vector)
            )
            if i % 10 == 0:
                text = captions[int(generator.integers(len(captions)))]
                transaction.set_captions(id_, [Caption(text, "sidecar")])
    library.close()
    return captions


def timed(
    into: list[float], call: Callable[..., Any], clock: Callable[[], float] = time.perf_counter
) -> Callable[..., Any]:
    """Return what does the same and adds its milliseconds to the last of a list."""

    def measured(*arguments: Any, **named: Any) -> Any:
        started = clock()
        try:
            return call(*arguments, **named)
        finally:
            into[-1] += 1000 * (clock() - started)

    return measured


def batched(
    root: Path, encoder: Encoder, texts: list[str], arguments: dict[str, Any], size: int
) -> dict[str, list[float]]:
    """Return what a question costs beside encoder and index, in milliseconds of the processor.

    Of all threads, so that waiting for others on the machine is not counted. Batches of one and of
    `size`, in an engine that was just opened, and once more.
    """
    vectors = dict(zip(texts, encoder.encode_texts(texts), strict=True))
    encode, search, clock = encoder.encode_texts, VectorIndex.search, time.process_time
    encoder.encode_texts = lambda some, **_: np.stack([vectors[text] for text in some])  # type: ignore[method-assign]
    beside = [0.0]
    VectorIndex.search = timed(beside, search, clock)  # type: ignore[method-assign]
    requests = [mmsearch.SearchRequest(text=text, **arguments) for text in texts]
    costs: dict[str, list[float]] = {}
    for together in (1, size):
        with mmsearch.open(root, model=encoder, device="cpu") as engine:
            # What an engine loads once is no part of a question.
            engine.search(where="width > 0", k=1)
            vectors["a dog"] = vectors[texts[0]]
            engine.search("a dog", k=1, words=False)
            for time_ in ("first", "again"):
                beside[:] = [0.0]
                started = clock()
                for start in range(0, len(requests), together):
                    engine.search_batch(requests[start : start + together])
                spent = 1000 * (clock() - started) - beside[0]
                costs.setdefault(time_, []).append(round(spent / len(requests), 2))
    encoder.encode_texts, VectorIndex.search = encode, search  # type: ignore[method-assign]
    return costs


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--library", type=Path, help="keep the made-up library here, or use it")
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
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.library or Path(temporary)
        if (folder / ".mmsearch").is_dir():
            captions = captions_of(options.data)
        else:
            captions = fill(folder, encoder, options.data, options.files)
        chosen = np.random.default_rng(1).choice(len(captions), options.queries, replace=False)
        with mmsearch.open(folder, model=encoder, device="cpu") as engine:
            engine.search("a dog", cut=CUT, group=True)
            beside, plain = [0.0], encoder.encode_texts
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
        encoder.encode_texts = plain  # type: ignore[method-assign]
        figures["batch"] = options.batch
        for kind in ("plain, words=False", "as the API asks", "as the command line asks"):
            costs = batched(folder, encoder, asked, kinds[kind], options.batch)
            figures[f"{kind}: processor_ms each"] = {
                f"{time_}, {name}": cost
                for time_, each in costs.items()
                for name, cost in zip(("one by one", "batch"), each, strict=True)
            }
            print(kind, figures[f"{kind}: processor_ms each"])
    write_report("overhead", figures, seed=7)


if __name__ == "__main__":
    main()
