"""The script that makes the bundled encoder, on a few made-up photos."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("safetensors")

from mmsearch.retrieval.encoders import BUNDLED, DEFAULT_MODEL, load_encoder  # noqa: E402
from mmsearch.retrieval.encoders.compact_towers import build, load_folder  # noqa: E402
from mmsearch.retrieval.encoders.dual_encoder import Description, DualEncoder  # noqa: E402
from mmsearch.retrieval.encoders.tokens import TextPreprocess  # noqa: E402
from mmsearch.retrieval.schema import Quantize  # noqa: E402
from mmsearch.retrieval.training.compact import stages  # noqa: E402
from mmsearch.retrieval.training.compact.frozen import MEAN, PREPROCESS, SCALE, Seen  # noqa: E402
from mmsearch.retrieval.training.compact.pseudo_captions import (  # noqa: E402
    PseudoCaptions,
    mentions,
    pseudo_captions,
)
from mmsearch.retrieval.training.compact.sources import read_sources  # noqa: E402
from mmsearch.retrieval.training.compact.stages import (  # noqa: E402
    CELLS,
    Mixture,
    Photos,
    Stage,
    StageBatches,
    words,
)
from mmsearch.retrieval.training.export import save_model  # noqa: E402
from mmsearch.retrieval.training.loop import TrainingLoop  # noqa: E402
from mmsearch.retrieval.training.recipe import Recipe  # noqa: E402
from tests.checkpoints import TEXTS, pictures  # noqa: E402

WIDTH = 1280 + 768 + 384
CLASSES, OBJECTS = 5, 2


class Parts:
    """What a `Stage` needs of a model: real towers, random weights."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        towers = build(
            {
                "kind": "compact",
                "image": {"taps": [57, 42, 18]},
                "text": {
                    "vocabulary": 50,
                    "width": 16,
                    "heads": 2,
                    "inner": 32,
                    "layers": 2,
                    "epsilon": 1e-12,
                },
                "dim": 8,
                "hidden": {"image": 16, "text": 16},
            }
        )
        from mmsearch.retrieval.losses import LogScale

        self.image_tower, self.image_head = towers.image, towers.image_head
        self.text_tower, self.text_head = towers.text, towers.text_head
        self.log_scale = LogScale()


def seen(count: int, seed: int = 0) -> Seen:
    random = np.random.default_rng(seed)
    return Seen(
        cells=random.normal(size=(count, *CELLS)).astype(np.float16),
        features=random.normal(size=(count, WIDTH)).astype(np.float16),
        logits=random.normal(size=(count, CLASSES)).astype(np.float16),
    )


def photos(count: int = 8) -> Photos:
    """Photos 0 to 3 have two captions and a second view, 4 and 5 a weak text, the rest none."""
    more = np.full(count, -1)
    more[:4] = np.arange(4)
    return Photos(
        views=[seen(count), seen(4, seed=1)],
        rows=[np.arange(count), more],
        texts=[[2 * i, 2 * i + 1] if i < 4 else [8 + i] if i < 6 else [] for i in range(count)],
        weight=torch.tensor([1.0] * 4 + [0.3] * 2 + [0.0] * (count - 6)),
        detections=torch.tensor([[1.0, 0.0], [0.0, 0.0]]).repeat(count // 2, 1),
        names=torch.arange(20, 20 + CLASSES + OBJECTS),
    )


def batches(pseudo: PseudoCaptions | None = None, *, cells: bool = False) -> StageBatches:
    mixture = Mixture(
        np.arange(4), 2, [(np.array([4, 5]), 1), (np.array([6, 7]), 2)], pseudo=pseudo
    )
    return StageBatches(photos(), mixture, cells=cells, tokens=None, equal=np.arange(40), seed=3)


def test_a_photo_is_plain_in_the_first_view_that_has_it():
    shown = photos(4)
    late = np.array([-1, -1, -1, 0])  # The last photo came later, with views of its own.
    first, second = late.copy(), late.copy()
    early = np.where(late < 0, np.arange(4), -1)
    views = [seen(4), seen(1, seed=2), seen(1, seed=3)]
    shown = replace(shown, views=views, rows=[early, first, second])
    mixture = Mixture(np.arange(4), 4, [], plain=1.0)
    source = StageBatches(shown, mixture, cells=False, tokens=None, equal=np.arange(40), seed=3)
    (batch,) = source.epoch(0, 0, None)
    for picture, features in zip(batch.pictures.tolist(), batch.images.numpy(), strict=True):
        view, row = (views[1], 0) if picture == 3 else (views[0], picture)
        np.testing.assert_array_equal(features, view.features[row])


def test_photos_that_are_alike_come_together():
    angles = torch.tensor(
        [0.0, 3.0, 0.1, 3.1, 0.2, 3.3, 9.0]
    )  # Two heaps; the last is no main one.
    images = torch.stack([angles.cos(), angles.sin()], dim=1)
    main = np.arange(6)
    near = stages.alike(images, main, k=2)
    assert [set(row) for row in near.tolist()] == [
        {2, 4},
        {3, 5},
        {0, 4},
        {1, 5},
        {0, 2},
        {1, 3},
        {-1},
    ]
    mixture = Mixture(main, 3, [], neighbours=near, together=3)
    shown = replace(photos(8), texts=[[i] for i in range(8)], weight=torch.ones(8))
    source = StageBatches(shown, mixture, cells=False, tokens=None, equal=np.arange(40), seed=0)
    for epoch in range(3):
        batches = [set(batch.pictures.tolist()) for batch in source.epoch(epoch, 0, None)]
        assert sorted(map(sorted, batches)) == [[0, 2, 4], [1, 3, 5]]


def test_words_of_a_class_are_found_and_others_are_not():
    texts = ["Two puppies and a hot dog", "a parked SUV", "a scar on the carpet", "dogs run"]
    found = mentions(texts, ["dog", "car", "hot dog", "zebra"])
    assert found.tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]


def test_captions_that_agree_with_the_detector_are_chosen():
    # Both texts are equally similar to the photo; only the detector tells them apart.
    images = torch.tensor([[1.0, 0.0]])
    texts = torch.tensor([[0.6, 0.8], [0.6, -0.8], [-1.0, 0.0]])
    mentioned = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    found = pseudo_captions(images, texts, torch.tensor([[0.9, 0.0]]), mentioned, k=2)
    assert found.captions.tolist()[0][0] == 1
    assert found.probabilities.sum().item() == pytest.approx(1.0)
    assert found.probabilities[0, 0] > found.probabilities[0, 1]


def test_a_batch_knows_whose_each_text_is():
    source = batches()
    assert source.steps == 2
    shown = []
    for batch in source.epoch(0, 0, None):
        assert batch.pairs == 5
        shown += batch.pictures[:2].tolist()
        assert len(batch.texts) == len(batch.owners) == len(batch.weights) == 2 * 2 + 1
        for text, owner, weight in zip(batch.captions, batch.owners, batch.weights, strict=True):
            assert int(text) in photos().texts[int(owner)]
            assert weight == photos().weight[int(owner)]
        assert batch.ids[len(batch.texts) :, 0].tolist() == list(range(20, 27))
        assert batch.classes.shape == (5, CLASSES + OBJECTS)
        torch.testing.assert_close(batch.classes.sum(1), torch.ones(5))
        for row, said in zip(batch.pictures.tolist(), batch.classes, strict=True):
            # Photos with even numbers show the first object; of the others the detector is silent.
            assert said[CLASSES].item() == pytest.approx(0 if row % 2 else stages.DETECTOR)
    assert sorted(shown) == [0, 1, 2, 3]


def test_an_epoch_goes_on_where_it_was_and_views_belong_to_their_photo():
    whole = list(batches(cells=True).epoch(2, 0, None))
    rest = list(batches(cells=True).epoch(2, 1, None))
    assert torch.equal(whole[1].images, rest[0].images)
    assert torch.equal(whole[1].captions, rest[0].captions)
    known = photos()
    views = set()
    for number in range(6):
        for batch in batches(cells=True).epoch(number, 0, None):
            for row, image in zip(batch.pictures.tolist(), batch.images.numpy(), strict=True):
                fits = [
                    view
                    for view in (0, 1)
                    if known.rows[view][row] >= 0
                    and np.array_equal(
                        image[:-384], known.views[view].cells[known.rows[view][row]].reshape(-1)
                    )
                    and np.array_equal(
                        image[-384:], known.views[view].features[known.rows[view][row], -384:]
                    )
                ]
                assert len(fits) == 1
                views.add((fits[0], row < 4))
    assert views == {(0, True), (1, True), (0, False)}


def test_photos_without_captions_get_chosen_ones_with_less_weight():
    chosen = PseudoCaptions(torch.arange(30, 34).repeat(8, 1), torch.full((8, 4), 0.25))
    weights = {}
    for number in range(5):
        for batch in batches(chosen).epoch(number, 0, None):
            for owner, text, weight in zip(
                batch.owners.tolist(), batch.captions.tolist(), batch.weights, strict=True
            ):
                kind = "chosen" if text >= 30 else "own"
                weights.setdefault((owner >= 4, kind), set()).add(round(float(weight), 3))
            assert (batch.owners >= 6).sum() == 6
    assert weights[(False, "own")] == {1.0}
    assert (False, "chosen") not in weights
    assert weights[(True, "chosen")] == {0.4}
    assert weights[(True, "own")] == {0.3}


def test_the_stages_share_their_weights_and_read_what_they_should():
    parts = Parts()
    sentences = torch.randn(40, 16)
    heads = Stage(parts, sentences, image=False, text=False).eval()
    image = Stage(parts, sentences, image=True, text=False).eval()
    pixels = torch.rand(2, 3, 224, 224)
    with torch.inference_mode():
        cells, means = parts.image_tower.lower(pixels)
        whole = parts.image_tower(pixels)
        flat = torch.cat([cells.flatten(1), means], dim=1)
        torch.testing.assert_close(image.encode_images(flat), heads.encode_images(whole))
        rows, mask = words([3, 7], None)
        assert torch.equal(image.encode_texts(rows, mask), heads.encode_texts(rows, mask))
        text = Stage(parts, sentences, image=True, text=True).eval()
        ids, mask = words([0, 1], [[1, 2, 3], [4, 5]])
        assert ids.tolist() == [[1, 2, 3], [4, 5, 0]]
        assert mask.tolist() == [[1, 1, 1], [1, 1, 0]]
        expected = heads.text_head(parts.text_tower(ids, mask))
        torch.testing.assert_close(text.encode_texts(ids, mask), expected)


def test_varied_cells_keep_their_shape_and_some_stay_as_they_are():
    torch.manual_seed(0)
    cells = torch.rand(64, *CELLS)
    varied = stages._varied(cells)
    assert varied.shape == cells.shape
    same = [torch.allclose(a, b, atol=1e-4) for a, b in zip(cells, varied, strict=True)]
    mirrored = [torch.allclose(a.flip(2), b, atol=1e-4) for a, b in zip(cells, varied, strict=True)]
    assert 20 < sum(same) < 45
    assert 4 < sum(mirrored) < 30


@pytest.mark.parametrize("cells", [False, True])
def test_a_stage_trains(cells):
    parts = Parts()
    stage = Stage(parts, torch.randn(40, 16), image=cells, text=False)
    recipe = Recipe(
        epochs=20 if not cells else 2, batch=5, learning_rate=0.01, dropout=0.0, classes=0.5
    )
    recipe = replace(recipe, average=0.0)
    stage.text_tower.requires_grad_(False)
    stage.image_tower.requires_grad_(False)
    if cells:
        for conv in stage.image_tower.upper_convolutions():
            conv.requires_grad_(True)
    before = stage.image_tower.upper_convolutions()[0].weight.clone()
    loop = TrainingLoop(stage, batches(cells=cells), recipe, heads=stage.head_parameters())
    history = loop.run().history
    assert torch.equal(stage.image_tower.upper_convolutions()[0].weight, before) != cells
    if not cells:
        assert history[-1]["loss"] < 0.8 * history[0]["loss"]


def test_sources_are_numbered_once(tmp_path):
    def table(name, *rows):
        (tmp_path / name).write_text("\n".join("\t".join(row) for row in rows) + "\n")

    table(
        "train.tsv",
        ("path", "caption", "kind"),
        ("b.jpg", "A dog.", "human_caption"),
        ("b.jpg", "a dog.", "human_caption"),
        ("a.jpg", "What? A cat.", "human_qa"),
        ("a.jpg", "Where? Here.", "human_qa"),
        ("c.jpg", "unknown sort", "other"),
    )
    table("unlabelled.tsv", ("path",), ("d.jpg",))
    table("val.tsv", ("path", "caption"), ("y.jpg", "one"), ("x.jpg", "two"), ("y.jpg", "three"))
    (tmp_path / "text_only_coco_captions.txt").write_text("loose\nloose\nother\n")
    (tmp_path / "imagenet_labels_1001.txt").write_text("background\ntench, Tinca tinca\n")
    (tmp_path / "coco_labels.txt").write_text("person\n")
    found = read_sources(tmp_path, tmp_path)
    assert found.photos == ["a.jpg", "b.jpg", "d.jpg"]
    assert found.kinds == ["human_qa", "human_caption", "unlabelled"]
    assert found.weights == [0.3, 1.0, 0.0]
    assert [[found.texts[i] for i in rows] for rows in found.texts_of] == [
        ["What? A cat. Where? Here."],
        ["A dog.", "a dog."],
        [],
    ]
    assert [found.texts[i] for i in found.names] == [
        "a photo of a background",
        "a photo of a tench",
        "a photo of a person",
    ]
    assert [found.texts[i] for i in found.loose_texts] == ["loose", "other"]
    first, second = found.texts_of[1]
    assert found.equal[first] == found.equal[second]
    assert found.validation_photos == ["x.jpg", "y.jpg"]
    assert [found.texts[i] for i in found.validation_texts] == ["one", "two", "three"]
    assert found.validation_owners.tolist() == [1, 0, 1]

    more = found.with_validation()
    assert more.photos == ["a.jpg", "b.jpg", "d.jpg", "x.jpg", "y.jpg"]
    assert more.kinds[3:] == ["human_caption"] * 2
    assert more.weights[3:] == [1.0, 1.0]
    assert more.texts_of[:3] == found.texts_of
    assert [[more.texts[i] for i in rows] for rows in more.texts_of[3:]] == [
        ["two"],
        ["one", "three"],
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_the_packed_encoder_answers_as_the_model_does_and_can_be_trained_further(tmp_path):
    bundled = load_folder(BUNDLED / DEFAULT_MODEL)
    torch.manual_seed(0)
    architecture = {
        "kind": "compact",
        "image": {"taps": [57, 42, 18]},
        "text": {
            "vocabulary": bundled.tokenizer.get_vocab_size(),
            "width": 64,
            "heads": 2,
            "inner": 128,
            "layers": 2,
            "epsilon": 1e-12,
        },
        "dim": 32,
        "hidden": {"image": 48, "text": 48},
    }
    towers = build(architecture)
    # As it is in use: pretrained layers, a head that fits their answers.
    towers.image.load_state_dict(bundled.image_tower.state_dict())
    with torch.inference_mode():
        shown = torch.from_numpy(np.stack([PREPROCESS(picture) for picture in pictures(4)]))
        cells = (shown.permute(0, 3, 1, 2).float() - MEAN) * SCALE
        towers.image_head.standardise(towers.image(cells))
        towers.text_head.standardise(0.1 + torch.randn(50, 64))
    model = DualEncoder(
        towers,
        Description(
            name="small",
            architecture=architecture,
            preprocess=PREPROCESS,
            mean=(MEAN,) * 3,
            deviation=(1 / SCALE,) * 3,
            texts=TextPreprocess(max_tokens=64),
        ),
        bundled.tokenizer,
    ).eval()
    save_model(model, tmp_path / "model", quantize=Quantize.INT8)
    with torch.inference_mode():
        images = model.encode_images(shown).numpy()
        texts = model.encode_texts(*model.tokenize(TEXTS)).numpy()
    encoder, again = load_encoder(tmp_path / "model"), load_folder(tmp_path / "model").eval()
    assert (encoder.encode_images(pictures(4)) * images).sum(axis=1).min() > 0.99
    found = encoder.encode_texts(TEXTS)
    assert (found * texts).sum(axis=1).min() > 0.99
    # Alone and without padding, a text has the embedding that it has in any company.
    for number, text in enumerate(TEXTS):
        np.testing.assert_allclose(encoder.encode_texts([text])[0], found[number], atol=3e-3)
    with torch.inference_mode():
        assert (again.encode_images(shown).numpy() * images).sum(axis=1).min() > 0.99
        found = again.encode_texts(*again.tokenize(TEXTS)).numpy()
    assert (found * texts).sum(axis=1).min() > 0.99
