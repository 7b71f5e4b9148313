import hashlib
import io
import os
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmsearch.errors import MediaError
from mmsearch.retrieval.ingest import index
from mmsearch.retrieval.library import Library
from mmsearch.retrieval.web import thumbnail_cache
from mmsearch.retrieval.web.thumbnail_cache import ThumbnailCache
from tests.conftest import COLOURS, ColourEncoder, draw
from tests.test_containers import jpeg, write_tar


def opened(folder: Path) -> Library:
    index(folder, model=ColourEncoder())
    return Library.open(folder)


@pytest.fixture
def library(tmp_path: Path):
    folder = tmp_path / "photos"
    # Turned by its tag: 40 wide and 60 high when upright, the dark corner at the lower left.
    exif = Image.Exif()
    exif[0x0112] = 6
    draw(folder / "turned.jpg", "red", (600, 400), exif=exif, quality=95)
    draw(folder / "plain.png", "green", (300, 100))
    library = opened(folder)
    yield library
    library.close()


@pytest.fixture
def cache(library: Library):
    cache = ThumbnailCache(library)
    yield cache
    cache.close()


def asked(cache: ThumbnailCache, library: Library, path: str, side: int = 160) -> Path:
    picture = next(
        item.picture
        for id_ in range(1, 9)
        if (item := library.catalog.item(id_)) and item.picture.path == path
    )
    return cache.get(library.root / path, picture, side).result(10)


def test_thumbnails_are_upright_and_of_the_least_size_that_is_enough(cache, library):
    for side, size in {1: (107, 160), 160: (107, 160), 161: (213, 320), 400: (400, 600)}.items():
        with Image.open(asked(cache, library, "turned.jpg", side)) as made:
            assert made.format == "JPEG"
            assert made.size == size
            assert 0x0112 not in made.getexif()
            width, height = made.size
            dark = made.getpixel((width // 10, height * 9 // 10))
            red = made.getpixel((width * 9 // 10, height * 9 // 10))
            assert max(dark) < 100
            assert red[0] > 200


def test_they_lie_in_the_library_and_are_kept(cache, library):
    first = asked(cache, library, "plain.png")
    assert first.is_relative_to(library.folder)
    content = hashlib.sha256((library.root / "plain.png").read_bytes()).hexdigest()
    assert first.name == f"{content}-160.jpg"
    before = first.stat().st_ino
    # Nothing is read when it is there.
    (library.root / "plain.png").rename(library.root / "away.png")
    assert asked(cache, library, "plain.png").stat().st_ino == before
    with pytest.raises(MediaError, match="gone"):
        asked(cache, library, "plain.png", 320)


def test_what_is_not_what_was_indexed_gets_no_thumbnail(cache, library):
    draw(library.root / "plain.png", "blue", (300, 100))
    with pytest.raises(MediaError, match="changed since"):
        asked(cache, library, "plain.png")


def test_many_who_ask_for_one_have_it_made_once(cache, library, monkeypatch):
    made = []
    read = thumbnail_cache.upright_rgb

    def slow(picture, **arguments):
        made.append(1)
        time.sleep(0.2)
        return read(picture, **arguments)

    monkeypatch.setattr(thumbnail_cache, "upright_rgb", slow)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(asked(cache, library, "plain.png")))
        for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len(found) == 20
    assert len(set(found)) == 1
    assert not cache._making


def test_those_not_asked_for_longest_go_first(library, monkeypatch):
    monkeypatch.setattr(thumbnail_cache, "TIDIED", 1)
    cache = ThumbnailCache(library, most_bytes=1 << 30)
    old = asked(cache, library, "turned.jpg", 640)
    kept = asked(cache, library, "plain.png", 160)
    for path, at in ((old, 1), (kept, 2)):
        os.utime(path, (at, at))
    asked(cache, library, "turned.jpg", 640)  # Asked for again: no longer the oldest.
    new = asked(cache, library, "plain.png", 320)
    cache._most = new.stat().st_size + old.stat().st_size
    cache._tidy()
    assert old.exists()
    assert new.exists()
    assert not kept.exists()
    cache.close()


def test_they_never_take_more_than_they_may(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(thumbnail_cache, "TIDIED", 1)
    for i, colour in enumerate(COLOURS):
        draw(tmp_path / f"{colour}.jpg", colour, (200 + i, 200))
    library = opened(tmp_path)
    cache = ThumbnailCache(library, most_bytes=3_000)
    for colour in COLOURS:
        asked(cache, library, f"{colour}.jpg")
        files = [*cache.folder.glob("??/*")]
        assert sum(file.stat().st_size for file in files) <= 3_000
    assert files
    cache.close()
    library.close()


def test_a_damaged_thumbnail_is_made_anew(cache, library):
    place = asked(cache, library, "plain.png")
    whole = place.read_bytes()
    place.write_bytes(b"")
    assert asked(cache, library, "plain.png").read_bytes() == whole


def test_a_library_that_may_not_be_written_to_has_them_in_the_cache(library, monkeypatch):
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refused)
        cache = ThumbnailCache(library)
    assert not cache.folder.is_relative_to(library.root)
    place = asked(cache, library, "plain.png")
    assert place.is_relative_to(Path(os.environ["HOME"]))
    assert place.is_file()
    cache.close()
    again = ThumbnailCache(library)
    assert again.folder.is_relative_to(library.root)
    again.close()


def test_pictures_inside_containers(tmp_path: Path):
    folder = tmp_path / "shards"
    write_tar(folder / "a.tar", {"red.jpg": jpeg("red"), "green.jpg": jpeg("green")})
    pq.write_table(pa.table({"image": [jpeg("blue", 60)]}), folder / "b.parquet")
    library = opened(folder)
    cache = ThumbnailCache(library)
    for path, colour in {
        "a.tar/red.jpg": "red",
        "a.tar/green.jpg": "green",
        "b.parquet/0": "blue",
    }.items():
        with Image.open(asked(cache, library, path)) as made:
            got = made.convert("RGB").getpixel((2, 2))
            assert max(abs(a - b) for a, b in zip(got, COLOURS[colour], strict=True)) < 20
    # Another picture under the same name.
    write_tar(folder / "a.tar", {"red.jpg": jpeg("yellow"), "green.jpg": jpeg("green")})
    with pytest.raises(MediaError, match="changed since"):
        asked(cache, library, "a.tar/red.jpg", 640)
    cache.close()
    library.close()


def test_what_cannot_be_written_is_an_error_once_and_not_for_ever(cache, library):
    (cache.folder / "stuck").touch()
    blocked = cache.place(
        hashlib.sha256((library.root / "plain.png").read_bytes()).digest(), 160
    ).parent
    blocked.write_bytes(b"in the way")
    with pytest.raises(OSError):  # noqa: PT011 (which one depends on the system)
        asked(cache, library, "plain.png")
    blocked.unlink()
    assert asked(cache, library, "plain.png").is_file()


def test_it_is_a_picture_of_the_right_size_for_any_mode(tmp_path: Path):
    for mode in ("L", "P", "RGBA", "CMYK", "I;16", "1"):
        name = f"{mode.replace(';', '')}.{'jpg' if mode == 'CMYK' else 'png'}"
        Image.new(mode, (50, 40)).save(tmp_path / name)
    library = opened(tmp_path)
    cache = ThumbnailCache(library)
    for file in tmp_path.iterdir():
        if file.is_file():
            with Image.open(io.BytesIO(asked(cache, library, file.name).read_bytes())) as made:
                assert made.size == (50, 40)
    cache.close()
    library.close()
