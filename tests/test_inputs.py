"""Lists of paths, shards by pattern and Parquet files as what to index."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

import mmsearch
from mmsearch.errors import ModelMismatch, SourceError
from mmsearch.retrieval.ingest import index
from mmsearch.retrieval.inputs import read_list
from mmsearch.retrieval.model_change import migrate
from tests.conftest import ColourEncoder, draw
from tests.test_containers import jpeg, paths, problems, samples, write_tar
from tests.test_ingest import counts, rows


def test_a_list_names_exactly_the_files(photos: Path, encoder: ColourEncoder) -> None:
    draw(photos / ".hidden/secret.jpg", "red", (60, 60))
    shutil.copy(photos / "red.jpg", photos / "no ending")
    (photos / "files.txt").write_text(
        "green.jpg\n.hidden/secret.jpg\n\nno ending\ntrip/black.jpg\n"
    )
    report = index(photos / "files.txt", model=encoder)
    assert report.library == photos
    assert paths(photos) == [".hidden/secret.jpg", "green.jpg", "no ending", "trip/black.jpg"]
    assert counts(index(photos / "files.txt", model=encoder)) == (0, 0, 4, 0, 0)


def test_what_a_run_does_not_cover_it_does_not_forget(photos: Path, encoder: ColourEncoder) -> None:
    draw(photos / ".hidden/secret.jpg", "red", (60, 60))
    index(photos, model=encoder)
    some = photos / "some.lst"
    some.write_text("green.jpg\n.hidden/secret.jpg\n")
    report = index(some, model=encoder)
    assert (counts(report), report.files) == ((1, 0, 1, 0, 0), 7)
    # A folder's run leaves alone what only a list can name, until it is gone.
    assert counts(index(photos, model=encoder)) == (0, 0, 6, 0, 0)
    assert ".hidden/secret.jpg" in paths(photos)
    (photos / ".hidden/secret.jpg").unlink()
    (photos / "green.jpg").unlink()
    (photos / "red.jpg").unlink()
    report = index(some, model=encoder)
    assert (report.removed, report.files) == (2, 5)
    assert problems(photos) == {".hidden/secret.jpg": "not-a-file", "green.jpg": "not-a-file"}
    assert "red.jpg" in paths(photos)
    assert index(photos, model=encoder).removed == 1


def test_another_model_loses_nothing_that_a_list_named(
    photos: Path, encoder: ColourEncoder
) -> None:
    draw(photos / ".hidden/secret.jpg", "red", (60, 60))
    (photos / "some.txt").write_text("green.jpg\n.hidden/secret.jpg\n")
    index(photos, model=encoder)
    index(photos / "some.txt", model=encoder)
    other = ColourEncoder("2")
    with pytest.raises(ModelMismatch, match="mmsearch migrate"):
        index(photos / "some.txt", model=other)
    assert migrate(photos, model=other).embedded == 7
    assert len(paths(photos)) == 7


def test_files_themselves_join_the_library_above_them(
    photos: Path, encoder: ColourEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    index(photos, model=encoder)
    new = draw(photos / "trip/new.jpg", "red", (99, 99))
    new.with_suffix(".txt").write_text("a red wall")
    draw(photos / "not named.jpg", "red", (98, 98))
    draw(photos / "green.jpg", "yellow", (97, 97))
    before = encoder.embedded_images
    monkeypatch.chdir(photos)
    report = index([new, "green.jpg", str(new)], model=encoder)
    assert (report.library, report.added, report.updated) == (photos, 1, 1)
    assert (report.files, report.captions) == (7, 1)
    assert encoder.embedded_images == before + 2
    assert "not named.jpg" not in paths(photos)
    new.unlink()
    assert index([new], model=encoder).removed == 1


def test_files_that_are_not_there_make_no_library(tmp_path: Path, encoder: ColourEncoder) -> None:
    with pytest.raises(SourceError, match="None of the 1 files named is there"):
        index([tmp_path / "gone.jpg"], model=encoder)
    with pytest.raises(SourceError, match="No file was named"):
        index([], model=encoder)
    assert not list(tmp_path.iterdir())


def test_a_list_below_a_library_adds_to_it(photos: Path, encoder: ColourEncoder) -> None:
    index(photos, model=encoder)
    draw(photos / "trip/new.jpg", "red", (99, 99))
    (photos / "trip/list.txt").write_text("new.jpg\n")
    report = index(photos / "trip/list.txt", model=encoder)
    assert (report.library, report.added, report.files) == (photos, 1, 7)
    assert not (photos / "trip/.mmsearch").exists()


def test_files_outside_the_root_are_refused(
    photos: Path, tmp_path: Path, encoder: ColourEncoder
) -> None:
    draw(tmp_path / "other/x.jpg")
    listing = tmp_path / "list.txt"
    listing.write_text(f"{photos}/red.jpg\nother/x.jpg\n")
    with pytest.raises(SourceError, match=r"other/x\.jpg lies outside of .*--root"):
        index(listing, root=photos, model=encoder)
    assert not (photos / ".mmsearch").exists()
    assert index(listing, model=encoder).library == tmp_path
    assert paths(tmp_path) == ["my photos/red.jpg", "other/x.jpg"]
    with pytest.raises(SourceError, match="leave --root away"):
        index(photos, root=tmp_path, model=encoder)
    listing.write_text("\n\n")
    with pytest.raises(SourceError, match="names no files"):
        index(listing, model=encoder)


@pytest.mark.parametrize("separator", [b"\0", b"\n", b"\r\n"])
def test_standard_input_gives_paths_of_any_bytes(
    separator: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [b"a b.jpg", b"sub/c.jpg"] + ([b"r\xe4d.jpg"] if sys.platform == "linux" else [])
    content = separator.join(names) + separator
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    monkeypatch.chdir(tmp_path)
    listed = read_list(Path("-"))
    assert listed is not None
    assert sorted(listed.files) == sorted(tmp_path / os.fsdecode(name) for name in names)


def test_json_lines_and_parquet_bring_captions_along(photos: Path, encoder: ColourEncoder) -> None:
    lines = [
        json.dumps({"image_path": "red.jpg", "caption": ["one red", "two  red"]}),
        json.dumps("green.jpg"),
    ]
    (photos / "list.jsonl").write_text("\n".join(lines))
    report = index(photos / "list.jsonl", model=encoder)
    assert (report.files, report.captions) == (2, 2)
    table = pa.table({"path": ["trip/black.jpg", "red.jpg"], "caption": ["night", None]})
    parquet.write_table(table, photos / "more.parquet")
    report = index(photos / "more.parquet", model=encoder)
    assert (report.added, report.files, report.captions) == (1, 3, 3)
    with mmsearch.open(photos, model=encoder) as engine:
        hits = engine.search("red", to="captions", k=9).hits
        assert {(hit.path, hit.caption) for hit in hits} == {
            ("red.jpg", "one red"),
            ("red.jpg", "two red"),
            ("trip/black.jpg", "night"),
        }
    (photos / "bad.jsonl").write_text("{}\n")
    with pytest.raises(SourceError, match="line 1: a path"):
        index(photos / "bad.jsonl", model=encoder)


def test_shards_by_pattern_are_what_the_folder_holds(
    tmp_path: Path, encoder: ColourEncoder
) -> None:
    for name in ("one", "other"):
        for number in range(3):
            write_tar(tmp_path / name / f"{number:03d}.tar", samples(["red", "blue"], 2 * number))
            os.utime(tmp_path / name / f"{number:03d}.tar", ns=(0, 10**18))
    index(tmp_path / "one", model=encoder)
    report = index(f"{tmp_path}/other/{{000..002}}.tar", model=ColourEncoder())
    assert (report.added, report.library) == (6, tmp_path / "other")
    assert rows(tmp_path / "one") == rows(tmp_path / "other")
    # One of them speaks for itself alone.
    (tmp_path / "other/000.tar").unlink()
    report = index(tmp_path / "other/001.tar", model=encoder)
    assert (counts(report), report.files) == ((0, 0, 2, 0, 0), 6)
    with pytest.raises(SourceError, match=r"no shard .*000\.tar"):
        index(f"{tmp_path}/other/{{000..002}}.tar", model=encoder)


def write_parquet(path: Path, colours: list[str | None], *, structs: bool, group: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [None if one is None else jpeg(one, 40 + i) for i, one in enumerate(colours)]
    column = [{"bytes": image, "path": None} for image in images] if structs else images
    table = pa.table({"image": column, "caption": [f"a {one}" for one in colours]})
    parquet.write_table(table, path, row_group_size=group)
    return path


@pytest.mark.parametrize("structs", [True, False])
def test_rows_of_a_parquet_file_are_pictures(
    structs: bool, tmp_path: Path, encoder: ColourEncoder
) -> None:
    colours = ["red", "green", "blue", "white"] * 3
    file = write_parquet(tmp_path / "in/part-0.parquet", colours, structs=structs)
    report = index(tmp_path / "in", model=encoder)
    assert (report.added, report.embedded, report.captions) == (12, 12, 12)
    # As they are stored, not as their numbers sort as text.
    table = rows(tmp_path / "in")
    by_id = [os.fsdecode(path) for _, path in sorted({(row[0], row[2]) for row in table})]
    assert by_id == [f"part-0.parquet/{i}" for i in range(12)]
    texts = {os.fsdecode(row[2]): row[14] for row in rows(tmp_path / "in")}
    assert texts["part-0.parquet/10"] == "a blue"
    with mmsearch.open(tmp_path / "in", model=encoder) as engine:
        hits = engine.search(image=f"{file}/11", k=1).hits
        assert hits[0].score > 0.999
        assert hits[0].path in {"part-0.parquet/3", "part-0.parquet/7", "part-0.parquet/11"}
    again = index(file, model=encoder)
    assert (counts(again), again.library) == ((0, 0, 12, 0, 0), tmp_path / "in")


def test_bad_rows_and_bad_parquet_files_are_problems(
    tmp_path: Path, encoder: ColourEncoder
) -> None:
    write_parquet(tmp_path / "a.parquet", ["red", None, "blue"], structs=True)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and no more")
    parquet.write_table(pa.table({"n": [1]}), tmp_path / "numbers.parquet")
    report = index(tmp_path, model=encoder)
    assert report.added == 2
    assert problems(tmp_path) == {"a.parquet/1": "empty", "b.parquet": "damaged"}
    with pytest.raises(SourceError, match="neither a column of paths"):
        index(tmp_path / "numbers.parquet", model=encoder)
