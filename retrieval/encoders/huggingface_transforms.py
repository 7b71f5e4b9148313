"""How a model of transformers wants its pictures and texts prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from tokenizers import Tokenizer, normalizers
from transformers import AutoImageProcessor, AutoTokenizer

from mmsearch.retrieval.encoders.tokens import TextPreprocess
from mmsearch.retrieval.preprocess import ImagePreprocess, Resize

__all__ = ["Words", "image_transform", "read_tokenizer", "text_transform"]


class Words(NamedTuple):
    """A tokenizer, and what its files say besides: padding, and the longest text in tokens."""

    tokenizer: Tokenizer
    pad_id: int
    pad_left: bool
    longest: int


def read_tokenizer(path: str | Path, *, lower: bool = False) -> Words:
    """Return the tokenizer of a folder or hub repository.

    Args:
        path: the folder, or the repository's name.
        lower: SigLIP 2 was trained on lower case, but the Gemma tokenizer it uses keeps capitals:
            add the step to tokenizers that are Gemma's.

    Raises:
        ValueError: it cannot be written as `tokenizer.json`.
    """
    wrapped = AutoTokenizer.from_pretrained(path)
    if not getattr(wrapped, "is_fast", False):
        raise ValueError(
            f"its tokenizer, {type(wrapped).__name__}, has no tokenizer.json; save it as one"
        )
    tokenizer = Tokenizer.from_str(wrapped.backend_tokenizer.to_str())
    if lower and "gemma" in type(wrapped).__name__.lower():
        old = tokenizer.normalizer
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Lowercase(), *([] if old is None else [old])]
        )
    return Words(
        tokenizer,
        int(wrapped.pad_token_id or 0),
        wrapped.padding_side == "left",
        int(wrapped.model_max_length),
    )


def text_transform(config: Any, words: Words) -> TextPreprocess:  # noqa: ANN401
    """Return the text transform that goes with a configuration and a tokenizer."""
    length = int(config.text_config.max_position_embeddings)
    if config.model_type == "siglip":
        return TextPreprocess(length, pad_to=length, pad_id=words.pad_id, pad_left=words.pad_left)
    if config.model_type == "align":
        length = min(length, 64)  # As its processor has it; the model was trained no longer.
    elif config.model_type != "clip":
        if words.pad_left:
            raise ValueError("its tokenizer pads on the left, which moves the words' positions")
        # Positions of some text towers begin after the padding's id.
        length = min(length, words.longest)
    return TextPreprocess(length, pad_id=words.pad_id)


def image_transform(path: str) -> tuple[ImagePreprocess, tuple[float, ...], tuple[float, ...]]:
    """Return the image transform, and the mean and deviation on the scale of bytes."""
    processor = AutoImageProcessor.from_pretrained(path)
    if not getattr(processor, "size", None):
        raise ValueError("its pictures are not brought to one size (SigLIP 2 NaFlex is not)")
    size = {name: value for name, value in dict(processor.size).items() if value}
    crops = getattr(processor, "do_center_crop", False)
    crop = getattr(processor, "crop_size", None) if crops else None
    crop_size = None if crop is None else _side(dict(crop))
    shortest = size.get("shortest_edge")
    target = int(shortest) if shortest else _side(size)
    if not processor.do_resize or (shortest and not crop_size):
        raise ValueError("its pictures are not brought to one size")
    preprocess = ImagePreprocess(
        size=crop_size or target,
        resize=Resize.CROP if shortest else Resize.STRETCH,
        interpolation=Image.Resampling(int(processor.resample)).name.lower(),
        resize_to=None if crop_size in (None, target) else target,
        reducing_gap=None,
        floor=crop_size is not None,
    )
    # value = byte * factor - offset, then (value - mean) / deviation, then / deviation again.
    factor = float(processor.rescale_factor) if processor.do_rescale else 1.0
    offset = 1.0 if getattr(processor, "rescale_offset", False) else 0.0
    plain = not processor.do_normalize
    means = [0.0] * 3 if plain else list(processor.image_mean)
    deviations = [1.0] * 3 if plain else list(processor.image_std)
    again = deviations if getattr(processor, "include_top", False) else [1.0] * 3
    return (
        preprocess,
        tuple((mean + offset) / factor for mean in means),
        tuple(one * two / factor for one, two in zip(deviations, again, strict=True)),
    )


def _side(size: dict[str, Any]) -> int:
    if size.get("height") != size.get("width") or not size.get("height"):
        raise ValueError(f"its pictures have the size {size}; only squares are supported")
    return int(size["height"])
