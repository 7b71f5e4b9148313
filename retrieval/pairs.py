"""Pairs of a picture and a caption: reading files of them, and finding the pictures they mean."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from unicodedata import normalize

from mmsearch.errors import SourceError
from mmsearch.retrieval.pair_formats import READERS, Row

__all__ = ["Locator", "Pair", "find_picture", "locate_all", "read_pairs"]

Place = TypeVar("Place")


@dataclass(frozen=True, slots=True)
class Pair:
    """A picture and one caption of it.

    Attributes:
        path: as the file writes it.
        caption: never empty.
        line: where the pair stands: the line, or the number of the record, from 1.
    """

    path: str
    caption: str
    line: int


def read_pairs(source: Path, split: str | None = None, *, default: str | None = None) -> list[Pair]:
    """Read the pairs of a file; the suffix says which format it has.

    `.tsv` (no quoting) and `.csv` have a header with a column named `path` (or `image`,
    `filename` …) and one named `caption` (or `text`, `title` …); more columns are ignored.
    `.jsonl` holds one object a line with the same names, `.parquet` the same columns, `.json`
    COCO's `images` and `annotations`, Karpathy's splits of Flickr8k, Flickr30k or COCO (whose
    paths are `filepath/filename`), or a list of such objects.

    Args:
        source: the file.
        split: take only this part of a file with splits: `train`, `val`, `test` … `train` takes
            COCO's `restval` along, as is usual. All of the file when not given.
        default: the split of a file that has splits where `split` is not given.

    Raises:
        SourceError: the file is missing, has another format, lacks a column or the split, or a
            row has no caption; the message names the row.
        MissingExtra: a Parquet file, and pyarrow is not installed.
    """
    try:
        reader = READERS[source.suffix.lower()]
    except KeyError:
        known = ", ".join(sorted(READERS))
        raise SourceError(
            f"{source} has an ending that is not known: captions are read from {known}."
        ) from None
    if not os.path.isfile(source):  # noqa: PTH113 (says no where Path raises)
        raise SourceError(f"There is no captions file {source}. Check the path.")
    try:
        pairs = [
            Pair(_path(row, source), caption, row.line)
            for row in _of_split(list(reader(source)), split, default, source)
            for caption in _texts(row, source)
        ]
    except UnicodeDecodeError as error:
        raise SourceError(f"{source} is not UTF-8 text: {error}. Save it as UTF-8.") from error
    except OSError as error:
        raise SourceError(f"{source} cannot be read: {error.strerror}.") from error
    except csv.Error as error:
        raise SourceError(f"{source} cannot be read as {source.suffix}: {error}.") from error
    if not pairs:
        raise SourceError(f"{source} holds no pairs of a picture and a caption.")
    return pairs


def _of_split(rows: list[Row], split: str | None, default: str | None, source: Path) -> list[Row]:
    present = sorted({row.split for row in rows if row.split is not None})
    if split is not None and not present:
        raise SourceError(f"{source} has no splits to choose '{split}' from: leave the split away.")
    wanted = split or (default if present else None)
    if wanted is None:
        return rows
    parts = {"train", "restval"} if wanted == "train" else {wanted}
    if parts.isdisjoint(present):
        raise SourceError(
            f"{source} has no split '{wanted}'. Choose one that it has: {', '.join(present)}."
        )
    return [row for row in rows if row.split in parts]


def _path(row: Row, source: Path) -> str:
    if not isinstance(row.path, str) or not row.path.strip():
        raise SourceError(f"{source}, row {row.line}: the path is empty. Name a picture.")
    return row.path


def _texts(row: Row, source: Path) -> Iterator[str]:
    captions = row.captions
    for text in captions if isinstance(captions, (list, tuple)) else [captions]:
        # JSON can spell half a character (a lone surrogate), which no database stores.
        whole = text.encode(errors="replace").decode() if isinstance(text, str) else ""
        clean = " ".join(whole.split())
        if not clean:
            raise SourceError(
                f"{source}, row {row.line}: the caption is empty. Give it a text or delete the row."
            )
        yield clean


def find_picture(folders: Sequence[Path], path: str) -> Path | None:
    """Return the file that a row's path means in the first of `folders` that has it, or None."""
    for folder in folders:
        # As it is written, or written on Windows.
        for name in (path, path.replace("\\", "/")):
            # `Path.is_file` raises for absurd names, such as a caption in the column of paths.
            if os.path.isfile(folder / name):  # noqa: PTH113
                return folder / name
    return None


def locate_all(
    paths: Iterable[str], locate: Callable[[str], Place | None]
) -> dict[str, Place | None]:
    """Return the place of every path that `locate` knows, None for the others.

    Where it knows none of them, the pictures are looked for by their bare names: sets like COCO
    are often unpacked into one folder. All or nothing, and only where the names are distinct, so
    that no picture is ever taken for another one that is missing.
    """
    places = {path: locate(path) for path in paths}
    if all(place is None for place in places.values()):
        names = {path: path.replace("\\", "/").rpartition("/")[2] for path in places}
        if len(set(names.values())) == len(names):
            return {path: locate(name) for path, name in names.items()}
    return places


class Locator:
    """Finds the picture of a library that a row of a pairs file means.

    Names are compared in Unicode's composed form: macOS lists them decomposed, people type them
    composed.
    """

    def __init__(self, root: Path, beside: Path, ids: Mapping[str, int]) -> None:
        """Take the library's root, the pairs file's folder, and every picture's id by path."""
        self._root = root
        self._beside = beside
        self._ids = {normalize("NFC", path): id_ for path, id_ in ids.items()}
        self._by_name: dict[str, list[str]] = {}
        for path in self._ids:
            self._by_name.setdefault(path.rpartition("/")[2], []).append(path)

    def __call__(self, path: str) -> int | None:
        """Return the id of the picture at `path`, or None.

        The path may be relative to the library, absolute, or relative to the pairs file; failing
        these it means the one picture whose whole path ends with it, if exactly one does.
        """
        plain = normalize("NFC", path.replace("\\", "/")).removeprefix("./")
        if plain in self._ids:
            return self._ids[plain]
        absolute = Path(os.path.normpath(self._beside / plain))
        if absolute.is_relative_to(self._root):
            inside = absolute.relative_to(self._root).as_posix()
            if inside in self._ids:
                return self._ids[inside]
        root = normalize("NFC", self._root.as_posix())
        named = self._by_name.get(plain.rpartition("/")[2], [])
        ending = [inside for inside in named if f"{root}/{inside}".endswith(f"/{plain}")]
        return self._ids[ending[0]] if len(ending) == 1 else None
