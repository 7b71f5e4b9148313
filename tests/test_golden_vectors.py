"""Vectors equal those of the libraries' own pipelines: their processor, then their model.

From files on disk to vectors, through torch and through the export in ONNX.
"""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
transformers = pytest.importorskip("transformers")
open_clip = pytest.importorskip("open_clip")

from torch import nn  # noqa: E402

from mmsearch.errors import ModelError  # noqa: E402
from mmsearch.retrieval.encoders import load_encoder  # noqa: E402
from mmsearch.retrieval.encoders.dual_encoder import Towers  # noqa: E402
from mmsearch.retrieval.encoders.onnx import OnnxEncoder  # noqa: E402
from mmsearch.retrieval.encoders.samples import sample_pictures  # noqa: E402
from mmsearch.retrieval.encoders.sources import load_dual_encoder  # noqa: E402
from mmsearch.retrieval.encoders.torch_encoder import TorchEncoder  # noqa: E402
from tests import checkpoints  # noqa: E402

# The model libraries' own, and the tracer's farewell.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)

FAMILIES = ["clip", "siglip", "siglip2", "align", "metaclip_2", "chinese_clip", "altclip"]

GOLDEN = 1e-4

TEXTS = [
    "a photo of a dog",
    "A PHOTO of a Dog!",
    "",
    "  two   children\tplay ",
    "the rain in the rain " * 40,
    "caf\u00e9 na\u00efve \u65e5\u672c",
    "red",
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Pictures of several sizes, shapes, modes and formats, as files."""
    folder = tmp_path_factory.mktemp("pictures")
    scenes = sample_pictures()
    saved = {
        "large.png": scenes[5],
        "panorama.png": scenes[3],
        "small.jpg": scenes[4].resize((45, 61)),
        "tiny.png": scenes[6].resize((3, 2)),
        "exact.png": scenes[6].resize((32, 32)),
        "grey.png": scenes[0].convert("L"),
        "palette.png": scenes[1].convert("P"),
        "bits.png": scenes[2].convert("1"),
        "cmyk.tif": scenes[0].convert("CMYK"),
        "opaque.png": scenes[2].convert("RGBA"),
        "lossless.webp": scenes[4],
    }
    for name, image in saved.items():
        image.save(folder / name, **({"lossless": True} if name.endswith("webp") else {}))
    return [folder / name for name in saved]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Return a function from a source to its encoder in torch and its export, made once."""
    cache, kept = tmp_path_factory.mktemp("cache"), {}

    def load(source):
        if source not in kept:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("MMSEARCH_CACHE", str(cache))
                exported = load_encoder(source)
            assert isinstance(exported, OnnxEncoder)
            model = load_dual_encoder(source)
            kept[source] = [TorchEncoder(model, location=source, device="cpu"), exported]
        return kept[source]

    return load


def rgb(files):
    return [Image.open(file).convert("RGB") for file in files]


def processor_of(folder, backend):
    """Return transformers' own image processor on Pillow or on tensors."""
    if int(transformers.__version__.partition(".")[0]) < 5:
        return transformers.AutoImageProcessor.from_pretrained(folder, use_fast=backend != "pil")
    return transformers.AutoImageProcessor.from_pretrained(folder, backend=backend)


def unit(found):
    found = getattr(found, "pooler_output", found)
    return torch.nn.functional.normalize(found, dim=-1).numpy()


@torch.inference_mode()
def pictures_of_transformers(folder, files, backend="pil"):
    model = transformers.AutoModel.from_pretrained(folder).eval()
    values = processor_of(folder, backend)(images=rgb(files), return_tensors="pt")
    return unit(model.get_image_features(**values))


@torch.inference_mode()
def texts_of_transformers(folder, family):
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    # What the model cards of SigLIP and SigLIP 2 say, and of all others.
    padding = "max_length" if family.startswith("siglip") else True
    fields = tokenizer(TEXTS, padding=padding, truncation=True, max_length=16, return_tensors="pt")
    if family.startswith("siglip"):
        fields = {"input_ids": fields["input_ids"]}
    fields.pop("token_type_ids", None)
    return unit(model.get_text_features(**fields))


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers(family, files, both, tmp_path):
    checkpoints.write_transformers(tmp_path / family, family)
    folder = tmp_path / family
    pictures, texts = (
        pictures_of_transformers(folder, files),
        texts_of_transformers(folder, family),
    )
    for encoder in both(f"hf:{folder}"):
        np.testing.assert_allclose(encoder.encode_images(files), pictures, atol=GOLDEN, rtol=0)
        np.testing.assert_allclose(encoder.encode_texts(TEXTS), texts, atol=GOLDEN, rtol=0)
        # Nor does company change an answer.
        alone = np.concatenate([encoder.encode_texts([text]) for text in TEXTS])
        np.testing.assert_allclose(alone, texts, atol=GOLDEN, rtol=0)
    # They are told apart at all.
    assert np.ptp(pictures, axis=0).max() > 20 * GOLDEN
    assert np.ptp(texts, axis=0).max() > 20 * GOLDEN


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_transformers_on_tensors_differ_by_the_rounding_of_pixels(family, files, both, tmp_path):
    """Its other backend resizes tensors, and is off by a grey level here and there."""
    folder = tmp_path / family
    checkpoints.write_transformers(folder, family)
    theirs = pictures_of_transformers(folder, files, "torchvision")
    ours = both(f"hf:{folder}")[0].encode_images(files)
    assert (ours * theirs).sum(axis=1).min() > 0.9999


@pytest.mark.parametrize(
    ("name", "changes", "preprocess"),
    [
        ("plain", {}, {}),
        ("siglip-like", {"init_logit_bias": -10.0}, {"resize_mode": "squash", "mean": [0.5] * 3}),
        ("padded", {"quick_gelu": True}, {"resize_mode": "longest", "interpolation": "bilinear"}),
    ],
)
@torch.inference_mode()
def test_open_clip(name, changes, preprocess, files, both, tmp_path):
    folder = tmp_path / name
    checkpoints.write_open_clip(folder, changes, **preprocess)
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    # In RGB: left to itself its transform resizes the numbers of a palette's colours.
    values = torch.stack([transform(image) for image in rgb(files)])
    pictures = model.encode_image(values, normalize=True).numpy()
    texts = model.encode_text(tokenizer(TEXTS), normalize=True).numpy()
    for encoder in both(f"open_clip:local-dir:{folder}"):
        np.testing.assert_allclose(encoder.encode_images(files), pictures, atol=GOLDEN, rtol=0)
        np.testing.assert_allclose(encoder.encode_texts(TEXTS), texts, atol=GOLDEN, rtol=0)


@torch.inference_mode()
def test_open_clip_from_the_hub(files, tmp_path, monkeypatch):
    """The hub's own cache, as a download leaves it; nothing is asked of the network."""
    from huggingface_hub import constants

    repository = tmp_path / "hub" / "models--someone--tiny"
    snapshot = repository / "snapshots" / "0123456789012345678901234567890123456789"
    snapshot.parent.mkdir(parents=True)
    theirs = checkpoints.write_open_clip(snapshot, mean=[0.4, 0.5, 0.6])
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(constants, name, str(tmp_path / "hub"))
        monkeypatch.setenv(name, str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("MMSEARCH_CACHE", str(tmp_path / "cache"))
    model, transform = open_clip.create_model_from_pretrained("hf-hub:someone/tiny")
    assert torch.equal(model.visual.conv1.weight, theirs.visual.conv1.weight)
    values = torch.stack([transform(image) for image in rgb(files)])
    texts = model.encode_text(open_clip.get_tokenizer("hf-hub:someone/tiny")(TEXTS), normalize=True)
    encoder = load_encoder("open_clip:hf-hub:someone/tiny")
    assert isinstance(encoder, OnnxEncoder)
    np.testing.assert_allclose(
        encoder.encode_images(files), model.encode_image(values, normalize=True), atol=GOLDEN
    )
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), texts, atol=GOLDEN)
    # Its revision is what the export is for.
    (export,) = (tmp_path / "cache" / "onnx").glob("*/export.json")
    assert snapshot.name in export.read_text()


def test_texts_that_change_with_their_padding_are_refused(tmp_path):
    from mmsearch.retrieval.encoders.huggingface_shared import check_padding
    from mmsearch.retrieval.encoders.tokens import TextPreprocess

    for family in ("clip", "siglip"):
        checkpoints.write_transformers(tmp_path / family, family)
    listens, reads_padding = (
        load_dual_encoder(f"hf:{tmp_path / family}") for family in ("clip", "siglip")
    )

    def check(model, longest=16):
        towers = Towers(nn.Identity(), nn.Identity(), model.text_tower, model.text_head, model.dim)
        check_padding(towers, model.tokenizer, TextPreprocess(longest))

    check(listens)
    with pytest.raises(ValueError, match="change with their padding"):
        check(reads_padding)
    with pytest.raises(ValueError, match="cannot read texts of 40 tokens"):
        check(listens, 40)


def test_pictures_of_no_fixed_size_are_refused(tmp_path):
    """SigLIP 2 NaFlex, whose pictures are cut to patches of any number."""
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "num_patches": 4, "patch_size": 16}
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "vocab_size": 24, "max_position_embeddings": 16}
    config = transformers.Siglip2Config(vision_config=vision, text_config=text)
    transformers.Siglip2Model(config).save_pretrained(tmp_path)
    transformers.Siglip2ImageProcessor(patch_size=16).save_pretrained(tmp_path)
    checkpoints.write_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="NaFlex"):
        load_dual_encoder(f"hf:{tmp_path}")


def test_what_has_no_two_towers_is_refused(tmp_path):
    checkpoints.write_bert(tmp_path / "bert")
    with pytest.raises(ModelError, match="no two towers"):
        load_dual_encoder(f"hf:{tmp_path / 'bert'}")
