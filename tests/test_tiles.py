"""Long pictures in parts: all of them is seen, and nothing else changes."""

from __future__ import annotations

import json
import shutil
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import mmsearch
from mmsearch.cli import app
from mmsearch.errors import ModelMismatch
from mmsearch.retrieval.encoders import load_encoder
from mmsearch.retrieval.encoders.tiles import BEYOND, MOST, Tiled, tiles
from mmsearch.retrieval.preprocess import ImagePreprocess, Resize
from tests.conftest import ColourEncoder, draw
from tests.tiny_training import tiny_clip

SIDES = st.integers(1, 40_000)


@given(SIDES, SIDES)
def test_parts_cover_a_picture_from_end_to_end(width: int, height: int) -> None:
    boxes = tiles(width, height)
    assert 1 <= len(boxes) <= MOST
    if max(width, height) <= BEYOND * min(width, height):
        assert boxes == [(0, 0, width, height)]
        return
    turned = width < height
    ends = [(top, bottom) if turned else (left, right) for left, top, right, bottom in boxes]
    assert ends[0][0] == 0
    assert ends[-1][1] == max(width, height)
    for (start, end), (following, _) in pairwise(ends):
        # Half over each other, to a pixel.
        assert start < following <= (start + end) / 2 + 1
    across = [(left, right) if turned else (top, bottom) for left, top, right, bottom in boxes]
    assert set(across) == {(0, min(width, height))}
    if len(boxes) < MOST:
        assert {end - start for start, end in ends} == {min(width, height)}


def test_how_many_parts() -> None:
    counts = [len(tiles(*size)) for size in ((200, 100), (201, 100), (300, 100), (100, 500))]
    assert counts == [1, 4, 5, 9]
    assert len(tiles(850, 100)) == len(tiles(2, 30_000)) == MOST


class Cropping(ColourEncoder):
    """The encoder of colours, with CLIP's transform."""

    def __init__(self) -> None:
        super().__init__()
        self._preprocess = ImagePreprocess(size=8, resize=Resize.CROP, reducing_gap=None)


def panorama(size: tuple[int, int]) -> Image.Image:
    """Red at the beginning, grey in the middle, blue at the end."""
    image = Image.new("RGB", size, (128, 128, 128))
    width, height = (side // 4 if side == max(size) else side for side in size)
    image.paste((230, 20, 20), (0, 0, width, height))
    image.paste((20, 20, 230), (size[0] - width, size[1] - height, *size))
    return image


@pytest.mark.parametrize("size", [(500, 100), (100, 500), (2, 30_000), (30_000, 2)], ids=str)
def test_both_ends_are_seen(size: tuple[int, int]) -> None:
    grey = Image.new("RGB", size, (128, 128, 128))
    plain, whole = Cropping(), Tiled(Cropping())
    one, other = plain.encode_images([grey, panorama(size)])
    np.testing.assert_array_equal(one, other)
    one, other = whole.encode_images([grey, panorama(size)])
    assert one @ other < 0.9
    # The mean of its parts, computed by hand.
    parts = [panorama(size).crop(box).resize((8, 8)) for box in tiles(*size)]
    mean = plain.encode_images(parts).mean(axis=0)
    assert other @ (mean / np.linalg.norm(mean)) > 0.99
    np.testing.assert_allclose(np.linalg.norm([one, other], axis=1), 1, rtol=1e-6)


def test_other_pictures_and_texts_keep_every_bit() -> None:
    plain, whole = load_encoder("compact"), load_encoder("tiles:compact")
    ordinary = [Image.new("RGB", size, (9, 99, 199)) for size in ((64, 48), (48, 64), (80, 40))]
    mixed = [ordinary[0], panorama((300, 60)), *ordinary[1:]]
    apart = [plain.prepare(image) for image in ordinary]
    together = whole.encode_pixels([whole.prepare(image) for image in mixed])
    found = plain.encode_pixels(apart)
    np.testing.assert_allclose(together[[0, 2, 3]], found, atol=1e-6)
    np.testing.assert_array_equal(whole.encode_pixels(apart), found)
    np.testing.assert_array_equal(whole.encode_texts(["a dog"]), plain.encode_texts(["a dog"]))
    np.testing.assert_allclose(whole.encode_images(mixed), together, atol=1e-6)
    assert whole.encode_pixels([]).shape == (0, 256)


def test_its_name_and_its_fingerprint_say_so() -> None:
    plain, whole = load_encoder("compact"), load_encoder("tiles:compact")
    assert whole.spec.label == f"tiles:{plain.spec.label}"
    assert whole.location == "tiles:compact"
    fields = json.loads(whole.spec.preprocessing)
    assert fields.pop("tiles") == {"beyond": 2.0, "most": 16}
    assert fields == json.loads(plain.spec.preprocessing)
    assert whole.spec.weights_sha256 == plain.spec.weights_sha256
    with pytest.raises(mmsearch.MmsearchError, match="no encoder 'nowhere'"):
        load_encoder("tiles:nowhere")


def test_a_library_keeps_the_way_it_was_made_with(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for number, colour in enumerate(("red", "green", "blue")):
        draw(photos / f"{colour}.png", colour, (40 + number, 30))
    panorama((400, 60)).save(photos / "wide.png")
    before = shutil.copytree(photos, tmp_path / "before")
    run = CliRunner().invoke
    made = run(app, ["index", str(photos), "--model", "tiles:compact", "--json"])
    assert made.exit_code == 0, made.output
    run(app, ["index", str(before)])
    # It needs no saying again, and asking by a panorama takes the same way.
    again = run(app, ["index", str(photos), "--json"])
    assert json.loads(again.stdout)["unchanged"] == 4
    asked = ["query", "--image", str(photos / "wide.png"), "--json", "--all", "-L"]
    hit = json.loads(run(app, [*asked, str(photos)]).stdout)["results"][0]
    assert (hit["path"], round(hit["score"], 3)) == ("wide.png", 1.0)
    assert run(app, ["doctor", str(photos), "--deep"]).exit_code == 0
    # One that was made the other way goes on as it is, and says how to change.
    assert json.loads(run(app, ["index", str(before), "--json"]).stdout)["unchanged"] == 4
    with pytest.raises(ModelMismatch, match="migrate"):
        mmsearch.index(before, model="tiles:compact")
    changed = run(app, ["migrate", "--model", "tiles:compact", "-L", str(before)])
    assert changed.exit_code == 0, changed.output
    scores = []
    for folder in (photos, before):
        with mmsearch.open(folder) as engine:
            hits = engine.search("red", k=9).hits
            scores.append({hit.path: round(hit.score, 3) for hit in hits})
    assert scores[0] == scores[1]


@pytest.mark.parametrize("size", [(1, 30_000), (30_000, 2), (65_500, 1)], ids=str)
def test_the_middle_of_a_very_long_picture_needs_no_gigabyte(size: tuple[int, int]) -> None:
    transform = ImagePreprocess(224, Resize.CROP, reducing_gap=None)
    assert transform(Image.new("RGB", size, (1, 2, 3))).tolist()[100][100] == [1, 2, 3]


@pytest.mark.parametrize("size", [(1120, 56), (56, 1121), (2000, 28), (112, 2001)], ids=str)
def test_the_middle_of_a_very_long_picture_stays_where_it_is(size: tuple[int, int]) -> None:
    """Sides of which the square's is a multiple: others move by less than a pixel in rounding."""
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    across, down = (224 * side // min(size) for side in size)
    left, top = (across - 224) // 2, (down - 224) // 2
    resized = image.resize((across, down), Image.Resampling.BICUBIC)
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224))).astype(int)
    found = ImagePreprocess(224, Resize.CROP, reducing_gap=None)(image).astype(int)
    assert np.abs(found - expected).max() <= 1


def test_a_model_of_open_clip_sees_the_ends_and_keeps_its_own_vectors(tmp_path: Path) -> None:
    for package in ("open_clip", "onnx"):
        pytest.importorskip(package)
    source = f"open_clip:local-dir:{tiny_clip(tmp_path)}"
    grey, wide = Image.new("RGB", (200, 40), (128, 128, 128)), panorama((200, 40))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's farewell
        plain = load_encoder(source)
    whole = load_encoder(f"tiles:{source}")
    assert whole.location == f"tiles:{plain.location}"
    ordinary = wide.resize((60, 40))
    before, now = plain.encode_images([ordinary]), whole.encode_images([ordinary])
    np.testing.assert_array_equal(before, now)
    blind = plain.encode_images([grey, wide])
    assert blind[0] @ blind[1] > 0.9999
    seen = whole.encode_images([grey, wide])
    assert seen[0] @ seen[1] < 0.99
