"""Finding the pictures of a folder."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from errno import ELOOP, ENOENT, ENOTDIR
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from pathspec import GitIgnoreSpec

from mmsearch.errors import MissingExtra, SourceError
from mmsearch.retrieval.addresses import address_of
from mmsearch.retrieval.captions import SIDECAR_SUFFIXES, fingerprint, sidecar_names
from mmsearch.retrieval.containers import CONTAINER_SUFFIXES, Place, folders_of, list_contents
from mmsearch.retrieval.media import SUFFIXES

__all__ = [
    "IGNORE_FILE",
    "FoundFile",
    "Scan",
    "concerns",
    "may_be_listed",
    "scan",
    "scan_places",
    "sidecar_fingerprint",
    "size_and_time",
    "would_list",
]

IGNORE_FILE = ".mmsearchignore"
"""At the library's root, in the syntax of `.gitignore`."""

ALWAYS_IGNORED = frozenset(
    {"@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "node_modules", "__MACOSX"}
)
"""Folders of network drives and tools that hold copies or thumbnails, not pictures."""


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A picture's file as the folder lists it.

    Attributes:
        sidecars: fingerprint of the caption files beside it (names, sizes, times); empty when
            there are none.
        place: where it lies inside a container, whose time is its own; None for a file.
    """

    size: int
    mtime_ns: int
    sidecars: str
    place: Place | None = None


@dataclass(slots=True)
class Scan:
    """What a folder holds.

    Attributes:
        files: pictures by path relative to the root, with forward slashes, sorted.
        unusable: names that look like pictures but are no files (links to nothing, pipes), with
            the reason.
        unreadable: folders that could not be listed and files that could not be looked at, with
            the reason: they and what lies below them are unknown, not gone.
        containers: size and time of every file that holds pictures, by path.
        damaged: kind and reason of each container that could not be read to its end.
        listed: containers that were read for this scan; the others are as they were.
        covered: the only paths that this scan speaks for, with what lies below them; all where it
            is None.
        postponed: paths that it does not speak for, with what lies below them.
    """

    files: dict[str, FoundFile] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    containers: dict[str, tuple[int, int]] = field(default_factory=dict)
    damaged: dict[str, tuple[str, str]] = field(default_factory=dict)
    listed: set[str] = field(default_factory=set)
    covered: frozenset[str] | None = None
    postponed: frozenset[str] = frozenset()

    def may_hold(self, path: str) -> bool:
        """Say whether `path` is, or lies below, what was not looked at."""
        if any(path == place or path.startswith(f"{place}/") for place in self.unreadable):
            return True
        if self.covered is None and address_of(path) is not None:
            return True  # A folder says nothing of what lies elsewhere.
        if self.covered is None and not self.postponed:
            return False
        names = [path, *folders_of(path)]
        if not self.postponed.isdisjoint(names):
            return True
        return self.covered is not None and self.covered.isdisjoint(names)

    def postpone(self, places: Collection[str]) -> None:
        """Leave some paths, with what lies below them, to a later scan: as if never looked at."""
        self.postponed = frozenset(places)
        if not places:
            return
        for found in (self.files, self.unusable, self.unreadable, self.containers):
            for path in [path for path in found if self._is_postponed(path)]:
                del found[path]

    def _is_postponed(self, path: str) -> bool:
        return not self.postponed.isdisjoint([path, *folders_of(path)])

    def open_containers(self, root: Path, unchanged: Mapping[str, Mapping[str, FoundFile]]) -> None:
        """Add the pictures inside of containers to `files`.

        Args:
            root: what the paths are relative to.
            unchanged: what is known to be in containers that need not be read again.
        """
        inside: dict[str, Mapping[str, FoundFile]] = {}
        for path, (_, mtime_ns) in self.containers.items():
            if path in unchanged:
                inside[path] = unchanged[path]
                continue
            try:
                contents = list_contents(root / path)
            except (OSError, MissingExtra, SourceError) as error:
                self.unreadable[path] = getattr(error, "strerror", None) or str(error)
                continue
            self.listed.add(path)
            if contents.problem is not None:
                self.damaged[path] = contents.problem
            inside[path] = {
                f"{path}/{name}": FoundFile(place.size, mtime_ns, place.sidecars, place)
                for name, place in contents.pictures.items()
            }
        own = {path: {path: file} for path, file in self.files.items()}
        # In the order of paths, and inside a container as it is stored: read from front to end.
        everything = sorted([*own.items(), *inside.items()], key=lambda item: item[0])
        self.files = {path: file for _, files in everything for path, file in files.items()}


def scan(root: Path) -> Scan:
    """List every picture below `root`.

    Hidden files and folders, `ALWAYS_IGNORED` and what `.mmsearchignore` names are left out.
    Links to folders are followed once: a folder seen before, by whatever name, is not entered
    again, and real folders come before links to them.

    Raises:
        SourceError: `root` itself is missing, no folder, or cannot be listed.
    """
    _check_folder(root)
    found = Scan()
    _walk(root, deque([(root, "")]), deque(), _ignore_rules(root), found)
    found.files = dict(sorted(found.files.items()))
    return found


def scan_places(root: Path, places: Collection[str]) -> Scan | None:
    """List what is at some places below `root`, with what lies below them, as `scan` would.

    Args:
        root: the folder.
        places: paths relative to it, of files or folders, that may be there or not. Caption files
            stand for their pictures.

    Returns:
        What is there, `covered` by the places; None where a link to a folder is met: which of its
        names such a folder goes by is known to a whole scan only.

    Raises:
        SourceError: `root` is missing, or was replaced meanwhile.
    """
    before = _check_folder(root)
    ignored = _ignore_rules(root)
    found = Scan()
    covered = set(places)
    names_in: dict[str, set[str]] = {}
    for place in places:
        folder, _, name = place.rpartition("/")
        names_in.setdefault(folder, set()).add(name)
    links: deque[tuple[Path, str]] = deque()
    for relative, names in sorted(names_in.items()):
        ways = [*folders_of(relative), relative] if relative else []
        if any((root / way).is_symlink() for way in ways):
            return None
        if any(_is_left_out(way, ignored) for way in ways):
            continue
        try:
            entries = sorted(os.scandir(root / relative), key=lambda entry: entry.name)
        except OSError as error:
            if error.errno not in {ENOENT, ENOTDIR}:
                found.unreadable[relative] = error.strerror or type(error).__name__
            continue
        captions = {name for name in names if name.endswith(SIDECAR_SUFFIXES)}
        chosen = [
            entry
            for entry in entries
            if entry.name in names
            or (captions and not captions.isdisjoint(sidecar_names(entry.name)))
        ]
        covered.update(f"{relative}/{e.name}" if relative else e.name for e in chosen)
        folders: deque[tuple[Path, str]] = deque()
        by_name = {entry.name: entry for entry in entries}
        _visit(chosen, by_name, relative, ignored, found, folders, links)
        if not links:
            _walk(root, folders, links, ignored, found, follow=False)
        if links:
            return None
    # Where a disk was unplugged meanwhile, nothing of it is gone.
    after = _check_folder(root)
    if (before.st_dev, before.st_ino) != (after.st_dev, after.st_ino):
        raise SourceError(f"The folder {root} was replaced while it was looked at. Try again.")
    found.files = dict(sorted(found.files.items()))
    found.covered = frozenset(covered)
    return found


def concerns(path: str) -> bool:
    """Say whether a change at `path` may matter to a scan, going by its name alone.

    What is no picture, container or caption file may be a folder.
    """
    return not any(_is_hidden(part) for part in path.split("/")) or path == IGNORE_FILE


def _check_folder(root: Path) -> os.stat_result:
    """Return the status of a folder that is to be scanned.

    Raises:
        SourceError: it is missing, or no folder.
    """
    try:
        status = root.stat()
    except FileNotFoundError:
        raise SourceError(f"There is no folder {root}. Check the path.") from None
    except (OSError, ValueError) as error:
        raise SourceError(f"The folder {root} cannot be reached: {error}.") from error
    if not S_ISDIR(status.st_mode):
        raise SourceError(f"{root} is a file. Give the folder that holds it.")
    return status


def _walk(
    root: Path,
    folders: deque[tuple[Path, str]],
    links: deque[tuple[Path, str]],
    ignored: GitIgnoreSpec,
    found: Scan,
    *,
    follow: bool = True,
) -> None:
    """Add to a scan what is in folders and below them, and then behind links to folders."""
    seen: set[tuple[int, int]] = set()
    while folders or (links and follow):
        folder, relative = folders.popleft() if folders else links.popleft()
        try:
            status = folder.stat()
            identity = status.st_dev, status.st_ino
            if identity in seen:
                continue
            # Sorted, so that which of several links to a folder names it does not depend on chance.
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            if not relative:
                raise SourceError(
                    f"The folder {root} cannot be read: {error.strerror}. Check its permissions."
                ) from error
            found.unreadable[relative] = error.strerror or type(error).__name__
            continue
        seen.add(identity)
        by_name = {entry.name: entry for entry in entries}
        _visit(entries, by_name, relative, ignored, found, folders, links)


def _visit(
    entries: list[os.DirEntry[str]],
    by_name: Mapping[str, os.DirEntry[str]],
    relative: str,
    ignored: GitIgnoreSpec,
    found: Scan,
    folders: deque[tuple[Path, str]],
    links: deque[tuple[Path, str]],
) -> None:
    for entry in entries:
        name = entry.name
        path = f"{relative}/{name}" if relative else name
        if _is_hidden(name):
            continue
        try:
            if entry.is_dir():
                if not ignored.match_file(f"{path}/"):
                    (links if entry.is_symlink() else folders).append((Path(entry.path), path))
                continue
            if not may_be_listed(name) or ignored.match_file(path):
                continue
            if not entry.is_file():
                link = entry.is_symlink()
                found.unusable[path] = "a link to nothing" if link else "not an ordinary file"
                continue
            status = entry.stat()
        except OSError as error:
            if may_be_listed(name):
                lost = error.errno in {ENOENT, ELOOP}
                reason = "a link that leads nowhere" if lost else f"{error.strerror}"
                (found.unusable if lost else found.unreadable)[path] = reason
            continue
        if _is_container_name(name):
            found.containers[path] = size_and_time(status)
            continue
        sidecars = sidecar_fingerprint(name, by_name)
        found.files[path] = FoundFile(*size_and_time(status), sidecars)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in ALWAYS_IGNORED


def _is_left_out(folder: str, ignored: GitIgnoreSpec) -> bool:
    return _is_hidden(folder.rpartition("/")[2]) or ignored.match_file(f"{folder}/")


def may_be_listed(name: str) -> bool:
    """Say whether a file of this name would be listed, as a picture or as a container of some."""
    return _is_picture_name(name) or _is_container_name(name)


def _is_container_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in CONTAINER_SUFFIXES  # noqa: PTH122


def _is_picture_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 (a name, in a hot loop)


def size_and_time(status: os.stat_result) -> tuple[int, int]:
    """Return what a file is known again by: its size, and its time in nanoseconds.

    File systems have times beyond the year 2262, which 64 bits of nanoseconds do not: such a time
    is the last that they have.
    """
    return status.st_size, max(-(2**63), min(status.st_mtime_ns, 2**63 - 1))


def would_list(path: str) -> bool:
    """Say whether a scan lists a picture at this path, but for what `.mmsearchignore` names."""
    parts = path.split("/")
    hidden = any(map(_is_hidden, parts))
    return not hidden and _is_picture_name(parts[-1])


def sidecar_fingerprint(name: str, by_name: Mapping[str, os.DirEntry[str] | Path]) -> str:
    """Return the fingerprint of a picture's caption files, from what lies beside it."""
    parts = []
    for candidate in sidecar_names(name):
        if candidate in by_name:
            try:
                status = by_name[candidate].stat()
            except OSError:
                continue
            if not S_ISREG(status.st_mode):
                continue
            parts.append(f"{candidate}:{status.st_size}:{status.st_mtime_ns}")
    return fingerprint(parts)


def _ignore_rules(root: Path) -> GitIgnoreSpec:
    file = root / IGNORE_FILE
    if os.path.lexists(file) and not os.path.isfile(file):  # noqa: PTH113
        # To open a pipe is to wait for whoever writes to it.
        raise SourceError(f"{file} cannot be read: it is no ordinary file. Make it one.")
    try:
        lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    except OSError as error:
        raise SourceError(f"{file} cannot be read: {error.strerror}.") from error
    try:
        return GitIgnoreSpec.from_lines(lines)
    except ValueError as error:
        raise SourceError(f"{file} has a rule that is not valid: {error}.") from error
