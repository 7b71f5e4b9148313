"""Whether "nothing here matches" is said where it is true, and only there.

Two sets of concepts are built from captions and class names, no score is looked at. Present: names
of classes (ImageNet's, with their synonyms, and COCO's) that at least three captions of one photo
mention. Absent: names that no caption mentions, by none of their synonyms, and whose definition
mentions nothing that captions do (so no kind of dog is absent where dogs are). The weights of the
product were learned (`--learn`) from every other concept; figures are of the rest.

Three ways to decide are compared at every cut: the best similarity, its deviation from the query's
usual ones, and what the product does (both deviations, from the query's scores and from those of
names that fit the picture best).

usage: python bench_no_match.py DATA [--model compact] [--learn]
DATA holds val.tsv (path, caption), images/ and demo_photos/. Needs timm, for definitions.
"""

from __future__ import annotations

import argparse
import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from report import write_report

import mmsearch
from mmsearch.retrieval.calibration import Calibration
from mmsearch.retrieval.confidence import CUT
from mmsearch.retrieval.tags import background, bundled_vocabulary

Floats = NDArray[np.float64]
GENERIC = "man woman child dog person people boy girl animal vehicle ball clothing garment shirt"


def words(text: str) -> tuple[str, ...]:
    """Return the words of a text, lower case, without the endings of plurals."""
    found = []
    for word in re.findall(r"[a-z]+", text.lower()):
        for ending, singular in (("ies", "y"), ("sses", "ss"), ("ches", "ch"), ("shes", "sh"),
                                 ("xes", "x"), ("men", "man"), ("s", "")):  # fmt: skip
            if word.endswith(ending) and not word.endswith("ss") and len(word) > 3:
                word = word[: -len(ending)] + singular
                break
        found.append(word)
    return tuple(found)


def says(caption: tuple[str, ...], phrase: tuple[str, ...]) -> bool:
    n = len(phrase)
    return any(caption[i : i + n] == phrase for i in range(len(caption) - n + 1))


def photos(data: Path) -> dict[Path, list[tuple[str, ...]]]:
    """Return the words of the captions of each photo."""
    found: dict[Path, list[tuple[str, ...]]] = {}
    for table, folder, column in (
        (data / "val.tsv", data / "images", "path"),
        (data / "demo_photos" / "captions.tsv", data / "demo_photos", "image"),
    ):
        with table.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                found.setdefault(folder / row[column], []).append(words(row["caption"]))
    return found


def concepts(captions: list[list[tuple[str, ...]]]) -> tuple[list[str], list[str]]:
    """Return the names of what is in the photos and of what is not."""
    from timm.data import ImageNetInfo

    known = ImageNetInfo("imagenet-1k")
    described = [
        known.label_name_to_description(name, detailed=True) for name in known.label_names()
    ]
    synonyms: dict[str, list[str]] = {name: [name] for name in bundled_vocabulary()}
    definitions: dict[str, set[str]] = {}
    for text in described:
        lemmas, _, definition = text.partition(": ")
        names = [name.strip() for name in lemmas.split(",")]
        for name in names:
            if name in synonyms:
                synonyms[name] = names
                definitions[name] = set(words(definition))
    mentions = {
        name: [sum(any(says(c, words(s)) for s in names) for c in each) for each in captions]
        for name, names in synonyms.items()
    }
    things = set(GENERIC.split())
    for name, counts in mentions.items():
        if any(counts):
            things |= {words(s)[-1] for s in synonyms[name] if words(s)}
    present = [name for name, counts in mentions.items() if max(counts) >= 3]
    absent = [
        name
        for name, counts in mentions.items()
        if not any(counts)
        and not things & definitions.get(name, set())
        and not things & {word for s in synonyms[name] for word in words(s)}
    ]
    return sorted(present), sorted(absent)


def learned(evidence: Floats, present: NDArray[np.bool_]) -> tuple[float, ...]:
    """Return weights and constant of a logistic regression in which both sets count the same."""
    from scipy.optimize import minimize

    sides = np.where(present, 1.0, -1.0)
    counts = np.where(present, 1 / present.sum(), 1 / (~present).sum())

    def loss(b: Floats) -> float:
        return float((counts * np.logaddexp(0, -sides * (evidence @ b[:-1] + b[-1]))).sum())

    return tuple(minimize(loss, np.zeros(evidence.shape[1] + 1)).x.round(3).tolist())


def curve(present: Floats, absent: Floats) -> dict[str, Any]:
    """Return what share of absent concepts is denied, where shares of present ones are."""
    cuts = {share: np.quantile(present, share) for share in (0.02, 0.05, 0.1, 0.2, 0.3, 0.4)}
    return {
        "absent_denied_at_present_denied": {
            str(share): round(float((absent < cut).mean()), 3) for share, cut in cuts.items()
        },
        "present_denied_at_absent_denied_0.9": round(
            float((present < np.quantile(absent, 0.9)).mean()), 3
        ),
        "area": round(float((present[:, None] > absent).mean()), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--learn", action="store_true", help="print the weights, write nothing")
    options = parser.parse_args()
    encoder = mmsearch.load_encoder(options.model)
    captions = photos(options.data)
    pictures = encoder.encode_images([*captions])
    present, absent = concepts([*captions.values()])
    calibration = Calibration.of(background(encoder), pictures[::2], len(pictures))

    def decided(names: list[str]) -> dict[str, Any]:
        rows: dict[str, list[Any]] = {
            "similarity": [],
            "deviation": [],
            "evidence": [],
            "match": [],
        }
        for query in encoder.encode_texts(names)[:, None]:
            scores = (query @ pictures.T)[0].astype(np.float64)
            best = scores.argsort()[-10:]
            evidence = calibration.evidence(query, scores[best], pictures[best])
            rows["similarity"].append(scores.max())
            rows["deviation"].append(calibration.deviations(query, scores[None]).max())
            match = calibration.match(query, scores[best], pictures[best])
            rows["evidence"].append(evidence[match.argmax()])
            rows["match"].append(match.max())
        return {name: np.array(values) for name, values in rows.items()}

    if options.learn:
        one, other = decided(present[::2])["evidence"], decided(absent[::2])["evidence"]
        both = np.concatenate([one, other])
        weights = learned(both, np.arange(len(both)) < len(one))
        found = 1 / (1 + np.exp(-(one @ weights[:-1] + weights[-1])))
        print(weights, "denies a tenth of those present at", np.quantile(found, 0.1).round(3))
        return
    there, not_there = decided(present[1::2]), decided(absent[1::2])
    figures = {
        "model": encoder.spec.label,
        "photos": len(captions),
        "present": len(present[1::2]),
        "absent": len(absent[1::2]),
        "at_the_default_cut": {
            "cut": CUT,
            "present_denied": round(float((there["match"] < CUT).mean()), 3),
            "absent_denied": round(float((not_there["match"] < CUT).mean()), 3),
        },
        "ways": {
            way: curve(there[way], not_there[way]) for way in ("similarity", "deviation", "match")
        },
        "concepts": {"present": present, "absent": absent},
    }
    write_report("no_match", figures)


if __name__ == "__main__":
    main()
