"""A library that is damaged in each way that a disk, a crash or a hand can damage it."""

from __future__ import annotations

import json
import os
import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

import mmsearch
from mmsearch.cli import app
from mmsearch.retrieval.doctor import Diagnosis, examination, examine
from mmsearch.retrieval.doctor.finding import Part
from mmsearch.retrieval.ingest import index
from mmsearch.retrieval.library import Library
from tests.conftest import ColourEncoder, draw


@pytest.fixture
def library(photos: Path, encoder: ColourEncoder, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library with captions, whose encoder can be found again."""
    for name in ("red", "blue"):
        next(photos.rglob(f"{name}.jpg")).with_suffix(".txt").write_text(f"all {name}")
    index(photos, model=encoder)
    monkeypatch.setattr(examination, "load_encoder", lambda _: encoder)
    return photos


def statements(library: Path, *lines: str) -> None:
    with closing(sqlite3.connect(library / ".mmsearch" / "catalog.sqlite")) as connection:
        for line in lines:
            connection.execute(line)
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def rows(library: Path, statement: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(library / ".mmsearch" / "catalog.sqlite")) as connection:
        connection.text_factory = bytes
        return connection.execute(statement).fetchall()


def contents(library: Path) -> list[list[tuple[object, ...]]]:
    """Everything a catalog says of pictures and captions, whatever the keys."""
    return [
        rows(
            library,
            "SELECT path, sha256, width, vector FROM file JOIN file_vector ON file_id = id "
            "ORDER BY path",
        ),
        rows(
            library,
            "SELECT path, text, source, vector FROM caption JOIN file ON file.id = file_id "
            "JOIN caption_vector ON caption_id = caption.id ORDER BY path, text",
        ),
    ]


def parts(found: Diagnosis, *, serious: bool = True) -> list[Part]:
    return [each.part for each in found.findings if each.serious == serious]


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        path.name: (path.stat().st_size, path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and ".mmsearch" not in path.parts
    }


def test_a_sound_library_is_called_sound_and_nothing_is_written(library: Path) -> None:
    before = sorted((p.name, p.stat().st_mtime_ns) for p in library.rglob("*") if p.is_file())
    for deep in (False, True):
        found = examine(library, deep=deep)
        assert found.sound
        assert found.findings == []
        assert [*found.examined] == [*Part]
    after = sorted((p.name, p.stat().st_mtime_ns) for p in library.rglob("*") if p.is_file())
    ignored = {"catalog.sqlite-shm", "catalog.sqlite-wal"}
    assert [f for f in after if f[0] not in ignored] == [f for f in before if f[0] not in ignored]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("UPDATE file_vector SET vector = zeroblob(26) WHERE file_id = 1", "1 vectors of pictures"),
        (
            "UPDATE file_vector SET vector = CAST(x'007e' || substr(vector, 3) AS BLOB)",
            "6 vectors of pictures",
        ),
        ("UPDATE file_vector SET vector = 'text' WHERE file_id = 5", "1 vectors of pictures"),
        ("UPDATE file_vector SET vector = substr(vector, 3) WHERE file_id < 3", "2 vectors of"),
        ("UPDATE caption_vector SET vector = zeroblob(26)", "2 vectors of captions"),
    ],
    ids=["zero", "not-a-number", "text", "short", "captions"],
)
def test_vectors_that_are_none_are_found_and_made_anew(
    library: Path, damage: str, told: str
) -> None:
    before = contents(library)
    statements(library, damage)
    found = examine(library)
    assert not found.sound
    assert told in found.findings[0].problem
    mended = examine(library, mend=True)
    assert mended.sound
    assert any(finding.repaired for finding in mended.findings)
    assert contents(library) == before
    assert examine(library, deep=True).findings == []


def test_a_vector_of_another_picture_is_found_by_embedding_again(library: Path) -> None:
    before = contents(library)
    statements(
        library,
        "UPDATE file_vector SET vector = (SELECT vector FROM file_vector WHERE file_id = 1) "
        "WHERE file_id = 2",
    )
    assert parts(examine(library, deep=True)) == [Part.VECTORS, Part.INDEX]
    assert examine(library, deep=True, mend=True).sound
    assert contents(library) == before
    assert examine(library, deep=True).findings == []


def test_words_that_do_not_fit_are_made_anew(library: Path) -> None:
    statements(library, "DELETE FROM file_word WHERE rowid = 2")
    found = examine(library)
    assert parts(found) == [Part.WORDS]
    assert not found.sound
    assert examine(library, mend=True).sound
    assert examine(library).findings == []


def test_words_of_captions_are_made_anew(library: Path) -> None:
    statements(
        library,
        "INSERT INTO caption_word (caption_word, rowid, text) VALUES ('delete', 1, 'all red')",
    )
    assert "caption_word" in examine(library).findings[0].problem
    assert examine(library, mend=True).sound
    assert examine(library).findings == []


@pytest.mark.parametrize("seed", range(6))
def test_a_bit_that_flipped_anywhere_in_an_index_is_found(library: Path, seed: int) -> None:
    path = next((library / ".mmsearch" / "index").glob("images-*.faiss"))
    data = bytearray(path.read_bytes())
    at = random.Random(seed).randrange(len(data))
    data[at] ^= 1 << random.Random(seed).randrange(8)
    path.write_bytes(data)
    found = examine(library)
    assert parts(found) == [Part.INDEX]
    assert examine(library, mend=True).sound
    assert examine(library).findings == []


def test_an_index_that_was_cut_off_is_made_anew(library: Path) -> None:
    path = next((library / ".mmsearch" / "index").glob("captions-*.faiss"))
    path.write_bytes(path.read_bytes()[:-20])
    assert parts(examine(library)) == [Part.INDEX]
    assert examine(library, mend=True).sound


def test_an_index_of_other_vectors_is_found(library: Path) -> None:
    # As after a restored backup of the catalog alone: the same state, by its name.
    statements(library, "DELETE FROM file_vector WHERE file_id = 3")
    found = examine(library)
    assert parts(found) == [Part.VECTORS, Part.INDEX]
    assert "1 pictures and 0 captions have no vector" in found.findings[0].problem
    mended = examine(library, mend=True)
    assert mended.sound
    assert examine(library).findings == []


def test_references_to_nothing_are_repaired_and_the_catalog_set_aside(library: Path) -> None:
    statements(library, "PRAGMA foreign_keys = OFF", "DELETE FROM file WHERE id = 2")
    found = examine(library)
    assert parts(found) == [Part.CATALOG]
    assert [*found.examined] == [Part.CATALOG]
    mended = examine(library, mend=True)
    assert mended.sound
    assert mended.set_aside is not None
    assert (mended.set_aside / "catalog.sqlite").is_file()
    assert len(contents(library)[0]) == 5
    assert examine(library, deep=True).findings == []


@pytest.mark.parametrize("seed", range(8))
def test_a_catalog_with_torn_pages_gives_back_what_can_be_read(
    library: Path, encoder: ColourEncoder, seed: int
) -> None:
    """Random bytes over a page; whatever is lost is found again by indexing."""
    for number in range(60):
        draw(library / f"more/{number:03}.jpg", "green", (40 + number, 30))
    index(library, model=encoder)
    statements(library)
    before, pictures = contents(library), snapshot(library)
    path = library / ".mmsearch" / "catalog.sqlite"
    data = bytearray(path.read_bytes())
    chance = random.Random(seed)
    # The first page says what tables there are: without it nothing can be read.
    page = 4096 * chance.randrange(2, len(data) // 4096)
    data[page : page + 4096] = chance.randbytes(4096)
    path.write_bytes(data)
    found = examine(library, deep=True)
    if found.sound:
        return  # The page held nothing.
    mended = examine(library, mend=True)
    assert mended.set_aside is not None or mended.sound
    index(library, model=encoder)
    now = contents(library)
    assert now[0] == before[0]
    # Captions beside the pictures come back with them.
    assert now[1] == before[1]
    assert snapshot(library) == pictures
    assert examine(library).sound


def test_a_catalog_past_reading_is_an_instruction(library: Path) -> None:
    path = library / ".mmsearch" / "catalog.sqlite"
    statements(library)
    path.write_bytes(b"\0" * path.stat().st_size)
    ran = CliRunner().invoke(app, ["doctor", str(library)])
    assert ran.exit_code == 4
    with pytest.raises(mmsearch.MmsearchError, match="past reading"):
        examine(library, mend=True)
    assert path.is_file()


def test_pictures_that_are_gone_or_changed_are_told_and_are_no_fault(library: Path) -> None:
    next(library.rglob("red.jpg")).unlink()
    draw(next(library.rglob("green.jpg")), "blue", (99, 32))
    found = examine(library)
    assert found.sound
    gone, changed = found.findings
    assert gone.names[0].endswith("red.jpg")
    assert changed.names[0].endswith("green.jpg")
    assert "1 pictures are gone" in gone.problem
    assert "1 pictures changed" in changed.problem


def test_content_that_changed_under_the_same_time_is_a_fault(library: Path) -> None:
    path = next(library.rglob("red.jpg"))
    facts = path.stat()
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert examine(library).sound
    found = examine(library, deep=True)
    assert parts(found) == [Part.FILES]
    assert "the disk may be failing" in found.findings[0].problem


def test_what_is_kept_beside_is_thrown_away(library: Path) -> None:
    own = library / ".mmsearch"
    (own / "regions.sqlite").write_bytes(b"no database")
    thumbnail = own / "thumbnails" / "ab" / f"{'ab' * 32}-320.jpg"
    thumbnail.parent.mkdir(parents=True)
    thumbnail.write_bytes(b"x")
    leftover = own / "index" / ".writing-abc"
    leftover.mkdir()
    os.utime(leftover, (0, 0))
    found = examine(library)
    assert [finding.serious for finding in found.findings] == [True, False, False]
    assert examine(library, mend=True).sound
    assert examine(library).findings == []
    assert not leftover.exists()
    assert not thumbnail.exists()


def test_another_model_is_told(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "load_encoder", lambda _: ColourEncoder("2"))
    found = examine(library)
    assert parts(found) == [Part.MODEL]
    assert "mmsearch migrate" in found.findings[0].advice


def test_the_command_tells_and_its_exit_code_says_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "some photos"
    draw(folder / "a.jpg")
    runner = CliRunner()
    assert runner.invoke(app, ["index", str(folder)]).exit_code == 0
    sound = runner.invoke(app, ["doctor", str(folder), "--json"])
    assert sound.exit_code == 0
    told = json.loads(sound.stdout)
    assert (told["schema"], told["sound"], told["findings"]) == (1, True, [])
    statements(folder, "UPDATE file_vector SET vector = zeroblob(512)")
    sick = runner.invoke(app, ["doctor", "--library", str(folder), "--json"])
    assert sick.exit_code == 4
    assert {f["part"] for f in json.loads(sick.stdout)["findings"]} == {"vectors"}
    mended = runner.invoke(app, ["doctor", str(folder), "--repair"])
    assert mended.exit_code == 0
    assert "repaired\tvectors\t1 vectors of pictures are damaged" in mended.stdout
    assert runner.invoke(app, ["doctor", str(folder)]).exit_code == 0
    assert runner.invoke(app, ["doctor", str(tmp_path / "nothing")]).exit_code == 1


def test_repairing_waits_for_nobody(library: Path) -> None:
    with closing(Library.open(library)) as other, other.indexing():
        assert examine(library).sound
        with pytest.raises(mmsearch.MmsearchError, match="Another mmsearch"):
            examine(library, mend=True)
