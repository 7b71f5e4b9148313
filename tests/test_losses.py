from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mmsearch.retrieval.losses import (  # noqa: E402
    MAX_LOG_SCALE,
    LogScale,
    class_distillation,
    gather_rows,
    info_nce,
    same_group,
    sigmoid_loss,
    similarity_distillation,
)


def unit(*shape, seed=0):
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=-1)


def oracle(images, texts, positives, log_scale, weights):
    z = math.exp(log_scale) * np.asarray(images) @ np.asarray(texts).T
    both = []
    for logits, mask, counts in ((z, positives, weights), (z.T, positives.T, weights.T)):
        losses, shares = [], []
        for row, yes, count in zip(logits, mask, counts, strict=True):
            if yes.any():
                against = [np.log(np.exp(p) + np.exp(row[~yes]).sum()) - p for p in row[yes]]
                losses.append(np.average(against, weights=count[yes]))
                shares.append(count[yes].mean())
        both.append(np.average(losses, weights=shares))
    return sum(both) / 2


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_the_slow_formula(seed, weighted):
    images, texts = unit(6, 5, seed=seed), unit(8, 5, seed=seed + 100)
    groups = torch.tensor([0, 1, 2, 2, 3, 4])
    # The last column has no photo in the batch: a negative for every row, and no loss of its own.
    positives = same_group(groups, torch.tensor([0, 0, 1, 2, 3, 4, 4, 9]))
    random = np.random.default_rng(seed)
    weights = random.uniform(0.2, 1.0, positives.shape) if weighted else np.ones(positives.shape)
    found = info_nce(
        images,
        texts,
        positives,
        torch.tensor(1.5, dtype=torch.float64),
        weights=torch.from_numpy(weights) if weighted else None,
    )
    expected = oracle(images, texts, positives.numpy(), 1.5, weights)
    assert found.item() == pytest.approx(expected, abs=1e-9)


def test_two_pairs_by_hand():
    images = torch.eye(2, dtype=torch.float64)
    texts = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    # Cosines: photo 0 with text 0: 1, with text 1: 0.6; photo 1 with text 0: 0, with text 1: 0.8.
    rows = (math.log(math.exp(1.0) + math.exp(0.6)) - 1.0) + (math.log(1 + math.exp(0.8)) - 0.8)
    columns = (math.log(math.exp(1.0) + 1) - 1.0) + (math.log(math.exp(0.6) + math.exp(0.8)) - 0.8)
    found = info_nce(images, texts, None, torch.tensor(0.0))
    assert found.item() == pytest.approx((rows / 2 + columns / 2) / 2)


def test_equal_texts_are_not_negatives_of_each_other():
    images, text = unit(2, 4), unit(1, 4, seed=1)
    everything = torch.ones(2, 2, dtype=torch.bool)
    scale = torch.tensor(2.0)
    assert info_nce(images, text.repeat(2, 1), everything, scale).item() == 0.0
    assert info_nce(images, text.repeat(2, 1), None, scale).item() > 0.1


def test_a_batch_without_negatives_has_finite_gradients():
    images = unit(2, 4).requires_grad_()
    loss = info_nce(images, unit(2, 4, seed=1), torch.ones(2, 2, dtype=torch.bool), torch.tensor(1))
    loss.backward()
    assert torch.isfinite(images.grad).all()


def test_a_second_caption_of_a_photo_changes_nothing_for_the_first():
    images = unit(3, 4)
    texts = unit(3, 4, seed=1)
    groups = torch.arange(3)
    more = torch.cat([texts, texts])
    once = info_nce(images, texts, same_group(groups, groups), torch.tensor(1.0))
    twice = info_nce(
        torch.cat([images, images]),
        more,
        same_group(groups.repeat(2), groups.repeat(2)),
        torch.tensor(1.0),
    )
    # Twice the negatives, but no positive among them.
    assert once.item() < twice.item() < once.item() + math.log(2)


def test_positives_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"expected \(2, 3\)"):
        info_nce(unit(2, 4), unit(3, 4), torch.eye(2, dtype=torch.bool), torch.tensor(0.0))


def test_the_scale_learns_and_stays_below_its_limit():
    scale = LogScale(initial_temperature=0.5)
    assert scale().exp().item() == pytest.approx(2.0)
    rows = unit(4, 8).float()
    info_nce(rows, rows, None, scale()).backward()
    assert scale.value.grad.item() < 0  # perfect pairs ask for a higher scale
    with torch.no_grad():
        scale.value.fill_(9.0)
    assert scale().item() == pytest.approx(MAX_LOG_SCALE)
    high = info_nce(rows, rows, None, torch.tensor(9.0))
    assert high.item() == info_nce(rows, rows, None, torch.tensor(MAX_LOG_SCALE)).item()
    scale.clamp_()
    assert scale.value.item() == pytest.approx(MAX_LOG_SCALE)


def test_distillation_by_hand_and_at_its_minimum():
    image = torch.tensor([[1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    classes = torch.eye(2, dtype=torch.float64)
    teacher = torch.tensor([[0.75, 0.25]], dtype=torch.float64)
    log_scale = torch.tensor(math.log(math.log(3.0)), dtype=torch.float64)
    # The scaled cosines are (log 3, 0): the student says (3/4, 1/4), as its teacher does.
    loss = class_distillation(image, classes, teacher, log_scale)
    assert loss.item() == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    loss.backward()
    assert image.grad.abs().max().item() < 1e-12


def test_equals_the_losses_of_open_clip():
    loss = pytest.importorskip("open_clip.loss")
    images, texts = unit(32, 16, seed=3).float(), unit(32, 16, seed=4).float()
    scale, bias = torch.tensor(2.5), torch.tensor(-10.0)
    clip = loss.ClipLoss()(images, texts, scale.exp())
    assert info_nce(images, texts, None, scale).item() == pytest.approx(clip.item(), abs=1e-6)
    siglip = loss.SigLipLoss()(images, texts, scale.exp(), bias)
    found = sigmoid_loss(images, texts, None, scale, bias)
    assert found.item() == pytest.approx(siglip.item(), rel=1e-6, abs=1e-6)


def test_gradients_equal_those_of_open_clip():
    loss = pytest.importorskip("open_clip.loss")
    images, texts = unit(16, 8, seed=3), unit(16, 8, seed=4)
    bias = torch.tensor(-3.0, dtype=torch.float64)

    def gradients(compute):
        inputs = [x.clone().requires_grad_() for x in (images, texts)]
        scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(compute(*inputs, scale), [*inputs, scale])

    ours = gradients(lambda i, t, s: info_nce(i, t, None, s))
    theirs = gradients(lambda i, t, s: loss.ClipLoss()(i, t, s.exp()))
    ours += gradients(lambda i, t, s: sigmoid_loss(i, t, None, s, bias))
    theirs += gradients(lambda i, t, s: loss.SigLipLoss()(i, t, s.exp(), bias))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_sigmoid_loss_equals_the_slow_formula(weighted):
    images, texts = unit(5, 6), unit(7, 6, seed=1)
    positives = same_group(torch.tensor([0, 1, 2, 3, 3]), torch.tensor([0, 0, 1, 2, 3, 3, 9]))
    weights = np.random.default_rng(0).uniform(0.2, 1.0, positives.shape)
    found = sigmoid_loss(
        images,
        texts,
        positives,
        torch.tensor(1.5, dtype=torch.float64),
        torch.tensor(-2.0, dtype=torch.float64),
        weights=torch.from_numpy(weights) if weighted else None,
    )
    z = math.exp(1.5) * images.numpy() @ texts.numpy().T - 2.0
    expected = 0.0
    for i in range(5):
        for j in range(7):
            sign = 1 if positives[i, j] else -1
            weight = weights[i, j] if weighted and positives[i, j] else 1.0
            expected += weight * math.log(1 + math.exp(-sign * z[i, j]))
    assert found.item() == pytest.approx(expected / 5, abs=1e-9)


def test_similarity_distillation_by_hand_and_at_its_minimum():
    images = torch.eye(2, dtype=torch.float64)
    zero = torch.tensor(0.0, dtype=torch.float64)
    agreeing = similarity_distillation(images, images, images, zero)
    assert agreeing.item() == pytest.approx(0.0, abs=1e-12)
    # The student is sure to e : 1, the teacher knows nothing.
    sure = [math.e / (1 + math.e), 1 / (1 + math.e)]
    expected = sum(0.5 * math.log(0.5 / p) for p in sure)
    found = similarity_distillation(images, images, torch.zeros(2, 2, dtype=torch.float64), zero)
    assert found.item() == pytest.approx(expected)


def test_without_other_processes_rows_come_back():
    rows = unit(3, 4)
    assert gather_rows(rows) is rows
