"""What tuning on fashion products gains on held-out ones, costs, and loses on everyday photos.

usage: python bench_tune.py DATA [--model M] [--seeds 5] [--name tune]
DATA holds train.tsv (its rows of the kind `product_title` are the products), val.tsv (everyday
photos) and images/. The pictures are linked into temporary folders and indexed once; every seed
holds out other products and starts from the model as it was.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from report import write_report

import mmsearch
from mmsearch.retrieval import tuning
from mmsearch.retrieval.adapter import Adapter, Captioned
from mmsearch.retrieval.encoders import Encoder
from mmsearch.retrieval.held_out import compare
from mmsearch.retrieval.library import Library


class Counted(Encoder):
    """Another encoder, and how many pictures went through it."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.batch_size, self.text_batch_size = encoder.batch_size, encoder.text_batch_size
        self.pictures = 0
        self.texts = 0

    spec = property(lambda self: self.encoder.spec)
    location = property(lambda self: self.encoder.location)
    decode_size = property(lambda self: self.encoder.decode_size)

    def prepare(self, image: Any) -> Any:
        return self.encoder.prepare(image)

    def _encode_pixels(self, pixels: Any) -> Any:
        self.pictures += len(pixels)
        return self.encoder._encode_pixels(pixels)

    def _encode_texts(self, texts: Any) -> Any:
        self.texts += len(texts)
        return self.encoder._encode_texts(texts)


def rows(source: Path, kind: str | None) -> Iterator[tuple[str, str]]:
    with source.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            if kind is None or row["kind"] == kind:
                yield row["path"], row["caption"]


def provide(folder: Path, images: Path, pairs: list[tuple[str, str]], encoder: Encoder) -> None:
    """Make a library of linked pictures with their captions."""
    folder.mkdir()
    for path in dict.fromkeys(path for path, _ in pairs):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).symlink_to(images.resolve() / path)
    source = folder.with_suffix(".tsv")
    source.write_text("".join(f"{a}\t{b}\n" for a, b in [("path", "caption"), *pairs]))
    mmsearch.index(folder, captions=source, model=encoder)


def captioned(folder: Path) -> Captioned:
    """Read everything a library holds as pairs."""
    with closing(Library.open(folder)) as library:
        row = library.catalog.library()
        assert row.encoder is not None
        assert row.encoder_id is not None
        ids, pictures = library.catalog.file_vectors(row.encoder_id, row.encoder.dim)
        _, texts = library.catalog.caption_vectors(row.encoder_id, row.encoder.dim)
        place = {id_: i for i, id_ in enumerate(ids.tolist())}
        links = [[i, place[file]] for i, (_, file, _) in enumerate(library.catalog.captions())]
    return Captioned(pictures.astype(np.float32), texts.astype(np.float32), np.array(links))


def adapter_of(folder: Path) -> Adapter | None:
    with closing(Library.open(folder)) as library:
        return library.adapter(library.catalog.library())


def average(reports: list[dict[str, Any]], direction: str) -> dict[str, Any]:
    """Return the mean over the seeds, and the lowest and highest gain."""
    found: dict[str, Any] = {}
    for measure in ("R@1", "R@10", "mrr"):
        before, after = (
            np.array([report[direction][when][measure] for report in reports])
            for when in ("before", "after")
        )
        found[measure] = {
            "before": round(float(before.mean()), 3),
            "after": round(float(after.mean()), 3),
            "gain_least": round(float((after - before).min()), 3),
            "gain_most": round(float((after - before).max()), 3),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--name", default="tune")
    options = parser.parse_args()
    encoder = Counted(mmsearch.load_encoder(options.model))
    with tempfile.TemporaryDirectory() as temporary:
        products, everyday = Path(temporary) / "products", Path(temporary) / "everyday"
        images = options.data / "images"
        pairs = list(rows(options.data / "train.tsv", "product_title"))
        provide(products, images, pairs, encoder)
        provide(everyday, images, list(rows(options.data / "val.tsv", None)), encoder)
        photos = captioned(everyday)
        encoder.pictures = encoder.texts = 0
        reports, elsewhere = [], []
        for seed in range(options.seeds):
            report = tuning.tune(products, model=encoder, seed=seed)
            reports.append(report.to_json() | {"seed": seed})
            adapter = adapter_of(products)
            if adapter is not None:
                gain, _ = compare(photos, photos.links, adapter.apply(photos.texts), seed)
                elsewhere.append({"text_to_image": gain.to_json()})
            tuning.reset(products)
        itself = [tuning.tune(everyday, model=encoder, seed=seed) for seed in range(2)]
    write_report(
        options.name,
        {
            "model": encoder.spec.label,
            "bundled": options.model == "compact",
            "products": len({path for path, _ in pairs}),
            "accepted": sum(report["refused"] is None for report in reports),
            "of": len(reports),
            "image_forward_passes": encoder.pictures,
            "seconds": [report["seconds"] for report in reports],
            "text_to_image": average(reports, "text_to_image"),
            "image_to_text": average(reports, "image_to_text"),
            "everyday_photos_afterwards": average(elsewhere, "text_to_image"),
            "runs": [
                {key: value for key, value in report.items() if key not in {"library", "schema"}}
                for report in reports
            ],
            "tuned_on_everyday_photos": [
                {"refused": report.refusal} | report.measured() for report in itself
            ],
        },
        seed=0,
    )


if __name__ == "__main__":
    main()
