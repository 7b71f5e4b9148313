"""Pictures and captions in an order other than that of their scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import func, select

from mmsearch.retrieval.catalog import tables
from mmsearch.retrieval.filters import SortKey
from mmsearch.retrieval.schema import Target

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sqlalchemy import ColumnElement, Connection

__all__ = ["in_order"]


def in_order(
    connection: Connection,
    ids: NDArray[np.int64] | None,
    key: SortKey,
    descending: bool,
    target: Target,
) -> NDArray[np.int64]:
    """Return those of the ids that exist, or all there are, in the order of a key.

    Pictures without a date come last in either direction. Equal ones follow in the order of their
    paths, and captions of one picture in that of their ids, which ascends in either direction.
    """
    id_ = tables.file.c.id if target is Target.IMAGES else tables.caption.c.id
    statement = select(id_)
    if target is Target.CAPTIONS:
        statement = statement.join_from(tables.caption, tables.file)
    few = ids is not None and len(ids) <= tables.PARAMETERS_PER_STATEMENT
    if ids is not None and few:
        statement = statement.where(id_.in_(ids.tolist()))
    by = _expression(key)
    ranked = by.desc() if descending else by.asc()
    statement = statement.order_by(ranked.nulls_last(), tables.file.c.path, id_)
    found = np.fromiter(connection.scalars(statement), dtype=np.int64)
    return found if ids is None or few else found[np.isin(found, ids)]


def _expression(key: SortKey) -> ColumnElement[Any]:
    file = tables.file.c
    match key:
        case SortKey.DATE:
            return file.taken_at
        case SortKey.NAME:
            return func.mm_name_key(file.path)
        case SortKey.PIXELS:
            return file.width * file.height
    return file[key.value]
