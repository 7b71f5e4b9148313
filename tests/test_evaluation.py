from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import mmsearch
from mmsearch.errors import LibraryNotFound, ModelError, ModelMismatch, SourceError
from mmsearch.indexes.base import Neighbors
from mmsearch.indexes.exact import ExactIndex
from mmsearch.retrieval.adapter import Adapter
from mmsearch.retrieval.evaluation import evaluate
from mmsearch.retrieval.index_quality import Answers, measure_index
from mmsearch.retrieval.library import Library
from mmsearch.retrieval.library_evaluation import evaluate_library, evaluate_pairs_in_library
from mmsearch.retrieval.quality import Sampling, evaluate_vectors
from tests.conftest import COLOURS, ColourEncoder, draw

MEASURES = {"R@1", "R@5", "R@10", "median_rank", "mrr"}
PAIRS = (
    "path\tcaption\ntrip/black.jpg\tblack\nred.jpg\tred\nred.jpg\ta red one\n"
    "./red.jpg\treddish\ngreen.jpg\tblue\n"
)


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_files_are_evaluated_as_their_vectors_are(
    photos: Path, encoder: ColourEncoder, tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text(
        "path\tcaption\ntrip/black.jpg\tblack\nred.jpg\tred\nred.jpg\ta red one\n"
        "./red.jpg\treddish\ngreen.jpg\tblue\n"
    )
    steps: list[tuple[str, int, int]] = []
    found = evaluate(pairs, photos, model=encoder, progress=lambda *step: steps.append(step))
    assert (found.images, found.captions) == (3, 5)
    assert found.text_to_image.recall[1] == 80
    assert found.image_to_text.recall[1] == pytest.approx(100 * 2 / 3)
    assert [step for step in steps if step[1] == step[2]] == [
        ("pictures", 3, 3),
        ("captions", 5, 5),
        ("scores", 5, 5),
    ]
    everything = evaluate(pairs, photos, model=encoder, gallery=True)
    assert everything.images == 6
    assert everything.to_json()["text_to_image"]["R@1"] == 80


def test_a_number_of_pictures_that_fills_its_batches(
    photos: Path, encoder: ColourEncoder, tmp_path: Path
) -> None:
    names = ["red", "green", "trip/blue", "trip/black"]
    rows = [f"{name}.jpg\t{name}\n" for name in names]
    (tmp_path / "pairs.tsv").write_text("path\tcaption\n" + "".join(rows))
    found = evaluate(tmp_path / "pairs.tsv", photos, model=encoder)
    assert found.images == encoder.batch_size == 4
    assert found.text_to_image.recall[1] == found.image_to_text.recall[1] == 100


def test_a_broken_picture_that_nobody_asked_about_is_left_out_of_the_gallery(
    photos: Path, encoder: ColourEncoder
) -> None:
    (photos / "broken.jpg").write_bytes((photos / "red.jpg").read_bytes()[:300])
    (photos / "pairs.tsv").write_text("path\tcaption\nred.jpg\tred\n")
    assert evaluate(photos / "pairs.tsv", photos, model=encoder, gallery=True).images == 6


@pytest.mark.parametrize("name", ["missing.jpg", "a dog on grass " * 300, "."])
def test_a_pair_without_its_picture_is_named(
    name: str, photos: Path, encoder: ColourEncoder, tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text(f"path\tcaption\nred.jpg\tred\n{name}\ta dog\n")
    with pytest.raises(SourceError, match="row 3: there is no picture"):
        evaluate(pairs, photos, model=encoder)


def test_a_broken_picture_stops_the_evaluation(
    photos: Path, encoder: ColourEncoder, tmp_path: Path
) -> None:
    whole = draw(tmp_path / "whole.jpg").read_bytes()
    (photos / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "pairs.tsv").write_text("path\tcaption\nbroken.jpg\ta dog\n")
    with pytest.raises(SourceError, match=r"broken\.jpg"):
        evaluate(photos / "pairs.tsv", photos, model=encoder)


def karpathy(folder: str) -> str:
    """The six pictures, each with its colour for a caption, in the format of `dataset_coco`."""
    return json.dumps(
        {
            "dataset": "coco",
            "images": [
                {
                    "filepath": folder,
                    "filename": f"{colour}.jpg",
                    "split": split,
                    "sentences": [{"raw": colour.title()}, {"raw": f"a {colour} card"}],
                }
                for colour, split in zip(
                    COLOURS, ["test", "test", "train", "restval", "test", "test"], strict=True
                )
            ],
        }
    )


@pytest.mark.parametrize("below", ["", "val2014"])
def test_karpathy_s_test_split_is_measured_in_folders_or_in_one(
    below: str, encoder: ColourEncoder, tmp_path: Path
) -> None:
    for colour in COLOURS:
        draw(tmp_path / "images" / below / f"{colour}.jpg", colour)
    source = tmp_path / "dataset_coco.json"
    source.write_text(karpathy("val2014"))
    found = evaluate(source, tmp_path / "images", model=encoder)
    assert (found.images, found.captions) == (4, 8)
    assert found.text_to_image.recall[1] == found.image_to_text.recall[1] == 100
    found = evaluate(source, tmp_path / "images", model=encoder, split="train")
    assert (found.images, found.captions) == (2, 4)
    folds = evaluate(source, tmp_path / "images", model=encoder, sampling=Sampling(folds=2))
    assert folds.to_json()["folds"] == 2
    with pytest.raises(SourceError, match="5 folds need at least as many pictures; there are 4"):
        evaluate(source, tmp_path / "images", model=encoder, sampling=Sampling(folds=5))
    with pytest.raises(SourceError, match="leave away folds or gallery"):
        evaluate(
            source, tmp_path / "images", model=encoder, sampling=Sampling(folds=2), gallery=True
        )


def test_a_picture_that_is_missing_from_one_folder_is_named(
    encoder: ColourEncoder, tmp_path: Path
) -> None:
    for colour in ("black", "red", "yellow"):
        draw(tmp_path / f"{colour}.jpg", colour)
    (tmp_path / "dataset_coco.json").write_text(karpathy("val2014"))
    with pytest.raises(SourceError, match=r"row 6: there is no picture val2014/white\.jpg"):
        evaluate(tmp_path / "dataset_coco.json", tmp_path, model=encoder)


class Forgetful(ExactIndex):
    """Misses some ids, as an approximate index may."""

    def __init__(self, dim: int, missed: set[int]) -> None:
        super().__init__(dim)
        self.missed = missed

    @property
    def exact(self) -> bool:
        return False

    def _search(self, queries, k, effort, among) -> Neighbors:
        kept = np.array([id_ for id_ in self._ids.tolist() if id_ not in self.missed])
        return super()._search(queries, k, effort, kept)


@pytest.mark.parametrize("seed", range(3))
def test_an_exact_index_finds_what_the_exact_search_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Several pictures are equal, and several ids mean the same picture.
    images = unit(rng.normal(size=(40, 6)))[rng.choice(40, 60)].astype(np.float16)
    row_of = np.concatenate([np.arange(60), rng.choice(60, 30)])
    ids = np.sort(rng.choice(1000, 90, replace=False))
    image_of = rng.choice(60, 70)
    texts = unit(images[image_of] + 0.5 * rng.normal(size=(70, 6)))
    index = ExactIndex(6)
    index.add(ids, images[row_of])
    to_image, to_text = evaluate_vectors(images, texts, image_of)
    found = measure_index(index, Answers(ids, row_of, images, np.arange(60)), texts, image_of)
    assert (found.recall, found.agreement, found.exact) == (to_image.recall, 1.0, True)
    assert 0 < to_image.recall[1] < to_image.recall[10] < 100
    captions = ExactIndex(6)
    captions.add(np.arange(70) * 3, texts)
    asked = np.unique(image_of)
    answers = Answers(np.arange(70) * 3, np.arange(70), texts, image_of)
    found = measure_index(captions, answers, images[asked], asked)
    assert (found.recall, found.agreement) == (to_text.recall, 1.0)


def test_what_an_approximate_index_loses_shows() -> None:
    images = np.eye(20, dtype=np.float32)
    index = Forgetful(20, {0, 1, 2, 3, 4})
    index.add(np.arange(20), images)
    answers = Answers(np.arange(20), np.arange(20), images, np.arange(20))
    # Each text likes its own picture best, then the nine after it, the nearer the more.
    likes = np.array([[max(0, 10 - (j - i) % 20) for j in range(20)] for i in range(20)])
    steps: list[tuple[int, int]] = []
    found = measure_index(
        index, answers, unit(likes.astype(float)), np.arange(20), lambda *step: steps.append(step)
    )
    assert not found.exact
    assert found.recall == {1: 75, 5: 75, 10: 75}
    # Each of the five pictures was among the first ten of ten texts; what is found in its place
    # is worse than the tenth.
    assert found.agreement == pytest.approx(1 - 5 * 10 / (20 * 10))
    assert found.to_json()["agreement@10"] == 0.75
    assert steps[-1] == (20, 20)


@pytest.fixture
def captioned(photos: Path, encoder: ColourEncoder) -> Path:
    """An indexed folder; two of its six pictures have no caption."""
    (photos / "pairs.tsv").write_text(PAIRS.replace("green", "trip/blue") + "white.jpg\tdark\n")
    mmsearch.index(photos, model=encoder, captions=photos / "pairs.tsv")
    return photos


def test_a_library_s_own_captions(captioned: Path, encoder: ColourEncoder) -> None:
    before = encoder.embedded_images, encoder.prepared
    steps: list[tuple[str, int, int]] = []
    report = evaluate_library(captioned, model=encoder, progress=lambda *step: steps.append(step))
    assert (encoder.embedded_images, encoder.prepared) == before
    assert [step for step in steps if step[1] == step[2]] == [("scores", 6, 6), ("index", 10, 10)]
    found = report.to_json()
    assert (found["images"], found["captions"], found["library"]) == (6, 6, str(captioned))
    assert found["confidence_level"] == 0.95
    assert found["bootstrap"] == {"resamples": 1000, "seed": 0, "unit": "picture"}
    direct = evaluate(captioned / "pairs.tsv", captioned, model=encoder, gallery=True)
    for name in ("text_to_image", "image_to_text"):
        way = found[name]
        assert set(way) == MEASURES | {"confidence", "index"}
        assert {key: way[key] for key in MEASURES} == {
            key: direct.to_json()[name][key] for key in MEASURES
        }
        recall = {key: way[key] for key in ("R@1", "R@5", "R@10")}
        assert way["index"] == recall | {"agreement@10": 1.0, "exact": True}
    latency = found["latency_ms"]
    assert latency["queries"] == 6
    for part in ("query", "search"):
        assert 0 < latency[part]["p50"] <= latency[part]["p95"] <= latency[part]["p99"]


def test_a_tuned_library_is_measured_as_it_answers(captioned: Path, encoder: ColourEncoder) -> None:
    plain = evaluate_library(captioned, model=encoder)
    rng = np.random.default_rng(0)
    gate = np.zeros(14, dtype=np.float32)
    adapter = Adapter(gate, rng.normal(size=(14, 13)).astype(np.float32))
    with closing(Library.open(captioned)) as library, library.catalog.write() as transaction:
        row = library.catalog.library()
        assert row.encoder_id is not None
        transaction.add_adapter(row.encoder_id, adapter.to_bytes(), {})
    tuned = evaluate_library(captioned, model=encoder)
    assert (plain.tuned, tuned.tuned) == (False, True)
    assert tuned.text_to_image.mrr < plain.text_to_image.mrr
    for way, index in (
        (tuned.text_to_image, tuned.image_index),
        (tuned.image_to_text, tuned.caption_index),
    ):
        assert index is not None
        assert (index.recall, index.agreement) == (way.recall, 1)
    from_file = evaluate_pairs_in_library(
        captioned, captioned / "pairs.tsv", model=encoder, gallery=True
    )
    assert from_file.text_to_image == tuned.text_to_image


def test_copies_of_a_picture_and_of_a_caption_count_once(
    captioned: Path, encoder: ColourEncoder
) -> None:
    before = evaluate_library(captioned, model=encoder)
    shutil.copy(captioned / "red.jpg", captioned / "copy of red.jpg")
    (captioned / "copy of red.txt").write_text("red\na red copy\n")
    mmsearch.index(captioned, model=encoder)
    after = evaluate_library(captioned, model=encoder)
    assert (after.images, after.captions) == (before.images, before.captions + 1)
    assert after.image_to_text == before.image_to_text
    assert after.text_to_image.median_rank == before.text_to_image.median_rank
    assert after.image_index is not None
    assert after.image_index.recall == after.text_to_image.recall
    assert after.image_index.agreement == 1


def test_a_library_whose_encoder_is_gone_is_measured_without_latency(
    captioned: Path, encoder: ColourEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        report = evaluate_library(captioned, sampling=Sampling(resamples=0))
    assert "latency is not measured" in caplog.text
    found = report.to_json()
    assert not {"latency_ms", "bootstrap", "confidence_level"} & set(found)
    assert set(found["text_to_image"]) == MEASURES | {"index"}
    with pytest.raises(ModelError, match="no encoder 'elsewhere'"):
        evaluate_library(captioned, model="elsewhere")
    with pytest.raises(ModelMismatch, match="mmsearch migrate"):
        evaluate_library(captioned, model=ColourEncoder("2"))
    with pytest.raises(ValueError, match="one fold"):
        evaluate_library(captioned, model=encoder, sampling=Sampling(folds=2))


def test_a_library_without_captions_says_what_to_do(photos: Path, encoder: ColourEncoder) -> None:
    with pytest.raises(LibraryNotFound, match="mmsearch index"):
        evaluate_library(photos)
    mmsearch.index(photos, model=encoder)
    with pytest.raises(SourceError, match=r"PAIRS --images FOLDER.*--captions FILE"):
        evaluate_library(photos, model=encoder)


def test_pairs_about_a_library_s_pictures(
    captioned: Path, encoder: ColourEncoder, tmp_path: Path
) -> None:
    pairs = tmp_path / "other.tsv"
    pairs.write_text(PAIRS)
    before = encoder.prepared
    found = evaluate_pairs_in_library(captioned, pairs, model=encoder)
    assert encoder.prepared == before
    direct = evaluate(pairs, captioned, model=encoder)
    assert (found.images, found.captions) == (direct.images, direct.captions) == (3, 5)
    assert found.text_to_image == direct.text_to_image
    assert found.image_to_text == direct.image_to_text
    assert found.image_index is None
    wide = evaluate_pairs_in_library(captioned, pairs, model=encoder, gallery=True)
    assert wide.images == 6
    assert wide.image_index is not None
    assert wide.image_index.recall == wide.text_to_image.recall
    assert "index" not in wide.to_json()["image_to_text"]
    assert evaluate_pairs_in_library(
        captioned, pairs, model=encoder, sampling=Sampling(folds=3)
    ).text_to_image.recall == {1: 100, 5: 100, 10: 100}
    pairs.write_text(PAIRS + "trip/nowhere.jpg\tnothing\n")
    with pytest.raises(SourceError, match=r"row 7: the library at .* has no picture trip/nowhere"):
        evaluate_pairs_in_library(captioned, pairs, model=encoder)
    pairs.write_text(PAIRS)
    with pytest.raises(ModelMismatch):
        evaluate_pairs_in_library(captioned, pairs, model=ColourEncoder("2"))


def run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [Path(sys.executable).with_name("mmsearch"), "evaluate", *map(str, arguments)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"COLUMNS": "200"},
    )
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr
    return done


def test_the_command_from_end_to_end(tmp_path: Path) -> None:
    photos, pairs = tmp_path / "my photos", tmp_path / "pairs.tsv"
    for colour in ("red", "green", "blue", "black"):
        draw(photos / f"{colour}.jpg", colour, (320, 240))
    pairs.write_text(
        "path\tcaption\nred.jpg\ta red card\ngreen.jpg\ta green card\nblue.jpg\tblue paper\n"
    )
    mmsearch.index(photos, captions=pairs)
    own = json.loads(run("--library", photos, "--json").stdout)
    assert (own["schema"], own["images"], own["captions"]) == (1, 4, 3)
    assert own["latency_ms"]["queries"] == 3
    assert own["text_to_image"]["index"]["exact"] is True
    lines = run("-L", photos, "--resamples", 20).stdout.splitlines()
    assert lines[0].endswith("(95 % intervals: 20 resamples of the pictures)")
    assert [line.split()[0] for line in lines[1:]] == [
        "text→image", "by", "image→text", "by", "query", "search",
    ]  # fmt: skip
    assert "100.0 % of the first ten (exact)" in lines[2]
    stored = json.loads(run(pairs, "-L", photos, "--resamples", 0, "--json").stdout)
    embedded = json.loads(run(pairs, "--images", photos, "--resamples", 0, "--json").stdout)
    assert {key: stored[key] for key in embedded} == embedded
    assert set(embedded) == {"schema", "model", "images", "captions", "text_to_image",
                             "image_to_text"}  # fmt: skip
    assert set(embedded["text_to_image"]) == MEASURES
    (_, first, _) = run(pairs, "--images", photos, "--folds", 3).stdout.splitlines()
    assert first.startswith("text→image  R@1 100.0 (100.0–100.0)  R@5")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("pairs.tsv",), 2, "--images FOLDER"),
        (("pairs.tsv", "--images", ".", "--library", "."), 2, "in one way"),
        (("--images", "."), 2, "name it first"),
        (("--folds", "5"), 2, "name it first"),
        (("pairs.tsv", "--images", ".", "--folds", "0"), 2, "--folds"),
        (("pairs.tsv", "--images", ".", "--resamples", "-1"), 2, "--resamples"),
        (("pairs.tsv", "--images", ".", "--split", "val"), 1, "leave the split away"),
        (("pairs.tsv", "--images", ".", "--folds", "9"), 1, "9 folds need"),
        (("wrong.tsv", "--images", "."), 1, "row 2: there is no picture y.jpg"),
        (("pairs.tsv", "--library", "."), 1, "mmsearch index"),
        (("dataset.json", "--images", ".", "--split", "dev"), 1, "restval, test, train"),
    ],
)
def test_bad_calls_get_one_clear_answer(
    arguments: tuple[str, ...],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw(tmp_path / "x.jpg")
    (tmp_path / "pairs.tsv").write_text("path\tcaption\nx.jpg\tred\n")
    (tmp_path / "wrong.tsv").write_text("path\tcaption\ny.jpg\tred\n")
    (tmp_path / "dataset.json").write_text(karpathy(""))
    monkeypatch.chdir(tmp_path)
    done = run(*arguments, code=code)
    assert done.stdout == ""
    assert words in " ".join(done.stderr.split())
