"""What a second run costs: nothing changed, a folder renamed, the library moved.

usage: python bench_reindex.py [--photos DIR] [--n 2000]
Copies `n` pictures of DIR (or draws as many) and indexes them with the bundled encoder.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from report import write_report

import mmsearch
from mmsearch.retrieval.ingest import IndexReport


def provide(folder: Path, source: Path | None, n: int) -> None:
    """Put `n` pictures into `folder`, in ten folders."""
    found = sorted(source.rglob("*.jpg"))[:n] if source else []
    if source and len(found) < n:
        raise SystemExit(f"{source} holds {len(found)} JPEG files, {n} are needed")
    draw = np.random.default_rng(0)
    for i in range(n):
        target = folder / f"{i % 10}" / f"{i:05}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        if found:
            shutil.copyfile(found[i], target)
        else:
            coarse = draw.integers(0, 255, (12, 16, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((1600, 1200), Image.Resampling.BICUBIC).save(target)


def figures(report: IndexReport) -> dict[str, float]:
    left_out = {"schema", "library", "captions", "captions_unmatched"}
    return {key: value for key, value in report.to_json().items() if key not in left_out}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--n", type=int, default=2000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        provide(photos, options.photos, options.n)
        first = mmsearch.index(photos)
        second = mmsearch.index(photos)
        (photos / "3").rename(photos / "renamed")
        renamed = mmsearch.index(photos)
        photos = photos.rename(Path(folder) / "elsewhere")
        moved = mmsearch.index(photos)
    write_report(
        "reindex",
        {
            "pictures": options.n,
            "drawn": options.photos is None,
            "first": figures(first),
            "second": figures(second),
            "second_over_first": round(second.seconds / first.seconds, 4),
            "folder_renamed": figures(renamed),
            "library_moved": figures(moved),
        },
        seed=0,
    )


if __name__ == "__main__":
    main()
