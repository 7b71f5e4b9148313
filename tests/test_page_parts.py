"""What the page is drawn from, exports, long lists and indexing over HTTP, without a browser."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
import time
import zipfile
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mmsearch.errors import QueryError
from mmsearch.retrieval import engine as engine_module
from mmsearch.retrieval.filters import parse_where
from mmsearch.retrieval.ingest import index
from mmsearch.retrieval.schema import Hit, Query, QueryPart, Results, SortKey

fastapi = pytest.importorskip("fastapi")
from fastapi.testclient import TestClient  # noqa: E402

from mmsearch.retrieval.web.app import create_app  # noqa: E402
from mmsearch.retrieval.web.assets import assets, templates  # noqa: E402
from mmsearch.retrieval.web.long_lists import LongLists, Step, key_of  # noqa: E402
from mmsearch.retrieval.web.page_state import PageState  # noqa: E402
from mmsearch.retrieval.web.settings import Limits, Settings  # noqa: E402
from mmsearch.retrieval.web.zip_stream import zipped  # noqa: E402
from tests.conftest import ColourEncoder, draw  # noqa: E402

EVIL = "<img src=x onerror=alert(1)>.jpg"
SCRIPT = "</script><script>alert('caption')</script>"


@pytest.fixture
def served(
    tmp_path: Path, encoder: ColourEncoder, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., TestClient]]:
    """Make a library of files that mean harm, and clients of servers of it."""
    folder = tmp_path / "photos"
    draw(folder / EVIL, "red")
    (folder / EVIL).with_suffix(".txt").write_text(SCRIPT)
    draw(folder / "=1+1.jpg", "green", (50, 32))
    draw(folder / "blue.png", "blue", (32, 50))
    draw(folder / "trip" / "yellow.jpg", "yellow", (52, 32))
    index(folder, model=encoder)
    monkeypatch.setattr(engine_module, "load_encoder", lambda *_, **__: encoder)
    opened = []

    def client(**settings) -> TestClient:
        started = TestClient(
            create_app([folder], Settings(**settings)), base_url="http://127.0.0.1"
        )
        opened.append(started.__enter__())
        return opened[-1]

    yield client
    for each in opened:
        each.__exit__(None, None, None)


class Markup(HTMLParser):
    """Collects what a browser would take for elements and for handlers of events."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def harmless(html: str) -> Markup:
    found = Markup(html)
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert not [value for name, value in found.attributes if name == "src" and value == "x"]
    assert not [value for name, value in found.attributes if value and "javascript:" in value]
    return found


def items(client: TestClient) -> dict[str, str]:
    answer = client.get("/api/v1/search", params={"where": "width > 0", "k": 50, "sort": "path"})
    return {hit["path"]: f"photos/{hit['id']}" for hit in answer.json()["results"]}


def test_names_and_captions_are_never_markup(served):
    client = served()
    item = items(client)[EVIL]
    page = client.get("/", params={"q": '"><script>alert(2)</script>', "camera": "<b>", "all": "1"})
    assert page.status_code == 200
    assert harmless(page.text).tags.count("script") == 2
    page = client.get("/", params={"open": item})
    assert "&lt;script&gt;" in page.text
    assert harmless(page.text).tags.count("script") == 2
    detail = client.get("/page/item", params={"item": item, "q": "<i>"})
    assert "script" not in harmless(detail.text).tags
    assert "i" not in harmless(detail.text).tags
    piece = client.get("/page/answer").json()
    assert any("onerror" in tile for tile in piece["tiles"])
    for tile in piece["tiles"]:
        assert "script" not in harmless(tile).tags
    why = client.get("/page/why", params={"item": item, "words": "red <script>"})
    assert why.status_code == 200
    assert "script" not in harmless(why.text).tags


def test_exports_hold_text_as_text(served):
    client = served()
    known = items(client)
    order = [EVIL, "=1+1.jpg", "trip/yellow.jpg"]

    def export(form: str):
        return client.post(
            "/api/v1/export", data={"items": [known[name] for name in order], "form": form}
        )

    sheet = export("html")
    found = harmless(sheet.text)
    assert "script" not in found.tags
    assert "a" not in found.tags  # Where the files lie is nobody's business.
    assert found.tags.count("img") == 3
    assert sheet.headers["content-disposition"].startswith("attachment")
    rows = [*csv.DictReader(io.StringIO(export("csv").text, newline=""))]
    assert [row["path"] for row in rows] == order
    assert json.loads(rows[0]["captions"]) == [SCRIPT]
    joined = ",".join(known[name] for name in order)
    together = client.post("/api/v1/export", data={"items": joined, "form": "json"})
    pictures = together.json()["pictures"]
    assert [picture["path"] for picture in pictures] == order
    assert [picture["rank"] for picture in pictures] == [1, 2, 3]
    assert pictures[0]["captions"] == [SCRIPT]


def test_an_archive_holds_the_files_byte_for_byte_and_says_what_is_missing(served, tmp_path):
    client = served()
    known = items(client)
    (tmp_path / "photos" / "blue.png").unlink()
    sent = client.post("/api/v1/export", data={"items": list(known.values()), "form": "zip"})
    with zipfile.ZipFile(io.BytesIO(sent.content)) as archive:
        assert archive.testzip() is None
        ranked = {name: rank for rank, name in enumerate(known, 1)}
        expected = {
            f"{ranked[name]}-{name.rpartition('/')[2]}": (tmp_path / "photos" / name).read_bytes()
            for name in known
            if name != "blue.png"
        }
        told = archive.read("skipped.txt").decode()
        assert told == "blue.png: it is gone since it was indexed\n"
        names = [name for name in archive.namelist() if name != "skipped.txt"]
        assert {name: archive.read(name) for name in names} == expected


def test_exports_are_bounded(served):
    client = served(limits=Limits(export_items=2, export_bytes=100))
    known = [*items(client).values()]
    refused = client.post("/api/v1/export", data={"items": known, "form": "csv"})
    assert refused.status_code == 400
    assert "No more than 2 pictures" in refused.json()["detail"]
    refused = client.post("/api/v1/export", data={"items": known[:1], "form": "zip"})
    assert refused.status_code == 400
    assert "Leave some away" in refused.json()["detail"]
    assert client.post("/api/v1/export", data={"items": known[:1], "form": "csv"}).is_success
    wrong = {"items": ["photos/99999"], "form": "csv"}
    assert client.post("/api/v1/export", data=wrong).status_code == 404
    assert client.post("/api/v1/export", data={"form": "csv"}).status_code == 422


def test_an_archive_is_sent_while_it_is_made():
    read = []

    def pieces(name: str) -> Iterator[bytes]:
        for i in range(3):
            read.append((name, i))
            yield bytes([i]) * 1000

    members = ((name, (2020, 5, 6, 7, 8, 9), pieces(name)) for name in ("a", "ü"))
    stream = zipped(members)
    sent = next(stream)
    assert read == [("a", 0)]
    assert len(sent) > 1000
    whole = sent + b"".join(stream)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["a", "ü"]
        assert archive.read("ü") == b"\0" * 1000 + b"\1" * 1000 + b"\2" * 1000
        assert archive.infolist()[0].date_time == (2020, 5, 6, 7, 8, 8)  # of two seconds


def test_the_page_s_policy_is_strict_and_it_keeps_to_it(served):
    client = served()
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    found = Markup(page.text)
    assert "style" not in found.tags
    assert not [name for name, _ in found.attributes if name == "style"]
    addresses = [value for name, value in found.attributes if name in {"src", "href", "action"}]
    assert addresses
    assert all(value.startswith(("/", "#")) for value in addresses if value)
    for name in templates():
        assert "|safe" not in templates()[name]


def test_assets_are_kept_for_ever_under_their_own_name_only(served):
    client = served()
    style = assets().url("page.css")
    first = client.get(style)
    assert first.headers["content-type"].startswith("text/css")
    assert "immutable" in first.headers["cache-control"]
    again = client.get(style, headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304
    older = client.get("/static/0000000000000000/page.css")
    assert older.headers["cache-control"] == "no-cache"
    for name in ("../app.py", "..%2fapp.py", "%2e%2e/app.py", "nothing.js"):
        assert client.get(f"/static/{assets().version}/{name}").status_code == 404
    # Modules name each other relatively, so that all are of one version.
    for name, asset in assets().files.items():
        if name.endswith(".js"):
            for used in re.findall(r'from "\./([^"]+)"', asset.content.decode()):
                assert used in assets().files


def test_a_picture_that_is_gone_is_a_transparent_pixel_to_the_page(served, tmp_path):
    client = served()
    item = items(client)["blue.png"]
    address = f"/api/v1/items/{item}/thumbnail"
    (tmp_path / "photos" / "blue.png").unlink()
    assert client.get(address).status_code == 410
    blank = client.get(address, params={"or_blank": True})
    assert (blank.status_code, blank.headers["content-type"]) == (200, "image/gif")
    assert blank.headers["cache-control"] == "no-store"
    assert "gone since it was indexed" in client.get("/page/item", params={"item": item}).text


@pytest.mark.parametrize(
    "params",
    [
        {"q": "red after:20x"},
        {"q": "red AND"},
        {"sort": "beauty"},
        {"like": "photos/99999"},
        {"library": "elsewhere"},
        {"rerank": "unknown", "q": "red"},
        {"open": "photos/99999"},
    ],
)
def test_what_cannot_be_asked_is_a_part_of_the_page(served, params):
    client = served()
    page = client.get("/", params=params)
    assert page.status_code == 200
    assert 'class="notice failure"' in page.text
    if "open" not in params:
        piece = client.get("/page/answer", params=params)
        assert piece.status_code == 200
        assert piece.json()["failed"]


def test_pages_of_an_answer_fit_together_without_what_is_left_out(served):
    client = served()
    known = items(client)
    every = {"where": "width > 0", "sort": "path", "k": 2}
    first = client.get("/api/v1/search", params=every | {"offset": 0}).json()
    second = client.get("/api/v1/search", params=every | {"offset": 2}).json()
    assert [hit["rank"] for hit in first["results"] + second["results"]] == [1, 2, 3, 4]
    assert (first["total"], second["total"]) == (4, 4)
    left = known["=1+1.jpg"]
    paths = []
    for offset in range(0, 4):
        asked = {"q": "red", "all": True, "k": 1, "offset": offset, "dislike": left}
        paths += [h["path"] for h in client.get("/api/v1/search", params=asked).json()["results"]]
    assert sorted(paths) == sorted(set(known) - {"=1+1.jpg"})


def test_several_libraries_are_one_answer_or_chosen(served, tmp_path, encoder):
    other = tmp_path / "other photos"
    draw(other / "crimson.jpg", "red", (60, 40))
    draw(other / "night.jpg", "black", (61, 40))
    index(other, model=encoder)
    app = create_app([tmp_path / "photos", other], Settings())
    with TestClient(app, base_url="http://127.0.0.1") as client:
        page = client.get("/").text
        assert page.count('class="tile') == 6
        assert "6 pictures" in page
        assert 'name="library" value="other-photos"' in page
        assert "photos · " in page
        chosen = client.get("/", params={"library": "other-photos"}).text
        assert chosen.count('class="tile') == 2
        assert "in other-photos" in chosen
        # Pages of both fit together, and what is liked in one is left out of it.
        crimson = re.search(r'data-item="(other-photos/\d+)"[^<]*<[^<]*<img[^>]*crimson', page)
        assert crimson is not None
        seen = []
        for offset in range(0, 6, 2):
            asked = {"like": crimson[1], "k": 2, "offset": offset, "single": "1"}
            piece = client.get("/page/answer", params=asked).json()
            assert piece["total"] == 5
            seen += [re.search(r'data-item="([^"]+)"', tile)[1] for tile in piece["tiles"]]
        assert len(set(seen)) == 5
        assert crimson[1] not in seen


def test_near_duplicates_are_told_with_their_keys(served, tmp_path, encoder):
    draw(tmp_path / "photos" / "red again.jpg", "red", (96, 64))
    index(tmp_path / "photos", model=encoder)
    client = served()
    answer = client.get("/api/v1/search", params={"q": "red", "all": True}).json()
    group = answer["results"][0]["group"]
    known = items(client)
    assert [f"photos/{id_}" for id_ in group["ids"]] == [known[path] for path in group["others"]]


def test_indexing_must_be_allowed(served):
    refused = served().post("/api/v1/index", json={"library": "photos"})
    assert refused.status_code == 403
    assert "--allow-indexing" in refused.json()["detail"]


def test_a_library_is_indexed_while_it_answers(served, tmp_path, encoder, monkeypatch):
    client = served(allow_indexing=True)
    prepare = encoder.prepare
    monkeypatch.setattr(encoder, "prepare", lambda image: time.sleep(0.3) or prepare(image))
    for i in range(3):
        draw(tmp_path / "photos" / f"new{i}.jpg", "white", (60 + i, 40))
    assert client.post("/api/v1/index", json={"library": "photos"}).status_code == 202
    twice = client.post("/api/v1/index", json={"library": "photos"})
    assert (twice.status_code, twice.json()["kind"]) == (409, "indexing")
    assert client.get("/api/v1/search", params={"q": "red", "all": True}).is_success
    seen = []
    while (told := client.get("/api/v1/index").json()["libraries"][0])["running"]:
        seen.append((told["stage"], told["total"]))
        time.sleep(0.02)
    assert ("pictures", 3) in seen
    assert told["failure"] is None
    assert told["report"]["added"] == 3
    assert {"new0.jpg", "new1.jpg", "new2.jpg"} < set(items(client))
    assert client.post("/api/v1/index", json={"library": "elsewhere"}).status_code == 404


def test_a_library_that_another_process_indexes_is_left_alone(served, tmp_path):
    from filelock import FileLock

    client = served(allow_indexing=True)
    with FileLock(tmp_path / "photos" / ".mmsearch" / "lock"):
        locked = client.post("/api/v1/index", json={"library": "photos"})
    assert locked.status_code == 409
    assert not client.get("/api/v1/index").json()["libraries"][0]["running"]


def test_a_server_that_goes_down_stops_indexing(served, tmp_path, encoder, monkeypatch, request):
    client = served(allow_indexing=True)
    prepare = encoder.prepare
    monkeypatch.setattr(encoder, "prepare", lambda image: time.sleep(0.1) or prepare(image))
    for i in range(60):
        draw(tmp_path / "photos" / f"new{i}.jpg", "white", (60 + i, 40))
    client.post("/api/v1/index", json={"library": "photos"})
    while client.get("/api/v1/index").json()["libraries"][0]["stage"] == "scan":
        time.sleep(0.01)
    runs = client.app.state.services.runs
    runs.close()
    told = runs.told(client.app.state.services.shelf["photos"])
    assert not told["running"]
    assert "went down" in told["failure"]


def test_where_a_library_lies_is_told_on_this_machine_only(served, tmp_path):
    for host, told in (("127.0.0.1", True), ("0.0.0.0", False)):
        client = served(host=host)
        item = items(client)["blue.png"]
        detail = client.get("/page/item", params={"item": item}).text
        assert (str(tmp_path) in detail) is told
        assert "blue.png" in detail


def test_the_address_says_what_is_asked():
    state = PageState(q=" a dog ", after="2023-06", camera='fu"ji', shape="portrait", like=["a/1"])
    asked = state.asked(10, 20)
    assert (asked.q, asked.k, asked.offset, asked.like) == ("a dog", 10, 20, ["a/1"])
    expected = "camera LIKE '%fuji%' AND width < height AND taken >= '2023-06'"
    assert parse_where(asked.where) == parse_where(expected)
    assert state.url(camera="") == ("/?q=+a+dog+&like=a%2F1&after=2023-06&shape=portrait")
    assert [chip.text for chip in state.chips()] == [
        "a dog",
        "more like",
        "from 2023-06",
        "camera fuji",
        "shape portrait",
    ]
    assert state.turned("a/1", False).endswith(
        "dislike=a%2F1&after=2023-06&camera=fu%22ji&shape=portrait"
    )
    nothing = PageState().asked(10, 0)
    assert (nothing.sort, nothing.reverse) == (SortKey.DATE, True)
    assert PageState(q="after:2020").asked(10, 0).sort is SortKey.DATE
    assert PageState().asked(10, 0, with_pictures=True).sort is None
    assert PageState(q="dog AND (cat OR bird) after:2020").concepts == ["dog", "cat", "bird"]
    with pytest.raises(QueryError, match="Nothing is sorted by 'beauty'"):
        PageState(sort="beauty").asked(10, 0)


def results_of(numbers, group=()) -> Results:
    hits = tuple(
        Hit(rank, n, f"{n}.jpg", 1.0, others=tuple(f"{o}.jpg" for o in dict(group).get(n, ())))
        for rank, n in enumerate(numbers, 1)
    )
    return Results(Query((QueryPart("x"),)), Path("/l"), "m", hits, True, 1.0, 1000)


def test_long_lists_are_grouped_first_and_plain_after_that():
    asked = []

    async def grouped(count):
        asked.append(("grouped", count))
        return results_of([n for n in range(count + 2) if n not in {3, 7}][:count], {0: (3, 7)})

    async def plain(count):
        asked.append(("plain", count))
        return results_of(range(min(count, 60)))

    steps = [Step(5, grouped), Step(10, grouped, kept=True), Step(20, plain), Step(100, plain)]
    lists = LongLists(100)

    def page(offset, k, stamp="1", without=()):
        key = key_of({"q": "x"}, without)
        found = asyncio.run(lists.page(key, stamp, steps, offset, k, without=without))
        ranks = [hit.rank for hit in found.results.hits]
        assert ranks == list(range(offset + 1, offset + 1 + len(ranks)))
        return [hit.id for hit in found.results.hits], found.total

    whole = [n for n in range(60) if n not in {3, 7}]
    assert page(0, 4) == (whole[:4], None)
    assert asked == [("grouped", 5)]
    # What leads there is passed over, but not the last that is grouped.
    assert page(30, 4) == (whole[30:34], 58)
    assert asked[1:] == [("grouped", 10), ("plain", 100)]
    assert page(50, 20) == (whole[50:], 58)
    assert page(90, 20) == ([], 58)
    assert len(asked) == 3
    # What is left out takes what is grouped with it along.
    assert page(0, 4, without=(0,))[0] == [1, 2, 4, 5]
    assert asked[3] == ("grouped", 6)
    # Another state of the library is another list.
    assert page(0, 4, stamp="2") == (whole[:4], None)
    assert len(asked) == 5


def test_pictures_are_told_apart_by_their_pixels():
    from PIL import Image

    red, again = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "red")
    assert key_of({"image": [red]}) == key_of({"image": [again]})
    assert key_of({"image": [red]}) != key_of({"image": [Image.new("RGB", (4, 4), "blue")]})
    assert key_of({"k": 1}, {2}) != key_of({"k": 1}, {3})


def test_asking_with_a_picture_scrolls_like_any_question(served, tmp_path):
    client = served()
    draw(tmp_path / "mine.png", "yellow", (48, 32))
    sent = {"image": ("mine.png", (tmp_path / "mine.png").read_bytes(), "image/png")}
    first = client.post("/page/answer?k=2", files=sent).json()
    assert (len(first["tiles"]), first["total"]) == (2, 4)
    assert "yellow.jpg" in first["tiles"][0]
    rest = client.post("/page/answer?k=2&offset=2", files=sent).json()
    names = [re.search(r'title="([^"]*\.(?:jpg|png))"', t) for t in first["tiles"] + rest["tiles"]]
    assert len({found.group(1) for found in names if found}) == 4
