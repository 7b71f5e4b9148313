"""Recall of the bundled encoder on sets of pictures with captions.

usage: python bench_quality.py NAME PAIRS IMAGES [--gallery] [NAME PAIRS IMAGES [--gallery]] …
Every picture of IMAGES takes part as a possible answer where --gallery follows.
"""

from __future__ import annotations

import sys
from pathlib import Path

from report import write_report

from mmsearch import evaluate


def main() -> None:
    words = sys.argv[1:]
    figures = {}
    while len(words) >= 3:
        (name, pairs, images), words = words[:3], words[3:]
        gallery = words[:1] == ["--gallery"]
        words = words[gallery:]
        report = evaluate(Path(pairs), Path(images), gallery=gallery)
        figures[name] = report.to_json()
    if words or not figures:
        raise SystemExit(__doc__)
    write_report("quality", figures)


if __name__ == "__main__":
    main()
