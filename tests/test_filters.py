"""What filters mean as texts: the language of `--where`, and the keys within a question."""

from datetime import datetime

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmsearch.errors import QueryError
from mmsearch.retrieval.filters import Filter, parse_where, split_inline
from mmsearch.retrieval.filters.dates import Date
from mmsearch.retrieval.filters.texts import Pattern, part
from mmsearch.retrieval.filters.tree import (
    And,
    Between,
    Column,
    Compare,
    IsNull,
    Like,
    Near,
    Not,
    OneOf,
    Operator,
    Or,
)

LARGE = Compare(Column.WIDTH, Operator.ABOVE, 2000)
FUJI = Like(Column.CAMERA, "%fuji%")
JUNE = Date.parse("2023-06")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("width > 2000", LARGE),
        ("WIDTH>2000", LARGE),
        ("2000 < width", LARGE),
        ("width > height", Compare(Column.WIDTH, Operator.ABOVE, Column.HEIGHT)),
        ("width <> 3", Compare(Column.WIDTH, Operator.UNEQUAL, 3)),
        ("width == 3", Compare(Column.WIDTH, Operator.EQUAL, 3)),
        ("latitude <= -12.5", Compare(Column.LATITUDE, Operator.AT_MOST, -12.5)),
        ("size >= 4MB", Compare(Column.SIZE, Operator.AT_LEAST, 4_000_000)),
        (
            "size >= 1.5GB",
            Compare(Column.SIZE, Operator.AT_LEAST, 1_500_000_000),
        ),
        ("size < 2kib", Compare(Column.SIZE, Operator.BELOW, 2048)),
        ("pixels > 12MP", Compare(Column.PIXELS, Operator.ABOVE, 12_000_000)),
        ("camera LIKE '%fuji%'", FUJI),
        ('camera like "%fuji%"', FUJI),
        ("camera NOT LIKE '%fuji%'", Not(FUJI)),
        ("name LIKE '100!%' ESCAPE '!'", Like(Column.NAME, "100!%", "!")),
        ("camera = 'O''Hara'", Compare(Column.CAMERA, Operator.EQUAL, "O'Hara")),
        ("ext IN ('heic', '.JPG')", OneOf(Column.EXT, ("heic", "jpg"))),
        ("ext NOT IN ('heic')", Not(OneOf(Column.EXT, ("heic",)))),
        ("latitude IS NULL", IsNull(Column.LATITUDE)),
        ("latitude IS NOT NULL", Not(IsNull(Column.LATITUDE))),
        ("taken = '2023-06'", Compare(Column.TAKEN, Operator.EQUAL, JUNE)),
        ("taken BETWEEN '2023-06' AND '2023-06'", Between(Column.TAKEN, JUNE, JUNE)),
        ("width NOT BETWEEN 1 AND height", Not(Between(Column.WIDTH, 1, Column.HEIGHT))),
        ("near(48.85, 2.35, 500m)", Near(48.85, 2.35, 500.0)),
        ("NEAR(48.85, -2.35)", Near(48.85, -2.35, 10_000.0)),
        # NOT binds closest, then AND, then OR.
        (
            "NOT width > 2000 AND latitude IS NULL OR camera LIKE '%fuji%'",
            Or((And((Not(LARGE), IsNull(Column.LATITUDE))), FUJI)),
        ),
        (
            "width > 2000 AND (latitude IS NULL OR NOT (camera LIKE '%fuji%'))",
            And((LARGE, Or((IsNull(Column.LATITUDE), Not(FUJI))))),
        ),
        (
            "(width > 2000 AND latitude IS NULL) AND camera LIKE '%fuji%'",
            And((LARGE, IsNull(Column.LATITUDE), FUJI)),
        ),
    ],
)
def test_a_text_means_this(text, meant):
    assert parse_where(text) == meant
    assert parse_where(str(meant)) == meant


def test_canonical_texts():
    assert str(parse_where("not(Width>1)and ext in('a')")) == "NOT width > 1 AND ext IN ('a')"
    assert str(parse_where("not camera not like 'x'")) == "NOT camera NOT LIKE 'x'"
    assert str(parse_where("taken<'2023-06-01t12:30'")) == "taken < '2023-06-01 12:30'"


@pytest.mark.parametrize(
    ("text", "place", "told"),
    [
        ("widht > 3", "^^^^^", "Did you mean width?"),
        ("width > 3 AND filename = 'a'", " " * 14 + "^^^^^^^^", "Did you mean name?"),
        ("taken > 2023", " " * 8 + "^^^^", "taken is a date, and this is a number"),
        ("taken > 2023-06", " " * 8 + "^^^^^^^", "Write '2023-06'"),
        ("taken > '2023-13'", " " * 8 + "^^^^^^^^^", "month must be in 1..12"),
        ("taken = '2023-02-30'", " " * 8 + "^" * 12, "YYYY-MM-DD"),
        ("taken = 'June'", " " * 8 + "^^^^^^", "YYYY-MM-DD"),
        ("taken = '2023-06-01T12:00Z'", " " * 8 + "^" * 19, "YYYY-MM-DD"),
        ("width = '3'", " " * 8 + "^^^", "width is a number, and this is a text"),
        ("camera = 3", " " * 9 + "^", "camera is a text, and this is a number"),
        ("camera > width", " " * 9 + "^^^^^", "width is a number and camera is a text"),
        ("width LIKE '3'", " " * 6 + "^^^^", "LIKE compares texts"),
        ("camera LIKE fuji", " " * 12 + "^^^^", "a text in quotes"),
        ("camera LIKE 'a' ESCAPE 'ab'", " " * 23 + "^^^^", "one character"),
        ("camera = fuji", " " * 9 + "^^^^", "Texts stand in quotes"),
        ("camera = 'fuji", " " * 9 + "^", "not closed"),
        ("width = NULL", " " * 8 + "^^^^", "IS NULL"),
        ("width IS 3", " " * 9 + "^", "NULL or NOT NULL"),
        ("width", " " * 5 + "^", "LIKE, IN, BETWEEN"),
        ("width > ", " " * 8 + "^", "ends too early"),
        ("width > 3 height > 2", " " * 10 + "^^^^^^", "AND, OR or the end"),
        ("(width > 3", " " * 10 + "^", '")"'),
        ("width > 3)", " " * 9 + "^", "AND, OR or the end"),
        ("width > 3 AND OR", " " * 14 + "^^", "a column"),
        ("3 > 2", "^", "needs a column"),
        ("width > 3MB", " " * 8 + "^^^", "without a unit"),
        ("size > 3XB", " " * 7 + "^^^", "KB"),
        ("size > 1e999", " " * 7 + "^^^^^", "too large"),
        ("size > 1e999999999MB", " " * 7 + "^" * 13, "too large"),
        ("ext IN ()", " " * 8 + "^", "a text in quotes"),
        ("ext IN ('a' 'b')", " " * 12 + "^^^", '","'),
        ("near(91, 0)", " " * 5 + "^^", "-90 to 90"),
        ("near(0, 0, 0km)", " " * 11 + "^^^", "above 0"),
        ("near(0, 0, 3mi)", " " * 11 + "^^^", "M, KM"),
        ("caption > 'a'", " " * 8 + "^", "caption LIKE"),
        ("caption = name", " " * 10 + "^^^^", "caption LIKE"),
        ("width > 3; DROP TABLE file", " " * 9 + "^", "means nothing"),
        ("width > 3 -- x", " " * 10 + "^", "means nothing"),
        ("camera = 'a\ud800'", " " * 9 + "^^^^", "surrogate"),
    ],
)
def test_errors_point_at_the_place(text, place, told):
    with pytest.raises(QueryError) as caught:
        parse_where(text)
    _, shown, carets, *_ = str(caught.value).split("\n")
    assert shown == "  " + text.replace("\ud800", " ")
    assert carets == "  " + place
    assert told in str(caught.value)


def test_unknown_columns_are_answered_with_those_there_are():
    with pytest.raises(QueryError, match=r"Columns: path, name, folder, ext, .*, indexed, caption"):
        parse_where("colour = 'red'")


def test_what_is_shown_fits_a_line_and_steers_no_terminal():
    with pytest.raises(QueryError) as caught:
        parse_where("camera = '" + "漢字" * 100 + "' AND \x1b[31m > 3")
    _, shown, carets, *_ = str(caught.value).split("\n")
    assert "\x1b" not in str(caught.value)
    assert len(shown) < 100
    # Two columns for each of these characters.
    assert carets.index("^") == shown.index("' AND") + 6 + sum(c in "漢字" for c in shown)


def test_limits_are_said():
    with pytest.raises(QueryError, match="the most that is read"):
        parse_where("width > 3 " + " " * 10_000)
    with pytest.raises(QueryError, match="more than 400 comparisons"):
        parse_where(" OR ".join(["width > 3"] * 401))
    with pytest.raises(QueryError, match="more than 400 comparisons"):
        parse_where(f"ext IN ({', '.join(['1'.join(chr(39) * 2)] * 401)})")
    with pytest.raises(QueryError, match="nested"):
        parse_where("(" * 60 + "width > 3" + ")" * 60)
    with pytest.raises(QueryError, match="nested"):
        parse_where("NOT " * 1000 + "width > 3")
    with pytest.raises(QueryError, match="empty"):
        parse_where("  ")


@given(
    st.text(max_size=60)
    | st.lists(
        st.sampled_from(
            [
                "width",
                "taken",
                "'2023'",
                "(",
                ")",
                "AND",
                "OR",
                "NOT",
                ">",
                "3",
                "LIKE",
                "IN",
                ",",
                "IS",
                "NULL",
                "near",
                "BETWEEN",
                "camera",
                "'%a'",
                "-",
                "10km",
                "ESCAPE",
            ]
        )
    ).map(" ".join)
)
@settings(max_examples=500)
@example("width>3AND(width<4)")
def test_any_text_is_a_filter_or_a_query_error(text):
    try:
        found = parse_where(text)
    except QueryError:
        return
    assert parse_where(str(found)) == found


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("2023", (2023, 1, 1), (2024, 1, 1)),
        ("2024-02", (2024, 2, 1), (2024, 3, 1)),
        ("2023-12", (2023, 12, 1), (2024, 1, 1)),
        ("2024-02-29", (2024, 2, 29), (2024, 3, 1)),
        ("2023-08-12 17:02", (2023, 8, 12, 17, 2), (2023, 8, 12, 17, 3)),
        ("2023-08-12T17:02:59", (2023, 8, 12, 17, 2, 59), (2023, 8, 12, 17, 3)),
        (
            "2023-08-12 17:02:59.25",
            (2023, 8, 12, 17, 2, 59, 250_000),
            (2023, 8, 12, 17, 2, 59, 260_000),
        ),
    ],
)
def test_dates_are_spans(text, start, end):
    date = Date.parse(text)
    assert (date.start, date.end) == (datetime(*start), datetime(*end))


@pytest.mark.parametrize("text", ["9999", "9999-12", "9999-12-31", "9999-12-31 23:59"])
def test_the_calendar_ends(text):
    assert Date.parse(text).end == datetime.max


def test_parts_of_paths():
    assert part("a/b/c.tar/IMG.1.JPG", "folder") == "a/b/c.tar"
    assert part("a/b/IMG.1.JPG", "name") == "IMG.1.JPG"
    assert part("a/b/IMG.1.JPG", "ext") == "jpg"
    assert [part("17", each) for each in ("name", "folder", "ext")] == ["17", "", ""]
    assert part("part-0.parquet/17", "ext") == ""


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("%", "", True),
        ("", "", True),
        ("", "a", False),
        ("_", "a", True),
        ("_%_", "a", False),
        ("a%b%c", "aXbXbXc", True),
        ("a%ab", "ab", False),
        ("%münchen%", "MU\u0308NCHEN.JPG", True),
        ("STRASSE", "Straße", True),
        ("100\\%", "100%", True),
        ("100\\%", "1000", False),
        ("a.c", "abc", False),
        ("a%c", "a\nc", True),
    ],
)
def test_like(pattern, text, matches):
    assert Pattern(pattern, "\\").matches(text) is matches


def test_like_takes_no_exponential_time():
    # Backtracking would not come back.
    assert not Pattern("%a" * 200 + "%b").matches("a" * 5000)


@pytest.mark.parametrize(
    ("text", "rest", "where"),
    [
        ("sunset after:2023-06", "sunset", "taken >= '2023-06'"),
        ("before:2024 sunset", "sunset", "taken < '2024'"),
        ("on:2023-08-12", "", "taken = '2023-08-12'"),
        ("red CAMERA:fuji bike", "red bike", "camera LIKE '%fuji%'"),
        ('camera:"FUJI X100" x', "x", "camera LIKE '%FUJI X100%'"),
        ("camera:a camera:b", "", "camera LIKE '%a%' OR camera LIKE '%b%'"),
        ("-camera:fuji", "", "camera IS NULL OR camera NOT LIKE '%fuji%'"),
        ("camera:100%", "", r"camera LIKE '%100\%%' ESCAPE '\'"),
        ("ext:heic,.JPG", "", "ext IN ('heic', 'jpg')"),
        ("-ext:png", "", "NOT ext = 'png'"),
        ("ext:png ext:jpg is:square", "", "(ext = 'png' OR ext = 'jpg') AND width = height"),
        ("folder:2023/", "", "path LIKE '2023/%' OR path LIKE '%/2023/%'"),
        (
            "folder:a_b/c",
            "",
            r"path LIKE 'a\_b/c/%' ESCAPE '\' OR path LIKE '%/a\_b/c/%' ESCAPE '\'",
        ),
        ("folder:/2023", "", "path LIKE '2023/%'"),
        ("name:IMG_*", "", r"name LIKE 'IMG\_%' ESCAPE '\'"),
        ("name:2041", "", "name LIKE '%2041%'"),
        ("name:IMG(1).jpg", "", "name LIKE '%IMG(1).jpg%'"),
        ("near:48.85,2.35", "", "NEAR(48.85, 2.35, 10km)"),
        ("near:48.85,-2.35,500m", "", "NEAR(48.85, -2.35, 500m)"),
        ("-near:1,2", "", "latitude IS NULL OR longitude IS NULL OR NOT NEAR(1.0, 2.0, 10km)"),
        ("width:>2000 width:<=3000", "", "width > 2000 AND width <= 3000"),
        ("size:>4MB pixels:12MP", "", "size > 4000000 AND pixels = 12000000"),
        ("is:portrait", "", "width < height"),
        ("is:landscape has:caption", "", "width > height AND caption IS NOT NULL"),
        ("-has:gps", "", "NOT (latitude IS NOT NULL AND longitude IS NOT NULL)"),
        ("-has:date", "", "taken IS NULL"),
        ("dog AND ext:jpg", "dog", "ext = 'jpg'"),
        ("ext:jpg AND dog", "dog", "ext = 'jpg'"),
        ("dog AND ext:jpg AND cat", "dog AND cat", "ext = 'jpg'"),
        ("dog ext:jpg AND cat", "dog AND cat", "ext = 'jpg'"),
        ("(dog  OR cat) ext:jpg", "(dog  OR cat)", "ext = 'jpg'"),
        ('"a  b"  c ext:jpg', '"a  b"  c', "ext = 'jpg'"),
    ],
)
def test_keys_within_a_question(text, rest, where):
    assert split_inline(text) == (rest, parse_where(where))


@pytest.mark.parametrize(
    "text",
    [
        "12:30",
        "a clock at 12:30",
        "http://example.org/a",
        "note: remember",
        'a sign that says "on: sale"',
        '"ext:jpg"',
        "text:hello",
        "pre-ext:jpg",
        "--ext:jpg",
        '5" pipe',
        "  two  spaces ",
        "",
    ],
)
def test_what_has_no_known_key_stays_text(text):
    assert split_inline(text) == (text, None)


@pytest.mark.parametrize(
    ("text", "place", "told"),
    [
        ("dog after:june", " " * 10 + "^^^^", "YYYY-MM-DD"),
        ("dog after: 2023", " " * 4 + "^^^^^^", "without a space"),
        ('camera:"fuji', " " * 7 + "^", "not closed"),
        ("near:Lisbon", " " * 5 + "^^^^^^", "near:48.85,2.35,10km"),
        ("near:48.85,200", " " * 11 + "^^^", "-180 to 180"),
        ("near:1,2,3mi", " " * 9 + "^^^", "M, KM"),
        ("width:>big", " " * 7 + "^^^", "cannot be read"),
        ("width:>", " " * 7 + "^", "cannot be read"),
        ("is:round", " " * 3 + "^^^^^", "portrait, landscape, square"),
        ("has:fun", " " * 4 + "^^^", "caption, gps, date"),
        ("ext:a,,b", " " * 4 + "^^^^", "ext:heic,jpg"),
        ("folder:/", " " * 7 + "^", "names no folder"),
        ("(dog ext:jpg)", " " * 5 + "^^^^^^^", "in parentheses"),
        ("dog OR ext:jpg", " " * 7 + "^^^^^^^", "after OR"),
        ("ext:jpg OR dog", "^^^^^^^", "before OR"),
        ("dog NOT ext:jpg", " " * 8 + "^^^^^^^", "after NOT"),
    ],
)
def test_bad_values_within_a_question_are_pointed_at(text, place, told):
    with pytest.raises(QueryError) as caught:
        split_inline(text)
    _, shown, carets, *_ = str(caught.value).split("\n")
    assert (shown, carets) == (f"  {text}", f"  {place}")
    assert told in str(caught.value)


@given(
    st.text(max_size=60)
    | st.lists(
        st.sampled_from(
            [
                "dog",
                "AND",
                "OR",
                "NOT",
                "(",
                ")",
                '"',
                "ext:jpg",
                "-is:square",
                "near:1,2",
                "after:2023",
                "before:",
                "camera:",
                "name:a*",
                "size:>4MB",
            ]
        )
    ).map(" ".join)
)
@settings(max_examples=500)
def test_any_question_is_split_or_a_query_error(text):
    try:
        rest, found = split_inline(text)
    except QueryError:
        return
    assert found is None or parse_where(str(found)) == found
    assert (found is None) == (rest == text) or not text
    assert split_inline(rest)[0] == rest


def test_filters_are_joined():
    assert Filter.all_of([]) is None
    assert Filter.all_of([None, LARGE, None]) is LARGE
    assert Filter.all_of([LARGE, And((FUJI, LARGE))]) == And((LARGE, FUJI, LARGE))
    assert Filter.any_of([LARGE, Or((FUJI, LARGE))]) == Or((LARGE, FUJI, LARGE))
