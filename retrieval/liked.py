"""Recommending pictures of a library: by those that are liked, in it or elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING
from unicodedata import normalize

import numpy as np
from PIL import Image

from mmsearch.errors import QueryError, SourceError
from mmsearch.retrieval.addresses import address_of
from mmsearch.retrieval.question import ImageSource, Question, embedded
from mmsearch.retrieval.recommend import Recommender
from mmsearch.retrieval.schema import Fusion, Results, Strategy, Target, TasteQuery
from mmsearch.retrieval.taste import HALF_LIFE_DAYS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.indexes import VectorIndex
    from mmsearch.retrieval.catalog import LibraryRow
    from mmsearch.retrieval.encoders import Encoder
    from mmsearch.retrieval.library import Library
    from mmsearch.retrieval.signals import Item

__all__ = ["Liked", "PictureItem", "read_history", "vectors_of_pictures"]

PictureItem = int | Path | str | Image.Image
"""A picture's id in the library, its path there, a picture file elsewhere or one in memory."""

DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Liked:
    """What somebody likes of a library, and how to recommend from it.

    Attributes:
        like: pictures that are liked.
        dislike: pictures that are not.
        history: pictures of the library and how many days ago each was seen; others are ignored.
        strategy: see `Strategy`.
        diversity: 0 to 1.
        half_life: days after which a picture of the history counts half.
        exclude_seen: whether to leave out what is liked or in the history.
    """

    like: Sequence[PictureItem] = ()
    dislike: Sequence[PictureItem] = ()
    history: Sequence[tuple[PictureItem, float]] = ()
    strategy: Strategy | str = Strategy.AVERAGE
    diversity: float = 0.0
    half_life: float = HALF_LIFE_DAYS
    exclude_seen: bool = True

    def recommend(
        self,
        library: Library,
        row: LibraryRow,
        encoder: Encoder,
        index: VectorIndex,
        k: int,
        among: NDArray[np.int64] | Sequence[PictureItem] | None,
        matching: NDArray[np.int64] | None = None,
    ) -> Results:
        """Return up to `k` pictures; how long that took is the caller's to say.

        Args:
            library: whose pictures are recommended.
            row: its state.
            encoder: the one of that state; embeds pictures that are not in the library.
            index: of that state's pictures.
            k: how many, at least 1.
            among: the only ones that may be recommended, by id or by path in the library.
            matching: `int64[m]`, the ids that fit a filter.

        Raises:
            QueryError: a picture is nowhere to be found or cannot be read, or an argument is out
                of its range.
            IndexFileError: as from `VectorIndex.search`.
        """
        catalog = library.catalog
        encoder_id, spec = library.active_encoder(row)

        def vectors_of(ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
            return catalog.vectors_of(Target.IMAGES, encoder_id, spec.dim, ids)

        items = _Items(library, encoder_id, encoder)
        past, ignored = items.past(self.history)
        allowed = None if among is None else items.known(among)
        if matching is not None:
            allowed = matching if allowed is None else np.intersect1d(matching, allowed)
        recommender = Recommender.over(index, vectors_of)
        found = recommender.recommend(
            items.found(self.like),
            items.found(self.dislike),
            past,
            k=k,
            among=allowed,
            exclude_seen=self.exclude_seen,
            diversity=self.diversity,
            strategy=self.strategy,
            half_life=self.half_life,
        )
        considered = len(index)
        if allowed is not None:
            considered = int(index.has(np.unique(allowed)).sum())
        return Results(
            query=TasteQuery(
                like=tuple(map(_name, self.like)),
                dislike=tuple(map(_name, self.dislike)),
                history=tuple((_name(item), float(age)) for item, age in self.history),
                strategy=Strategy(self.strategy),
                half_life=self.half_life,
                diversity=self.diversity,
                basis=found.basis,
                ignored=ignored,
            ),
            library=library.root,
            model=spec.label,
            hits=catalog.file_hits([*zip(found.ids.tolist(), found.scores.tolist(), strict=True)]),
            exact=index.exact,
            took_ms=0.0,
            considered=considered,
            recall=index.recall,
        )


def vectors_of_pictures(
    library: Library, row: LibraryRow, encoder: Encoder, pictures: Sequence[PictureItem]
) -> NDArray[np.float32]:
    """Return the vectors of pictures, as `SearchEngine.vectors` does.

    Raises:
        QueryError: a picture is nowhere to be found, or cannot be read.
    """
    encoder_id, spec = library.active_encoder(row)
    items = _Items(library, encoder_id, encoder).found(pictures)
    ids = [item for item in items if isinstance(item, (int, np.integer))]
    found, stored = library.catalog.vectors_of(
        Target.IMAGES, encoder_id, spec.dim, np.array(ids, dtype=np.int64)
    )
    if gone := sorted({*map(int, ids)}.difference(found.tolist())):
        raise QueryError(
            f"No picture of the library at {library.root} has the id {gone[0]}. Give the ids that "
            "answers tell, or paths."
        )
    rows = dict(zip(found.tolist(), stored.astype(np.float32), strict=True))
    vectors = [rows[int(i)] if isinstance(i, (int, np.integer)) else i for i in items]
    return np.array(vectors, dtype=np.float32).reshape(len(items), spec.dim)


class _Items:
    """Looks pictures up in a library, and embeds those that are elsewhere."""

    def __init__(self, library: Library, encoder_id: int, encoder: Encoder) -> None:
        self._library, self._encoder_id, self._encoder = library, encoder_id, encoder

    def found(self, items: Sequence[PictureItem]) -> list[Item]:
        """Return ids, and vectors of pictures that are not in the library.

        Raises:
            QueryError: there is no such picture, or it cannot be read.
        """
        if isinstance(items, (str, Path, Image.Image)):
            items = [items]
        ids = self._ids([item for item in items if isinstance(item, (str, Path))])
        found: list[Item] = []
        for item in items:
            if isinstance(item, (int, np.integer)):
                found.append(item)
            elif isinstance(item, (str, Path)) and str(item) in ids:
                found.append(ids[str(item)])
            else:
                found.append(self._embedded(item))
        return found

    def past(
        self, history: Sequence[tuple[PictureItem, float]]
    ) -> tuple[list[tuple[int, float]], tuple[str, ...]]:
        """Return ids with ages, and the names of what the library does not hold."""
        ids = self._ids([item for item, _ in history if isinstance(item, (str, Path))])
        numbers = [item for item, _ in history if isinstance(item, (int, np.integer))]
        if numbers:
            known = self._library.catalog.vector_ids(Target.IMAGES, self._encoder_id)
            ids |= {str(id_): id_ for id_ in np.intersect1d(numbers, known).tolist()}
        past = [(ids[_name(item)], age) for item, age in history if _name(item) in ids]
        return past, tuple(_name(item) for item, _ in history if _name(item) not in ids)

    def known(self, items: NDArray[np.int64] | Sequence[PictureItem]) -> NDArray[np.int64]:
        """Return ids of pictures that are given by id or path; without paths of no picture."""
        given: list[PictureItem] = [*(items.tolist() if isinstance(items, np.ndarray) else items)]
        paths = [item for item in given if isinstance(item, (str, Path))]
        numbers = [item for item in given if not isinstance(item, (str, Path))]
        return np.array([*self._ids(paths).values(), *numbers], dtype=np.int64)

    def _ids(self, paths: Sequence[str | Path]) -> dict[str, int]:
        """Return the ids of those that are in the library, by the name they were given."""
        names = {str(path) for path in paths}
        known = self._library.catalog.embedded_ids(sorted(names), self._encoder_id)
        # Other ways to say a path take a look at the disk each, and are seldom needed.
        ways = {name: [*_ways(self._library.root, name)] for name in names - known.keys()}
        every = sorted({way for each in ways.values() for way in each})
        ids = self._library.catalog.embedded_ids(every, self._encoder_id)
        for name, each in ways.items():
            id_ = next((ids[way] for way in each if way in ids), None)
            if id_ is not None:
                known[name] = id_
        return known

    def _embedded(self, item: ImageSource) -> NDArray[np.float32]:
        if isinstance(item, (str, Path)) and not _is_there(Path(item)):
            raise QueryError(
                f"{item} is neither a picture of the library at {self._library.root} nor a file. "
                "Give the path of a picture, in the library's folder or anywhere else."
            )
        (vectors,) = embedded([Question.of(None, [item], None, Fusion.EARLY)], self._encoder)
        if isinstance(vectors, QueryError):
            raise vectors
        row: NDArray[np.float32] = vectors[0]
        return row


def _name(item: PictureItem) -> str:
    return str(getattr(item, "filename", None) or item)


def _ways(root: Path, path: str | Path) -> Iterator[str]:
    """Yield the names that a path may have in a library: as it is, and from where we are."""
    address = address_of(path)
    names = [Path(os.path.normpath(path)).as_posix() if address is None else address]
    for real in (os.path.abspath, os.path.realpath):
        with suppress(ValueError):  # on another drive of Windows
            names.append(Path(os.path.relpath(real(path), real(root))).as_posix())
    for name in names:
        # macOS lists names decomposed, people type them composed.
        yield from (name, normalize("NFC", name), normalize("NFD", name))


def _is_there(path: Path) -> bool:
    if address_of(path) is not None:
        return True
    # A picture may lie inside a tar or Parquet file.
    return any(os.path.isfile(each) for each in (path, *path.parents))  # noqa: PTH113


def read_history(file: Path, now: datetime) -> list[tuple[str | Path, float]]:
    """Read a history: a picture, a tabulator, and its age in days or the ISO date it was seen at.

    Paths are relative to the library or to the file, or absolute. A first line whose second field
    is `age_days` or `date` is a header. Dates without an offset are local time.

    Args:
        file: UTF-8.
        now: with an offset; what ages count from.

    Raises:
        SourceError: it cannot be read, or a line is none of this.
    """
    try:
        text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise SourceError(f"The history {file} cannot be read: {error.strerror}.") from error
    found: list[tuple[str | Path, float]] = []
    for number, line in enumerate(text.splitlines(), 1):
        path, tab, when = line.rpartition("\t")
        if not line.strip() or (number == 1 and when.strip() in {"age_days", "date"}):
            continue
        age = _age(when.strip(), now) if tab and path else None
        if age is None or not 0 <= age < float("inf"):
            raise SourceError(
                f"{file}, line {number}: a picture, a tabulator and its age in days or an ISO date "
                f"that is past are expected, such as a.jpg<TAB>3 or a.jpg<TAB>2026-01-31, not "
                f"{line!r}."
            )
        beside = file.absolute().parent / path
        found.append((beside if _is_there(beside) else path, age))
    return found


def _age(text: str, now: datetime) -> float | None:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        seen = datetime.fromisoformat(text)
    except ValueError:
        return None
    # What was seen today, by a date alone or by a clock that is a little fast, is of today.
    age = (now - seen.astimezone()).total_seconds() / DAY_S
    return 0.0 if -1 < age < 0 else age
