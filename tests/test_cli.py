"""The installed command, in processes of its own, with the bundled encoder."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from mmsearch.retrieval.commands.index import _summary
from mmsearch.retrieval.ingest import IndexReport
from mmsearch.retrieval.pace import Stage
from tests.conftest import draw, heed_interrupts
from tests.test_ingest import rows

MMSEARCH = str(Path(sys.executable).with_name("mmsearch"))


def run(
    *arguments: object, cwd: Path | None = None, code: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [MMSEARCH, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
    return done


def json_of(*arguments: object, cwd: Path | None = None, code: int = 0) -> dict[str, object]:
    return json.loads(run(*arguments, "--json", cwd=cwd, code=code).stdout)


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory; below it an indexed folder with a space in its name."""
    here = tmp_path_factory.mktemp("here")
    folder = here / "my photos"
    for colour in ("red", "green", "blue"):
        draw(folder / "plain" / f"{colour}.jpg", colour, (320, 240))
    exif = Image.Exif()
    exif[0x0110] = "EOS R5"
    exif.get_ifd(0x8769)[0x9003] = "2023:08:12 17:02:11"
    draw(folder / "night.png", "black", (320, 240), exif=exif)
    (folder / "night.txt").write_text("a dark night\n")
    (folder / "broken.jpg").write_bytes(b"<html>")
    subprocess.run([MMSEARCH, "index", str(folder)], check=True, capture_output=True)
    return here


def test_index_json_has_every_key(tmp_path: Path) -> None:
    draw(tmp_path / "a b/x.jpg")
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("path\tcaption\nx.jpg\ta red card\n")
    report = json_of("index", tmp_path / "a b", "--captions", pairs)
    assert report["schema"] == 1
    assert report["images_per_second"] > 0
    assert set(report["shares"]) == {"scan", "decode", "encode", "write"}
    assert all(0 <= share <= 1 for share in report["shares"].values())
    assert report["shares"]["encode"] > 0
    # One tiny picture: what takes longest is to load the towers.
    assert report["bottleneck"] == "encode"
    expected = {"added": 1, "updated": 0, "unchanged": 0, "moved": 0, "removed": 0}
    expected |= {"problems": 0, "captions": 1, "described": 0}
    expected |= {"captions_unmatched": 0, "embedded": 1}
    assert {key: report[key] for key in expected} == expected


def test_runs_worth_a_word_say_what_held_them_up(tmp_path: Path) -> None:
    report = IndexReport(tmp_path, "colour@1", added=300, embedded=300, files=300)
    report.bottleneck = Stage.DECODE
    report.seconds = 6.0
    assert "(6.0 s, 50 pictures/s, decode-bound)" in _summary(report, tmp_path)
    report.seconds = 1.0
    assert "(1.0 s, 300 pictures/s)" in _summary(report, tmp_path)
    assert "attention" not in _summary(report, tmp_path)
    report.problems = 1
    assert "1 file needs attention" in _summary(report, tmp_path)
    report.problems = 2
    assert "2 files need attention" in _summary(report, tmp_path)


def test_query_finds_the_only_library_below(indexed: Path) -> None:
    answer = json_of("query", "a black picture", "-k", "2", cwd=indexed)
    assert {key: answer[key] for key in ("schema", "query", "to", "search", "considered")} == {
        "schema": 1,
        "query": "a black picture",
        "to": "images",
        "search": "exact",
        "considered": 4,
    }
    assert answer["library"] == str(indexed / "my photos")
    assert answer["model"].startswith("compact@")
    assert answer["took_ms"] > 0
    assert [result["rank"] for result in answer["results"]] == [1, 2]
    for result in answer["results"]:
        assert (indexed / "my photos" / result["path"]).is_file()
        assert -1 <= result["score"] <= 1


def test_library_is_found_from_inside_by_option_by_variable_and_as_the_last(
    indexed: Path, tmp_path: Path
) -> None:
    photos = indexed / "my photos"
    for arguments, cwd, environment in (
        ((), photos / "plain", {}),
        (("--library", photos), tmp_path, {}),
        (("--library", "my photos"), indexed, {}),
        ((), tmp_path, {"MMSEARCH_LIBRARY": str(photos)}),
    ):
        done = run("query", "red", "-k", "1", "--json", *arguments, cwd=cwd, **environment)
        assert json.loads(done.stdout)["library"] == str(photos)
        assert done.stderr == ""
    run("query", "red", cwd=tmp_path, code=1)
    run("index", photos)
    done = run("query", "red", cwd=tmp_path)
    assert str(photos) in done.stderr


def test_human_output_is_tab_separated_data_and_nothing_else(indexed: Path) -> None:
    done = run("query", "--image", indexed / "my photos/night.png", cwd=indexed)
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert lines[0] == "1\t1.000\t2023-08-12\tnight.png"
    assert all(re.fullmatch(r"\d\t-?\d\.\d{3}\t[\d-]+\t.+", line) for line in lines)
    assert done.stderr == ""


def test_asking_for_more_than_there_is_gives_all_there_is(indexed: Path) -> None:
    assert len(json_of("query", "red", "-k", 10**20, cwd=indexed)["results"]) == 4


def test_export_writes_a_folder_and_says_where_paths_lead(indexed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = json_of("export", out, "--what", "all", cwd=indexed)
    assert report["rows"] == report["images"] == 4
    assert report["captions"] == 1
    assert report["image_path"] == "absolute"
    assert report["library"] == str(indexed / "my photos")
    assert np.load(out / "img_emb/img_emb_0.npy").shape == (4, report["dim"])
    assert all((out / name).is_file() for name in report["files"])
    assert "relative to" in run("export", out, cwd=indexed).stderr
    assert "one of images, captions, all" in run("export", out, "--what", "x", code=2).stderr
    assert "something else" in run("export", indexed, cwd=indexed, code=1).stderr


def test_image_to_captions(indexed: Path) -> None:
    answer = json_of(
        "query", "--image", indexed / "my photos/night.png", "--to", "captions", cwd=indexed
    )
    (result,) = answer["results"]
    assert (result["caption"], result["path"]) == ("a dark night", "night.png")
    assert answer["query"] == {"image": str(indexed / "my photos/night.png")}


def test_status_counts_and_lists_problems(indexed: Path) -> None:
    status = json_of("status", "--problems", cwd=indexed)
    assert (status["files"], status["captions"], status["problems"]) == (4, 1, 1)
    assert status["problem_files"][0]["kind"] == "not-an-image"
    lines = run("status", "--problems", cwd=indexed).stdout.splitlines()
    assert lines == ["not-an-image\tbroken.jpg\tnot an image: the file holds a web page"]
    assert "4 pictures" in run("status", cwd=indexed).stdout


def test_evaluate_prints_both_directions(indexed: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text(
        "path\tcaption\tmore\nplain/red.jpg\ta red card\t\nplain/red.jpg\tred paper\t\n"
        "plain/green.jpg\ta green card\t\nnight.png\tblackness\t\n"
    )
    report = json_of("evaluate", pairs, "--images", indexed / "my photos")
    assert (report["schema"], report["images"], report["captions"]) == (1, 3, 4)
    for way in ("text_to_image", "image_to_text"):
        assert set(report[way]) >= {"R@1", "R@5", "R@10", "median_rank", "mrr", "confidence"}
        assert report[way]["R@5"] == 100.0
    done = run("evaluate", pairs, "--images", indexed / "my photos", "--gallery", "--json")
    assert json.loads(done.stdout)["images"] == 4
    assert "left out of the gallery" in done.stderr
    assert "broken.jpg" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("index", "missing"), 1, "There is no folder"),
        (("index", "empty"), 1, "No pictures were found"),
        (("index", "note.txt"), 1, "none of them is there"),
        (("index", ""), 2, "it is empty"),
        (("index", "x" * 300), 1, "cannot be reached"),
        (("index", "~nosuchuser/photos"), 1, "no folder"),
        (("query", "red", "--library", ""), 2, "it is empty"),
        (("query", "red", "--library", "note.txt"), 1, "is a file, not a library"),
        (("query", "red", "--library", "x" * 300), 1, "does not exist"),
        (("index", "photos", "--captions", "missing.tsv"), 1, "no captions file"),
        (("index", "photos", "--model", "unheard-of"), 1, "no encoder 'unheard-of'"),
        (("query", "red"), 1, "mmsearch index"),
        (("query", "red", "--library", "photos"), 1, "mmsearch index photos"),
        (("query", ""), 2, "query is empty"),
        (("query", "  "), 2, "query is empty"),
        (("query", "red", "-k", "0"), 2, "at least 1"),
        (("query", "red", "-k", "many"), 2, "valid integer"),
        (("status",), 1, "mmsearch index"),
        (("evaluate", "missing.tsv", "--images", "photos"), 1, "no captions file"),
        (("frobnicate",), 2, "No such command"),
    ],
)
def test_bad_input_gets_one_clear_line(
    arguments: tuple[str, ...], code: int, words: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("hello")
    draw(tmp_path / "photos/x.jpg")
    refused(arguments, code, words, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("query",), 2, "Ask with words, with a picture or with both"),
        (("query", "red", "--to", "sounds"), 2, "'images', 'captions'"),
        (("query", "red", "--weight", "2", "--weight", "1"), 2, "1 parts are asked and 2 weights"),
        (("query", "red", "--also", "blue", "--weight", "1", "--weight", "-1"), 2, "above 0"),
        (("query", "red", "--fusion", "cold"), 2, "calibrated"),
        (("query", "--image", "missing.jpg"), 2, "missing.jpg"),
        (("query", "--image", "note.txt"), 2, "not an image"),
    ],
)
def test_bad_question_to_a_library_gets_one_clear_line(
    arguments: tuple[str, ...], code: int, words: str, indexed: Path
) -> None:
    (indexed / "note.txt").write_text("hello")
    refused(arguments, code, words, indexed)


def refused(arguments: tuple[str, ...], code: int, words: str, cwd: Path) -> None:
    done = run(*arguments, cwd=cwd, code=code)
    assert done.stdout == ""
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_library_of_a_later_version_or_another_model(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    draw(photos / "x.jpg")
    run("index", photos)
    catalog = photos / ".mmsearch" / "catalog.sqlite"
    shutil.copy(catalog, tmp_path / "kept.sqlite")
    with sqlite3.connect(catalog) as connection:
        connection.execute("UPDATE encoder SET weights_sha256 = ?", ("0" * 64,))
    connection.close()
    for command in (("query", "red", "--library", photos), ("index", photos)):
        said = run(*command, code=1).stderr
        (advice,) = re.findall(r"mmsearch (migrate .*)\n", said)
    assert json_of(*shlex.split(advice))["embedded"] == 1
    run("query", "red", "--library", photos)
    with sqlite3.connect(catalog) as connection:
        connection.execute("INSERT INTO migration VALUES ('m999_future', '')")
    connection.close()
    for command in (("query", "red", "--library", photos), ("index", photos)):
        assert "upgrade" in run(*command, code=1).stderr


def test_nothing_to_choose_from_is_exit_3_and_nothing_indexed_exit_4(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/broken.jpg").write_bytes(b"<html>")
    assert json_of("index", tmp_path / "photos", code=4)["problems"] == 1
    assert json_of("query", "red", "--library", tmp_path / "photos", code=3)["results"] == []


def test_names_cannot_steer_the_terminal_or_break_lines(tmp_path: Path) -> None:
    draw(tmp_path / "photos/evil\x1b[31m\nname.jpg")
    run("index", tmp_path / "photos")
    done = run("query", "red", cwd=tmp_path)
    assert done.stdout.endswith("\tevil\\x1b[31m\\nname.jpg\n")
    answer = json_of("query", "red", cwd=tmp_path)
    assert answer["results"][0]["path"] == "evil\x1b[31m\nname.jpg"


def test_name_that_is_no_valid_text_goes_out_as_its_bytes(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path / "photos") + b"/caf\xe9.jpg"
    draw(tmp_path / "photos/x.jpg").rename(os.fsdecode(raw))
    run("index", tmp_path / "photos")
    done = subprocess.run([MMSEARCH, "query", "red"], cwd=tmp_path, capture_output=True)
    assert done.stdout.endswith(b"\tcaf\xe9.jpg\n")


def many_photos(folder: Path, n: int = 160) -> Path:
    noise = np.random.default_rng(0)
    folder.mkdir()
    for i in range(n):
        values = noise.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(values).resize((640, 480)).save(folder / f"{i:04}.jpg")
        if i % 4 == 0:
            (folder / f"{i:04}.txt").write_text(f"noise number {i}\nand a second line {i}\n")
    return folder


def wait_for_files(folder: Path, n: int) -> None:
    """Return when the catalog holds at least `n` pictures."""
    deadline = time.monotonic() + 60
    catalog = folder / ".mmsearch/catalog.sqlite"
    while time.monotonic() < deadline:
        if catalog.is_file():
            try:
                with closing(sqlite3.connect(f"file:{catalog}?mode=ro", uri=True)) as connection:
                    (found,) = connection.execute("SELECT count(*) FROM file").fetchone()
            except sqlite3.Error:
                found = 0
            if found >= n:
                return
        time.sleep(0.01)
    pytest.fail(f"{n} pictures were not indexed in a minute")


def test_killed_at_any_instant_the_next_run_reaches_the_same_catalog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # To the last bit, which other arithmetic from some picture on would not be.
    monkeypatch.setenv("MMSEARCH_BFLOAT16", "0")
    photos = many_photos(tmp_path / "photos")
    other = tmp_path / "uninterrupted"
    shutil.copytree(photos, other, copy_function=shutil.copy2)
    run("index", other)
    chance = Random(0)
    for instant in range(4):
        process = subprocess.Popen([MMSEARCH, "index", str(photos)], stderr=subprocess.DEVNULL)
        wait_for_files(photos, 32 * instant)
        time.sleep(chance.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        run("status", "--library", photos)
    report = json_of("index", photos)
    assert report["embedded"] < 160
    assert rows(photos) == rows(other)
    with sqlite3.connect(photos / ".mmsearch/catalog.sqlite") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    connection.close()
    query = ("query", "noise", "-k", "160", "--all", "--no-group")
    assert (
        json_of(*query, "--library", photos)["results"]
        == json_of(*query, "--library", other)["results"]
    )


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_says_what_is_saved_and_continues(
    tmp_path: Path, stop: signal.Signals
) -> None:
    photos = many_photos(tmp_path / "photos", 400)
    process = subprocess.Popen(
        [MMSEARCH, "index", str(photos)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
    wait_for_files(photos, 32)
    process.send_signal(stop)
    out, talk = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    said = re.search(r"Saved: (\d+) of 400 .* Run the same command to continue", talk)
    assert said, talk
    saved = json_of("status", "--library", photos)["files"]
    # The signal may come between a commit and the word of it: never more is said than is saved.
    assert saved >= max(32, int(said[1]))
    assert saved - int(said[1]) in {0, 32}
    assert json_of("index", photos)["embedded"] == 400 - saved


def test_queries_answer_while_indexing(tmp_path: Path) -> None:
    photos = many_photos(tmp_path / "photos", 400)
    process = subprocess.Popen([MMSEARCH, "index", str(photos)], stderr=subprocess.DEVNULL)
    try:
        wait_for_files(photos, 32)
        assert json_of("query", "noise", "--all", "--library", photos)["considered"] >= 32
        second = run("index", photos, code=1)
        assert re.search(
            rf"Another mmsearch \(pid {process.pid}, mmsearch index, for \d+ s\) is writing to",
            second.stderr,
        )
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_on_a_terminal_there_is_a_bar_and_it_is_gone_at_the_end(tmp_path: Path) -> None:
    photos = many_photos(tmp_path / "photos", 64)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [MMSEARCH, "index", str(photos)],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"},
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:
            break
        if not part:
            break
        seen += part
    os.close(ours)
    assert process.wait() == 0
    assert process.stdout is not None
    assert process.stdout.read() == b""
    process.stdout.close()
    text = seen.decode()
    assert "Pictures" in text
    assert "64/64" in text
    assert re.search(r"(de|en)code-bound: \d worker|write-bound: encoder", text)
    assert "64 pictures in" in text.rpartition("64/64")[2]


def test_reader_that_stops_early_hears_no_complaint(indexed: Path) -> None:
    command = f"'{MMSEARCH}' query red --library 'my photos' | true"
    done = subprocess.run(["bash", "-c", command], cwd=indexed, capture_output=True, text=True)
    assert done.stderr == ""


def test_no_torch_for_help_status_and_a_text_query(indexed: Path) -> None:
    for arguments in (("--help",), ("status",), ("query", "red")):
        code = (
            "import sys; sys.argv = ['mmsearch', *sys.argv[1:]]\n"
            "from mmsearch.cli import app\n"
            "try: app()\n"
            "except SystemExit: pass\n"
            "print(sorted({'torch', 'transformers'} & set(sys.modules)), file=sys.stderr)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=indexed, capture_output=True, text=True
        )
        assert done.stdout
        assert done.stderr.strip() == "[]"


def test_version_and_help() -> None:
    assert re.fullmatch(r"mmsearch \d+\.\d+\.\d+\n", run("--version").stdout)
    for command in ("index", "query", "evaluate", "status"):
        text = run(command, "--help").stdout
        options = [line.split()[0] for line in text.splitlines() if line.startswith("  --")]
        assert options, command
        readme = (Path(__file__).parents[1] / "README.md").read_text()
        assert f"mmsearch {command}" in readme


def test_the_readme_s_python_runs(tmp_path: Path) -> None:
    for colour in ("red", "blue"):
        draw(tmp_path / f"photos/{colour}.jpg", colour)
    draw(tmp_path / "photos/sofa.jpg", "green")
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stderr == ""
    assert sorted(line.split()[-1] for line in done.stdout.splitlines()) == [
        "blue.jpg",
        "red.jpg",
        "sofa.jpg",
    ]


def test_a_model_folder_works_by_path_and_can_be_moved(tmp_path: Path) -> None:
    import mmsearch.retrieval.encoders as encoders

    bundled = Path(encoders.__file__).parent / "compact"
    model = tmp_path / "my model"
    shutil.copytree(bundled, model)
    draw(tmp_path / "photos/x.jpg")
    assert json_of("index", tmp_path / "photos", "--model", model)["added"] == 1
    run("query", "red", cwd=tmp_path)
    moved = model.rename(tmp_path / "moved")
    assert "--model NEW_FOLDER" in run("query", "red", cwd=tmp_path, code=1).stderr
    assert json_of("index", tmp_path / "photos", "--model", moved)["embedded"] == 0
    run("query", "red", cwd=tmp_path)

    tower = moved / "text.onnx"
    damaged = bytearray(tower.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    tower.write_bytes(damaged)
    assert "SHA-256" in run("query", "red", cwd=tmp_path, code=1).stderr
    tower.unlink()
    assert "lacks" in run("query", "red", cwd=tmp_path, code=1).stderr
    (moved / "encoder.json").write_text('{"format": 99}')
    assert "encoder.json" in run("query", "red", cwd=tmp_path, code=1).stderr


def unprivileged(*arguments: object, cwd: Path, code: int) -> str:
    """Run without the rights that let root read everything; return what was said."""
    without = "-dac_override,-dac_read_search"
    prefix = ["setpriv", f"--bounding-set={without}", f"--inh-caps={without}"]
    command = [*(prefix if os.geteuid() == 0 else []), MMSEARCH, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.skipif(
    os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root cannot be denied anything"
)
def test_missing_permissions_are_said_and_lose_nothing(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for name in ("x.jpg", "sub/y.jpg", "sub/z.jpg", "closed/v.jpg", "closed/w.jpg"):
        draw(photos / name, size=(40 + len(name) + ord(name[-5]), 30))
    run("index", photos)
    locked = (photos / "x.jpg", photos / "sub", photos / "closed")
    for path, mode in zip(locked, (0o000, 0o444, 0o000), strict=True):
        os.utime(photos / "x.jpg")
        path.chmod(mode)
    assert "5 pictures" in unprivileged("index", photos, cwd=tmp_path, code=0)
    status = json_of("status", "--problems", "--library", photos)
    assert (status["files"], status["problems"]) == (5, 4)
    assert {problem["kind"] for problem in status["problem_files"]} == {"unreadable"}
    for path in locked:
        path.chmod(0o755)
    report = json_of("index", photos)
    assert (report["unchanged"], report["problems"], report["embedded"]) == (5, 0, 0)

    (tmp_path / "secret").mkdir(mode=0o000)
    unprivileged("query", "red", cwd=tmp_path, code=0)
    assert "cannot be reached" in unprivileged("index", "secret/x", cwd=tmp_path, code=1)
    assert "no encoder" in unprivileged(
        "index", photos, "--model", "secret/m", cwd=tmp_path, code=1
    )
    folder = photos / ".mmsearch"
    folder.chmod(0o000)
    for command in (("query", "red", "-L", photos), ("status", "-L", photos)):
        assert "may not be read" in unprivileged(*command, cwd=tmp_path, code=1)
    folder.chmod(0o555)
    for path in folder.rglob("*"):
        path.chmod(path.stat().st_mode & 0o555)
    unprivileged("query", "red", "-L", photos, cwd=tmp_path, code=0)
    assert "cannot be" in unprivileged("index", photos, cwd=tmp_path, code=1)
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode | 0o700)


def test_a_forgotten_last_library_is_not_an_error(indexed: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    (state / "mmsearch").mkdir(parents=True)
    (state / "mmsearch/last-library").write_bytes(bytes(64))
    done = run("query", "red", cwd=tmp_path, code=1, XDG_STATE_HOME=str(state))
    assert "There is no library" in done.stderr


def test_words_that_are_no_valid_text_are_asked_all_the_same(indexed: Path) -> None:
    done = run("query", os.fsdecode(b"caf\xe9"), "--all", "--json", cwd=indexed)
    assert json.loads(done.stdout)["results"]


def test_streams_that_cannot_take_everything(tmp_path: Path) -> None:
    draw(tmp_path / "photos/写真.jpg")
    run("index", tmp_path / "photos")
    done = run("query", "red", cwd=tmp_path, PYTHONIOENCODING="cp1252")
    assert done.stdout.endswith("\\u5199\\u771f.jpg\n")
    for redirection in (">&-", "> /dev/full"):
        command = f"'{MMSEARCH}' query red {redirection}"
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
        assert "Traceback" not in done.stderr


def test_a_folders_name_cannot_steer_the_terminal(tmp_path: Path) -> None:
    photos = tmp_path / "evil\x1b[31m"
    draw(photos / "x.jpg")
    for done in (run("index", photos), run("status", cwd=tmp_path)):
        assert "\x1b" not in done.stdout + done.stderr
        assert "evil\\x1b[31m" in done.stdout + done.stderr
