"""`mmsearch train` on several machines, as torchrun starts it: two agents, one process each."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")
pytest.importorskip("matplotlib")

from safetensors.torch import load_file  # noqa: E402

from tests.test_train import BY_HEART, drawn, environment, tiny  # noqa: E402

__all__ = ["drawn", "tiny"]

pytestmark = pytest.mark.slow


def arguments(drawn: Path, tiny: Path, output: Path, *more: str) -> list[str]:
    return [
        *("-m", "mmsearch.cli", "train", str(drawn / "pairs.tsv"), "--images", str(drawn)),
        *("--output", str(output), "--from", f"open_clip:local-dir:{tiny}", *BY_HEART),
        *("--held-out=0", "--json", *more),
    ]


def agents(words: list[str]) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2"),
                *("--nproc-per-node=1", f"--node-rank={rank}", "--rdzv-backend=c10d"),
                *(f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=7", "--local-addr=127.0.0.1"),
                *words,
            ],
            env=environment() | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for rank in range(2)
    ]


def test_two_machines_learn_what_one_does(drawn, tiny, tmp_path):
    """The negatives of both are gathered: else the loss of a half batch would be another."""
    alone = tmp_path / "alone"
    subprocess.run(
        [sys.executable, *arguments(drawn, tiny, alone, "--epochs=4")],
        env=environment() | {"OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=300,
    )
    both = tmp_path / "both"
    running = agents(arguments(drawn, tiny, both, "--epochs=4"))
    said = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    (report,) = [json.loads(out) for out, _ in said if out.strip()]
    assert report["processes"] == 2
    one, two = (load_file(folder / "model.safetensors") for folder in (alone, both))
    assert one.keys() == two.keys()
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights, rtol=1e-3, atol=1e-4)


def test_a_machine_that_is_lost_is_told_and_the_rest_resumed(drawn, tiny, tmp_path):
    output = tmp_path / "model"
    words = arguments(drawn, tiny, output, "--epochs=200", "--checkpoint-every=5")
    running = agents(words)
    state = tmp_path / "model.training" / "checkpoint.safetensors"
    end = time.monotonic() + 200
    while not state.exists():
        assert time.monotonic() < end
        assert all(process.poll() is None for process in running)
        time.sleep(0.1)
    # The agent and its process go at once, as with a machine's power; the other one is left.
    for victim in (running[1].pid, *children(running[1].pid)):
        os.kill(victim, signal.SIGKILL)
    told = running[0].communicate(timeout=200)[1]
    running[1].communicate()
    assert running[0].returncode != 0
    lines = [line for line in told.splitlines() if line.startswith("mmsearch: ")]
    assert len(lines) == 1, told
    assert "Another process of this training ended" in lines[0]
    assert "--resume" in lines[0]
    assert not output.exists()

    again = agents(
        [*arguments(drawn, tiny, output, "--epochs=200"), "--checkpoint-every=5", "--resume"]
    )
    said = [process.communicate(timeout=500) for process in again]
    assert [process.returncode for process in again] == [0, 0], said
    assert (output / "model.safetensors").is_file()


def children(parent: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(status.parent.name))
    return found
