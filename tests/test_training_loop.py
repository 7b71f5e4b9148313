from __future__ import annotations

import copy
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from torch import nn  # noqa: E402

from mmsearch.errors import TrainingError  # noqa: E402
from mmsearch.retrieval.losses import LogScale, info_nce  # noqa: E402
from mmsearch.retrieval.training.batches import Batch  # noqa: E402
from mmsearch.retrieval.training.checkpoint import Checkpoint  # noqa: E402
from mmsearch.retrieval.training.gradient_cache import backward_in_chunks  # noqa: E402
from mmsearch.retrieval.training.hard_negatives import Memory  # noqa: E402
from mmsearch.retrieval.training.loop import Interrupted, TrainingLoop  # noqa: E402
from mmsearch.retrieval.training.objective import Objective  # noqa: E402
from mmsearch.retrieval.training.optimization import (  # noqa: E402
    Average,
    make_optimizer,
    rate_at,
    set_rate,
)
from mmsearch.retrieval.training.recipe import Loss, Precision, Recipe  # noqa: E402
from mmsearch.retrieval.training.teachers import SimilarityTeacher  # noqa: E402

PAIRS, STEPS = 24, 3
RECIPE = Recipe(
    epochs=4, batch=8, learning_rate=0.01, tower_rate=1.0, dropout=0.0, average=0.5, patience=0
)


class Toy(nn.Module):
    """Two small towers over vectors and token ids, with dropout."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image_tower = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Dropout(dropout))
        self.image_head = nn.Linear(16, 8)
        self.text_tower = nn.Embedding(PAIRS, 16)
        self.text_head = nn.Linear(16, 8)
        self.log_scale = LogScale()
        self.log_bias = nn.Parameter(torch.tensor(-5.0))

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.image_head(self.image_tower(images)), dim=-1)

    def encode_texts(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        states = self.text_tower(ids) * mask.unsqueeze(-1)
        return nn.functional.normalize(self.text_head(states.sum(1)), dim=-1)

    def head_parameters(self):
        yield from (*self.image_head.parameters(), *self.text_head.parameters())


class ToySource:
    """Pairs (vector i, token i) in an order that follows from the epoch."""

    steps = STEPS

    def __init__(self, part: tuple[int, int] = (0, 1), bad_step: int | None = None) -> None:
        random = torch.Generator().manual_seed(1)
        self.images = torch.randn(PAIRS, 6, generator=random)
        self.part = part
        self.bad_step = bad_step
        self.memories: list[bool] = []

    def epoch(self, number, first, memory):
        self.memories.append(memory is not None and bool(memory.images.any()))
        order = torch.randperm(PAIRS, generator=torch.Generator().manual_seed(number))
        for step in range(first, STEPS):
            rows = order[step * 8 : step * 8 + 8].chunk(self.part[1])[self.part[0]]
            images = self.images[rows].clone()
            if self.bad_step == number * STEPS + step:
                images[0] = math.nan
            ids = rows.unsqueeze(1)
            yield Batch(images, ids, torch.ones_like(ids), len(rows), rows, rows, rows, rows)


def make_loop(recipe=RECIPE, model=None, source=None, **options):
    model = model or Toy()
    loop = TrainingLoop(
        model, source or ToySource(), recipe, heads=model.head_parameters(), **options
    )
    return model, loop


def weights(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize("loss", list(Loss))
def test_it_learns(loss):
    recipe = Recipe(
        epochs=80, batch=8, learning_rate=0.03, tower_rate=1.0, loss=loss, average=0.0, patience=0
    )
    model, loop = make_loop(recipe, Toy(dropout=0.0))
    outcome = loop.run()
    source = ToySource()
    with torch.inference_mode():
        images = model.encode_images(source.images)
        ids = torch.arange(PAIRS).unsqueeze(1)
        texts = model.encode_texts(ids, torch.ones_like(ids))
    assert ((images @ texts.T).argmax(1) == torch.arange(PAIRS)).float().mean() > 0.95
    assert outcome.history[-1]["loss"] < 0.5 * outcome.history[0]["loss"]
    assert [row["step"] for row in outcome.history] == list(range(1, 241))


@pytest.mark.parametrize("chunk", [1, 3, 7])
@pytest.mark.parametrize("loss", list(Loss))
def test_chunks_give_the_gradients_of_the_whole_batch(chunk, loss):
    batch = next(ToySource().epoch(0, 0, None))
    recipe = Recipe(loss=loss, distillation=0.7)
    random = torch.Generator().manual_seed(5)
    teacher = SimilarityTeacher(*(torch.randn(PAIRS, 4, generator=random) for _ in range(2)))
    objective = Objective(recipe, teacher)

    def gradients(size):
        model = Toy(dropout=0.0).train()
        found, _ = backward_in_chunks(
            [
                (lambda x: model.encode_images(*x), (batch.images,)),
                (lambda x: model.encode_texts(*x), (batch.ids, batch.mask)),
            ],
            lambda rows: objective(rows[0], rows[1], batch, model, torch.tensor(0.0))[0],
            chunk=size,
        )
        return found, [p.grad for p in model.parameters() if p.grad is not None]

    whole_loss, whole = gradients(0)
    chunked_loss, chunked = gradients(chunk)
    assert chunked_loss.item() == pytest.approx(whole_loss.item(), rel=1e-6)
    assert len(whole) == len(chunked) > 5
    for one, other in zip(whole, chunked, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


def test_both_passes_over_a_chunk_draw_the_same_dropout():
    drawn = []
    layer = nn.Dropout(0.5)
    weight = torch.ones(6, 4, requires_grad=True)

    def encode(inputs):
        kept = layer(inputs[0] * weight[: len(inputs[0])])
        drawn.append(kept.detach().clone())
        return kept

    torch.manual_seed(3)
    backward_in_chunks([(encode, (torch.ones(6, 4),))], lambda rows: rows[0].sum(), chunk=2)
    assert len(drawn) == 6
    for first, second in zip(drawn[:3], drawn[3:], strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(drawn[0], drawn[1])


def test_several_texts_of_a_picture_and_equal_texts_are_no_negatives():
    # Pictures 7 and 8; texts 0 and 1 belong to 7, text 2 to 8; texts 1 and 2 say the same.
    batch = Batch(
        images=torch.zeros(2, 6),
        ids=torch.zeros(3, 1, dtype=torch.int64),
        mask=torch.ones(3, 1, dtype=torch.int64),
        pairs=2,
        pictures=torch.tensor([7, 8]),
        texts=torch.tensor([0, 1, 1]),
        rows=torch.tensor([0, 1]),
        captions=torch.arange(3),
        weights=torch.tensor([1.0, 0.5, 0.5]),
        owners=torch.tensor([7, 7, 8]),
    )
    images = nn.functional.normalize(torch.randn(2, 4), dim=-1)
    texts = nn.functional.normalize(torch.randn(3, 4), dim=-1)
    model = Toy()
    found, parts = Objective(Recipe())(images, texts, batch, model, torch.tensor(0.0))
    right = torch.tensor([[True, True, True], [False, True, True]])
    weights = torch.tensor([[1.0, 0.5, 0.5]]).expand(2, 3)
    expected = info_nce(images, texts, right, model.log_scale(), weights=weights)
    assert found.item() == pytest.approx(expected.item())
    assert parts == {"contrastive": pytest.approx(expected.item())}


@pytest.mark.parametrize("stop_after", [1, STEPS, 2 * STEPS + 1])
@pytest.mark.parametrize("chunk", [0, 3])
def test_a_stopped_training_ends_with_the_very_same_weights(tmp_path, stop_after, chunk):
    recipe = Recipe(**{**RECIPE.to_json(), "chunk": chunk, "hard_negatives": 0.5})
    score = iter(range(100))

    def run(folder, stop=None, resume=False):
        model, loop = make_loop(
            recipe,
            memory=Memory.empty(PAIRS, 8),
            validate=lambda: {"R@1": float(next(score))},
        )
        count = 0

        def should_stop():
            nonlocal count
            count += 1
            return stop is not None and count >= stop

        outcome = loop.run(
            checkpoint=folder / "state.safetensors",
            resume=resume,
            should_stop=should_stop,
            settings={"x": 1},
        )
        return model, outcome

    whole, outcome = run(tmp_path)
    part = tmp_path / "stopped"
    part.mkdir()
    score = iter(range(100))
    with pytest.raises(Interrupted) as stopped:
        run(part, stop=stop_after)
    assert stopped.value.step == stop_after
    continued, again = run(part, resume=True)
    assert torch.equal(weights(whole), weights(continued))
    assert [row["loss"] for row in outcome.history] == [row["loss"] for row in again.history]
    assert outcome.best_step == again.best_step == 4 * STEPS


def test_what_is_over_can_be_taken_up_again_to_write_its_model(tmp_path):
    file = tmp_path / "state.safetensors"
    whole, loop = make_loop()
    loop.run(checkpoint=file)
    again, loop = make_loop()
    outcome = loop.run(checkpoint=file, resume=True)
    assert len(outcome.history) == loop.steps
    assert torch.equal(weights(whole), weights(again))


def test_what_stopped_early_stays_so(tmp_path):
    file = tmp_path / "state.safetensors"
    recipe = Recipe(**{**RECIPE.to_json(), "epochs": 20, "patience": 2})
    scores = iter([10.0, 30.0, 20.0, 25.0])
    whole, loop = make_loop(recipe, validate=lambda: {"R@1": next(scores)})
    first = loop.run(checkpoint=file)
    again, loop = make_loop(recipe, validate=lambda: {"R@1": 99.0})
    outcome = loop.run(checkpoint=file, resume=True)
    assert outcome == first
    assert outcome.stopped_early
    assert torch.equal(weights(whole), weights(again))


def test_hard_negatives_see_the_embeddings_of_the_epoch_before():
    source = ToySource()
    make_loop(source=source, memory=Memory.empty(PAIRS, 8))[1].run()
    assert source.memories == [False, True, True, True]


def test_another_training_cannot_be_continued(tmp_path):
    file = tmp_path / "state.safetensors"
    make_loop()[1].run(checkpoint=file, checkpoint_every=1, settings={"pairs": "a"})
    with pytest.raises(TrainingError, match="another pairs: it began with a, now it is b"):
        make_loop()[1].run(checkpoint=file, settings={"pairs": "b"}, resume=True)


def test_damaged_and_missing_checkpoints_are_explained(tmp_path):
    file = tmp_path / "state.safetensors"
    with pytest.raises(TrainingError, match="Start it without --resume"):
        make_loop()[1].run(checkpoint=file, resume=True)
    make_loop()[1].run(checkpoint=file, checkpoint_every=1)
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(TrainingError, match="damaged"):
        make_loop()[1].run(checkpoint=file, resume=True)


def test_a_long_history_does_not_fill_the_header(tmp_path):
    # safetensors reads no header of more than 100 MB, which some 300,000 steps would fill.
    file = tmp_path / "state.safetensors"
    state = {"step": 1, "history": [{"step": i, "loss": math.inf} for i in range(5000)]}
    Checkpoint({"model.x": torch.ones(2)}, state, {"a": 1}).save(file)
    assert int.from_bytes(file.read_bytes()[:8], "little") < 1000
    again = Checkpoint.load(file)
    assert (again.state, again.settings, list(again.tensors)) == (state, {"a": 1}, ["model.x"])


def test_a_loss_that_is_no_number_names_the_step_and_spares_the_checkpoint(tmp_path):
    file = tmp_path / "state.safetensors"
    _, loop = make_loop(source=ToySource(bad_step=4))
    with pytest.raises(TrainingError, match=r"step 5 is no finite number.*--learning-rate"):
        loop.run(checkpoint=file, checkpoint_every=1)
    saved = Checkpoint.load(file)
    assert saved.state["step"] == 4
    assert all(torch.isfinite(t).all() for t in saved.tensors.values() if t.is_floating_point())


def test_too_little_memory_says_what_to_do():
    class Hungry(Toy):
        def encode_images(self, images):
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: not enough "
                "memory: you tried to allocate 9000000000 bytes."
            )

    with pytest.raises(TrainingError, match=r"8 pairs at once\. Add --chunk 4"):
        make_loop(model=Hungry())[1].run()


def test_other_errors_are_not_mistaken_for_it():
    class Broken(Toy):
        def encode_images(self, images):
            raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        make_loop(model=Broken())[1].run()


def test_it_stops_when_validation_stops_rising_and_keeps_the_best():
    scores = iter([10.0, 30.0, 20.0, 25.0, 99.0])
    seen = []
    model = Toy()

    def validate():
        seen.append(weights(model).clone())
        return {"R@1": next(scores)}

    recipe = Recipe(**{**RECIPE.to_json(), "epochs": 20, "patience": 2})
    _, loop = make_loop(recipe, model, validate=validate)
    outcome = loop.run()
    assert outcome.stopped_early
    assert len(outcome.history) == 4 * STEPS
    assert outcome.best_step == 2 * STEPS
    assert outcome.best == {"R@1": 30.0}
    assert torch.equal(weights(model), seen[1])
    measured = [row["step"] for row in outcome.history if "R@1" in row]
    assert measured == [STEPS, 2 * STEPS, 3 * STEPS, 4 * STEPS]


def test_chance_outside_is_not_touched():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    make_loop(model=Toy())
    torch.manual_seed(7)
    _, loop = make_loop(model=copy.deepcopy(Toy()))
    torch.manual_seed(7)
    loop.run()
    assert torch.equal(torch.rand(3), expected)


def test_locked_weights_stay_and_a_model_without_others_is_refused():
    model = Toy()
    model.image_tower.requires_grad_(False)
    before = model.image_tower[0].weight.clone()
    make_loop(model=model)[1].run()
    assert torch.equal(model.image_tower[0].weight, before)
    assert not torch.equal(model.image_head.weight, Toy().image_head.weight)
    model.requires_grad_(False)
    with pytest.raises(TrainingError, match="Nothing of this model would learn"):
        make_loop(model=model)


def test_bf16_trains_and_stays_float32_outside():
    recipe = Recipe(**{**RECIPE.to_json(), "precision": Precision.BF16})
    model, loop = make_loop(recipe)
    outcome = loop.run()
    assert all(p.dtype is torch.float32 for p in model.parameters())
    assert outcome.history[-1]["loss"] < outcome.history[0]["loss"]


def test_the_rate_by_hand():
    assert [rate_at(step, 8, 0.25) for step in (0, 1)] == [0.5, 1.0]
    assert rate_at(4, 8, 0.25) == pytest.approx(0.5 * (1 + math.cos(math.pi * 3 / 6)))
    assert rate_at(7, 8, 0.25) == pytest.approx(0.0)
    assert rate_at(0, 1, 0.0) == 1.0


def test_groups_have_their_own_rate_and_decay():
    model = Toy()
    optimizer = make_optimizer(model, model.head_parameters(), Recipe(tower_rate=0.1))
    set_rate(optimizer, 1.0)
    found = {
        id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]
    }
    assert found[id(model.image_head.weight)] == (1.0, 0.1)
    assert found[id(model.image_head.bias)] == (1.0, 0.0)
    assert found[id(model.image_tower[0].weight)] == (0.1, 0.1)
    assert found[id(model.image_tower[0].bias)] == (0.1, 0.0)
    assert len(found) == len(list(model.parameters()))


def test_the_average_by_hand():
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 0.0)
    average = Average(layer, keep=0.5)
    nn.init.constant_(layer.weight, 1.0)
    average.update()  # keeps 2/11 of the start: min(0.5, (1 + 1) / (10 + 1))
    assert average.weights["weight"].item() == pytest.approx(9 / 11)
    with average.in_place():
        assert layer.weight.item() == pytest.approx(9 / 11)
    assert layer.weight.item() == 1.0


PROCESS = """
import sys
import torch
sys.path.insert(0, {tests!r})
from test_training_loop import RECIPE, Recipe, Toy, ToySource, make_loop, weights
from mmsearch.retrieval.training.distributed import process, processes_joined

torch.set_num_threads(1)
with processes_joined(torch.device("cpu")):
    rank, count = process()
    recipe = Recipe(**{{**RECIPE.to_json(), "epochs": 2, "chunk": {chunk}}})
    model, loop = make_loop(recipe, Toy(dropout=0.0), ToySource((rank, count)))
    outcome = loop.run()
    torch.save([weights(model), [r["loss"] for r in outcome.history]], f"{out}/{{rank}}-{{count}}")
"""


def two_processes(script, codes=(0, 0)):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    running = [
        subprocess.Popen(
            [sys.executable, script],
            env=os.environ
            | {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"},
        )
        for rank in range(2)
    ]
    assert tuple(process.wait(timeout=120) for process in running) == codes


INTERRUPTED = """
import sys
import torch
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_training_loop import Interrupted, RECIPE, Toy, ToySource, make_loop
from mmsearch.errors import TrainingError
from mmsearch.retrieval.training.distributed import process, processes_joined

torch.set_num_threads(1)
with processes_joined(torch.device("cpu")):
    rank, count = process()
    asked = []

    def should_stop():
        asked.append(0)
        return rank == 1 and len(asked) == 2

    try:
        make_loop(RECIPE, source=ToySource((rank, count)))[1].run(
            checkpoint=Path({out!r}) / "state", should_stop=should_stop
        )
    except Interrupted as stopped:
        assert stopped.step == 2
        assert stopped.is_first == (rank == 0)
    else:
        raise AssertionError("it went on")
    # Step 3 is no number in the second process alone.
    bad = 2 if rank == 1 else None
    try:
        make_loop(RECIPE, source=ToySource((rank, count), bad))[1].run()
    except TrainingError as error:
        assert "step 3" in str(error)
    else:
        raise AssertionError("it went on")
"""


def test_one_process_that_must_stop_stops_all(tmp_path):
    script = tmp_path / "process.py"
    script.write_text(INTERRUPTED.format(tests=str(Path(__file__).parent), out=str(tmp_path)))
    two_processes(script)
    assert Checkpoint.load(tmp_path / "state").state["step"] == 2


DYING = """
import os, sys
import torch
sys.path.insert(0, {tests!r})
from test_training_loop import RECIPE, Toy, ToySource, make_loop
from mmsearch.errors import TrainingError
from mmsearch.retrieval.training.distributed import process, processes_joined

torch.set_num_threads(1)
try:
    with processes_joined(torch.device("cpu")):
        rank, count = process()
        stop = (lambda: os._exit(7)) if rank == 1 else (lambda: False)
        make_loop(RECIPE, source=ToySource((rank, count)))[1].run(should_stop=stop)
except TrainingError as error:
    assert "Another process" in str(error) and "--resume" in str(error)
    sys.exit(5)
"""


def test_a_process_that_ended_is_told_by_the_others(tmp_path):
    script = tmp_path / "process.py"
    script.write_text(DYING.format(tests=str(Path(__file__).parent)))
    two_processes(script, codes=(5, 7))


@pytest.mark.parametrize("chunk", [0, 3])
def test_two_processes_train_as_one_does(tmp_path, chunk):
    script = tmp_path / "process.py"
    tests = str(Path(__file__).parent)
    script.write_text(PROCESS.format(tests=tests, chunk=chunk, out=tmp_path))
    two_processes(script)
    subprocess.run([sys.executable, script], check=True, env=os.environ)
    alone, losses = torch.load(tmp_path / "0-1", weights_only=True)
    for rank in range(2):
        found, theirs = torch.load(tmp_path / f"{rank}-2", weights_only=True)
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
        assert theirs == pytest.approx(losses, rel=1e-5)
