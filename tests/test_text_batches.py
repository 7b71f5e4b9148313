"""Texts are embedded in batches of like length: the same vectors, in their order, for less work."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsearch.retrieval.encoders import load_encoder
from tests.conftest import ColourEncoder

WORDS = (
    "a",
    "dog",
    "red",
    "ball",
    "snow",
    "children",
    "playing",
    "beach",
    "near",
    "wooden",
    "house",
)


def captions(count, seed=3):
    """Texts of 1 to 60 words, some twice, in an order that is not that of their lengths."""
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, generator.integers(1, 60))) for _ in range(count)]


class Lengthy(ColourEncoder):
    """Sees each text as its length and its first letter; notes what shares a batch."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def _encode_texts(self, texts):
        self.batches.append([len(text) for text in texts])
        angles = np.array([[len(text) + ord(text[0]) / 1000] for text in texts]) / 100
        rows = np.zeros((len(texts), self.dim), dtype=np.float32)
        rows[:, :2] = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
        return rows


@given(st.lists(st.text("abc", min_size=1, max_size=90), max_size=40))
@settings(deadline=None, max_examples=50)
def test_each_text_gets_its_own_vector_whatever_it_shares_a_batch_with(texts):
    encoder = Lengthy()
    told = []
    together = encoder.encode_texts(texts, progress=told.append)
    assert told == list(range(0, len(texts), encoder.batch_size))
    assert together.shape == (len(texts), encoder.dim)
    for vector, text in zip(together, texts, strict=True):
        assert np.array_equal(vector, Lengthy().encode_texts([text])[0])


def test_texts_of_like_length_share_a_batch():
    encoder = Lengthy()
    texts = captions(33)
    encoder.encode_texts(texts)
    assert [n for batch in encoder.batches for n in batch] == sorted(map(len, texts), reverse=True)
    assert [len(batch) for batch in encoder.batches] == [4] * 8 + [1]
    encoder.text_batch_size, encoder.batches = 11, []
    encoder.encode_texts(texts)
    assert [len(batch) for batch in encoder.batches] == [11] * 3


def test_the_bundled_tower_sees_a_text_the_same_alone_and_among_others():
    encoder = load_encoder("compact")
    texts = captions(40)
    alone = np.concatenate([encoder.encode_texts([text]) for text in texts])
    # As they came: all padded to the longest.
    padded = encoder._encode_texts(texts)
    for together in (encoder.encode_texts(texts), padded):
        assert (alone * together).sum(axis=1).min() > 1 - 1e-6


def test_batches_of_the_bundled_tower_are_hardly_padded():
    encoder = load_encoder("compact")
    texts = captions(120)
    sizes, run = [], encoder._run_text

    def counted(texts, inner):
        mask, outputs = run(texts, inner)
        sizes.append((mask.size, mask.sum()))
        return mask, outputs

    encoder._run_text = counted
    encoder.encode_texts(texts)
    computed, needed = np.sum(sizes, axis=0)
    assert needed == encoder._text_lengths(texts).sum()
    assert computed / needed < 1.06


def test_one_text_is_no_list():
    with pytest.raises(TypeError, match="wrap a single one"):
        ColourEncoder().encode_texts("red")
