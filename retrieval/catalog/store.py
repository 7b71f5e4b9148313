"""Opening, making and moving a catalog, and writing to it."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mmsearch.errors import ConnectionLost, LibraryNotFound, StorageError
from mmsearch.retrieval.catalog import integrity, library_row, migrations, tables
from mmsearch.retrieval.catalog.connection import read_only_engine, sqlite_engine
from mmsearch.retrieval.catalog.reader import Reader
from mmsearch.retrieval.catalog.transaction import Transaction

if TYPE_CHECKING:
    from mmsearch.retrieval.catalog.address import Address
    from mmsearch.retrieval.catalog.advisory import Claims
    from mmsearch.retrieval.catalog.integrity import Salvaged

__all__ = ["Catalog"]

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

PAUSES_S = (0.5, 1, 2, 4, 8, 15, 30)
"""Between attempts to reach a server again: a restart takes seconds, a failover a minute."""


class Catalog(Reader):
    """One library's SQLite file, or its schema on a server of PostgreSQL's.

    Readers never wait for the writer; a second writer waits up to `connection.BUSY_TIMEOUT_S`.
    """

    @classmethod
    def create(
        cls, path: Path, *, root: Path | None = None, address: Address | None = None
    ) -> Catalog:
        """Create an empty catalog, or open the one that is there and bring it up to date.

        Args:
            path: the file, which is there only where no address is given.
            root: where the pictures are, when the catalog does not lie beside them.
            address: of a server that keeps it.

        Raises:
            LibraryTooNew: a later version made it.
            LibraryNotFound: another library than the address's is there.
            StorageError: the disk is full or read-only, or the file is no catalog; or the server
                cannot be used.
        """
        catalog = cls._of(path, address)
        with catalog._closed_on_error():
            if catalog._server is not None:
                catalog._server.prepare(make=True)
            catalog._migrate()
            with catalog._connect(immediate=True) as connection:
                uid = library_row.begin(connection, root, None if address is None else address.uid)
            if catalog._server is not None:
                # Whoever else began at the same moment was first.
                catalog._server.expect(uid)
        return catalog

    @classmethod
    def _of(cls, path: Path, address: Address | None) -> Catalog:
        if address is None:
            return cls(path, sqlite_engine(path))
        # What a library in its folder does not need is loaded where it is.
        from mmsearch.retrieval.catalog.postgresql import Server

        server = Server(address)
        return cls(path, server.engine, server)

    @classmethod
    def open(cls, path: Path, *, address: Address | None = None) -> Catalog:
        """Open an existing catalog; a read-only one is opened as it is.

        Args:
            path: the file, which is there only where no address is given.
            address: of a server that keeps it.

        Raises:
            LibraryNotFound: there is no catalog at `path`, or at the address another library's.
            LibraryTooNew: a later version made it.
            StorageError: the file is no catalog or is damaged, or the server cannot be used.
        """
        if address is not None:
            return cls._open_served(path, address)
        if not os.path.isfile(path):  # noqa: PTH113 (says no where Path raises)
            raise LibraryNotFound(f"There is no library at {path.parent}.")
        writable = os.access(path.parent, os.W_OK) and os.access(path, os.W_OK)
        catalog = cls(path, sqlite_engine(path) if writable else read_only_engine(path))
        with catalog._closed_on_error():
            with catalog._connect() as connection:
                lacking = migrations.missing(migrations.applied(connection))
            if lacking and not writable:
                raise StorageError(
                    f"The library at {path.parent} was made by an earlier mmsearch and must be "
                    "brought up to date, but its folder is read-only. Make it writable and try "
                    "again."
                )
            if lacking:
                catalog._migrate()
        return catalog

    @classmethod
    def _open_served(cls, path: Path, address: Address) -> Catalog:
        catalog = cls._of(path, address)
        assert catalog._server is not None
        with catalog._closed_on_error():
            if not catalog._server.prepare(make=False):
                raise catalog._unfinished()
            with catalog._connect() as connection:
                lacking = migrations.missing(migrations.applied(connection))
            if lacking:
                catalog._migrate()
        return catalog

    @staticmethod
    def look(address: Address) -> None:
        """Make sure that a new library could be kept at an address, and change nothing there.

        Raises:
            LibraryNotFound: another library is there.
            StorageError: the server cannot be used, or something else is there.
        """
        from mmsearch.retrieval.catalog.postgresql import Server

        server = Server(address)
        try:
            server.prepare(make=False)
        finally:
            server.close()

    @contextmanager
    def running(self, what: Path, wait: float, *, together: bool) -> Iterator[bool]:
        """Hold the lock of a run on a server; yield whether another one had to finish.

        Until it is given back, everything is written through the connection that holds it.

        Args:
            what: what messages call the library.
            wait: seconds to wait for another run; `math.inf` for as long as it takes.
            together: let runs that say the same work at the same time.

        Raises:
            LibraryLocked: another one is at it, which the message names.
            StorageError: the server cannot be used.
        """
        from mmsearch.retrieval.catalog.advisory import RunLock

        assert self._server is not None
        with self._errors():
            run = RunLock(self._server, together=together)
        try:
            waited = run.acquire(what, wait)
            self._run = run
            yield waited
        finally:
            self._run = None
            run.release()

    @property
    def beginning(self) -> float:
        """Where this run begins, 0 to 1, so that those at the same time are far apart."""
        if self._run is None:
            return 0.0
        from mmsearch.retrieval.catalog.advisory import place_of

        return place_of(self._run.slot)

    def claims(self) -> Claims | None:
        """Return what tells which blocks of files are other runs'; None where this one is alone."""
        if self._run is None or self._server is None or not self._run.together:
            return None
        from mmsearch.retrieval.catalog.advisory import Claims

        return Claims(self._server, self.patiently)

    @classmethod
    def salvaged(cls, damaged: Path, fresh: Path) -> Salvaged:
        """Make a catalog at `fresh` of all that can be read of a damaged one.

        Raises:
            StorageError: nothing can be read, or the new one cannot be written.
        """
        catalog = cls(fresh, sqlite_engine(fresh))
        try:
            catalog._migrate()
            with catalog._connect(immediate=True) as connection:
                found = integrity.salvage(damaged, connection)
                # Should its own row be lost, the library begins anew with what there is.
                library_row.begin(connection, None, None)
                integrity.rebuild_words(connection)
            with catalog.write() as transaction:
                transaction.renew_state()
            # One file, so that it can be renamed.
            with catalog._engine.connect() as connection:
                driver: Any = connection.connection.driver_connection
                driver.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            catalog.close()
        return found

    def copy_to(self, path: Path, pages: int) -> None:
        """Write one state of the catalog to a file that is not there, while others use it.

        Args:
            path: the file.
            pages: how many pages are copied at a time.
        """
        with self._connect(begin=False) as connection, closing(sqlite3.connect(path)) as copy:
            driver: Any = connection.connection.driver_connection
            driver.backup(copy, pages=pages, sleep=0.01)

    def copy_into(self, goal: Catalog, report: Callable[[str, int, int], None]) -> None:
        """Make the content of this catalog all that another one holds, of either kind.

        Args:
            goal: gets the rows, with their ids, and a new state, all at once or not at all.
            report: called with a table's name, how many rows are done and how many there are.
        """
        from mmsearch.retrieval.catalog import copying

        with self._connect() as source, goal._connect(immediate=True) as connection:
            copying.copy_rows(source, connection, report)
            transaction = Transaction(connection)
            transaction.renew_state()
            transaction.finish()

    def move_in(self, root: Path | None) -> None:
        """Say where the pictures are (None: beside the catalog), in a state of its own."""
        with self._connect(immediate=True) as connection:
            connection.execute(
                tables.library.update().values(root=None if root is None else str(root))
            )
        with self.write() as transaction:
            transaction.renew_state()

    def words_damage(self) -> list[str] | None:
        """Return which full-text indexes are wrong; None where that cannot be checked."""
        if self.served:
            with self._connect() as connection:
                return integrity.words_damage(connection)
        if not os.access(self.path, os.W_OK):
            return None
        with self._connect(immediate=True) as connection:
            return integrity.words_damage(connection)

    def rebuild_words(self) -> None:
        """Make both full-text indexes anew."""
        with self._connect(immediate=True) as connection:
            integrity.rebuild_words(connection)

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """Open the one transaction that may write now; all of it happens or none.

        Raises:
            LibraryLocked: another process kept its transaction open for too long.
            StorageError: the disk is full or read-only.
        """
        with self._connect(immediate=True) as connection:
            transaction = Transaction(connection)
            yield transaction
            transaction.finish()

    def written(self, work: Callable[[Transaction], _Result]) -> _Result:
        """Do something in one transaction, and again in another where a server's connection is cut.

        Args:
            work: what is done. It may have been committed when the connection is cut before that is
                said: it must look at what is there, and change nothing else before it returns.

        Raises:
            ConnectionLost: for a minute there was no other connection.
            LibraryLocked, StorageError: as in `write`.
        """

        def once() -> _Result:
            with self.write() as transaction:
                return work(transaction)

        return self.patiently(once)

    def patiently(self, work: Callable[[], _Result]) -> _Result:
        """Do something that may be done again, and do so for a minute while connections are cut."""
        for pause in PAUSES_S:
            try:
                return work()
            except ConnectionLost as error:
                logger.warning("%s Trying again in %g s.", error, pause)
                time.sleep(pause)
        return work()

    def _migrate(self) -> None:
        with self._connect() as connection:
            steps = migrations.missing(migrations.applied(connection))
        for step in steps:
            with self._connect(immediate=True) as connection:
                if step in migrations.missing(migrations.applied(connection)):
                    logger.info("catalog %s: %s", self.place, step.__name__)
                    migrations.apply_one(connection, step)
