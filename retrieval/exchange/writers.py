"""Writing vectors and metadata as files of other tools, in blocks: `.npy` and Parquet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch.retrieval.addresses import shown
from mmsearch.retrieval.parquet_files import import_pyarrow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.schema import Picture

__all__ = ["NpyWriter", "TableWriter", "picture_row"]


class NpyWriter:
    """An array of `[n, dim]` on disk that grows at its end; `n` is known only when it is closed."""

    def __init__(self, path: Path, dim: int, dtype: str) -> None:
        """Begin a file of rows of `dim` numbers, as `float16` or `float32`."""
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._dim = dim
        self._rows = 0
        self._file = path.open("wb")
        self._write_header()

    def write(self, rows: NDArray[Any]) -> None:
        """Append `[m, dim]`."""
        self._file.write(np.ascontiguousarray(rows, dtype=self._dtype).tobytes())
        self._rows += len(rows)

    def close(self) -> None:
        """Say in the header how many rows there are, and have all of it on the disk."""
        with self._file as file:
            file.seek(0)
            # Of the same length: NumPy leaves room for the first axis to grow to any size.
            self._write_header()
            file.flush()
            os.fsync(file.fileno())

    def _write_header(self) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._rows, self._dim),
        }
        np.lib.format.write_array_header_1_0(self._file, header)


class TableWriter:
    """A Parquet file of rows about pictures, with or without vectors."""

    def __init__(self, path: Path, columns: Sequence[str], vectors: dict[str, int]) -> None:
        """Begin a file.

        Args:
            path: where to.
            columns: names of `picture_row` to write.
            vectors: dim by the name of each column that holds vectors, as lists of float32: few
                programs read half floats from Parquet, and every one of them is also a float32.
        """
        pyarrow = import_pyarrow()
        types = _types(pyarrow)
        plain = [pyarrow.field(name, types[name]) for name in columns]
        lists = [
            pyarrow.field(name, pyarrow.list_(pyarrow.float32(), dim))
            for name, dim in vectors.items()
        ]
        self._pyarrow = pyarrow
        self._columns = list(columns)
        self._schema = pyarrow.schema(plain + lists)
        self._path = path
        self._writer = pyarrow.parquet.ParquetWriter(path, self._schema, compression="zstd")

    def write(self, rows: Sequence[dict[str, Any]], vectors: dict[str, NDArray[Any]]) -> None:
        """Append rows, with `[n, dim]` vectors by the name of their column."""
        pyarrow = self._pyarrow
        arrays = [
            pyarrow.array([row[name] for row in rows], self._schema.field(name).type)
            for name in self._columns
        ]
        for block in vectors.values():
            flat = pyarrow.array(np.ascontiguousarray(block, dtype=np.float32).reshape(-1))
            arrays.append(pyarrow.FixedSizeListArray.from_arrays(flat, block.shape[1]))
        self._writer.write_table(pyarrow.Table.from_arrays(arrays, schema=self._schema))

    def close(self) -> None:
        """Finish the file and have it on the disk."""
        self._writer.close()
        with self._path.open("rb+") as file:
            os.fsync(file.fileno())


def _types(pyarrow: Any) -> dict[str, Any]:  # noqa: ANN401
    text = pyarrow.string()
    return {
        "image_path": text,
        "caption": text,
        "captions": pyarrow.list_(text),
        "path": text,
        "path_bytes": pyarrow.binary(),
        "sha256": text,
        "format": text,
        "width": pyarrow.int32(),
        "height": pyarrow.int32(),
        "size": pyarrow.int64(),
        "taken_at": pyarrow.timestamp("us"),
        "latitude": pyarrow.float64(),
        "longitude": pyarrow.float64(),
        "camera": text,
    }


def picture_row(picture: Picture, root: Path, captions: list[str]) -> dict[str, Any]:
    r"""Return what the metadata says of one picture; `caption` is the first of `captions`.

    Parquet holds valid text only. In a name that is no valid UTF-8 the odd bytes are spelled
    `\xff`, and `path_bytes` has the name as it is; it is null for all other names.
    """
    name = os.fsencode(picture.path)
    readable = name.decode("utf-8", errors="backslashreplace")
    absolute = os.fsencode(shown(root / picture.path)).decode("utf-8", errors="backslashreplace")
    return {
        "image_path": absolute,
        "caption": captions[0] if captions else None,
        "captions": captions,
        "path": readable,
        "path_bytes": None if readable == picture.path else name,
        "sha256": picture.sha256.hex(),
        "format": picture.format,
        "width": picture.width,
        "height": picture.height,
        "size": picture.size,
        "taken_at": picture.taken_at,
        "latitude": picture.latitude,
        "longitude": picture.longitude,
        "camera": picture.camera,
    }
