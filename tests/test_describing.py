"""Captions that a model writes: who has one, how long it stays, and BLIP through the command."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mmsearch
from mmsearch.errors import ModelError, SourceError
from mmsearch.retrieval.captioners import Captioner, full_name, load_captioner, revision
from mmsearch.retrieval.ingest import Progress, index
from tests.conftest import COLOURS, ColourEncoder, draw

SHORT = len(COLOURS)


class ColourCaptioner(Captioner):
    """Names the colour; counts what it saw."""

    batch_size = 2
    decode_size = 8

    def __init__(self, label: str = "colours@1") -> None:
        self._label = label
        self.seen = 0

    @property
    def label(self) -> str:
        return self._label

    def describe(self, pictures: Sequence[Image.Image]) -> list[str]:
        assert len(pictures) <= self.batch_size
        self.seen += len(pictures)
        said = []
        for picture in pictures:
            pixel = picture.getpixel((1, 1))
            near = {
                name: sum((a - b) ** 2 for a, b in zip(pixel, rgb, strict=True))
                for name, rgb in COLOURS.items()
            }
            said.append(f"something {min(near, key=near.__getitem__)} by {self._label}")
        return said


def captions_of(photos: Path) -> dict[str, list[tuple[str, str]]]:
    with closing(sqlite3.connect(photos / ".mmsearch" / "catalog.sqlite")) as connection:
        found = connection.execute(
            "SELECT path, text, source FROM file JOIN caption ON caption.file_id = file.id "
            "JOIN caption_vector ON caption_vector.caption_id = caption.id ORDER BY path, text"
        )
        captions: dict[str, list[tuple[str, str]]] = {}
        for path, text, source in found:
            captions.setdefault(path, []).append((text, source))
    return captions


def test_only_pictures_without_a_caption_are_described(photos, encoder) -> None:
    (photos / "red.txt").write_text("my own words")
    captioner = ColourCaptioner()
    report = index(photos, model=encoder, describe=captioner)
    assert report.described == captioner.seen == SHORT - 1 == report.to_json()["described"]
    found = captions_of(photos)
    assert found["red.jpg"] == [("my own words", "sidecar")]
    assert found["trip/blue.jpg"] == [("something blue by colours@1", "model:colours@1")]
    assert len(found) == SHORT


def test_a_generated_caption_is_found_like_any_other(photos, encoder) -> None:
    index(photos, model=encoder, describe=ColourCaptioner())
    with mmsearch.open(photos, model=encoder) as library:
        hits = library.search(image=photos / "trip/blue.jpg", to="captions", k=1).hits
    assert hits[0].caption == "something blue by colours@1"


def test_later_runs_keep_what_was_written_with_or_without_a_captioner(photos, encoder) -> None:
    index(photos, model=encoder, describe=ColourCaptioner())
    before = captions_of(photos)
    again = ColourCaptioner()
    assert index(photos, model=encoder, describe=again).described == again.seen == 0
    os.utime(photos / "trip/blue.jpg")  # touched, read again, and the same
    (photos / "green.jpg").rename(photos / "moved.jpg")
    assert index(photos, model=encoder).described == 0
    before["moved.jpg"] = before.pop("green.jpg")
    assert captions_of(photos) == before


def test_a_caption_of_peoples_own_takes_its_place(photos, encoder) -> None:
    index(photos, model=encoder, describe=ColourCaptioner())
    (photos / "trip/blue.txt").write_text("the sea")
    pairs = photos.parent / "pairs.tsv"
    pairs.write_text("path\tcaption\nred.jpg\ta door\n")
    captioner = ColourCaptioner()
    index(photos, model=encoder, captions=pairs, describe=captioner)
    found = captions_of(photos)
    assert found["trip/blue.jpg"] == [("the sea", "sidecar")]
    assert found["red.jpg"] == [("a door", "file:pairs.tsv")]
    assert captioner.seen == 0
    # Gone again, it leaves room for a written one.
    (photos / "trip/blue.txt").unlink()
    index(photos, model=encoder, describe=captioner)
    assert captions_of(photos)["trip/blue.jpg"] == [
        ("something blue by colours@1", "model:colours@1")
    ]


def test_a_picture_that_changes_is_described_anew(photos, encoder) -> None:
    index(photos, model=encoder, describe=ColourCaptioner())
    draw(photos / "trip/blue.jpg", "yellow", (90, 70))
    index(photos, model=encoder)
    assert "trip/blue.jpg" not in captions_of(photos)
    assert index(photos, model=encoder, describe=ColourCaptioner()).described == 1
    assert captions_of(photos)["trip/blue.jpg"][0][0] == "something yellow by colours@1"


def test_another_model_writes_in_place_of_the_first(photos, encoder) -> None:
    index(photos, model=encoder, describe=ColourCaptioner())
    assert index(photos, model=encoder, describe=ColourCaptioner("better@2")).described == SHORT
    found = captions_of(photos)
    assert all(len(captions) == 1 for captions in found.values())
    assert {captions[0][1] for captions in found.values()} == {"model:better@2"}


def test_files_of_one_content_are_described_together(photos, encoder) -> None:
    shutil.copy(photos / "trip/blue.jpg", photos / "copy.jpg")
    captioner = ColourCaptioner()
    assert index(photos, model=encoder, describe=captioner).described == SHORT + 1
    assert captioner.seen == SHORT
    found = captions_of(photos)
    assert found["copy.jpg"] == found["trip/blue.jpg"]


def test_an_interrupted_run_goes_on_where_it_stopped(photos, encoder) -> None:
    class Interrupted(ColourCaptioner):
        def describe(self, pictures):
            if self.seen == 4:
                raise KeyboardInterrupt
            return super().describe(pictures)

    heard: list[Progress] = []
    with pytest.raises(KeyboardInterrupt):
        index(photos, model=encoder, describe=Interrupted(), progress=heard.append)
    assert (heard[-1].stage, heard[-1].done, heard[-1].total) == ("describe", 4, SHORT)
    captioner = ColourCaptioner()
    assert index(photos, model=encoder, describe=captioner).described == SHORT - 4
    assert captioner.seen == SHORT - 4
    assert len(captions_of(photos)) == SHORT


def test_a_picture_that_cannot_be_read_by_now_is_a_recorded_skip(photos, encoder) -> None:
    class Breaking(ColourCaptioner):
        def describe(self, pictures):
            (photos / "white.jpg").write_bytes(b"\xff\xd8\xff half")
            return super().describe(pictures)

    last = Breaking()
    report = index(photos, model=encoder, describe=last)
    assert (report.described, report.problems) == (SHORT - 1, 1)
    assert "white.jpg" not in captions_of(photos)
    assert report.files == SHORT  # its vector is that of the picture it was


def test_pictures_in_a_tar_file_are_described(tmp_path, encoder) -> None:
    import tarfile

    folder = tmp_path / "shards"
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as tar:
        for colour in ("red", "blue"):
            tar.add(draw(tmp_path / f"{colour}.png", colour), f"{colour}.png")
    assert index(folder, model=encoder, describe=ColourCaptioner()).described == 2
    assert captions_of(folder)["a.tar/blue.png"][0][0] == "something blue by colours@1"


def test_quality_is_not_measured_by_what_a_model_wrote(photos, encoder) -> None:
    index(photos, model=encoder, describe=ColourCaptioner())
    with pytest.raises(SourceError, match="no captions to measure with"):
        mmsearch.evaluate_library(photos, model=encoder)
    (photos / "trip/blue.txt").write_text("blue")
    index(photos, model=encoder)
    assert mmsearch.evaluate_library(photos, model=encoder).captions == 1


def test_evaluate_tells_the_bleu_of_a_captioner(photos) -> None:
    pairs = photos.parent / "pairs.tsv"
    pairs.write_text(
        "path\tcaption\n"
        "trip/blue.jpg\tSomething blue by COLOURS, 1.\n"
        "trip/blue.jpg\tthe sea\n"
        "red.jpg\tsomething red by the door\n"
    )
    report = mmsearch.evaluate(pairs, photos, model=ColourEncoder(), describe=ColourCaptioner())
    # 5 of 5 and 3 of 5 words are right, 4 of 4 and 2 of 4 pairs; lengths are 5 and 5.
    assert report.bleu is not None
    assert report.bleu["BLEU-1"] == pytest.approx(100 * 8 / 10)
    assert report.bleu["BLEU-2"] == pytest.approx(100 * np.sqrt(8 / 10 * 6 / 8))
    assert report.to_json()["bleu"] == report.bleu
    assert report.to_json()["captioner"] == "colours@1"
    assert "bleu" not in mmsearch.evaluate(pairs, photos, model=ColourEncoder()).to_json()


def test_names_of_captioners(tmp_path) -> None:
    assert full_name("blip") == "hf:Salesforce/blip-image-captioning-base"
    assert full_name(tmp_path) == full_name(f"hf:{tmp_path}") == f"hf:{tmp_path}"
    with pytest.raises(ModelError, match=r"There is no captioner .compact.\. Use .blip."):
        full_name("compact")


def test_a_revision_follows_from_the_content(tmp_path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("nothing that matters")
    first = revision(f"hf:{tmp_path}")
    os.utime(tmp_path / "config.json", (1, 1))
    (tmp_path / "README.md").unlink()
    assert revision(f"hf:{tmp_path}") == first
    (tmp_path / "config.json").write_text("{ }")
    assert revision(f"hf:{tmp_path}") != first
    assert revision("hf:nobody/nothing") is None


# From here on with a BLIP, tiny and random.


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests import checkpoints

    folder = tmp_path_factory.mktemp("captioner") / "blip"
    return folder, *checkpoints.write_captioner(folder)


def own_caption(model, processor, picture) -> str:
    """Return what transformers says, called as its documentation calls it, one by one."""
    inputs = processor(images=picture, return_tensors="pt")
    # The tiny model has 16 positions; thirty tokens would be too many for it.
    tokens = model.generate(**inputs, num_beams=3, do_sample=False, max_new_tokens=14)
    return processor.decode(tokens[0], skip_special_tokens=True)


def noise(folder: Path, count: int = 5) -> list[Path]:
    from tests.checkpoints import pictures

    folder.mkdir(parents=True)
    paths = [folder / f"{number}.png" for number in range(count)]
    for path, picture in zip(paths, pictures(count), strict=True):
        picture.save(path)
    return paths


def test_blip_writes_what_its_library_writes(blip, tmp_path) -> None:
    folder, model, processor = blip
    captioner = load_captioner(folder)
    shown = [Image.open(path).convert("RGB") for path in noise(tmp_path / "noise")]
    found = captioner.describe(shown)
    assert found == [own_caption(model, processor, picture) for picture in shown]
    assert len(set(found)) > 1  # A model that says the same of everything would prove nothing.
    assert captioner.describe(shown[::-1])[::-1] == found == captioner.describe(shown)
    assert captioner.describe([]) == []
    assert captioner.label == f"hf:{folder}@{revision(f'hf:{folder}')}"


def command(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "mmsearch.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == code, (arguments, done.stdout, done.stderr)
    return done


def test_from_the_command_line_from_end_to_end(blip, tmp_path) -> None:
    folder, model, processor = blip
    photos = tmp_path / "photos"
    paths = noise(photos)
    (photos / "0.txt").write_text("my own words")
    done = command("index", photos, "--describe", folder, "--json")
    assert json.loads(done.stdout)["described"] == len(paths) - 1
    assert f"{len(paths)} captions, {len(paths) - 1} written now" in done.stderr
    own = [own_caption(model, processor, Image.open(path)) for path in paths[1:]]
    found = captions_of(photos)
    assert [found[path.name][0][0] for path in paths[1:]] == own
    source = found["1.png"][0][1]
    assert source == f"model:hf:{folder}@{revision(f'hf:{folder}')}"
    # Nothing is left to do: the model is not loaded, and no torch imported.
    again = command("index", photos, "--describe", f"hf:{folder}", "--json")
    assert json.loads(again.stdout)["described"] == 0

    pairs = tmp_path / "pairs.tsv"
    rows = [f"{path.name}\t{text}" for path, text in zip(paths[1:], own, strict=True)]
    pairs.write_text("\n".join(["path\tcaption", *rows]) + "\n")
    measured = command("evaluate", pairs, "--images", photos, "--describe", folder, "--json")
    report = json.loads(measured.stdout)
    assert list(report["bleu"]) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"]
    assert report["bleu"]["BLEU-4"] == pytest.approx(100)
    assert report["captioner"] == source.removeprefix("model:")


def test_from_the_command_line_what_is_wrong_is_said(photos, tmp_path) -> None:
    pytest.importorskip("transformers")
    from tests import checkpoints

    checkpoints.write_matching(tmp_path / "itm", "blip")
    done = command("index", photos, "--describe", tmp_path / "itm", code=1)
    assert "BlipForImageTextRetrieval) writes no captions" in done.stderr
    done = command("index", photos, "--describe", "nonsense", code=1)
    assert "There is no captioner 'nonsense'" in done.stderr
    done = command("index", photos, "--describe", "blip", code=1)
    assert "Where the model hub cannot be reached" in done.stderr
    done = command("evaluate", "--describe", "blip", code=2)
    assert "--images FOLDER --describe blip" in " ".join(done.stderr.split())


def test_without_the_extra_it_says_how_to_get_it(photos) -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from mmsearch.errors import MissingExtra\n"
        "from mmsearch.retrieval.captioners import load_captioner\n"
        "try: load_captioner('blip')\n"
        "except MissingExtra as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'torch, which is not installed. Run: pip install "mmsearch[models]"' in done.stdout
