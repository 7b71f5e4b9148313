"""Captions for photos that have none: texts of the same world that two teachers agree on.

A photo and a caption fit where the model at hand finds them similar and the caption mentions what
a detector sees (and nothing common that it does not see). What is chosen is right often enough to
learn a new world from, with less weight than captions that people wrote (self-training: Lee 2013,
"Pseudo-Label"; hubs are damped as in Conneau et al. 2018, "Word Translation Without Parallel
Data", section 2.3).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = ["PseudoCaptions", "mentions", "pseudo_captions"]

SAID = {
    "person": "man woman men women people person boy boys girl girls child children kid kids guy "
    "lady player players skier surfer rider snowboarder skateboarder baby group crowd batter",
    "bicycle": "bicycle bicycles bike bikes",
    "car": "car cars vehicle vehicles suv traffic",
    "motorcycle": "motorcycle motorcycles motorbike motorbikes bike moped scooter",
    "airplane": "airplane airplanes plane planes jet jets aircraft airliner",
    "train": "train trains locomotive",
    "boat": "boat boats ship ships sailboat sailboats canoe",
    "traffic light": "light lights stoplight signal",
    "couch": "couch couches sofa",
    "tv": "tv television monitor screen",
    "cell phone": "phone cellphone",
    "cow": "cow cows cattle bull calf",
    "sheep": "sheep lamb lambs",
    "dining table": "table tables",
    "potted plant": "plant plants",
    "refrigerator": "refrigerator fridge",
    "donut": "donut donuts doughnut doughnuts",
    "sports ball": "ball soccer tennis baseball",
    "knife": "knife knives",
    "laptop": "laptop laptops computer",
    "dog": "dog dogs puppy",
    "cat": "cat cats kitten",
    "bird": "bird birds seagull parrot duck",
    "skis": "ski skis skiing skier skiers",
    "snowboard": "snowboard snowboarding snowboarder",
    "surfboard": "surfboard surfboards surf surfing surfer board",
    "skateboard": "skateboard skateboarding skateboarder skate",
    "tennis racket": "tennis racket racquet",
    "baseball bat": "baseball bat batter",
    "baseball glove": "baseball glove",
    "wine glass": "wine glass glasses",
    "cup": "cup cups coffee mug",
    "sink": "sink sinks",
    "handbag": "bag handbag purse",
}
"""Words of a caption that mean one of the detector's classes; of others, their own name does."""

SURE, ABSENT = 0.45, 0.15
"""Scores above which the detector sees something, and below which it does not."""


@dataclass(frozen=True, slots=True)
class PseudoCaptions:
    """The best captions of each photo.

    Attributes:
        captions: `int64[photos, k]`, rows of the texts, best first.
        probabilities: `float32[photos, k]`, how likely each is chosen; rows sum to one.
    """

    captions: torch.Tensor
    probabilities: torch.Tensor


def mentions(texts: Sequence[str], classes: Sequence[str]) -> torch.Tensor:
    """Return float32[texts, classes]: 1 where a text mentions a class.

    >>> mentions(["A puppy on a sofa."], ["dog", "couch", "hot dog"]).tolist()
    [[1.0, 1.0, 0.0]]
    """
    found = torch.zeros(len(texts), len(classes))
    lowered = [text.lower() for text in texts]
    words = [set(re.findall(r"[a-z]+", text)) for text in lowered]
    for column, name in enumerate(classes):
        if name in SAID:
            meant = set(SAID[name].split())
            hits = [bool(meant & said) for said in words]
        elif " " in name:
            hits = [name in text for text in lowered]
        else:
            hits = [bool({name, f"{name}s"} & said) for said in words]
        found[:, column] = torch.tensor(hits, dtype=torch.float32)
    return found


def pseudo_captions(
    images: torch.Tensor,
    texts: torch.Tensor,
    detections: torch.Tensor,
    mentioned: torch.Tensor,
    *,
    k: int = 16,
    scale: float = 20.0,
    agreement: float = 0.06,
) -> PseudoCaptions:
    """Choose captions for photos.

    Args:
        images: float32[photos, dim], unit rows by the model at hand.
        texts: float32[texts, dim], unit rows.
        detections: float32[photos, classes], the detector's scores in [0, 1].
        mentioned: float32[texts, classes], see `mentions`.
        k: how many captions a photo gets.
        scale: of the scores before the softmax that makes probabilities of them.
        agreement: what one rare object is worth, in cosines.
    """
    # What few captions mention tells more: 1/4 to 3/2 as much.
    rare = torch.log(len(mentioned) / (1 + mentioned.sum(dim=0))).clamp(1, 6) / 4
    # A popular caption is near every photo: its nearness to its own nearest is taken off.
    sample = images[::8]
    hub = (texts @ sample.T).topk(min(50, len(sample)), dim=1).values.mean(dim=1)
    chosen, probabilities = [], []
    for rows, seen in zip(images.split(256), detections.split(256), strict=True):
        sees = (seen * (seen > SURE) * rare) @ mentioned.T
        lacks = ((seen < ABSENT) * rare) @ mentioned.T
        scores = rows @ texts.T - 0.5 * hub
        scores += agreement * (sees.clamp(max=3) - 0.8 * lacks.clamp(max=3))
        best, places = scores.topk(min(k, len(texts)), dim=1)
        chosen.append(places)
        probabilities.append((scale * best).softmax(dim=1))
    return PseudoCaptions(torch.cat(chosen), torch.cat(probabilities))
