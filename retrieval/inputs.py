"""What to index besides a folder: shards by name or pattern, and lists of paths.

A list names exactly the files that a run is about. It speaks for these alone: whatever else the
library holds stays as it is.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from errno import ELOOP, ENOENT, ENOTDIR
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

from mmsearch.errors import SourceError
from mmsearch.retrieval.addresses import address_of
from mmsearch.retrieval.captions import sidecar_names
from mmsearch.retrieval.containers import CONTAINER_SUFFIXES
from mmsearch.retrieval.pair_formats import CAPTION_COLUMNS, PATH_COLUMNS
from mmsearch.retrieval.parquet_files import has_pictures, read_paths
from mmsearch.retrieval.scan import FoundFile, Scan, sidecar_fingerprint, size_and_time
from mmsearch.retrieval.tar_files import TAR_ENDINGS, expand_pattern

__all__ = ["STANDARD_INPUT", "Listed", "list_of", "read_list", "scan_listed"]

STANDARD_INPUT = "-"
JSON_LINES = (".jsonl", ".ndjson")
LISTS = (".txt", ".lst", *JSON_LINES)


@dataclass(slots=True)
class Listed:
    """The files that a run is about.

    Attributes:
        files: absolute paths, each once.
        captions: (absolute path, caption), where the list gives any.
    """

    files: list[Path] = field(default_factory=list)
    captions: list[tuple[str, str]] = field(default_factory=list)

    @property
    def common_folder(self) -> Path:
        """The folder that all of them lie in."""
        return Path(os.path.commonpath([file.parent for file in self.files]))


def read_list(source: Path) -> Listed | None:
    """Return the files that `source` names; None where it is no list, but a folder or nothing.

    `-` reads paths from standard input, separated by NULs or line ends, and `.txt` and `.lst` the
    same from a file. `.jsonl` holds a path a line, or an object with `path` and perhaps `caption`;
    `.parquet` a column of paths and perhaps one of captions. Relative paths start from the list's
    folder, or from the working directory for standard input. A tar file, a Parquet file with the
    bytes of images, or a pattern of tar files names itself.

    Raises:
        SourceError: it cannot be read, or names nothing.
        MissingExtra: a Parquet file, and pyarrow is not installed.
    """
    suffix = source.suffix.lower()
    if str(source) == STANDARD_INPUT:
        rows, beside = _separated(sys.stdin.buffer.read()), Path.cwd()
    elif os.path.isdir(source):  # noqa: PTH112 (says no where Path raises)
        return None
    elif str(source).lower().endswith(TAR_ENDINGS) or (
        suffix == ".parquet" and os.path.isfile(source) and has_pictures(source)  # noqa: PTH113
    ):
        files = [source] if suffix == ".parquet" else expand_pattern(source)
        rows, beside = iter([(os.path.abspath(file), []) for file in files]), Path.cwd()  # noqa: PTH100
    elif suffix in (*LISTS, ".parquet") and os.path.isfile(source):  # noqa: PTH113
        rows, beside = _rows(source), source.absolute().parent
    else:
        return None
    listed = _listed(rows, beside)
    if not listed.files:
        raise SourceError(f"{source} names no files. Give one path a line.")
    return listed


def list_of(files: Sequence[Path]) -> Listed:
    """Return the files that a program names, as `read_list` does those of a list.

    Raises:
        SourceError: it names none.
    """
    if not files:
        raise SourceError("No file was named. Give the folder that holds the pictures, or files.")
    return _listed(((str(file), ()) for file in files), Path.cwd())


def scan_listed(root: Path, listed: Listed) -> Scan:
    """Look at the files of a list, as `scan` does at those of a folder.

    Raises:
        SourceError: one of them lies outside of `root`.
    """
    found = Scan()
    for file in listed.files:
        if not file.is_relative_to(root):
            raise SourceError(
                f"{file} lies outside of {root}. A library's pictures lie in one folder: name one "
                "that holds all of them with --root, or leave it out of the list."
            )
        _look_at(file, file.relative_to(root).as_posix(), found)
    found.files = dict(sorted(found.files.items()))
    found.covered = frozenset(file.relative_to(root).as_posix() for file in listed.files)
    return found


def _look_at(file: Path, path: str, found: Scan) -> None:
    """Add to a scan what is at `file`, which it calls `path`."""
    try:
        status = file.stat()
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno not in {ENOENT, ELOOP, ENOTDIR}:
            found.unreadable[path] = error.strerror or type(error).__name__
        else:
            found.unusable[path] = "it is listed, but there is no such file"
        return
    if S_ISDIR(status.st_mode):
        found.unusable[path] = "it is a folder: list the files in it, or index it by itself"
    elif not S_ISREG(status.st_mode):
        found.unusable[path] = "not an ordinary file"
    elif file.suffix.lower() in CONTAINER_SUFFIXES or file.name.lower().endswith(TAR_ENDINGS):
        found.containers[path] = size_and_time(status)
    else:
        beside = {name: file.with_name(name) for name in sidecar_names(file.name)}
        sidecars = sidecar_fingerprint(file.name, beside)
        found.files[path] = FoundFile(*size_and_time(status), sidecars)


def _listed(rows: Iterable[tuple[str, Sequence[str]]], beside: Path) -> Listed:
    listed = Listed()
    seen: dict[str, None] = {}
    for path, captions in rows:
        if address_of(path) is not None and "://" in path:
            raise SourceError(
                f"{path} is an address in a list of files, which holds paths of this machine. "
                "Index a folder of an object store by itself: mmsearch index s3://bucket/photos"
            )
        absolute = os.path.abspath(beside / path)  # noqa: PTH100
        seen.setdefault(absolute)
        listed.captions += [(absolute, text) for text in captions]
    listed.files = [Path(path) for path in sorted(seen)]
    return listed


def _rows(source: Path) -> Iterator[tuple[str, Sequence[str]]]:
    if source.suffix.lower() == ".parquet":
        return read_paths(source)
    try:
        content = source.read_bytes()
    except OSError as error:
        raise SourceError(f"{source} cannot be read: {error.strerror}.") from error
    if source.suffix.lower() in JSON_LINES:
        return _json_lines(content, source)
    return _separated(content.removeprefix(b"\xef\xbb\xbf"))


def _separated(content: bytes) -> Iterator[tuple[str, Sequence[str]]]:
    parts = content.split(b"\0") if b"\0" in content else content.splitlines()
    return ((os.fsdecode(part), ()) for part in parts if part.strip())


def _json_lines(content: bytes, source: Path) -> Iterator[tuple[str, Sequence[str]]]:
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{source}, line {number}, is not valid JSON: {error}.") from error
        fields: dict[str, Any] = row if isinstance(row, dict) else {"path": row}
        path = next((fields[name] for name in PATH_COLUMNS if fields.get(name)), None)
        if not isinstance(path, str):
            raise SourceError(f"{source}, line {number}: a path, or an object with path, expected.")
        value: Any = next((fields[name] for name in CAPTION_COLUMNS if fields.get(name)), [])
        texts = value if isinstance(value, list) else [value]
        yield path, [" ".join(text.split()) for text in texts if isinstance(text, str) and text]
