"""What users did, and what that says of their taste."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import Session, sessionmaker

from shop.database import Event, Kind, Product, User
from shop.errors import UnknownProduct

__all__ = ["Histories", "Taste", "taste_of"]

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DAY_S = 86_400.0
REMEMBERED = 200
"""The latest events of a user that count."""


@dataclass(frozen=True, slots=True)
class Taste:
    """What is known of one user, as mmsearch wants it: likes, dislikes, and a history with ages.

    Attributes:
        liked: ids of products that were liked or bought, with which of the two it was last.
        viewed: ids of products that were only viewed, and how many days ago.
        disliked: ids of products that were disliked and not liked since.
    """

    liked: Mapping[str, Kind]
    viewed: Mapping[str, float]
    disliked: Sequence[str]

    @property
    def known(self) -> bool:
        """Whether there is anything to go by."""
        return bool(self.liked or self.viewed or self.disliked)


def taste_of(events: Iterable[Event], now: float) -> Taste:
    """Return the taste that events, in the order of time, tell of.

    The last opinion of a product counts. What was liked or bought counts fully, however long ago;
    a view counts the less the longer ago it was.

    Args:
        events: of one user.
        now: seconds since 1970; what ages count from.
    """
    opinion: dict[str, Kind] = {}
    viewed: dict[str, float] = {}
    for event in events:
        if event.kind is Kind.VIEW:
            # A clock that is a little fast makes no view of tomorrow.
            viewed[event.product_id] = max(0.0, (now - event.at) / DAY_S)
        else:
            opinion[event.product_id] = event.kind
    return Taste(
        liked={id_: kind for id_, kind in opinion.items() if kind is not Kind.DISLIKE},
        viewed={id_: age for id_, age in viewed.items() if id_ not in opinion},
        disliked=[id_ for id_, kind in opinion.items() if kind is Kind.DISLIKE],
    )


class Histories:
    """The events of all users."""

    def __init__(self, sessions: sessionmaker[Session]) -> None:
        """Name the database."""
        self._sessions = sessions

    def add(self, user_id: str, product_id: str, kind: Kind, at: float) -> None:
        """Record what a user did at a time (seconds since 1970).

        Raises:
            UnknownProduct: there is no such product.
        """
        with self._sessions.begin() as session:
            if session.get(Product, product_id) is None:
                raise UnknownProduct(product_id)
            # Two first events of a user may come at once.
            session.execute(insert(User).values(id=user_id).on_conflict_do_nothing())
            session.add(Event(user_id=user_id, product_id=product_id, kind=kind, at=at))

    def taste(self, user_id: str, now: float) -> Taste:
        """Return what is known of a user; nothing where the user is unknown."""
        latest = (
            select(Event)
            .where(Event.user_id == user_id)
            .order_by(Event.at.desc(), Event.id.desc())
            .limit(REMEMBERED)
        )
        with self._sessions() as session:
            return taste_of(reversed([*session.scalars(latest)]), now)

    def popular(self, k: int, category: str | None = None) -> list[tuple[Product, int]]:
        """Return the products that most users viewed, liked or bought, and how many did."""
        users = func.count(Event.user_id.distinct())
        statement = (
            select(Product, users)
            .join(Event, Event.product_id == Product.id)
            .where(Event.kind != Kind.DISLIKE)
            .group_by(Product.id)
            .order_by(users.desc(), Product.id)
            .limit(k)
        )
        if category is not None:
            statement = statement.where(Product.category == category)
        with self._sessions() as session:
            return [(product, count) for product, count in session.execute(statement)]

    def by_user(self) -> dict[str, list[Event]]:
        """Return all events, in the order of time, by user."""
        found: dict[str, list[Event]] = {}
        with self._sessions() as session:
            for event in session.scalars(select(Event).order_by(Event.at, Event.id)):
                found.setdefault(event.user_id, []).append(event)
        return found

    def simulated(self) -> set[str]:
        """Return the ids of simulated users."""
        with self._sessions() as session:
            return {*session.scalars(select(User.id).where(User.simulated))}

    def replace_simulated(self, users: Mapping[str, Sequence[Event]]) -> None:
        """Put simulated users in the place of all earlier ones."""
        with self._sessions.begin() as session:
            session.execute(delete(User).where(User.simulated))
            session.add_all(User(id=id_, simulated=True) for id_ in users)
            session.flush()
            session.add_all(event for events in users.values() for event in events)
