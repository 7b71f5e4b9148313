"""The shop's own SQL database: products, users, and what users did and when."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any

from sqlalchemy import ForeignKey, create_engine, event
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

__all__ = ["Event", "Kind", "Product", "User", "open_database"]


class Kind(StrEnum):
    """What somebody did with a product."""

    VIEW = "view"
    LIKE = "like"
    DISLIKE = "dislike"
    BUY = "buy"


class Base(DeclarativeBase):
    """Root of the tables."""


class Product(Base):
    """What is sold. Its picture lies in the pictures' folder and is found by `picture`."""

    __tablename__ = "product"

    id: Mapped[str] = mapped_column(primary_key=True)
    title: Mapped[str]
    category: Mapped[str] = mapped_column(index=True)
    price_cents: Mapped[int]

    @property
    def picture(self) -> str:
        """The name of its picture's file: what ties this table to mmsearch's library."""
        return picture_name(self.id)


class User(Base):
    """Somebody who did something."""

    __tablename__ = "user"

    id: Mapped[str] = mapped_column(primary_key=True)
    simulated: Mapped[bool] = mapped_column(default=False)


class Event(Base):
    """Something that a user did. `at` is in seconds since 1970: SQLite knows no time zones."""

    __tablename__ = "event"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("user.id", ondelete="CASCADE"), index=True)
    product_id: Mapped[str] = mapped_column(ForeignKey("product.id"), index=True)
    kind: Mapped[Kind]
    at: Mapped[float]


def picture_name(product_id: str) -> str:
    """Return the name of the file that holds a product's picture."""
    return f"{product_id}.jpg"


def open_database(file: Path) -> sessionmaker[Session]:
    """Open the database, making it and its tables where there are none."""
    engine = create_engine(f"sqlite:///{file}")

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _: object) -> None:  # noqa: ANN401 (whatever the driver gives)
        connection.execute("PRAGMA journal_mode = WAL")  # readers do not wait for a writer
        connection.execute("PRAGMA foreign_keys = ON")

    Base.metadata.create_all(engine)
    # What was read stays usable after its session was closed.
    return sessionmaker(engine, expire_on_commit=False)
