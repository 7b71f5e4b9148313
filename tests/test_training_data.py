from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import random
import sys
import tarfile
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

torch = pytest.importorskip("torch")

from mmsearch.errors import MediaError, SourceError, TrainingError  # noqa: E402
from mmsearch.retrieval.preprocess import ImagePreprocess  # noqa: E402
from mmsearch.retrieval.training import curves, hard_negatives  # noqa: E402
from mmsearch.retrieval.training.augment import (  # noqa: E402
    _box,
    augment_caption,
    augment_picture,
    generator,
)
from mmsearch.retrieval.training.batches import Batch, PairBatches  # noqa: E402
from mmsearch.retrieval.training.corpus import Corpus, PictureFile, read_corpus  # noqa: E402
from mmsearch.retrieval.training.hard_negatives import Memory, with_neighbours  # noqa: E402
from mmsearch.retrieval.training.recipe import Loss, Precision, Recipe, Trainable  # noqa: E402
from mmsearch.retrieval.training.teachers import (  # noqa: E402
    SCALE,
    ClassTeacher,
    SimilarityTeacher,
    read_class_teacher,
)
from tests.conftest import COLOURS, ColourEncoder, draw  # noqa: E402

ROWS = [
    ("trip/black.jpg", "a black square"),
    ("red.jpg", "a red square"),
    ("red.jpg", "something red"),
    ("green.jpg", "a green square"),
]


def write_tsv(path: Path, rows: Iterable[tuple[str, str]], header: str = "path\tcaption") -> Path:
    path.write_text("\n".join([header, *("\t".join(row) for row in rows)]) + "\n")
    return path


def silent(*_: object) -> None: ...


def check(corpus: Corpus, *, skip_broken: bool = False, threads: int = 2) -> Corpus:
    return corpus.checked(skip_broken=skip_broken, threads=threads, progress=silent)


def names(corpus: Corpus) -> list[str]:
    return [picture.name for picture in corpus.pictures]


def encoded(colour: str = "red", size: tuple[int, int] = (20, 16), format_: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, COLOURS[colour]).save(stream, format_)
    return stream.getvalue()


# Pairs from files


def test_captions_gather_at_their_pictures_in_the_order_of_the_file(photos, tmp_path):
    pairs = write_tsv(tmp_path / "pairs.tsv", [*ROWS, ("trip/black.jpg", "night")])
    corpus = read_corpus(pairs, photos)
    assert names(corpus) == ["trip/black.jpg", "red.jpg", "green.jpg"]
    assert corpus.captions == [
        ["a black square", "night"],
        ["a red square", "something red"],
        ["a green square"],
    ]
    assert (len(corpus), corpus.pairs, list(corpus.skipped)) == (3, 5, [])
    assert corpus.pictures[1].read() == (photos / "red.jpg").read_bytes()


def test_paths_may_be_absolute_relative_or_from_windows(photos, tmp_path):
    absolute = str(photos / "red.jpg")
    rows = [(absolute, "red"), ("green.jpg", "green"), ("trip\\black.jpg", "black")]
    corpus = read_corpus(write_tsv(tmp_path / "pairs.tsv", rows), photos)
    assert names(corpus) == [absolute, "green.jpg", "trip\\black.jpg"]
    assert corpus.load(2).getpixel((0, 0)) == pytest.approx(COLOURS["black"], abs=6)
    beside = read_corpus(write_tsv(photos / "pairs.tsv", ROWS), None)
    assert beside.pictures[0] == PictureFile(photos / "trip" / "black.jpg", "trip/black.jpg")


def test_pictures_of_a_set_that_was_unpacked_into_one_folder_are_found(photos, tmp_path):
    rows = [("val2014/red.jpg", "red"), ("val2014/green.jpg", "green")]
    corpus = read_corpus(write_tsv(tmp_path / "pairs.tsv", rows), photos)
    assert corpus.load(0).getpixel((0, 0)) == pytest.approx(COLOURS["red"], abs=6)


def test_a_missing_picture_is_named_with_its_row(photos, tmp_path):
    pairs = write_tsv(tmp_path / "pairs.tsv", [*ROWS, ("gone.jpg", "x"), ("lost.jpg", "y")])
    with pytest.raises(SourceError) as caught:
        read_corpus(pairs, photos)
    message = str(caught.value)
    assert f"{pairs}, row 6: there is no picture gone.jpg in {photos}" in message
    assert "1 others" in message
    assert "--images" in message
    assert "--skip-broken" in message


def test_missing_pictures_are_left_out_where_that_was_asked_for(photos, tmp_path, caplog):
    rows = [("gone.jpg", "x"), *ROWS, ("gone.jpg", "y")]
    pairs = write_tsv(tmp_path / "pairs.tsv", rows)
    corpus = read_corpus(pairs, photos, skip_missing=True)
    assert names(corpus) == ["trip/black.jpg", "red.jpg", "green.jpg"]
    ((name, reason),) = corpus.skipped
    assert name == "gone.jpg"
    assert "row 2" in reason
    assert "gone.jpg" in caplog.text
    nothing = write_tsv(tmp_path / "none.tsv", [("gone.jpg", "x")])
    with pytest.raises(SourceError, match=r"gone\.jpg"):
        read_corpus(nothing, photos, skip_missing=True)


@pytest.mark.parametrize(
    ("rows", "header", "said"),
    [
        ([("red.jpg", "  ")], "path\tcaption", "row 2: the caption is empty"),
        ([("a red square", "red.jpg")], "path\tcaption", "no picture a red square"),
        ([("x" * 5000, "red")], "path\tcaption", "row 2: there is no picture x"),
        ([("red.jpg", "red")], "path\tcolour", "no column 'caption'"),
        ([("trip", "a folder")], "path\tcaption", "row 2: there is no picture trip"),
    ],
)
def test_what_is_wrong_with_a_pairs_file_is_told(rows, header, said, photos, tmp_path):
    with pytest.raises(SourceError, match=said):
        read_corpus(write_tsv(tmp_path / "pairs.tsv", rows, header), photos)


def test_the_part_of_a_file_with_splits_is_taken(photos):
    images = [
        {"filename": f"{name}.jpg", "split": split, "sentences": [{"raw": name}]}
        for name, split in (("red", "train"), ("green", "restval"), ("blue", "test"))
    ]
    source = photos / "dataset.json"
    source.write_text(json.dumps({"images": images}))
    with pytest.raises(SourceError, match=r"blue\.jpg"):
        read_corpus(source, None, split="test")  # It lies in a folder below.
    assert names(read_corpus(source, None, split="train")) == ["red.jpg", "green.jpg"]


# Checking, splitting, recognising


def broken_corpus(folder: Path) -> Corpus:
    for name in ("a", "b", "c"):
        draw(folder / f"{name}.jpg", "blue", (64 + ord(name), 50))
    whole = draw(folder / "cut.jpg", "green", (300, 200)).read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("not a picture at all")
    (folder / "same.jpg").write_bytes((folder / "a.jpg").read_bytes())
    rows = [(f"{name}.jpg", name) for name in ("a", "cut", "b", "text", "same", "c")]
    return read_corpus(write_tsv(folder / "pairs.tsv", rows), None)


def test_every_broken_picture_is_named_before_the_training(tmp_path):
    with pytest.raises(SourceError) as caught:
        check(broken_corpus(tmp_path))
    message = str(caught.value)
    assert "2 of 6" in message
    assert "cut.jpg: the end mark is missing" in message
    assert "text.jpg: not an image" in message
    assert "--skip-broken" in message


def test_broken_pictures_are_left_out_and_noted(tmp_path, caplog):
    seen: list[tuple[str, int, int]] = []
    corpus = broken_corpus(tmp_path).checked(
        skip_broken=True, threads=3, progress=lambda *report: seen.append(report)
    )
    assert names(corpus) == ["a.jpg", "b.jpg", "same.jpg", "c.jpg"]
    assert corpus.captions == [["a"], ["b"], ["same"], ["c"]]
    assert [name for name, _ in corpus.skipped] == ["cut.jpg", "text.jpg"]
    assert all(f"{name}.jpg" in caplog.text for name in ("cut", "text"))
    assert seen == [("checking", done, 6) for done in range(1, 7)]
    a, b, same, c = corpus.contents
    assert a == same
    assert len({a, b, c}) == 3


def test_what_was_missing_stays_noted_beside_what_is_broken(tmp_path):
    broken_corpus(tmp_path)
    rows = [("gone.jpg", "x"), ("a.jpg", "a"), ("text.jpg", "t")]
    pairs = write_tsv(tmp_path / "more.tsv", rows)
    corpus = check(read_corpus(pairs, None, skip_missing=True), skip_broken=True)
    assert [name for name, _ in corpus.skipped] == ["gone.jpg", "text.jpg"]


def test_an_interrupted_check_reads_no_further(tmp_path):
    reads = []

    class Counting:
        name = "counting"

        def read(self) -> bytes:
            reads.append(1)
            return encoded()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    corpus = Corpus([Counting()] * 2000, [["x"]] * 2000)
    with pytest.raises(KeyboardInterrupt):
        corpus.checked(skip_broken=False, threads=1, progress=interrupt)
    assert len(reads) < 2000


def fake_corpus(pictures: int, contents: Sequence[int] = ()) -> Corpus:
    files = [PictureFile(Path(f"{i}.jpg"), f"{i}.jpg") for i in range(pictures)]
    return Corpus(files, [[f"caption {i}"] for i in range(pictures)], contents)


@given(
    contents=st.lists(st.integers(0, 12), min_size=2, max_size=40).filter(lambda c: len({*c}) > 1),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
    at_most=st.integers(1, 5),
)
def test_a_split_keeps_equal_pictures_together_and_nothing_empty(contents, share, seed, at_most):
    corpus = fake_corpus(len(contents), contents)
    train, held = corpus.split(share, seed=seed, at_most=at_most)
    assert len(train) > 0
    assert 1 <= len({*held.contents}) <= at_most
    assert not {*train.contents} & {*held.contents}
    assert sorted(names(train) + names(held)) == sorted(names(corpus))
    assert [[f"caption {name[:-4]}"] for name in names(train)] == train.captions
    assert names(corpus.split(share, seed=seed, at_most=at_most)[1]) == names(held)


def test_a_split_has_the_size_that_was_asked_for_and_follows_the_seed():
    corpus = fake_corpus(50)
    held = [names(corpus.split(0.2, seed=seed)[1]) for seed in (0, 0, 1)]
    assert [len(each) for each in held] == [10, 10, 10]
    assert held[0] == held[1] != held[2]


@pytest.mark.parametrize("corpus", [fake_corpus(1), fake_corpus(3, [7, 7, 7]), fake_corpus(0)])
def test_one_picture_cannot_be_split(corpus):
    with pytest.raises(SourceError, match="two different pictures"):
        corpus.split(0.5, seed=0)


def test_the_fingerprint_changes_with_names_and_captions():
    def of(*rows: tuple[str, list[str]]) -> str:
        files = [PictureFile(Path(name), name) for name, _ in rows]
        return Corpus(files, [captions for _, captions in rows]).fingerprint()

    versions = [
        of(("a", ["x", "y"])),
        of(("a", ["x y"])),
        of(("a", ["y", "x"])),
        of(("a", ["x"]), ("y", [])),
        of(("b", ["x", "y"])),
        of(("a", ["x", "y"]), ("b", ["z"])),
        of(("b", ["z"]), ("a", ["x", "y"])),
    ]
    assert len(set(versions)) == len(versions)
    assert of(("a", ["x", "y"])) == versions[0]
    assert len(of(("a\udcff", ["x"]))) == 64


# Shards

Members = list[tuple[str, bytes]]


def write_tar(path: Path, members: Members, mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def sample(key: str, colour: str, caption: str) -> Members:
    return [(f"{key}.jpg", encoded(colour)), (f"{key}.txt", caption.encode())]


def test_samples_of_a_shard_in_their_order_with_their_bytes(tmp_path):
    blue, green = encoded("blue", format_="PNG"), encoded("green")
    members: Members = [
        ("b/", b""),
        ("000.txt", b"\xef\xbb\xbf a  red square \n\nsomething red\n"),
        ("000.jpg", encoded("red")),
        ("b/000.json", json.dumps({"id": 3, "captions": ["blue", " a \ud83d ", ""]}).encode()),
        ("b/000.png", blue),
        ("a.v2/x.y.z.JPG", green),
        ("a.v2/x.y.z.json", json.dumps({"caption": "green"}).encode()),
        ("a.v2/x.y.w.jpg", encoded("black")),
        ("a.v2/x.y.w.json", json.dumps({"caption": None, "text": "black"}).encode()),
        ("._000.jpg", b"what macOS adds"),
        ("000.cls", b"4"),
    ]
    corpus = read_corpus(write_tar(tmp_path / "my shards" / "x.tar", members[1:]), None)
    assert names(corpus) == [
        "x.tar/000.jpg",
        "x.tar/b/000.png",
        "x.tar/a.v2/x.y.z.JPG",
        "x.tar/a.v2/x.y.w.jpg",
    ]
    assert corpus.captions == [
        ["a red square", "something red"],
        ["blue", "a ?"],
        ["green"],
        ["black"],
    ]
    assert corpus.pictures[1].read() == blue
    assert corpus.pictures[2].read() == green
    assert len({*check(corpus).contents}) == 4


def test_text_counts_before_json_whichever_comes_last(tmp_path):
    json_ = ("0.json", b'{"caption": "from json", "width": 3}')
    rest = [("0.jpg", encoded()), ("0.txt", b"from text")]
    other = ("0.json", b'{"width": 3}')
    for i, members in enumerate(([*rest, json_], [json_, *rest], [*rest, other])):
        corpus = read_corpus(write_tar(tmp_path / f"{i}.tar", members), None)
        assert corpus.captions == [["from text"]]
    empty = [("0.jpg", encoded()), ("0.txt", b" \n"), json_]
    assert read_corpus(write_tar(tmp_path / "e.tar", empty), None).captions == [["from json"]]


def test_more_members_of_a_sample_are_no_samples(tmp_path):
    members = [
        *sample("0", "red", "red"),
        ("0.mask.png", encoded("black", format_="PNG")),
        ("0.meta.json", b"{}"),
        ("0.png", encoded("white", format_="PNG")),
    ]
    corpus = read_corpus(write_tar(tmp_path / "x.tar", members), None)
    assert names(corpus) == ["x.tar/0.jpg"]


def test_shards_are_found_by_pattern_and_folder(tmp_path):
    for i in range(12):
        write_tar(tmp_path / f"s-{i:03d}.tar", sample("0", "red", f"caption {i}"))
    (tmp_path / "readme.md").write_text("no shard")

    def captions(source: Path | str) -> list[str]:
        return [texts[0] for texts in read_corpus(source, None).captions]

    all_ = [f"caption {i}" for i in range(12)]
    assert captions(tmp_path) == all_
    assert captions(f"{tmp_path}/s-{{000..011}}.tar") == all_
    assert captions(f"{tmp_path}/s-{{008..010}}.tar") == all_[8:11]
    assert captions(f"{tmp_path}/s-0{{0..1}}{{0..1}}.tar") == [all_[i] for i in (0, 1, 10, 11)]
    assert captions(f"{tmp_path}/s-01*.tar") == all_[10:]
    brackets = write_tar(tmp_path / "[1] {0..1}.tar", sample("0", "red", "brackets"))
    assert captions(brackets) == captions(str(brackets)) == ["brackets"]
    with pytest.raises(SourceError, match=r"no shard .*s-012\.tar"):
        captions(f"{tmp_path}/s-{{010..013}}.tar")
    with pytest.raises(SourceError, match=r"no \.tar files"):
        captions(f"{tmp_path}/t-*.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"no \.tar files"):
        captions(tmp_path / "empty")


@pytest.mark.parametrize(
    ("name", "mode", "program"),
    [("x.tar", "w:gz", "gunzip"), ("x.tar.gz", "w:gz", "gunzip"), ("x.tar", "w:xz", "unxz")],
)
def test_a_compressed_tar_is_told_with_what_to_do(name, mode, program, tmp_path):
    source = write_tar(tmp_path / name, sample("0", "red", "red"), mode)
    with pytest.raises(SourceError, match=f"compressed tar file.*{program}"):
        read_corpus(source, None)


@pytest.mark.parametrize("where", ["picture", "header", "text", "start"])
def test_a_truncated_tar_is_told(where, tmp_path):
    members = [*sample("0", "red", "red"), ("1.jpg", bytes(5000)), ("1.txt", b"a black square")]
    source = write_tar(tmp_path / "x.tar", members)
    with tarfile.open(source) as tar:
        begin = {member.name: member.offset_data for member in tar}
    at = {
        "picture": begin["1.jpg"] + 700,
        "header": begin["1.jpg"] - 200,
        "text": begin["1.txt"] + 3,
        "start": 100,
    }
    source.write_bytes(source.read_bytes()[: at[where]])
    with pytest.raises(SourceError, match=r"x\.tar is not a tar file, or damaged"):
        read_corpus(source, None)


def test_a_damaged_header_in_the_middle_is_told(tmp_path):
    source = write_tar(tmp_path / "x.tar", [*sample("0", "red", "red"), *sample("1", "red", "2")])
    with tarfile.open(source) as tar:
        at = tar.getmember("1.jpg").offset
    data = bytearray(source.read_bytes())
    data[at + 150] ^= 0xFF
    source.write_bytes(data)
    with pytest.raises(SourceError, match=r"x\.tar is not a tar file, or damaged"):
        read_corpus(source, None)


def test_a_tar_without_its_end_is_read_with_a_warning(tmp_path, caplog):
    source = write_tar(tmp_path / "x.tar", sample("0", "red", "red"))
    with tarfile.open(source) as tar:
        end = tar.getmembers()[-1].offset_data + 512
    source.write_bytes(source.read_bytes()[:end])
    assert len(read_corpus(source, None)) == 1
    assert "no end mark" in caplog.text


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("0.jpg", b"")], r"x\.tar/0\.jpg has no caption"),
        ([("0.jpg", b""), ("0.txt", b" \n")], r"x\.tar/0\.jpg has no caption"),
        ([("0.jpg", b""), ("0.json", b"[]")], r"x\.tar/0\.jpg has no caption"),
        ([("0.jpg", b""), ("0.json", b"{")], r"x\.tar/0\.json cannot be read as json"),
        ([("0.jpg", b""), ("0.txt", b"\xff")], r"x\.tar/0\.txt cannot be read as txt"),
        ([("0.jpg", b""), ("0.json", b'{"caption": {"en": "a"}}')], "caption must be a text"),
        ([("0.jpg", b""), ("0.json", b'{"captions": ["a", 7]}')], "caption must be a text, not 7"),
        ([*sample("0", "red", "r"), ("1.txt", b"x")], r"x\.tar/1\.txt has no picture"),
        ([("0.bin", b"x")], "holds no pairs"),
        ([], "holds no pairs"),
    ],
)
def test_samples_that_are_not_whole_are_named(members, said, tmp_path):
    with pytest.raises(SourceError, match=said):
        read_corpus(write_tar(tmp_path / "x.tar", members), None)


def test_captions_without_a_picture_are_left_out_where_that_was_asked_for(tmp_path, caplog):
    members = [*sample("0", "red", "red"), ("1.txt", b"lonely")]
    corpus = read_corpus(write_tar(tmp_path / "x.tar", members), None, skip_missing=True)
    assert names(corpus) == ["x.tar/0.jpg"]
    assert [name for name, _ in corpus.skipped] == ["x.tar/1.txt"]
    assert "x.tar/1.txt" in caplog.text


def test_shards_have_no_splits(tmp_path):
    source = write_tar(tmp_path / "x.tar", sample("0", "red", "red"))
    with pytest.raises(SourceError, match="no splits"):
        read_corpus(source, None, split="train")


def test_shards_are_read_from_several_threads_at_once(tmp_path):
    contents = [random.Random(i).randbytes(3000 + i) for i in range(40)]
    members = [
        member
        for i, content in enumerate(contents)
        for member in [(f"{i:03d}.jpg", content), (f"{i:03d}.txt", b"x")]
    ]
    corpus = read_corpus(write_tar(tmp_path / "x.tar", members), None)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda row: corpus.pictures[row].read(), [*range(40)] * 5))
    assert read == contents * 5


def test_a_shard_that_shrank_or_went_names_the_picture(tmp_path):
    source = write_tar(tmp_path / "x.tar", sample("0", "red", "red"))
    corpus = read_corpus(source, None)
    source.write_bytes(source.read_bytes()[:600])
    with pytest.raises(MediaError, match=r"x\.tar/0\.jpg: .*ends in the middle"):
        corpus.load(0)
    source.unlink()
    with pytest.raises(MediaError, match=r"x\.tar/0\.jpg: "):
        corpus.load(0)
    with pytest.raises(SourceError, match="There is no shard"):
        read_corpus(source, None)


def test_a_gzip_file_called_tar_that_holds_something_else(tmp_path):
    (tmp_path / "x.tar").write_bytes(gzip.compress(b"text"))
    with pytest.raises(SourceError, match="compressed"):
        read_corpus(tmp_path / "x.tar", None)
    (tmp_path / "x.tar").write_bytes(b"")
    with pytest.raises(SourceError, match="not a tar file"):
        read_corpus(tmp_path / "x.tar", None)


# Augmentation


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_the_same_generator_gives_the_same_picture():
    image, recipe = noise(40, 30), Recipe(crop=0.3, flip=True, colour=0.5)
    views = [augment_picture(image, recipe, generator(0, 1, row)) for row in (4, 4, 5)]
    assert views[0].size == views[1].size
    assert views[0].tobytes() == views[1].tobytes()
    assert views[0].tobytes() != views[2].tobytes()
    assert image.tobytes() == noise(40, 30).tobytes()


def test_without_augmentation_the_picture_stays_as_it_is():
    image = noise(31, 17)
    view = augment_picture(image, Recipe(crop=1, flip=False, colour=0), generator(0))
    assert (view.size, view.tobytes()) == (image.size, image.tobytes())


def test_half_of_the_pictures_are_mirrored():
    image, recipe = noise(9, 9), Recipe(crop=1, flip=True, colour=0)
    mirror = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes()
    views = Counter(augment_picture(image, recipe, generator(i)).tobytes() for i in range(400))
    assert set(views) == {image.tobytes(), mirror}
    assert 150 < views[mirror] < 250


@given(
    width=st.integers(1, 600),
    height=st.integers(1, 600),
    smallest=st.floats(0.05, 0.99),
    seed=st.integers(0, 1000),
)
def test_a_crop_lies_inside_and_keeps_its_share(width, height, smallest, seed):
    left, top, right, bottom = _box((width, height), smallest, generator(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    # Each side was rounded, by half a pixel at most.
    assert (right - left + 0.5) * (bottom - top + 0.5) >= smallest * width * height * (1 - 1e-9)


@pytest.mark.parametrize("size", [(1, 1), (2, 500), (500, 2), (1, 3)])
def test_pictures_of_extreme_shapes_are_augmented(size):
    recipe = Recipe(crop=0.05, flip=True, colour=1)
    for seed in range(20):
        view = augment_picture(noise(*size), recipe, generator(seed))
        assert view.mode == "RGB"
        assert 1 <= view.width <= size[0]
        assert 1 <= view.height <= size[1]


def test_crops_reach_every_side():
    boxes = [_box((20, 10), 0.3, generator(seed)) for seed in range(300)]
    for low, high, side in ((0, 2, 20), (1, 3, 10)):
        smaller = [box for box in boxes if box[high] - box[low] < side]
        assert min(box[low] for box in smaller) == 0
        assert max(box[high] for box in smaller) == side
    areas = [(r - left) * (b - top) / 200 for left, top, r, b in boxes]
    assert 0.2 < min(areas) < 0.4
    assert max(areas) > 0.9


@given(st.text(max_size=60), st.floats(0, 0.95), st.integers(0, 500))
def test_word_dropout_keeps_order_and_at_least_a_word(caption, share, seed):
    left = augment_caption(caption, share, generator(seed))
    words = iter(caption.split())
    assert all(word in words for word in left.split())
    assert bool(left.split()) == bool(caption.split())
    assert left == augment_caption(caption, share, generator(seed))


def test_word_dropout_leaves_out_its_share():
    caption = " ".join(str(i) for i in range(1000))
    assert augment_caption(caption, 0, generator(1)) == caption
    assert 650 < len(augment_caption(caption, 0.3, generator(1)).split()) < 750


# Batches


class Reader:
    """What a model prepares: small pixels, and a number for each word."""

    preprocess = ImagePreprocess(size=8)

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def tokenize(self, texts):
        self.seen.append(list(texts))
        rows = [[len(word) for word in text.split()][:6] for text in texts]
        ids = torch.tensor([row + [0] * (6 - len(row)) for row in rows])
        return ids, (ids > 0).long()


STEADY = Recipe(batch=4, crop=1, colour=0, dropout=0, seed=5)
LIVELY = Recipe(batch=4, crop=0.5, colour=0.3, flip=True, dropout=0.3, seed=5)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    """Twelve pictures with captions that name them; 0 and 7 have equal bytes."""
    folder = tmp_path_factory.mktemp("batches")
    for i in range(12):
        noise(20 + i % 7, 16).save(folder / f"{i}.png")
    rows = [
        (f"{i}.png", f"picture {i} said in way {k}") for i in range(12) for k in range(i % 3 + 1)
    ]
    return check(read_corpus(write_tsv(folder / "pairs.tsv", rows), None))


def batches(corpus: Corpus, recipe: Recipe = STEADY, **options: Any) -> PairBatches:
    return PairBatches(corpus, options.pop("reader", Reader()), recipe, **{"threads": 2} | options)


def values(batch: Batch) -> dict[str, Any]:
    fields = {name: getattr(batch, name) for name in batch.__slots__}
    return {n: v.tolist() if isinstance(v, torch.Tensor) else v for n, v in fields.items()}


def epoch(source: PairBatches, number: int, first: int = 0, memory: Memory | None = None):
    return [values(batch) for batch in source.epoch(number, first, memory)]


def test_an_epoch_shows_every_picture_once_in_another_order_each_time(corpus):
    source = batches(corpus)
    assert source.steps == 3
    orders = [[row for b in epoch(source, n) for row in b["rows"]] for n in range(3)]
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_captions_belong_to_their_pictures_and_change_with_the_epoch(corpus):
    reader = Reader()
    source = batches(corpus, reader=reader)
    texts = [text for captions in corpus.captions for text in captions]
    shown: dict[int, set[str]] = {}
    for number in range(12):
        reader.seen.clear()
        for batch, seen in zip(epoch(source, number), reader.seen, strict=True):
            for row, caption, text in zip(batch["rows"], batch["captions"], seen, strict=True):
                assert text in corpus.captions[row]
                assert texts[caption] == text
                shown.setdefault(row, set()).add(text)
    assert all(shown[row] == set(corpus.captions[row]) for row in range(12))


def test_pixels_are_those_of_the_row(corpus):
    (batch, *_) = batches(corpus).epoch(0, 0, None)
    for place, row in enumerate(batch.rows.tolist()):
        expected = Reader.preprocess(corpus.load(row))
        np.testing.assert_array_equal(batch.images[place].numpy(), expected)
    assert batch.images.dtype == torch.uint8
    assert (batch.ids.dtype, batch.rows.dtype, batch.texts.dtype) == (torch.int64,) * 3


@pytest.mark.parametrize("recipe", [STEADY, LIVELY], ids=["steady", "lively"])
def test_an_epoch_goes_on_where_it_was_left(recipe, corpus):
    whole = epoch(batches(corpus, recipe), 3)
    for first in range(4):
        assert epoch(batches(corpus, recipe), 3, first) == whole[first:]


def test_the_number_of_threads_changes_nothing(corpus):
    one = epoch(batches(corpus, LIVELY, threads=1), 1)
    assert one == epoch(batches(corpus, LIVELY, threads=7), 1)
    assert one != epoch(batches(corpus, LIVELY), 2)


@pytest.mark.parametrize("memory", [False, True], ids=["at random", "hard"])
def test_the_parts_of_two_processes_are_the_batch_of_one(memory, corpus):
    recipe = Recipe(batch=6, crop=0.5, colour=0.3, dropout=0.3, hard_negatives=0.5)
    known = memory_of(len(corpus)) if memory else None

    def of(rank: int, count: int) -> list[dict[str, Any]]:
        return epoch(batches(corpus, recipe, process=(rank, count)), 1, 0, known)

    for whole, *parts in zip(of(0, 1), of(0, 2), of(1, 2), strict=True):
        for name in ("rows", "captions", "pictures", "texts", "images", "ids", "mask"):
            assert parts[0][name] + parts[1][name] == whole[name]
        assert [part["pairs"] for part in parts] == [3, 3]


def test_every_row_is_changed_in_its_own_way(corpus):
    same = Corpus(corpus.pictures[:1] * 4, corpus.captions[8:9] * 4, [0] * 4)
    (batch,) = epoch(batches(same, LIVELY), 0)
    assert len({str(image) for image in batch["images"]}) == 4
    assert len({str(ids) for ids in batch["ids"]}) > 1
    assert batch["pictures"] == [0] * 4


def test_equal_pictures_and_equal_captions_share_their_numbers(corpus):
    captions = [["Same  words", "other"], ["same words"], ["other ones"]]
    three = Corpus(corpus.pictures[:3], captions, [0, 1, 0])
    source = batches(three, Recipe(batch=3, crop=1, colour=0, dropout=0))
    for number in range(6):
        (batch,) = epoch(source, number)
        pictures = dict(zip(batch["rows"], batch["pictures"], strict=True))
        texts = dict(zip(batch["captions"], batch["texts"], strict=True))
        assert pictures[0] == pictures[2] != pictures[1]
        assert texts[3] not in {texts[2], texts.get(1)}
        assert 0 not in texts or texts[0] == texts[2]


def test_a_batch_is_no_larger_than_the_corpus_and_never_empty(corpus):
    source = batches(corpus, Recipe(batch=512))
    (batch,) = epoch(source, 0)
    assert (source.steps, batch["pairs"]) == (1, 12)
    parts = batches(corpus, Recipe(batch=512), process=(1, 5))
    assert [batch["pairs"] for batch in epoch(parts, 0)] == [2]
    for recipe, few in ((Recipe(batch=2), corpus), (Recipe(batch=64), corpus.select([0, 1]))):
        with pytest.raises(TrainingError, match="--batch"):
            batches(few, recipe, process=(0, 3))


def test_rows_that_fill_no_batch_wait_for_another_epoch(corpus):
    source = batches(corpus, Recipe(batch=5))
    seen = [{row for batch in epoch(source, n) for row in batch["rows"]} for n in range(8)]
    assert all(len(rows) == 10 for rows in seen)
    assert set.union(*seen) == set(range(12))


def with_lonely(corpus: Corpus) -> tuple[Corpus, ClassTeacher]:
    """The same pictures, of which the last four have lost their captions."""
    said = np.random.default_rng(0).random((12, 3)).astype(np.float16)
    said /= said.sum(axis=1, keepdims=True)
    texts = [*corpus.captions[:8], [], [], [], []]
    return Corpus(corpus.pictures, texts, corpus.contents), ClassTeacher(
        said, ["cat", "dog", "elk"]
    )


def test_pictures_without_captions_come_after_the_pairs(corpus):
    lonely, teacher = with_lonely(corpus)
    reader = Reader()
    source = batches(lonely, Recipe(batch=8, crop=1, colour=0), reader=reader, classes=teacher)
    shown = set()
    for number in range(12):
        (batch,) = source.epoch(number, 0, None)
        assert sorted(batch.rows.tolist()) == list(range(8))
        assert (batch.pairs, len(batch.captions), len(batch.images)) == (8, 8, 10)
        assert reader.seen[-1][8:] == ["cat", "dog", "elk"]
        assert batch.classes.shape == (10, 3)
        torch.testing.assert_close(batch.classes.sum(1), torch.ones(10))
        for place, row in enumerate(batch.rows.tolist()):
            np.testing.assert_allclose(batch.classes[place], teacher.probabilities[row], atol=2e-3)
        for place in (8, 9):
            (row,) = (
                row
                for row in range(8, 12)
                if np.array_equal(Reader.preprocess(lonely.load(row)), batch.images[place])
            )
            np.testing.assert_allclose(batch.classes[place], teacher.probabilities[row], atol=2e-3)
            shown.add(row)
    assert shown == {8, 9, 10, 11}


def test_without_a_class_teacher_they_do_not_come_at_all(corpus):
    lonely, _ = with_lonely(corpus)
    (batch,) = epoch(batches(lonely, Recipe(batch=8)), 0)
    assert sorted(batch["rows"]) == list(range(8))
    assert (len(batch["images"]), len(batch["ids"]), batch["classes"]) == (8, 8, None)


def test_an_abandoned_epoch_leaves_no_threads(corpus):
    before = set(threading.enumerate())
    running = batches(corpus, Recipe(batch=2), threads=4).epoch(0, 0, None)
    next(running)
    assert set(threading.enumerate()) - before
    running.close()
    assert set(threading.enumerate()) == before


def test_a_picture_that_vanished_is_named(tmp_path):
    for i in range(6):
        noise(9, 9).save(tmp_path / f"{i}.png")
    rows = [(f"{i}.png", "x") for i in range(6)]
    corpus = check(read_corpus(write_tsv(tmp_path / "pairs.tsv", rows), None))
    (tmp_path / "4.png").unlink()
    before = set(threading.enumerate())
    with pytest.raises(MediaError, match=r"4\.png: the file disappeared"):
        epoch(batches(corpus, Recipe(batch=2)), 0)
    assert set(threading.enumerate()) == before


def test_a_batch_moves_with_all_its_parts(corpus):
    lonely, teacher = with_lonely(corpus)
    (batch,) = batches(lonely, Recipe(batch=8), classes=teacher).epoch(0, 0, None)
    moved = batch.to(torch.device("meta"))
    tensors = [v for v in map(moved.__getattribute__, Batch.__slots__) if torch.is_tensor(v)]
    assert len(tensors) == 8
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert (moved.pairs, moved.weights) == (8, None)


# Hard negatives


def circle(angles: Sequence[float]) -> torch.Tensor:
    angle = torch.tensor(angles)
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def memory_of(rows: int) -> Memory:
    """Rows 2i and 2i+1 are neighbours, far from all others."""
    memory = Memory.empty(rows, 2)
    angles = [6.28 * (row // 2) / (rows // 2) + 0.01 * (row % 2) for row in range(rows)]
    memory.remember(torch.arange(rows), circle(angles), circle(angles))
    memory.settle()
    return memory


@pytest.mark.parametrize("seed", range(5))
def test_the_nearest_share_a_batch(seed):
    order = generator(seed).permutation(16)
    groups = with_neighbours(order, 4, 0.5, memory_of(16))
    # Two of every batch are seeds; unless they are neighbours themselves, theirs come along.
    assert sorted(np.concatenate(groups)) == list(range(16))
    for group in groups:
        assert len(group) == 4
        first, second = group[0] // 2, group[1] // 2
        if first != second:
            assert set(group // 2) == {first, second}


def test_neighbours_are_those_that_the_text_would_take_for_its_picture():
    memory = Memory.empty(4, 2)
    texts, images = circle([0.0, 1.5, 1.5, 1.5]), circle([3.0, 3.0, 0.1, 1.6])
    memory.remember(torch.arange(4), images, texts)
    memory.settle()
    (first, _) = with_neighbours(np.array([0, 1, 2, 3]), 2, 0.5, memory)
    assert first.tolist() == [0, 2]


@settings(max_examples=60)
@given(
    rows=st.integers(1, 60),
    size=st.integers(1, 20),
    share=st.floats(0, 0.9),
    seed=st.integers(0, 100),
    window=st.integers(1, 8),
)
def test_batches_are_full_and_no_row_comes_twice(rows, size, share, seed, window):
    order = generator(seed).permutation(np.arange(rows) * 3)
    memory = Memory.empty(rows * 3, 5)
    memory.images.normal_(generator=torch.Generator().manual_seed(seed))
    memory.texts.normal_(generator=torch.Generator().manual_seed(seed + 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hard_negatives, "CANDIDATES", window)
        patch.setattr(hard_negatives, "ROWS_AT_ONCE", window)
        groups = with_neighbours(order, size, share, memory)
    assert [len(group) for group in groups] == [size] * (rows // size)
    used = [row for group in groups for row in group]
    assert len(set(used)) == len(used)
    assert set(used) <= set(order.tolist())


@pytest.mark.parametrize(("share", "expected"), [(0.25, 6), (0.5, 4), (0.9, 1)])
def test_a_batch_has_the_share_of_neighbours(share, expected):
    order = np.arange(40)
    (first, *_) = with_neighbours(order, 8, share, memory_of(40))
    assert first[:expected].tolist() == list(range(expected))
    assert first.dtype == np.int64


def test_batches_of_a_continued_epoch_are_chosen_by_what_was_known_at_its_beginning(corpus):
    recipe = Recipe(batch=4, crop=1, colour=0, dropout=0, hard_negatives=0.5)
    memory, source = memory_of(12), batches(corpus, recipe)
    whole = epoch(source, 1, 0, memory)
    for batch in whole[:2]:
        news = circle([3.0 * row for row in batch["rows"]])
        memory.remember(torch.tensor(batch["rows"]), news, news)
    assert epoch(source, 1, 2, memory) == whole[2:]
    rows = [[batch["rows"] for batch in each] for each in (epoch(source, 1, 0, memory), whole)]
    assert rows[0] != rows[1]


# Teachers


@pytest.fixture
def colours(photos, tmp_path) -> Corpus:
    rows = [
        ("red.jpg", "red"),
        ("red.jpg", "rather yellow"),
        ("trip/blue.jpg", "blue"),
        ("green.jpg", "green"),
        ("white.jpg", "white"),
        ("trip/black.jpg", "black night"),
    ]
    return check(read_corpus(write_tsv(tmp_path / "pairs.tsv", rows), photos))


def test_a_teacher_s_similarities_are_its_cosines(colours, encoder: ColourEncoder, photos):
    teacher = SimilarityTeacher.embed(colours, encoder, silent)
    images = encoder.encode_images([photos / name for name in names(colours)])
    texts = encoder.encode_texts(["red", "rather yellow", "blue", "green", "white", "black night"])
    rows, captions = torch.tensor([4, 0, 2]), torch.tensor([5, 0, 3])
    expected = SCALE * images[[4, 0, 2]] @ texts[[5, 0, 3]].T
    found = teacher.similarities(rows, captions)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    assert found.argmax(dim=1).tolist() == [0, 1, 2]
    assert not np.allclose(texts[0], texts[1], atol=0.1)


def write_classes(path: Path, **arrays: Any) -> Path:
    given = {
        "names": np.array(["a cat", "a dog", "an elk"]),
        "paths": np.array(["red.jpg", "green.jpg"]),
        "probabilities": np.array([[2.0, 1.0, 1.0], [0.0, 0.0, 0.5]]),
    } | arrays
    np.savez(path, **{name: value for name, value in given.items() if value is not None})
    return path


def test_class_probabilities_find_their_rows(colours, tmp_path, photos):
    paths = np.array(["green.jpg", "yellow.jpg", "red.jpg", "yellow.jpg", "gone.jpg", "x" * 5000])
    said = np.array([[0, 0, 0.5], [3, 1, 0], [2, 1, 1], [3, 1, 0], [1, 0, 0], [1, 0, 0]])
    source = write_classes(tmp_path / "c.npz", paths=paths, probabilities=said)
    draw(photos / "yellow.jpg", "yellow")
    teacher, whole = read_class_teacher(source, colours, photos)
    assert names(whole) == [*names(colours), "yellow.jpg"]
    assert whole.captions == [*colours.captions, []]
    table = {name: row for name, row in zip(names(whole), teacher.probabilities, strict=True)}
    assert table["red.jpg"].tolist() == [0.5, 0.25, 0.25]
    assert table["green.jpg"].tolist() == [0, 0, 1]
    assert table["yellow.jpg"].tolist() == [0.75, 0.25, 0]
    assert table["white.jpg"].tolist() == [0, 0, 0]
    assert teacher.names == ["a cat", "a dog", "an elk"]
    # What is known of equal pictures stays known.
    assert whole.contents[:-1] == list(colours.contents)
    assert whole.contents[-1] not in colours.contents
    _, without = read_class_teacher(source, colours, None)
    assert names(without) == names(colours)
    assert list(without.contents) == list(colours.contents)


def test_pictures_that_were_skipped_or_held_out_do_not_come_back(tmp_path):
    corpus = check(broken_corpus(tmp_path), skip_broken=True)
    train, held = corpus.split(0.3, seed=0)
    paths = np.array([f"{name}.jpg" for name in ("a", "b", "c", "same", "cut", "text")])
    source = write_classes(tmp_path / "c.npz", paths=paths, probabilities=np.ones((6, 3)))
    _, whole = read_class_teacher(source, train, tmp_path, held_out=held)
    assert names(whole) == names(train)


def test_broken_pictures_that_only_the_classes_name_are_told_now(tmp_path, caplog):
    corpus = broken_corpus(tmp_path).select([0, 2])
    paths = np.array(["a.jpg", "c.jpg", "cut.jpg"])
    source = write_classes(tmp_path / "c.npz", paths=paths, probabilities=np.ones((3, 3)))
    with pytest.raises(SourceError, match=r"cut\.jpg"):
        read_class_teacher(source, corpus, tmp_path)
    _, whole = read_class_teacher(
        source, corpus, tmp_path, check=lambda extra: check(extra, skip_broken=True)
    )
    assert names(whole) == ["a.jpg", "b.jpg", "c.jpg"]
    assert [name for name, _ in whole.skipped] == ["cut.jpg"]
    assert "cut.jpg" in caplog.text


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"names": None}, "names"),
        ({"probabilities": None}, "probabilities"),
        ({"paths": None}, "paths"),
        ({"probabilities": np.ones((3, 2))}, r"shape \(3, 2\).*\(2, 3\)"),
        ({"probabilities": np.ones(6)}, r"shape \(6,\)"),
        ({"probabilities": np.ones((2, 0)), "names": np.array([], dtype="U1")}, "one name"),
        ({"probabilities": np.full((2, 3), -0.1)}, "not negative"),
        ({"probabilities": np.full((2, 3), np.nan)}, "finite"),
        ({"probabilities": np.full((2, 3), "x")}, "cannot be read"),
        ({"names": np.array("cat")}, "cannot be read"),
        ({"names": np.array(["a", 1, None], dtype=object)}, "allow_pickle"),
        ({"paths": np.array(["x.jpg", "y.jpg"])}, "names no picture.*x.jpg"),
    ],
)
def test_class_files_that_cannot_be_used_are_told(arrays, said, colours, tmp_path):
    source = write_classes(tmp_path / "c.npz", **arrays)
    with pytest.raises(SourceError, match=said) as caught:
        read_class_teacher(source, colours, None)
    assert str(source) in str(caught.value)


def test_files_that_are_no_archive_are_told(colours, tmp_path):
    whole = write_classes(tmp_path / "whole.npz", probabilities=np.ones((2, 3))).read_bytes()
    stream = io.BytesIO()
    np.save(stream, np.ones((2, 3)))
    flipped = bytearray(whole)
    flipped[len(flipped) // 2] ^= 0xFF
    kinds = [b"", b"text", stream.getvalue(), whole[: len(whole) // 2], whole[:-10], bytes(flipped)]
    for i, content in enumerate(kinds):
        source = tmp_path / f"{i}.npz"
        source.write_bytes(content)
        with pytest.raises(SourceError, match=f"{i}.npz"):
            read_class_teacher(source, colours, None)
    with pytest.raises(SourceError, match=r"missing\.npz"):
        read_class_teacher(tmp_path / "missing.npz", colours, None)


def test_targets_keep_the_most_probable_classes_and_sum_to_one():
    said = np.array(
        [[0.2, 0.0, 0.6, 0.2], [0.5, 0.0, 0.25, 0.25], [0, 1, 0, 0], [0, 0, 0, 0]], np.float16
    )
    teacher = ClassTeacher(said, ["a", "b", "c", "d"])
    chosen, shares = teacher.targets([0, 1], 2)
    assert chosen == ["a", "c"]
    expected = [[0.2 / 0.8, 0.6 / 0.8], [0.5 / 0.75, 0.25 / 0.75]]
    np.testing.assert_allclose(shares, expected, atol=1e-3)
    assert shares.dtype == np.float32
    chosen, shares = teacher.targets([3, 2, 0], 10)
    assert chosen == ["a", "b", "c", "d"]
    np.testing.assert_allclose(shares.sum(axis=1), [0, 1, 1], atol=1e-6)


def test_targets_sum_to_one_however_little_is_kept():
    said = np.zeros((2, 3), np.float16)
    said[0] = [1, 0, 0]
    said[1] = [1e-7, 1, 0]
    chosen, shares = ClassTeacher(said, ["a", "b", "c"]).targets([0, 1, 0], 1)
    assert chosen == ["a"]
    assert shares.tolist() == [[1], [1], [1]]


# Recipe

recipes = st.builds(
    Recipe,
    trainable=st.sampled_from(Trainable),
    loss=st.sampled_from(Loss),
    epochs=st.integers(1, 10**6),
    batch=st.integers(2, 10**6),
    chunk=st.integers(0, 10**6),
    learning_rate=st.floats(0, 1),
    crop=st.floats(0.05, 1),
    flip=st.booleans(),
    colour=st.floats(0, 1),
    average=st.floats(0, 0.99999),
    hard_negatives=st.floats(0, 0.9),
    distillation=st.floats(0, 1e6),
    precision=st.sampled_from(Precision),
    seed=st.integers(0, 2**32 - 1),
)


@given(recipes)
def test_a_recipe_comes_back_from_json(recipe):
    text = json.dumps(recipe.to_json(), allow_nan=False)
    again = Recipe.from_json(json.loads(text))
    assert again == recipe
    assert type(again.trainable) is Trainable
    assert type(again.loss) is Loss
    assert type(again.precision) is Precision
    assert json.loads(text) == recipe.to_json()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch", 1),
        ("chunk", -1),
        ("learning_rate", 1.5),
        ("learning_rate", float("nan")),
        ("tower_rate", -0.1),
        ("warmup", 1.0000001),
        ("weight_decay", -1),
        ("clip_norm", float("inf")),
        ("dropout", 1),
        ("crop", 0),
        ("colour", 2),
        ("average", 1),
        ("patience", -1),
        ("validate_every", -5),
        ("hard_negatives", 1),
        ("distillation", float("inf")),
        ("classes", -0.5),
        ("lora_rank", 0),
        ("temperature", 11),
        ("seed", -1),
        ("seed", 2**32),
    ],
)
def test_a_setting_beyond_its_limits_is_named(name, value):
    with pytest.raises(TrainingError) as caught:
        Recipe(**{name: value})
    message = str(caught.value)
    assert message.startswith(f"--{name.replace('_', '-')} must be ")
    assert message.endswith(f"not {value}.")
    with pytest.raises(TrainingError):
        Recipe.from_json({name: value})


@pytest.mark.parametrize(
    "fields", [{"epoch": 3}, {"epochs": "3"}, {"loss": "hinge"}, {"trainable": None}]
)
def test_json_that_is_no_recipe_is_refused(fields):
    with pytest.raises((ValueError, TypeError)):
        Recipe.from_json(fields)


# Curves

HISTORY = [
    {"step": 1, "epoch": 0, "loss": 5.4321987654321, "seconds": 0.1},
    {"step": 2, "epoch": 0, "loss": 1e-17, "seconds": 0.1, "text→image R@1": 12.5, "R@5": 40.0},
    {"step": 3, "epoch": 1, "loss": 2.0, "seconds": 0.1},
    {"step": 4, "epoch": 1, "loss": 1.5, "seconds": 0.1, "text→image R@1": 30.0, "R@5": 60.0},
]


def test_the_table_reads_back_as_the_history(tmp_path):
    curves.write_curve_table(HISTORY, tmp_path / "curve.csv")
    with (tmp_path / "curve.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "epoch", "loss", "seconds", "text→image R@1", "R@5"]
    assert rows[0]["R@5"] == ""
    read = [{name: float(text) for name, text in row.items() if text} for row in rows]
    assert read == HISTORY


@pytest.mark.parametrize(
    ("history", "best"), [(HISTORY, 4), (HISTORY[:1], 1), (HISTORY[1:2], 2), ([], 0), ([], None)]
)
def test_the_picture_is_one(history, best, tmp_path):
    pytest.importorskip("matplotlib")
    before = "matplotlib.pyplot" in sys.modules
    curves.write_curve_picture(history, tmp_path / "curve.png", best_step=best)
    assert ("matplotlib.pyplot" in sys.modules) is before
    with Image.open(tmp_path / "curve.png") as image:
        assert image.format == "PNG"
        assert 600 <= image.width <= 2000
        assert 300 <= image.height <= 1500
        assert len(image.convert("RGB").getcolors(1 << 20)) > 10


def test_a_single_step_and_a_single_validation_are_seen(tmp_path):
    pytest.importorskip("matplotlib")
    curves.write_curve_picture([{"step": 1, "loss": 2.0, "R@1": 50.0}], tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as image:
        pixels = np.asarray(image.convert("RGB"), dtype=int)
    drawn = abs(pixels - (31, 119, 180)).sum(axis=2) < 60
    # The legend, which has the colour too, lies above the middle.
    height, width = drawn.shape
    middle = drawn[height // 3 : 2 * height // 3]
    assert middle[:, : width // 2].any()
    assert middle[:, width // 2 :].any()


def test_the_table_of_an_empty_history_has_no_rows(tmp_path):
    curves.write_curve_table([], tmp_path / "curve.csv")
    assert (tmp_path / "curve.csv").read_text().strip() == ""


def test_without_matplotlib_only_the_picture_is_missing(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with caplog.at_level(logging.WARNING):
        curves.write_curve_picture(HISTORY, tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()
    assert "curve.png" in caplog.text
