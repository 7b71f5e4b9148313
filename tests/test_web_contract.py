"""What the OpenAPI document says is so, and answers are those of `mmsearch query --json`."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlencode

import pytest
from PIL import Image
from typer.testing import CliRunner

from mmsearch.cli import app
from mmsearch.retrieval.ingest import index
from tests.conftest import COLOURS, ColourEncoder, draw
from tests.serving import Running, served


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two libraries of the encoder of colours, with captions, one of them with more of each."""
    base = tmp_path_factory.mktemp("libraries")
    for name, times in (("photos", 1), ("trips", 4)):
        for i in range(times):
            for colour in COLOURS:
                draw(base / name / f"{i}/{colour}.jpg", colour, (48 + i, 32))
                (base / name / f"{i}/{colour}.txt").write_text(f"a {colour} thing, {i}")
        index(base / name, model=ColourEncoder())
    return [base / "photos", base / "trips"]


@pytest.fixture(scope="module")
def server(folders: list[Path]):
    with served(folders) as running:
        yield running


@pytest.mark.parametrize(
    ("phases", "examples"),
    [
        ("coverage,fuzzing", 8),
        pytest.param("coverage,fuzzing,stateful", 100, marks=pytest.mark.slow),
    ],
)
def test_schemathesis(folders: list[Path], tmp_path: Path, phases: str, examples: int):
    """No 5xx, and every status, media type, header and body is as the document says.

    Left out is the check that whatever fits the types is answered: a question has a grammar, and a
    picture is more than any bytes; such are refused with 400.
    """
    (tmp_path / "schemathesis.toml").write_text(
        '[parameters]\n"path.library" = "photos"\n"path.id" = 1\n"query.item" = "photos/1"\n'
    )
    with served(folders[:1]) as running:
        done = subprocess.run(
            [
                *(shutil.which("schemathesis") or "schemathesis", "run"),
                f"http://{running.host}/openapi.json",
                *("--exclude-checks", "positive_data_acceptance"),
                *("--phases", phases, "--max-examples", str(examples)),
                *("--seed", "1", "--workers", "2", "--request-timeout", "60", "--no-color"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        metrics = running.ask("/metrics").body.decode()
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    # It asked, and was answered, not only refused.
    for route in ("search", "similar", "recommend", "items/{library}/{id}/heat"):
        assert f'route="/api/v1/{route}",status="200"' in metrics
    assert 'status="5' not in metrics


def ask(running: Running, path: str, *pairs: tuple[str, object], **fields: object):
    reply = running.ask(f"/api/v1/{path}?{urlencode([*fields.items(), *pairs])}")
    assert reply.status == 200, reply.body
    return reply.json


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory):
    """A library of the bundled encoder, and a server of it."""
    folder = tmp_path_factory.mktemp("real") / "my photos"
    for i, colour in enumerate(COLOURS):
        draw(folder / f"{colour}.jpg", colour, (200 + 10 * i, 200))
        (folder / f"{colour}.txt").write_text(f"a wall painted in {colour}")
    index(folder)
    with served([folder], colours=False) as running:
        yield folder, running


QUESTIONS = {
    "words": (["a red wall", "-k", "3", "--all"], {"q": "a red wall", "k": 3, "all": True}),
    "everything": (
        ["a red wall", "--all", "--no-group", "--no-words"],
        {"q": "a red wall", "all": True, "group": False, "words": False},
    ),
    "nothing": (["a steam train in the alps"], {"q": "a steam train in the alps"}),
    "filter": (
        ["wall is:landscape", "--where", "width > 220", "--all"],
        {"q": "wall is:landscape", "where": "width > 220", "all": True},
    ),
    "list": (
        ["--where", "width > 220", "--sort", "width", "--reverse"],
        {"where": "width > 220", "sort": "width", "reverse": True},
    ),
    "logic": (["red OR blue NOT green", "--all"], {"q": "red OR blue NOT green", "all": True}),
    "captions": (["blue paint", "--to", "captions"], {"q": "blue paint", "to": "captions"}),
    "parts": (
        ["red", "--also", "wall", "--weight", "2", "--weight", "1", "--fusion", "ranks", "--all"],
        {"q": "red", "also": "wall", "fusion": "ranks", "all": True, "weight": [2, 1]},
    ),
    "spread": (
        ["wall", "--all", "--diversity", "0.5"],
        {"q": "wall", "all": True, "diversity": 0.5},
    ),
    "rerank": (
        ["a red wall", "--rerank", "fast", "--all", "--rerank-depth", "4"],
        {"q": "a red wall", "rerank": "fast", "all": True, "rerank_depth": 4},
    ),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_answers_are_those_of_the_command_line(real, name):
    folder, running = real
    arguments, fields = QUESTIONS[name]
    shown = CliRunner().invoke(app, ["query", *arguments, "--json", "--library", str(folder)])
    assert shown.exit_code in {0, 3}, shown.output
    told = json.loads(shown.stdout)
    reply = running.ask(f"/api/v1/search?{urlencode(fields, doseq=True)}")
    assert reply.status == 200, reply.body
    assert set(told) <= set(reply.json)
    for own in ("library", "took_ms"):
        del told[own]
    if told["rerank"]:
        del told["rerank"]["took_ms"]
    assert bool(told["results"]) == (name != "nothing")
    assert bool(told["nearest"]) == (name == "nothing")
    assert like_the_command(reply.json) == told


def test_a_picture_asks_the_same_by_key_by_upload_and_on_the_command_line(real):
    folder, running = real
    file = folder / "green.jpg"
    arguments = ["query", "in red", "--image", str(file), "--json", "--library", str(folder)]
    told = json.loads(CliRunner().invoke(app, arguments).stdout)["results"]
    id_ = next(
        hit["id"] for hit in ask(running, "search", k=6, where="name = 'green.jpg'")["results"]
    )
    by_key = ask(running, "search", q="in red", like=f"my-photos/{id_}")
    sent = running.upload("/api/v1/search", ("../x/green.jpg", file.read_bytes()), q="in red").json
    assert like_the_command(by_key)["results"] == like_the_command(sent)["results"] == told
    assert [part.get("image") for part in by_key["query"]["parts"]] == [None, f"my-photos/{id_}"]
    assert [part.get("image") for part in sent["query"]["parts"]] == [None, "green.jpg"]
    arguments = ["similar", str(file), "--json", "--library", str(folder)]
    told = json.loads(CliRunner().invoke(app, arguments).stdout)["results"]
    by_key = ask(running, "similar", item=f"my-photos/{id_}")
    sent = running.upload("/api/v1/similar", ("green.jpg", file.read_bytes())).json
    assert like_the_command(by_key)["results"] == like_the_command(sent)["results"] == told
    assert "green.jpg" not in [hit["path"] for hit in told]


def test_a_recommendation_is_that_of_the_command_line(real):
    folder, running = real
    arguments = ["recommend", "--like", str(folder / "red.jpg"), "--json", "--library", str(folder)]
    told = json.loads(CliRunner().invoke(app, arguments).stdout)["results"]
    id_ = ask(running, "search", where="name = 'red.jpg'")["results"][0]["id"]
    body = json.dumps({"like": [f"my-photos/{id_}"]}).encode()
    reply = running.ask("/api/v1/recommend", "POST", body, Content_Type="application/json")
    assert like_the_command(reply.json)["results"] == told


def paths(answer: dict) -> list[tuple[str, str]]:
    return [(hit["library"], hit["path"]) for hit in answer["results"]]


def test_several_libraries_are_asked_together(server: Running):
    both = ask(server, "search", q="red", all=True, group=False, k=30)
    assert both["library"] is None
    assert both["libraries"] == ["photos", "trips"]
    assert both["considered"] == 6 + 24
    assert len(both["results"]) == 30
    assert [hit["rank"] for hit in both["results"]] == list(range(1, 31))
    matches = [hit["p_match"] for hit in both["results"]]
    assert matches == sorted(matches, reverse=True)
    for name in ("photos", "trips"):
        alone = ask(server, "search", q="red", all=True, group=False, k=30, library=name)
        assert alone["library"] == name
        assert paths(alone) == [each for each in paths(both) if each[0] == name]


@pytest.mark.parametrize("library", [["trips"], ["photos", "trips"]])
def test_pages_fit_together(server: Running, library):
    names = [("library", name) for name in library]
    fields = {"q": "a blue thing", "all": True, "group": False}
    whole = paths(ask(server, "search", *names, **fields, k=30, offset=0))
    pages = []
    for offset in range(0, 35, 7):
        page = ask(server, "search", *names, **fields, k=7, offset=offset)
        assert page["offset"] == offset
        ranks = [hit["rank"] for hit in page["results"]]
        assert ranks == list(range(offset + 1, offset + 1 + len(ranks)))
        pages += paths(page)
    assert pages == whole
    assert len(set(pages)) == sum(6 * {"photos": 1, "trips": 4}[name] for name in library)


def test_nothing_of_several_libraries_tells_the_nearest(server: Running):
    answer = ask(server, "search", q="a zebra", where="width > 10")
    if not answer["results"]:
        assert answer["nearest"]["library"] in {"photos", "trips"}
    nothing = ask(server, "search", q="red", where="width > 10000")
    assert nothing["results"] == []
    assert nothing["nearest"] is None


def test_disliked_pictures_are_left_out(server: Running):
    first = ask(server, "search", q="red", all=True, group=False, k=5)["results"]
    bad = f"{first[0]['library']}/{first[0]['id']}"
    answer = ask(server, "search", q="red", all=True, group=False, k=5, dislike=bad)
    expected = [(hit["library"], hit["id"]) for hit in first][1:]
    found = [(hit["library"], hit["id"]) for hit in answer["results"]]
    assert found[:4] == expected
    assert len(found) == 5


def test_what_a_picture_looks_like_comes_in_the_size_that_is_asked(server: Running):
    reply = server.ask("/api/v1/items/trips/1/thumbnail?side=1")
    with Image.open(io.BytesIO(reply.body)) as made:
        assert max(made.size) <= 160
    again = server.ask(
        "/api/v1/items/trips/1/thumbnail?side=1", If_None_Match=reply.headers["etag"]
    )
    assert (again.status, again.body) == (304, b"")


def like_the_command(answer: dict) -> dict:
    """Return an answer without what only a server tells, and without times."""
    answer = json.loads(json.dumps(answer))
    for own in ("took_ms", "offset", "total", "libraries", "library"):
        del answer[own]
    if answer["rerank"]:
        del answer["rerank"]["took_ms"]
    for hit in [*answer["results"], *filter(None, [answer["nearest"]])]:
        for own in ("library", "id", "confidence"):
            hit.pop(own, None)
        hit.get("group", {}).pop("ids", None)
    return answer
