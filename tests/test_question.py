"""Questions of several parts, end to end and against a slow way that reads every vector."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import mmsearch
from mmsearch.cli import app
from mmsearch.errors import QueryError
from mmsearch.indexes.exact import ExactIndex
from mmsearch.retrieval.fusion import calibrated, early, ranks_of, reciprocal_rank, weighted
from mmsearch.retrieval.question import search_composed
from mmsearch.retrieval.schema import Fusion
from tests.conftest import draw

DIM, N = 16, 400
GENERATOR = np.random.default_rng(3)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


VECTORS = unit(GENERATOR.normal(size=(N, DIM)))
IDS = np.arange(N) * 7 + 3
PARTS = unit(GENERATOR.normal(size=(3, DIM)) + 0.6)


@pytest.fixture(scope="module")
def index():
    made = ExactIndex(DIM)
    made.add(IDS[::-1], VECTORS[::-1])
    return made


def slowly(fusion, weights):
    scores = (PARTS @ VECTORS.T).astype(np.float64)
    mixed = early(PARTS, weights)[0] @ VECTORS.T
    match fusion:
        case Fusion.EARLY:
            return mixed
        case Fusion.SCORES:
            return weighted(scores, weights)
        case Fusion.CALIBRATED:
            return calibrated(scores, weights, scores)
        case Fusion.RANKS:
            return reciprocal_rank(ranks_of(scores), weights)
        case Fusion.HYBRID:
            both = np.stack([mixed, calibrated(scores, weights, scores)])
            return reciprocal_rank(ranks_of(both), np.ones(2))


@pytest.mark.parametrize("fusion", list(Fusion))
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 4.0, 0.5)])
def test_fused_answers_are_those_of_comparing_everything(index, fusion, weights):
    weighing = np.array(weights)
    # As many as there are, so that every vector is a candidate.
    ids, scores = search_composed(index, PARTS, weighing, fusion, N)
    expected = slowly(fusion, weighing)
    assert sorted(ids.tolist()) == IDS.tolist()
    np.testing.assert_allclose(scores, expected[(ids - 3) // 7], atol=1e-6)
    assert (np.diff(scores) <= 0).all()
    few, best = search_composed(index, PARTS, weighing, fusion, 5)
    if fusion is not Fusion.RANKS and fusion is not Fusion.HYBRID:
        # Ranks are those among the candidates.
        np.testing.assert_allclose(best, scores[:5], atol=1e-6)
    assert len(set(few.tolist())) == 5


def test_nothing_is_found_in_an_empty_index():
    for fusion in Fusion:
        ids, scores = search_composed(ExactIndex(DIM), PARTS, np.ones(3), fusion, 5)
        assert len(ids) == len(scores) == 0


@pytest.fixture
def sofas(tmp_path, encoder):
    """Pictures whose halves have two colours: a part of each is what is asked."""
    folder = tmp_path / "my sofas"
    for i, colour in enumerate(("red", "green", "blue", "yellow")):
        draw(folder / f"{colour}.png", colour, (48 + i, 32))
    mmsearch.index(folder, model=encoder)
    return folder


def test_words_and_pictures_together(sofas, encoder):
    with mmsearch.open(sofas, model=encoder) as engine:
        for fusion in Fusion:
            both = engine.search("red", image=sofas / "blue.png", fusion=fusion, k=4)
            assert {hit.path for hit in both.hits[:2]} == {"red.png", "blue.png"}, fusion
            told = both.to_json()["query"]
            assert told["fusion"] == fusion.value
            assert [part["weight"] for part in told["parts"]] == [1.0, 1.0]
            assert told["parts"][0]["text"] == "red"
            assert told["parts"][1]["image"].endswith("blue.png")
            assert both.query.text is None
        heavy = engine.search(
            ["red", "green"], image=[sofas / "blue.png"], weights=[1, 1, 50], fusion="scores"
        )
        assert heavy.hits[0].path == "blue.png"
        alone = engine.search("red", fusion="hybrid")
        assert alone.to_json()["query"] == "red", "one part is asked as ever"
        assert alone.hits == engine.search(["red"]).hits


def test_what_cannot_be_asked(sofas, encoder):
    with mmsearch.open(sofas, model=encoder) as engine:
        for arguments, words in (
            ({}, "with words, with a picture or with both"),
            ({"text": []}, "with words"),
            ({"text": ["red", " "]}, "empty"),
            ({"text": ["red", "blue"], "weights": [1]}, "2 parts are asked and 1 weights"),
            ({"text": ["red", "blue"], "weights": [1, 0]}, "above 0, not 0"),
            ({"text": ["red", "blue"], "weights": [1, float("nan")]}, "above 0"),
            ({"text": ["red", "blue"], "fusion": "cold"}, "'early', 'scores', 'calibrated'"),
            ({"image": [sofas / "red.png", sofas / "none.png"]}, "query picture cannot be used"),
        ):
            with pytest.raises(QueryError, match=words):
                engine.search(**arguments)


def test_the_command_asks_with_several_parts(tmp_path, monkeypatch):
    for i, colour in enumerate(("red", "green", "blue")):
        draw(tmp_path / f"{colour}.png", colour, (300 + i, 200))
    mmsearch.index(tmp_path)
    monkeypatch.chdir(tmp_path)
    arguments = ["query", "a red surface", "--also", "paint", "--image", "red.png"]
    done = CliRunner().invoke(
        app, [*arguments, "--weight", "1", "--weight", "0.5", "--weight", "2", "--json"]
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[0])
    assert found["results"][0]["path"] == "red.png"
    assert found["query"]["fusion"] == "early"
    assert [part["weight"] for part in found["query"]["parts"]] == [1.0, 0.5, 2.0]
    for fusion in Fusion:
        done = CliRunner().invoke(app, [*arguments, "--fusion", fusion.value])
        assert done.exit_code == 0, done.output
        assert done.stdout.startswith("1\t")
