"""Opening a catalog and reading from it."""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import sqlite3
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from threading import local
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from sqlalchemy import Column, Table, func, select

from mmsearch.errors import ConnectionLost, LibraryNotFound, StorageError
from mmsearch.retrieval.catalog import (
    filtering,
    integrity,
    items,
    listing,
    lookup,
    migrations,
    stored,
    tables,
)
from mmsearch.retrieval.catalog.connection import (
    as_mmsearch_errors,
    read_only_engine,
    sqlite_engine,
)
from mmsearch.retrieval.catalog.encoders import (
    EncoderRow,
    UnembeddedFile,
    encoder_rows,
    spec_of,
    unembedded_files,
)
from mmsearch.retrieval.catalog.known import KnownFile, known_files
from mmsearch.retrieval.catalog.lookup import FileRow
from mmsearch.retrieval.catalog.transaction import Transaction, files_with
from mmsearch.retrieval.catalog.word_search import KeptWords, find_words
from mmsearch.retrieval.catalog.words import told_by_name
from mmsearch.retrieval.schema import GENERATED, Hit, Problem, Target

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sqlalchemy import Connection, Engine

    from mmsearch.indexes.base import Condition
    from mmsearch.retrieval.catalog.address import Address
    from mmsearch.retrieval.catalog.advisory import Claims, RunLock
    from mmsearch.retrieval.catalog.copying import Sum
    from mmsearch.retrieval.catalog.integrity import Salvaged
    from mmsearch.retrieval.catalog.items import Item
    from mmsearch.retrieval.catalog.postgresql import Server
    from mmsearch.retrieval.catalog.snapshot import Snapshot
    from mmsearch.retrieval.catalog.stored import Described, StoreRecord
    from mmsearch.retrieval.filters import Filter
    from mmsearch.retrieval.schema import EncoderSpec, SortKey

__all__ = [
    "AdapterRow",
    "Catalog",
    "Counts",
    "KnownFile",
    "KnownProblem",
    "LibraryRow",
    "Undescribed",
]

logger = logging.getLogger(__name__)


_Result = TypeVar("_Result")

PAUSES_S = (0.5, 1, 2, 4, 8, 15, 30)
"""Between attempts to reach a server again: a restart takes seconds, a failover a minute."""

_VECTORS = {
    Target.IMAGES: (tables.file_vector, "file_id"),
    Target.CAPTIONS: (tables.caption_vector, "caption_id"),
}


@dataclass(frozen=True, slots=True)
class LibraryRow:
    """What a library is: its encoder, where its pictures are, and which state it is in.

    Attributes:
        root: where the pictures are, when the catalog does not lie beside them.
        generation: grows by one with every change to pictures, captions, vectors or adapters.
        stamp: names this very state; never the same twice, in any copy of the library.
        encoder: the encoder whose vectors answer queries; None before the first indexing.
        model: what `load_encoder` takes to get that encoder.
        adapter_id: what `tune` learned last for that encoder's texts; None where they are its own.
    """

    uid: str
    root: Path | None
    generation: int
    stamp: str
    encoder_id: int | None
    encoder: EncoderSpec | None
    model: str | None
    adapter_id: int | None


@dataclass(frozen=True, slots=True)
class AdapterRow:
    """What `tune` learned: the weights, as `Adapter.to_bytes` writes them, and its report."""

    id: int
    created_at: datetime
    weights: bytes
    report: dict[str, Any]


@dataclass(frozen=True, slots=True)
class KnownProblem:
    """A file that could not be indexed, as it was then."""

    size: int
    mtime_ns: int
    kind: str


@dataclass(frozen=True, slots=True)
class Undescribed:
    """A content about which nobody says anything.

    Attributes:
        path: one of its files.
        ids: all of its pictures that lack a caption.
    """

    path: str
    ids: list[int]


@dataclass(frozen=True, slots=True)
class Counts:
    """How much a library holds; vectors are those of the active encoder's pictures."""

    files: int
    captions: int
    problems: int
    vectors: int
    vector_bytes: int


class Catalog:
    """One library's SQLite file, or its schema on a server of PostgreSQL's.

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
                uid = _begin(connection, root, None if address is None else address.uid)
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

    @property
    def place(self) -> str:
        """What messages call it; without user and password."""
        return str(self.path) if self._server is None else self._server.address.shown

    @property
    def served(self) -> bool:
        """Whether a server keeps it, where several may index it at once."""
        return self._server is not None

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
                _begin(connection, None, None)
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

    def sums(self, report: Callable[[str, int, int], None]) -> dict[str, Sum]:
        """Return the number of rows and a checksum of each table of content, by its name."""
        from mmsearch.retrieval.catalog import copying

        with self._connect() as connection:
            return copying.sums(connection, report)

    def move_in(self, root: Path | None) -> None:
        """Say where the pictures are (None: beside the catalog), in a state of its own."""
        with self._connect(immediate=True) as connection:
            connection.execute(
                tables.library.update().values(root=None if root is None else str(root))
            )
        with self.write() as transaction:
            transaction.renew_state()

    def bad_vectors(
        self, target: Target, encoder_id: int, dim: int
    ) -> tuple[int, NDArray[np.int64]]:
        """Return how many vectors an encoder has, and the ids of those that are none."""
        with self._connect() as connection:
            return integrity.bad_vectors(connection, target, encoder_id, dim)

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

    def close(self) -> None:
        """Release the file, or the connections."""
        self._engine.dispose()

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
    def snapshot(self) -> Iterator[Snapshot]:
        """Read one state of the catalog in blocks, whatever is written meanwhile."""
        # What questions do not need is loaded where it is.
        from mmsearch.retrieval.catalog.snapshot import Snapshot

        with self._connect() as connection:
            yield Snapshot(connection, self.place)

    def library(self) -> LibraryRow:
        """Return the library's own row and its active encoder."""
        active = tables.encoder.c.id == tables.library.c.encoder_id
        joined = tables.library.outerjoin(tables.encoder, active)
        newest = select(func.max(tables.adapter.c.id)).where(
            tables.adapter.c.encoder_id == tables.library.c.encoder_id
        )
        adapter_id = newest.correlate(tables.library).scalar_subquery().label("adapter_id")
        with self._connect() as connection:
            statement = select(tables.library, tables.encoder, adapter_id).select_from(joined)
            row = connection.execute(statement).one_or_none()
        if row is None:
            raise self._unfinished()
        fields = row._mapping
        spec = None
        if fields[tables.library.c.encoder_id] is not None:
            spec = spec_of(fields)
        root = fields[tables.library.c.root]
        return LibraryRow(
            uid=fields[tables.library.c.uid],
            root=None if root is None else Path(root),
            generation=fields[tables.library.c.generation],
            stamp=fields[tables.library.c.stamp],
            encoder_id=fields[tables.library.c.encoder_id],
            encoder=spec,
            model=fields[tables.encoder.c.location],
            adapter_id=fields["adapter_id"],
        )

    def adapter(self, id_: int) -> AdapterRow | None:
        """Return what `tune` learned under this id; None where it was taken back since."""
        columns = tables.adapter.c
        found = columns.id, columns.created_at, columns.weights, columns.report
        with self._connect() as connection:
            row = connection.execute(select(*found).where(columns.id == id_)).one_or_none()
        if row is None:
            return None
        return AdapterRow(row.id, row.created_at, row.weights, json.loads(row.report))

    def stamp(self) -> str:
        """Return the name of the present state: what an index file must carry to be current."""
        with self._connect(begin=False) as connection:
            stamp = lookup.stamp(connection)
        if stamp is None:
            raise self._unfinished()
        return stamp

    def encoders(self) -> list[EncoderRow]:
        """Return every encoder that the library holds vectors of, the oldest first."""
        with self._connect() as connection:
            return encoder_rows(connection)

    def unembedded_files(self, encoder_id: int) -> dict[str, UnembeddedFile]:
        """Return the pictures without a vector of this encoder, by path, in the order of paths."""
        with self._connect() as connection:
            return unembedded_files(connection, encoder_id)

    def known_files(
        self, encoder_id: int, paths: Sequence[str] | None = None
    ) -> dict[str, KnownFile]:
        """Return files by path, all or those of a few, and whether this encoder embedded them."""
        with self._connect() as connection:
            return known_files(connection, encoder_id, paths)

    def embedded_ids(self, paths: Sequence[str], encoder_id: int) -> dict[str, int]:
        """Return the ids of those of the paths whose pictures this encoder has embedded."""
        file, vector = tables.file.c, tables.file_vector.c
        statement = select(file.path, file.id).join(
            tables.file_vector, (vector.file_id == file.id) & (vector.encoder_id == encoder_id)
        )
        with self._connect() as connection:
            return {
                path: id_
                for part in tables.in_parts(paths)
                for path, id_ in connection.execute(statement.where(file.path.in_(part)))
            }

    def holds_below(self, folder: str) -> bool:
        """Say whether a picture is known below a folder."""
        path = tables.file.c.path
        below = (path > f"{folder}/") & (path < f"{folder}0")  # the sign that follows the slash
        with self._connect() as connection:
            return connection.execute(select(path).where(below).limit(1)).first() is not None

    def known_problems(self, paths: Sequence[str] | None = None) -> dict[str, KnownProblem]:
        """Return files that could not be indexed by path, all or those of a few paths."""
        columns = tables.problem.c
        statement = select(columns.path, columns.size, columns.mtime_ns, columns.kind)
        if paths is not None:
            statement = statement.where(columns.path.in_(paths))
        with self._connect() as connection:
            rows = connection.execute(statement)
            return {path: KnownProblem(*rest) for path, *rest in rows}

    def containers(self) -> dict[str, tuple[int, int]]:
        """Return size and time of every container that was read whole, by path."""
        columns = tables.container.c
        statement = select(columns.path, columns.size, columns.mtime_ns)
        with self._connect() as connection:
            return {path: (size, at) for path, size, at in connection.execute(statement)}

    def known_contents(self, sizes: Iterable[int], encoder_id: int) -> dict[bytes, int]:
        """Return the file id by content hash, for embedded files of one of the given sizes."""
        file, vector = tables.file.c, tables.file_vector.c
        statement = select(file.sha256, file.id).join(
            tables.file_vector, (vector.file_id == file.id) & (vector.encoder_id == encoder_id)
        )
        with self._connect() as connection:
            return {
                bytes(sha256): id_
                for part in tables.in_parts(sorted(set(sizes)))
                for sha256, id_ in connection.execute(statement.where(file.size.in_(part)))
            }

    def contents(self, ids: Sequence[int] | None = None) -> dict[int, bytes]:
        """Return the SHA-256 of pictures' contents by id; of every picture if no ids are given."""
        file = tables.file.c
        statement = select(file.id, file.sha256)
        some = (
            [statement]
            if ids is None
            else [statement.where(file.id.in_(part)) for part in tables.in_parts(ids)]
        )
        with self._connect() as connection:
            return {id_: bytes(sha256) for one in some for id_, sha256 in connection.execute(one)}

    def captions_to_embed(
        self, encoder_id: int, limit: int, *, skip: int = 0
    ) -> list[tuple[int, str]]:
        """Return up to `limit` captions (id, text) that this encoder has not embedded.

        Args:
            encoder_id: the encoder.
            limit: how many.
            skip: leave out so many before them, which others embed at the same time.
        """
        caption, vector = tables.caption.c, tables.caption_vector.c
        joined = tables.caption.outerjoin(
            tables.caption_vector,
            (vector.caption_id == caption.id) & (vector.encoder_id == encoder_id),
        )
        statement = (
            select(caption.id, caption.text)
            .select_from(joined)
            .where(vector.caption_id.is_(None))
            .order_by(caption.id)
            .limit(limit)
        )
        if skip:
            statement = statement.offset(skip)
        with self._connect() as connection:
            return [(id_, text) for id_, text in connection.execute(statement)]

    def count_captions_to_embed(self, encoder_id: int) -> int:
        """Return how many captions this encoder has not embedded."""
        caption, vector = tables.caption, tables.caption_vector
        done = select(func.count()).select_from(vector).where(vector.c.encoder_id == encoder_id)
        with self._connect() as connection:
            total = connection.scalar(select(func.count()).select_from(caption)) or 0
            return total - (connection.scalar(done) or 0)

    def file_vectors(
        self, encoder_id: int, dim: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
        """Return `int64[n]` file ids, ascending, and their `float16[n, dim]` vectors."""
        return self._all_vectors(Target.IMAGES, encoder_id, dim)

    def caption_vectors(
        self, encoder_id: int, dim: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
        """Return `int64[n]` caption ids, ascending, and their `float16[n, dim]` vectors."""
        return self._all_vectors(Target.CAPTIONS, encoder_id, dim)

    def changes(self, target: Target, since: str, row: LibraryRow) -> NDArray[np.int64] | None:
        """Return `int64[n]`, whose vectors were added, replaced or removed since a state.

        None where that state is not remembered, or had another encoder, or adapted captions
        otherwise than the state that `row` names, so that an index of it is of no use.
        """
        state, change = tables.state.c, tables.vector_change.c
        with self._connect() as connection:
            then = connection.execute(
                select(state.seq, state.encoder_id, state.adapter_id).where(state.stamp == since)
            ).one_or_none()
            if then is None or then.encoder_id != row.encoder_id:
                return None
            if target is Target.CAPTIONS and then.adapter_id != row.adapter_id:
                return None
            later = (change.target == target.value) & (change.seq > then.seq)
            ids = connection.scalars(select(change.id).where(later).distinct().order_by(change.id))
            return np.fromiter(ids, dtype=np.int64)

    def store_records(self) -> list[StoreRecord]:
        """Return how far each collection of a store was brought."""
        with self._connect() as connection:
            return stored.records(connection)

    def seq_of(self, stamp: str) -> int | None:
        """Return the number of the last change before a state; None where it is forgotten."""
        with self._connect() as connection:
            return stored.seq_of(connection, stamp)

    def changed_since(self, target: Target, seq: int) -> NDArray[np.int64]:
        """Return `int64[n]`, ascending: what changed after a change, of those remembered."""
        with self._connect() as connection:
            return stored.changed_since(connection, target, seq)

    def described_for_filters(self, target: Target, ids: Collection[int]) -> dict[int, Described]:
        """Return what filters ask of pictures, or of the pictures of captions, by id."""
        with self._connect() as connection:
            return stored.described(connection, target, ids)

    def vector_ids(self, target: Target, encoder_id: int) -> NDArray[np.int64]:
        """Return `int64[n]`, ascending: which pictures or captions this encoder has embedded."""
        table, id_column = _VECTORS[target]
        key: Column[int] = table.c[id_column]
        statement = select(key).where(table.c.encoder_id == encoder_id).order_by(key)
        with self._connect() as connection:
            return np.fromiter(connection.scalars(statement), dtype=np.int64)

    def stored_vectors(
        self, target: Target, encoder_id: int, dim: int, ids: Collection[int]
    ) -> dict[int, bytes]:
        """Return `dim` numbers, little-endian fp16, of each of the ids that has a vector."""
        with self._connect() as connection:
            found = dict(lookup.vector_rows(connection, target, encoder_id, ids))
        for id_, blob in found.items():
            self._check_length(target, id_, blob, dim)
        return found

    def vectors_of(
        self, target: Target, encoder_id: int, dim: int, ids: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
        """Return those of the ids that have a vector, ascending, and their `float16[n, dim]`."""
        found = self.stored_vectors(target, encoder_id, dim, np.unique(ids).tolist())
        vectors = np.frombuffer(bytearray().join(found.values()), dtype="<f2")
        return np.array([*found], dtype=np.int64), vectors.reshape(len(found), dim)

    def captions(self) -> list[tuple[int, int, str]]:
        """Return people's captions by id: each one's id, its picture's id and its text."""
        caption = tables.caption.c
        own = caption.source.not_like(f"{GENERATED}%")
        statement = (
            select(caption.id, caption.file_id, caption.text).where(own).order_by(caption.id)
        )
        with self._connect() as connection:
            return [(id_, file_id, text) for id_, file_id, text in connection.execute(statement)]

    def matching(self, filter_: Filter, target: Target = Target.IMAGES) -> NDArray[np.int64]:
        """Return `int64[n]`, ascending: the pictures, or captions, of which a filter is true.

        A caption matches where its picture does; `caption` is then its own text.
        """
        with self._connect() as connection:
            return filtering.matching(connection, filter_, target)

    def in_order(
        self,
        ids: NDArray[np.int64],
        key: SortKey,
        *,
        descending: bool = False,
        limit: int | None = None,
        target: Target = Target.IMAGES,
    ) -> NDArray[np.int64]:
        """Return the first `limit` of the `int64[n]` ids, as far as they exist, in a key's order.

        Pictures without a date come last in either direction; equal ones follow in the order of
        their paths.
        """
        with self._connect() as connection:
            return listing.in_order(
                connection, key, descending=descending, target=target, ids=ids, limit=limit
            )

    def listed(
        self,
        filter_: Filter | None,
        key: SortKey,
        *,
        descending: bool = False,
        limit: int | None = None,
        target: Target = Target.IMAGES,
    ) -> tuple[Hit, ...]:
        """Return the first of what matches, in a key's order, where nothing else is asked.

        Scores are NaN: nothing was compared.
        """
        with self._connect() as connection:
            ids = listing.in_order(
                connection, key, descending=descending, target=target, filter_=filter_, limit=limit
            )
        hits = self.file_hits if target is Target.IMAGES else self.caption_hits
        return hits([(id_, math.nan) for id_ in ids.tolist()])

    def files(self, ids: Collection[int]) -> dict[int, FileRow]:
        """Return those of the pictures that there are, by id."""
        with self._connect() as connection:
            return {row.id: row for row in lookup.file_rows(connection, ids)}

    def files_of_captions(self, ids: Collection[int]) -> dict[int, tuple[FileRow, str]]:
        """Return picture and text of those of the captions that there are, by the captions' ids."""
        with self._connect() as connection:
            return {id_: (row, text) for id_, text, row in lookup.caption_rows(connection, ids)}

    def file_hits(self, ranked: Sequence[tuple[int, float]]) -> tuple[Hit, ...]:
        """Return hits for (file id, score) pairs, in their order; files gone since are left out."""
        rows = self.files([id_ for id_, _ in ranked])
        found = [(rows[id_], score) for id_, score in ranked if id_ in rows]
        return tuple(
            Hit(rank, row.id, row.path, score, None, row.taken_at, row.width, row.height)
            for rank, (row, score) in enumerate(found, 1)
        )

    def caption_hits(self, ranked: Sequence[tuple[int, float]]) -> tuple[Hit, ...]:
        """Return hits for (caption id, score) pairs, each with the picture it belongs to.

        A text that several sources give for one picture counts once.
        """
        rows = self.files_of_captions([id_ for id_, _ in ranked])
        found: dict[tuple[int, str], tuple[FileRow, float]] = {}
        for id_, score in ranked:
            if id_ in rows:
                row, text = rows[id_]
                found.setdefault((row.id, text), (row, score))
        return tuple(
            Hit(rank, row.id, row.path, score, text, row.taken_at, row.width, row.height)
            for rank, ((_, text), (row, score)) in enumerate(found.items(), 1)
        )

    def words(
        self,
        text: str,
        target: Target,
        limit: int,
        *,
        among: NDArray[np.int64] | None = None,
    ) -> list[tuple[int, float]]:
        """Return ids and scores (BM25, higher is better) of what holds words of a text, best first.

        See `catalog.word_search.find_words`: a picture that is named exactly so comes first.
        """
        return self.words_of_many([text], target, limit, among=[among], kept=KeptWords())[0]

    def words_of_many(
        self,
        texts: Sequence[str],
        target: Target,
        limit: int,
        *,
        among: Sequence[NDArray[np.int64] | Condition | None],
        kept: KeptWords,
    ) -> list[list[tuple[int, float]]]:
        """Return what `words` returns for each of several texts.

        Args:
            texts: any.
            target: what is looked for.
            limit: at most so many for each.
            among: for each, the ids to choose from, see `find_words`.
            kept: what was found in the same state of the catalog before.
        """
        with self._connect() as connection:
            return find_words(connection, texts, target, limit, among, kept)

    def described(self, ids: Collection[int]) -> set[int]:
        """Return which of these pictures have a caption, or a file name of several words."""
        rows = self.files(ids).values()
        return {row.id for row in rows if row.captioned or told_by_name(row.path)}

    def item(self, id_: int) -> Item | None:
        """Return all that is known of a picture; None where there is none with this id."""
        with self._connect() as connection:
            return items.item(connection, id_)

    def files_with(self, sha256: bytes) -> list[int]:
        """Return the ids of the pictures with this content."""
        with self._connect() as connection:
            return files_with(connection, sha256)

    def files_captioned_by(self, source: str) -> list[int]:
        """Return the ids of the files that have a caption from this source."""
        caption = tables.caption.c
        statement = select(caption.file_id).where(caption.source == source).distinct()
        with self._connect() as connection:
            return list(connection.scalars(statement))

    def undescribed(self, source: str) -> list[Undescribed]:
        """Return, by path, pictures without a caption of people's own or of this source."""
        file, caption = tables.file.c, tables.caption.c
        enough = caption.source.not_like(f"{GENERATED}%") | (caption.source == source)
        statement = (
            select(file.sha256, file.id, file.path)
            .where(file.id.not_in(select(caption.file_id).where(enough)))
            .order_by(file.path)
        )
        found: dict[bytes, Undescribed] = {}
        with self._connect() as connection:
            for sha256, id_, path in connection.execute(statement):
                found.setdefault(bytes(sha256), Undescribed(path, [])).ids.append(id_)
        return list(found.values())

    def problems(self) -> list[Problem]:
        """Return every file that could not be indexed, by path."""
        columns = tables.problem.c
        statement = select(columns.path, columns.kind, columns.reason).order_by(columns.path)
        with self._connect() as connection:
            return [Problem(*row) for row in connection.execute(statement)]

    def counts(self) -> Counts:
        """Return how much the library holds."""
        active = tables.file_vector.c.encoder_id == (
            select(tables.library.c.encoder_id).scalar_subquery()
        )
        vectors = select(
            func.count(), func.coalesce(func.sum(func.length(tables.file_vector.c.vector)), 0)
        ).where(active)
        with self._connect() as connection:

            def rows(table: Table) -> int:
                return connection.scalar(select(func.count()).select_from(table)) or 0

            return Counts(
                rows(tables.file),
                rows(tables.caption),
                rows(tables.problem),
                *connection.execute(vectors).one(),
            )

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

    def _migrate(self) -> None:
        with self._connect() as connection:
            steps = migrations.missing(migrations.applied(connection))
        for step in steps:
            with self._connect(immediate=True) as connection:
                if step in migrations.missing(migrations.applied(connection)):
                    logger.info("catalog %s: %s", self.place, step.__name__)
                    migrations.apply_one(connection, step)

    def _all_vectors(
        self, target: Target, encoder_id: int, dim: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
        table, id_column = _VECTORS[target]
        key: Column[int] = table.c[id_column]
        ours = table.c.encoder_id == encoder_id
        with self._connect() as connection:
            n = connection.scalar(select(func.count()).select_from(table).where(ours)) or 0
            ids = np.empty(n, dtype=np.int64)
            vectors = np.empty((n, dim), dtype="<f2")
            statement = select(key, table.c.vector).where(ours).order_by(key)
            streamed = {"yield_per": 4096}
            with connection.execute(statement, execution_options=streamed) as rows:
                for i, (id_, blob) in enumerate(rows):
                    self._check_length(target, id_, blob, dim)
                    ids[i] = id_
                    vectors[i] = np.frombuffer(blob, dtype="<f2")
        return ids, vectors

    def _check_length(self, target: Target, id_: int, vector: bytes, dim: int) -> None:
        if len(vector) != 2 * dim:
            raise StorageError(
                f"The catalog {self.place} is damaged: the vector of {_VECTORS[target][1]} {id_} "
                f"has {len(vector)} bytes, {2 * dim} were expected. Delete the library's folder "
                "and index again."
            )

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


def _begin(connection: Connection, root: Path | None, uid: str | None) -> str:
    """Write the library's own row where there is none; return whose it is.

    Args:
        connection: in a transaction that writes.
        root: where the pictures are, when the catalog does not lie beside them.
        uid: of a new library; any, where it is not given.
    """
    known: str | None = connection.scalar(select(tables.library.c.uid))
    if known is None:
        known = uid or str(uuid.uuid4())
        connection.execute(
            tables.library.insert().values(
                id=1,
                uid=known,
                created_at=datetime.now(UTC).replace(tzinfo=None),
                root=None if root is None else str(root),
                generation=0,
                stamp=f"0-{secrets.token_hex(4)}",
                encoder_id=connection.scalar(select(func.max(tables.file_vector.c.encoder_id))),
            )
        )
    return known
