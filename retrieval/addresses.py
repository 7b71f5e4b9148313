"""Addresses of object stores, and what becomes of them where a path is expected.

A picture in a bucket is called by its address: `s3://bucket/photos/a.jpg`. Joined to a folder, as
paths of a library are, it keeps what tells: `library/s3:/bucket/photos/a.jpg`.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["SCHEMES", "address_of", "shown"]

SCHEMES = frozenset(
    {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci"}
    | {"hdfs", "webhdfs", "sftp", "smb", "memory", "file"}
)
"""What fsspec reads, with the right driver, and what holds folders of pictures."""


def address_of(path: Path | str) -> str | None:
    """Return the address that a text is, or that a path leads to; None for files of this machine.

    A folder here that is called like a scheme and a colon, such as `s3:`, cannot be told from it.
    """
    if isinstance(path, str) and "://" in path:
        return path if path.partition("://")[0] in SCHEMES else None
    parts = Path(path).parts
    for place, part in enumerate(parts):
        if part.endswith(":") and part[:-1] in SCHEMES:
            return f"{part}//{'/' if part == 'file:' else ''}{'/'.join(parts[place + 1 :])}"
    return None


def shown(path: Path) -> str:
    """Return a path as people know it: the address, where it leads to one."""
    return address_of(path) or str(path)
