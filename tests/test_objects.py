"""Pictures in object stores, by fsspec's stores in memory and in a folder."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import COLOURS, ColourEncoder, draw

fsspec = pytest.importorskip("fsspec")

import mmsearch  # noqa: E402
from mmsearch.errors import MediaError, SourceError  # noqa: E402
from mmsearch.retrieval import objects  # noqa: E402
from mmsearch.retrieval.addresses import address_of  # noqa: E402
from mmsearch.retrieval.containers import is_there, openable, places_of  # noqa: E402
from mmsearch.retrieval.ingest import index  # noqa: E402
from mmsearch.retrieval.library import Library  # noqa: E402
from mmsearch.retrieval.objects import StoredObject  # noqa: E402
from mmsearch.retrieval.thumbnails import thumbnail  # noqa: E402


def jpeg(colour: str, size: tuple[int, int] = (48, 32)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, COLOURS[colour]).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def store(monkeypatch):
    """A store in memory with three pictures, one of them with a caption, and what is no picture."""
    monkeypatch.setattr(objects, "FIRST_PAUSE_S", 0.001)
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    memory.pipe(
        {
            "/bucket/photos/red.jpg": jpeg("red"),
            "/bucket/photos/trip/a green one.jpg": jpeg("green", (50, 32)),
            "/bucket/photos/trip/blue.jpg": jpeg("blue", (52, 32)),
            "/bucket/photos/trip/blue.txt": b"a blue wall",
            "/bucket/photos/notes.pdf": b"%PDF",
            "/bucket/photos/.hidden/red.jpg": jpeg("red"),
            "/bucket/elsewhere/white.jpg": jpeg("white"),
        }
    )
    yield memory
    memory.store.clear()


PHOTOS = "memory://bucket/photos"
NAMES = ["red.jpg", "trip/a green one.jpg", "trip/blue.jpg"]


def known(root: Path) -> list[str]:
    library = Library.open(root)
    try:
        row = library.catalog.library()
        assert row.encoder_id is not None
        return sorted(library.catalog.known_files(row.encoder_id))
    finally:
        library.close()


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("s3://bucket/a b/c.jpg", "s3://bucket/a b/c.jpg"),
        (Path("s3://bucket/a/c.jpg"), "s3://bucket/a/c.jpg"),
        (Path("/library") / "gs://bucket/a.jpg", "gs://bucket/a.jpg"),
        (Path("/library") / "file:///photos/a.jpg", "file:///photos/a.jpg"),
        (Path("memory://b/x"), "memory://b/x"),
        (Path("/photos/s3/a.jpg"), None),
        ("photos/a.jpg", None),
        ("https://example.org/a.jpg", None),
        (Path("C:/photos/a.jpg"), None),
    ],
)
def test_addresses_are_told_from_paths(path, address):
    assert address_of(path) == address


def test_a_bucket_is_indexed_and_only_what_changed_is_read_again(store, tmp_path, encoder):
    root = tmp_path / "library"
    report = index(PHOTOS, root=root, model=encoder)
    assert (report.added, report.files, report.captions) == (3, 3, 1)
    assert known(root) == [f"{PHOTOS}/{name}" for name in NAMES]
    read = encoder.prepared
    report = index(PHOTOS, root=root, model=encoder)
    assert (report.unchanged, report.embedded, encoder.prepared) == (3, 0, read)

    store.pipe("/bucket/photos/red.jpg", jpeg("yellow", (60, 40)))
    store.mv("/bucket/photos/trip/blue.jpg", "/bucket/photos/azure.jpg")
    store.rm("/bucket/photos/trip/a green one.jpg")
    report = index(PHOTOS, root=root, model=encoder)
    assert (report.updated, report.moved, report.removed, report.files) == (1, 1, 1, 2)
    assert known(root) == [f"{PHOTOS}/azure.jpg", f"{PHOTOS}/red.jpg"]


def test_what_a_run_does_not_speak_for_stays(store, tmp_path, encoder):
    root = tmp_path / "library"
    draw(root / "here.jpg", "black")
    index(root, model=encoder)
    index(PHOTOS, root=root, model=encoder)
    index("memory://bucket/elsewhere", root=root, model=encoder)
    everything = sorted(
        ["here.jpg", "memory://bucket/elsewhere/white.jpg", *(f"{PHOTOS}/{n}" for n in NAMES)]
    )
    assert known(root) == everything
    report = index(root, model=encoder)
    assert (report.removed, report.unchanged, known(root)) == (0, 1, everything)


def test_whoever_reads_pictures_again_reads_them_there(store, tmp_path, encoder):
    root = tmp_path / "library"
    index(PHOTOS, root=root, model=encoder)
    path = f"{PHOTOS}/red.jpg"
    assert thumbnail(root / path, 16).size == (16, 11)
    assert isinstance(openable(root / path), Image.Image)
    assert places_of(root, [path])[path].read() == store.cat("/bucket/photos/red.jpg")
    assert is_there(root, path)
    assert not is_there(root, f"{PHOTOS}/gone.jpg")
    with pytest.raises(MediaError, match="gone since it was listed") as error:
        openable(root / f"{PHOTOS}/gone.jpg")
    assert error.value.kind == "vanished"


def test_pictures_in_a_store_are_found_explained_copied_and_embedded_anew(store, tmp_path):
    from mmsearch.retrieval.copies import copy_pictures
    from mmsearch.retrieval.listing import shell_path

    root = tmp_path / "library"
    mmsearch.index(PHOTOS, root=root)
    with mmsearch.open(root) as engine:
        found = engine.search("a red picture", k=3)
        assert {hit.path for hit in found.hits} == {f"{PHOTOS}/{name}" for name in NAMES}
        assert {shell_path(found, hit, tmp_path) for hit in found.hits} == {
            f"{PHOTOS}/{name}" for name in NAMES
        }
        placed = copy_pictures(found, tmp_path / "copies")
        assert (placed.unpacked, placed.skipped) == (3, [])
        assert engine.search(image=f"{PHOTOS}/red.jpg", k=1).hits[0].path == f"{PHOTOS}/red.jpg"
        assert engine.recommend(like=[f"{PHOTOS}/red.jpg"], k=2).hits
        assert engine.explain(f"{PHOTOS}/red.jpg", "a red wall").heat.shape
        assert engine.search("a red picture", k=3, rerank="fast").hits


def shard(names: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in names:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_shards_and_parquet_files_in_a_bucket(store, tmp_path, encoder):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    store.pipe(
        "/bucket/photos/0.tar",
        shard([("0.jpg", jpeg("white")), ("0.txt", b"white"), ("1.jpg", jpeg("black", (49, 33)))]),
    )
    table = pyarrow.table({"image": [jpeg("yellow", (64, 40))], "caption": ["yellow"]})
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    store.pipe("/bucket/photos/part.parquet", buffer.getvalue())
    root = tmp_path / "library"
    report = index(PHOTOS, root=root, model=encoder)
    assert (report.added, report.captions) == (6, 3)
    inside = {"0.tar/0.jpg", "0.tar/1.jpg", "part.parquet/0"}
    assert {f"{PHOTOS}/{name}" for name in inside} <= set(known(root))
    for name in inside:
        assert thumbnail(root / PHOTOS / name, 8).size[0] == 8
    read = encoder.prepared
    report = index(PHOTOS, root=root, model=encoder)
    assert (report.unchanged, encoder.prepared) == (6, read)
    store.pipe("/bucket/photos/0.tar", store.cat("/bucket/photos/0.tar")[:1200])
    report = index(PHOTOS, root=root, model=encoder)
    assert report.problems >= 1


class Stumbling:
    """A store whose network fails now and then: so many times for each object."""

    def __init__(self, store, failures: dict[str, int], error: Exception) -> None:
        self._plain = store.cat_file
        self.left = failures
        self.error = error
        self.asked: list[str] = []

    def __call__(self, path, start=None, end=None, **more):
        self.asked.append(path)
        for name, left in self.left.items():
            if path.endswith(name) and left:
                self.left[name] -= 1
                raise self.error
        return self._plain(path, start=start, end=end, **more)


def test_a_network_that_stumbles_is_asked_again_and_forgets_nothing(
    store, tmp_path, encoder, monkeypatch
):
    root = tmp_path / "library"
    stumbling = Stumbling(store, {"red.jpg": 2}, ConnectionError("reset by peer"))
    # Each thread has a file system of its own.
    monkeypatch.setattr(type(store), "cat_file", lambda _, path, **asked: stumbling(path, **asked))
    report = index(PHOTOS, root=root, model=encoder)
    assert (report.added, report.problems) == (3, 0)
    assert stumbling.asked.count("/bucket/photos/red.jpg") == 3

    # Changed, and not to be had: what is known of it stays, with the reason, until it is.
    store.pipe("/bucket/photos/red.jpg", jpeg("white", (70, 40)))
    stumbling.left = {"red.jpg": 99}
    report = index(PHOTOS, root=root, model=encoder)
    assert (report.problems, report.removed, report.files) == (1, 0, 3)
    library = Library.open(root)
    problem = library.catalog.known_problems()[f"{PHOTOS}/red.jpg"]
    library.close()
    assert problem.kind == "unreadable"
    stumbling.left = {}
    report = index(PHOTOS, root=root, model=encoder)
    assert (report.updated, report.problems) == (1, 0)


def test_a_bucket_that_cannot_be_listed_loses_nothing(store, tmp_path, encoder, monkeypatch):
    root = tmp_path / "library"
    index(PHOTOS, root=root, model=encoder)

    def refuse(error: Exception):
        def find(*_args, **_more):
            raise error

        monkeypatch.setattr(store, "find", find)
        with pytest.raises(SourceError) as told:
            index(PHOTOS, root=root, model=encoder)
        assert len(known(root)) == 3
        assert "\n" not in str(told.value)
        return str(told.value)

    assert "after 4 tries: reset by peer" in refuse(ConnectionError("reset by peer"))
    assert f"{PHOTOS} may not be read: Access Denied" in refuse(PermissionError("Access Denied"))
    no_credentials = type("NoCredentialsError", (Exception,), {})
    assert "may not be read: Unable to" in refuse(no_credentials("Unable to locate credentials"))
    assert "There is nothing at" in refuse(FileNotFoundError("The specified bucket does not exist"))
    monkeypatch.undo()
    store.store.clear()
    with pytest.raises(SourceError, match="There is nothing at"):
        index(PHOTOS, root=root, model=encoder)
    assert len(known(root)) == 3


def test_what_an_address_lacks_is_said_in_one_line(store, tmp_path, encoder):
    with pytest.raises(SourceError, match="Name it: mmsearch index memory://bucket/photos --root"):
        index(PHOTOS, model=encoder)
    with pytest.raises(SourceError, match=r"read by s3fs, which is not installed.*pip install"):
        index("s3://bucket/photos", root=tmp_path / "library", model=encoder)
    with pytest.raises(SourceError, match="holds a password"):
        index("sftp://me:secret@host/photos", root=tmp_path / "library", model=encoder)
    listed = tmp_path / "list.txt"
    listed.write_text("s3://bucket/a.jpg\n")
    with pytest.raises(SourceError, match="address in a list of files"):
        index(listed, root=tmp_path / "library", model=encoder)


def test_names_that_are_no_paths_are_told(store, tmp_path, encoder):
    store.store["/bucket/photos//odd.jpg"] = store.store["/bucket/photos/red.jpg"]
    report = index(PHOTOS, root=tmp_path / "library", model=encoder)
    assert (report.added, report.problems) == (3, 1)


def test_an_ignore_file_is_obeyed(store, tmp_path, encoder):
    store.pipe("/bucket/photos/.mmsearchignore", b"trip/\n")
    assert index(PHOTOS, root=tmp_path / "library", model=encoder).files == 1


def test_an_object_is_read_like_a_file(store):
    content = bytes(range(256)) * 5000
    store.pipe("/bucket/bytes", content)
    with StoredObject("memory://bucket/bytes").open() as file:
        assert file.read(10) == content[:10]
        assert file.seek(-5, 2) == len(content) - 5
        assert file.read() == content[-5:]
        file.seek(700_001)
        assert file.read(100_000) == content[700_001:800_001]
    store.pipe("/bucket/empty", b"")
    with pytest.raises(MediaError, match="zero bytes"):
        StoredObject("memory://bucket/empty").read()


def test_the_command_line_indexes_a_folder_by_its_address(photos, tmp_path):
    address = f"file://{photos}"
    package = Path(__file__).resolve().parent.parent.parent
    path = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "mmsearch.cli", *words],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": path},
            check=False,
        )

    done = run("index", address, "--root", "library", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["added"] == len(COLOURS)
    asked = run("query", "red", "--library", "library", "-k", "1", "--paths")
    assert asked.stdout.startswith(f"{address}/"), asked.stderr
    done = run("dedup", "--library", "library", "--json")
    assert done.returncode in {0, 3}, done.stderr
    done = run("doctor", "--deep", "--library", "library")
    assert "in an object store" in done.stdout + done.stderr
    assert done.returncode == 0, done.stdout + done.stderr
    done = run("query", "--image", f"{address}/trip/black.jpg", "--library", "library", "--json")
    assert done.returncode == 0, done.stderr


def test_a_store_costs_nothing_where_none_is_used(photos, tmp_path):
    code = "import sys, mmsearch; mmsearch.index(sys.argv[1]); print('fsspec' in sys.modules)"
    code += "; print('ray' in sys.modules)"
    package = Path(__file__).resolve().parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code, str(photos)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(package)},
        check=True,
    )
    assert done.stdout.split() == ["False", "False"]


def test_migrating_reads_objects_again(store, tmp_path):
    from mmsearch.retrieval.model_change import migrate

    root = tmp_path / "library"
    index(PHOTOS, root=root, model=ColourEncoder("1"))
    report = migrate(root, model=ColourEncoder("2"))
    assert report.embedded == 3
