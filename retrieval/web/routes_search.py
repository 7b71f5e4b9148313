"""Asking: `/api/v1/search`, `/similar`, `/recommend`."""

# FastAPI reads the annotations below when the module is imported.

from typing import Annotated

from fastapi import APIRouter, Body, Form, Query, UploadFile
from fastapi.responses import JSONResponse
from PIL.Image import Image

from mmsearch.errors import QueryError
from mmsearch.retrieval.similar import similar
from mmsearch.retrieval.web.asking import Asking
from mmsearch.retrieval.web.failures import FAILURES
from mmsearch.retrieval.web.files import file_of, located_item
from mmsearch.retrieval.web.pictures import decoded
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

router = APIRouter(prefix="/api/v1", tags=["search"], responses=FAILURES)


@router.get("/search", response_model=Answer)
async def search(asked: Annotated[SearchParameters, Query()], services: Given) -> JSONResponse:
    """Find pictures by words, by pictures of the libraries or by both; or captions."""
    return JSONResponse(await Asking(services).search(asked))


@router.post("/search", response_model=Answer)
async def search_with_pictures(
    asked: Annotated[SearchForm, Form(media_type="multipart/form-data")], services: Given
) -> JSONResponse:
    """Find pictures, or captions, by pictures that are sent, with or without words."""
    pictures = await pictures_of(services, asked.image)
    return JSONResponse(await Asking(services).search(asked, pictures))


@router.get("/similar", response_model=Answer)
async def more_like(asked: Annotated[SimilarParameters, Query()], services: Given) -> JSONResponse:
    """Find pictures like one of a library; itself and its copies are left out."""
    file = file_of(*located_item(services.shelf, asked.item))
    answer = await Asking(services).alone(
        asked.library, asked.k, lambda served: similar(served.engine, file, asked.k)
    )
    return JSONResponse(answer)


@router.post("/similar", response_model=Answer)
async def more_like_a_picture(
    asked: Annotated[SimilarForm, Form(media_type="multipart/form-data")], services: Given
) -> JSONResponse:
    """Find pictures like one that is sent; itself and its copies are left out."""
    data = await asked.image.read()
    await asked.image.seek(0)
    picture = await _picture(services, asked.image)
    answer = await Asking(services).alone(
        asked.library,
        asked.k,
        lambda served: similar(served.engine, picture, asked.k, content=data),
    )
    return JSONResponse(answer)


@router.post("/recommend", response_model=Answer)
async def recommend(asked: Annotated[RecommendRequest, Body()], services: Given) -> JSONResponse:
    """Recommend pictures to somebody's taste."""
    return JSONResponse(await Asking(services).recommend(asked))


async def pictures_of(services: Services, uploads: list[UploadFile]) -> list[Image]:
    """Return pictures that were sent, decoded as far as the libraries' encoders need.

    Raises:
        QueryError: there are too many, or one is no picture that can be used.
    """
    most = services.settings.limits.pictures
    if len(uploads) > most:
        raise QueryError(f"No more than {most} pictures are taken with one question.")
    return [await _picture(services, upload) for upload in uploads]


async def _picture(services: Services, upload: UploadFile) -> Image:
    data, name = await upload.read(), upload.filename
    needed = max(served.engine.encoder.decode_size for served in services.shelf)
    most = services.settings.limits.upload_pixels
    return await services.in_thread(lambda: decoded(data, name, most_pixels=most, at_least=needed))
