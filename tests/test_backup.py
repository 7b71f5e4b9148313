from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from threading import Thread

import pytest
from typer.testing import CliRunner

import mmsearch
from mmsearch.cli import app
from mmsearch.errors import LibraryLocked, LibraryTooNew, SourceError, StorageError
from mmsearch.retrieval.backup import back_up, restore
from mmsearch.retrieval.ingest import index
from mmsearch.retrieval.library import Library
from tests.conftest import ColourEncoder, draw


@pytest.fixture
def library(photos: Path, encoder: ColourEncoder, tmp_path: Path) -> Path:
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("path\tcaption\nblue.jpg\tas blue as it gets\n")
    index(photos, model=encoder, captions=pairs)
    return photos


def asked(library: Path, encoder: ColourEncoder, text: str = "blue") -> list[tuple[str, float]]:
    with mmsearch.open(library, model=encoder) as engine:
        return [(hit.path, hit.score) for hit in engine.search(text, k=9).hits]


def captions(library: Path) -> list[str]:
    with closing(Library.open(library)) as opened:
        return [text for _, _, text in opened.catalog.captions()]


def test_what_is_lost_comes_back(library: Path, encoder: ColourEncoder, tmp_path: Path) -> None:
    before = asked(library, encoder)
    made = back_up(library, tmp_path / "kept.mmsearch")
    assert (made.counts.files, made.counts.captions) == (6, 1)
    assert sorted(p.name for p in tmp_path.glob("kept*")) == ["kept.mmsearch"]
    shutil.rmtree(library / ".mmsearch")
    back = restore(tmp_path / "kept.mmsearch", library)
    assert (back.counts.files, back.set_aside) == (6, None)
    assert asked(library, encoder) == before
    assert captions(library) == ["as blue as it gets"]
    assert index(library, model=encoder).embedded == 0


def test_pictures_may_lie_elsewhere_by_now(
    library: Path, encoder: ColourEncoder, tmp_path: Path
) -> None:
    before = asked(library, encoder)
    back_up(library, tmp_path / "kept")
    shutil.rmtree(library / ".mmsearch")
    moved = library.rename(tmp_path / "moved here")
    restore(tmp_path / "kept", moved)
    assert asked(moved, encoder) == before


def test_what_was_there_is_set_aside_and_a_former_index_is_not_taken_for_its(
    library: Path, encoder: ColourEncoder, tmp_path: Path
) -> None:
    before = asked(library, encoder)
    back_up(library, tmp_path / "kept")
    draw(library / "new.jpg", "yellow", (77, 32))
    index(library, model=encoder)
    assert len(asked(library, encoder)) == 7
    back = restore(tmp_path / "kept", library)
    assert asked(library, encoder) == before
    assert back.set_aside is not None
    with closing(sqlite3.connect(back.set_aside / "catalog.sqlite")) as former:
        assert former.execute("SELECT count(*) FROM file").fetchone() == (7,)
    assert index(library, model=encoder).added == 1


def test_a_backup_is_of_one_state_while_a_writer_is_at_it(
    library: Path, encoder: ColourEncoder, tmp_path: Path
) -> None:
    for number in range(80):
        draw(library / f"more/{number:02}.jpg", "red", (40 + number, 30))
    writer = Thread(target=index, args=(library,), kwargs={"model": encoder})
    writer.start()
    made = [back_up(library, tmp_path / f"{i}") for i in range(10)]
    writer.join()
    for backup in made:
        with closing(sqlite3.connect(backup.file)) as copy:
            assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            (files,) = copy.execute("SELECT count(*) FROM file").fetchone()
            (vectors,) = copy.execute("SELECT count(*) FROM file_vector").fetchone()
            assert files == vectors == backup.counts.files


def test_nothing_of_others_is_overwritten(library: Path, tmp_path: Path) -> None:
    letter = tmp_path / "letter.txt"
    letter.write_text("dear all")
    for force in (False, True):
        with pytest.raises(SourceError):
            back_up(library, letter, force=force)
    assert letter.read_text() == "dear all"
    back_up(library, tmp_path / "kept")
    with pytest.raises(SourceError, match="--force"):
        back_up(library, tmp_path / "kept")
    back_up(library, tmp_path / "kept", force=True)
    with pytest.raises(SourceError, match="own folder"):
        back_up(library, library / ".mmsearch" / "kept")
    with pytest.raises(SourceError, match="no folder"):
        back_up(library, tmp_path / "nowhere" / "kept")


def test_what_is_no_backup_changes_nothing(library: Path, tmp_path: Path) -> None:
    kept = back_up(library, tmp_path / "kept").file
    torn = tmp_path / "torn"
    data = bytearray(kept.read_bytes())
    data[8192:9192] = b"\xff" * 1000
    torn.write_bytes(data)
    before = (library / ".mmsearch" / "catalog.sqlite").read_bytes()
    with pytest.raises(StorageError, match="damaged"):
        restore(torn, library)
    (tmp_path / "text").write_text("no backup")
    for wrong in (tmp_path / "text", tmp_path / "missing", tmp_path):
        with pytest.raises(SourceError, match="no backup"):
            restore(wrong, library)
    with pytest.raises(SourceError, match="no folder"):
        restore(kept, tmp_path / "nowhere")
    with closing(sqlite3.connect(kept)) as copy:
        copy.execute("INSERT INTO migration VALUES ('m999_later', '')")
        copy.commit()
    with pytest.raises(LibraryTooNew):
        restore(kept, library)
    assert (library / ".mmsearch" / "catalog.sqlite").read_bytes() == before
    assert not list((library / ".mmsearch").glob("*restored*"))


def test_a_library_that_is_being_indexed_is_left_alone(library: Path, tmp_path: Path) -> None:
    kept = back_up(library, tmp_path / "kept").file
    with closing(Library.open(library)) as other, other.indexing(), pytest.raises(LibraryLocked):
        restore(kept, library)


def test_the_commands(tmp_path: Path) -> None:
    folder = tmp_path / "some photos"
    draw(folder / "a.jpg")
    runner = CliRunner()
    assert runner.invoke(app, ["index", str(folder)]).exit_code == 0
    kept = str(tmp_path / "kept.mmsearch")
    made = runner.invoke(app, ["backup", kept, "--library", str(folder), "--json"])
    assert made.exit_code == 0
    assert json.loads(made.stdout)["files"] == 1
    assert runner.invoke(app, ["backup", kept, "--library", str(folder)]).exit_code == 1
    back = runner.invoke(app, ["restore", kept, str(folder)])
    assert back.exit_code == 0
    assert "set-aside" in back.stderr
    found = runner.invoke(app, ["query", "red", "--all", "--library", str(folder)])
    assert found.stdout.endswith("a.jpg\n")
    assert runner.invoke(app, ["doctor", str(folder)]).exit_code == 0
