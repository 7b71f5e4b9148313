"""Files of (picture, caption) pairs: TSV, CSV, JSON Lines, Parquet and COCO's JSON."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unicodedata import normalize

from mmsearch.errors import MissingExtra, SourceError

__all__ = ["Locator", "Pair", "read_pairs"]

PATH_COLUMNS = ("path", "image", "file", "filename", "file_name", "filepath", "image_path")
CAPTION_COLUMNS = ("caption", "captions", "text", "title", "description")


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


def read_pairs(source: Path) -> list[Pair]:
    """Read every pair of a file; the suffix says which format it has.

    `.tsv` (no quoting) and `.csv` have a header with a column named `path` (or `image`,
    `filename` …) and one named `caption` (or `text`, `title` …); more columns are ignored.
    `.jsonl` holds one object a line with the same names, `.parquet` the same columns, `.json`
    COCO's `images` and `annotations`, or a list of such objects.

    Raises:
        SourceError: the file is missing, has another format, lacks a column, or a row has no
            caption; the message names the row.
        MissingExtra: a Parquet file, and pyarrow is not installed.
    """
    try:
        reader = _READERS[source.suffix.lower()]
    except KeyError:
        known = ", ".join(sorted(_READERS))
        raise SourceError(
            f"{source} has an ending that is not known: captions are read from {known}."
        ) from None
    if not os.path.isfile(source):  # noqa: PTH113 (says no where Path raises)
        raise SourceError(f"There is no captions file {source}. Check the path.")
    try:
        pairs = [
            Pair(_path(path, source, line), caption, line)
            for line, path, captions in reader(source)
            for caption in _texts(captions, source, line)
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


Row = tuple[int, Any, Any]


def _path(path: object, source: Path, line: int) -> str:
    if not isinstance(path, str) or not path.strip():
        raise SourceError(f"{source}, row {line}: the path is empty. Name a picture.")
    return path


def _texts(captions: object, source: Path, line: int) -> Iterator[str]:
    for text in captions if isinstance(captions, (list, tuple)) else [captions]:
        # JSON can spell half a character (a lone surrogate), which no database stores.
        whole = text.encode(errors="replace").decode() if isinstance(text, str) else ""
        clean = " ".join(whole.split())
        if not clean:
            raise SourceError(
                f"{source}, row {line}: the caption is empty. Give it a text or delete the row."
            )
        yield clean


def _columns(names: Iterable[str], source: Path) -> tuple[str, str]:
    present = list(names)
    by_lower = {name.strip().lower(): name for name in present}
    found = []
    for wanted in (PATH_COLUMNS, CAPTION_COLUMNS):
        column = next((by_lower[name] for name in wanted if name in by_lower), None)
        if column is None:
            raise SourceError(
                f"{source} has no column '{wanted[0]}' (its columns: {', '.join(present)}). "
                f"The first line must name the columns path and caption."
            )
        found.append(column)
    return found[0], found[1]


def _read_separated(source: Path, *, tabs: bool) -> Iterator[Row]:
    with source.open(encoding="utf-8-sig", newline="") as file:
        # TSV has no quoting: a quotation mark in a caption is just a character.
        rows = (
            csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(file)
        )
        header = next(rows, [])
        columns = _columns(header, source)
        path, caption = (header.index(name) for name in columns)
        for row in rows:
            if not row:
                continue
            if len(row) <= max(path, caption):
                raise SourceError(
                    f"{source}, line {rows.line_num}: {len(row)} columns, {len(header)} were "
                    "expected."
                )
            yield rows.line_num, row[path], row[caption]


def _read_records(records: Iterable[tuple[int, object]], source: Path) -> Iterator[Row]:
    for line, record in records:
        if not isinstance(record, dict):
            raise SourceError(f"{source}, row {line}: an object with path and caption is expected.")
        path, caption = _columns(record, source)
        yield line, record[path], record[caption]


def _parse(text: str, where: str) -> Any:  # noqa: ANN401
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where} is not valid JSON: {error}.") from error


def _read_json_lines(source: Path) -> Iterator[Row]:
    with source.open(encoding="utf-8-sig") as file:
        lines = (
            (n, _parse(line, f"{source}, row {n},"))
            for n, line in enumerate(file, 1)
            if line.strip()
        )
        yield from _read_records(lines, source)


def _read_json(source: Path) -> Iterator[Row]:
    document = _parse(source.read_text(encoding="utf-8-sig"), str(source))
    if isinstance(document, list):
        yield from _read_records(enumerate(document, 1), source)
        return
    try:
        names = {image["id"]: image["file_name"] for image in document["images"]}
        for line, annotation in enumerate(document["annotations"], 1):
            yield line, names[annotation["image_id"]], annotation["caption"]
    except (KeyError, TypeError) as error:
        raise SourceError(
            f"{source} is neither COCO's captions (images, annotations) nor a list of objects with "
            f"path and caption: {error!r} is missing."
        ) from error


def _read_parquet(source: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "parquet") from error
    try:
        with parquet.ParquetFile(source) as table:
            path, caption = _columns(table.schema_arrow.names, source)
            line = 0
            for batch in table.iter_batches(columns=[path, caption]):
                for row in batch.to_pylist():
                    line += 1
                    yield line, row[path], row[caption]
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise SourceError(f"{source} is not a Parquet file, or damaged: {error}.") from error


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".tsv": lambda source: _read_separated(source, tabs=True),
    ".csv": lambda source: _read_separated(source, tabs=False),
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".parquet": _read_parquet,
}


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
