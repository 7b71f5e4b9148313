"""Models of transformers with two towers: CLIP, SigLIP, SigLIP 2 (fixed resolution) and ALIGN.

Other families that `AutoModel` knows are taken where they have CLIP's parts and it can be shown
that these make up the model: see `huggingface_shared`.

Radford et al. 2021 (CLIP), Zhai et al. 2023 (SigLIP), Tschannen et al. 2025 (SigLIP 2),
Jia et al. 2021 (ALIGN).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from mmsearch.errors import MissingExtra
from mmsearch.retrieval.encoders.dual_encoder import Description, DualEncoder, Towers
from mmsearch.retrieval.encoders.huggingface_shared import (
    ImageTower,
    TextTower,
    check_padding,
    shared_towers,
)
from mmsearch.retrieval.encoders.sources import reading

try:
    from transformers import (
        AutoConfig,
        AutoModel,
        PreTrainedModel,
    )
    from transformers.utils import logging

    from mmsearch.retrieval.encoders.huggingface_transforms import (
        image_transform,
        read_tokenizer,
        text_transform,
    )
except ImportError as error:
    raise MissingExtra("transformers", "models") from error

__all__ = ["build", "from_json", "load", "read_weights", "to_json"]

ADVICE = (
    "Where the model hub cannot be reached, download the model elsewhere and give its folder: "
    "hf:PATH, with config.json, model.safetensors, preprocessor_config.json and tokenizer.json."
)


def load(rest: str, captions: Sequence[str] | None) -> DualEncoder:
    """Return the model of the source `hf:REST`; `captions` are not used."""
    del captions
    source = f"hf:{rest}"
    path = os.path.expanduser(rest)  # noqa: PTH111
    with reading(source, ADVICE):
        config = AutoConfig.from_pretrained(path)
        _known(config)
        model = read_weights(AutoModel, path, config)
        words = read_tokenizer(path, lower=config.model_type == "siglip")
        preprocess, mean, deviation = image_transform(path)
        texts = text_transform(config, words)
        towers = _towers(model)
        if config.model_type not in _FAMILIES:
            check_padding(towers, words.tokenizer, texts)
    bias = getattr(model, "logit_bias", None)
    return DualEncoder(
        towers,
        Description(
            name=source,
            architecture={"kind": "hf", "config": to_json(config)},
            preprocess=preprocess,
            mean=mean,
            deviation=deviation,
            texts=texts,
        ),
        words.tokenizer,
        log_scale=_log_scale(model),
        log_bias=None if bias is None else float(bias.detach().reshape(())),
    )


def build(architecture: dict[str, Any]) -> Towers:
    """Return towers with random weights; reads neither weights nor the network."""
    with reading("of this transformers architecture", "Run: pip install --upgrade transformers"):
        return _towers(AutoModel.from_config(from_json(architecture["config"])))


def to_json(config: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return a configuration with every default spelled out: defaults change between versions."""
    fields: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    for part in (fields, fields.get("text_config"), fields.get("vision_config")):
        if part is not None:
            # Where it lay is nobody's business, and weights are float32 here whatever they were.
            part.pop("_name_or_path", None)
            part["dtype"] = "float32"
    return fields


def from_json(fields: dict[str, Any]) -> Any:  # noqa: ANN401
    """Return the configuration whose JSON `fields` are."""
    fields = dict(fields)
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def _towers(model: PreTrainedModel) -> Towers:
    return _FAMILIES.get(model.config.model_type, shared_towers)(model.eval())


def _clip(model: Any) -> Towers:  # noqa: ANN401
    return Towers(
        ImageTower(model.vision_model),
        model.visual_projection,
        TextTower(model.text_model, "pooler"),
        model.text_projection,
        model.config.projection_dim,
    )


def _siglip(model: Any) -> Towers:  # noqa: ANN401
    # The attention that pools the patches is what this family has for a projection.
    vision, text = model.vision_model, model.text_model
    image_head, text_head = vision.head, text.head
    vision.use_head, vision.head, text.head = False, None, nn.Identity()
    return Towers(
        ImageTower(vision),
        image_head,
        TextTower(text, "unmasked"),
        text_head,
        model.config.vision_config.hidden_size,
    )


def _align(model: Any) -> Towers:  # noqa: ANN401
    model.text_model.pooler = None  # It is not used, and a weight without gradient confuses.
    return Towers(
        ImageTower(model.vision_model),
        nn.Identity(),
        TextTower(model.text_model, "first"),
        model.text_projection,
        model.config.projection_dim,
    )


_FAMILIES: dict[str, Callable[[Any], Towers]] = {
    "clip": _clip,
    "siglip": _siglip,
    "align": _align,
}


def _known(config: Any) -> None:  # noqa: ANN401
    """Refuse what is no dual encoder of pictures and texts, before its weights are read."""
    parts = getattr(config, "vision_config", None), getattr(config, "text_config", None)
    if config.model_type not in _FAMILIES and None in parts:
        raise ValueError(
            f"it is of the family {config.model_type!r}, which has no two towers; supported are "
            f"{', '.join(sorted(_FAMILIES))} (SigLIP 2 with a fixed resolution is 'siglip'), and "
            "what shares CLIP's parts: metaclip_2, chinese_clip, altclip …"
        )


def _log_scale(model: Any) -> float | None:  # noqa: ANN401
    if hasattr(model, "temperature"):
        return -math.log(float(model.temperature.detach()))
    if not hasattr(model, "logit_scale"):
        return None
    return float(model.logit_scale.detach().reshape(()))


def read_weights(
    auto: Any,  # noqa: ANN401
    path: str,
    config: Any,  # noqa: ANN401
    *,
    optional: str | None = None,
    names_only: bool = False,
) -> PreTrainedModel:
    """Return a model of transformers with all its weights, read from safetensors, in float32.

    Args:
        auto: the class that knows the classes, such as `AutoModel`.
        path: folder or hub repository.
        config: its configuration.
        optional: weights whose names begin so may be missing.
        names_only: look whether all are there; the model that is returned has no numbers.

    Raises:
        ValueError: weights are missing.
    """
    # Never a pickle; and never a model that is partly random because a weight was not there.
    bars, talk = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    # Its table of missing weights: what of them matters is said below.
    logging.set_verbosity_error()
    try:
        model, report = auto.from_pretrained(
            path,
            config=config,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float32,
            device_map="meta" if names_only else None,
        )
    finally:
        logging.set_verbosity(talk)
        if bars:
            logging.enable_progress_bar()
    missing = sorted(
        name for name in report["missing_keys"] if not (optional and name.startswith(optional))
    )
    if missing:
        raise ValueError(f"{len(missing)} weights are missing, among them {missing[0]}")
    loaded: PreTrainedModel = model
    return loaded
