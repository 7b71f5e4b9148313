"""What scores mean nothing in a library: computed once, and kept beside its indexes.

Every answer with a probability needs it, and to compute it anew takes a process longer than to ask
the index. It changes little as a library grows, so it serves until more than `SHARE` of the
pictures have changed. The file is derived: whatever is wrong with it, it is made anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch.indexes.base import replacing
from mmsearch.retrieval.calibration import SAMPLE, Calibration
from mmsearch.retrieval.duplicates import Likeness, likeness
from mmsearch.retrieval.schema import Target
from mmsearch.retrieval.tags import background

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from mmsearch.retrieval.adapter import Adapter
    from mmsearch.retrieval.catalog import LibraryRow
    from mmsearch.retrieval.encoders import Encoder
    from mmsearch.retrieval.library import Library

__all__ = ["NullDistribution", "null_distribution", "prepare"]

logger = logging.getLogger(__name__)

SHARE = 0.05
"""Of a library's pictures, how many may have changed since they were sampled."""
FORMAT = 1
"""Grows with whatever changes what the file holds or means: the bundled names, a formula."""


@dataclass(frozen=True, slots=True, eq=False)
class NullDistribution:
    """What is kept.

    Attributes:
        sample: `float32[n, dim]`, vectors that stand for the library's pictures, at least one.
        middle: mean score of the bundled names and the sample.
        spread: its deviation.
        likeness: how similar near-duplicates are.
    """

    sample: NDArray[np.float32]
    middle: float
    spread: float
    likeness: Likeness

    def calibration(self, names: NDArray[np.float32], size: int) -> Calibration:
        """Return what scores mean in a library of `size` pictures; `names` as it was made with."""
        return Calibration(names, self.sample, size, self.middle, self.spread)


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """What the file holds: of which state, of how many pictures, and how many changed until it."""

    found: NullDistribution
    stamp: str
    size: int
    changed: int


def null_distribution(
    library: Library,
    row: LibraryRow,
    names: NDArray[np.float32],
    adapter: Adapter | None,
    ids: Callable[[], NDArray[np.int64]],
) -> NullDistribution | None:
    """Return the null distribution of a state: what is kept, or made and kept; None if it is empty.

    Args:
        library: whose it is.
        row: the state.
        names: `float32[b, dim]`, `tags.background`, adapted where the state adapts texts.
        adapter: what did that.
        ids: returns `int64[n]`, ascending: the pictures that have a vector.
    """
    key = _key(row, names, adapter)
    kept = _current(library, row, _read(library.null_file, key))
    if kept is None:
        kept = _made(library, row, names, ids())
        if kept is not None:
            _write(library.null_file, key, kept)
    return None if kept is None else kept.found


def prepare(
    library: Library, encoder: Encoder, embedding: Callable[[int], None] | None = None
) -> None:
    """Leave what the first question needs: names embedded, and a file of the present state.

    To be called before `Library.refresh_indexes` forgets what changed since the file was written.

    Args:
        library: a library that may be written to.
        encoder: its own.
        embedding: called with the number of names where they have yet to be embedded.
    """
    row = library.catalog.library()
    if row.encoder_id is None:
        return
    names, adapter = background(encoder, embedding=embedding), library.adapter(row)
    if adapter is not None:
        names = adapter.apply(names)
    key = _key(row, names, adapter)
    kept = _read(library.null_file, key)
    now = _current(library, row, kept)
    if now is None:
        now = _made(library, row, names, library.catalog.vector_ids(Target.IMAGES, row.encoder_id))
    if now is not None and (kept is None or now.stamp != kept.stamp):
        _write(library.null_file, key, now)


def _key(row: LibraryRow, names: NDArray[np.float32], adapter: Adapter | None) -> dict[str, Any]:
    """Return what must be the same for the file to be of use."""
    adapted = None if adapter is None else hashlib.sha256(adapter.to_bytes()).hexdigest()
    return {
        "format": FORMAT,
        "library": row.uid,
        "encoder": None if row.encoder is None else asdict(row.encoder),
        "adapter": adapted,
        "names": len(names),
    }


def _current(library: Library, row: LibraryRow, kept: _Kept | None) -> _Kept | None:
    """Return what is kept as that of the state `row`; None where too much has changed since."""
    if kept is None or kept.stamp == row.stamp:
        return kept
    changes = library.catalog.changes(Target.IMAGES, kept.stamp, row)
    if changes is None or kept.changed + len(changes) > SHARE * kept.size:
        return None
    return _Kept(kept.found, row.stamp, kept.size, kept.changed + len(changes))


def _made(
    library: Library, row: LibraryRow, names: NDArray[np.float32], ids: NDArray[np.int64]
) -> _Kept | None:
    some = ids[:: max(1, len(ids) // SAMPLE)]
    if row.encoder_id is None or len(some) == 0:
        return None
    vectors = library.catalog.vectors_of(Target.IMAGES, row.encoder_id, names.shape[1], some)[1]
    if len(vectors) == 0:
        return None
    sample = vectors.astype(np.float32)
    scores = Calibration.of(names, sample, len(ids))
    found = NullDistribution(sample, scores.middle, scores.spread, likeness(sample))
    return _Kept(found, row.stamp, len(ids), 0)


def _write(path: Path, key: dict[str, Any], kept: _Kept) -> None:
    """Write a line of JSON, and the sample as little-endian fp16 (what the catalog holds)."""
    found = kept.found
    numbers = found.sample.astype("<f2").tobytes()
    header = {
        "key": key,
        "stamp": kept.stamp,
        "size": kept.size,
        "changed": kept.changed,
        "dim": found.sample.shape[1],
        "middle": found.middle,
        "spread": found.spread,
        "likeness": asdict(found.likeness),
        "crc32": zlib.crc32(numbers),
    }
    try:
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(json.dumps(header).encode() + b"\n" + numbers)
    except OSError as error:
        logger.info("what scores mean is not kept: %s", error)


def _read(path: Path, key: dict[str, Any]) -> _Kept | None:
    """Return what the file holds; None where it is missing, damaged, or another's."""
    try:
        line, _, numbers = path.read_bytes().partition(b"\n")
        header = json.loads(line)
        if header["key"] != key or header["crc32"] != zlib.crc32(numbers):
            return None
        found = NullDistribution(
            np.frombuffer(numbers, "<f2").reshape(-1, header["dim"]).astype(np.float32),
            float(header["middle"]),
            float(header["spread"]),
            Likeness(**header["likeness"]),
        )
        return _Kept(found, header["stamp"], header["size"], header["changed"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
