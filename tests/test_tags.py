"""Zero-shot tags, and the commands `caption` and `similar`, on drawn pictures."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import mmsearch
from mmsearch.cli import app
from mmsearch.errors import MediaError, QueryError
from mmsearch.retrieval import tags as tagging
from mmsearch.retrieval.similar import similar
from mmsearch.retrieval.tags import Tagger, bundled_vocabulary, read_vocabulary
from tests.conftest import COLOURS, ColourEncoder, draw


def test_the_bundled_vocabulary():
    names = bundled_vocabulary()
    assert len(names) == len({name.lower() for name in names})
    assert 1_050 <= len(names) <= 1_080
    assert {"person", "toothbrush", "tench", "toilet tissue"} <= set(names)


def test_names_are_ranked_by_their_mean_vector(encoder, photos):
    names = [*COLOURS, " dark  red ", "red", ""]
    tagger = Tagger(encoder, names, templates=("a {}", "the {} on white"))
    assert tagger.vocabulary == (*COLOURS, "dark red")
    mean = encoder.encode_texts(["a red"]) + encoder.encode_texts(["the red on white"])
    row = tagger.vectors[list(COLOURS).index("red")]
    np.testing.assert_allclose(row, (mean / np.linalg.norm(mean))[0], atol=1e-6)
    paths = [photos / "green.jpg", photos / "yellow.jpg"]
    found = tagger.tags(paths, 3)
    scores = encoder.encode_images(paths) @ tagger.vectors.T
    for i, tags in enumerate(found):
        order = np.argsort(-scores[i], kind="stable")[:3]
        assert [tag.name for tag in tags] == [tagger.vocabulary[j] for j in order]
        assert [tag.score for tag in tags] == pytest.approx(scores[i][order])
    assert len(tagger.tags(paths[:1], 99)[0]) == 7
    with pytest.raises(MediaError):
        tagger.tags([photos / "none.jpg"])


def test_vectors_of_a_vocabulary_are_kept_for_each_model(encoder):
    told = []
    Tagger(encoder, ["red", "blue"], embedding=told.append)
    count = encoder.embedded_texts
    again = Tagger(encoder, ["red", "blue"], embedding=told.append)
    assert encoder.embedded_texts == count
    assert told == [2]
    # Other names, other templates, another model.
    Tagger(encoder, ["red", "green"])
    Tagger(encoder, ["red", "blue"], templates=("{}",))
    assert encoder.embedded_texts == count + 2 * len(tagging.TEMPLATES) + 2
    other = ColourEncoder("2")
    Tagger(other, ["red", "blue"])
    assert other.embedded_texts == count
    for kept in (tagging.cache.root() / "tags").iterdir():
        kept.write_bytes(kept.read_bytes()[:-8])
    before = encoder.embedded_texts
    np.testing.assert_array_equal(Tagger(encoder, ["red", "blue"]).vectors, again.vectors)
    assert encoder.embedded_texts == before + count, "a torn file is made anew"


def test_a_cache_that_cannot_be_written_keeps_nothing(encoder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MMSEARCH_CACHE", str(tmp_path / "file"))
    assert Tagger(encoder, ["red"]).vocabulary == ("red",)


def test_vocabularies_that_are_none(encoder, tmp_path):
    path = tmp_path / "names.txt"
    with pytest.raises(QueryError, match="cannot be read"):
        read_vocabulary(path)
    path.write_text("# nothing\n\n")
    with pytest.raises(QueryError, match="one name a line"):
        read_vocabulary(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(QueryError, match="UTF-8"):
        read_vocabulary(path)
    path.write_text("\ufeffred card\n# no\n blue \n", encoding="utf-8")
    assert read_vocabulary(path) == ["red card", "blue"]
    with pytest.raises(QueryError, match="empty"):
        Tagger(encoder, [" "])


def test_similar_leaves_the_picture_and_its_copies_out(photos, encoder, tmp_path):
    shutil.copy(photos / "red.jpg", photos / "trip" / "copy of red.jpg")
    with tarfile.open(photos / "shard.tar", "w") as tar:
        tar.add(photos / "green.jpg", "inside.jpg")
        tar.add(photos / "red.jpg", "red too.jpg")
    (photos / "green.jpg").unlink()
    mmsearch.index(photos, model=encoder)
    elsewhere = draw(tmp_path / "elsewhere.png", "red", (80, 80))
    with mmsearch.open(photos, model=encoder) as engine:
        count = len(engine)
        assert count == 8
        for image in (photos / "red.jpg", "red.jpg", "trip/copy of red.jpg"):
            for k in (1, 4, 100):
                results = similar(engine, Path(image), k)
                assert len(results.hits) == min(k, count - 3)
                assert not any("red" in hit.path for hit in results.hits)
                assert [hit.rank for hit in results.hits] == list(range(1, len(results.hits) + 1))
                assert results.considered == count - 3
        for image in (photos / "shard.tar" / "red too.jpg", "shard.tar/red too.jpg"):
            assert len(similar(engine, Path(image), 100).hits) == count - 3
        assert len(similar(engine, elsewhere, 3).hits) == 3
        assert "red" in similar(engine, elsewhere, 3).hits[0].path
        for wrong in (photos / "none.jpg", photos / "shard.tar" / "none.jpg", photos):
            with pytest.raises(QueryError, match="query picture"):
                similar(engine, wrong, 3)
        with pytest.raises(QueryError, match="at least 1"):
            similar(engine, elsewhere, 0)


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """A library of the bundled encoder, with two captions."""
    folder = tmp_path_factory.mktemp("captioned")
    for i, colour in enumerate(("red", "green", "blue", "black")):
        draw(folder / f"{colour}.png", colour, (300 + i, 200))
    (folder / "red.txt").write_text("a red wall\n")
    (folder / "black.txt").write_text("a dark night\n")
    mmsearch.index(folder)
    return folder


def run(*arguments: object, code: int = 0):
    done = CliRunner().invoke(app, [str(each) for each in arguments])
    if code == 0:
        assert done.exit_code == 0, (done.output, done.exception)
    else:
        assert done.exit_code == code or getattr(done.exception, "exit_code", None) == code
    return done


def test_caption_gives_captions_of_the_library(captioned, tmp_path):
    new = draw(tmp_path / "new.png", "black", (90, 60))
    found = json.loads(run("caption", new, "-L", captioned, "--json").stdout)
    asked = ["query", "--image", new, "--to", "captions", "-k", 5, "-L", captioned, "--json"]
    expected = json.loads(run(*asked).stdout)
    assert {**found, "took_ms": 0} == {**expected, "took_ms": 0}
    assert {result["caption"] for result in found["results"]} == {"a red wall", "a dark night"}
    lines = run("caption", new, "-L", captioned, "-k", 1).stdout.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("1\t")


def test_tags_from_a_list_of_ones_own_need_no_library(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = draw(tmp_path / "photo.png", "red", (90, 60))
    (tmp_path / "names.txt").write_text("red card\ngreen meadow\nnight sky\n")
    first = run("caption", image, "--vocabulary", "names.txt", "-k", 2)
    rows = [line.split("\t") for line in first.stdout.splitlines()]
    assert [row[0] for row in rows] == ["1", "2"]
    tagger = Tagger(mmsearch.load_encoder(), read_vocabulary(tmp_path / "names.txt"))
    assert [row[2] for row in rows] == [tag.name for tag in tagger.tags([image], 2)[0]]
    assert "Embedding 3 names" in first.stderr
    again = run("caption", image, "--tags", "--vocabulary", "names.txt", "-k", 2, "--json")
    assert "Embedding" not in again.stderr
    found = json.loads(again.stdout)
    assert {key: found[key] for key in ("schema", "image", "vocabulary")} == {
        "schema": 1,
        "image": str(image),
        "vocabulary": 3,
    }
    assert found["model"].startswith("compact@")
    assert [tag["rank"] for tag in found["tags"]] == [1, 2]
    assert [f"{tag['score']:.3f}" for tag in found["tags"]] == [row[1] for row in rows]


def test_tags_where_there_are_no_captions(tmp_path, monkeypatch):
    few = tmp_path / "few.txt"
    few.write_text("red card\n")
    monkeypatch.setattr(tagging, "NAMES", few)
    folder = tmp_path / "plain"
    image = draw(folder / "red.png", "red", (300, 200))
    monkeypatch.chdir(tmp_path)
    done = run("caption", image, "-k", 1)
    assert done.stdout.endswith("\tred card\n")
    assert "No library here" in done.stderr
    mmsearch.index(folder)
    done = run("caption", image, "-L", folder, "-k", 1)
    assert done.stdout.endswith("\tred card\n")
    assert "no captions" in done.stderr
    run("caption", image, "-L", tmp_path / "none", code=1)
    run("caption", image, "-k", 0, code=2)
    run("caption", image, "--model", "compact", code=2)
    run("caption", tmp_path / "none.png", "--tags", code=2)


def test_the_command_similar(captioned, tmp_path, monkeypatch):
    monkeypatch.chdir(captioned)
    found = json.loads(run("similar", "red.png", "-k", 3, "--json").stdout)
    assert [result["rank"] for result in found["results"]] == [1, 2, 3]
    assert {result["path"] for result in found["results"]} == {"green.png", "blue.png", "black.png"}
    assert found["query"] == {"image": "red.png"}
    assert found["considered"] == 3
    monkeypatch.chdir(tmp_path)
    assert run("similar", "red.png", "-k", 1, "-L", captioned).stdout.startswith("1\t")
    run("similar", "none.png", "-L", captioned, code=2)
    run("similar", "red.png", "-k", 0, "-L", captioned, code=2)
    alone = draw(tmp_path / "alone" / "one.png", "red", (300, 200))
    mmsearch.index(alone.parent)
    run("similar", alone, "-L", alone.parent, code=3)
