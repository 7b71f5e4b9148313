"""Models of other libraries, exported once and then answered for without torch."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("transformers")
pytest.importorskip("open_clip")

from mmsearch.errors import ModelError, ModelMismatch, quoted  # noqa: E402
from mmsearch.retrieval.encoders import (  # noqa: E402
    devices,
    exported,
    load_encoder,
    onnx_export,
    torch_encoder,
)
from mmsearch.retrieval.encoders.onnx import OnnxEncoder  # noqa: E402
from mmsearch.retrieval.encoders.sources import absolute, load_dual_encoder  # noqa: E402
from mmsearch.retrieval.encoders.torch_encoder import TorchEncoder  # noqa: E402
from mmsearch.retrieval.engine import open_engine  # noqa: E402
from mmsearch.retrieval.ingest import index  # noqa: E402
from mmsearch.retrieval.model_change import migrate  # noqa: E402
from tests import checkpoints  # noqa: E402
from tests.checkpoints import TEXTS, pictures  # noqa: E402

# The model libraries' own, and the tracer's farewell.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Return the folder of a tiny CLIP and the cache it was exported to; copy to change."""
    root = tmp_path_factory.mktemp("exported")
    checkpoints.write_transformers(root / "clip", "clip")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMSEARCH_CACHE", str(root / "cache"))
        load_encoder(f"hf:{root / 'clip'}")
    return root / "clip", root / "cache"


@pytest.fixture
def source(clip, tmp_path, monkeypatch):
    """Return the name of a tiny CLIP of the test's own, not exported yet."""
    shutil.copytree(clip[0], tmp_path / "clip")
    monkeypatch.setenv("MMSEARCH_CACHE", str(tmp_path / "cache"))
    return f"hf:{tmp_path / 'clip'}"


@pytest.fixture
def known(clip, monkeypatch):
    """Return the name of a tiny CLIP that was exported; leave both as they are."""
    monkeypatch.setenv("MMSEARCH_CACHE", str(clip[1]))
    return f"hf:{clip[0]}"


def as_torch(source):
    return TorchEncoder(load_dual_encoder(source), location=source, device="cpu")


def folders(cache):
    return sorted(path.name for path in (cache / "onnx").iterdir())


@pytest.mark.parametrize("kind", ["hf", "open_clip"])
def test_once_exported_nothing_heavy_is_imported(kind, tmp_path):
    if kind == "hf":
        checkpoints.write_transformers(tmp_path / "model", "siglip")
        source = f"hf:{tmp_path / 'model'}"
    else:
        checkpoints.write_open_clip(tmp_path / "model")
        source = f"open_clip:local-dir:{tmp_path / 'model'}"
    wanted = as_torch(source)
    first = load_encoder(source)
    assert isinstance(first, OnnxEncoder)
    assert (first.spec, first.location) == (wanted.spec, wanted.location)
    code = (
        "import sys, json; from mmsearch.retrieval.encoders import load_encoder\n"
        f"encoder = load_encoder({source!r})\n"
        "vector = encoder.encode_texts(['a photo of a dog'])[0].tolist()\n"
        "heavy = {'torch', 'transformers', 'open_clip', 'onnx', 'safetensors', 'timm'}\n"
        "print(json.dumps([vector, sorted(heavy & set(sys.modules))]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    vector, heavy = json.loads(done.stdout)
    assert heavy == []
    assert done.stderr == ""
    np.testing.assert_allclose(vector, wanted.encode_texts(["a photo of a dog"])[0], atol=1e-4)
    np.testing.assert_allclose(
        first.encode_images(pictures()), wanted.encode_images(pictures()), atol=1e-4
    )


def test_the_command_line_answers_without_torch(known, photos, tmp_path):
    command = [sys.executable, "-X", "importtime", "-m", "mmsearch.cli"]
    for arguments in (
        ["index", str(photos), "--model", known],
        ["query", "a red dog", "--library", str(photos), "--json"],
        ["index", str(photos)],
    ):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert "onnxruntime" in imported or arguments[0] == "index"
        assert not imported & {"torch", "transformers", "open_clip"}


def test_vectors_of_torch_and_of_the_export_are_of_one_library(known, photos):
    index(photos, model=as_torch(known))  # As a machine with a GPU would.
    report = index(photos)
    assert (report.embedded, report.unchanged) == (0, 6)
    with open_engine(photos) as engine:
        assert isinstance(engine.encoder, OnnxEncoder)
        assert engine.search(image=photos / "green.jpg", k=1).hits[0].path == "green.jpg"


def test_an_altered_checkpoint_is_exported_anew(source, tmp_path):
    before = load_encoder(source)
    (old,) = folders(tmp_path / "cache")
    weights = tmp_path / "clip" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    # The last byte but one of a float: still a number, another one.
    data[-2] ^= 0x10
    weights.write_bytes(data)
    os.utime(weights, ns=(1, time.time_ns() + 1))
    after = load_encoder(source)
    assert after.spec.weights_sha256 != before.spec.weights_sha256
    assert after.spec == as_torch(source).spec
    (new,) = folders(tmp_path / "cache")
    assert new != old


def test_a_checkpoint_that_is_gone_still_answers(source, tmp_path):
    vectors = load_encoder(source).encode_texts(TEXTS)
    shutil.rmtree(tmp_path / "clip")
    np.testing.assert_array_equal(load_encoder(source).encode_texts(TEXTS), vectors)


def test_a_revision_of_the_hub_that_moved_on_is_exported_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("MMSEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    main = tmp_path / "hub" / "models--someone--thing" / "refs" / "main"
    main.parent.mkdir(parents=True)
    main.write_text("aaaa")

    def write(part):
        (part / "encoder.json").write_text("{}")
        return {"spec": {}}

    for source in ("hf:someone/thing", "open_clip:hf-hub:someone/thing"):
        main.write_text("aaaa")
        assert exported.find(source) is None
        one = exported.store(source, exported.source_state(source), write)
        assert exported.find(source).folder == one.folder
        main.write_text("bbbb")
        assert exported.find(source) is None
        main.unlink()  # The hub's cache was cleared: what was exported last answers.
        assert exported.find(source).folder == one.folder
    # Tags of open_clip never change.
    assert exported.source_state("open_clip:ViT-B-32/openai") == ""


def test_of_two_that_export_at_once_one_wins_and_both_answer(source, tmp_path, monkeypatch):
    real, others = onnx_export.agreement, []

    def slow(model, folder):
        if not others:
            # While the first is at it, a second process does the whole work.
            others.append(None)
            others[0] = load_encoder(source)
        return real(model, folder)

    monkeypatch.setattr(onnx_export, "agreement", slow)
    first = load_encoder(source)
    assert others[0].spec == first.spec
    np.testing.assert_array_equal(first.encode_texts(TEXTS), others[0].encode_texts(TEXTS))
    assert len(folders(tmp_path / "cache")) == 1


def test_processes_that_export_at_once(source, tmp_path):
    code = (
        "from mmsearch.retrieval.encoders import load_encoder\n"
        f"print(load_encoder({source!r}).encode_texts(['a red cat']).sum())"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outcomes = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], outcomes
    assert outcomes[0][0] == outcomes[1][0]
    assert len(folders(tmp_path / "cache")) == 1


def test_an_export_that_answers_otherwise_is_refused_once(source, tmp_path, monkeypatch, caplog):
    tries, agree = [], onnx_export.agreement

    def differ(model, folder):
        tries.append(folder)
        return onnx_export.Agreement(0.9989, 1.0)

    monkeypatch.setattr(onnx_export, "agreement", differ)
    for _ in range(2):
        encoder = load_encoder(source)
        assert isinstance(encoder, TorchEncoder)
        assert encoder.encode_texts(TEXTS).shape == (4, 24)
        assert "runs through torch" in caplog.text
        assert "least cosine 0.99890" in caplog.text
        caplog.clear()
    assert len(tries) == 1
    assert not (tries[0]).exists()
    # Another version may do better.
    (found,) = exported.exports()
    file = found.folder / "export.json"
    file.write_text(json.dumps(found.facts | {"versions": {"mmsearch": "0.0.1"}}))
    monkeypatch.setattr(onnx_export, "agreement", agree)
    assert isinstance(load_encoder(source), OnnxEncoder)
    assert len(list(exported.exports())) == 1


def test_whatever_the_tracer_raises_torch_answers(source, monkeypatch, caplog):
    def fail(*_, **__):
        raise AssertionError("unsupported operator")

    monkeypatch.setattr(onnx_export, "export_graph", fail)
    assert isinstance(load_encoder(source), TorchEncoder)
    assert "unsupported operator" in caplog.text
    with pytest.raises(ModelError, match=f"Use the whole model: {source}"):
        load_encoder(f"int8:{source}")


def test_without_a_cache_torch_answers(source, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MMSEARCH_CACHE", str(tmp_path / "file" / "below"))
    assert isinstance(load_encoder(source), TorchEncoder)
    assert "runs through torch" in caplog.text


def test_bytes_are_another_encoder_and_say_what_they_lose(source, photos, caplog):
    caplog.set_level(logging.WARNING)
    whole, packed = load_encoder(source), load_encoder(f"int8:{source}")
    assert packed.location == f"int8:{source}"
    assert load_encoder(packed.location).spec == packed.spec
    assert packed.spec.name == f"int8:{whole.spec.name}"
    assert packed.spec.weights_sha256 != whole.spec.weights_sha256
    cosine = exported.find(packed.location).facts["cosine"]
    images = onnx_export.sample_pictures()
    least = (whole.encode_images(images) * packed.encode_images(images)).sum(axis=1).min()
    assert cosine["images"] == pytest.approx(least, abs=1e-4)
    assert 0.95 < cosine["images"] <= 1.001
    assert 0.9 < cosine["texts"] <= 1.001
    assert not np.array_equal(whole.encode_images(images), packed.encode_images(images))
    assert f"{cosine['images']:.4f} (pictures)" in caplog.text
    index(photos, model=source)
    with pytest.raises(ModelMismatch, match="int8:"):
        index(photos, model=f"int8:{source}")
    migrate(photos, model=f"int8:{source}")
    with open_engine(photos) as engine:
        assert engine.encoder.spec == packed.spec
    with pytest.raises(ModelMismatch):
        open_engine(photos, model=source)


def test_relative_names_with_bytes_become_absolute(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "weights.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    assert absolute("int8:hf:model") == f"int8:hf:{tmp_path}/model"
    assert (
        absolute("int8:open_clip:local-dir:model") == f"int8:open_clip:local-dir:{tmp_path}/model"
    )
    file = f"open_clip:ViT-B-32/{tmp_path}/weights.safetensors"
    assert absolute("open_clip:ViT-B-32/weights.safetensors") == file
    assert absolute(file) == file
    assert absolute("int8:hf:google/siglip") == "int8:hf:google/siglip"


def test_a_damaged_export_says_what_to_do(source, tmp_path):
    load_encoder(source)
    (folder,) = (tmp_path / "cache" / "onnx").iterdir()
    data = bytearray((folder / "text.onnx").read_bytes())
    data[-5] ^= 1
    (folder / "text.onnx").write_bytes(data)
    with pytest.raises(
        ModelError, match=re.escape(f"Delete the folder {quoted(folder)}")
    ) as caught:
        load_encoder(source).encode_texts(TEXTS)
    assert "text.onnx" in str(caught.value)
    shutil.rmtree(folder)
    assert load_encoder(source).encode_texts(TEXTS).shape == (4, 24)


def test_what_killed_processes_left_is_removed_in_time(source, tmp_path):
    left = tmp_path / "cache" / "onnx" / ".hf-thing.1234.part"
    fresh = left.with_name(".hf-thing.5678.part")
    for folder in (left, fresh):
        folder.mkdir(parents=True)
        (folder / "image.onnx").touch()
    day = exported.LEFT_BEHIND_SECONDS
    os.utime(left, (time.time() - day - 60, time.time() - day - 60))
    load_encoder(source)
    assert not left.exists()
    assert fresh.exists()  # Of a process that may be at it.


def test_a_gpu_embeds_collections_and_leaves_questions_to_the_export(known, monkeypatch):
    asked = []
    monkeypatch.setattr(exported, "gpu_is_used", lambda: True)
    monkeypatch.setattr(
        torch_encoder, "load", lambda *given, **options: asked.append((given, options))
    )
    load_encoder(known)
    assert asked == [((known, "none"), {"export": False})]
    assert isinstance(load_encoder(known, asking=True), OnnxEncoder)
    assert len(asked) == 1
    # Bytes are for the CPU.
    load_encoder(f"int8:{known}")
    assert asked[1:] == [((known, "int8"), {"export": True})]


def test_a_gpu_is_seen_without_torch():
    assert devices._torch_has_gpu_build() == bool(torch.version.cuda or torch.version.hip)
    if devices._torch_has_gpu_build():
        assert devices._devices_of_driver() == torch.cuda.device_count()
    code = "import sys; from mmsearch.retrieval.encoders import devices; devices.gpu_is_used()"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
