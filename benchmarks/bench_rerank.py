"""What reranking gains, and what it costs.

Quality: `evaluate --rerank` on photos with captions that neither the encoder nor the reranker was
trained on, both directions, and on a folder of photos unlike them. Cost: a library of these photos
is indexed with and without regions being kept, in turns, and asked with and without reranking:
milliseconds from question to answer, everything included, also where no regions are kept yet.

usage: python bench_rerank.py DATA UNLIKE [--pairs test.tsv] [--rerank fast] [--questions 200]
       [--cost-only]
DATA holds the pairs (path, caption) and images/; UNLIKE holds captions.tsv and its photos.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from report import write_report

import mmsearch
from mmsearch.retrieval import ingest
from mmsearch.retrieval.evaluation import Evaluation, evaluate
from mmsearch.retrieval.pairs import read_pairs

DEPTH = 50
ROUNDS = 3


def quality(found: Evaluation) -> dict[str, Any]:
    fields = found.to_json()
    return {
        "images": found.images,
        "captions": found.captions,
        **{way: {"before": fields[way], "after": fields["reranked"][way]} for way in WAYS},
        "reranked": {name: value for name, value in fields["reranked"].items() if name not in WAYS},
    }


WAYS = ("text_to_image", "image_to_text")


def indexing(photos: list[Path], folder: Path) -> dict[str, Any]:
    """Return seconds to index photos with and without regions, in turns, and what they take."""
    seconds: dict[str, list[float]] = {"with regions": [], "without": []}
    for number in range(ROUNDS):
        for name, each in seconds.items():
            target = folder / f"{name} {number}"
            target.mkdir()
            for path in photos:
                shutil.copy(path, target)
            with patch.object(
                ingest,
                "region_reader",
                ingest.region_reader if "regions" in name else lambda _: None,
            ):
                started = time.perf_counter()
                ingest.index(target)
                each.append(time.perf_counter() - started)
    kept = folder / "with regions 0" / ".mmsearch" / "regions.sqlite"
    with_regions, without = (statistics.median(each) for each in seconds.values())
    return {
        "photos": len(photos),
        "seconds": {name: [round(one, 2) for one in each] for name, each in seconds.items()},
        "ratio": round(with_regions / without, 3),
        "bytes a photo": round(kept.stat().st_size / len(photos)),
    }


def latency(folder: Path, questions: list[str], rerank: str) -> dict[str, Any]:
    """Return milliseconds of questions to a library, both ways in turns."""
    engine = mmsearch.open(folder)
    took: dict[str, list[float]] = {"without": [], "reranked": [], "no regions yet": []}
    ways = {"without": None, "reranked": rerank}
    for name in ways:
        engine.search(questions[-1], k=10, rerank=ways[name], rerank_depth=DEPTH)
    shares = []
    for question in questions:
        for name, reranker in ways.items():
            started = time.perf_counter()
            found = engine.search(question, k=10, rerank=reranker, rerank_depth=DEPTH)
            took[name].append((time.perf_counter() - started) * 1000)
            if found.rerank is not None:
                assert found.rerank.reranked == DEPTH
                shares.append(found.rerank.took_ms)
    for question in questions[:5]:
        engine.library.regions.close()
        for path in (folder / ".mmsearch").glob("regions.sqlite*"):
            path.unlink()
        started = time.perf_counter()
        engine.search(question, k=10, rerank=rerank, rerank_depth=DEPTH)
        took["no regions yet"].append((time.perf_counter() - started) * 1000)
    return {
        "candidates": DEPTH,
        "questions": len(questions),
        "milliseconds": {
            name: {
                "p50": round(statistics.median(each), 1),
                "p95": round(sorted(each)[int(0.95 * (len(each) - 1))], 1),
            }
            for name, each in took.items()
        },
        "of which the second stage, p50": round(statistics.median(shares), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("unlike", type=Path)
    parser.add_argument("--pairs", default="test.tsv")
    parser.add_argument("--rerank", default="fast")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--cost-only", action="store_true")
    options = parser.parse_args()
    pairs = read_pairs(options.data / options.pairs)
    photos = [options.data / "images" / path for path in dict.fromkeys(row.path for row in pairs)]
    figures: dict[str, Any] = {"reranker": options.rerank}
    if not options.cost_only:
        figures[options.pairs] = quality(
            evaluate(
                options.data / options.pairs, images=options.data / "images", rerank=options.rerank
            )
        )
        figures["unlike photos"] = quality(
            evaluate(
                options.unlike / "captions.tsv",
                images=options.unlike,
                gallery=True,
                rerank=options.rerank,
            )
        )
    with tempfile.TemporaryDirectory() as scratch:
        figures["indexing"] = indexing(photos[:400], Path(scratch))
        questions = [row.caption for row in pairs[:: len(pairs) // options.questions]]
        figures["asking"] = latency(
            Path(scratch) / "with regions 0", questions[: options.questions], options.rerank
        )
    write_report("rerank", figures, seed=0)


if __name__ == "__main__":
    main()
