"""Pictures inside tar and Parquet files, indexed where they lie."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import mmsearch
from mmsearch.errors import QueryError, SourceError
from mmsearch.retrieval import containers
from mmsearch.retrieval.ingest import index
from mmsearch.retrieval.library import Library
from mmsearch.retrieval.model_change import migrate
from mmsearch.retrieval.tar_files import members, read_stretch
from tests.conftest import COLOURS, ColourEncoder, draw
from tests.test_cli import wait_for_files
from tests.test_ingest import InterruptedEncoder, counts, rows


def jpeg(colour: str, width: int = 48) -> bytes:
    buffer = io.BytesIO()
    image = Image.new("RGB", (width, 32), COLOURS[colour])
    image.paste((60, 60, 60), (width // 2, 16, width, 32))
    image.save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def samples(colours: list[str], start: int = 0) -> dict[str, bytes]:
    files = {}
    for i, colour in enumerate(colours, start):
        files[f"{i:06d}.jpg"] = jpeg(colour, 48 + i)
        files[f"{i:06d}.txt"] = f"a {colour} thing".encode()
        files[f"{i:06d}.json"] = f'{{"caption": "{colour} again"}}'.encode()
    return files


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder with a space in its name, two shards, and a picture beside them."""
    folder = tmp_path / "my shards"
    write_tar(folder / "shard-000.tar", samples(["red", "green", "blue"]))
    write_tar(folder / "below/shard-001.tar", samples(["black", "white"], 3))
    draw(folder / "plain.jpg", "yellow")
    return folder


def problems(folder: Path) -> dict[str, str]:
    library = Library.open(folder)
    try:
        return {problem.path: problem.kind for problem in library.catalog.problems()}
    finally:
        library.close()


def paths(folder: Path) -> list[str]:
    return sorted({os.fsdecode(row[2]) for row in rows(folder)})


def test_pictures_in_tars_are_indexed_with_their_captions(
    shards: Path, encoder: ColourEncoder
) -> None:
    report = index(shards, model=encoder)
    assert counts(report) == (6, 0, 0, 0, 0)
    assert paths(shards) == [
        "below/shard-001.tar/000003.jpg",
        "below/shard-001.tar/000004.jpg",
        "plain.jpg",
        *(f"shard-000.tar/{i:06d}.jpg" for i in range(3)),
    ]
    texts = {(os.fsdecode(row[2]), os.fsdecode(row[14])) for row in rows(shards) if row[14]}
    assert ("shard-000.tar/000001.jpg", "a green thing") in texts
    assert ("below/shard-001.tar/000004.jpg", "white again") in texts
    assert sorted(path.name for path in shards.iterdir()) == [
        ".mmsearch",
        "below",
        "plain.jpg",
        "shard-000.tar",
    ]
    with mmsearch.open(shards, model=encoder) as engine:
        assert engine.search("blue", k=1).hits[0].path == "shard-000.tar/000002.jpg"
        by_picture = engine.search(image=shards / "shard-000.tar/000000.jpg", k=1).hits
        assert by_picture[0].path == "shard-000.tar/000000.jpg"
        assert by_picture[0].score > 0.999
        with pytest.raises(QueryError, match=r"holds no picture 9\.jpg"):
            engine.search(image=shards / "shard-000.tar/9.jpg")


def test_the_vectors_are_those_of_the_same_files_unpacked(
    shards: Path, tmp_path: Path, encoder: ColourEncoder
) -> None:
    index(shards, model=encoder)
    flat = tmp_path / "flat"
    for tar in ("shard-000.tar", "below/shard-001.tar"):
        with tarfile.open(shards / tar) as opened:
            opened.extractall(flat / tar, filter="data")
    shutil.copy2(shards / "plain.jpg", flat)
    index(flat, model=ColourEncoder())
    keep = (2, 3, 5, 6, 7, 8, 13, 14, 15, 16)
    packed, unpacked = ([[row[i] for i in keep] for row in rows(one)] for one in (shards, flat))
    assert packed == unpacked


def test_an_unchanged_tar_is_not_opened_again(
    shards: Path, encoder: ColourEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    index(shards, model=encoder)
    before = rows(shards)

    def never(path: Path) -> None:
        raise AssertionError(f"{path} was opened")

    with monkeypatch.context() as patched:
        patched.setattr("mmsearch.retrieval.scan.list_contents", never)
        report = index(shards, model=encoder)
    assert counts(report) == (0, 0, 6, 0, 0)
    assert rows(shards) == before
    os.utime(shards / "shard-000.tar", ns=(1, 1))
    again = index(shards, model=encoder)
    assert (again.unchanged, again.embedded) == (6, 0)


def test_members_that_change_move_and_go_follow_the_rules_of_files(
    shards: Path, encoder: ColourEncoder
) -> None:
    index(shards, model=encoder)
    (shards / "shard-000.tar").rename(shards / "renamed.tar")
    report = index(shards, model=encoder)
    assert (report.moved, report.embedded, report.removed) == (3, 0, 0)
    # 0 changes, 1 goes, 2 moves out of the tar, 7 is new.
    files = samples(["red", "green", "blue"])
    (shards / "blue.jpg").write_bytes(files["000002.jpg"])
    changed = {
        "000000.jpg": jpeg("white", 99),
        "000000.txt": files["000000.txt"],
        "7.jpg": jpeg("black", 70),
    }
    write_tar(shards / "renamed.tar", changed)
    report = index(shards, model=encoder)
    assert counts(report) == (1, 1, 3, 1, 1)
    assert report.embedded == 2
    (shards / "renamed.tar").unlink()
    assert index(shards, model=encoder).removed == 2
    # The same tar, back again with the same time, is read again.
    shutil.copy2(shards / "below/shard-001.tar", shards / "copy.tar")
    assert index(shards, model=encoder).added == 2
    os.rename(shards / "copy.tar", shards.parent / "aside.tar")  # noqa: PTH104
    assert index(shards, model=encoder).removed == 2
    os.rename(shards.parent / "aside.tar", shards / "copy.tar")  # noqa: PTH104
    assert index(shards, model=encoder).added == 2


def test_a_cut_off_tar_gives_what_it_has_and_a_problem(
    tmp_path: Path, encoder: ColourEncoder
) -> None:
    whole = write_tar(tmp_path / "whole.tar", samples(["red", "green", "blue"]))
    folder = tmp_path / "in"
    folder.mkdir()
    *_, last = (one for one in members(whole) if one.name.endswith(".jpg"))
    cut = folder / "cut.tar"
    cut.write_bytes(whole.read_bytes()[: last.offset + 100])
    report = index(folder, model=encoder)
    assert (report.added, report.problems) == (2, 2)
    expected = {"cut.tar": "truncated", "cut.tar/000002.jpg": "truncated"}
    assert problems(folder) == expected
    # Remembered without reading, tried again when asked, gone when mended.
    report = index(folder, model=encoder)
    assert (report.unchanged, report.problems) == (2, 2)
    assert problems(folder) == expected
    index(folder, model=encoder, retry=True)
    assert problems(folder) == expected
    shutil.copy(whole, cut)
    report = index(folder, model=encoder)
    assert (report.added, report.problems) == (1, 0)


def test_damaged_members_are_problems_of_their_own(tmp_path: Path, encoder: ColourEncoder) -> None:
    files = {
        "a.jpg": jpeg("red"),
        "b.jpg": b"<html>",
        "c.jpg": b"",
        "d.jpg": jpeg("blue")[:300],
        "sub/e.jpg": jpeg("green"),
        "._a.jpg": b"of macOS",
    }
    write_tar(tmp_path / "x.tar", files)
    (tmp_path / "text.tar").write_bytes(b"no tar at all" * 100)
    report = index(tmp_path, model=encoder)
    assert paths(tmp_path) == ["x.tar/a.jpg", "x.tar/sub/e.jpg"]
    assert problems(tmp_path) == {
        "text.tar": "damaged",
        "x.tar/b.jpg": "not-an-image",
        "x.tar/c.jpg": "empty",
        "x.tar/d.jpg": "damaged",
    }
    assert report.problems == 4
    assert index(tmp_path, model=encoder).problems == 4


def test_an_empty_tar_holds_nothing_and_is_no_problem(
    tmp_path: Path, encoder: ColourEncoder
) -> None:
    write_tar(tmp_path / "in/empty.tar", {})
    with pytest.raises(SourceError, match="No pictures were found"):
        index(tmp_path / "in", model=encoder)
    assert not (tmp_path / "in/.mmsearch").exists()
    draw(tmp_path / "in/a.jpg")
    report = index(tmp_path / "in", model=encoder)
    assert (report.files, report.problems) == (1, 0)


def test_a_folder_called_like_a_tar_is_a_folder(tmp_path: Path, encoder: ColourEncoder) -> None:
    draw(tmp_path / "in/odd.tar/a.jpg")
    write_tar(tmp_path / "in/odd.tar/real.tar", samples(["red"]))
    index(tmp_path / "in", model=encoder)
    assert paths(tmp_path / "in") == ["odd.tar/a.jpg", "odd.tar/real.tar/000000.jpg"]
    assert counts(index(tmp_path / "in", model=encoder)) == (0, 0, 2, 0, 0)


def test_another_model_embeds_members_again(shards: Path, encoder: ColourEncoder) -> None:
    index(shards, model=encoder)
    other = ColourEncoder("2")
    change = migrate(shards, model=other)
    assert (change.embedded, change.files, change.switched) == (6, 6, True)
    assert counts(index(shards, model=other)) == (0, 0, 6, 0, 0)


def test_another_model_is_not_switched_to_while_a_container_cannot_be_read(
    shards: Path, encoder: ColourEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    index(shards, model=encoder)
    tar = min(shards.glob("*.tar"))

    def locked(path: Path) -> containers.Contents:
        if path == tar:
            raise PermissionError(13, "Permission denied")
        return list_contents(path)

    list_contents = containers.list_contents
    monkeypatch.setattr(containers, "list_contents", locked)
    change = migrate(shards, model=ColourEncoder("2"))
    assert (change.switched, change.vanished) == (False, 0)
    assert change.unreadable > 0
    monkeypatch.undo()
    change = migrate(shards, model=ColourEncoder("2"))
    assert (change.switched, change.files) == (True, 6)


def test_a_member_that_is_gone_does_not_hinder_a_change_of_model(
    shards: Path, encoder: ColourEncoder
) -> None:
    index(shards, model=encoder)
    tar = min(shards.glob("*.tar"))
    kept = [path for path in paths(shards) if not path.startswith(f"{tar.name}/")]
    write_tar(tar, {})
    change = migrate(shards, model=ColourEncoder("2"))
    assert (change.switched, change.vanished, change.files) == (True, 6 - len(kept), len(kept))


def test_interrupted_in_the_middle_of_a_tar_it_goes_on(
    tmp_path: Path, encoder: ColourEncoder
) -> None:
    colours = list(COLOURS) * 2
    for name in ("one", "other"):
        write_tar(tmp_path / name / "s.tar", samples(colours))
        os.utime(tmp_path / name / "s.tar", ns=(0, 10**18))
    index(tmp_path / "one", model=encoder)
    with pytest.raises(KeyboardInterrupt):
        index(tmp_path / "other", model=InterruptedEncoder(8))
    rest = ColourEncoder()
    report = index(tmp_path / "other", model=rest)
    assert (report.unchanged, report.added, rest.embedded_images) == (8, 4, 4)
    assert rows(tmp_path / "one") == rows(tmp_path / "other")


def test_killed_in_the_middle_of_a_tar_the_next_run_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMSEARCH_BFLOAT16", "0")  # the same to the last bit
    files = {f"{i:03d}.jpg": jpeg(list(COLOURS)[i % 6], 40 + i) for i in range(160)}
    for name in ("one", "other"):
        write_tar(tmp_path / name / "s.tar", files)
        os.utime(tmp_path / name / "s.tar", ns=(0, 10**18))
    command = [str(Path(sys.executable).with_name("mmsearch")), "index"]
    subprocess.run([*command, tmp_path / "one"], check=True, capture_output=True)
    process = subprocess.Popen([*command, tmp_path / "other"], stderr=subprocess.DEVNULL)
    wait_for_files(tmp_path / "other", 32)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run([*command, tmp_path / "other"], check=True, capture_output=True)
    assert rows(tmp_path / "one") == rows(tmp_path / "other")


@settings(max_examples=15, deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,5}(/[a-z0-9 é]{1,120})?\.(jpg|png|txt)", fullmatch=True),
        st.binary(max_size=1500),
        max_size=6,
    ),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_every_member_is_a_stretch_of_its_tar(files: dict[str, bytes], form: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.tar"
        with tarfile.open(path, "w", format=form) as tar:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        found = {one.name: read_stretch(path, one.offset, one.size) for one in members(path)}
        assert found == files
        pictures = containers.list_contents(path).pictures
        assert list(pictures) == [name for name in files if not name.endswith(".txt")]
