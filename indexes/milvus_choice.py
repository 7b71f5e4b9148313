"""Which index a Milvus collection gets, by its size and by what its server can make."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mmsearch.errors import StoreError

__all__ = ["KINDS", "IndexSpec", "Kind", "choose"]

Kind = Literal["flat", "hnsw", "ivf-sq8", "scann", "gpu-cagra"]
KINDS: tuple[Kind, ...] = get_args(Kind)

EXACT_NUMBERS = 25_000_000
"""Numbers in all vectors (50,000 of 512) up to which every one is compared: about 10 ms."""
GRAPH_DEGREE, GRAPH_EFFORT = 32, 128
"""HNSW's M and efConstruction (Malkov and Yashunin, 2018)."""

_SINCE: Mapping[str, tuple[int, int]] = {
    "flat": (2, 0),
    "hnsw": (2, 0),
    "ivf-sq8": (2, 0),
    "scann": (2, 3),
    "gpu-cagra": (2, 4),
}
"""The server's version from which on it can make an index. One that cannot would try for ever."""
_TYPES: Mapping[str, str] = {
    "flat": "FLAT",
    "hnsw": "HNSW",
    "ivf-sq8": "IVF_SQ8",
    "scann": "SCANN",
    "gpu-cagra": "GPU_CAGRA",
}


@dataclass(frozen=True, slots=True)
class IndexSpec:
    """An index as Milvus is told to make it.

    Attributes:
        kind: which.
        params: what it is built with.
    """

    kind: Kind
    params: Mapping[str, int]

    @property
    def type(self) -> str:
        """Milvus's name for the kind."""
        return _TYPES[self.kind]

    @property
    def exact(self) -> bool:
        """Whether a search compares every vector."""
        return self.kind == "flat"

    @property
    def lossy(self) -> bool:
        """Whether what it compares is less than the vectors, so that scores must be made good."""
        return self.kind in {"ivf-sq8", "scann"}

    @property
    def graph(self) -> bool:
        """Whether it walks from neighbour to neighbour, which a filter hinders."""
        return self.kind in {"hnsw", "gpu-cagra"}

    @property
    def deepest(self) -> int:
        """How many neighbours are looked at for those that a filter lets through, at most.

        Beyond 4,096 walking through the filter is quicker; a GPU's graph gives 1,024.
        """
        return 1_024 if self.kind == "gpu-cagra" else 4_096

    @property
    def efforts(self) -> tuple[int, ...]:
        """How hard a search may look, ascending: `ef` of a graph, `nprobe` of lists."""
        if self.exact:
            return ()
        if self.kind == "hnsw":
            return 32, 64, 128, 256, 512, 1024
        if self.kind == "gpu-cagra":
            return 32, 64, 128, 256, 512
        lists = self.params["nlist"]
        shares = (1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
        return tuple(sorted({max(1, round(share * lists)) for share in shares}))

    def search_params(self, effort: int, k: int) -> dict[str, Any]:
        """Return what a search for `k` is told."""
        if self.exact:
            return {}
        if self.kind == "hnsw":
            return {"ef": max(effort, k)}
        if self.kind == "gpu-cagra":
            return {"itopk_size": max(32, effort, -(-k // 32) * 32), "search_width": 4}
        probed = {"nprobe": min(effort, self.params["nlist"])}
        return probed | ({"reorder_k": max(4 * k, 50)} if self.kind == "scann" else {})

    def wider(self, effort: int, share: float) -> int:
        """Return the effort that a filter takes which lets a share of the vectors through.

        Of what a graph's walk meets fewer are answers: with 45 % let through, an effort of 32
        found 0.964 and one of 64 0.978. Where very little is allowed, the server compares all of
        that. Of lists, those that are looked into hold fewer answers.
        """
        if self.kind == "hnsw":
            return (
                effort if share >= 1 else min(self.efforts[-1], math.ceil(effort / max(share, 0.1)))
            )
        if self.kind in {"ivf-sq8", "scann"}:
            return min(self.params["nlist"], math.ceil(effort / max(share, 1e-9)))
        return effort


def choose(
    n: int,
    dim: int,
    version: tuple[int, int],
    *,
    kind: str | None = None,
    recall: float = 0.99,
    memory_bytes: int | None = None,
) -> IndexSpec:
    """Return the index for `n` vectors of length `dim`.

    Every vector is compared as long as that is quick; then a graph, which keeps its recall under
    filters, where lists lose it (0.74 of 1 at 16 of 512 lists, measured with a filter of 5 %);
    lists of 8-bit codes where the graph does not fit the memory.

    Args:
        n: how many there will be.
        dim: their length.
        version: the server's.
        kind: this one, whatever fits.
        recall: 1 for exact search whatever it takes.
        memory_bytes: what searching may keep in memory, on all servers together.

    Raises:
        StoreError: there is no such kind, or this server cannot make it.
    """
    if kind is not None and kind not in KINDS:
        raise StoreError(f"A Milvus store has no index '{kind}'; it has {', '.join(KINDS)}.")
    chosen: Kind = next((each for each in KINDS if each == kind), "hnsw")
    if kind is None:
        if recall == 1 or n * dim <= EXACT_NUMBERS:
            chosen = "flat"
        elif memory_bytes is not None and n * (4 * dim + 10 * GRAPH_DEGREE) > memory_bytes:
            chosen = "ivf-sq8"
    if version < _SINCE[chosen]:
        since, now = (".".join(map(str, each)) for each in (_SINCE[chosen], version))
        raise StoreError(
            f"The index '{chosen}' needs Milvus {since} or later; the server is {now}. Update it, "
            "or choose another kind."
        )
    return IndexSpec(chosen, _build_params(chosen, n))


def _build_params(kind: Kind, n: int) -> dict[str, int]:
    match kind:
        case "flat":
            return {}
        case "hnsw":
            return {"M": GRAPH_DEGREE, "efConstruction": GRAPH_EFFORT}
        case "gpu-cagra":
            return {"intermediate_graph_degree": 64, "graph_degree": 32}
    return {"nlist": min(65_536, max(16, round(4 * math.sqrt(n))))}
