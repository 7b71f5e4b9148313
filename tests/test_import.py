"""Vectors of clip-retrieval and rclip, made on the spot by open_clip's own path, taken over."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

import mmsearch
from mmsearch.errors import ModelMismatch, SourceError
from mmsearch.retrieval.exchange.adoption import import_library
from mmsearch.retrieval.exchange.export import export_library
from mmsearch.retrieval.exchange.places import Places, common_folder
from mmsearch.retrieval.ingest import index
from mmsearch.retrieval.library import Library
from mmsearch.retrieval.scan import FoundFile
from tests.conftest import COLOURS, ColourEncoder, draw
from tests.test_ingest import InterruptedEncoder, rows

PICTURES = [f"trip/{i}.jpg" if i % 3 == 0 else f"{i}.png" for i in range(12)]


def write_pictures(folder: Path) -> Path:
    random = np.random.default_rng(0)
    for i, name in enumerate(PICTURES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        small = random.integers(0, 255, (5, 7, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize((90 + i, 64), Image.Resampling.BICUBIC)
        image.save(folder / name, quality=95)
    return folder


class Tool:
    """open_clip as the other tools call it: its own transform, tokenizer and towers."""

    def __init__(self, folder: Path) -> None:
        import open_clip
        import torch

        from tests.checkpoints import OPEN_CLIP, write_open_clip

        self._torch = torch
        self.location = f"open_clip:local-dir:{folder}"
        self._model = write_open_clip(folder)
        self._transform = open_clip.image_transform(
            OPEN_CLIP["vision_cfg"]["image_size"],
            is_train=False,
            mean=open_clip.OPENAI_DATASET_MEAN,
            std=open_clip.OPENAI_DATASET_STD,
        )
        self._tokenizer = open_clip.get_tokenizer("ViT-B-32")

    def images(self, paths: list[Path]) -> np.ndarray:
        batch = self._torch.stack([self._transform(Image.open(path)) for path in paths])
        with self._torch.inference_mode():
            return self._model.encode_image(batch, normalize=True).numpy()

    def texts(self, texts: list[str]) -> np.ndarray:
        with self._torch.inference_mode():
            return self._model.encode_text(self._tokenizer(texts), normalize=True).numpy()


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Tool:
    pytest.importorskip("open_clip")
    return Tool(tmp_path_factory.mktemp("models") / "tiny")


def write_clip_retrieval(
    folder: Path, recorded: list[str], images: np.ndarray, texts: dict | None = None, parts: int = 1
) -> Path:
    """Write what clip_retrieval/clip_inference/writer.py writes, partition by partition."""
    (folder / "metadata").mkdir(parents=True)
    for number, which in enumerate(np.array_split(np.arange(len(recorded)), parts)):
        columns = {"image_path": [recorded[i] for i in which]}
        arrays = {"img_emb": images}
        if texts is not None:
            columns["caption"] = [texts["captions"][i] for i in which]
            arrays["text_emb"] = texts["vectors"]
        columns["width"] = [1] * len(which)
        for name, array in arrays.items():
            (folder / name).mkdir(exist_ok=True)
            np.save(folder / name / f"{name}_{number}.npy", array[which].astype(np.float16))
        parquet.write_table(pa.table(columns), folder / "metadata" / f"metadata_{number}.parquet")
    return folder


def write_rclip(path: Path, photos: list[Path], vectors: np.ndarray, version: int | None) -> Path:
    """Write what rclip/db.py writes."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            "CREATE TABLE images (id INTEGER PRIMARY KEY, deleted BOOLEAN, filepath TEXT NOT NULL "
            "UNIQUE, modified_at DATETIME NOT NULL, size INTEGER NOT NULL, vector BLOB NOT NULL)"
        )
        connection.execute("CREATE TABLE db_version (version INTEGER)")
        if version is not None:
            connection.execute("ALTER TABLE images ADD COLUMN indexing BOOLEAN")
            connection.execute("INSERT INTO db_version(version) VALUES (?)", (version,))
        for photo, vector in zip(photos, vectors, strict=True):
            status = photo.stat()
            connection.execute(
                "INSERT INTO images(filepath, modified_at, size, vector) VALUES (?, ?, ?, ?)",
                (str(photo), status.st_mtime, status.st_size, vector.astype("<f4").tobytes()),
            )
        connection.commit()
    return path


def vectors_of(library: Path) -> dict[str, np.ndarray]:
    opened = Library.open(library)
    with closing(opened):
        encoder_id, spec = opened.active_encoder(opened.catalog.library())
        with opened.catalog.snapshot() as snapshot:
            return {
                one.picture.path: one.vector.astype(np.float32)
                for block in snapshot.pictures(encoder_id, spec.dim)
                for one in block
            }


def test_clip_retrieval_s_folder_becomes_a_library_that_answers(tmp_path: Path, tool: Tool) -> None:
    photos = write_pictures(tmp_path / "my photos")
    paths = [photos / name for name in PICTURES]
    captions = [f"caption  number {i}\n" for i in range(len(PICTURES))]
    source = write_clip_retrieval(
        tmp_path / "embeddings",
        [str(path) for path in paths],
        tool.images(paths),
        {"captions": captions, "vectors": tool.texts(captions)},
        parts=3,
    )
    report = import_library(source, model=tool.location)
    assert (report.library, report.taken, report.missing) == (photos, 12, [])
    assert (report.checked, report.captions, report.caption_vectors) == (8, 12, 12)
    assert report.lowest_cosine is not None
    assert report.lowest_cosine > 0.999
    # As good as embedded here: an oracle library, made by indexing a copy.
    copy = write_pictures(tmp_path / "copy")
    index(copy, model=tool.location)
    expected = vectors_of(copy)
    taken = vectors_of(photos)
    assert taken.keys() == expected.keys()
    assert all(taken[path] @ expected[path] > 0.999 for path in taken)
    again = index(photos)
    assert (again.unchanged, again.embedded) == (12, 0)
    with mmsearch.open(photos) as engine:
        hits = engine.search(image=photos / PICTURES[5], k=1).hits
        assert [hit.path for hit in hits] == [PICTURES[5]]
        (hit,) = engine.search("caption number 7", to="captions", k=1).hits
        assert (hit.path, hit.caption) == (PICTURES[7], "caption number 7")


@pytest.mark.parametrize("version", [None, 2])
def test_rclip_s_database_is_taken_over_but_for_what_changed(
    tmp_path: Path, tool: Tool, version: int | None
) -> None:
    photos = write_pictures(tmp_path / "photos")
    paths = [photos / name for name in PICTURES]
    elsewhere = draw(tmp_path / "elsewhere" / "x.jpg")
    database = write_rclip(
        tmp_path / "db.sqlite3",
        [*paths, elsewhere],
        tool.images([*paths, elsewhere]),
        version,
    )
    with closing(sqlite3.connect(database)) as connection:
        connection.execute(
            "INSERT INTO images(filepath, modified_at, size, vector) "
            "SELECT filepath || '.gone.jpg', modified_at, size, vector FROM images LIMIT 1"
        )
        connection.execute("UPDATE images SET deleted = 1 WHERE filepath = ?", (str(paths[1]),))
        damaged = np.full(24, np.nan, dtype="<f4").tobytes()
        connection.execute(
            "UPDATE images SET vector = ? WHERE filepath = ?", (damaged, str(paths[2]))
        )
        connection.commit()
    before = database.read_bytes()
    os.utime(paths[4], ns=(0, 0))
    report = import_library(database, model=tool.location, root=photos)
    assert (report.recorded, report.taken) == (13, 9)
    assert (report.outside, report.changed, report.damaged) == (1, 1, 1)
    assert len(report.missing) == 1
    assert report.missing[0].endswith(".gone.jpg")
    assert database.read_bytes() == before
    # `index` embeds what the source did not have: deleted, changed and damaged ones.
    rest = index(photos)
    assert (rest.added, rest.embedded, rest.unchanged) == (3, 3, 9)


def test_rclip_s_model_follows_from_its_version(tmp_path: Path, monkeypatch) -> None:
    from mmsearch.retrieval.exchange import adoption

    photos = write_pictures(tmp_path / "photos")
    paths = [photos / name for name in PICTURES]
    asked = []

    def load(name: str) -> ColourEncoder:
        asked.append(name)
        return ColourEncoder()

    monkeypatch.setattr(adoption, "load_encoder", load)
    for version in (None, 1, 2, 3):
        database = tmp_path / f"{version}.sqlite3"
        write_rclip(database, paths, ColourEncoder().encode_images(paths), version)
        import_library(database)
    assert asked == [
        *["open_clip:ViT-B-32-quickgelu/openai"] * 3,
        "open_clip:ViT-B-32-256/datacomp_s34b_b86k",
    ]
    write_rclip(tmp_path / "9.sqlite3", paths, np.ones((12, 13)), 9)
    with pytest.raises(SourceError, match="does not say which model"):
        import_library(tmp_path / "9.sqlite3")


def test_another_model_s_vectors_are_refused_and_nothing_is_left(
    tmp_path: Path, tool: Tool
) -> None:
    from tests.checkpoints import write_open_clip

    photos = write_pictures(tmp_path / "photos")
    paths = [photos / name for name in PICTURES]
    recorded = [str(path) for path in paths]
    random = np.random.default_rng(1).normal(size=(12, 24))
    source = write_clip_retrieval(tmp_path / "other", recorded, random)
    with pytest.raises(ModelMismatch, match=r"8 of 8 vectors .* --unchecked"):
        import_library(source, model=tool.location)
    write_open_clip(tmp_path / "wide", {"embed_dim": 32})
    with pytest.raises(ModelMismatch, match=r"have 24 numbers, .* makes 32"):
        import_library(source, model=f"open_clip:local-dir:{tmp_path / 'wide'}")
    with pytest.raises(SourceError, match="does not say which model"):
        import_library(source)
    assert not (photos / ".mmsearch").exists()
    report = import_library(source, model=tool.location, unchecked=True)
    assert (report.taken, report.checked, report.lowest_cosine) == (12, 0, None)


def test_a_library_of_another_encoder_is_left_alone(
    tmp_path: Path, photos: Path, encoder: ColourEncoder
) -> None:
    index(photos, model=ColourEncoder("2"))
    before = rows(photos)
    paths = sorted(photos.rglob("*.jpg"))
    source = write_clip_retrieval(
        tmp_path / "out", [str(path) for path in paths], encoder.encode_images(paths)
    )
    with pytest.raises(ModelMismatch, match="was built with colour@2"):
        import_library(source, model=encoder)
    assert rows(photos) == before


def test_what_lies_on_its_side_elsewhere_is_left_to_be_embedded(tmp_path: Path, tool: Tool) -> None:
    photos = write_pictures(tmp_path / "photos")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = photos / "turned.jpg"
    Image.open(photos / PICTURES[0]).save(turned, exif=exif)
    paths = [*(photos / name for name in PICTURES), turned]
    source = write_clip_retrieval(
        tmp_path / "out", [str(path) for path in paths], tool.images(paths)
    )
    report = import_library(source, model=tool.location)
    assert (report.taken, report.turned) == (12, 1)
    assert index(photos).added == 1


def test_the_round_trip_through_export_gives_the_same_catalog(
    tmp_path: Path, photos: Path, encoder: ColourEncoder
) -> None:
    (photos / "red.txt").write_text("red thing\nanother")
    if sys.platform == "linux":
        draw(photos / os.fsdecode(b"r\xe4d.jpg"), "red", (31, 17))
    index(photos, model=encoder)
    original = rows(photos)
    export_library(photos, tmp_path / "out", what="all", format="npy")
    (photos / ".mmsearch").rename(tmp_path / "old")
    fresh = ColourEncoder()
    report = import_library(tmp_path / "out", model=fresh)
    assert report.missing == []
    # Captions stand twice now, once for their side-car and once for the import.
    taken = [row for row in rows(photos) if row[15] != "file:out"]
    without_ids = [[row[2:] for row in table] for table in (original, taken)]
    assert sorted(without_ids[0], key=repr) == sorted(without_ids[1], key=repr)
    assert fresh.embedded_images <= 8
    assert report.caption_vectors == 4
    assert report.to_json()["lowest_cosine"] >= 0.999


def test_a_moved_folder_and_windows_paths_are_matched_as_one(
    tmp_path: Path, photos: Path, encoder: ColourEncoder
) -> None:
    paths = sorted(photos.rglob("*.jpg"))
    names = [path.relative_to(photos).as_posix() for path in paths]
    for i, prefix in enumerate(["/old/disk/photos/", "D:\\Photos\\", "", "./"]):
        separator = "\\" if ":" in prefix else "/"
        recorded = [prefix + name.replace("/", separator) for name in names]
        source = write_clip_retrieval(
            tmp_path / f"out{i}",
            [*recorded, f"{prefix}gone.jpg"],
            np.concatenate([encoder.encode_images(paths), np.ones((1, 13))]),
        )
        report = import_library(source, model=encoder, root=photos)
        assert report.taken + report.present == 6, prefix
        assert report.missing == [f"{prefix}gone.jpg"]


def test_places_never_take_a_picture_for_another_of_its_name(tmp_path: Path) -> None:
    file = FoundFile(1, 1, "")
    # Only `a/x.jpg` is there; the other `x.jpg` must not be found at its place.
    place = Places(tmp_path, {"a/x.jpg": file, "a/y.jpg": file}, ["/o/a/x.jpg", "/o/b/x.jpg"])
    assert place("/o/a/x.jpg") == "a/x.jpg"
    assert place("/o/b/x.jpg") == "b/x.jpg"
    # As soon as one lies in the folder, those outside are outside.
    inside = f"{tmp_path.as_posix()}/x.jpg"
    place = Places(tmp_path, {"x.jpg": file}, [inside, "/o/x.jpg"])
    assert (place(inside), place("/o/x.jpg")) == ("x.jpg", None)
    # Recorded decomposed, listed composed.
    place = Places(tmp_path, {"\u00e9.jpg": file}, [f"{tmp_path.as_posix()}/e\u0301.jpg"])
    assert place(f"{tmp_path.as_posix()}/e\u0301.jpg") == "\u00e9.jpg"


def test_the_common_folder_must_exist_and_be_more_than_the_disk(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert common_folder([f"{tmp_path}/a/x.jpg", f"{tmp_path}/a/b/y.jpg"]) == tmp_path / "a"
    assert common_folder([f"{tmp_path}/a/x.jpg", f"{tmp_path}/ab/y.jpg"]) == tmp_path
    with pytest.raises(SourceError, match="nothing in common"):
        common_folder(["/a/x.jpg", "/b/y.jpg"])
    with pytest.raises(SourceError, match="no such folder here"):
        common_folder(["/nowhere/at/all/x.jpg"])


def test_an_interrupted_import_goes_on(
    tmp_path: Path, photos: Path, encoder: ColourEncoder, monkeypatch
) -> None:
    from mmsearch.retrieval.catalog import Transaction

    paths = sorted(photos.rglob("*.jpg"))
    source = write_clip_retrieval(
        tmp_path / "out", [str(path) for path in paths], encoder.encode_images(paths)
    )
    put, count = Transaction.put_file, 0

    def stop(self, *arguments) -> int:
        nonlocal count
        count += 1
        if count == 6:
            raise KeyboardInterrupt
        return put(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Transaction, "put_file", stop)
        with pytest.raises(KeyboardInterrupt):
            import_library(source, model=encoder)
    report = import_library(source, model=encoder)
    # A batch of this encoder is four pictures.
    assert (report.present, report.taken) == (4, 2)
    expected = sorted(path.relative_to(photos).as_posix() for path in paths)
    assert list(vectors_of(photos)) == expected
    assert import_library(source, model=encoder).present == 6
    assert InterruptedEncoder(0).spec == encoder.spec


def test_broken_sources_are_said(tmp_path: Path, photos: Path, encoder: ColourEncoder) -> None:
    def refused(source: Path) -> str:
        with pytest.raises(SourceError) as caught:
            import_library(source, model=encoder)
        return str(caught.value)

    recorded = [str(photos / f"{colour}.jpg") for colour in COLOURS]
    ones = np.ones((6, 13))
    assert "nothing at" in refused(tmp_path / "no")
    assert "neither the output folder" in refused(photos)
    short = write_clip_retrieval(tmp_path / "short", recorded, ones)
    np.save(short / "img_emb/img_emb_0.npy", ones[:5])
    assert "6 rows, its array 5" in refused(short)
    np.save(short / "img_emb/img_emb_0.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert "cannot be read as .npy" in refused(short)
    np.save(short / "img_emb/img_emb_0.npy", np.ones(6))
    assert "float64[6]" in refused(short)
    extra = write_clip_retrieval(tmp_path / "extra", recorded, ones, parts=2)
    (extra / "metadata/metadata_1.parquet").unlink()
    assert "number 1 is in only one" in refused(extra)
    (extra / "img_emb/img_emb_1.npy").unlink()
    (extra / "metadata/metadata_0.parquet").write_bytes(b"PAR1")
    assert "not a Parquet file" in refused(extra)
    database = tmp_path / "other.sqlite3"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE notes (text)")
        connection.commit()
    assert "database of rclip" in refused(database)
    keys = write_clip_retrieval(tmp_path / "keys", ["000000001", "000000002"], np.ones((2, 13)))
    with pytest.raises(SourceError, match="keys of WebDataset"):
        import_library(keys, model=encoder, root=photos)


def test_the_command_says_what_it_took_and_what_is_missing(tmp_path: Path) -> None:
    from tests.test_cli import json_of, run

    photos = tmp_path / "my photos"
    for colour in ("red", "blue"):
        draw(photos / f"{colour}.jpg", colour, (320, 240))
    run("index", photos)
    run("export", tmp_path / "out", "--library", photos)
    (photos / ".mmsearch").rename(tmp_path / "old")
    (photos / "red.jpg").unlink()
    done = run("import", tmp_path / "out")
    assert "1 of 2 pictures taken over" in done.stderr
    assert f"1 are missing: {photos / 'red.jpg'}" in done.stderr
    assert "recorded as compact@" in done.stderr
    report = json_of("import", tmp_path / "out", "--model", "compact")
    assert (report["schema"], report["present"], report["taken"]) == (1, 1, 0)
    assert report["missing_files"] == [str(photos / "red.jpg")]
    assert json_of("query", "blue", "--library", photos)["results"][0]["path"] == "blue.jpg"
    assert "nothing at" in run("import", tmp_path / "no", code=1).stderr


def test_no_torch_where_the_model_needs_none(tmp_path: Path, photos: Path) -> None:
    index(photos)
    export_library(photos, tmp_path / "out")
    code = (
        "import mmsearch, sys, json\n"
        f"report = mmsearch.import_library({str(tmp_path / 'out')!r})\n"
        "print(json.dumps([report.present, 'torch' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [6, False]
