from __future__ import annotations

import os
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import select

import mmsearch
from mmsearch.errors import (
    LibraryLocked,
    LibraryNotFound,
    ModelMismatch,
    SourceError,
    StorageError,
)
from mmsearch.retrieval import reading
from mmsearch.retrieval.catalog import Transaction, tables
from mmsearch.retrieval.ingest import IndexReport, index
from mmsearch.retrieval.library import Library
from mmsearch.retrieval.schema import Target
from mmsearch.retrieval.tags import bundled_vocabulary
from tests.conftest import COLOURS, ColourEncoder, draw

NAMES = len(bundled_vocabulary())
"""Texts that the first run embeds beside captions, for what scores mean."""


class InterruptedEncoder(ColourEncoder):
    """Ctrl-C is pressed when `after` pictures are embedded."""

    def __init__(self, after: int, revision: str = "1") -> None:
        super().__init__(revision)
        self._after = after

    def _encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        if self.embedded_images >= self._after:
            raise KeyboardInterrupt
        return super()._encode_pixels(pixels)


def counts(report: IndexReport) -> tuple[int, int, int, int, int]:
    return report.added, report.updated, report.unchanged, report.moved, report.removed


def rows(photos: Path) -> list[tuple[object, ...]]:
    """Everything the catalog says about files, vectors and captions, but for times of indexing."""
    file, caption = tables.file.c, tables.caption.c
    vector, text_vector = tables.file_vector.c, tables.caption_vector.c
    joined = (
        tables.file.join(tables.file_vector, vector.file_id == file.id)
        .outerjoin(tables.caption, caption.file_id == file.id)
        .outerjoin(tables.caption_vector, text_vector.caption_id == caption.id)
    )
    columns = (
        file.id, caption.id, file.path, file.size, file.mtime_ns, file.sha256, file.width,
        file.height, file.orientation, file.taken_at, file.latitude, file.camera, file.sidecars,
        vector.vector, caption.text, caption.source, text_vector.vector,
    )  # fmt: skip
    statement = select(*columns).select_from(joined).order_by(file.path, caption.text)
    with closing(Library.open(photos)) as library, library.catalog._connect() as connection:
        return [tuple(row) for row in connection.execute(statement)]


in_its_folder = pytest.mark.parametrize("catalog_url", [None], indirect=True)
"""Of libraries that no server keeps."""


@pytest.fixture
def photos(photos: Path, catalog_url: str | None) -> Path:
    """The folder, of whose library nothing is there but, where a server keeps it, where that is."""
    if catalog_url is not None:
        Library.create(photos, catalog=catalog_url).close()
    return photos


def test_first_run_adds_everything_and_the_second_reads_nothing(
    photos: Path, encoder: ColourEncoder
) -> None:
    assert counts(index(photos, model=encoder)) == (6, 0, 0, 0, 0)
    assert encoder.prepared == encoder.embedded_images == 6
    before = rows(photos)
    assert counts(index(photos, model=encoder)) == (0, 0, 6, 0, 0)
    assert encoder.prepared == 6
    assert rows(photos) == before


def test_only_what_changed_is_read_again(photos: Path, encoder: ColourEncoder) -> None:
    index(photos, model=encoder)
    draw(photos / "green.jpg", "blue", (70, 40))
    draw(photos / "new.png", "white")
    (photos / "red.jpg").unlink()
    assert counts(index(photos, model=encoder)) == (1, 1, 4, 0, 1)
    assert encoder.embedded_images == 6 + 2
    with mmsearch.open(photos, model=encoder) as engine:
        assert {hit.path for hit in engine.search("blue", k=2).hits} == {
            "trip/blue.jpg",
            "green.jpg",
        }
        assert "red.jpg" not in {hit.path for hit in engine.search("red", k=99).hits}


def test_renamed_folder_and_file_keep_their_vectors(photos: Path, encoder: ColourEncoder) -> None:
    index(photos, model=encoder)
    ids = {row[-4]: row[0] for row in rows(photos)}
    (photos / "trip").rename(photos / "journey")
    (photos / "red.jpg").rename(photos / "rouge.jpg")
    assert counts(index(photos, model=encoder)) == (0, 0, 3, 3, 0)
    assert encoder.prepared == 6
    assert {row[-4]: row[0] for row in rows(photos)} == ids


def test_moving_the_whole_library_reads_nothing(photos: Path, encoder: ColourEncoder) -> None:
    index(photos, model=encoder)
    elsewhere = photos.parent / "elsewhere"
    photos.rename(elsewhere)
    with mmsearch.open(elsewhere, model=encoder) as engine:
        hit = engine.search("red", k=1)
        assert hit.file(hit.hits[0]) == elsewhere / "red.jpg"
    assert counts(index(elsewhere, model=encoder)) == (0, 0, 6, 0, 0)
    assert encoder.prepared == 6


def test_written_together_or_one_by_one_is_the_same(
    photos: Path,
    catalog_url: str | None,
    encoder: ColourEncoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """New pictures of a batch are added at once; a twin, a change, a move is seen to by itself."""
    for number in range(40):
        draw(
            photos / "many" / f"{number:02}.png", [*COLOURS][number % len(COLOURS)], (9 + number, 9)
        )
        if number % 3 == 0:
            (photos / "many" / f"{number:02}.txt").write_text(
                f"a picture\nnumber {number}\na picture"
            )
    shutil.copy(photos / "many" / "05.png", photos / "many" / "05 again.png")
    shutil.copy(photos / "many" / "30.png", photos / "00.png")
    for number in (17, 18):
        (photos / "many" / f"{number}.png").write_bytes(b"no picture")
    (photos / "many" / "08.png").rename(photos / "many" / os.fsdecode(b"08 \xff.png"))
    other = tmp_path / "other"
    shutil.copytree(photos, other, ignore=shutil.ignore_patterns(".mmsearch"))
    if catalog_url is not None:
        Library.create(other, catalog=catalog_url).close()

    def changed(root: Path) -> None:
        (root / "many" / "02.png").rename(root / "02.png")
        (root / "many" / "03.png").rename(root / "swapped")
        (root / "many" / "04.png").rename(root / "many" / "03.png")
        (root / "swapped").rename(root / "many" / "04.png")
        shutil.copy(root / "many" / "07.png", root / "many" / "07 again.png")
        draw(root / "many" / "09.png", "white", (99, 9))
        draw(root / "many" / "17.png", "white", (98, 9))
        draw(root / "many" / "99.png", "white", (97, 9))
        (root / "many" / "99.txt").write_text("new")
        for name in ("07 again.png", "09.png", "17.png", "99.png", "99.txt"):
            os.utime(root / "many" / name, ns=(10**18, 10**18))

    together = [index(photos, model=encoder)]
    changed(photos)
    together.append(index(photos, model=encoder))
    monkeypatch.setattr(Transaction, "contents_among", lambda _, contents: {*contents})
    by_one = [index(other, model=encoder)]
    changed(other)
    by_one.append(index(other, model=encoder))
    assert [counts(report) for report in together] == [counts(report) for report in by_one]
    assert counts(together[1])[0] >= 2
    assert rows(photos) == rows(other)
    for root in (photos, other):
        with closing(Library.open(root)) as library:
            assert library.catalog.words_damage() == []
    with closing(Library.open(photos)) as one, closing(Library.open(other)) as two:
        assert one.catalog.problems() == two.catalog.problems()
        assert [problem.path for problem in one.catalog.problems()] == ["many/18.png"]


def test_touched_file_is_hashed_but_not_decoded(photos: Path, encoder: ColourEncoder) -> None:
    index(photos, model=encoder)
    os.utime(photos / "red.jpg", ns=(1, 1))
    assert counts(index(photos, model=encoder)) == (0, 0, 6, 0, 0)
    assert encoder.prepared == 6
    assert counts(index(photos, model=encoder)) == (0, 0, 6, 0, 0)


def test_two_files_that_swap_names(photos: Path, encoder: ColourEncoder) -> None:
    index(photos, model=encoder)
    (photos / "red.jpg").rename(photos / "x.jpg")
    (photos / "trip/blue.jpg").rename(photos / "red.jpg")
    (photos / "x.jpg").rename(photos / "trip/blue.jpg")
    for path, time in (("red.jpg", 10**18), ("trip/blue.jpg", 2 * 10**18)):
        os.utime(photos / path, ns=(time, time))
    assert counts(index(photos, model=encoder)) == (0, 2, 4, 0, 0)
    with mmsearch.open(photos, model=encoder) as engine:
        assert engine.search("red", k=1, words=False).hits[0].path == "trip/blue.jpg"
        assert engine.search("blue", k=1, words=False).hits[0].path == "red.jpg"


def test_copies_are_embedded_once_per_known_content(photos: Path, encoder: ColourEncoder) -> None:
    index(photos, model=encoder)
    shutil.copy(photos / "red.jpg", photos / "copy.jpg")
    assert counts(index(photos, model=encoder)) == (1, 0, 6, 0, 0)
    assert encoder.prepared == 6


def test_bad_files_become_problems_and_are_not_retried(
    photos: Path, encoder: ColourEncoder, tmp_path: Path
) -> None:
    good = (photos / "red.jpg").read_bytes()
    (photos / "truncated.jpg").write_bytes(good[:-20])
    (photos / "empty.png").touch()
    (photos / "page.jpg").write_bytes(b"<!DOCTYPE html><html>not found</html>")
    (photos / "link.jpg").symlink_to(photos / "nowhere.jpg")
    (photos / "notes.txt").write_text("no picture at all")
    report = index(photos, model=encoder)
    assert counts(report) == (6, 0, 0, 0, 0)
    assert report.problems == 4
    library = Library.open(photos)
    problems = {problem.path: problem for problem in library.catalog.problems()}
    library.close()
    assert {path: problem.kind for path, problem in problems.items()} == {
        "truncated.jpg": "truncated",
        "empty.png": "empty",
        "page.jpg": "not-an-image",
        "link.jpg": "not-a-file",
    }
    assert "web page" in problems["page.jpg"].reason
    prepared = encoder.prepared
    assert index(photos, model=encoder).problems == 4
    assert encoder.prepared == prepared

    (photos / "truncated.jpg").write_bytes(good)
    (photos / "empty.png").unlink()
    report = index(photos, model=encoder)
    assert (report.added, report.problems) == (1, 2)


def test_retry_reads_bad_files_again(photos: Path, encoder: ColourEncoder) -> None:
    (photos / "empty.png").touch()
    index(photos, model=encoder)
    stat = (photos / "empty.png").stat()
    # The same size and time, yet readable now: as when a codec was missing.
    with (
        closing(Library.open(photos)) as library,
        library.catalog._connect(immediate=True) as connection,
    ):
        draw(photos / "empty.png", "red")
        os.utime(photos / "empty.png", ns=(stat.st_mtime_ns, stat.st_mtime_ns))
        size = (photos / "empty.png").stat().st_size
        connection.execute(tables.problem.update().values(size=size))
    assert index(photos, model=encoder).problems == 1
    report = index(photos, model=encoder, retry=True)
    assert (report.added, report.problems) == (1, 0)


def test_a_picture_that_breaks_is_no_longer_found(photos: Path, encoder: ColourEncoder) -> None:
    index(photos, model=encoder)
    (photos / "red.jpg").write_bytes(b"overwritten by something else")
    report = index(photos, model=encoder)
    assert (report.files, report.problems) == (5, 1)
    with mmsearch.open(photos, model=encoder) as engine:
        assert len(engine) == 5


def test_embedding_is_the_same_as_without_a_library(photos: Path, encoder: ColourEncoder) -> None:
    index(photos, model=encoder)
    library = Library.open(photos)
    ids, vectors = library.catalog.file_vectors(1, encoder.dim)
    hits = library.catalog.file_hits([(int(id_), 0.0) for id_ in ids])
    library.close()
    direct = encoder.encode_images([photos / hit.path for hit in hits])
    assert np.allclose(vectors, direct, atol=1e-3)


def test_captions_from_sidecars_follow_their_files(photos: Path, encoder: ColourEncoder) -> None:
    (photos / "red.txt").write_text("a red wall\nbricks, all red\n")
    (photos / "trip/blue.jpg.json").write_text('{"description": "a blue sky"}')
    assert index(photos, model=encoder).captions == 3
    assert encoder.embedded_texts == 3 + NAMES
    assert encoder.prepared == 6

    (photos / "red.txt").write_text("a red wall\na red door\n")
    report = index(photos, model=encoder)
    assert (counts(report), report.captions) == ((0, 0, 6, 0, 0), 3)
    assert (encoder.prepared, encoder.embedded_texts) == (6, 4 + NAMES)
    with mmsearch.open(photos, model=encoder) as engine:
        found = engine.search(image=photos / "red.jpg", to="captions", k=2).hits
        assert {hit.caption for hit in found} == {"a red wall", "a red door"}
        assert {hit.path for hit in found} == {"red.jpg"}

    (photos / "red.txt").unlink()
    assert index(photos, model=encoder).captions == 1


def test_captions_file_is_synchronised_and_survives_runs_without_it(
    photos: Path, encoder: ColourEncoder, tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text(
        "path\tcaption\n"
        "red.jpg\ta red thing\n"
        "./trip/black.jpg\tthe night\n"
        f"{photos}/trip/blue.jpg\tby its absolute path\n"
        "yellow.jpg\tby a name that occurs once\n"
        "gone.jpg\tof nothing\n"
    )
    report = index(photos, model=encoder, captions=pairs)
    assert (report.captions, report.unmatched) == (4, ["gone.jpg"])
    assert index(photos, model=encoder).captions == 4
    pairs.write_text("path\tcaption\nred.jpg\ta red thing\n")
    assert index(photos, model=encoder, captions=pairs).captions == 1
    assert encoder.embedded_texts == 4 + NAMES


def test_interrupted_run_continues_to_the_same_catalog(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i, colour in enumerate(list(COLOURS) * 3):
        draw(photos / f"more/{i:02}.png", colour, (33 + i, 40))
        (photos / f"more/{i:02}.txt").write_text(f"a {colour} card, number {i}")
    other = tmp_path / "uninterrupted"
    ignored = shutil.ignore_patterns(".mmsearch")
    shutil.copytree(photos, other, copy_function=shutil.copy2, ignore=ignored)
    index(other, model=ColourEncoder())

    with pytest.raises(KeyboardInterrupt):
        index(photos, model=InterruptedEncoder(after=12))
    assert len(rows(photos)) == 12
    continued = ColourEncoder()
    assert counts(index(photos, model=continued)) == (12, 0, 12, 0, 0)
    assert continued.embedded_images == 12
    assert rows(photos) == rows(other)


def test_another_model_is_refused_with_the_command_that_changes_to_it(
    photos: Path, encoder: ColourEncoder
) -> None:
    index(photos, model=encoder)
    before = rows(photos)
    with pytest.raises(ModelMismatch, match="mmsearch migrate --model colour --library"):
        index(photos, model=ColourEncoder(revision="2"))
    assert rows(photos) == before


def test_folder_without_pictures_is_refused_and_left_alone(
    tmp_path: Path, encoder: ColourEncoder
) -> None:
    (tmp_path / "notes.txt").write_text("nothing to see")
    with pytest.raises(SourceError, match="No pictures"):
        index(tmp_path, model=encoder)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(SourceError, match="no folder"):
        index(tmp_path / "missing", model=encoder)
    with pytest.raises(SourceError, match="none of them is there"):
        index(tmp_path / "notes.txt", model=encoder)


def test_emptied_folder_keeps_its_library(photos: Path, encoder: ColourEncoder) -> None:
    index(photos, model=encoder)
    for path in photos.rglob("*.jpg"):
        path.unlink()
    with pytest.raises(SourceError, match="No pictures"):
        index(photos, model=encoder)
    with mmsearch.open(photos, model=encoder) as engine:
        assert len(engine) == 6


def test_pictures_below_an_unreadable_folder_are_kept(
    photos: Path, encoder: ColourEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    index(photos, model=encoder)
    listed = os.scandir

    def refuse(path: str | os.PathLike[str]) -> object:
        if not isinstance(path, int) and os.fspath(path).endswith("trip"):
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    report = index(photos, model=encoder)
    assert (report.removed, report.problems) == (0, 1)
    monkeypatch.undo()
    report = index(photos, model=encoder)
    assert (counts(report), report.problems) == ((0, 0, 6, 0, 0), 0)


def test_second_indexer_is_told_who_is_at_it(photos: Path, encoder: ColourEncoder) -> None:
    index(photos, model=encoder)
    library = Library.open(photos)
    with library.indexing(), pytest.raises(LibraryLocked, match="Another mmsearch"):
        index(photos, model=encoder)
    library.close()
    index(photos, model=encoder)


def test_originals_are_never_written_to(photos: Path, encoder: ColourEncoder) -> None:
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in photos.rglob("*.jpg")}
    index(photos, model=encoder)
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in photos.rglob("*.jpg")}
    assert after == before
    assert {path.name for path in photos.iterdir()} - {".mmsearch"} == {
        path.name for path in photos.iterdir() if not path.name.startswith(".")
    }


@in_its_folder
def test_library_of_a_read_only_folder_lives_in_the_users_directory(
    photos: Path, encoder: ColourEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Path.mkdir

    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        if self.name == ".mmsearch":
            raise PermissionError(13, "Permission denied")
        make(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", refuse)
    index(photos, model=encoder)
    assert not (photos / ".mmsearch").exists()
    with mmsearch.open(photos, model=encoder) as engine:
        results = engine.search("red", k=1)
        assert results.file(results.hits[0]) == photos / "red.jpg"


def test_names_that_are_no_valid_text_come_back_as_they_were(
    photos: Path, encoder: ColourEncoder
) -> None:
    name = os.fsdecode(b"caf\xe9 \xff.jpg")
    (photos / "red.jpg").rename(photos / name)
    index(photos, model=encoder)
    with mmsearch.open(photos, model=encoder) as engine:
        results = engine.search("red", k=1)
        assert results.hits[0].path == name
        assert results.file(results.hits[0]).is_file()
    assert counts(index(photos, model=encoder)) == (0, 0, 6, 0, 0)


def test_deleted_or_damaged_index_files_are_made_anew(photos: Path, encoder: ColourEncoder) -> None:
    index(photos, model=encoder)
    with mmsearch.open(photos, model=encoder) as engine:
        expected = engine.search("yellow", k=6).hits
    folder = photos / ".mmsearch" / "index"
    (file,) = folder.glob("images-*.faiss")
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"something else entirely" * 100):
        file.write_bytes(damaged)
        with mmsearch.open(photos, model=encoder) as engine:
            assert engine.search("yellow", k=6).hits == expected
        assert file.read_bytes() == whole
    shutil.rmtree(folder)
    with mmsearch.open(photos, model=encoder) as engine:
        assert engine.search("yellow", k=6).hits == expected
    assert file.read_bytes() == whole


def test_an_open_engine_sees_what_is_indexed_after_it_was_opened(
    photos: Path, encoder: ColourEncoder
) -> None:
    index(photos, model=encoder)
    with mmsearch.open(photos, model=encoder) as engine:
        assert engine.search("red").considered == 6
        draw(photos / "scarlet.png", "red")
        index(photos, model=ColourEncoder())
        results = engine.search("red", k=2)
        assert results.considered == 7
        assert {hit.path for hit in results.hits} == {"red.jpg", "scarlet.png"}
        assert len(list((photos / ".mmsearch" / "index").glob("images-*.faiss"))) == 1


def test_upright_size_and_metadata_reach_the_hit(photos: Path, encoder: ColourEncoder) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0x9003] = "2023:08:12 17:02:11"
    draw(photos / "turned.jpg", "green", (64, 16), exif=exif)
    index(photos, model=encoder)
    with mmsearch.open(photos, model=encoder) as engine:
        hit = next(h for h in engine.search("green", k=9).hits if h.path == "turned.jpg")
    assert (hit.width, hit.height) == (16, 64)
    assert str(hit.taken_at) == "2023-08-12 17:02:11"


def test_progress_reaches_its_total(photos: Path, encoder: ColourEncoder) -> None:
    seen = []
    index(photos, model=encoder, progress=seen.append)
    stages = [progress.stage for progress in seen]
    once = ["scan", "pictures", "captions", "names", "index"]
    assert sorted(set(stages), key=stages.index) == once
    last = [progress for progress in seen if progress.stage == "pictures"][-1]
    assert (last.done, last.total) == (6, 6)
    # Names are of the encoder, not of the library.
    seen.clear()
    index(photos, model=encoder, progress=seen.append)
    assert "names" not in {progress.stage for progress in seen}


def test_caption_search_without_captions_finds_nothing(
    photos: Path, encoder: ColourEncoder
) -> None:
    index(photos, model=encoder)
    with mmsearch.open(photos, model=encoder) as engine:
        results = engine.search("red", to=Target.CAPTIONS)
        assert (results.hits, results.considered) == ((), 0)


@in_its_folder
@pytest.mark.parametrize("name", [b"2019 #1", b"what?", b"odd%20name", b"caf\xe9", b"a&b='c'"])
def test_any_folder_name_keeps_its_library_to_itself(
    name: bytes, photos: Path, encoder: ColourEncoder
) -> None:
    root = photos.rename(photos.parent / os.fsdecode(name))
    other = photos.parent / "2019 #2"
    draw(other / "x.jpg")
    assert counts(index(root, model=encoder)) == (6, 0, 0, 0, 0)
    assert counts(index(other, model=encoder)) == (1, 0, 0, 0, 0)
    assert counts(index(root, model=encoder)) == (0, 0, 6, 0, 0)
    assert {path.name for path in root.parent.iterdir()} == {root.name, other.name}
    assert (root / ".mmsearch" / "catalog.sqlite").is_file()
    assert len(list((root / ".mmsearch" / "index").glob("images-*.faiss"))) == 1
    with mmsearch.open(root, model=encoder) as engine:
        assert engine.search("red", k=1).hits[0].path == "red.jpg"


def test_captions_of_other_folders_pictures_are_not_taken(
    photos: Path, encoder: ColourEncoder, tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.tsv"
    lines = ["2022/red.jpg", "/elsewhere/red.jpg", "my photos/red.jpg", "black.jpg"]
    pairs.write_text("path\tcaption\n" + "".join(f"{line}\tx {line}\n" for line in lines))
    report = index(photos, model=encoder, captions=pairs)
    assert report.unmatched == ["2022/red.jpg", "/elsewhere/red.jpg"]
    assert report.captions == 2


def test_a_caption_file_of_any_name(photos: Path, encoder: ColourEncoder, tmp_path: Path) -> None:
    pairs = tmp_path / os.fsdecode(b"caf\xe9.tsv")
    pairs.write_text("path\tcaption\nred.jpg\ta caption\n")
    assert index(photos, model=encoder, captions=pairs).captions == 1
    assert index(photos, model=encoder, captions=pairs).captions == 1


def test_a_caption_that_two_sources_give_counts_once_and_outlives_one(
    photos: Path, encoder: ColourEncoder, tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("path\tcaption\nred.jpg\ta red wall\nred.jpg\tbricks\n")
    (photos / "red.txt").write_text("a red wall\n")
    index(photos, model=encoder, captions=pairs)
    with mmsearch.open(photos, model=encoder) as engine:
        hits = engine.search(image=photos / "red.jpg", to="captions", k=2).hits
        assert {hit.caption for hit in hits} == {"a red wall", "bricks"}
    (photos / "red.txt").unlink()
    assert index(photos, model=encoder).captions == 2


@in_its_folder
def test_something_in_the_librarys_place_is_named(photos: Path, encoder: ColourEncoder) -> None:
    (photos / ".mmsearch").write_text("a file of somebody's")
    with pytest.raises(StorageError, match=r"\.mmsearch cannot be made"):
        index(photos, model=encoder)
    assert (photos / ".mmsearch").read_text() == "a file of somebody's"


@in_its_folder
def test_an_unfinished_catalog_is_no_library_yet(photos: Path, encoder: ColourEncoder) -> None:
    (photos / ".mmsearch").mkdir()
    (photos / ".mmsearch" / "catalog.sqlite").touch()
    with pytest.raises(LibraryNotFound, match="only just being made"):
        mmsearch.open(photos, model=encoder)
    assert counts(index(photos, model=encoder)) == (6, 0, 0, 0, 0)


def test_what_a_killed_save_left_behind_is_swept_away(photos: Path, encoder: ColourEncoder) -> None:
    index(photos, model=encoder)
    old, new = (photos / ".mmsearch" / "index" / f".writing-{name}" for name in ("old", "new"))
    for leftover in (old, new):
        leftover.mkdir()
        (leftover / "half.faiss").write_bytes(b"half")
    os.utime(old, (1, 1))
    draw(photos / "more.jpg")
    index(photos, model=encoder)
    assert not old.exists()
    assert new.exists()


def test_a_link_in_a_circle_is_no_picture(tmp_path: Path, encoder: ColourEncoder) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(SourceError, match="No pictures"):
        index(tmp_path, model=encoder)
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    assert index(tmp_path, model=encoder).problems == 1


def test_pictures_beyond_the_pixel_budget_wait_for_each_other(
    photos: Path, encoder: ColourEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_PIXELS", 60 * 32)
    assert counts(index(photos, model=encoder)) == (6, 0, 0, 0, 0)


def test_an_emptily_named_folder_is_refused(encoder: ColourEncoder) -> None:
    with pytest.raises(SourceError, match="empty"):
        index("", model=encoder)


def test_a_picture_that_pillow_alone_refuses_is_tried_again(
    photos: Path, encoder: ColourEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20 * 32)
    report = index(photos, model=encoder)
    assert (report.files, report.problems) == (0, 6)
    monkeypatch.undo()
    report = index(photos, model=encoder)
    assert (report.files, report.problems) == (6, 0)
