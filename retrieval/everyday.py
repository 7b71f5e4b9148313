"""Sentences about everyday scenes: what people ask of any collection of photos."""

from __future__ import annotations

from itertools import product

__all__ = ["everyday_sentences"]

WHO = [
    "a man",
    "a woman",
    "a child",
    "a young couple",
    "two boys",
    "a group of people",
    "a baby",
    "an old man",
    "a brown dog",
    "a black cat",
    "a horse",
    "a flock of birds",
    "a red car",
    "a bicycle",
    "a boat",
    "a train",
    "an aeroplane",
    "a plate of food",
    "a wooden chair",
    "a street sign",
    "a bunch of flowers",
    "a football player",
    "a girl in a dress",
    "a cow",
    "an elephant",
    "a laptop",
    "a cup of coffee",
    "a cake",
]
HOW = [
    "running",
    "sitting",
    "standing",
    "jumping",
    "sleeping",
    "waiting",
    "seen from above",
    "moving fast",
]
WHERE = [
    "on a beach",
    "in a park",
    "in a kitchen",
    "on a city street",
    "in the snow",
    "on a mountain",
    "in a living room",
    "by a lake",
    "at night",
    "in a field",
    "under a tree",
    "in a crowd",
    "on a road",
    "at a party",
    "in front of a building",
    "at sunset",
    "in the water",
    "on a table",
]


def everyday_sentences() -> list[str]:
    """Return about 400 sentences, the same at every call; each word stands in several of them.

    >>> everyday_sentences()[:2]
    ['a man running on a beach', 'a man waiting on a road']
    """
    # A stride without a common factor with the lengths of the lists goes evenly through all.
    return [f"{who} {how} {where}" for who, how, where in product(WHO, HOW, WHERE)][::11]
