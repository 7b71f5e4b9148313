"""Asking: `/api/v1/search`, `/similar`, `/recommend`."""

# FastAPI reads the annotations below when the module is imported.

from typing import Annotated

from fastapi import APIRouter, Body, Form, Query, UploadFile
from PIL.Image import Image

from mmsearch.errors import QueryError
from mmsearch.retrieval.web.asking import Asking
from mmsearch.retrieval.web.bodies import FormRoute
from mmsearch.retrieval.web.failures import FAILURES
from mmsearch.retrieval.web.responses import Json
from mmsearch.retrieval.web.services import Given, Services
from mmsearch.retrieval.web.wire import (
    Answer,
    RecommendRequest,
    SearchForm,
    SearchParameters,
    SimilarForm,
    SimilarParameters,
)

__all__ = ["pictures_of", "router"]

router = APIRouter(prefix="/api/v1", tags=["search"], responses=FAILURES, route_class=FormRoute)


@router.get("/search", response_model=Answer)
async def search(asked: Annotated[SearchParameters, Query()], services: Given) -> Json:
    """Find pictures by words, by pictures of the libraries or by both; or captions."""
    return Json(await Asking(services).search(asked))


@router.post("/search", response_model=Answer)
async def search_with_pictures(
    asked: Annotated[SearchForm, Form(media_type="multipart/form-data")], services: Given
) -> Json:
    """Find pictures, or captions, by pictures that are sent, with or without words."""
    pictures = await pictures_of(services, asked.image)
    return Json(await Asking(services).search(asked, pictures))


@router.get("/similar", response_model=Answer)
async def more_like(asked: Annotated[SimilarParameters, Query()], services: Given) -> Json:
    """Find pictures like one of a library; itself and its copies are left out."""
    return Json(await Asking(services).similar(asked.item, asked.k, asked.library))


@router.post("/similar", response_model=Answer)
async def more_like_a_picture(
    asked: Annotated[SimilarForm, Form(media_type="multipart/form-data")], services: Given
) -> Json:
    """Find pictures like one that is sent; itself and its copies are left out."""
    asking = Asking(services)
    picture, content = await asking.picture(asked.image.file.read, asked.image.filename)
    return Json(await asking.similar_to(picture, content, asked.k, asked.library))


@router.post("/recommend", response_model=Answer)
async def recommend(asked: Annotated[RecommendRequest, Body()], services: Given) -> Json:
    """Recommend pictures to somebody's taste."""
    return Json(await Asking(services).recommend(asked))


async def pictures_of(services: Services, uploads: list[UploadFile]) -> list[Image]:
    """Return pictures that were sent, decoded as far as the libraries' encoders need.

    Raises:
        QueryError: there are too many, or one is no picture that can be used.
    """
    most = services.settings.limits.pictures
    if len(uploads) > most:
        raise QueryError(f"No more than {most} pictures are taken with one question.")
    asking = Asking(services)
    return [(await asking.picture(each.file.read, each.filename))[0] for each in uploads]
