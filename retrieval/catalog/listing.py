"""Pictures and captions in an order other than that of their scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmsearch.retrieval.catalog import tables
from mmsearch.retrieval.catalog.filtering import clauses_of
from mmsearch.retrieval.schema import Target

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sqlalchemy import Connection

    from mmsearch.retrieval.filters import Filter
    from mmsearch.retrieval.schema import SortKey

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
    own = clauses_of(connection)
    id_ = tables.file.c.id if target is Target.IMAGES else tables.caption.c.id
    statement = own.files(indexed=True) if target is Target.IMAGES else own.captions()
    if filter_ is not None:
        statement = statement.where(own.clause(filter_, target))
    if ids is not None:
        # One value, so that the statement is the same however many there are.
        statement = statement.where(own.among(id_, ids))
    by = own.order(key)
    ranked = by.desc() if descending else by.asc()
    statement = statement.order_by(ranked.nulls_last(), tables.file.c.path, id_)
    return np.fromiter(connection.scalars(statement.limit(limit)), dtype=np.int64)
