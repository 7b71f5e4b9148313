"""Tuning a library: what is learned, when it is refused, and the way back."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from mmsearch.cli import app
from mmsearch.errors import LibraryLocked, ModelMismatch, SourceError, StorageError
from mmsearch.retrieval import held_out, tuning
from mmsearch.retrieval.adapter import Captioned
from mmsearch.retrieval.catalog import Catalog, Transaction
from mmsearch.retrieval.engine import SearchEngine, open_engine
from mmsearch.retrieval.evidence import Evidence
from mmsearch.retrieval.ingest import index
from mmsearch.retrieval.library import Library
from mmsearch.retrieval.model_change import migrate
from tests.conftest import ColourEncoder, draw

MMSEARCH = str(Path(sys.executable).with_name("mmsearch"))
PICTURES = 100


class ToneEncoder(ColourEncoder):
    """Takes "tones" and twelve numbers for the colours of the quarters, but in a wrong order."""

    def _encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        plain = super()._encode_texts(texts)
        for row, text in enumerate(texts):
            if text.startswith("tones "):
                tones = np.roll([int(word) for word in text.split()[1:]], 3)
                plain[row] = self._unit(tones[None] / 255)[0]
        return plain


def tones(number: int) -> NDArray[np.uint8]:
    """The four quarters' colours of one picture."""
    return np.random.default_rng(number).integers(0, 256, (2, 2, 3), dtype=np.uint8)


def words(number: int) -> str:
    return "tones " + " ".join(map(str, tones(number).reshape(-1).tolist()))


def write_pairs(path: Path, pairs: list[tuple[str, str]]) -> Path:
    path.write_text("".join(f"{a}\t{b}\n" for a, b in [("path", "caption"), *pairs]))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures, indexed with captions that mean them in other words."""
    folder = tmp_path_factory.mktemp("made") / "photos"
    folder.mkdir()
    for i in range(PICTURES):
        picture = Image.fromarray(tones(i)).resize((16, 16), Image.Resampling.NEAREST)
        picture.save(folder / f"{i:03}.png")
    pairs = [(f"{i:03}.png", words(i)) for i in range(PICTURES)]
    index(
        folder,
        captions=write_pairs(folder.with_name("pairs.tsv"), pairs),
        model=ToneEncoder(),
    )
    return folder


@pytest.fixture
def library(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "photos"))


def row_of(folder: Path):
    with closing(Library.open(folder)) as opened:
        return opened.catalog.library()


def test_held_out_pictures_are_found_better_without_looking_at_any(library: Path) -> None:
    encoder = ToneEncoder()
    report = tuning.tune(library, model=encoder)
    assert report.refusal is None
    assert report.text_to_image.after["R@1"] > report.text_to_image.before["R@1"] + 30
    assert report.image_to_text.after["mrr"] > report.image_to_text.before["mrr"]
    assert report.text_to_image.mrr_gain[0] > 0
    assert (report.pictures, report.held_out_pictures) == (PICTURES, PICTURES // 4)
    assert encoder.prepared == encoder.embedded_images == 0
    # The captions have vectors already: only the everyday sentences are embedded.
    assert 300 < encoder.embedded_texts < 400
    with open_engine(library, model=encoder) as engine:
        results = [engine.search(words(i), k=1) for i in range(PICTURES)]
        right = sum(found.hits[0].path == f"{i:03}.png" for i, found in enumerate(results))
        assert right > 0.8 * PICTURES
        assert {found.adapter for found in results} == {report.adapter}
        captions = engine.search(image=library / "007.png", to="captions", k=1)
        assert captions.hits[0].caption == words(7)
        assert captions.adapter is None


def test_an_open_engine_follows_and_undo_brings_back_the_same_answers(library: Path) -> None:
    encoder = ToneEncoder()

    def answers(engine: SearchEngine) -> list[tuple[str, float]]:
        found = [*engine.search(words(3)).hits]
        found += engine.search(image=library / "003.png", to="captions").hits
        return [(hit.path, hit.score) for hit in found]

    with open_engine(library, model=encoder) as engine:
        like = engine.search(image=library / "003.png").hits
        before = answers(engine)
        first = tuning.tune(library, model=encoder, seed=0).adapter
        tuned = answers(engine)
        assert tuned != before
        second = tuning.tune(library, model=encoder, seed=1).adapter
        assert first is not None
        assert second is not None
        assert answers(engine) not in (before, tuned)
        assert engine.search(image=library / "003.png").hits == like
        assert tuning.undo(library) == (1, first)
        assert answers(engine) == tuned
        assert tuning.undo(library) == (1, None)
        assert answers(engine) == before
        assert tuning.undo(library) == (0, None)
        assert engine.search(words(3)).adapter is None


def test_reset_takes_everything_back(library: Path) -> None:
    encoder = ToneEncoder()
    for seed in range(2):
        tuning.tune(library, model=encoder, seed=seed)
    assert tuning.reset(library) == (2, None)
    assert row_of(library).adapter_id is None
    assert tuning.reset(library) == (0, None)


def test_the_same_seed_measures_and_learns_the_same(library: Path) -> None:
    reports = [tuning.tune(library, model=ToneEncoder(), seed=5) for _ in range(2)]
    assert reports[0].text_to_image == reports[1].text_to_image
    with closing(Library.open(library)) as opened:
        stored = [opened.catalog.adapter(report.adapter or 0) for report in reports]
    assert stored[0] is not None
    assert stored[1] is not None
    assert stored[0].weights == stored[1].weights


def test_what_teaches_nothing_is_refused_and_changes_nothing(library: Path) -> None:
    shuffled = np.random.default_rng(0).permutation(PICTURES)
    pairs = [(f"{i:03}.png", words(1000 + j)) for i, j in enumerate(shuffled)]
    before = row_of(library)
    for seed in range(3):
        chosen = write_pairs(library.with_name("noise.tsv"), pairs)
        report = tuning.tune(library, pairs=chosen, model=ToneEncoder(), seed=seed)
        assert report.adapter is None
        assert report.refusal is not None
    assert row_of(library) == before


@pytest.mark.parametrize(
    ("before", "after", "low", "high", "words"),
    [
        (10.0, 12.0, 0.01, 0.02, None),
        (10.0, 12.0, 0.0, 0.02, "beyond doubt"),
        (10.0, 9.9, 0.01, 0.02, "came first"),
        (10.0, 12.0, 0.01, -0.01, "by their pictures"),
    ],
)
def test_the_guard(before: float, after: float, low: float, high: float, words: str) -> None:
    to_image = held_out.Gain({"R@1": before}, {"R@1": after}, (low, 0.5))
    to_text = held_out.Gain({}, {}, (-0.5, high))
    refusal = tuning._refusal(to_image, to_text)
    assert (refusal is None) if words is None else (words in refusal)


def test_no_picture_and_no_wording_is_on_both_sides() -> None:
    draw_ = np.random.default_rng(0)
    links = np.unique(draw_.integers(0, [150, 60], (220, 2)), axis=0)
    for seed in range(20):
        learned, apart = held_out.split(links, 15, seed)
        assert len(np.unique(apart[:, 1])) == 15
        assert not np.isin(apart[:, 0], learned[:, 0]).any()
        assert not np.isin(apart[:, 1], learned[:, 1]).any()


def test_ranks_are_those_of_the_slow_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_out, "QUERIES_AT_ONCE", 3)
    draw_ = np.random.default_rng(0)
    queries = draw_.integers(-2, 3, (8, 3)).astype(np.float32)
    items = draw_.integers(-2, 3, (12, 3)).astype(np.float32)
    right = np.unique([*([i, i] for i in range(8)), *draw_.integers(0, [8, 12], (20, 2))], axis=0)
    expected = []
    for i, scores in enumerate(queries @ items.T):
        own = set(right[right[:, 0] == i, 1].tolist())
        best = max(scores[list(own)])
        expected.append(1 + sum(s >= best and j not in own for j, s in enumerate(scores)))
    assert held_out._ranks(queries, items, right).tolist() == expected


def test_an_interval_spans_zero_where_nothing_changed_for_most() -> None:
    pictures = np.eye(40, dtype=np.float32)
    links = np.stack([np.arange(40)] * 2, axis=1)
    texts = pictures.copy()
    texts[0] = -texts[0]
    gain, back = held_out.compare(Captioned(pictures, texts, links), links, pictures, 0)
    assert gain.before["R@1"] == 97.5
    assert gain.after["R@1"] == back.after["R@1"] == 100.0
    assert gain.mrr_gain[0] == 0
    assert gain.mrr_gain[1] > 0


def test_copies_are_one_picture_and_equal_words_one_text(library: Path) -> None:
    encoder = ToneEncoder()
    shutil.copy(library / "000.png", library / "copy.png")
    index(library, model=encoder)
    pairs = [("000.png", "Tones  again"), ("copy.png", "tones again"), ("001.png", "TONES AGAIN")]
    with closing(Library.open(library)) as opened:
        evidence = Evidence(opened, encoder, 1, lambda *_: None)
        data, unmatched = evidence.chosen(library / "x.tsv", [*pairs, ("none.png", "x")])
        assert len(evidence.captions().texts) == PICTURES
    assert len(data.pictures) == PICTURES
    assert len(data.texts) == 1
    assert len(data.links) == 2
    assert unmatched == ("none.png",)


def test_the_pictures_index_is_kept_as_it_is(library: Path) -> None:
    with open_engine(library, model=ToneEncoder()) as engine:
        assert len(engine) == PICTURES
    (before,) = (library / ".mmsearch/index").glob("images-*")
    inode = before.stat().st_ino
    tuning.tune(library, model=ToneEncoder())
    (after,) = (library / ".mmsearch/index").glob("images-*")
    assert after.name == f"images-{row_of(library).stamp}.faiss" != before.name
    assert after.stat().st_ino == inode


def test_a_failure_while_saving_changes_nothing(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = row_of(library)

    def fail(_: Transaction) -> None:
        raise StorageError("power loss")

    monkeypatch.setattr(Transaction, "finish", fail)
    with pytest.raises(StorageError, match="power loss"):
        tuning.tune(library, model=ToneEncoder())
    assert row_of(library) == before


def test_a_kill_after_saving_leaves_a_library_that_answers(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_: Library, stamp: str) -> None:
        raise KeyboardInterrupt(stamp)

    monkeypatch.setattr(Library, "keep_image_index", killed)
    with pytest.raises(KeyboardInterrupt):
        tuning.tune(library, model=ToneEncoder())
    with open_engine(library, model=ToneEncoder()) as engine:
        assert engine.search(words(0)).adapter == row_of(library).adapter_id == 1
        assert len(engine) == PICTURES


def test_another_encoder_is_never_adapted(library: Path) -> None:
    tuning.tune(library, model=ToneEncoder())
    with pytest.raises(ModelMismatch, match="mmsearch migrate"):
        tuning.tune(library, model=ToneEncoder("2"))
    migrate(library, model=ToneEncoder("2"))
    assert row_of(library).adapter_id is None
    with open_engine(library, model=ToneEncoder("2")) as engine:
        assert engine.search(words(0)).adapter is None
    assert tuning.undo(library) == (0, None)


def test_one_at_a_time(library: Path) -> None:
    with closing(Library.open(library)) as opened, opened.indexing():
        for attempt in (
            lambda: tuning.tune(library, model=ToneEncoder()),
            lambda: tuning.undo(library),
            lambda: tuning.reset(library),
        ):
            with pytest.raises(LibraryLocked):
                attempt()


def test_chosen_results_are_learned_from(library: Path, tmp_path: Path) -> None:
    pairs = [(f"{i:03}.png", words(i)) for i in range(60)]
    source = write_pairs(tmp_path / "chosen.tsv", [*pairs, ("gone.png", "tones of nothing")])
    encoder = ToneEncoder()
    report = tuning.tune(library, pairs=source, model=encoder)
    assert report.refusal is None
    assert report.unmatched == ("gone.png",)
    assert report.pictures == 60
    assert report.held_out_pictures == 20
    assert encoder.embedded_images == 0
    few = write_pairs(tmp_path / "few.tsv", pairs[:39])
    with pytest.raises(SourceError, match=r"few.tsv names 39 pictures .* at least 40"):
        tuning.tune(library, pairs=few, model=encoder)
    foreign = write_pairs(tmp_path / "foreign.tsv", [("x.png", "tones")])
    with pytest.raises(SourceError, match=r"names no picture of the library .*x\.png"):
        tuning.tune(library, pairs=foreign, model=encoder)


def test_captions_are_needed(tmp_path: Path) -> None:
    draw(tmp_path / "photos/a.jpg")
    index(tmp_path / "photos", model=ToneEncoder())
    with pytest.raises(SourceError, match=r"has 0 pictures .* --captions FILE"):
        tuning.tune(tmp_path / "photos", model=ToneEncoder())


def test_damaged_weights_are_named_with_the_way_out(library: Path) -> None:
    tuning.tune(library, model=ToneEncoder())
    with closing(sqlite3.connect(library / ".mmsearch/catalog.sqlite")) as connection:
        connection.execute("UPDATE adapter SET weights = x'00'")
        connection.commit()
    with (
        open_engine(library, model=ToneEncoder()) as engine,
        pytest.raises(StorageError, match=r"1 bytes, .*tune --reset"),
    ):
        engine.search("tones")
    assert tuning.reset(library) == (1, None)


def test_a_catalog_from_before_is_brought_up_to_date(library: Path) -> None:
    path = library / ".mmsearch/catalog.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE adapter")
        connection.execute("DELETE FROM migration WHERE name = 'm002_adapters'")
        connection.commit()
    with closing(Catalog.open(path)) as catalog:
        assert catalog.library().adapter_id is None
        assert catalog.counts().files == PICTURES
    assert tuning.tune(library, model=ToneEncoder()).adapter == 1


def test_the_command_says_what_it_measured_and_status_repeats_it(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmsearch.retrieval.engine.load_encoder", lambda *_, **__: ToneEncoder())

    def run(*arguments: object, code: int = 0) -> tuple[str, str]:
        done = CliRunner().invoke(app, [*map(str, arguments), "--library", str(library)])
        assert done.exit_code == code, done.output
        return done.stdout, done.stderr

    out, err = run("tune", "--json")
    report = json.loads(out)
    assert (report["schema"], report["adapter"], report["refused"]) == (1, 1, None)
    assert report["held_out"] == {"texts": 25, "pictures": 25}
    assert set(report["text_to_image"]["before"]) == {"R@1", "R@10", "mrr"}
    assert "tune --undo" in err
    status = json.loads(run("status", "--json")[0])
    assert status["adapter"]["id"] == 1
    assert status["adapter"]["text_to_image"] == report["text_to_image"]
    assert "tuned " in run("status")[0]
    answer = json.loads(run("query", words(4), "--json")[0])
    assert answer["adapter"] == 1
    assert json.loads(run("tune", "--undo", "--json")[0])["taken_back"] == 1
    assert json.loads(run("status", "--json")[0])["adapter"] is None
    assert "no tuning" in run("tune", "--undo", code=3)[1]
    noise = [(f"{i:03}.png", words(1000 + i)) for i in range(PICTURES)]
    source = write_pairs(library.with_name("noise.tsv"), noise)
    assert "Nothing was changed" in run("tune", "--pairs", source, code=3)[1]
    run("tune", "--undo", "--reset", code=2)


def test_bad_input_gets_one_clear_line(tmp_path: Path) -> None:
    draw(tmp_path / "photos/a.jpg")
    subprocess.run([MMSEARCH, "index", str(tmp_path / "photos")], check=True, capture_output=True)
    for arguments, words_ in (
        (("--library", "nowhere"), "does not exist"),
        (("--library", "photos"), "at least 40"),
        (("--library", "photos", "--pairs", "none.tsv"), "no captions file"),
    ):
        done = subprocess.run(
            [MMSEARCH, "tune", *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 1, done
        assert words_ in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stderr.count("\n") == 1
