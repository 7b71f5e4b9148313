"""A library whose vectors are searched by a Milvus server, beside pymilvus and the embedded index.

A real server (PyPI's `milvus`) in a network of its own is filled through mmsearch from a catalog of
made-up pictures, and searched: exact (FLAT) and as a graph (HNSW). In one run, the same queries in
turns: `MilvusIndex.search`, pymilvus's own `search`, the embedded index, and whole questions with
`SearchEngine.search` on either. Only the ratios mean anything on a machine that does other work.

usage: python bench_milvus.py [--library FOLDER] [--vectors 100000] [--queries 1000]
FOLDER is a library that was filled before; it is copied. Without it vectors are made up: 4,000
clusters of unequal size, and for queries some of them and some from elsewhere, as texts are.
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
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from made_up import picture
from numpy.typing import NDArray
from report import write_report

import mmsearch
from mmsearch.indexes.exact import ExactIndex
from mmsearch.indexes.milvus import MilvusIndex
from mmsearch.retrieval.encoders import load_encoder
from mmsearch.retrieval.filters import parse_where
from mmsearch.retrieval.library import Library
from mmsearch.retrieval.schema import Target

K = 10
ADDRESS = "MMSEARCH_TEST_MILVUS_URI"
SERVER = Path(__file__).parent.parent / "tests" / "milvus_server.py"
WHERE = "taken >= '2010' AND width > height"


def unit(rows: NDArray[Any]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def made_up(n: int, dim: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return vectors, and 2,000 queries: every other one like texts, with a gap between."""
    generator = np.random.default_rng(seed)
    spectrum = 1 / np.sqrt(1 + np.arange(dim))
    centres = generator.normal(size=(4_000, dim)) * spectrum
    shares = 1 / (1 + np.arange(4_000))
    gap = generator.normal(size=dim) * spectrum

    def drawn(count: int) -> NDArray[Any]:
        of = generator.choice(4_000, count, p=shares / shares.sum())
        return centres[of] + 0.6 * generator.normal(size=(count, dim)) * spectrum

    rows = unit(drawn(n))
    queries = drawn(2_000)
    queries[1::2] += gap + 0.6 * generator.normal(size=(1_000, dim)) * spectrum
    return rows, unit(queries)


def fill(root: Path, vectors: NDArray[np.float32]) -> None:
    """Make a library of pictures that are not there."""
    root.mkdir()
    encoder = load_encoder("compact")
    with closing(Library.create(root)) as library, library.catalog.write() as transaction:
        encoder_id = transaction.encoder_id(encoder.spec, encoder.location)
        transaction.activate(encoder_id)
        for i, vector in enumerate(vectors):
            transaction.put_file(picture(i), encoder_id, vector)


def with_store(plain: Path, root: Path, store: str) -> None:
    """Copy a library; the copy is of its own and has its vectors searched elsewhere."""
    shutil.copytree(plain, root, ignore=shutil.ignore_patterns("index", "thumbnails"))
    (root / ".mmsearch" / "library.toml").write_text(f"store = {json.dumps(store)}\n")


def in_turns(ways: dict[str, Callable[[int], Any]], count: int) -> dict[str, dict[str, float]]:
    """Return the milliseconds of each way, whose calls follow one another."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(20):
        for ask in ways.values():
            ask(i)
    for i in range(count):
        for name in sorted(ways, key=lambda name: hash((name, i))):
            started = time.perf_counter()
            ways[name](i)
            took[name].append(1e3 * (time.perf_counter() - started))
    return {
        name: {
            "p50_ms": round(statistics.median(each), 3),
            "p95_ms": round(statistics.quantiles(each, n=20)[-1], 3),
        }
        for name, each in took.items()
    }


def measured(
    there: Path, here: Path, kind: str, queries: NDArray[np.float32], count: int
) -> dict[str, Any]:
    """Make the store's index of a kind, and measure what it finds and how long that takes."""
    with closing(Library.open(there)) as library, closing(Library.open(here)) as plain:
        row = library.catalog.library()
        started = time.perf_counter()
        built = library.build_index(Target.IMAGES, row, settings={"kind": kind, "recall": 0.99})
        seconds = time.perf_counter() - started
        assert isinstance(built, MilvusIndex)
        index = library.open_index(Target.IMAGES, row)
        assert isinstance(index, MilvusIndex)
        ids, vectors = library.catalog.file_vectors(row.encoder_id or 0, queries.shape[1])
        oracle = ExactIndex(queries.shape[1])
        oracle.add(ids, vectors.astype(np.float32))
        exact = oracle.search(queries, K)
        found = index.search(queries, K)
        kinds = {"own": slice(0, None, 2), "other": slice(1, None, 2)}
        figures: dict[str, Any] = {
            "effort": index.effort,
            "exact": index.exact,
            "recall_told": index.recall,
            "recall_at_10": {
                name: round(recall(found.ids[some], exact.ids[some]), 4)
                for name, some in kinds.items()
            },
            "seconds_to_index_and_measure": round(seconds, 1),
        }
        embedded = plain.open_index(Target.IMAGES, plain.catalog.library())
        if index.exact:
            figures["same_top_10_as_embedded"] = agreement(found, embedded.search(queries, K))
        collection = index.collection
        client, params = collection.server.client, collection.spec.search_params(index.effort, K)

        def directly(i: int) -> Any:
            found = client.search(
                collection.name,
                data=[queries[i]],
                limit=K,
                search_params={"metric_type": "IP", "params": params},
                consistency_level="Bounded",
                timeout=10,
            )
            return [(hit["id"], hit["distance"]) for hit in found[0]]

        figures["one_query"] = in_turns(
            {
                "mmsearch": lambda i: index.search(queries[i], K),
                "pymilvus": directly,
                "embedded": lambda i: embedded.search(queries[i], K),
            },
            count,
        )
        p50 = {name: each["p50_ms"] for name, each in figures["one_query"].items()}
        figures["mmsearch_to_pymilvus_p50"] = round(p50["mmsearch"] / p50["pymilvus"], 3)
        figures["mmsearch_to_embedded_p50"] = round(p50["mmsearch"] / p50["embedded"], 2)
        figures["filtered"] = filtered(index, library, oracle, queries[:200])
    return figures


def filtered(
    index: MilvusIndex, library: Library, oracle: ExactIndex, queries: NDArray[np.float32]
) -> dict[str, Any]:
    """Compare a filter that travels as an expression with one that travels as ids."""
    from mmsearch.retrieval.store_fields import expression

    filter_ = parse_where(WHERE)
    said = expression(filter_)
    assert said is not None
    ids = library.catalog.matching(filter_)
    right = oracle.search(queries, K, among=ids)
    condition = index.where(said)
    by_expression = index.search(queries, K, among=condition)
    times = in_turns(
        {
            "expression": lambda i: index.search(queries[i % 200], K, among=condition),
            "ids": lambda i: index.search(queries[i % 200], K, among=ids),
        },
        20,
    )
    return {
        "where": WHERE,
        "matching": len(ids),
        "count_of_the_server": len(condition),
        "recall_at_10": round(recall(by_expression.ids, right.ids), 4),
        **times,
    }


def recall(found: NDArray[np.int64], true: NDArray[np.int64]) -> float:
    return float((true[:, :, None] == found[:, None, :]).any(axis=2).mean())


def agreement(one: Any, other: Any) -> dict[str, Any]:
    """Say how many top tens are the same; where they differ, how far apart the scores are."""
    same = (one.ids == other.ids).all(axis=1)
    sets = np.array([set(a) == set(b) for a, b in zip(one.ids, other.ids, strict=True)])
    return {
        "queries": len(same),
        "same_order": int(same.sum()),
        "same_ids": int(sets.sum()),
        "largest_difference_of_scores": float(np.abs(one.scores - other.scores).max()),
    }


def whole_questions(there: Path, here: Path, count: int) -> dict[str, Any]:
    """Measure `SearchEngine.search` over a store and over index files, in turns."""
    words = ["dog", "beach", "snow", "city at night", "red car", "two people", "a cat", "old map"]
    with mmsearch.open(there) as store, mmsearch.open(here) as files:
        for engine in (store, files):
            engine.search("warm up")
        asked = [f"{words[i % 8]} {i}" for i in range(count + 20)]
        took = in_turns(
            {
                "store": lambda i: store.search(asked[i], k=K),
                "store, filtered": lambda i: store.search(asked[i], k=K, where=WHERE),
                "files": lambda i: files.search(asked[i], k=K),
                "files, filtered": lambda i: files.search(asked[i], k=K, where=WHERE),
            },
            count,
        )
    took["ratio_p50"] = {
        "all": round(took["store"]["p50_ms"] / took["files"]["p50_ms"], 2),
        "filtered": round(took["store, filtered"]["p50_ms"] / took["files, filtered"]["p50_ms"], 2),
    }
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--library", type=Path)
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=1_000)
    asked = parser.parse_args()
    if ADDRESS not in os.environ:
        command = [sys.executable, str(SERVER), sys.executable, *sys.argv]
        sys.exit(subprocess.run(command, check=False).returncode)
    with tempfile.TemporaryDirectory(prefix="bench-milvus-") as folder:
        here, there = Path(folder) / "files", Path(folder) / "store"
        dim = load_encoder("compact").dim
        vectors, queries = made_up(asked.vectors, dim, seed=1)
        if asked.library is None:
            fill(here, vectors)
        else:
            shutil.copytree(asked.library, here)
            with closing(Library.open(here)) as library:
                row = library.catalog.library()
                rows = library.catalog.file_vectors(row.encoder_id or 0, dim)[1]
            generator = np.random.default_rng(2)
            some = rows[generator.choice(len(rows), 2_000)].astype(np.float32)
            noise = generator.normal(size=some.shape) / np.sqrt(dim)
            queries = unit(some + 0.5 * noise)
        with closing(Library.open(here)) as library, library.indexing():
            library.refresh_indexes(lambda *_: None)
        with_store(here, there, os.environ[ADDRESS])
        figures: dict[str, Any] = {"vectors": asked.vectors, "dim": dim}
        with closing(Library.open(there)) as library, library.indexing():
            started = time.perf_counter()
            library.refresh_indexes(lambda *_: None)
            seconds = time.perf_counter() - started
            row = library.catalog.library()
            _, count, fault = library.store_differences(Target.IMAGES, row) or ("", 0, "")
            figures["filling"] = {
                "seconds": round(seconds, 1),
                "vectors_per_second": round(count / seconds),
                "fault": fault,
            }
        queries = queries[: asked.queries]
        for kind in ("hnsw", "flat"):
            figures[kind] = measured(there, here, kind, queries, min(asked.queries, 300))
        figures["whole_questions"] = whole_questions(there, here, 100)
        with closing(Library.open(there)) as library:
            for record in library.catalog.store_records():
                from mmsearch.indexes.milvus_server import Server

                Server(os.environ[ADDRESS]).call("drop_collection", record.collection, writing=True)
        write_report("milvus", figures, seed=1)


if __name__ == "__main__":
    main()
