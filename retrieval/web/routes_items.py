"""Pictures of the libraries, and what is known of them: `/api/v1/items`, `/status`, `/health`."""

import asyncio
import base64
import io
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import FileResponse, Response

import mmsearch
from mmsearch.errors import MediaError
from mmsearch.retrieval.explanation import Explanation
from mmsearch.retrieval.heat_picture import heat_picture
from mmsearch.retrieval.library_status import status_fields
from mmsearch.retrieval.web.content import content_of
from mmsearch.retrieval.web.failures import ALWAYS, FAILURES
from mmsearch.retrieval.web.files import file_of, item_of, media_type
from mmsearch.retrieval.web.responses import Json
from mmsearch.retrieval.web.services import Given, Services
from mmsearch.retrieval.web.thumbnail_cache import SIDES
from mmsearch.retrieval.web.wire import Explained, Health, Item, Status

__all__ = ["open_router", "router"]

LibraryName = Annotated[str, Path(description="The library's name.")]
ItemId = Annotated[int, Path(ge=0, lt=10**18, description="The picture's key in the library.")]
Words = Annotated[str, Query(min_length=1, description="The words.")]

IMMUTABLE = "private, max-age=31536000, immutable"
"""What a picture's content names does not change."""
SANDBOX = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
"""What a file of a user's may do when it is opened by itself: nothing."""
BLANK = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
"""A transparent pixel."""
JPEG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/jpeg": {}}}}
PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/*": {}}},
    206: {"content": {"image/*": {}}, "description": "The stretch that `Range` asks for."},
    416: {"description": "The file is shorter than the stretch that `Range` asks for."},
}

open_router = APIRouter(tags=["health"], responses=ALWAYS)
router = APIRouter(prefix="/api/v1", tags=["items"], responses=FAILURES)


@open_router.get("/health", response_model=Health)
async def health() -> Json:
    """Say that the server answers; no token is needed."""
    return Json({"status": "ok", "version": mmsearch.__version__})


@router.get("/status", response_model=Status)
async def status(services: Given) -> Json:
    """Tell what is served."""

    def told() -> list[dict[str, Any]]:
        return [
            status_fields(served.engine.library) | {"library": served.name}
            for served in services.shelf
        ]

    return Json(
        {
            "schema": 1,
            "version": mmsearch.__version__,
            "libraries": await services.in_thread(told),
            "rerankers": list(services.settings.rerankers),
            "allow_indexing": services.settings.allow_indexing,
        }
    )


@router.get("/items/{library}/{id}", response_model=Item)
async def item(library: LibraryName, id: ItemId, services: Given) -> Json:
    """Tell what is known of a picture."""
    found = item_of(services.shelf[library], id)
    picture = found.picture
    return Json(
        {
            "schema": 1,
            "library": library,
            "id": id,
            "path": picture.path,
            "size": picture.size,
            "format": picture.format,
            "width": picture.width,
            "height": picture.height,
            "taken": None if picture.taken_at is None else picture.taken_at.isoformat(),
            "camera": picture.camera,
            "latitude": picture.latitude,
            "longitude": picture.longitude,
            "captions": [caption.text for caption in found.captions],
        }
    )


@router.get("/items/{library}/{id}/thumbnail", response_class=Response, responses=JPEG)
async def thumbnail(
    request: Request,
    library: LibraryName,
    id: ItemId,
    services: Given,
    side: Annotated[int, Query(ge=1, le=SIDES[-1], description="Pixels, at least.")] = 320,
    or_blank: Annotated[
        bool,
        Query(
            description="Answer with one transparent pixel where the picture is gone, instead of "
            "an error: a page then shows what lies behind it."
        ),
    ] = False,
) -> Response:
    """Return a small upright JPEG of a picture."""
    served = services.shelf[library]
    found = item_of(served, id)
    headers = {
        "ETag": f'"{found.picture.sha256.hex()[:32]}-{side}"',
        "Cache-Control": IMMUTABLE,
    }
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    try:
        file = file_of(served, found)
        data = None
        while data is None:
            making = served.thumbnails.get(file, found.picture, side)
            made = asyncio.wrap_future(making)
            # Who asked may be gone when it fails, and nobody is left to be told.
            made.add_done_callback(lambda done: done.cancelled() or done.exception())
            # Others may wait for the same one.
            path = await asyncio.shield(made)
            with suppress(FileNotFoundError):  # It just had to make room for others.
                data = await asyncio.to_thread(path.read_bytes)
    except MediaError:
        if not or_blank:
            raise
        return Response(BLANK, media_type="image/gif", headers={"Cache-Control": "no-store"})
    return Response(data, media_type="image/jpeg", headers=headers)


@router.get("/items/{library}/{id}/original", response_class=Response, responses=PICTURE)
async def original(library: LibraryName, id: ItemId, services: Given) -> Response:
    """Return the picture's own file, as it is."""
    served = services.shelf[library]
    found = item_of(served, id)
    content = await asyncio.to_thread(content_of, file_of(served, found), found.picture)
    kind = media_type(found)
    headers = {"Content-Security-Policy": SANDBOX, "Cache-Control": "private, no-cache"}
    if isinstance(content, bytes):
        return Response(content, media_type=kind, headers=headers)
    file, facts = content
    name = found.picture.path.rpartition("/")[2].encode("utf-8", "replace").decode()
    return FileResponse(
        file,
        media_type=kind,
        filename=name,
        content_disposition_type="inline",
        stat_result=facts,
        headers=headers,
    )


@router.get("/items/{library}/{id}/explain", response_model=Explained)
async def explain(library: LibraryName, id: ItemId, q: Words, services: Given) -> Json:
    """Say why a picture matches words: where, by which words, how probably."""
    found = await _explained(services, library, id, q)
    named = {"image": f"{library}/{id}", "library": library, "id": id}
    return Json(found.to_json() | named)


@router.get("/items/{library}/{id}/heat", response_class=Response, responses=JPEG)
async def heat(
    library: LibraryName,
    id: ItemId,
    q: Words,
    services: Given,
    side: Annotated[int, Query(ge=16, le=SIDES[-1], description="Longer side in pixels.")] = 640,
) -> Response:
    """Return the picture with a map over it of where it matches words."""
    found = await _explained(services, library, id, q)

    def drawn() -> bytes:
        buffer = io.BytesIO()
        heat_picture(found.picture, found.heat, side).save(buffer, "JPEG", quality=85)
        return buffer.getvalue()

    return Response(await services.in_thread(drawn), media_type="image/jpeg")


async def _explained(services: Services, library: str, id_: int, text: str) -> Explanation:
    return await services.explanations.get(services, library, id_, text)
