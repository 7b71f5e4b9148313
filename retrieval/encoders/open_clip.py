"""Models of open_clip: its own names, its hub repositories and its local folders.

https://github.com/mlfoundations/open_clip
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from mmsearch.errors import MissingExtra, ModelError
from mmsearch.retrieval.encoders.clip_tokenizer import clip_tokenizer
from mmsearch.retrieval.encoders.dual_encoder import Description, DualEncoder, Towers
from mmsearch.retrieval.encoders.sources import reading
from mmsearch.retrieval.encoders.tokens import Clean, TextPreprocess
from mmsearch.retrieval.preprocess import ImagePreprocess, Resize

try:
    import open_clip
    from open_clip.model import CustomTextCLIP
    from open_clip.pretrained import download_pretrained_from_hf
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict
except ImportError as error:
    raise MissingExtra("open_clip_torch", "models") from error

__all__ = ["build", "build_text", "load", "text_transform"]

_ADVICE = (
    "Where the model hub cannot be reached, download the model elsewhere and give its folder: "
    "open_clip:local-dir:PATH, with open_clip_config.json and the weights as .safetensors."
)

_RESIZE = {"shortest": Resize.CROP, "longest": Resize.PAD, "squash": Resize.STRETCH}


def load(rest: str, captions: Sequence[str] | None) -> DualEncoder:
    """Return the model of the source `open_clip:REST`; `captions` are not used."""
    del captions
    source = f"open_clip:{rest}"
    if rest.startswith("local-dir:~"):
        rest = "local-dir:" + str(Path(rest.removeprefix("local-dir:")).expanduser())
    name, tag = _split(rest)
    with reading(source, _ADVICE):
        config = open_clip.get_model_config(name)
        weights, preprocess_fields, quick_gelu = _files(name, tag)
    if config is None:
        close = difflib.get_close_matches(name, open_clip.list_models(), 3)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise ModelError(
            f"open_clip has no model '{name}'.{hint} All names: "
            'python -c "import open_clip; print(open_clip.list_models())"'
        )
    if "multimodal_cfg" in config:
        raise ModelError(f"{source} is a CoCa, which also writes captions; choose a CLIP instead.")
    config.pop("custom_text", None)
    if quick_gelu:
        # The weights were trained with it, whatever the name's configuration says.
        config["quick_gelu"] = True
    with reading(source, _ADVICE):
        tokenizer, texts = text_transform(name, config["text_cfg"])
        architecture = {"kind": "open_clip", "model": _self_contained(config)}
        model = _model(architecture)
        if weights is not None:
            # Never a full pickle: safetensors, or tensors alone.
            open_clip.load_checkpoint(model, str(weights), strict=True, weights_only=True)
        fields = merge_preprocess_dict(PreprocessCfg(), preprocess_fields)
        fields["size"] = model.visual.image_size
        preprocess = _preprocess(fields)
    bias = getattr(model, "logit_bias", None)
    return DualEncoder(
        _towers(model, config["embed_dim"]),
        Description(
            name=source,
            architecture=architecture,
            preprocess=preprocess,
            mean=tuple(255.0 * value for value in fields["mean"]),
            deviation=tuple(255.0 * value for value in fields["std"]),
            texts=texts,
        ),
        tokenizer,
        log_scale=float(model.logit_scale.detach().reshape(())),
        log_bias=None if bias is None else float(bias.detach().reshape(())),
        untrained=weights is None,
    )


def build(architecture: dict[str, Any]) -> Towers:
    """Return towers with random weights; reads neither weights nor the network."""
    with reading("of this open_clip architecture", "Run: pip install --upgrade open_clip_torch"):
        return _towers(_model(architecture), architecture["model"]["embed_dim"])


def build_text(config: dict[str, Any]) -> nn.Module:
    """Return the text tower of an open_clip configuration without its `vision_cfg`."""
    # The least image tower there is; it is dropped.
    vision = {"layers": 1, "width": 64, "image_size": 32, "patch_size": 32}
    return _text(_model({"model": config | {"vision_cfg": vision}}).text)[0]


def text_transform(name: str, config: dict[str, Any]) -> tuple[Any, TextPreprocess]:
    """Return the tokenizer and text transform that open_clip's own `get_tokenizer` amounts to."""
    length = int(config.get("context_length", 77))
    options = config.get("tokenizer_kwargs") or {}
    hub = config.get("hf_tokenizer_name")
    if hub:
        from mmsearch.retrieval.encoders.huggingface_transforms import read_tokenizer

        clean = Clean(options.get("clean", "whitespace"))
        if options.get("strip_sep_token") or config.get("tokenizer_mode"):
            raise ValueError("its tokenizer changes ids in ways that tokenizer.json cannot say")
        local = name.removeprefix("local-dir:") if name.startswith("local-dir:") else hub
        tokenizer, pad_id, *_ = read_tokenizer(local)
        return tokenizer, TextPreprocess(length, pad_to=length, pad_id=pad_id, clean=clean)
    if options.get("reduction_mask"):
        raise ValueError("its tokenizer drops words at random")
    clean = Clean(options.get("clean", "lower"))
    return clip_tokenizer(), TextPreprocess(length, pad_to=length, clean=clean)


class _TextTower(nn.Module):
    """A text tower that tells padding by its id: the mask is not used."""

    def __init__(self, text: nn.Module) -> None:
        super().__init__()
        self.text = text

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        del attention_mask
        features: torch.Tensor = self.text(input_ids)
        return features


def _split(rest: str) -> tuple[str, str | None]:
    if rest.startswith(("local-dir:", "hf-hub:")):
        return rest, None
    name, _, tag = rest.partition("/")
    return name, tag or None


def _files(name: str, tag: str | None) -> tuple[Path | None, dict[str, Any], bool]:
    """Return the weights' file, what is known of the image transform, and QuickGELU or not."""
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:"))
        fields = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
        found = sorted(folder.glob("*.safetensors"), key=lambda file: "open_clip" not in file.name)
        if not found:
            raise FileNotFoundError(f"{folder} holds no .safetensors file")
        return found[0], fields.get("preprocess_cfg", {}), False
    if name.startswith("hf-hub:"):
        hub = name.removeprefix("hf-hub:")
        file = download_pretrained_from_hf(hub, filename="open_clip_config.json")
        fields = json.loads(Path(file).read_text(encoding="utf-8"))
        weights = download_pretrained_from_hf(hub)
        return Path(weights), fields.get("preprocess_cfg", {}), False
    if tag is None:
        return None, {}, False
    if Path(tag).is_file():
        return Path(tag), {}, False
    known = open_clip.get_pretrained_cfg(name, tag)
    if not known:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise ValueError(f"{tag} is no file, and no weights of {name}; those are: {tags}")
    return (
        Path(open_clip.download_pretrained(known)),
        known,
        bool(known.get("quick_gelu")),
    )


def _self_contained(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with that of a Hugging Face text tower in it, if it has one."""
    config = deepcopy(config)
    config["vision_cfg"]["timm_model_pretrained"] = False
    text = config["text_cfg"]
    text["hf_model_pretrained"] = False
    if text.get("hf_model_name"):
        from transformers import AutoConfig

        text["hf_config"] = AutoConfig.from_pretrained(text["hf_model_name"]).to_dict()
    return config


def _model(architecture: dict[str, Any]) -> CustomTextCLIP:
    config = deepcopy(architecture["model"])
    hf_config = config["text_cfg"].pop("hf_config", None)
    with TemporaryDirectory() as folder:
        if hf_config is not None:
            # open_clip reads the tower's configuration from a folder or the hub, only.
            (Path(folder) / "config.json").write_text(json.dumps(hf_config), encoding="utf-8")
            config["text_cfg"]["hf_model_name"] = folder
        return CustomTextCLIP(**config).eval()


def _towers(model: CustomTextCLIP, dim: int) -> Towers:
    image, image_head = _image(model.visual)
    text, text_head = _text(model.text)
    return Towers(image, image_head, text, text_head, dim)


def _image(visual: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Take the projection out of an image tower, and return both."""
    if isinstance(getattr(visual, "proj", None), nn.Parameter):
        return visual, _projection(visual, "proj")
    for name in ("head", "attnpool"):  # of timm's models, and of the ResNets of CLIP
        head = getattr(visual, name, None)
        if isinstance(head, nn.Module):
            setattr(visual, name, nn.Identity())
            return visual, head
    return visual, nn.Identity()


def _text(text: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Take the projection out of a text tower, and return both."""
    for name in ("text_projection", "proj"):
        head = getattr(text, name, None)
        if isinstance(head, nn.Parameter):
            return _TextTower(text), _projection(text, name)
        if isinstance(head, nn.Module):
            # Towers of open_clip skip a projection that is None, those of Hugging Face do not.
            setattr(text, name, None if name == "text_projection" else nn.Identity())
            return _TextTower(text), head
    return _TextTower(text), nn.Identity()


def _projection(tower: nn.Module, name: str) -> nn.Linear:
    """Turn a tower's matrix `name`, float[width, dim], into a linear layer, and drop it there."""
    matrix = getattr(tower, name).detach()
    head = nn.Linear(matrix.shape[0], matrix.shape[1], bias=False)
    with torch.no_grad():
        head.weight.copy_(matrix.T)
    setattr(tower, name, None)
    return head


def _preprocess(fields: dict[str, Any]) -> ImagePreprocess:
    size = fields["size"]
    height, width = size if isinstance(size, tuple | list) else (size, size)
    if height != width:
        raise ValueError(f"its pictures are {width} by {height}; only squares are supported")
    # The one interpolation besides bicubic that open_clip knows; `random` is bicubic here too.
    interpolation = "bilinear" if fields["interpolation"] == "bilinear" else "bicubic"
    return ImagePreprocess(
        size=int(height),
        resize=_RESIZE[fields["resize_mode"]],
        interpolation=interpolation,
        reducing_gap=None,
        fill=int(fields["fill_color"]),
    )
