from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from mmsearch.retrieval.encoders.text_tower import TextTower  # noqa: E402
from mmsearch.retrieval.training.compact_graph import export_head, export_text  # noqa: E402
from mmsearch.retrieval.training.heads import (  # noqa: E402
    Recipe,
    ResidualHead,
    TrainingSet,
    recall_at,
    train_heads,
)
from mmsearch.retrieval.training.packing import (  # noqa: E402
    pack_matrices,
    pack_stored,
    pack_words,
)

# The exporter that needs nothing but torch and onnx announces that it will go one day.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

RECIPE = Recipe(
    dim=16, hidden_image=32, hidden_text=32, epochs=40, batch=64, learning_rate=3e-3, dropout=0.0
)


def tiny_set(seed=0):
    random = torch.Generator().manual_seed(seed)
    meaning = torch.randn(128, 12, generator=random)
    photos = meaning @ torch.randn(12, 24, generator=random)
    texts = meaning @ torch.randn(12, 20, generator=random)
    rows = torch.arange(128)
    return TrainingSet(
        image_views=[photos],
        teacher_views=[torch.randn(128, 5, generator=random)],
        texts=texts,
        pairs=torch.stack([rows, rows], dim=1),
        weights=torch.ones(128),
        classes=torch.randn(5, 20, generator=random),
    )


def run(model, **inputs):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["embedding"], {name: value.numpy() for name, value in inputs.items()})[0]


def test_heads_learn_tiny_pairs():
    data = tiny_set()
    heads = train_heads(data, RECIPE)
    with torch.inference_mode():
        images, texts = heads.image(data.image_views[0]), heads.text(data.texts)
    assert recall_at(texts, images, torch.eye(128, dtype=torch.bool), (1,))[0] > 0.95


def test_a_seed_repeats_and_the_best_epoch_is_kept():
    from dataclasses import replace

    data, recipe = tiny_set(), replace(RECIPE, epochs=3)
    first, second = train_heads(data, recipe), train_heads(data, recipe)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    scores = iter([0.1, 0.9, 0.5])
    snapshots = []

    def score(heads):
        snapshots.append(heads.image.straight.weight.clone())
        return next(scores)

    best = train_heads(data, recipe, score)
    assert torch.equal(best.image.straight.weight, snapshots[1])
    assert not torch.equal(best.image.straight.weight, snapshots[2])


def test_recall_by_hand():
    gallery = torch.eye(3)
    queries = torch.tensor([[0.9, 0.3, 0.1], [0.9, 0.3, 0.1]])
    relevant = torch.tensor([[True, False, False], [False, True, False]])
    assert recall_at(queries, gallery, relevant, (1, 2)) == [0.5, 1.0]


@pytest.mark.parametrize("packed", [False, True])
def test_a_head_survives_the_export(packed):
    torch.manual_seed(0)
    head = ResidualHead(torch.randn(50, 96), 48, 64, 0.1).eval()
    model = export_head(head, 96)
    if packed:
        pack_stored(model, operators=("Gemm", "MatMul"))
    features = torch.randn(7, 96)
    with torch.inference_mode():
        expected = head(features).numpy()
    found = run(model, features=features)
    if packed:
        stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        assert onnx.TensorProto.INT8 in stored.values()
        assert (found * expected).sum(axis=1).min() > 0.999
    else:
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_text_tower_survives_export_and_packing():
    torch.manual_seed(0)
    tower = TextTower(vocabulary=20000, width=64, heads=4, inner=128, layers=2, epsilon=1e-12)
    head = ResidualHead(torch.randn(50, 64), 32, 128, 0.1)
    tower.eval()
    head.eval()
    ids = torch.tensor([[101, 7, 9, 11, 102], [101, 5, 102, 0, 0]])
    mask = (ids != 0).long()
    with torch.inference_mode():
        expected = head(tower(ids, mask)).numpy()
    model = export_text(tower, head)
    np.testing.assert_allclose(run(model, input_ids=ids, attention_mask=mask), expected, atol=1e-4)
    pack_words(model)
    pack_matrices(model)
    found = run(model, input_ids=ids, attention_mask=mask)
    assert (found * expected).sum(axis=1).min() > 0.995
    # Alone and without padding, a text has the embedding that it has in any company.
    alone = run(model, input_ids=ids[1:, :3], attention_mask=mask[1:, :3])
    np.testing.assert_allclose(alone[0], found[1], atol=1e-5)
    assert len(model.SerializeToString()) < 0.45 * 4 * sum(p.numel() for p in tower.parameters())
