"""The shop over HTTP. Endpoints are plain functions, which FastAPI runs in its pool of threads."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated

from fastapi import FastAPI, File, Form, HTTPException, Query, Request, Response, UploadFile
from fastapi.responses import JSONResponse

import mmsearch
from mmsearch.errors import LibraryError, QueryError
from shop.errors import UnknownProduct, UnusablePicture
from shop.messages import (
    Category,
    EventIn,
    Found,
    Health,
    NewProduct,
    PriceCents,
    ProductId,
    ProductOut,
    Recommended,
    Title,
    UserId,
)
from shop.recommendations import DIVERSITY
from shop.service import Shop

__all__ = ["create_app"]

MAX_PICTURE_BYTES = 20 << 20
FAST_CLOCK_S = 60.0

Count = Annotated[int, Query(ge=1, le=100, description="How many answers.")]


def create_app(shop: Shop) -> FastAPI:
    """Return the service over a shop, which is closed with it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        shop.catalogue.catch_up()
        yield
        shop.close()

    app = FastAPI(title="A shop that recommends by pictures", lifespan=lifespan)
    _add_products(app, shop)
    _add_users(app, shop)

    @app.get("/health")
    def health() -> Health:
        engine = shop.catalogue.engine
        return Health(
            status="ok",
            products=shop.catalogue.count(),
            pictures=0 if engine is None else len(engine),
            model=None if engine is None else engine.encoder.spec.label,
            mmsearch=mmsearch.__version__,
        )

    for error, status in (
        (UnknownProduct, 404),
        (UnusablePicture, 422),
        (QueryError, 422),
        (LibraryError, 503),
    ):
        app.add_exception_handler(error, _answering(status))
    return app


def _add_products(app: FastAPI, shop: Shop) -> None:
    @app.put("/products/{id}", responses={201: {"model": ProductOut}})
    def put_product(
        id: ProductId,
        title: Annotated[Title, Form()],
        category: Annotated[Category, Form()],
        price_cents: Annotated[PriceCents, Form()],
        picture: Annotated[UploadFile, File(description="A JPEG, PNG, WebP … file.")],
        response: Response,
    ) -> ProductOut:
        """Add a product, or replace it. When this answers, it is in everybody's answers."""
        content = picture.file.read(MAX_PICTURE_BYTES + 1)
        if len(content) > MAX_PICTURE_BYTES:
            limit = f"{MAX_PICTURE_BYTES >> 20} MiB"
            raise HTTPException(413, f"The picture has more than {limit}. Send a smaller one.")
        product = NewProduct(id=id, title=title, category=category, price_cents=price_cents)
        if shop.catalogue.put(product, content):
            response.status_code = 201
        return ProductOut(**product.model_dump())

    @app.get("/products/{id}")
    def product(id: ProductId) -> ProductOut:
        return ProductOut.model_validate(shop.catalogue.get(id))

    @app.get("/products/{id}/similar")
    def similar(id: ProductId, k: Count = 10) -> list[Found]:
        """Return the products that look most like one."""
        return shop.catalogue.similar(id, k)

    @app.get("/search")
    def search(
        q: Annotated[str, Query(min_length=1, max_length=500, examples=["red mug"])],
        k: Count = 10,
    ) -> list[Found]:
        """Return the products that fit words best, by their pictures and titles."""
        return shop.catalogue.search(q, k)


def _add_users(app: FastAPI, shop: Shop) -> None:
    @app.post("/users/{id}/events", status_code=201)
    def add_event(id: UserId, event: EventIn) -> EventIn:
        """Record what a user did."""
        now = time.time()
        at = now if event.at is None else event.at.timestamp()
        if at > now + FAST_CLOCK_S:
            raise HTTPException(
                422, "The time 'at' lies in the future. Send when it happened, or leave it out."
            )
        shop.histories.add(id, event.product_id, event.kind, at)
        return event.model_copy(update={"at": datetime.fromtimestamp(at, UTC)})

    @app.get("/users/{id}/recommendations")
    def recommendations(
        id: UserId,
        k: Count = 10,
        diversity: Annotated[float, Query(ge=0, le=1)] = DIVERSITY,
        category: Annotated[str | None, Query(max_length=64)] = None,
    ) -> list[Recommended]:
        """Return products that the user has not seen and would like, each with a reason."""
        return shop.recommendations.for_user(id, k=k, diversity=diversity, category=category)


def _answering(status: int) -> Callable[[Request, Exception], Awaitable[JSONResponse]]:
    """Return what answers an error of ours with its own words."""

    async def answer(_: Request, error: Exception) -> JSONResponse:
        headers = {"Retry-After": "1"} if status == 503 else None
        return JSONResponse({"detail": str(error)}, status, headers)

    return answer
