"""The database of rclip: one SQLite file for all folders of a user.

Table `images` with `filepath` (absolute), `vector` (float32, unit length), `modified_at` (seconds),
`size` and `deleted`; the version of the database tells the model, which the user cannot choose
(github.com/yurijmikhalevich/rclip, `rclip/db.py`, `rclip/model.py`).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmsearch.errors import SourceError
from mmsearch.retrieval.exchange.recorded import RecordedPicture, VectorSource, unit_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DATABASE", "RclipSource"]

DATABASE = "db.sqlite3"

MODELS = {
    1: "open_clip:ViT-B-32-quickgelu/openai",
    2: "open_clip:ViT-B-32-quickgelu/openai",
    3: "open_clip:ViT-B-32-256/datacomp_s34b_b86k",
}
"""By the version of the database."""

ROWS_PER_STATEMENT = 500


class RclipSource(VectorSource):
    """One such database, opened for reading only."""

    kind = "rclip"

    def __init__(self, path: Path) -> None:
        """Open the database.

        Raises:
            SourceError: it is no database of rclip, or it is damaged or empty.
        """
        self.path = path
        with self._errors():
            uri = f"{path.absolute().as_uri()}?mode=ro"
            self._connection = sqlite3.connect(uri, uri=True)
        try:
            # Whatever bytes a path has come back as they are.
            self._connection.text_factory = os.fsdecode
            with self._errors():
                self.model = MODELS.get(self._version())
                lengths = self._connection.execute(
                    "SELECT length(vector) FROM images WHERE deleted IS NULL "
                    "GROUP BY 1 ORDER BY count(*) DESC LIMIT 1"
                ).fetchone()
                rows = self._connection.execute(
                    "SELECT id, filepath, size, modified_at FROM images "
                    "WHERE deleted IS NULL ORDER BY filepath"
                ).fetchall()
            self.dim = _dim(lengths, path)
            self.pictures = [
                RecordedPicture(
                    filepath,
                    id_,
                    [],
                    size if isinstance(size, int) else None,
                    float(mtime) if isinstance(mtime, (int, float)) else None,
                )
                for id_, filepath, size, mtime in rows
                if isinstance(filepath, str) and filepath
            ]
        except BaseException:
            self.close()
            raise

    def image_vectors(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """Return `float32[n, dim]` unit rows; one that is damaged is NaN throughout."""
        vectors = np.full((len(rows), self.dim), np.nan, dtype=np.float32)
        for start in range(0, len(rows), ROWS_PER_STATEMENT):
            part = rows[start : start + ROWS_PER_STATEMENT]
            marks = ",".join("?" * len(part))
            statement = f"SELECT id, vector FROM images WHERE id IN ({marks})"
            with self._errors():
                blobs = dict(self._connection.execute(statement, list(part)))
            for i, id_ in enumerate(part, start):
                blob = blobs.get(id_)
                if isinstance(blob, bytes) and len(blob) == 4 * self.dim:
                    vectors[i] = np.frombuffer(blob, dtype="<f4")
        return unit_rows(vectors)

    def text_vectors(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """Return nothing: rclip keeps no captions."""
        del rows
        return np.empty((0, self.dim), dtype=np.float32)

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    def _version(self) -> int:
        table = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'db_version'"
        row = None
        if self._connection.execute(table).fetchone():
            row = self._connection.execute("SELECT version FROM db_version").fetchone()
        return int(row[0]) if row and row[0] is not None else 1

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise SourceError(
                f"{self.path} cannot be read as a database of rclip: {error}. Give its db.sqlite3, "
                "and let no rclip be at work on it."
            ) from error


def _dim(lengths: tuple[int | None] | None, path: Path) -> int:
    if lengths is None or not lengths[0] or lengths[0] % 4:
        raise SourceError(f"{path} holds no vectors of pictures.")
    return lengths[0] // 4
