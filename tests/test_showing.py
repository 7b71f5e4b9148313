"""The ways to show what was found: what is printed, sheets, copies and links."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmsearch.errors import MediaError, MissingExtra, MmsearchError, SourceError
from mmsearch.retrieval import terminal_graphics
from mmsearch.retrieval.commands import showing
from mmsearch.retrieval.contact_sheet import contact_sheet, write_sheet
from mmsearch.retrieval.copies import copy_pictures, link_pictures
from mmsearch.retrieval.listing import each_picture_once, record_of, row_of, shell_path
from mmsearch.retrieval.schema import Hit, Query, QueryPart, Results
from tests.conftest import draw
from tests.test_cli import MMSEARCH, run

ODD = tuple(
    map(
        os.fsdecode,
        (
            b"with space.jpg",
            b"-rf.jpg",
            b"line\nbreak.jpg",
            b"caf\xe9.jpg",  # Latin-1: no valid UTF-8
            b"\xf0\x9f\x90\x95 #1?&%41.jpg",
            b"<b onload='x'>\".jpg",
            b'=1+1,"x".jpg',
            b"[red]$(id)`id`;.jpg",
        ),
    )
)


def results_of(root: Path, *paths: str, **fields: Any) -> Results:
    hits = tuple(Hit(i, i, path, 1 / i, **fields) for i, path in enumerate(paths, 1))
    return Results(Query((QueryPart("a <dog> & co"),)), root, "m@1", hits, True, 1.0, 40)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An indexed folder of pictures with hard names, one lying on its side, some in a tar file."""
    folder = tmp_path_factory.mktemp("odd") / "my photos"
    plain = draw(folder / "plain.jpg", "red", (320, 200))
    for number, name in enumerate(ODD):
        picture = Image.new("RGB", (64 + number, 48), (number * 25, 80, 200))
        picture.save(folder / "p.jpg")
        (folder / "p.jpg").rename(folder / name)
    draw(folder / "turned.jpg", "blue", (320, 200), exif=turned())
    with tarfile.open(folder / "some.tar", "w") as tar:
        tar.add(plain, "in/side.jpg")
    subprocess.run([MMSEARCH, "index", folder], check=True, capture_output=True)
    return folder


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def output(*arguments: object, cwd: Path, code: int = 0) -> bytes:
    done = subprocess.run(
        [MMSEARCH, *map(str, arguments)], capture_output=True, cwd=cwd, stdin=subprocess.DEVNULL
    )
    assert done.returncode == code, done
    return done.stdout


INSIDE = "some.tar/in/side.jpg"
FILES = {*ODD, "plain.jpg", "turned.jpg"}


def test_paths_go_through_xargs_whatever_the_names(odd: Path) -> None:
    for cwd in (odd, odd.parent, odd.parent.parent / "elsewhere"):
        cwd.mkdir(exist_ok=True)
        printed = output("query", "red", "-L", odd, "--no-group", "-k", 99, "-0", cwd=cwd)
        assert printed.endswith(b"\0")
        got = [Path(os.fsdecode(path)) for path in printed[:-1].split(b"\0")]
        assert len(got) == len(FILES) + 1
        assert {cwd / path for path in got} == {odd / name for name in (*FILES, INSIDE)}
        raw = printed.split(b"\0")[:-1]
        files = b"".join(path + b"\0" for path in raw if b"some.tar/" not in path)
        # No `--`: a name that begins with a dash must not read as an option.
        done = subprocess.run(["xargs", "-0", "cat"], input=files, capture_output=True, cwd=cwd)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout) == sum((odd / name).stat().st_size for name in FILES)


def test_paths_are_relative_where_the_library_is_here_or_below(odd: Path, tmp_path: Path) -> None:
    found = results_of(odd, "a/b.jpg", "-x.jpg")
    first, dash = found.hits
    assert shell_path(found, first, odd) == "a/b.jpg"
    assert shell_path(found, dash, odd) == "./-x.jpg"
    assert shell_path(found, first, odd.parent) == "my photos/a/b.jpg"
    assert shell_path(found, dash, tmp_path) == f"{odd}/-x.jpg"
    assert shell_path(found, first, odd / "a") == f"{odd}/a/b.jpg"
    lines = output("query", "red", "--no-group", "-k", 99, "--paths", cwd=odd)
    assert b"./-rf.jpg\n" in lines
    assert b"caf\xe9.jpg\n" in lines


def test_jsonl_and_csv_tell_the_same_and_csv_is_rfc_4180(odd: Path) -> None:
    lines = output("query", "red", "--no-group", "-k", 99, "--jsonl", cwd=odd).splitlines()
    objects = [json.loads(line) for line in lines]
    whole = json.loads(output("query", "red", "--no-group", "-k", 99, "--json", cwd=odd))["results"]
    assert [{k: v for k, v in o.items() if k != "file"} for o in objects] == whole
    assert all(o["file"] == f"{odd}/{o['path']}" for o in objects)
    raw = output("query", "red", "--no-group", "-k", 99, "--csv", cwd=odd)
    assert b"caf\xe9.jpg" in raw
    assert raw.startswith(b"rank,path,score,p_match,taken,width,height,file\r\n")
    rows = list(csv.DictReader(io.StringIO(raw.decode("utf-8", "surrogateescape"), newline="")))
    assert [row["path"] for row in rows] == [o["path"] for o in objects]
    assert [float(row["score"]) for row in rows] == [o["score"] for o in objects]
    assert '=1+1,"x".jpg' in [row["path"] for row in rows]


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
# What Python makes of file names: text, and bytes that are no valid UTF-8.
NAME = st.binary(min_size=1).map(os.fsdecode).filter(lambda name: "\0" not in name)


@given(st.lists(st.tuples(NAME, st.none() | TEXT, st.floats(-1, 1))))
def test_any_text_comes_back_from_csv(rows: list[tuple[str, str | None, float]]) -> None:
    hits = tuple(
        Hit(i, i, path, score, caption, datetime(2023, 8, 12, 17, 2, 11), 3, 4)
        for i, (path, caption, score) in enumerate(rows, 1)
    )
    found = Results(Query((QueryPart("x"),)), Path("/p"), "m", hits, True, 1.0, 9)
    buffer = io.BytesIO()
    before, sys.stdout = sys.stdout, SimpleNamespace(buffer=buffer, flush=lambda: None)  # type: ignore[assignment]
    try:
        showing._print_csv(found)
    finally:
        sys.stdout = before
    text = io.StringIO(buffer.getvalue().decode("utf-8", "surrogateescape"), newline="")
    read = list(csv.DictReader(text, strict=True))
    assert len(read) == len(rows)
    for row, hit in zip(read, hits, strict=True):
        for field, value in record_of(found, hit).items():
            assert row[field] == ("" if value is None else str(value))
        assert float(row["score"]) == hit.score


def test_nothing_found_is_a_header_no_line_and_no_file(tmp_path: Path, odd: Path) -> None:
    (tmp_path / "empty").mkdir()
    library = tmp_path / "copy"
    shutil.copytree(odd, library)
    for file in library.iterdir():
        if file.is_file() and file.name != "plain.jpg":
            file.unlink()
    subprocess.run([MMSEARCH, "index", library], check=True, capture_output=True)
    arguments = ("query", "red", "--to", "captions")
    assert output(*arguments, "--csv", cwd=library, code=3).count(b"\r\n") == 1
    assert output(*arguments, "--jsonl", cwd=library, code=3) == b""
    assert output(*arguments, "-0", cwd=library, code=3) == b""
    extra = ("--html", "s.html", "--copy-to", "out")
    assert output(*arguments, *extra, cwd=library, code=3) == b""
    assert not (library / "s.html").exists()
    assert not (library / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--json", "--csv"], "--json and --csv"),
        (["--paths", "-p"], "--paths and --pictures"),
        (["-0", "--jsonl"], "--null and --jsonl"),
        (["--copy-to", "a", "--link-to", "b"], "--copy-to and --link-to"),
    ],
)
def test_options_that_exclude_each_other_are_a_usage_error(
    tmp_path: Path, options: list[str], said: str
) -> None:
    # Refused before a library is looked for: there is none here.
    assert f"{said} exclude each other" in run("query", "x", *options, cwd=tmp_path, code=2).stderr


def test_paths_and_null_together_are_null(odd: Path) -> None:
    both = output("query", "red", "-k", 2, "--paths", "-0", cwd=odd)
    assert both == output("query", "red", "-k", 2, "-0", cwd=odd)


def test_pictures_without_a_terminal_are_the_table_and_a_word(odd: Path) -> None:
    done = run("query", "red", "-k", 1, "-p", cwd=odd)
    assert done.stdout == run("query", "red", "-k", 1, cwd=odd).stdout
    assert "--pictures needs a terminal" in done.stderr


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attributes for name, attributes in self.tags if name == tag)


def test_sheet_holds_its_pictures_and_nothing_that_runs_or_loads(odd: Path, tmp_path: Path) -> None:
    run(
        "query",
        "red",
        "-L",
        odd,
        "--no-group",
        "-k",
        99,
        "--json",
        "--html",
        "s.html",
        cwd=tmp_path,
    )
    page = Page((tmp_path / "s.html").read_text("utf-8"))
    images = list(page.all("img"))
    assert len(images) == len(FILES) + 1
    by_alt = {}
    for image in images:
        head, _, data = str(image["src"]).partition(",")
        assert head == "data:image/jpeg;base64"
        picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        picture.load()
        assert picture.format == "JPEG"
        assert picture.size == (int(image["width"] or 0), int(image["height"] or 0))
        assert max(picture.size) <= 320
        assert image["alt"]
        by_alt[image["alt"]] = picture
    assert by_alt["turned.jpg"].size == (200, 320)
    assert "<b onload='x'>\".jpg" in by_alt
    assert r"caf\xe9.jpg" in by_alt
    assert r"line\nbreak.jpg" in by_alt
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "b", "link", "iframe"})
    assert not [name for _, attributes in page.tags for name in attributes if name[:2] == "on"]
    policy = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    # Links lead to the files, byte for byte; what lies in a tar file has none.
    linked = {
        (tmp_path / os.fsdecode(unquote_to_bytes(str(link["href"])))).resolve()
        for link in page.all("a")
    }
    assert linked == {odd / name for name in FILES}


def test_sheet_escapes_words_and_captions_and_names_what_is_lost(tmp_path: Path) -> None:
    draw(tmp_path / "here.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"<html>")
    found = results_of(
        tmp_path, "here.jpg", "gone.jpg", "broken.jpg", caption="</q><script>1</script>\x1b]0;x\x07"
    )
    page = Page(contact_sheet(found, tmp_path))
    assert "a <dog> & co" in page.texts
    assert page.texts.count("</q><script>1</script>\\x1b]0;x\\x07") == 3
    assert next(page.all("img"))["alt"] == "</q><script>1</script>\\x1b]0;x\\x07"
    assert len(list(page.all("img"))) == 1
    assert not list(page.all("script"))
    assert any("gone since" in text for text in page.texts)
    assert any("web page" in text for text in page.texts)


def test_sheet_replaces_a_former_sheet_and_nothing_else(tmp_path: Path, odd: Path) -> None:
    found = results_of(odd, "plain.jpg")
    mine = tmp_path / "mine.html"
    mine.write_text("<!doctype html>my own")
    with pytest.raises(SourceError, match="left alone"):
        write_sheet(found, mine)
    done = run("query", "red", "-L", odd, "--html", mine, cwd=tmp_path, code=1)
    # Before anything is searched for: no answer on stdout.
    assert "left alone" in done.stderr
    assert done.stdout == ""
    assert mine.read_text() == "<!doctype html>my own"
    with pytest.raises(SourceError, match="no folder"):
        write_sheet(found, tmp_path / "not there/s.html")
    (tmp_path / "dangling.html").symlink_to("nowhere")
    with pytest.raises(SourceError, match="left alone"):
        write_sheet(found, tmp_path / "dangling.html")
    sheet = tmp_path / "s.html"
    write_sheet(found, sheet)
    write_sheet(results_of(odd, "turned.jpg"), sheet)
    assert "turned.jpg" in sheet.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "dangling.html",
        "mine.html",
        "s.html",
    ]


def test_copies_keep_bytes_times_and_ranks_and_overwrite_nothing(odd: Path, tmp_path: Path) -> None:
    found = results_of(odd, *ODD, "some.tar/in/side.jpg", "gone.jpg", "plain.jpg")
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    (out / "01-with space.jpg").write_text("mine")
    placed = copy_pictures(found, out)
    assert placed.skipped == [("gone.jpg", "gone since it was indexed")]
    assert placed.unpacked == 1
    assert (out / "01-with space.jpg").read_text() == "mine"
    copied = sorted(file.name for file in out.iterdir())
    ours = [f"{rank:02}-{name}" for rank, name in enumerate(ODD, 1)]
    ours += ["01-with space (2).jpg", "09-side.jpg", "11-plain.jpg"]
    assert copied == sorted(ours)
    assert (out / "11-plain.jpg").read_bytes() == (odd / "plain.jpg").read_bytes()
    assert (out / "09-side.jpg").read_bytes() == (odd / "plain.jpg").read_bytes()
    assert (out / "11-plain.jpg").stat().st_mtime_ns == (odd / "plain.jpg").stat().st_mtime_ns
    # The same once more changes nothing.
    again = copy_pictures(found, out)
    assert again.files == []
    assert len(again.present) == len(ODD) + 2
    assert sorted(file.name for file in out.iterdir()) == copied


def test_links_lead_to_the_files_and_what_lies_inside_is_taken_out(
    odd: Path, tmp_path: Path
) -> None:
    found = results_of(odd, *ODD, "some.tar/in/side.jpg")
    placed = link_pictures(found, tmp_path / "out")
    links = [file for file in placed.files if file.is_symlink()]
    assert len(links) == len(ODD)
    assert {file.resolve() for file in links} == {odd / name for name in ODD}
    assert placed.unpacked == 1
    assert not (tmp_path / "out/9-side.jpg").is_symlink()
    assert link_pictures(found, tmp_path / "out").files == []
    # A copy where a link is: beside it, and not through it.
    copy_pictures(found, tmp_path / "out")
    assert (tmp_path / "out/1-with space.jpg").is_symlink()
    assert not (tmp_path / "out/1-with space (2).jpg").is_symlink()


def test_how_many_are_similar_is_no_caption() -> None:
    hit = Hit(1, 7, "a/b.jpg", 0.25, match=0.9, others=("c.jpg", "d.jpg"))
    row = row_of(hit)
    assert row.caption is None
    assert row.about == ["1", "very likely", "▸ 2 similar"]
    assert row_of(hit, people=False).about == ["1", "0.250"]


def test_a_row_of_a_table_gets_a_name_and_long_names_are_cut(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = draw(tmp_path / "x.png").read_bytes()
    pq.write_table(pa.table({"image": [{"bytes": data, "path": None}]}), tmp_path / "part.parquet")
    long = "é" * 125 + ".jpg"  # 254 bytes
    draw(tmp_path / "y.jpg").rename(tmp_path / long)
    placed = copy_pictures(results_of(tmp_path, "part.parquet/0", long), tmp_path / "out")
    assert [file.name for file in placed.files] == ["1-part-0.png", f"2-{'é' * 124}.jpg"]
    assert placed.files[0].read_bytes() == data


def test_a_picture_that_several_captions_found_is_taken_once(odd: Path, tmp_path: Path) -> None:
    found = results_of(odd, "plain.jpg", "turned.jpg", "plain.jpg")
    assert [hit.rank for hit in each_picture_once(found)] == [1, 2]
    assert len(copy_pictures(found, tmp_path / "out").files) == 2


def test_a_folder_that_cannot_be_made_is_an_error(odd: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceError, match="cannot be made a folder"):
        copy_pictures(results_of(odd, "plain.jpg"), tmp_path / "file")
    done = run("query", "red", "-L", odd, "--json", "--copy-to", "file", cwd=tmp_path, code=1)
    assert "cannot be made a folder" in done.stderr


def test_command_says_what_it_copied_and_skipped(odd: Path, tmp_path: Path) -> None:
    library = tmp_path / "lib"
    shutil.copytree(odd, library)
    (library / "plain.jpg").unlink()
    done = run(
        "query",
        "red",
        "-L",
        library,
        "--no-group",
        "-k",
        99,
        "--json",
        "--copy-to",
        "out",
        cwd=tmp_path,
    )
    assert f"{len(ODD) + 2} copied to out" in done.stderr
    assert "Skipped plain.jpg: gone since it was indexed" in done.stderr
    done = run(
        "query",
        "red",
        "-L",
        library,
        "--no-group",
        "-k",
        99,
        "--json",
        "--link-to",
        "links",
        cwd=tmp_path,
    )
    assert f"{len(ODD) + 1} linked to links · 1 copied there from inside" in done.stderr


def test_open_starts_the_viewer_with_files_that_are_there(odd: Path, tmp_path: Path) -> None:
    viewer = tmp_path / "bin/xdg-open"
    viewer.parent.mkdir()
    # In one write, since several run at once.
    viewer.write_text('#!/bin/sh\nprintf "%s\\n" "$1" >> "$LOG"\n')
    viewer.chmod(0o755)
    log = tmp_path / "log"
    environment = {"LOG": str(log), "PATH": f"{viewer.parent}:{os.environ['PATH']}"}
    library = tmp_path / "lib"
    library.mkdir()
    shutil.copy(odd / "plain.jpg", library / "-plain.jpg")
    shutil.copy(odd / "some.tar", library)
    subprocess.run([MMSEARCH, "index", library], check=True, capture_output=True)

    def opened(count: int) -> list[str]:
        # The viewer is not waited for.
        for _ in range(500):
            if log.exists() and len(log.read_text().splitlines()) == count:
                break
            subprocess.run(["sleep", "0.02"], check=True)
        lines = sorted(log.read_text().splitlines())
        log.unlink()
        return lines

    run("query", "red", "--open", "--no-group", cwd=library, **environment)
    inside, plain = sorted(opened(2), key=lambda path: path.endswith("-plain.jpg"))
    assert plain == str(library / "-plain.jpg")
    assert Path(inside).read_bytes() == (odd / "plain.jpg").read_bytes()
    shutil.rmtree(Path(inside).parent)
    run("query", "red", "--open", "--html", "s.html", cwd=library, **environment)
    assert opened(1) == [str(library / "s.html")]
    bare = run("query", "red", "--open", cwd=library, code=1, PATH="/nonexistent")
    assert "xdg-utils" in bare.stderr


def test_a_file_that_is_gone_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(showing.typer, "launch", lambda name: opened.append(name) or 0)
    with pytest.raises(MediaError, match="gone"):
        showing.open_file(tmp_path / "gone.jpg")
    assert opened == []
    monkeypatch.setattr(showing.typer, "launch", lambda name: 1)
    with pytest.raises(MmsearchError, match="No viewer"):
        showing.open_file(draw(tmp_path / "x.jpg"))


def test_without_the_extra_the_command_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal_graphics, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r'pip install "mmsearch\[show\]"'):
        terminal_graphics.check_extra("textual-image")
