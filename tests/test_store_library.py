"""Libraries whose vectors are searched in a real Milvus server; see `test_milvus.py`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import mmsearch
from mmsearch.errors import SourceError, StoreError, StoreUnavailable
from mmsearch.indexes.milvus import MilvusIndex
from mmsearch.indexes.milvus_choice import choose
from mmsearch.indexes.milvus_collection import Collection
from mmsearch.indexes.milvus_server import Server
from mmsearch.retrieval.adapter import Adapter
from mmsearch.retrieval.doctor import examine
from mmsearch.retrieval.filters import parse_where
from mmsearch.retrieval.index_files import silent
from mmsearch.retrieval.ingest import index
from mmsearch.retrieval.library import Library
from mmsearch.retrieval.schema import Target
from mmsearch.retrieval.store_fields import FIELDS, expression, values
from tests.conftest import COLOURS, ColourEncoder, draw
from tests.milvus_server import ADDRESS, FOLDER
from tests.milvus_server import Server as Machine
from tests.test_filtering import FILTERS, library  # noqa: F401 (a fixture)

pytestmark = [
    pytest.mark.milvus,
    pytest.mark.skipif(
        ADDRESS not in os.environ,
        reason=f"needs a Milvus server: run tests/milvus_server.py pytest …, or set {ADDRESS}",
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
]
STORE = os.environ.get(ADDRESS, "")
N = 60


def photos(folder: Path) -> Path:
    for i in range(N):
        name = [*COLOURS][i % len(COLOURS)]
        draw(folder / f"{'Ünter wegs/日本/' if i % 3 else ''}{name} {i}.png", name, (40 + i, 32))
    (folder / "blue 3.txt").write_text("all blue\nlike the sea\n")
    return folder


@pytest.fixture
def folder(tmp_path):
    return photos(tmp_path / "photos")


def collections(root):
    with closing(Library.open(root)) as opened:
        return [record.collection for record in opened.catalog.store_records()]


@pytest.fixture(autouse=True)
def dropped(tmp_path):
    yield
    server = Server(STORE)
    for path in tmp_path.glob("*/.mmsearch"):
        for name in collections(path.parent):
            server.call("drop_collection", name, writing=True)


def same_answers(one, other, encoder):
    """Compare the answers of a library with a store with those of one without."""
    with mmsearch.open(one, model=encoder) as there, mmsearch.open(other, model=encoder) as here:
        for question in ("blue", "red or so", "blue NOT red", "as white as snow"):
            for where in (
                None,
                "width > height",
                "width > 60 AND NOT folder = ''",
                "width < 42",
                "path LIKE '%blue%'",
                "taken IS NULL AND size > 1",
            ):
                a, b = (each.search(question, k=7, where=where) for each in (there, here))
                assert a.considered == b.considered
                assert (a.exact, a.recall) == (True, 1.0)
                scores = [[hit.score for hit in r.hits] for r in (a, b)]
                # A probability depends on which pictures were sampled, and when.
                near = 2e-2 if "NOT" in question else 2e-3
                np.testing.assert_allclose(scores[0], scores[1], atol=near)
                if "NOT" in question:
                    continue
                # Those that score as the last ones do may be others.
                assert {h.path for h in a.hits if h.score > min(scores[0], default=0) + near} == {
                    h.path for h in b.hits if h.score > min(scores[1], default=0) + near
                }
        a, b = (each.search("blue", to="captions", k=2) for each in (there, here))
        assert [hit.caption for hit in a.hits] == [hit.caption for hit in b.hits]


def test_a_library_with_a_store_answers_as_one_without(folder, tmp_path, encoder):
    shutil.copytree(folder, tmp_path / "plain")
    assert index(folder, model=encoder, store=STORE).added == N
    index(tmp_path / "plain", model=encoder)
    config = (folder / ".mmsearch" / "library.toml").read_text()
    assert "store" in config
    assert not list((folder / ".mmsearch").glob("index/*.faiss"))
    same_answers(folder, tmp_path / "plain", encoder)
    # Pictures that change, move, come and go, and metadata that change.
    for root in (folder, tmp_path / "plain"):
        (root / "red 1.png").unlink(missing_ok=True)
        shutil.rmtree(root / "Ünter wegs" / "日本" / "nothing", ignore_errors=True)
        draw(root / "new.png", "green", (99, 32))
        draw(root / "black 0.png", "yellow", (39, 77))
        (root / "white 11.png").parent.mkdir(exist_ok=True)
        for path in sorted((root / "Ünter wegs" / "日本").glob("green*"))[:3]:
            path.rename(root / path.name)
    reports = [index(root, model=encoder) for root in (folder, tmp_path / "plain")]
    assert reports[0].embedded == reports[1].embedded
    assert reports[0].moved == reports[1].moved == 3
    same_answers(folder, tmp_path / "plain", encoder)
    assert examine(folder).findings == [] or all(
        "store" not in each.problem for each in examine(folder).findings
    )


def test_captions_are_in_a_store_as_what_was_learned_makes_them(folder, encoder):
    index(folder, model=encoder, store=STORE)
    plain = collections(folder)
    with closing(Library.open(folder)) as opened:
        row = opened.catalog.library()
        dim = row.encoder.dim
        weights = np.random.default_rng(0).normal(size=(dim + 1, dim)).astype(np.float32)
        adapter = Adapter(np.zeros(dim + 1, dtype=np.float32), weights)
        with opened.catalog.write() as transaction:
            transaction.add_adapter(row.encoder_id, adapter.to_bytes(), {})
        opened.refresh_indexes(silent)
        row = opened.catalog.library()
        there = opened.open_index(Target.CAPTIONS, row)
        ids, stored = opened.catalog.caption_vectors(row.encoder_id, dim)
        expected = opened.adapter(row).apply(stored)
        found = there.search(expected, 1)
        assert found.ids[:, 0].tolist() == ids.tolist()
        np.testing.assert_allclose(found.scores[:, 0], 1, atol=1e-5)
        assert opened.verify_index(Target.CAPTIONS, silent) == len(ids)
        # The collection of captions as they were before is gone.
        assert len(set(collections(folder)) - set(plain)) == 1
        with opened.catalog.write() as transaction:
            transaction.remove_adapters(row.encoder_id)
        opened.refresh_indexes(silent)
    assert collections(folder) == plain


def test_doctor_sees_what_a_store_lacks_and_has_too_much(folder, encoder, monkeypatch):
    index(folder, model=encoder, store=STORE)
    with closing(Library.open(folder)) as opened:
        row = opened.catalog.library()
        assert opened.store_differences(Target.IMAGES, row)[1:] == (N, "")
        name = opened.catalog.store_records()[-1].collection
        collection = Collection.open(Server(STORE), name)
        there = collection.ids(consistency="Strong")
        collection.delete(there[:3])
        rows = np.eye(collection.dim, dtype=np.float32)[:2]
        MilvusIndex(collection, writes=True).upsert([10**6, 10**6 + 1], rows)
        fault = opened.store_differences(Target.IMAGES, row)[2]
        assert fault == "it lacks 3 vectors and has 2 that are gone"
        opened.build_index(Target.IMAGES, row)
        assert opened.store_differences(Target.IMAGES, row)[1:] == (N, "")


def test_a_push_that_was_cut_off_goes_on(folder, encoder, monkeypatch):
    monkeypatch.setattr(Collection, "batch", 7)
    sent, upsert = [], Collection.upsert

    def failing(self, rows):
        if len(sent) >= 4:
            raise StoreUnavailable("cut off")
        sent.append(rows.ids.tolist())
        upsert(self, rows)

    monkeypatch.setattr(Collection, "upsert", failing)
    with pytest.raises(StoreUnavailable, match="cut off"):
        index(folder, model=encoder, store=STORE)
    assert encoder.embedded_images == N
    with closing(Library.open(folder)) as opened:
        (record,) = opened.catalog.store_records()
        assert record.stamp is None
        assert record.through == max(sent[-1])
        # What a writer that was cut off has sent is seen within seconds; at once, who waits for it.
        cut = Collection.open(Server(STORE), record.collection)
        assert cut.count(consistency="Strong") == 28
    with mmsearch.open(folder, model=encoder) as engine:  # what is there answers
        assert engine.search("blue", k=50).hits
    # In between a picture goes that was sent, and one comes.
    next(folder.glob("*.png")).unlink()
    draw(folder / "new.png", "green", (99, 32))
    before, again = len(sent), []

    def watching(self, rows):
        again.append(rows.ids.tolist())
        upsert(self, rows)

    monkeypatch.setattr(Collection, "upsert", watching)
    report = index(folder, model=encoder)
    assert (report.added, report.removed, encoder.embedded_images) == (1, 1, N + 1)
    assert before == 4
    first = [id_ for some in again for id_ in some]
    assert not set(first[: N - 28]) & {id_ for some in sent for id_ in some}
    with closing(Library.open(folder)) as opened:
        assert opened.store_differences(Target.IMAGES, opened.catalog.library())[1:] == (N, "")


def test_a_restored_catalog_and_a_lost_collection_are_filled_anew(folder, tmp_path, encoder):
    index(folder, model=encoder, store=STORE)
    catalog = folder / ".mmsearch" / "catalog.sqlite"
    shutil.copy(catalog, tmp_path / "before.sqlite")
    draw(folder / "later.png", "red", (99, 32))
    index(folder, model=encoder)
    (folder / "later.png").unlink()
    shutil.copy(tmp_path / "before.sqlite", catalog)
    for end in ("-wal", "-shm"):
        catalog.with_name(catalog.name + end).unlink(missing_ok=True)
    draw(folder / "other.png", "green", (98, 32))
    index(folder, model=encoder)
    with closing(Library.open(folder)) as opened:
        row = opened.catalog.library()
        assert opened.store_differences(Target.IMAGES, row)[1:] == (N + 1, "")
    for name in collections(folder):
        Server(STORE).call("drop_collection", name, writing=True)
    with mmsearch.open(folder, model=encoder) as engine, pytest.raises(StoreError, match="lost"):
        engine.search("blue")
    before = encoder.embedded_images
    index(folder, model=encoder)
    assert encoder.embedded_images == before
    with mmsearch.open(folder, model=encoder) as engine:
        assert engine.search("green", k=1).hits


def test_another_model_and_another_store_are_told(folder, encoder):
    index(folder, model=encoder, store=STORE)
    with pytest.raises(SourceError, match="keeps its store at"):
        index(folder, model=encoder, store="milvus://elsewhere.invalid:1/x")
    with closing(Library.open(folder)) as opened:
        name = opened.catalog.store_records()[-1].collection
        assert name.endswith("_images")
    server = Server(STORE)
    Collection.create(server, name, 13, choose(1, 13, server.check()), about={"model": "other@2"})
    said = r"holds vectors of other@2, length 13.*Drop the"
    with mmsearch.open(folder, model=encoder) as engine, pytest.raises(StoreError, match=said):
        engine.search("blue")
    with pytest.raises(StoreError, match=r"holds vectors of other@2"):
        index(folder, model=encoder)


def test_a_store_that_nobody_answers_leaves_nothing(folder, encoder):
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match="does not answer"):
        index(folder, model=encoder, store="milvus://127.0.0.1:1/default")
    assert time.monotonic() - started < 20
    assert not (folder / ".mmsearch").exists()
    assert encoder.embedded_images == 0


def test_a_graph_says_what_it_finds(folder, encoder):
    index(folder, model=encoder, store=STORE)
    with closing(Library.open(folder)) as opened:
        row = opened.catalog.library()
        made = opened.build_index(Target.IMAGES, row, settings={"kind": "hnsw", "recall": 0.9})
        assert (made.exact, made.recall) == (False, 1.0)
        assert opened.search_of(Target.IMAGES, row) == (False, 1.0)
    draw(folder / "new.png", "green", (99, 32))
    index(folder, model=encoder)  # what was asked for holds
    with mmsearch.open(folder, model=encoder) as engine:
        found = engine.search("green", k=3)
        assert json.loads(json.dumps(found.to_json()))["search"] == "approximate"


MANY = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def kept(library):  # noqa: F811
    """Return an index of what `test_filtering` draws, with its fields."""
    server = Server(STORE)
    name = "mmsearch_test_filters"
    collection = Collection.create(server, name, 8, choose(1, 8, server.check()), fields=FIELDS)
    made = MilvusIndex(collection, writes=True)
    told = library.catalog.described_for_filters(Target.IMAGES, library.ids.tolist())
    made.upsert(library.ids, library.vectors, values([told[i] for i in library.ids.tolist()]))
    yield made
    collection.drop()


@MANY
@given(filter_=FILTERS)
def test_a_server_finds_what_the_catalog_finds(filter_, library, kept):  # noqa: F811
    said = expression(filter_)
    if said is not None:
        right = library.catalog.matching(filter_)
        assert kept.ids_where(said).tolist() == right.tolist(), said
        assert len(kept.where(said)) == len(right)


def test_a_filter_of_many_travels_as_an_expression(folder, encoder, monkeypatch):
    index(folder, model=encoder, store=STORE)
    monkeypatch.setattr("mmsearch.retrieval.state.FEW", 5)
    asked, search = [], Collection.search

    def watching(self, queries, k, effort, expression, **how):
        asked.append(expression)
        return search(self, queries, k, effort, expression, **how)

    monkeypatch.setattr(Collection, "search", watching)
    with mmsearch.open(folder, model=encoder) as engine:
        for question in ("blue", "blue NOT red", "blue 3.png"):
            found = engine.search(question, k=9, where="width > 60")
            right = engine.library.catalog.matching(parse_where("width > 60"))
            assert found.considered == len(right)
            assert {hit.id for hit in found.hits} <= set(right.tolist())
        assert asked[0] == "width > 60"


@pytest.mark.skipif(
    FOLDER not in os.environ,
    reason="a server that is not ours is not killed: run without an address",
)
def test_a_server_that_is_killed_in_the_middle_costs_nothing(folder, encoder, tmp_path):
    """`kill -9` while a run sends vectors, a start, and the same command again."""
    for i in range(240):
        name = [*COLOURS][i % len(COLOURS)]
        draw(folder / "more" / f"{name} {i}.png", name, (40 + i, 31))
    script = """
import sys, time
from pathlib import Path
from mmsearch.indexes.milvus_collection import Collection
from mmsearch.retrieval.ingest import index
from tests.conftest import ColourEncoder
Collection.batch = 5
put = Collection.upsert
def slowly(self, rows):
    put(self, rows)
    sys.stdout.write("sent" + chr(10))
    sys.stdout.flush()
    time.sleep(0.1)
Collection.upsert = slowly
print(index(Path(sys.argv[1]), model=ColourEncoder(), store=sys.argv[2]).files, flush=True)
"""
    command = [sys.executable, "-W", "ignore", "-c", script, str(folder), STORE]
    where = Path(__file__).parent.parent
    paths = os.pathsep.join([str(where), os.environ.get("PYTHONPATH", "")])
    run = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        cwd=where,
        env=os.environ | {"PYTHONPATH": paths},
    )
    try:
        for _ in range(20):
            assert run.stdout.readline() == "sent\n"
        machine = Machine(Path(os.environ[FOLDER]))
        machine.kill()
        with mmsearch.open(folder, model=encoder) as engine, pytest.raises(StoreUnavailable):
            engine.search("blue")
        machine.start_again()
        # The run itself goes on: what it sends is tried again until the server is back.
        last = run.stdout.read().split()[-1]
        assert run.wait(timeout=240) == 0
        assert last == str(N + 240)
    finally:
        if run.poll() is None:
            run.send_signal(signal.SIGKILL)
            run.wait()
        run.stdout.close()
    index(folder, model=encoder)
    with closing(Library.open(folder)) as opened:
        row = opened.catalog.library()
        assert opened.store_differences(Target.IMAGES, row)[1:] == (N + 240, "")
    same = tmp_path / "plain"
    shutil.copytree(folder, same, ignore=shutil.ignore_patterns(".mmsearch"))
    index(same, model=ColourEncoder())
    same_answers(folder, same, encoder)
