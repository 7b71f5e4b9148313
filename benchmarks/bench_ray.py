"""One machine, the same pictures: `index --on local` (Ray) beside the plain pipeline.

usage: python bench_ray.py PHOTOS [--n 400] [--rounds 2]
Indexes `n` pictures of PHOTOS anew each time, both ways in turn, and three other ways of giving the
work to Ray. A rate is that of pictures after start-up: of the plain pipeline from the first picture
begun to the last one written, of Ray's worker from its first block's beginning to its last one's
end; both load the model within. In float32, so that no trial of another arithmetic decides.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

os.environ["MMSEARCH_BFLOAT16"] = "0"

from report import write_report

import mmsearch
from mmsearch.retrieval import blocks, distributed
from mmsearch.retrieval.ingest import Progress

Way = Callable[[], AbstractContextManager[object]]


def two_actors() -> AbstractContextManager[object]:
    plain = distributed._Pool.of
    return patch.object(
        distributed._Pool,
        "of",
        lambda cluster, blocks: replace(plain(cluster, blocks), first=2, most=2),
    )


WAYS: dict[str, Way] = {
    "ray": nullcontext,
    "ray, one block at a time": lambda: patch.object(distributed, "CALLS_AT_ONCE", 1),
    "ray, blocks of 16 batches": lambda: patch.object(blocks, "BATCHES_PER_BLOCK", 16),
    "ray, two actors": two_actors,
}


def plain(photos: Path) -> float:
    seen: dict[int, float] = {}

    def follow(progress: Progress) -> None:
        if progress.stage == "pictures":
            seen[progress.done] = time.perf_counter()

    mmsearch.index(photos, progress=follow)
    last = max(seen)
    return last / (seen[last] - seen[0])


def with_ray(photos: Path, way: Way) -> tuple[float, float]:
    """Return pictures a second of the worker, and the seconds of the whole run."""
    started = time.perf_counter()
    with way():
        report = mmsearch.index(photos, on="local")
    return report.nodes[0].images_per_second, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("photos", type=Path)
    parser.add_argument("--n", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    rates: dict[str, list[float]] = {"plain": [], **{name: [] for name in WAYS}}
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        photos.mkdir()
        for file in sorted(options.photos.rglob("*.jpg"))[: options.n]:
            shutil.copyfile(file, photos / file.name)
        for _ in range(options.rounds):
            for name, way in WAYS.items():
                # The plain pipeline beside each: what else runs here changes by the minute.
                shutil.rmtree(photos / ".mmsearch", ignore_errors=True)
                rates["plain"].append(plain(photos))
                shutil.rmtree(photos / ".mmsearch", ignore_errors=True)
                rate, whole = with_ray(photos, way)
                rates[name].append(rate)
                seconds.append(whole - len(list(photos.glob("*.jpg"))) / rate)
                print(name, f"{rate:.1f}/s, beside {rates['plain'][-1]:.1f}/s", flush=True)
    beside = {
        name: [rate / other for rate, other in zip(rates[name], pairs, strict=True)]
        for number, name in enumerate(WAYS)
        for pairs in [rates["plain"][number :: len(WAYS)]]
    }
    write_report(
        "ray",
        {
            "pictures": options.n,
            "images_per_second": {
                name: [round(rate, 1) for rate in found] for name, found in rates.items()
            },
            "ratio_to_plain_beside_it": {
                name: [round(ratio, 2) for ratio in found] for name, found in beside.items()
            },
            "median_ratio": {
                name: round(statistics.median(found), 2) for name, found in beside.items()
            },
            "start_and_end_seconds": round(statistics.median(seconds), 1),
        },
    )


if __name__ == "__main__":
    main()
