"""The client, against real servers on this machine: ours, and one that does what it is told."""

from __future__ import annotations

import asyncio
import io
import json
import math
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from inspect import signature
from pathlib import Path

import httpx
import pytest
from PIL import Image

import mmsearch
from mmsearch.errors import (
    LibraryError,
    MediaError,
    NotServed,
    QueryError,
    RequestTooLarge,
    ServerBusy,
    ServerError,
    ServerUnreachable,
    TokenRefused,
)
from mmsearch.retrieval.client import AsyncClient, Client, calls, retrying
from mmsearch.retrieval.client.address import Address
from mmsearch.retrieval.engine import SearchEngine
from mmsearch.retrieval.schema import Hit, Results, TasteQuery
from mmsearch.retrieval.similar import similar
from tests.served import TOKEN, make_libraries, serving

SECRET = "do-not-tell"


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_libraries(tmp_path_factory.mktemp("served here"), odd=True)


@pytest.fixture(scope="module")
def url(libraries: tuple[Path, Path]) -> Iterator[str]:
    with serving(*libraries, token=TOKEN) as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with mmsearch.Client(url, TOKEN) as opened:
        yield opened


@pytest.fixture(scope="module")
def engine(libraries: tuple[Path, Path]) -> Iterator[SearchEngine]:
    with mmsearch.open(libraries[0], device="cpu") as opened:
        yield opened


def asked_here(results: Results) -> Results:
    """Return results as an engine gives them: but for who answered, and digits JSON leaves out."""
    hits = tuple(
        replace(hit, library=None, match=None if hit.match is None else round(hit.match, 4))
        for hit in results.hits
    )
    return replace(
        results,
        library=None,
        libraries=(),
        hits=hits,
        took_ms=0.0,
        query=results.query,
        rerank=None,
    )


QUESTIONS = {
    "words": {"text": "a red card"},
    "few": {"text": "a red card", "k": 2},
    "several texts": {"text": ["red", "a table"], "weights": [2, 1], "fusion": "calibrated"},
    "logic": {"text": "red AND NOT table"},
    "a filter": {"text": "card", "where": "width > 170"},
    "a filter alone": {"where": "width > 170", "sort": "width", "descending": True},
    "captions": {"text": "a blue card", "to": "captions"},
    "grouped": {"text": "card", "group": True, "diversity": 0.3},
    "no words": {"text": "a red card", "words": False},
}


@pytest.mark.parametrize("asked", QUESTIONS.values(), ids=QUESTIONS)
def test_a_server_answers_like_its_engine(client, engine, asked):
    found = client.search(**asked, library="my-photos")
    assert found.hits
    expected = asked_here(engine.search(**asked))
    got = asked_here(found)
    if math.isnan(found.hits[0].score):
        got = replace(got, hits=tuple(replace(hit, score=0.0) for hit in got.hits))
        expected = replace(expected, hits=tuple(replace(h, score=0.0) for h in expected.hits))
    assert got == expected
    assert found.library is None
    assert found.libraries == ("my-photos",)
    assert {hit.library for hit in found.hits} == {"my-photos"}


def test_a_cut_is_the_command_lines(client, engine):
    found = client.search("a submarine", all=False, library="my-photos")
    assert found.hits == ()
    assert found.cut == pytest.approx(0.28)
    here = engine.search("a submarine", cut=0.28)
    assert found.nearest is not None
    assert here.nearest is not None
    assert (found.nearest.id, found.nearest.score) == (here.nearest.id, here.nearest.score)


def test_pictures_to_ask_with(client, engine, libraries, tmp_path):
    file = libraries[0] / "plain" / "red.jpg"
    here = engine.search(image=file)
    red = here.hits[0]
    assert red.path == "plain/red.jpg"
    opened = Image.open(file)
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    opened.rotate(90, expand=True).save(turned, exif=exif, quality=95)
    item = f"my-photos/{red.id}"
    scores = [hit.score for hit in here.hits]
    by_name = client.search(image=item, library="my-photos")
    for asked in (file, str(file), opened, item, by_name.hits[0]):
        found = client.search(image=asked, library="my-photos")
        assert [hit.id for hit in found.hits] == [hit.id for hit in here.hits]
        assert [hit.score for hit in found.hits] == scores
    assert by_name.query.image == item
    assert client.search(image=file).query.image == "red.jpg"
    # Turned by its tag, here as there.
    with Image.open(turned) as picture:
        found = client.search(image=picture, library="my-photos")
        assert [h.score for h in found.hits] == [h.score for h in engine.search(image=turned).hits]


def test_weights_go_with_their_parts_wherever_the_server_puts_them(client, engine, libraries):
    root = libraries[0]
    ids = {hit.path: hit.id for hit in engine.search("card", k=20).hits}
    blue, red = root / "plain" / "blue.jpg", root / "plain" / "red.jpg"
    found = client.search(
        "green",
        image=[blue, f"my-photos/{ids['plain/red.jpg']}"],
        weights=[1, 5, 0.5],
        fusion="scores",
        library="my-photos",
    )
    here = engine.search("green", image=[blue, red], weights=[1, 5, 0.5], fusion="scores")
    # Sums in another order differ in their last digit.
    assert [hit.id for hit in found.hits] == [hit.id for hit in here.hits]
    assert [h.score for h in found.hits] == pytest.approx([h.score for h in here.hits], abs=1e-6)
    told = {part.text or part.image: part.weight for part in found.query.parts}
    assert told == {"green": 1, "blue.jpg": 5, f"my-photos/{ids['plain/red.jpg']}": 0.5}
    with pytest.raises(QueryError, match="3 parts are asked and 1 weights given"):
        client.search("green", image=[blue, red], weights=[1])


def test_several_libraries_keep_whose_a_hit_is(client):
    found = client.search("red", image=None, k=3)
    assert found.libraries == ("my-photos", "work")
    assert {hit.library for hit in client.search("red", k=20).hits} == {"my-photos", "work"}
    assert client.original(found.hits[0]) == client.original(found.hits[0].item)
    assert client.search("red", library=["work"]).libraries == ("work",)


def test_pages_are_one_list(client):
    whole = client.search("card", k=8, offset=0)
    pages = [client.search("card", k=3, offset=start) for start in (0, 3, 6)]
    assert [hit.item for page in pages for hit in page.hits][:8] == [h.item for h in whole.hits]
    assert [page.offset for page in pages] == [0, 3, 6]
    assert [hit.rank for hit in pages[1].hits] == [4, 5, 6]


def test_many_texts_in_their_order(client, engine):
    texts = ["red", "green", "blue", "a card on a table after:2023"] * 5
    here = engine.search_many(texts, k=2)
    there = client.search_many(texts, k=2, library="my-photos")
    for mine, theirs in zip(here, there, strict=True):
        assert [hit.id for hit in theirs.hits] == [hit.id for hit in mine.hits]
        # Texts that are embedded together differ in their last digit from one by itself.
        scores = [hit.score for hit in mine.hits]
        assert [hit.score for hit in theirs.hits] == pytest.approx(scores, abs=1e-6)
        assert theirs.query == mine.query
    assert client.search_many([]) == []
    with pytest.raises(QueryError, match="empty"):
        client.search_many(["red", " "])
    with pytest.raises(NotServed, match="No library is called 'nowhere'"):
        client.search_many(texts, library="nowhere")


def test_similar_recommend_and_caption(client, engine, libraries):
    red = libraries[0] / "plain" / "red.jpg"
    here = similar(engine, red, 3)
    item = f"my-photos/{engine.search(image=red, k=1).hits[0].id}"
    for asked in (red, item):
        found = client.similar(asked, 3, library="my-photos")
        assert asked_here(found).hits == asked_here(here).hits
    assert client.similar(item).query.image == item

    id_ = int(item.rpartition("/")[2])
    mine = engine.recommend(like=[id_], history=[(id_, 3.0), (id_, 90.0)], k=3)
    theirs = client.recommend(like=[item], history=[(item, 3.0), (item, 90.0)], k=3)
    assert asked_here(theirs).hits == asked_here(mine).hits
    assert isinstance(theirs.query, TasteQuery)
    assert theirs.query.like == (item,)
    assert theirs.query.history == ((item, 3.0), (item, 90.0))
    with pytest.raises(QueryError, match="Say which library"):
        client.recommend(like=[item, "work/1"])
    crossed = client.recommend(like=[item, "work/1"], library="work")
    assert crossed.query.like == (item, "work/1")
    with pytest.raises(QueryError, match="half-life without end"):
        client.recommend(like=[item], half_life=math.inf)

    captions = client.caption(item, 2, library="my-photos")
    assert [hit.caption for hit in captions.hits] == [
        hit.caption for hit in engine.search(image=red, to="captions", k=2).hits
    ]


def test_a_dislike_alone_and_with_words(client):
    red, *_ = client.search("a red card", k=1, library="my-photos").hits
    found = client.search("a red card", dislike=[red], library="my-photos", k=20)
    assert red.item not in {hit.item for hit in found.hits}
    taste = client.search(like=[red], dislike=["work/1"], library="my-photos")
    assert taste.query.like == (red.item,)
    assert taste.query.dislike == ("work/1",)


def test_a_reranker_by_name(client, engine):
    found = client.search("a red card", rerank="fast", rerank_depth=3, library="my-photos")
    here = engine.search("a red card", rerank="fast", rerank_depth=3)
    assert asked_here(found).hits == asked_here(here).hits
    assert found.rerank is not None
    assert here.rerank is not None
    assert (found.rerank.model, found.rerank.reranked) == ("fast", here.rerank.reranked)
    with pytest.raises(QueryError, match="not served here"):
        client.search("red", rerank="slow")


def test_one_picture(client, libraries):
    hit = client.search("a red card", k=1, library="my-photos").hits[0]
    item = client.item(hit)
    assert (item.library, item.id, item.path) == (hit.library, hit.id, hit.path)
    assert item.captions == (f"a {Path(hit.path).stem} card on a table",)
    assert client.original(hit) == (libraries[0] / hit.path).read_bytes()
    with Image.open(io.BytesIO(client.thumbnail(hit, 100))) as small:
        assert max(small.size) == 160
    explained = client.explain(hit, "a red card")
    assert explained["image"] == hit.item
    assert [word["word"] for word in explained["words"]] == ["a", "red", "card"]
    with Image.open(io.BytesIO(client.heat(hit, "a red card"))) as map_:
        assert map_.format == "JPEG"
    odd = next(h for h in client.search("dark", k=20).hits if "\udce9" in h.path)
    assert client.original(odd) == (libraries[0] / odd.path).read_bytes()
    with pytest.raises(NotServed, match="has no picture 999"):
        client.item("my-photos/999")
    with pytest.raises(QueryError, match="looks like NAME/ID"):
        client.item("plain/red.jpg")
    with pytest.raises(QueryError, match="A hit of a folder"):
        client.item(Hit(1, 1, "a.jpg", 0.5))


def test_status_and_health(client, url):
    assert client.status()["libraries"][0]["library"] == "my-photos"
    with Client(url) as stranger:
        assert stranger.health()["status"] == "ok"


def test_the_async_client_is_the_same(client, url):
    async def ask() -> None:
        async with mmsearch.AsyncClient(url, TOKEN) as other:
            found = await other.search("a red card", k=3)
            assert found.hits == client.search("a red card", k=3).hits
            hit = found.hits[0]
            assert (await other.similar(hit, 2)).hits == client.similar(hit, 2).hits
            assert (await other.caption(hit, 2)).hits == client.caption(hit, 2).hits
            assert (await other.recommend([hit])).hits == client.recommend([hit]).hits
            assert await other.item(hit) == client.item(hit)
            assert await other.thumbnail(hit) == client.thumbnail(hit)
            assert await other.original(hit) == client.original(hit)
            assert await other.heat(hit, "red") == client.heat(hit, "red")
            assert (await other.explain(hit, "red"))["words"] == client.explain(hit, "red")["words"]
            assert await other.status() == client.status()
            assert await other.health() == client.health()
            many = await other.search_many(["red", "green", "blue"] * 4, k=1)
            assert [r.query.text for r in many] == ["red", "green", "blue"] * 4
            with pytest.raises(NotServed):
                await other.search_many(["red"] * 20, library="nowhere")

    asyncio.run(ask())


def public(kind: type) -> dict[str, list[str]]:
    return {
        name: list(signature(method).parameters)
        for name, method in vars(kind).items()
        if not name.startswith("_") and name not in {"close", "aclose"}
    }


def test_the_two_clients_and_the_engine_take_the_same():
    assert public(Client) == public(AsyncClient)
    options = set(calls.SearchOptions.__annotations__)
    assert options == set(signature(calls.search).parameters) - {"text"}
    engines = set(signature(SearchEngine.search).parameters) - {"self", "text"}
    assert options == (engines - {"cut"}) | {"all", "library", "offset", "like", "dislike"}
    many = set(signature(calls.search_many).parameters)
    assert set(calls.TextOptions.__annotations__) == many - {"texts"}
    taste = set(signature(calls.recommend).parameters) - {"like", "dislike", "history"}
    assert set(calls.TasteOptions.__annotations__) == taste


def test_no_path_of_the_server_is_told(url, libraries, engine):
    root = str(libraries[0].parent)
    id_ = engine.search("a red card", k=1).hits[0].id
    item = f"my-photos/{id_}"
    get = partial(httpx.get, headers={"Authorization": f"Bearer {TOKEN}"})
    gone = libraries[1] / "gone.png"
    asked = [
        ("search", {"like": [item, "work/1"]}),
        ("search", {"like": item, "to": "captions"}),
        ("search", {"like": item, "dislike": "work/1"}),
        ("search", {"like": item, "offset": 0}),
        ("search", {"q": "red", "like": item, "offset": 0}),
        ("similar", {"item": item}),
        ("status", {}),
        (f"items/my-photos/{id_}", {}),
        (f"items/my-photos/{id_}/explain", {"q": "red"}),
        ("search", {"q": "red", "rerank": "/etc"}),
        ("search", {"like": "my-photos/99"}),
    ]
    for path, params in asked:
        told = get(f"{url}/api/v1/{path}", params=params).text
        assert root not in told, path
        assert "/tmp" not in told, path
    body = {"library": "work", "like": [item], "history": [{"item": item, "age_days": 3}]}
    told = httpx.post(
        f"{url}/api/v1/recommend", json=body, headers={"Authorization": f"Bearer {TOKEN}"}
    ).json()
    assert told["query"]["like"] == [item]
    assert told["query"]["ignored"] == [item]
    assert root not in json.dumps(told)
    # A picture that is gone is told of without its place.
    moved = libraries[1] / "red.png"
    moved.rename(gone)
    try:
        every = get(f"{url}/api/v1/search?q=x&library=work&all=1").json()["results"]
        ids = {hit["path"]: hit["id"] for hit in every}
        for path, params in [
            ("search", {"like": f"work/{ids['red.png']}"}),
            ("similar", {"item": f"work/{ids['red.png']}"}),
            (f"items/work/{ids['red.png']}/original", {}),
            (f"items/work/{ids['red.png']}/explain", {"q": "red"}),
        ]:
            response = get(f"{url}/api/v1/{path}", params=params)
            assert response.status_code in {400, 410}, path
            assert root not in response.text, path
        with Client(url, TOKEN) as client, pytest.raises(MediaError):
            client.original(f"work/{ids['red.png']}")
    finally:
        gone.rename(moved)


def test_a_body_that_is_too_large_and_a_picture_that_is_none(client, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"<html>")
    with pytest.raises(QueryError, match=r"The picture broken\.jpg cannot be used"):
        client.search(image=broken)
    with pytest.raises(QueryError, match="cannot be used"):
        client.search(image=tmp_path / "nothing.jpg")


def test_tokens(url):
    with Client(url) as stranger, pytest.raises(TokenRefused, match="asks for its token"):
        stranger.search("x")
    with Client(url, SECRET) as wrong:
        with pytest.raises(TokenRefused, match="another token") as refused:
            wrong.search("x")
        assert SECRET not in f"{refused.value} {wrong!r} {wrong._address!r}"
    # The address that `mmsearch serve` prints.
    with Client(f"{url}/?token={TOKEN}") as printed:
        assert printed.search("red").hits
        assert TOKEN not in repr(printed)
    with pytest.raises(ServerError, match="made of letters"):
        Client(url, "two words")


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("127.0.0.1:8000", "no address"),
        ("ftp://127.0.0.1", "no address"),
        ("", "no address"),
        ("http://", "no address"),
        ("http://[::1", "no address"),
        ("http://127.0.0.1:99999", "no address"),
        ("http://me:secret@127.0.0.1", "no user and no password"),
    ],
)
def test_what_is_no_address(wrong, why):
    with pytest.raises(ServerError, match=why) as refused:
        Client(wrong)
    assert "secret" not in str(refused.value)


def test_addresses():
    address = Address.of(" https://nas.local:8443/photos/?token=abc ")
    assert (address.url, address.token) == ("https://nas.local:8443/photos", "abc")
    assert address.secure
    assert not address.loopback
    assert Address.of("http://[::1]:8000").loopback
    assert Address.of("http://localhost:8000").loopback


Reply = tuple[int, dict[str, str], bytes] | None


class Scripted(ThreadingHTTPServer):
    """A server that gives the replies it was given, in their order; None breaks the connection."""

    def __init__(self, replies: list[Reply]) -> None:
        self.replies = replies
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Scripted

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.seen.append((self.command, self.path, dict(self.headers)))
        reply = self.server.replies.pop(0) if self.server.replies else (500, {}, b"no more")
        self.close_connection = True
        if reply is None:
            return
        status, headers, body = reply
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = _answer

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def scripted(*replies: Reply) -> Iterator[Scripted]:
    with Scripted(list(replies)) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def told(kind: str, detail: str = "why") -> bytes:
    return json.dumps({"kind": kind, "detail": detail}).encode()


OK: Reply = (200, {}, b'{"status": "ok"}')
BUSY: Reply = (503, {"Retry-After": "0"}, told("busy"))


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(retrying, "FIRST_S", 0.01)


def test_who_is_busy_is_asked_again_and_not_for_ever():
    with scripted(BUSY, (429, {"Retry-After": "0"}, b""), OK) as server, Client(server.url) as c:
        assert c.health() == {"status": "ok"}
        assert len(server.seen) == 3
    with scripted(*[BUSY] * 9) as server, Client(server.url, retries=2) as c:
        with pytest.raises(ServerBusy, match="busy") as refused:
            c.health()
        assert refused.value.seconds == 1
        assert len(server.seen) == 3
    # More than anybody waits for.
    with scripted((503, {"Retry-After": "600"}, told("busy")), OK) as server:
        started = time.monotonic()
        with Client(server.url) as c, pytest.raises(ServerBusy) as refused:
            c.health()
        assert refused.value.seconds == 600
        assert time.monotonic() - started < 5
        assert len(server.seen) == 1


def test_a_wait_is_kept_and_may_be_a_date():
    with scripted((503, {"Retry-After": "1"}, told("busy")), OK) as server, Client(server.url) as c:
        started = time.monotonic()
        c.health()
        assert time.monotonic() - started > 1
    past = {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}
    with scripted((503, past, told("busy")), OK) as server, Client(server.url) as c:
        assert c.health() == {"status": "ok"}


def test_what_broke_is_asked_again_only_where_that_is_safe():
    with scripted(None, (502, {}, b""), OK) as server, Client(server.url) as c:
        assert c.health() == {"status": "ok"}
    with scripted(None, OK) as server, Client(server.url) as c:
        with pytest.raises(ServerUnreachable, match="broke"):
            c.recommend(["a/1"])
        assert len(server.seen) == 1
    with scripted((500, {}, b"oh"), OK) as server, Client(server.url) as c:
        with pytest.raises(ServerError, match="status 500"):
            c.health()
        assert len(server.seen) == 1


def test_a_post_that_was_turned_away_is_sent_again():
    with scripted(BUSY, (400, {}, told("query", "no"))) as server, Client(server.url) as c:
        with pytest.raises(QueryError, match="no"):
            c.recommend(["a/1"])
        assert [method for method, _, _ in server.seen] == ["POST", "POST"]


def test_the_async_client_waits_in_the_same_way():
    async def ask(url: str) -> None:
        async with AsyncClient(url) as client:
            assert await client.health() == {"status": "ok"}

    with scripted(BUSY, None, OK) as server:
        asyncio.run(ask(server.url))
        assert len(server.seen) == 3


def test_no_other_host_is_shown_the_token():
    with scripted(OK, OK) as thief:
        goal = {"Location": f"{thief.url}/api/v1/status?token={SECRET}"}
        with scripted((307, goal, b"")) as server, Client(server.url, SECRET) as client:
            with pytest.raises(ServerError, match="not follow") as refused:
                client.status()
            assert thief.url in str(refused.value)
            assert SECRET not in str(refused.value)
            assert server.seen[0][2]["Authorization"] == f"Bearer {SECRET}"
        assert thief.seen == []


@pytest.mark.parametrize(
    ("reply", "kind", "why"),
    [
        ((413, {}, told("too-large", "too much")), RequestTooLarge, "too much"),
        ((422, {}, told("parameters", "k: too small")), QueryError, "too small"),
        ((410, {}, told("picture", "it is gone")), MediaError, "gone"),
        ((503, {}, told("library", "not now")), LibraryError, "not now"),
        ((404, {}, b"<html>"), ServerError, "There is no server of mmsearch"),
        ((403, {}, told("host", "not called so")), ServerError, "not called so"),
        ((503, {}, b"Service Unavailable"), ServerBusy, "busy"),
        ((200, {}, b"<html>"), ServerError, "no answer of mmsearch"),
        ((200, {}, b'{"results": []}'), ServerError, "no answer of mmsearch"),
        ((200, {}, b"[]"), ServerError, "no answer of mmsearch"),
    ],
)
def test_failures_are_errors_of_ours(reply, kind, why):
    with scripted(reply) as server, Client(server.url, retries=0) as client:
        with pytest.raises(kind, match=why) as refused:
            client.search("x")
        assert type(refused.value) is kind


def test_nobody_there_and_nobody_answering():
    with scripted() as server:
        gone = server.url
    with Client(gone, SECRET) as client, pytest.raises(ServerUnreachable, match="mmsearch serve"):
        client.search("x")

    def hang(server: Scripted) -> Callable[[], None]:
        held = threading.Event()

        class Slow(_Handler):
            def do_GET(self) -> None:
                held.wait(10)

        server.RequestHandlerClass = Slow
        return held.set

    with scripted() as server, Client(server.url, timeout=0.1) as client:
        let_go = hang(server)
        with pytest.raises(ServerUnreachable, match="in time"):
            client.search("x")
        let_go()


def test_the_readme_s_client_runs(url, libraries, tmp_path, monkeypatch):
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    (code,) = re.findall(r"```py\n(.*?)```", readme, re.DOTALL)
    shutil.copy(libraries[0] / "plain" / "green.jpg", tmp_path / "sofa.jpg")
    monkeypatch.chdir(tmp_path)
    code = code.replace('"http://127.0.0.1:8000"', repr(f"{url}/?token={TOKEN}"))
    code = code.replace("Pictures", "my-photos").replace("my-photos/17", "my-photos/2")
    exec(compile(code, "README.md", "exec"), {})
