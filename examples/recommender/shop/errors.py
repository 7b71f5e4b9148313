"""What the shop refuses on purpose; each message says what to do."""

from __future__ import annotations

__all__ = ["ShopError", "UnknownProduct", "UnusablePicture"]


class ShopError(Exception):
    """Root of every error that the shop raises on purpose."""


class UnknownProduct(ShopError):
    """There is no product with this id."""

    def __init__(self, id_: str) -> None:
        super().__init__(f"There is no product {id_!r}. Add it with: PUT /products/{id_}")


class UnusablePicture(ShopError):
    """A product's picture cannot be read."""
