"""Finding the pictures of a bucket, or of a part of one, as `scan` does those of a folder."""

from __future__ import annotations

from pathlib import Path

from pathspec import GitIgnoreSpec

from mmsearch.errors import SourceError
from mmsearch.retrieval.addresses import address_of
from mmsearch.retrieval.captions import sidecar_names
from mmsearch.retrieval.containers import CONTAINER_SUFFIXES, InStore
from mmsearch.retrieval.objects import StoredObject, join, list_objects
from mmsearch.retrieval.scan import IGNORE_FILE, FoundFile, Scan, may_be_listed, would_list

__all__ = ["scan_objects"]


def scan_objects(address: str) -> Scan:
    """List every picture, tar file and Parquet file below an address, or the one that is there.

    Hidden names and what an `.mmsearchignore` there names are left out, as in a folder.

    Returns:
        What is there, by address, `covered` by the address.

    Raises:
        SourceError: it cannot be reached or read, or there is nothing.
        MissingExtra: fsspec is not installed.
    """
    objects = list_objects(address)
    ignored = _ignore_rules(address, join(address, IGNORE_FILE) in objects)
    found = Scan(covered=frozenset({address}))
    for one, (size, mtime_ns) in objects.items():
        inside = one.removeprefix(address).lstrip("/") or one.rpartition("/")[2]
        name = inside.rpartition("/")[2]
        if not may_be_listed(name) or ignored.match_file(inside):
            continue
        container = StoredObject(one).suffix.lower() in CONTAINER_SUFFIXES
        # A container's name is no picture's; what counts is that nothing is hidden on the way.
        if not would_list(f"{inside}.jpg" if container else inside):
            continue
        # What is called like this in the catalog is found again by it.
        if address_of(Path(one)) != one:
            found.unusable[one] = "its name has an empty part, and cannot be a path"
        elif container:
            found.containers[one] = (size, mtime_ns)
        else:
            folder = one.rpartition("/")[0]
            names = (join(folder, beside) for beside in sidecar_names(name))
            beside = tuple((which, *objects[which]) for which in names if which in objects)
            place = InStore(one, size, beside)
            found.files[one] = FoundFile(size, mtime_ns, place.sidecars, place)
    found.files = dict(sorted(found.files.items()))
    return found


def _ignore_rules(address: str, there: bool) -> GitIgnoreSpec:
    if not there:
        return GitIgnoreSpec.from_lines([])
    file = StoredObject(join(address, IGNORE_FILE))
    try:
        lines = file.read_range(0, 1 << 20).decode("utf-8-sig", errors="replace").splitlines()
        return GitIgnoreSpec.from_lines(lines)
    except OSError as error:
        raise SourceError(f"{file} cannot be read: {error}.") from error
    except ValueError as error:
        raise SourceError(f"{file} has a rule that is not valid: {error}.") from error
