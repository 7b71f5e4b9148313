"""Captioners: models that write a sentence about a picture. `load_captioner` finds one."""

from __future__ import annotations

import hashlib
import importlib
import os
from pathlib import Path

from mmsearch.errors import ModelError
from mmsearch.retrieval.captioners.base import Captioner
from mmsearch.retrieval.encoders.exported import source_state
from mmsearch.retrieval.encoders.sources import absolute, local_path
from mmsearch.retrieval.offline import tell_model_libraries

__all__ = ["DEFAULT_CAPTIONER", "Captioner", "full_name", "load_captioner", "revision"]

DEFAULT_CAPTIONER = "blip"

_HUB_NAMES = {DEFAULT_CAPTIONER: "hf:Salesforce/blip-image-captioning-base"}

_MODULE = "mmsearch.retrieval.captioners.huggingface"
"""Named, not imported: indexing and asking are free of torch."""

_READ = ("*.json", "*.safetensors", "*.txt")
"""The files that a checkpoint's captions follow from."""


def full_name(name: str | Path) -> str:
    """Return the source that `name` stands for, such as `hf:OWNER/NAME`, in any folder.

    `blip` is `hf:Salesforce/blip-image-captioning-base`; a folder is `hf:FOLDER`.

    Raises:
        ModelError: it is none of these.
    """
    given = str(name)
    if given in _HUB_NAMES:
        return _HUB_NAMES[given]
    if Path(os.path.expanduser(given)).is_dir():  # noqa: PTH111
        given = f"hf:{given}"
    kind, _, rest = given.partition(":")
    if kind != "hf" or not rest:
        raise ModelError(
            f"There is no captioner '{name}'. Use 'blip' ({_HUB_NAMES['blip']}), "
            "'hf:NAME_OR_PATH', or the folder of a BLIP for captions."
        )
    return absolute(given)


def revision(source: str) -> str | None:
    """Return what changes when a source's captions may; None where that is not known yet.

    Of a folder the beginning of a hash of its content, of a repository of the hub that of the
    revision which lies in the hub's own cache.
    """
    path = local_path(source)
    if path is None:
        state = source_state(source)
        return state[:12] if state else None
    digest = hashlib.sha256()
    for file in sorted({file for pattern in _READ for file in path.glob(pattern)}):
        with file.open("rb") as content:
            digest.update(file.name.encode())
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:12]


def load_captioner(name: str | Path | Captioner = DEFAULT_CAPTIONER) -> Captioner:
    """Return the captioner called `name`; one of the caller's own is returned as it is.

    Raises:
        ModelError: there is no such model, it cannot be had, or it writes no captions.
        MissingExtra: the extra `models` is not installed.
    """
    if isinstance(name, Captioner):
        return name
    source = full_name(name)
    tell_model_libraries()
    found: Captioner = importlib.import_module(_MODULE).load(
        source, lambda: revision(source) or "unknown"
    )
    return found
