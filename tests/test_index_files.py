"""Index files beside a catalog that changes: what they cost, and that they never lie."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from mmsearch import indexes
from mmsearch.cli import app
from mmsearch.indexes import choice, grown
from mmsearch.indexes.checked_file import CheckedFile
from mmsearch.indexes.exact import ExactIndex
from mmsearch.indexes.faiss import FaissIndex
from mmsearch.indexes.faiss_hnsw import HnswIndex
from mmsearch.indexes.faiss_ivf import IvfIndex
from mmsearch.indexes.grown import GrownIndex
from mmsearch.retrieval import index_files
from mmsearch.retrieval.catalog import Catalog
from mmsearch.retrieval.library import Library
from mmsearch.retrieval.schema import EncoderSpec, Target
from tests.test_approximate import clusters, rot
from tests.test_catalog import picture

SPEC = EncoderSpec("test", "clusters", "1", "ab" * 32, "{}", 32)


def put(library: Library, number: int, vector: NDArray[np.float32]) -> None:
    with library.catalog.write() as transaction:
        encoder_id = transaction.encoder_id(SPEC, "clusters")
        content = Random(vector.tobytes()).randbytes(32)
        transaction.put_file(picture(f"{number}.jpg", content), encoder_id, vector)


def fill(folder: Path, n: int) -> Library:
    library = Library.create(folder)
    vectors = clusters(n, 11)
    with library.catalog.write() as transaction:
        encoder_id = transaction.encoder_id(SPEC, "clusters")
        transaction.activate(encoder_id)
        for i, vector in enumerate(vectors):
            content = i.to_bytes(32, "big")
            transaction.put_file(picture(f"{i}.jpg", content), encoder_id, vector)
    return library


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    monkeypatch.setattr(index_files, "GROWN_FROM_BYTES", 0)
    (tmp_path / "photos").mkdir()
    return fill(tmp_path / "photos", 300)


def opened(library: Library, **options: bool) -> indexes.VectorIndex:
    return library.open_index(Target.IMAGES, library.catalog.library(), **options)


def assert_current(library: Library, index: indexes.VectorIndex) -> None:
    row = library.catalog.library()
    assert row.encoder_id is not None
    ids, vectors = library.catalog.file_vectors(row.encoder_id, SPEC.dim)
    right = ExactIndex(SPEC.dim)
    right.add(ids, vectors)
    assert sorted(index.ids.tolist()) == ids.tolist()
    queries = clusters(5, 12)
    np.testing.assert_allclose(
        index.search(queries, 7).scores, right.search(queries, 7).scores, atol=2e-3
    )


def names(library: Library) -> list[str]:
    return sorted(path.name for path in (library.folder / "index").glob("images-*"))


def test_a_large_index_costs_what_changed(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(library)
    (base,) = names(library)
    put(library, 5, clusters(1, 20)[0])
    put(library, 1_000, clusters(1, 21)[0])
    with library.catalog.write() as transaction:
        transaction.remove_files([1, 2, 300])
    with monkeypatch.context() as patch:
        patch.setattr(Catalog, "file_vectors", None)  # all vectors are not read
        index = opened(library)
        assert isinstance(index, GrownIndex)
        again = opened(library)
    assert base in names(library)
    assert len(names(library)) == 2
    for each in (index, again):
        assert_current(library, each)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("merged_from", [2, 10_000])
def test_whatever_happens_to_the_catalog_the_index_tells_the_same(
    library: Library, seed: int, merged_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grown, "MERGED_FROM", merged_from)
    monkeypatch.setattr(grown, "MERGED_SHARE", 0)
    random = Random(seed)
    for step in range(8):
        for _ in range(random.randrange(4)):
            put(library, random.randrange(310), clusters(1, random.randrange(999))[0])
        with library.catalog.write() as transaction:
            transaction.remove_files(random.sample(range(1, 320), random.randrange(3)))
        thorough = random.random() < 0.3
        index = opened(library, thorough=thorough)
        assert_current(library, index)
        if thorough:
            with library.catalog.write() as transaction:
                transaction.forget_changes(library.catalog.library().stamp)
        assert len(names(library)) <= 2, step
    if merged_from > 100:
        assert isinstance(opened(library), GrownIndex)


def test_a_query_never_waits_for_a_merge_and_the_next_run_makes_up_for_it(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grown, "MERGED_FROM", 2)
    monkeypatch.setattr(grown, "MERGED_SHARE", 0)
    opened(library)
    for i in range(4):
        put(library, 500 + i, clusters(1, 20 + i)[0])
    for _ in range(2):
        index = opened(library)
        assert isinstance(index, GrownIndex)
        assert index.worth_merging
        assert len(names(library)) == 2
    index = opened(library, thorough=True)
    assert isinstance(index, FaissIndex)
    assert_current(library, index)
    assert len(names(library)) == 1
    assert_current(library, opened(library))


def test_changes_that_were_forgotten_are_not_missed(library: Library) -> None:
    opened(library)
    put(library, 400, clusters(1, 30)[0])
    with library.catalog.write() as transaction:
        transaction.forget_changes(library.catalog.library().stamp)
    index = opened(library)
    assert isinstance(index, FaissIndex)
    assert_current(library, index)


def test_a_catalog_that_was_set_back_does_not_trust_files_of_another_history(
    library: Library, tmp_path: Path
) -> None:
    opened(library)
    library.close()
    shutil.copytree(library.folder, tmp_path / "backup")
    after = Library.open(library.root)
    put(after, 5, clusters(1, 40)[0])
    opened(after)
    after.close()
    shutil.copy(tmp_path / "backup" / "catalog.sqlite", library.folder / "catalog.sqlite")
    restored = Library.open(library.root)
    put(restored, 6, clusters(1, 41)[0])
    assert_current(restored, opened(restored))
    restored.close()


def test_another_encoder_makes_another_index(library: Library) -> None:
    opened(library)
    other = EncoderSpec("test", "clusters", "2", "ab" * 32, "{}", SPEC.dim)
    with library.catalog.write() as transaction:
        encoder_id = transaction.encoder_id(other, "clusters")
        transaction.put_file(picture("0.jpg", bytes(32)), encoder_id, clusters(1, 50)[0])
        transaction.activate(encoder_id)
    index = opened(library)
    assert isinstance(index, FaissIndex)
    assert len(index) == 1
    assert_current(library, index)


def test_rot_is_noticed_when_the_library_is_indexed_again(library: Library) -> None:
    opened(library)
    put(library, 5, clusters(1, 20)[0])
    opened(library)
    base = indexes.base_of(library.folder / "index" / names(library)[-1])
    rows = CheckedFile(base).rows
    assert rows is not None
    rot(base, rows.start + 100 * rows.length, 256)
    index = opened(library, thorough=True)
    assert_current(library, index)
    index.check()
    assert len(names(library)) == 1


@pytest.fixture
def larger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    """A library for which 1,000 vectors are many."""
    monkeypatch.setattr(choice, "NEVER_BELOW", 1_000)
    (tmp_path / "many").mkdir()
    return fill(tmp_path / "many", 2_500)


def test_optimize_tunes_measures_and_is_remembered(larger: Library) -> None:
    larger.close()
    arguments = ["optimize", "--recall", "0.9", "--exact-ms", "0", "--library", str(larger.root)]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout.splitlines()[0])["indexes"]
    images = made["images"]
    assert images["search"] == "approximate"
    assert images["other_queries"] == "imitated"
    assert images["recall"] == min(images["measured"].values()) >= 0.85
    assert images["latency_ms"]["p50"] > 0
    assert made["captions"]["search"] == "exact"

    library = Library.open(larger.root)
    index = opened(library)
    assert isinstance(index, IvfIndex)
    assert index.recall == images["recall"]
    # What was measured is so: against the vectors themselves.
    row = library.catalog.library()
    right = ExactIndex(SPEC.dim)
    right.add(*library.catalog.file_vectors(row.encoder_id or 0, SPEC.dim))
    queries = clusters(200, 60)
    pairs = zip(index.search(queries, 10).ids, right.search(queries, 10).ids, strict=True)
    assert np.mean([len(np.intersect1d(a, b)) for a, b in pairs]) / 10 > 0.85

    # A later change without a thorough run answers exactly, or with the grown index; then again.
    put(library, 9_999, clusters(1, 61)[0])
    assert len(opened(library)) == 2_501
    again = opened(library, thorough=True)
    assert isinstance(again, IvfIndex)
    assert not again.exact
    status = CliRunner().invoke(app, ["status", "--json", "--library", str(larger.root)])
    assert json.loads(status.stdout)["search"] == "approximate"
    assert json.loads(status.stdout)["recall"] == again.recall
    library.close()
    done = CliRunner().invoke(app, ["optimize", "--recall", "1", "--library", str(larger.root)])
    assert done.exit_code == 0
    assert "exact search" in done.stderr
    status = CliRunner().invoke(app, ["status", "--json", "--library", str(larger.root)])
    assert json.loads(status.stdout)["search"] == "exact"


def test_optimize_makes_the_kind_that_is_asked_for_and_remembers(larger: Library) -> None:
    larger.close()
    arguments = ["optimize", "--kind", "hnsw", "--library", str(larger.root)]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout.splitlines()[0])["indexes"]
    assert made["images"]["search"] == "approximate"
    assert made["captions"]["search"] == "exact", "there are none"
    library = Library.open(larger.root)
    assert isinstance(opened(library), HnswIndex)
    put(library, 9_999, clusters(1, 61)[0])
    assert opened(library).exact, "small files are made anew, for now in the quickest way"
    assert isinstance(opened(library, thorough=True), HnswIndex)
    library.close()


@pytest.mark.parametrize("memory", ["", "2X", "much", "-1G"])
def test_an_amount_of_memory_must_be_one(memory: str) -> None:
    done = CliRunner().invoke(app, ["optimize", "--memory", memory])
    assert done.exit_code == 2
    assert "2G" in done.output


def test_memory_decides_too(larger: Library) -> None:
    row = larger.catalog.library()
    wide = larger.build_index(Target.IMAGES, row, settings={"memory_bytes": 10**9})
    assert wide.exact
    tight = larger.build_index(Target.IMAGES, row, settings={"memory_bytes": 10**5})
    assert isinstance(tight, IvfIndex)
