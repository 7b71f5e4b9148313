"""Parquet files with the bytes of images, as data sets are published, or with their paths.

Bytes stand in a column of binary values, or in one of structs with a field `bytes` (as Hugging Face
writes them). A row is read with its row group, of which the last two are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, Literal, Protocol

from mmsearch.errors import MediaError, MissingExtra, SourceError
from mmsearch.retrieval.pair_formats import CAPTION_COLUMNS, PATH_COLUMNS

__all__ = [
    "ImageColumns",
    "Parquet",
    "has_pictures",
    "image_columns",
    "import_pyarrow",
    "read_paths",
    "read_row",
]

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes", "content")


class Parquet(Protocol):
    """A path, or what else has these of its methods."""

    def open(self, mode: Literal["rb"]) -> AbstractContextManager[Any]:
        """Open it for reading."""

    def stat(self) -> Any:  # noqa: ANN401
        """Return what has `st_size` and `st_mtime_ns`."""


@dataclass(frozen=True, slots=True)
class ImageColumns:
    """Where the pictures are in a Parquet file.

    Attributes:
        image: the column of bytes, or of structs with them.
        captions: the column of captions, if there is one.
        ends: the number of rows up to the end of each row group.
        size: of the file, in bytes.
        mtime_ns: of the file.
    """

    path: Parquet
    image: str
    captions: str | None
    ends: tuple[int, ...]
    size: int
    mtime_ns: int

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return self.ends[-1] if self.ends else 0


def image_columns(path: Parquet) -> ImageColumns | None:
    """Return where the pictures are; None where the file has no column with bytes of images.

    Raises:
        MediaError: it is no Parquet file, or damaged.
        OSError: it cannot be looked at.
        MissingExtra: pyarrow is not installed.
    """
    pyarrow = import_pyarrow()
    status = path.stat()
    try:
        with _opened(path) as opened, pyarrow.parquet.ParquetFile(opened) as file:
            schema, metadata = file.schema_arrow, file.metadata
            image = next(
                (
                    name
                    for name in _by_name(schema, IMAGE_COLUMNS)
                    if _holds_bytes(pyarrow, schema.field(name).type)
                ),
                None,
            )
            if image is None:
                image = next(
                    (
                        one.name
                        for one in schema
                        if pyarrow.types.is_struct(one.type) and _holds_bytes(pyarrow, one.type)
                    ),
                    None,
                )
            if image is None:
                return None
            captions = next(_by_name(schema, CAPTION_COLUMNS), None)
            ends, end = [], 0
            for group in range(metadata.num_row_groups):
                end += metadata.row_group(group).num_rows
                ends.append(end)
    except (ValueError, pyarrow.ArrowException) as error:
        raise MediaError("damaged", f"it is not a Parquet file, or damaged: {error}") from error
    return ImageColumns(path, image, captions, tuple(ends), status.st_size, status.st_mtime_ns)


def has_pictures(path: Path) -> bool:
    """Say whether a Parquet file holds bytes of images.

    Raises:
        SourceError: it is no Parquet file, or cannot be read.
        MissingExtra: pyarrow is not installed.
    """
    try:
        return image_columns(path) is not None
    except (MediaError, OSError) as error:
        raise SourceError(f"{path} cannot be read: {error}.") from error


def read_row(columns: ImageColumns, row: int) -> tuple[bytes | None, list[str]]:
    """Return the bytes and the captions of a row, from 0.

    Raises:
        MediaError: the file cannot be read, or is damaged there.
    """
    group = next(i for i, end in enumerate(columns.ends) if row < end)
    within = row - (columns.ends[group - 1] if group else 0)
    try:
        with _loading:
            images, captions = _row_group(columns, group)
        value = images[within].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        texts = None if captions is None else captions[within].as_py()
    except OSError as error:
        raise MediaError("unreadable", f"{columns.path}: {error}") from error
    except (ValueError, IndexError, import_pyarrow().ArrowException) as error:
        raise MediaError("damaged", f"{columns.path}, row {row}: {error}") from error
    listed = texts if isinstance(texts, list) else [texts]
    return data, [" ".join(text.split()) for text in listed if isinstance(text, str)]


def read_paths(path: Path) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield the path of each row, with its captions.

    Raises:
        SourceError: there is no column of paths, or the file is damaged.
    """
    pyarrow = import_pyarrow()
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            name = next(_by_name(schema, PATH_COLUMNS), None)
            if name is None:
                raise SourceError(
                    f"{path} has neither a column of paths ({PATH_COLUMNS[0]}) nor one with the "
                    f"bytes of images ({IMAGE_COLUMNS[0]}); its columns: {', '.join(schema.names)}."
                )
            captions = next(_by_name(schema, CAPTION_COLUMNS), None)
            wanted = [name] if captions is None else [name, captions]
            for batch in file.iter_batches(columns=wanted):
                for row in batch.to_pylist():
                    texts = row.get(captions) if captions else None
                    listed = texts if isinstance(texts, list) else [texts]
                    if isinstance(row[name], str) and row[name]:
                        yield (
                            row[name],
                            [" ".join(text.split()) for text in listed if isinstance(text, str)],
                        )
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise SourceError(f"{path} is not a Parquet file, or damaged: {error}.") from error


_loading = Lock()
"""Threads that want rows of one group load it once."""


@lru_cache(maxsize=2)
def _row_group(columns: ImageColumns, group: int) -> tuple[Any, Any]:
    names = [columns.image] if columns.captions is None else [columns.image, columns.captions]
    parquet = import_pyarrow().parquet
    with _opened(columns.path) as opened, parquet.ParquetFile(opened) as file:
        table = file.read_row_group(group, columns=names)
    captions = None if columns.captions is None else table.column(columns.captions)
    return table.column(columns.image), captions


def _opened(path: Parquet) -> AbstractContextManager[Any]:
    # Of a file here its own name: pyarrow reads it by itself, faster.
    return nullcontext(path) if isinstance(path, Path) else path.open("rb")


def _by_name(schema: Any, names: Sequence[str]) -> Iterator[str]:  # noqa: ANN401
    by_lower = {name.lower(): name for name in schema.names}
    return (by_lower[name] for name in names if name in by_lower)


def _holds_bytes(pyarrow: Any, type_: Any) -> bool:  # noqa: ANN401
    types = pyarrow.types
    if types.is_struct(type_):
        index = type_.get_field_index("bytes")
        return index >= 0 and _holds_bytes(pyarrow, type_.field(index).type)
    return bool(types.is_binary(type_) or types.is_large_binary(type_))


def import_pyarrow() -> Any:  # noqa: ANN401
    """Return pyarrow with its Parquet part.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "parquet") from error
    return pyarrow
