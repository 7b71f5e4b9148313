"""Where this user's derived files of encoders lie: exports, batch sizes, speeds.

All of it can be deleted at any time and is made again when it is needed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["file_name", "put_folder", "read_json", "root", "write_json"]


def root() -> Path:
    """Return the folder: `$MMSEARCH_CACHE`, else the user's cache directory."""
    given = os.environ.get("MMSEARCH_CACHE")
    if given:
        return Path(os.path.expanduser(given)).absolute()  # noqa: PTH111
    from platformdirs import user_cache_path

    return user_cache_path("mmsearch", appauthor=False)


def file_name(readable: str, *exact: str) -> str:
    """Return a name that people recognise and that differs wherever `exact` does."""
    plain = re.sub(r"[^A-Za-z0-9._]+", "-", readable).strip("-.")[-48:]
    digests = (hashlib.sha256(os.fsencode(part)).hexdigest()[:12] for part in exact)
    return "-".join([plain, *digests])


def read_json(path: Path) -> dict[str, Any]:
    """Return a file's JSON object; an empty one where the file is missing or damaged."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}


def write_json(path: Path, fields: dict[str, Any]) -> None:
    """Write a JSON object under a temporary name, and rename it; readers see old or new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        part.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def put_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Make a folder that appears whole or not at all.

    Where another process made it meanwhile, its folder stays and this one's work is dropped.

    Args:
        folder: where to.
        write: fills the folder it is given.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    part.mkdir()
    try:
        write(part)
        try:
            part.rename(folder)
        except OSError:
            # A folder that is not empty is never replaced: another process was quicker.
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
