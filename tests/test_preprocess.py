from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from mmsearch.retrieval.encoders import load_encoder
from mmsearch.retrieval.preprocess import ImagePreprocess, Resize


def picture(width, height, seed=0):
    """Return a picture with edges, gradients and noise, as photos have them."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [127 + 100 * np.sin(x / (3 + c) + y / (7 - c)) for c in range(3)]
    noisy = np.stack(waves, axis=2) + random.normal(0, 20, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


SHAPES = [(640, 480), (333, 500), (226, 223), (31, 400), (61, 47), (1000, 997), (227, 224)]


def reference(image, size, mode, **options):
    open_clip_transform = pytest.importorskip("open_clip.transform")
    transform = open_clip_transform.image_transform(
        size, is_train=False, mean=(0, 0, 0), std=(1, 1, 1), resize_mode=mode, **options
    )
    return np.rint(transform(image).numpy().transpose(1, 2, 0) * 255).astype(int)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("mode", "resize"),
    [("shortest", Resize.CROP), ("squash", Resize.STRETCH), ("longest", Resize.PAD)],
)
def test_equals_open_clips_own(shape, interpolation, mode, resize):
    image = picture(*shape)
    transform = ImagePreprocess(224, resize, interpolation, reducing_gap=None, fill=9)
    expected = reference(image, 224, mode, interpolation=interpolation, fill_color=9)
    assert np.abs(transform(image).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_transformers_own(shape):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    processor = transformers.CLIPImageProcessor(do_rescale=False, do_normalize=False)
    found = processor(images=picture(*shape), return_tensors="np")["pixel_values"][0]
    transform = ImagePreprocess(224, Resize.CROP, reducing_gap=None, floor=True)
    expected = found.transpose(1, 2, 0).astype(int)
    assert np.abs(transform(picture(*shape)).astype(int) - expected).max() <= 1


def test_stretch_then_crop():
    image = picture(300, 200)
    whole = ImagePreprocess(80, reducing_gap=None)(image)
    middle = ImagePreprocess(64, resize_to=80, reducing_gap=None)(image)
    np.testing.assert_array_equal(middle, whole[8:72, 8:72])


def test_the_bundled_transform_has_not_changed():
    transform = ImagePreprocess(size=224)
    image = picture(1600, 1200)
    expected = image.resize((224, 224), Image.Resampling.BICUBIC, reducing_gap=3.0)
    np.testing.assert_array_equal(transform(image), np.asarray(expected))
    # Catalogs made by the first version hold exactly this.
    assert transform.to_json() == {"size": 224, "resize": "stretch", "interpolation": "bicubic"}
    assert transform.decode_size == 314


@pytest.mark.parametrize(
    "transform",
    [
        ImagePreprocess(224),
        ImagePreprocess(32, Resize.CROP, "bilinear", 40, None, 0, True),
        ImagePreprocess(32, Resize.PAD, "lanczos", None, 2.0, 127),
    ],
)
def test_json_there_and_back(transform):
    assert ImagePreprocess.from_json(transform.to_json()) == transform


@pytest.mark.parametrize(
    "wrong",
    [
        {"resize": "squeeze"},
        {"interpolation": "magic"},
        {"size": 0},
        {"resize_to": 10},
        {"fill": 256},
    ],
)
def test_refuses_what_it_does_not_know(wrong):
    fields = {"size": 32, "resize": "crop", "interpolation": "bicubic"} | wrong
    with pytest.raises(ValueError, match=r".+"):
        ImagePreprocess.from_json(fields)


def test_decoding_keeps_more_than_what_is_resized_to():
    assert ImagePreprocess(64, Resize.STRETCH, resize_to=80).decode_size == 112


@pytest.mark.parametrize("resize", list(Resize))
@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (900, 1), (2, 3)], ids=str)
def test_any_shape_becomes_the_square(resize, shape):
    pixels = ImagePreprocess(32, resize)(Image.new("RGB", shape, (10, 20, 30)))
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    assert [10, 20, 30] in pixels.reshape(-1, 3).tolist()


@pytest.mark.parametrize("size", [(1200, 200), (200, 1200), (30_000, 2)], ids=str)
def test_the_bundled_encoder_sees_panoramas_and_tall_pictures_whole(size):
    encoder = load_encoder("compact")
    transform = ImagePreprocess.from_json(json.loads(encoder.spec.preprocessing))
    assert transform.seen(*size) == (0, 0, 1, 1)
    grey = Image.new("RGB", size, (128, 128, 128))
    ends = grey.copy()
    width, height = (side // 5 if side == max(size) else side for side in size)
    ends.paste((230, 20, 20), (0, 0, width, height))
    ends.paste((20, 20, 230), (size[0] - width, size[1] - height, *size))
    pixels = encoder.prepare(ends)
    assert (np.abs(pixels.astype(int) - encoder.prepare(grey)).max(axis=2) > 50).mean() > 0.35
    without, with_ends = encoder.encode_images([grey, ends])
    assert without @ with_ends < 0.95
    # What cuts the middle out, as CLIP does, sees nothing of it.
    crop = ImagePreprocess(224, Resize.CROP)
    np.testing.assert_array_equal(crop(ends), crop(grey))
