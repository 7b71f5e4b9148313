"""What a server must not be talked into, by clients that say what they like."""

from __future__ import annotations

import io
import logging
import os
import resource
import socket
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image
from typer.testing import CliRunner

from mmsearch.cli import app
from mmsearch.retrieval.ingest import index
from mmsearch.retrieval.web.rate import Buckets, who
from mmsearch.retrieval.web.settings import Limits, Settings
from mmsearch.retrieval.web.slow_lane import SlowLane
from tests.conftest import ColourEncoder, draw
from tests.serving import Running, form, read_reply, served

SECRET = b"nobody's business"
TOKEN = "s3cret-of-this-test"


def jpeg(size: tuple[int, int] = (64, 48), colour: str = "red", **save: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG", **save)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home") / "my photos"
    for colour in ("red", "green", "blue"):
        draw(folder / f"{colour}.jpg", colour)
    (folder.parent / "secret.txt").write_bytes(SECRET)
    index(folder, model=ColourEncoder())
    return folder


@pytest.fixture(scope="module")
def server(folder: Path):
    limits = Limits(upload_bytes=1 << 20, body_seconds=0.6, head_seconds=0.6, connections=30)
    with served([folder], Settings(port=0, limits=limits)) as running:
        yield running


@pytest.fixture(scope="module")
def guarded(folder: Path):
    with served([folder], Settings(port=0, token=TOKEN)) as running:
        yield running


def until(true: Callable[[], bool]) -> None:
    """Wait until something is true; for long, where the machine is busy."""
    ends = time.monotonic() + 20
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.01)


def ids(running: Running) -> dict[str, int]:
    hits = running.ask("/api/v1/search?q=red&all=true&group=false").json["results"]
    return {hit["path"]: hit["id"] for hit in hits}


# Who may ask


@pytest.mark.parametrize(
    "host",
    [
        "evil.com",
        "127.0.0.1.evil.com",
        "localhost.evil.com",
        "evil.com@localhost",
        "localhost@evil.com",
        "localhost:80@evil.com",
        "localhost/evil.com",
        "localhost evil.com",
        "localhost:port",
        "192.168.1.5",
        "[fe80::1]",
        "0.0.0.0",
        "2130706433",
        "",
    ],
)
def test_another_name_is_a_page_that_had_it_point_here(server: Running, host):
    request = f"GET /api/v1/status HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    reply = server.raw(request.encode())
    assert (reply.status, reply.kind) == (403, "host")


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST", "localhost.", "127.0.0.1", "127.0.0.2:99", "[::1]:8000"]
)
def test_the_names_of_this_machine_are_known(server: Running, host):
    assert server.ask("/health", host=host).status == 200


def test_a_request_without_a_name_is_refused(server: Running):
    assert server.raw(b"GET /health HTTP/1.0\r\n\r\n").status == 403
    assert server.raw(b"GET /health HTTP/1.1\r\n\r\n").status == 400
    two = b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.com\r\n\r\n"
    assert server.raw(two).status == 400
    reply = server.ask("http://localhost/api/v1/status", host="evil.com")
    assert reply.status == 403
    # The whole address as a path leads nowhere.
    assert server.ask("http://evil.com/api/v1/status").status == 404


def test_a_name_can_be_allowed(folder: Path):
    with served([folder], Settings(port=0, hosts=("NAS.local",))) as running:
        assert running.ask("/health", host="nas.local:80").status == 200
        assert running.ask("/health", host="other.local").status == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.com"},
        {"Origin": "null"},
        {"Origin": "http://[bad"},
        {
            "Sec_Fetch_Site": "cross-site",
            "Sec_Fetch_Mode": "navigate",
            "Sec_Fetch_Dest": "document",
        },
        {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "cors"},
    ],
)
def test_a_form_on_another_page_cannot_post(server: Running, headers):
    body, kind = form([("x.jpg", jpeg())], {})
    reply = server.ask("/api/v1/search", "POST", body, Content_Type=kind, **headers)
    assert (reply.status, reply.kind) == (403, "origin")
    own = {"Origin": f"http://{server.host}", "Sec_Fetch_Site": "same-origin"}
    assert server.ask("/api/v1/search", "POST", body, Content_Type=kind, **own).status == 200


def test_another_page_cannot_read_or_embed(server: Running):
    reply = server.ask("/api/v1/status", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors")
    assert reply.status == 403
    preflight = server.ask(
        "/api/v1/recommend",
        "OPTIONS",
        Origin="http://evil.com",
        Access_Control_Request_Method="POST",
    )
    assert preflight.status == 403
    reply = server.ask("/api/v1/status")
    assert not any(name.startswith("access-control") for name in reply.headers)
    assert reply.headers["cross-origin-resource-policy"] == "same-origin"
    assert "frame-ancestors 'none'" in reply.headers["content-security-policy"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic czNjcmV0"},
        {"Authorization": TOKEN},
        {"Cookie": "mmsearch-token=wrong"},
        {"Cookie": f"other={TOKEN}"},
        {"Authorization": "Bearer \xff\xfe"},
    ],
)
@pytest.mark.parametrize(
    "path", ["/api/v1/status", "/metrics", "/openapi.json", f"/api/v1/status?token={TOKEN}", "/no"]
)
def test_nothing_is_told_without_the_token(guarded: Running, path, headers):
    reply = guarded.ask(path, **headers)
    assert (reply.status, reply.kind) == (401, "token")
    assert reply.headers["www-authenticate"] == "Bearer"
    assert TOKEN.encode() not in reply.body


def test_the_token_is_taken_from_a_header_or_a_cookie(guarded: Running):
    assert guarded.ask("/health").status == 200
    assert guarded.ask("/api/v1/status", Authorization=f"bearer {TOKEN}").status == 200
    moved = guarded.ask(f"/?q=a%20dog&token={TOKEN}")
    assert (moved.status, moved.headers["location"]) == (303, "/?q=a+dog")
    cookie = moved.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    given = cookie.partition(";")[0]
    assert guarded.ask("/api/v1/status", Cookie=f"a=b; {given}; c").status == 200
    assert guarded.ask("/?token=wrong").status == 401


def test_a_token_of_any_characters_comes_back_in_its_cookie(folder: Path):
    token = 'zwölf; "Körbe", a=b%'
    with served([folder], Settings(port=0, token=token)) as running:
        moved = running.ask(f"/?token={quote(token)}")
        given = moved.headers["set-cookie"].partition(";")[0]
        assert running.ask("/api/v1/status", Cookie=given).status == 200


def test_the_token_is_in_no_log(guarded: Running, caplog, capfd):
    with caplog.at_level(logging.DEBUG):
        guarded.ask(f"/?token={TOKEN}")
        guarded.ask(f"/api/v1/search?q=x&token={TOKEN}", Authorization=f"Bearer {TOKEN}")
        guarded.ask("/api/v1/items/none/1", Authorization=f"Bearer {TOKEN}")
    told = caplog.text + "".join(capfd.readouterr())
    assert TOKEN not in told


@pytest.mark.parametrize("environment", [{}, {"MMSEARCH_TOKEN": ""}])
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "nas.local"])
def test_off_this_machine_there_is_always_a_token(folder: Path, monkeypatch, host, environment):
    kept = []
    monkeypatch.setattr(
        "mmsearch.retrieval.web.server.serve", lambda _, settings, **__: kept.append(settings)
    )
    asked = ["serve", str(folder), "--host"]
    assert CliRunner().invoke(app, [*asked, host], env=environment).exit_code == 0
    assert len(kept[0].token) >= 32
    assert kept[0].limits.rate > 0
    assert CliRunner().invoke(app, [*asked, host, "--token", ""], env=environment).exit_code == 0
    assert len(kept.pop().token) >= 32
    assert CliRunner().invoke(app, [*asked, "127.0.0.1"], env=environment).exit_code == 0
    assert kept[1].token is None


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_ipv6(folder: Path):
    with served([folder], Settings(host="::1", port=0)) as running:
        assert running.ask("/health", host=f"[::1]:{running.address[1]}").status == 200
        assert running.ask("/health", host="[fe80::1]").status == 403


# Where it may look


@pytest.mark.parametrize("route", ["", "/thumbnail", "/original", "/explain?q=x", "/heat?q=x"])
@pytest.mark.parametrize(
    "step",
    [
        "..",
        "%2e%2e",
        "../secret.txt",
        "..%2fsecret.txt",
        "%2e%2e%2fsecret.txt",
        "..%5csecret.txt",
        "%252e%252e%252fsecret.txt",
        "..%00",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "file:%2f%2f%2fetc%2fpasswd",
        "-1",
        "1e3",
        "0x1",
        "\u0661",
        "99999999999999999999",
    ],
)
def test_no_path_leads_out(server: Running, route, step):
    step = quote(step, safe="/%")
    for path in (f"/api/v1/items/my-photos/{step}{route}", f"/api/v1/items/{step}/1{route}"):
        reply = server.ask(path)
        assert reply.status in {404, 422}, path
        assert SECRET not in reply.body
        assert b"root:" not in reply.body
        assert reply.kind in {"not-found", "parameters"}


@pytest.mark.parametrize(
    "reference", ["../secret.txt", "/etc/passwd", "my-photos/../secret.txt", "http://127.0.0.1/1"]
)
def test_references_to_pictures_are_keys_only(server: Running, reference):
    named = quote(reference, safe="")
    for path in (f"/api/v1/similar?item={named}", f"/api/v1/search?like={named}"):
        assert server.ask(path).status in {404, 422}
    body = f'{{"like": ["{reference}"]}}'.encode()
    reply = server.ask("/api/v1/recommend", "POST", body, Content_Type="application/json")
    assert reply.status in {404, 422}


def test_no_address_is_fetched_for_a_client(server: Running):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.3)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/x.jpg"
        server.ask(f"/api/v1/search?q={quote(address, safe='')}&all=true")
        server.upload("/api/v1/search", (address, jpeg()))
        body, kind = form([], {"image": address})
        assert server.ask("/api/v1/search", "POST", body, Content_Type=kind).status == 422
        with pytest.raises(TimeoutError):
            listener.accept()


@pytest.fixture
def own(tmp_path: Path):
    """A library of its own, with a picture outside that a link inside leads to."""
    folder = tmp_path / "own photos"
    outside = draw(tmp_path / "outside/private.jpg", "blue")
    for colour in ("red", "green"):
        draw(folder / f"{colour}.jpg", colour)
    (folder / "link.jpg").symlink_to(outside)
    index(folder, model=ColourEncoder())
    return folder


EACH = ("thumbnail", "original", "explain?q=red", "heat?q=red")


def test_a_link_out_of_the_library_is_not_followed(own: Path):
    with served([own]) as running:
        id_ = ids(running)["link.jpg"]
        for what in EACH:
            reply = running.ask(f"/api/v1/items/own-photos/{id_}/{what}")
            assert (reply.status, reply.kind) == (410, "picture"), what
            assert "--follow-links" in reply.json["detail"]
        for path in (f"similar?item=own-photos/{id_}", f"search?like=own-photos/{id_}"):
            assert running.ask(f"/api/v1/{path}").status == 410
    with served([own], Settings(port=0, follow_links=True)) as running:
        for what in EACH:
            assert running.ask(f"/api/v1/items/own-photos/{id_}/{what}").status == 200, what


@pytest.mark.parametrize("kind", ["zip", "html"])
def test_what_a_link_leads_to_is_not_exported(own: Path, kind):
    private = (own.parent / "outside/private.jpg").read_bytes()
    with served([own]) as running:
        found = ids(running)
        items = ",".join(f"own-photos/{found[name]}" for name in ("red.jpg", "link.jpg"))
        with running.connect() as sock:
            body, media_type = form([], {"items": items, "form": kind})
            sock.sendall(
                f"POST /api/v1/export HTTP/1.1\r\nHost: {running.host}\r\nConnection: close\r\n"
                f"Content-Type: {media_type}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            whole = b"".join(iter(lambda: sock.recv(1 << 16), b""))
    assert whole.startswith(b"HTTP/1.1 200")
    if kind == "zip":  # Pictures are stored in it as they are.
        assert (own / "red.jpg").read_bytes()[-60:] in whole
        assert private[-60:] not in whole
    assert b"follow-links" in whole or kind == "html"
    assert whole.count(b"data:image/jpeg") == (0 if kind == "zip" else 1)


def test_a_file_that_became_a_link_is_not_followed(own: Path):
    with served([own]) as running:
        id_ = ids(running)["red.jpg"]
        assert running.ask(f"/api/v1/items/own-photos/{id_}/thumbnail").status == 200
        (own / "red.jpg").unlink()
        (own / "red.jpg").symlink_to(own.parent / "outside/private.jpg")
        for what in EACH:
            assert running.ask(f"/api/v1/items/own-photos/{id_}/{what}").status == 410, what


def test_a_folder_that_became_a_link_is_not_followed(tmp_path: Path):
    folder = tmp_path / "photos"
    draw(folder / "trip/red.jpg", "red")
    index(folder, model=ColourEncoder())
    (folder / "trip").rename(tmp_path / "elsewhere")
    (folder / "trip").symlink_to(tmp_path / "elsewhere")
    with served([folder]) as running:
        for what in EACH:
            assert running.ask(f"/api/v1/items/photos/1/{what}").status == 410, what


def test_what_was_replaced_is_not_handed_out_until_it_is_indexed(own: Path):
    with served([own]) as running:
        id_ = ids(running)["red.jpg"]
        original, thumbnail = (f"/api/v1/items/own-photos/{id_}/{w}" for w in EACH[1::-1])
        whole = (own / "red.jpg").read_bytes()
        facts = (own / "red.jpg").stat()
        (own / "red.jpg").write_bytes(SECRET)
        for path in (original, thumbnail):
            reply = running.ask(path)
            assert (reply.status, reply.kind) == (410, "picture")
            assert "mmsearch index" in reply.json["detail"]
        # Of the same size, and later.
        (own / "red.jpg").write_bytes(whole[:-1] + b"!")
        os.utime(own / "red.jpg", ns=(0, facts.st_mtime_ns + 10**9))
        assert running.ask(original).status == 410
        assert running.ask(thumbnail).status == 410
        # Only touched.
        (own / "red.jpg").write_bytes(whole)
        os.utime(own / "red.jpg", ns=(0, 0))
        assert running.ask(original).body == whole
        assert running.ask(thumbnail).status == 200
        (own / "red.jpg").unlink()
        assert running.ask(original).status == 410


def test_an_original_can_do_nothing_in_a_browser(server: Running, folder: Path):
    id_ = ids(server)["red.jpg"]
    reply = server.ask(f"/api/v1/items/my-photos/{id_}/original")
    assert reply.body == (folder / "red.jpg").read_bytes()
    assert reply.headers["content-type"] == "image/jpeg"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in reply.headers["content-security-policy"]
    assert reply.headers["content-disposition"] == 'inline; filename="red.jpg"'
    part = server.ask(f"/api/v1/items/my-photos/{id_}/original", Range="bytes=2-5")
    assert (part.status, part.body) == (206, reply.body[2:6])
    assert (
        server.ask(f"/api/v1/items/my-photos/{id_}/original", Range="bytes=9999999-").status == 416
    )


def test_script_in_names_and_captions_stays_text(tmp_path: Path):
    folder = tmp_path / "photos"
    script = "<script>alert(1)<"
    name = f'{script}"\r\nSet-Cookie: a=b\r\n\r\n.jpg'
    draw(folder / name.replace("/", ""), "red", format="JPEG")
    (folder / f"{name[:-4]}.txt").write_text("a </script><img src=x onerror=alert(1)> red thing")
    index(folder, model=ColourEncoder())
    with served([folder]) as running:
        answer = running.ask("/api/v1/search?q=red&all=true&to=captions")
        assert "onerror" in answer.json["results"][0]["caption"]
        item = running.ask("/api/v1/items/photos/1")
        assert item.json["path"] == name
        for reply in (answer, item):
            assert reply.headers["content-type"] == "application/json"
            assert reply.headers["x-content-type-options"] == "nosniff"
        original = running.ask("/api/v1/items/photos/1/original")
        assert original.status == 200
        assert "set-cookie" not in original.headers
        assert "<" not in original.headers["content-disposition"]
        asked = running.ask(f"/api/v1/items/{quote(script, safe='')}/1")
        assert asked.headers["content-type"] == "application/json"


def test_no_answer_tells_where_on_this_machine_it_is(own: Path):
    outside = str(own.parent)
    told = []
    with served([own]) as running:
        id_ = ids(running)["link.jpg"]
        for path in (
            "status",
            "search?q=red",
            "search?q=red&to=captions",
            f"items/own-photos/{id_}",
            "items/own-photos/2/explain?q=red",
            f"search?like=own-photos/{id_}",
            "search?q=red&rerank=fast",
            "search?q=NOT",
            "search?q=red&where=nonsense",
        ):
            told.append(running.ask(f"/api/v1/{path}").body)
        (own / "red.jpg").unlink()
        for name in ("red.jpg", "green.jpg"):
            (own / name).unlink(missing_ok=True)
        for i in (1, 2, 3):
            told += [running.ask(f"/api/v1/items/own-photos/{i}/{what}").body for what in EACH]
            told.append(running.ask(f"/api/v1/search?like=own-photos/{i}").body)
        (own / ".mmsearch/catalog.sqlite").write_bytes(b"no database" * 1000)
        told += [running.ask(f"/api/v1/{p}").body for p in ("status", "search?q=green&k=3")]
    assert b"own-photos" in b"".join(told)
    for body in told:
        assert outside.encode() not in body
        assert b"Traceback" not in body


# How much


def test_large_bodies_are_refused_before_they_are_sent(server: Running):
    with server.connect() as sock:
        sock.sendall(
            f"POST /api/v1/search HTTP/1.1\r\nHost: {server.host}\r\nContent-Length: 99999999\r\n"
            "Content-Type: multipart/form-data; boundary=x\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        reply = read_reply(sock)
    assert (reply.status, reply.kind) == (413, "too-large")
    assert reply.headers["connection"] == "close"


def test_a_client_that_sends_on_reads_why_it_is_refused(server: Running):
    body, kind = form([("x.jpg", bytes(3 << 20))], {})
    reply = server.ask("/api/v1/search", "POST", body, Content_Type=kind)
    assert (reply.status, reply.kind) == (413, "too-large")


def test_bodies_without_a_length_are_counted(server: Running):
    with server.connect() as sock:
        sock.sendall(
            f"POST /api/v1/search HTTP/1.1\r\nHost: {server.host}\r\nTransfer-Encoding: chunked\r\n"
            "Content-Type: multipart/form-data; boundary=frontier\r\n\r\n".encode()
        )
        first = b'--frontier\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
        sock.sendall(b"%x\r\n%s\r\n" % (len(first), first))
        chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
        for _ in range(20):
            sock.sendall(chunk)
        reply = read_reply(sock)
    assert (reply.status, reply.kind) == (413, "too-large")


def test_a_body_that_does_not_come_is_not_waited_for(server: Running):
    with server.connect() as sock:
        sock.sendall(
            f"POST /api/v1/recommend HTTP/1.1\r\nHost: {server.host}\r\nContent-Length: 100\r\n"
            "Content-Type: application/json\r\n\r\n{".encode()
        )
        started = time.monotonic()
        for _ in range(2):
            time.sleep(0.2)
            sock.sendall(b" ")
        reply = read_reply(sock)
        assert (reply.status, reply.kind) == (408, "slow")
        assert time.monotonic() - started < 5
        assert sock.recv(1) == b""


def test_a_head_that_does_not_come_is_not_waited_for(server: Running):
    with server.connect() as sock, server.connect() as silent:
        started = time.monotonic()
        with pytest.raises(OSError):  # noqa: PT012, PT011 (when it is told differs)
            for letter in f"GET /health HTTP/1.1\r\nHost: {server.host}\r\nX: " + 100 * "x":
                sock.sendall(letter.encode())
                time.sleep(0.02)
        assert 0.5 < time.monotonic() - started < 5
        # What says nothing is told nothing.
        assert silent.recv(100) == b""


def test_the_second_head_of_a_connection_is_not_waited_for_either(server: Running):
    with server.connect() as sock:
        sock.sendall(f"GET /health HTTP/1.1\r\nHost: {server.host}\r\n\r\n".encode())
        assert read_reply(sock).status == 200
        sock.sendall(b"GET /health HTTP/1.1\r\nHost")
        reply = read_reply(sock)
        assert (reply.status, reply.kind) == (408, "slow")


def test_silent_connections_make_room(server: Running):
    held = [server.connect() for _ in range(60)]
    try:
        assert server.ask("/health").status == 200
    finally:
        for sock in held:
            sock.close()


def test_heads_are_small(server: Running):
    for size in (40_000, 100_000):
        reply = server.ask("/health", X_Long="x" * size)
        assert (reply.status, reply.kind) == (431, "too-large")
    assert server.ask(f"/api/v1/search?q={'x' * 40_000}").status == 431
    with server.connect() as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nX: " + b"x" * 20_000)
        assert read_reply(sock).kind == "request"
    assert server.raw(b"\x16\x03\x01\x02\x00 nonsense\r\n\r\n").kind == "request"


def test_a_form_has_not_too_many_parts(server: Running):
    fields = "".join(
        f'--x\r\nContent-Disposition: form-data; name="a{i}"\r\n\r\n1\r\n' for i in range(1000)
    )
    kind = "multipart/form-data; boundary=x"
    reply = server.ask("/api/v1/search", "POST", f"{fields}--x--\r\n".encode(), Content_Type=kind)
    assert reply.status == 400
    assert "Too many fields" in reply.json["detail"]
    assert server.upload("/api/v1/search", *[("x.jpg", jpeg())] * 33).status == 400
    assert server.upload("/api/v1/search", *[("x.jpg", jpeg())] * 9).status == 400
    assert server.upload("/api/v1/search", ("x.jpg", jpeg()), q="x" * 70_000).status == 400


def test_one_address_may_ask_so_often(folder: Path):
    limits = Limits(rate=0.5, burst=5)
    with served([folder], Settings(port=0, limits=limits, token=TOKEN)) as running:
        shown = {"Authorization": f"Bearer {TOKEN}"}
        replies = [running.ask("/api/v1/status", **shown) for _ in range(7)]
        assert [reply.status for reply in replies][:5] == [200] * 5
        late = replies[-1]
        assert (late.status, late.kind) == (429, "rate")
        assert int(late.headers["retry-after"]) in {1, 2}


def test_guessing_a_token_is_slow(folder: Path):
    limits = Limits(rate=0.01, burst=30)
    with served([folder], Settings(port=0, limits=limits, token=TOKEN)) as running:
        replies = [
            running.ask("/api/v1/status", Authorization=f"Bearer {i}").status for i in range(5)
        ]
        assert replies == [401, 401, 429, 429, 429]


def test_buckets_fill_again_and_are_forgotten():
    now = [0.0]
    buckets = Buckets(2.0, 4, clock=lambda: now[0])
    assert [buckets.take("a") for _ in range(5)] == [0, 0, 0, 0, 0.5]
    assert buckets.take("b") == 0
    now[0] = 0.5
    assert [buckets.take("a"), buckets.take("a")] == [0, 0.5]
    now[0] = 100.0
    assert [buckets.take("a") for _ in range(5)] == [0, 0, 0, 0, 0.5]
    for i in range(20_000):
        buckets.take(str(i))
    assert len(buckets) == 10_000
    assert Buckets(0.0, 1).take("a") == 0


def test_a_network_of_ipv6_is_one_client():
    assert who("2001:db8::1") == who("2001:db8::ffff:1") != who("2001:db8:0:1::1")
    assert who("::ffff:1.2.3.4") == who("1.2.3.4") == "1.2.3.4"
    assert who("fe80::1%eth0") == who("fe80::2")


def test_too_many_at_a_time_are_told_to_come_back(folder: Path):
    with served([folder], Settings(port=0, limits=Limits(requests=2))) as running:
        held = [running.connect() for _ in range(2)]
        for sock in held:
            sock.sendall(
                f"POST /api/v1/recommend HTTP/1.1\r\nHost: {running.host}\r\n"
                "Content-Type: application/json\r\nContent-Length: 9\r\n\r\n".encode()
            )
        until(lambda: running.ask("/health").status == 503)
        reply = running.ask("/api/v1/status")
        assert (reply.status, reply.kind, reply.headers["retry-after"]) == (503, "busy", "1")
        for sock in held:
            sock.close()
        until(lambda: running.ask("/api/v1/status").status == 200)


def test_what_nobody_waits_for_is_not_done(folder: Path):
    with served([folder], Settings(port=0, limits=Limits(slow=1))) as running:
        lane: SlowLane = running.app.state.services.slow
        go, done = [], []

        def block() -> None:
            while not go:
                time.sleep(0.01)
            done.append(1)

        blocked = [lane._pool.submit(block) for _ in range(4)]
        lane._count = 4
        path = "/api/v1/items/my-photos/1/explain?q=red"
        asked = f"GET {path} HTTP/1.1\r\nHost: {running.host}\r\n\r\n".encode()
        waiting = running.connect()
        waiting.sendall(asked)
        until(lambda: len(lane) == 5)
        reply = running.ask(path)
        assert (reply.status, reply.kind) == (503, "busy")
        assert int(reply.headers["retry-after"]) >= 1
        waiting.close()
        until(lambda: len(lane) == 4)
        # Its place in the queue is free again.
        again = running.connect()
        again.sendall(asked)
        until(lambda: len(lane) == 5)
        go.append(True)
        for future in blocked:
            future.result(10)
        assert read_reply(again).status == 200
        again.close()
        metrics = running.ask("/metrics").body.decode()
        assert 'explain",status="499"} 1.0' in metrics


# What is sent


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is large, with a few bytes of data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def gif(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("P", (4, 4)).save(buffer, "GIF")
    data = bytearray(buffer.getvalue())
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def tiff(width: int, height: int) -> bytes:
    """A grey TIFF that says it is large, with one byte of data."""
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: 1}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return (
        b"II*\0" + struct.pack("<IHH", 12, 0, 0) + struct.pack("<H", len(tags)) + entries + bytes(4)
    )


def scans(count: int) -> bytes:
    """A progressive JPEG with a pass repeated."""
    data = jpeg((64, 64), progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + b"\xff\xd9"


MALFORMED = {
    "bomb.png": bomb(30_000, 30_000),
    "huge.png": bomb(2**31 - 1, 2**31 - 1),
    "bomb.gif": gif(65_535, 65_535),
    "bomb.tif": tiff(60_000, 60_000),
    "scans.jpg": scans(300),
    "empty.jpg": b"",
    "half.jpg": jpeg()[: len(jpeg()) // 2],
    "start.jpg": b"\xff\xd8\xff",
    "page.jpg": b"<!doctype html><script>alert(1)</script>",
    "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>',
    "entities.svg": b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>',
    "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
    "noise.jpg": bytes(range(256)) * 64,
}


@pytest.mark.parametrize("path", ["/api/v1/search", "/api/v1/similar"])
@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_picture_is_refused(server: Running, path, name):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    reply = server.upload(path, (f"../../{name}", MALFORMED[name]))
    assert (reply.status, reply.kind) == (400, "query"), reply.body
    detail = reply.json["detail"]
    assert name in detail
    assert "../" not in detail
    assert time.monotonic() - started < 5
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    # Any of the bombs takes gigabytes when it is decoded.
    assert grown < 100_000, f"{grown} KiB"


def test_large_pictures_are_made_small_before_they_wait(server: Running):
    buffer = io.BytesIO()
    Image.new("RGB", (5000, 5000), (230, 20, 20)).save(buffer, "PNG")
    picture = buffer.getvalue()
    assert len(picture) < 500_000
    reply = server.upload("/api/v1/search", ("large.png", picture), k="1", all="true")
    assert reply.json["results"][0]["path"] == "red.jpg"
    limits = replace(Limits(), upload_pixels=20_000_000)
    with served([server.shelf["my-photos"].root], Settings(port=0, limits=limits)) as running:
        reply = running.upload("/api/v1/search", ("large.png", picture))
        assert reply.status == 400
        assert "megapixels" in reply.json["detail"]


def test_methods_and_addresses_that_are_not_there(server: Running):
    for method in ("PUT", "DELETE", "TRACE", "PATCH", "HEAD"):
        reply = server.ask("/api/v1/status", method)
        assert reply.status == 405
        assert reply.headers["allow"] == "GET"
        assert method == "HEAD" or reply.kind == "method"
    assert server.ask("/api/v1/nothing").kind == "not-found"
    assert "server" not in server.ask("/health").headers
