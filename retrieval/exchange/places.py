"""Where recorded pictures are now: paths of another time or machine, matched with a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from unicodedata import normalize

from mmsearch.errors import SourceError, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmsearch.retrieval.scan import FoundFile

__all__ = ["Places", "common_folder"]

SAMPLE = 1000


def common_folder(recorded: Sequence[str]) -> Path:
    """Return the folder that all recorded pictures lie in, which must exist.

    Raises:
        SourceError: it does not exist, or they have nothing but the file system in common.
    """
    folder = Path("/".join(_common(os.path.abspath(_plain(path)) for path in recorded)) or "/")  # noqa: PTH100
    if folder == Path(folder.anchor):
        tops = sorted({Path(_plain(path)).parent for path in recorded})
        raise SourceError(
            f"The pictures lie in folders that have nothing in common ({tops[0]}, {tops[-1]} …). "
            "Import one of them at a time: --root FOLDER"
        )
    if not folder.is_dir():
        raise SourceError(
            f"The pictures were recorded in {folder}, and there is no such folder here. Say where "
            f"they are now: --root {quoted('FOLDER')}"
        )
    return folder


class Places:
    """Finds recorded pictures below one folder.

    Paths that lie in the folder are taken as they are. Where none does, the folder was moved, or
    the paths are of another machine: the same number of leading folders is cut off all of them,
    the one that finds the most pictures, so that no picture is taken for another of its name.
    """

    def __init__(self, root: Path, files: Mapping[str, FoundFile], recorded: Sequence[str]) -> None:
        """Take the folder, what a scan found in it, and every recorded path."""
        self._files = files
        self._composed: dict[str, str] | None = None
        self._prefixes = tuple(
            dict.fromkeys(f"{name.rstrip('/')}/" for name in (root.as_posix(), _real(root)))
        )
        self._cut: int | None = None
        plain = [_plain(path) for path in recorded]
        if not any(path.startswith(self._prefixes) for path in plain):
            self._cut = self._best_cut(plain)

    def __call__(self, recorded: str) -> str | None:
        """Return where a picture should be, relative to the folder; None for one outside of it.

        The place is a file of the scan where there is one; another path is that of a picture
        which is missing, or which no scan lists.
        """
        plain = _plain(recorded)
        relative = None
        if self._cut is not None:
            relative = "/".join(plain.split("/")[self._cut :])
        else:
            prefix = next((one for one in self._prefixes if plain.startswith(one)), None)
            if prefix is not None:
                relative = plain.removeprefix(prefix)
        if relative is None or relative in self._files:
            return relative
        # macOS lists names decomposed, other systems keep them as they were typed.
        if self._composed is None:
            self._composed = {normalize("NFC", path): path for path in self._files}
        return self._composed.get(normalize("NFC", relative), relative)

    def _best_cut(self, paths: Sequence[str]) -> int:
        common = _common(paths)
        sample = [path.split("/") for path in paths[:: max(1, len(paths) // SAMPLE)]]
        found = [
            sum("/".join(parts[cut:]) in self._files for parts in sample)
            for cut in range(len(common) + 1)
        ]
        return found.index(max(found))


def _plain(path: str) -> str:
    """Return a path with forward slashes, also where it was recorded on Windows."""
    if re.match(r"[A-Za-z]:[\\/]|\\\\", path):
        path = path.replace("\\", "/")
    while path.startswith("./"):
        path = path[2:]
    return path


def _common(paths: Iterable[str]) -> list[str]:
    """Return the leading folders that all paths share."""
    folders = [path.split("/")[:-1] for path in paths]
    first, last = min(folders), max(folders)
    count = 0
    while count < min(len(first), len(last)) and first[count] == last[count]:
        count += 1
    return first[:count]


def _real(root: Path) -> str:
    return Path(os.path.realpath(root)).as_posix()
