"""Pictures that are not there, for libraries whose size alone matters."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta

from mmsearch.retrieval.schema import Picture

__all__ = ["picture"]


def picture(i: int, camera: str | None = None) -> Picture:
    """Return the `i`th: one of 400 trips in 25 years, a fifth without a date, a third upright."""
    return Picture(
        path=f"{2000 + i % 25}/trip {i % 400}/IMG_{i:06}.jpg",
        size=2_000_000 + i,
        mtime_ns=i,
        sha256=hashlib.sha256(str(i).encode()).digest(),
        format="JPEG",
        width=4000 if i % 3 else 3000,
        height=3000 if i % 3 else 4000,
        orientation=1,
        taken_at=datetime(2000, 1, 1) + timedelta(hours=2 * i) if i % 5 else None,
        latitude=None,
        longitude=None,
        camera=camera,
        sidecars="",
    )
