from __future__ import annotations

import doctest
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsearch.retrieval import bleu as module
from mmsearch.retrieval.bleu import bleu, words

text = st.lists(st.sampled_from(["a", "dog", "red", "runs"]), max_size=8)
corpora = st.lists(st.tuples(text, st.lists(text, min_size=1, max_size=3)), min_size=1, max_size=4)


def parts(texts):
    return [words(one) for one in texts]


def test_the_examples_in_its_documentation() -> None:
    assert doctest.testmod(module).failed == 0


def test_the_papers_own_examples() -> None:
    # Section 2.1: "the" is counted twice at most; section 2.1.1: 17 of 18 words, 10 of 17 pairs.
    the = bleu(parts(["the the the the the the the"]), [parts(["The cat is on the mat."])])
    assert the["BLEU-1"] == pytest.approx(100 * 2 / 7)
    assert the["BLEU-2"] == 0
    candidate = (
        "It is a guide to action which ensures that the military always obeys the commands of "
        "the party."
    )
    references = [
        "It is a guide to action that ensures that the military will forever heed Party commands.",
        "It is the guiding principle which guarantees the military forces always being under the "
        "command of the Party.",
        "It is the practical guide for the army always to heed the directions of the party.",
    ]
    found = bleu(parts([candidate]), [parts(references)])
    assert found["BLEU-1"] == pytest.approx(100 * 17 / 18)  # as long as the nearest reference
    assert found["BLEU-2"] == pytest.approx(100 * math.sqrt(17 / 18 * 10 / 17))


def test_short_captions_are_punished_by_hand() -> None:
    # 2 and 3 words, each right; references 4 and 3: c = 5, r = 7.
    found = bleu(parts(["a dog", "a red dog"]), [parts(["a dog runs fast"]), parts(["a red dog"])])
    assert found["BLEU-1"] == pytest.approx(100 * math.exp(1 - 7 / 5))
    assert found["BLEU-3"] == pytest.approx(100 * math.exp(1 - 7 / 5))
    assert found["BLEU-4"] == 0  # there is no sequence of four words


def test_as_sacrebleu_counts() -> None:
    # sacrebleu 2.6.0, BLEU(tokenize="none", smooth_method="none", max_ngram_order=N)
    found = bleu(
        parts(
            [
                "a dog runs on the beach",
                "two children play in the rain in the rain",
                "a red cat",
            ]
        ),
        [
            parts(["A dog is running on the beach.", "The dog runs along a beach!"]),
            parts(["Two children play in the rain", "Children playing in heavy rain, two of them"]),
            parts(["a red cat sits on a mat"]),
        ],
    )
    expected = [70.5401437408845, 66.17252038049097, 57.01393038922089, 47.82002719570959]
    assert list(found.values()) == pytest.approx(expected)
    assert list(found) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"]


@given(corpora)
def test_a_slow_count_says_the_same(corpus) -> None:
    candidates, references = zip(*corpus, strict=True)
    c = sum(map(len, candidates))
    r = sum(
        sorted(known, key=lambda one, own=own: (abs(len(one) - len(own)), len(one)))[0].__len__()
        for own, known in corpus
    )
    product = 1.0
    for n, value in enumerate(bleu(candidates, references).values(), 1):
        right = total = 0
        for own, known in corpus:
            grams = [" ".join(own[i : i + n]) for i in range(len(own) - n + 1)]
            total += len(grams)
            for gram, count in Counter(grams).items():
                most = max(
                    sum(" ".join(one[i : i + n]) == gram for i in range(len(one) - n + 1))
                    for one in known
                )
                right += min(count, most)
        product *= right / total if total else 0.0
        brevity = 0.0 if c == 0 else min(1.0, math.exp(1 - r / c))
        assert value == pytest.approx(100 * brevity * product ** (1 / n))


@given(st.lists(st.lists(st.sampled_from("abcdef"), min_size=4, max_size=9), min_size=1))
def test_what_people_wrote_has_a_hundred(texts) -> None:
    figures = bleu(texts, [[["x"], one] for one in texts])
    assert figures == pytest.approx(dict.fromkeys(figures, 100.0))
