"""What can be read from a catalog, each in one transaction or in that of `Database.at_once`."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from mmsearch.retrieval.catalog import (
    captions,
    filtering,
    hits,
    integrity,
    items,
    known,
    library_row,
    listing,
    lookup,
    stored,
    vectors,
)
from mmsearch.retrieval.catalog.database import Database
from mmsearch.retrieval.catalog.encoders import (
    EncoderRow,
    UnembeddedFile,
    encoder_rows,
    unembedded_files,
)
from mmsearch.retrieval.catalog.word_search import KeptWords, find_words
from mmsearch.retrieval.catalog.words import told_by_name
from mmsearch.retrieval.schema import Target

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.indexes.base import Condition
    from mmsearch.retrieval.catalog.captions import Undescribed
    from mmsearch.retrieval.catalog.copying import Sum
    from mmsearch.retrieval.catalog.items import Item
    from mmsearch.retrieval.catalog.known import KnownFile, KnownProblem
    from mmsearch.retrieval.catalog.library_row import AdapterRow, Counts, LibraryRow
    from mmsearch.retrieval.catalog.lookup import FileRow
    from mmsearch.retrieval.catalog.snapshot import Snapshot
    from mmsearch.retrieval.catalog.stored import Described, StoreRecord
    from mmsearch.retrieval.filters import Filter
    from mmsearch.retrieval.schema import Hit, Problem, SortKey

__all__ = ["Reader"]


class Reader(Database):
    """Reads pictures, captions, vectors and words of a catalog, and what is known of files."""

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """Read one state of the catalog in blocks, whatever is written meanwhile."""
        # What questions do not need is loaded where it is.
        from mmsearch.retrieval.catalog.snapshot import Snapshot

        with self._connect() as connection:
            yield Snapshot(connection, self.place)

    def library(self) -> LibraryRow:
        """Return the library's own row and its active encoder."""
        with self._connect() as connection:
            row = library_row.library(connection)
        if row is None:
            raise self._unfinished()
        return row

    def adapter(self, id_: int) -> AdapterRow | None:
        """Return what `tune` learned under this id; None where it was taken back since."""
        with self._connect() as connection:
            return library_row.adapter(connection, id_)

    def counts(self) -> Counts:
        """Return how much the library holds."""
        with self._connect() as connection:
            return library_row.counts(connection)

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
            return known.known_files(connection, encoder_id, paths)

    def embedded_ids(self, paths: Sequence[str], encoder_id: int) -> dict[str, int]:
        """Return the ids of those of the paths whose pictures this encoder has embedded."""
        with self._connect() as connection:
            return known.embedded_ids(connection, paths, encoder_id)

    def holds_below(self, folder: str) -> bool:
        """Say whether a picture is known below a folder."""
        with self._connect() as connection:
            return known.holds_below(connection, folder)

    def known_problems(self, paths: Sequence[str] | None = None) -> dict[str, KnownProblem]:
        """Return files that could not be indexed by path, all or those of a few paths."""
        with self._connect() as connection:
            return known.known_problems(connection, paths)

    def problems(self) -> list[Problem]:
        """Return every file that could not be indexed, by path."""
        with self._connect() as connection:
            return known.problems(connection)

    def containers(self) -> dict[str, tuple[int, int]]:
        """Return size and time of every container that was read whole, by path."""
        with self._connect() as connection:
            return known.containers(connection)

    def known_contents(self, sizes: Iterable[int], encoder_id: int) -> dict[bytes, int]:
        """Return the file id by content hash, for embedded files of one of the given sizes."""
        with self._connect() as connection:
            return known.known_contents(connection, sizes, encoder_id)

    def contents(self, ids: Sequence[int] | None = None) -> dict[int, bytes]:
        """Return the SHA-256 of pictures' contents by id; of every picture if no ids are given."""
        with self._connect() as connection:
            return known.contents(connection, ids)

    def files_with(self, sha256: bytes) -> list[int]:
        """Return the ids of the pictures with this content."""
        with self._connect() as connection:
            return known.files_with(connection, sha256)

    def captions(self) -> list[tuple[int, int, str]]:
        """Return people's captions by id: each one's id, its picture's id and its text."""
        with self._connect() as connection:
            return captions.own(connection)

    def captions_to_embed(
        self, encoder_id: int, limit: int, *, skip: int = 0
    ) -> list[tuple[int, str]]:
        """Return up to `limit` captions (id, text) that this encoder has not embedded.

        Args:
            encoder_id: the encoder.
            limit: how many.
            skip: leave out so many before them, which others embed at the same time.
        """
        with self._connect() as connection:
            return captions.unembedded(connection, encoder_id, limit, skip=skip)

    def count_captions_to_embed(self, encoder_id: int) -> int:
        """Return how many captions this encoder has not embedded."""
        with self._connect() as connection:
            return captions.count_unembedded(connection, encoder_id)

    def files_captioned_by(self, source: str) -> list[int]:
        """Return the ids of the files that have a caption from this source."""
        with self._connect() as connection:
            return captions.files_captioned_by(connection, source)

    def undescribed(self, source: str) -> list[Undescribed]:
        """Return, by path, pictures without a caption of people's own or of this source."""
        with self._connect() as connection:
            return captions.undescribed(connection, source)

    def file_vectors(
        self, encoder_id: int, dim: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
        """Return `int64[n]` file ids, ascending, and their `float16[n, dim]` vectors."""
        with self._connect() as connection:
            return vectors.all_vectors(connection, Target.IMAGES, encoder_id, dim, self.place)

    def caption_vectors(
        self, encoder_id: int, dim: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
        """Return `int64[n]` caption ids, ascending, and their `float16[n, dim]` vectors."""
        with self._connect() as connection:
            return vectors.all_vectors(connection, Target.CAPTIONS, encoder_id, dim, self.place)

    def vector_ids(self, target: Target, encoder_id: int) -> NDArray[np.int64]:
        """Return `int64[n]`, ascending: which pictures or captions this encoder has embedded."""
        with self._connect() as connection:
            return vectors.vector_ids(connection, target, encoder_id)

    def stored_vectors(
        self, target: Target, encoder_id: int, dim: int, ids: Collection[int]
    ) -> dict[int, bytes]:
        """Return `dim` numbers, little-endian fp16, of each of the ids that has a vector."""
        with self._connect() as connection:
            found = dict(lookup.vector_rows(connection, target, encoder_id, ids))
        for id_, blob in found.items():
            vectors.check_length(self.place, target, id_, blob, dim)
        return found

    def vectors_of(
        self, target: Target, encoder_id: int, dim: int, ids: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
        """Return those of the ids that have a vector, ascending, and their `float16[n, dim]`."""
        found = self.stored_vectors(target, encoder_id, dim, np.unique(ids).tolist())
        rows = np.frombuffer(bytearray().join(found.values()), dtype="<f2")
        return np.array([*found], dtype=np.int64), rows.reshape(len(found), dim)

    def bad_vectors(
        self, target: Target, encoder_id: int, dim: int
    ) -> tuple[int, NDArray[np.int64]]:
        """Return how many vectors an encoder has, and the ids of those that are none."""
        with self._connect() as connection:
            return integrity.bad_vectors(connection, target, encoder_id, dim)

    def changes(self, target: Target, since: str, row: LibraryRow) -> NDArray[np.int64] | None:
        """Return `int64[n]`, whose vectors were added, replaced or removed since a state.

        None where that state is not remembered, or had another encoder, or adapted captions
        otherwise than the state that `row` names, so that an index of it is of no use.
        """
        with self._connect() as connection:
            return vectors.changes(connection, target, since, row)

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
        made = self.file_hits if target is Target.IMAGES else self.caption_hits
        return made([(id_, math.nan) for id_ in ids.tolist()])

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
        return hits.file_hits(self.files([id_ for id_, _ in ranked]), ranked)

    def caption_hits(self, ranked: Sequence[tuple[int, float]]) -> tuple[Hit, ...]:
        """Return hits for (caption id, score) pairs, each with the picture it belongs to.

        A text that several sources give for one picture counts once.
        """
        rows = self.files_of_captions([id_ for id_, _ in ranked])
        return hits.caption_hits(rows, ranked)

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

    def sums(self, report: Callable[[str, int, int], None]) -> dict[str, Sum]:
        """Return the number of rows and a checksum of each table of content, by its name."""
        from mmsearch.retrieval.catalog import copying

        with self._connect() as connection:
            return copying.sums(connection, report)
