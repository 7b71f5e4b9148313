"""What "A without B" finds: probabilities of concepts against subtracting vectors.

Words that captions of held-out photos often use are paired: of each pair at least eight photos of A
show B too, by two of five captions, and as many do not, by none. Where annotators disagree a photo
is left out of that pair. Mean average precision and precision among the first ten, with 95 %
bootstrap intervals over pairs. The two constants of the product were chosen (`--learn`) by every
other pair; figures are of the rest.

usage: python bench_negation.py DATA [--pairs val.tsv] [--model compact] [--learn]
DATA holds the pairs (path, caption) and images/.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from report import write_report

import mmsearch
from mmsearch.retrieval import calibration as calibrations
from mmsearch.retrieval import logic
from mmsearch.retrieval.bootstrap import draws, percentile_interval
from mmsearch.retrieval.calibration import Calibration
from mmsearch.retrieval.tags import background

Floats = NDArray[np.float64]
COMMON = 80
"""Words that are paired, the most common ones."""
STOP = set(
    re.findall(
        r"[a-z]+",
        """a an the of in on at with and to is are be it its his her their for from by as up down
        out over into through while near next front behind two three four one some other another
        who that this there which they he she him them has have wearing standing sitting running
        walking playing jumping looking holding riding jump walk young little""",
    )
)


def photos(data: Path, pairs: str) -> dict[str, list[set[str]]]:
    """Return the words of each caption, by photo."""
    found: dict[str, list[set[str]]] = {}
    with (data / pairs).open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            words = re.findall(r"[a-z]+", row["caption"].lower())
            found.setdefault(row["path"], []).append(
                {w[:-1] if w.endswith("s") and len(w) > 3 else w for w in words}
            )
    return found


def precision(scores: Floats, right: NDArray[np.bool_]) -> tuple[float, float]:
    """Return average precision and precision among the first ten, in percent."""
    hits = right[np.argsort(-scores, kind="stable")]
    average = (np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean()
    return 100 * float(average), 100 * float(hits[:10].mean())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--pairs", default="val.tsv")
    parser.add_argument("--model", default="compact")
    parser.add_argument("--learn", action="store_true", help="print constants, write nothing")
    options = parser.parse_args()
    encoder = mmsearch.load_encoder(options.model)
    captions = photos(options.data, options.pairs)
    pictures = encoder.encode_images([options.data / "images" / path for path in captions])
    counts = {
        word: np.array([sum(word in c for c in each) for each in captions.values()])
        for word in {w for each in captions.values() for c in each for w in c} - STOP
        if len(word) > 2
    }
    often = Counter({word: int((n >= 3).sum()) for word, n in counts.items()})
    nouns = sorted(word for word, n in often.most_common(COMMON) if n >= 15)
    pairs = [
        (a, b)
        for a, b in product(nouns, nouns)
        if a != b
        and ((counts[a] >= 2) & (counts[b] >= 2)).sum() >= 8
        and ((counts[a] >= 2) & (counts[b] == 0)).sum() >= 8
    ]
    calibration = Calibration.of(background(encoder), pictures, len(pictures))
    vectors = dict(zip(nouns, encoder.encode_texts(nouns), strict=True))

    def product_scores(a: str, b: str) -> Floats:
        rows = np.stack([vectors[a], vectors[b]])
        shown = calibration.shown(rows, (rows @ pictures.T).astype(np.float64))
        tree = logic.parse(f'"{a}" NOT "{b}"')
        assert tree is not None
        named = [each.text for each in logic.concepts(tree)]
        return logic.probability(tree, lambda each: shown[named.index(each.text)])

    ways: dict[str, Any] = {
        "logic": product_scores,
        "A alone": lambda a, _: pictures @ vectors[a],
        "A - B": lambda a, b: pictures @ (vectors[a] - vectors[b]),
        "A - B / 2": lambda a, b: pictures @ (vectors[a] - 0.5 * vectors[b]),
        "A - B / 4": lambda a, b: pictures @ (vectors[a] - 0.25 * vectors[b]),
    }

    def measured(some: list[tuple[str, str]], names: list[str]) -> dict[str, Floats]:
        rows: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for a, b in some:
            right = (counts[a] >= 2) & (counts[b] == 0)
            agreed = (counts[a] != 1) & ~((counts[b] == 1) & (counts[a] >= 1))
            for name in names:
                scores = np.asarray(ways[name](a, b), dtype=np.float64)
                rows[name].append(precision(scores[agreed], right[agreed]))
        return {name: np.array(values) for name, values in rows.items()}

    if options.learn:
        for shown, softness in product((1.0, 1.25, 1.5, 1.75, 2.0, 2.25), (0.5, 0.65, 0.8, 1.0)):
            calibrations.SHOWN, calibrations.SOFTNESS = shown, softness
            found = measured(pairs[::2], ["logic"])["logic"].mean(axis=0)
            print(shown, softness, found.round(2))
        return
    found = measured(pairs[1::2], [*ways])
    drawn = np.stack([*draws(len(pairs[1::2]), 2_000, seed=1)])

    def told(values: Floats) -> dict[str, Any]:
        return {
            "mean": round(float(values.mean()), 2),
            "interval": percentile_interval((drawn @ values / len(values))[:, None])
            .ravel()
            .round(2)
            .tolist(),
        }

    figures = {
        "model": encoder.spec.label,
        "photos": len(captions),
        "pairs": len(pairs[1::2]),
        "ways": {
            name: {
                "average_precision": told(values[:, 0]),
                "precision_at_10": told(values[:, 1]),
                "logic_gains": told(found["logic"][:, 0] - values[:, 0]),
            }
            for name, values in found.items()
        },
    }
    write_report("negation", figures, seed=1)


if __name__ == "__main__":
    main()
