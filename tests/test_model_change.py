from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path
from threading import Thread

import pytest
from typer.testing import CliRunner, Result

import mmsearch
from mmsearch.cli import app
from mmsearch.errors import LibraryLocked, LibraryNotFound, ModelError, ModelMismatch, SourceError
from mmsearch.retrieval import engine as engine_module
from mmsearch.retrieval import model_change
from mmsearch.retrieval.catalog import EncoderRow
from mmsearch.retrieval.ingest import index
from mmsearch.retrieval.library import Library
from mmsearch.retrieval.model_change import cancel, drop_old, migrate
from tests.conftest import ColourEncoder, draw
from tests.test_cli import MMSEARCH, json_of, many_photos, run
from tests.test_ingest import NAMES, InterruptedEncoder, rows


class Named(ColourEncoder):
    """An encoder that `load_encoder` can find again, by the fixture `findable`."""

    @property
    def location(self) -> str:
        return f"colour-{self.spec.revision}"


@pytest.fixture
def findable(monkeypatch: pytest.MonkeyPatch) -> dict[str, ColourEncoder]:
    """Encoders by their locations, for `load_encoder`."""
    known: dict[str, ColourEncoder] = {}

    def find(name: str | ColourEncoder, *, asking: bool = False) -> ColourEncoder:
        return known[name] if isinstance(name, str) else name

    for module in (model_change, engine_module):
        monkeypatch.setattr(module, "load_encoder", find)
    return known


def encoders(photos: Path) -> list[EncoderRow]:
    with closing(Library.open(photos)) as library:
        return library.catalog.encoders()


def stamp(photos: Path) -> str:
    with closing(Library.open(photos)) as library:
        return library.catalog.stamp()


def interrupted(photos: Path, after: int = 4) -> None:
    with pytest.raises(KeyboardInterrupt):
        migrate(photos, model=InterruptedEncoder(after, revision="2"))


def test_everything_is_embedded_and_the_old_vectors_go(
    photos: Path, encoder: ColourEncoder
) -> None:
    (photos / "red.txt").write_text("red")
    index(photos, model=encoder)
    newer = ColourEncoder("2")
    report = migrate(photos, model=newer)
    assert (newer.embedded_images, newer.embedded_texts) == (6, 1 + NAMES)
    assert (report.model, report.before, report.switched) == ("colour@2", "colour@1", True)
    assert (report.embedded, report.files, report.kept) == (6, 6, 0)
    assert [row.spec.label for row in encoders(photos)] == ["colour@2"]
    with pytest.raises(ModelMismatch, match="colour@2"):
        mmsearch.open(photos, model=encoder)
    with mmsearch.open(photos, model=newer) as engine:
        assert engine.search("red", k=1).hits[0].path == "red.jpg"
        assert engine.search(image=photos / "red.jpg", to="captions").hits[0].caption == "red"


def test_the_result_is_that_of_indexing_with_the_new_model(
    photos: Path, tmp_path: Path, encoder: ColourEncoder
) -> None:
    (photos / "trip/blue.txt").write_text("a blue sky")
    shutil.copy(photos / "red.jpg", photos / "copy.jpg")
    other = tmp_path / "other"
    shutil.copytree(photos, other, copy_function=shutil.copy2)
    index(other, model=ColourEncoder("2"))
    index(photos, model=encoder)
    newer = ColourEncoder("2")
    migrate(photos, model=newer)
    assert rows(photos) == rows(other)
    # One copy of two is embedded.
    assert newer.embedded_images == 6


def test_until_it_is_complete_the_old_vectors_answer_from_the_same_index_file(
    photos: Path, encoder: ColourEncoder
) -> None:
    index(photos, model=encoder)
    before = stamp(photos)
    with mmsearch.open(photos, model=encoder) as engine:
        expected = engine.search("red", k=6).hits
        interrupted(photos)
        assert engine.search("red", k=6).hits == expected
    old, new = encoders(photos)
    assert (old.active, old.next, old.vectors) == (True, False, 6)
    assert (new.active, new.next, new.vectors) == (False, True, 4)
    # Vectors that do not answer yet make no index stale.
    assert stamp(photos) == before


def test_an_interrupted_change_goes_on_without_being_told_the_model(
    photos: Path, encoder: ColourEncoder, findable: dict[str, ColourEncoder]
) -> None:
    index(photos, model=encoder)
    interrupted(photos)
    findable["colour"] = newer = ColourEncoder("2")
    report = migrate(photos)
    assert (report.embedded, report.files, newer.embedded_images) == (2, 6, 2)
    with mmsearch.open(photos, model=newer) as engine:
        assert len(engine) == 6


def test_another_model_is_refused_while_a_change_is_under_way(
    photos: Path, encoder: ColourEncoder
) -> None:
    index(photos, model=encoder)
    interrupted(photos)
    with pytest.raises(ModelError, match=r"changing to colour@2, not to colour@3.*--cancel"):
        migrate(photos, model=ColourEncoder("3"))
    forgotten = cancel(photos)
    assert forgotten is not None
    assert (forgotten.spec.label, forgotten.vectors) == ("colour@2", 4)
    assert cancel(photos) is None
    assert [row.spec.label for row in encoders(photos)] == ["colour@1"]
    assert migrate(photos, model=ColourEncoder("3")).embedded == 6


def test_kept_vectors_make_the_way_back_free(photos: Path, encoder: ColourEncoder) -> None:
    index(photos, model=encoder)
    report = migrate(photos, model=ColourEncoder("2"), keep_old=True)
    # Six vectors of 13 numbers in half precision.
    assert report.kept == 6 * 13 * 2
    draw(photos / "more.jpg", "red", (99, 40))
    index(photos, model=ColourEncoder("2"))
    back = ColourEncoder("1")
    assert migrate(photos, model=back, keep_old=True).embedded == 1
    with mmsearch.open(photos, model=back) as engine:
        assert {hit.path for hit in engine.search("red", k=2).hits} == {"red.jpg", "more.jpg"}
    (dropped,) = drop_old(photos)
    assert (dropped.spec.label, dropped.vectors) == ("colour@2", 7)
    assert drop_old(photos) == []
    with mmsearch.open(photos, model=back) as engine:
        assert len(engine) == 7


def test_the_present_model_is_nothing_to_change_to(photos: Path, encoder: ColourEncoder) -> None:
    index(photos, model=encoder)
    before = stamp(photos)
    report = migrate(photos, model=ColourEncoder("1"))
    assert (report.embedded, report.switched, stamp(photos)) == (0, True, before)


def test_without_a_library_or_a_model_it_says_what_to_do(
    photos: Path, encoder: ColourEncoder
) -> None:
    with pytest.raises(LibraryNotFound, match="mmsearch index"):
        migrate(photos, model=encoder)
    index(photos, model=encoder)
    with pytest.raises(ModelError, match="mmsearch migrate --model MODEL"):
        migrate(photos)
    with closing(Library.open(photos)) as library, library.indexing():
        for attempt in (lambda: migrate(photos, model=encoder), lambda: cancel(photos)):
            with pytest.raises(LibraryLocked):
                attempt()


def test_vanished_and_changed_files_are_left_for_the_next_index(
    photos: Path, encoder: ColourEncoder
) -> None:
    index(photos, model=encoder)
    (photos / "red.jpg").unlink()
    draw(photos / "green.jpg", "white", (77, 40))
    newer = ColourEncoder("2")
    report = migrate(photos, model=newer)
    assert (report.vanished, report.changed, report.switched, report.files) == (1, 1, True, 4)
    report = index(photos, model=newer)
    assert (report.removed, report.updated, report.unchanged) == (1, 1, 4)
    with mmsearch.open(photos, model=newer) as engine:
        assert {hit.path for hit in engine.search("white", k=2).hits} == {
            "green.jpg",
            "white.jpg",
        }


def test_a_copy_stands_in_for_a_file_that_vanished(photos: Path, encoder: ColourEncoder) -> None:
    shutil.copy(photos / "red.jpg", photos / "zz.jpg")
    index(photos, model=encoder)
    (photos / "red.jpg").unlink()
    report = migrate(photos, model=ColourEncoder("2"))
    assert (report.vanished, report.files) == (1, 7)


def test_what_cannot_be_read_now_keeps_the_old_model_answering(
    photos: Path, encoder: ColourEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    index(photos, model=encoder)
    opened = Path.open

    def refuse(self: Path, *args: object, **kwargs: object) -> object:
        if self.name == "red.jpg":
            raise PermissionError(13, "Permission denied")
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    report = migrate(photos, model=ColourEncoder("2"))
    assert (report.switched, report.unreadable, report.files) == (False, 1, 5)
    with mmsearch.open(photos, model=encoder) as engine:
        assert engine.search("red", k=1).hits[0].path == "red.jpg"
    report = migrate(photos, model=ColourEncoder("2"), leave_out=True)
    assert (report.switched, report.embedded, report.files) == (True, 0, 5)
    monkeypatch.undo()
    assert index(photos, model=ColourEncoder("2")).embedded == 1
    with mmsearch.open(photos, model=ColourEncoder("2")) as engine:
        assert engine.search("red", k=1).hits[0].path == "red.jpg"


def test_a_file_that_broke_becomes_a_problem_at_the_switch(
    photos: Path, encoder: ColourEncoder
) -> None:
    index(photos, model=encoder)
    (photos / "red.jpg").write_bytes(b"<html>")
    interrupted(photos, after=3)
    with mmsearch.open(photos, model=encoder) as engine:
        assert len(engine) == 6
    report = migrate(photos, model=ColourEncoder("2"))
    assert (report.damaged, report.switched, report.files) == (1, True, 5)
    with closing(Library.open(photos)) as library:
        assert [problem.kind for problem in library.catalog.problems()] == ["not-an-image"]


def test_an_unplugged_disk_switches_nothing(photos: Path, encoder: ColourEncoder) -> None:
    index(photos, model=encoder)
    for path in photos.rglob("*.jpg"):
        path.rename(path.with_suffix(".away"))
    with pytest.raises(SourceError, match="disk plugged in"):
        migrate(photos, model=ColourEncoder("2"))
    with mmsearch.open(photos, model=encoder) as engine:
        assert len(engine) == 6
    for path in photos.rglob("*.away"):
        path.rename(path.with_suffix(".jpg"))
    assert migrate(photos, model=ColourEncoder("2")).files == 6


def test_what_index_does_during_a_change_is_part_of_it(
    photos: Path, encoder: ColourEncoder
) -> None:
    shutil.copy(photos / "green.jpg", photos / "zz.jpg")
    index(photos, model=encoder)
    interrupted(photos)
    (photos / "zz.jpg").rename(photos / "moved.jpg")
    (photos / "red.jpg").unlink()
    shutil.copy(photos / "green.jpg", photos / "a copy.jpg")
    draw(photos / "new.jpg", "yellow", (120, 40))
    (photos / "new.txt").write_text("a yellow card")
    index(photos, model=encoder)
    newer = ColourEncoder("2")
    assert migrate(photos, model=newer).files == 8
    with mmsearch.open(photos, model=newer) as engine:
        assert {hit.path for hit in engine.search("green", k=3).hits} == {
            "green.jpg",
            "moved.jpg",
            "a copy.jpg",
        }
        assert len(engine) == 8
    other = photos.parent / "afresh"
    shutil.copytree(photos, other, copy_function=shutil.copy2, ignore=lambda *_: [".mmsearch"])
    index(other, model=ColourEncoder("2"))
    assert vectors_by_path(photos) == vectors_by_path(other)


def vectors_by_path(photos: Path) -> dict[str, bytes]:
    return {row[2]: row[13] for row in rows(photos)}  # type: ignore[misc]


def test_an_engine_with_a_chosen_encoder_refuses_vectors_of_another(
    photos: Path, encoder: ColourEncoder
) -> None:
    index(photos, model=encoder)
    with mmsearch.open(photos, model=encoder) as engine:
        assert engine.search("red", k=1).hits
        migrate(photos, model=ColourEncoder("2"))
        with pytest.raises(ModelMismatch, match="colour@2"):
            engine.search("red", k=1)


def test_queries_never_fail_while_the_model_changes(
    photos: Path, findable: dict[str, ColourEncoder]
) -> None:
    for i in range(40):
        draw(photos / f"more/{i:02}.png", "blue", (20 + i, 40))
    index(photos, model=Named("1"))
    findable |= {f"colour-{revision}": Named(revision) for revision in ("1", "2")}
    with mmsearch.open(photos) as engine:
        change = Thread(target=migrate, args=(photos,), kwargs={"model": "colour-2"})
        change.start()
        models = []
        while True:
            running = change.is_alive()
            answer = engine.search("red", k=1)
            assert (answer.hits[0].path, answer.considered) == ("red.jpg", 46)
            models.append(answer.model)
            if not running:
                break
        change.join()
    assert models[-1] == "colour@2"
    # Once switched, it stays switched.
    assert models == sorted(models)


def ask(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled encoder under another revision: a model of its own, with real files."""
    import mmsearch.retrieval.encoders as package

    folder = tmp_path_factory.mktemp("model") / "my model"
    shutil.copytree(Path(package.__file__).parent / "compact", folder)
    config = json.loads((folder / "encoder.json").read_text())
    (folder / "encoder.json").write_text(json.dumps(config | {"revision": "mine"}))
    return folder


def test_on_the_command_line(photos: Path, model_folder: Path) -> None:
    def fields(*arguments: object, code: int = 0) -> dict[str, object]:
        done = ask(*arguments, "--library", photos, "--json")
        assert done.exit_code == code, (done.output, done.exception)
        found: dict[str, object] = json.loads(done.stdout)
        assert found["schema"] == 1
        return found

    assert ask("index", photos).exit_code == 0
    assert fields("migrate", "--status") | {"library": ""} == {
        "schema": 1,
        "library": "",
        "model": fields("status")["model"],
        "migration": None,
        "kept_models": [],
    }
    report = fields("migrate", "--model", model_folder, "--keep-old")
    assert (report["model"], report["switched"], report["embedded"]) == ("compact@mine", True, 6)
    assert set(report["shares"]) == {"scan", "decode", "encode", "write"}  # type: ignore[arg-type]
    (kept,) = fields("status")["kept_models"]  # type: ignore[misc]
    assert kept["vectors"] == 6
    assert "--drop-old" in ask("status", "--library", photos).stdout
    assert fields("migrate", "--drop-old")["dropped"] == [kept["model"]]
    assert fields("migrate", "--drop-old", code=3)["dropped"] == []
    assert fields("migrate", "--cancel", code=3)["dropped"] == []
    assert ask("query", "red", "--library", photos).exit_code == 0
    assert ask("migrate", "--cancel", "--status").exit_code == 2
    assert "compact@mine answers" in ask("migrate", "--status", "-L", photos).stderr


N = 96


def test_killed_at_any_instant_it_goes_on_and_ends_as_if_it_was_not(
    tmp_path: Path, model_folder: Path
) -> None:
    photos = many_photos(tmp_path / "photos", N)
    run("index", photos)
    old = json_of("status", "--library", photos)["model"]
    other = tmp_path / "uninterrupted"
    shutil.copytree(photos, other, copy_function=shutil.copy2)
    run("migrate", "--model", model_folder, "--library", other)
    for instant in (0, 1, 2):
        command = [MMSEARCH, "migrate", "--model", str(model_folder), "--library", str(photos)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        wait_for_new_vectors(photos, 32 * instant)
        process.send_signal(signal.SIGKILL)
        process.wait()
        answer = json_of("query", "noise", "--all", "-k", 3, "--library", photos)
        assert (answer["model"], answer["considered"]) == (old, N)
    report = json_of("migrate", "--library", photos)
    assert report["embedded"] <= N - 64
    assert (report["switched"], report["files"]) == (True, N)
    assert rows(photos) == rows(other)


def wait_for_new_vectors(photos: Path, n: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        following = [row.vectors for row in encoders(photos) if row.next]
        if following and following[0] >= n:
            return
        time.sleep(0.01)
    pytest.fail(f"{n} pictures were not embedded in a minute")


def test_interrupted_it_says_what_is_saved_and_how_to_go_on(
    tmp_path: Path, model_folder: Path
) -> None:
    photos = many_photos(tmp_path / "photos", N)
    run("index", photos)
    process = subprocess.Popen(
        [MMSEARCH, "migrate", "--model", str(model_folder), "--library", str(photos)],
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_new_vectors(photos, 32)
    process.send_signal(signal.SIGTERM)
    _, talk = process.communicate(timeout=60)
    assert process.returncode == 130
    said = re.search(r"Saved: \d+ % \((\d+) of 96 pictures\).*: mmsearch (migrate .*)\n", talk)
    assert said, talk
    report = json_of(*shlex.split(said[2]))
    assert (report["switched"], report["embedded"]) == (True, N - int(said[1]))


def test_the_status_says_how_far_a_change_is(photos: Path, encoder: ColourEncoder) -> None:
    index(photos, model=encoder)
    interrupted(photos)
    done = ask("status", "--library", photos)
    assert "migrating to colour@2: 66 % (4 of 6 pictures" in done.stdout
    assert "migrating to colour@2: 66 %" in ask("migrate", "--status", "-L", photos).stdout
    done = ask("migrate", "--cancel", "--library", photos)
    assert "Dropped 4 vectors of colour@2" in done.stderr
    assert "migrating" not in ask("status", "--library", photos).stdout


def test_a_library_from_before_this_column_is_brought_up_to_date(
    photos: Path, encoder: ColourEncoder
) -> None:
    index(photos, model=encoder)
    with closing(sqlite3.connect(photos / ".mmsearch/catalog.sqlite")) as connection, connection:
        connection.execute("ALTER TABLE library DROP COLUMN next_encoder_id")
        connection.execute("DELETE FROM migration WHERE name = 'm003_next_encoder'")
    assert migrate(photos, model=ColourEncoder("2")).files == 6


def test_originals_are_only_read(photos: Path, encoder: ColourEncoder) -> None:
    index(photos, model=encoder)

    def listing() -> dict[Path, tuple[bytes, int]]:
        return {
            path: (path.read_bytes(), path.stat().st_mtime_ns) for path in photos.rglob("*.jpg")
        }

    before = listing()
    migrate(photos, model=ColourEncoder("2"))
    assert listing() == before
