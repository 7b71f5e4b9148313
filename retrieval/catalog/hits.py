"""Hits made of rows of a catalog and of scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mmsearch.retrieval.schema import Hit

if TYPE_CHECKING:
    from mmsearch.retrieval.catalog.lookup import FileRow

__all__ = ["caption_hits", "file_hits"]


def file_hits(rows: Mapping[int, FileRow], ranked: Sequence[tuple[int, float]]) -> tuple[Hit, ...]:
    """Return hits for (file id, score) pairs, in their order; those without a row are left out."""
    found = [(rows[id_], score) for id_, score in ranked if id_ in rows]
    return tuple(
        Hit(rank, row.id, row.path, score, None, row.taken_at, row.width, row.height)
        for rank, (row, score) in enumerate(found, 1)
    )


def caption_hits(
    rows: Mapping[int, tuple[FileRow, str]], ranked: Sequence[tuple[int, float]]
) -> tuple[Hit, ...]:
    """Return hits for (caption id, score) pairs, each with the picture it belongs to.

    A text that several sources give for one picture counts once.
    """
    found: dict[tuple[int, str], tuple[FileRow, float]] = {}
    for id_, score in ranked:
        if id_ in rows:
            row, text = rows[id_]
            found.setdefault((row.id, text), (row, score))
    return tuple(
        Hit(rank, row.id, row.path, score, text, row.taken_at, row.width, row.height)
        for rank, ((_, text), (row, score)) in enumerate(found.items(), 1)
    )
