"""Recommending pictures of a real library, in Python and through the command line."""

import json
from datetime import UTC, datetime

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import mmsearch
from mmsearch.cli import app
from mmsearch.errors import QueryError, SourceError
from mmsearch.retrieval.liked import read_history
from mmsearch.retrieval.schema import Basis
from tests.conftest import draw
from tests.test_cli import run

NOW = datetime(2026, 3, 11, 12, tzinfo=UTC)


@pytest.fixture
def shop(tmp_path, encoder):
    """Three pictures of each colour, which are the more alike the nearer their sizes."""
    folder = tmp_path / "my shop"
    for i, colour in enumerate(("red", "green", "blue", "yellow")):
        for j in range(3):
            draw(folder / colour / f"{j}.png", colour, (48 + 8 * j, 32 + i))
    mmsearch.index(folder, model=encoder)
    return folder


@pytest.fixture
def engine(shop, encoder):
    with mmsearch.open(shop, model=encoder) as opened:
        yield opened


def colours(results):
    return [hit.path.partition("/")[0] for hit in results.hits]


def test_more_of_what_is_liked(shop, engine, encoder):
    before = encoder.embedded_images
    found = engine.recommend(like=["red/0.png"], k=2)
    assert colours(found) == ["red", "red"]
    assert encoder.embedded_images == before, "its vector is there"
    assert found.considered == 12
    assert found.exact
    assert found.took_ms > 0
    assert [hit.rank for hit in found.hits] == [1, 2]
    assert found.file(found.hits[0]).is_file()
    told = found.to_json()
    assert told["query"]["like"] == ["red/0.png"]
    assert told["query"]["basis"] == "taste"
    assert told["to"] == "images"
    absolute = engine.recommend(like=[shop / "red" / "0.png"], k=2)
    assert absolute.hits == found.hits
    by_id = engine.recommend(like=[engine.search("red", k=3).hits[0].id], k=11)
    assert len(by_id.hits) == 11


def test_the_same_as_from_vectors_alone(engine):
    catalog = engine.library.catalog
    row = catalog.library()
    ids, vectors = catalog.file_vectors(row.encoder_id, row.encoder.dim)
    paths = {hit.id: hit.path for hit in catalog.file_hits([(int(id_), 0.0) for id_ in ids])}
    alone = mmsearch.Recommender(ids, vectors)
    for options in (
        {"strategy": "average"},
        {"strategy": "best_score"},
        {"diversity": 0.5},
        {"exclude_seen": False},
    ):
        like, dislike, history = ids[:2], ids[4:5], [(int(ids[7]), 12.0), (int(ids[9]), 80.0)]
        expected = alone.recommend(like, dislike, history, k=8, **options)
        found = engine.recommend(
            [paths[id_] for id_ in like.tolist()],
            [paths[id_] for id_ in dislike.tolist()],
            [(paths[id_], age) for id_, age in history],
            k=8,
            **options,
        )
        assert [hit.id for hit in found.hits] == expected.ids.tolist()
        assert [hit.score for hit in found.hits] == expected.scores.tolist()


def test_pictures_elsewhere_are_embedded(engine, encoder, tmp_path):
    other = draw(tmp_path / "elsewhere" / "blue.png", "blue", (90, 60))
    assert colours(engine.recommend(like=[other], k=3)) == ["blue"] * 3
    with Image.open(other) as picture:
        assert colours(engine.recommend(like=[picture], k=3)) == ["blue"] * 3
    mixed = engine.recommend(like=[other, "red/1.png"], strategy="best_score", k=5)
    assert set(colours(mixed)) == {"blue", "red"}
    assert "red/1.png" not in {hit.path for hit in mixed.hits}


def test_what_is_not_liked_never_comes(engine):
    found = engine.recommend(like=["red/0.png"], dislike=["red/1.png"], exclude_seen=False, k=12)
    paths = [hit.path for hit in found.hits]
    assert paths[0] == "red/0.png"
    assert "red/1.png" not in paths
    assert len(paths) == 11


def test_history_among_and_what_is_gone(engine):
    history = [("red/0.png", 1), ("blue/0.png", 200), ("gone.png", 3), (999, 4)]
    found = engine.recommend(history=history, k=2)
    assert colours(found) == ["red", "red"]
    assert found.query.ignored == ("gone.png", "999")
    allowed = [hit.id for hit in engine.search("yellow", k=3).hits]
    only = engine.recommend(history=history, among=allowed)
    assert {hit.id for hit in only.hits} == set(allowed)
    assert only.considered == 3


def test_nothing_to_go_by(engine):
    found = engine.recommend(k=4)
    assert found.query.basis is Basis.REPRESENTATIVE
    assert sorted(colours(found)) == ["blue", "green", "red", "yellow"]


def test_what_cannot_be_asked(engine):
    for arguments, words in (
        ({"like": ["nowhere.png"]}, "nowhere.png is neither a picture of the library"),
        ({"like": [999]}, "No item has the id 999"),
        ({"k": 0}, "k must be"),
        ({"strategy": "x"}, "'average' or 'best_score'"),
        ({"history": [("red/0.png", -1)]}, "negative"),
    ):
        with pytest.raises(QueryError, match=words):
            engine.recommend(**arguments)


def test_it_follows_the_library(shop, engine, encoder):
    draw(shop / "red" / "new.png", "red", (49, 32))
    mmsearch.index(shop, model=encoder)
    assert "red/new.png" in {hit.path for hit in engine.recommend(like=["red/0.png"], k=3).hits}


def test_names_that_are_composed_otherwise(tmp_path, encoder):
    draw(tmp_path / "cafe\u0301.png", "red")
    draw(tmp_path / "b.png", "blue")
    mmsearch.index(tmp_path, model=encoder)
    with mmsearch.open(tmp_path, model=encoder) as opened:
        found = opened.recommend(like=["caf\u00e9.png"])
        assert [hit.path for hit in found.hits] == ["b.png"]


def test_histories_are_read(tmp_path):
    draw(tmp_path / "beside.png")
    file = tmp_path / "seen.tsv"
    file.write_text(
        "item\tage_days\na b.jpg\t2.5\n\nbeside.png\t2026-03-10T12:00:00+00:00\nx\ty.jpg\t0\n",
        encoding="utf-8",
    )
    found = read_history(file, NOW)
    assert found == [("a b.jpg", 2.5), (tmp_path / "beside.png", 1.0), ("x\ty.jpg", 0.0)]
    file.write_text("a.jpg\t2026-03-01\n", encoding="utf-8")
    ((_, age),) = read_history(file, NOW)
    assert 9.4 < age < 11.6, "whichever the time zone"
    for line in ("a.jpg", "a.jpg\t", "a.jpg\tyesterday", "a.jpg\t-3", "a.jpg\tnan", "\t3"):
        file.write_text(f"b.jpg\t1\n{line}\n", encoding="utf-8")
        with pytest.raises(SourceError, match="line 2: a picture, a tabulator"):
            read_history(file, NOW)
    file.write_text("a.jpg\t2027-01-01\n", encoding="utf-8")
    with pytest.raises(SourceError, match="that is past"):
        read_history(file, NOW)
    with pytest.raises(SourceError, match="cannot be read"):
        read_history(tmp_path / "none.tsv", NOW)


def invoke(*arguments, code=0):
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == code, (done.output, done.exception)
    return done


def test_the_command(tmp_path, monkeypatch):
    for i, colour in enumerate(("red", "green", "blue", "yellow")):
        for j in range(2):
            draw(tmp_path / f"{colour}{j}.png", colour, (300 + 30 * j, 200 + i))
    mmsearch.index(tmp_path)
    monkeypatch.chdir(tmp_path)
    found = json.loads(invoke("recommend", "--like", "red0.png", "-k", 3, "--json").stdout)
    assert found["schema"] == 1
    assert found["results"][0]["path"] == "red1.png"
    assert found["query"]["strategy"] == "average"
    assert len(found["results"]) == 3

    (tmp_path / "seen.tsv").write_text("blue0.png\t1\nlost.png\t2\n", encoding="utf-8")
    done = invoke(
        "recommend",
        *("--history", "seen.tsv", "--dislike", "green0.png", "--strategy", "best-score"),
        *("--diversity", "0.2", "--half-life", "7", "-k", 2),
    )
    assert done.stdout.splitlines()[0].split("\t")[3] == "blue1.png"
    assert "green0.png" not in done.stdout
    assert "1 of 2 pictures of the history are not in the library: lost.png" in done.stderr

    seen = invoke("recommend", "--like", "red0.png", "--include-seen", "-k", 1)
    assert seen.stdout.split("\t")[3].strip() == "red0.png"
    cold = invoke("recommend", "-k", 4)
    assert len({line.split("\t")[3][:3] for line in cold.stdout.splitlines()}) == 4
    assert "stand for the whole library" in cold.stderr


def test_exit_codes_of_the_installed_command(tmp_path):
    draw(tmp_path / "red.png")
    mmsearch.index(tmp_path)
    done = run("recommend", "--like", "red.png", cwd=tmp_path, code=3)
    assert done.stdout == ""
    assert "Nothing in this library to choose from" in done.stderr
    done = run("recommend", "--like", "none.png", cwd=tmp_path, code=2)
    assert "none.png is neither a picture" in done.stderr
    done = run("recommend", "--history", "none.tsv", cwd=tmp_path, code=1)
    assert "cannot be read" in done.stderr
    run("recommend", "-k", "0", cwd=tmp_path, code=2)
    run("recommend", "--strategy", "worst", cwd=tmp_path, code=2)


def test_lists_of_ids_may_be_arrays(engine):
    ids = np.array([hit.id for hit in engine.search("red", k=2).hits])
    assert len(engine.recommend(like=ids, k=3).hits) == 3


def test_what_may_be_recommended_is_named_by_path(shop, engine):
    allowed = ["green/1.png", shop / "blue" / "2.png", "gone.png"]
    found = engine.recommend(like=["red/0.png"], among=allowed)
    assert sorted(hit.path for hit in found.hits) == ["blue/2.png", "green/1.png"]
    assert found.considered == 2
    by_id = engine.recommend(like=["red/0.png"], among=[hit.id for hit in found.hits])
    assert by_id.hits == found.hits
    narrower = engine.recommend(like=["red/0.png"], among=allowed, where="folder = 'blue'")
    assert [hit.path for hit in narrower.hits] == ["blue/2.png"]
    assert engine.recommend(like=["red/0.png"], among=["gone.png"]).hits == ()


def test_vectors_of_pictures_in_the_library_and_elsewhere(shop, engine, encoder, tmp_path):
    other = draw(tmp_path / "elsewhere.png", "blue", (60, 40))
    id_ = engine.search(image=shop / "green" / "1.png", k=1).hits[0].id
    before = encoder.embedded_images
    vectors = engine.vectors(["red/0.png", other, id_, shop / "red" / "0.png", Image.open(other)])
    assert encoder.embedded_images == before + 2, "stored vectors are not computed again"
    assert vectors.dtype == np.float32
    expected = encoder.encode_images([shop / "red" / "0.png", other, shop / "green" / "1.png"])
    np.testing.assert_allclose(vectors, expected[[0, 1, 2, 0, 1]], atol=1e-3)
    assert engine.vectors([]).shape == (0, encoder.dim)
    with pytest.raises(QueryError, match="No picture of the library"):
        engine.vectors([10**6])
    with pytest.raises(QueryError, match="neither a picture of the library"):
        engine.vectors(["gone.png"])
