"""Finding the pictures of a folder."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass, field
from errno import ELOOP, ENOENT
from hashlib import blake2b
from pathlib import Path
from stat import S_ISDIR

from pathspec import GitIgnoreSpec

from mmsearch.errors import SourceError
from mmsearch.retrieval.captions import sidecar_names
from mmsearch.retrieval.media import SUFFIXES

__all__ = ["IGNORE_FILE", "FoundFile", "Scan", "scan"]

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
    """

    size: int
    mtime_ns: int
    sidecars: str


@dataclass(slots=True)
class Scan:
    """What a folder holds.

    Attributes:
        files: pictures by path relative to the root, with forward slashes, sorted.
        unusable: names that look like pictures but are no files (links to nothing, pipes), with
            the reason.
        unreadable: folders that could not be listed and files that could not be looked at, with
            the reason: they and what lies below them are unknown, not gone.
    """

    files: dict[str, FoundFile] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)

    def may_hold(self, path: str) -> bool:
        """Say whether `path` is, or lies below, what could not be looked at."""
        return any(path == place or path.startswith(f"{place}/") for place in self.unreadable)


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
            if not _is_picture_name(name):
                continue
            if ignored.match_file(path):
                continue
            if not entry.is_file():
                link = entry.is_symlink()
                found.unusable[path] = "a link to nothing" if link else "not an ordinary file"
                continue
            status = entry.stat()
        except OSError as error:
            if _is_picture_name(name):
                lost = error.errno in {ENOENT, ELOOP}
                reason = "a link that leads nowhere" if lost else f"{error.strerror}"
                (found.unusable if lost else found.unreadable)[path] = reason
            continue
        sidecars = _sidecars(name, by_name)
        found.files[path] = FoundFile(status.st_size, status.st_mtime_ns, sidecars)


def _is_picture_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 (a name, in a hot loop)


def _sidecars(name: str, by_name: dict[str, os.DirEntry[str]]) -> str:
    parts = []
    for candidate in sidecar_names(name):
        if candidate in by_name:
            try:
                status = by_name[candidate].stat()
            except OSError:
                continue
            parts.append(f"{candidate}:{status.st_size}:{status.st_mtime_ns}")
    return blake2b(os.fsencode("|".join(parts)), digest_size=8).hexdigest() if parts else ""


def _ignore_rules(root: Path) -> GitIgnoreSpec:
    try:
        lines = (root / IGNORE_FILE).read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    except OSError as error:
        raise SourceError(f"{root / IGNORE_FILE} cannot be read: {error.strerror}.") from error
    try:
        return GitIgnoreSpec.from_lines(lines)
    except ValueError as error:
        raise SourceError(f"{root / IGNORE_FILE} has a rule that is not valid: {error}.") from error
