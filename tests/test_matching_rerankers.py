"""Rerankers of transformers and sentence-transformers, held to these libraries' own answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from mmsearch.errors import MediaError, ModelError  # noqa: E402
from mmsearch.retrieval.rerankers import Pair, View, load_reranker  # noqa: E402
from tests import checkpoints  # noqa: E402
from tests.checkpoints import TEXTS, pictures  # noqa: E402

# The model libraries' own; none of them is about this project's code.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)

FAMILIES = ["blip", "vilt"]
HELD_BACK = TEXTS[:3]  # An empty text says nothing that could be compared.


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root, kept = tmp_path_factory.mktemp("matching"), {}

    def make(family):
        if family not in kept:
            kept[family] = (root / family, *checkpoints.write_matching(root / family, family))
        return kept[family]

    return make


def views(count: int = 4) -> list[View]:
    return [View(key, lambda _, found=found: found) for key, found in enumerate(pictures(count))]


def own_logits(model, processor, picture, text) -> float:
    """Return what transformers says, called as its documentation calls it: one pair at a time."""
    inputs = processor(
        images=picture, text=text, truncation=True, max_length=16, return_tensors="pt"
    )
    with torch.inference_mode():
        answer = model(**inputs)
    if hasattr(answer, "itm_score"):
        no, yes = torch.log_softmax(answer.itm_score[0], dim=0).tolist()
        return yes - no
    return answer.logits[0, 0].item()


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_library_itself(made, family) -> None:
    folder, model, processor = made(family)
    reranker = load_reranker(f"hf:{folder}")
    shown = views()
    pairs = [Pair(text, view, 0.0) for text in HELD_BACK for view in shown]
    found = reranker.rerank(pairs).scores
    own = [own_logits(model, processor, pair.view.open(0), pair.text) for pair in pairs]
    assert np.std(own) > 0.05  # A model that says the same of everything would prove nothing.
    np.testing.assert_allclose(found, own, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_neither_the_batch_nor_the_order_changes_a_score(made, family) -> None:
    reranker = load_reranker(f"hf:{made(family)[0]}")
    pairs = [Pair(text, view, 0.0) for text in HELD_BACK for view in views()]
    found = reranker.rerank(pairs).scores
    np.testing.assert_allclose(reranker.rerank(pairs[::-1]).scores[::-1], found, atol=1e-5)
    alone = [reranker.rerank([pair]).scores[0] for pair in pairs]
    np.testing.assert_allclose(alone, found, atol=1e-5)
    assert reranker.rerank(pairs).scores.tolist() == found.tolist()  # to the last bit


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_with_many_texts_is_opened_and_looked_at_once(made, family, monkeypatch) -> None:
    reranker = load_reranker(f"hf:{made(family)[0]}")
    opened: list[int] = []
    picture = pictures(1)[0]

    def open_(at_least: int):
        opened.append(at_least)
        return picture

    looked: list[int] = []
    look = reranker._matcher.look

    def counted(shown):
        looked.append(len(shown))
        return look(shown)

    monkeypatch.setattr(reranker._matcher, "look", counted)
    texts = [f"a photo of {word}" for word in checkpoints.WORDS]
    view = View("one", open_)
    found = reranker.rerank([Pair(text, view, 0.0) for text in texts])
    assert found.count == len(texts) > reranker.batch_size
    assert (len(opened), looked) == (1, [1])
    assert opened[0] >= 32  # as many pixels as the model sees
    # A later call looks again: the picture of this key may be another by then.
    reranker.rerank([Pair(texts[0], view, 0.0)])
    assert looked == [1, 1]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_broken_picture_costs_no_other_its_score(made, family) -> None:
    def broken(_):
        raise MediaError("truncated", "half.jpg is truncated")

    reranker = load_reranker(f"hf:{made(family)[0]}")
    shown = views(3)
    whole = reranker.rerank([Pair("a dog", view, 0.0) for view in shown]).scores
    shown[1] = View(9, broken)
    found = reranker.rerank([Pair("a dog", view, 0.0) for view in shown])
    assert found.unread == ("half.jpg is truncated",)
    np.testing.assert_allclose(found.scores[[0, 2]], whole[[0, 2]], atol=1e-5)


def test_vilt_leaves_the_callers_dice_alone(made) -> None:
    reranker = load_reranker(f"hf:{made('vilt')[0]}")
    torch.manual_seed(7)
    expected = torch.rand(3).tolist()
    torch.manual_seed(7)
    reranker.rerank([Pair("a dog", views(1)[0], 0.0)])
    assert torch.rand(3).tolist() == expected


def test_a_name_finds_the_model_from_any_folder(made, tmp_path, monkeypatch) -> None:
    folder = made("blip")[0]
    monkeypatch.chdir(folder.parent)
    name = load_reranker(f"hf:{folder.name}").name
    monkeypatch.chdir(tmp_path)
    assert load_reranker(name).name == name == f"hf:{folder}"


def test_a_folder_without_a_model_says_what_belongs_there(tmp_path) -> None:
    with pytest.raises(ModelError, match=r"cannot be opened.*hf:PATH, with config\.json"):
        load_reranker(f"hf:{tmp_path}")


def test_an_encoder_is_told_where_it_belongs(tmp_path) -> None:
    checkpoints.write_transformers(tmp_path / "clip", "clip")
    with pytest.raises(ModelError, match=r"CLIPModel.*encoder.*use it with --model hf:"):
        load_reranker(f"hf:{tmp_path / 'clip'}")


def test_a_captioner_is_told_where_it_belongs(tmp_path) -> None:
    checkpoints.write_captioner(tmp_path / "blip")
    with pytest.raises(ModelError, match="It writes captions: mmsearch index FOLDER --describe hf"):
        load_reranker(f"hf:{tmp_path / 'blip'}")


@pytest.mark.parametrize(("family", "head"), [("blip", "itm_head"), ("vilt", "rank_output")])
def test_a_head_by_chance_is_refused(made, tmp_path, family, head) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / family
    _copy(made(family)[0], folder)
    weights = load_file(folder / "model.safetensors")
    rest = {name: value for name, value in weights.items() if not name.startswith(head)}
    assert len(rest) == len(weights) - 2
    save_file(rest, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=f"2 weights are missing, among them {head}"):
        load_reranker(f"hf:{folder}")


def test_pickled_weights_are_never_read(made, tmp_path) -> None:
    folder = tmp_path / "pickled"
    _copy(made("blip")[0], folder)
    (folder / "model.safetensors").unlink()
    torch.save(made("blip")[1].state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"cannot be opened.*model\.safetensors"):
        load_reranker(f"hf:{folder}")


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("hf:somewhere", "torch"),
        ("hf:somewhere", "transformers"),
        ("cross-encoder:somewhere", "sentence_transformers"),
    ],
)
def test_without_the_extra_it_says_how_to_get_it(name, package) -> None:
    code = (
        "import sys\n"
        f"sys.modules[{package!r}] = None\n"
        "from mmsearch.errors import MissingExtra\n"
        "from mmsearch.retrieval.rerankers import load_reranker\n"
        f"try: load_reranker({name!r})\n"
        "except MissingExtra as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "mmsearch[models]"' in done.stdout
    assert package in done.stdout


def _copy(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory):
    pytest.importorskip("sentence_transformers")
    root = tmp_path_factory.mktemp("cross")
    checkpoints.write_cross_encoder(root)
    return root / "saved"


def test_a_cross_encoder_says_what_its_library_says(cross_encoder) -> None:
    from sentence_transformers import CrossEncoder

    reranker = load_reranker(f"cross-encoder:{cross_encoder}")
    assert reranker.name == f"cross-encoder:{cross_encoder}"
    shown = views()
    pairs = [Pair(text, view, 0.0) for text in HELD_BACK for view in shown]
    found = reranker.rerank(pairs).scores
    model = CrossEncoder(str(cross_encoder), device="cpu")
    chances = [model.predict([(pair.text, pair.view.open(0))])[0] for pair in pairs]
    assert np.std(found) > 0.05
    np.testing.assert_allclose(1 / (1 + np.exp(-found)), chances, atol=1e-4)


def test_a_text_that_names_a_file_is_not_opened(cross_encoder, tmp_path) -> None:
    # sentence-transformers takes a bare text with a picture's path for the picture.
    path = tmp_path / "dog.png"
    pictures(1)[0].save(path)
    reranker = load_reranker(f"cross-encoder:{cross_encoder}")
    view = views(1)[0]
    named, other = (reranker.rerank([Pair(text, view, 0.0)]) for text in (str(path), "a dog"))
    path.unlink()
    gone = reranker.rerank([Pair(str(path), view, 0.0)])
    assert named.scores.tolist() == gone.scores.tolist() != other.scores.tolist()


def test_a_cross_encoder_of_texts_is_refused(tmp_path) -> None:
    pytest.importorskip("sentence_transformers")
    import transformers

    config = transformers.BertConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=24,
        num_labels=1,
    )
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    checkpoints.write_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="reads no pictures, only: text"):
        load_reranker(f"cross-encoder:{tmp_path}")
    # The same without its head: sentence-transformers would draw one by chance.
    transformers.BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="weights are missing, among them"):
        load_reranker(f"cross-encoder:{tmp_path}")


def test_a_cross_encoder_without_safetensors_is_refused(cross_encoder, tmp_path) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    for file in cross_encoder.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"")
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:1]))
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is a pickle"):
        load_reranker(f"cross-encoder:{folder}")
