from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("safetensors")

from mmsearch.errors import ModelError  # noqa: E402
from mmsearch.retrieval.encoders import load_encoder, onnx_export  # noqa: E402
from mmsearch.retrieval.encoders.sources import load_dual_encoder  # noqa: E402
from mmsearch.retrieval.schema import Quantize  # noqa: E402
from mmsearch.retrieval.training import export  # noqa: E402
from mmsearch.retrieval.training.export import save_model  # noqa: E402
from tests import checkpoints  # noqa: E402
from tests.checkpoints import TEXTS, pictures  # noqa: E402

# The model libraries' own, and the tracer's farewell.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)

FILES = {
    "encoder.json",
    "image.onnx",
    "model.json",
    "model.safetensors",
    "text.onnx",
    "tokenizer.json",
}


def load(kind, folder):
    """Return a tiny model of a kind, made in `folder`."""
    if kind in {"clip", "siglip", "align"}:
        pytest.importorskip("transformers")
        checkpoints.write_transformers(folder, kind)
        return load_dual_encoder(f"hf:{folder}")
    if kind == "open_clip":
        pytest.importorskip("open_clip")
        checkpoints.write_open_clip(folder, {"init_logit_bias": -10.0})
        return load_dual_encoder(f"open_clip:local-dir:{folder}")
    pytest.importorskip("timm")
    if kind == "hf text":
        pytest.importorskip("transformers")
        checkpoints.write_bert(folder)
        return load_dual_encoder(f"timm:test_vit+hf:{folder}")
    folder.mkdir()
    fields = {
        "image": {"timm": "test_efficientnet"},
        "text": {"bert": {"layers": 2, "width": 64, "heads": 2}},
        "dim": 32,
        "size": 64,
    }
    (folder / "small.json").write_text(json.dumps(fields))
    return load_dual_encoder(folder / "small.json", captions=TEXTS * 3)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Return a model described by its parts and its folder; copy the folder to change it."""
    root = tmp_path_factory.mktemp("small")
    model = load("described", root / "source")
    save_model(model, root / "model", extra={"loss": 0.5})
    return model, root / "model"


@pytest.mark.parametrize("kind", ["clip", "siglip", "align", "open_clip", "hf text", "described"])
def test_a_saved_model_answers_as_it_did(kind, tmp_path):
    torch.manual_seed(0)
    model = load(kind, tmp_path / "source")
    save_model(model, tmp_path / "model")
    shutil.rmtree(tmp_path / "source")  # Nothing of it may be needed.
    assert {path.name for path in (tmp_path / "model").iterdir()} == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    pixels = np.stack([model.preprocess(image) for image in pictures(4)])
    with torch.inference_mode():
        images = model.encode_images(torch.from_numpy(pixels)).numpy()
        texts = model.encode_texts(*model.tokenize(TEXTS)).numpy()

    again = load_dual_encoder(tmp_path / "model")
    assert again.fingerprint() == model.fingerprint()
    assert again.preprocess == model.preprocess
    assert (again.log_bias is None) == (model.log_bias is None)
    with torch.inference_mode():
        np.testing.assert_allclose(again.encode_images(torch.from_numpy(pixels)), images, atol=1e-6)
        np.testing.assert_allclose(again.encode_texts(*again.tokenize(TEXTS)), texts, atol=1e-6)

    encoder = load_encoder(tmp_path / "model")
    assert (encoder.dim, encoder.spec.name) == (model.dim, model.name)
    np.testing.assert_allclose(encoder.encode_images(pictures(4)), images, atol=1e-4)
    # In any company, of any number and length.
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), texts, atol=1e-4)
    for number, text in enumerate(TEXTS):
        np.testing.assert_allclose(encoder.encode_texts([text])[0], texts[number], atol=1e-4)


@pytest.mark.parametrize("quantize", [Quantize.FP16, Quantize.INT8])
def test_packed_models_are_smaller_and_answer_alike(small, quantize, tmp_path):
    model, whole = small
    save_model(model, tmp_path / "packed", quantize=quantize)
    for part in ("image.onnx", "text.onnx"):
        share = (tmp_path / "packed" / part).stat().st_size / (whole / part).stat().st_size
        assert share < (0.7 if quantize is Quantize.FP16 else 0.6)
    one, other = load_encoder(whole), load_encoder(tmp_path / "packed")
    least = 0.9999 if quantize is Quantize.FP16 else 0.99
    assert (one.encode_texts(TEXTS) * other.encode_texts(TEXTS)).sum(axis=1).min() > least
    images = pictures(4)
    assert (one.encode_images(images) * other.encode_images(images)).sum(axis=1).min() > least


def test_what_was_said_of_the_training_is_kept(small):
    _, folder = small
    assert json.loads((folder / "model.json").read_text())["extra"] == {"loss": 0.5}


def test_a_model_in_training_goes_on_training(small, tmp_path):
    model, _ = small
    model.train()
    save_model(model, tmp_path / "model")
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.eval()


def test_a_former_model_is_replaced_and_strangers_are_kept(small, tmp_path):
    model, folder = small
    target = tmp_path / "model"
    shutil.copytree(folder, target)
    (target / "notes.txt").write_text("mine")
    (target / "checkpoints").mkdir()
    (target / "model.json").write_text("{}")
    save_model(model, target)
    assert {path.name for path in target.iterdir()} == FILES | {"notes.txt", "checkpoints"}
    assert (target / "notes.txt").read_text() == "mine"
    assert load_dual_encoder(target).fingerprint() == model.fingerprint()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_of_something_else_is_refused(small, tmp_path):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(ModelError, match="new or empty folder"):
        save_model(small[0], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_nothing_is_left_where_saving_fails(small, tmp_path, monkeypatch):
    model, folder = small
    target = tmp_path / "model"
    shutil.copytree(folder, target)
    before = {path.name: path.read_bytes() for path in target.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "put_json", full)
    with pytest.raises(OSError, match="No space"):
        save_model(model, target)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_export_that_answers_otherwise_is_refused(small, tmp_path, monkeypatch):
    def spoil(image, text, quantize):
        from onnx import numpy_helper

        for tensor in text.graph.initializer:
            if tensor.name.endswith("words.weight"):
                tensor.CopyFrom(
                    numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name)
                )

    monkeypatch.setattr(onnx_export, "_pack", spoil)
    with pytest.raises(ModelError, match=r"text\.onnx does not answer"):
        save_model(small[0], tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["altered", "missing"])
def test_damaged_files_are_named(small, tmp_path, name, damage):
    target = tmp_path / "model"
    shutil.copytree(small[1], target)
    if damage == "missing":
        (target / name).unlink()
    else:
        data = bytearray((target / name).read_bytes())
        data[-5] ^= 1
        (target / name).write_bytes(data)
    with pytest.raises(ModelError, match=name):
        load_dual_encoder(target)


def test_a_model_of_a_later_version_is_refused(small, tmp_path):
    target = tmp_path / "model"
    shutil.copytree(small[1], target)
    fields = json.loads((target / "model.json").read_text())
    (target / "model.json").write_text(json.dumps(fields | {"format": 2}))
    with pytest.raises(ModelError, match="pip install --upgrade"):
        load_dual_encoder(target)
    (target / "model.json").write_text(json.dumps(fields | {"architecture": {"kind": "telepathy"}}))
    with pytest.raises(ModelError, match="telepathy"):
        load_dual_encoder(target)


def test_a_locked_tower_is_saved_too(small, tmp_path):
    model = load_dual_encoder(small[1])
    model.lock_image_tower()
    save_model(model, tmp_path / "model")
    assert not any(parameter.requires_grad for parameter in model.image_parameters())


@pytest.mark.gpu
def test_a_model_on_the_gpu_is_saved_from_there(small, tmp_path):
    model = load_dual_encoder(small[1]).to("cuda")
    save_model(model, tmp_path / "model")
    assert next(model.parameters()).is_cuda
    assert load_dual_encoder(tmp_path / "model").fingerprint() == small[0].fingerprint()
