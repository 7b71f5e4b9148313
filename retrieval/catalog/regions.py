"""What is kept about the parts of pictures, for rerankers: derived, in a file of its own.

By content, not by path: a picture that was moved or copied is known. Deleting the file loses
nothing: what is missing is computed again from the picture when it is needed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from sqlalchemy import Column, LargeBinary, MetaData, Table, Text, delete, exc, func, select
from sqlalchemy.dialects.sqlite import insert

from mmsearch.errors import MmsearchError
from mmsearch.retrieval.catalog.connection import read_only_engine, sqlite_engine
from mmsearch.retrieval.catalog.tables import in_parts

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sqlalchemy import Engine

__all__ = ["RegionStore"]

logger = logging.getLogger(__name__)

_metadata = MetaData()
_regions = Table(
    "regions",
    _metadata,
    Column("kind", Text, primary_key=True),
    Column("sha256", LargeBinary, primary_key=True),
    Column("data", LargeBinary, nullable=False),
)


class RegionStore:
    """Regions of a library's pictures; a file that cannot be used is an empty one.

    Safe from several threads and processes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        self._engine: Engine | None = None

    def get(self, kind: str, contents: Sequence[bytes]) -> dict[bytes, NDArray[np.uint8]]:
        """Return `uint8[bytes]` of those pictures that it knows, by the hash of their content.

        Args:
            kind: what made them; those of another kind are unknown.
            contents: hashes.
        """
        found: dict[bytes, NDArray[np.uint8]] = {}
        try:
            engine = self._opened(writing=False)
            if engine is None:
                return {}
            with engine.connect() as connection:
                for some in in_parts(contents):
                    rows = connection.execute(
                        select(_regions.c.sha256, _regions.c.data).where(
                            _regions.c.kind == kind, _regions.c.sha256.in_(some)
                        )
                    )
                    found |= {sha256: np.frombuffer(data, np.uint8) for sha256, data in rows}
        except (exc.SQLAlchemyError, MmsearchError, OSError) as error:
            logger.info(
                "%s cannot be read, and what it holds is computed again: %s", *self._of(error)
            )
        return found

    def put(self, kind: str, regions: Mapping[bytes, NDArray[np.uint8]]) -> None:
        """Keep regions, by the hash of the content they are of; where that fails, it is no loss."""
        if not regions:
            return
        rows = [
            {"kind": kind, "sha256": sha256, "data": data.tobytes()}
            for sha256, data in regions.items()
        ]
        try:
            engine = self._opened(writing=True)
            if engine is not None:
                with engine.begin() as connection:
                    connection.execute(insert(_regions).on_conflict_do_nothing(), rows)
        except (exc.SQLAlchemyError, MmsearchError, OSError) as error:
            logger.info("%s cannot be written to: %s", *self._of(error))

    def tidy(self, kind: str, files: int, contents: Callable[[], Mapping[int, bytes]]) -> None:
        """Forget what is of another kind and, once it is much, what is of pictures that are gone.

        Args:
            kind: what is kept.
            files: how many pictures there are.
            contents: gives their hashes, by their ids; asked only where there is much to forget.
        """
        try:
            engine = self._opened(writing=False)
            if engine is None:
                return
            with engine.execution_options(immediate=True).begin() as connection:
                connection.execute(delete(_regions).where(_regions.c.kind != kind))
                held = connection.execute(select(func.count()).select_from(_regions)).scalar_one()
                # A look at every row pays only where many are of pictures that are gone.
                if held <= 1.1 * files + 100:
                    return
                known = set(contents().values())
                gone = [
                    sha256
                    for (sha256,) in connection.execute(select(_regions.c.sha256))
                    if sha256 not in known
                ]
                for some in in_parts(gone):
                    connection.execute(delete(_regions).where(_regions.c.sha256.in_(some)))
        except (exc.SQLAlchemyError, MmsearchError, OSError) as error:
            logger.info("%s cannot be tidied: %s", *self._of(error))

    def close(self) -> None:
        """Release the file."""
        with self._lock:
            if self._engine is not None:
                self._engine.dispose()
            self._engine = None

    def _opened(self, *, writing: bool) -> Engine | None:
        """Return the engine; None where there is no file and nothing to write."""
        with self._lock:
            if self._engine is None:
                if not writing and not self._path.is_file():
                    return None
                try:
                    self._engine = _engine(self._path)
                except exc.DatabaseError:
                    # Damaged: nothing in it is worth mending.
                    logger.info("%s is damaged and begun anew", self._path)
                    for end in ("", "-wal", "-shm"):
                        self._path.with_name(self._path.name + end).unlink(missing_ok=True)
                    self._engine = _engine(self._path)
            return self._engine

    def _of(self, error: Exception) -> tuple[Path, object]:
        return self._path, getattr(error, "orig", None) or error


def _engine(path: Path) -> Engine:
    engine = sqlite_engine(path)
    try:
        _metadata.create_all(engine)
    except exc.OperationalError as error:
        engine.dispose()
        if "readonly" in str(error.orig) or "unable to open" in str(error.orig):
            return read_only_engine(path)
        raise
    except exc.DatabaseError:
        engine.dispose()
        raise
    return engine
