"""`mmsearch train` as a user meets it: a tiny open_clip model, made on the spot, in processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")
pytest.importorskip("matplotlib")

from safetensors.torch import load_file  # noqa: E402

from mmsearch.errors import MmsearchError  # noqa: E402
from mmsearch.retrieval.commands.train import stop_on_signal  # noqa: E402
from mmsearch.retrieval.encoders.sources import load_dual_encoder  # noqa: E402
from mmsearch.retrieval.training import session  # noqa: E402
from mmsearch.retrieval.training.loop import Interrupted  # noqa: E402
from mmsearch.retrieval.training.recipe import Loss, Recipe, Trainable  # noqa: E402
from tests.tiny_training import draw_pairs, tiny_clip  # noqa: E402

# What a training needs to learn by heart; the defaults are made to prevent it.
BY_HEART = [
    *("--batch=64", "--learning-rate=0.003", "--tower-rate=1", "--weight-decay=0"),
    *("--dropout=0", "--crop=1", "--colour=0", "--average=0", "--seed=1", "--threads=1"),
]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn pictures in a folder with a space in its name."""
    return draw_pairs(tmp_path_factory.mktemp("drawn") / "my drawings")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("tiny"))


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "mmsearch.cli", *map(str, arguments)]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "TRANSFORMERS_OFFLINE": "1"}


def run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def train(drawn: Path, tiny: Path, output: Path, *options: object, code: int = 0, pairs=None):
    return run(
        "train",
        pairs or drawn / "pairs.tsv",
        "--images",
        drawn,
        "--from",
        f"open_clip:local-dir:{tiny}",
        "--output",
        output,
        *options,
        code=code,
    )


def test_it_learns_drawn_pictures_and_the_model_works_everywhere(drawn, tiny, tmp_path):
    model = tmp_path / "my model"
    done = train(drawn, tiny, model, *BY_HEART, "--held-out=0", "--epochs=100", "--json")
    report = json.loads(done.stdout)
    assert report["steps"] == 100
    assert report["pictures"] == 64
    assert report["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert not (tmp_path / "my model.training").exists()
    measured = run(
        "evaluate", drawn / "pairs.tsv", "--images", drawn, "--model", model, "--json"
    ).stdout
    recall = json.loads(measured)
    assert recall["text_to_image"]["R@1"] > 95
    assert recall["image_to_text"]["R@1"] > 95
    # The whole way of a user: index, ask, by the model's own name.
    photos = tmp_path / "photos"
    shutil.copytree(drawn, photos)
    run("index", photos, "--model", model)
    found = json.loads(
        run("query", "a red circle on a white ground", "-L", photos, "--json", "-k", 3).stdout
    )
    assert found["results"][0]["path"] == "red-circle-white.png"
    lines = (model / "curve.csv").read_text().splitlines()
    assert len(lines) == 101
    assert lines[0].startswith("step,epoch,loss")
    with Image.open(model / "curve.png") as picture:
        assert min(picture.size) > 200
    recorded = json.loads((model / "model.json").read_text())["extra"]["training"]
    assert recorded["recipe"]["seed"] == 1
    assert recall["model"].startswith("my model@")
    # Altered weights are noticed wherever they are read.
    weights = model / "image.onnx"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    told = run("query", "--image", photos / "red-circle-white.png", "-L", photos, code=1).stderr
    assert "image.onnx" in told
    assert "SHA-256" in told
    weights.unlink()
    told = run("query", "--image", photos / "red-circle-white.png", "-L", photos, code=1).stderr
    assert "lacks" in told


def test_killed_and_resumed_it_ends_with_the_same_weights(drawn, tiny, tmp_path):
    options = ["--epochs=6", "--batch=16", "--checkpoint-every=2", "--threads=1", "--seed=3"]
    options += ["--hard-negatives=0.5", "--patience=0", "--learning-rate=0.001"]
    train(drawn, tiny, tmp_path / "whole", *options)
    cut = tmp_path / "cut"
    arguments = ["train", drawn / "pairs.tsv", "--images", drawn, "--output", cut]
    arguments += ["--from", f"open_clip:local-dir:{tiny}", *options]
    process = subprocess.Popen(
        command(*arguments), env=environment(), stderr=subprocess.DEVNULL, text=True
    )
    checkpoint = tmp_path / "cut.training" / "checkpoint.safetensors"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert checkpoint.exists()
    assert not cut.exists(), "it was over before it was killed"
    again = train(drawn, tiny, cut, *options, code=1).stderr
    assert "--resume" in again
    train(drawn, tiny, cut, *options, "--resume")
    one, other = (load_file(f / "model.safetensors") for f in (tmp_path / "whole", cut))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    tables = [
        [line.split(",")[:4] for line in (folder / "curve.csv").read_text().splitlines()]
        for folder in (tmp_path / "whole", cut)
    ]
    assert tables[0] == tables[1]


def test_an_interrupt_saves_and_says_how_to_go_on(drawn, tiny, tmp_path):
    output = tmp_path / "model"
    options = ["--epochs=500", "--batch=16", "--threads=1", "--held-out=0"]
    arguments = ["train", drawn / "pairs.tsv", "--images", drawn, "--output", output]
    arguments += ["--from", f"open_clip:local-dir:{tiny}", "--checkpoint-every=1", *options]
    process = subprocess.Popen(
        command(*arguments), env=environment(), stderr=subprocess.PIPE, text=True
    )
    checkpoint = tmp_path / "model.training" / "checkpoint.safetensors"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in told
    assert "Traceback" not in told
    assert not output.exists()


def test_an_interrupt_before_the_first_step_does_not_wait_for_it():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        should_stop = stop_on_signal()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert not should_stop()
        signal.raise_signal(signal.SIGINT)
        assert should_stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_it_goes_on_with_smaller_chunks_where_memory_was_short(drawn, tiny, tmp_path):
    def go(**options):
        chunk = options.pop("chunk", 0)
        return session.train(
            session.Pairs(drawn / "pairs.tsv", drawn),
            tmp_path / "model",
            source=f"open_clip:local-dir:{tiny}",
            recipe=Recipe(epochs=1, batch=16, chunk=chunk),
            run=session.Run(threads=1, **options),
        )

    with pytest.raises(Interrupted):
        go(should_stop=lambda: True)
    assert len(go(resume=True, chunk=4).outcome.history) == 3


def test_the_temperature_asked_for_is_the_one_that_sigmoids_begin_with(drawn, tiny, tmp_path):
    for given, scale in ((0.05, 20.0), (0.0, 10.0)):
        session.train(
            session.Pairs(drawn / "pairs.tsv", drawn, held_out=0.0),
            tmp_path / "model",
            source=f"open_clip:local-dir:{tiny}",
            recipe=Recipe(
                epochs=1, batch=64, loss=Loss.SIGMOID, temperature=given, learning_rate=0.0
            ),
            run=session.Run(threads=1),
        )
        state = load_file(tmp_path / "model" / "model.safetensors")
        assert state["log_scale.value"].exp().item() == pytest.approx(scale)
        assert state["log_bias"].item() == pytest.approx(-10.0)


def test_of_two_processes_one_writes_and_tells(drawn, tiny, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    arguments = ["train", drawn / "pairs.tsv", "--images", drawn, "--output", tmp_path / "model"]
    arguments += ["--from", f"open_clip:local-dir:{tiny}", "--epochs=1", "--threads=1", "--json"]
    running = [
        subprocess.Popen(
            command(*arguments),
            env=environment()
            | {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    assert json.loads(said[0][0])["processes"] == 2
    assert said[1] == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def refused(drawn, tiny, output, *, pairs=None, recipe=None, source=None, run=None) -> str:
    """Return what a training that cannot begin says; nothing is left where the model would be."""
    with pytest.raises(MmsearchError) as error:
        session.train(
            session.Pairs(pairs or drawn / "pairs.tsv", drawn),
            output,
            source=source or f"open_clip:local-dir:{tiny}",
            recipe=recipe,
            run=run,
        )
    assert not output.exists()
    assert not session.working_folder(output).exists()
    return str(error.value)


def test_impossible_settings_are_explained(drawn, tiny, tmp_path):
    model = tmp_path / "model"
    told = train(drawn, tiny, model, "--batch=1", "--crop=2", code=1).stderr
    assert "--batch must be 2 or more, not 1" in told
    with pytest.raises(MmsearchError, match=r"--crop must be between 0\.05 and 1, not 2"):
        Recipe(crop=2)
    assert "no model 'nowhere'" in refused(drawn, tiny, model, source="nowhere")
    assert "/no/such/folder" in refused(drawn, tiny, model, source="hf:/no/such/folder")
    told = refused(drawn, tiny, model, run=session.Run(device="abacus"))
    assert "no device 'abacus'" in told
    # Told before anything is read, or loaded.
    assert "Start it without --resume" in refused(
        drawn, tiny, model, source="nowhere", pairs=tmp_path / "gone", run=session.Run(resume=True)
    )
    assert "no device 'meta'" in refused(drawn, tiny, model, run=session.Run(device="meta"))
    told = train(drawn, tiny, model, "--threads=-1", code=1).stderr
    assert "--threads must be 0 or more, not -1" in told
    told = train(drawn, tiny, model, "--held-out=1.5", code=1).stderr
    assert "--held-out must be 0 or more, and below 1, not 1.5" in told
    told = train(drawn, tiny, model, "--distillation=1", code=2).stderr
    assert "--teacher" in told
    told = train(drawn, tiny, model, "--classes=1", code=2).stderr
    assert "--class-probabilities" in told
    if not torch.cuda.is_available():
        assert "no GPU" in refused(drawn, tiny, model, run=session.Run(device="cuda"))


def test_bad_pairs_are_explained(drawn, tiny, tmp_path):
    pairs = tmp_path / "pairs.tsv"

    def told(content: str) -> str:
        pairs.write_text(content)
        return refused(drawn, tiny, tmp_path / "m", pairs=pairs)

    good = "red-circle-white.png\ta red circle\n"
    assert "row 3: there is no picture gone.png" in told(f"path\tcaption\n{good}gone.png\tno\n")
    assert "row 2: the caption is empty" in told("path\tcaption\nred-circle-white.png\t \n")
    assert "no column 'caption'" in told("path\twords\nred-circle-white.png\tred\n")
    assert "at least two different pictures" in told(f"path\tcaption\n{good}")
    broken = drawn / "broken.png"
    broken.write_bytes((drawn / "red-circle-white.png").read_bytes()[:60])
    try:
        rest = "blue-cross-pink.png\ta blue cross\ngreen-cross-pink.png\ta green cross\n"
        assert "broken.png" in told(f"path\tcaption\n{good}broken.png\tbroken\n{rest}")
        options = ("--skip-broken", "--epochs=1", "--batch=2", "--threads=1", "--json")
        done = train(drawn, tiny, tmp_path / "m", *options, pairs=pairs)
        assert [name for name, _ in json.loads(done.stdout)["skipped"]] == ["broken.png"]
        assert "broken.png" in done.stderr
    finally:
        broken.unlink()


def test_a_place_that_cannot_be_written_to_is_explained(drawn, tiny, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MmsearchError, match=r"cannot be made: Not a directory.*--output"):
        session.train(session.Pairs(drawn / "pairs.tsv", drawn), tmp_path / "file" / "model")


def test_a_folder_of_something_else_is_not_overwritten(drawn, tmp_path):
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    with pytest.raises(MmsearchError, match="thesis"):
        session.train(session.Pairs(drawn / "pairs.tsv", drawn), precious)
    assert [path.name for path in precious.iterdir()] == ["thesis.tex"]


def test_heads_alone_low_rank_updates_and_a_locked_image_tower(drawn, tiny, tmp_path):
    source = f"open_clip:local-dir:{tiny}"
    before = load_dual_encoder(source).state_dict()
    for trainable in (Trainable.HEADS, Trainable.LORA, Trainable.TEXT):
        output = tmp_path / trainable
        recipe = Recipe(
            trainable=trainable, epochs=4, batch=64, learning_rate=3e-3, tower_rate=1.0, average=0.0
        )
        session.train(
            session.Pairs(drawn / "pairs.tsv", drawn, held_out=0.0),
            output,
            source=source,
            recipe=recipe,
            run=session.Run(threads=1),
        )
        state = load_file(output / "model.safetensors")
        assert state.keys() == before.keys() - {"log_bias"}
        changed = {name for name, value in state.items() if not torch.equal(value, before[name])}
        assert changed
        towers = {name.partition(".")[0] for name in changed}
        match trainable:
            case Trainable.HEADS:
                assert towers <= {"image_head", "text_head", "log_scale"}
            case Trainable.LORA:
                assert {"image_tower", "text_tower"} <= towers
                moved = next(n for n in sorted(changed) if n.endswith("mlp.c_fc.weight"))
                update = (state[moved] - before[moved]).numpy()
                assert np.linalg.matrix_rank(update, tol=1e-5) <= 8
            case Trainable.TEXT:
                assert "text_tower" in towers
                assert "image_tower" not in towers
