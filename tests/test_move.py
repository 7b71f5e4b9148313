"""Libraries that move to servers and back: nothing embedded again, lost or half done."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmsearch
from mmsearch.errors import LibraryLocked, SourceError, StorageError, StoreError
from mmsearch.indexes.milvus_collection import Collection, Rows
from mmsearch.indexes.milvus_server import Server
from mmsearch.retrieval.catalog import Catalog, Transaction, copying
from mmsearch.retrieval.ingest import index
from mmsearch.retrieval.library import Library
from mmsearch.retrieval.library_config import LibraryConfig, without_secrets
from mmsearch.retrieval.moving import LOCAL, move
from mmsearch.retrieval.schema import Target
from tests.conftest import ColourEncoder, draw
from tests.milvus_server import ADDRESS
from tests.postgres_server import Postgres


def silent(stage: str, done: int, total: int) -> None:
    pass


@pytest.fixture
def library(photos: Path, encoder: ColourEncoder) -> Path:
    """Pictures with captions, odd names, a problem, and ids that were given and taken back."""
    (photos / "red.txt").write_text("a red door\nein rotes Tor 🚪")
    draw(photos / "trip" / "Grün 'x'.jpg", "green", (40, 30))
    odd = photos / "caf\udce9.jpg"
    draw(photos / "plain.jpg", "white", (30, 40))
    (photos / "plain.jpg").rename(odd)
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    draw(photos / "z-last.jpg", "blue", (10, 10))
    index(photos, model=encoder)
    (photos / "z-last.jpg").unlink()
    index(photos, model=encoder)
    return photos


def content(folder: Path) -> dict[str, copying.Sum]:
    with closing(Library.open(folder)) as opened:
        return opened.catalog.sums(silent)


def answers(folder: Path, encoder: ColourEncoder) -> list[Any]:
    with mmsearch.open(folder, model=encoder) as engine:
        return [
            [(hit.id, hit.path, hit.score) for hit in engine.search(question, k=9, **how).hits]
            for question, how in (
                ("red", {}),
                ("door", {}),
                ("rotes", {}),
                ("green", {"where": "folder = 'trip'"}),
                ("white", {"where": "path LIKE '%GRÜN%'"}),
                ("blue", {"to": "captions"}),
            )
        ]


@pytest.mark.postgresql
def test_a_catalog_moves_to_postgresql_and_back(
    library: Path, encoder: ColourEncoder, postgres: Postgres
) -> None:
    before, said, embedded = content(library), answers(library, encoder), encoder.embedded_images
    with closing(Library.open(library)) as opened:
        newest = max(opened.catalog.files(range(100)))
    there = move(library, postgres.url)
    assert (there.parts, there.tables) == (["catalog"], before)
    assert content(library) == before
    assert answers(library, encoder) == said
    # What lay there is set aside, not lost.
    (aside,) = there.left
    with closing(Catalog.open(Path(aside) / "catalog.sqlite")) as old:
        assert old.sums(silent) == before
    assert not (library / ".mmsearch" / "catalog.sqlite").exists()
    with closing(Library.open(library)) as opened:
        assert opened.catalog.words_damage() == []
    # Ids that were given are not given again, there either.
    draw(library / "later.jpg", "black", (20, 20))
    index(library, model=encoder)
    with closing(Library.open(library)) as opened:
        later = opened.catalog.embedded_ids(["later.jpg"], 1)["later.jpg"]
    assert later > newest + 1
    before = content(library)
    back = move(library, LOCAL)
    assert (back.parts, back.tables) == (["catalog"], before)
    assert content(library) == before
    assert LibraryConfig.read(library / ".mmsearch") == LibraryConfig()
    assert answers(library, encoder)[0][0] == said[0][0]
    with closing(Library.open(library)) as opened:
        assert opened.catalog.words_damage() == []
    assert index(library, model=encoder).embedded == 0
    # And there once more, over what was left there.
    move(library, postgres.url)
    assert content(library) == before
    assert encoder.embedded_images == embedded + 1


@pytest.mark.postgresql
@pytest.mark.parametrize("back", [False, True])
def test_a_move_that_fails_leaves_the_library_where_it_was(
    library: Path,
    encoder: ColourEncoder,
    postgres: Postgres,
    monkeypatch: pytest.MonkeyPatch,
    back: bool,
) -> None:
    if back:
        move(library, postgres.url)
    config, before = LibraryConfig.read(library / ".mmsearch"), content(library)
    said = answers(library, encoder)
    goal = LOCAL if back else postgres.url

    class Cut(Exception):
        pass

    def cut(stage: str, done: int, total: int) -> None:
        if stage == "compare":
            raise Cut

    with pytest.raises(Cut):
        move(library, goal, progress=cut)
    rows = copying._blocks

    def changed(connection: Any, table: Any) -> Any:
        for block in rows(connection, table):
            if table.name == "caption" and (connection.dialect.name == "sqlite") is back:
                block[0]["text"] += "!"
            yield block

    # Only reading to compare sees the change, in what arrived.
    def compared(stage: str, done: int, total: int) -> None:
        if stage == "compare":
            monkeypatch.setattr(copying, "_blocks", changed)

    with pytest.raises(StorageError, match="not what was sent \\(in caption\\)"):
        move(library, goal, progress=compared)
    monkeypatch.undo()
    assert LibraryConfig.read(library / ".mmsearch") == config
    assert content(library) == before
    assert answers(library, encoder) == said
    assert not list((library / ".mmsearch").glob("*.moving*"))
    move(library, goal)
    assert content(library) == before


needs_a_store = pytest.mark.skipif(
    ADDRESS not in os.environ,
    reason=f"needs a Milvus server: run tests/milvus_server.py pytest …, or set {ADDRESS}",
)


def searched(folder: Path, encoder: ColourEncoder) -> tuple[bool, list[Any]]:
    with mmsearch.open(folder, model=encoder) as engine:
        found = engine.search("red", k=9)
        hits = [(hit.id, hit.path, round(hit.score, 5)) for hit in found.hits]
        return found.exact, sorted(hits, key=lambda hit: (-hit[2], hit[0]))


@pytest.mark.milvus
@needs_a_store
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_vectors_move_to_a_store_and_back(library: Path, encoder: ColourEncoder) -> None:
    store, embedded = os.environ[ADDRESS], encoder.embedded_images
    before, said = content(library), searched(library, encoder)
    there = move(library, store)
    assert (there.parts, there.vectors) == (["store"], {"images": 8, "captions": 2})
    assert LibraryConfig.read(library / ".mmsearch") == LibraryConfig(store=store)
    assert content(library) == before
    assert searched(library, encoder) == said
    draw(library / "later.jpg", "red", (20, 20))
    index(library, model=encoder)
    with closing(Library.open(library)) as opened:
        (name,) = (
            each.collection for each in opened.catalog.store_records() if each.target == "images"
        )
        later = opened.catalog.embedded_ids(["later.jpg"], 1)["later.jpg"]
    assert later in {hit[0] for hit in searched(library, encoder)[1][:2]}
    # A vector that is another there is seen.
    collection = Collection.open(Server(store), name, writing=True)
    assert collection is not None
    ids, vectors = collection.vectors_of(np.array([later]), consistency="Strong")
    collection.upsert(Rows(ids, np.roll(vectors, 1, axis=1), {}))
    with closing(Library.open(library)) as opened, pytest.raises(StoreError, match="are others"):
        opened.verify_index(Target.IMAGES, silent)
    back = move(library, LOCAL)
    assert (back.parts, back.vectors) == (["store"], {"images": 9, "captions": 2})
    assert back.left == [without_secrets(store)]
    assert LibraryConfig.read(library / ".mmsearch") == LibraryConfig()
    # And there again, where what was left is made anew.
    (library / "later.jpg").unlink()
    index(library, model=encoder)
    assert move(library, store).vectors == {"images": 8, "captions": 2}
    assert searched(library, encoder) == said
    assert encoder.embedded_images == embedded + 1


@pytest.mark.milvus
@needs_a_store
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_a_move_to_a_store_that_fails_leaves_the_library_where_it_was(
    library: Path, encoder: ColourEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cut(Exception):
        pass

    def cut(stage: str, done: int, total: int) -> None:
        if stage == "compare":
            raise Cut

    said = searched(library, encoder)
    with pytest.raises(Cut):
        move(library, os.environ[ADDRESS], progress=cut)
    assert LibraryConfig.read(library / ".mmsearch") == LibraryConfig()
    assert searched(library, encoder) == said
    move(library, os.environ[ADDRESS])
    with monkeypatch.context() as patched:
        # Nothing is begun with a server that does not answer: what is begun is tried for minutes.
        patched.delattr(Transaction, "forget_store_records")
        with pytest.raises(StoreError, match=r"127\.0\.0\.1:1"):
            move(library, "milvus://127.0.0.1:1/none")
    assert searched(library, encoder) == said
    with closing(Library.open(library)) as opened:
        assert opened.verify_index(Target.IMAGES, silent) == 8


def test_wrong_goals_are_refused(library: Path) -> None:
    with pytest.raises(SourceError, match="own folder already"):
        move(library, LOCAL)
    with pytest.raises(SourceError, match="Where to"):
        move(library, "")
    with pytest.raises(SourceError, match="address of a catalog \\('mysql"):
        move(library, "mysql://localhost/x")
    with pytest.raises(SourceError, match="address of a store"):
        move(library, "milvus://")
    with pytest.raises(StorageError, match="cannot be reached"):
        move(library, "postgresql+psycopg://127.0.0.1:1/none")
    assert LibraryConfig.read(library / ".mmsearch") == LibraryConfig()


def test_nothing_moves_while_somebody_writes(library: Path) -> None:
    with (
        closing(Library.open(library)) as opened,
        opened.indexing(),
        pytest.raises(LibraryLocked),
    ):
        move(library, "postgresql+psycopg://127.0.0.1:1/none")


@pytest.mark.postgresql
def test_the_command(
    library: Path, encoder: ColourEncoder, postgres: Postgres, capsys: pytest.CaptureFixture[str]
) -> None:
    from mmsearch.cli import make_app

    app = make_app(["move", "status"])
    for to, part in ((postgres.url, "catalog"), ("local", "catalog")):
        app(["move", str(library), "--to", to, "--json"], standalone_mode=False)
        out, talk = capsys.readouterr()
        said = json.loads(out)
        assert said["parts"] == [part]
        assert said["tables"]["file"]["rows"] == 8
        assert "Moved the catalog" in talk
        assert "secret" not in out + talk


def test_sums_see_every_change(library: Path, tmp_path: Path) -> None:
    before = content(library)
    assert before["file"].rows == 8
    other = tmp_path / "other"
    shutil.copytree(library, other)
    assert content(other) == before
    with closing(Library.open(other)) as opened, opened.catalog.write() as transaction:
        ids = opened.catalog.vector_ids(Target.IMAGES, 1)
        transaction.drop_vectors(Target.IMAGES, 1, ids[:1].tolist())
    changed = {name for name, each in content(other).items() if before[name] != each}
    assert changed == {"file_vector"}
