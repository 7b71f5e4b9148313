"""Answers as rows and records: what every way of showing them is made from."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsearch.retrieval.addresses import address_of, shown
from mmsearch.retrieval.confidence import confidence
from mmsearch.retrieval.schema import Hit

if TYPE_CHECKING:
    from mmsearch.retrieval.schema import Reranking, Results

__all__ = [
    "Row",
    "cells_of",
    "described_reranking",
    "each_picture_once",
    "field_names",
    "record_of",
    "row_of",
    "shell_path",
]


@dataclass(frozen=True, slots=True)
class Row:
    """One answer in words, for people; names are as the file system has them."""

    rank: str
    score: str
    date: str
    path: str
    caption: str | None
    similar: str | None
    reranked: str | None = None

    @property
    def facts(self) -> tuple[str, ...]:
        """What stands before the path."""
        return self.rank, self.score, self.date

    @property
    def about(self) -> list[str]:
        """What is known of it beside its name and caption."""
        known = [fact for fact in self.facts if fact != "-"]
        return known if self.similar is None else [*known, self.similar]

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.path.rpartition("/")[2]


def row_of(hit: Hit, *, people: bool = True) -> Row:
    """Return what people read about a hit; programs read the plain score."""
    return Row(
        rank=str(hit.rank),
        score=_told(hit) if people else _score(hit),
        date=hit.taken_at.date().isoformat() if hit.taken_at else "-",
        path=hit.path,
        caption=hit.caption,
        similar=f"▸ {len(hit.others)} similar" if hit.others and people else None,
        reranked=_reranked(hit),
    )


def _told(hit: Hit) -> str:
    """Say how well a hit fits: in words where that is known, else by its score."""
    if hit.match is not None:
        return confidence(hit.match)
    return _score(hit)


def _reranked(hit: Hit) -> str | None:
    """Say where a reranker moved a hit from, and both scores."""
    if hit.rerank_score is None:
        return None
    return f"reranked from {hit.first_rank} ({hit.rerank_score:.3f}, cosine {_score(hit)})"


def described_reranking(rerank: Reranking) -> str:
    """Say in words how much of what was asked a reranker did."""
    done = f"{rerank.model} reranked {rerank.reranked} of {rerank.candidates}"
    return f"{done} in {rerank.budget_ms:g} ms" if rerank.late else done


def _score(hit: Hit) -> str:
    return "-" if math.isnan(hit.score) else f"{hit.score:.3f}"


def record_of(results: Results, hit: Hit) -> dict[str, Any]:
    """Return what programs read about a hit: its JSON fields and `file`, its absolute path.

    What a server found has no file here, but the library's name and the picture's id.
    """
    if results.library is None:
        return hit.to_json()
    return hit.to_json() | {"file": shown(results.file(hit))}


def field_names(records: Iterable[dict[str, Any]]) -> list[str]:
    """Return the names of all fields, in order; of no record, those that every record has."""
    names = dict.fromkeys(name for record in records for name in record)
    return list(names) or [*Hit(0, 0, "", 0.0).to_json(), "file"]


def cells_of(record: dict[str, Any], names: Iterable[str]) -> list[str]:
    """Return a record's fields as text: nothing for none, JSON for what has parts of its own."""
    values = (record.get(name) for name in names)
    return [
        "" if value is None else value if isinstance(value, str) else json.dumps(value)
        for value in values
    ]


def each_picture_once(results: Results) -> list[Hit]:
    """Return the best hit of each picture, best first: several captions may have found one."""
    best: dict[tuple[str | None, str], Hit] = {}
    for hit in results.hits:
        best.setdefault((hit.library, hit.path), hit)
    return list(best.values())


def shell_path(results: Results, hit: Hit, working: Path) -> str:
    """Return a path that a program started in `working` can open.

    It is relative to `working` where the library is that folder or lies below it, else absolute,
    and never begins with a dash, which would read as an option. What a server found is told from
    its library's folder on.
    """
    if results.library is None:
        return f"./{hit.path}" if hit.path.startswith("-") else hit.path
    if (address := address_of(results.file(hit))) is not None:
        return address
    try:
        relative = os.fspath(results.library.relative_to(working) / hit.path)
    except ValueError:
        return shown(results.file(hit))
    return f"./{relative}" if relative.startswith("-") else relative
