from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mmsearch.errors import SourceError
from mmsearch.retrieval.pair_formats import CAPTION_COLUMNS, PATH_COLUMNS
from mmsearch.retrieval.pairs import Pair, locate_all, read_pairs

SUFFIXES = (".tsv", ".csv", ".jsonl", ".ndjson", ".json", ".parquet")
ROWS = [("a.jpg", 'a "quoted" dog'), ("b/ü.png", "a cat, asleep"), ("a.jpg", "'s morgens")]


def tsv(rows: list[tuple[str, str]]) -> bytes:
    return "".join("\t".join(row) + "\n" for row in rows).encode()


def comma(rows: list[tuple[str, str]]) -> bytes:
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows(rows)
    return stream.getvalue().encode()


def jsonl(rows: list[tuple[str, str]]) -> bytes:
    records = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def listed(rows: list[tuple[str, str]]) -> bytes:
    return json.dumps([dict(zip(rows[0], row, strict=True)) for row in rows[1:]]).encode()


def coco(rows: list[tuple[str, str]]) -> bytes:
    names = list(dict.fromkeys(path for path, _ in rows[1:]))
    return json.dumps(
        {
            "info": {},
            "images": [{"id": i * 7, "file_name": name} for i, name in enumerate(names)],
            "annotations": [
                {"id": i, "image_id": names.index(path) * 7, "caption": caption}
                for i, (path, caption) in enumerate(rows[1:])
            ],
        }
    ).encode()


def parquet(rows: list[tuple[Any, Any]]) -> bytes:
    stream = io.BytesIO()
    columns = {name: [row[i] for row in rows[1:]] for i, name in enumerate(rows[0])}
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


WRITERS: dict[str, tuple[str, Callable[[list[tuple[str, str]]], bytes]]] = {
    "tsv": ("pairs.tsv", tsv),
    "csv": ("pairs.CSV", comma),
    "jsonl": ("pairs.jsonl", jsonl),
    "ndjson": ("pairs.ndjson", jsonl),
    "list": ("pairs.json", listed),
    "coco": ("pairs.json", coco),
    "parquet": ("pairs.parquet", parquet),
}


def read(folder: Path, name: str, content: bytes | str) -> list[Pair]:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_pairs(path)


def complaint(folder: Path, name: str, content: bytes | str) -> str:
    with pytest.raises(SourceError) as caught:
        read(folder, name, content)
    assert str(folder / name) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("format_", WRITERS)
def test_every_format_gives_the_same_pairs(format_: str, tmp_path: Path) -> None:
    name, write = WRITERS[format_]
    pairs = read(tmp_path, name, write([("path", "caption"), *ROWS]))
    assert [(pair.path, pair.caption) for pair in pairs] == ROWS
    first = 2 if format_ in {"tsv", "csv"} else 1
    assert [pair.line for pair in pairs] == [first, first + 1, first + 2]


@pytest.mark.parametrize("format_", [name for name in WRITERS if name != "coco"])
@pytest.mark.parametrize(
    ("path", "caption"),
    [*((path, "caption") for path in PATH_COLUMNS), *(("path", text) for text in CAPTION_COLUMNS)],
)
def test_columns_go_by_several_names(format_: str, path: str, caption: str, tmp_path: Path) -> None:
    name, write = WRITERS[format_]
    rows = [(caption.upper(), f" {path.title()} "), *((text, file) for file, text in ROWS)]
    assert [(p.path, p.caption) for p in read(tmp_path, name, write(rows))] == ROWS


@pytest.mark.parametrize("format_", [name for name in WRITERS if name != "parquet"])
def test_byte_order_mark_and_windows_line_ends(format_: str, tmp_path: Path) -> None:
    name, write = WRITERS[format_]
    text = write([("path", "caption"), *ROWS]).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    pairs = read(tmp_path, name, b"\xef\xbb\xbf" + text)
    assert [(pair.path, pair.caption) for pair in pairs] == ROWS


def test_more_columns_and_blank_lines_are_ignored(tmp_path: Path) -> None:
    text = "id\tcaption\tpath\tsource\n\n1\ta dog\ta.jpg\tweb\n\n2\ta cat\tb.jpg\n"
    assert read(tmp_path, "pairs.tsv", text) == [
        Pair("a.jpg", "a dog", 3),
        Pair("b.jpg", "a cat", 5),
    ]


def test_a_quotation_mark_in_tsv_swallows_nothing(tmp_path: Path) -> None:
    pairs = read(tmp_path, "pairs.tsv", 'path\tcaption\na.jpg\t"a dog\nb.jpg\ta 24" screen\n')
    assert pairs == [Pair("a.jpg", '"a dog', 2), Pair("b.jpg", 'a 24" screen', 3)]


def test_a_caption_over_two_lines_of_csv_becomes_one_line(tmp_path: Path) -> None:
    pairs = read(tmp_path, "pairs.csv", 'path,caption\na.jpg,"a ""big""\n dog"\nb.jpg,a cat\n')
    assert pairs == [Pair("a.jpg", 'a "big" dog', 3), Pair("b.jpg", "a cat", 4)]


def test_lists_of_captions_give_a_pair_each(tmp_path: Path) -> None:
    expected = [Pair("a.jpg", "a dog", 1), Pair("a.jpg", "a hound", 1), Pair("b.jpg", "a cat", 2)]
    records = [
        {"image": "a.jpg", "captions": ["a dog", "a hound"]},
        {"image": "b.jpg", "captions": ["a cat"]},
    ]
    lines = "\n".join(map(json.dumps, records))
    assert read(tmp_path, "pairs.jsonl", lines) == expected
    assert read(tmp_path, "pairs.json", json.dumps(records)) == expected
    table = parquet([("image", "captions"), *((r["image"], r["captions"]) for r in records)])
    assert read(tmp_path, "pairs.parquet", table) == expected


def test_half_characters_from_json_do_not_reach_the_catalog(tmp_path: Path) -> None:
    (pair,) = read(tmp_path, "pairs.jsonl", r'{"path": "a.jpg", "caption": "a \ud83d dog"}')
    assert pair.caption == "a ? dog"


@pytest.mark.parametrize("format_", [name for name in WRITERS if name != "coco"])
def test_a_missing_column_is_named_with_those_there_are(format_: str, tmp_path: Path) -> None:
    name, write = WRITERS[format_]
    message = complaint(tmp_path, name, write([("path", "colour"), *ROWS]))
    assert "'caption'" in message
    assert "path, colour" in message


@pytest.mark.parametrize("format_", WRITERS)
@pytest.mark.parametrize("broken", [("c.jpg", "  "), ("  ", "a dog")])
def test_an_empty_field_is_named_with_its_row(
    format_: str, broken: tuple[str, str], tmp_path: Path
) -> None:
    name, write = WRITERS[format_]
    message = complaint(tmp_path, name, write([("path", "caption"), *ROWS, broken]))
    row = 5 if format_ in {"tsv", "csv"} else 4
    assert f"row {row}: the {'path' if broken[0] == '  ' else 'caption'} is empty" in message


@pytest.mark.parametrize("value", ["null", "7", '["a dog", null]', '{"en": "a dog"}', "true"])
def test_values_that_are_no_text_are_refused(value: str, tmp_path: Path) -> None:
    record = f'{{"path": "a.jpg", "caption": {value}}}'
    assert "row 1" in complaint(tmp_path, "pairs.jsonl", record)
    record = f'{{"caption": "a dog", "path": {value}}}'
    assert "row 1" in complaint(tmp_path, "pairs.jsonl", record)


def test_no_value_in_parquet_is_refused(tmp_path: Path) -> None:
    for row in ((None, "a dog"), ("a.jpg", None)):
        table = parquet([("path", "caption"), ("a.jpg", "a dog"), row])
        assert "row 2" in complaint(tmp_path, "pairs.parquet", table)


@pytest.mark.parametrize(("name", "tab"), [("pairs.tsv", "\t"), ("pairs.csv", ",")])
def test_a_short_row_is_named_with_its_line(name: str, tab: str, tmp_path: Path) -> None:
    message = complaint(tmp_path, name, f"path{tab}caption\na.jpg{tab}a dog\nb.jpg\n")
    assert "line 3: 1 columns, 2 were expected" in message


@pytest.mark.parametrize("name", ["pairs.txt", "pairs", "pairs.tsv.gz"])
def test_an_unknown_suffix_lists_the_known_ones(name: str, tmp_path: Path) -> None:
    message = complaint(tmp_path, name, "path\tcaption\n")
    assert all(suffix in message for suffix in SUFFIXES)


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for name in ("missing.csv", "folder.csv"):
        with pytest.raises(SourceError, match=name):
            read_pairs(tmp_path / name)


@pytest.mark.parametrize("name", ["pairs.json", "pairs.jsonl"])
@pytest.mark.parametrize(
    "text",
    ['{"path": ', "[" * 100_000, '{"path": "a.jpg", "caption": ' + "9" * 5_000 + "}", "\0"],
    ids=["cut", "deep", "long number", "NUL"],
)
def test_bad_json_is_told(name: str, text: str, tmp_path: Path) -> None:
    assert "JSON" in complaint(tmp_path, name, text)


@pytest.mark.parametrize("record", ["[]", '"a dog"', "7", "null"])
def test_json_lines_that_are_no_objects_are_named(record: str, tmp_path: Path) -> None:
    good = '{"path": "a.jpg", "caption": "a dog"}'
    assert "row 3" in complaint(tmp_path, "pairs.jsonl", f"{good}\n\n{record}\n")
    assert "row 3" in complaint(tmp_path, "pairs.jsonl", f"{good}\n\n{record}}}\n")


@pytest.mark.parametrize(
    "document",
    [
        {},
        7,
        None,
        "text",
        {"images": [], "annotations": [{"image_id": 1, "caption": "a dog"}]},
        {"images": [{"id": 1}], "annotations": []},
        {"images": [{"id": [], "file_name": "a.jpg"}], "annotations": []},
        {"images": {"id": 1}, "annotations": []},
        {"images": [], "annotations": [3]},
    ],
)
def test_json_that_is_neither_coco_nor_a_list_is_told(document: object, tmp_path: Path) -> None:
    assert "COCO" in complaint(tmp_path, "pairs.json", json.dumps(document))


def karpathy() -> dict[str, Any]:
    """Two pictures of each of COCO's splits would do: here one, and two of the test."""

    def image(name: str, split: str, *texts: str) -> dict[str, Any]:
        return {
            "filepath": "val2014",
            "filename": name,
            "split": split,
            "imgid": 0,
            "sentids": [1],
            "sentences": [{"tokens": text.split(), "raw": text, "imgid": 0} for text in texts],
        }

    return {
        "dataset": "coco",
        "images": [
            image("a.jpg", "test", "A man with a red helmet.", "A  man \n rides."),
            image("b.jpg", "restval", "A woman holding a cake."),
            image("c.jpg", "train", "A child."),
            image("d.jpg", "val", "A boy with a broom."),
            image("e.jpg", "test", "A kitchen."),
        ],
    }


def test_karpathy_s_splits_are_chosen_by_name(tmp_path: Path) -> None:
    source = tmp_path / "dataset_coco.json"
    source.write_text(json.dumps(karpathy()))
    test = [
        Pair("val2014/a.jpg", "A man with a red helmet.", 1),
        Pair("val2014/a.jpg", "A man rides.", 1),
        Pair("val2014/e.jpg", "A kitchen.", 5),
    ]
    rest = [
        Pair("val2014/b.jpg", "A woman holding a cake.", 2),
        Pair("val2014/c.jpg", "A child.", 3),
    ]
    val = [Pair("val2014/d.jpg", "A boy with a broom.", 4)]
    assert read_pairs(source) == sorted([*test, *rest, *val], key=lambda pair: pair.line)
    assert read_pairs(source, "test") == read_pairs(source, default="test") == test
    assert read_pairs(source, "val", default="test") == val
    assert read_pairs(source, split="train") == rest
    assert read_pairs(source, split="restval") == rest[:1]
    with pytest.raises(SourceError, match=r"no split 'dev'.* restval, test, train, val"):
        read_pairs(source, "dev")


def test_flickr_s_pictures_lie_in_one_folder(tmp_path: Path) -> None:
    document = karpathy()
    for image in document["images"]:
        del image["filepath"]
    (first, *_) = read(tmp_path, "dataset_flickr30k.json", json.dumps(document))
    assert first.path == "a.jpg"


@pytest.mark.parametrize("format_", WRITERS)
def test_a_file_without_splits_has_none_to_choose(format_: str, tmp_path: Path) -> None:
    name, write = WRITERS[format_]
    content = write([("path", "caption"), *ROWS])
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match="no splits to choose 'test' from"):
        read_pairs(tmp_path / name, "test")
    assert read_pairs(tmp_path / name, default="test") == read_pairs(tmp_path / name)


@pytest.mark.parametrize("lacking", ["filename", "split", "sentences"])
@pytest.mark.parametrize("instead", [None, 7, {}])
def test_an_image_of_karpathy_s_that_lacks_something_is_named(
    lacking: str, instead: object, tmp_path: Path
) -> None:
    document = karpathy()
    document["images"][2][lacking] = instead
    if instead is None:
        del document["images"][2][lacking]
    if lacking == "sentences" and instead == {}:
        document["images"][2]["sentences"] = [{"tokens": ["a"]}]
    assert "row 3" in complaint(tmp_path, "pairs.json", json.dumps(document))
    document["images"][2] = "c.jpg"
    assert "row 3" in complaint(tmp_path, "pairs.json", json.dumps(document))


def test_an_empty_caption_matters_in_its_own_split_only(tmp_path: Path) -> None:
    document = karpathy()
    document["images"][3]["sentences"][0]["raw"] = " "
    assert "row 4: the caption is empty" in complaint(tmp_path, "x.json", json.dumps(document))
    assert len(read_pairs(tmp_path / "x.json", "test")) == 3
    document["images"][3]["sentences"] = []
    (tmp_path / "x.json").write_text(json.dumps(document))
    with pytest.raises(SourceError, match="holds no pairs"):
        read_pairs(tmp_path / "x.json", "val")


def test_bare_names_are_looked_for_where_no_path_leads_anywhere() -> None:
    flat = {"a.jpg": 1, "b.jpg": 2, "c.jpg": 3}.get
    assert locate_all(["x/a.jpg", "y\\b.jpg"], flat) == {"x/a.jpg": 1, "y\\b.jpg": 2}
    assert locate_all(["x/a.jpg", "x/z.jpg"], flat) == {"x/a.jpg": 1, "x/z.jpg": None}
    # One path that leads somewhere shows that paths are meant.
    assert locate_all(["x/a.jpg", "b.jpg"], flat) == {"x/a.jpg": None, "b.jpg": 2}
    # The same name twice cannot mean one picture.
    assert locate_all(["x/a.jpg", "y/a.jpg"], flat) == {"x/a.jpg": None, "y/a.jpg": None}
    assert locate_all([], flat) == {}


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl", ".json"])
def test_text_that_is_not_utf_8_is_told(suffix: str, tmp_path: Path) -> None:
    text = "path\tcaption\na.jpg\tein Hündchen\n".encode("latin-1")
    assert "not UTF-8" in complaint(tmp_path, f"pairs{suffix}", text)


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"path,caption\n", b"PAR1" + b"\0" * 99 + b"PAR1"]
)
def test_what_is_not_parquet_is_told(content: bytes, tmp_path: Path) -> None:
    assert "not a Parquet file" in complaint(tmp_path, "pairs.parquet", content)


def test_damaged_parquet_is_told(tmp_path: Path) -> None:
    whole = parquet([("path", "caption"), *ROWS])
    damaged = whole[:4] + b"\xff" * 60 + whole[64:]
    assert "Parquet" in complaint(tmp_path, "pairs.parquet", damaged)


@pytest.mark.parametrize("format_", WRITERS)
def test_a_file_without_pairs_is_told(format_: str, tmp_path: Path) -> None:
    name, write = WRITERS[format_]
    assert complaint(tmp_path, name, write([("path", "caption")]))


printable = st.text(st.characters(codec="utf-8", exclude_characters="\t\r\n")).filter(str.strip)
written = st.lists(st.tuples(printable, printable), min_size=1)
once_per_folder = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("format_", ["tsv", "csv", "jsonl", "list"])
@once_per_folder
@given(rows=written)
@example(rows=[('"', '"'), ("\\", ","), ("\x85", "\u2028x"), ("\ufeffa", "\x1c|"), ("path", "\0")])
def test_pairs_come_back_as_they_were_written(
    format_: str, rows: list[tuple[str, str]], tmp_path: Path
) -> None:
    # A path may be blank to `str.strip` only: a file can be called "\x85", but not "".
    rows = [(path, caption) for path, caption in rows if path.strip() and caption.strip()] or ROWS
    name, write = WRITERS[format_]
    pairs = read(tmp_path, name, write([("path", "caption"), *rows]))
    assert [pair.path for pair in pairs] == [path for path, _ in rows]
    assert [pair.caption for pair in pairs] == [" ".join(text.split()) for _, text in rows]


@pytest.mark.parametrize("suffix", SUFFIXES)
@once_per_folder
@given(
    content=st.one_of(
        st.binary(max_size=200),
        st.text('path,caption\t\n\r"[]{}:0\\', max_size=60).map(str.encode),
        st.recursive(
            st.none() | st.integers() | st.sampled_from(["a.jpg", "a dog", ""]),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        [
                            "path",
                            "caption",
                            "images",
                            "annotations",
                            "id",
                            "image_id",
                            "filename",
                            "split",
                            "sentences",
                            "raw",
                        ]
                    ),
                    inner,
                    max_size=3,
                )
            ),
        ).map(lambda document: json.dumps(document).encode()),
    )
)
def test_any_bytes_give_pairs_or_a_source_error(
    suffix: str, content: bytes, tmp_path: Path
) -> None:
    try:
        pairs = read(tmp_path, f"pairs{suffix}", content)
    except SourceError:
        return
    assert pairs
    assert all(pair.path and pair.caption for pair in pairs)


# The same bytes each time: pyarrow promises less than Python when it reads damaged files.
@settings(once_per_folder, derandomize=True)
@given(flips=st.lists(st.tuples(st.integers(0, 2_000), st.integers(0, 255)), max_size=6))
def test_damaged_parquet_gives_pairs_or_a_source_error(
    flips: list[tuple[int, int]], tmp_path: Path
) -> None:
    content = bytearray(parquet([("path", "caption"), *ROWS]))
    for place, value in flips:
        content[place % len(content)] = value
    try:
        pairs = read(tmp_path, "pairs.parquet", bytes(content))
    except SourceError:
        return
    assert all(pair.caption for pair in pairs)
