"""Writing to a catalog: everything one transaction can do."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy import text as sql

from mmsearch.retrieval.catalog import stored, tables
from mmsearch.retrieval.catalog.captions import (
    add_captions,
    forget_generated,
    lacking_vectors,
    set_captions,
    unembedded_of,
)
from mmsearch.retrieval.catalog.connection import is_postgresql
from mmsearch.retrieval.catalog.known import (
    KnownFile,
    contents_among,
    files_with,
    known_files,
    still_at,
)
from mmsearch.retrieval.catalog.vectors import drop_vectors, put_vectors, vector_of, without_vector
from mmsearch.retrieval.catalog.words import add_file_words, put_file_words
from mmsearch.retrieval.schema import Target

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sqlalchemy import Connection, Table

    from mmsearch.retrieval.catalog.stored import StoreRecord
    from mmsearch.retrieval.schema import Caption, EncoderSpec, Picture, Problem

__all__ = ["Transaction"]

_SHOWN = ("path", "taken_at", "camera", "width", "height", "latitude", "longitude")
"""What answers tell of a picture, choose by or are found by; the rest is for indexing."""
_FILTERED = (*_SHOWN, "size", "mtime_ns", "format", "orientation")
"""What filters ask of a picture, which a store keeps beside its vector."""

_LAST_CHANGE = {
    "sqlite": "coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'vector_change'), 0)",
    "postgresql": "(SELECT CASE WHEN is_called THEN last_value ELSE 0 END "
    "FROM vector_change_seq_seq)",
}


class Transaction:
    """Writes that happen together; obtained from `Catalog.write`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._served = is_postgresql(connection)
        self._changed = False

    def finish(self) -> None:
        """Name the new state, if anything changed that an index or an answer depends on."""
        if self._changed:
            generation = tables.library.c.generation
            number = (self._connection.scalar(select(generation)) or 0) + 1
            stamp = f"{number}-{secrets.token_hex(4)}"
            self._connection.execute(update(tables.library).values(generation=number, stamp=stamp))
            # `vector_change` may be empty; the database remembers the last number it gave there.
            note = f"""
                INSERT INTO state (stamp, seq, encoder_id, adapter_id)
                SELECT stamp, {_LAST_CHANGE[self._connection.dialect.name]}, encoder_id,
                    (SELECT max(id) FROM adapter WHERE adapter.encoder_id = library.encoder_id)
                FROM library
            """
            self._connection.execute(sql(note))

    def forget_changes(self, stamp: str) -> None:
        """Forget what changed before a state: no index of an earlier one is left."""
        state, change = tables.state.c, tables.vector_change.c
        seq = self._connection.scalar(select(state.seq).where(state.stamp == stamp))
        if seq is not None:
            self._connection.execute(delete(tables.vector_change).where(change.seq <= seq))
            self._connection.execute(delete(tables.state).where(state.seq < seq))
        if self._served:
            from mmsearch.retrieval.catalog import words_postgresql

            words_postgresql.forget_changes(self._connection)

    def put_store_record(self, record: StoreRecord) -> None:
        """Note how far a collection of a store was brought; no answer depends on it."""
        stored.put_record(self._connection, record)

    def forget_store_records(self, collections: Iterable[str]) -> None:
        """Forget collections of a store."""
        stored.forget_records(self._connection, collections)

    def encoder_id(self, spec: EncoderSpec, location: str) -> int:
        """Return the key of an encoder, making its row when it is new.

        Args:
            spec: what makes its vectors its own.
            location: where it is loaded from at present.
        """
        fields = asdict(spec)
        same = [tables.encoder.c[name] == value for name, value in fields.items()]
        found = self._connection.scalar(select(tables.encoder.c.id).where(*same))
        if found is None:
            return self._insert(tables.encoder, fields | {"location": location})
        known: int = found
        moved = update(tables.encoder).where(tables.encoder.c.id == known)
        self._connection.execute(moved.values(location=location))
        return known

    def activate(self, encoder_id: int) -> None:
        """Answer queries with this encoder's vectors from now on; it is nobody's next any more."""
        self._changed = True
        values = {"encoder_id": encoder_id, "next_encoder_id": None}
        self._connection.execute(update(tables.library).values(**values))

    def prepare(self, encoder_id: int) -> None:
        """Record that the library changes to this encoder; the present one goes on answering."""
        self._connection.execute(update(tables.library).values(next_encoder_id=encoder_id))

    def forget_encoders(self, ids: Iterable[int]) -> None:
        """Drop encoders that do not answer queries, with their vectors and adapters."""
        for id_ in ids:
            next_ = tables.library.c.next_encoder_id
            unset = update(tables.library).where(next_ == id_).values(next_encoder_id=None)
            self._connection.execute(unset)
            self._connection.execute(delete(tables.encoder).where(tables.encoder.c.id == id_))

    def add_files(
        self, pictures: Sequence[Picture], encoder_id: int, vectors: NDArray[np.float32]
    ) -> list[int]:
        """Add pictures at paths where none stands, with their `float32[n, dim]` vectors.

        Of many at once a tenth of the statements is sent that `put_file` takes. Returns their ids.
        """
        if not pictures:
            return []
        now = _now()
        given = insert(tables.file).returning(tables.file.c.id, sort_by_parameter_order=True)
        values = [asdict(picture) | {"indexed_at": now} for picture in pictures]
        ids = [*self._connection.scalars(given, values)]
        added = dict(zip(ids, pictures, strict=True))
        add_file_words(self._connection, added)
        if self._served:
            from mmsearch.retrieval.catalog import texts_postgresql

            texts_postgresql.add_files(self._connection, added)
        self._put_vectors(Target.IMAGES, encoder_id, ids, vectors)
        self.resolve_problems([picture.path for picture in pictures])
        return ids

    def put_file(self, picture: Picture, encoder_id: int, vector: NDArray[np.float32]) -> int:
        """Add a picture with its `float32[dim]` vector, or replace what stood at its path.

        Replacing content drops every vector of the old content, and what a model wrote about it.
        Returns the file's id.
        """
        file, vectors = tables.file.c, tables.file_vector.c
        found = self._connection.execute(
            select(file.id, file.sha256).where(file.path == picture.path)
        ).one_or_none()
        if found is None:
            return self.add_files([picture], encoder_id, vector[None])[0]
        id_, sha256 = found
        values = asdict(picture) | {"indexed_at": _now()}
        self._connection.execute(update(tables.file).where(file.id == id_).values(**values))
        stored.note_described(self._connection, id_)
        stale = delete(tables.file_vector).where(vectors.file_id == id_)
        if sha256 == picture.sha256:
            stale = stale.where(vectors.encoder_id == encoder_id)
        else:
            self._forget_generated(id_)
        self._connection.execute(stale)
        self._put_texts(id_, picture)
        self._put_vectors(Target.IMAGES, encoder_id, [id_], vector[None])
        self.resolve_problems([picture.path])
        return int(id_)

    def put_content_vector(
        self, sha256: bytes, encoder_id: int, vector: NDArray[np.float32]
    ) -> int:
        """Store the `float32[dim]` vector of all pictures with this content that lack one.

        Returns how many these were.
        """
        ids = without_vector(self._connection, sha256, encoder_id)
        if ids:
            rows = np.repeat(vector[None], len(ids), axis=0)
            self._put_vectors(Target.IMAGES, encoder_id, ids, rows)
        return len(ids)

    def refresh_file(self, id_: int, picture: Picture) -> None:
        """Record a new place, time or side-car of a picture whose content is the same."""
        values = asdict(picture)
        file = tables.file.c
        asked = [file[name] for name in _FILTERED]
        before = self._connection.execute(select(*asked).where(file.id == id_)).one_or_none()
        if before is None:
            other = set(_FILTERED)
        else:
            other = {name for name in _FILTERED if before._mapping[name] != values[name]}
        if other and stored.note_described(self._connection, id_):
            self._changed = True
        if other.intersection(_SHOWN):
            # No vector is another, but answers are.
            self._changed = True
        self._connection.execute(update(tables.file).where(file.id == id_).values(**values))
        self._put_texts(id_, picture)
        self.resolve_problems([picture.path])

    def known_files(self, encoder_id: int, paths: Sequence[str]) -> dict[str, KnownFile]:
        """Return, as `Catalog.known_files` does, what is known of a few paths at this moment."""
        return known_files(self._connection, encoder_id, paths)

    def still_at(self, paths: Mapping[int, str]) -> list[int]:
        """Return the ids of the pictures that are where they were, and not moved or gone since."""
        return still_at(self._connection, paths)

    def contents_among(self, contents: Sequence[bytes]) -> set[bytes]:
        """Return those of some contents (SHA-256) that a picture has."""
        return contents_among(self._connection, contents)

    def files_with(self, sha256: bytes) -> list[int]:
        """Return the ids of the pictures with this content."""
        return files_with(self._connection, sha256)

    def vector_of(self, sha256: bytes, encoder_id: int) -> NDArray[np.float32] | None:
        """Return the `float32[dim]` vector of any picture with this content, if there is one."""
        return vector_of(self._connection, sha256, encoder_id)

    def remove_files(self, ids: Iterable[int]) -> None:
        """Forget pictures, with their vectors and captions."""
        rows = [{"key": id_} for id_ in ids]
        if rows:
            self._changed = True
            gone = delete(tables.file).where(tables.file.c.id == bindparam("key"))
            self._connection.execute(gone, rows)

    def add_captions(self, captions: Mapping[int, Sequence[Caption]]) -> None:
        """Write the captions of pictures that have none, by their ids.

        Of a picture's captions with one text the first is kept.
        """
        self._changed = add_captions(self._connection, captions) or self._changed

    def set_captions(
        self, file_id: int, captions: Sequence[Caption], *, sources: Iterable[str] | None = None
    ) -> None:
        """Make `captions` the only ones of this picture from their sources.

        What a model wrote goes as soon as there is a caption of people's own.

        Args:
            file_id: the picture.
            captions: what its sources say now; the first of them that gives a text keeps it.
            sources: the sources that `captions` speaks for; those read with the picture itself
                (side-cars, embedded metadata) when not given, so that captions from a captions
                file stay.
        """
        changed = set_captions(self._connection, file_id, captions, sources=sources)
        self._changed = changed or self._changed

    def put_generated(self, file_id: int, caption: Caption) -> None:
        """Store what a model wrote about a picture, in place of what another one did."""
        self._forget_generated(file_id)
        self.set_captions(file_id, [caption], sources=[caption.source])

    def _forget_generated(self, file_id: int) -> None:
        self._changed = forget_generated(self._connection, file_id) or self._changed

    def captions_to_embed(self, file_id: int, encoder_id: int) -> list[tuple[int, str]]:
        """Return the captions (id, text) of a picture that this encoder has not embedded."""
        return unembedded_of(self._connection, file_id, encoder_id)

    def put_caption_vectors(
        self, encoder_id: int, ids: Sequence[int], vectors: NDArray[np.float32]
    ) -> None:
        """Store `float32[n, dim]` vectors of captions.

        On a server, of those alone that are there and that no other run has embedded meanwhile.
        """
        if self._served:
            left = lacking_vectors(self._connection, encoder_id, ids)
            rows = [row for row, id_ in enumerate(ids) if id_ in left]
            ids, vectors = [ids[row] for row in rows], vectors[rows]
            if not ids:
                return
        self._put_vectors(Target.CAPTIONS, encoder_id, ids, vectors)

    def drop_vectors(self, target: Target, encoder_id: int, ids: Sequence[int]) -> None:
        """Forget an encoder's vectors of these pictures or captions."""
        if ids:
            self._changed = True
            drop_vectors(self._connection, target, encoder_id, ids)

    def renew_state(self) -> None:
        """Give the catalog a new state, which no index file is of."""
        self._changed = True

    def add_adapter(self, encoder_id: int, weights: bytes, report: Mapping[str, object]) -> int:
        """Adapt this encoder's texts from now on; what adapted them before is kept beneath."""
        self._changed = True
        values = {"encoder_id": encoder_id, "created_at": _now(), "weights": weights}
        return self._insert(tables.adapter, values | {"report": json.dumps(report)})

    def remove_adapters(self, encoder_id: int, *, above: int = 0) -> int:
        """Take this encoder's adapters off the stack whose ids are above `above`; return how many.

        The one then on top applies again; without one, texts are the encoder's own.
        """
        columns = tables.adapter.c
        gone = delete(tables.adapter).where(columns.encoder_id == encoder_id, columns.id > above)
        count = self._connection.execute(gone).rowcount
        self._changed = self._changed or count > 0
        return count

    def put_problem(
        self, problem: Problem, size: int = 0, mtime_ns: int = 0, *, forget: bool = True
    ) -> None:
        """Record why a file cannot be indexed.

        Args:
            problem: the file and the reason.
            size: its size then, in bytes.
            mtime_ns: its time then; size and time tell whether it has changed since.
            forget: drop the picture that stood at its path. False where its content is unknown,
                as when permission is missing, and may well be what it was.
        """
        self.resolve_problems([problem.path])
        same = tables.file.c.path == problem.path
        old = self._connection.scalar(select(tables.file.c.id).where(same)) if forget else None
        if old is not None:
            self.remove_files([old])
        self._insert(
            tables.problem,
            {
                "path": problem.path,
                "size": size,
                "mtime_ns": mtime_ns,
                "kind": problem.kind,
                "reason": problem.reason,
                "seen_at": _now(),
            },
        )

    def put_containers(self, containers: Mapping[str, tuple[int, int]]) -> None:
        """Record the size and time of containers whose pictures are all done."""
        self.forget_containers(containers)
        if containers:
            rows = [
                {"path": path, "size": size, "mtime_ns": mtime_ns}
                for path, (size, mtime_ns) in containers.items()
            ]
            self._connection.execute(insert(tables.container), rows)

    def forget_containers(self, paths: Iterable[str]) -> None:
        """Have containers read anew, should they be there again."""
        for path in paths:
            same = tables.container.c.path == path
            self._connection.execute(delete(tables.container).where(same))

    def resolve_problems(self, paths: Iterable[str]) -> None:
        """Forget problems of files that were indexed since, or are gone."""
        for part in tables.in_parts([*paths]):
            self._connection.execute(delete(tables.problem).where(tables.problem.c.path.in_(part)))

    def _put_texts(self, id_: int, picture: Picture) -> None:
        """Write what a picture that is there is found by beside its vector."""
        put_file_words(self._connection, id_, picture)
        if self._served:
            from mmsearch.retrieval.catalog import texts_postgresql

            texts_postgresql.put_file(self._connection, id_, picture)

    def _insert(self, table: Table, values: Mapping[str, object]) -> int:
        result = self._connection.execute(insert(table).values(**values))
        assert result.inserted_primary_key is not None
        return int(result.inserted_primary_key[0])

    def _put_vectors(
        self, target: Target, encoder_id: int, ids: Sequence[int], vectors: NDArray[np.float32]
    ) -> None:
        # An index holds the active encoder's vectors: those of another change nothing in it.
        active = self._connection.scalar(select(tables.library.c.encoder_id))
        self._changed = self._changed or encoder_id == active
        put_vectors(self._connection, target, encoder_id, ids, vectors)


def _now() -> datetime:
    # SQLite keeps no time zone: the catalog's own times are UTC.
    return datetime.now(UTC).replace(tzinfo=None)
