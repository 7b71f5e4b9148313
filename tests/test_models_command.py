"""`mmsearch models`: what is listed, where it comes from, and that nothing heavy is loaded."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from mmsearch.retrieval.encoders import BUNDLED, exported, load_encoder
from mmsearch.retrieval.encoders.base import Encoder
from mmsearch.retrieval.encoders.cache import root
from mmsearch.retrieval.encoders.known import known_models
from mmsearch.retrieval.encoders.sources import is_source
from mmsearch.retrieval.encoders.speed import Speed, measure
from tests.conftest import ColourEncoder
from tests.test_cli import run


def store_export(source, **facts):
    def write(part):
        for name, size in (("image.onnx", 300), ("text.onnx", 200), ("tokenizer.json", 50)):
            (part / name).write_bytes(b"x" * size)
        towers = {"image": {"file": "image.onnx"}, "text": {"file": "text.onnx"}}
        (part / "encoder.json").write_text(json.dumps({"dim": 768, **towers}))
        return {}

    exported.store(source, "", write, parameters={"image": 70, "text": 50}, **facts)


def test_what_is_listed(tmp_path):
    store_export("open_clip:ViT-B-16-SigLIP/webli", spec={}, cosine={"images": 1.0, "texts": 0.9})
    exported.store("hf:some/thing", "", lambda _: {}, refused="too large")
    (tmp_path / "birds").mkdir()
    (tmp_path / "birds" / "encoder.json").write_text('{"dim": 64}')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "encoder.json").write_text("{")
    done = run("models", "--json", cwd=tmp_path)
    document = json.loads(done.stdout)
    assert document["schema"] == 1
    rows = {row["name"]: row for row in document["models"]}
    assert len(rows) == len(document["models"])
    compact = rows["compact"]
    assert (compact["where"], compact["dim"]) == ("bundled", 256)
    on_disk = sum(file.stat().st_size for file in (BUNDLED / "compact").iterdir())
    assert compact["disk_bytes"] == on_disk
    assert compact["images_per_second"] is None  # Nobody asked for it.
    export = rows["open_clip:ViT-B-16-SigLIP/webli"]
    assert (export["where"], export["parameters"], export["dim"]) == ("exported", 120, 768)
    assert export["memory_bytes"] == 500
    assert export["disk_bytes"] > 550
    assert export["cosine"] == {"images": 1.0, "texts": 0.9}
    assert export["recall"]["text_to_image"] == 47.78
    assert export["also"] == "hf:google/siglip-base-patch16-224"
    assert rows["hf:some/thing"]["where"] == "torch"
    assert rows[str(tmp_path / "birds")]["dim"] == 64
    assert rows[str(tmp_path / "broken")]["dim"] is None
    assert rows["open_clip:ViT-H-14/laion2b_s32b_b79k"]["where"] == "known"


def test_a_listing_for_programs_has_the_same_columns_everywhere(tmp_path):
    lines = run("models", cwd=tmp_path).stdout.splitlines()
    assert {line.count("\t") for line in lines} == {8}
    assert lines[0].startswith("compact\tbundled\t")
    assert any(line.startswith("open_clip:ViT-B-32/openai\tknown\t151.3 M\t512") for line in lines)


def test_measuring_is_kept(tmp_path):
    done = run("models", "--measure", "compact", "--json", cwd=tmp_path)
    assert "images/s" in done.stderr
    row = next(row for row in json.loads(done.stdout)["models"] if row["name"] == "compact")
    assert row["images_per_second"] > 1
    assert row["query_ms"] > 0
    assert "CPU" in row["device"]
    again = json.loads(run("models", "--json", cwd=tmp_path).stdout)["models"]
    assert row in again
    (file,) = (root() / "speeds").iterdir()
    file.write_text('{"name": "compact"}')
    again = json.loads(run("models", "--json", cwd=tmp_path).stdout)["models"]
    assert next(r for r in again if r["name"] == "compact")["images_per_second"] is None
    wrong = run("models", "--measure", "nonsense", cwd=tmp_path, code=1)
    assert "no encoder 'nonsense'" in wrong.stderr


def test_images_a_second_are_those_of_the_clock(monkeypatch):
    """Each batch of four takes two seconds, each text half of one, by a clock of our own."""
    now = [0.0]

    class Slow(ColourEncoder):
        def _encode_pixels(self, pixels):
            now[0] += 2.0 if self.embedded_images else 100.0  # Loading is not counted.
            return super()._encode_pixels(pixels)

        def _encode_texts(self, texts):
            now[0] += 0.5 if self.embedded_texts else 100.0
            return super()._encode_texts(texts)

    monkeypatch.setattr("mmsearch.retrieval.encoders.speed.time.perf_counter", lambda: now[0])
    found = measure(Slow())
    assert (found.images_per_second, found.query_ms) == (2.0, 500.0)
    found.write()
    assert Speed.read("colour") == found
    assert Speed.kept() == [found]


def test_listing_loads_nothing_heavy(tmp_path):
    store_export("hf:some/thing", spec={})
    code = (
        "import sys; sys.argv[1:] = ['models', '--json']\n"
        "from mmsearch.cli import app\n"
        "app(standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'open_clip', 'onnxruntime', 'faiss', 'sqlalchemy'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stderr.strip() == "[]"


def test_known_models_are_told_with_their_sources():
    models = known_models()
    names = [name for model in models for name in (model.name, model.also) if name]
    assert len(names) == len(set(names))
    for model in models:
        assert model.name == "compact" or is_source(model.name)
        if model.recall is not None:
            assert model.recall.source
            # More captions than pictures: the way from a picture is the easier one.
            assert 0 < model.recall.text_to_image < model.recall.image_to_text < 100
    assert load_encoder("compact").dim == models[0].dim


def test_known_names_of_open_clip_are_its_own():
    open_clip = pytest.importorskip("open_clip")
    pairs = set(open_clip.list_pretrained())
    for model in known_models():
        kind, _, rest = model.name.partition(":")
        if kind == "open_clip":
            name, _, tag = rest.partition("/")
            config = open_clip.get_model_config(name)
            assert (name, tag) in pairs
            assert config["embed_dim"] == model.dim
            assert config["vision_cfg"]["image_size"] == model.size


def test_the_device_is_the_processor_unless_said():
    assert Encoder.device == ""
