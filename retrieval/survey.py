"""What a run is about: the library's folder, the pictures there, and what needs no reading."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from mmsearch.errors import LibraryNotFound, SourceError, quoted
from mmsearch.retrieval.addresses import address_of
from mmsearch.retrieval.containers import enclosing
from mmsearch.retrieval.inputs import Listed, list_of, read_list, scan_listed
from mmsearch.retrieval.library import Library, library_above
from mmsearch.retrieval.media import TRANSIENT_KINDS
from mmsearch.retrieval.object_scan import scan_objects
from mmsearch.retrieval.scan import FoundFile, Scan, scan, scan_places

__all__ = ["Survey", "survey"]


@dataclass(slots=True)
class Survey:
    """What was asked for, and what was found.

    Attributes:
        source: what was named.
        root: the library's folder.
        listed: the files, where `source` is no folder.
        address: where the pictures are, if in an object store.
        only: the only places in the folder to look at; all of it where it is None.
        later: places to leave for another time.
        retry: what could not be read will be tried again.
        found: what is there.
    """

    source: Path | Sequence[Path]
    root: Path
    listed: Listed | None
    only: Collection[str] | None
    later: Collection[str]
    retry: bool
    address: str | None = None
    found: Scan = field(default_factory=Scan)

    @property
    def captions(self) -> list[tuple[str, str]]:
        """(absolute path, caption) pairs that a list of files gave."""
        return [] if self.listed is None else self.listed.captions

    def look(self) -> None:
        """Look at what is there; once more where that may have changed since.

        Raises:
            SourceError: it cannot be used, or holds no picture.
        """
        found = None if self.only is None else scan_places(self.root, self.only)
        if self.address is not None:
            found = scan_objects(self.address)
        elif found is None:
            found = scan(self.root) if self.listed is None else scan_listed(self.root, self.listed)
        found.postpone(self.later)
        self.found = found
        if found.containers:
            # To read again what failed before, they must be looked into.
            found.open_containers(self.root, {} if self.retry else _unchanged(self.root, found))
        if found.covered is not None and self.listed is None and self.address is None:
            return
        empty = not found.files and not found.containers and not found.unreadable
        if self.listed is not None and empty:
            _refuse_names_of_nothing(self.source, self.listed, self.root)
        if not found.files and not found.unusable and not found.damaged:
            raise SourceError(_nothing_found(self.address or self.root, found))


def survey(
    source: Path | Sequence[Path],
    root: Path | None,
    *,
    retry: bool,
    only: Collection[str] | None = None,
    later: Collection[str] = (),
) -> Survey:
    """Find out what `source` names: a folder, shards or a list of paths.

    Args:
        source: see `read_list`; or the files themselves.
        root: the library's folder, where `source` is none.
        retry: what could not be read will be tried again.
        only: the only places in a folder to look at.
        later: places to leave for another time.

    Raises:
        SourceError: it cannot be used, holds no picture, or names files outside of `root`.
    """
    address = address_of(source) if isinstance(source, Path) else None
    if address is not None:
        seen = Survey(source, _root_of_objects(address, root), None, None, later, retry, address)
        seen.look()
        return seen
    listed = read_list(source) if isinstance(source, Path) else list_of(source)
    if listed is None:
        assert isinstance(source, Path)
        place = _root(source, root)
    else:
        place = _root_of_files(listed, root)
    seen = Survey(source, place, listed, only, later, retry)
    seen.look()
    return seen


def _root_of_objects(address: str, given: Path | None) -> Path:
    if given is None:
        raise SourceError(
            f"{address} is no folder, so that the library needs one of its own. Name it: "
            f"mmsearch index {quoted(address)} --root FOLDER"
        )
    return _made(Path(os.path.abspath(given)))  # noqa: PTH100


def _made(root: Path) -> Path:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SourceError(f"The folder {root} cannot be made: {error.strerror}.") from error
    return root


def _root(folder: Path, given: Path | None) -> Path:
    if given is not None and given.absolute() != folder.absolute():
        raise SourceError(
            f"{folder} is a folder, which is a library by itself: leave --root away. It is for "
            "lists of files and for shards."
        )
    return folder.absolute()


def _root_of_files(listed: Listed, given: Path | None) -> Path:
    if given is not None:
        return Path(os.path.abspath(given))  # noqa: PTH100
    return library_above(listed.common_folder) or listed.common_folder


def _refuse_names_of_nothing(source: Path | Sequence[Path], listed: Listed, root: Path) -> None:
    """Refuse files that are not there, unless a library may hold what they were."""
    if library_above(root) is not None:
        return
    if isinstance(source, Path):
        raise SourceError(
            f"{source} is read as a list of pictures, one path a line, and none of them is there: "
            f"the first is {listed.files[0]}. To index a folder, name the folder."
        )
    raise SourceError(
        f"None of the {len(listed.files)} files named is there: the first is {listed.files[0]}."
    )


def _unchanged(root: Path, found: Scan) -> dict[str, dict[str, FoundFile]]:
    """Return what is known of containers that were read whole, and have not changed since."""
    try:
        library = Library.open(root)
    except LibraryNotFound:
        return {}
    with closing(library):
        catalog = library.catalog
        row, records = catalog.library(), catalog.containers()
        same = {path for path, facts in found.containers.items() if records.get(path) == facts}
        if row.encoder_id is None or not same:
            return {}
        known, problems = catalog.known_files(row.encoder_id), catalog.known_problems()
    inside: dict[str, dict[str, FoundFile]] = {path: {} for path in same}
    for path, file in known.items():
        container = enclosing(path, inside)
        if container is not None and file.embedded:
            inside[container][path] = FoundFile(file.size, file.mtime_ns, file.sidecars)
        elif container is not None:
            del inside[container]
    for path, problem in problems.items():
        container = enclosing(path, inside)
        if container is not None and problem.kind in TRANSIENT_KINDS:
            del inside[container]
        elif container is not None:
            facts = FoundFile(problem.size, problem.mtime_ns, "")
            inside[container].setdefault(path, facts)
    return inside


def _nothing_found(root: Path | str, found: Scan) -> str:
    where = f"No pictures were found in {root}"
    if found.unreadable:
        return f"{where}: {len(found.unreadable)} of its folders cannot be read. Check permissions."
    return (
        f"{where} (JPEG, PNG, WebP, GIF, BMP, TIFF, HEIC and AVIF are looked for, hidden folders "
        "are not). Nothing was changed; if there is an index from earlier, it is kept."
    )
