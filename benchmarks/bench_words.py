"""What words add to vectors, where they hurt, and how often zero-shot tags are right.

Words: libraries are built from photos with several captions, of which a share of the pictures has
one in the library; each picture is asked for with another. Titles of fashion products stand as
captions or as file names, and the other title is asked. Ranks of vectors alone, of words alone, of
both by plain reciprocal ranks, by `hybrid.fuse_words`, and by it only where `hybrid.helps`. Recall
with 95 % bootstrap intervals over pictures, also of the difference to vectors alone. The rule was
chosen on the even pictures (`choosing the rule`); all other figures are of the odd ones.

Tags: against the class names of the ImageNet sample, and against the words of five captions.

The encoder was trained on the fashion products and on the ImageNet sample, on neither Flickr8k's
validation photos nor the demonstration photos.

usage: python bench_words.py DATA [--model compact]
DATA holds val.tsv, train.tsv (path, caption, kind), images/ and demo_photos/.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from report import write_report

import mmsearch
from mmsearch.retrieval import hybrid
from mmsearch.retrieval.bootstrap import draws, percentile_interval
from mmsearch.retrieval.catalog import Catalog, migrations
from mmsearch.retrieval.schema import Caption, Picture, Target
from mmsearch.retrieval.tags import Tagger, bundled_vocabulary

RESAMPLES = 2_000
SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
LEAST = (0.0, 0.25, 0.5, 0.75, 0.9)
FAR = 10**6


@dataclass
class Case:
    """A library and one question for each of its pictures."""

    names: list[str]
    captions: list[list[str]]
    asked: list[str]
    pictures: NDArray[np.float32]
    questions: NDArray[np.float32]


def captions_of(path: Path, kind: str | None, column: str = "path") -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            if kind is None or row["kind"] == kind:
                found.setdefault(row[column], []).append(row["caption"])
    return {name: texts for name, texts in found.items() if len(texts) > 1}


def cases(data: Path, encoder: mmsearch.Encoder) -> Iterator[tuple[str, Case]]:
    generator = np.random.default_rng(0)
    sets = {
        "Flickr8k validation": (
            data / "images",
            captions_of(data / "val.tsv", "human_caption"),
            SHARES,
        ),
        "demonstration photos": (
            data / "demo_photos",
            captions_of(data / "demo_photos" / "captions.tsv", None, "image"),
            SHARES,
        ),
        "fashion": (data / "images", captions_of(data / "train.tsv", "product_title"), SHARES),
    }
    for name, (root, captions, shares) in sets.items():
        paths, texts = list(captions), list(captions.values())
        pictures = encoder.encode_images([root / path for path in paths])
        asked = [each[1] for each in texts]
        questions = encoder.encode_texts(asked)
        for share in shares:
            has = generator.permutation(len(paths)) < share * len(paths)
            given = [each[:1] if there else [] for each, there in zip(texts, has, strict=True)]
            case = Case(paths, given, asked, pictures, questions)
            yield f"{name}, {share:.0%} have one caption", case
        if name == "Flickr8k validation":
            given = [[each[0], *each[2:]] for each in texts]
            yield f"{name}, all have four captions", Case(paths, given, asked, pictures, questions)
        if name == "fashion":
            for stored in (0, 1):
                titles = [
                    f"{each[stored]} {i}.jpg".replace(" ", "-").replace("/", "-")
                    for i, each in enumerate(texts)
                ]
                asked = [each[1 - stored] for each in texts]
                vectors = encoder.encode_texts(asked)
                case = Case(titles, [[] for _ in texts], asked, pictures, vectors)
                yield f"{name}, {('long', 'short')[stored]} titles as file names", case


@contextmanager
def library(case: Case, spec: Any) -> Iterator[tuple[Catalog, list[int]]]:
    with tempfile.TemporaryDirectory() as folder:
        catalog = Catalog.create(Path(folder) / "catalog.sqlite")
        ids = []
        with catalog.write() as transaction:
            encoder_id = transaction.encoder_id(spec, "any")
            transaction.activate(encoder_id)
            for i, name in enumerate(case.names):
                sha256 = i.to_bytes(32, "big")
                picture = Picture(name, 1, 1, sha256, "JPEG", 1, 1, 1, None, None, None, None, "")
                id_ = transaction.put_file(picture, encoder_id, case.pictures[i])
                texts = [Caption(text, "file:pairs.tsv") for text in case.captions[i]]
                transaction.set_captions(id_, texts)
                ids.append(id_)
        yield catalog, ids
        catalog.close()


def rank_of(ranking: list[tuple[int, float]], id_: int) -> int:
    return next((rank for rank, (found, _) in enumerate(ranking, 1) if found == id_), FAR)


def ranks_in(case: Case, spec: Any) -> dict[str, NDArray[np.int64]]:
    """Return `int64[n]` ranks of the right picture by way of ranking."""
    ranks: dict[str, list[int]] = {}
    with library(case, spec) as (catalog, ids):
        scores = case.questions @ case.pictures.T
        for i, right in enumerate(ids):
            best = np.argsort(-scores[i], kind="stable")[: hybrid.DEPTH]
            vectors = [(ids[j], float(scores[i, j])) for j in best]
            words = catalog.words(case.asked[i], Target.IMAGES, hybrid.DEPTH)
            told = catalog.described([id_ for id_, _ in (*vectors, *words)])
            fused = hybrid.fuse_words(vectors, words, hybrid.DEPTH, described=told)
            found = {
                "vectors": vectors,
                "words": words,
                "plain reciprocal ranks": hybrid.fuse_words(vectors, words, hybrid.DEPTH),
                "fused always": fused,
                "fused where it helps": fused if hybrid.helps(words) else vectors,
            }
            share = np.mean([id_ in told for id_, _ in vectors])
            for least in LEAST:
                on = bool(words) and share >= least
                found[f"least {least}"] = fused if on else vectors
            for name, ranking in found.items():
                ranks.setdefault(name, []).append(rank_of(ranking, right))
    return {name: np.array(row) for name, row in ranks.items()}


def summary(values: NDArray[np.float64]) -> dict[str, Any]:
    samples = np.array(
        [weight @ values / len(values) for weight in draws(len(values), RESAMPLES, 0)]
    )
    low, high = percentile_interval(100 * samples[:, None])[:, 0]
    return {
        "mean": round(100 * float(values.mean()), 1),
        "95%": [round(float(low), 1), round(float(high), 1)],
    }


def told(ranks: dict[str, NDArray[np.int64]]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name, row in ranks.items():
        if name.startswith("least"):
            continue
        figures[name] = {}
        for k in (1, 10):
            hits = (row[1::2] <= k).astype(float)
            figures[name][f"R@{k}"] = summary(hits)
            if name not in {"vectors", "words"}:
                alone = (ranks["vectors"][1::2] <= k).astype(float)
                figures[name][f"R@{k} gain"] = summary(hits - alone)
    return figures


def chosen(all_ranks: dict[str, dict[str, NDArray[np.int64]]]) -> dict[str, Any]:
    """Return, for each rule on the even pictures, the mean and the least gain over libraries."""
    figures = {}
    for least in LEAST:
        gains = {
            k: [
                100 * float(np.mean(ranks[f"least {least}"][::2] <= k))
                - 100 * float(np.mean(ranks["vectors"][::2] <= k))
                for ranks in all_ranks.values()
            ]
            for k in (1, 10)
        }
        figures[f"on where {least:.0%} of the nearest are described"] = {
            f"R@{k}": {"mean gain": round(float(np.mean(row)), 2), "least": round(min(row), 2)}
            for k, row in gains.items()
        }
    return figures


def file_names(data: Path, encoder: mmsearch.Encoder) -> dict[str, Any]:
    """Return how often a file is first when its name is asked, by vectors and with words."""
    captions = captions_of(data / "val.tsv", "human_caption")
    paths = list(captions)[:300]
    pictures = encoder.encode_images([data / "images" / path for path in paths])
    figures = {}
    ways = {
        "whole path": lambda path: path,
        "name": lambda path: path.rpartition("/")[2],
        "without its ending": lambda path: Path(path).stem,
        "in capitals": lambda path: Path(path).stem.upper(),
    }
    for way, spell in ways.items():
        asked = [spell(path) for path in paths]
        texts = list(captions.values())[:300]
        ranks = ranks_in(
            Case(paths, texts, asked, pictures, encoder.encode_texts(asked)), encoder.spec
        )
        figures[way] = {
            name: {"R@1": round(100 * float(np.mean(ranks[name] <= 1)), 1)}
            for name in ("vectors", "fused where it helps")
        }
    return figures


def latency(data: Path) -> dict[str, Any]:
    """Return what words cost in a library of 100,000 files with 86,000 captions."""
    texts = (data / "text_only_coco_captions.txt").read_text(encoding="utf-8").splitlines()
    ids = range(1, 100_001)
    names = [f"{2005 + i % 18}/trip {i % 97}/IMG_{i:05}.JPG" for i in ids]
    asked = [each[1] for each in captions_of(data / "val.tsv", "human_caption").values()][:300]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "catalog.sqlite"
        _before_words(path, names, texts)
        before = path.stat().st_size
        started = time.perf_counter()
        catalog = Catalog.open(path)
        migrated = time.perf_counter() - started
        size = path.stat().st_size
        spans, busy = [], []
        for text in [*asked, *(name.rpartition("/")[2] for name in names[::331])]:
            started, working = time.perf_counter(), time.process_time()
            words = catalog.words(text, Target.IMAGES, hybrid.DEPTH)
            some = catalog.described([*ids[: hybrid.DEPTH], *(id_ for id_, _ in words)])
            hybrid.fuse_words(
                [(id_, 0.0) for id_ in ids[: hybrid.DEPTH]], words, 10, described=some
            )
            spans.append(1000 * (time.perf_counter() - started))
            busy.append(1000 * (time.process_time() - working))
        load = os.getloadavg()[0]
        catalog.close()
    return {
        "files": len(names),
        "captions": len(texts),
        "asked with a sentence, ms": percentiles(spans[: len(asked)]),
        "asked with a file name, ms": percentiles(spans[len(asked) :]),
        "a sentence, ms of processor": percentiles(busy[: len(asked)]),
        "a file name, ms of processor": percentiles(busy[len(asked) :]),
        "load of the machine meanwhile (two cores)": round(load, 1),
        "migrating, s": round(migrated, 1),
        "indexes of words, MiB": round((size - before) / 2**20, 1),
        "catalog without vectors before, MiB": round(before / 2**20, 1),
    }


def _before_words(path: Path, names: list[str], texts: list[str]) -> None:
    """Make a catalog as it was before words were indexed, at once."""
    steps = migrations.MIGRATIONS
    migrations.MIGRATIONS = steps[: steps.index(migrations.m006_words)]
    try:
        Catalog.create(path).close()
    finally:
        migrations.MIGRATIONS = steps
    with closing(sqlite3.connect(path)) as connection:
        connection.executemany(
            "INSERT INTO file VALUES (?, ?, 1, 1, x'00', 'JPEG', 1, 1, 1, "
            "'2023-08-12 17:02:11.000000', NULL, NULL, 'Canon EOS R5', '', '2023-08-12')",
            enumerate(names, 1),
        )
        connection.executemany(
            "INSERT INTO caption (file_id, text, source) VALUES (?, ?, 'sidecar')",
            enumerate(texts, 1),
        )
        connection.commit()


def percentiles(spans: list[float]) -> dict[str, float]:
    return {f"p{p}": round(float(np.percentile(spans, p)), 2) for p in (50, 95)}


def tags(data: Path, encoder: mmsearch.Encoder) -> dict[str, Any]:
    labelled = {}
    with (data / "train.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            if row["kind"] == "label":
                labelled[row["path"]] = row["caption"].removeprefix("a photo of ").split(" ", 1)[1]
    figures: dict[str, Any] = {}
    names = sorted(set(labelled.values()))
    for templates in ("one", "ensemble"):
        more = {"templates": ("a photo of {}",)} if templates == "one" else {}
        tagger = Tagger(encoder, names, **more)
        found = tagger.tags([data / "images" / path for path in labelled], 5)
        right = np.array(
            [
                [tag.name == label for tag in row]
                for row, label in zip(found, labelled.values(), strict=True)
            ]
        )
        figures[f"ImageNet sample, {len(names)} names, in the training data, {templates}"] = {
            "top-1": summary(right[:, 0].astype(float)),
            "top-5": summary(right.any(axis=1).astype(float)),
        }
    captions = captions_of(data / "val.tsv", "human_caption")
    tagger = Tagger(encoder, bundled_vocabulary())
    found = tagger.tags([data / "images" / path for path in captions], 5)
    said = [" . ".join(texts) for texts in captions.values()]
    hit = np.array(
        [[says(text, tag.name) for tag in row] for text, row in zip(said, found, strict=True)]
    )
    # Any other photo's, at random: neighbours in the list may be of one photographer.
    shift = np.random.default_rng(0).permutation(len(said))
    other = np.empty(len(said), dtype=np.int64)
    other[shift] = np.roll(shift, 1)
    by_chance = np.array(
        [[says(said[j], tag.name) for tag in found[i]] for i, j in enumerate(other)]
    )
    figures[f"Flickr8k validation, bundled vocabulary of {len(tagger.vocabulary)}"] = {
        "one of five tags is in the captions": summary(hit.any(axis=1).astype(float)),
        "the same, captions of another photo": summary(by_chance.any(axis=1).astype(float)),
        "the first tag is": summary(hit[:, 0].astype(float)),
        "the first tag, captions of another photo": summary(by_chance[:, 0].astype(float)),
    }
    return figures


def says(captions: str, name: str) -> bool:
    """Say whether a tag, or its last word (`golden retriever` is a retriever), is in captions.

    Whole words only, singular or plural: `tie` is not in "tied".
    """
    words = " ".join(re.findall(r"[a-z]+", captions.lower()))
    tag = " ".join(re.findall(r"[a-z]+", name.lower()))
    wanted = (tag, tag.rpartition(" ")[2])
    return any(f" {form}{end} " in f" {words} " for form in wanted for end in ("", "s", "es"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="compact")
    options = parser.parse_args()
    encoder = mmsearch.load_encoder(options.model)
    ranks = {name: ranks_in(case, encoder.spec) for name, case in cases(options.data, encoder)}
    figures = {
        "model": encoder.spec.label,
        "choosing the rule": chosen(ranks),
        "libraries": {name: told(row) for name, row in ranks.items()},
        "asking for a file name": file_names(options.data, encoder),
        "time": latency(options.data),
        "tags": tags(options.data, encoder),
    }
    write_report("words", figures, seed=0)


if __name__ == "__main__":
    main()
