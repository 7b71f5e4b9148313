"""Libraries of every schema there has been open in this version, and keep what they hold.

`catalogs/mNNN.sqlite.gz` was made by the code that had migrations up to that number, with
`conftest.ColourEncoder`: six drawn pictures, two of them with captions, one broken file. A new
migration brings a new file, made before the next one is written; none is ever replaced.
"""

from __future__ import annotations

import gzip
from contextlib import closing
from pathlib import Path

import pytest

import mmsearch
from mmsearch.retrieval.backup import restore
from mmsearch.retrieval.catalog import Catalog
from mmsearch.retrieval.catalog.migrations import MIGRATIONS
from mmsearch.retrieval.doctor import examination, examine
from mmsearch.retrieval.ingest import index
from mmsearch.retrieval.library import Library
from tests.conftest import COLOURS, ColourEncoder, draw

CATALOGS = sorted((Path(__file__).parent / "catalogs").glob("*.sqlite.gz"))
PATHS = sorted(f"{'trip/' if i % 3 == 0 else ''}{name}.png" for i, name in enumerate(COLOURS))
CAPTIONS = ["all blue", "as green as it gets", "like the sea"]


@pytest.fixture(params=CATALOGS, ids=[path.name[:4] for path in CATALOGS])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A library without its pictures, as an earlier version left it."""
    folder = tmp_path / "old photos"
    (folder / ".mmsearch").mkdir(parents=True)
    data = gzip.decompress(request.param.read_bytes())
    (folder / ".mmsearch" / "catalog.sqlite").write_bytes(data)
    return folder


def test_every_migration_has_a_library_made_before_the_next() -> None:
    assert [path.name[:4] for path in CATALOGS] == [step.__name__[:4] for step in MIGRATIONS]


def test_it_opens_and_answers_without_its_pictures(
    old: Path, encoder: ColourEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mmsearch.open(old, model=encoder) as engine:
        found = engine.search("blue", k=9, words=False)
        assert sorted(hit.path for hit in found.hits) == PATHS
        assert found.hits[0].path == "trip/blue.png"
        # Words are searched too, in a library that was made before they were.
        assert engine.search("as green as it gets", k=1).hits[0].path == "green.png"
        assert engine.search("white.png", k=1).hits[0].path == "white.png"
        assert [hit.caption for hit in engine.search("green", to="captions", k=1).hits] == [
            "as green as it gets"
        ]
    with closing(Library.open(old)) as library:
        assert sorted(text for _, _, text in library.catalog.captions()) == CAPTIONS
        assert [problem.path for problem in library.catalog.problems()] == ["broken.jpg"]
    monkeypatch.setattr(examination, "load_encoder", lambda _: encoder)
    assert examine(old, deep=True).sound


def test_indexing_goes_on_from_it(old: Path, encoder: ColourEncoder) -> None:
    for i, name in enumerate(COLOURS):
        draw(old / f"{'trip/' if i % 3 == 0 else ''}{name}.png", name, (48 + i, 32))
    (old / "trip" / "blue.txt").write_text("all blue\nlike the sea\n")
    draw(old / "new.png", "red", (99, 32))
    report = index(old, model=encoder)
    assert (report.added, report.removed, report.files, report.captions) == (1, 0, 7, 3)
    # Another Pillow may write other bytes; with the same, nothing is embedded again.
    assert report.embedded <= 7


def test_it_can_be_restored_as_a_backup(old: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    assert restore(old / ".mmsearch" / "catalog.sqlite", pictures).counts.files == 6


def test_the_schema_ends_the_same_wherever_it_began(old: Path, tmp_path: Path) -> None:
    with closing(Catalog.create(tmp_path / "new.sqlite")) as new:
        expected = _schema(new)
    with closing(Catalog.open(old / ".mmsearch" / "catalog.sqlite")) as catalog:
        assert _schema(catalog) == expected


def _schema(catalog: Catalog) -> dict[str, list[tuple[object, ...]]]:
    with catalog._connect() as connection:
        run = connection.exec_driver_sql
        names = run("SELECT type, name FROM sqlite_master ORDER BY name").fetchall()
        return {
            f"{kind} {name}": [tuple(row)[1:] for row in run(f"PRAGMA table_info({name})")]
            for kind, name in names
        }
