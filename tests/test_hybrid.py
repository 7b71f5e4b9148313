"""Words and vectors in one ranking, against arithmetic."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsearch.retrieval.hybrid import fuse_words, helps

VECTORS = [(1, 0.9), (2, 0.8), (3, 0.7)]
WORDS = [(3, 5.0), (4, 4.0)]


def test_fused_scores_by_hand():
    assert dict(fuse_words(VECTORS, WORDS, 9)) == pytest.approx(
        {3: 1 / 63 + 1 / 61, 1: 1 / 61, 2: 1 / 62, 4: 1 / 62}
    )
    # Of equals, what vectors found comes first.
    assert [id_ for id_, _ in fuse_words(VECTORS, WORDS, 9)] == [3, 1, 2, 4]
    assert [id_ for id_, _ in fuse_words(VECTORS, WORDS, 2)] == [3, 1]


def test_pictures_that_words_say_nothing_about_keep_their_rank():
    # 1 is not described: words rank it as vectors do. 2 is, and has none of the words.
    found = dict(fuse_words(VECTORS, WORDS, 9, described={2, 3, 4}))
    assert found == pytest.approx({1: 2 / 61, 3: 1 / 63 + 1 / 61, 2: 1 / 62, 4: 1 / 62})
    assert next(iter(found)) == 1


def test_a_file_that_is_named_so_comes_first():
    words = [(7, math.inf), (3, math.inf), (2, 9.0)]
    found = fuse_words(VECTORS, words, 9, described=set())
    assert found[:2] == [(7, math.inf), (3, math.inf)]
    assert [id_ for id_, _ in found[2:]] == [1, 2]


def test_where_words_find_nothing_vectors_answer():
    assert [id_ for id_, _ in fuse_words(VECTORS, [], 9, described={1})] == [1, 2, 3]
    assert [id_ for id_, _ in fuse_words([], WORDS, 9)] == [3, 4]
    assert fuse_words([], [], 9) == []
    assert helps(WORDS)
    assert not helps([])


RANKINGS = st.lists(st.integers(0, 30), unique=True, max_size=20).map(
    lambda ids: [(id_, 1.0 - n / 100) for n, id_ in enumerate(ids)]
)


@given(vectors=RANKINGS, words=RANKINGS, described=st.sets(st.integers(0, 30)) | st.none())
def test_fusion_neither_invents_nor_loses(vectors, words, described):
    found = fuse_words(vectors, words, 100, described=described)
    assert sorted(id_ for id_, _ in found) == sorted({id_ for id_, _ in (*vectors, *words)})
    assert all(a >= b for (_, a), (_, b) in itertools.pairwise(found))
    assert fuse_words(vectors, words, 3, described=described) == found[:3]
    if described is not None and described.isdisjoint(id_ for id_, _ in (*vectors, *words)):
        # Nothing is known of those that words do not have: they stay in the vectors' order.
        rest = [id_ for id_, _ in vectors if id_ not in dict(words)]
        assert [id_ for id_, _ in found if id_ in set(rest)] == rest
