import sys
import time

import numpy as np
import pytest

from mmsearch.retrieval.encoders import image_tower, load_encoder
from mmsearch.retrieval.encoders.bfloat16 import LEAST_COSINE, faster_tower
from mmsearch.retrieval.encoders.samples import sample_pictures

openvino = pytest.importorskip("openvino")
has_bfloat16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
ALWAYS_FASTER, NEVER_FASTER = 1e9, 0.0


@pytest.fixture(scope="module")
def encoder():
    return load_encoder()


@pytest.fixture(scope="module")
def batch(encoder):
    return np.stack([encoder.prepare(picture) for picture in sample_pictures()])


@pytest.fixture(scope="module")
def expected(encoder, batch):
    return encoder.encode_pixels(batch)


@pytest.mark.skipif(not has_bfloat16, reason="this processor does not multiply bfloat16")
def test_the_tower_answers_as_in_float32(encoder, batch, expected):
    tower = faster_tower(encoder.read("image"), batch, expected, ALWAYS_FASTER)
    assert tower is not None
    for some in (batch, batch[:3], batch[:1]):
        (found,) = tower(some)
        assert found.dtype == np.float32
        assert (found * expected[: len(some)]).sum(axis=1).min() > LEAST_COSINE
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-3)
    assert not np.array_equal(tower(batch)[0], expected), "computed in float32"


def test_a_tower_that_is_not_faster_is_not_taken(encoder, batch, expected):
    assert faster_tower(encoder.read("image"), batch, expected, NEVER_FASTER) is None


def test_a_tower_that_answers_otherwise_is_not_taken(encoder, batch, expected):
    assert faster_tower(encoder.read("image"), batch, expected[::-1], ALWAYS_FASTER) is None


def test_vectors_that_are_not_numbers_are_not_taken(encoder, batch, expected):
    nothing = np.full_like(expected, np.nan)
    assert faster_tower(encoder.read("image"), batch, nothing, ALWAYS_FASTER) is None


def test_a_model_that_openvino_cannot_read_is_left_to_onnx_runtime(batch, expected):
    assert faster_tower(b"no model", batch, expected, ALWAYS_FASTER) is None


def test_it_can_be_forbidden(encoder, batch, expected, monkeypatch):
    monkeypatch.setenv("MMSEARCH_BFLOAT16", "0")
    assert faster_tower(encoder.read("image"), batch, expected, ALWAYS_FASTER) is None


def test_without_openvino_nothing_changes(encoder, batch, expected, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert faster_tower(encoder.read("image"), batch, expected, ALWAYS_FASTER) is None


@pytest.mark.parametrize("taken", [True, False])
def test_it_is_tried_once_when_many_pictures_were_embedded(batch, monkeypatch, taken):
    tries = []

    def tried(model, *, pixels, expected, seconds):
        tries.append((len(pixels), len(expected)))
        assert 0 < seconds < time.perf_counter()
        return (lambda pixels: [np.tile(expected[:1], (len(pixels), 1))]) if taken else None

    monkeypatch.setattr(image_tower, "faster_tower", tried)
    encoder = load_encoder()
    expected = encoder.encode_pixels(batch)
    assert not tries, "a few pictures are not worth it"
    for _ in range(image_tower.MANY):
        encoder.encode_pixels(batch[:1])
    assert not tries, "questions are not to wait"
    for _ in range(image_tower.MANY // len(batch)):
        encoder.encode_pixels(batch)
    assert tries == [(len(batch), len(batch))]
    for _ in range(2 * image_tower.MANY // len(batch)):
        found = encoder.encode_pixels(batch)
    assert len(tries) == 1
    same = expected[:1] if taken else expected
    np.testing.assert_allclose(found, np.broadcast_to(same, found.shape), atol=1e-5)
