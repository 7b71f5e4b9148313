"""What gradient caching saves and costs: memory and steps per second of one contrastive batch.

python benchmarks/bench_train.py [--batch 256] [--chunks 0 64 16] [--from compact] [--steps 3]

Each setting trains in a process of its own on the same drawn pictures; settings take turns.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from report import write_report

SEED = 0


def draw(folder: Path, count: int) -> None:
    random = np.random.default_rng(SEED)
    rows = ["path\tcaption"]
    words = [
        "red",
        "green",
        "blue",
        "large",
        "small",
        "round",
        "square",
        "old",
        "new",
        "bright",
        "dark",
        "quiet",
    ]
    for i in range(count):
        pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((256, 256)).save(folder / f"{i}.jpg")
        rows.append(f"{i}.jpg\ta {' '.join(random.choice(words, 8))} thing number {i}")
    (folder / "pairs.tsv").write_text("\n".join(rows) + "\n")


def one(options: argparse.Namespace) -> None:
    """Train a few steps and print what they took; the first step warms up."""
    import torch

    from mmsearch.retrieval.training.recipe import Recipe
    from mmsearch.retrieval.training.session import Pairs, Run, train

    folder = Path(options.one)
    recipe = Recipe(epochs=options.steps + 1, batch=options.batch, chunk=options.chunks[0])
    with tempfile.TemporaryDirectory() as output:
        report = train(
            Pairs(folder / "pairs.tsv", folder, held_out=0.0),
            Path(output) / "model",
            source=options.source,
            recipe=recipe,
            run=Run(checkpoint_every=0, device=options.device),
        )
    rows = report.outcome.history[1:]
    print(
        json.dumps(
            {
                "seconds_per_step": statistics.median(row["seconds"] for row in rows),
                "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "peak_gpu_bytes": report.record["peak_gpu_bytes"],
                "last_loss": rows[-1]["loss"],
                "torch": torch.__version__,
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--chunks", type=int, nargs="+", default=[0, 64, 16])
    parser.add_argument("--from", dest="source", default="compact")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options)
        return
    found: dict[int, list[dict[str, float]]] = {chunk: [] for chunk in options.chunks}
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), options.batch)
        for _ in range(options.rounds):
            for chunk in options.chunks:
                command = [sys.executable, __file__, "--one", folder, "--chunks", str(chunk)]
                command += ["--batch", str(options.batch), "--steps", str(options.steps)]
                command += ["--from", options.source]
                command += ["--device", options.device] if options.device else []
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found[chunk].append(json.loads(done.stdout.splitlines()[-1]))
    whole = found[options.chunks[0]]
    figures = {
        f"chunk {chunk or 'all'}": {
            "seconds_per_step": statistics.median(run["seconds_per_step"] for run in runs),
            "steps_per_second": 1 / statistics.median(run["seconds_per_step"] for run in runs),
            "time_ratio": statistics.median(
                run["seconds_per_step"] / first["seconds_per_step"]
                for run, first in zip(runs, whole, strict=True)
            ),
            "peak_rss_mib": max(run["peak_rss_bytes"] for run in runs) / 2**20,
            "peak_gpu_bytes": runs[0]["peak_gpu_bytes"],
            "last_loss": runs[0]["last_loss"],
        }
        for chunk, runs in found.items()
    }
    settings = {"from": options.source, "batch": options.batch, "torch": whole[0]["torch"]}
    write_report("train", settings | figures, seed=SEED)


if __name__ == "__main__":
    main()
