"""Trainings that are killed at instants drawn from a seed end with the bits of one that was not.

Three instants by default, thirty with the marker `slow`; steps, checkpoints, the export and what
comes after it are all within their reach.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")
pytest.importorskip("matplotlib")

from safetensors.torch import load_file  # noqa: E402

import mmsearch  # noqa: E402
from mmsearch.retrieval.encoders.sources import load_dual_encoder  # noqa: E402
from mmsearch.retrieval.training import export, session  # noqa: E402
from mmsearch.retrieval.training.checkpoint import Checkpoint  # noqa: E402
from tests.test_faults import Server  # noqa: E402
from tests.tiny_training import draw_pairs, tiny_clip  # noqa: E402

OPTIONS = (
    *("--epochs=3", "--batch=16", "--checkpoint-every=2", "--threads=1", "--seed=3"),
    *("--hard-negatives=0.5", "--patience=0", "--learning-rate=0.001"),
)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    made = Server("train")
    yield made
    made.close()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_pairs(tmp_path_factory.mktemp("drawn") / "my drawings")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("tiny"))


class Training:
    """A training into a folder of its own, by the command line."""

    def __init__(self, server: Server, drawn: Path, tiny: Path, folder: Path) -> None:
        self._server = server
        self.folder, self.output = folder, folder / "model"
        folder.mkdir()
        self.checkpoint = session.working_folder(self.output) / "checkpoint.safetensors"
        self._arguments = ["train", str(drawn / "pairs.tsv"), "--images", str(drawn)]
        self._arguments += ["--from", f"open_clip:local-dir:{tiny}", "--output", str(self.output)]
        self._arguments += OPTIONS

    def run(self, after: float | None = None) -> tuple[int, float]:
        """Begin, or go on where there is something to go on with, as the messages advise."""
        resume = ["--resume"] if self.checkpoint.exists() else []
        file = self.folder / "arguments.json"
        file.write_text(json.dumps([*self._arguments, *resume]))
        try:
            return self._server.run("train", self.folder, after)
        finally:
            file.unlink()

    def check(self) -> None:
        """What is there after a kill is whole: the checkpoint, and the model."""
        if self.checkpoint.exists():
            Checkpoint.load(self.checkpoint)
        if self.output.exists():
            load_dual_encoder(self.output)
            assert mmsearch.load_encoder(self.output).encode_texts(["a red cross"]).shape == (1, 32)

    def ended(self) -> dict[str, bytes]:
        """Return what must be the same, however often it was killed; nothing else is left."""
        assert [path.name for path in self.folder.iterdir()] == ["model"]
        assert {path.name for path in self.output.iterdir()} >= export.OWN_FILES
        found = {
            name: value.numpy().tobytes()
            for name, value in load_file(self.output / "model.safetensors").items()
        }
        rows = [row.split(",")[:4] for row in (self.output / "curve.csv").read_text().splitlines()]
        return found | {"curve": json.dumps(rows).encode()}


def kill(
    server: Server, drawn: Path, tiny: Path, folder: Path, count: int, seed: int
) -> dict[str, int]:
    """Kill trainings at so many instants, each going on until it ends; return what was hit."""
    whole = Training(server, drawn, tiny, folder / "whole")
    status, seconds = whole.run()
    assert status == 0
    expected = whole.ended()
    chance = random.Random(seed)
    hit = {"before the first checkpoint": 0, "between checkpoints": 0, "writing the model": 0}
    number, one = 0, Training(server, drawn, tiny, folder / "0")
    killed = 0
    while killed < count:
        status, _ = one.run(chance.uniform(0, 1.05 * seconds))
        if status == -signal.SIGKILL:
            killed += 1
            writing = one.output.exists() or any(one.folder.glob(".model.*"))
            begun = "between checkpoints" if one.checkpoint.exists() else next(iter(hit))
            hit["writing the model" if writing else begun] += 1
            one.check()
            continue
        assert status == 0
        assert one.ended() == expected
        shutil.rmtree(one.folder)
        number += 1
        one = Training(server, drawn, tiny, folder / str(number))
    finished = one.output.exists() and not one.checkpoint.exists()
    assert finished or one.run()[0] == 0
    if not finished:
        assert one.ended() == expected
    return hit


def test_what_a_killed_process_left_is_cleared_up(tmp_path: Path) -> None:
    """In the two moments in which a model is replaced, and before; files of others stay."""
    own = {"model.json"}

    def write(part: Path) -> None:
        (part / "model.json").write_text("new")

    for moment in ("before", "between", "after"):
        folder = tmp_path / moment / "my [model].1"
        there = folder if moment == "before" else folder.with_name(".my [model].1.00c0ffee.former")
        there.mkdir(parents=True)
        (there / "model.json").write_text("old")
        (there / "notes of mine.txt").write_text("precious")
        if moment == "after":
            folder.mkdir()
            (folder / "model.json").write_text("newer")
        folder.with_name(".my [model].1.0badcafe.part").mkdir()
        beside = folder.with_name(".my [model].1.other.0badcafe.part")
        beside.mkdir()
        export.put_whole(folder, own, write)
        assert (folder / "model.json").read_text() == "new"
        assert (folder / "notes of mine.txt").read_text() == "precious"
        assert sorted(path.name for path in folder.parent.iterdir()) == [beside.name, folder.name]


def test_a_finished_training_is_not_begun_anew_by_mistake(tmp_path: Path) -> None:
    """As after a kill while the last state is deleted: the model is there, and that is said."""
    output = tmp_path / "model"
    output.mkdir()
    (output / "model.json").write_text("{}")
    with pytest.raises(mmsearch.MmsearchError, match=r"the model at .* is complete"):
        session.prepare_folder(output, resume=True)


def test_killed_while_training(server: Server, drawn: Path, tiny: Path, tmp_path: Path) -> None:
    assert sum(kill(server, drawn, tiny, tmp_path, 3, seed=1).values()) == 3


@pytest.mark.slow
def test_killed_while_training_at_thirty_instants(
    server: Server,
    drawn: Path,
    tiny: Path,
    tmp_path: Path,
) -> None:
    hit = kill(server, drawn, tiny, tmp_path, 30, seed=16)
    assert min(hit["between checkpoints"], hit["writing the model"]) > 0, hit
