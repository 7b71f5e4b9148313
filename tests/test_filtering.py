"""Filters asked of a catalog, against a slow reading of the same trees in Python."""

from __future__ import annotations

import itertools
import math
import os
import re
import sqlite3
import time
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select, update

from mmsearch import indexes
from mmsearch.retrieval.catalog import Catalog, functions, tables
from mmsearch.retrieval.catalog.filtering import clauses_of
from mmsearch.retrieval.filters import Column, Filter, parse_where, split_inline
from mmsearch.retrieval.filters.dates import Date
from mmsearch.retrieval.filters.tree import (
    And,
    Between,
    Compare,
    IsNull,
    Kind,
    Like,
    Near,
    Not,
    OneOf,
    Operator,
    Or,
)
from mmsearch.retrieval.schema import Caption, EncoderSpec, Picture, SortKey, Target

DIM, PICTURES = 8, 110
SPEC = EncoderSpec("test", "eight", "1", "ab" * 32, "{}", DIM)

FOLDERS = [
    "",
    "",
    "2023/",
    "2023/Corsica/",
    "trips/2023/",
    "2023b/",
    "100%_real/",
    "Füße/",
    "shard.tar/",
    "caf\udce9/",
    "ΣΊΣΥΦΟΣ/",
]
NAMES = [
    "IMG_{}.JPG",
    "img-{}.jpg",
    "München {}.heic",
    unicodedata.normalize("NFD", "mÜnchen {}.png"),
    "{}",
    ".hidden{}",
    "a.b.{}.tar.Gz",
    "caf\udce9 {}.jpg",
    "\u212aelvin{}.jp\u212a",
    "100%{}.webp",
    "ﬁn\\al{}.",
    "漢字{}.jpg",
    "straße{}.JPEG",
]
CAMERAS = [None, None, "FUJIFILM X100", "fuji x100", "Canon EOS R5", "Kodak", "KODAK", "Ärger"]
PLACES = [
    None,
    (48.85, 2.35),
    (48.9, 2.3),
    (90.0, 0.0),
    (89.99, 180.0),
    (-90.0, 12.0),
    (0.0, 179.99),
    (0.0, -179.99),
    (0.05, 180.0),
    (-33.9, 151.2),
    (0.0, 0.1),
    (71.0, -179.5),
]
MOMENTS = [
    None,
    None,
    datetime(2023, 6, 1),
    datetime(2023, 5, 31, 23, 59, 59),
    datetime(2023, 6, 30, 23, 59, 59),
    datetime(2023, 7, 1),
    datetime(2024, 2, 29, 12, 30),
    datetime(1, 1, 1),
    datetime(9999, 12, 31, 23, 59, 59),
    datetime(2023, 6, 15, 12, 0, 0, 250_000),
]
TEXTS = ["a dog", "A Dog on a beach", "Füße im Sand", "100% wool", "ΣΊΣΥΦΟΣ", "", "dog\0cat"]


@dataclass
class Row:
    id: int
    picture: Picture
    indexed: datetime
    captions: list[tuple[int, str]]


class Library:
    """A catalog, what it holds, and an index of vectors that are not the catalog's."""

    def __init__(self, catalog, rows):
        self.catalog, self.rows = catalog, rows
        self.ids = np.array([row.id for row in rows])
        vectors = np.random.default_rng(1).normal(size=(len(rows), DIM)).astype(np.float32)
        self.vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        self.index = indexes.build(self.ids, self.vectors, kind="flat")


def drawn(number: int, generator: np.random.Generator) -> tuple[Picture, datetime, list[str]]:
    def one(choices):
        return choices[generator.integers(len(choices))]

    place = one(PLACES)
    moment = one(MOMENTS)
    picture = Picture(
        path=one(FOLDERS) + one(NAMES).format(number),
        size=int(one([0, 1, 1000, 4_000_000, 2**40, number])),
        mtime_ns=int(
            one([0, -1, 1_685_570_400 * 10**9, 1_687_000_000_123_456_789, number * 10**15])
        ),
        sha256=number.to_bytes(32, "big"),
        format=one(["JPEG", "PNG", "HEIF"]),
        width=int(one([1, 100, 2000, number + 1])),
        height=int(one([1, 100, 2000, number + 1])),
        orientation=int(generator.integers(1, 9)),
        taken_at=moment,
        latitude=place and place[0],
        longitude=place and place[1],
        camera=one(CAMERAS),
        sidecars="",
    )
    texts = sorted({one(TEXTS) for _ in range(int(one([0, 0, 1, 3])))})
    indexed = (
        one([each for each in MOMENTS if each]) if number % 2 else datetime(2023, 6, 30, 22, 30)
    )
    return picture, indexed, texts


@pytest.fixture(scope="module")
def library(tmp_path_factory, address_of_catalog):
    generator = np.random.default_rng(5)
    folder = tmp_path_factory.mktemp("filters")
    catalog = Catalog.create(folder / "catalog.sqlite", address=address_of_catalog())
    rows, seen = [], set()
    with catalog.write() as transaction:
        encoder_id = transaction.encoder_id(SPEC, "eight")
        transaction.activate(encoder_id)
        for number in range(PICTURES):
            picture, indexed, texts = drawn(number, generator)
            if picture.path in seen:
                continue
            seen.add(picture.path)
            id_ = transaction.put_file(picture, encoder_id, np.ones(DIM, dtype=np.float32))
            transaction.set_captions(id_, [Caption(text, "sidecar") for text in texts])
            rows.append(Row(id_, picture, indexed, []))
    with catalog._connect(immediate=True) as connection:
        for row in rows:
            one = update(tables.file).where(tables.file.c.id == row.id)
            connection.execute(one.values(indexed_at=row.indexed))
    by_id = {row.id: row for row in rows}
    for id_, file_id, text in catalog.captions():
        by_id[file_id].captions.append((id_, text))
    yield Library(catalog, rows)
    catalog.close()


# The slow reading: None is unknown.


def conjunction(truths):
    truths = list(truths)
    return False if False in truths else None if None in truths else True


def negation(truth):
    return None if truth is None else not truth


def disjunction(truths):
    return negation(conjunction(map(negation, truths)))


def folded(text):
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def like(text, pattern, escape):
    source, characters = "", iter(pattern)
    literal = ""
    for character in characters:
        if character == escape:
            literal += next(characters, character)
            continue
        if character in "%_":
            source += re.escape(folded(literal)) + {"%": ".*", "_": "."}[character]
            literal = ""
        else:
            literal += character
    return re.fullmatch(source + re.escape(folded(literal)), folded(text), re.DOTALL) is not None


def metres_between(place, other):
    """By vectors from the middle of the Earth, not by haversines."""
    first, second = (
        np.array([math.cos(a) * math.cos(b), math.cos(a) * math.sin(b), math.sin(a)])
        for a, b in (np.radians(place), np.radians(other))
    )
    angle = math.atan2(np.linalg.norm(np.cross(first, second)), first @ second)
    return 6_371_008.8 * angle


def local(ns):
    return datetime.fromtimestamp(ns // 10**9) + timedelta(microseconds=ns % 10**9 // 1000)


def stored(row, column):
    picture = row.picture
    folder, _, name = picture.path.rpartition("/")
    match column:
        case Column.NAME:
            return name
        case Column.FOLDER:
            return folder
        case Column.EXT:
            suffix = name.split(".")[-1] if "." in name else ""
            return "".join(c.lower() if c < "\x80" else c for c in suffix)
        case Column.PIXELS:
            return picture.width * picture.height
        case Column.MODIFIED:
            return local(picture.mtime_ns)
        case Column.INDEXED:
            return row.indexed.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
        case Column.TAKEN:
            return picture.taken_at
    return getattr(picture, column.value)


def sortable(value):
    if isinstance(value, str):
        try:
            return (0, value.encode())
        except UnicodeEncodeError:
            return (1, os.fsencode(value))
    return value


def compared(left, operator, right):
    if left is None or right is None:
        return None
    if isinstance(right, Date):
        after, before = left >= right.start, left < right.end
        match operator:
            case Operator.EQUAL:
                return after and before
            case Operator.UNEQUAL:
                return not (after and before)
            case Operator.BELOW:
                return not after
            case Operator.AT_MOST:
                return before
            case Operator.ABOVE:
                return not before
        return after
    left, right = sortable(left), sortable(right)
    return {
        Operator.EQUAL: left == right,
        Operator.UNEQUAL: left != right,
        Operator.BELOW: left < right,
        Operator.AT_MOST: left <= right,
        Operator.ABOVE: left > right,
        Operator.AT_LEAST: left >= right,
    }[operator]


def truth(filter_, row, captions):  # noqa: C901
    """Whether it is true of a picture with these captions; unknown is None."""

    def of(value):
        return stored(row, value) if isinstance(value, Column) else value

    match filter_:
        case And(items):
            return conjunction(truth(item, row, captions) for item in items)
        case Or(items):
            return disjunction(truth(item, row, captions) for item in items)
        case Not(item):
            return negation(truth(item, row, captions))
        case Near(latitude, longitude, metres):
            place = row.picture.latitude, row.picture.longitude
            return None if None in place else metres_between(place, (latitude, longitude)) <= metres
        case Compare(Column.CAPTION, Operator.UNEQUAL, value):
            return negation(truth(Compare(Column.CAPTION, Operator.EQUAL, value), row, captions))
        case IsNull(Column.CAPTION):
            return not captions
        case Compare(Column.CAPTION, _, value):
            return disjunction(text == value for text in captions) if captions else None
        case OneOf(Column.CAPTION, values):
            return disjunction(text in values for text in captions) if captions else None
        case Like(Column.CAPTION, pattern, escape):
            return (
                disjunction(like(text, pattern, escape) for text in captions) if captions else None
            )
        case IsNull(column):
            return of(column) is None
        case Compare(column, operator, value):
            return compared(of(column), operator, of(value))
        case Between(column, low, high):
            return conjunction(
                (
                    compared(of(column), Operator.AT_LEAST, of(low)),
                    compared(of(column), Operator.AT_MOST, of(high)),
                )
            )
        case OneOf(column, values):
            return disjunction(compared(of(column), Operator.EQUAL, value) for value in values)
        case Like(column, pattern, escape):
            text = of(column)
            return None if text is None else like(text, pattern, escape)
    raise TypeError(filter_)


def slowly(filter_, rows, target):
    if target is Target.IMAGES:
        return [r.id for r in rows if truth(filter_, r, [text for _, text in r.captions]) is True]
    return sorted(
        id_ for row in rows for id_, text in row.captions if truth(filter_, row, [text]) is True
    )


# Random filters, in the form in which they are parsed.

PATHS = [
    folder + name.format(number)
    for folder, name, number in itertools.product(FOLDERS, NAMES, (3, 17))
]
WORDS = st.one_of(
    st.sampled_from(PATHS),
    st.sampled_from([path.rpartition("/")[2] for path in PATHS]),
    st.sampled_from([path.rpartition("/")[0] for path in PATHS]),
    st.sampled_from([each for each in [*CAMERAS, *TEXTS, "JPEG", "jpeg"] if each is not None]),
    st.text(max_size=6),
)
EXTENSIONS = st.sampled_from(
    ["jpg", "jpeg", "heic", "png", "gz", "", "jp\u212a", "jpk", "a.b", "x%", "x_"]
)
NUMBERS = st.one_of(
    st.sampled_from([0, 1, 100, 2000, 4_000_000, 2**40, 2**63 - 1, -1, 0.1, 48.85, 1e300, 99.5]),
    st.integers(-10, 200),
    st.floats(-200, 200),
)
DATES = st.one_of(
    st.sampled_from(
        [
            "2023",
            "2023-06",
            "2023-06-01",
            "2023-06-30 23:59",
            "2023-06-30 23:59:59",
            "2023-07",
            "2024-02-29",
            "0001",
            "9999",
            "9999-12-31",
            "1970-01-01",
            "2023-06-15 12:00:00.2",
        ]
    ),
    st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)).map(
        lambda at: f"{at:%Y-%m-%d %H:%M:%S}"
    ),
).map(Date.parse)
# As a pattern, pieces of what is there between wildcards.
PATTERNS = st.lists(
    st.one_of(
        st.sampled_from(["%", "%", "_", "!%", "!_", "!!", "\\", "/", "."]),
        WORDS.flatmap(
            lambda word: st.integers(0, max(0, len(word) - 1)).map(lambda i: word[i : i + 4])
        ),
        st.sampled_from(
            ["FUJI", "fuji", "münchen", "MÜNCHEN", "füße", "FÜSSE", "σίσυφος", "img", "K", "dog"]
        ),
    ),
    max_size=4,
).map("".join)
COLUMNS = list(Column)
OTHERS = {kind: [c for c in COLUMNS if c.kind is kind and c is not Column.CAPTION] for kind in Kind}


def values(column):
    if column is Column.EXT:
        return EXTENSIONS
    return {Kind.TEXT: WORDS, Kind.NUMBER: NUMBERS, Kind.DATE: DATES}[column.kind]


@st.composite
def conditions(draw):
    column = draw(st.sampled_from(COLUMNS))
    value = values(column)
    side = (
        value
        if column is Column.CAPTION
        else st.one_of(value, st.sampled_from(OTHERS[column.kind]))
    )
    forms = ["compare", "compare", "one of", "null"]
    forms += ["between"] if column is not Column.CAPTION else []
    forms += ["like", "like"] if column.kind is Kind.TEXT else []
    forms += ["near"] * 3 if column is Column.LATITUDE else []
    match draw(st.sampled_from(forms)):
        case "compare":
            few = [Operator.EQUAL, Operator.UNEQUAL]
            operators = few if column is Column.CAPTION else list(Operator)
            return Compare(column, draw(st.sampled_from(operators)), draw(side))
        case "between":
            return Between(column, draw(side), draw(side))
        case "one of":
            return OneOf(column, tuple(draw(st.lists(value, min_size=1, max_size=4))))
        case "null":
            return IsNull(column)
        case "like":
            return Like(column, draw(PATTERNS), draw(st.sampled_from(["!", None, "\\"])))
    latitude, longitude = draw(
        st.sampled_from([each for each in PLACES if each])
        | st.tuples(st.floats(-90, 90), st.floats(-180, 180))
    )
    # Places that are drawn are never this close to the edge of these circles.
    metres = draw(st.sampled_from([0.5, 1.5e3, 3e3, 7e3, 1.1e6, 9.9e6, 1.9e7, 3e7]))
    return Near(latitude, longitude, metres)


FILTERS = st.recursive(
    conditions(),
    lambda inner: st.one_of(
        inner.map(Not),
        st.lists(inner, min_size=2, max_size=3).map(Filter.all_of),
        st.lists(inner, min_size=2, max_size=3).map(Filter.any_of),
    ),
    max_leaves=6,
)

MANY = settings(
    max_examples=1_000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@MANY
@given(filter_=FILTERS, k=st.integers(1, 12), seed=st.integers(0, 2**32 - 1))
def test_answers_are_those_of_a_slow_reading(library, filter_, k, seed):
    read = parse_where(str(filter_))
    assert read == filter_
    assert str(read) == str(filter_)
    found = {target: library.catalog.matching(filter_, target) for target in Target}
    right = {target: slowly(filter_, library.rows, target) for target in Target}
    assert {target: ids.tolist() for target, ids in found.items()} == right
    # And the best of what matches are those of comparing everything.
    query = np.random.default_rng(seed).normal(size=(1, DIM)).astype(np.float32)
    query /= np.linalg.norm(query)
    answer = library.index.search(query, k, among=found[Target.IMAGES])
    allowed = np.isin(library.ids, right[Target.IMAGES])
    scores = np.where(
        allowed, library.vectors.astype(np.float16).astype(np.float32) @ query[0], -np.inf
    )
    best = np.argsort(-scores)[: min(k, allowed.sum())]
    assert answer.ids[0, : len(best)].tolist() == library.ids[best].tolist()
    np.testing.assert_allclose(answer.scores[0, : len(best)], scores[best], atol=1e-5)
    assert (answer.ids[0, len(best) :] == -1).all()


def test_the_rows_hold_what_is_hard(library):
    """Otherwise the random filters would be compared on easy ones."""
    rows = library.rows
    paths = [row.picture.path for row in rows]
    assert any("\udce9" in path for path in paths)
    assert any(unicodedata.normalize("NFC", path) != path for path in paths)
    assert any("\u212a" in path for path in paths)
    assert any(row.picture.latitude == 90 for row in rows)
    assert len({len(row.captions) for row in rows}) == 4
    assert len(rows) > 80


def one_by_hand(catalog, where):
    return catalog.matching(parse_where(where)).tolist()


@pytest.fixture
def small(tmp_path, address_of_catalog):
    """Five pictures: two in June, one in July, one without a date, one that is bytes."""
    catalog = Catalog.create(tmp_path / "catalog.sqlite", address=address_of_catalog())
    facts = [
        ("2023/June.jpg", datetime(2023, 6, 1), "FUJIFILM X100", (0.0, 179.999), 100, 200),
        (
            "a/2023/june end.HEIC",
            datetime(2023, 6, 30, 23, 59, 59),
            None,
            (0.0, -179.999),
            200,
            100,
        ),
        ("a/2023b/july.png", datetime(2023, 7, 1), "Canon", (89.9999, 10.0), 100, 100),
        ("2023.jpg", None, "fuji", None, 300, 100),
        ("b/\udcff.jpg", datetime(2024, 1, 1), "Canon", (89.9999, -170.0), 1, 1),
    ]
    with catalog.write() as transaction:
        encoder_id = transaction.encoder_id(SPEC, "eight")
        transaction.activate(encoder_id)
        for number, (path, taken, camera, place, width, height) in enumerate(facts):
            latitude, longitude = place or (None, None)
            picture = Picture(
                path, 10 - number, 10**18, bytes([number]) * 32, "JPEG", width, height, 1, taken,
                latitude, longitude, camera, "",
            )  # fmt: skip
            id_ = transaction.put_file(picture, encoder_id, np.ones(DIM, dtype=np.float32))
            assert id_ == number + 1
    yield catalog
    catalog.close()


@pytest.mark.parametrize(
    ("where", "ids"),
    [
        ("taken = '2023-06'", [1, 2]),
        ("taken <= '2023-06'", [1, 2]),
        ("taken > '2023-06'", [3, 5]),
        ("taken < '2023-06'", []),
        ("taken != '2023'", [5]),
        ("NOT taken = '2023'", [5]),
        ("taken BETWEEN '2023-06' AND '2023-07-01'", [1, 2, 3]),
        ("taken IN ('2023-07', '2024')", [3, 5]),
        ("taken IS NULL", [4]),
        ("camera LIKE '%FUJI%'", [1, 4]),
        ("camera NOT LIKE '%fuji%'", [3, 5]),
        ("camera = 'fuji'", [4]),
        ("width > height", [2, 4]),
        ("pixels = 20000", [1, 2]),
        ("ext IN ('heic', 'png')", [2, 3]),
        ("ext = 'JPG'", [1, 4, 5]),
        ("folder = ''", [4]),
        ("folder = 'b'", [5]),
        ("name = 'June.jpg'", [1]),
        ("size >= 9", [1, 2]),
        ("modified = '2001-09'", [1, 2, 3, 4, 5]),
        ("taken < modified", []),
        # Two hundred metres across the date line, and twenty across the pole.
        ("near(0, 180, 150m)", [1, 2]),
        ("near(0, 179.999, 100m)", [1]),
        ("near(0, 179.999, 1km)", [1, 2]),
        ("near(90, 0, 12m)", [3, 5]),
        ("near(89.9999, 10, 23m)", [3, 5]),
        ("near(89.9999, 10, 21m)", [3]),
        ("NOT near(0, 180, 1km)", [3, 5]),
        ("near(0, 0, 30000km)", [1, 2, 3, 5]),
        ("width > 99999999999999999999999", []),
    ],
)
def test_by_hand(small, where, ids):
    assert one_by_hand(small, where) == ids


@pytest.mark.parametrize("latitude", [5e-324, 1e-310, 1e-170, -1e-99, 1e-20])
def test_hardly_away_from_the_equator_is_on_it(small, latitude):
    """Products that are no float any more are an error in PostgreSQL."""
    assert small.matching(Near(latitude, 180.0, 150.0)).tolist() == [1, 2]
    assert small.matching(Near(0.0, 180 - abs(latitude), 150.0)).tolist() == [1, 2]
    # As far from the equator, and as far from the meridian of Greenwich, where nothing is.
    assert small.matching(Near(latitude, -latitude, 150.0)).tolist() == []


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("folder:2023/", [1, 2]),
        ("folder:2023", [1, 2]),
        ("folder:/2023", [1]),
        ("folder:2023*", [1, 2, 3]),
        ("folder:A/2023", [2]),
        ("-camera:fuji", [2, 3, 5]),
        ("-after:2023-07", [1, 2, 4]),
        ("-near:0,180,1km", [3, 4, 5]),
        ("-has:gps", [4]),
        ("name:june*", [1, 2]),
        ("is:square ext:jpg", [5]),
        ("has:caption", []),
    ],
)
def test_keys_by_hand(small, text, ids):
    _, filter_ = split_inline(text)
    assert small.matching(filter_).tolist() == ids


@pytest.mark.parametrize(
    ("key", "descending", "ids"),
    [
        (SortKey.DATE, False, [1, 2, 3, 5, 4]),
        (SortKey.DATE, True, [5, 3, 2, 1, 4]),
        (SortKey.SIZE, False, [5, 4, 3, 2, 1]),
        (SortKey.SIZE, True, [1, 2, 3, 4, 5]),
        (SortKey.NAME, False, [4, 3, 2, 1, 5]),
        (SortKey.PATH, False, [4, 1, 2, 3, 5]),
        (SortKey.WIDTH, True, [4, 2, 1, 3, 5]),
        (SortKey.PIXELS, False, [5, 3, 1, 2, 4]),
    ],
)
def test_order(small, monkeypatch, key, descending, ids):
    everything = np.arange(1, 6)
    assert small.in_order(everything, key, descending=descending).tolist() == ids
    assert small.in_order(everything, key, descending=descending, limit=2).tolist() == ids[:2]
    listed = small.listed(None, key, descending=descending, limit=4)
    assert [hit.id for hit in listed] == ids[:4]
    some = [each for each in ids if each != 3]
    asked = np.array([5, 4, 2, 1, 99])
    assert small.in_order(asked, key, descending=descending).tolist() == some
    # More ids than one statement takes.
    monkeypatch.setattr(tables, "PARAMETERS_PER_STATEMENT", 2)
    assert small.in_order(asked, key, descending=descending).tolist() == some


def test_what_matches_is_listed_in_an_order(small):
    filter_ = parse_where("camera IS NOT NULL")
    hits = small.listed(filter_, SortKey.DATE, descending=True, limit=3)
    assert [(hit.rank, hit.path) for hit in hits] == [
        (1, "b/\udcff.jpg"), (2, "a/2023b/july.png"), (3, "2023/June.jpg")
    ]  # fmt: skip
    assert all(math.isnan(hit.score) for hit in hits)
    assert len(small.listed(None, SortKey.NAME)) == 5
    assert small.listed(parse_where("width > 5000"), SortKey.NAME) == ()


def test_captions_are_listed_with_their_pictures(library):
    catalog, rows = library.catalog, library.rows
    hits = catalog.listed(parse_where("caption = 'a dog'"), SortKey.PATH, target=Target.CAPTIONS)
    right = [row for row in rows if "a dog" in [text for _, text in row.captions]]
    assert {hit.id for hit in hits} == {row.id for row in right}
    assert {hit.caption for hit in hits} == {"a dog"}


@pytest.mark.parametrize(
    "attack",
    [
        "'; DROP TABLE file; --",
        "' OR '1'='1",
        '" OR 1=1 --',
        "x' UNION SELECT sha256 FROM file --",
        "%' ESCAPE '%",
        ":id_1 ? %s {0}",
        "\\",
        "a\0b",
    ],
)
def test_what_a_user_writes_is_never_sql(small, attack):
    doubled = attack.replace("'", "''")
    with small._connect() as connection:
        own = clauses_of(connection)
    for where in (
        f"camera = '{doubled}'",
        f"camera LIKE '{doubled}'",
        f"caption LIKE '%{doubled}%'",
        f"name IN ('{doubled}')",
        f"ext = '{doubled}'",
        f"folder >= '{doubled}' AND folder < '{doubled}'",
    ):
        assert one_by_hand(small, where) == []
        statement, same = (
            select(tables.file.c.id).where(own.clause(parse_where(each), Target.IMAGES))
            for each in (where, where.replace(doubled, "harmless"))
        )
        # One statement, whatever the text: it is in the parameters.
        if "." not in attack and "\0" not in attack:
            assert str(statement) == str(same)
    _, inline = split_inline(f'camera:"{attack.replace(chr(34), "")}"')
    assert small.matching(inline).tolist() == []
    assert small.counts().files == 5


@pytest.mark.parametrize(
    "text",
    [
        " OR ".join(
            ["name = 'a'", "ext = 'b'", "near(1, 2)", "camera LIKE '%ä%'", "caption LIKE '%x%'"]
            * 80
        ),
        "taken IN (" + ", ".join(["'1999'"] * 400) + ")",
        "NOT (" * 24 + " AND ".join(["NOT name = 'b'"] * 400) + ")" * 24,
    ],
    ids=["or", "in", "nested"],
)
def test_the_largest_filters_are_not_too_large(small, text):
    filter_ = parse_where(text)
    ids = [1, 2, 3, 4, 5] if text.startswith("NOT") else []
    assert small.matching(filter_).tolist() == ids
    # One given with --where and one within the question.
    other = parse_where(" OR ".join(["ext = 'jpg'"] * 400))
    assert small.matching(Filter.all_of([filter_, other])).tolist() == [
        id_ for id_ in ids if id_ in (1, 4, 5)
    ]


@pytest.mark.parametrize(
    ("zone", "day"), [("UTC", 9), ("America/New_York", 8), ("Pacific/Kiritimati", 9)]
)
def test_moments_are_compared_by_the_clock_of_this_machine(small, monkeypatch, zone, day):
    """The files are of 2001-09-09 01:46:40 UTC."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert one_by_hand(small, f"modified = '2001-09-0{day}'") == [1, 2, 3, 4, 5]
        assert one_by_hand(small, f"modified = '2001-09-0{17 - day}'") == []
        assert one_by_hand(small, "modified < indexed") == [1, 2, 3, 4, 5]
        assert one_by_hand(small, "modified > taken") == []
        today = datetime.now()
        assert len(one_by_hand(small, f"indexed >= '{today - timedelta(1):%Y-%m-%d}'")) == 5
        assert one_by_hand(small, f"indexed > '{today + timedelta(1):%Y-%m-%d}'") == []
    finally:
        monkeypatch.undo()
        time.tzset()


def test_mathematics_is_brought_where_sqlite_has_none():
    plain = sqlite3.connect(":memory:")

    class Without:
        """A connection that has never heard of a sine."""

        def execute(self, *_):
            raise sqlite3.OperationalError("no such function: sin")

        create_function = plain.create_function

    functions.register(Without())
    sine, nothing = plain.execute("SELECT sin(0.5), cos(NULL)").fetchone()
    assert sine == math.sin(0.5)
    assert nothing is None


def test_a_read_only_library_is_filtered_too(small):
    small.close()
    if small.served:
        return  # see test_postgresql.py
    path = small.path
    path.chmod(0o444)
    opened = Catalog.open(path)
    assert one_by_hand(opened, "name LIKE 'june%'") == [1, 2]
    opened.close()
