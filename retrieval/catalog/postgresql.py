"""Connections to a catalog on PostgreSQL, and its errors as instructions.

Reading transactions see one state from beginning to end (REPEATABLE READ), as SQLite's do. Writing
ones wait for an advisory lock first, so that there is one at a time, and then see what the one
before has committed (READ COMMITTED).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import create_engine, event, exc

from mmsearch.errors import (
    ConnectionLost,
    LibraryError,
    LibraryLocked,
    LibraryNotFound,
    MissingExtra,
    StorageError,
)
from mmsearch.retrieval.catalog import connection as sqlite
from mmsearch.retrieval.catalog.advisory import WRITING, holder_of
from mmsearch.retrieval.writer_lock import Holder

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine

    from mmsearch.retrieval.catalog.address import Address

__all__ = ["Server", "rows_of", "said_of_itself"]

OLDEST = 130_000
"""PostgreSQL 13, the first with `normalize` and all else that is used. 15 is what is tested."""

CONNECT_TIMEOUT_S = 10
IDLE_S = 1.0
"""A connection that was not used for so long is asked whether it still is one."""

KEEPALIVES = {
    "keepalives": "1",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    # Milliseconds that what was sent may stay unanswered.
    "tcp_user_timeout": "60000",
}
"""A cut network is noticed within a minute, also by who only waits."""


class Server:
    """The database that a catalog is in.

    Attributes:
        address: which.
        engine: connections to it; each sees the library's schema alone.
    """

    WRITING: ClassVar[dict[str, Any]] = {"isolation_level": "READ COMMITTED", "immediate": True}
    """Options of a connection for a transaction that writes."""
    ALONE: ClassVar[dict[str, Any]] = {"isolation_level": "AUTOCOMMIT"}
    """Options of a connection for statements that need no transaction."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.engine = _engine(address)

    def prepare(self, *, make: bool) -> bool:
        """Check that the server can be used; say whether the library's schema is there.

        Args:
            make: make the schema where it is not.

        Raises:
            StorageError: the server cannot be reached or used, or the schema holds something else.
            LibraryNotFound: another library is in the schema than the one expected.
        """
        schema = self.address.schema
        with self.errors(), self.engine.connect().execution_options(**self.ALONE) as connection:
            run = connection.exec_driver_sql
            version = run("SELECT current_setting('server_version_num')::int").scalar_one()
            if version < OLDEST:
                raise StorageError(
                    f"The server of {self.address.shown} is PostgreSQL {version // 10_000}. "
                    f"mmsearch needs {OLDEST // 10_000} or later (15 is tested): update the "
                    "server, or name another one."
                )
            encoding = run("SHOW server_encoding").scalar_one()
            if encoding != "UTF8":
                raise StorageError(
                    f"The database of {self.address.shown} keeps text as {encoding}, which cannot "
                    "hold every name. Make one with: createdb --encoding=UTF8 --template=template0"
                )
            there = run(
                "SELECT 1 FROM pg_namespace WHERE nspname = %(name)s", {"name": schema}
            ).scalar()
            if there is None and make:
                # Another process may be making it at this very moment.
                run(f'CREATE SCHEMA IF NOT EXISTS "{schema}"')
            if there is not None:
                self._check(connection)
        return there is not None or make

    def _check(self, connection: Connection) -> None:
        """Refuse a schema that holds another library, or no library at all."""
        run = connection.exec_driver_sql
        names = "SELECT relname FROM pg_class WHERE relnamespace = %(name)s::regnamespace"
        there = set(run(names, {"name": f'"{self.address.schema}"'}).scalars())
        if there and "migration" not in there:
            raise StorageError(
                f"{self.address.shown} holds tables that are not mmsearch's. Name another schema, "
                "such as ?schema=photos, or none: then the library gets one of its own."
            )
        uid = run("SELECT uid FROM library").scalar() if "library" in there else None
        self.expect(uid)

    def expect(self, uid: str | None) -> None:
        """Refuse a catalog of another library than that of the folder's.

        Raises:
            LibraryNotFound: that is so.
        """
        if uid is not None and uid != self.address.uid:
            raise LibraryNotFound(
                f"{self.address.shown} holds another library (uid {uid}) than this folder's "
                f"(uid {self.address.uid}). Nothing was changed. For a library of its own, name "
                "another schema or none; for that very library, copy the library.toml of its "
                "folder into .mmsearch beside the same pictures."
            )

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn PostgreSQL's own words into an instruction, in one line and without secrets."""
        try:
            yield
        except exc.DBAPIError as error:
            raise self._told(error.orig, lost=error.connection_invalidated) from error
        except _driver_error() as error:
            raise self._told(error, lost=False) from error

    def _told(self, cause: BaseException | None, *, lost: bool) -> Exception:
        """Return what to raise for what the driver raised."""
        state = getattr(cause, "sqlstate", None) or ""
        words = _one_line(cause)
        low = words.lower()
        if lost or state.startswith(("08", "57P")):
            state = "cut"
        elif not state:
            # Before there is a connection, the driver says no more than words.
            found = (kind for kind, signs in _SIGNS if any(sign in low for sign in signs))
            state = next(found, "")
        kind, told = _TOLD.get(state, (StorageError, _REFUSED))
        database = self.address.url.database
        writer = self._writer() if kind is LibraryLocked else ""
        return kind(
            told.format(where=self.address.shown, words=words, database=database, writer=writer)
        )

    def _writer(self) -> str:
        """Say who writes, as far as it can be found out."""
        try:
            with self.engine.connect().execution_options(**self.ALONE) as connection:
                found = holder_of(connection, self.address.key, WRITING)
        except exc.SQLAlchemyError:
            found = None
        return "another process" if found is None else f"another mmsearch ({found})"

    def close(self) -> None:
        """Release all connections."""
        self.engine.dispose()


def said_of_itself() -> str:
    """Return what a connection says of this process, in PostgreSQL's 63 bytes at most."""
    holder = Holder.this_process()
    host = re.sub(r"[^\x21-\x7e]", "?", holder.host)[:20]
    tail = f" {holder.pid}@{host}"
    command = re.sub(r"[^\x20-\x7e]", "?", holder.command)
    return command[: 63 - len(tail)] + tail


def rows_of(
    connection: Connection, statement: str, parameters: Sequence[Any] = ()
) -> list[tuple[Any, ...]]:
    """Return the rows of a statement that never changes, past SQLAlchemy: see `fetched`."""
    driver: Any = connection.connection.driver_connection
    # In binary a vector needs half the bytes, and no number is read from digits.
    with driver.cursor(binary=True) as cursor:
        rows: list[tuple[Any, ...]] = cursor.execute(statement, parameters).fetchall()
        return rows


def _engine(address: Address) -> Engine:
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        raise MissingExtra("psycopg", "postgresql") from error
    engine = create_engine(
        _with_defaults(address.url),
        isolation_level="REPEATABLE READ",
        pool_size=5,
        max_overflow=20,
        # Words of errors must not hold what was bound: texts, and megabytes of vectors.
        hide_parameters=True,
    )
    settings = {
        "search_path": f'"{address.schema}"',
        "lock_timeout": f"{int(sqlite.BUSY_TIMEOUT_S * 1000)}ms",
        "bytea_output": "hex",
        "datestyle": "ISO",
        "client_min_messages": "warning",
    }
    names = ", ".join(f"set_config('{name}', %s, false)" for name in settings)

    @event.listens_for(engine, "connect")
    def connect(driver: Any, record: Any) -> None:  # noqa: ANN401
        before = driver.autocommit
        driver.autocommit = True
        driver.execute(f"SELECT {names}", [*settings.values()])
        driver.autocommit = before
        record.info["used"] = time.monotonic()

    @event.listens_for(engine, "checkin")
    def checkin(driver: Any, record: Any) -> None:  # noqa: ANN401
        record.info["used"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def checkout(driver: Any, record: Any, proxy: Any) -> None:  # noqa: ANN401
        if time.monotonic() - record.info["used"] > IDLE_S:
            try:
                engine.dialect.do_ping(driver)
            except Exception as error:
                # The server was restarted: none of the others is of any use either.
                raise exc.InvalidatePoolError from error

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        if connection.get_execution_options().get("immediate"):
            connection.exec_driver_sql(
                "SELECT pg_advisory_xact_lock(%(key)s, %(what)s)",
                {"key": address.key, "what": WRITING},
            )

    return engine


def _with_defaults(url: URL) -> URL:
    own = {
        "connect_timeout": str(CONNECT_TIMEOUT_S),
        "application_name": said_of_itself(),
        "client_encoding": "utf8",
    }
    lacking = {name: value for name, value in (own | KEEPALIVES).items() if name not in url.query}
    return url.update_query_dict(lacking)


def _driver_error() -> type[Exception]:
    import psycopg

    return psycopg.Error


def _one_line(cause: BaseException | None) -> str:
    """Return the first sentence of what PostgreSQL says, which may hold a hint on further lines."""
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    first = next((line for line in lines if not line.startswith("Multiple connection")), "")
    return first.removeprefix("connection failed: ").rstrip(".")


_REFUSED = "The catalog at {where} refused a statement ({words}). Please report this."
_LOCKED = (
    LibraryLocked,
    "The catalog at {where} is in use by {writer}. Wait for it to finish, then run the same "
    "command again.",
)
_NO_DATABASE = (
    StorageError,
    "There is no database for {where} ({words}). Make it with: createdb {database}",
)
_NOT_LET_IN = (
    StorageError,
    "The server of {where} refuses this user or password ({words}). Give them in the address, in "
    "~/.pgpass, or in PGUSER and PGPASSWORD.",
)
_NO_RIGHT = (
    StorageError,
    "This user may not do that in {where} ({words}). Have the schema's owner grant it: reading "
    "needs USAGE on the schema and SELECT on its tables, indexing needs to own them, and a new "
    "library needs CREATE on the database.",
)
_NO_ROOM = (
    StorageError,
    "The server of {where} has no room left ({words}). What was saved before is safe; make room "
    "and run the same command again.",
)
_UNFINISHED = (
    StorageError,
    "The catalog at {where} lacks a table ({words}). If it was not finished, run mmsearch index; "
    "if somebody deleted it, bring back a dump with pg_restore.",
)
_TOLD: dict[str, tuple[type[LibraryError], str]] = {
    "55P03": _LOCKED,
    "57014": _LOCKED,
    "40P01": _LOCKED,
    "3D000": _NO_DATABASE,
    "28P01": _NOT_LET_IN,
    "28000": _NOT_LET_IN,
    "42501": _NO_RIGHT,
    "53100": _NO_ROOM,
    "53200": _NO_ROOM,
    "53300": (
        StorageError,
        "The server of {where} takes no more connections ({words}). Close some, or raise its "
        "max_connections, and run the same command again.",
    ),
    "25006": (
        StorageError,
        "{where} can only be read at present ({words}): it is a standby, or was set so.",
    ),
    "42P01": _UNFINISHED,
    "3F000": _UNFINISHED,
    "cut": (
        ConnectionLost,
        "The connection to {where} was cut ({words}). What was saved before is safe; run the same "
        "command again when the server can be reached.",
    ),
    "unreachable": (
        ConnectionLost,
        "The server of {where} cannot be reached ({words}). Check host and port, that it runs, and "
        "that it listens there.",
    ),
}
"""What to raise, by PostgreSQL's own codes (its manual, appendix A) and by two of ours."""
_SIGNS = (
    ("42501", ("permission denied",)),
    ("28P01", ("authentication", "password", "fatal:  role", "fatal: role", "no pg_hba.conf")),
    ("3D000", ('fatal:  database "', 'fatal: database "')),
    ("53300", ("too many clients", "remaining connection slots")),
    ("unreachable", ("connection", "could not translate", "resolve", "timeout")),
)
"""Words of the driver's where it gives no code."""
