"""What scores mean nothing: the same from its file as made anew, and never another library's."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import mmsearch
from mmsearch.retrieval import ingest, null_distribution
from mmsearch.retrieval.adapter import Adapter
from mmsearch.retrieval.calibration import Calibration
from mmsearch.retrieval.confidence import CUT
from mmsearch.retrieval.duplicates import likeness
from mmsearch.retrieval.library import Library
from mmsearch.retrieval.null_distribution import NullDistribution
from mmsearch.retrieval.schema import Target
from tests.conftest import COLOURS, ColourEncoder, draw
from tests.test_approximate import clusters
from tests.test_index_files import SPEC, fill, put

NAMES = clusters(60, 3)


@pytest.fixture
def library(tmp_path: Path) -> Library:
    (tmp_path / "photos").mkdir()
    return fill(tmp_path / "photos", 200)


def asked(
    library: Library, adapter: Adapter | None = None, names: NDArray[np.float32] = NAMES
) -> NullDistribution:
    row = library.catalog.library()
    assert row.encoder_id is not None

    def ids() -> NDArray[np.int64]:
        return library.catalog.vector_ids(Target.IMAGES, row.encoder_id or 0)

    found = null_distribution.null_distribution(library, row, names, adapter, ids)
    assert found is not None
    return found


def assert_same(one: NullDistribution, other: NullDistribution) -> None:
    np.testing.assert_array_equal(one.sample, other.sample)
    assert (one.middle, one.spread, one.likeness) == (other.middle, other.spread, other.likeness)


@pytest.fixture
def makings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of libraries for which it was made anew."""
    made: list[int] = []
    really = Calibration.of

    def counted(names: NDArray[np.float32], sample: NDArray[np.float32], size: int) -> Calibration:
        made.append(size)
        return really(names, sample, size)

    monkeypatch.setattr(Calibration, "of", counted)
    return made


def test_it_is_that_of_the_vectors_and_comes_back_as_it_was(
    library: Library, makings: list[int]
) -> None:
    first = asked(library)
    vectors = library.catalog.file_vectors(1, SPEC.dim)[1].astype(np.float32)
    np.testing.assert_array_equal(first.sample, vectors)
    right = NAMES @ vectors.T
    assert first.middle == pytest.approx(float(right.mean()), abs=1e-6)
    assert first.spread == pytest.approx(float(right.std()), rel=1e-5)
    assert first.likeness == likeness(vectors)
    assert_same(first, asked(library))
    assert makings == [200]


def flipped(raw: bytes) -> bytes:
    return raw[:-1] + bytes([raw[-1] ^ 1])


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: raw[:-2],
        lambda raw: raw[: len(raw) // 8],
        flipped,
        lambda raw: b"[]\n" + raw,
        lambda raw: raw.replace(b'"middle"', b'"muddle"'),
        lambda raw: raw.replace(b'"format": 1', b'"format": 2'),
        lambda raw: raw.replace(b'"burst"', b'"brust"'),
    ],
)
def test_a_damaged_file_is_made_anew(
    library: Library, makings: list[int], damage: Callable[[bytes], bytes]
) -> None:
    first = asked(library)
    whole = library.null_file.read_bytes()
    library.null_file.write_bytes(damage(whole))
    assert_same(first, asked(library))
    assert makings == [200, 200]
    assert library.null_file.read_bytes() == whole


def test_one_of_another_library_encoder_or_adapter_is_no_use(
    library: Library, tmp_path: Path, makings: list[int]
) -> None:
    first = asked(library)
    dim = SPEC.dim
    adapter = Adapter(np.zeros(dim + 1, np.float32), np.eye(dim + 1, dim, dtype=np.float32))
    adapted = asked(library, adapter, adapter.apply(NAMES))
    assert makings == [200, 200]
    assert adapted.middle != first.middle
    other = Adapter(adapter.gate, 2 * adapter.weights)
    assert asked(library, other, other.apply(NAMES)).middle != adapted.middle
    asked(library)
    assert makings == [200] * 4
    (tmp_path / "other").mkdir()
    stranger = fill(tmp_path / "other", 150)
    asked(stranger)
    library.null_file.write_bytes(stranger.null_file.read_bytes())
    assert_same(first, asked(library))
    with library.catalog.write() as transaction:
        encoder_id = transaction.encoder_id(replace(SPEC, revision="2"), "clusters")
        transaction.activate(encoder_id)
        for i, vector in enumerate(clusters(200, 77)):
            transaction.put_content_vector(i.to_bytes(32, "big"), encoder_id, vector)
    assert asked(library).middle != first.middle


def test_it_serves_until_a_twentieth_has_changed(library: Library, makings: list[int]) -> None:
    first = asked(library)
    for number in range(10):
        put(library, 500 + number, clusters(1, 30 + number)[0])
        assert_same(first, asked(library))
    put(library, 7, clusters(1, 50)[0])
    assert len(asked(library).sample) == 210
    assert makings == [200, 210]
    with library.catalog.write() as transaction:
        transaction.remove_files(range(1, 12))
    assert len(asked(library).sample) == 199
    assert makings == [200, 210, 199]


def test_what_runs_forgot_still_counts(
    library: Library, makings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(null_distribution, "background", lambda *_, **__: NAMES)
    encoder = ColourEncoder()
    null_distribution.prepare(library, encoder)
    first = asked(library)
    for run in range(3):
        for number in range(4):
            put(library, 600 + 10 * run + number, clusters(1, 60 + number)[0])
        # As a run ends: nobody can tell any more what changed before it.
        null_distribution.prepare(library, encoder)
        library.refresh_indexes(lambda *_: None)
        assert (len(asked(library).sample) == 200) == (run < 2)
    assert makings == [200, 212]
    assert not np.array_equal(first.sample, asked(library).sample)


def test_a_folder_that_cannot_be_written_to_keeps_nothing(
    library: Library, makings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    library.null_file.parent.mkdir()
    with monkeypatch.context() as patch:

        def refused(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        # An administrator may write wherever it is.
        patch.setattr(os, "replace", refused)
        patch.setattr(os, "mkdir", refused)
        first = asked(library)
        assert_same(first, asked(library))
    assert list(library.null_file.parent.iterdir()) == []
    assert makings == [200, 200]


def test_answers_are_the_same_with_the_file_and_without(
    photos: Path, encoder: ColourEncoder
) -> None:
    for i in range(30):
        draw(photos / f"more {i}.png", list(COLOURS)[i % 3], (40 + i, 40))
    told: list[str] = []

    def follow(progress: ingest.Progress) -> None:
        told.append(progress.stage)

    mmsearch.index(photos, model=encoder, progress=follow)
    assert "names" in told
    before = encoder.embedded_texts
    with mmsearch.open(photos, model=encoder) as engine:
        kept = engine.search("red", cut=CUT, group=True)
        assert encoder.embedded_texts == before + 1
        file = engine.library.null_file
    assert kept.hits[0].match is not None
    file.unlink()
    with mmsearch.open(photos, model=encoder) as engine:
        assert engine.search("red", cut=CUT, group=True).hits == kept.hits
    assert file.exists()
    told.clear()
    mmsearch.index(photos, model=encoder, progress=follow)
    assert "names" not in told


def test_names_that_were_never_embedded_are_when_a_question_comes(
    photos: Path, encoder: ColourEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mmsearch.index(photos, model=encoder)
    monkeypatch.setenv("MMSEARCH_CACHE", str(tmp_path / "another user's"))
    before = encoder.embedded_texts
    with mmsearch.open(photos, model=encoder) as engine:
        assert engine.search("red").hits[0].match is not None
    assert encoder.embedded_texts > before + 1_000
