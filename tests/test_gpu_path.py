"""What happens on a GPU: its decisions, tried with stand-ins; marked tests need a real one."""

from __future__ import annotations

import multiprocessing.connection
import os
import signal
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from mmsearch.errors import ModelError  # noqa: E402
from mmsearch.retrieval.encoders import batch_size, cache, parallel  # noqa: E402
from mmsearch.retrieval.encoders.batch_size import (  # noqa: E402
    BatchSize,
    Settings,
    largest_useful,
)
from mmsearch.retrieval.encoders.parallel import ParallelEncoder  # noqa: E402
from mmsearch.retrieval.encoders.pipeline import Transfer, overlapped  # noqa: E402
from mmsearch.retrieval.encoders.sources import load_dual_encoder  # noqa: E402
from mmsearch.retrieval.encoders.torch_encoder import TorchEncoder  # noqa: E402
from mmsearch.retrieval.encoders.torch_runner import Runner, best_precision  # noqa: E402
from tests import checkpoints  # noqa: E402
from tests.checkpoints import TEXTS, pictures  # noqa: E402

# The model libraries' own.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)

FULL = torch.OutOfMemoryError


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu") / "clip"
    checkpoints.write_transformers(folder, "clip")
    return f"hf:{folder}"


class Device:
    """Takes up to `room` pictures; computes them in `start + each * n` seconds, at best `best`."""

    def __init__(self, room, start=0.01, each=0.001):
        self.room, self.start, self.each = room, start, each
        self.tried = []

    def seconds(self, size):
        self.tried.append(size)
        if size > self.room:
            raise FULL("CUDA out of memory")
        return self.start + self.each * size


@pytest.mark.parametrize(
    ("device", "found"),
    [
        (Device(room=100, start=10.0), 64),  # Always faster: as many as fit.
        (Device(room=10**6, start=10.0), 512),
        (Device(room=10**6, start=0.0), 16),  # Never faster.
        (Device(room=10**6, start=0.008), 128),  # n/(8+n): +5.9 % to 128, +3.0 % to 256.
        (Device(room=5, start=10.0), 4),
        (Device(room=1, start=10.0), 1),
        (Device(room=0), 1),  # Running one picture then says so.
    ],
)
def test_the_batch_size_that_is_found(device, found):
    assert largest_useful(device.seconds, out_of_memory=FULL) == found
    assert len(device.tried) == len(set(device.tried))


@given(st.integers(1, 300), st.integers(0, 500), st.integers(1, 40))
def test_pieces_cover_a_batch_in_order_whatever_fits(size, count, room):
    changes = []
    sizes = BatchSize(size, out_of_memory=FULL, changed=changes.append)

    def piece(start, end):
        if end - start > room:
            raise FULL
        return list(range(start, end))

    found = sizes.run(count, piece)
    assert [row for part in found for row in part] == list(range(count))
    assert all(len(part) <= room for part in found)
    # Learned: the next batch runs without another failure.
    before = list(changes)
    sizes.run(count, piece)
    assert changes == before
    assert changes == sorted(changes, reverse=True)
    # Never smaller than needs be.
    assert not changes or changes[-1] >= room // 2


def test_one_picture_that_does_not_fit_is_an_error_that_helps():
    def piece(start, end):
        raise FULL

    with pytest.raises(ModelError, match="CUDA_VISIBLE_DEVICES= mmsearch"):
        BatchSize(8, out_of_memory=FULL).run(3, piece)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def piece(start, end):
        raise RuntimeError("device-side assert")

    with pytest.raises(RuntimeError, match="assert"):
        BatchSize(8, out_of_memory=FULL).run(3, piece)


def test_what_was_measured_is_kept_for_a_device_and_a_model(monkeypatch):
    found = Settings(96, "fp16")
    assert Settings.read("H100 80 GiB", "ab" * 32) is None
    found.write("H100 80 GiB", "ab" * 32)
    assert Settings.read("H100 80 GiB", "ab" * 32) == found
    assert Settings.read("H100 80 GiB", "cd" * 32) is None
    assert Settings.read("T4 16 GiB", "ab" * 32) is None
    later = time.time() + batch_size.KEPT_SECONDS + 1
    monkeypatch.setattr(batch_size.time, "time", lambda: later)
    assert Settings.read("H100 80 GiB", "ab" * 32) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"batch": "x"}', '{"batch": -1, "written": 1e12}']
)
def test_damaged_settings_are_measured_again(text):
    Settings(8, "fp16").write("device", "model")
    (file,) = (cache.root() / "batches").iterdir()
    file.write_text(text)
    assert Settings.read("device", "model") is None


def test_settings_that_cannot_be_kept_are_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MMSEARCH_CACHE", str(tmp_path / "file"))
    Settings(8, "fp16").write("device", "model")
    assert Settings.read("device", "model") is None


@pytest.mark.parametrize(
    ("cosines", "precision"),
    [
        ({"fp16": 0.9999, "bf16": 0.9995}, "fp16"),
        ({"fp16": float("nan"), "bf16": 0.9995}, "bf16"),  # One that overflows.
        ({"fp16": 0.9, "bf16": 0.998}, "fp32"),
    ],
)
def test_16_bits_only_where_vectors_stay_the_same(cosines, precision):
    assert best_precision(cosines.__getitem__) == precision


def test_the_next_batch_is_sent_before_an_answer_is_waited_for():
    events = []

    def step(name):
        def do(value):
            events.append(f"{name}{value}")
            return value

        return do

    found = list(overlapped(range(3), step("send"), step("compute"), step("receive")))
    assert found == [0, 1, 2]
    assert events == [
        "send0", "compute0", "send1", "receive0", "compute1", "send2", "receive1",
        "compute2", "receive2",
    ]  # fmt: skip
    assert list(overlapped([], step("send"), step("compute"), step("receive"))) == []


def test_at_most_two_batches_are_there_at_once():
    there, most = 0, 0

    def send(batch):
        nonlocal there, most
        there += 1
        most = max(most, there)
        return batch

    def receive(answer):
        nonlocal there
        there -= 1
        return answer

    assert list(overlapped(iter(range(50)), send, lambda sent: sent, receive)) == list(range(50))
    assert (there, most) == (0, 2)


def test_without_a_gpu_a_runner_is_the_model(clip):
    model = load_dual_encoder(clip)
    runner = Runner(model, torch.device("cpu"), "ab")
    assert (runner.batch_size, runner.settings) == (32, Settings(32, "fp32"))
    pixels = np.stack([model.preprocess(image) for image in pictures(4)] * 17)  # 68: three pieces.
    with torch.inference_mode():
        wanted = model.encode_images(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(runner.images(pixels), wanted, atol=1e-6)
    assert not (cache.root() / "batches").exists()


def test_memory_that_ends_costs_no_picture_and_is_learned(clip, monkeypatch):
    """As on a GPU whose memory another program takes in the middle of a run."""
    model = load_dual_encoder(clip)
    encoder = TorchEncoder(model, location=clip, device="cpu")
    wanted = encoder.encode_images(pictures(20))
    whole, failures = model.encode_images, []

    def cramped(pixels):
        if len(pixels) > 6:
            failures.append(len(pixels))
            raise FULL("CUDA out of memory. Tried to allocate …")
        return whole(pixels)

    monkeypatch.setattr(model, "encode_images", cramped)
    monkeypatch.setattr(Runner, "_device_name", "cramped")
    np.testing.assert_allclose(encoder.encode_images(pictures(20)), wanted, atol=1e-5)
    assert failures == [20, 10]
    assert encoder.batch_size == 5
    assert Settings.read("cramped", encoder.spec.weights_sha256) == Settings(5, "fp32")
    encoder.encode_images(pictures(20))
    assert len(failures) == 2


def test_a_processor_transfers_plainly():
    transfer = Transfer(torch.device("cpu"))
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    there = transfer.arrived(transfer.send(values))
    assert there.dtype == torch.uint8
    np.testing.assert_array_equal(transfer.receive(there), values.astype(np.float32))


def test_several_devices_answer_as_one_does(clip):
    """Two processes on the CPU; what they are for is several GPUs."""
    model = load_dual_encoder(clip)
    one = TorchEncoder(model, location=clip, device="cpu")
    wanted_images, wanted_texts = one.encode_images(pictures(7)), one.encode_texts(TEXTS * 3)
    many = ParallelEncoder(clip, ["cpu", "cpu"], model.spec(), model.preprocess)
    assert (many.spec, many.location, many.batch_size) == (one.spec, clip, 64)
    np.testing.assert_allclose(many.encode_images(pictures(7)), wanted_images, atol=1e-5)
    np.testing.assert_allclose(many.encode_images(pictures(1)), wanted_images[:1], atol=1e-5)
    np.testing.assert_allclose(many.encode_texts(TEXTS * 3), wanted_texts, atol=1e-5)
    assert many.encode_images([]).shape == (0, 24)
    # One that dies, as the system's guard of memory ends it, is an error that says so.
    victim = many._workers[1].submit(os.getpid).result()
    os.kill(victim, signal.SIGKILL)
    multiprocessing.connection.wait([many._workers[1]._processes[victim].sentinel], timeout=30)
    with pytest.raises(ModelError, match="CUDA_VISIBLE_DEVICES=0"):
        many.encode_images(pictures(7))
    parallel._stop(many._workers)


def test_a_model_that_is_not_there_is_an_error_of_every_process(clip):
    model = load_dual_encoder(clip)
    with pytest.raises(ModelError, match="ended"):
        ParallelEncoder("hf:/nowhere", ["cpu"], model.spec(), model.preprocess)


@pytest.mark.gpu
def test_a_gpu_gives_the_vectors_of_the_processor(clip):
    model = load_dual_encoder(clip)
    plain = TorchEncoder(load_dual_encoder(clip), location=clip, device="cpu")
    encoder = TorchEncoder(model, location=clip, device="cuda")
    assert encoder.spec == plain.spec
    images = pictures(4) * 40
    cosine = (encoder.encode_images(images) * plain.encode_images(images)).sum(axis=1)
    assert cosine.min() > 0.999
    assert (encoder.encode_texts(TEXTS) * plain.encode_texts(TEXTS)).sum(axis=1).min() > 0.999
    kept = Settings.read(encoder._runner._device_name, encoder.spec.weights_sha256)
    assert kept == encoder._runner.settings


@pytest.mark.gpu
def test_a_gpu_that_is_full_takes_smaller_batches(clip):
    model = load_dual_encoder(clip)
    encoder = TorchEncoder(model, location=clip, device="cuda")
    wanted = encoder.encode_images(pictures(4) * 64)
    encoder._runner._sizes.size = 256
    free, _ = torch.cuda.mem_get_info()
    taken = torch.empty(max(0, free - (24 << 20)), dtype=torch.uint8, device="cuda")
    np.testing.assert_allclose(encoder.encode_images(pictures(4) * 64), wanted, atol=1e-3)
    del taken
