"""A catalog's database: its connections and transactions, and what messages call it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from threading import local
from typing import TYPE_CHECKING, Any

from mmsearch.errors import LibraryNotFound
from mmsearch.retrieval.catalog.connection import as_mmsearch_errors

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from mmsearch.retrieval.catalog.advisory import RunLock
    from mmsearch.retrieval.catalog.postgresql import Server

__all__ = ["Database"]


class Database:
    """A SQLite file, or a schema on a server of PostgreSQL's.

    Readers never wait for the writer; a second writer waits up to `connection.BUSY_TIMEOUT_S`.
    """

    def __init__(self, path: Path, engine: Engine, server: Server | None = None) -> None:
        self.path = path
        self._engine = engine
        self._server = server
        self._own = local()
        self._run: RunLock | None = None
        # What differs is chosen once, here.
        self._errors: Callable[[], AbstractContextManager[None]]
        if server is None:
            self._errors = partial(as_mmsearch_errors, path)
            self._writing: dict[str, Any] = {"immediate": True}
            self._alone: dict[str, Any] = {}
        else:
            self._errors, self._writing, self._alone = (
                server.errors,
                server.WRITING,
                server.ALONE,
            )

    @property
    def place(self) -> str:
        """What messages call it; without user and password."""
        return str(self.path) if self._server is None else self._server.address.shown

    @property
    def served(self) -> bool:
        """Whether a server keeps it, where several may index it at once."""
        return self._server is not None

    def close(self) -> None:
        """Release the file, or the connections."""
        self._engine.dispose()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Have whatever this thread reads meanwhile come from one state, in one transaction.

        Besides, half of what a short statement takes is the transaction around it.
        """
        before = getattr(self._own, "connection", None)
        with self._connect() as connection:
            self._own.connection = connection
            try:
                yield
            finally:
                self._own.connection = before

    @contextmanager
    def _connect(self, *, immediate: bool = False, begin: bool = True) -> Iterator[Connection]:
        """Give a connection in a transaction; one `fetched` statement needs none to `begin`."""
        shared: Connection | None = getattr(self._own, "connection", None)
        if shared is not None and not immediate:
            yield shared
            return
        with self._errors():
            if immediate and self._run is not None:
                connection = self._run.connection().execution_options(**self._writing)
                with connection.begin():
                    yield connection
                return
            with self._engine.connect() as connection:
                if immediate:
                    connection = connection.execution_options(**self._writing)
                if not begin:
                    yield connection.execution_options(**self._alone)
                    return
                with connection.begin():
                    yield connection

    @contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _unfinished(self) -> LibraryNotFound:
        return LibraryNotFound(
            f"The library at {self.path.parent} is only just being made. Run mmsearch index on "
            "its folder of pictures, or wait for the run that is at it."
        )
