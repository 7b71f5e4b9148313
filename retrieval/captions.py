"""Captions kept beside the pictures: `photo.txt`, `photo.json` and their like."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from errno import EINVAL, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR
from hashlib import blake2b
from pathlib import Path
from stat import S_ISREG

from mmsearch.retrieval.metadata import clean_caption
from mmsearch.retrieval.schema import Caption

__all__ = ["SIDECAR_SUFFIXES", "fingerprint", "parse_sidecar", "read_sidecar", "sidecar_names"]

SIDECAR_SUFFIXES = (".txt", ".json", ".supplemental-metadata.json")
"""`photo.txt` and `photo.jpg.txt` both belong to `photo.jpg`; the last is Google Takeout's."""

NOT_THERE = frozenset({ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG, EINVAL})
"""What systems say of a name that leads to no file."""

MAX_SIDECAR_BYTES = 1 << 20
MAX_CAPTIONS = 100
"""A text file with more lines is a document that happens to share the picture's name."""
KEYS = ("caption", "captions", "description", "text")


def sidecar_names(name: str) -> list[str]:
    """Return the names that a picture's side-cars may have, in order of precedence."""
    stem = name.rpartition(".")[0] or name
    return [base + suffix for base in (name, stem) for suffix in SIDECAR_SUFFIXES]


def read_sidecar(path: Path) -> list[Caption]:
    """Return the captions of one side-car; none where it is not there or says nothing.

    Each line of a text file is a caption, the first hundred of them. A JSON file gives its
    `caption`, `captions`, `description` or `text`, each a string or a list of strings. A side-car
    is a courtesy: a broken one never keeps its picture from being indexed.

    Raises:
        OSError: it is there, and cannot be read at present: what it says is unknown.
    """
    try:
        if not S_ISREG(path.stat().st_mode):
            return []  # To open a pipe is to wait for whoever writes to it.
        with path.open("rb") as file:
            content = file.read(MAX_SIDECAR_BYTES)
    except OSError as error:
        if error.errno in NOT_THERE:
            return []
        raise
    return parse_sidecar(path.name, content)


def fingerprint(parts: Sequence[str]) -> str:
    """Return what changes when side-cars do, from a word for each; empty when there are none."""
    return blake2b(os.fsencode("|".join(parts)), digest_size=8).hexdigest() if parts else ""


def parse_sidecar(name: str, content: bytes) -> list[Caption]:
    """Return what `read_sidecar` does, from the content of a side-car of this name."""
    raw = content[:MAX_SIDECAR_BYTES].decode("utf-8-sig", errors="replace")
    if name.lower().endswith(".txt"):
        values: list[object] = list(raw.splitlines())
    else:
        try:
            document = json.loads(raw)
        except (ValueError, RecursionError):
            return []
        if not isinstance(document, dict):
            return []
        values = []
        for key in KEYS:
            value = document.get(key)
            values.extend(value if isinstance(value, list) else [value])
    texts = dict.fromkeys(text for value in values if (text := clean_caption(value)))
    return [Caption(text, "sidecar") for text in texts][:MAX_CAPTIONS]
