"""The page at `/`: what people see of a server, drawn here, made lively by the scripts in `static`.

The address says everything but the pictures that somebody sends. `/` answers it whole, without any
script; `/page/…` gives the same parts one by one. Failures that are to be expected (half a filter
typed) are parts of the page, with status 200: to a browser every other status is a fault of ours.
"""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, UploadFile
from fastapi.responses import HTMLResponse, Response
from pydantic import Field
from starlette.exceptions import HTTPException

from mmsearch.errors import MmsearchError, QueryError
from mmsearch.retrieval.containers import is_there
from mmsearch.retrieval.web.asking import Asking
from mmsearch.retrieval.web.assets import assets
from mmsearch.retrieval.web.batching import Busy, Closed
from mmsearch.retrieval.web.bodies import FormRoute
from mmsearch.retrieval.web.drawing import drawn, hit_view, in_page, item_view
from mmsearch.retrieval.web.failures import discreet
from mmsearch.retrieval.web.files import located_item
from mmsearch.retrieval.web.page_state import PageState
from mmsearch.retrieval.web.responses import Json
from mmsearch.retrieval.web.routes_search import pictures_of
from mmsearch.retrieval.web.services import Given, Services
from mmsearch.retrieval.web.settings import is_loopback
from mmsearch.retrieval.web.wire import REFERENCE, ItemName

__all__ = ["router"]

SHOWN = 60
"""Answers of the page as it is first drawn."""
MOST = 100
"""Answers of one further piece."""


class PieceState(PageState):
    """A piece of the answer to what an address asks."""

    k: int = Field(MOST, ge=1, le=MOST)


class ItemState(PageState):
    """A picture of the answer to what an address asks."""

    item: ItemName


State = Annotated[PageState, Query()]
Piece = Annotated[PieceState, Query()]
Detail = Annotated[ItemState, Query()]

router = APIRouter(include_in_schema=False, route_class=FormRoute)


@router.get("/", response_class=HTMLResponse)
async def page(state: State, services: Given) -> HTMLResponse:
    """Draw the page, with the answer to what its address asks."""
    answer = await _answer(services, state, SHOWN, state.offset)
    opened = await _detail(services, state, state.open) if state.open else None
    total = answer["total"] or 0
    following = state.offset + len(answer["hits"])
    return HTMLResponse(
        drawn(
            "page.html",
            state=state,
            answer=answer,
            opened=opened,
            libraries=[served.name for served in services.shelf],
            rerankers=services.settings.rerankers,
            indexing=services.settings.allow_indexing,
            limits=services.settings.limits,
            following=state.url(offset=following) if following < total else None,
            sample=MOST,
        ),
        headers={"Cache-Control": "no-store"},
    )


@router.get("/page/answer")
async def answer(state: Piece, services: Given) -> Json:
    """Return a piece of an answer, drawn."""
    return _piece(await _answer(services, state, state.k, state.offset), state)


@router.post("/page/answer")
async def answer_to_pictures(state: Piece, image: list[UploadFile], services: Given) -> Json:
    """Return a piece of the answer to a question with pictures that are sent."""
    return _piece(await _answer(services, state, state.k, state.offset, image), state)


@router.get("/page/item", response_class=HTMLResponse)
async def detail(state: Detail, services: Given) -> HTMLResponse:
    """Return what is known of a picture, drawn."""
    return HTMLResponse(
        drawn("detail.html", state=state, opened=await _detail(services, state, state.item)),
        headers={"Cache-Control": "no-store"},
    )


@router.get("/page/why", response_class=HTMLResponse)
async def why(
    item: Annotated[str, Query(pattern=REFERENCE)], words: Annotated[str, Query()], services: Given
) -> HTMLResponse:
    """Return why a picture matches words, drawn."""
    library, _, id_ = item.rpartition("/")
    found, failure = None, None
    try:
        found = await services.explanations.get(services, library, int(id_), words)
    except MmsearchError as error:
        failure = _said(services, error)
    return HTMLResponse(
        drawn("why.html", item=item, words=words, found=found, failure=failure),
        headers={"Cache-Control": "no-store"},
    )


@router.get("/static/{version}/{name:path}")
async def static(
    version: Annotated[str, Path()], name: Annotated[str, Path()], request: Request
) -> Response:
    """Return a file of the page."""
    known = assets()
    asset = known.files.get(name)
    if asset is None:
        raise HTTPException(404, f"There is no {name!r} here.")
    current = version == known.version
    headers = {
        "ETag": f'"{known.version}"',
        # Under an older version's address lies the present file, as no older one is kept.
        "Cache-Control": "public, max-age=31536000, immutable" if current else "no-cache",
    }
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, media_type=asset.media_type, headers=headers)


@router.get("/favicon.ico")
async def icon(request: Request) -> Response:
    """Return the icon where browsers look for one by themselves."""
    return await static(assets().version, "icon.svg", request)


async def _answer(
    services: Services,
    state: PageState,
    k: int,
    offset: int,
    images: list[UploadFile] | None = None,
) -> dict[str, Any]:
    """Return what a template needs of an answer: `hits`, and how many there are, or `failure`."""
    told: dict[str, Any] = {
        "hits": [],
        "total": 0,
        "considered": 0,
        "nearest": None,
        "failure": None,
        "took_ms": None,
        "search": None,
        "words": "",
        "listed": False,
        "offset": offset,
        "sent": len(images or ()),
    }
    try:
        told["words"] = state.words
        pictures = await pictures_of(services, images or [])
        asked = state.asked(k, offset, with_pictures=bool(pictures))
        told["listed"] = not (told["words"] or asked.like or asked.dislike or pictures)
        found = await Asking(services).search(asked, pictures, itself=False)
    except (Busy, Closed) as error:
        return told | {"failure": f"{str(error).capitalize()}." if str(error) else "Going down."}
    except MmsearchError as error:
        return told | {"failure": _said(services, error)}
    several = len(found["libraries"]) > 1
    most = min(found["considered"], services.settings.limits.depth)
    return told | {
        "hits": [hit_view(each, several=several) for each in found["results"]],
        "total": most if found["total"] is None else found["total"],
        "considered": found["considered"],
        "nearest": None
        if found["nearest"] is None
        else hit_view(found["nearest"], several=several),
        "took_ms": found["took_ms"],
        "search": found["search"],
        "sorted": asked.sort,
    }


def _piece(found: dict[str, Any], state: PageState) -> Json:
    return Json(
        {
            "failed": found["failure"] is not None,
            "total": found["total"],
            "offset": found["offset"],
            "question": in_page(drawn("question.html", state=state, answer=found)),
            "tiles": [in_page(drawn("tile.html", hit=hit, state=state)) for hit in found["hits"]],
        },
        headers={"Cache-Control": "no-store"},
    )


async def _detail(services: Services, state: PageState, item: str) -> dict[str, Any]:
    """Return what a template needs of one picture, or `failure`."""
    told: dict[str, Any] = {"item": item, "failure": None, "concepts": []}
    try:
        served, found = located_item(services.shelf, item)
        there = await asyncio.to_thread(is_there, served.root, found.picture.path)
        here = is_loopback(services.settings.host)
        told |= item_view(served, found, there=there, here=here)
        told["concepts"] = state.concepts
    except MmsearchError as error:
        told["failure"] = _said(services, error)
    return told


def _said(services: Services, error: MmsearchError) -> str:
    return discreet(str(error), services.shelf, every=not isinstance(error, QueryError))
