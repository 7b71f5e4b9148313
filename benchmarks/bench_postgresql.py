"""What a catalog on PostgreSQL costs beside one in the library's folder.

usage: python bench_postgresql.py [--n 600] [--files 20000] [--rounds 3] [--url URL]
Draws `n` pictures and indexes them with the bundled encoder, once for each kind of catalog, in
turns. Then fills both kinds with `files` made-up rows and captions and asks both the same, in
turns: only what the catalog answers, without encoder and index. Without `--url` it starts Debian's
PostgreSQL on this machine's loopback, as the tests do (without fsync, which SQLite's WAL does not
wait for either at each commit).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
from bench_reindex import provide
from report import write_report

import mmsearch
from mmsearch.retrieval.catalog import Address, Catalog
from mmsearch.retrieval.filters import parse_where
from mmsearch.retrieval.schema import Caption, EncoderSpec, Picture, SortKey, Target

DIM = 256
WORDS = (
    "dog", "cat", "beach", "sunset", "house", "street", "car", "tree", "river", "mountain", "snow",
    "child", "ball", "boat", "red",
)  # fmt: skip


@contextmanager
def server(url: str | None) -> Iterator[str]:
    if url is not None:
        yield url
        return
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.postgres_server import made

    with made() as (start, _):
        yield start().url


def fill(catalog: Catalog, files: int) -> int:
    draw = np.random.default_rng(1)
    vectors = draw.normal(size=(files, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    spec = EncoderSpec("bench", "random", "1", "0" * 64, "{}", DIM)
    for start in range(0, files, 64):
        with catalog.write() as transaction:
            encoder_id = transaction.encoder_id(spec, "bench")
            if start == 0:
                transaction.activate(encoder_id)
            numbers = range(start, min(files, start + 64))
            pictures = [
                Picture(
                    f"{number % 40}/{WORDS[number % 15]} {number}.jpg", number, number * 10**9,
                    number.to_bytes(32, "big"), "JPEG", 1600, 1200, 1, None, None, None,
                    "Canon EOS R5", "",
                )
                for number in numbers
            ]  # fmt: skip
            # As a batch of pictures is indexed of which none was there.
            transaction.contents_among([picture.sha256 for picture in pictures])
            ids = transaction.add_files(pictures, encoder_id, vectors[numbers])
            transaction.add_captions(
                {
                    id_: [Caption(" ".join(draw.choice(WORDS, 6)), "sidecar")]
                    for id_, number in zip(ids, numbers, strict=True)
                    if number % 2
                }
            )
    with catalog.write() as transaction:
        transaction.forget_changes(catalog.stamp())
    return encoder_id


def questions(catalog: Catalog, encoder_id: int, files: int) -> dict[str, Callable[[], object]]:
    draw = np.random.default_rng(2)
    some = [int(id_) for id_ in draw.integers(1, files, 50)]
    like = parse_where("name LIKE '%beach%' AND size > 100")
    return {
        "50 rows": lambda: catalog.files(some),
        "50 vectors": lambda: catalog.stored_vectors(Target.IMAGES, encoder_id, DIM, some),
        "one word": lambda: catalog.words("sunset", Target.IMAGES, 100),
        "a sentence": lambda: catalog.words("a dog and a boat on the river", Target.IMAGES, 100),
        "a file name": lambda: catalog.words("beach 1217.jpg", Target.IMAGES, 100),
        "a filter": lambda: catalog.matching(like),
        "a sorted list": lambda: catalog.listed(like, SortKey.NAME, limit=50),
        "all vectors": lambda: catalog.file_vectors(encoder_id, DIM),
    }


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=600)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--asked", type=int, default=30)
    parser.add_argument("--url")
    options = parser.parse_args()
    indexing: dict[str, list[float]] = {"sqlite": [], "postgresql": []}
    filling: dict[str, float] = {}
    asking: dict[str, dict[str, list[float]]] = {}
    version = 0
    with server(options.url) as url, tempfile.TemporaryDirectory() as folder:
        for round_ in range(options.rounds):
            order = [("sqlite", None), ("postgresql", url)]
            for kind, catalog in order if round_ % 2 == 0 else order[::-1]:
                photos = Path(folder) / f"{kind}-{round_}"
                provide(photos, None, options.n)
                indexing[kind].append(mmsearch.index(photos, catalog=catalog).seconds)
        path = Path(folder) / "catalog.sqlite"
        address = Address.of(url, str(uuid.uuid4()))
        with (
            closing(Catalog.create(path)) as here,
            closing(Catalog.create(path, address=address)) as there,
        ):
            both = {"sqlite": here, "postgresql": there}
            ids = {}
            for kind, catalog_ in both.items():
                started = time.perf_counter()
                ids[kind] = fill(catalog_, options.files)
                filling[kind] = time.perf_counter() - started
            with there._connect() as connection:
                version = connection.exec_driver_sql("SHOW server_version_num").scalar_one()
                connection.exec_driver_sql("ANALYZE")
            asked = {kind: questions(both[kind], ids[kind], options.files) for kind in both}
            for name in asked["sqlite"]:
                asking[name] = {"sqlite": [], "postgresql": []}
                for _ in range(3 if name == "all vectors" else options.asked):
                    for kind in both:
                        asking[name][kind].append(timed(asked[kind][name]))

    def ratio(seconds: dict[str, list[float]]) -> float:
        middle = {kind: statistics.median(some) for kind, some in seconds.items()}
        return round(middle["postgresql"] / middle["sqlite"], 2)

    write_report(
        "postgresql",
        {
            "server_version": int(version),
            "load": [round(each, 1) for each in os.getloadavg()],
            "pictures": options.n,
            "index_seconds": {
                kind: [round(each, 2) for each in some] for kind, some in indexing.items()
            },
            "index_postgresql_over_sqlite": ratio(indexing),
            "files": options.files,
            "rows_written_per_second": {
                kind: round(options.files / seconds) for kind, seconds in filling.items()
            },
            "p50_ms": {
                name: {
                    kind: round(statistics.median(some) * 1000, 2) for kind, some in each.items()
                }
                for name, each in asking.items()
            },
            "postgresql_over_sqlite": {name: ratio(each) for name, each in asking.items()},
        },
        seed=1,
    )


if __name__ == "__main__":
    main()
