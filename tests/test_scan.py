from __future__ import annotations

import os
import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmsearch.errors import SourceError
from mmsearch.retrieval.captions import read_sidecar
from mmsearch.retrieval.scan import ALWAYS_IGNORED, IGNORE_FILE, FoundFile, scan, scan_places

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs links, pipes and free names")


def make(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * len(os.fsencode(name)))


def found(root: Path) -> list[str]:
    return list(scan(root).files)


def test_pictures_are_listed_sorted_with_size_and_time(tmp_path: Path) -> None:
    make(
        tmp_path, "b.png", "a/z.webp", "a.JPG", "B.HeiC", "a/b/c.avif", "é.gif", "notes.txt", "jpg"
    )
    files = scan(tmp_path).files
    assert list(files) == sorted(["b.png", "a/z.webp", "a.JPG", "B.HeiC", "a/b/c.avif", "é.gif"])
    stat = (tmp_path / "a/z.webp").stat()
    assert files["a/z.webp"] == FoundFile(stat.st_size, stat.st_mtime_ns, "")


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    make(tmp_path, ".hidden.jpg", ".thumbs/a.jpg", "trip/.trash/a.jpg", "._a.jpg", "trip/a.jpg")
    assert found(tmp_path) == ["trip/a.jpg"]


@pytest.mark.parametrize("name", sorted(ALWAYS_IGNORED))
def test_folders_of_tools_are_left_out_at_any_depth(name: str, tmp_path: Path) -> None:
    make(tmp_path, f"{name}/a.jpg", f"trip/{name}/deep/a.jpg", f"{name} 2/a.jpg")
    assert found(tmp_path) == [f"{name} 2/a.jpg"]


def test_a_root_that_is_hidden_itself_is_read(tmp_path: Path) -> None:
    make(tmp_path / ".photos", "a.jpg")
    assert found(tmp_path / ".photos") == ["a.jpg"]


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        ("", ["a.jpg", "keep/a.jpg", "keep/b.png", "raw/a.jpg", "raw/deep/b.jpg"]),
        ("# a comment\n*.png\n", ["a.jpg", "keep/a.jpg", "raw/a.jpg", "raw/deep/b.jpg"]),
        ("raw/", ["a.jpg", "keep/a.jpg", "keep/b.png"]),
        ("/a.jpg", ["keep/a.jpg", "keep/b.png", "raw/a.jpg", "raw/deep/b.jpg"]),
        ("a.jpg\n!keep/a.jpg", ["keep/a.jpg", "keep/b.png", "raw/deep/b.jpg"]),
        ("raw/*\r\n!raw/deep/\r\n", ["a.jpg", "keep/a.jpg", "keep/b.png", "raw/deep/b.jpg"]),
        ("\ufeffraw/\n", ["a.jpg", "keep/a.jpg", "keep/b.png"]),
        ("**/deep", ["a.jpg", "keep/a.jpg", "keep/b.png", "raw/a.jpg"]),
    ],
)
def test_the_ignore_file_is_read_like_gits(rules: str, kept: list[str], tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "keep/a.jpg", "keep/b.png", "raw/a.jpg", "raw/deep/b.jpg")
    (tmp_path / IGNORE_FILE).write_bytes(rules.encode())
    assert found(tmp_path) == kept


def test_an_ignore_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / IGNORE_FILE).mkdir()
    with pytest.raises(SourceError, match=IGNORE_FILE):
        scan(tmp_path)


def test_an_ignore_file_with_a_broken_rule_is_told(tmp_path: Path) -> None:
    (tmp_path / IGNORE_FILE).write_text("*.png\n!\n")
    with pytest.raises(SourceError, match=IGNORE_FILE):
        scan(tmp_path)


def test_a_root_that_is_no_folder_is_told(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg")
    with pytest.raises(SourceError, match="no folder"):
        scan(tmp_path / "missing")
    with pytest.raises(SourceError, match="is a file"):
        scan(tmp_path / "a.jpg")


@posix
def test_a_loop_of_links_is_walked_once(tmp_path: Path) -> None:
    make(tmp_path, "trip/a.jpg")
    (tmp_path / "trip/up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "trip/self").symlink_to(".", target_is_directory=True)
    assert found(tmp_path) == ["trip/a.jpg"]


@posix
def test_a_real_folder_wins_over_links_to_it(tmp_path: Path) -> None:
    make(tmp_path, "z/deep/real/a.jpg")
    (tmp_path / "a link").symlink_to("z/deep/real", target_is_directory=True)
    (tmp_path / "z/another").symlink_to("deep/real", target_is_directory=True)
    assert found(tmp_path) == ["z/deep/real/a.jpg"]


@posix
def test_linked_folders_elsewhere_are_entered_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    make(root, "own.jpg")
    make(tmp_path / "elsewhere", "a.jpg", "below/b.jpg")
    for name in ("one", "two"):
        (root / name).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    names = found(root)
    assert names in (
        ["one/a.jpg", "one/below/b.jpg", "own.jpg"],
        ["own.jpg", "two/a.jpg", "two/below/b.jpg"],
    )
    assert found(root) == names


@posix
def test_the_name_of_a_linked_folder_does_not_hang_on_when_links_were_made(tmp_path: Path) -> None:
    make(tmp_path / "elsewhere", "a.jpg")
    orders = (["b", "a", "c"], ["c", "b", "a"], ["a", "b", "c"])
    for i, order in enumerate(orders):
        root = tmp_path / f"root {i}"
        root.mkdir()
        for name in order:
            (root / name).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        assert found(root) == ["a/a.jpg"]


@posix
def test_links_to_pictures_are_pictures(tmp_path: Path) -> None:
    make(tmp_path / "root", "a.jpg")
    make(tmp_path, "outside.jpg")
    (tmp_path / "root/b.jpg").symlink_to(tmp_path / "outside.jpg")
    files = scan(tmp_path / "root").files
    assert list(files) == ["a.jpg", "b.jpg"]
    assert files["b.jpg"].size == (tmp_path / "outside.jpg").stat().st_size


@posix
def test_what_only_looks_like_a_picture_is_unusable(tmp_path: Path) -> None:
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.txt").symlink_to("nowhere")
    make(tmp_path, "folder.jpg/a.jpg")
    result = scan(tmp_path)
    assert list(result.files) == ["folder.jpg/a.jpg"]
    assert set(result.unusable) == {"gone.jpg", "loop.jpg", "pipe.png"}
    assert result.unusable["gone.jpg"] == "a link to nothing"
    assert result.unusable["pipe.png"] == "not an ordinary file"


@posix
@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root reads all")
def test_a_folder_that_cannot_be_listed_is_unknown_not_gone(tmp_path: Path) -> None:
    make(tmp_path, "shut/a.jpg", "open/b.jpg")
    (tmp_path / "shut").chmod(0)
    try:
        result = scan(tmp_path)
    finally:
        (tmp_path / "shut").chmod(0o700)
    assert list(result.files) == ["open/b.jpg"]
    assert list(result.unreadable) == ["shut"]
    assert result.may_hold("shut/a.jpg")
    assert not result.may_hold("shut up.jpg")


def test_the_fingerprint_of_side_cars_changes_when_they_do(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.jpg")
    seen = {fingerprint(tmp_path)}
    for name in ("a.txt", "a.jpg.txt", "a.json", "a.jpg.supplemental-metadata.json"):
        make(tmp_path, name)
        seen.add(fingerprint(tmp_path))
    assert len(seen) == 5
    os.utime(tmp_path / "a.txt", ns=(1, 1))
    seen.add(fingerprint(tmp_path))
    (tmp_path / "a.txt").write_text("longer than before")
    os.utime(tmp_path / "a.txt", ns=(1, 1))
    seen.add(fingerprint(tmp_path))
    (tmp_path / "a.txt").unlink()
    seen.add(fingerprint(tmp_path))
    assert len(seen) == 8
    assert scan(tmp_path).files["b.jpg"].sidecars == ""


def fingerprint(root: Path) -> str:
    first, again = (scan(root).files["a.jpg"].sidecars for _ in range(2))
    assert first == again
    return first


@posix
@pytest.mark.parametrize("name", ["a.txt", "a.jpg.json"])
def test_a_pipe_where_captions_would_be_is_not_waited_for(name: str, tmp_path: Path) -> None:
    make(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / name)
    assert scan(tmp_path).files["a.jpg"].sidecars == ""
    assert read_sidecar(tmp_path / name) == []


@posix
def test_a_pipe_for_an_ignore_file_is_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / IGNORE_FILE)
    with pytest.raises(SourceError, match="no ordinary file"):
        scan(tmp_path)


@pytest.mark.parametrize("time", [2**63, 13_569_465_600 * 10**9])
def test_times_beyond_64_bits_fit_the_catalog(time: int, tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.tar")
    try:
        for name in ("a.jpg", "b.tar"):
            os.utime(tmp_path / name, ns=(0, time))
    except (OSError, OverflowError):
        pytest.skip("this file system has no such times")
    found = scan(tmp_path)
    assert found.files["a.jpg"].mtime_ns <= 2**63 - 1
    assert found.containers["b.tar"][1] <= 2**63 - 1


@posix
@pytest.mark.parametrize(
    "name",
    [
        b"two\nlines.jpg",
        b'it\'s "quoted".jpg',
        b"--help.jpg",
        b" spaces .jpg",
        b"back\\slash.jpg",
        b"tab\t*?[a].jpg",
        b"\xff\xfe latin \xfc.jpg",
        b"e\xcc\x81.jpg",
        b"\x1b[31m.jpg",
        b"x" * 251 + b".jpg",
    ],
)
def test_names_are_kept_to_the_byte(name: bytes, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    Path(os.fsdecode(os.path.join(folder, name))).touch()  # noqa: PTH118
    Path(os.fsdecode(os.path.join(folder, name[:-4][:250] + b".txt"))).touch()  # noqa: PTH118
    Path(tmp_path / IGNORE_FILE).write_text("*.png\n")
    ((path, file),) = scan(tmp_path).files.items()
    assert os.fsencode(path) == name
    assert (tmp_path / path).is_file()
    assert bool(file.sidecars) == (len(name) < 255)


paths = st.lists(
    st.tuples(
        st.lists(st.sampled_from(["a", "b", ".c", "node_modules"]), max_size=3),
        st.sampled_from(["x.jpg", "y.PNG", ".z.jpg", "t.txt"]),
    ),
    max_size=12,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(tree=paths)
def test_a_scan_finds_what_a_plain_walk_finds(
    tree: list[tuple[list[str], str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("tree")
    names = {"/".join([*folders, name]) for folders, name in tree}
    make(root, *names)
    expected = sorted(
        name
        for name in names
        if not name.endswith(".txt")
        and not any(part.startswith(".") or part == "node_modules" for part in name.split("/"))
    )
    assert found(root) == expected


def test_places_are_scanned_as_the_whole_is(tmp_path: Path) -> None:
    chance = Random(7)
    folders = ["", "a", "a/b", "a/.hidden", "ignored", "c", "c/@eaDir", "c/d/e"]
    names = ["x.jpg", "y.PNG", "x.txt", "y.PNG.json", "notes.md", ".z.jpg", "t.tar", "no.jpg"]
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            if chance.random() < 0.7:
                (tmp_path / folder / name).write_bytes(b"x" * chance.randrange(9))
    (tmp_path / ".mmsearchignore").write_text("ignored/\nno.jpg\n")
    whole = scan(tmp_path)
    paths = [f"{folder}/{name}".strip("/") for folder in folders for name in names]
    for _ in range(200):
        places = chance.sample([*paths, *filter(None, folders), "gone", "gone/x.jpg"], 4)
        found = scan_places(tmp_path, places)
        assert found is not None
        assert found.covered is not None
        assert found.covered >= set(places)
        for theirs, ours in ((whole.files, found.files), (whole.containers, found.containers)):
            assert ours == {path: theirs[path] for path in theirs if not found.may_hold(path)}
    captions = scan_places(tmp_path, ["x.txt", "c/y.PNG.json"])
    assert captions is not None
    pictures = {"x.jpg", "c/y.PNG"} & whole.files.keys()
    assert pictures
    assert captions.files.keys() == pictures


def test_behind_links_places_are_not_told_apart(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/x.jpg").write_bytes(b"x")
    (tmp_path / "link").symlink_to("real")
    assert scan_places(tmp_path, ["link/x.jpg"]) is None
    assert scan_places(tmp_path, ["link"]) is None
    assert scan_places(tmp_path, ["real/x.jpg"]) is not None


def test_what_is_postponed_is_as_if_never_looked_at(tmp_path: Path) -> None:
    for name in ("a/x.jpg", "a/y.jpg", "ab/z.jpg", "w.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = scan(tmp_path)
    found.postpone(["a", "w.jpg"])
    assert list(found.files) == ["ab/z.jpg"]
    assert found.may_hold("a/x.jpg")
    assert found.may_hold("w.jpg")
    assert not found.may_hold("ab/q.jpg")
