"""Following a folder: real files, the real watcher, and the same by listing again and again."""

from __future__ import annotations

import json
import queue
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import mmsearch
from mmsearch.errors import SourceError
from mmsearch.retrieval import changes, watching
from mmsearch.retrieval.changes import EventsFailed, network_file_system
from mmsearch.retrieval.embedding import Progress
from mmsearch.retrieval.library import Library
from mmsearch.retrieval.schema import Target
from mmsearch.retrieval.settling import Settling
from mmsearch.retrieval.watching import WatchEvent, WatchKind
from tests.conftest import ColourEncoder, draw, heed_interrupts
from tests.test_cli import MMSEARCH, many_photos, wait_for_files

PATIENCE_S = 60
"""How long nothing at all may happen. How long it takes is the machine's affair."""


class Watched:
    """A folder that is watched in a thread of its own."""

    def __init__(self, folder: Path, encoder: ColourEncoder, **options: object) -> None:
        self.folder = folder
        self.encoder = encoder
        self.events: queue.Queue[WatchEvent | BaseException] = queue.Queue()
        self.seen: list[WatchEvent] = []
        self._stop = threading.Event()
        self._alive_at = time.monotonic()
        watched = mmsearch.watch(
            folder, model=encoder, stop=self._stop, progress=self._note, **options
        )
        self._thread = threading.Thread(target=self._follow, args=(watched,))
        self._thread.start()

    def _follow(self, watched: Iterator[WatchEvent]) -> None:
        try:
            for event in watched:
                self.events.put(event)
        except BaseException as error:  # told in the test's own thread
            self.events.put(error)

    def _note(self, _: Progress) -> None:
        self._alive_at = time.monotonic()

    def until(self, true: Callable[[WatchEvent], bool]) -> WatchEvent:
        self._alive_at = time.monotonic()
        while time.monotonic() < self._alive_at + PATIENCE_S:
            try:
                event = self.events.get(timeout=0.1)
            except queue.Empty:
                assert self._thread.is_alive(), self.seen
                continue
            if isinstance(event, BaseException):
                raise event
            self.seen.append(event)
            self._alive_at = time.monotonic()
            if true(event):
                return event
        told = [(event.kind, event.message, event.report) for event in self.seen[-9:]]
        pytest.fail(f"nothing happened for a minute; what did before: {told}")

    def kind(self, kind: WatchKind) -> WatchEvent:
        return self.until(lambda event: event.kind is kind)

    def holds(self, *paths: str) -> None:
        """Wait until the library holds these pictures, and no others."""
        self.until(
            lambda event: event.kind is WatchKind.INDEXED and set(self.paths()) == set(paths)
        )

    def paths(self) -> dict[str, int]:
        with closing(Library.open(self.folder)) as library:
            row = library.catalog.library()
            assert row.encoder_id is not None
            return {p: f.id for p, f in library.catalog.known_files(row.encoder_id).items()}

    def captions(self) -> dict[str, str]:
        with mmsearch.open(self.folder, model=self.encoder) as library:
            found = library.search("red", to=Target.CAPTIONS, k=20, words=False)
            return {hit.path: hit.caption for hit in found.hits if hit.caption is not None}

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


@pytest.fixture(params=["told", "listed"])
def watched(
    request: pytest.FixtureRequest, tmp_path: Path, encoder: ColourEncoder
) -> Iterator[Watched]:
    folder = tmp_path / "my photos"
    draw(folder / "red.jpg", "red", (48, 32))
    draw(folder / "trip/green.jpg", "green", (49, 32))
    one = Watched(folder, encoder, poll=0.2 if request.param == "listed" else None, settle=0.3)
    how = WatchKind.POLLING if request.param == "listed" else WatchKind.WATCHING
    one.kind(how)
    one.holds("red.jpg", "trip/green.jpg")
    yield one
    one.stop()


def test_adds_changes_moves_and_deletes_are_followed(watched: Watched) -> None:
    folder = watched.folder
    draw(folder / "new/album/blue.jpg", "blue", (50, 32))
    draw(folder / ".hidden/x.jpg")
    (folder / "notes.docx").write_text("not a picture")
    watched.holds("red.jpg", "trip/green.jpg", "new/album/blue.jpg")
    # A change.
    draw(folder / "red.jpg", "yellow", (70, 40))
    event = watched.until(lambda event: event.report is not None and event.report.updated == 1)
    assert event.places == ("red.jpg",)
    # A move keeps the id, and embeds nothing; that of a folder too.
    before, embedded = watched.paths(), watched.encoder.embedded_images
    (folder / "red.jpg").rename(folder / "new/renamed.jpg")
    (folder / "trip").rename(folder / "journey")
    watched.holds("new/renamed.jpg", "journey/green.jpg", "new/album/blue.jpg")
    now = watched.paths()
    assert now["new/renamed.jpg"] == before["red.jpg"]
    assert now["journey/green.jpg"] == before["trip/green.jpg"]
    assert watched.encoder.embedded_images == embedded
    # Deletes, of a file and of a folder.
    (folder / "journey/green.jpg").unlink()
    watched.holds("new/renamed.jpg", "new/album/blue.jpg")
    draw(folder / "last.jpg", "white", (51, 32))
    watched.holds("new/renamed.jpg", "new/album/blue.jpg", "last.jpg")
    shutil.rmtree(folder / "new")
    watched.holds("last.jpg")
    assert sum(e.report.problems for e in watched.seen if e.report is not None) == 0


def test_captions_beside_pictures_are_followed(watched: Watched) -> None:
    folder, embedded = watched.folder, watched.encoder.embedded_images
    (folder / "red.txt").write_text("a red wall")
    watched.until(lambda event: event.report is not None and event.report.captions == 1)
    assert watched.captions() == {"red.jpg": "a red wall"}
    (folder / "red.txt").write_text("a barn door, red")
    watched.until(lambda _: watched.captions() == {"red.jpg": "a barn door, red"})
    # They move with their picture, and go with their file.
    (folder / "red.jpg").rename(folder / "trip/barn.jpg")
    (folder / "red.txt").rename(folder / "trip/barn.txt")
    watched.until(lambda _: watched.captions() == {"trip/barn.jpg": "a barn door, red"})
    (folder / "trip/barn.txt").unlink()
    watched.until(lambda event: event.report is not None and event.report.captions == 0)
    assert watched.encoder.embedded_images == embedded


def test_ignore_rules_are_followed(watched: Watched) -> None:
    (watched.folder / ".mmsearchignore").write_text("trip/\n")
    if watched.seen[0].kind is WatchKind.POLLING:
        watched.holds("red.jpg")
    else:
        watched.holds("red.jpg")
        assert watched.seen[-1].places is None, "the whole folder is looked at"
    draw(watched.folder / "trip/x.jpg", "blue", (60, 32))
    draw(watched.folder / "x.jpg", "blue", (61, 32))
    watched.holds("red.jpg", "x.jpg")


def test_a_file_that_grows_is_read_when_it_is_whole(watched: Watched, tmp_path: Path) -> None:
    content = draw(tmp_path / "large.bmp", "blue", (300, 200)).read_bytes()
    half = len(content) // 2
    with (watched.folder / "copied.bmp").open("wb") as file:
        for start in range(0, half, half // 10):
            file.write(content[start : min(start + half // 10, half)])
            file.flush()
            time.sleep(0.15)
        # Somebody else's picture is not held up by that.
        draw(watched.folder / "quick.jpg", "white", (52, 32))
        for start in range(half, len(content), half // 10):
            file.write(content[start : start + half // 10])
            file.flush()
            time.sleep(0.15)
    watched.holds("red.jpg", "trip/green.jpg", "quick.jpg", "copied.bmp")
    problems = [event.report.problems for event in watched.seen if event.report is not None]
    assert set(problems) == {0}


def test_a_folder_that_goes_away_is_not_forgotten(watched: Watched) -> None:
    elsewhere = watched.folder.with_name("unplugged")
    before = watched.paths()
    watched.folder.rename(elsewhere)
    watched.kind(WatchKind.GONE)
    # What an unplugged disk leaves: an empty folder.
    watched.folder.mkdir()
    time.sleep(1.5)
    assert watched.events.empty()
    watched.folder.rmdir()
    draw(elsewhere / "meanwhile.jpg", "blue", (53, 32))
    elsewhere.rename(watched.folder)
    watched.kind(WatchKind.BACK)
    watched.holds("red.jpg", "trip/green.jpg", "meanwhile.jpg")
    assert before.items() <= watched.paths().items()
    draw(watched.folder / "after.jpg", "white", (54, 32))
    watched.holds("red.jpg", "trip/green.jpg", "meanwhile.jpg", "after.jpg")


def test_another_writer_is_waited_for(watched: Watched) -> None:
    with closing(Library.open(watched.folder)) as library, library.indexing():
        draw(watched.folder / "new.jpg", "blue", (55, 32))
        event = watched.kind(WatchKind.WAITING)
        assert "Another mmsearch (pid " in event.message
        time.sleep(1.5)
        assert watched.events.empty()
    watched.holds("red.jpg", "trip/green.jpg", "new.jpg")


def test_a_library_that_is_deleted_is_made_again(watched: Watched) -> None:
    shutil.rmtree(watched.folder / ".mmsearch")
    draw(watched.folder / "new.jpg", "blue", (56, 32))
    watched.holds("red.jpg", "trip/green.jpg", "new.jpg")


def test_a_new_model_is_taken_over(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    other = ColourEncoder("2")
    mmsearch.migrate(watched.folder, model=other)
    monkeypatch.setattr(watching, "load_encoder", lambda _: other)
    draw(watched.folder / "new.jpg", "blue", (57, 32))
    watched.holds("red.jpg", "trip/green.jpg", "new.jpg")
    assert other.embedded_images == 3


def test_a_burst_of_events_is_a_few_runs(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "MANY", 50)
    for i in range(100):
        shutil.copyfile(watched.folder / "red.jpg", watched.folder / f"{i}.jpg")
    watched.until(lambda event: event.report is not None and event.report.files == 102)
    assert any(event.places is None for event in watched.seen[2:]), "many are no longer told apart"
    runs, embedded = len(watched.seen), watched.encoder.embedded_images
    for i in range(10_000):
        (watched.folder / f"{i % 100}.jpg").touch()
    draw(watched.folder / "last.jpg", "blue", (60, 32))
    watched.until(lambda event: event.report is not None and event.report.files == 103)
    assert len(watched.seen) - runs < 10
    assert watched.encoder.embedded_images == embedded + 1


@pytest.mark.slow
def test_ten_thousand_files_come_and_go(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    # A transaction for each four would be all that is measured.
    monkeypatch.setattr(ColourEncoder, "batch_size", 512)
    content = (watched.folder / "red.jpg").read_bytes()
    folder = watched.folder / "burst"
    for i in range(10_000):
        draw_to = folder / f"{i % 20}/{i}.jpg"
        draw_to.parent.mkdir(parents=True, exist_ok=True)
        draw_to.write_bytes(content + str(i).encode())  # which a decoder does not look at
    watched.until(lambda event: event.report is not None and event.report.files == 10_002)
    assert len(watched.paths()) == 10_002
    before, embedded = len(watched.seen), watched.encoder.embedded_images
    folder.rename(watched.folder / "moved")
    moved = 0

    def all_moved(event: WatchEvent) -> bool:
        nonlocal moved
        moved += 0 if event.report is None else event.report.moved
        return moved == 10_000

    watched.until(all_moved)
    assert watched.encoder.embedded_images == embedded
    shutil.rmtree(watched.folder / "moved")
    watched.holds("red.jpg", "trip/green.jpg")
    removed = [e.report.removed for e in watched.seen[before:] if e.report is not None]
    assert sum(removed) == 10_000, "what moved was never gone"


def test_an_empty_folder_waits_for_its_first_picture(
    tmp_path: Path, encoder: ColourEncoder
) -> None:
    (tmp_path / "inbox").mkdir()
    one = Watched(tmp_path / "inbox", encoder)
    try:
        assert "No pictures were found" in one.kind(WatchKind.FAILED).message
        assert not (tmp_path / "inbox/.mmsearch").exists()
        draw(tmp_path / "inbox/first.jpg")
        one.holds("first.jpg")
    finally:
        one.stop()
    with pytest.raises(SourceError, match="no folder"):
        mmsearch.watch(tmp_path / "missing")


def test_names_that_are_no_text_do_not_end_it(tmp_path: Path, encoder: ColourEncoder) -> None:
    draw(tmp_path / "a.jpg")
    one = Watched(tmp_path, encoder)
    try:
        one.holds("a.jpg")
        odd = tmp_path / "caf\udce9.jpg"
        try:
            shutil.copyfile(tmp_path / "a.jpg", odd)
        except (OSError, UnicodeError):
            pytest.skip("this file system takes text only")
        one.holds("a.jpg", odd.name)
        draw(tmp_path / "b.jpg", "blue", (59, 32))
        one.holds("a.jpg", odd.name, "b.jpg")
    finally:
        one.stop()


def test_where_the_system_has_no_room_it_is_listed(
    tmp_path: Path, encoder: ColourEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    import watchfiles

    def full(*_: object, **__: object) -> Iterator[set[tuple[int, str]]]:
        raise OSError('OS file watch limit reached. about ["x"] (Error { kind: MaxFilesWatch')
        yield set()

    monkeypatch.setattr(watchfiles, "watch", full)
    monkeypatch.setattr(watching, "POLL_S", 0.2)
    draw(tmp_path / "a.jpg")
    one = Watched(tmp_path, encoder)
    try:
        said = one.kind(WatchKind.POLLING).message
        assert "watches no more folders" in said
        assert "sudo sysctl fs.inotify.max_user_watches=" in said
        one.holds("a.jpg")
        draw(tmp_path / "b.jpg", "blue", (59, 32))
        one.holds("a.jpg", "b.jpg")
    finally:
        one.stop()


def test_network_folders_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    mounted: list[tuple[str, str, str]] = []

    class Mounted:
        def __init__(self, place: str, kind: str, options: str) -> None:
            self.mountpoint, self.fstype, self.opts = place, kind, options

    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: [Mounted(*one) for one in mounted])
    share = str(tmp_path / "share")
    for mounts, kind in (
        ([("/", "ext4", "rw")], None),
        ([("/", "ext4", "rw"), (share, "nfs4", "rw")], "nfs4"),
        ([(share, "cifs", "rw"), ("/", "ext4", "rw")], "cifs"),
        ([("/", "ext4", "rw"), (share, "fuse.sshfs", "rw")], "fuse.sshfs"),
        ([("/", "ext4", "rw"), (share, "fuseblk", "rw")], None),
        ([("/", "nfs", "rw"), (share, "ext4", "rw")], None),
        ([("/", "ext4", "rw"), (share, "nfs", "rw"), (share, "xfs", "rw")], None),
        ([("/", "ext4", "rw"), (f"{share}/photos/2024", "smb3", "rw")], "smb3"),
        ([("/", "NTFS", "rw,remote")], "NTFS"),
        ([("/", "ext4", "rw"), (f"{share}/photos-else", "nfs", "rw")], None),
    ):
        mounted[:] = mounts
        assert network_file_system(tmp_path / "share/photos") == kind, mounts


def test_on_a_network_it_is_listed(
    tmp_path: Path, encoder: ColourEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "network_file_system", lambda _: "nfs4")
    draw(tmp_path / "a.jpg")
    one = Watched(tmp_path, encoder)
    try:
        assert "because it lies on a network (nfs4)" in one.kind(WatchKind.POLLING).message
        one.holds("a.jpg")
    finally:
        one.stop()


def test_new_folders_beyond_the_limit_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = changes.SystemEvents(tmp_path, threading.Event())
    with closing(source):
        monkeypatch.setattr(
            source, "_listen", lambda *_, **__: iter(lambda: full(), None), raising=True
        )

        def full() -> None:
            raise OSError("OS file watch limit reached. about")

        (tmp_path / "new").mkdir()

        def wait_for_it() -> None:
            for _ in range(100):
                source.wait(0.1)

        with pytest.raises(EventsFailed, match="no more folders"):
            wait_for_it()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_what_is_quiet_is_due(tmp_path: Path) -> None:
    clock = Clock()
    settling = Settling(tmp_path, settle=1.0, patience=10.0, clock=clock)
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"1")
    settling.note(["a", "b"])
    assert settling.due() == set()
    clock.now += 0.9
    settling.note(["b"])
    clock.now += 0.2
    assert settling.due() == {"a"}
    assert settling.rest({"a"}) == {"b"}
    settling.done({"a"})
    clock.now += 0.8
    assert settling.due() == {"b"}


def test_constant_change_is_due_in_time_but_a_growing_file_is_not(tmp_path: Path) -> None:
    clock = Clock()
    settling = Settling(tmp_path, settle=1.0, patience=10.0, clock=clock)
    (tmp_path / "webcam").write_bytes(b"12345")
    (tmp_path / "copy").write_bytes(b"1")
    due: dict[str, float] = {}
    for tenth in range(250):
        with (tmp_path / "copy").open("ab") as file:
            file.write(b"1")
        settling.note(["webcam", "copy"])
        clock.now += 0.1
        for place in settling.due():
            due.setdefault(place, tenth / 10)
    assert due == {"webcam": pytest.approx(9.9)}
    clock.now += 1
    assert settling.due() == {"webcam", "copy"}


def test_what_is_gone_waits_for_what_comes(tmp_path: Path) -> None:
    clock = Clock()
    settling = Settling(tmp_path, settle=1.0, patience=10.0, clock=clock)
    (tmp_path / "new").write_bytes(b"1")
    settling.note(["old", "new"])
    clock.now += 0.9
    settling.note(["new"])
    clock.now += 0.5
    assert settling.due() == set()
    clock.now += 0.6
    assert settling.due() == {"old", "new"}
    settling.done({"old", "new"})
    # Where changes are seen late, what is gone waits longer still.
    settling.linger = 2.0
    settling.note(["old"])
    clock.now += 2.5
    assert settling.due() == set()
    clock.now += 1.0
    assert settling.due() == {"old"}
    # But not for ever.
    settling.note(["old"])
    for _ in range(200):
        settling.note(["new"])
        (tmp_path / "new").write_bytes(b"1")
        clock.now += 0.1
    assert "old" in settling.due()


def followed(folder: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [MMSEARCH, "watch", str(folder), "--json", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )


def until(process: subprocess.Popen[str], true: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    assert process.stdout is not None
    for line in process.stdout:
        event: dict[str, Any] = json.loads(line)
        if true(event):
            return event
    pytest.fail(f"it ended: {process.communicate()}")


def test_the_command_is_killed_goes_on_and_ends_politely(tmp_path: Path) -> None:
    photos = many_photos(tmp_path / "photos", 100)
    process = followed(photos)
    wait_for_files(photos, 32)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    process = followed(photos)
    first = until(process, lambda event: event["event"] == "indexed")
    assert (first["files"], first["places"], first["problems"]) == (100, None, 0)
    assert first["embedded"] < 100
    draw(photos / "new.jpg", "blue", (60, 40))
    until(process, lambda event: event["event"] == "indexed" and event["places"] == ["new.jpg"])
    process.send_signal(signal.SIGTERM)
    out, talk = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    assert "1 new" in talk
    assert "Stopped. What was indexed is saved" in talk
    (photos / "new.jpg").unlink()
    process = followed(photos, "--poll", "0.5s")
    until(process, lambda event: event["event"] == "indexed" and event["files"] == 100)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
