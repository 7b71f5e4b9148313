"""What goes in and out, over HTTP and from product files, checked by pydantic."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from shop.database import Kind

__all__ = [
    "Category",
    "EventIn",
    "Found",
    "Health",
    "NewProduct",
    "PriceCents",
    "ProductId",
    "ProductOut",
    "Reason",
    "ReasonKind",
    "Recommended",
    "Title",
    "UserId",
]

# Lower case only: an id names a file, and some file systems do not tell cases apart.
ProductId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
UserId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}$")]
Title = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
Category = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=64)]
PriceCents = Annotated[int, Field(ge=0, le=10**9)]


class NewProduct(BaseModel):
    """A product to be added, or replaced."""

    id: ProductId
    title: Title
    category: Category
    price_cents: PriceCents


class ProductOut(BaseModel):
    """A product of the catalogue."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    title: str
    category: str
    price_cents: int


class EventIn(BaseModel):
    """Something that a user did; now, where no time is given."""

    product_id: ProductId
    kind: Kind
    at: AwareDatetime | None = Field(None, examples=["2026-01-31T12:00:00Z"])


class ReasonKind(StrEnum):
    """Why a product is recommended."""

    TASTE = "taste"
    """It looks like something that the user liked, bought or viewed."""
    AWAY = "away from dislikes"
    """Nothing but dislikes is known, and it looks least like them."""
    POPULAR = "popular"
    """Nothing is known of the user, and many others chose it."""
    OVERVIEW = "overview"
    """Nothing is known, and it is one of a few that stand for the whole catalogue."""


class Reason(BaseModel):
    """Why a product is recommended; `product_id` is the user's own product it looks like most."""

    kind: ReasonKind
    text: str
    product_id: str | None = None


class Recommended(BaseModel):
    """One recommendation; the score (higher is better) is known where it is a matter of taste."""

    product: ProductOut
    score: float | None
    reason: Reason


class Found(BaseModel):
    """A product that was found; the score is a cosine similarity."""

    product: ProductOut
    score: float
    probability: float | None = Field(None, description="Of matching the words that were asked.")


class Health(BaseModel):
    """What the service runs on."""

    status: str
    products: int
    pictures: int
    model: str | None
    mmsearch: str
