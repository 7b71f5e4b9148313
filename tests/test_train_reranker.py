"""A reranker trained on drawn pictures, through the command line, and what its parts compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from mmsearch.cli import app  # noqa: E402
from mmsearch.errors import ModelError, SourceError, TrainingError  # noqa: E402
from mmsearch.retrieval.encoders import load_encoder  # noqa: E402
from mmsearch.retrieval.rerankers import Pair, View, load_reranker  # noqa: E402
from mmsearch.retrieval.rerankers.co_attention import (  # noqa: E402
    CODE,
    GRID,
    CoAttention,
    Hubness,
    Matcher,
    RegionCode,
    cells_of,
)
from mmsearch.retrieval.training.loop import Interrupted  # noqa: E402
from mmsearch.retrieval.training.reranker.features import Features  # noqa: E402
from mmsearch.retrieval.training.reranker.groups import GroupBatches, confused_with  # noqa: E402
from mmsearch.retrieval.training.reranker.loop import losses  # noqa: E402
from mmsearch.retrieval.training.reranker.recipe import RerankerRecipe  # noqa: E402
from mmsearch.retrieval.training.reranker.session import train_reranker  # noqa: E402
from mmsearch.retrieval.training.reranker.validation import Candidates, Parts  # noqa: E402
from mmsearch.retrieval.training.session import Pairs, Run  # noqa: E402
from tests.conftest import COLOURS  # noqa: E402

SMALL = RerankerRecipe(late_epochs=1, epochs=1, group=3, groups=2, width=8, views=2, pool=6)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of two colours, above each other, with captions."""
    folder = tmp_path_factory.mktemp("two colours")
    lines = ["path\tcaption"]
    for above, over in COLOURS.items():
        for below, under in list(COLOURS.items())[:3]:
            image = Image.new("RGB", (64, 64), over)
            image.paste(under, (0, 32, 64, 64))
            image.save(folder / f"{above}-{below}.png")
            lines.append(f"{above}-{below}.png\t{above} above {below}")
            lines.append(f"{above}-{below}.png\tone half is {below} the other half is {above}")
    (folder / "pairs.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def trained(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "mine"
    options = ["--late-epochs=1", "--epochs=1", "--group=3", "--groups=2", "--width=8"]
    result = CliRunner().invoke(
        app,
        [
            "train-reranker", str(drawn / "pairs.tsv"), "--images", str(drawn), "--output",
            str(folder), "--held-out=0.2", "--views=2", "--pool=6", "--json", *options,
        ],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    record: dict[str, Any] = json.loads(result.stdout)
    assert record["reranker"] == str(folder)
    assert set(record["shares"]) == {"similarity", "hubness", "late", "match"}
    assert any(record["shares"].values())
    assert [row["epoch"] for row in record["history"]] == [1, 1]
    assert all(np.isfinite(row["loss"]) for row in record["history"])
    assert not folder.with_name("mine.training").exists()
    return folder


def test_what_was_trained_reranks_a_library(trained: Path, drawn: Path) -> None:
    run = CliRunner()
    assert run.invoke(app, ["index", str(drawn)]).exit_code == 0
    arguments = ["query", "red above blue", "--library", str(drawn), "--all", "--json"]
    result = run.invoke(app, [*arguments, "--rerank", str(trained)])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["rerank"]["model"] == str(trained)
    assert found["rerank"]["reranked"] == 18
    told = [one["rerank_score"] for one in found["results"]]
    assert told == sorted(told, reverse=True)


def test_the_folder_answers_as_torch_does(tmp_path: Path) -> None:
    from mmsearch.retrieval.rerankers.export import shapes_of, write_reranker
    from mmsearch.retrieval.training.reranker.features import IMAGE_INNER, TEXT_INNER

    encoder: Any = load_encoder()
    picture = Image.linear_gradient("L").convert("RGB")
    _, maps = encoder.look([encoder.prepare(picture)], IMAGE_INNER)
    _, states = encoder.read_words(["a grey picture"], TEXT_INNER)
    cells = cells_of([torch.from_numpy(part) for part in maps])
    joined = torch.from_numpy(np.concatenate(states, axis=2))
    torch.manual_seed(0)
    bank = torch.from_numpy(encoder.encode_texts(["a dog", "a red door", "grey"]))
    model = CoAttention(cells.shape[2], joined.shape[2], bank, width=16, layers=3).eval()
    model.shares.copy_(torch.tensor([3.0, -2.0, 0.5, 0.25]))
    write_reranker(
        model,
        tmp_path,
        name="mine",
        encoder=encoder.spec,
        image_inner=shapes_of(IMAGE_INNER, maps),
        text_inner={name: part.shape[2] for name, part in zip(TEXT_INNER, states, strict=True)},
        extra={},
    )
    with torch.inference_mode():
        code = model.code.from_bytes(model.code.to_bytes(model.code(cells)))
        words, mask = model.matcher.words(joined), torch.ones(1, joined.shape[1], dtype=torch.bool)
        similar = encoder.encode_images([picture])[0] @ bank.numpy().T
        expected = (
            3 * 0.3
            - 2 * np.log(np.exp(20 * similar).mean()) / 20
            + 0.5 * model.matcher.late(words, mask, code)
            + 0.25 * model.matcher.match(words, mask, code)
        )
    pair = Pair("a grey picture", View(0, lambda _: picture), 0.3)
    found = load_reranker(tmp_path).rerank([pair]).scores
    np.testing.assert_allclose(found, expected[0].numpy(), atol=1e-3)


def test_a_training_that_was_stopped_ends_with_the_same_bytes(
    trained: Path, drawn: Path, tmp_path: Path
) -> None:
    pairs = Pairs(drawn / "pairs.tsv", drawn, held_out=0.2)
    for place in (1, 3):
        steps = iter(range(100))
        output = tmp_path / f"stopped-{place}"

        def stop(steps: Any = steps, place: int = place) -> bool:
            return next(steps) == place

        with pytest.raises(Interrupted):
            train_reranker(pairs, output, recipe=SMALL, run=Run(should_stop=stop))
        with pytest.raises(TrainingError, match="--resume"):
            train_reranker(pairs, output, recipe=SMALL)
        train_reranker(pairs, output, recipe=SMALL, run=Run(resume=True))
        for name in ("match.onnx", "regions.onnx"):
            assert (output / name).read_bytes() == (trained / name).read_bytes()


def test_nothing_to_weigh_by_is_told(drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="--validation"):
        train_reranker(Pairs(drawn / "pairs.tsv", drawn, held_out=0.0), tmp_path / "x")


def test_a_folder_of_something_else_is_left_alone(drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ModelError, match="other files"):
        train_reranker(Pairs(drawn / "pairs.tsv", drawn), tmp_path)


@pytest.mark.parametrize("field", ["epochs", "group", "width", "dropout"])
def test_impossible_settings_name_their_option(field: str) -> None:
    with pytest.raises(TrainingError, match=f"--{field} must be between"):
        RerankerRecipe(**{field: -1})


def test_cells_are_means_over_a_grid() -> None:
    fine = torch.arange(2 * 8 * 8, dtype=torch.float32).reshape(1, 2, 8, 8)
    coarse = torch.arange(16, dtype=torch.float32).reshape(1, 1, 4, 4)
    found = cells_of([fine, coarse])
    assert found.shape == (1, GRID * GRID, 3)
    assert found[0, 0].tolist() == [(0 + 1 + 8 + 9) / 4, 64 + (0 + 1 + 8 + 9) / 4, 0]
    assert found[0, 5, 2] == 5


def test_bytes_come_back_within_half_a_step() -> None:
    code = RegionCode(4)
    values = torch.linspace(-1, 1, 101).unsqueeze(0)
    data = code.to_bytes(values)
    assert data.dtype == torch.uint8
    assert (code.from_bytes(data) - values).abs().max() <= 0.5 / 127 + 1e-6


def test_hubness_is_a_soft_maximum_over_the_bank_and_comes_back_from_two_bytes() -> None:
    bank = torch.nn.functional.normalize(torch.randn(7, 5, generator=torch.manual_seed(0)), dim=1)
    hubness = Hubness(bank)
    vectors = torch.nn.functional.normalize(torch.randn(4, 5), dim=1)
    found = hubness(vectors)
    for row, value in zip(vectors.numpy(), found.tolist(), strict=True):
        cosines = bank.numpy() @ row
        assert value == pytest.approx(np.log(np.mean(np.exp(20 * cosines))) / 20, abs=1e-5)
    some = torch.tensor([-1.0, -0.123, 0.0, 0.5, 1.0])
    data = hubness.to_bytes(some)
    assert (data.dtype, tuple(data.shape)) == (torch.uint8, (5, 2))
    assert (hubness.from_bytes(data) - some).abs().max() < 2e-5


@torch.inference_mode()
def test_late_interaction_is_the_weighted_mean_of_the_best_regions() -> None:
    torch.manual_seed(0)
    matcher = Matcher(6, width=8).eval()
    words, code = torch.randn(3, 5, 8), torch.rand(2, GRID * GRID, CODE) * 2 - 1
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]).bool()
    found = matcher.late(words, mask, code)
    for text in range(3):
        shown = words[text, mask[text]]
        weights = matcher.importance(shown)[:, 0].softmax(0)
        for picture in range(2):
            ours = torch.nn.functional.normalize(matcher.late_words(shown), dim=-1)
            theirs = torch.nn.functional.normalize(matcher.late_regions(code[picture]), dim=-1)
            expected = sum(
                weight * max(float(word @ region) for region in theirs)
                for weight, word in zip(weights.tolist(), ours, strict=True)
            )
            assert float(found[text, picture]) == pytest.approx(20 * expected, rel=1e-4)
    pairs = matcher.late_pairs(words[:2], mask[:2], code)
    torch.testing.assert_close(pairs, found[[0, 1], [0, 1]])


def test_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    matcher = Matcher(6, width=8, layers=2).eval()
    words, code = torch.randn(1, 3, 8), torch.rand(1, GRID * GRID, CODE)
    padded = torch.cat([words, torch.randn(1, 4, 8)], dim=1)
    mask = torch.tensor([[True] * 3 + [False] * 4])
    torch.testing.assert_close(
        matcher.match(padded, mask, code),
        matcher.match(words, torch.ones(1, 3, dtype=torch.bool), code),
    )


def test_a_model_that_is_right_has_the_lower_loss() -> None:
    """The losses know which caption is whose: with captions exchanged they are higher."""
    torch.manual_seed(0)
    model = CoAttention(4, 6, torch.eye(5), width=8)
    from mmsearch.retrieval.training.reranker.groups import GroupedBatch

    kinds = torch.eye(4)
    cells = kinds.repeat_interleave(GRID * GRID, 0).view(4, GRID * GRID, 4) * 3
    states = torch.nn.functional.pad(kinds, (0, 2)).unsqueeze(1).repeat(1, 3, 1) * 3
    mask = torch.ones(4, 3, dtype=torch.bool)
    batch = GroupedBatch(cells, states, mask, 2)
    wrong = GroupedBatch(cells, states[[1, 0, 3, 2]], mask, 2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        losses(model, batch, late_only=False, matching=0.2, word_dropout=0.0).backward()
        optimizer.step()

    @torch.inference_mode()
    def loss(some: GroupedBatch) -> float:
        return float(losses(model, some, late_only=False, matching=0.2, word_dropout=0.0))

    assert loss(batch) < 0.3 < 2 < loss(wrong)


def features(count: int, seed: int = 0) -> Features:
    random = np.random.default_rng(seed)

    def unit(rows: int) -> np.ndarray:
        found = random.normal(size=(rows, 5)).astype(np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    return Features(
        cells=[random.normal(size=(count, 16, 4)).astype(np.float16) for _ in range(2)],
        images=unit(count),
        states=random.normal(size=(2 * count, 6, 3)).astype(np.float16),
        mask=np.arange(6) < random.integers(2, 7, (2 * count, 1)),
        texts=unit(2 * count),
        owner=np.repeat(np.arange(count), 2),
    )


def test_the_nearest_by_either_sides_captions_are_found() -> None:
    known = features(30)
    near = confused_with(known, 7)
    means = np.stack([known.texts[known.owner == row].mean(axis=0) for row in range(30)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    for row in range(30):
        similar = known.images[row] @ means.T + means[row] @ known.images.T
        similar[row] = -np.inf
        assert near[row].tolist() == np.argsort(-similar)[:7].tolist()


def test_batches_show_no_picture_twice_and_come_again_the_same() -> None:
    known = features(40)
    recipe = RerankerRecipe(group=4, groups=3, pool=10)
    batches = GroupBatches(known, confused_with(known, 10), recipe, groups=3)
    assert batches.steps == 13
    first = list(batches.epoch(0, 0))
    for batch in first:
        assert len(batch.cells) == len(batch.states) == 12
        assert len({cells.numpy().tobytes() for cells in batch.cells}) == 12
    for one, other in zip(batches.epoch(0, 5), first[5:], strict=True):
        torch.testing.assert_close(one.states, other.states)
    assert not torch.equal(next(iter(batches.epoch(1, 0))).cells, first[0].cells)


def test_ranks_count_ties_against_the_question() -> None:
    known = features(6)
    candidates = Candidates(known, at_most=100, seed=0, depth=6)
    nothing = np.zeros((12, 6), dtype=np.float32)
    assert candidates.recall(nothing) == 0
    right = (candidates.near == known.owner[:, None]).astype(np.float32)
    assert candidates.recall(right) == 100
    assert candidates.mean_reciprocal_rank(right) == 100
    assert candidates.mean_reciprocal_rank(nothing) == pytest.approx(100 / 6)
    parts = Parts(nothing, right, right, right)
    np.testing.assert_allclose(parts.fused((9.0, -1.0, 0.5, 2.0)), 1.5 * right)
