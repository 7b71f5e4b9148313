"""A second stage in the engine and on the command line: a stand-in reads what pictures show."""

from __future__ import annotations

import csv
import io
import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import mmsearch
from mmsearch.cli import app
from mmsearch.errors import MissingExtra, ModelError, QueryError
from mmsearch.retrieval import rerankers
from mmsearch.retrieval.commands.options import milliseconds_argument
from mmsearch.retrieval.contact_sheet import contact_sheet
from mmsearch.retrieval.listing import described_reranking
from mmsearch.retrieval.rerankers import Pair, Reranker
from mmsearch.retrieval.reranking import library_views
from mmsearch.retrieval.schema import Reranking
from tests.conftest import COLOURS, ColourEncoder, draw
from tests.test_containers import samples, write_tar

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.engine import SearchEngine
    from mmsearch.retrieval.schema import Results

DARK_FIRST = ["black", "blue", "red", "green", "yellow", "white"]
"""By how bright pictures of these colours are."""


class Darkness(Reranker):
    """The darker a picture the better; of equal pictures, the shorter the text."""

    name = "darkness"
    batch_size = 2

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.asked: list[Pair] = []
        self.calls = 0

    def rerank(self, pairs: Sequence[Pair], *, budget_s: float | None = None) -> Any:
        self.calls += 1
        return super().rerank(pairs, budget_s=budget_s)

    def _score(self, batch: Sequence[Pair]) -> NDArray[np.float32]:
        time.sleep(self.seconds)
        grey = [np.asarray(pair.view.open(8).convert("L")).mean() for pair in batch]
        length = [len(pair.text) / 1000 for pair in batch]
        self.asked += batch
        return -np.array(grey, dtype=np.float32) - np.array(length, dtype=np.float32)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where names are kept that an encoder embedded: once for all of these tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _one_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMSEARCH_CACHE", str(cache))


@pytest.fixture
def engine(photos: Path, encoder: ColourEncoder) -> Iterator[SearchEngine]:
    mmsearch.index(photos, model=encoder)
    with mmsearch.open(photos, model=encoder) as opened:
        yield opened


def names(results: Results) -> list[str]:
    return [Path(hit.path).stem for hit in results.hits]


def test_the_best_are_put_in_the_reranker_s_order_and_keep_both_scores(
    engine: SearchEngine,
) -> None:
    plain = engine.search("something", k=6, words=False)
    assert plain.rerank is None
    reranker = Darkness()
    found = engine.search("something", k=6, words=False, rerank=reranker)
    assert names(found) == DARK_FIRST
    assert [hit.rank for hit in found.hits] == [1, 2, 3, 4, 5, 6]
    before = {hit.id: hit for hit in plain.hits}
    for hit in found.hits:
        assert hit.first_rank == before[hit.id].rank
        assert hit.score == before[hit.id].score
        assert hit.match == pytest.approx(before[hit.id].match)
        assert hit.rerank_score is not None
    scores = [hit.rerank_score for hit in found.hits]
    assert scores == sorted(scores, reverse=True)
    told = found.rerank
    assert told is not None
    assert told == Reranking("darkness", 50, 6, took_ms=told.took_ms)
    assert 0 < told.took_ms <= found.took_ms
    # In the order of the first stage, each with its cosine, in one call.
    assert [(pair.text, pair.similarity) for pair in reranker.asked] == [
        ("something", hit.score) for hit in plain.hits
    ]
    assert reranker.calls == 1


def test_what_is_beyond_the_depth_follows_as_it_stood(engine: SearchEngine) -> None:
    plain = engine.search("a green and yellow thing", k=6, words=False)
    found = engine.search("a green and yellow thing", k=2, words=False, rerank=Darkness(),
                          rerank_depth=4)  # fmt: skip
    head = sorted(names(plain)[:4], key=DARK_FIRST.index)
    assert names(found) == head[:2]
    # k is never less than what is read.
    found = engine.search("a green and yellow thing", k=6, words=False, rerank=Darkness(),
                          rerank_depth=2)  # fmt: skip
    assert names(found) == DARK_FIRST
    assert found.rerank is not None
    assert (found.rerank.depth, found.rerank.reranked) == (6, 6)
    # Deeper than the library is all of it.
    found = engine.search("a green and yellow thing", k=1, words=False, rerank=Darkness(),
                          rerank_depth=1000)  # fmt: skip
    assert names(found) == ["black"]
    assert found.rerank is not None
    assert found.rerank.candidates == 6


def test_time_over_leaves_the_rest_as_it_stood(engine: SearchEngine) -> None:
    plain = engine.search("green", k=6, words=False)
    found = engine.search("green", k=6, words=False, rerank=Darkness(0.05), rerank_budget_ms=0)
    assert found.rerank is not None
    assert (found.rerank.reranked, found.rerank.late) == (2, 4)
    assert found.rerank.budget_ms == 0
    assert set(names(found)[:2]) == set(names(plain)[:2])
    assert names(found)[2:] == names(plain)[2:]
    assert [hit.first_rank for hit in found.hits[2:]] == [None] * 4
    assert [hit.rerank_score for hit in found.hits[2:]] == [None] * 4
    assert described_reranking(found.rerank) == "darkness reranked 2 of 6 in 0 ms"


def test_a_picture_that_is_gone_stands_behind_those_that_were_read(
    engine: SearchEngine, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (photos / "trip/black.jpg").unlink()
    (photos / "trip/blue.jpg").write_bytes(b"broken")
    plain = engine.search("black", k=6, words=False)
    with caplog.at_level(logging.WARNING):
        found = engine.search("black", k=6, words=False, rerank=Darkness())
    lost = [name for name in names(plain) if name in {"black", "blue"}]
    assert names(found) == [*(name for name in DARK_FIRST if name not in lost), *lost]
    assert found.rerank is not None
    assert (found.rerank.reranked, found.rerank.unreadable, found.rerank.late) == (4, 2, 0)
    assert "trip/black.jpg: it is gone" in caplog.text
    assert "blue.jpg" in caplog.text


def test_a_disk_that_is_not_there_is_told_in_a_few_lines(
    engine: SearchEngine, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = engine.search("black", k=6, words=False)
    photos.rename(photos.with_name("elsewhere"))
    photos.mkdir()
    with caplog.at_level(logging.WARNING):
        found = engine.search("black", k=6, words=False, rerank=Darkness())
    assert names(found) == names(plain)
    assert len(caplog.records) == 4
    assert "and 3 more" in caplog.text


def test_pictures_in_tar_files_are_read_there_and_each_is_listed_once(
    tmp_path: Path, encoder: ColourEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shards"
    write_tar(folder / "a.tar", samples(["red", "green", "blue"]))
    draw(folder / "plain.jpg", "yellow")
    mmsearch.index(folder, model=encoder)
    listed: list[Path] = []
    real = mmsearch.retrieval.containers.list_contents

    def counted(path: Path) -> Any:
        listed.append(path)
        return real(path)

    monkeypatch.setattr("mmsearch.retrieval.containers.list_contents", counted)
    with mmsearch.open(folder, model=encoder) as engine:
        found = engine.search("something", k=4, words=False, rerank=Darkness())
        assert [hit.path for hit in found.hits] == [
            "a.tar/000002.jpg", "a.tar/000000.jpg", "a.tar/000001.jpg", "plain.jpg",
        ]  # fmt: skip
        assert listed == [folder / "a.tar"]
        (folder / "a.tar").unlink()
        found = engine.search("something", k=4, words=False, rerank=Darkness())
        assert found.hits[0].path == "plain.jpg"
        assert found.rerank is not None
        assert found.rerank.unreadable == 3


def test_views_open_nothing_until_they_are_asked(tmp_path: Path) -> None:
    stored = np.arange(3, dtype=np.uint8)
    views = library_views(tmp_path, {7: "x.jpg", 8: "y.jpg"}, {7: stored})
    assert views[7].regions is stored
    assert views[8].regions is None
    draw(tmp_path / "y.jpg", "red", (640, 480))
    # JPEG's decoder skips what is not needed.
    assert views[8].open(100).size == (160, 120)
    assert views[8].open(480).size == (640, 480)


def test_near_duplicates_are_grouped_in_the_new_order(
    tmp_path: Path, encoder: ColourEncoder
) -> None:
    for i, colour in enumerate(["green", "green", "red", "blue"]):
        draw(tmp_path / f"{i}-{colour}.png", colour)
    dim = Image.new("RGB", (48, 32), (18, 190, 18))
    dim.paste((60, 60, 60), (36, 24, 48, 32))
    dim.save(tmp_path / "dim.png")
    mmsearch.index(tmp_path, model=encoder)
    with mmsearch.open(tmp_path, model=encoder) as engine:
        plain = engine.search("green", k=5, group=True, words=False)
        found = engine.search("green", k=5, group=True, words=False, rerank=Darkness())
    assert names(found)[:2] == ["3-blue", "2-red"]
    (group,) = [hit for hit in found.hits if hit.others]
    # The darkest leads, where the first stage put another one first.
    assert group.path == "dim.png"
    assert set(group.others) == {"0-green.png", "1-green.png"}
    assert plain.hits[0].path != "dim.png"


def test_spread_answers_start_with_the_reranker_s_first(engine: SearchEngine) -> None:
    found = engine.search("white", k=6, diversity=0.2, words=False, rerank=Darkness())
    assert names(found)[0] == "black"
    assert sorted(names(found)) == sorted(COLOURS)


def test_a_filter_comes_before_and_the_cut_is_the_first_stage_s(engine: SearchEngine) -> None:
    found = engine.search("white", k=6, where="path LIKE 'trip/%'", words=False, rerank=Darkness())
    assert names(found) == ["black", "blue"]
    reranker = Darkness()
    nothing = engine.search("white", cut=1.0, words=False, rerank=reranker)
    assert nothing.hits == ()
    assert nothing.nearest is not None
    assert reranker.calls == 0
    assert nothing.rerank is not None
    assert nothing.rerank.candidates == 0
    none_left = engine.search("white", where="width > 9999", rerank=reranker)
    assert none_left.hits == ()
    assert reranker.calls == 0


def test_a_file_of_that_name_stays_first_and_is_not_read(engine: SearchEngine) -> None:
    reranker = Darkness()
    found = engine.search("white.jpg", k=6, rerank=reranker)
    assert names(found) == ["white", *DARK_FIRST[:-1]]
    assert found.hits[0].rerank_score is None
    assert min(hit.first_rank or 0 for hit in found.hits[1:]) == 2
    assert len(reranker.asked) == 5


def test_captions_of_a_picture_are_reranked(photos: Path, encoder: ColourEncoder) -> None:
    (photos / "pairs.tsv").write_text(
        "path\tcaption\nred.jpg\tred\nred.jpg\ta red one\ngreen.jpg\tgreen, and more of it\n"
    )
    mmsearch.index(photos, model=encoder, captions=photos / "pairs.tsv")
    with mmsearch.open(photos, model=encoder) as engine:
        reranker = Darkness()
        asked = photos / "trip/black.jpg"
        plain = engine.search(image=asked, to="captions", k=3)
        found = engine.search(image=asked, to="captions", k=3, rerank=reranker)
        assert [hit.caption for hit in found.hits] == ["red", "a red one", "green, and more of it"]
        assert {(hit.caption, hit.score) for hit in found.hits} == {
            (hit.caption, hit.score) for hit in plain.hits
        }
        # One picture, seen once.
        assert len({id(pair.view) for pair in reranker.asked}) == 1
        with Image.open(asked) as opened:
            again = engine.search(image=opened, to="captions", k=3, rerank=reranker)
        assert [hit.caption for hit in again.hits] == [hit.caption for hit in found.hits]


@pytest.mark.parametrize(
    "asked",
    [
        {"text": ["red", "blue"]},
        {"text": "red NOT blue"},
        {"image": Image.new("RGB", (9, 9))},
        {"text": "red", "to": "captions"},
        {"text": "red", "image": Image.new("RGB", (9, 9))},
        {"text": "red", "sort": "date"},
        {"where": "width > 3"},
        {"text": "red", "rerank_depth": 0},
        {"text": "red", "rerank_budget_ms": -1},
        {"text": "red", "rerank_budget_ms": float("nan")},
    ],
)
def test_what_cannot_be_reranked_is_refused_before_anything_is_loaded(
    asked: dict[str, Any], engine: SearchEngine
) -> None:
    with pytest.raises(QueryError, match="rerank"):
        engine.search(**{"rerank": "no such reranker"} | asked)


def test_a_reranker_is_loaded_once_for_an_engine(
    engine: SearchEngine, stand_in: list[Darkness]
) -> None:
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(engine.search, "red", rerank="stand-in:0") for _ in range(8)]
    assert len({tuple(names(each.result())) for each in asked}) == 1
    assert len(stand_in) == 1
    with pytest.raises(ModelError, match="no reranker"):
        engine.search("red", rerank="another")


def test_many_texts_are_reranked_each_as_by_itself(engine: SearchEngine) -> None:
    texts = ["red", "green"]
    many = engine.search_many(texts, k=2, rerank=Darkness(), rerank_depth=3)
    for text, found in zip(texts, many, strict=True):
        alone = engine.search(text, k=2, words=False, rerank=Darkness(), rerank_depth=3)
        assert names(found) == names(alone)
        assert [hit.rerank_score for hit in found.hits] == [hit.rerank_score for hit in alone.hits]
        assert found.rerank is not None
        assert found.rerank.reranked == 3
    with pytest.raises(QueryError, match="rerank"):
        engine.search_many(texts, to="captions", rerank=Darkness())


# The command line, with the bundled encoder and a reranker that the test brings.


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[Darkness]:
    """Make `stand-in:SECONDS` a reranker; returns those that were loaded."""
    loaded: list[Darkness] = []

    def load(rest: str, encoder: object) -> Darkness:
        if rest == "extra":
            raise MissingExtra("transformers", "models")
        loaded.append(Darkness(float(rest)))
        return loaded[-1]

    module = ModuleType("stand_in_reranker")
    module.load = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "stand_in_reranker", module)
    monkeypatch.setitem(rerankers._MODULES, "stand-in", "stand_in_reranker")
    return loaded


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the bundled encoder embedded."""
    folder = tmp_path_factory.mktemp("my photos")
    for colour in COLOURS:
        draw(folder / f"card-{colour}.jpg", colour, (96, 64))
        (folder / f"card-{colour}.txt").write_text(f"a {colour} card\n")
    mmsearch.index(folder)
    return folder


def asked(*arguments: object, code: int = 0) -> Any:
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == code, (done.output, done.exception)
    return done


QUERY = "query", "a card on a table", "--all", "--no-words", "--no-group"


def test_json_and_jsonl_and_csv_carry_both_scores(indexed: Path, stand_in: list[Darkness]) -> None:
    there = ("-L", indexed, "-k", 3, "--rerank", "stand-in:0", "--rerank-depth", 4)
    found = json.loads(asked(*QUERY, *there, "--json").stdout)
    assert len(stand_in) == 1
    told = found["rerank"]
    assert told.pop("took_ms") > 0
    assert told == {
        "model": "darkness", "depth": 4, "reranked": 4, "late": 0, "unreadable": 0,
        "budget_ms": None,
    }  # fmt: skip
    rows = found["results"]
    assert [row["rank"] for row in rows] == [1, 2, 3]
    assert all(-1 <= row["score"] <= 1 for row in rows)
    assert all(1 <= row["first_rank"] <= 4 for row in rows)
    scores = [row["rerank_score"] for row in rows]
    assert scores == sorted(scores, reverse=True)
    lines = asked(*QUERY, *there, "--jsonl").stdout.splitlines()
    assert [json.loads(line)["rerank_score"] for line in lines] == scores
    table = list(csv.DictReader(io.StringIO(asked(*QUERY, *there, "--csv").stdout)))
    assert [float(row["rerank_score"]) for row in table] == scores
    assert [int(row["first_rank"]) for row in table] == [row["first_rank"] for row in rows]
    plain = json.loads(asked(*QUERY, "-L", indexed, "--json").stdout)
    assert plain["rerank"] is None
    assert all("rerank_score" not in row and "first_rank" not in row for row in plain["results"])


def test_the_terminal_says_what_was_reranked(
    indexed: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmsearch.retrieval.commands.showing import print_table

    with mmsearch.open(indexed) as engine:
        whole = engine.search("a card", k=6, words=False, rerank=Darkness())
        part = engine.search("a card", k=6, words=False, rerank=Darkness(0.05), rerank_budget_ms=20)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_table(whole)
    shown = capsys.readouterr()
    order = [line.split()[-1] for line in shown.out.splitlines()]
    assert order == [f"card-{colour}.jpg" for colour in DARK_FIRST]
    assert " · darkness reranked 6 of 6 · " in shown.err
    print_table(part)
    assert " · darkness reranked 2 of 6 in 20 ms · " in capsys.readouterr().err
    page = contact_sheet(part, indexed)
    assert "darkness reranked 2 of 6 in 20 ms" in page
    assert page.count("reranked from ") == 2
    assert f"cosine {part.hits[0].score:.3f}" in page


def test_a_budget_on_the_command_line(indexed: Path, stand_in: list[Darkness]) -> None:
    there = ("-L", indexed, "--rerank", "stand-in:0.05", "--rerank-budget", "20ms", "--json")
    told = json.loads(asked(*QUERY, *there).stdout)["rerank"]
    assert (told["budget_ms"], told["reranked"], told["late"]) == (20, 2, 4)


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("200ms", 200), ("0.5s", 500), ("1s", 1000), (" 3 ms ", 3), ("0ms", 0)],
)
def test_times_are_read(text: str, milliseconds: float) -> None:
    assert milliseconds_argument(text) == milliseconds


@pytest.mark.parametrize("time_", ["200", "ms", "-1s", "1m", "1e3ms", "", "nan s", "٣s"])
def test_what_is_no_time_is_a_usage_error(time_: str, indexed: Path) -> None:
    done = asked(*QUERY, "-L", indexed, "--rerank", "fast", f"--rerank-budget={time_}", code=2)
    assert "200ms" in done.stderr


@pytest.mark.parametrize("option", ["--rerank-depth=5", "--rerank-budget=1s"])
def test_options_without_a_reranker_are_a_usage_error(option: str, indexed: Path) -> None:
    assert "--rerank NAME" in asked(*QUERY, "-L", indexed, option, code=2).stderr
    asked(*QUERY, "-L", indexed, "--rerank", "fast", "--rerank-depth", 0, code=2)


def test_nothing_that_matches_is_still_exit_code_3(indexed: Path, stand_in: list[Darkness]) -> None:
    there = ("-L", indexed, "--rerank", "stand-in:0", "--json")
    done = asked("query", "a herd of elephants in space", *there, code=3)
    found = json.loads(done.stdout)
    assert found["results"] == []
    assert found["rerank"]["reranked"] == 0
    done = asked("query", "a card", "--where", "width > 9999", *there, code=3)
    assert json.loads(done.stdout)["rerank"]["reranked"] == 0


def test_captions_on_the_command_line(indexed: Path, stand_in: list[Darkness]) -> None:
    picture = indexed / "card-red.jpg"
    there = ("-L", indexed, "-k", 3, "--rerank", "stand-in:0", "--json")
    by_query = json.loads(asked("query", "--image", picture, "--to", "captions", *there).stdout)
    by_caption = json.loads(asked("caption", picture, *there).stdout)
    for found in (by_query, by_caption):
        assert found["rerank"]["reranked"] == 6
        # The shortest texts come first: that is all that differs for one picture.
        assert found["results"][0]["caption"] == "a red card"
        assert all("rerank_score" in row for row in found["results"])
    done = asked("caption", picture, "--tags", "--rerank", "stand-in:0", code=1)
    assert "not tags" in str(done.exception)


def test_a_missing_extra_says_how_to_get_it(indexed: Path, stand_in: list[Darkness]) -> None:
    done = asked(*QUERY, "-L", indexed, "--rerank", "stand-in:extra", code=1)
    assert isinstance(done.exception, MissingExtra)
    assert done.exception.exit_code == 1
    done = asked(*QUERY, "-L", indexed, "--rerank", "slow", code=1)
    assert isinstance(done.exception, ModelError)
