"""Fuzzing: inputs bent at random from those of a corpus, each target for a bounded time.

    python tests/fuzz.py TARGET [--seconds 60] [--seed 1]

A target takes bytes and raises nothing but mmsearch's own errors. What makes one fail is kept in
`corpus/TARGET/`, so that `test_fuzz.py` tries it again for ever. The corpus begins with inputs that
are well formed: most of what is bent at random is only interesting near to something that is read.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sqlite3
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from mmsearch import indexes
from mmsearch.errors import MediaError, MmsearchError, QueryError, SourceError
from mmsearch.indexes import IndexFileError
from mmsearch.retrieval import logic
from mmsearch.retrieval.adapter import Adapter
from mmsearch.retrieval.captions import parse_sidecar
from mmsearch.retrieval.catalog import Catalog
from mmsearch.retrieval.catalog.words import query_terms
from mmsearch.retrieval.filters import parse_where, split_inline
from mmsearch.retrieval.media import open_picture, upright_rgb
from mmsearch.retrieval.metadata import read_metadata
from mmsearch.retrieval.pairs import read_pairs
from mmsearch.retrieval.schema import Target

CORPUS = Path(__file__).parent / "corpus"
MOST_BYTES = 1 << 20
MOST_PIXELS = 1 << 22
"""Larger pictures are not decoded here: it is their headers that are fuzzed."""


def expression(data: bytes) -> None:
    """The grammar of a question."""
    text = data.decode("utf-8", "surrogateescape")
    with suppress(QueryError):
        found = logic.parse(text)
        if found is not None:
            named = logic.concepts(found)
            assert named
            assert logic.wanted(found) <= set(named)
            ones = logic.probability(found, lambda _: np.array([0.25, 1.0]))
            assert ((ones >= 0) & (ones <= 1)).all()
    query_terms(text)


def where(data: bytes) -> None:
    """The language of filters: what it reads, its own text means the same."""
    with suppress(QueryError):
        found = parse_where(data.decode("utf-8", "surrogateescape"))
        assert parse_where(str(found)) == found


def inline(data: bytes) -> None:
    """Filters within a question."""
    with suppress(QueryError):
        rest, found = split_inline(data.decode("utf-8", "surrogateescape"))
        assert isinstance(rest, str)
        if found is not None:
            assert parse_where(str(found)) == found


def sidecar(data: bytes) -> None:
    """Caption files beside a picture."""
    for name in ("a.txt", "a.json", "a.jpg.json"):
        for caption in parse_sidecar(name, data):
            assert caption.text
            assert caption.text.isprintable() or "\ufffd" in caption.text or " " in caption.text


def pairs(data: bytes) -> None:
    """Files of picture and caption."""
    with tempfile.TemporaryDirectory() as folder:
        for ending in (".tsv", ".csv", ".jsonl", ".json"):
            path = Path(folder) / f"pairs{ending}"
            path.write_bytes(data)
            with suppress(SourceError):
                for pair in read_pairs(path):
                    assert pair.path
                    assert pair.caption.strip()


def picture(data: bytes) -> None:
    """A picture: header, EXIF, XMP, IPTC, pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(MediaError):
            opened = open_picture(data)
            read_metadata(opened)
            if opened.width * opened.height <= MOST_PIXELS:
                upright = upright_rgb(opened, at_least=64)
                assert upright.mode == "RGB"


def catalog(data: bytes) -> None:
    """A catalog that anything may have happened to."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "catalog.sqlite"
        path.write_bytes(data)
        with suppress(MmsearchError):
            opened = Catalog.open(path)
            try:
                row = opened.library()
                opened.counts()
                opened.problems()
                opened.captions()
                opened.words("blue sea", Target.IMAGES, 10)
                if row.encoder_id is not None and row.encoder is not None:
                    ids, _ = opened.file_vectors(row.encoder_id, row.encoder.dim)
                    opened.file_hits([(id_, 0.0) for id_ in ids.tolist()])
            finally:
                opened.close()


def salvage(data: bytes) -> None:
    """The same, taken out what can be read."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "catalog.sqlite"
        path.write_bytes(data)
        with suppress(MmsearchError):
            Catalog.salvaged(path, Path(folder) / "fresh.sqlite")
            with sqlite3.connect(Path(folder) / "fresh.sqlite") as fresh:
                assert fresh.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                assert fresh.execute("PRAGMA foreign_key_check").fetchall() == []
            fresh.close()


def index_file(data: bytes) -> None:
    """An index file: it answers as it was made, or says that it is damaged."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images-1.faiss"
        path.write_bytes(data)
        with suppress(IndexFileError):
            opened = indexes.open(path)
            opened.check()
            opened.search(np.eye(1, opened.dim, dtype=np.float32), 3)


def adapter(data: bytes) -> None:
    """What tune learned, as it is stored."""
    with suppress(ValueError):
        Adapter.from_bytes(data, 13)


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        expression,
        where,
        inline,
        sidecar,
        pairs,
        picture,
        catalog,
        salvage,
        index_file,
        adapter,
    )
}
GRAMMAR = """AND OR NOT ( ) " ' \\ - : , ; = < > <= != * ? % _ NULL IS IN LIKE BETWEEN taken width
height path camera near(48.8,2.3,10km) after:2023 ext: folder:/ { } [ ] null true 1e999 -1 0x00 é ☃
"caption" """
WORDS = tuple(
    word.encode() for word in (*GRAMMAR.split(), "\t", "\n", "\r\n", "\0", "\u2028", "\u202e")
)
"""Texts that mean something to one reader or another."""


def corpus(name: str) -> list[bytes]:
    """Return the kept inputs of a target, in a fixed order."""
    return [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]


def bent(seeds: list[bytes], chance: random.Random) -> Iterator[bytes]:
    """Yield inputs near to those of the corpus, without end."""
    while True:
        data = bytearray(chance.choice(seeds) if seeds else b"")
        for _ in range(chance.choice((1, 1, 2, 4, 8))):
            at = chance.randrange(len(data) + 1)
            match chance.randrange(7):
                case 0 if data:
                    data[at % len(data)] ^= 1 << chance.randrange(8)
                case 1 if data:
                    data[at % len(data)] = chance.choice((0, 1, 127, 128, 255))
                case 2:
                    data[at:at] = chance.choice(WORDS)
                case 3:
                    del data[at : at + chance.choice((1, 2, 4, 64, 4096))]
                case 4:
                    data[at:at] = data[: chance.choice((1, 8, 64))]
                case 5:
                    data[at:at] = chance.randbytes(chance.choice((1, 4, 16)))
                case 6 if seeds:
                    other = chance.choice(seeds)
                    cut = chance.randrange(len(other) + 1)
                    data[at : at + len(other) - cut] = other[cut:]
        yield bytes(data[:MOST_BYTES])


def run(name: str, seconds: float, seed: int) -> int:
    """Fuzz one target; return how many inputs it took. What fails is kept, and raised."""
    target, started = TARGETS[name], time.monotonic()
    for count, data in enumerate(bent(corpus(name), random.Random(f"{name} {seed}"))):
        if time.monotonic() - started >= seconds:
            return count
        try:
            target(data)
        except Exception:
            kept = CORPUS / name / f"found-{hashlib.sha256(data).hexdigest()[:16]}"
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(data)
            sys.stderr.write(f"{kept} makes {name} fail:\n")
            raise
    raise AssertionError


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("target", choices=[*TARGETS, "all"])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    failed = False
    for name in TARGETS if options.target == "all" else [options.target]:
        try:
            count = run(name, options.seconds, options.seed)
            sys.stdout.write(f"{name}: {count:,} inputs\n")
        except Exception:
            failed = True
            traceback.print_exc(file=sys.stderr)
    sys.exit(failed)


if __name__ == "__main__":
    main()
