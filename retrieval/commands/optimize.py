"""`mmsearch optimize`: measure which index a library needs, and make it."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmsearch.retrieval.commands.options import (
    EXIT_INTERRUPTED,
    Json,
    LibraryOption,
    Wait,
    chosen_library,
    described_search,
)
from mmsearch.retrieval.terminal import print_json, progress_bar, say, terminate_like_interrupt

if TYPE_CHECKING:
    from mmsearch.indexes import VectorIndex

__all__ = ["optimize"]

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class IndexKind(StrEnum):
    """What `indexes.build` can be told to make."""

    FLAT = "flat"
    IVF_RABITQ = "ivf-rabitq"
    IVF_SQ8 = "ivf-sq8"
    HNSW = "hnsw"
    SCANN = "scann"
    GPU_CAGRA = "gpu-cagra"


_OF_STORES = (IndexKind.SCANN, IndexKind.GPU_CAGRA)


def memory_argument(text: str) -> int:
    """Parse an amount of memory such as 500M or 2G; it is in bytes without a unit."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if found is None:
        raise typer.BadParameter(f"{text!r} is no amount of memory; write 500M or 2G")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def optimize(
    recall: Annotated[
        float,
        typer.Option(
            min=0.5,
            max=1.0,
            help="The share of the true first ten that must be found; 1 is exact search always.",
        ),
    ] = 0.99,
    memory: Annotated[
        int | None,
        typer.Option(
            parser=memory_argument,
            metavar="SIZE",
            help="What searching may keep in memory, such as 500M or 2G.",
        ),
    ] = None,
    exact_ms: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="MILLISECONDS",
            help="Compare every picture as long as one query takes no longer than this.",
        ),
    ] = 25.0,
    kind: Annotated[
        IndexKind | None,
        typer.Option(
            help="The kind of index, whatever fits best. Not given: what fits best. A store has "
            "flat, hnsw, ivf-sq8, scann and gpu-cagra."
        ),
    ] = None,
    library: LibraryOption = None,
    wait: Wait = None,
    as_json: Json = False,
) -> None:
    """Measure which index a library needs, and make it: exact while that is fast enough.

    Beyond, the index is tuned on the library's own vectors, pictures and captions, until it finds
    the share that is asked for. What is chosen here holds for later runs of mmsearch index too.

    \b
    Examples: mmsearch optimize
              mmsearch optimize --recall 0.995 --memory 2G
    """  # noqa: D301 (the backspace keeps the lines apart)
    from mmsearch.retrieval.library import Library
    from mmsearch.retrieval.schema import Target

    opened = Library.open(chosen_library(library))
    if kind in _OF_STORES and opened.config.store is None:
        raise typer.BadParameter(f"{kind.value} is an index of a Milvus store", param_hint="--kind")
    settings: dict[str, Any] = {
        "recall": recall,
        "memory_bytes": memory,
        "exact_ms": exact_ms,
        "kind": None if kind is None else kind.value,
    }
    terminate_like_interrupt()
    made = {}
    try:
        with opened.indexing(wait or 0), progress_bar() as show:
            row = opened.catalog.library()
            for target in Target:
                started = time.perf_counter()
                index = opened.build_index(target, row, settings=settings, progress=show)
                made[target.value] = _Made(index, time.perf_counter() - started)
    except KeyboardInterrupt:
        say("Interrupted. What was there before answers queries as before.")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    finally:
        opened.close()
    if as_json:
        fields = {name: each.to_json() for name, each in made.items()}
        print_json({"schema": 1, "library": str(opened.root), "indexes": fields})
    for name, each in made.items():
        say(f"{name}: {each.in_words()}")


@dataclass(frozen=True, slots=True)
class _Made:
    """An index that was made, and how long that took."""

    index: VectorIndex
    seconds: float

    @property
    def facts(self) -> dict[str, Any]:
        return getattr(self.index, "facts", {})

    def to_json(self) -> dict[str, Any]:
        """Return the object of one index in `optimize --json`."""
        index, facts = self.index, self.facts
        return {
            "vectors": len(index),
            "search": "exact" if index.exact else "approximate",
            "recall": index.recall,
            "measured": facts.get("recall"),
            "other_queries": facts.get("others"),
            "latency_ms": facts.get("latency_ms"),
            "seconds": round(self.seconds, 2),
        }

    def in_words(self) -> str:
        """Return the line that tells a person."""
        parts = [f"{len(self.index):,} vectors"]
        parts.append(f"{described_search(self.index.exact, self.index.recall)} search")
        measured = self.facts.get("recall")
        if measured is not None:
            imitated = " (imitated)" if self.facts["others"] == "imitated" else ""
            parts.append(
                f"own kind of query {measured['own']:.3f}, other kind{imitated} "
                f"{measured['others']:.3f}"
            )
        latency = self.facts.get("latency_ms")
        if latency is not None:
            parts.append(f"{latency['p50']:.2f} ms a query")
        return " · ".join(parts) + f" ({self.seconds:.1f} s)"
