"""Many different questions at once: each gets the answer that it gets alone."""

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import mmsearch
from mmsearch import SearchRequest
from mmsearch.errors import MmsearchError, QueryError
from mmsearch.retrieval.catalog import KeptWords
from mmsearch.retrieval.duplicates import Collapsed, Likeness, collapse
from mmsearch.retrieval.schema import Target
from tests.conftest import COLOURS, draw

TEXTS = [
    *COLOURS,
    "red roof",
    "a blue house",
    "green or blue",
    "IMG_7.png",
    "dog",
    "two dogs",
    "the",
]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Pictures of every colour, some of them copies, some with captions and telling names."""
    from tests.conftest import ColourEncoder

    folder = tmp_path_factory.mktemp("library") / "photos"
    for i in range(90):
        colour = list(COLOURS)[i % len(COLOURS)]
        name = f"{colour} roof and old house {i}" if i % 7 == 0 else f"IMG_{i}"
        path = draw(folder / f"{i % 3}/{name}.png", colour, (40 + i % 11, 32))
        if i % 4 == 0:
            path.with_suffix(".txt").write_text(f"a {colour} thing beside two dogs\n{colour} again")
    encoder = ColourEncoder()
    mmsearch.index(folder, model=encoder)
    with mmsearch.open(folder, model=encoder) as engine:
        yield engine


def anything(generator: random.Random, engine) -> SearchRequest:
    """Return a request of any kind, some of them wrong."""
    some = generator.choice
    pictures = sorted(engine.library.root.glob("*/*.png"))
    asked = {
        "text": lambda: {"text": some(TEXTS)},
        "logic": lambda: {"text": some(["red NOT blue", "red OR green", "NOT red", "AND"])},
        "image": lambda: {"image": some(pictures)},
        "several": lambda: {
            "text": [some(TEXTS), some(TEXTS)],
            "image": some(pictures),
            "fusion": some(["early", "scores", "calibrated", "ranks", "hybrid"]),
            "weights": some([None, [1, 2, 3], [1, 2]]),
        },
        "listed": lambda: {"where": "width > 45", "sort": some([None, "name", "width"])},
        "wrong": lambda: some(
            [
                {"text": " "},
                {"text": "red", "k": 0},
                {"text": "red", "where": "colour = 3"},
                {"image": engine.library.root / "nothing.png"},
                {"text": "red", "sort": "beauty"},
                {},
            ]
        ),
    }
    kinds = ["text"] * 6 + ["logic", "image", "several", "several", "listed", "wrong"]
    request = asked[some(kinds)]()
    request.setdefault("k", some([1, 3, 10, 70]))
    if generator.random() < 0.2:
        request.setdefault("where", some(["width > 45", "name LIKE 'IMG%'", "width > 9999"]))
    if generator.random() < 0.2:
        request |= {"to": "captions"}
    request |= {
        "group": generator.random() < 0.3,
        "diversity": some([0.0, 0.0, 0.0, 0.4]),
        "words": generator.random() < 0.7,
        "cut": some([None, None, 0.2, 0.9]),
    }
    if generator.random() < 0.15:
        request.setdefault("sort", some(["name", "width"]))
    return SearchRequest(**request)


def alone(engine, request: SearchRequest):
    named = {name: getattr(request, name) for name in SearchRequest.__slots__}
    try:
        return engine.search(**named)
    except MmsearchError as error:
        return error


def comparable(told):
    """Return all that is told but the time."""
    if isinstance(told, MmsearchError):
        return type(told), str(told)
    fields = {name: getattr(told, name) for name in type(told).__slots__ if name != "took_ms"}
    hits = [*fields.pop("hits"), *filter(None, [fields.pop("nearest")])]
    numbers = [[hit.score, -1.0 if hit.match is None else hit.match] for hit in hits]
    others = [
        tuple(getattr(hit, name) for name in type(hit).__slots__ if name not in {"score", "match"})
        for hit in hits
    ]
    near = pytest.approx(np.array(numbers).reshape(-1, 2), abs=1e-5, nan_ok=True)
    return fields | {"hits": others}, near, np.array(numbers).reshape(-1, 2)


@pytest.mark.parametrize("seed", range(4))
def test_each_gets_the_answer_that_it_gets_alone(library, seed):
    generator = random.Random(seed)
    requests = [anything(generator, library) for _ in range(120)]
    expected = [alone(library, request) for request in requests]
    assert sum(isinstance(each, MmsearchError) for each in expected) > 5
    assert sum(not isinstance(each, MmsearchError) for each in expected) > 60
    start = 0
    while start < len(requests):
        some = requests[start : start + generator.choice([1, 5, 16, 40])]
        found = library.search_batch(some)
        assert len(found) == len(some)
        for request, ours, theirs in zip(some, found, expected[start:], strict=False):
            if isinstance(theirs, MmsearchError):
                assert comparable(ours) == comparable(theirs), request
                continue
            assert not isinstance(ours, MmsearchError), (request, ours)
            (told, _, numbers), (right, near, _) = comparable(ours), comparable(theirs)
            assert told == right, request
            assert numbers == near, request
        start += len(some)


def test_one_wrong_question_spoils_no_other(library):
    broken = library.library.root / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    good = SearchRequest(text="red", k=3)
    found = library.search_batch(
        [good, SearchRequest(image=broken), SearchRequest(text="AND"), good]
    )
    broken.unlink()
    assert [type(each).__name__ for each in found[1:3]] == ["QueryError"] * 2
    assert "cannot be used" in str(found[1])
    right = [hit.id for hit in library.search("red", k=3).hits]
    assert [hit.id for hit in found[0].hits] == [hit.id for hit in found[3].hits] == right
    assert library.search_batch([]) == []


def test_all_texts_and_all_pictures_are_embedded_at_once_each_text_once(library):
    encoder, calls = library.encoder, []
    texts, pixels = encoder.encode_texts, encoder.encode_pixels

    def counted(name, encode):
        def call(items):
            calls.append((name, len(items)))
            return encode(items)

        return call

    pictures = sorted(library.library.root.glob("*/*.png"))[:2]
    encoder.encode_texts = counted("texts", texts)
    encoder.encode_pixels = counted("pixels", pixels)
    try:
        library.search_batch(
            [
                SearchRequest(text="red"),
                SearchRequest(text="blue", to="captions"),
                SearchRequest(text=["red", "green"], image=pictures[0]),
                SearchRequest(image=pictures[1], group=True),
            ]
        )
    finally:
        del encoder.encode_texts, encoder.encode_pixels
    assert calls == [("texts", 3), ("pixels", 2)]


def test_questions_of_one_vector_are_one_search_of_the_index(library, monkeypatch):
    index, searched = library._state(Target.IMAGES).index, []
    search = type(index).search

    def counted(self, queries, k, **options):
        searched.append((len(queries), options.get("among") is None))
        return search(self, queries, k, **options)

    monkeypatch.setattr(type(index), "search", counted)
    library.search_batch([SearchRequest(text=text, words=False) for text in COLOURS])
    assert searched == [(len(COLOURS), True)]


def test_threads_may_ask_at_once(library):
    generator = random.Random(9)
    batches = [[anything(generator, library) for _ in range(12)] for _ in range(12)]
    expected = [library.search_batch(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(library.search_batch, batches * 3))
    for ours, theirs in zip(found, expected * 3, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert type(one) is type(other)
            if not isinstance(one, MmsearchError):
                assert [hit.path for hit in one.hits] == [hit.path for hit in other.hits]


def test_a_changed_library_is_seen_by_the_next_batch(photos, encoder):
    mmsearch.index(photos, model=encoder)
    with mmsearch.open(photos, model=encoder) as engine:
        asked = [SearchRequest(text="red"), SearchRequest(text="zebra")]
        before = engine.search_batch(asked)
        (photos / "red.jpg").rename(photos / "zebra.jpg")
        mmsearch.index(photos, model=encoder)
        after = engine.search_batch(asked)
        assert before[0].hits[0].path == "red.jpg"
        assert after[0].hits[0].path == after[1].hits[0].path == "zebra.jpg"
        # What filters let through is kept as long as names stay.
        assert len(engine.search("red", where="name LIKE 'zebra%'").hits) == 1
        (photos / "zebra.jpg").rename(photos / "horse.jpg")
        mmsearch.index(photos, model=encoder)
        assert engine.search("red", where="name LIKE 'zebra%'").hits == ()


def test_search_raises_what_a_batch_tells(library):
    with pytest.raises(QueryError, match="at least 1"):
        library.search("red", k=0)


def test_many_that_cannot_be_kept_are_found_all_the_same(library, monkeypatch):
    from mmsearch.retrieval import state
    from mmsearch.retrieval.catalog import word_search

    catalog = library.library.catalog
    expected = [catalog.words(text, Target.IMAGES, 20) for text in TEXTS]
    monkeypatch.setattr(word_search, "MOST_KEPT", 5)
    monkeypatch.setattr(word_search, "MOST_COUNTED", 2)
    kept = KeptWords()
    for _ in range(2):
        found = catalog.words_of_many(
            TEXTS, Target.IMAGES, 20, among=[None] * len(TEXTS), kept=kept
        )
        assert found == expected
    assert sum(len(rows.ids) for rows in kept._rows.values()) <= 5
    monkeypatch.setattr(state, "FILES", 3)
    with mmsearch.open(library.library.root, model=library.encoder) as small:
        for text in TEXTS:
            asked = SearchRequest(text=text, group=True)
            (ours,), (theirs,) = small.search_batch([asked]), library.search_batch([asked])
            assert [hit.id for hit in ours.hits] == [hit.id for hit in theirs.hits]
        assert len(small._state(Target.IMAGES)._files._known) <= 100


def slowly_collapsed(vectors, k, like, taken, seconds):
    """Follow the definition, one answer after the other."""
    found = []
    for row in range(len(vectors)):
        for leader, others in found:
            similarity = vectors[leader] @ vectors[row]
            close = abs(taken[leader] - taken[row]) <= seconds and similarity >= like.burst
            if similarity >= like.alone or close:
                others.append(row)
                break
        else:
            found.append((row, []))
    return [Collapsed(row, tuple(others)) for row, others in found[:k]]


@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 300])
@pytest.mark.parametrize("k", [1, 10, 200])
def test_rankings_collapse_as_the_definition_says(n, k):
    generator = np.random.default_rng(n + k)
    rows = generator.normal(size=(max(1, n // 4), 5))[generator.integers(0, max(1, n // 4), n)]
    rows = rows + 0.2 * generator.normal(size=(n, 5))
    vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    taken = np.where(generator.random(n) < 0.2, np.nan, generator.integers(0, 200, n))
    like = Likeness(0.8, 0.98, 0.9)
    expected = slowly_collapsed(vectors, k, like, taken, 10.0)
    assert collapse(vectors, k, like, taken=taken, seconds=10.0) == expected
