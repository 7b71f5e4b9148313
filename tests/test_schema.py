"""What travels as JSON comes back as it was."""

import json
import math
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmsearch.errors import LibraryError
from mmsearch.retrieval.schema import (
    Basis,
    Fusion,
    Hit,
    Query,
    QueryPart,
    Reranking,
    Results,
    Strategy,
    Target,
    TasteQuery,
)

NAMES = st.text(min_size=1, max_size=8)
COUNTS = st.integers(0, 10**12)
SHARES = st.integers(0, 10_000).map(lambda n: n / 10_000)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
TIMES = st.integers(0, 10**9).map(lambda n: n / 100)
NAMED = st.lists(NAMES, max_size=3).map(tuple)

PARTS = st.builds(QueryPart, text=NAMES, weight=NUMBERS) | st.builds(
    QueryPart, image=NAMES, weight=NUMBERS
)
SINGLE = st.builds(QueryPart, text=NAMES) | st.builds(QueryPart, image=NAMES)
QUESTIONS = st.one_of(
    st.builds(Query, st.just(()), st.sampled_from(Target)),
    st.builds(Query, SINGLE.map(lambda part: (part,)), st.sampled_from(Target)),
    st.builds(
        Query,
        st.lists(PARTS, min_size=2, max_size=4).map(tuple),
        st.sampled_from(Target),
        st.sampled_from(Fusion),
    ),
    st.builds(
        TasteQuery,
        like=NAMED,
        dislike=NAMED,
        history=st.lists(st.tuples(NAMES, NUMBERS), max_size=3).map(tuple),
        strategy=st.sampled_from(Strategy),
        half_life=st.floats(0.1, math.inf),
        diversity=SHARES,
        basis=st.sampled_from(Basis),
        ignored=NAMED,
    ),
)
RERANKINGS = st.builds(
    Reranking,
    model=NAMES,
    depth=COUNTS,
    reranked=COUNTS,
    late=COUNTS,
    unreadable=COUNTS,
    budget_ms=st.none() | NUMBERS,
    took_ms=TIMES,
)


@st.composite
def hits(draw, library):
    rerank = draw(st.none() | NUMBERS)
    return Hit(
        rank=draw(COUNTS),
        id=0 if library is None else draw(COUNTS),
        path=draw(NAMES),
        score=draw(NUMBERS),
        caption=draw(st.none() | st.text(max_size=8)),
        taken_at=draw(st.none() | st.datetimes()),
        width=draw(st.none() | COUNTS),
        height=draw(st.none() | COUNTS),
        match=draw(st.none() | SHARES),
        others=draw(NAMED),
        rerank_score=rerank,
        first_rank=None if rerank is None else draw(COUNTS),
        library=library,
    )


@st.composite
def answers(draw):
    served = draw(st.none() | st.lists(NAMES, min_size=1, max_size=3, unique=True).map(tuple))
    library = st.none() if served is None else st.sampled_from(served)
    each = library.flatmap(hits)
    return Results(
        query=draw(QUESTIONS),
        library=Path("/somewhere") / "here" if served is None else None,
        model=draw(NAMES),
        hits=tuple(draw(st.lists(each, max_size=3))),
        exact=draw(st.booleans()),
        took_ms=draw(TIMES),
        considered=draw(COUNTS),
        adapter=draw(st.none() | COUNTS),
        recall=draw(st.none() | SHARES),
        cut=draw(st.none() | SHARES),
        nearest=draw(st.none() | each),
        where=draw(st.none() | NAMES),
        rerank=draw(st.none() | RERANKINGS),
        libraries=served or (),
        offset=0 if served is None else draw(COUNTS),
    )


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(answers())
def test_answers_come_back(results):
    assert Results.from_json(json.loads(json.dumps(results.to_json()))) == results


@given(QUESTIONS)
def test_questions_come_back(query):
    told = json.loads(json.dumps(query.to_json()))
    found = Query.from_json(told, query.to)
    assert found == query
    assert type(found) is type(query)


@given(RERANKINGS)
def test_rerankings_come_back(rerank):
    assert Reranking.from_json(json.loads(json.dumps(rerank.to_json()))) == rerank


def test_no_score_is_null_and_comes_back_as_none_at_all():
    hit = Hit(1, 7, "a.jpg", math.nan, library="photos")
    told = json.loads(json.dumps(hit.to_json()))
    assert told["score"] is None
    assert math.isnan(Hit.from_json(told).score)
    assert replace(Hit.from_json(told), score=0.0) == replace(hit, score=0.0)


def test_names_of_files_that_are_no_text_come_back():
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    hit = Hit(1, 0, name, 0.5, taken_at=datetime(2023, 8, 12, 17, 2, 11))
    assert Hit.from_json(json.loads(json.dumps(hit.to_json()))) == hit


def test_what_a_server_found_has_no_file_here():
    hit = Hit(1, 7, "a.jpg", 0.5, library="photos")
    results = Results(Query(()), None, "m@1", (hit,), True, 1.0, 1, libraries=("photos",))
    with pytest.raises(LibraryError, match=r"client\.original\('photos/7'\)"):
        results.file(hit)
    assert results.title == "photos"
    assert results.to_json()["library"] == "photos"
    assert results.to_json()["results"][0]["id"] == 7
    both = replace(results, libraries=("photos", "work"))
    assert both.to_json()["library"] is None
    assert both.title == "photos, work"
