"""What a library holds more than once: copies, near-duplicates and bursts, and what to keep.

Nothing is changed, in the library or beside it: files are only looked at and read.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from stat import S_ISLNK
from typing import TYPE_CHECKING

import numpy as np

from mmsearch.errors import MediaError
from mmsearch.retrieval.alignment import agreement, least_agreement, thumbnail
from mmsearch.retrieval.containers import (
    CONTAINER_SUFFIXES,
    enclosing,
    folders_of,
    places_of,
)
from mmsearch.retrieval.duplicate_groups import Duplicates, Group, Kind, Member, why_kept
from mmsearch.retrieval.duplicates import bursts, groups, likeness, seconds_of, short_of_candidates
from mmsearch.retrieval.library import Library
from mmsearch.retrieval.media import open_picture, read_bytes, upright_rgb
from mmsearch.retrieval.scan import size_and_time
from mmsearch.retrieval.schema import Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from mmsearch.indexes import VectorIndex
    from mmsearch.retrieval.containers import Place
    from mmsearch.retrieval.duplicates import Likeness, Pairs
    from mmsearch.retrieval.schema import Picture

    Progress = Callable[[str, int, int], None]

__all__ = ["find_duplicates"]

DECODED_SIDE = 128
"""Twice a thumbnail's: JPEG decoders may skip what is finer."""

ALL_PAIRS = 300_000
"""Up to so many pictures all are compared with all; beyond, a trained index is asked for each."""


def find_duplicates(
    library: Path | str,
    *,
    kinds: Iterable[Kind | str] = Kind,
    check: bool = True,
    progress: Progress | None = None,
) -> Duplicates:
    """Find the copies, near-duplicates and bursts of a library, and propose what to keep.

    Copies are files of one SHA-256. Near-duplicates are alike by their vectors and one photo by
    their pixels, for which the candidates' files are read again. Where one cannot be, or is not
    what was indexed, vectors alone decide, more strictly, and nothing is called spare. Mirrored
    pictures are different ones.

    Args:
        library: the folder that was indexed.
        kinds: what to look for.
        check: False to read no file: vectors alone decide.
        progress: called with a stage, how much of it is done and how much there is.

    Raises:
        LibraryNotFound: the folder was never indexed.
        ValueError: there is no such kind.
    """
    wanted = {Kind(kind) for kind in kinds}
    with closing(Library.open(Path(library))) as opened:
        row = opened.catalog.library()
        encoder_id, spec = opened.active_encoder(row)
        with opened.catalog.snapshot() as snapshot:
            pictures = dict(snapshot.files())
        search = _Search(opened.root, pictures, check, progress or (lambda *_: None))
        copies = search.copies()
        found = [search.group(Kind.COPIES, ids, search.present) for ids in copies if len(ids) > 1]
        if wanted != {Kind.COPIES}:
            ids, vectors = opened.catalog.file_vectors(encoder_id, spec.dim)
            index = None
            if len(ids) > ALL_PAIRS:
                index = opened.open_index(Target.IMAGES, row)
                index = None if index.exact else index
            found += search.alike(ids, vectors, copies, index)
    chosen = sorted(
        (group for group in found if group.kind in wanted),
        key=lambda group: (list(Kind).index(group.kind), group.keep.path),
    )
    members = (member for group in chosen for member in (group.keep, *group.others))
    return Duplicates(
        library=opened.root,
        model=spec.label,
        groups=tuple(chosen),
        pictures=len(pictures),
        compared=len(search.thumbnails),
        unchecked=len({member.path for member in members if not member.checked}),
    )


class _Search:
    """One look through a library."""

    def __init__(
        self, root: Path, pictures: dict[int, Picture], check: bool, progress: Progress
    ) -> None:
        self.root = root
        self.pictures = pictures
        self.check = check
        self.progress = progress
        self.thumbnails: dict[int, NDArray[np.uint8]] = {}
        paths = [picture.path for picture in pictures.values()]
        self._containers = _containers(root, paths)
        self._states: dict[int, _State] = {}

    def copies(self) -> list[list[int]]:
        """Return the ids of what has the same bytes, the one to keep first.

        Several names of one file are one picture, under the name that is no link; so one id may be
        all that is left.
        """
        by_content: dict[bytes, list[int]] = {}
        for id_, picture in self.pictures.items():
            by_content.setdefault(picture.sha256, []).append(id_)
        found = []
        for ids in by_content.values():
            if len(ids) > 1:
                distinct: dict[object, int] = {}
                for id_ in self._ordered(ids):
                    distinct.setdefault(self._state(id_).file or id_, id_)
                found.append([*distinct.values()])
        return found

    def alike(
        self,
        ids: NDArray[np.int64],
        vectors: NDArray[np.float16],
        copies: Sequence[Sequence[int]],
        index: VectorIndex | None,
    ) -> list[Group]:
        """Return near-duplicates and bursts among the different contents."""
        standing = {self.pictures[group[0]].sha256: group[0] for group in copies}
        first: dict[bytes, int] = {}
        for id_ in ids.tolist():
            if id_ in self.pictures:
                sha = self.pictures[id_].sha256
                first.setdefault(sha, standing.get(sha, id_))
        row_of = {id_: row for row, id_ in enumerate(ids.tolist())}
        known = [id_ for id_ in first.values() if id_ in row_of]
        like = likeness(vectors[np.sort([row_of[id_] for id_ in known])])
        ordered = self._ordered(known)
        vectors = vectors[[row_of[id_] for id_ in ordered]]
        keys = np.array(ordered, dtype=np.int64)
        least = like.candidate if self.check else like.alone
        near = groups(
            keys,
            vectors,
            least=least,
            check=lambda pairs: self._one_photo(ordered, vectors, pairs, like),
            index=index,
        )
        found = [self.group(Kind.NEAR, rows.tolist(), self._compared) for rows in near]
        gone = {id_ for rows in near for id_ in rows[1:].tolist()}
        left = np.array([id_ not in gone for id_ in ordered])
        taken = np.array([seconds_of(self.pictures[id_].taken_at) for id_ in ordered])
        for rows in bursts(keys[left], vectors[left], taken[left], least=like.burst):
            found.append(self.group(Kind.BURSTS, rows.tolist(), self.present))
        return found

    def group(self, kind: Kind, ids: Sequence[int], checked: Callable[[int], bool]) -> Group:
        """Return a group that keeps the first of `ids`."""
        keep, *others = (self._member(id_, checked) for id_ in ids)
        return Group(
            kind,
            keep,
            why_kept(keep, others),
            tuple(
                replace(
                    other,
                    spare=keep.checked and other.checked and not (other.inside or other.linked),
                )
                for other in others
            ),
        )

    def present(self, id_: int) -> bool:
        """Say whether a picture's file is there, of the size and time that were indexed."""
        return self._state(id_).same

    def _compared(self, id_: int) -> bool:
        return id_ in self.thumbnails

    def _state(self, id_: int) -> _State:
        if id_ not in self._states:
            picture = self.pictures[id_]
            container = self._containers.get(picture.path)
            self._states[id_] = _look_at(self.root, picture, container)
        return self._states[id_]

    def _ordered(self, ids: Iterable[int]) -> list[int]:
        return sorted(ids, key=lambda id_: self._member(id_, self.present).preference)

    def _member(self, id_: int, checked: Callable[[int], bool]) -> Member:
        picture = self.pictures[id_]
        return Member(
            path=picture.path,
            size=picture.size,
            width=picture.width,
            height=picture.height,
            taken_at=picture.taken_at,
            checked=checked(id_),
            inside=picture.path in self._containers,
            linked=self._state(id_).linked,
        )

    def _one_photo(
        self,
        ordered: Sequence[int],
        vectors: NDArray[np.float16],
        pairs: Pairs,
        like: Likeness,
    ) -> NDArray[np.bool_]:
        """Say which pairs are one photo: by pixels, or strictly by vectors where there are none."""
        alone = pairs.similarity >= like.alone
        if not self.check:
            return alone
        self._read([ordered[row] for row in np.unique([pairs.first, pairs.second]).tolist()])
        same = alone
        least = self._least_agreement(ordered, vectors, like)
        stretches = pairs.stretches()
        for number, (start, end) in enumerate(stretches, 1):
            self.progress("compare", number, len(stretches))
            one = self.thumbnails.get(ordered[pairs.first[start]])
            if one is None:
                continue
            at = [
                place
                for place in range(start, end)
                if ordered[pairs.second[place]] in self.thumbnails
            ]
            if at:
                others = np.stack([self.thumbnails[ordered[pairs.second[place]]] for place in at])
                same[at] = agreement(one, others) >= least
        return same

    def _least_agreement(
        self, ordered: Sequence[int], vectors: NDArray[np.float16], like: Likeness
    ) -> float:
        """Return what tells one photo from two in this library, by pictures that were read."""
        read = [row for row, id_ in enumerate(ordered) if id_ in self.thumbnails]
        pairs = short_of_candidates(vectors[read], like)
        ends = zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)
        background = [
            agreement(
                self.thumbnails[ordered[read[i]]], self.thumbnails[ordered[read[j]]][np.newaxis]
            )[0]
            for i, j in ends
        ]
        return least_agreement(np.array(background))

    def _read(self, ids: list[int]) -> None:
        """Make thumbnails of what can be read and is what was indexed."""
        places = places_of(self.root, [self.pictures[id_].path for id_ in ids])
        order = {path: place for place, path in enumerate(places)}
        # What lies in a container is read from its front to its end.
        ids = sorted(ids, key=lambda id_: order.get(self.pictures[id_].path, -1))

        def read(id_: int) -> NDArray[np.uint8] | None:
            picture = self.pictures[id_]
            return _thumbnail(self.root / picture.path, places.get(picture.path), picture.sha256)

        with ThreadPoolExecutor(os.cpu_count(), "read") as pool:
            try:
                for number, (id_, thumb) in enumerate(zip(ids, pool.map(read, ids), strict=True)):
                    self.progress("pictures", number, len(ids))
                    if thumb is not None:
                        self.thumbnails[id_] = thumb
                self.progress("pictures", len(ids), len(ids))
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class _State:
    """What a look at a picture's file says.

    Attributes:
        same: whether it has the size and time that were indexed.
        linked: whether it is a link, or has other names.
        file: which file it is, whatever its name; None where nothing tells.
    """

    same: bool
    linked: bool = False
    file: tuple[int, int] | None = None


def _look_at(root: Path, picture: Picture, container: str | None) -> _State:
    path = root / (container or picture.path)
    try:
        status, own = path.stat(), path.lstat()
    except (OSError, ValueError):
        return _State(same=False)
    same = size_and_time(status)[1] == picture.mtime_ns
    if container is not None:
        return _State(same)
    return _State(
        same=same and status.st_size == picture.size,
        linked=S_ISLNK(own.st_mode) or status.st_nlink > 1,
        # Some file systems number nothing.
        file=(status.st_dev, status.st_ino) if status.st_ino else None,
    )


def _containers(root: Path, paths: Iterable[str]) -> dict[str, str]:
    """Return the container of each path that leads into one."""
    above = {path: list(folders_of(path)) for path in paths}
    folders = {folder for way in above.values() for folder in way}
    files = {
        folder
        for folder in folders
        if Path(folder).suffix.lower() in CONTAINER_SUFFIXES and (root / folder).is_file()
    }
    inside = ((path, enclosing(path, files)) for path in above) if files else ()
    return {path: container for path, container in inside if container is not None}


def _thumbnail(path: Path, place: Place | None, digest: bytes) -> NDArray[np.uint8] | None:
    """Return a picture's thumbnail; None where it cannot be read or is not what was indexed."""
    try:
        data = read_bytes(path) if place is None else place.read()
        if sha256(data).digest() != digest:
            return None
        return thumbnail(upright_rgb(open_picture(data), at_least=DECODED_SIDE))
    except (MediaError, ValueError):
        return None
