"""One collection of a Milvus server: vectors by id, and scalar fields beside them.

Whoever writes reads what was written: consistency level Session, and Strong at the first question
after writing, because with Session Milvus 2.3.5 does not see what the same session has just
deleted. Others ask without waiting (Bounded): of what a writer has finished, whose last question
was a Strong one, they see everything; of what one is at, what is at most five seconds old. Of
several replicas each may be these seconds behind.

A row is never inserted, always upserted: Milvus would keep two under one id. There are no
partitions: a collection is one library's vectors by one encoder already, and a partition key helps
questions that name one of its values alone, which filters over dates and sizes do not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mmsearch.errors import StoreError
from mmsearch.indexes.milvus_choice import KINDS, IndexSpec
from mmsearch.indexes.milvus_server import Server, in_flight

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ids = NDArray[np.int64]
    Vectors = NDArray[np.float32]

__all__ = ["ID", "Collection", "Consistency", "Field", "Rows"]

ID, VECTOR = "id", "vector"
MADE, FORMAT = "mmsearch", 1
"""What the description of a collection that was made here says first."""
STATE = "mmsearch.state"
"""The property of a collection that names the state it is in."""
TEXT_BYTES = 65_535
"""The longest text that Milvus keeps, in bytes."""
ROWS_PER_SHARD = 100_000_000
BATCH_BYTES = 8 << 20
"""Of vectors in one message; servers take 64 MiB."""
BATCHES_IN_FLIGHT = 4
IDS_AT_ONCE = 10_000
"""Ids in one expression, which takes the server 10 µs for each."""
STALLED_S = 600.0
"""After how long without progress an index is given up."""
SLOW_S = 120.0
"""What creating, loading and flushing may take, which wait for several nodes."""

SEALED = 3
"""The state of a segment that does not grow any more (`SegmentState` of Milvus's protocol)."""
INDEXED_ROWS = 1_024
"""A segment of fewer rows gets no index (`minSegmentNumRowsToEnableIndex` of Milvus)."""

Consistency = Literal["Session", "Bounded", "Strong"]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Field:
    """What is kept beside a vector.

    Attributes:
        name: a word.
        type: 64-bit integers and floats, or text of up to 65,535 bytes.
    """

    name: str
    type: Literal["integer", "number", "text"]

    @property
    def empty(self) -> int | float | str:
        """What stands where nothing is given."""
        empty: dict[str, int | float | str] = {"integer": 0, "number": 0.0, "text": ""}
        return empty[self.type]


@dataclass(frozen=True, slots=True)
class Rows:
    """Vectors with their ids and fields.

    Attributes:
        ids: `int64[n]`.
        vectors: `float32[n, dim]`.
        fields: a value for each id under each name; left out, they are empty.
    """

    ids: Ids
    vectors: Vectors
    fields: Mapping[str, Sequence[Any]]


class Collection:
    """A collection that is there."""

    def __init__(
        self,
        server: Server,
        name: str,
        dim: int,
        fields: Sequence[Field],
        about: Mapping[str, Any],
        spec: IndexSpec,
        state: str | None,
    ) -> None:
        """Use `create` or `open`.

        Attributes are the arguments: `about` is what its maker wrote, `state` what it was marked
        with last; and `indexed`, False where changing the index was cut off.
        """
        self.server, self.name, self.dim = server, name, dim
        self.fields, self.about, self.spec, self.state = tuple(fields), about, spec, state
        self.indexed = True
        self._unseen = False

    @classmethod
    def create(
        cls,
        server: Server,
        name: str,
        dim: int,
        spec: IndexSpec,
        *,
        fields: Sequence[Field] = (),
        about: Mapping[str, Any] | None = None,
        expected: int = 0,
    ) -> Collection:
        """Make an empty collection that can be searched, in place of one of this name.

        Args:
            server: where.
            name: letters, digits and underscores.
            dim: the length of vectors.
            spec: its index.
            fields: what is kept beside vectors.
            about: what tells it from others, kept with it.
            expected: how many vectors it will have, which decides over how many shards they go.

        Raises:
            StoreUnavailable: nobody answers.
            StoreError: the server refuses.
        """
        from pymilvus import DataType

        types = {
            "integer": (DataType.INT64, {}),
            "number": (DataType.DOUBLE, {}),
            "text": (DataType.VARCHAR, {"max_length": TEXT_BYTES}),
        }
        server.check(writing=True)
        schema = server.client.create_schema(
            auto_id=False,
            enable_dynamic_field=False,
            description=json.dumps({MADE: FORMAT, **(about or {})}),
        )
        schema.add_field(ID, DataType.INT64, is_primary=True)
        schema.add_field(VECTOR, DataType.FLOAT_VECTOR, dim=dim)
        for field in fields:
            type_, how = types[field.type]
            schema.add_field(field.name, type_, **how)
        made = cls(server, name, dim, fields, about or {}, spec, None)
        made.drop()
        made._call(
            "create_collection",
            schema=schema,
            num_shards=min(16, 1 + expected // ROWS_PER_SHARD),
            consistency_level="Bounded",
        )
        made._index()
        made.load()
        return made

    @classmethod
    def open(cls, server: Server, name: str, *, writing: bool = False) -> Collection | None:
        """Return the collection of this name; None where there is none.

        Raises:
            StoreUnavailable: nobody answers.
            StoreError: the server refuses, or it is none that mmsearch made.
        """
        if not server.call("has_collection", name, writing=writing):
            return None
        told = server.call("describe_collection", name, writing=writing)
        types = {"INT64": "integer", "DOUBLE": "number", "VARCHAR": "text"}
        fields, dim = [], 0
        for each in told["fields"]:
            if each["name"] == VECTOR:
                dim = int(each["params"]["dim"])
            elif each["name"] != ID:
                type_: Any = types.get(each["type"].name, "text")
                fields.append(Field(each["name"], type_))
        try:
            about = json.loads(told.get("description") or "{}")
            ours = about.pop(MADE, None) == FORMAT and dim > 0
        except (ValueError, AttributeError):
            ours = False
        if not ours:
            raise StoreError(
                f"The collection {name} at {server.address} is none that mmsearch made. Drop or "
                "rename it, or give another database."
            )
        state = (told.get("properties") or {}).get(STATE)
        opened = cls(server, name, dim, fields, about, IndexSpec("flat", {}), state)
        opened._read_index(writing=writing)
        return opened

    def drop(self) -> None:
        """Remove it, if it is there."""
        self._call("drop_collection")

    def mark(self, state: str) -> None:
        """Name the state it is in, for whoever opens it."""
        self._call("alter_collection_properties", properties={STATE: state})
        self.state = state

    def upsert(self, rows: Rows) -> None:
        """Put rows in place of those under their ids, or beside them; done when it returns."""
        columns = {field.name: rows.fields.get(field.name) for field in self.fields}
        empty = {field.name: field.empty for field in self.fields}
        entities = [
            {
                ID: id_,
                VECTOR: vector,
                **{
                    name: empty[name] if values is None else values[i]
                    for name, values in columns.items()
                },
            }
            for i, (id_, vector) in enumerate(zip(rows.ids.tolist(), rows.vectors, strict=True))
        ]
        if entities:
            self._unseen = True
            self._call("upsert", entities)

    def upsert_all(self, batches: Iterator[Rows]) -> Iterator[Rows]:
        """Upsert batches, a few at once; yield each, in their order, when it and all before are."""
        for rows, _ in in_flight(self.upsert, batches, BATCHES_IN_FLIGHT):
            yield rows

    @property
    def batch(self) -> int:
        """How many rows go into one message."""
        return max(1, min(IDS_AT_ONCE, BATCH_BYTES // (4 * self.dim)))

    def delete(self, ids: Ids) -> None:
        """Remove what stands under ids."""
        self._unseen = True
        for start in range(0, len(ids), IDS_AT_ONCE):
            self._call("delete", ids=ids[start : start + IDS_AT_ONCE].tolist())

    def settle(self, progress: Progress = lambda *_: None) -> int:
        """Have everything written to disk, indexed and searched; return how many rows there are.

        Raises:
            StoreError: the index makes no progress.
        """
        self._call("flush", timeout=SLOW_S)
        self._wait_for_index(progress)
        self.load()
        return self.count(consistency="Strong")

    def _wait_for_index(self, progress: Progress) -> None:
        last, since = -1, time.monotonic()
        while True:
            told = self._call("describe_index", VECTOR)
            total, left = int(told["total_rows"]), int(told["pending_index_rows"])
            progress("index", total - left, total)
            if str(told.get("state")) == "Failed":
                reason = told.get("index_state_fail_reason") or "it does not say why"
                raise StoreError(
                    f"The server at {self.server.address} cannot make the index "
                    f"{self.spec.type}: {reason}"
                )
            if left == 0:
                return
            if left != last:
                last, since = left, time.monotonic()
            elif time.monotonic() - since > STALLED_S:
                raise StoreError(
                    f"The server at {self.server.address} has been making the index "
                    f"{self.spec.type} of {self.name} for {STALLED_S / 60:.0f} minutes without "
                    "progress. See its log, or choose another kind: mmsearch optimize --kind hnsw"
                )
            time.sleep(0.3)

    def wait_until_served(self) -> None:
        """Wait until searches go through the index.

        For some seconds after `settle` what was added last is searched through what the server
        made meanwhile, lists of which it looks into few (0.96 found where the graph finds 0.98).
        Where that takes minutes, so be it.
        """
        rows, ends = self.count(consistency="Strong"), time.monotonic() + SLOW_S
        while time.monotonic() < ends:
            loaded = self._call("list_loaded_segments")
            if sum(each.num_rows for each in loaded if _is_served(each)) >= rows:
                return
            time.sleep(0.3)

    def reindex(self, spec: IndexSpec, progress: Progress = lambda *_: None) -> None:
        """Change the index; meanwhile nothing can be searched.

        Raises:
            StoreError: the index makes no progress.
        """
        same = (spec.type, dict(spec.params)) == (self.spec.type, dict(self.spec.params))
        if same and self.indexed:
            return
        self._call("release_collection", timeout=SLOW_S)
        if self.indexed:
            self._call("drop_index", VECTOR)
            self.indexed = False
        self.spec = spec
        self._index()
        # What is loaded while its index is made may never be there.
        self._call("flush", timeout=SLOW_S)
        self._wait_for_index(progress)
        self.load()

    def load(self) -> None:
        """Have it searched, should the server have been told to forget it."""
        self._call("load_collection", timeout=SLOW_S)

    def count(self, expression: str = "", *, consistency: Consistency = "Bounded") -> int:
        """Return how many rows an expression is true of."""
        found = self._read("query", consistency, filter=expression, output_fields=["count(*)"])
        return int(found[0]["count(*)"])

    def ids(self, expression: str = "", *, consistency: Consistency = "Bounded") -> Ids:
        """Return `int64[n]`, ascending: the ids of the rows an expression is true of."""
        where = expression or f"{ID} >= 0"
        if consistency != "Bounded":
            # An iterator takes no level; what a question has waited for it sees.
            self.count(consistency="Strong")

        def once() -> list[int]:
            found = self.server.client.query_iterator(
                self.name,
                batch_size=IDS_AT_ONCE,
                filter=where,
                output_fields=[ID],
                timeout=self.server.answer_s,
            )
            ids: list[int] = []
            while some := found.next():
                ids += [each[ID] for each in some]
            found.close()
            return ids

        seconds = self.server.answer_s if consistency == "Bounded" else SLOW_S
        return np.unique(np.array(self.server.patiently(once, seconds), dtype=np.int64))

    def those_of(self, ids: Ids, expression: str = "", *, consistency: Consistency) -> Ids:
        """Return those of the ids that are there, and of which an expression is true; ascending."""
        found: list[int] = []
        for start in range(0, len(ids), IDS_AT_ONCE):
            where = is_one_of(ids[start : start + IDS_AT_ONCE])
            if expression:
                where = f"({expression}) and {where}"
            rows = self._read("query", consistency, filter=where, output_fields=[ID])
            found += [each[ID] for each in rows]
        return np.unique(np.array(found, dtype=np.int64))

    def vectors_of(self, ids: Ids, *, consistency: Consistency) -> tuple[Ids, Vectors]:
        """Return those of the ids that are there, ascending, and their `float32[n, dim]`.

        To be asked of indexes that hold the vectors only: see `milvus`.
        """
        found: dict[int, Any] = {}
        for start in range(0, len(ids), self.batch):
            where = is_one_of(ids[start : start + self.batch])
            rows = self._read("query", consistency, filter=where, output_fields=[ID, VECTOR])
            found |= {each[ID]: each[VECTOR] for each in rows}
        known = sorted(found)
        vectors = np.array([found[id_] for id_ in known], dtype=np.float32)
        return np.array(known, dtype=np.int64), vectors.reshape(len(known), self.dim)

    def search(
        self,
        queries: Vectors,
        k: int,
        effort: int,
        expression: str,
        *,
        consistency: Consistency,
    ) -> Any:  # noqa: ANN401 (pymilvus's lists of hits)
        """Return, for each query, the `k` nearest rows of which an expression is true."""
        return self._read(
            "search",
            consistency,
            data=list(queries),
            filter=expression,
            limit=k,
            search_params={"metric_type": "IP", "params": self.spec.search_params(effort, k)},
        )

    def _index(self) -> None:
        params = self.server.client.prepare_index_params()
        params.add_index(
            VECTOR, index_type=self.spec.type, metric_type="IP", params=dict(self.spec.params)
        )
        # Without `sync` it would wait until the server is done, which for some kinds is never.
        self._call("create_index", params, sync=False)
        self.indexed = True

    def _read_index(self, *, writing: bool) -> None:
        call = self.server.call
        self.indexed = bool(call("list_indexes", self.name, writing=writing))
        told = {}
        if self.indexed:
            told = call("describe_index", self.name, VECTOR, writing=writing)
        kinds = {IndexSpec(kind, {}).type: kind for kind in KINDS}
        kind = kinds.get(told.get("index_type", ""), "flat")
        named = {"M", "efConstruction", "nlist", "intermediate_graph_degree", "graph_degree"}
        self.spec = IndexSpec(kind, {name: int(told[name]) for name in named & told.keys()})

    def _call(self, method: str, *args: Any, timeout: float | None = None, **how: Any) -> Any:  # noqa: ANN401
        return self.server.call(method, self.name, *args, writing=True, timeout=timeout, **how)

    def _read(self, method: str, consistency: Consistency, **how: Any) -> Any:  # noqa: ANN401
        unseen = self._unseen and consistency != "Bounded"
        level = "Strong" if unseen else consistency
        # Who waits for what was written has the patience of who writes.
        writing = consistency != "Bounded"
        found = self.server.call(method, self.name, writing=writing, consistency_level=level, **how)
        self._unseen = self._unseen and level != "Strong"
        return found


def _is_served(segment: Any) -> bool:  # noqa: ANN401 (pymilvus's `LoadedSegmentInfo`)
    indexed = segment.index_name or segment.num_rows < INDEXED_ROWS
    return bool(segment.state == SEALED and indexed)


def is_one_of(ids: Ids) -> str:
    """Return the expression that is true of these ids."""
    return f"{ID} in {ids.tolist()}"
