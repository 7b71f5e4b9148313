"""The same vectors and queries through mmsearch and other indexes: recall against latency.

Vectors are a mixture of clusters with decaying spectra; queries come from the same mixture
(`images`) and from a distribution moved away from it, as vectors of texts are (`texts`). Peers that
are not installed are left out, which is said. Latencies are of one query on one thread.

usage: python bench_index.py [--vectors 100000] [--queries 500] [--recall 0.99] [--only mmsearch]
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from report import RESULTS, write_report

from mmsearch import indexes

DIM, K = 512, 10
Floats = NDArray[np.float32]


def spectrum(power: float) -> Floats:
    scale = np.arange(1, DIM + 1) ** -power
    return (scale / np.linalg.norm(scale)).astype(np.float32)


def unit(rows: Floats) -> Floats:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Mixture:
    """Clusters of Zipfian sizes; `gap` is what lies between the vectors of texts and pictures."""

    def __init__(self, seed: int, clusters: int = 4000) -> None:
        generator = np.random.default_rng(seed)
        turns = [np.linalg.qr(generator.standard_normal((DIM, DIM)))[0] for _ in range(2)]
        self.turn, self.inner = (turn.astype(np.float32) for turn in turns)
        centres = generator.standard_normal((clusters, DIM), dtype=np.float32) * spectrum(0.5)
        self.centres = centres @ self.turn
        sizes = 1 / np.arange(1, clusters + 1) ** 0.6
        self.sizes = sizes / sizes.sum()
        self.mean, self.gap = (
            (generator.standard_normal(DIM) * scale / np.sqrt(DIM)).astype(np.float32)
            for scale in (0.6, 1.0)
        )

    def images(self, n: int, seed: int) -> Floats:
        generator = np.random.default_rng(seed)
        label = generator.choice(len(self.centres), n, p=self.sizes)
        rows = np.empty((n, DIM), dtype=np.float32)
        for start in range(0, n, 50_000):
            some = label[start : start + 50_000]
            noise = generator.standard_normal((len(some), DIM), dtype=np.float32) * spectrum(0.35)
            rows[start : start + len(some)] = self.centres[some] + 0.75 * (noise @ self.inner)
        return unit(rows + self.mean)

    def texts(self, n: int, seed: int) -> Floats:
        generator = np.random.default_rng(seed)
        noise = generator.standard_normal((n, DIM), dtype=np.float32) * spectrum(0.3)
        return unit(self.images(n, seed + 1) + 0.9 * self.gap + 0.5 * (noise @ self.turn))


@dataclass
class Point:
    """One setting of one index: what answers, and what the setting is called."""

    setting: str
    search: Callable[[Floats], NDArray[np.int64]]


@dataclass
class Built:
    points: list[Point]
    save: Callable[[Path], None]
    reopen: Callable[[Path], Callable[[Floats], Any]]
    notes: dict[str, Any]


def build_mmsearch(base: Floats, recall: float) -> Built:
    index = indexes.build(np.arange(len(base)), base, recall=recall, kind="ivf-rabitq")
    tuned = index.effort  # type: ignore[attr-defined]
    efforts = sorted({max(1, tuned // 4), max(1, tuned // 2), tuned, 2 * tuned, 4 * tuned})
    points = [
        Point(f"effort {e}", lambda q, e=e: index.search(q, K, effort=e).ids)  # type: ignore[misc]
        for e in efforts
    ]

    def reopen(path: Path) -> Callable[[Floats], Any]:
        opened = indexes.open(path)
        return lambda queries: opened.search(queries, K)

    facts = index.facts  # type: ignore[attr-defined]
    return Built(points, index.save, reopen, {"tuned": f"effort {tuned}"} | facts)


def build_flat(base: Floats, recall: float) -> Built:
    index = indexes.build(np.arange(len(base)), base, kind="flat")

    def reopen(path: Path) -> Callable[[Floats], Any]:
        opened = indexes.open(path)
        return lambda queries: opened.search(queries, K)

    return Built([Point("all", lambda q: index.search(q, K).ids)], index.save, reopen, {})


def build_faiss_flat(base: Floats, recall: float) -> Built:
    index = faiss.IndexFlatIP(DIM)
    index.add(base)
    return _faiss(index, [("all", None)])


def build_hnsw(base: Floats, recall: float) -> Built:
    index = faiss.IndexHNSWFlat(DIM, 32, faiss.METRIC_INNER_PRODUCT)
    index.add(base)
    settings = [
        (f"efSearch {ef}", faiss.SearchParametersHNSW(efSearch=ef))
        for ef in (32, 64, 128, 256, 512)
    ]
    return _faiss(index, settings)


def _faiss(index: Any, settings: list[tuple[str, Any]]) -> Built:
    points = [
        Point(name, lambda q, p=parameters: index.search(q, K, params=p)[1])  # type: ignore[misc]
        for name, parameters in settings
    ]

    def reopen(path: Path) -> Callable[[Floats], Any]:
        opened = faiss.read_index(str(path))
        return lambda queries: opened.search(queries, K)

    return Built(points, lambda path: faiss.write_index(index, str(path)), reopen, {})


def build_usearch(base: Floats, recall: float) -> Built:
    from usearch.index import Index

    def make() -> Any:
        return Index(ndim=DIM, metric="ip", dtype="f16", connectivity=32, expansion_add=40)

    index = make()
    index.add(np.arange(len(base)), base)

    def searcher(effort: int) -> Callable[[Floats], NDArray[np.int64]]:
        def search(queries: Floats) -> NDArray[np.int64]:
            index.expansion_search = effort
            threads = 1 if len(queries) == 1 else 0
            return index.search(queries, K, threads=threads).keys.reshape(-1, K).astype(np.int64)

        return search

    def reopen(path: Path) -> Callable[[Floats], Any]:
        opened = make()
        opened.view(str(path))
        return lambda queries: opened.search(queries, K)

    points = [Point(f"expansion {e}", searcher(e)) for e in (32, 64, 128, 256, 512)]
    return Built(points, lambda path: index.save(str(path)), reopen, {})


def build_autofaiss(base: Floats, recall: float) -> Built:
    from autofaiss import build_index

    index, _ = build_index(
        base, save_on_disk=False, metric_type="ip", max_index_query_time_ms=10, verbose=40
    )
    return _faiss(index, [("its choice", None)])


CONTENDERS = {
    "mmsearch": (build_mmsearch, "mmsearch"),
    "mmsearch flat fp16": (build_flat, "mmsearch"),
    "FAISS flat": (build_faiss_flat, "faiss"),
    "FAISS HNSW32": (build_hnsw, "faiss"),
    "usearch f16": (build_usearch, "usearch"),
    "autofaiss": (build_autofaiss, "autofaiss"),
}


def measured(built: Built, asked: dict[str, tuple[Floats, Any]]) -> Iterator[dict[str, Any]]:
    """Yield, for each setting, recall, latency and throughput by kind of query."""
    for point in built.points:
        row: dict[str, Any] = {"setting": point.setting}
        for name, (queries, right) in asked.items():
            faiss.omp_set_num_threads(os.cpu_count() or 1)
            started = time.perf_counter()
            found = point.search(queries)
            rate = len(queries) / (time.perf_counter() - started)
            faiss.omp_set_num_threads(1)
            times = []
            for query in queries[:200]:
                started = time.perf_counter()
                point.search(query[None])
                times.append(1000 * (time.perf_counter() - started))
            hits = (found[:, :, None] == right[:, None, :]).sum()
            p50, p95 = np.percentile(times, [50, 95])
            row[name] = {
                "recall@10": round(float(hits) / right.size, 4),
                "p50_ms": round(float(p50), 3),
                "p95_ms": round(float(p95), 3),
                "batch_queries_per_s": round(rate),
            }
        print(row, file=sys.stderr)
        yield row


def draw(figures: dict[str, Any], path: Path) -> None:
    """Draw recall against latency, one panel a kind of query."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print(f"{path} is not drawn: matplotlib is not installed", file=sys.stderr)
        return
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), ("images", "texts"), strict=True):
        for name, result in figures["indexes"].items():
            points = [row[kind] for row in result["settings"]]
            axes.plot(
                [point["p50_ms"] for point in points],
                [point["recall@10"] for point in points],
                marker=".",
                label=name,
            )
        axes.set(xscale="log", xlabel="p50 of one query, ms", title=f"asked with {kind}")
        axes.grid(alpha=0.3)
    figure.axes[0].set(ylabel="recall@10")
    figure.axes[1].legend(fontsize="small")
    figure.savefig(path, dpi=120, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--recall", type=float, default=0.99)
    parser.add_argument("--only", nargs="*", choices=[*CONTENDERS], default=[*CONTENDERS])
    options = parser.parse_args()
    mixture = Mixture(seed=7)
    base = mixture.images(options.vectors, 1)
    exact = faiss.IndexFlatIP(DIM)
    exact.add(base)
    asked = {}
    for kind, make in (("images", mixture.images), ("texts", mixture.texts)):
        queries = make(options.queries, 2)
        asked[kind] = (queries, exact.search(queries, K)[1])
    del exact
    figures: dict[str, Any] = {"vectors": options.vectors, "dim": DIM, "indexes": {}}
    figures["left out"] = []
    for name in options.only:
        build, module = CONTENDERS[name]
        if importlib.util.find_spec(module) is None:
            print(f"{name} IS LEFT OUT: {module} is not installed", file=sys.stderr)
            figures["left out"].append(name)
            continue
        faiss.omp_set_num_threads(os.cpu_count() or 1)
        started = time.perf_counter()
        built = build(base, options.recall)
        seconds = time.perf_counter() - started
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "index"
            built.save(path)
            size = path.stat().st_size
            started = time.perf_counter()
            ask = built.reopen(path)
            opened = time.perf_counter() - started
            ask(asked["images"][0][:1])
            first = time.perf_counter() - started
            del ask
            figures["indexes"][name] = {
                "build_s": round(seconds, 1),
                "file_MiB": round(size / 2**20, 1),
                "open_ms": round(1000 * opened, 1),
                "first_answer_ms": round(1000 * first, 1),
                "notes": built.notes,
                "settings": list(measured(built, asked)),
            }
        del built
    write_report("index", figures, seed=7)
    draw(figures, RESULTS / "index.png")


if __name__ == "__main__":
    main()
