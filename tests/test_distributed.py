"""What the machines of a cluster do with blocks of paths, without a cluster."""

from __future__ import annotations

import hashlib
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsearch.errors import ClusterError, MediaError, MissingExtra
from mmsearch.retrieval import cluster, reading
from mmsearch.retrieval.blocks import (
    BATCHES_PER_BLOCK,
    MOST_BATCHES_PER_BLOCK,
    TRIES_ALONE,
    TRIES_TOGETHER,
    BlockEmbedder,
    Done,
    KnownContents,
    Ledger,
    NodeRates,
    blocks_of,
    in_order,
)
from mmsearch.retrieval.embedding import Embedded, embed_files
from mmsearch.retrieval.ingest import index
from mmsearch.retrieval.pace import Pace
from mmsearch.retrieval.reading import Read, Unread
from mmsearch.retrieval.scan import FoundFile, scan


def done(number: int, node: str = "a", pictures: int = 1, began: float = 0, ended: float = 1):
    items = [Unread(f"{number}-{i}", MediaError("empty", "")) for i in range(pictures)]
    return Done(number, node, began, ended, None, [Embedded(items, {}, {})])


@given(st.integers(0, 600), st.integers(1, 64), st.integers(1, 9))
def test_blocks_hold_every_file_once_in_order_and_whole_batches(count, batch_size, nodes):
    files = {f"{i:04d}": FoundFile(i, i, "") for i in range(count)}
    blocks = list(blocks_of(files, batch_size, nodes))
    assert [path for block in blocks for path in block.files] == list(files)
    assert [block.number for block in blocks] == list(range(len(blocks)))
    for block in blocks[:-1]:
        whole, rest = divmod(len(block.files), batch_size)
        assert rest == 0
        assert BATCHES_PER_BLOCK <= whole <= MOST_BATCHES_PER_BLOCK


@given(st.lists(st.integers(0, 30)).map(lambda more: [*more, *range(31)]), st.randoms())
def test_blocks_come_once_and_in_order_however_they_came(numbers, random):
    random.shuffle(numbers)
    found = [one.number for one in in_order(map(done, numbers), 31)]
    assert found == list(range(31))


def test_what_never_came_is_an_error_after_what_did():
    coming = in_order(map(done, [0, 1, 3]), 4)
    assert [next(coming).number, next(coming).number] == [0, 1]
    with pytest.raises(ClusterError, match="2 of 4 parts"):
        next(coming)


def test_rates_are_those_of_each_machine():
    rates = NodeRates()
    rates.add(done(0, "b", 10, 100.0, 102.0))
    rates.add(done(1, "a", 5, 7.0, 8.0))
    rates.add(done(2, "b", 20, 101.0, 106.0))
    assert [node.to_json() for node in rates.rates()] == [
        {"node": "a", "pictures": 5, "images_per_second": 5.0},
        {"node": "b", "pictures": 30, "images_per_second": 5.0},
    ]
    assert rates.remark() == "2 machines"


@given(st.sets(st.binary(min_size=1, max_size=3)), st.binary(min_size=1, max_size=3))
def test_known_contents_are_a_set(words, other):
    hashes = {hashlib.sha256(word).digest() for word in words}
    known = KnownContents(KnownContents.packed(hashes))
    assert all(each in known for each in hashes)
    digest = hashlib.sha256(other).digest()
    assert (digest in known) == (digest in hashes)


def test_problems_travel():
    error = pickle.loads(pickle.dumps(MediaError("truncated", "it ends early")))
    assert (error.kind, str(error)) == ("truncated", "it ends early")


def embedder(photos, encoder, contents=(), tries=None):
    known = KnownContents(KnownContents.packed(contents))
    return BlockEmbedder(photos, encoder, known, tries or Ledger(), node="n", threads=2)


def embedded(batches):
    return [
        (item.picture.path, item.picture.sha256, item.captions, item.pixels)
        if isinstance(item, Read)
        else (item.path, item.error.kind)
        for batch in batches
        for item in batch.items
    ], {path: vector for batch in batches for path, vector in batch.vectors.items()}


def test_a_block_becomes_what_one_machine_makes_of_it(photos, encoder):
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    files = scan(photos).files
    (block,) = blocks_of(files, encoder.batch_size, 1)
    answer = embedder(photos, encoder).embed(pickle.loads(pickle.dumps(block)))
    answer = pickle.loads(pickle.dumps(answer))
    plain = list(embed_files(photos, files, encoder, contents={}, pace=Pace()))
    (items, vectors), (other, others) = embedded(answer.batches), embedded(plain)
    assert items == other
    assert vectors.keys() == others.keys()
    assert all(np.array_equal(vectors[path], others[path]) for path in vectors)
    assert answer.began <= answer.ended
    assert answer.node == "n"


def test_what_is_known_is_not_decoded(photos, encoder):
    files = scan(photos).files
    contents = [hashlib.sha256((photos / path).read_bytes()).digest() for path in files]
    (block,) = blocks_of(files, encoder.batch_size, 1)
    answer = embedder(photos, encoder, contents[1:]).embed(block)
    assert encoder.prepared == 1
    assert [path for batch in answer.batches for path in batch.vectors] == [next(iter(files))]


class Died(BaseException):
    """Stands for the end of a process."""


def test_a_picture_that_ends_its_process_is_found_and_left_out(photos, encoder, monkeypatch):
    files = scan(photos).files
    (block,) = blocks_of(files, encoder.batch_size, 1)
    guilty = list(files)[2]
    tries = Ledger()
    read = reading.read_bytes

    def read_bytes(path):
        if path == photos / guilty:
            raise Died
        return read(path)

    monkeypatch.setattr(reading, "read_bytes", read_bytes)
    deaths = 0
    while True:
        try:
            # Each time in a process of its own, with nothing but the ledger in common.
            answer = embedder(photos, encoder, tries=tries).embed(block)
            break
        except Died:
            deaths += 1
            assert deaths < 10
    assert deaths == TRIES_TOGETHER + TRIES_ALONE
    items, vectors = embedded(answer.batches)
    assert [path for path, *_ in items] == list(files)
    assert dict(item for item in items if len(item) == 2) == {guilty: "worker-died"}
    assert vectors.keys() == files.keys() - {guilty}


@pytest.mark.parametrize("address", ["nowhere", "ray://", "ray://host", "http://host:1", "host:x"])
def test_what_is_no_address_is_refused_before_anything_is_read(photos, encoder, address):
    with pytest.raises(ClusterError, match="no address of a cluster"):
        index(photos, model=encoder, on=address)
    assert not (photos / ".mmsearch").exists()


def test_offline_forbids_other_machines_and_not_this_one(monkeypatch):
    monkeypatch.setenv("MMSEARCH_OFFLINE", "1")
    with pytest.raises(ClusterError, match="--offline forbids"):
        cluster.check_address("ray://example.org:10001")
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda _: object())
    cluster.check_address("ray://127.0.0.1:10001")
    cluster.check_address("local")


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r"mmsearch\[ray\]"):
        cluster.check_address("local")


def test_nobody_at_an_address_is_told_at_once(photos, encoder):
    pytest.importorskip("ray.data")
    with pytest.raises(ClusterError, match=r"Nobody answers at ray://127\.0\.0\.1:9"):
        index(photos, model=encoder, on="ray://127.0.0.1:9")
