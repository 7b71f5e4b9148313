"""A small change of texts' vectors that fits one library's own words; pictures' vectors stay.

An adapter adds a linear map of a text to the text, and does so only for texts of the library's own
kind: a gate, learned first, tells these from sentences about everyday scenes. What the library says
nothing about is left almost as the encoder made it. Plain NumPy: learning takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["Adapter", "Captioned", "fit_gate", "info_nce", "train"]

STEPS = 240
"""A bound on the time; nearly always the right number is found before."""
STEPS_BETWEEN_LOOKS = 10
BATCH = 1024
SCALE = 30.0
"""Of the cosines in the loss: better than 20 in benchmarks/bench_tune.py, and as good as 40."""
RATE = 0.25
"""Of learning, times the dimension: a step then moves texts equally far in every dimension."""
DECAY = 1e-4
ROWS_AT_ONCE = 8192


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """Texts into texts: `t + g(t) * ([t, 1] @ weights)` made unit, `g(t) = sigmoid([t, 1] @ gate)`.

    A residual adapter (Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP")
    behind a gate as in Dauphin et al. 2017, "Language Modeling with Gated Convolutional Networks",
    with one gate for the whole vector.

    Attributes:
        gate: `float32[dim + 1]`, the last being the constant.
        weights: `float32[dim + 1, dim]`, the last row being the constant.
    """

    gate: Floats
    weights: Floats

    def apply(self, texts: NDArray[np.float32] | NDArray[np.float16]) -> Floats:
        """Return adapted `float32[n, dim]` unit rows of `float[n, dim]` unit rows."""
        out = np.empty(texts.shape, dtype=np.float32)
        for start in range(0, len(texts), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            plain = texts[rows].astype(np.float32)
            out[rows] = _unit(plain + _gated(plain, self.gate) @ self.weights)[0]
        return out

    def to_bytes(self) -> bytes:
        """Return the gate and the weights, row after row, as little-endian float32."""
        return self.gate.astype("<f4").tobytes() + self.weights.astype("<f4").tobytes()

    @classmethod
    def from_bytes(cls, raw: bytes, dim: int) -> Adapter:
        """Return what `to_bytes` wrote for vectors of `dim` numbers.

        Raises:
            ValueError: the length is another, or a number is not finite.
        """
        expected = 4 * (dim + 1) * (dim + 1)
        if len(raw) != expected:
            raise ValueError(f"its weights have {len(raw)} bytes, {expected} were expected")
        numbers = np.frombuffer(raw, dtype="<f4").astype(np.float32)
        if not np.isfinite(numbers).all():
            raise ValueError("its weights are not all numbers")
        return cls(numbers[: dim + 1], numbers[dim + 1 :].reshape(dim + 1, dim))


@dataclass(frozen=True, slots=True, eq=False)
class Captioned:
    """Pictures, texts, and which belong together.

    Attributes:
        pictures: `float32[n, dim]`, unit rows, one for each content.
        texts: `float32[m, dim]`, unit rows, one for each wording.
        links: `int64[p, 2]`, distinct (text, picture) rows: several texts of one picture and
            several pictures of one text are both possible.
    """

    pictures: Floats
    texts: Floats
    links: NDArray[np.int64]


def train(
    data: Captioned,
    gate: Floats,
    *,
    steps: int = STEPS,
    seed: int = 0,
    look: Callable[[Adapter, int], bool] = lambda *_: True,
) -> Adapter:
    """Learn an adapter behind a gate, by symmetric InfoNCE and Adam (Kingma and Ba 2015).

    Training starts from no change at all, so fewer steps are a smaller change.

    Args:
        data: only what its links name is learned from.
        gate: see `fit_gate`.
        steps: how many batches of 1,024 links.
        seed: of the choice of the batches.
        look: called with the adapter and the number of steps, every 10 of them; ends the training
            by returning False.
    """
    draw = np.random.default_rng(seed)
    gated = _gated(data.texts, gate)
    weights = np.zeros((gated.shape[1], data.texts.shape[1]), dtype=np.float32)
    mean, square = np.zeros_like(weights), np.zeros_like(weights)
    for step in range(1, steps + 1):
        texts, pictures, positives = _batch(data, draw)
        unit, length = _unit(data.texts[texts] + gated[texts] @ weights)
        _, slope = info_nce(data.pictures[pictures], unit, positives, SCALE)
        # What is along the vector is lost again when its length becomes one.
        slope = (slope - unit * (unit * slope).sum(axis=1, keepdims=True)) / length
        slope = gated[texts].T @ slope + 2 * DECAY * weights
        mean = 0.9 * mean + 0.1 * slope
        square = 0.99 * square + 0.01 * slope**2
        change = (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.99**step)) + 1e-8)
        weights = weights - np.float32(RATE / weights.shape[1]) * change.astype(np.float32)
        if step % STEPS_BETWEEN_LOOKS == 0 and not look(Adapter(gate, weights), step):
            break
    return Adapter(gate, weights)


def fit_gate(ours: Floats, others: Floats, *, steps: int = 600, decay: float = 1e-3) -> Floats:
    """Return `float32[dim + 1]` of a logistic regression: 1 for `ours`, 0 for `others`.

    Both sides count the same, however many there are. Gradient descent: the slope of the loss
    changes by at most about half a unit per unit, so steps of 2 lead down without overshooting.

    Args:
        ours: `float32[n, dim]`, unit rows.
        others: `float32[m, dim]`, unit rows.
        steps: of the descent.
        decay: how strongly the gate is kept from being sure.
    """
    rows = np.concatenate([ours, others])
    rows = np.concatenate([rows, np.ones((len(rows), 1), dtype=np.float32)], axis=1)
    side = np.repeat(np.array([1, 0], dtype=np.float32), [len(ours), len(others)])
    share = np.where(side == 1, 0.5 / len(ours), 0.5 / len(others)).astype(np.float32)
    gate = np.zeros(rows.shape[1], dtype=np.float32)
    keep = np.full(len(gate), decay, dtype=np.float32)
    keep[-1] = 0
    for _ in range(steps):
        gate -= 2 * ((share * (_sigmoid(rows @ gate) - side)) @ rows + keep * gate)
    return gate


def info_nce(
    images: Floats, texts: Floats, positives: NDArray[np.bool_], scale: float
) -> tuple[float, Floats]:
    """Return the symmetric multi-positive InfoNCE loss and its slope over the texts.

    The formula is that of `losses.info_nce`, written out for NumPy; the images are constants.

    Args:
        images: `float32[n, dim]`, unit rows.
        texts: `float32[m, dim]`, unit rows.
        positives: `bool[n, m]`.
        scale: the inverse temperature.

    Returns:
        The loss, and `float32[m, dim]`.
    """
    logits = np.float32(scale) * images @ texts.T
    slope = np.zeros_like(logits)
    loss = 0.0
    for z, true, out in ((logits, positives, slope), (logits.T, positives.T, slope.T)):
        # The lowest finite number, not -inf: a row may have no negatives.
        exps = np.where(true, np.finfo(np.float32).min, z)
        highest = exps.max(axis=1, keepdims=True)
        exps = np.exp(exps - highest)
        total = exps.sum(axis=1)
        row, column = true.nonzero()
        excess = (highest[:, 0] + np.log(total))[row] - z[row, column]
        counts = np.bincount(row, minlength=len(z))
        share = (0.5 / (counts[row] * np.count_nonzero(counts))).astype(np.float32)
        loss += float((share * np.logaddexp(0, excess)).sum())
        pull = share * np.exp(-np.logaddexp(0, -excess))
        out[row, column] -= pull
        push = np.bincount(row, pull, len(z)).astype(np.float32)
        out += exps * (push / total)[:, None]
    return loss, (np.float32(scale) * slope.T @ images).astype(np.float32)


def _batch(
    data: Captioned, draw: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Return rows of texts and of pictures, and all links among them, the drawn and others."""
    count = min(BATCH, len(data.links))
    drawn = data.links[draw.choice(len(data.links), count, replace=False)]
    texts, pictures = np.unique(drawn[:, 0]), np.unique(drawn[:, 1])
    text_place = np.full(len(data.texts), -1)
    text_place[texts] = np.arange(len(texts))
    picture_place = np.full(len(data.pictures), -1)
    picture_place[pictures] = np.arange(len(pictures))
    columns, rows = text_place[data.links[:, 0]], picture_place[data.links[:, 1]]
    both = (columns >= 0) & (rows >= 0)
    positives = np.zeros((len(pictures), len(texts)), dtype=bool)
    positives[rows[both], columns[both]] = True
    return texts, pictures, positives


def _gated(texts: Floats, gate: Floats) -> Floats:
    """Return `float32[n, dim + 1]`: each text with a constant, times how open its gate is."""
    rows = np.concatenate([texts, np.ones((len(texts), 1), dtype=np.float32)], axis=1)
    # For a few short rows BLAS may look at what lies beside them, and raise its flag for that.
    with np.errstate(invalid="ignore"):
        opened = rows @ gate
    gated: Floats = _sigmoid(opened)[:, None] * rows
    return gated


def _sigmoid(values: Floats) -> Floats:
    open_: Floats = np.exp(-np.logaddexp(np.float32(0), -values))
    return open_


def _unit(rows: Floats) -> tuple[Floats, Floats]:
    length = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))
    return rows / length, length
