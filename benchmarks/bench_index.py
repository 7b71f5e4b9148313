"""The same vectors and queries through mmsearch and other indexes: recall against latency.

Vectors are a mixture of clusters with decaying spectra; queries come from the same mixture
(`own`) and from a distribution moved away from it, as vectors of texts are (`others`). Peers that
are not installed are left out, which is said. Latencies are of one query on one thread.

With `--pictures` and `--captions` the vectors are those of `compact` instead: of captions, asked
with held-out captions (`own`) and with pictures (`others`), or with `--searched pictures` the
other way round.

What an index takes in memory, and to open, is measured in a process that only asks. Then filters
of several sizes, and ten thousand additions and removals.

usage: python bench_index.py [--vectors 100000] [--queries 500] [--recall 0.99] [--only mmsearch]
                             [--pictures FOLDER --captions FILE ... [--searched pictures]]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from report import RESULTS, write_report

import mmsearch
from mmsearch import indexes

DIM, K = 512, 10
TITLES = {"own": "queries like what is indexed", "others": "queries of the other kind"}
EFFORTS = (16, 32, 64, 128, 256, 512, 1024)
"""Of graphs."""
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
    notes: dict[str, Any]


@dataclass
class Given:
    """What an index is built from.

    Attributes:
        base: the vectors; their ids are their rows.
        others: some queries of the other kind, none of those that are asked.
        recall: what an index that can be told should reach.
    """

    base: Floats
    others: Floats
    recall: float


class Contender(ABC):
    """An index, and the module without which it is left out."""

    module: str

    @abstractmethod
    def build(self, given: Given) -> Built: ...

    @abstractmethod
    def reopen(self, path: Path) -> Callable[[Floats], Any]:
        """Open what was saved, as a program would that only asks."""


class Mmsearch(Contender):
    module = "mmsearch"
    kind: Any = "ivf-rabitq"

    def build(self, given: Given) -> Built:
        base = given.base
        index = indexes.build(
            np.arange(len(base)), base, recall=given.recall, queries=given.others, kind=self.kind
        )
        tuned = index.effort  # type: ignore[attr-defined]
        efforts = sorted({max(1, round(tuned * factor)) for factor in (1 / 4, 1 / 2, 1, 2, 4)})
        points = [
            Point(f"effort {e}", lambda q, e=e: index.search(q, K, effort=e).ids)  # type: ignore[misc]
            for e in efforts
        ]
        facts = index.facts  # type: ignore[attr-defined]
        return Built(points, index.save, {"tuned": f"effort {tuned}"} | facts)

    def reopen(self, path: Path) -> Callable[[Floats], Any]:
        opened = indexes.open(path)
        return lambda queries: opened.search(queries, K)


class MmsearchFlat(Mmsearch):
    def build(self, given: Given) -> Built:
        index = indexes.build(np.arange(len(given.base)), given.base, kind="flat")
        return Built([Point("all", lambda q: index.search(q, K).ids)], index.save, {})


class Faiss(Contender):
    module = "faiss"

    def make(self, given: Given) -> tuple[Any, list[tuple[str, Any]]]:
        index = faiss.IndexFlatIP(given.base.shape[1])
        index.add(given.base)
        return index, [("all", None)]

    def build(self, given: Given) -> Built:
        index, settings = self.make(given)
        points = [
            Point(name, lambda q, p=parameters: index.search(q, K, params=p)[1])  # type: ignore[misc]
            for name, parameters in settings
        ]
        return Built(points, lambda path: faiss.write_index(index, str(path)), {})

    def reopen(self, path: Path) -> Callable[[Floats], Any]:
        opened = faiss.read_index(str(path))
        return lambda queries: opened.search(queries, K)


class FaissHnsw(Faiss):
    def make(self, given: Given) -> tuple[Any, list[tuple[str, Any]]]:
        index = faiss.IndexHNSWFlat(given.base.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
        index.add(given.base)
        return index, [(f"efSearch {e}", faiss.SearchParametersHNSW(efSearch=e)) for e in EFFORTS]


class Autofaiss(Faiss):
    module = "autofaiss"

    def make(self, given: Given) -> tuple[Any, list[tuple[str, Any]]]:
        from autofaiss import build_index

        index, _ = build_index(
            given.base, save_on_disk=False, metric_type="ip", max_index_query_time_ms=10, verbose=40
        )
        return index, [("its choice", None)]


class Usearch(Contender):
    module = "usearch"

    def _empty(self, dim: int) -> Any:
        from usearch.index import Index

        return Index(ndim=dim, metric="ip", dtype="f16", connectivity=32, expansion_add=40)

    def build(self, given: Given) -> Built:
        index = self._empty(given.base.shape[1])
        index.add(np.arange(len(given.base)), given.base)

        def searcher(effort: int) -> Callable[[Floats], NDArray[np.int64]]:
            def search(queries: Floats) -> NDArray[np.int64]:
                index.expansion_search = effort
                threads = 1 if len(queries) == 1 else 0
                found = index.search(queries, K, threads=threads)
                return found.keys.reshape(-1, K).astype(np.int64)

            return search

        points = [Point(f"expansion {e}", searcher(e)) for e in EFFORTS]
        return Built(points, lambda path: index.save(str(path)), {})

    def reopen(self, path: Path) -> Callable[[Floats], Any]:
        from usearch.index import Index

        opened = Index.restore(str(path), view=True)
        return lambda queries: opened.search(queries, K, threads=1)


CONTENDERS: dict[str, Contender] = {
    "mmsearch": Mmsearch(),
    "mmsearch flat fp16": MmsearchFlat(),
    "FAISS flat": Faiss(),
    "FAISS HNSW32": FaissHnsw(),
    "usearch f16": Usearch(),
    "autofaiss": Autofaiss(),
}


def resident_mib() -> float:
    """Return what this process holds in memory, files mapped into it included."""
    with Path("/proc/self/status").open() as status:
        return int(next(line.split()[1] for line in status if line.startswith("VmRSS"))) / 1024


def reopened(name: str, path: Path, queries: Path) -> dict[str, float]:
    """Open a saved index and ask, in a process that did nothing else before."""
    asked = np.load(queries)
    faiss.omp_set_num_threads(1)
    before, started = resident_mib(), time.perf_counter()
    ask = CONTENDERS[name].reopen(path)
    opened = time.perf_counter() - started
    grown = resident_mib() - before
    ask(asked[:1])
    first = time.perf_counter() - started
    for query in asked:
        ask(query[None])
    return {
        "open_ms": round(1000 * opened, 1),
        "first_answer_ms": round(1000 * first, 1),
        "resident_MiB_opened": round(grown, 1),
        "resident_MiB_asked": round(resident_mib() - before, 1),
    }


def filtered(path: Path, base: Floats, asked: dict[str, tuple[Floats, Any]]) -> dict[str, Any]:
    """Search among few and many allowed ids, beside comparing all of those."""
    opened = indexes.open(path)
    figures = {}
    for kept in (10, 1_000, 100_000):
        if kept > len(base):
            continue
        allowed = np.sort(np.random.default_rng(kept).choice(len(base), kept, replace=False))
        exact = faiss.IndexFlatIP(base.shape[1])
        exact.add(base[allowed])
        row = {}
        for kind, (queries, _) in asked.items():
            queries = queries[:200]
            right = allowed[exact.search(queries, K)[1]]
            found, times = [], []
            for query in queries:
                started = time.perf_counter()
                found.append(opened.search(query, K, among=allowed).ids[0])
                times.append(1000 * (time.perf_counter() - started))
            row[kind] = {
                "recall@10": recall(np.stack(found), right),
                "p50_ms": round(float(np.median(times)), 3),
            }
        figures[str(kept)] = row
    return figures


def changed(path: Path, base: Floats, added: Floats, queries: Floats) -> dict[str, Any]:
    """Add some vectors and remove as many; see that answers are right at once."""
    some = len(added)
    removed = np.arange(0, len(base), len(base) // some)[:some]
    ids = len(base) + np.arange(some)
    started = time.perf_counter()
    grown = indexes.grow(path, np.concatenate([removed, ids]), ids, added)
    grown.save(path.with_name("grown"))
    saved = time.perf_counter() - started
    opened = indexes.open(path.with_name("grown"))
    answers = opened.search(queries, K)
    found = opened.search(added[:200], 1)
    return {
        "added": some,
        "removed": some,
        "seconds_saved": round(saved, 2),
        "seconds_first_answers": round(time.perf_counter() - started, 2),
        "file_written_MiB": round(path.with_name("grown").stat().st_size / 2**20, 1),
        "removed_found": int(np.isin(answers.ids, removed).sum()),
        "added_found_by_themselves": float((found.ids[:, 0] == ids[:200]).mean()),
    }


def recall(found: NDArray[np.int64], right: NDArray[np.int64]) -> float:
    return round(float((found[:, :, None] == right[:, None, :]).sum()) / right.size, 4)


def at_equal_recall(figures: dict[str, Any]) -> dict[str, Any]:
    """Return the p50 each index needs for a recall, between its settings by straight lines."""
    needed: dict[str, Any] = {}
    for kind in ("own", "others"):
        for target in (0.97, 0.98, 0.99, 0.995):
            row = needed.setdefault(kind, {}).setdefault(str(target), {})
            for name, result in figures.items():
                curve = [(p[kind]["recall@10"], p[kind]["p50_ms"]) for p in result["settings"]]
                curve.sort()
                if curve[-1][0] >= target:
                    row[name] = round(float(np.interp(target, *zip(*curve, strict=True))), 3)
    return needed


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
            p50, p95 = np.percentile(times, [50, 95])
            row[name] = {
                "recall@10": recall(found, right),
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
    kinds = figures["p50_ms_at_recall"]
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), kinds, strict=True):
        for name, result in figures["indexes"].items():
            points = [row[kind] for row in result["settings"]]
            axes.plot(
                [point["p50_ms"] for point in points],
                [point["recall@10"] for point in points],
                marker=".",
                label=name,
            )
        axes.set(xscale="log", xlabel="p50 of one query, ms", title=TITLES[kind])
        axes.set_ylim(0.9, 1.002)
        axes.grid(alpha=0.3)
    figure.axes[0].set(ylabel="recall@10")
    figure.axes[1].legend(fontsize="small")
    figure.savefig(path, dpi=120, metadata={"Software": None})


def synthetic(options: argparse.Namespace) -> tuple[Given, Floats, dict[str, Floats]]:
    """Return what to build, vectors to add later, and queries of two kinds."""
    mixture = Mixture(seed=7)
    given = Given(mixture.images(options.vectors, 1), mixture.texts(1000, 5), options.recall)
    queries = {
        "own": mixture.images(options.queries, 2),
        "others": mixture.texts(options.queries, 2),
    }
    return given, mixture.images(min(10_000, options.vectors // 10), 3), queries


def encoded(options: argparse.Namespace) -> tuple[Given, Floats, dict[str, Floats]]:
    """Return the same of captions and pictures, as `compact` sees them."""
    encoder = mmsearch.load_encoder()
    captions: dict[str, None] = {}
    for file in options.captions:
        for line in file.read_text(encoding="utf-8").splitlines():
            fields = line.split("\t")
            captions[fields[1] if len(fields) > 1 else fields[0]] = None
    paths = sorted(options.pictures.rglob("*.jpg"))
    generator = np.random.default_rng(7)
    asked = options.queries
    some = generator.permutation
    texts, pictures = encoder.encode_texts, encoder.encode_images
    # Of the kind that only asks, as many as are asked, and some to tune by.
    if options.searched == "captions":
        vectors = texts([*captions])
        others = pictures([paths[i] for i in some(len(paths))[: asked + 1000]])
    else:
        vectors = pictures(paths)
        sentences = [*captions]
        others = texts([sentences[i] for i in some(len(sentences))[: asked + 1000]])
    vectors = vectors[some(len(vectors))]
    own, added, base = np.split(vectors, [asked, asked + len(vectors) // 20])
    given = Given(np.ascontiguousarray(base), others[asked:], options.recall)
    return given, added, {"own": own, "others": others[:asked]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--recall", type=float, default=0.99)
    parser.add_argument("--only", nargs="*", choices=[*CONTENDERS], default=[*CONTENDERS])
    parser.add_argument("--pictures", type=Path, help="a folder of pictures")
    parser.add_argument("--captions", type=Path, nargs="*", help="TSV with captions, or lines")
    parser.add_argument("--searched", choices=["captions", "pictures"], default="captions")
    parser.add_argument("--reopen", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reopen:
        name, path, rows = options.reopen
        print(json.dumps(reopened(name, Path(path), Path(rows))))
        return
    if options.pictures:
        given, new, queries = encoded(options)
    else:
        given, new, queries = synthetic(options)
    exact = faiss.IndexFlatIP(given.base.shape[1])
    exact.add(given.base)
    asked = {kind: (rows, exact.search(rows, K)[1]) for kind, rows in queries.items()}
    del exact
    figures: dict[str, Any] = {
        "vectors": len(given.base),
        "dim": given.base.shape[1],
        "left out": [],
    }
    results: dict[str, Any] = {}
    for name in options.only:
        contender = CONTENDERS[name]
        if importlib.util.find_spec(contender.module) is None:
            print(f"{name} IS LEFT OUT: {contender.module} is not installed", file=sys.stderr)
            figures["left out"].append(name)
            continue
        faiss.omp_set_num_threads(os.cpu_count() or 1)
        started = time.perf_counter()
        built = contender.build(given)
        seconds = time.perf_counter() - started
        print(f"{name}: built in {seconds:.1f} s", file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            path, rows = Path(folder) / "index", Path(folder) / "queries.npy"
            built.save(path)
            np.save(rows, np.concatenate([*queries.values()]))
            command = [sys.executable, __file__, "--reopen", name, str(path), str(rows)]
            again = subprocess.run(command, check=True, stdout=subprocess.PIPE)
            results[name] = {
                "build_s": round(seconds, 1),
                "file_MiB": round(path.stat().st_size / 2**20, 1),
                **json.loads(again.stdout),
                "notes": built.notes,
                "settings": list(measured(built, asked)),
            }
            if name == "mmsearch":
                figures["filtered"] = filtered(path, given.base, asked)
                figures["changed"] = changed(path, given.base, new, queries["others"])
        del built
        # What there is so far: some of the others may take very long.
        figures |= {"p50_ms_at_recall": at_equal_recall(results), "indexes": results}
        report = f"index_{options.searched}" if options.pictures else "index"
        write_report(report, figures, seed=7)
        draw(figures, RESULTS / f"{report}.png")


if __name__ == "__main__":
    main()
