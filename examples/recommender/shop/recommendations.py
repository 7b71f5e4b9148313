"""Recommendations: a user's history in, products with reasons out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from shop.database import Kind, Product, picture_name
from shop.messages import ProductOut, Reason, ReasonKind, Recommended

if TYPE_CHECKING:
    from mmsearch import Hit, SearchEngine
    from shop.catalogue import Catalogue
    from shop.histories import Histories, Taste

__all__ = ["DIVERSITY", "HALF_LIFE_DAYS", "Recommendations"]

DIVERSITY = 0.3
HALF_LIFE_DAYS = 30.0
"""A view of so many days ago counts half."""

VERBS = {Kind.LIKE: "liked", Kind.BUY: "bought"}


class Recommendations:
    """Recommends from the catalogue by the histories."""

    def __init__(self, catalogue: Catalogue, histories: Histories) -> None:
        """Join the two."""
        self._catalogue = catalogue
        self._histories = histories

    def for_user(
        self,
        user_id: str,
        *,
        k: int = 10,
        diversity: float = DIVERSITY,
        category: str | None = None,
    ) -> list[Recommended]:
        """Return up to `k` products that a user has not seen, best first.

        Args:
            user_id: anybody; of whom nothing is known they get what is popular.
            k: at least 1.
            diversity: 0 (the most fitting) to 1 (as different from each other as can be).
            category: the only one that counts, where it is given.
        """
        engine = self._catalogue.engine
        if engine is None:
            return []
        taste = self._histories.taste(user_id, time.time())
        if not taste.known:
            return self._to_anybody(engine, k, category)
        found = engine.recommend(
            like=[picture_name(id_) for id_ in taste.liked],
            dislike=[picture_name(id_) for id_ in taste.disliked],
            history=[(picture_name(id_), age) for id_, age in taste.viewed.items()],
            half_life=HALF_LIFE_DAYS,
            k=k,
            diversity=diversity,
            among=self._allowed(category),
        )
        products = self._catalogue.of_hits(found.hits)
        reasons = self._reasons(engine, taste, [hit for _, hit in products])
        return [
            _recommended(product, hit.score, reason)
            for (product, hit), reason in zip(products, reasons, strict=True)
        ]

    def _to_anybody(self, engine: SearchEngine, k: int, category: str | None) -> list[Recommended]:
        """Return what is popular and, as long as that is not enough, a view of the whole."""
        answer = [
            _recommended(
                product,
                None,
                Reason(kind=ReasonKind.POPULAR, text=f"popular: {count} people chose it"),
            )
            for product, count in self._histories.popular(k, category)
        ]
        if len(answer) == k:
            return answer
        overview = engine.recommend(k=k, among=self._allowed(category))
        there = {each.product.id for each in answer}
        reason = Reason(kind=ReasonKind.OVERVIEW, text="to give you an idea of what there is")
        more = [
            _recommended(product, None, reason)
            for product, _ in self._catalogue.of_hits(overview.hits)
            if product.id not in there
        ]
        return (answer + more)[:k]

    def _allowed(self, category: str | None) -> list[str] | None:
        if category is None:
            return None
        return [product.picture for product in self._catalogue.all(category)]

    def _reasons(self, engine: SearchEngine, taste: Taste, hits: Sequence[Hit]) -> list[Reason]:
        """Name for each hit the user's own product that it looks like most, recent views first."""
        own = [*taste.liked, *taste.viewed]
        if not own:
            away = Reason(kind=ReasonKind.AWAY, text="unlike what you disliked")
            return [away] * len(hits)
        ages = np.array([0.0] * len(taste.liked) + [*taste.viewed.values()])
        likeness = (
            engine.vectors([hit.id for hit in hits])
            @ engine.vectors([picture_name(id_) for id_ in own]).T
        )
        nearest = (likeness * 0.5 ** (ages / HALF_LIFE_DAYS)).argmax(axis=1)
        products = self._catalogue.some(own)
        reasons = []
        for id_ in (own[column] for column in nearest):
            verb = VERBS[taste.liked[id_]] if id_ in taste.liked else "viewed"
            text = f"because you {verb} {products[id_].title}"
            reasons.append(Reason(kind=ReasonKind.TASTE, text=text, product_id=id_))
        return reasons


def _recommended(product: Product, score: float | None, reason: Reason) -> Recommended:
    return Recommended(product=ProductOut.model_validate(product), score=score, reason=reason)
