"""How long an answer takes at a thousand million vectors over sixteen nodes: a simulation.

No such cluster was there to be measured. What can be is measured here: the processor's time of one
search in one segment (a graph of `--segment` vectors of 512, asked with vectors like texts at an
effort that finds `RECALL` of the true ten) and of merging the lists of all shards. The rest is
assumed, each assumption by name in `Cluster`, and the JSON holds them all. Then questions arrive by
chance (Poisson), each goes to every shard, the shard's cores search its segments in the order of
arrival, and an answer is as late as its latest shard.

With two copies of each shard a question goes to the copy that is less busy; hedged, it goes to the
other one too where the first is late (J. Dean and L. A. Barroso, "The Tail at Scale", CACM 56,
2013).

usage: python bench_scale.py [--segment 200000] [--questions 20000]
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from dataclasses import asdict, dataclass, replace
from typing import Any

import faiss
import numpy as np
from bench_index import DIM, Mixture
from numpy.typing import NDArray
from report import write_report

K = 50
"""Candidates of every shard: an answer of ten is compared again by exact numbers."""
RECALL = 0.95
SEED = 11
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Cluster:
    """What is assumed.

    Attributes:
        vectors: in all.
        shards: machines that hold a part each.
        copies: machines that hold the same part.
        cores: of a machine, all of which search.
        segment: vectors in one graph. Milvus 2.3 seals a segment at 1 GiB, half a million of 512.
        slower: a core's time on a busy machine over that measured on one with nothing in its
            caches but one graph: memory is shared.
        network_ms: the median of the way to a shard and back, log-normal with `network_sigma`.
        pause_share: of a shard's searches, how many meet a pause (a compaction, a page fault, a
            neighbour), which takes up to `pause_ms`.
        around_ms: what every answer needs besides: embedding the text, looking up ten rows.
        hedge_at: the share of answers of a shard that are in when a second copy is asked.
        hedged_most: of a shard's searches, how many may be asked for twice. Without a bound, or
            with one of all shards together, one that is behind is asked twice for everything, and
            drowns.
    """

    vectors: int = 1_000_000_000
    shards: int = 16
    copies: int = 1
    cores: int = 32
    segment: int = 500_000
    slower: float = 1.5
    network_ms: float = 0.3
    network_sigma: float = 0.5
    pause_share: float = 0.001
    pause_ms: float = 50.0
    around_ms: float = 8.0
    hedge_at: float | None = None
    hedged_most: float = 0.05

    @property
    def segments(self) -> int:
        """Of one shard."""
        return -(-self.vectors // self.shards // self.segment)


def measured(segment: int, queries: int = 400) -> dict[str, Any]:
    """Return processor times (ms) of searches in one graph, and of merging all shards' lists."""
    mixture = Mixture(SEED)
    vectors, asked = mixture.images(segment, SEED + 1), mixture.texts(queries, SEED + 2)
    exact = faiss.IndexFlatIP(DIM)
    exact.add(vectors)
    truth = exact.search(asked, 10)[1]
    index = faiss.IndexHNSWFlat(DIM, 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 64
    began = time.process_time()
    index.add(vectors)
    built = time.process_time() - began
    faiss.omp_set_num_threads(1)
    for effort in (64, 96, 128, 192, 256, 384, 512, 768, 1024):
        index.hnsw.efSearch = effort
        times, found = [], 0
        for i, query in enumerate(asked):
            began = time.thread_time()
            ids = index.search(query[None], K)[1][0]
            times.append(1000 * (time.thread_time() - began))
            found += len(np.intersect1d(ids[:10], truth[i]))
        recall = found / truth.size
        if recall >= RECALL:
            break
    return {
        "segment": segment,
        "effort": effort,
        "recall@10": round(recall, 4),
        "build_processor_s": round(built, 1),
        "search_ms": {
            "mean": round(float(np.mean(times)), 4),
            "p50_p99": [round(float(p), 4) for p in np.percentile(times, (50, 99))],
        },
        "merge_ms": round(merging(Cluster().shards), 4),
        "times": times,
    }


def merging(shards: int) -> float:
    """Return the mean processor's time (ms) to make one list of all shards' lists."""
    generator = np.random.default_rng(SEED)
    scores = generator.random((shards, K)).astype(np.float32)
    ids = generator.integers(0, 1 << 60, (shards, K))
    began = time.thread_time()
    for _ in range(1000):
        best = np.argsort(-scores, axis=None, kind="stable")[:K]
        _ = ids.reshape(-1)[best], scores.reshape(-1)[best]
    return time.thread_time() - began


def searching(cluster: Cluster, times: Floats, generator: np.random.Generator) -> Floats:
    """Return `float64[cores]`, how long (ms) one question keeps each core of a machine busy.

    `times` are those of one segment; a core takes the next segment when it is done with one, which
    for many segments comes to the same as dealing them out.
    """
    drawn = generator.choice(times, (cluster.shards, cluster.segments)) * cluster.slower
    rounds = -(-cluster.segments // cluster.cores)
    dealt = np.zeros((cluster.shards, rounds * cluster.cores))
    dealt[:, : cluster.segments] = drawn
    return dealt.reshape(cluster.shards, rounds, cluster.cores).sum(axis=1)


def answered(
    cluster: Cluster, times: Floats, merge_ms: float, per_second: float, questions: int
) -> Floats:
    """Return `float64[questions]`, how long (ms) each answer takes."""
    generator = np.random.default_rng(SEED)
    # When each core of each machine is free.
    free = np.zeros((cluster.shards, cluster.copies, cluster.cores))
    rows = np.arange(cluster.shards)
    hedging = cluster.hedge_at is not None and cluster.copies > 1
    arrivals = np.cumsum(generator.exponential(1000 / per_second, questions))
    took = np.empty((questions, cluster.shards))
    # Searches that are asked for again, in the order in which they are: when, of which question,
    # of which shards, of which copies.
    again: deque[tuple[float, int, NDArray[np.int64], NDArray[np.int64]]] = deque()
    patience, settled = np.inf, questions // 10
    allowed = np.zeros(cluster.shards)
    for number, now in enumerate(arrivals.tolist()):
        while again and again[0][0] <= now:
            _ask_again(cluster, times, generator, free, took, arrivals, again.popleft())
        work = searching(cluster, times, generator)
        pause = generator.random(cluster.shards) < cluster.pause_share
        work += (pause * generator.uniform(0, cluster.pause_ms, cluster.shards))[:, None]
        chosen = free.sum(axis=2).argmin(axis=1)
        took[number] = _run(free, rows, chosen, now, work) + _way(cluster, generator)
        if hedging and number == settled:
            patience = float(np.quantile(took[:settled], cluster.hedge_at or 1.0))
        allowed = np.minimum(allowed + cluster.hedged_most, 1.0 + cluster.hedged_most)
        late = np.flatnonzero((took[number] > patience) & (allowed >= 1))
        if hedging and len(late):
            allowed[late] -= 1
            again.append((now + patience, number, late, (chosen[late] + 1) % cluster.copies))
    while again:
        _ask_again(cluster, times, generator, free, took, arrivals, again.popleft())
    # The first tenth fills the queues.
    latencies: Floats = took.max(axis=1)[settled:] + merge_ms + cluster.around_ms
    return latencies


def _ask_again(
    cluster: Cluster,
    times: Floats,
    generator: np.random.Generator,
    free: Floats,
    took: Floats,
    arrivals: Floats,
    asked: tuple[float, int, NDArray[np.int64], NDArray[np.int64]],
) -> None:
    """Ask other copies of shards too; the first answer counts."""
    when, number, shards, copies = asked
    work = searching(cluster, times, generator)[shards]
    second = _run(free, shards, copies, when, work) + _way(cluster, generator)[shards]
    took[number, shards] = np.minimum(took[number, shards], when - arrivals[number] + second)


def _way(cluster: Cluster, generator: np.random.Generator) -> Floats:
    """Return `float64[shards]`, the way there and back (ms)."""
    way: Floats = generator.lognormal(
        np.log(cluster.network_ms), cluster.network_sigma, cluster.shards
    )
    return way


def _run(
    free: Floats, rows: NDArray[np.int64], chosen: NDArray[np.int64], now: float, work: Floats
) -> Floats:
    """Let machines work; return how long each takes from `now` on, waiting included."""
    cores = np.sort(free[rows, chosen], axis=1)
    done = np.maximum(cores, now) + work
    free[rows, chosen] = done
    finished: Floats = done.max(axis=1) - now
    return finished


def figures(latencies: Floats) -> dict[str, float]:
    """Return percentiles (ms)."""
    names = ("p50", "p95", "p99", "p99.9")
    values = np.percentile(latencies, (50, 95, 99, 99.9))
    return {name: round(float(value), 1) for name, value in zip(names, values, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--segment", type=int, default=200_000)
    parser.add_argument("--questions", type=int, default=20_000)
    arguments = parser.parse_args()
    found = measured(arguments.segment)
    times = np.array(found.pop("times"))
    merge_ms = found["merge_ms"]
    base = Cluster()
    # A graph's search grows with the logarithm of its size.
    times *= np.log(base.segment) / np.log(arguments.segment)
    busy_ms = base.segments * float(times.mean()) * base.slower / base.cores
    most = 1000 / busy_ms
    ways = {
        "16 machines": base,
        "32 machines, two copies": replace(base, copies=2),
        "32 machines, two copies, hedged at 95 %": replace(base, copies=2, hedge_at=0.95),
        "16 machines without pauses": replace(base, pause_share=0.0),
    }
    loads: dict[str, Any] = {}
    for share in (0.1, 0.3, 0.5, 0.7, 0.85):
        each: dict[str, Any] = {}
        for name, cluster in ways.items():
            rate = share * most * cluster.copies
            latencies = answered(cluster, times, merge_ms, rate, arguments.questions)
            each[name] = {"questions_per_second": round(rate, 1), "ms": figures(latencies)}
        loads[f"{share:.0%} busy"] = each
    write_report(
        "scale",
        {
            "kind": "simulation: no such cluster was measured",
            "measured": found,
            "assumed": asdict(base),
            "segments_of_a_shard": base.segments,
            "machine_ms_per_question": round(busy_ms, 2),
            "most_questions_per_second_of_one_copy": round(most, 1),
            "loads": loads,
        },
        seed=SEED,
    )


if __name__ == "__main__":
    main()
