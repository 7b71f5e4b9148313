"""The folder that `clip-retrieval inference` writes, and `mmsearch export` too.

`img_emb/img_emb_N.npy` and `text_emb/text_emb_N.npy` (float16 or float32, `[n, dim]`) with
`metadata/metadata_N.parquet`, whose row i is about row i of the arrays: `image_path`, `caption` and
whatever else (github.com/rom1504/clip-retrieval, `clip_inference/writer.py`). Arrays are mapped,
not read.
"""

from __future__ import annotations

import json
import os
import re
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch.errors import SourceError
from mmsearch.retrieval.exchange.export import MARKER
from mmsearch.retrieval.exchange.recorded import (
    RecordedCaption,
    RecordedPicture,
    VectorSource,
    unit_rows,
)
from mmsearch.retrieval.parquet_files import import_pyarrow

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ClipRetrievalSource"]

COLUMNS = ("image_path", "caption", "captions", "path", "path_bytes", "sha256")


class ClipRetrievalSource(VectorSource):
    """One such folder."""

    kind = "clip-retrieval"

    def __init__(self, path: Path) -> None:
        """Open the folder.

        Raises:
            SourceError: a part is missing or damaged, or parts do not fit together.
            MissingExtra: pyarrow is not installed.
        """
        self.path = path
        import_pyarrow()
        tables = _numbered(path / "metadata", "parquet")
        images = _numbered(path / "img_emb", "npy")
        texts = _numbered(path / "text_emb", "npy")
        if not images:
            raise SourceError(
                f"{path / 'img_emb'} holds no .npy files. Vectors of pictures are needed: export "
                "or embed them too."
            )
        if images.keys() != tables.keys():
            odd = sorted(images.keys() ^ tables.keys())[0]
            raise SourceError(
                f"{path} is incomplete: number {odd} is in only one of img_emb and metadata. Give "
                "the whole folder as it was written."
            )
        self._images = [_array(images[number]) for number in images]
        self._starts = np.cumsum([0, *(len(part) for part in self._images)]).tolist()
        self._texts = [_array(texts[number]) if number in texts else None for number in images]
        self.dim = int(self._images[0].shape[1])
        for file, part in zip(images.values(), self._images, strict=True):
            if part.shape[1] != self.dim:
                raise SourceError(
                    f"{file} has {part.shape[1]} numbers a row, others {self.dim}: they are by "
                    "different models. Import each model's folder by itself."
                )
        self.model = _model(path)
        self.pictures = self._read(list(tables.values()))

    def image_vectors(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """Return `float32[n, dim]` unit rows; one that is damaged is NaN throughout."""
        return unit_rows(self._take(self._images, rows))

    def text_vectors(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """Return `float32[n, dim]` unit rows; one that is damaged is NaN throughout."""
        return unit_rows(self._take(self._texts, rows))

    def close(self) -> None:
        """Unmap the arrays."""
        self._images, self._texts = [], []

    def _take(self, parts: Sequence[Any], rows: Sequence[int]) -> NDArray[Any]:
        taken = np.empty((len(rows), self.dim), dtype=np.float32)
        for i, row in enumerate(rows):
            part = bisect_right(self._starts, row) - 1
            taken[i] = parts[part][row - self._starts[part]]
        return taken

    def _read(self, tables: Sequence[Path]) -> list[RecordedPicture]:
        found: dict[str, RecordedPicture] = {}
        for number, file in enumerate(tables):
            rows = _rows(file)
            expected = len(self._images[number])
            if len(rows) != expected:
                raise SourceError(
                    f"{file} has {len(rows):,} rows, its array {expected:,}: they do not belong "
                    "together. Give the folder as it was written."
                )
            texts = self._texts[number]
            with_vector = len(texts) if texts is not None and texts.shape[1] == self.dim else 0
            for i, row in enumerate(rows):
                at = self._starts[number] + i
                path = _path(row, file, i)
                picture = found.get(path)
                if picture is None:
                    picture = RecordedPicture(path, at, [], sha256=_digest(row))
                    found[path] = picture
                _add_captions(picture, row, at if i < with_vector else None)
        return list(found.values())


def _numbered(folder: Path, ending: str) -> dict[int, Path]:
    """Return the files of a folder by the number at the end of their names, in that order."""
    files = sorted(folder.glob(f"*.{ending}")) if folder.is_dir() else []
    numbers: dict[int, Path] = {}
    for file in files:
        match = re.search(r"(\d+)$", file.stem)
        # A single file needs no number.
        number = int(match[1]) if match else 0
        if number in numbers:
            raise SourceError(f"{file} and {numbers[number].name} have the same number.")
        numbers[number] = file
    return dict(sorted(numbers.items()))


def _array(file: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise SourceError(f"{file} cannot be read as .npy: {error}. Copy it again.") from error
    if array.ndim != 2 or array.dtype.kind != "f" or array.shape[1] < 1:
        raise SourceError(
            f"{file} holds {array.dtype}{list(array.shape)}; vectors are expected, as "
            "float16[n, dim] or float32[n, dim]."
        )
    return array


def _rows(file: Path) -> list[dict[str, Any]]:
    pyarrow = import_pyarrow()
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            names = [name for name in COLUMNS if name in table.schema_arrow.names]
            if "image_path" not in names:
                raise SourceError(
                    f"{file} has no column image_path (its columns: "
                    f"{', '.join(table.schema_arrow.names)}), so nothing says which picture a "
                    "vector is of."
                )
            rows: list[dict[str, Any]] = table.read(columns=names).to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise SourceError(f"{file} is not a Parquet file, or damaged: {error}.") from error
    return rows


def _path(row: dict[str, Any], file: Path, i: int) -> str:
    path = row["image_path"]
    if not isinstance(path, str) or not path:
        raise SourceError(f"{file}, row {i}: image_path is {path!r}, a path was expected.")
    if isinstance(row.get("path_bytes"), bytes) and isinstance(row.get("path"), str):
        # A name that is no valid text, as `export` writes it.
        return path.removesuffix(row["path"]) + os.fsdecode(row["path_bytes"])
    return path


def _digest(row: dict[str, Any]) -> bytes | None:
    with suppress(ValueError, TypeError):
        digest = bytes.fromhex(row.get("sha256") or "")
        return digest if len(digest) == 32 else None
    return None


def _add_captions(picture: RecordedPicture, row: dict[str, Any], vector_row: int | None) -> None:
    more = row.get("captions")
    listed = more if isinstance(more, list) else []
    known = {caption.text: i for i, caption in enumerate(picture.captions)}
    for value, at in ((row.get("caption"), vector_row), *((text, None) for text in listed)):
        if not isinstance(value, str):
            continue
        text = " ".join(value.split())
        if text and text not in known:
            known[text] = len(picture.captions)
            picture.captions.append(RecordedCaption(text, at))
        elif text and at is not None:
            picture.captions[known[text]] = RecordedCaption(text, at)


def _model(folder: Path) -> str | None:
    """Return the model's name where `mmsearch export` left it; clip-retrieval keeps none."""
    with suppress(OSError, ValueError, AttributeError):
        location = json.loads((folder / MARKER).read_text(encoding="utf-8")).get("location")
        return location if isinstance(location, str) else None
    return None
