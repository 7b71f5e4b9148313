"""What is derived from the catalog: index files, and what is kept beside them."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmsearch.errors import StoreError
from mmsearch.indexes import IndexFileError
from mmsearch.indexes.base import WRITING
from mmsearch.retrieval.catalog import integrity
from mmsearch.retrieval.doctor.finding import Finding, Part
from mmsearch.retrieval.index_files import ABANDONED_AFTER_S
from mmsearch.retrieval.library import REGIONS
from mmsearch.retrieval.schema import Target

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from mmsearch.retrieval.catalog import LibraryRow
    from mmsearch.retrieval.library import Library

__all__ = ["examine_index", "examine_kept"]

SAMPLE, DEEP_SAMPLE = 200, 5_000
"""Vectors of an index that are compared with the catalog's."""
SAME = 0.999
"""The least cosine of a vector with itself, in any index: 8-bit codes lose less."""


def examine_index(
    library: Library, row: LibraryRow, bad: Mapping[Target, NDArray[np.int64]], *, deep: bool
) -> tuple[str, dict[Target, str]]:
    """Return what was looked at, and what is wrong with the index of each target.

    Vectors that are `bad` in the catalog are not compared.
    """
    told, faults = [], {}
    for target in Target:
        try:
            stored = library.store_differences(target, row)
        except StoreError as error:
            told.append(f"a store of {target.value} that cannot be looked at")
            faults[target] = str(error).rstrip(".")
            continue
        if stored is not None:
            name, count, fault = stored
            told.append(f"{name}: {count:,} ids")
            if fault:
                faults[target] = fault
            continue
        path = library.index_file(target, row)
        if path is None:
            told.append(f"none of {target.value}, made when it is needed")
            continue
        try:
            count, fault = _compared(
                library, row, target, path, bad.get(target), DEEP_SAMPLE if deep else SAMPLE
            )
        except IndexFileError as error:
            told.append(f"{path.name}")
            faults[target] = str(error)
            continue
        told.append(f"{path.name}: every checksum, {count:,} ids")
        if fault:
            faults[target] = fault
    return "; ".join(told), faults


def _compared(
    library: Library,
    row: LibraryRow,
    target: Target,
    path: Path,
    bad: NDArray[np.int64] | None,
    most: int,
) -> tuple[int, str]:
    """Return how many vectors an index has, and what is wrong with it.

    Raises:
        IndexFileError: it is damaged.
    """
    from mmsearch import indexes

    assert row.encoder_id is not None
    assert row.encoder is not None
    index = indexes.open(path)
    index.check()
    ids = np.sort(index.ids)
    known = library.catalog.vector_ids(target, row.encoder_id)
    if not np.array_equal(ids, known):
        lacking, surplus = len(np.setdiff1d(known, ids)), len(np.setdiff1d(ids, known))
        return len(ids), f"it lacks {lacking:,} vectors and has {surplus:,} that are gone"
    some = ids if bad is None else np.setdiff1d(ids, bad)
    some = some[:: max(1, len(some) // most)]
    _, stored = library.catalog.vectors_of(target, row.encoder_id, row.encoder.dim, some)
    rows = stored.astype(np.float32)
    adapter = library.adapter(row) if target is Target.CAPTIONS else None
    if adapter is not None:
        rows = adapter.apply(rows)
    wrong = 0
    for id_, vector in zip(some, rows, strict=True):
        found = index.search(vector / np.linalg.norm(vector), 1, among=np.array([id_]))
        wrong += not found.scores[0, 0] >= SAME
    return len(ids), f"{wrong:,} of {len(some):,} vectors differ" if wrong else ""


def examine_kept(library: Library, *, mend: bool) -> tuple[str, list[Finding]]:
    """Return what was looked at and what was found: nothing here is ever a loss."""
    findings = []
    regions = library.folder / REGIONS
    if regions.is_file() and integrity.damage(regions, deep=False):
        if mend:
            library.regions.close()
            for end in ("", "-wal", "-shm"):
                regions.with_name(regions.name + end).unlink(missing_ok=True)
        findings.append(
            Finding(
                Part.KEPT,
                "What rerankers are spared (regions.sqlite) is damaged.",
                "mmsearch doctor --repair removes it; what is missing is computed again.",
                repaired=mend,
            )
        )
    orphans = _orphaned_thumbnails(library)
    if orphans:
        size = sum(path.stat().st_size for path in orphans)
        if mend:
            for path in orphans:
                path.unlink(missing_ok=True)
        findings.append(
            Finding(
                Part.KEPT,
                f"{len(orphans):,} thumbnails ({size / 1e6:,.1f} MB) are of no picture any more.",
                "mmsearch doctor --repair removes them.",
                serious=False,
                repaired=mend,
            )
        )
    leftovers = _leftovers(library.folder)
    if leftovers:
        if mend:
            for path in leftovers:
                shutil.rmtree(path, ignore_errors=True)
        findings.append(
            Finding(
                Part.KEPT,
                f"{len(leftovers):,} half-written files were left by a process that was killed.",
                "mmsearch doctor --repair removes them.",
                serious=False,
                repaired=mend,
            )
        )
    return "regions, thumbnails, half-written files", findings


def _orphaned_thumbnails(library: Library) -> list[Path]:
    """Return thumbnails, which are named after a content, of contents that no picture has."""
    named = [
        (match[1], path)
        for path in (library.folder / "thumbnails").glob("??/*.jpg")
        if (match := re.fullmatch(r"([0-9a-f]{64})-[0-9]+", path.stem))
    ]
    if not named:
        return []
    known = {sha256.hex() for sha256 in library.catalog.contents().values()}
    return [path for name, path in named if name not in known]


def _leftovers(folder: Path) -> list[Path]:
    """Return temporary folders that no living process can still be writing to."""
    old = time.time() - ABANDONED_AFTER_S
    found = []
    for path in folder.rglob(f"{WRITING}*"):
        try:
            if path.stat().st_mtime < old:
                found.append(path)
        except OSError:
            continue
    return found
