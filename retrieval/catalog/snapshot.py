"""One state of a catalog, read block by block: what is exported while others may write."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from sqlalchemy import func, select

from mmsearch.errors import StorageError
from mmsearch.retrieval.catalog import tables
from mmsearch.retrieval.schema import Picture

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sqlalchemy import Connection

__all__ = ["Snapshot", "StoredPicture"]

_STREAMED = {"yield_per": 4096}
PICTURES_PER_BLOCK = 1024
"""A block is held in memory with all its captions' vectors, of which a picture may have many."""


@dataclass(frozen=True, slots=True)
class StoredPicture:
    """A picture with what the catalog holds of it.

    Attributes:
        picture: its file's facts.
        vector: `float16[dim]`.
        captions: texts, each once however many sources give it, with their `float16[dim]`; None
            where one is not embedded yet. In the order of their source.
    """

    picture: Picture
    vector: NDArray[np.float16]
    captions: list[tuple[str, NDArray[np.float16] | None]]


class Snapshot:
    """Reads within one transaction: writes that happen meanwhile are not seen."""

    def __init__(self, connection: Connection, place: str) -> None:
        self._connection = connection
        self._place = place

    def counts(self, encoder_id: int) -> tuple[int, int]:
        """Return how many pictures and captions this encoder has embedded."""
        image, caption = tables.file_vector, tables.caption_vector
        statements = (
            select(func.count()).select_from(table).where(table.c.encoder_id == encoder_id)
            for table in (image, caption)
        )
        pictures, captions = (self._connection.scalar(one) or 0 for one in statements)
        return pictures, captions

    def files(self) -> Iterator[tuple[int, Picture]]:
        """Yield the id and the facts of every picture, in no particular order."""
        names = [field.name for field in fields(Picture)]
        statement = select(tables.file.c.id, *(tables.file.c[name] for name in names))
        with self._connection.execute(statement, execution_options=_STREAMED) as rows:
            for id_, *facts in rows:
                yield id_, Picture(**dict(zip(names, facts, strict=True)))

    def pictures(
        self, encoder_id: int, dim: int, *, captioned: bool | None = None
    ) -> Iterator[list[StoredPicture]]:
        """Yield the embedded pictures in the order of their paths, block by block.

        Args:
            encoder_id: whose vectors.
            dim: their length.
            captioned: only those with an embedded caption, or only those without one.

        Raises:
            StorageError: a vector has another length.
        """
        file, vector, caption = tables.file.c, tables.file_vector.c, tables.caption.c
        embedded = select(vector.file_id).where(vector.encoder_id == encoder_id)
        statement = select(file.id).where(file.id.in_(embedded)).order_by(file.path)
        if captioned is not None:
            texts = select(caption.file_id).join_from(tables.caption, tables.caption_vector)
            texts = texts.where(tables.caption_vector.c.encoder_id == encoder_id)
            statement = statement.where(file.id.in_(texts) if captioned else file.id.not_in(texts))
        # Ids first: sorting whole rows would take as much space again as all vectors do.
        streamed = self._connection.scalars(statement, execution_options=_STREAMED)
        ids = np.fromiter(streamed, dtype=np.int64)
        for start in range(0, len(ids), PICTURES_PER_BLOCK):
            yield self._block(ids[start : start + PICTURES_PER_BLOCK].tolist(), encoder_id, dim)

    def _block(self, ids: list[int], encoder_id: int, dim: int) -> list[StoredPicture]:
        names = [field.name for field in fields(Picture)]
        file, vector = tables.file.c, tables.file_vector.c
        columns = [file.id, vector.vector, *(file[name] for name in names)]
        statement = (
            select(*columns)
            .join_from(tables.file, tables.file_vector, vector.file_id == file.id)
            .where(file.id.in_(ids), vector.file_id.in_(ids), vector.encoder_id == encoder_id)
        )
        rows = {row[0]: row for row in self._connection.execute(statement)}
        captions = self._captions(ids, encoder_id, dim)
        return [
            StoredPicture(
                Picture(**dict(zip(names, rows[id_][2:], strict=True))),
                self._vector(rows[id_][1], dim),
                captions.get(id_, []),
            )
            for id_ in ids
        ]

    def _captions(
        self, file_ids: list[int], encoder_id: int, dim: int
    ) -> dict[int, list[tuple[str, NDArray[np.float16] | None]]]:
        caption, vector = tables.caption.c, tables.caption_vector.c
        joined = tables.caption.outerjoin(
            tables.caption_vector,
            (vector.caption_id == caption.id) & (vector.encoder_id == encoder_id),
        )
        statement = (
            select(caption.file_id, caption.text, vector.vector)
            .select_from(joined)
            .where(caption.file_id.in_(file_ids))
            # Those of one source are written last first.
            .order_by(caption.id.desc())
        )
        found: dict[int, dict[str, NDArray[np.float16] | None]] = {}
        for file_id, text, blob in self._connection.execute(statement):
            texts = found.setdefault(file_id, {})
            if texts.get(text) is None:
                texts[text] = None if blob is None else self._vector(blob, dim)
        return {file_id: list(texts.items()) for file_id, texts in found.items()}

    def _vector(self, blob: bytes, dim: int) -> NDArray[np.float16]:
        if len(blob) != 2 * dim:
            raise StorageError(
                f"The catalog {self._place} is damaged: a vector has {len(blob)} bytes, {2 * dim} "
                "were expected. Delete the library's folder and index again."
            )
        return np.frombuffer(blob, dtype="<f2")
