"""How long the first answer takes in a new process, against what cannot be avoided.

Side by side, in turn: `mmsearch query` over 10,000 pictures, and a bare script that imports the
same libraries, loads the text tower and the tokenizer and runs them once. Both are whole processes.

usage: python bench_cold_query.py [--runs 15] [--vectors 10000]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import numpy as np
from report import write_report

from mmsearch.retrieval.encoders import load_encoder
from mmsearch.retrieval.library import Library
from mmsearch.retrieval.schema import Picture, Target

IMPORTS = "import onnxruntime, faiss, sqlalchemy, typer"
FLOOR = """
import onnxruntime, faiss, sqlalchemy, typer
from pathlib import Path
from tokenizers import Tokenizer
folder = Path({folder!r})
tokenizer = Tokenizer.from_buffer((folder / "tokenizer.json").read_bytes())
session = onnxruntime.InferenceSession((folder / "text.onnx").read_bytes(),
                                       providers=["CPUExecutionProvider"])
ids = [tokenizer.encode({text!r}).ids]
session.run(None, {{"input_ids": ids, "attention_mask": [[1] * len(ids[0])]}})
"""
TEXT = "a dog on a beach"


def make_library(root: Path, n: int, seed: int) -> None:
    """Fill a library with random vectors, as if `n` pictures had been indexed."""
    encoder = load_encoder()
    vectors = np.random.default_rng(seed).normal(size=(n, encoder.dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    library = Library.create(root)
    with library.catalog.write() as transaction:
        encoder_id = transaction.encoder_id(encoder.spec, encoder.location)
        transaction.activate(encoder_id)
        for i, vector in enumerate(vectors):
            picture = Picture(
                path=f"{i // 1000:03}/{i:06}.jpg",
                size=i,
                mtime_ns=i,
                sha256=i.to_bytes(32, "big"),
                format="JPEG",
                width=4000,
                height=3000,
                orientation=1,
                taken_at=datetime(2024, 1, 1),
                latitude=None,
                longitude=None,
                camera=None,
                sidecars="",
            )
            transaction.put_file(picture, encoder_id, vector)
    for target in Target:
        library.open_index(target, library.catalog.library())
    library.close()


def seconds(command: list[str]) -> float:
    """Time a whole process."""
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--vectors", type=int, default=10_000)
    options = parser.parse_args()
    bundled = Path(sys.modules["mmsearch.retrieval.encoders"].__file__ or "").parent / "compact"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "photos"
        root.mkdir()
        make_library(root, options.vectors, seed=0)
        mmsearch = str(Path(sys.executable).with_name("mmsearch"))
        floor = FLOOR.format(folder=str(bundled), text=TEXT)
        commands = {
            "query": [mmsearch, "query", TEXT, "--library", str(root), "--json"],
            "floor": [sys.executable, "-c", floor],
            "imports": [sys.executable, "-c", IMPORTS],
            "help": [mmsearch, "--help"],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for run in range(options.runs + 1):
            for name, command in commands.items():
                taken = seconds(command)
                if run:  # the first round warms the file cache
                    times[name].append(taken)
        probe = (
            "import sys; sys.argv = ['mmsearch', 'query', 'x', '--library', sys.argv[1]]\n"
            "from mmsearch.cli import app\n"
            "try: app()\n"
            "except SystemExit: pass\n"
            "sys.exit('torch' in sys.modules)"
        )
        torch_free = subprocess.run([sys.executable, "-c", probe, str(root)], capture_output=True)
    ratios = [a / b for a, b in zip(times["query"], times["floor"], strict=True)]
    write_report(
        "cold_query",
        {
            "vectors": options.vectors,
            "runs": options.runs,
            "median_seconds": {n: round(statistics.median(t), 3) for n, t in times.items()},
            "query_over_floor": {
                "median": round(statistics.median(ratios), 3),
                "min": round(min(ratios), 3),
                "max": round(max(ratios), 3),
            },
            "imports_torch": bool(torch_free.returncode),
        },
        seed=0,
    )


if __name__ == "__main__":
    main()
