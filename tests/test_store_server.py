"""What is asked of a store again, and how much at once: with a client that only pretends."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from mmsearch.errors import StoreError, StoreUnavailable
from mmsearch.indexes import milvus_server
from mmsearch.indexes.milvus_choice import choose
from mmsearch.indexes.milvus_server import Address, Server, in_flight

GIB = 1 << 30


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("milvus://host", Address("host")),
        ("milvus://host:1/photos", Address("host", 1, "photos")),
        ("milvus+tls://[::1]:2/a%20b/", Address("::1", 2, "a b", encrypted=True)),
        ("milvus://me:s%3Aecret@host/", Address("host", token="me:s:ecret")),
    ],
)
def test_addresses(url, address, monkeypatch):
    monkeypatch.delenv("MMSEARCH_MILVUS_TOKEN", raising=False)
    read = Address.parse(url)
    assert read == address
    assert "ecret" not in f"{read} {read!r}"


def test_who_asks_may_stand_in_the_environment(monkeypatch):
    monkeypatch.setenv("MMSEARCH_MILVUS_TOKEN", "key")
    assert Address.parse("milvus://host").token == "key"
    assert Address.parse("milvus://me:secret@host").token == "me:secret"


@pytest.mark.parametrize("url", ["host:19530", "http://host", "milvus://", "milvus://h/a/b"])
def test_what_is_no_address(url):
    with pytest.raises(ValueError, match="milvus://host:19530/database"):
        Address.parse(url)


class MilvusError(Exception):
    """As pymilvus's."""

    def __init__(self, code, message=""):
        super().__init__(message)
        self.code, self.message, self.compatible_code = code, message, 1


MilvusError.__module__ = "pymilvus.exceptions"


class Pretending:
    """A server whose client fails as it is told, then answers; time passes by sleeping."""

    def __init__(self, *errors):
        self.errors, self.slept, self.now = list(errors), [], 0.0

    def server(self, **how):
        return Server(
            "milvus://me:secret@host",
            connect=lambda *_: self,
            sleep=self.sleep,
            clock=lambda: self.now,
            **how,
        )

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds

    def query(self, name, *, timeout, **how):
        self.now += 0.01
        if self.errors:
            raise self.errors.pop(0)
        return name, timeout, how

    def get_server_version(self, *, timeout):
        return self.query("", timeout=timeout)[0] or self.version

    def list_collections(self, *, timeout):
        return []


@pytest.mark.parametrize("code", [2, 8, 9, 503, SimpleNamespace(name="UNAVAILABLE")])
def test_what_passes_is_asked_again_after_pauses_that_grow(code):
    there = Pretending(*[MilvusError(code, "a while")] * 4)
    assert there.server().call("query", "a", filter="x") == ("a", 10.0, {"filter": "x"})
    assert len(there.slept) == 4
    for pause, most in zip(there.slept, (0.1, 0.2, 0.4, 0.8), strict=True):
        assert most / 2 <= pause <= most


def test_pauses_differ_so_that_clients_do_not_come_back_together():
    one, other = (Pretending(*[MilvusError(8)] * 5) for _ in range(2))
    for there in (one, other):
        there.server().call("query", "a")
    assert one.slept != other.slept


def test_readers_give_up_early_and_writers_late(monkeypatch):
    # Of drawn pauses, a reader's last would now and then be one that is too long to begin.
    monkeypatch.setattr(milvus_server.random, "random", lambda: 0.5)
    for writing, least, most in ((False, 2, 3), (True, 170, 181)):
        there = Pretending(*[MilvusError(2, "nobody")] * 10_000)
        with pytest.raises(StoreUnavailable, match="does not answer") as caught:
            there.server(answer_s=3).call("query", "a", writing=writing)
        assert least <= there.now <= most
        assert max(there.slept) <= 5
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MilvusError(1100, "bad\nexpression: at /go/src"), "refuses: bad expression:"),
        (MilvusError(1401, "no"), "does not allow that"),
        (MilvusError(SimpleNamespace(name="UNAUTHENTICATED"), "auth check failure"), "user:passw"),
        (MilvusError(800, "database not found"), "no database 'default'"),
        (MilvusError(65535, "the length(31) of float data"), "refuses"),
    ],
)
def test_what_stays_wrong_is_asked_once_and_is_one_line(error, said):
    there = Pretending(error, MilvusError(2))
    with pytest.raises(StoreError, match=said) as caught:
        there.server().call("query", "a", writing=True)
    assert there.slept == []
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, StoreUnavailable)


def test_errors_of_our_own_are_no_server_s():
    there = Pretending(KeyError("oops"))
    with pytest.raises(KeyError):
        there.server().call("query", "a")


def test_a_server_that_is_too_old_is_refused():
    for version, right in (("v2.2.16", False), ("v2.3.5-lite", True), ("2.6.1", True)):
        there = Pretending()
        there.version = version
        if right:
            assert there.server().check() == tuple(map(int, version.strip("v").split(".")[:2]))
        else:
            with pytest.raises(StoreError, match=r"is Milvus v2\.2\.16; 2\.3 is the oldest"):
                there.server().check()


def test_no_more_are_in_flight_than_allowed_and_their_source_waits():
    running, most, taken = 0, 0, 0
    lock = threading.Lock()

    def source():
        nonlocal taken
        for number in range(20):
            taken += 1
            yield number

    def work(number):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002 * (number % 3))
        with lock:
            running -= 1
        return -number

    done = []
    for number, result in in_flight(work, source(), 3):
        done.append((number, result))
        assert taken <= len(done) + 3
    assert done == [(number, -number) for number in range(20)]
    assert most == 3


def test_what_was_done_before_a_failure_is_told():
    def work(number):
        if number == 5:
            raise StoreUnavailable("gone")

    done = []

    def consume():
        for number, _ in in_flight(work, range(9), 3):
            done.append(number)

    with pytest.raises(StoreUnavailable, match="gone"):
        consume()
    assert done == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("n", "how", "kind"),
    [
        (50_000 - 2_000, {}, "flat"),
        (100_000, {}, "hnsw"),
        (100_000, {"recall": 1}, "flat"),
        (10**8, {"memory_bytes": 500 * GIB}, "hnsw"),
        (10**8, {"memory_bytes": 100 * GIB}, "ivf-sq8"),
        (10, {"kind": "hnsw"}, "hnsw"),
        (10**6, {"kind": "gpu-cagra"}, "gpu-cagra"),
    ],
)
def test_the_index_follows_from_the_size(n, how, kind):
    spec = choose(n, 512, (2, 4), **how)
    assert spec.kind == kind
    assert spec.exact == (kind == "flat")
    efforts = spec.efforts
    assert list(efforts) == sorted(set(efforts))


def test_lists_are_looked_into_more_where_a_filter_lets_less_through():
    spec = choose(10**6, 512, (2, 3), kind="ivf-sq8")
    assert spec.params["nlist"] == 4_000
    assert spec.wider(40, 0.5) == 80
    assert spec.wider(40, 0.0001) == 4_000
    assert spec.search_params(80, 10) == {"nprobe": 80}
    graph = choose(10**6, 512, (2, 3))
    assert [graph.wider(64, share) for share in (1, 0.5, 0.01)] == [64, 128, 640]
    assert graph.wider(512, 0.01) == 1024
    assert graph.search_params(64, 200) == {"ef": 200}


@pytest.mark.parametrize(
    ("kind", "version", "said"),
    [
        ("gpu-cagra", (2, 3), "needs Milvus 2.4 or later; the server is 2.3"),
        ("diskann", (2, 6), "has no index 'diskann'"),
        ("ivf-rabitq", (2, 6), "it has flat, hnsw, ivf-sq8"),
    ],
)
def test_what_a_server_cannot_make(kind, version, said):
    with pytest.raises(StoreError, match=said):
        choose(10**6, 512, version, kind=kind)


def test_pymilvus_is_loaded_where_it_is_used():
    assert "pymilvus" not in vars(milvus_server)
