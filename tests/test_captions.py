from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmsearch.retrieval.captions import MAX_SIDECAR_BYTES, read_sidecar, sidecar_names
from mmsearch.retrieval.schema import Caption


def texts(folder: Path, name: str, content: bytes | str) -> list[str]:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    captions = read_sidecar(path)
    assert all(caption.source == "sidecar" for caption in captions)
    return [caption.text for caption in captions]


def test_side_cars_bear_the_whole_name_or_the_stem() -> None:
    assert sidecar_names("photo.jpg") == [
        "photo.jpg.txt",
        "photo.jpg.json",
        "photo.jpg.supplemental-metadata.json",
        "photo.txt",
        "photo.json",
        "photo.supplemental-metadata.json",
    ]
    assert "a.b.txt" in sidecar_names("a.b.png")


def test_each_line_of_a_text_is_a_caption(tmp_path: Path) -> None:
    found = texts(tmp_path, "a.txt", "\ufeffa dog\r\n\r\n  on   grass \na dog\nDSC_0001\n")
    assert found == ["a dog", "on grass"]


def test_text_that_is_not_utf_8_is_read_with_marks(tmp_path: Path) -> None:
    assert texts(tmp_path, "a.TXT", b"a d\xf6g\n\x1b[2Jb") == [
        "a d\N{REPLACEMENT CHARACTER}g",
        "[2Jb",
    ]


@pytest.mark.parametrize("key", ["caption", "captions", "description", "text"])
@pytest.mark.parametrize("name", ["a.json", "a.jpg.supplemental-metadata.json", "a.JSON"])
def test_json_gives_a_string_or_a_list(key: str, name: str, tmp_path: Path) -> None:
    assert texts(tmp_path, name, json.dumps({key: "a dog", "title": "no"})) == ["a dog"]
    assert texts(tmp_path, name, json.dumps({key: ["a dog", 7, None, "a cat"]})) == [
        "a dog",
        "a cat",
    ]


def test_google_takeout_is_understood(tmp_path: Path) -> None:
    takeout = {
        "title": "IMG_1.jpg",
        "description": "a dog on grass",
        "imageViews": "3",
        "geoData": {"latitude": 0.0},
    }
    assert texts(tmp_path, "a.json", json.dumps(takeout)) == ["a dog on grass"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '"a dog"',
        "[" * 200_000,
        '{"caption": {"en": "a dog"}}',
        "\0",
        "9" * 5_000,
    ],
    ids=["empty", "cut", "list", "null", "string", "deep", "object", "NUL", "long number"],
)
def test_broken_json_says_nothing(content: str, tmp_path: Path) -> None:
    assert texts(tmp_path, "a.json", content) == []


def test_what_cannot_be_read_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    assert read_sidecar(tmp_path / "folder.txt") == []
    assert read_sidecar(tmp_path / "missing.txt") == []


def test_a_huge_text_is_read_in_part(tmp_path: Path) -> None:
    found = texts(tmp_path, "a.txt", b"a dog\n" + b" " * MAX_SIDECAR_BYTES + b"\na cat\n")
    assert found == ["a dog"]


values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["caption", "text"]), inner),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary() | values.map(lambda value: json.dumps({"caption": value}).encode()))
def test_any_bytes_give_distinct_printable_captions(content: bytes, tmp_path: Path) -> None:
    for name in ("a.txt", "a.json"):
        found = texts(tmp_path, name, content)
        assert len(set(found)) == len(found)
        assert all(text and text.isprintable() for text in found)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(st.sampled_from(["a dog", "ein Hund", "犬", "chien, chat"]), unique=True))
def test_captions_come_back_as_they_were_written(words: list[str], tmp_path: Path) -> None:
    assert texts(tmp_path, "a.txt", "\n".join(words)) == words
    assert texts(tmp_path, "a.json", json.dumps({"captions": words})) == words
    assert read_sidecar(tmp_path / "a.txt") == [Caption(word, "sidecar") for word in words]
