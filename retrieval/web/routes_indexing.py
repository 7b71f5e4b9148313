"""Indexing, where the server allows it: `/api/v1/index`."""

from typing import Annotated

from fastapi import APIRouter, Body
from starlette.exceptions import HTTPException

from mmsearch.retrieval.web.failures import FAILURES
from mmsearch.retrieval.web.responses import Json
from mmsearch.retrieval.web.services import Given, Services
from mmsearch.retrieval.web.wire import Indexing, IndexRequest

__all__ = ["router"]

router = APIRouter(prefix="/api/v1", tags=["indexing"], responses=FAILURES)


@router.post("/index", response_model=Indexing, status_code=202)
async def start(asked: Annotated[IndexRequest, Body()], services: Given) -> Json:
    """Have a library brought up to date; questions are answered meanwhile."""
    if not services.settings.allow_indexing:
        raise HTTPException(
            403,
            "Clients may not have anything indexed here. Start the server with "
            "`mmsearch serve --allow-indexing`, or run `mmsearch index` beside it.",
        )
    served = services.shelf[asked.library]
    await services.in_thread(lambda: services.runs.start(served))
    return _told(services, 202)


@router.get("/index", response_model=Indexing)
async def progress(services: Given) -> Json:
    """Tell how far indexing is."""
    return _told(services, 200)


def _told(services: Services, status: int) -> Json:
    libraries = [services.runs.told(served) for served in services.shelf]
    return Json({"schema": 1, "libraries": libraries}, status)
