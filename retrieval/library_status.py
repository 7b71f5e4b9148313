"""What a library holds, as one JSON object."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmsearch.retrieval.library_config import without_secrets
from mmsearch.retrieval.schema import Target

if TYPE_CHECKING:
    from mmsearch.retrieval.catalog import AdapterRow, EncoderRow
    from mmsearch.retrieval.library import Library

__all__ = ["model_fields", "status_fields"]


def status_fields(library: Library) -> dict[str, Any]:
    """Return the object that `status --json` prints."""
    catalog = library.catalog
    row, counts = catalog.library(), catalog.counts()
    adapter = None if row.adapter_id is None else catalog.adapter(row.adapter_id)
    exact, recall = library.search_of(Target.IMAGES, row)
    return {
        "schema": 1,
        "library": str(library.root),
        "model": row.encoder.label if row.encoder else None,
        "dim": row.encoder.dim if row.encoder else None,
        "files": counts.files,
        "captions": counts.captions,
        "problems": counts.problems,
        "vectors": counts.vectors,
        "vector_bytes": counts.vector_bytes,
        "search": "exact" if exact else "approximate",
        "recall": recall,
        "generation": row.generation,
        "catalog": catalog.place if catalog.served else None,
        "store": None if library.config.store is None else without_secrets(library.config.store),
        "adapter": None if adapter is None else _adapter_fields(adapter),
        **model_fields(catalog.encoders(), counts.files),
    }


def model_fields(encoders: list[EncoderRow], files: int) -> dict[str, Any]:
    """Return what the JSON of `status` and `migrate --status` says of models beside the active."""
    following = next((row for row in encoders if row.next), None)
    return {
        "migration": None
        if following is None
        else {"model": following.spec.label, "done": following.vectors, "total": files},
        "kept_models": [
            {"model": row.spec.label, "vectors": row.vectors, "vector_bytes": row.vector_bytes}
            for row in encoders
            if not row.active and not row.next
        ],
    }


def _adapter_fields(adapter: AdapterRow) -> dict[str, Any]:
    return {"id": adapter.id, "created": adapter.created_at.isoformat(), **adapter.report}
