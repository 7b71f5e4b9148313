"""What scores mean and which answers are shown: formulas by hand, then real libraries."""

import json
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from typer.testing import CliRunner

import mmsearch
from mmsearch.cli import app
from mmsearch.errors import QueryError
from mmsearch.indexes.exact import ExactIndex
from mmsearch.retrieval import logic
from mmsearch.retrieval.calibration import PRIOR, RIVALS, WEIGHTS, Calibration
from mmsearch.retrieval.confidence import CUT, confidence
from mmsearch.retrieval.question import search_logic
from tests.conftest import draw

GENERATOR = np.random.default_rng(5)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


SAMPLE = unit(GENERATOR.normal(size=(40, 8)))
BACKGROUND = unit(GENERATOR.normal(size=(90, 8)))
QUERY = unit(GENERATOR.normal(size=(1, 8)))
CALIBRATION = Calibration.of(BACKGROUND, SAMPLE, 500)


def test_deviations_are_those_of_the_sample_and_of_usual_scores():
    usual = BACKGROUND @ SAMPLE.T
    own = (QUERY @ SAMPLE.T)[0]
    # As if PRIOR scores of the usual mean and deviation stood beside the query's own.
    mean = (own.sum() + PRIOR * usual.mean()) / (len(own) + PRIOR)
    variance = (((own - mean) ** 2).sum() + PRIOR * usual.var()) / (len(own) + PRIOR)
    found = CALIBRATION.deviations(QUERY, np.array([[0.1, 0.9]]))
    assert found[0] == pytest.approx((np.array([0.1, 0.9]) - mean) / math.sqrt(variance), rel=1e-5)


def test_a_match_is_weighed_by_hand():
    scores = (QUERY @ SAMPLE.T)[0].astype(np.float64)
    chance = math.sqrt(2 * math.log(500))
    for i, match in enumerate(CALIBRATION.match(QUERY, scores, SAMPLE)):
        rivals = np.sort(BACKGROUND @ SAMPLE[i])[-RIVALS:].mean()
        own = CALIBRATION.deviations(QUERY, scores[None, i : i + 1])[0, 0] - chance
        beyond = (scores[i] - rivals) / (BACKGROUND @ SAMPLE.T).std()
        weighed = WEIGHTS[0] * own + WEIGHTS[1] * beyond + WEIGHTS[2]
        assert match == pytest.approx(1 / (1 + math.exp(-weighed)), rel=1e-4)


def test_the_same_best_score_means_less_in_a_larger_library():
    small, large = (Calibration.of(BACKGROUND, SAMPLE, n) for n in (100, 1_000_000))
    scores = np.array([0.9])
    assert large.match(QUERY, scores, SAMPLE[:1]) < small.match(QUERY, scores, SAMPLE[:1])


def test_one_picture_is_enough_to_say_something():
    found = Calibration.of(BACKGROUND, SAMPLE[:1], 1).match(QUERY, np.array([0.3]), SAMPLE[:1])
    assert 0 < found[0] < 1


def test_words_for_probabilities():
    said = [confidence(p) for p in (0.9, 0.7, CUT, CUT - 0.01)]
    assert said == ["very likely", "likely", "maybe", "unlikely"]


@pytest.mark.parametrize("text", ["a AND b NOT c", "a OR NOT b", "NOT a", "(a OR b) AND (b OR c)"])
def test_expressions_choose_as_comparing_everything_does(text):
    index = ExactIndex(8)
    ids = np.arange(len(SAMPLE)) * 3
    index.add(ids, SAMPLE)
    tree = logic.parse(text)
    vectors = unit(GENERATOR.normal(size=(len(logic.concepts(tree)), 8)))
    shown = CALIBRATION.shown(vectors, (vectors @ SAMPLE.T).astype(np.float64))
    named = logic.concepts(tree)
    right = logic.probability(tree, lambda each: shown[named.index(each)])
    found, fits = search_logic(index, tree, vectors, CALIBRATION, 7)
    assert found.tolist() == ids[np.argsort(-right, kind="stable")[:7]].tolist()
    assert fits == pytest.approx(np.sort(right)[::-1][:7], rel=1e-4)
    some = ids[::4]
    found, _ = search_logic(index, tree, vectors, CALIBRATION, 99, some)
    assert sorted(found.tolist()) == some.tolist()


@pytest.fixture
def engine(photos, encoder):
    mmsearch.index(photos, model=encoder)
    with mmsearch.open(photos, model=encoder) as opened:
        yield opened


def names(results):
    return [hit.path.rpartition("/")[2] for hit in results.hits]


def test_what_is_negated_goes_down(engine):
    assert set(names(engine.search("red OR blue", k=2, words=False))) == {"red.jpg", "blue.jpg"}
    assert names(engine.search("red NOT blue", k=1, words=False)) == ["red.jpg"]
    last = names(engine.search("NOT red", k=6, words=False))[-1]
    assert last == "red.jpg"
    told = engine.search("red NOT blue").to_json()
    assert told["query"] == "red NOT blue"
    assert told["results"][0]["p_match"] == pytest.approx(told["results"][0]["score"], abs=1e-4)


def test_operators_need_one_text_and_pictures(engine):
    draw(engine.library.root / "x.png")
    (engine.library.root / "x.txt").write_text("a caption")
    mmsearch.index(engine.library.root, model=engine.encoder)
    for wrong in ({"text": ["red AND blue", "x"]}, {"text": "red AND blue", "to": "captions"}):
        with pytest.raises(QueryError, match="AND, OR and NOT"):
            engine.search(**wrong)


def test_a_cut_says_nothing_matches_and_names_the_nearest(engine):
    nothing = engine.search("red", cut=1.0, words=False)
    assert nothing.hits == ()
    assert nothing.nearest.path.endswith("red.jpg")
    assert nothing.nearest.match < 1
    assert nothing.to_json()["nearest"]["path"] == nothing.nearest.path
    everything = engine.search("red", words=False)
    assert everything.hits[0].path == nothing.nearest.path
    assert everything.nearest is None


def test_filters_choose_before_the_nearest_do(engine):
    every = engine.search("red", k=6)
    some = engine.search("red", k=6, where="name LIKE 'b%'")
    assert set(names(some)) == {"blue.jpg", "black.jpg"}
    assert some.considered == 2
    assert [n for n in names(every) if n[0] == "b"] == names(some)
    assert engine.search("red", where="width > 9999").hits == ()


def test_a_filter_alone_lists_in_order(engine):
    listed = engine.search(where="width >= 50", sort="width", descending=True, k=2)
    assert [hit.width for hit in listed.hits] == [53, 52]
    assert listed.considered == 4
    assert json.loads(json.dumps(listed.to_json()))["results"][0]["score"] is None
    assert [hit.rank for hit in listed.hits] == [1, 2]


def test_matches_are_sorted_and_numbered(engine):
    sorted_ = engine.search("red", sort="name", k=6)
    assert names(sorted_) == sorted(names(sorted_))
    assert [hit.rank for hit in sorted_.hits] == [1, 2, 3, 4, 5, 6]


def test_near_duplicates_count_once_and_k_is_kept(engine):
    root = engine.library.root
    for i in range(3):
        draw(root / f"again-{i}.png", "red", (48, 32))
    mmsearch.index(root, model=engine.encoder)
    grouped = engine.search("red", k=4, group=True, words=False)
    assert len(grouped.hits) == 4
    assert len(grouped.hits[0].others) == 3
    shown = [hit.path for hit in grouped.hits] + [p for hit in grouped.hits for p in hit.others]
    assert len(shown) == len(set(shown))
    assert grouped.to_json()["results"][0]["group"]["size"] == 4
    apart = engine.search("red", k=4, words=False)
    assert all(not hit.others for hit in apart.hits)


def test_k_is_kept_where_most_of_what_is_near_is_one_picture(engine):
    root = engine.library.root
    for i in range(70):
        draw(root / f"again-{i}.png", "red", (48, 32))
    mmsearch.index(root, model=engine.encoder)
    grouped = engine.search("red", k=6, group=True, words=False)
    assert len(grouped.hits) == 6
    assert len(grouped.hits[0].others) == 70


def test_words_find_more_pictures_than_are_shown(engine):
    root = engine.library.root
    for i in range(60):
        draw(root / f"red roof {i}.png", "red" if i % 2 else "blue", (40 + i, 32))
    mmsearch.index(root, model=engine.encoder)
    found = engine.search("red roof", k=3)
    assert len(found.hits) == 3
    assert all(hit.match is not None for hit in found.hits)
    assert len(engine.search("red roof", k=70, cut=0.0).hits) == 66


def test_diversity_keeps_the_first_and_spreads_the_rest(engine):
    root = engine.library.root
    for i in range(3):
        draw(root / f"again-{i}.png", "red", (48, 32))
    mmsearch.index(root, model=engine.encoder)
    near = names(engine.search("red", k=3, words=False))
    spread = names(engine.search("red", k=3, diversity=0.9, words=False))
    assert len({name[0] for name in near}) < len({name[0] for name in spread})


def test_a_file_that_is_named_comes_first(engine):
    draw(engine.library.root / "IMG_2041.png", "black")
    mmsearch.index(engine.library.root, model=engine.encoder)
    found = engine.search("IMG_2041", k=3, cut=CUT)
    assert found.hits[0].path == "IMG_2041.png"
    assert found.hits[0].match == 1.0
    assert -1 <= found.hits[0].score <= 1


def test_many_texts_get_what_each_gets_alone(engine):
    texts = ["red", "a blue one", "yellow", "red"]
    for to in ("images", "captions"):
        together = engine.search_many(texts, to=to, k=4)
        alone = [engine.search(text, to=to, k=4, words=False) for text in texts]
        for one, other in zip(together, alone, strict=True):
            assert [hit.id for hit in one.hits] == [hit.id for hit in other.hits]
            assert [hit.match for hit in one.hits] == pytest.approx(
                [hit.match for hit in other.hits], rel=1e-4
            )
            assert one.query == other.query
    assert engine.search_many([]) == []
    with pytest.raises(QueryError, match="AND"):
        engine.search_many(["red AND blue"])


def test_threads_share_an_engine(engine):
    right = {text: names(engine.search(text)) for text in ("red", "blue", "red NOT blue")}
    with ThreadPoolExecutor(8) as pool:
        for text, found in zip(
            list(right) * 20, pool.map(engine.search, list(right) * 20), strict=True
        ):
            assert names(found) == right[text]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"diversity": 2}, "between 0 and 1"),
        ({"cut": -1}, "between 0 and 1"),
        ({"sort": "beauty"}, "'date'"),
        ({"where": "beauty > 1"}, "beauty"),
        ({"to": "captions", "group": True}, "grouped"),
    ],
)
def test_what_cannot_be_meant_is_refused(engine, arguments, message):
    with pytest.raises(QueryError, match=message):
        engine.search("red", **arguments)


def test_the_command_line_says_nothing_and_filters(photos):
    runner = CliRunner()
    assert runner.invoke(app, ["index", str(photos)]).exit_code == 0
    ask = ["query", "a herd of giraffes in the savanna", "--library", str(photos)]
    refused = runner.invoke(app, ask)
    assert refused.exit_code == 3
    assert "Closest: " in refused.stderr
    shown = runner.invoke(app, [*ask, "--all", "--json", "-k", "2"])
    assert shown.exit_code == 0
    assert len(json.loads(shown.stdout)["results"]) == 2
    listed = runner.invoke(
        app, ["query", "ext:jpg width:>50", "--library", str(photos), "--paths", "--sort", "name"]
    )
    assert listed.exit_code == 0
    assert len(listed.stdout.splitlines()) == 3
    wrong = runner.invoke(app, ["query", "red", "--where", "widht > 3", "-L", str(photos)])
    assert isinstance(wrong.exception, QueryError)
    assert "width" in str(wrong.exception)
