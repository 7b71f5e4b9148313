"""Collections of a store: derived from the catalog, kept in step with it by whoever writes.

    mmsearch_<library>_<encoder>_images          every picture's vector, by its id
    mmsearch_<library>_<encoder>_captions[_<n>]  captions, as the adapter n makes them

Beside each vector is kept what filters ask of its picture (`store_fields`). The catalog notes how
far each collection was brought (`catalog.stored`), and each collection is marked with the state it
is in: a catalog that was restored, or a copy of it, finds a mark that it does not know and fills
the collection anew. Every row is upserted under its id, so that a run that was cut off goes on
where it was, and what was sent twice is there once. Queries use a collection as it stands.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch.errors import StoreError, quoted
from mmsearch.indexes.exact import ExactIndex
from mmsearch.indexes.milvus import MilvusIndex
from mmsearch.indexes.milvus_choice import IndexSpec, choose
from mmsearch.indexes.milvus_collection import Collection, Rows
from mmsearch.indexes.milvus_server import Server
from mmsearch.retrieval.catalog.stored import StoreRecord
from mmsearch.retrieval.index_files import Report, silent
from mmsearch.retrieval.schema import Target
from mmsearch.retrieval.store_fields import FIELDS, values
from mmsearch.retrieval.store_recall import ASKED, asked_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from mmsearch.indexes import VectorIndex
    from mmsearch.retrieval.adapter import Adapter
    from mmsearch.retrieval.catalog import Catalog, LibraryRow
    from mmsearch.retrieval.schema import EncoderSpec

    Ids = NDArray[np.int64]
    Vectors = NDArray[np.float32]

__all__ = ["IndexStore", "reach"]

logger = logging.getLogger(__name__)

MEASURED_AGAIN = 1.3
"""From so many times the vectors that recall was measured with, it is measured again."""
SETTINGS = ("recall", "memory_bytes", "kind")
"""Of what `mmsearch optimize` is asked, what a store can be told."""


def reach(address: str) -> None:
    """Make sure that a store answers, lets us in and is new enough, before anything else is done.

    Raises:
        StoreUnavailable: nobody answers.
        StoreError: it does not let us in, or is too old.
        MissingExtra: the extra `milvus` is not installed.
    """
    Server(address).check()


class IndexStore:
    """The collections of one library."""

    def __init__(
        self,
        root: Path,
        address: str,
        catalog: Catalog,
        adapter: Callable[[LibraryRow], Adapter | None],
    ) -> None:
        """Name the library's folder, the store, the catalog, and what adapts texts in a state."""
        self._root, self._catalog, self._adapter = root, catalog, adapter
        self._server = Server(address)

    def open(
        self, target: Target, row: LibraryRow, *, thorough: bool, progress: Report
    ) -> VectorIndex:
        """Return the index of a state, as `Library.open_index` does.

        Thoroughly, the collection is brought to that state first. Otherwise it is used as it is,
        and a warning says if that is an earlier state.

        Raises:
            StoreUnavailable: the store does not answer.
            StoreError: it holds nothing of this library, or something else.
        """
        if thorough:
            return self._brought(target, row, None, progress)
        record = self._record(target, row)
        if record is None:
            if len(self._catalog.vector_ids(target, _encoder(row)[0])) == 0:
                return ExactIndex(_encoder(row)[1].dim)
            raise StoreError(
                f"The store at {self._server.address} holds no {target.value} of this library and "
                f"its model yet. Fill it: mmsearch index {quoted(self._root)}"
            )
        collection = Collection.open(self._server, record.collection)
        if collection is None:
            raise StoreError(
                f"The store at {self._server.address} has lost the collection "
                f"{record.collection}. Fill it again from the catalog, which embeds nothing: "
                f"mmsearch index {quoted(self._root)}"
            )
        self._check(collection, row)
        if behind := self._behind(record, collection, row):
            logger.warning(
                "the store at %s %s; it answers as it is. Bring it up to date: mmsearch index %s",
                self._server.address,
                behind,
                quoted(self._root),
            )
        return self._index(collection, record, target, row)

    def build(
        self,
        target: Target,
        row: LibraryRow,
        *,
        settings: Mapping[str, Any] | None = None,
        train: bool,
        progress: Report,
    ) -> VectorIndex:
        """Bring a collection to a state, with the index asked for; see `Library.build_index`."""
        return self._brought(target, row, settings, progress, by_id=True)

    def search_of(self, target: Target, row: LibraryRow) -> tuple[bool, float | None]:
        """Say how a state's collection searches; it is not asked."""
        record = self._record(target, row)
        if record is None or record.facts.get("index") == "flat":
            return True, 1.0
        recall = record.facts.get("recall")
        return False, None if recall is None else float(recall)

    def rename(self, before: str, now: str) -> None:
        """Bring the store to a state in which only texts changed since another one."""
        row = self._catalog.library()
        record = self._record(Target.IMAGES, row)
        if record is not None and record.stamp == before and row.stamp == now:
            self._noted(self._collection(record), record, row)
        self.open(Target.CAPTIONS, row, thorough=True, progress=silent)

    def differences(self, target: Target, row: LibraryRow) -> tuple[str, int, str]:
        """Compare a collection with the catalog, as `mmsearch doctor` does.

        Returns:
            Its name, how many vectors it has, and what is wrong with it.
        """
        record = self._record(target, row)
        known = self._catalog.vector_ids(target, _encoder(row)[0])
        if record is None:
            return "no collection", 0, f"it lacks {len(known):,} vectors" if len(known) else ""
        collection = Collection.open(self._server, record.collection)
        if collection is None:
            return record.collection, 0, "the collection is gone"
        self._check(collection, row)
        there = collection.ids(consistency="Strong")
        lacking, surplus = len(np.setdiff1d(known, there)), len(np.setdiff1d(there, known))
        count = collection.count(consistency="Strong")
        if lacking or surplus or count != len(there):
            twice = f", and {count - len(there):,} twice" if count != len(there) else ""
            return (
                record.collection,
                len(there),
                f"it lacks {lacking:,} vectors and has {surplus:,} that are gone{twice}",
            )
        behind = self._behind(record, collection, row)
        return record.collection, count, f"it {behind}" if behind else ""

    def verify(self, target: Target, row: LibraryRow, progress: Report) -> int:
        """Compare every vector of a collection with the catalog's; return how many there are.

        An index of codes does not give its vectors back: there, ids are compared alone.

        Raises:
            StoreError: one is another, is missing, or is there twice.
        """
        name, count, wrong = self.differences(target, row)
        record = self._record(target, row)
        if not wrong and record is not None:
            collection = self._collection(record)
            ids = self._catalog.vector_ids(target, _encoder(row)[0])
            for start in range(0, 0 if collection.spec.lossy else len(ids), collection.batch):
                some = ids[start : start + collection.batch]
                there, vectors = collection.vectors_of(some, consistency="Strong")
                sent, expected = self._vectors(target, row, some)
                if not (np.array_equal(there, sent) and np.array_equal(vectors, expected)):
                    wrong = f"some of its vectors between {some[0]} and {some[-1]} are others"
                    break
                progress("compare", start + len(some), len(ids))
        if wrong:
            raise StoreError(
                f"{name} at {self._server.address} is not what the catalog holds: {wrong}. The "
                "library stays where it was; try again."
            )
        return count

    def _brought(
        self,
        target: Target,
        row: LibraryRow,
        settings: Mapping[str, Any] | None,
        progress: Report,
        *,
        by_id: bool = False,
    ) -> VectorIndex:
        """Bring a collection to the state that `row` names: fill, change, index, measure."""
        version = self._server.check(writing=True)
        encoder_id, spec = _encoder(row)
        ids = self._catalog.vector_ids(target, encoder_id)
        record = self._record(target, row)
        kept = dict(record.facts.get("settings", {})) if record is not None else {}
        if settings is not None:
            kept = {name: settings[name] for name in SETTINGS if settings.get(name) is not None}
        if len(ids) == 0 and record is None:
            return ExactIndex(spec.dim)
        wanted = choose(
            len(ids),
            spec.dim,
            version,
            kind=kept.get("kind"),
            recall=kept.get("recall", 0.99),
            memory_bytes=kept.get("memory_bytes"),
        )
        collection, record = self._begun(target, row, record, wanted, len(ids))
        if settings is None and wanted.kind == collection.spec.kind:
            wanted = collection.spec  # lists for a few more vectors are not worth making anew
            same = record.stamp == row.stamp and collection.indexed and not by_id
            if same and collection.count(consistency="Strong") == len(ids):
                return self._index(collection, record, target, row)
        if record.stamp is None:
            record = self._filled(collection, record, target, row, ids, progress)
        if record.stamp != row.stamp:
            self._changed(collection, record, target, row, progress)
        collection.reindex(wanted, progress)
        count = collection.settle(progress)
        if by_id or count != len(ids):
            self._mended(collection, target, row, ids)
        facts = {**record.facts, "settings": kept, "index": wanted.kind}
        record = replace(record, facts=facts)
        index = self._index(collection, record, target, row)
        record = replace(record, facts=self._measured(index, record, target, row, kept, len(ids)))
        self._noted(collection, record, row)
        self._tidy(row)
        return self._index(collection, record, target, row)

    def _begun(
        self,
        target: Target,
        row: LibraryRow,
        record: StoreRecord | None,
        wanted: IndexSpec,
        expected: int,
    ) -> tuple[Collection, StoreRecord]:
        """Return the collection, and how far it is; a new one where none of ours is there."""
        name = self._name(target, row)
        collection = Collection.open(self._server, name, writing=True)
        if collection is not None:
            self._check(collection, row)
        if record is not None and collection is not None:
            filling = record.stamp is None and collection.state == _filling(record)
            if filling or self._knows(collection.state, record):
                return collection, record
            logger.warning(
                "the collection %s is in a state that this catalog does not know; filling it anew",
                name,
            )
        seq = self._catalog.seq_of(row.stamp) or 0
        facts = {} if record is None else {"settings": record.facts.get("settings", {})}
        begun = StoreRecord(name, target, None, seq, -1, {**facts, "begun": row.stamp})
        collection = Collection.create(
            self._server,
            name,
            _encoder(row)[1].dim,
            wanted,
            fields=FIELDS,
            about=self._about(row),
            expected=expected,
        )
        collection.mark(_filling(begun))
        self._write(begun)
        return collection, begun

    def _filled(
        self,
        collection: Collection,
        record: StoreRecord,
        target: Target,
        row: LibraryRow,
        ids: Ids,
        progress: Report,
    ) -> StoreRecord:
        """Send what a new collection lacks, in the order of ids; what is there is noted."""
        left = ids[ids > record.through]
        done = len(ids) - len(left)
        progress("index", done, len(ids))
        for rows in collection.upsert_all(self._rows(collection, target, row, left)):
            record = replace(record, through=int(rows.ids[-1]))
            self._write(record)
            done += len(rows.ids)
            progress("index", done, len(ids))
        return record

    def _changed(
        self,
        collection: Collection,
        record: StoreRecord,
        target: Target,
        row: LibraryRow,
        progress: Report,
    ) -> None:
        """Send what changed since the state that a collection is in, and delete what is gone."""
        changed = self._catalog.changed_since(target, record.seq)
        sent = np.empty(0, dtype=np.int64)
        for rows in collection.upsert_all(self._rows(collection, target, row, changed)):
            sent = np.concatenate([sent, rows.ids])
            progress("index", len(sent), len(changed))
        collection.delete(np.setdiff1d(changed, sent))

    def _mended(self, collection: Collection, target: Target, row: LibraryRow, ids: Ids) -> None:
        """Make a collection hold what the catalog does, should it not.

        Raises:
            StoreError: it does not even then.
        """
        there = collection.ids(consistency="Strong")
        collection.delete(np.setdiff1d(there, ids))
        for _ in collection.upsert_all(
            self._rows(collection, target, row, np.setdiff1d(ids, there))
        ):
            pass
        count = collection.settle()
        if count != len(ids):
            raise StoreError(
                f"The store at {self._server.address} says that {collection.name} has {count:,} "
                f"vectors; the catalog has {len(ids):,}. Drop that collection and run: mmsearch "
                f"index {quoted(self._root)}"
            )

    def _rows(
        self, collection: Collection, target: Target, row: LibraryRow, ids: Ids
    ) -> Iterator[Rows]:
        """Yield those of ascending ids that have a vector, a message at a time."""
        for start in range(0, len(ids), collection.batch):
            known, vectors = self._vectors(target, row, ids[start : start + collection.batch])
            told = self._catalog.described_for_filters(target, known.tolist())
            there = np.array([id_ in told for id_ in known.tolist()], dtype=np.bool_)
            known, vectors = known[there], vectors[there]
            if len(known):
                yield Rows(known, vectors, values([told[id_] for id_ in known.tolist()]))

    def _vectors(self, target: Target, row: LibraryRow, ids: Ids) -> tuple[Ids, Vectors]:
        """Return vectors as they are searched: of captions, as the state's adapter makes them."""
        encoder_id, spec = _encoder(row)
        known, stored = self._catalog.vectors_of(target, encoder_id, spec.dim, ids)
        adapter = self._adapter(row) if target is Target.CAPTIONS else None
        vectors = stored.astype(np.float32) if adapter is None else adapter.apply(stored)
        return known, vectors.astype(np.float32, copy=False)

    def _measured(
        self,
        index: MilvusIndex,
        record: StoreRecord,
        target: Target,
        row: LibraryRow,
        settings: Mapping[str, Any],
        n: int,
    ) -> dict[str, Any]:
        """Return what is known of an index, measuring what it finds where that is not known yet."""
        facts = dict(record.facts)
        same = facts.get("measured") == [index.collection.spec.kind, settings.get("recall", 0.99)]
        if index.exact or n < 2 * ASKED:
            return {**facts, "effort": None, "recall": None, "n": n, "measured": None}
        if same and n <= MEASURED_AGAIN * facts.get("n", 0):
            return facts
        asked = asked_of(
            self._catalog,
            target,
            _encoder(row)[0],
            lambda each, ids: self._vectors(each, row, ids),
        )
        index.tune(asked, settings.get("recall", 0.99))
        return {
            **facts,
            "effort": index.effort,
            "recall": index.recall,
            "n": n,
            "measured": [index.collection.spec.kind, settings.get("recall", 0.99)],
        }

    def _index(
        self, collection: Collection, record: StoreRecord, target: Target, row: LibraryRow
    ) -> MilvusIndex:
        encoder_id = _encoder(row)[0]
        known: list[Ids] = []

        def known_ids() -> Ids:
            if not known:
                known.append(self._catalog.vector_ids(target, encoder_id))
            return known[0]

        index = MilvusIndex(
            collection,
            effort=record.facts.get("effort"),
            recall=record.facts.get("recall"),
            known_ids=known_ids,
            vectors_of=lambda ids: self._vectors(target, row, ids),
        )
        index.facts = {"settings": record.facts.get("settings", {})}
        return index

    def _check(self, collection: Collection, row: LibraryRow) -> None:
        """Refuse a collection that holds something else.

        Raises:
            StoreError: it is another library's or another model's.
        """
        wanted = self._about(row)
        if dict(collection.about) != wanted or collection.dim != _encoder(row)[1].dim:
            raise StoreError(
                f"The collection {collection.name} at {self._server.address} holds vectors of "
                f"{collection.about.get('model', 'another model')}, length {collection.dim}; this "
                f"library's are of {wanted['model']}, length {_encoder(row)[1].dim}. Drop the "
                f"collection, or give this library a database of its own."
            )

    def _about(self, row: LibraryRow) -> dict[str, Any]:
        spec = _encoder(row)[1]
        return {"library": row.uid, "model": spec.label, "weights": spec.weights_sha256}

    def _name(self, target: Target, row: LibraryRow) -> str:
        adapted = target is Target.CAPTIONS and row.adapter_id is not None
        uid = row.uid.replace("-", "")
        end = f"_{row.adapter_id}" if adapted else ""
        return f"mmsearch_{uid}_{_encoder(row)[0]}_{target.value}{end}"

    def _record(self, target: Target, row: LibraryRow) -> StoreRecord | None:
        name = self._name(target, row)
        return next(
            (each for each in self._catalog.store_records() if each.collection == name), None
        )

    def _collection(self, record: StoreRecord) -> Collection:
        collection = Collection.open(self._server, record.collection, writing=True)
        if collection is None:
            raise StoreError(
                f"The store at {self._server.address} has lost {record.collection}. Fill it again: "
                f"mmsearch index {quoted(self._root)}"
            )
        return collection

    def _knows(self, state: str | None, record: StoreRecord) -> bool:
        """Say whether a collection's mark is a state of this very catalog."""
        return state is not None and (
            state == record.stamp or self._catalog.seq_of(state) is not None
        )

    def _behind(self, record: StoreRecord, collection: Collection, row: LibraryRow) -> str:
        """Return in which way a collection is not in the state that `row` names; else nothing."""
        if record.stamp is None:
            return "is only being filled"
        if not self._knows(collection.state, record):
            return "is in a state that this catalog does not know"
        if record.stamp != row.stamp:
            changed = len(self._catalog.changed_since(record.target, record.seq))
            return f"lacks {changed:,} changes" if changed else ""
        return ""

    def _noted(self, collection: Collection, record: StoreRecord, row: LibraryRow) -> None:
        """Mark a collection with the state it is in, and note the same."""
        if collection.state != row.stamp:
            collection.mark(row.stamp)
        seq = self._catalog.seq_of(row.stamp)
        now = replace(record, stamp=row.stamp, seq=record.seq if seq is None else seq)
        if now != self._record(record.target, row):
            self._write(now)

    def _tidy(self, row: LibraryRow) -> None:
        """Drop collections of other models and of adapters that were taken back or replaced."""
        current = {self._name(target, row) for target in Target}
        for record in self._catalog.store_records():
            if record.collection not in current:
                old = Collection.open(self._server, record.collection, writing=True)
                if old is not None and old.about.get("library") == row.uid:
                    old.drop()
                with self._catalog.write() as transaction:
                    transaction.forget_store_records([record.collection])

    def _write(self, record: StoreRecord) -> None:
        with self._catalog.write() as transaction:
            transaction.put_store_record(record)


def _filling(record: StoreRecord) -> str:
    """Return how a collection is marked while it is filled."""
    return f"filling {record.facts.get('begun')}"


def _encoder(row: LibraryRow) -> tuple[int, EncoderSpec]:
    assert row.encoder is not None
    assert row.encoder_id is not None
    return row.encoder_id, row.encoder
