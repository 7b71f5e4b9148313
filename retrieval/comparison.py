"""A scan compared with the catalog: which files are current, hopeless, gone or mended."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mmsearch.retrieval.containers import is_there
from mmsearch.retrieval.media import TRANSIENT_KINDS
from mmsearch.retrieval.scan import FoundFile, Scan, would_list

if TYPE_CHECKING:
    from mmsearch.retrieval.catalog import KnownFile, KnownProblem

__all__ = ["is_current", "is_gone", "is_hopeless", "is_mended"]


def is_current(known: KnownFile | None, file: FoundFile) -> bool:
    """Say whether a file is the one that was embedded, by its size, time and side-cars."""
    return (
        known is not None
        and known.embedded
        and (known.size, known.mtime_ns, known.sidecars)
        == (file.size, file.mtime_ns, file.sidecars)
    )


def is_hopeless(problem: KnownProblem | None, file: FoundFile) -> bool:
    """Say whether a file is the one that could not be indexed, and trying again is of no use."""
    return (
        problem is not None
        and problem.kind not in TRANSIENT_KINDS
        and (problem.size, problem.mtime_ns) == (file.size, file.mtime_ns)
    )


def is_gone(found: Scan, root: Path, path: str) -> bool:
    """Say whether the scan of a library's folder would have seen a file at `path`, and has not."""
    if path in found.files or path in found.containers or found.may_hold(path):
        return False
    # What only a list can name is gone when it is no more, not where a scan leaves it out.
    return would_list(path) or not is_there(root, path)


def is_mended(found: Scan, container: str) -> bool:
    """Say whether a container can be read whole, whatever was wrong with it before."""
    return container in found.listed and container not in found.damaged
