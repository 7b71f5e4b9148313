"""`--server`: the commands of the command line, answered by a server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmsearch.cli import app
from mmsearch.errors import MmsearchError
from mmsearch.retrieval.commands import remote, showing
from mmsearch.retrieval.commands.remote import chosen_server
from mmsearch.retrieval.schema import Hit, Query, Results
from tests.served import TOKEN, make_libraries, serving


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_libraries(tmp_path_factory.mktemp("served here"))


@pytest.fixture(scope="module")
def url(libraries: tuple[Path, Path]) -> Iterator[str]:
    with serving(*libraries, token=TOKEN) as address:
        yield address


@dataclass
class Done:
    stdout: str
    stderr: str


@pytest.fixture
def run(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a command in an empty folder, where there is no library."""
    monkeypatch.chdir(tmp_path)

    def asked(*arguments: object, code: int = 0, server: bool = True, **environment: str) -> Done:
        more = ("--server", url) if server else ()
        variables = {"MMSEARCH_TOKEN": TOKEN} | environment
        done = CliRunner().invoke(app, [*map(str, arguments), *more], env=variables)
        wrong, found = done.exception, done.exit_code
        if isinstance(wrong, MmsearchError):
            found = wrong.exit_code
        assert found == code, (arguments, done.output, wrong)
        return Done(done.stdout, f"{done.stderr}{wrong or ''}")

    return asked


def test_the_same_lines_as_here(run, libraries):
    for asked in (
        ("query", "a red card", "--all", "-k", 3),
        ("query", "a red card", "--all", "--csv"),
        ("query", "card", "--where", "width > 170", "--all"),
        ("query", "width:>170", "--sort", "width", "--reverse"),
        ("query", "a blue card", "--to", "captions"),
        ("query", "--image", libraries[0] / "plain" / "red.jpg", "-k", 2),
        ("similar", libraries[0] / "plain" / "red.jpg", "-k", 2),
        ("caption", libraries[0] / "plain" / "red.jpg", "-k", 2),
    ):
        there = run(*asked, "-L", "my-photos")
        here = run(*asked, "-L", libraries[0], server=False)
        if "--csv" in asked:
            assert [line.split(",")[3:5] for line in there.stdout.splitlines()][1:] == [
                line.split(",")[1:3] for line in here.stdout.splitlines()
            ][1:]
            continue
        assert there.stdout == here.stdout, asked


def test_json_tells_whose_a_hit_is(run, libraries):
    there = json.loads(run("query", "a red card", "--all", "--json").stdout)
    assert there["libraries"] == ["my-photos", "work"]
    assert there["library"] is None
    assert {hit["library"] for hit in there["results"]} == {"my-photos", "work"}
    one = json.loads(run("query", "a red card", "--all", "--json", "-L", "my-photos").stdout)
    here = json.loads(
        run("query", "a red card", "--all", "--json", "-L", libraries[0], server=False).stdout
    )
    assert set(one) == set(here) | {"libraries", "offset"}
    assert one["library"] == "my-photos"
    assert [{**hit, "id": 0, "library": ""} for hit in one["results"]] == [
        {**hit, "id": 0, "library": ""} for hit in here["results"]
    ]
    lines = run("query", "red", "--all", "--jsonl", "-k", 1, "-L", "work").stdout.splitlines()
    assert json.loads(lines[0])["library"] == "work"
    assert "file" not in json.loads(lines[0])


def test_paths_are_from_the_servers_folder_on(run):
    found = run("query", "a red card", "--all", "--paths", "-L", "my-photos").stdout.split("\n")
    assert "plain/red.jpg" in found
    several = run("query", "red", "--all").stdout
    assert {line.split("\t")[3] for line in several.splitlines()} == {"my-photos", "work"}


def test_nothing_matches_and_what_is_wrong(run, url):
    nothing = run("query", "a submarine", code=3)
    assert nothing.stdout == ""
    assert "Nothing in this library clearly matches" in nothing.stderr
    assert "Closest:" in nothing.stderr
    assert "No library is called 'x'" in run("query", "red", "-L", "x", code=1).stderr
    refused = run("query", "red", code=1, MMSEARCH_TOKEN="no-such-token")
    assert "another token" in refused.stderr
    assert "no-such-token" not in refused.stderr
    assert "-k must be at least 1" in run("query", "red", "-k", 0, code=2).stderr
    assert "at most 200" in run("query", "red", "-k", 201, code=2).stderr
    assert "colour" in run("query", "red", "--where", "colour = 1", code=2).stderr
    links = run("query", "red", "--all", "--link-to", "there", code=2)
    assert "--copy-to FOLDER" in links.stderr
    gone = run("query", "x", "--server", "http://127.0.0.1:9", code=1, server=False)
    assert "mmsearch serve FOLDER" in gone.stderr


def test_pictures_come_over(run, libraries, tmp_path):
    run("query", "a red card", "--all", "-k", 2, "-L", "my-photos", "--copy-to", "copies")
    found = run(
        "query", "a red card", "--all", "-k", 2, "-L", "my-photos", "--paths"
    ).stdout.split()
    copies = sorted((tmp_path / "copies").iterdir())
    assert [copy.name for copy in copies] == [
        f"{rank}-{Path(path).name}" for rank, path in enumerate(found, 1)
    ]
    for copy, path in zip(copies, found, strict=True):
        assert copy.read_bytes() == (libraries[0] / path).read_bytes()

    run("query", "a red card", "--all", "-k", 2, "-L", "my-photos", "--html", "sheet.html")
    sheet = (tmp_path / "sheet.html").read_text()
    assert sheet.count("data:image/jpeg") == 2
    assert "<a href" not in sheet
    assert "my-photos" in sheet
    assert "lost" not in sheet.partition("</style>")[2]


def test_one_variable_is_enough_and_a_library_here_comes_first(run, url, libraries):
    there = run("query", "red", "--all", server=False, MMSEARCH_SERVER=url)
    assert "work" in there.stdout
    here = run("query", "red", "--all", "-L", libraries[1], server=False, MMSEARCH_SERVER=url)
    assert here.stdout.count("\n") == 2
    assert chosen_server(None, None, None) is None


def test_status_and_a_picture_of_the_servers(run):
    lines = run("status").stdout.splitlines()
    assert lines[0].startswith("my-photos  6 pictures · 5 captions")
    assert len(lines) == 2
    only = json.loads(run("status", "--json", "-L", "work").stdout)
    assert [each["library"] for each in only["libraries"]] == ["work"]
    assert "there are: my-photos, work" in run("status", "-L", "x", code=1).stderr
    assert "does not tell of problems" in run("status", "--problems", code=2).stderr
    found = run("similar", "my-photos/2", "-k", 1, "--json").stdout
    assert json.loads(found)["query"] == {"image": "my-photos/2"}
    assert "card" in run("caption", "my-photos/2", "-k", 1).stdout
    assert "leave --server away" in run("caption", "my-photos/2", "--tags", code=2).stderr
    assert "No captions there" in run("caption", "my-photos/2", "-L", "work", code=3).stderr


def test_a_question_to_a_server_loads_nothing_of_the_engine(url, tmp_path):
    code = (
        "import sys; from mmsearch import cli; sys.argv = ['mmsearch', *sys.argv[1:]]\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'faiss', 'onnxruntime', 'sqlalchemy', 'torch', 'numpy', 'PIL', 'tokenizers'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    for asked in (["query", "red", "--all"], ["similar", "my-photos/2"], ["status"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *asked, "--server", url, "--token", TOKEN],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.stdout.count("\n") >= 2, done.stderr
        assert done.stderr.strip().splitlines()[-1] == "[]", (asked, done.stderr)


class Told:
    """A client whose server says what it likes."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def original(self, hit: Hit) -> bytes:
        return self.content


@pytest.mark.parametrize("path", ["../../evil", "/etc/evil", "..\\evil", "a/..", "x\0evil", "/"])
def test_a_name_that_leads_away_stays_where_it_belongs(path, tmp_path):
    hit = Hit(1, 7, path, 0.5, library="photos")
    found = Results(Query(()), None, "m@1", (hit,), True, 1.0, 1, libraries=("photos",))
    here = tmp_path / "here"
    here.mkdir()
    fetched = remote._fetched(Told(b"x"), found, None, here)
    placed = fetched.file(hit)
    assert placed.read_bytes() == b"x"
    assert placed.resolve().is_relative_to(here)
    assert [*tmp_path.iterdir()] == [here]
    assert fetched.hits == found.hits


def test_what_is_opened_stays_for_the_viewer(monkeypatch, tmp_path):
    hits = tuple(Hit(i, i, f"{i}.png", 0.5, library="photos") for i in range(1, 6))
    found = Results(Query(()), None, "m@1", hits, True, 1.0, 1, libraries=("photos",))
    opened = []
    monkeypatch.setattr(showing, "open_file", opened.append)
    monkeypatch.setattr(remote.tempfile, "mkdtemp", lambda prefix: str(tmp_path))
    remote.show(showing.Showing(opened=True), Told(b"picture"), found)
    assert [file.name for file in opened] == ["1.png", "2.png", "3.png"]
    assert all(file.read_bytes() == b"picture" for file in opened)
