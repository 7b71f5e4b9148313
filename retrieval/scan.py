"""Finding the pictures of a folder."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from errno import ELOOP, ENOENT
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from pathspec import GitIgnoreSpec

from mmsearch.errors import MissingExtra, SourceError
from mmsearch.retrieval.captions import fingerprint, sidecar_names
from mmsearch.retrieval.containers import CONTAINER_SUFFIXES, Place, folders_of, list_contents
from mmsearch.retrieval.media import SUFFIXES

__all__ = [
    "IGNORE_FILE",
    "FoundFile",
    "Scan",
    "scan",
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
    """

    files: dict[str, FoundFile] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    containers: dict[str, tuple[int, int]] = field(default_factory=dict)
    damaged: dict[str, tuple[str, str]] = field(default_factory=dict)
    listed: set[str] = field(default_factory=set)
    covered: frozenset[str] | None = None

    def may_hold(self, path: str) -> bool:
        """Say whether `path` is, or lies below, what was not looked at."""
        if any(path == place or path.startswith(f"{place}/") for place in self.unreadable):
            return True
        if self.covered is None:
            return False
        return self.covered.isdisjoint([path, *folders_of(path)])

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
            except (OSError, MissingExtra) as error:
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
    try:
        is_folder = S_ISDIR(root.stat().st_mode)
    except FileNotFoundError:
        raise SourceError(f"There is no folder {root}. Check the path.") from None
    except (OSError, ValueError) as error:
        raise SourceError(f"The folder {root} cannot be reached: {error}.") from error
    if not is_folder:
        raise SourceError(f"{root} is a file. Give the folder that holds it.")
    ignored = _ignore_rules(root)
    found = Scan()
    seen: set[tuple[int, int]] = set()
    folders = deque([(root, "")])
    links: deque[tuple[Path, str]] = deque()
    while folders or links:
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
        _visit(entries, relative, ignored, found, folders, links)
    found.files = dict(sorted(found.files.items()))
    return found


def _visit(
    entries: list[os.DirEntry[str]],
    relative: str,
    ignored: GitIgnoreSpec,
    found: Scan,
    folders: deque[tuple[Path, str]],
    links: deque[tuple[Path, str]],
) -> None:
    by_name = {entry.name: entry for entry in entries}
    for entry in entries:
        name = entry.name
        path = f"{relative}/{name}" if relative else name
        if name.startswith(".") or name in ALWAYS_IGNORED:
            continue
        try:
            if entry.is_dir():
                if not ignored.match_file(f"{path}/"):
                    (links if entry.is_symlink() else folders).append((Path(entry.path), path))
                continue
            if not _is_looked_at(name) or ignored.match_file(path):
                continue
            if not entry.is_file():
                link = entry.is_symlink()
                found.unusable[path] = "a link to nothing" if link else "not an ordinary file"
                continue
            status = entry.stat()
        except OSError as error:
            if _is_looked_at(name):
                lost = error.errno in {ENOENT, ELOOP}
                reason = "a link that leads nowhere" if lost else f"{error.strerror}"
                (found.unusable if lost else found.unreadable)[path] = reason
            continue
        if _is_container_name(name):
            found.containers[path] = size_and_time(status)
            continue
        sidecars = sidecar_fingerprint(name, by_name)
        found.files[path] = FoundFile(*size_and_time(status), sidecars)


def _is_looked_at(name: str) -> bool:
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
    hidden = any(part.startswith(".") or part in ALWAYS_IGNORED for part in parts)
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
