"""Words beside vectors: one ranking of what both find, and whether words help."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from mmsearch.retrieval.fusion import reciprocal_rank

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    Ranking = Sequence[tuple[int, float]]

__all__ = ["DEPTH", "fuse_words", "helps"]

DEPTH = 50
"""How many answers of either kind are worth fusing, at least: 200 found no more."""

ABSENT = 2**40
"""The rank of what a ranking could have found and did not: it adds nothing that shows."""


def fuse_words(
    vectors: Ranking, words: Ranking, k: int, *, described: Collection[int] | None = None
) -> list[tuple[int, float]]:
    """Return ids and fused scores, best first, of up to `k` answers that either ranking has.

    Reciprocal rank fusion (`fusion.reciprocal_rank`), with one addition. Where only some pictures
    have captions, plain fusion takes those without for pictures that do not fit, and puts any
    picture whose caption shares a word before the right one. So a picture that words say nothing
    about has the rank among words that it has among vectors. A picture whose file name is what was
    asked comes before all others, with an infinite score.

    Args:
        vectors: ids and scores, best first.
        words: as `Catalog.words` returns them.
        k: how many, at least 1.
        described: the ids that words say something about, see `Catalog.described`; all where not
            given.
    """
    place = {id_: n for n, id_ in enumerate(dict.fromkeys(id_ for id_, _ in (*vectors, *words)))}
    ranks = np.full((2, len(place)), ABSENT)
    for row, ranking in zip(ranks, (vectors, words), strict=True):
        for rank, (id_, _) in enumerate(ranking, 1):
            row[place[id_]] = rank
    if not words:
        # Nothing is told apart by words that nothing has.
        ranks[1] = ranks[0]
    elif described is not None:
        told = np.array([id_ in described for id_ in place], dtype=bool)
        silent = ~told & (ranks[1] == ABSENT)
        ranks[1, silent] = ranks[0, silent]
    fused = reciprocal_rank(ranks, np.ones(2))
    ids = list(place)
    found = {id_: math.inf for id_, score in words if score == math.inf}
    for n in np.argsort(-fused, kind="stable").tolist():
        found.setdefault(ids[n], float(fused[n]))
    return list(found.items())[:k]


def helps(words: Ranking) -> bool:
    """Say whether an answer should be fused with what words find: wherever they find anything.

    A stricter rule (only where many of the nearest are described) gained less on the pictures that
    the rule was chosen on, and no library of `bench_words.py` lost beyond chance on the others.
    That holds with `described` pictures told apart; fused without it, libraries with few captions
    lose.
    """
    return len(words) > 0
