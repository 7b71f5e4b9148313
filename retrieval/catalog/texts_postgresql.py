"""What filters and orders compare in a catalog on PostgreSQL, which runs no Python.

SQLite asks functions of ours for the parts of a path, for LIKE without case and for an order of
names. Here their answers are written with each file and caption (`file_text`, `caption_text`), and
compared by PostgreSQL itself: names as bytes, whose order is that of code points; folded texts by
its LIKE.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from sqlalchemy import (
    BigInteger,
    Column,
    LargeBinary,
    MetaData,
    Table,
    Text,
    delete,
    insert,
    select,
)

from mmsearch.retrieval.catalog import tables
from mmsearch.retrieval.catalog.tables import path_stored
from mmsearch.retrieval.filters.texts import fold, part

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from mmsearch.retrieval.schema import Picture

__all__ = [
    "add_files",
    "caption_text",
    "file_text",
    "for_like",
    "local_offsets",
    "put_captions",
    "put_file",
    "rebuild",
]

_metadata = MetaData()

file_text = Table(
    "file_text",
    _metadata,
    Column("file_id", BigInteger, primary_key=True),
    Column("name", LargeBinary),
    Column("folder", LargeBinary),
    Column("ext", LargeBinary),
    Column("name_key", LargeBinary),
    Column("path_folded", Text),
    Column("name_folded", Text),
    Column("folder_folded", Text),
    Column("ext_folded", Text),
    Column("camera", LargeBinary),
    Column("camera_folded", Text),
    Column("format", LargeBinary),
    Column("format_folded", Text),
)
caption_text = Table(
    "caption_text",
    _metadata,
    Column("caption_id", BigInteger, primary_key=True),
    Column("folded", Text),
)

AT_ONCE = 1_000
"""Rows read, and written, at a time."""

_STAND_INS = {0: 0x10F7FF} | {0xD800 + n: 0x10F800 + n for n in range(0x800)}
"""What PostgreSQL's text cannot hold, and what stands for it: private characters of the last plane.

One for one, so that `_` means one character. A name with such a character of its own is taken for
one with the other by LIKE, and by nothing else.
"""


def for_like(text: str) -> str:
    """Return a folded text, or pattern, as PostgreSQL's LIKE can compare it."""
    return text if text.isascii() and "\0" not in text else text.translate(_STAND_INS)


def add_files(connection: Connection, pictures: Mapping[int, Picture]) -> None:
    """Write what is compared of new pictures, by their ids."""
    rows = [
        _file_row(id_, picture.path, picture.camera, picture.format)
        for id_, picture in pictures.items()
    ]
    connection.execute(insert(file_text), rows)


def put_file(connection: Connection, id_: int, picture: Picture) -> None:
    """Write what is compared of a picture that is there."""
    connection.execute(delete(file_text).where(file_text.c.file_id == id_))
    add_files(connection, {id_: picture})


def _file_row(id_: int, path: str, camera: str | None, format_: str) -> dict[str, object]:
    name, folder, ext = (part(path, each) for each in ("name", "folder", "ext"))
    return {
        "file_id": id_,
        "name": path_stored(name),
        "folder": path_stored(folder),
        "ext": path_stored(ext),
        "name_key": path_stored(fold(name)),
        "path_folded": _folded(path),
        "name_folded": _folded(name),
        "folder_folded": _folded(folder),
        "ext_folded": _folded(ext),
        "camera": None if camera is None else path_stored(camera),
        "camera_folded": None if camera is None else _folded(camera),
        "format": path_stored(format_),
        "format_folded": _folded(format_),
    }


def put_captions(connection: Connection, texts: Mapping[int, str]) -> None:
    """Write what is compared of new captions, by their ids."""
    rows = [{"caption_id": id_, "folded": _folded(text)} for id_, text in texts.items()]
    connection.execute(insert(caption_text), rows)


def rebuild(connection: Connection) -> None:
    """Write what is compared of every picture and caption anew."""
    connection.execute(delete(file_text))
    connection.execute(delete(caption_text))
    file, caption = tables.file.c, tables.caption.c
    streamed = {"yield_per": AT_ONCE}
    files = select(file.id, file.path, file.camera, file.format)
    for some in connection.execute(files, execution_options=streamed).partitions():
        connection.execute(insert(file_text), [_file_row(*row) for row in some])
    captions = select(caption.id, caption.text)
    for texts in connection.execute(captions, execution_options=streamed).partitions():
        put_captions(connection, {id_: text for id_, text in texts})


def _folded(text: str) -> str:
    return for_like(fold(text))


FIRST_YEAR, LAST_YEAR = 1900, 2100
_WEEK = 7 * 86_400


def local_offsets() -> tuple[list[float], list[float]]:
    """Return from when (seconds since 1970) this machine's clock was how far ahead of UTC.

    `[n]` moments, ascending, and `[n + 1]` offsets in seconds, the first of which holds before the
    first moment. What lasted less than a week, or was before 1900 or is after 2100, is not seen.
    """
    # The zone can be another in the same process: tests change it.
    moments, offsets = _offsets(os.environ.get("TZ", ""), time.tzname)
    return [*map(float, moments)], [*map(float, offsets)]


@lru_cache(maxsize=4)
def _offsets(zone: str, names: tuple[str, str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    start, end = ((year - 1970) * 31_556_952 for year in (FIRST_YEAR, LAST_YEAR))
    moments: list[int] = []
    offsets = [_offset(start)]
    for week in range(start, end, _WEEK):
        if (now := _offset(week)) != offsets[-1]:
            seconds = range(week - _WEEK, week + 1)
            changed = bisect_left(seconds, True, key=lambda at: _offset(at) == now)
            moments.append(seconds[changed])
            offsets.append(now)
    return tuple(moments), tuple(offsets)


def _offset(moment: int) -> int:
    return time.localtime(moment).tm_gmtoff
