"""Models described by their parts: an image tower of timm and a text tower, with new heads.

In a name, `timm:IMAGE_MODEL+hf:TEXT_FOLDER` or `timm:IMAGE_MODEL+open_clip:TEXT_MODEL`, or in a
JSON file, where only `image` and `text` are needed:

    {"image": {"timm": "resnet18", "pretrained": false, "weights": "resnet18.safetensors"},
     "text": {"bert": {"layers": 4, "width": 256, "heads": 4, "vocabulary": "tokenizer.json"}},
     "dim": 256, "size": 224, "max_tokens": 64}

`text` may be `{"hf": PATH}` or `{"open_clip": NAME}` too. A `bert` without `vocabulary` gets one
from the captions, of `words` pieces. Paths are relative to the file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn

from mmsearch.errors import MissingExtra, ModelError
from mmsearch.retrieval.encoders.dual_encoder import Description, DualEncoder, Towers
from mmsearch.retrieval.encoders.heads import ResidualHead
from mmsearch.retrieval.encoders.sources import reading
from mmsearch.retrieval.encoders.text_tower import MAX_TOKENS, TextTower
from mmsearch.retrieval.encoders.tokens import TextPreprocess
from mmsearch.retrieval.encoders.vocabulary import train_tokenizer
from mmsearch.retrieval.preprocess import ImagePreprocess

try:
    import timm
except ImportError as error:
    raise MissingExtra("timm", "models") from error

__all__ = ["build", "load"]

_ADVICE = (
    "A description reads like timm:resnet18+hf:PATH, or is a JSON file, for instance "
    '{"image": {"timm": "resnet18"}, "text": {"bert": {"layers": 4, "width": 256, "heads": 4}}}. '
    "Where the model hub cannot be reached, give folders and files."
)

_HIDDEN = {"image": 640, "text": 512}
"""Width of the perceptron in each head."""

_FIELDS = {"image", "text", "dim", "size", "max_tokens"}


def load(rest: str, captions: Sequence[str] | None) -> DualEncoder:
    """Return the model that `timm:REST` or the JSON file `REST` describes.

    Args:
        rest: what follows `timm:`, or the path of a file.
        captions: what a vocabulary is made from, where the description names none.
    """
    path = Path(rest)
    from_file = path.suffix == ".json" and path.is_file()
    source = str(path) if from_file else f"timm:{rest}"
    with reading(source, _ADVICE):
        if from_file:
            fields, folder = json.loads(path.read_text(encoding="utf-8")), path.parent
        else:
            fields, folder = _from_name(rest), Path()
        _check(fields, _FIELDS, {"image", "text"})
        text = _text(fields["text"], folder, captions, int(fields.get("max_tokens", MAX_TOKENS)))
        image, config, size = _image(fields["image"], folder, fields.get("size"))
        architecture: dict[str, Any] = {
            "kind": "described",
            "image": {"timm": fields["image"]["timm"], "size": size},
            "text": text.architecture,
            "dim": int(fields.get("dim", 256)),
        }
        towers = _joined(image, text.tower, text.width, architecture["dim"])
    return DualEncoder(
        towers,
        Description(
            name=path.stem if from_file else source,
            architecture=architecture,
            preprocess=ImagePreprocess(size=size),
            mean=tuple(255.0 * value for value in config["mean"]),
            deviation=tuple(255.0 * value for value in config["std"]),
            texts=text.transform,
        ),
        text.tokenizer,
        untrained=True,
    )


def build(architecture: dict[str, Any]) -> Towers:
    """Return towers with random weights; reads neither weights nor the network."""
    with reading("of this described architecture", "Run: pip install --upgrade timm transformers"):
        image = _timm(
            architecture["image"]["timm"].partition(".")[0], architecture["image"]["size"]
        )
        tower, width = _built_text(architecture["text"])
        return _joined(image, tower, width, architecture["dim"])


@dataclass(frozen=True, slots=True)
class _Text:
    """A text tower, how to build it again, and how texts get to it."""

    tower: nn.Module
    width: int
    architecture: dict[str, Any]
    tokenizer: Tokenizer
    transform: TextPreprocess


def _from_name(rest: str) -> dict[str, Any]:
    image, plus, text = rest.partition("+")
    kind, _, name = text.partition(":")
    if not plus or kind not in {"hf", "open_clip"} or not name:
        raise ValueError("after the image model, +hf:PATH or +open_clip:MODEL is expected")
    # A name with a tag, such as resnet18.a1_in1k, means those weights.
    return {"image": {"timm": image, "pretrained": "." in image}, "text": {kind: name}}


def _check(fields: dict[str, Any], known: set[str], needed: set[str]) -> None:
    unknown, missing = sorted(fields.keys() - known), sorted(needed - fields.keys())
    if unknown or missing:
        raise ValueError(
            f"unknown: {', '.join(unknown) or 'nothing'}; "
            f"missing: {', '.join(missing) or 'nothing'}"
        )


def _image(
    fields: dict[str, Any], folder: Path, size: int | None
) -> tuple[nn.Module, dict[str, Any], int]:
    _check(fields, {"timm", "pretrained", "weights"}, {"timm"})
    name, pretrained = str(fields["timm"]), bool(fields.get("pretrained", False))
    known = timm.get_pretrained_cfg(name)
    config: dict[str, Any] = {} if known is None else known.to_dict()
    size = int(size or config.get("input_size", (3, 224, 224))[-1])
    tower = _timm(name if pretrained else name.partition(".")[0], size, pretrained=pretrained)
    if "weights" in fields:
        path = folder / str(fields["weights"])
        missing, _ = tower.load_state_dict(load_file(path), strict=False)
        if missing:
            raise ValueError(f"{path} lacks {len(missing)} weights, among them {missing[0]}")
    return tower, {"mean": (0.5,) * 3, "std": (0.5,) * 3} | config, size


def _timm(name: str, size: int, *, pretrained: bool = False) -> nn.Module:
    fixed = timm.get_pretrained_cfg_value(name, "fixed_input_size")
    options: dict[str, Any] = {"img_size": size} if fixed else {}
    tower: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    return tower


def _text(
    fields: dict[str, Any], folder: Path, captions: Sequence[str] | None, max_tokens: int
) -> _Text:
    _check(fields, {"hf", "open_clip", "bert"}, set())
    if len(fields) != 1:
        raise ValueError("text is one of hf, open_clip and bert")
    if "hf" in fields:
        return _hf(str(fields["hf"]), folder, max_tokens)
    if "open_clip" in fields:
        return _open_clip(str(fields["open_clip"]))
    return _bert(dict(fields["bert"]), folder, captions, max_tokens)


def _hf(name: str, folder: Path, max_tokens: int) -> _Text:
    from transformers import AutoConfig, AutoModel

    from mmsearch.retrieval.encoders import huggingface
    from mmsearch.retrieval.encoders.huggingface_transforms import read_tokenizer

    path = str(folder / name) if (folder / name).is_dir() else name
    config = AutoConfig.from_pretrained(path)
    model = huggingface.read_weights(AutoModel, path, config, optional="pooler.")
    tokenizer, pad_id, *_ = read_tokenizer(path)
    architecture = {"hf": huggingface.to_json(config)}
    length = min(max_tokens, int(getattr(config, "max_position_embeddings", max_tokens)))
    return _Text(
        _pooled(model),
        int(config.hidden_size),
        architecture,
        tokenizer,
        TextPreprocess(length, pad_id=pad_id),
    )


def _open_clip(name: str) -> _Text:
    from mmsearch.retrieval.encoders import open_clip

    model = open_clip.load(name, None)
    whole = model.architecture["model"]
    config = {key: whole[key] for key in ("embed_dim", "text_cfg", "quick_gelu") if key in whole}
    width = next((layer.shape[-1] for layer in model.text_head.parameters()), model.dim)
    return _Text(
        model.text_tower,
        width,
        {"open_clip": config, "width": width},
        model.tokenizer,
        model.description.texts,
    )


def _bert(
    fields: dict[str, Any], folder: Path, captions: Sequence[str] | None, max_tokens: int
) -> _Text:
    _check(fields, {"layers", "width", "heads", "inner", "vocabulary", "words"}, set())
    if "vocabulary" in fields:
        tokenizer = Tokenizer.from_file(str(folder / str(fields["vocabulary"])))
    elif captions:
        tokenizer = train_tokenizer(captions, int(fields.get("words", 8000)))
    else:
        raise ModelError(
            "The description leaves the vocabulary open, and there are no captions to make it "
            'from. Name the file of one: "vocabulary": "tokenizer.json"'
        )
    width = int(fields.get("width", 256))
    config = {
        "vocabulary": tokenizer.get_vocab_size(),
        "width": width,
        "heads": int(fields.get("heads", max(1, width // 64))),
        "inner": int(fields.get("inner", 4 * width)),
        "layers": int(fields.get("layers", 4)),
    }
    pad_id = tokenizer.token_to_id("[PAD]") or 0
    return _Text(
        *_built_text({"bert": config}),
        {"bert": config},
        tokenizer,
        TextPreprocess(min(max_tokens, MAX_TOKENS), pad_id=pad_id),
    )


def _built_text(architecture: dict[str, Any]) -> tuple[nn.Module, int]:
    if "bert" in architecture:
        config = architecture["bert"]
        tower = TextTower(**config, epsilon=1e-12)
        tower.reset()
        return tower, int(config["width"])
    if "hf" in architecture:
        from transformers import AutoModel

        from mmsearch.retrieval.encoders.huggingface import from_json

        config = from_json(architecture["hf"])
        return _pooled(AutoModel.from_config(config)), int(config.hidden_size)
    from mmsearch.retrieval.encoders.open_clip import build_text

    return build_text(architecture["open_clip"]), int(architecture["width"])


def _pooled(model: Any) -> nn.Module:  # noqa: ANN401
    from mmsearch.retrieval.encoders.huggingface_shared import TextTower as HfTextTower

    if hasattr(model, "pooler"):
        model.pooler = None  # It is not used, and a weight without gradient confuses.
    return HfTextTower(model, "mean")


def _joined(image: Any, text: nn.Module, text_width: int, dim: int) -> Towers:  # noqa: ANN401
    # Some towers of timm have a layer more between their last map and the classifier.
    width = int(getattr(image, "head_hidden_size", None) or image.num_features)
    return Towers(
        image,
        ResidualHead.plain(width, dim, _HIDDEN["image"]),
        text,
        ResidualHead.plain(text_width, dim, _HIDDEN["text"]),
        dim,
    )
