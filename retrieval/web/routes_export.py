"""Taking pictures away: `/api/v1/export`."""

from typing import Annotated, Any

from fastapi import APIRouter, Form
from fastapi.responses import StreamingResponse

from mmsearch.retrieval.web.bodies import FormRoute
from mmsearch.retrieval.web.export import Export
from mmsearch.retrieval.web.failures import FAILURES
from mmsearch.retrieval.web.services import Given
from mmsearch.retrieval.web.wire import ExportForm

__all__ = ["router"]

router = APIRouter(prefix="/api/v1", tags=["export"], responses=FAILURES, route_class=FormRoute)

_TYPES = {
    "zip": "application/zip",
    "csv": "text/csv; charset=utf-8",
    "json": "application/json",
    "html": "text/html; charset=utf-8",
}
SENT: dict[int | str, dict[str, Any]] = {
    200: {"content": {name.partition(";")[0]: {} for name in _TYPES.values()}}
}


@router.post("/export", response_class=StreamingResponse, responses=SENT)
async def export(asked: Annotated[ExportForm, Form()], services: Given) -> StreamingResponse:
    """Send pictures, or what is known of them, as one file."""
    made = await services.in_thread(
        lambda: Export(services.shelf, asked.items, services.settings.limits)
    )
    if asked.form == "zip":
        await services.in_thread(made.check_size)
    stream = {"zip": made.zip, "csv": made.csv, "json": made.json, "html": made.html}[asked.form]
    return StreamingResponse(
        stream(),
        media_type=_TYPES[asked.form],
        headers={
            "Content-Disposition": f'attachment; filename="mmsearch-pictures.{asked.form}"',
            "Cache-Control": "no-store",
        },
    )
