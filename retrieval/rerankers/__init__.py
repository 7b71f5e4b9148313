"""Rerankers: the best answers read again, words and picture together. `load_reranker` finds one."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from mmsearch.errors import ModelError
from mmsearch.retrieval.offline import tell_model_libraries
from mmsearch.retrieval.rerankers.base import DEPTH, Pair, Reranked, Reranker, View, reorder

if TYPE_CHECKING:
    from mmsearch.retrieval.encoders import Encoder

__all__ = ["DEPTH", "Pair", "Reranked", "Reranker", "View", "load_reranker", "reorder"]

_MODULES = {
    "fast": "mmsearch.retrieval.rerankers.bundled",
    "folder": "mmsearch.retrieval.rerankers.bundled",
    "hf": "mmsearch.retrieval.rerankers.huggingface",
    "cross-encoder": "mmsearch.retrieval.rerankers.cross_encoder",
}
"""Kind to module; each has `load(rest, encoder) -> Reranker`."""

_OWN = ("fast", "folder")
"""Those that are not named `KIND:REST`."""


def load_reranker(name: str | Path | Reranker = "fast", encoder: Encoder | None = None) -> Reranker:
    """Return the reranker called `name`.

    One of the caller's own is returned as it is. `fast` comes with the package and reads what
    `compact` sees; so does a folder that `mmsearch train-reranker` wrote. `hf:NAME_OR_PATH` is a
    model for image-text matching of transformers (BLIP, ViLT), `cross-encoder:NAME_OR_PATH` a
    multimodal one of sentence-transformers; these two need the extra `models`.

    Args:
        name: which one.
        encoder: the one whose answers are reranked, whose towers `fast` shares; `compact` if not
            given.

    Raises:
        ModelError: there is no such reranker, its files are incomplete or altered, or it reads
            another encoder's towers.
        MissingExtra: the model's library is not installed.
    """
    if isinstance(name, Reranker):
        return name
    kind, rest = _parse(str(name))
    tell_model_libraries()
    reranker: Reranker = importlib.import_module(_MODULES[kind]).load(rest, encoder)
    return reranker


def _parse(name: str) -> tuple[str, str]:
    kind, _, rest = name.partition(":")
    if kind in _MODULES and kind not in _OWN and rest:
        return kind, rest
    if name == "fast":
        return "fast", ""
    folder = Path(os.path.expanduser(name))  # noqa: PTH111
    if os.path.isfile(folder / "reranker.json"):  # noqa: PTH113
        return "folder", str(folder)
    raise ModelError(
        f"There is no reranker '{name}'. Use 'fast', a folder that mmsearch train-reranker wrote, "
        "'hf:NAME_OR_PATH' (BLIP or ViLT for image-text matching) or 'cross-encoder:NAME_OR_PATH'."
    )
