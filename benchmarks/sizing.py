"""What a library of any size takes: the tables of `docs/scale.md`, from figures for one picture.

`MEASURED` is what was seen, and where; `ASSUMED` is what was not. Both are printed with the tables,
and a test holds the page to this script.

usage: python sizing.py [--write]
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

from report import RESULTS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scale.md"
DIM = 512
GIB = 1 << 30

MEASURED = {
    "catalog_bytes": (
        560,
        "of a picture's row, its index of words and its keys, without the vector (SQLite, 100,000 "
        "files, a tenth of them with a caption)",
    ),
    "codes_bytes": (88, "of a vector of 512 in memory, one-bit codes in lists (`bench_index.py`)"),
    "rows_bytes": (2 * DIM, "of a vector of 512 in the index file, mapped, and in the catalog"),
    "pictures_per_core_s": (
        22,
        "JPEGs of 12 megapixels read, decoded and embedded with `compact` (`bench_ingest.py`: 44 "
        "a second on two cores, extra `fast`)",
    ),
    "decoded_per_core_s": (37, "of these decoded alone (`bench_ingest.py`: 75 on two cores)"),
}
ASSUMED = {
    "graph_bytes": (
        round(1.2 * (4 * DIM + 4 * 2 * 32 * 1.05)),
        "of a vector of 512 in a Milvus query node, HNSW with M = 32: the vector in float32, its "
        "links, and a fifth for what else a node keeps",
    ),
    "bytes_bytes": (
        round(1.2 * (DIM + 16)),
        "the same, IVF_SQ8: one byte a number, and a fifth",
    ),
    "cagra_bytes": (
        round(1.1 * (4 * DIM + 4 * 64)),
        "of a vector of 512 on a GPU, CAGRA of degree 64",
    ),
    "node_gib": (192, "of 256 GiB of a machine's memory that vectors may fill"),
    "card_gib": (70, "of 80 GiB of a card's that they may"),
    "gpu_pictures_s": (1500, "pictures a second that one GPU embeds with a ViT-B of 224 pixels"),
    "core_hour": (0.04, "dollars for a core"),
    "gib_hour": (0.005, "dollars for a GiB of memory"),
    "gpu_hour": (2.50, "dollars for a GPU"),
    "disk_gib_month": (0.10, "dollars for a GiB of SSD"),
}
SIZES = (10**5, 10**6, 10**7, 10**8, 10**9, 10**10)
EMBEDDED_UP_TO = 10**8
HOURS = 730
"""Of a month."""


@dataclass(frozen=True, slots=True)
class Size:
    """What so many pictures take."""

    pictures: int

    @property
    def catalog_gib(self) -> float:
        """Rows, words and vectors."""
        return self._gib(_value("catalog_bytes") + _value("rows_bytes"))

    @property
    def file_gib(self) -> float:
        """The index files of the embedded engine: rows and codes."""
        return self._gib(_value("rows_bytes") + _value("codes_bytes"))

    @property
    def codes_gib(self) -> float:
        """What the embedded engine keeps in memory, from where searching everything is too slow."""
        return self._gib(_value("codes_bytes"))

    def nodes(self, form: str) -> int:
        """Return how many machines (or cards) hold the vectors in a form, once."""
        room = _value("card_gib") if form == "cagra_bytes" else _value("node_gib")
        return math.ceil(self._gib(_value(form)) / room)

    @property
    def core_hours(self) -> float:
        """Of embedding with `compact` on processors."""
        return self.pictures / _value("pictures_per_core_s") / 3600

    @property
    def gpu_hours(self) -> float:
        """Of embedding with a ViT-B on GPUs."""
        return self.pictures / _value("gpu_pictures_s") / 3600

    def _gib(self, each: float) -> float:
        return self.pictures * each / GIB


def cores_for_a_gpu() -> int:
    """Return how many cores decode as fast as one GPU embeds."""
    return math.ceil(_value("gpu_pictures_s") / _value("decoded_per_core_s"))


def embedding_dollars() -> tuple[float, float]:
    """Return what a million pictures cost to embed: on processors, on GPUs with their decoders."""
    million = Size(10**6)
    cores = _value("core_hour")
    gpu = million.gpu_hours * (_value("gpu_hour") + cores_for_a_gpu() * cores)
    return million.core_hours * cores, gpu


def monthly_dollars() -> dict[str, float]:
    """Return what a million vectors cost a month to keep ready, by the way they are kept."""
    million = Size(10**6)
    memory, disk = _value("gib_hour") * HOURS, _value("disk_gib_month")
    return {
        "embedded (codes in memory, rows and catalog on SSD)": million.codes_gib * memory
        + (million.file_gib + million.catalog_gib) * disk,
        "Milvus IVF_SQ8, catalog on SSD": million._gib(_value("bytes_bytes")) * memory
        + million.catalog_gib * disk,
        "Milvus HNSW, catalog on SSD": million._gib(_value("graph_bytes")) * memory
        + million.catalog_gib * disk,
        "Milvus GPU_CAGRA, catalog on SSD": million._gib(_value("cagra_bytes"))
        / _value("card_gib")
        * _value("gpu_hour")
        * HOURS
        + million.catalog_gib * disk,
    }


def _value(name: str) -> float:
    return (MEASURED | ASSUMED)[name][0]


def _short(number: float) -> str:
    if number >= 1000:
        return f"{number:,.0f}"
    return f"{number:.2g}" if number < 10 else f"{number:.0f}"


def sizes() -> str:
    """Return the table of sizes."""
    head = (
        "pictures",
        "engine",
        "catalog, GiB",
        "searched from",
        "`compact` on 32 cores, hours",
        "ViT-B on 8 GPUs, hours",
    )
    lines = [" | ".join(["", *head, ""]).strip(), "|---" * len(head) + "|"]
    for pictures in SIZES:
        size = Size(pictures)
        if pictures <= EMBEDDED_UP_TO:
            engine = "embedded: SQLite and FAISS, one machine"
            where = (
                f"one machine: {_short(size.codes_gib)} GiB of memory, "
                f"{_short(size.file_gib)} GiB of SSD"
            )
        else:
            engine = "PostgreSQL, Milvus, Ray"
            where = (
                f"machines of 256 GiB: {size.nodes('bytes_bytes')} (IVF_SQ8), "
                f"{size.nodes('graph_bytes')} (HNSW); or "
                f"{size.nodes('cagra_bytes')} cards of 80 GiB (CAGRA)"
            )
        row = (
            f"{pictures:,}",
            engine,
            _short(size.catalog_gib),
            where,
            _short(size.core_hours / 32),
            _short(size.gpu_hours / 8),
        )
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def costs() -> str:
    """Return the table of costs."""
    processors, gpus = embedding_dollars()
    lines = ["| a million pictures | dollars |", "|---|---|"]
    lines.append(f"| embedded once with `compact` on processors | {processors:.2f} |")
    lines.append(
        f"| embedded once with a ViT-B on GPUs, with {cores_for_a_gpu()} cores each that decode | "
        f"{gpus:.2f} |"
    )
    lines += [f"| ready a month: {way} | {each:.2f} |" for way, each in monthly_dollars().items()]
    return "\n".join(lines)


def figures(what: dict[str, tuple[float, str]]) -> str:
    """Return a table of figures for one picture."""
    lines = ["| figure | what |", "|---|---|"]
    return "\n".join(lines + [f"| {value:,} | {said} |" for value, said in what.values()])


def answers() -> str:
    """Return the table of the simulated answers, from `results/scale.json`."""
    report = json.loads((RESULTS / "scale.json").read_text())["figures"]
    names = list(next(iter(report["loads"].values())))
    lines = ["| load | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for load, ways in report["loads"].items():
        cells = []
        for name in names:
            ms = ways[name]["ms"]
            rate = ways[name]["questions_per_second"]
            cells.append(f"{rate:,.0f}/s: {ms['p50']:.0f} / {ms['p99']:.0f} / {ms['p99.9']:.0f}")
        lines.append(f"| {load} | {' | '.join(cells)} |")
    return "\n".join(lines)


TABLES = {
    "sizes": sizes,
    "costs": costs,
    "measured": lambda: figures(MEASURED),
    "assumed": lambda: figures(ASSUMED),
    "answers": answers,
}


def written(page: str) -> str:
    """Return the page with every table made anew."""
    for name, table in TABLES.items():
        before, _, rest = page.partition(f"<!-- {name} -->\n")
        _, _, after = rest.partition(f"<!-- /{name} -->")
        page = f"{before}<!-- {name} -->\n{table()}\n<!-- /{name} -->{after}"
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the tables into the page")
    arguments = parser.parse_args()
    if arguments.write:
        PAGE.write_text(written(PAGE.read_text("utf-8")), "utf-8")
    else:
        print("\n\n".join(table() for table in TABLES.values()))


if __name__ == "__main__":
    main()
