"""The application: routes, what guards them, and what they count."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.responses import Response

import mmsearch
from mmsearch.retrieval.web import (
    failures,
    page,
    routes_export,
    routes_indexing,
    routes_items,
    routes_search,
)
from mmsearch.retrieval.web.bodies import Bodies
from mmsearch.retrieval.web.connections import Abandoning
from mmsearch.retrieval.web.counting import Counted
from mmsearch.retrieval.web.guard import Guard
from mmsearch.retrieval.web.mcp import Endpoint
from mmsearch.retrieval.web.metrics import CONTENT_TYPE_LATEST
from mmsearch.retrieval.web.services import create_services

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from mmsearch.retrieval.web.settings import Settings

__all__ = ["create_app"]


def create_app(
    libraries: Sequence[Path], settings: Settings, *, device: str | None = None
) -> FastAPI:
    """Return the application that serves libraries; they are opened now, closed at its end.

    Args:
        libraries: folders that were indexed.
        settings: what is allowed.
        device: where vectors are compared, see `open_engine`.

    Raises:
        MmsearchError: a library cannot be opened.
    """
    services = create_services(libraries, settings, device=device)
    metrics, tools = services.metrics, Endpoint(services)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with tools.running():
            yield
        await asyncio.to_thread(services.close)

    app = FastAPI(
        title="mmsearch",
        version=mmsearch.__version__,
        description="Find pictures with words, and words with pictures.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    failures.install(app)
    app.state.services = services
    app.include_router(routes_items.open_router)
    app.include_router(page.router)
    app.include_router(routes_search.router)
    app.include_router(routes_items.router)
    app.include_router(routes_export.router)
    app.include_router(routes_indexing.router)
    app.router.routes.append(tools.route)

    @app.get("/metrics", include_in_schema=False)
    async def told() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    # The last is the first to see a request.
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(Bodies, limits=settings.limits)
    app.add_middleware(Abandoning)
    app.add_middleware(Counted, metrics=metrics)
    return app
