"""How close indexing comes to what decoding and embedding alone would take.

Makes 12-megapixel JPEGs from a folder of photos, and measures on them, in turn and several times:
decoding alone (as many threads as cores), embedding alone (all cores), indexing with `compact`, and
the same with every picture decoded whole and resized by plain Pillow. Where the encoder runs on the
CPU, decoding and embedding share the same cores: `shared` is the rate that both could reach at once
if nothing else took any time. Then the peak memory of indexing few and many small pictures, each in
a process of its own, and how far reduced-scale decoding moves an embedding.

usage: python bench_ingest.py PHOTOS [--n 2000] [--rounds 3] [--memory 1000 10000]
                              [--only rates]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from report import RESULTS, write_report

import mmsearch
from mmsearch.retrieval.encoders.onnx import MANY, OnnxEncoder
from mmsearch.retrieval.media import load_rgb

LARGE = 4000, 3000
SMALL = 640, 480
GRAIN = 6
"""Grey levels of noise up and down, so that a scaled-up photo weighs what a camera's does."""

WHOLE = 1 << 30
"""A shortest side that no picture has: nothing is left out in decoding."""

INDEX_AND_WEIGH = """
import resource, sys
import mmsearch
mmsearch.index(sys.argv[1])
if sys.platform == "linux":
    # Not ru_maxrss, which begins at what the parent process weighed.
    with open("/proc/self/status") as status:
        print(next(line.split()[1] for line in status if line.startswith("VmHWM")))
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


class PlainEncoder(OnnxEncoder):
    """The same tower behind what most loaders do: decode whole, then resize once."""

    @property
    def decode_size(self) -> int:
        return WHOLE

    def prepare(self, image: Image.Image) -> NDArray[np.uint8]:
        return replace(self._config.preprocess, reducing_gap=None)(image)


def make_one(size: tuple[int, int], target: Path, source: Path, seed: int) -> None:
    """Save a photo, scaled to `size` and with the grain of a sensor."""
    image = Image.open(source).convert("RGB")
    width, height = size if image.width >= image.height else size[::-1]
    values = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    grain = np.random.default_rng(seed).integers(-GRAIN, GRAIN + 1, (height, width, 1), np.int16)
    Image.fromarray((values + grain).clip(0, 255).astype(np.uint8)).save(target, quality=90)


def make_photos(sources: list[Path], folder: Path, n: int, size: tuple[int, int]) -> list[Path]:
    """Make `n` pictures, no two with the same bytes."""
    folder.mkdir(parents=True)
    files = [folder / f"{i:06}.jpg" for i in range(n)]
    made = min(n, len(sources))
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(make_one, size), files[:made], sources[:made], range(made)))
    for i, file in enumerate(files[made:], made):
        # Behind its end, where no decoder looks: another content, decoded in the same way.
        file.write_bytes(files[i % made].read_bytes() + i.to_bytes(8, "big"))
    return files


def decode_all(encoder: OnnxEncoder, files: list[Path]) -> list[NDArray[np.uint8]]:
    def decode(path: Path) -> NDArray[np.uint8]:
        return encoder.prepare(load_rgb(path, at_least=encoder.decode_size))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(decode, files))


def embed_all(encoder: OnnxEncoder, pixels: list[NDArray[np.uint8]], n: int) -> None:
    for start in range(0, n, encoder.batch_size):
        rows = range(start, min(n, start + encoder.batch_size))
        encoder.encode_pixels([pixels[row % len(pixels)] for row in rows])


def index_all(encoder: OnnxEncoder, folder: Path, reports: list[dict[str, Any]]) -> None:
    """Index into a library of its own that nothing is known to yet."""
    shutil.rmtree(folder / ".mmsearch", ignore_errors=True)
    report = mmsearch.index(folder, model=encoder)
    assert report.embedded == report.files, report
    reports.append(report.to_json())


def rate(work: Callable[[], object], n: int) -> float:
    """Return how many pictures a second `work` gets through."""
    started = time.perf_counter()
    work()
    return n / (time.perf_counter() - started)


def measure_rates(files: list[Path], rounds: int) -> dict[str, Any]:
    bundled = mmsearch.load_encoder()
    assert isinstance(bundled, OnnxEncoder)
    plain = PlainEncoder(bundled.folder, location="plain")
    folder, n = files[0].parent, len(files)
    # Loads the towers, and gives the pixels that are embedded again and again.
    pixels = decode_all(bundled, files[: 4 * bundled.batch_size])
    for encoder in (bundled, plain):
        # Until it has found out what is fastest here.
        embed_all(encoder, pixels, MANY + encoder.batch_size)
    reports: dict[str, list[dict[str, Any]]] = {"index": [], "index_plain": []}
    work: dict[str, Callable[[], object]] = {
        "decode": lambda: decode_all(bundled, files),
        "encode": lambda: embed_all(bundled, pixels, n),
        "index": lambda: index_all(bundled, folder, reports["index"]),
        "index_plain": lambda: index_all(plain, folder, reports["index_plain"]),
    }
    rates: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, run in work.items():
            rates[name].append(rate(run, n))
    shared = [1 / (1 / d + 1 / e) for d, e in zip(rates["decode"], rates["encode"], strict=True)]
    slower = [min(pair) for pair in zip(rates["decode"], rates["encode"], strict=True)]
    last = reports["index"][-1]
    return {
        "pictures": n,
        "bytes_per_picture": round(sum(file.stat().st_size for file in files) / n),
        "rounds": rounds,
        "pictures_per_second": {name: middle(found) for name, found in rates.items()}
        | {"shared": middle(shared)},
        "index_over_slower_of_decode_and_encode": ratio(rates["index"], slower),
        "index_over_shared": ratio(rates["index"], shared),
        "index_over_index_plain": ratio(rates["index"], rates["index_plain"]),
        "last_index": {key: last[key] for key in ("shares", "bottleneck", "seconds")},
    }


def middle(values: list[float]) -> float:
    return round(statistics.median(values), 2)


def ratio(above: list[float], below: list[float]) -> dict[str, float]:
    found = [a / b for a, b in zip(above, below, strict=True)]
    return {
        "median": round(statistics.median(found), 3),
        "min": round(min(found), 3),
        "max": round(max(found), 3),
    }


def measure_cosines(sources: list[Path], large: list[Path]) -> dict[str, Any]:
    """Compare reduced-scale decoding with decoding whole; the resizing after it is the same."""
    encoder = mmsearch.load_encoder()
    found = {}
    for name, files in (("photos", sources), ("large", large)):
        vectors = []
        for at_least in (encoder.decode_size, None):
            pixels = [encoder.prepare(load_rgb(path, at_least=at_least)) for path in files]
            vectors.append(encoder.encode_pixels(pixels))
        cosines = (vectors[0] * vectors[1]).sum(axis=1)
        found[name] = {
            "pictures": len(files),
            "mean": round(float(cosines.mean()), 5),
            "min": round(float(cosines.min()), 5),
        }
    return found


def measure_memory(sources: list[Path], folder: Path, counts: list[int]) -> dict[str, Any]:
    peaks = {}
    for n in counts:
        made = make_photos(sources, folder / str(n), n, SMALL)
        command = [sys.executable, "-c", INDEX_AND_WEIGH, str(made[0].parent)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        # Linux counts in KiB, macOS in bytes.
        peaks[n] = int(done.stdout) * (1 if sys.platform == "darwin" else 1024)
    few, many = (peaks[n] for n in counts)
    return {
        "peak_mib": {str(n): round(peak / (1 << 20), 1) for n, peak in peaks.items()},
        "many_over_few": round(many / few, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("photos", type=Path, help="a folder of photos to make the pictures from")
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--only", choices=["rates", "memory"], help="measure this and keep the other figures"
    )
    parser.add_argument("--memory", type=int, nargs=2, default=[1000, 10_000])
    options = parser.parse_args()
    sources = sorted(options.photos.rglob("*.jpg"))
    if not sources:
        raise SystemExit(f"{options.photos} holds no JPEG files")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        figures = (
            json.loads((RESULTS / "ingest.json").read_text())["figures"] if options.only else {}
        )
        if options.only != "memory":
            large = make_photos(sources, folder / "large", options.n, LARGE)
            figures["rates"] = measure_rates(large, options.rounds)
            figures["cosine_of_reduced_and_whole"] = measure_cosines(sources, large[: len(sources)])
        if options.only != "rates":
            figures["memory"] = measure_memory(sources, folder, options.memory)
    write_report("ingest", figures, seed=0)


if __name__ == "__main__":
    main()
