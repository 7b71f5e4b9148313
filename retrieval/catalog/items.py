"""All that a catalog knows of one picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import select

from mmsearch.retrieval.catalog import tables
from mmsearch.retrieval.schema import Caption, Picture

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["Item", "item"]


@dataclass(frozen=True, slots=True)
class Item:
    """A picture with its captions."""

    id: int
    picture: Picture
    captions: tuple[Caption, ...]


def item(connection: Connection, id_: int) -> Item | None:
    """Return a picture of the catalog; None where there is none with this id."""
    file, caption = tables.file.c, tables.caption.c
    names = [name for name in Picture.__slots__]
    row = connection.execute(
        select(*(file[name] for name in names)).where(file.id == id_)
    ).one_or_none()
    if row is None:
        return None
    told = select(caption.text, caption.source).where(caption.file_id == id_).order_by(caption.id)
    captions = tuple(Caption(text, source) for text, source in connection.execute(told))
    return Item(id_, Picture(**row._mapping), captions)
