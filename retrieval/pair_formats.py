"""The formats of pairs files: TSV, CSV, JSON Lines, Parquet, COCO's JSON and Karpathy's splits."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mmsearch.errors import MissingExtra, SourceError

__all__ = ["CAPTION_COLUMNS", "PATH_COLUMNS", "READERS", "Row"]

PATH_COLUMNS = ("path", "image", "file", "filename", "file_name", "filepath", "image_path")
CAPTION_COLUMNS = ("caption", "captions", "text", "title", "description", "query")


class Row(NamedTuple):
    """What a file says in one place, not yet checked.

    Attributes:
        line: the line, or the number of the record, from 1.
        path: of the picture.
        captions: one, or a list of them.
        split: the part of the set that the picture belongs to, where the file says so.
    """

    line: int
    path: Any
    captions: Any
    split: str | None = None


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
            yield Row(rows.line_num, row[path], row[caption])


def _read_records(records: Iterable[tuple[int, object]], source: Path) -> Iterator[Row]:
    for line, record in records:
        if not isinstance(record, dict):
            raise SourceError(f"{source}, row {line}: an object with path and caption is expected.")
        path, caption = _columns(record, source)
        yield Row(line, record[path], record[caption])


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
    elif _has_splits(document):
        yield from _read_karpathy(document["images"], source)
    else:
        yield from _read_coco(document, source)


def _read_coco(document: Any, source: Path) -> Iterator[Row]:  # noqa: ANN401
    try:
        names = {image["id"]: image["file_name"] for image in document["images"]}
        for line, annotation in enumerate(document["annotations"], 1):
            yield Row(line, names[annotation["image_id"]], annotation["caption"])
    except (KeyError, TypeError) as error:
        raise SourceError(
            f"{source} is neither COCO's captions (images, annotations), nor Karpathy's splits "
            "(images with sentences), nor a list of objects with path and caption: "
            f"{error!r} is missing."
        ) from error


def _has_splits(document: Any) -> bool:  # noqa: ANN401
    images = document.get("images") if isinstance(document, dict) else None
    return isinstance(images, list) and any(
        isinstance(image, dict) and "sentences" in image for image in images[:1]
    )


def _read_karpathy(images: list[Any], source: Path) -> Iterator[Row]:
    """Read `dataset_coco.json`, `dataset_flickr30k.json` or `dataset_flickr8k.json`.

    Karpathy, Fei-Fei: Deep visual-semantic alignments, CVPR 2015.
    """
    for line, image in enumerate(images, 1):
        try:
            name, split = image["filename"], image["split"]
            # Only COCO's pictures lie in several folders.
            path = f"{image['filepath']}/{name}" if image.get("filepath") else name
            captions = [sentence["raw"] for sentence in image["sentences"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise SourceError(
                f"{source}, row {line}: an image with filename, split and sentences, each with its "
                f"raw text, is expected: {error!r}."
            ) from error
        if not isinstance(split, str) or not isinstance(name, str):
            raise SourceError(f"{source}, row {line}: filename and split must be texts.")
        yield Row(line, path, captions, split)


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
                    yield Row(line, row[path], row[caption])
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise SourceError(f"{source} is not a Parquet file, or damaged: {error}.") from error


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".tsv": lambda source: _read_separated(source, tabs=True),
    ".csv": lambda source: _read_separated(source, tabs=False),
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
"""By suffix."""
