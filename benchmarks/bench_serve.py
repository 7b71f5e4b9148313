"""Load on `mmsearch serve`: 50 clients who ask without pause, of a library of 100,000 pictures.

Each asks a real caption that nobody asked before, over its own connection, as soon as it has its
answer. The server runs in a process of its own, with batches and without (`--batch 1`), in turns;
in between the encoder's own throughput is measured, in batches and one text after the other. The
library is that of `bench_overhead.py`.

usage: python bench_serve.py DATA [--library FOLDER] [--clients 50] [--seconds 30] [--rounds 2]
DATA holds val.tsv, train.tsv, test.tsv (path, caption) and images/. FOLDER is a library that was
filled before; without it one is made, which takes minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from bench_overhead import fill
from report import write_report

import mmsearch
from mmsearch.retrieval.encoders import Encoder

BATCHES = (16, 1)
SAMPLE = 512
"""Captions that the encoder is timed with."""


def captions_of(data: Path) -> list[str]:
    """Return every caption once, in an order of its own."""
    found: dict[str, None] = {}
    for name in ("val", "test", "train"):
        with (data / f"{name}.tsv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                found[row["caption"]] = None
    captions = [*found]
    np.random.default_rng(3).shuffle(captions)
    return captions


@contextmanager
def served(folder: Path, batch: int) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Serve a library in a process of its own; yield it and its port."""
    command = (sys.executable, "-m", "mmsearch.cli", "serve", str(folder))
    process = subprocess.Popen(
        [*command, "--port", "0", "--batch", str(batch), "--device", "cpu"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        found = re.search(r"http://[^/]*:(\d+)/", process.stderr.readline())
        assert found, process.stderr.read()
        yield process, int(found[1])
    finally:
        process.terminate()
        process.wait(60)


def rss_mib(pid: int) -> float | None:
    """Return the memory that a process holds; None where the system does not say."""
    status = Path(f"/proc/{pid}/status")
    if not status.is_file():
        return None
    found = re.search(r"VmRSS:\s+(\d+) kB", status.read_text())
    return round(int(found[1]) / 1024, 1) if found else None


def cpu_s(pid: int) -> float | None:
    """Return the processor's seconds that a process took."""
    stat = Path(f"/proc/{pid}/stat")
    if not stat.is_file():
        return None
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def batches(port: int) -> tuple[float, float]:
    """Return how many questions were answered, and in how many batches."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
        text = reply.read().decode()
    return tuple(
        float(re.search(rf"^mmsearch_batch_size_{what} (\S+)", text, re.M)[1])  # type: ignore[index]
        for what in ("sum", "count")
    )


class Load:
    """Clients who ask without pause."""

    def __init__(self, port: int, texts: Iterator[str]) -> None:
        self.port = port
        self.texts = texts
        self.seconds: list[float] = []
        self.failed: list[str] = []

    async def client(self, until: float) -> None:
        """Ask until the time is over."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        while (started := time.perf_counter()) < until:
            path = f"/api/v1/search?q={quote(next(self.texts))}"
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            body = await reader.readexactly(int(length[1])) if length else b""
            self.seconds.append(time.perf_counter() - started)
            if not head.startswith(b"HTTP/1.1 200"):
                self.failed.append(body[:200].decode(errors="replace"))
        writer.close()

    async def run(self, clients: int, seconds: float) -> None:
        """Have as many clients ask for as long."""
        until = time.perf_counter() + seconds
        await asyncio.gather(*(self.client(until) for _ in range(clients)))


def loaded(
    folder: Path, batch: int, texts: Iterator[str], clients: int, seconds: float
) -> dict[str, Any]:
    """Return the figures of one server under load."""
    with served(folder, batch) as (process, port):
        asyncio.run(Load(port, texts).run(clients, 3))  # Loaded, and its memory at its height.
        asked, count = batches(port)
        begun, memory = cpu_s(process.pid), [rss_mib(process.pid)]
        load = Load(port, texts)
        started = time.perf_counter()
        for _ in range(2):
            asyncio.run(load.run(clients, seconds / 2))
            memory.append(rss_mib(process.pid))
        took = time.perf_counter() - started
        ended = cpu_s(process.pid)
        after, count_after = batches(port)
    return {
        "batch": batch,
        "answers": len(load.seconds),
        "errors": len(load.failed),
        "first_error": next(iter(load.failed), None),
        "per_second": round(len(load.seconds) / took, 1),
        "ms_p50_p95_p99": np.percentile(np.array(load.seconds) * 1000, [50, 95, 99])
        .round(1)
        .tolist(),
        "mean_batch": round((after - asked) / max(1, count_after - count), 2),
        "rss_mib_start_middle_end": memory,
        "server_cpu_ms_each": None
        if begun is None or ended is None
        else round(1000 * (ended - begun) / max(1, len(load.seconds)), 2),
    }


def encoder_figures(encoder: Encoder, texts: list[str]) -> dict[str, float]:
    """Return texts a second: in batches as large as a server's, and one after the other."""
    rates = {}
    for name, size in (("batch_16", 16), ("batch_64", 64), ("single", 1)):
        some = texts[:SAMPLE] if size > 1 else texts[: SAMPLE // 4]
        started = time.perf_counter()
        for i in range(0, len(some), size):
            encoder.encode_texts(some[i : i + size])
        rates[name] = round(len(some) / (time.perf_counter() - started), 1)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--library", type=Path)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    encoder = mmsearch.load_encoder()
    captions = captions_of(options.data)
    texts = iter(captions[SAMPLE:] * 9)
    rounds = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.library
        if folder is None:
            folder = Path(temporary)
            fill(folder, encoder, options.data, options.files)
        encoder.encode_texts(captions[:64])
        for _ in range(options.rounds):
            figures: dict[str, Any] = {
                "encoder_texts_per_second": encoder_figures(encoder, captions)
            }
            for batch in BATCHES:
                told = loaded(folder, batch, texts, options.clients, options.seconds)
                print(json.dumps(told), file=sys.stderr)
                figures[f"batch_{batch}"] = told
            figures["with_batches_over_without"] = round(
                figures["batch_16"]["per_second"] / figures["batch_1"]["per_second"], 2
            )
            figures["share_of_encoder_in_batches"] = round(
                figures["batch_16"]["per_second"] / figures["encoder_texts_per_second"]["batch_16"],
                2,
            )
            rounds.append(figures)
    write_report(
        "serve",
        {
            "files": options.files,
            "clients": options.clients,
            "seconds": options.seconds,
            "distinct_captions": len(captions),
            "rounds": rounds,
            "median": {
                name: round(statistics.median(each[name] for each in rounds), 2)
                for name in ("with_batches_over_without", "share_of_encoder_in_batches")
            },
        },
        seed=3,
    )


if __name__ == "__main__":
    main()
