"""Which index to build: exact while that is fast enough, otherwise tuned on its own vectors."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from mmsearch.indexes.base import VectorIndex
from mmsearch.indexes.faiss import FaissIndex
from mmsearch.indexes.faiss_approximate import ApproximateIndex, Kind
from mmsearch.indexes.faiss_hnsw import HnswIndex
from mmsearch.indexes.faiss_ivf import train
from mmsearch.indexes.other_queries import HELD_OUT, other_queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vectors = NDArray[np.float16] | NDArray[np.float32]

__all__ = ["Choice", "Settings", "build", "outgrown"]

Choice = Kind | Literal["flat"]
KINDS = ("flat", *get_args(Kind))

logger = logging.getLogger(__name__)

K = 10
"""Recall is measured among the first ten."""
MARGIN = 0.25
"""Share of the allowed loss by which tuning must do better: it chooses, so it flatters itself."""
TIMED = 40
ADDED_AT_ONCE = 1 << 15
NEVER_BELOW = 10_000
"""Vectors up to which an exact scan is a matter of course (k-means has nothing to gain)."""
TOO_FEW = 1_000
"""Vectors up to which search is exact even where another kind is asked for: none could be tuned."""
TRAINED_PER_LIST = 64
GROWTH = 3.0
"""From so many times the vectors it was trained for, an index is made anew."""
WASTE = 0.3
"""So is one with such a share of rows whose vectors were removed."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is asked of an index.

    Attributes:
        recall: the share of the true first ten that must be found; 1 means exact search.
        exact_ms: search is exact as long as one query takes no more milliseconds on one core.
        memory_bytes: what searching may keep in memory; None where it does not matter. Vectors in
            half precision that do not fit are read from the disk for the shortlist alone.
        kind: the kind of index, whatever exact search would take; None for the one that fits best.
            A thousand vectors and less are always searched exactly.
    """

    recall: float = 0.99
    exact_ms: float = 25.0
    memory_bytes: int | None = None
    kind: Choice | None = None

    def __post_init__(self) -> None:
        if not 0.5 <= self.recall <= 1:
            raise ValueError(f"recall must be between 0.5 and 1, not {self.recall}")
        if self.kind not in (None, *KINDS):
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {self.kind!r}")


Progress = Callable[[str, int, int], None]


def build(
    ids: NDArray[np.int64],
    vectors: Vectors,
    settings: Settings,
    *,
    queries: NDArray[np.float32] | None = None,
    for_now: bool = False,
    seed: int = 0,
    progress: Progress = lambda *_: None,
) -> VectorIndex:
    """Return the index that fits `float16` or `float32[n, dim]` unit vectors best.

    An approximate one is tuned on vectors held out of it and on `queries`, to the cheapest search
    that reaches `settings.recall` with both. Its facts tell what was measured, on other queries of
    both kinds.

    Args:
        ids: `int64[n]`.
        vectors: float16 or `float32[n, dim]`, unit rows.
        settings: what is asked of it.
        queries: `float32[q, dim]`, a sample of what is asked and comes from elsewhere (text vectors
            where pictures are searched). They are imitated where fewer than a hundred are given,
            which the index's facts say.
        for_now: make an exact one at once, which `outgrown` will say should be another.
        seed: of samples.
        progress: called with a stage, how much of it is done and how much there is.
    """
    n, dim = vectors.shape
    flat: FaissIndex | None = None
    if for_now or n <= TOO_FEW or settings.kind in (None, "flat"):
        always = (
            for_now
            or n <= TOO_FEW
            or settings.kind == "flat"
            or (settings.kind is None and (n <= NEVER_BELOW or settings.recall == 1))
        )
        if always or _fits(n, dim, settings):
            flat = FaissIndex(dim)
            _add(flat, ids, vectors, lambda done, total: progress("index", done, total))
            flat.facts = _facts(settings, n)
            if n > NEVER_BELOW:
                took = _milliseconds(flat, vectors[:20].astype(np.float32))
                flat.facts["latency_ms"] = {"p50": round(took, 3)}
                always = always or took <= settings.exact_ms
            if always:
                return flat
    kind = settings.kind
    chosen = _kind(n, dim, settings.memory_bytes) if kind is None or kind == "flat" else kind
    return _approximate(ids, vectors, flat, settings, queries, chosen, seed, progress)


def outgrown(index: VectorIndex) -> bool:
    """Say whether an index has grown, or shrunk, so much that `build` would make another."""
    facts: dict[str, Any] = getattr(index, "facts", {})
    if "settings" not in facts:
        return False
    settings = Settings(**facts["settings"])
    n, built_for = len(index), max(1, facts["built_for"])
    if "recall" in facts:
        wasted = getattr(getattr(index, "base", index), "wasted", 0.0)
        return wasted > WASTE or not built_for / GROWTH <= n <= GROWTH * built_for
    if settings.kind is not None:
        return settings.kind != "flat" and n > TOO_FEW
    if n <= NEVER_BELOW or settings.recall == 1:
        return False
    if not _fits(n, index.dim, settings) or "latency_ms" not in facts:
        return True
    return bool(facts["latency_ms"]["p50"] * n / built_for > settings.exact_ms)


def _fits(n: int, dim: int, settings: Settings) -> bool:
    """Say whether all vectors, in half precision, may stay in memory."""
    return settings.memory_bytes is None or n * (2 * dim + 8) <= settings.memory_bytes


def _kind(n: int, dim: int, memory_bytes: int | None) -> Kind:
    codes = n * (dim // 8 + 24)
    if memory_bytes is not None and codes > memory_bytes:
        logger.warning(
            "the smallest index takes %.1f GB of memory, more than the %.1f GB allowed",
            codes / 1e9,
            memory_bytes / 1e9,
        )
    # One bit a coordinate: faster than eight at every recall that was measured, in less memory.
    return "ivf-rabitq"


def _facts(settings: Settings, n: int) -> dict[str, Any]:
    return {"settings": asdict(settings), "built_for": n}


def _approximate(
    ids: NDArray[np.int64],
    vectors: Vectors,
    flat: FaissIndex | None,
    settings: Settings,
    queries: NDArray[np.float32] | None,
    kind: Kind,
    seed: int,
    progress: Progress,
) -> VectorIndex:
    generator = np.random.default_rng(seed)
    n = len(vectors)
    held_out = np.sort(generator.choice(n, min(HELD_OUT, n // 10), replace=False))
    rest = np.delete(np.arange(n), held_out)
    index = _empty(vectors, rest, kind, generator, lambda d, t: progress("train", d, t))
    own = vectors[held_out].astype(np.float32)
    others, origin = other_queries(queries, own, generator)
    truth = flat
    if truth is None:
        truth = FaissIndex(vectors.shape[1])
        _add(truth, ids, vectors)
    # What is held out of the index must not be found by comparing everything either.
    truth.remove(ids[held_out])
    asked = {"own": own, "others": others}
    right = {name: truth.search(rows, K).ids for name, rows in asked.items()}
    del truth, flat
    _add(index, ids[rest], vectors[rest], lambda done, total: progress("index", done, total))
    halves = {
        part: {name: (rows[start::2], right[name][start::2]) for name, rows in asked.items()}
        for start, part in enumerate(("tuning", "measuring"))
    }
    _tune(index, halves["tuning"], settings.recall, lambda d, t: progress("tune", d, t))
    recall = {name: _recall(index, *pair) for name, pair in halves["measuring"].items()}
    times = _times(index, others)
    index.add(ids[held_out], own)
    index.facts = _facts(settings, n) | {
        "recall": {name: round(value, 4) for name, value in recall.items()},
        "others": origin,
        "queries": {name: len(pair[0]) for name, pair in halves["measuring"].items()},
        "latency_ms": {f"p{p}": round(float(np.percentile(times, p)), 3) for p in (50, 95)},
    }
    return index


def _empty(
    vectors: Vectors,
    rest: NDArray[np.int64],
    kind: Kind,
    generator: np.random.Generator,
    progress: Callable[[int, int], None],
) -> ApproximateIndex:
    """Return an empty index, trained on some of the `rest` of the vectors where it needs that."""
    if kind == "hnsw":
        return HnswIndex(vectors.shape[1])
    n = len(vectors)
    lists = max(4, min(1 << round(math.log2(4 * math.sqrt(n))), n // 8))
    trained = min(TRAINED_PER_LIST * lists, len(rest))
    sample = np.sort(generator.choice(rest, trained, replace=False))
    return train(vectors[sample].astype(np.float32), lists, kind, progress=progress)


def _tune(
    index: ApproximateIndex,
    asked: dict[str, tuple[NDArray[np.float32], NDArray[np.int64]]],
    target: float,
    progress: Callable[[int, int], None],
) -> None:
    """Set the effort and the shortlist that reach the target soonest."""
    needed = target + MARGIN * (1 - target)
    best: tuple[float, int, int] | None = None
    efforts = list(index.efforts())
    for done, shortlist in enumerate(index.shortlists):
        progress(done, len(index.shortlists))
        if 4 * shortlist >= len(index):
            break  # a search would compare everything
        index.shortlist = shortlist
        # A longer shortlist never needs more effort than a shorter one did.
        before = 0.0
        for left, effort in zip(range(len(efforts) - 1, -1, -1), efforts, strict=True):
            index.effort = effort
            recall = min(_recall(index, *pair) for pair in asked.values())
            if recall >= needed:
                hardest = asked["others"][0]
                took = float(np.median(_times(index, hardest)))
                if best is None or took < best[0]:
                    best = took, effort, shortlist
                efforts = [e for e in efforts if e <= effort]
                break
            # Each step gains less than the one before, but for the first, which all look into as
            # many lists as the shortlist takes to fill.
            if recall > before and recall + left * (recall - before) < needed:
                break
            before = recall
    progress(len(index.shortlists), len(index.shortlists))
    if best is None:
        logger.warning("no setting reaches a recall of %s; every vector is compared", target)
        index.effort = index.most_effort
    else:
        _, index.effort, index.shortlist = best


def _recall(index: VectorIndex, queries: NDArray[np.float32], right: NDArray[np.int64]) -> float:
    found = index.search(queries, K).ids
    hits = (found[:, :, None] == right[:, None, :]) & (right >= 0)[:, None, :]
    return float(hits.sum() / max(1, (right >= 0).sum()))


def _times(index: VectorIndex, queries: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return what each of some queries takes, in milliseconds, one after the other."""
    return np.array([_milliseconds(index, query[None]) for query in queries[:TIMED]])


def _milliseconds(index: VectorIndex, queries: NDArray[np.float32]) -> float:
    """Return what one of a few queries takes at best: other programs only ever add to it."""
    best = math.inf
    for query in queries:
        started = time.perf_counter()
        index.search(query, K)
        best = min(best, time.perf_counter() - started)
    return 1000 * best


def _add(
    index: VectorIndex,
    ids: NDArray[np.int64],
    vectors: Vectors,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> None:
    for start in range(0, len(ids), ADDED_AT_ONCE):
        some = slice(start, start + ADDED_AT_ONCE)
        progress(start, len(ids))
        index.add(ids[some], vectors[some])
    progress(len(ids), len(ids))
