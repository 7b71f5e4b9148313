"""Putting a model of torch into the user's cache as ONNX files, once it is known to agree."""

from __future__ import annotations

import dataclasses
import logging
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from mmsearch.errors import ModelError
from mmsearch.retrieval.encoders import exported, onnx_export
from mmsearch.retrieval.encoders.sources import local_path
from mmsearch.retrieval.schema import Quantize

if TYPE_CHECKING:
    from mmsearch.retrieval.encoders.dual_encoder import DualEncoder

__all__ = ["LEAST_COSINE", "export"]

logger = logging.getLogger(__name__)

LEAST_COSINE = 0.999
"""Between the vectors of an export and those of torch, over the samples."""


def export(
    model: DualEncoder, name: str, before: str | None, quantize: Quantize
) -> exported.Export:
    """Export a model into the user's cache.

    Args:
        model: on any device.
        name: of the export: the source, with `int8:` where that is meant.
        before: `source_state` from before the model was read.
        quantize: how the weights are stored.

    Raises:
        ModelError: its files do not answer as it does; that is remembered.
        OSError: the cache cannot be written to, or the model's files changed meanwhile.
    """
    logger.warning("Exporting %s to ONNX: once, so that it starts quickly from now on …", name)
    state = exported.source_state(name)
    if local_path(name) is not None and state != before:
        raise OSError(f"the files of {name} were altered while they were read")
    facts: dict[str, Any] = {
        "quantize": str(quantize),
        "parameters": {
            "image": _count(model.image_tower, model.image_head),
            "text": _count(model.text_tower, model.text_head),
        },
    }
    try:
        found = exported.store(
            name,
            state,
            lambda folder: {"cosine": _write(model, folder, quantize)},
            spec=dataclasses.asdict(model.spec(quantize)),
            **facts,
        )
    except ModelError as error:
        reason = str(error)
        with suppress(OSError):
            exported.store(name, state, lambda _: {"refused": reason}, **facts)
        raise
    if quantize is not Quantize.NONE:
        loss = found.facts["cosine"]
        logger.warning(
            "%s: least cosine to the whole model over samples %.4f (pictures), %.4f (texts)",
            name,
            loss["images"],
            loss["texts"],
        )
    return found


def _write(model: DualEncoder, folder: Path, quantize: Quantize) -> dict[str, float]:
    """Write the files and return how well they agree; raise `ModelError` where they do not."""
    try:
        onnx_export.write_encoder(model, folder, quantize)
        least = onnx_export.agreement(model, folder)
    except (OSError, ModelError):
        raise
    except Exception as error:  # The tracer raises whatever the model's own code raises.
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"It cannot be exported ({type(error).__name__}: {reason}).") from error
    if quantize is Quantize.NONE and least.least < LEAST_COSINE:
        raise ModelError(
            f"Its ONNX files answer otherwise than torch does (least cosine {least.least:.5f})."
        )
    return dataclasses.asdict(least)


def _count(*parts: nn.Module) -> int:
    return sum(parameter.numel() for part in parts for parameter in part.parameters())
