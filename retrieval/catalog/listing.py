"""Pictures and captions in an order other than that of their scores."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import func, select

from mmsearch.retrieval.catalog import tables
from mmsearch.retrieval.catalog.filtering import clause, scanned
from mmsearch.retrieval.filters import Filter
from mmsearch.retrieval.schema import SortKey, Target

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sqlalchemy import ColumnElement, Connection

__all__ = ["in_order"]


def in_order(
    connection: Connection,
    key: SortKey,
    *,
    descending: bool,
    target: Target,
    ids: NDArray[np.int64] | None = None,
    filter_: Filter | None = None,
    limit: int | None = None,
) -> NDArray[np.int64]:
    """Return the first of those that match, and are among the ids, in the order of a key.

    Pictures without a date come last in either direction. Equal ones follow in the order of their
    paths, and captions of one picture in that of their ids, which ascends in either direction.

    Args:
        connection: to a catalog.
        key: what they are sorted by.
        descending: the largest first.
        target: pictures or captions.
        ids: `int64[n]`, the only ones to be returned.
        filter_: what they must be like.
        limit: how many; all if not given.
    """
    id_ = tables.file.c.id if target is Target.IMAGES else tables.caption.c.id
    statement = select(id_)
    if target is Target.CAPTIONS:
        statement = statement.join_from(tables.caption, tables.file)
    if filter_ is not None:
        statement = statement.where(clause(filter_, target))
    if ids is not None:
        # One text, so that the statement is the same however many there are.
        given = func.json_each(json.dumps(ids.tolist())).table_valued("value")
        statement = statement.where(id_.in_(select(given.c.value)))
    by = _expression(key)
    ranked = by.desc() if descending else by.asc()
    statement = statement.order_by(ranked.nulls_last(), tables.file.c.path, id_)
    return np.fromiter(connection.scalars(statement.limit(limit)), dtype=np.int64)


def _expression(key: SortKey) -> ColumnElement[Any]:
    file = tables.file.c
    match key:
        case SortKey.DATE:
            # Its index would have every row looked up in the table by itself.
            return scanned(file.taken_at)
        case SortKey.NAME:
            return func.mm_name_key(file.path)
        case SortKey.PIXELS:
            return file.width * file.height
    return file[key.value]
