"""What likes, dislikes and a history say of any item: pure functions, each with its source."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["DISLIKED", "HALF_LIFE_DAYS", "LIKED", "best_scores", "decayed", "rocchio"]

LIKED, DISLIKED = 0.75, 0.15
"""How much the middle of what is liked counts, and that of what is not: the last two
weights of Rocchio's formula, as Salton and Buckley (1990) found them best. What somebody likes says
more than what they do not."""
HALF_LIFE_DAYS = 30.0
"""After so many days an item of the history counts half, if nothing else is asked for."""


def decayed(ages: Floats, half_life: float) -> Floats:
    """Return weights `0.5 ^ (age / half_life)`, 1 for today and never 0.

    Args:
        ages: `float64[n]`, days, not negative.
        half_life: days, above 0; infinite where age does not matter.
    """
    # Something of an age long past still tells more than nothing at all.
    weights: Floats = np.maximum(0.5 ** (ages / half_life), np.finfo(np.float64).tiny)
    return weights


def rocchio(liked: Floats, weights: Floats, disliked: Floats) -> Floats | None:
    """Return the direction `b Σ wᵢ lᵢ / Σ wᵢ - c Σ dⱼ / m` of a taste (Rocchio 1971).

    Rocchio moves a question towards what is relevant and away from what is not; here there is no
    question to begin with. `b` is `LIKED`, `c` is `DISLIKED`; a side without items is left out.

    Args:
        liked: `float64[p, dim]`, unit rows.
        weights: `float64[p]`, above 0.
        disliked: `float64[m, dim]`, unit rows.

    Returns:
        `float64[dim]` of length 1; None where there is no item, or all of them cancel out.
    """
    direction = np.zeros(liked.shape[1])
    if len(liked):
        # Scaled first: the weights of a history of long ago are next to nothing.
        scaled = weights / weights.max()
        direction += LIKED * (scaled[:, None] * liked).sum(axis=0) / scaled.sum()
    if len(disliked):
        direction -= DISLIKED * disliked.mean(axis=0)
    length = float(np.linalg.norm(direction))
    return None if length < 1e-6 else direction / length


def best_scores(liked: Floats, weights: Floats, disliked: Floats) -> Floats:
    """Return the score of items by the one liked and the one disliked item that each is most like.

    With `p = maxᵢ wᵢ · cos(lᵢ, x)` and `q = maxⱼ cos(dⱼ, x)` it is `p` where `p > q`, and
    `-2 - q`, below every `p`, where a disliked item is nearer or nothing is liked. This is the
    order of Qdrant's strategy "best_score", which takes f(p) and -f(q) with an increasing f;
    here `p` stays a cosine. One liked item is enough to be found by, so it serves a taste of
    several kinds, whose mean resembles none of them.

    Args:
        liked: `float64[p, n]`, similarity of each liked item with each of `n` items.
        weights: `float64[p]`, in (0, 1].
        disliked: `float64[m, n]`, the same of disliked ones.

    Returns:
        `float64[n]`, in [-1, 1] where a liked item is nearest, in [-3, -1] elsewhere.
    """
    nowhere = np.full(liked.shape[1], -np.inf)
    best = np.max(weights[:, None] * liked, axis=0) if len(liked) else nowhere
    if len(disliked) == 0:
        return best
    worst = disliked.max(axis=0)
    scores: Floats = np.where(best > worst, best, -2 - worst)
    return scores
