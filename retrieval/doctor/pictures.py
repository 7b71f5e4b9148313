"""The pictures themselves: are they there, are they what was indexed, do they give that vector."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from mmsearch.errors import MediaError, quoted
from mmsearch.retrieval.addresses import address_of
from mmsearch.retrieval.catalog import KnownFile
from mmsearch.retrieval.containers import is_there, openable
from mmsearch.retrieval.doctor.finding import Finding, Part
from mmsearch.retrieval.scan import size_and_time
from mmsearch.retrieval.schema import Target
from mmsearch.retrieval.thumbnails import picture_bytes

if TYPE_CHECKING:
    from collections.abc import Collection

    from mmsearch.retrieval.catalog import LibraryRow
    from mmsearch.retrieval.encoders import Encoder
    from mmsearch.retrieval.library import Library

__all__ = ["examine_files", "examine_sample"]

SAMPLE = 64
"""Pictures that are read again."""
NAMED = 5
SAME = 0.99
"""The least cosine of a picture's vector with the one it had: faster arithmetic (bfloat16) and
other versions of the runtime change the last bits, another picture changes more."""


def examine_files(library: Library, row: LibraryRow, *, deep: bool) -> tuple[str, list[Finding]]:
    """Return what was looked at and what was found."""
    if row.encoder_id is None:
        return "none yet", []
    known = library.catalog.known_files(row.encoder_id)
    findings = []
    again = f"Bring the library up to date: mmsearch index {quoted(library.root)}"
    # To ask a store for each would take as long as there are pictures; an index run lists them.
    local = {path: file for path, file in known.items() if address_of(path) is None}
    gone = [path for path in local if not is_there(library.root, path)]
    if gone and len(gone) == len(known):
        findings.append(
            Finding(
                Part.FILES,
                f"None of the {len(known):,} pictures is there. Is the disk plugged in?",
                "They can still be found; nothing is forgotten unless mmsearch index sees an "
                "empty folder.",
                serious=False,
            )
        )
    elif gone:
        findings.append(
            Finding(
                Part.FILES,
                f"{len(gone):,} pictures are gone since they were indexed.",
                again,
                serious=False,
                names=tuple(gone[:NAMED]),
            )
        )
    changed = [path for path, file in local.items() if _changed(library, path, file)]
    if changed:
        findings.append(
            Finding(
                Part.FILES,
                f"{len(changed):,} pictures changed since they were indexed.",
                again,
                serious=False,
                names=tuple(changed[:NAMED]),
            )
        )
    told = f"{len(local):,} pictures, by size and time"
    if len(local) < len(known):
        told += f"; {len(known) - len(local):,} in an object store, which mmsearch index lists"
    problems = library.catalog.counts().problems
    if problems:
        findings.append(
            Finding(
                Part.FILES,
                f"{problems:,} files could not be indexed.",
                "See why: mmsearch status --problems",
                serious=False,
            )
        )
    if deep:
        unchanged = sorted(known.keys() - set(gone) - set(changed))
        seen, other = _other_content(library, {path: known[path] for path in unchanged})
        told += f"; the content of {seen:,}"
        if other:
            findings.append(
                Finding(
                    Part.FILES,
                    f"{len(other):,} of {seen:,} pictures have another content than when they were "
                    "indexed, though size and time are the same: the disk may be failing, or a "
                    "program kept the time.",
                    "Look at them; touch them, and they are indexed again: mmsearch index "
                    + quoted(library.root),
                    names=tuple(other[:NAMED]),
                )
            )
    return told, findings


def _changed(library: Library, path: str, file: KnownFile) -> bool:
    """Say whether a file that is there, by itself, has another size or time."""
    try:
        status = (library.root / path).stat()
    except (OSError, ValueError):
        return False
    return size_and_time(status) != (file.size, file.mtime_ns)


def _other_content(library: Library, known: dict[str, KnownFile]) -> tuple[int, list[str]]:
    paths = list(known)
    paths = paths[:: max(1, len(paths) // SAMPLE)]
    contents = library.catalog.contents([known[path].id for path in paths])
    seen, other = 0, []
    for path in paths:
        try:
            data = picture_bytes(library.root / path)
        except MediaError:
            continue
        seen += 1
        if hashlib.sha256(data).digest() != contents[known[path].id]:
            other.append(path)
    return seen, other


def examine_sample(
    library: Library, row: LibraryRow, encoder: Encoder, bad: Collection[int] = ()
) -> tuple[int, list[str]]:
    """Return how many pictures were embedded again, and which have another vector than before.

    Only pictures whose content is what was indexed are compared, and none whose vector is `bad`.
    """
    assert row.encoder_id is not None
    known = {
        path: file
        for path, file in library.catalog.known_files(row.encoder_id).items()
        if file.embedded and file.id not in bad
    }
    paths = sorted(known)
    paths = paths[:: max(1, len(paths) // SAMPLE)]
    contents = library.catalog.contents([known[path].id for path in paths])
    seen, odd = 0, []
    for path in paths:
        file = library.root / path
        try:
            if hashlib.sha256(picture_bytes(file)).digest() != contents[known[path].id]:
                continue
            now = encoder.encode_images([openable(file)])[0]
        except MediaError:
            continue
        _, stored = library.catalog.vectors_of(
            Target.IMAGES, row.encoder_id, encoder.dim, np.array([known[path].id])
        )
        if len(stored):
            seen += 1
            if not float(stored[0].astype(np.float32) @ now) >= SAME:
                odd.append(path)
    return seen, odd
