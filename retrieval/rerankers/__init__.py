"""Rerankers: the best answers read again, words and picture together. `load_reranker` finds one."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from mmsearch.errors import ModelError
from mmsearch.retrieval.rerankers.base import DEPTH, Pair, Reranked, Reranker, View, reorder

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["DEPTH", "Pair", "Reranked", "Reranker", "View", "load_reranker", "reorder"]

_MODULES = {
    "fast": "mmsearch.retrieval.rerankers.bundled",
    "hf": "mmsearch.retrieval.rerankers.huggingface",
    "cross-encoder": "mmsearch.retrieval.rerankers.cross_encoder",
}
"""Kind to module; each has `load(rest) -> Reranker`."""


def load_reranker(name: str | Path | Reranker = "fast") -> Reranker:
    """Return the reranker called `name`.

    One of the caller's own is returned as it is. `fast` comes with the package and reads what
    `compact` sees; `hf:NAME_OR_PATH` is a model for image-text matching of transformers (BLIP,
    ViLT), `cross-encoder:NAME_OR_PATH` a multimodal one of sentence-transformers. These two need
    the extra `models`.

    Raises:
        ModelError: there is no such reranker, or its files are incomplete or altered.
        MissingExtra: the model's library is not installed.
    """
    if isinstance(name, Reranker):
        return name
    kind, colon, rest = str(name).partition(":")
    if kind not in _MODULES or bool(colon) == (kind == "fast") or bool(colon) != bool(rest):
        raise ModelError(
            f"There is no reranker '{name}'. Use 'fast', 'hf:NAME_OR_PATH' (BLIP or ViLT for "
            "image-text matching) or 'cross-encoder:NAME_OR_PATH'."
        )
    reranker: Reranker = importlib.import_module(_MODULES[kind]).load(rest)
    return reranker
