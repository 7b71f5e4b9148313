"""Tiny random checkpoints in the folder formats of the model hub, made on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

TEXTS = [
    "a photo of a dog",
    "Red cat!",
    "two children play football in the rain and more and more and more and more words",
    "",
]

WORDS = [
    "a",
    "photo",
    "of",
    "dog",
    "cat",
    "red",
    "two",
    "children",
    "play",
    "football",
    "in",
    "the",
    "rain",
    "!",
]


def pictures(count: int = 3) -> list[Image.Image]:
    random = np.random.default_rng(0)
    shapes = [(60, 90), (64, 64), (200, 77), (43, 45)]
    # Not from black to white: bicubic overshoots, and what is cut off between its two passes
    # depends on which of them comes first, as versions of Pillow differ.
    return [
        Image.fromarray(random.integers(64, 192, (*shapes[i % 4], 3), dtype=np.uint8))
        for i in range(count)
    ]


def write_tokenizer(folder: Path, *, start: bool = True, length: int = 16):
    """Write a word-level tokenizer, `<pad>` 0, `<s>` 1, `</s>` 2, and return transformers' own."""
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = ["<pad>", "<s>", "</s>", "<unk>", *WORDS]
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if start else "$A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=length,
    )
    wrapped.save_pretrained(folder)
    return wrapped


_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}
_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 24,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def write_transformers(folder: Path, family: str):
    """Write a model of a family; return `(model, processor, tokenizer)`.

    Families: `clip`, `siglip`, `siglip2` (of one resolution), `align`; and those taken apart by
    what they share: `metaclip_2`, `chinese_clip`, `altclip`.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    folder.mkdir(parents=True)
    if family == "clip":
        config = transformers.CLIPConfig(
            vision_config=_VISION, text_config=_TEXT, projection_dim=24
        )
        model = transformers.CLIPModel(config)
        processor = transformers.CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        )
    elif family in {"metaclip_2", "chinese_clip", "altclip"}:
        name = {"metaclip_2": "MetaClip2", "chinese_clip": "ChineseCLIP", "altclip": "AltCLIP"}
        # Its positions begin after the padding's id, as in RoBERTa.
        of_altclip = {"project_dim": 32, "max_position_embeddings": 18}
        text = _TEXT | (of_altclip if family == "altclip" else {})
        config = getattr(transformers, f"{name[family]}Config")(
            vision_config=_VISION, text_config=text, projection_dim=24
        )
        model = getattr(transformers, f"{name[family]}Model")(config)
        # Where a projection starts at zero nothing can be told apart.
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
        processor = transformers.CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        )
    elif family.startswith("siglip"):
        config = transformers.SiglipConfig(vision_config=_VISION, text_config=_TEXT)
        model = transformers.SiglipModel(config)
        processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
        with torch.no_grad():
            model.logit_scale.fill_(2.5)
            model.logit_bias.fill_(-7.0)
    else:
        vision = {
            "image_size": 64,
            "hidden_dim": 64,
            "width_coefficient": 0.1,
            "depth_coefficient": 0.1,
        }
        config = transformers.AlignConfig(
            vision_config=vision, text_config=_TEXT, projection_dim=64
        )
        model = transformers.AlignModel(config)
        for parameter in model.vision_model.parameters():
            if parameter.ndim == 4:  # As they start, every picture ends as zeros.
                torch.nn.init.kaiming_normal_(parameter)
        processor = transformers.EfficientNetImageProcessor(
            size={"height": 80, "width": 80},
            crop_size={"height": 64, "width": 64},
            do_center_crop=True,
            rescale_factor=1 / 127.5,
            rescale_offset=True,
            include_top=False,
        )
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    if family == "siglip2":
        return model, processor, _write_gemma(folder)
    return model, processor, write_tokenizer(folder, start=family != "siglip")


def _write_gemma(folder: Path):
    """Write a tokenizer of SigLIP 2's class, of letters; as it is made it pads on the left."""
    import transformers

    letters = ["<pad>", "<eos>", "<bos>", "<unk>", "\u2581", *"abcdefghijklmnoprstuvwy"][:24]
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    tokenizer = transformers.Siglip2Tokenizer(vocab=vocabulary, merges=[], model_max_length=16)
    tokenizer.save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def write_bert(folder: Path) -> None:
    """Write a sentence encoder: a BERT and its tokenizer."""
    import torch
    import transformers

    torch.manual_seed(0)
    folder.mkdir(parents=True)
    fields = {name: value for name, value in _TEXT.items() if "token_id" not in name}
    model = transformers.BertModel(transformers.BertConfig(**fields), add_pooling_layer=False)
    model.eval().save_pretrained(folder)
    write_tokenizer(folder)


OPEN_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": 32,
        "layers": 2,
        "width": 64,
        "patch_size": 16,
        "head_width": 32,
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def write_open_clip(folder: Path, changes: dict | None = None, **preprocess):
    """Write a model of open_clip, as `local-dir:` wants it; return it, random."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    folder.mkdir(parents=True)
    config = OPEN_CLIP | (changes or {})
    plain = {key: value for key, value in config.items() if key != "custom_text"}
    kind = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    model = kind(**json.loads(json.dumps(plain))).eval()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    fields = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(fields))
    return model


MATCHING_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


def _write_processor(folder: Path, kind: str, **options):
    import transformers

    vocabulary = {word: number for number, word in enumerate(MATCHING_WORDS)}
    tokenizer = transformers.BertTokenizer(vocab=vocabulary, model_max_length=16)
    pictures = getattr(transformers, f"{kind}ImageProcessor")(**options)
    processor = getattr(transformers, f"{kind}Processor")(pictures, tokenizer)
    processor.save_pretrained(folder)
    return processor


def _blip():
    import transformers

    text = {key: value for key, value in _TEXT.items() if key != "projection_dim"}
    text |= {"encoder_hidden_size": 32, "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
    return transformers.BlipConfig(
        vision_config=_VISION, text_config=text, projection_dim=24, image_text_hidden_size=24
    )


def _telling(model, seed: int = 0):
    """Give a model weights with which its answers differ clearly."""
    import torch

    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def write_matching(folder: Path, family: str):
    """Write a model for image-text matching, `blip` or `vilt`; return `(model, processor)`."""
    import transformers

    folder.mkdir(parents=True)
    if family == "blip":
        model = transformers.BlipForImageTextRetrieval(_blip())
        processor = _write_processor(folder, "Blip", size={"height": 32, "width": 32})
    else:
        parts = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        config = transformers.ViltConfig(
            **{name: _TEXT[name] for name in parts},
            vocab_size=24,
            max_position_embeddings=16,
            image_size=64,
            patch_size=16,
        )
        model = transformers.ViltForImageAndTextRetrieval(config)
        processor = _write_processor(folder, "Vilt", size={"shortest_edge": 48}, size_divisor=16)
    _telling(model).save_pretrained(folder)
    return model, processor


def write_captioner(folder: Path, seed: int = 0):
    """Write a BLIP that writes captions; return `(model, processor)`."""
    import torch
    import transformers

    folder.mkdir(parents=True)
    model = transformers.BlipForConditionalGeneration(_blip())
    processor = _write_processor(folder, "Blip", size={"height": 32, "width": 32})
    _telling(model, seed)
    with torch.no_grad():
        # Words only, as many as there may be: no caption is empty.
        bias = model.text_decoder.cls.predictions.bias
        bias[:5] = bias[len(MATCHING_WORDS) :] = -50.0
    model.save_pretrained(folder)
    return model, processor


def write_cross_encoder(folder: Path) -> None:
    """Write a LLaVA that says yes or no, as sentence-transformers saves a cross-encoder."""
    import torch
    import transformers
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.cross_encoder.modules import LogitScore

    torch.manual_seed(0)
    whole = folder / "llava"
    whole.mkdir(parents=True)
    tokenizer = write_tokenizer(whole, length=64)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    text = _TEXT | {"num_key_value_heads": 2, "max_position_embeddings": 64}
    config = transformers.LlavaConfig(
        vision_config=_VISION | {"model_type": "clip_vision_model"},
        text_config=text | {"model_type": "llama"},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    _telling(transformers.LlavaForConditionalGeneration(config)).save_pretrained(whole)
    transformers.LlavaProcessor(
        transformers.CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        chat_template=(
            "{% for message in messages %}<s>{% for item in message['content'] %}"
            "{% if item['type'] == 'image' %}<image>{% else %}{{ item['text'] }}{% endif %}"
            "{% endfor %}</s>{% endfor %}"
        ),
        image_token="<image>",
        num_additional_image_tokens=1,
    ).save_pretrained(whole)
    yes, no = tokenizer.convert_tokens_to_ids(["dog", "cat"])
    parts = [Transformer(str(whole), transformer_task="any-to-any"), LogitScore(yes, no)]
    CrossEncoder(modules=parts, device="cpu").save_pretrained(str(folder / "saved"))
