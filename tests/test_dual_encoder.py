from __future__ import annotations

import json
import logging
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from mmsearch.errors import ModelError  # noqa: E402
from mmsearch.retrieval.encoders import BUNDLED, dual_encoder, load_encoder  # noqa: E402
from mmsearch.retrieval.encoders.sources import (  # noqa: E402
    absolute,
    build_towers,
    load_dual_encoder,
)
from mmsearch.retrieval.encoders.tokens import Clean, TextPreprocess  # noqa: E402
from tests import checkpoints  # noqa: E402
from tests.checkpoints import TEXTS, pictures  # noqa: E402

# The model libraries' own; none of them is about this project's code.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)

FAMILIES = ["clip", "siglip", "align"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a function that writes a checkpoint once: `made(name, writer, …)`."""
    root, kept = tmp_path_factory.mktemp("checkpoints"), {}

    def make(name, write, *arguments, **options):
        if name not in kept:
            kept[name] = (root / name, write(root / name, *arguments, **options))
        return kept[name]

    return make


def pixels_of(model, images):
    return torch.from_numpy(np.stack([model.preprocess(image) for image in images]))


def unit(vectors):
    return torch.nn.functional.normalize(vectors, dim=-1)


def features(found):
    """Return what transformers found: a value of its own since version 5, a tensor before."""
    return getattr(found, "pooler_output", found)


def transformers_model(made, family):
    pytest.importorskip("transformers")
    folder, (model, processor, tokenizer) = made(family, checkpoints.write_transformers, family)
    return folder, model, processor, tokenizer


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_transformers_models_answer_as_their_library_does(made, family):
    folder, theirs, processor, tokenizer = transformers_model(made, family)
    ours = load_dual_encoder(f"hf:{folder}")
    images = pictures()
    values = processor(images=images, return_tensors="pt")["pixel_values"]
    pixels = pixels_of(ours, images)
    scaled = (pixels.permute(0, 3, 1, 2) - ours.image_mean) / ours.image_deviation
    # One grey level: resizing rounds differently here and there.
    level = (1.0 / ours.image_deviation).max() * 1.01
    assert (scaled - values).abs().max() <= level
    expected = unit(features(theirs.get_image_features(pixel_values=scaled)))
    torch.testing.assert_close(ours.encode_images(pixels), expected, atol=1e-5, rtol=0)

    padding = "max_length" if family == "siglip" else True
    fields = tokenizer(TEXTS, padding=padding, truncation=True, max_length=16, return_tensors="pt")
    ids, mask = ours.tokenize(TEXTS)
    assert torch.equal(ids, fields["input_ids"])
    taken = {"input_ids": ids}
    if family != "siglip":
        taken["attention_mask"] = fields["attention_mask"]
    expected = unit(features(theirs.get_text_features(**taken)))
    torch.testing.assert_close(ours.encode_texts(ids, mask), expected, atol=1e-5, rtol=0)
    assert ours.dim == expected.shape[1]


def test_scale_and_bias_come_along(made):
    folder, *_ = transformers_model(made, "siglip")
    ours = load_dual_encoder(f"hf:{folder}")
    assert ours.log_scale().item() == pytest.approx(2.5)
    assert ours.log_bias.item() == pytest.approx(-7.0)
    folder, theirs, *_ = transformers_model(made, "align")
    ours = load_dual_encoder(f"hf:{folder}")
    assert ours.log_scale.value.exp().item() == pytest.approx(1.0 / theirs.temperature.item())
    assert ours.log_bias is None


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("oc-clip", {}),
        ("oc-quick", {"quick_gelu": True}),
        ("oc-custom", {"custom_text": True, "init_logit_bias": -10}),
        (
            "oc-resnet",
            {"vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}},
        ),
        (
            "oc-timm",
            {
                "custom_text": True,
                "vision_cfg": {
                    "image_size": 64,
                    "timm_model_name": "test_resnet",
                    "timm_pool": "avg",
                    "timm_proj": "linear",
                },
            },
        ),
    ],
)
@torch.inference_mode()
def test_open_clip_models_answer_as_their_library_does(made, name, changes):
    open_clip = pytest.importorskip("open_clip")
    folder, theirs = made(name, checkpoints.write_open_clip, changes, mean=[0.5, 0.4, 0.3])
    source = f"open_clip:local-dir:{folder}"
    ours = load_dual_encoder(source)
    _, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    values = torch.stack([transform(image) for image in pictures()])
    pixels = pixels_of(ours, pictures())
    torch.testing.assert_close(
        ours.encode_images(pixels), theirs.encode_image(values, normalize=True), atol=1e-5, rtol=0
    )
    ids, mask = ours.tokenize(TEXTS)
    assert torch.equal(ids, open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS))
    torch.testing.assert_close(
        ours.encode_texts(ids, mask), theirs.encode_text(ids, normalize=True), atol=1e-5, rtol=0
    )
    assert ours.log_scale().item() == pytest.approx(theirs.logit_scale.item())
    assert (ours.log_bias is None) == (theirs.logit_bias is None)


@pytest.mark.parametrize("kind", ["hf", "open_clip"])
def test_the_architecture_is_enough_to_rebuild_the_towers(made, kind, monkeypatch):
    if kind == "hf":
        folder, *_ = transformers_model(made, "siglip")
        model = load_dual_encoder(f"hf:{folder}")
    else:
        pytest.importorskip("open_clip")
        folder, _ = made("oc-clip", checkpoints.write_open_clip, {}, mean=[0.5, 0.4, 0.3])
        model = load_dual_encoder(f"open_clip:local-dir:{folder}")
    architecture = json.loads(json.dumps(model.architecture))
    assert str(folder) not in json.dumps(architecture)
    towers = build_towers(architecture)
    for built, loaded in (
        (towers.image, model.image_tower),
        (towers.image_head, model.image_head),
        (towers.text, model.text_tower),
        (towers.text_head, model.text_head),
    ):
        shapes = {name: value.shape for name, value in loaded.state_dict().items()}
        assert {name: value.shape for name, value in built.state_dict().items()} == shapes


# ruff: noqa: RUF001
CLIP_TEXTS = [
    *TEXTS,
    "Hello,   World!!",
    "It's we're don't I'LL l’été “curly” ‘quotes’ – dash…",
    "café naïve Zürich ﬁre Ａ full width！ ß ẞ Ǆ İstanbul",
    "日本語のテキスト мой кот नमस्ते ไทย ﷺ 𝒜𝓁𝒾𝒸𝑒",
    "👩‍👩‍👧 🏳️‍🌈 😀",
    "AT&amp;T &lt;b&gt; &amp;quot;x&amp;quot; &eacute;",
    "123 4567 ½ ²  under_score",
    "\ttabs\nnew\r\nlines \u00a0 \u2003 \u2028 end",
    "word " * 200,
    "x" * 300,
    "<start_of_text> hi <end_of_text>",
    "a\u0301 e\u0308 \x07bell \x1b[31mred",
]


def test_clips_tokenizer_equals_open_clips():
    pytest.importorskip("open_clip")
    from open_clip.tokenizer import SimpleTokenizer

    from mmsearch.retrieval.encoders.clip_tokenizer import clip_tokenizer

    for clean in (Clean.LOWER, Clean.WHITESPACE, Clean.CANONICALIZE):
        transform = TextPreprocess(77, pad_to=77, clean=clean)
        ids, _ = transform(transform.configure(clip_tokenizer()), CLIP_TEXTS)
        expected = SimpleTokenizer(clean=str(clean))(CLIP_TEXTS).numpy()
        for text, found, wanted in zip(CLIP_TEXTS, ids, expected, strict=True):
            assert found.tolist() == wanted.tolist(), (clean, text)


@pytest.mark.parametrize(
    "transform",
    [TextPreprocess(64), TextPreprocess(64, 64, 1), TextPreprocess(77, 77, 0, Clean.LOWER)],
)
def test_text_transforms_as_json(transform):
    assert TextPreprocess.from_json(transform.to_json()) == transform


def test_what_the_bundled_folder_says_of_texts_still_reads():
    fields = json.loads((BUNDLED / "compact" / "encoder.json").read_text())
    assert TextPreprocess.from_json(fields["text"]) == TextPreprocess(64)
    assert load_encoder().spec.preprocessing == json.dumps(
        fields["image"]["preprocess"], sort_keys=True
    )


@torch.inference_mode()
def test_compact_as_a_model_answers_as_its_files_do():
    pytest.importorskip("onnx")
    model, encoder = load_dual_encoder("compact"), load_encoder("compact")
    random = np.random.default_rng(0)
    size = model.preprocess.size
    photos = [random.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(2)]
    photos += [model.preprocess(image.resize((300, 200))) for image in pictures(2)]
    found = model.encode_images(torch.from_numpy(np.stack(photos))).numpy()
    assert (found * encoder.encode_pixels(photos)).sum(axis=1).min() > 0.999
    # The files multiply bytes by bytes, the model floats by floats; an empty text shows it most.
    found = model.encode_texts(*model.tokenize(TEXTS)).numpy()
    assert (found * encoder.encode_texts(TEXTS)).sum(axis=1).min() > 0.99
    assert build_towers(model.architecture).image.width == model.image_tower.width


def described(made):
    pytest.importorskip("timm")
    pytest.importorskip("transformers")
    folder, _ = made("bert", checkpoints.write_bert)
    return load_dual_encoder(f"timm:test_efficientnet+hf:{folder}")


@torch.inference_mode()
def test_a_model_described_by_a_name(made):
    import transformers

    model = described(made)
    folder, _ = made("bert", checkpoints.write_bert)
    bert = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    ids, mask = model.tokenize(TEXTS)
    states = bert(input_ids=ids, attention_mask=mask).last_hidden_state
    mean = (states * mask.unsqueeze(-1)).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    torch.testing.assert_close(model.text_tower(ids, mask), mean, atol=1e-5, rtol=0)
    assert model.dim == 256
    assert model.preprocess.size == 160
    assert model.encode_images(torch.zeros(2, 160, 160, 3, dtype=torch.uint8)).shape == (2, 256)


def test_a_model_described_by_a_file(tmp_path):
    pytest.importorskip("timm")
    path = tmp_path / "birds.json"
    fields = {
        "image": {"timm": "test_efficientnet"},
        "text": {"bert": {"layers": 1, "width": 32, "heads": 2, "words": 200}},
        "dim": 16,
        "size": 64,
    }
    path.write_text(json.dumps(fields))
    with pytest.raises(ModelError, match="vocabulary"):
        load_dual_encoder(path)
    captions = ["a red bird on a branch", "a blue bird in the sky"] * 20
    model = load_dual_encoder(path, captions=captions)
    assert (model.name, model.dim, model.preprocess.size) == ("birds", 16, 64)
    ids, mask = model.tokenize(["A red BIRD", "unseen"])
    assert ids[0].tolist()[:5] == model.tokenizer.encode("a red bird").ids
    assert model.encode_texts(ids, mask).shape == (2, 16)
    # The same captions make the same vocabulary.
    again = load_dual_encoder(path, captions=captions)
    assert again.tokenizer.get_vocab() == model.tokenizer.get_vocab()
    path.write_text(json.dumps(fields | {"colour": "red"}))
    with pytest.raises(ModelError, match="unknown: colour"):
        load_dual_encoder(path)


def test_weights_that_may_be_missing_are_not_talked_about(made):
    pytest.importorskip("transformers")
    folder, _ = made("bert", checkpoints.write_bert)
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record):
            said.append(record.getMessage())

    listener, talker = Listener(), logging.getLogger("transformers")
    talker.addHandler(listener)
    try:
        load_dual_encoder(f"timm:test_efficientnet+hf:{folder}")
    finally:
        talker.removeHandler(listener)
    assert said == []


def test_an_open_clip_text_tower_in_a_description():
    pytest.importorskip("timm")
    pytest.importorskip("open_clip")
    name = "timm:test_efficientnet+open_clip:local-dir:"
    with pytest.raises(ModelError, match="local-dir"):
        load_dual_encoder(name + "/nowhere")


@torch.no_grad()
def test_standardised_heads_see_features_of_mean_0_and_deviation_1(made):
    model = described(made)
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (6, 160, 160, 3), generator=random, dtype=torch.uint8)
    ids, mask = model.tokenize(TEXTS)
    model.standardise_heads(pixels, ids, mask)
    features = model.text_tower(ids, mask)
    scaled = (features - model.text_head.mean) / model.text_head.deviation
    torch.testing.assert_close(scaled.mean(dim=0), torch.zeros(32), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.std(dim=0), torch.ones(32), atol=1e-3, rtol=0)
    assert model.image_head.mean.abs().max() > 0


def test_heads_are_standardised_in_parts_as_at_once(made, monkeypatch):
    model = described(made)
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (5, 160, 160, 3), generator=random, dtype=torch.uint8)
    ids, mask = model.tokenize(TEXTS)
    heads = (model.image_head, model.text_head)

    def statistics():
        model.standardise_heads(pixels, ids, mask)
        return [value.clone() for head in heads for value in (head.mean, head.deviation)]

    whole = statistics()
    monkeypatch.setattr(dual_encoder, "EXAMPLES_AT_ONCE", 2)
    for one, other in zip(whole, statistics(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


def test_every_parameter_has_one_place(made):
    model = described(made)
    folder, *_ = transformers_model(made, "siglip")
    for each in (model, load_dual_encoder(f"hf:{folder}")):
        parts = [each.image_parameters(), each.text_parameters(), each.head_parameters()]
        ids = [id(parameter) for part in parts for parameter in part]
        assert len(ids) == len(set(ids))
        assert set(ids) == {id(parameter) for parameter in each.parameters()}


def test_a_locked_tower_stays_as_it_is(made):
    model = described(made)
    model.lock_image_tower()
    model.train()
    assert not model.image_tower.training
    assert model.text_tower.training
    assert model.image_head.training
    before = {name: value.clone() for name, value in model.image_tower.state_dict().items()}
    head = model.image_head.straight.weight.clone()
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=1.0)
    pixels = torch.randint(0, 256, (4, 160, 160, 3), dtype=torch.uint8)
    images, texts = model(pixels, *model.tokenize(TEXTS))
    (images * texts).sum().backward()
    optimizer.step()
    after = model.image_tower.state_dict()
    # Running statistics of batch norm, too, which no optimizer holds.
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(head, model.image_head.straight.weight)


def test_as_an_encoder(made, monkeypatch):
    folder, *_ = transformers_model(made, "clip")
    monkeypatch.chdir(folder.parent)
    encoder = load_encoder(f"hf:{folder.name}")
    model = load_dual_encoder(f"hf:{folder}")
    vectors = encoder.encode_images(pictures())
    with torch.inference_mode():
        expected = model.encode_images(pixels_of(model, pictures())).numpy()
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert encoder.encode_texts(TEXTS).shape == (4, 24)
    assert encoder.spec.kind == "torch"
    assert encoder.spec.weights_sha256 == model.fingerprint()
    assert encoder.location == f"hf:{folder}"
    monkeypatch.chdir("/")
    assert load_encoder(encoder.location).spec.weights_sha256 == encoder.spec.weights_sha256


def test_random_weights_are_no_encoder(made):
    pytest.importorskip("timm")
    folder, _ = made("bert", checkpoints.write_bert)
    with pytest.raises(ModelError, match="has not learned"):
        load_encoder(f"timm:test_efficientnet+hf:{folder}")


def test_relative_sources_become_absolute(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert absolute("hf:model") == f"hf:{tmp_path}/model"
    assert absolute("open_clip:local-dir:model") == f"open_clip:local-dir:{tmp_path}/model"
    assert absolute("hf:google/siglip") == "hf:google/siglip"
    assert absolute("open_clip:ViT-B-32/openai") == "open_clip:ViT-B-32/openai"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nonsense", "There is no model 'nonsense'. Give 'compact'"),
        ("keras:thing", "There is no model 'keras:thing'"),
        ("hf:", "There is no model 'hf:'"),
        ("open_clip:ViT-B-23", "Did you mean ViT-B-"),
        ("open_clip:ViT-B-32/nobody", "laion2b"),
        ("open_clip:local-dir:/nowhere", "open_clip_config.json"),
        ("hf:/nowhere/at/all", "cannot be opened"),
        ("timm:resnet18", r"\+hf:PATH"),
        ("timm:nothing_like_it+open_clip:ViT-B-32-256", "nothing_like_it"),
    ],
)
def test_errors_say_what_to_do(source, message, monkeypatch):
    pytest.importorskip("open_clip")
    pytest.importorskip("transformers")
    pytest.importorskip("timm")
    with pytest.raises(ModelError, match=message):
        load_dual_encoder(source)


def test_no_network_is_an_error_with_a_way_out(monkeypatch):
    pytest.importorskip("transformers")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="give its folder: hf:PATH"):
        load_dual_encoder("hf:google/siglip-base-patch16-224")


def test_a_folder_of_another_library_is_recognised(made):
    folder, *_ = transformers_model(made, "clip")
    with pytest.raises(ModelError, match=f"give hf:{folder}"):
        load_dual_encoder(folder)
    with pytest.raises(ModelError, match="without the weights to train on"):
        load_dual_encoder(BUNDLED / "compact")


def test_damaged_and_missing_weights(tmp_path):
    pytest.importorskip("transformers")
    checkpoints.write_transformers(tmp_path / "clip", "clip")
    weights = tmp_path / "clip" / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="cannot be opened"):
        load_dual_encoder(f"hf:{tmp_path / 'clip'}")
    weights.unlink()
    with pytest.raises(ModelError, match="cannot be opened"):
        load_dual_encoder(f"hf:{tmp_path / 'clip'}")


def test_weights_that_are_not_there_are_never_random(tmp_path):
    pytest.importorskip("transformers")
    from safetensors.torch import load_file, save_file

    checkpoints.write_transformers(tmp_path / "clip", "clip")
    weights = tmp_path / "clip" / "model.safetensors"
    state = load_file(weights)
    del state["visual_projection.weight"]
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"visual_projection\.weight"):
        load_dual_encoder(f"hf:{tmp_path / 'clip'}")


def test_pickles_are_not_read(tmp_path):
    pytest.importorskip("open_clip")
    checkpoints.write_open_clip(tmp_path / "model")
    weights = tmp_path / "model" / "open_clip_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match=r"no \.safetensors file"):
        load_dual_encoder(f"open_clip:local-dir:{tmp_path / 'model'}")


def test_the_bundled_encoder_needs_no_torch(tmp_path):
    code = (
        "import sys; from mmsearch.retrieval.encoders import load_encoder;"
        "load_encoder().encode_texts(['a dog']);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'safetensors')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 0


@pytest.mark.network
@pytest.mark.parametrize(
    "source",
    [
        "open_clip:ViT-B-32/laion2b_s34b_b79k",
        "open_clip:ViT-B-32/openai",
        "open_clip:ViT-B-16-SigLIP/webli",
        "hf:openai/clip-vit-base-patch32",
        "hf:google/siglip-base-patch16-224",
        "hf:google/siglip2-base-patch16-224",
        "hf:kakaobrain/align-base",
    ],
)
def test_models_of_the_hub_know_a_dog_from_a_car(source):
    encoder = load_encoder(source)
    texts = encoder.encode_texts(["a photo of a dog", "a photo of a puppy", "a truck"])
    assert texts[0] @ texts[1] > texts[0] @ texts[2]
