"""What `export` writes, read back with NumPy and pyarrow alone."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsearch.errors import LibraryNotFound, SourceError
from mmsearch.retrieval.exchange import export, writers
from mmsearch.retrieval.exchange.export import MARKER, export_library
from mmsearch.retrieval.ingest import index
from tests.conftest import COLOURS, ColourEncoder, draw

CAPTIONS = {"trip/black": ["black night", "a cave"], "red": ["red"], "white": ["white snow"]}


@pytest.fixture
def library(photos: Path, encoder: ColourEncoder) -> Path:
    for name, lines in CAPTIONS.items():
        (photos / f"{name}.txt").write_text("\n".join(lines))
    index(photos, model=encoder)
    return photos


def stored(library: Path) -> dict[str, bytes]:
    """The stored vector of every picture, by path."""
    statement = "SELECT path, vector FROM file JOIN file_vector ON file_id = file.id ORDER BY path"
    with closing(sqlite3.connect(library / ".mmsearch" / "catalog.sqlite")) as connection:
        return dict(connection.execute(statement).fetchall())


def test_pictures_come_out_in_clip_retrieval_s_layout_bit_for_bit(
    library: Path, tmp_path: Path
) -> None:
    report = export_library(library, tmp_path / "out")
    out = tmp_path / "out"
    assert report.files == (
        "images/images_0.parquet",
        "img_emb/img_emb_0.npy",
        "metadata/metadata_0.parquet",
    )
    vectors = np.load(out / "img_emb/img_emb_0.npy", mmap_mode="r", allow_pickle=False)
    assert vectors.dtype == np.float16
    table = parquet.read_table(out / "metadata/metadata_0.parquet").to_pylist()
    expected = stored(library)
    assert [row["path"] for row in table] == list(expected)
    assert [row.tobytes() for row in vectors] == list(expected.values())
    for row in table:
        assert row["image_path"] == str(library / row["path"])
        name = row["path"].removesuffix(".jpg")
        assert row["captions"] == CAPTIONS.get(name, [])
        assert row["caption"] == (CAPTIONS.get(name) or [None])[0]
        assert row["height"] == 32
        assert row["width"] == 48 + list(COLOURS).index(name.rpartition("/")[2])
        assert row["path_bytes"] is None
    embedded = parquet.read_table(out / "images/images_0.parquet")
    assert embedded.column("path").to_pylist() == list(expected)
    as_lists = np.array(embedded.column("embedding").to_pylist(), dtype=np.float32)
    assert np.array_equal(as_lists, vectors.astype(np.float32))
    said = json.loads((out / MARKER).read_text())
    assert (said["rows"], said["dim"], said["location"]) == (6, 13, "colour")
    assert (said["image_path"], said["path"]) == ("absolute", "relative to the library")


def test_all_keeps_rows_aligned_as_far_as_texts_reach(
    library: Path, tmp_path: Path, encoder: ColourEncoder
) -> None:
    report = export_library(library, tmp_path / "out", what="all", dtype="float32")
    assert (report.rows, report.images, report.captions) == (7, 7, 4)
    out = tmp_path / "out"
    images = np.load(out / "img_emb/img_emb_0.npy")
    texts = np.load(out / "text_emb/text_emb_0.npy")
    rows = parquet.read_table(out / "metadata/metadata_0.parquet").to_pylist()
    assert images.dtype == texts.dtype == np.float32
    assert [row["caption"] for row in rows[:4]] == ["red", "black night", "a cave", "white snow"]
    assert all(row["caption"] is None for row in rows[4:])
    again = encoder.encode_texts([row["caption"] for row in rows[:4]])
    assert np.allclose(texts, again, atol=1e-3)
    pictures = encoder.encode_images([row["image_path"] for row in rows])
    assert np.allclose(images, pictures, atol=1e-3)
    captions = parquet.read_table(out / "captions/captions_0.parquet")
    assert captions.column("caption").to_pylist() == [row["caption"] for row in rows[:4]]


def test_captions_alone(library: Path, tmp_path: Path) -> None:
    report = export_library(library, tmp_path / "out", what="captions", format="npy")
    assert report.files == ("metadata/metadata_0.parquet", "text_emb/text_emb_0.npy")
    assert (report.rows, report.images, report.captions) == (4, 0, 4)


def test_more_rows_than_a_file_takes_go_on_in_the_next(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = export_library(library, tmp_path / "whole", what="all", format="npy")
    monkeypatch.setattr(export, "ROWS_PER_FILE", 3)
    monkeypatch.setattr(export, "ROWS_PER_BLOCK", 2)
    parts = export_library(library, tmp_path / "parts", what="all", format="npy")
    assert parts.files == (
        *(f"img_emb/img_emb_{i}.npy" for i in range(3)),
        *(f"metadata/metadata_{i}.parquet" for i in range(3)),
        *(f"text_emb/text_emb_{i}.npy" for i in range(2)),
    )
    for kind in ("img_emb", "text_emb"):
        files = sorted((tmp_path / "parts" / kind).iterdir())
        joined = np.concatenate([np.load(file) for file in files])
        assert np.array_equal(joined, np.load(tmp_path / "whole" / kind / f"{kind}_0.npy"))
    rows = [
        row
        for file in sorted((tmp_path / "parts/metadata").iterdir())
        for row in parquet.read_table(file).to_pylist()
    ]
    assert rows == parquet.read_table(tmp_path / "whole" / whole.files[1]).to_pylist()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets any bytes be a name")
def test_a_name_that_is_no_text_is_told_exactly(tmp_path: Path, encoder: ColourEncoder) -> None:
    odd = os.fsdecode(b"r\xe4d.jpg")
    draw(tmp_path / "in" / odd, "red")
    draw(tmp_path / "in" / "plain.jpg", "blue")
    index(tmp_path / "in", model=encoder)
    export_library(tmp_path / "in", tmp_path / "out")
    rows = parquet.read_table(tmp_path / "out/metadata/metadata_0.parquet").to_pylist()
    by_path = {row["path"]: row for row in rows}
    assert by_path["r\\xe4d.jpg"]["path_bytes"] == b"r\xe4d.jpg"
    assert by_path["r\\xe4d.jpg"]["image_path"].endswith("/in/r\\xe4d.jpg")
    assert by_path["plain.jpg"]["path_bytes"] is None


def test_a_former_export_is_replaced_and_nothing_else(library: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_library(library, out, what="all")
    export_library(library, out, format="npy")
    names = sorted(path.name for path in out.iterdir())
    assert names == ["img_emb", "metadata", MARKER]
    (out / "index.faiss").write_text("of another tool")
    with pytest.raises(SourceError, match=r"index\.faiss"):
        export_library(library, out)
    assert (out / "index.faiss").read_text() == "of another tool"
    with pytest.raises(SourceError, match="holds something else"):
        export_library(library, library)
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceError, match="no folder"):
        export_library(library, tmp_path / "file")
    (tmp_path / "empty").mkdir()
    export_library(library, tmp_path / "empty")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_fails_halfway_leaves_nothing_behind(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writers.NpyWriter, "write", full)
    with pytest.raises(OSError, match="No space left"):
        export_library(library, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [library.name]


def test_nothing_to_export_is_said(tmp_path: Path, photos: Path, encoder: ColourEncoder) -> None:
    with pytest.raises(LibraryNotFound):
        export_library(photos, tmp_path / "out")
    index(photos, model=encoder)
    with pytest.raises(SourceError, match="no captions to export"):
        export_library(photos, tmp_path / "out", what="captions")
    assert not (tmp_path / "out").exists()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=5), st.sampled_from(["float16", "float32"]))
def test_an_array_that_grew_is_what_numpy_itself_would_have_saved(
    blocks: list[int], dtype: str
) -> None:
    random = np.random.default_rng(len(blocks))
    parts = [random.normal(size=(n, 7)).astype(dtype) for n in blocks]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.npy"
        writer = writers.NpyWriter(path, 7, dtype)
        for part in parts:
            writer.write(part)
        writer.close()
        whole = np.concatenate([np.empty((0, 7), dtype), *parts])
        assert np.array_equal(np.load(path), whole)
        np.save(Path(folder) / "b.npy", whole)
        assert path.read_bytes() == (Path(folder) / "b.npy").read_bytes()


def test_without_pyarrow_the_extra_is_named(library: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "import mmsearch\n"
        "from mmsearch.errors import MissingExtra\n"
        f"try: mmsearch.export_library({str(library)!r}, {str(tmp_path / 'out')!r})\n"
        "except MissingExtra as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'pip install "mmsearch[parquet]"' in done.stdout
    assert not (tmp_path / "out").exists()
