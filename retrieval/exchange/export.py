"""A library's vectors and metadata as a folder of files that other tools read.

    OUT/
      mmsearch-export.json          what this is: model, dim, what the columns mean
      img_emb/img_emb_0.npy         float16[n, dim], unit rows
      text_emb/text_emb_0.npy
      metadata/metadata_0.parquet   row i is about row i of the arrays of the same number
      images/images_0.parquet       the same rows with the vector as a column
      captions/captions_0.parquet

The arrays and their metadata are laid out as clip-retrieval does
(github.com/rom1504/clip-retrieval, `clip_inference/writer.py`), so its index, its service and
whatever else reads its output take them as they are. Everything is streamed from one state of the
catalog, a block at a time.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch import __version__
from mmsearch.errors import SourceError
from mmsearch.retrieval.exchange.writers import NpyWriter, TableWriter, picture_row
from mmsearch.retrieval.library import Library
from mmsearch.retrieval.parquet_files import import_pyarrow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.catalog.snapshot import Snapshot, StoredPicture

__all__ = ["MARKER", "ExportReport", "Format", "What", "export_library"]

MARKER = "mmsearch-export.json"
"""Says that a folder was written here, and may be replaced."""

FOLDERS = ("img_emb", "text_emb", "metadata", "images", "captions")
ROWS_PER_FILE = 1_000_000
ROWS_PER_BLOCK = 4096

CAPTIONED = ("caption", "captions")
FACTS = (
    *("path", "path_bytes", "sha256", "format", "width", "height", "size"),
    *("taken_at", "latitude", "longitude", "camera"),
)


class What(StrEnum):
    """Which vectors to write."""

    IMAGES = "images"
    CAPTIONS = "captions"
    ALL = "all"


class Format(StrEnum):
    """Which files to write them as."""

    PARQUET = "parquet"
    NPY = "npy"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        library: the folder of pictures; `image_path` of the metadata begins with it.
        folder: where the files are.
        files: their names below it, sorted.
        rows: rows of the metadata.
        images: rows with a picture's vector; as many as rows unless only captions were asked for.
        captions: rows with a caption's vector; they come first.
    """

    library: Path
    folder: Path
    model: str
    dim: int
    what: What
    format: Format
    dtype: str
    files: tuple[str, ...]
    rows: int
    images: int
    captions: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the object that `export --json` prints."""
        return {
            "schema": 1,
            "library": str(self.library),
            "folder": str(self.folder),
            "model": self.model,
            "dim": self.dim,
            "what": self.what.value,
            "format": self.format.value,
            "dtype": self.dtype,
            "image_path": "absolute",
            "path": "relative to the library",
            "files": list(self.files),
            "rows": self.rows,
            "images": self.images,
            "captions": self.captions,
            "seconds": round(self.seconds, 3),
        }


def export_library(
    library: Path | str,
    folder: Path | str,
    *,
    what: What | str = What.IMAGES,
    format: Format | str = Format.BOTH,
    dtype: str = "float16",
    progress: Callable[[str, int, int], None] | None = None,
) -> ExportReport:
    """Write a library's vectors and metadata into a new folder, which appears whole or not at all.

    `images` writes a row a picture, `captions` a row a caption, `all` a row a caption with both
    vectors, and then a row for each picture without a caption, which has no text vector: as far as
    `text_emb` reaches, row i of everything is the same sample. Rows are in the order of paths.
    Vectors are the encoder's own: what `tune` learned is not applied.

    Args:
        library: the folder that was indexed.
        folder: where to; a former export there is replaced.
        what: which vectors.
        format: `.npy` in clip-retrieval's layout, Parquet with a column of vectors, or both.
        dtype: of the arrays: `float16`, as they are stored, or `float32`.
        progress: called with stage, done and total.

    Raises:
        SourceError: `folder` holds something else, or there is nothing to export.
        LibraryNotFound: the library was never indexed.
        MissingExtra: pyarrow is not installed.
        ValueError: `what`, `format` or `dtype` is none of those named here.
    """
    started = time.perf_counter()
    what, format = What(what), Format(format)
    if dtype not in {"float16", "float32"}:
        raise ValueError(f"dtype is 'float16' or 'float32', not {dtype!r}")
    import_pyarrow()
    # Through links: what a link points to is replaced, not the link.
    target = Path(os.path.realpath(os.path.expanduser(folder)))  # noqa: PTH111
    _refuse_foreign(target)
    opened = Library.open(Path(library))
    try:
        row = opened.catalog.library()
        encoder_id, spec = opened.active_encoder(row)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
        part.mkdir()
        try:
            with opened.catalog.snapshot() as snapshot:
                if not snapshot.counts(encoder_id)[what is What.CAPTIONS]:
                    raise SourceError(
                        f"The library at {opened.root} has no {what.value} to export."
                    )
                export = _Export(part, opened.root, what, format, dtype, spec.dim)
                export.run(snapshot, encoder_id, progress or (lambda *_: None))
            report = ExportReport(
                library=opened.root,
                folder=target,
                model=spec.label,
                dim=spec.dim,
                what=what,
                format=format,
                dtype=dtype,
                files=tuple(sorted(export.files)),
                rows=export.rows,
                images=export.images,
                captions=export.captions,
                seconds=time.perf_counter() - started,
            )
            document = report.to_json() | {
                "mmsearch": __version__,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "location": row.model,
                "encoder": asdict(spec),
            }
            (part / MARKER).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
            _replace(target, part)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return report
    finally:
        opened.close()


class _Export:
    """The files of one export while they are written."""

    def __init__(
        self,
        folder: Path,
        root: Path,
        what: What,
        format: Format,
        dtype: str,
        dim: int,
    ) -> None:
        self._folder, self._root = folder, root
        self._what = what
        self._format = format
        self._dtype, self._dim = dtype, dim
        self._digits = 1
        self._open: dict[str, NpyWriter | TableWriter] = {}
        self._in_file = 0
        self._number = 0
        self.files: list[str] = []
        self.rows = 0
        self.images = 0
        self.captions = 0

    def run(
        self, snapshot: Snapshot, encoder_id: int, progress: Callable[[str, int, int], None]
    ) -> None:
        """Write everything; the progress is that of rows."""
        pictures, captions = snapshot.counts(encoder_id)
        most = {What.IMAGES: pictures, What.CAPTIONS: captions, What.ALL: pictures + captions}
        total = most[self._what]
        # Tools sort the files by name: 00, 01 … where there are more than ten.
        self._digits = len(str(max(0, (total - 1) // ROWS_PER_FILE)))
        with ExitStack() as files:
            files.callback(self._close)
            for rows, images, texts in self._blocks(snapshot, encoder_id):
                self._write(rows, images, texts)
                progress("rows", self.rows, max(total, self.rows))
        progress("rows", self.rows, self.rows)

    def _blocks(
        self, snapshot: Snapshot, encoder_id: int
    ) -> Iterator[tuple[list[dict[str, Any]], NDArray[Any] | None, NDArray[Any] | None]]:
        """Yield rows of metadata with their `[n, dim]` vectors, of pictures and of captions."""
        if self._what is not What.IMAGES:
            yield from self._caption_blocks(snapshot, encoder_id)
        if self._what is not What.CAPTIONS:
            captioned = None if self._what is What.IMAGES else False
            for block in snapshot.pictures(encoder_id, self._dim, captioned=captioned):
                rows = [self._row(one) for one in block]
                yield rows, np.stack([one.vector for one in block]), None

    def _caption_blocks(
        self, snapshot: Snapshot, encoder_id: int
    ) -> Iterator[tuple[list[dict[str, Any]], NDArray[Any] | None, NDArray[Any] | None]]:
        for block in snapshot.pictures(encoder_id, self._dim, captioned=True):
            rows, images, texts = [], [], []
            for one in block:
                facts = self._row(one)
                for text, vector in one.captions:
                    if vector is not None:
                        rows.append(facts | {"caption": text})
                        images.append(one.vector)
                        texts.append(vector)
            with_images = self._what is What.ALL
            for start in range(0, len(rows), ROWS_PER_BLOCK):
                part = slice(start, start + ROWS_PER_BLOCK)
                pictures = np.stack(images[part]) if with_images else None
                yield rows[part], pictures, np.stack(texts[part])

    def _row(self, stored: StoredPicture) -> dict[str, Any]:
        return picture_row(stored.picture, self._root, [text for text, _ in stored.captions])

    def _write(
        self, rows: list[dict[str, Any]], images: NDArray[Any] | None, texts: NDArray[Any] | None
    ) -> None:
        while rows:
            if self._in_file == ROWS_PER_FILE:
                self._close()
                self._number += 1
            room = ROWS_PER_FILE - self._in_file
            self._write_part(
                rows[:room],
                None if images is None else images[:room],
                None if texts is None else texts[:room],
            )
            rows = rows[room:]
            images = None if images is None else images[room:]
            texts = None if texts is None else texts[room:]

    def _write_part(
        self, rows: list[dict[str, Any]], images: NDArray[Any] | None, texts: NDArray[Any] | None
    ) -> None:
        arrays = {
            name: vectors
            for name, vectors in (("img_emb", images), ("text_emb", texts))
            if vectors is not None
        }
        if self._format is not Format.PARQUET:
            for name, vectors in arrays.items():
                self._array(name).write(vectors)
            self._table("metadata", {}).write(rows, {})
        if self._format is not Format.NPY:
            for name, vectors in arrays.items():
                table = {"img_emb": "images", "text_emb": "captions"}[name]
                self._table(table, {"embedding": self._dim}).write(rows, {"embedding": vectors})
        self._in_file += len(rows)
        self.rows += len(rows)
        self.images += 0 if images is None else len(rows)
        self.captions += 0 if texts is None else len(rows)

    def _array(self, folder: str) -> NpyWriter:
        if folder not in self._open:
            self._open[folder] = NpyWriter(self._path(folder, "npy"), self._dim, self._dtype)
        writer = self._open[folder]
        assert isinstance(writer, NpyWriter)
        return writer

    def _table(self, folder: str, vectors: dict[str, int]) -> TableWriter:
        if folder not in self._open:
            columns = ("image_path", *CAPTIONED, *FACTS)
            self._open[folder] = TableWriter(self._path(folder, "parquet"), columns, vectors)
        writer = self._open[folder]
        assert isinstance(writer, TableWriter)
        return writer

    def _path(self, folder: str, ending: str) -> Path:
        name = f"{folder}/{folder}_{self._number:0{self._digits}d}.{ending}"
        self.files.append(name)
        (self._folder / folder).mkdir(exist_ok=True)
        return self._folder / name

    def _close(self) -> None:
        writers, self._open = self._open, {}
        self._in_file = 0
        with ExitStack() as files:
            for writer in writers.values():
                files.callback(writer.close)


def _refuse_foreign(folder: Path) -> None:
    """Raise where an export cannot take the place of what is at `folder`."""
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise SourceError(f"{folder} is no folder. Name a folder to make for the export.")
    names = {entry.name for entry in os.scandir(folder)}
    foreign = sorted(names - {MARKER, *FOLDERS}) if MARKER in names else sorted(names)
    if foreign:
        raise SourceError(
            f"{folder} holds something else ({foreign[0]}), which an export would replace. Name a "
            "new or empty folder."
        )


def _replace(folder: Path, part: Path) -> None:
    if not folder.exists():
        part.rename(folder)
        return
    # What was put there since this began is nobody's to delete.
    _refuse_foreign(folder)
    former = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.former")
    folder.rename(former)
    part.rename(folder)
    shutil.rmtree(former)
