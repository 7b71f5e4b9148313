"""Writing the folder of a model so that what stands in it is whole, even after a power cut."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["hashes", "put", "put_json", "sync"]


def put(path: Path, data: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def put_json(path: Path, fields: dict[str, Any]) -> None:
    """Write a file of JSON and wait until the disk has it."""
    put(path, (json.dumps(fields, indent=2, ensure_ascii=False) + "\n").encode())


def sync(folder: Path) -> None:
    """Wait until the disk knows the names in a folder."""
    if os.name == "posix":  # Elsewhere a folder cannot be opened, and need not be synced.
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def hashes(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of some files of a folder, by name."""
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
