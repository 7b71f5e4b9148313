"""`fast`: regions read while pictures are indexed, or when they are needed, and what it says."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from typer.testing import CliRunner

import mmsearch
from mmsearch.cli import app
from mmsearch.errors import ModelError
from mmsearch.retrieval.encoders import load_encoder
from mmsearch.retrieval.encoders.samples import sample_pictures, sample_texts
from mmsearch.retrieval.ingest import index
from mmsearch.retrieval.rerankers import Pair, View, load_reranker
from mmsearch.retrieval.rerankers.bundled import BUNDLED, BundledReranker
from tests.conftest import ColourEncoder

if TYPE_CHECKING:
    from PIL import Image

NEAR = 0.1
"""Batches of other shapes round differently, and a byte may round the other way."""


@pytest.fixture(scope="module")
def fast() -> BundledReranker:
    reranker = load_reranker("fast")
    assert isinstance(reranker, BundledReranker)
    return reranker


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "my photos"
    folder.mkdir()
    for number, picture in enumerate(sample_pictures()):
        picture.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture number {number}", encoding="utf-8")
    index(folder)
    return folder


def views(pictures: list[Image.Image]) -> list[View]:
    return [View(i, lambda _, one=one: one) for i, one in enumerate(pictures)]  # type: ignore[misc]


def asked(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def kept(library: Path) -> int:
    connection = sqlite3.connect(library / ".mmsearch" / "regions.sqlite")
    try:
        return int(connection.execute("SELECT count(*) FROM regions").fetchone()[0])
    finally:
        connection.close()


def test_vectors_are_those_of_the_encoder_and_regions_are_bytes(fast: BundledReranker) -> None:
    encoder = load_encoder()
    pixels = [encoder.prepare(picture) for picture in sample_pictures()]
    vectors, regions = fast.look(pixels)
    np.testing.assert_allclose(vectors, encoder.encode_pixels(pixels), atol=1e-4)
    assert (regions.dtype, regions.shape) == (np.uint8, (len(pixels), 1026))
    assert np.unique(regions).size > 100, "next to nothing is said of a picture"


def test_a_pair_has_the_same_score_alone_and_in_company(fast: BundledReranker) -> None:
    shown = views(sample_pictures())
    texts = [text for text in sample_texts() if text][:4]
    pairs = [Pair(text, view, 0.2) for text in texts for view in shown]
    together = fast.rerank(pairs).scores
    alone = np.concatenate([fast.rerank([pair]).scores for pair in pairs])
    np.testing.assert_allclose(together, alone, atol=NEAR)
    assert np.ptp(together) > 1, "it tells nothing apart"


def test_the_first_stage_counts(fast: BundledReranker) -> None:
    view = views(sample_pictures()[:1])[0]
    low, high = fast.rerank([Pair("a dog", view, 0.1), Pair("a dog", view, 0.4)]).scores
    assert high > low


def test_a_picture_is_looked_at_once(fast: BundledReranker) -> None:
    opened: list[int] = []

    def decoded(at_least: int) -> Image.Image:
        opened.append(at_least)
        return sample_pictures()[0]

    view = View("question", decoded)
    fast.rerank([Pair(f"text {number}", view, 0.0) for number in range(40)])
    assert opened == [load_encoder().decode_size]
    assert view.regions is not None


def test_indexing_keeps_regions_and_queries_read_no_file(library: Path) -> None:
    files = len(sample_pictures())
    assert kept(library) == files
    first = asked("query", "a red picture", "--library", library, "--rerank", "fast", "--all")
    assert first["rerank"]["model"] == "fast"
    assert first["rerank"]["reranked"] == files
    # Moved aside, they cannot have been read; the regions say what they show.
    for path in library.glob("*.png"):
        path.rename(path.with_suffix(".gone"))
    again = asked("query", "a red picture", "--library", library, "--rerank", "fast", "--all")
    assert scores(again) == pytest.approx(scores(first))


def test_what_is_missing_is_read_from_the_pictures_and_kept(library: Path) -> None:
    before = asked("query", "a red picture", "--library", library, "--rerank", "fast", "--all")
    (library / ".mmsearch" / "regions.sqlite").unlink()
    after = asked("query", "a red picture", "--library", library, "--rerank", "fast", "--all")
    assert scores(after) == pytest.approx(scores(before), abs=NEAR)
    assert kept(library) == len(sample_pictures())


def test_a_picture_that_was_moved_is_known_and_one_that_changed_is_read(library: Path) -> None:
    (library / "0.png").rename(library / "elsewhere.png")
    sample_pictures()[2].resize((111, 99)).save(library / "1.png")
    report = index(library)
    assert (report.moved, report.updated) == (1, 1)
    assert kept(library) == len(sample_pictures()) + 1  # What 1.png was goes when it is much.


def test_captions_of_a_picture_are_reranked(library: Path) -> None:
    found = asked(
        "query", "--image", library / "0.png", "--to", "captions", "--library", library,
        "--rerank", "fast",
    )  # fmt: skip
    assert found["rerank"]["reranked"] == len(sample_pictures())
    told = [result["rerank_score"] for result in found["results"]]
    assert told == sorted(told, reverse=True)


def test_it_refuses_the_order_of_another_encoder(library: Path) -> None:
    with pytest.raises(ModelError, match=r"reads what compact@.* sees.*--rerank hf:NAME_OR_PATH"):
        load_reranker("fast", ColourEncoder())


@pytest.mark.parametrize("harm", ["altered", "lacking", "other", "no json"])
def test_a_damaged_folder_says_what_to_do(tmp_path: Path, harm: str) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(BUNDLED, folder)
    if harm == "altered":
        data = bytearray((folder / "match.onnx").read_bytes())
        data[-10] ^= 1
        (folder / "match.onnx").write_bytes(data)
    elif harm == "lacking":
        (folder / "regions.onnx").unlink()
    elif harm == "other":
        fields = json.loads((folder / "reranker.json").read_text(encoding="utf-8"))
        (folder / "reranker.json").write_text(json.dumps(fields | {"format": 99}))
    else:
        (folder / "reranker.json").write_text("{")
    with pytest.raises(ModelError, match=r"Get it again|train-reranker") as told:
        load_reranker(folder).rerank([Pair("a dog", views(sample_pictures()[:1])[0], 0.0)])
    assert str(folder) in str(told.value)


def test_a_folder_answers_as_the_bundled_one_does(tmp_path: Path, fast: BundledReranker) -> None:
    folder = tmp_path / "a copy"
    shutil.copytree(BUNDLED, folder)
    pairs = [Pair("a dog on a beach", view, 0.1) for view in views(sample_pictures())]
    copy = load_reranker(str(folder))
    assert copy.name == str(folder)
    np.testing.assert_array_equal(copy.rerank(pairs).scores, fast.rerank(pairs).scores)


def test_the_engine_shares_its_encoder_and_loads_a_reranker_once(library: Path) -> None:
    engine = mmsearch.open(library)
    first = engine.search("a dog", rerank="fast", k=3)
    known = list(engine._rerankers.values())
    engine.search("a cat", rerank="fast", k=3)
    assert list(engine._rerankers.values()) == known
    assert known[0]._encoder is engine.encoder  # type: ignore[attr-defined]
    assert first.rerank is not None
    assert first.rerank.reranked == len(sample_pictures())
    engine.library.close()


def scores(found: dict[str, Any]) -> dict[str, float]:
    return {result["path"]: result["rerank_score"] for result in found["results"]}
