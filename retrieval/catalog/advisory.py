"""Who may write to a catalog on PostgreSQL: advisory locks, which end with their connections.

Each lock is a pair of numbers, the library's `Address.key` and one of those below. What a run holds
lies in the very connection that it writes with: where that is cut, so is the lock, and nothing can
be written without it.
"""

from __future__ import annotations

import logging
import math
import socket
import time
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING, Any

from mmsearch.errors import ConnectionLost, LibraryLocked
from mmsearch.retrieval.writer_lock import Holder

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from mmsearch.retrieval.catalog.postgresql import Server

__all__ = ["WRITING", "Claims", "RunLock", "holder_of", "place_of"]

logger = logging.getLogger(__name__)

WRITING = 1
"""Held for the length of a transaction that writes."""
RUNNING = 2
"""Held by a run: alone, or together with others of its kind."""
FIRST_SLOT, SLOTS = 16, 64
"""Each run that works together with others holds one, which says where it begins."""
BLOCKS = 0x5EED
"""Distinguishes the keys of blocks of pictures from those above."""
LOOK_AGAIN_S = 0.2


def place_of(slot: int) -> float:
    """Return where a slot begins, 0 to 1: 0, 1/2, 1/4, 3/4, 1/8 … as far apart as can be.

    J. G. van der Corput, "Verteilungsfunktionen I", Proc. Akad. Amsterdam 38 (1935), 813-821.

    >>> [place_of(slot) for slot in range(4)]
    [0.0, 0.5, 0.25, 0.75]
    """
    place, part = 0.0, 0.5
    while slot:
        place += part * (slot & 1)
        slot, part = slot >> 1, part / 2
    return place


def holder_of(connection: Connection, key: int, what: int) -> Holder | None:
    """Return who holds a lock of a library, as its connection says; None where nobody does."""
    statement = """
        SELECT activity.application_name, extract(epoch FROM now() - activity.backend_start)::float
        FROM pg_locks AS held JOIN pg_stat_activity AS activity USING (pid)
        WHERE held.locktype = 'advisory' AND held.objsubid = 2 AND held.granted
            AND held.classid = %(key)s::bigint::oid AND held.objid = %(what)s::bigint::oid
            AND activity.datname = current_database() AND pid <> pg_backend_pid()
        ORDER BY activity.backend_start LIMIT 1
    """
    numbers = {"key": key & 0xFFFFFFFF, "what": what}
    row = connection.exec_driver_sql(statement, numbers).one_or_none()
    if row is None:
        return None
    command, _, process = str(row[0]).rpartition(" ")
    pid, _, host = process.partition("@")
    if host and socket.gethostname().startswith(host):
        host = socket.gethostname()
    # When somebody else's connection began, not every user may see.
    since = time.time() - (row[1] or 0.0)
    return Holder(int(pid) if pid.isdigit() else 0, host or "?", command or "python", since)


class RunLock:
    """What a run holds from its beginning to its end.

    Attributes:
        together: others of this kind may run at the same time.
        slot: which of them this is; 0 for one that is alone.
    """

    def __init__(self, server: Server, *, together: bool) -> None:
        self.together = together
        self.slot = 0
        self._server = server
        self._key = server.address.key
        self._connection = server.engine.connect()
        self._backend = 0

    def acquire(self, what: object, wait: float) -> bool:
        """Take it; say whether another run had to be waited for.

        Args:
            what: what messages call the library.
            wait: seconds to wait; `math.inf` for as long as it takes.

        Raises:
            LibraryLocked: another one is at it, and was not done in time.
        """
        if self._take():
            return False
        holder = self._holder()
        if wait > 0:
            logger.warning("waiting for another mmsearch%s to finish with %s", holder, what)
            end = math.inf if math.isinf(wait) else time.monotonic() + wait
            while time.monotonic() < end:
                time.sleep(LOOK_AGAIN_S)
                if self._take():
                    return True
        raise LibraryLocked(
            f"Another mmsearch{holder} is writing to {what}. Queries work meanwhile; run this "
            "command again when it has finished, or let it wait for that with --wait."
        )

    def connection(self) -> Connection:
        """Return the connection that the lock is held in, to write with.

        Raises:
            ConnectionLost: it was cut, and there is no other yet.
            LibraryLocked: it was cut, and somebody else has the library now.
        """
        with self._server.errors():
            same = self._pid() == self._backend
        if not same and not self._take():
            raise LibraryLocked(
                f"The connection to {self._server.address.shown} was cut, and another "
                f"mmsearch{self._holder()} has begun to write since. What was saved before is "
                "safe; run this command again when it has finished."
            )
        return self._connection

    def release(self) -> None:
        """Let others at it: closes the connection, which PostgreSQL takes as the end of it."""
        # Back in the pool it would still hold the lock.
        self._connection.invalidate()
        self._connection.close()

    def _take(self) -> bool:
        kind = "_shared" if self.together else ""
        with self._server.errors():
            if not self._asked(f"SELECT pg_try_advisory_lock{kind}(%s, %s)", self._key, RUNNING):
                return False
            self._backend = self._pid()
            if not self.together:
                return True
            for slot in range(self.slot, self.slot + SLOTS):
                number = FIRST_SLOT + slot % SLOTS
                if self._asked("SELECT pg_try_advisory_lock(%s, %s)", self._key, number):
                    self.slot = slot % SLOTS
                    return True
        raise LibraryLocked(f"{SLOTS} runs of mmsearch index this library already.")

    def _asked(self, statement: str, *numbers: int) -> bool:
        driver = self._driver()
        try:
            return bool(driver.execute(statement, numbers).fetchone()[0])
        except Exception:
            if driver.closed or driver.broken:
                self._connection.invalidate()
            raise
        finally:
            if not driver.closed:
                driver.rollback()  # a lock of a session is none of the transaction

    def _pid(self) -> int:
        return int(self._driver().info.backend_pid)

    def _driver(self) -> Any:  # noqa: ANN401
        # Where the connection was found to be cut, SQLAlchemy makes a new one here.
        return self._connection.connection.driver_connection

    def _holder(self) -> str:
        with self._server.errors(), self._server.engine.connect() as connection:
            found = holder_of(connection, self._key, RUNNING)
        return "" if found is None else f" ({found})"


class Claims:
    """Which blocks of pictures a run is at, so that runs at the same time share the work.

    Held in a connection of their own, because blocks are taken by another thread than the one that
    writes. Where it is cut, others may take the blocks, and some pictures are embedded twice; what
    is committed is checked again anyway.
    """

    def __init__(self, server: Server, patiently: Callable[[Callable[[], bool]], bool]) -> None:
        """Name the server, and what does things again when a connection was cut."""
        self._server = server
        self._patiently = patiently
        self._connection: Connection | None = None
        self._lock = Lock()

    def take(self, block: str) -> bool:
        """Take a block, called after its first path; say whether it was free."""
        return self._patiently(lambda: self._asked("SELECT pg_try_advisory_lock(%s, %s)", block))

    def free(self, blocks: Iterable[str]) -> None:
        """Let others have blocks again."""
        # What was cut holds none any more.
        with suppress(ConnectionLost):
            for block in blocks:
                self._asked("SELECT pg_advisory_unlock(%s, %s)", block)

    def close(self) -> None:
        """Let others have all of them."""
        with self._lock:
            if self._connection is not None:
                self._connection.invalidate()
                self._connection.close()
                self._connection = None

    def _asked(self, statement: str, block: str) -> bool:
        number = zlib.crc32(block.encode("utf-8", "surrogateescape"))
        number -= 1 << 32 if number >= 1 << 31 else 0
        with self._lock, self._server.errors():
            if self._connection is None:
                self._connection = self._server.engine.connect()
            driver: Any = self._connection.connection.driver_connection
            try:
                key = self._server.address.key ^ BLOCKS
                return bool(driver.execute(statement, (key, number)).fetchone()[0])
            except Exception:
                self._connection.invalidate()
                self._connection.close()
                self._connection = None
                raise
            finally:
                if not driver.closed:
                    driver.rollback()
