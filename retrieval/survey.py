"""What a run is about: the library's folder, the pictures there, and what needs no reading."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from mmsearch.errors import LibraryNotFound, SourceError
from mmsearch.retrieval.containers import enclosing
from mmsearch.retrieval.inputs import Listed, list_of, read_list, scan_listed
from mmsearch.retrieval.library import Library, library_above
from mmsearch.retrieval.media import TRANSIENT_KINDS
from mmsearch.retrieval.scan import FoundFile, Scan, scan

__all__ = ["Survey", "survey"]


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found.

    Attributes:
        root: the library's folder.
        captions: (absolute path, caption) pairs that a list of files gave.
    """

    root: Path
    found: Scan
    captions: list[tuple[str, str]]


def survey(source: Path | Sequence[Path], root: Path | None, *, retry: bool) -> Survey:
    """Find out what `source` names: a folder, shards or a list of paths.

    Args:
        source: see `read_list`; or the files themselves.
        root: the library's folder, where `source` is none.
        retry: what could not be read will be tried again.

    Raises:
        SourceError: it cannot be used, holds no picture, or names files outside of `root`.
    """
    listed = read_list(source) if isinstance(source, Path) else list_of(source)
    if listed is None:
        assert isinstance(source, Path)
        place = _root(source, root)
        found = scan(place)
    else:
        place = _root_of_files(listed, root)
        found = scan_listed(place, listed)
    if found.containers:
        # To read again what failed before, they must be looked into.
        found.open_containers(place, {} if retry else _unchanged(place, found))
    if listed is not None and not found.files and not found.containers and not found.unreadable:
        _refuse_names_of_nothing(source, listed, place)
    if not found.files and not found.unusable and not found.damaged:
        raise SourceError(_nothing_found(place, found))
    return Survey(place, found, [] if listed is None else listed.captions)


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


def _nothing_found(root: Path, found: Scan) -> str:
    where = f"No pictures were found in {root}"
    if found.unreadable:
        return f"{where}: {len(found.unreadable)} of its folders cannot be read. Check permissions."
    return (
        f"{where} (JPEG, PNG, WebP, GIF, BMP, TIFF, HEIC and AVIF are looked for, hidden folders "
        "are not). Nothing was changed; if there is an index from earlier, it is kept."
    )
