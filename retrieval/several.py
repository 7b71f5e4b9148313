"""Answers of several libraries as one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmsearch.retrieval.schema import Hit, Results

__all__ = ["Found", "merged"]


@dataclass(frozen=True, slots=True)
class Found:
    """One answer, and the name of the library that gave it; `rank` counts over all libraries."""

    library: str
    rank: int
    hit: Hit


def merged(answers: Mapping[str, Results], k: int | None = None) -> list[Found]:
    """Return the best `k` answers of several libraries, all of them if not given.

    Scores of different models, and of different libraries, cannot be compared; probabilities of
    matching can, and decide where every answer has one. Else libraries with one model are compared
    by score, and others take turns, by rank. The order within one library never changes: where its
    answers are reranked, grouped or sorted, each counts as its best one from there on.

    Args:
        answers: by the name of the library.
        k: at least 1.
    """
    if len(answers) == 1:
        (name, only), *_ = answers.items()
        return [Found(name, hit.rank, hit) for hit in only.hits[:k]]
    hits = [(name, hit) for name, found in answers.items() for hit in found.hits]
    if all(hit.match is not None for _, hit in hits):
        order = _by({name: [hit.match or 0.0 for hit in a.hits] for name, a in answers.items()})
    elif len({found.model for found in answers.values()}) == 1 and not any(
        math.isnan(hit.score) for _, hit in hits
    ):
        order = _by({name: [hit.score for hit in found.hits] for name, found in answers.items()})
    else:
        rows = zip_longest(
            *([(name, i) for i in range(len(a.hits))] for name, a in answers.items())
        )
        order = [place for row in rows for place in row if place is not None]
    return [Found(name, rank, answers[name].hits[i]) for rank, (name, i) in enumerate(order[:k], 1)]


def _by(values: dict[str, list[float]]) -> list[tuple[str, int]]:
    """Return (name, place) by the best value from each place on, greatest first.

    A merge of lists that keep their order: of each list, only what leads what is left can come
    next, and it stands for the best that it holds back.
    """
    keyed = []
    for name, row in values.items():
        best = float("-inf")
        for i in range(len(row) - 1, -1, -1):
            best = max(best, row[i])
            keyed.append((-best, name, i))
    return [(name, i) for _, name, i in sorted(keyed)]
