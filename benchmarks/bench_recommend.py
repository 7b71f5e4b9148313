"""What recommending to ten thousand users costs, and whether it finds more of what is liked.

(a) Users with histories of 5 to 50 items, over 100,000 drawn items that lie in heaps, in one call;
beside it a loop of NumPy, one user after the other, and both beside comparing everything in double
precision. (b) Fashion products, embedded by their pictures: from two liked ones of a type, how many
of the first ten are of that type, against how many would be by chance. The type is what stands
behind the gender in a product's second caption ("casual blue women's skirts").

`compact` was trained with these products and their captions among its data, so that is no figure
for products it never saw. Beside it stand the features of a network that saw none of them: an ONNX
file that maps 224 by 224 pixels in [-1, 1] to a first output of features.

usage: python bench_recommend.py DATA [--rounds 3] [--model compact] [--features FILE.onnx]
DATA holds train.tsv (its rows of the kind `product_title` are the products) and images/.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image
from report import write_report

import mmsearch
from mmsearch.retrieval.bootstrap import draws, percentile_interval
from mmsearch.retrieval.media import load_rgb
from mmsearch.retrieval.preprocess import ImagePreprocess
from mmsearch.retrieval.recommend import Recommender, Signals

K = 10
USERS, ITEMS = 10_000, 100_000
CHECKED = 200
NAIVE = 300
"""Users of the loop: each takes as long as the next."""
HALF_LIFE = 30.0
PAIRS = 30
FEWEST = 12
"""Products of a type from which on ten others of it can be found."""
RESAMPLES = 2_000
CAPTION = re.compile(r".*\b(?:men's|women's|boys'|girls'|unisex|boys|girls)\s+(.+)")


def drawn(dim: int) -> tuple[NDArray[np.int64], NDArray[np.float16], list[Signals]]:
    generator = np.random.default_rng(0)
    heaps = generator.normal(size=(500, dim)).astype(np.float32)
    of = generator.integers(0, len(heaps), ITEMS)
    rows = heaps[of] + 1.2 * generator.normal(size=(ITEMS, dim)).astype(np.float32)
    vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    ids = np.arange(ITEMS) * 7 + 1
    users = []
    for _ in range(USERS):
        seen = ids[generator.choice(ITEMS, generator.integers(5, 51), replace=False)]
        days = generator.exponential(60, len(seen))
        users.append(Signals(history=[*zip(seen.tolist(), days.tolist(), strict=True)]))
    return ids, vectors, users


def naive(user: Signals, row: dict[int, int], vectors: NDArray[Any]) -> NDArray[np.int64]:
    """Recommend in a few lines, in the precision of `vectors`; return rows, best first."""
    seen = np.array([row[id_] for id_, _ in user.history])
    weights = 0.5 ** (np.array([days for _, days in user.history]) / HALF_LIFE)
    direction = (weights @ vectors[seen]).astype(vectors.dtype)
    scores = vectors @ (direction / np.linalg.norm(direction))
    scores[seen] = -np.inf
    best = np.argpartition(-scores, K)[:K]
    return best[np.argsort(-scores[best], kind="stable")]


def speed(dim: int, rounds: int) -> dict[str, Any]:
    ids, vectors, users = drawn(dim)
    started = time.perf_counter()
    recommender = Recommender(ids, vectors)
    built = time.perf_counter() - started
    row = {id_: i for i, id_ in enumerate(ids.tolist())}
    single = vectors.astype(np.float32)
    ours, busy, loop, diverse, loads = [], [], [], [], []
    for _ in range(rounds):
        loads.append(round(os.getloadavg()[0], 2))
        started, worked = time.perf_counter(), time.process_time()
        found = recommender.recommend_many(users, k=K, half_life=HALF_LIFE)
        ours.append(1000 * (time.perf_counter() - started) / USERS)
        busy.append(1000 * (time.process_time() - worked) / USERS)
        started = time.perf_counter()
        for user in users[:NAIVE]:
            naive(user, row, single)
        loop.append(1000 * (time.perf_counter() - started) / NAIVE)
        started = time.perf_counter()
        recommender.recommend_many(users[:2_000], k=K, half_life=HALF_LIFE, diversity=0.3)
        diverse.append(1000 * (time.perf_counter() - started) / 2_000)
    started = time.perf_counter()
    recommender.recommend_many(users[:100], k=K, half_life=HALF_LIFE, strategy="best_score")
    by_best = 1000 * (time.perf_counter() - started) / 100
    del single
    whole = vectors.astype(np.float64)
    same = alone = 0
    sample = range(0, USERS, USERS // CHECKED)
    for i in sample:
        same += found[i].ids.tolist() == ids[naive(users[i], row, whole)].tolist()
        one = recommender.recommend(history=users[i].history, k=K, half_life=HALF_LIFE)
        alone += one.ids.tolist() == found[i].ids.tolist()
    seen = sum(
        len({id_ for id_, _ in user.history} & set(answer.ids.tolist()))
        for user, answer in zip(users, found, strict=True)
    )
    return {
        "users": USERS,
        "items": ITEMS,
        "dim": dim,
        "build_s": round(built, 2),
        "ms_a_user": {"best": round(min(ours), 3), "rounds": [round(each, 3) for each in ours]},
        "processor_ms_a_user": round(min(busy), 3),
        "loop_of_numpy_float32_ms_a_user": {
            "best": round(min(loop), 2),
            "rounds": [round(each, 2) for each in loop],
        },
        "times_as_fast": round(min(loop) / min(ours), 1),
        "load_before_each_round": loads,
        "with_diversity_ms_a_user": round(min(diverse), 3),
        "best_score_ms_a_user": round(by_best, 1),
        "sample": len(sample),
        "same_as_comparing_everything_in_float64": same,
        "same_as_one_user_alone": alone,
        "seen_among_all_answers": seen,
        "answers_of_fewer_than_k": sum(len(answer.ids) < K for answer in found),
    }


def products(data: Path) -> dict[str, str]:
    """Return the type of each product, by the path of its picture."""
    captions = defaultdict(list)
    with (data / "train.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            if row["kind"] == "product_title":
                captions[row["path"]].append(row["caption"])
    found = {}
    for path, texts in captions.items():
        match = CAPTION.fullmatch(texts[1].lower()) if len(texts) > 1 else None
        if match is not None:
            found[path] = match[1].strip()
    print(f"{len(found)} of {len(captions)} products have a type")
    return found


def summary(values: NDArray[np.float64], digits: int = 3) -> dict[str, Any]:
    """Return a mean over types and its interval, types drawn with replacement."""
    samples = np.array(
        [weight @ values / len(values) for weight in draws(len(values), RESAMPLES, 0)]
    )
    low, high = percentile_interval(samples[:, None])[:, 0]
    return {
        "mean": round(float(values.mean()), digits),
        "95%": [round(float(low), digits), round(float(high), digits)],
    }


def features(file: Path, pictures: list[Image.Image]) -> NDArray[np.float32]:
    """Return what a network that knows nothing of products makes of pictures, as unit rows."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    name, prepare = session.get_inputs()[0].name, ImagePreprocess(size=224)
    rows = []
    for picture in pictures:
        pixels = (np.moveaxis(prepare(picture), -1, 0)[None].astype(np.float32) - 128) / 127
        rows.append(session.run(None, {name: pixels})[0][0])
    found = np.array(rows)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def fashion(
    type_of: dict[str, str], model: str, vectors: NDArray[np.float32], *, told: bool
) -> dict[str, Any]:
    paths = sorted(type_of)
    items = Recommender(np.arange(len(paths)), vectors)
    types = np.array([type_of[path] for path in paths])
    counts = Counter(types.tolist())
    names = sorted(name for name, count in counts.items() if count >= FEWEST)
    generator = np.random.default_rng(0)
    asked, of = [], []
    for number, name in enumerate(names):
        rows = np.flatnonzero(types == name)
        for _ in range(PAIRS):
            asked.append(Signals(generator.choice(rows, 2, replace=False).tolist()))
            of.append(number)
    group = np.array(of)
    chance = np.array([(counts[name] - 2) / (len(paths) - 2) for name in names])
    figures: dict[str, Any] = {
        "products": len(paths),
        "types": len(names),
        "types_with_fewer_products_left_out": len(counts) - len(names),
        "pairs_of_each_type": PAIRS,
        "vectors_of": model,
        "chance_precision": summary(chance),
    }
    for label, options in (
        ("average", {}),
        ("best_score", {"strategy": "best_score"}),
        ("average, diversity 0.3", {"diversity": 0.3}),
    ):
        found = items.recommend_many(asked, k=K, **options)
        hits = np.array(
            [
                (types[answer.ids] == names[number]).mean()
                for answer, number in zip(found, of, strict=True)
            ]
        )
        precision = np.bincount(group, hits) / np.bincount(group)
        # The ratio of the two means: that of a rare type alone would be very large.
        ratios = [
            (weight @ precision) / (weight @ chance) for weight in draws(len(names), RESAMPLES, 0)
        ]
        low, high = percentile_interval(np.array(ratios)[:, None])[:, 0]
        figures[label] = {
            "precision@10": summary(precision),
            "times_chance": round(float(precision.mean() / chance.mean()), 1),
            "times_chance_95%": [round(float(low), 1), round(float(high), 1)],
            "types_below_3_times_chance": [
                name
                for name, value, base in zip(names, precision, chance, strict=True)
                if value < 3 * base
            ],
        }
        if told and label == "average":
            figures["types: products, precision@10 of average, chance"] = {
                name: [counts[name], round(float(value), 3), round(float(base), 3)]
                for name, value, base in zip(names, precision, chance, strict=True)
            }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--features", type=Path)
    options = parser.parse_args()
    figures = {"many users": [speed(dim, options.rounds) for dim in (256, 512)]}
    type_of = products(options.data)
    pictures = [load_rgb(options.data / "images" / path) for path in sorted(type_of)]
    encoder = mmsearch.load_encoder(options.model)
    seen = encoder.encode_images(pictures)
    figures["fashion"] = [fashion(type_of, encoder.spec.label, seen, told=True)]
    if options.features:
        unseen = features(options.features, pictures)
        figures["fashion"].append(fashion(type_of, options.features.name, unseen, told=False))
    write_report("recommend", figures, seed=0)


if __name__ == "__main__":
    main()
