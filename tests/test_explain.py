"""Why a picture matches: the map, the words, the captions, what calibration says."""

from __future__ import annotations

import json
import shutil
import subprocess
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import mmsearch
from mmsearch.cli import app
from mmsearch.errors import MissingExtra, ModelError, QueryError, SourceError
from mmsearch.retrieval import explanation
from mmsearch.retrieval.explanation import Method
from mmsearch.retrieval.heat_map import grid_of, laid_back, painted, scaled, windows
from mmsearch.retrieval.heat_picture import check_place, heat_picture, write_png
from mmsearch.retrieval.preprocess import ImagePreprocess, Resize
from mmsearch.retrieval.word_shares import MOST_EXACT, word_shares
from tests.checkpoints import write_open_clip, write_transformers
from tests.conftest import COLOURS, draw
from tests.test_cli import MMSEARCH
from tests.test_terminal_pictures import KITTY, PLAIN, SIXEL, on_terminal

QUARTERS = ("red", "green", "blue", "yellow")


def collage(*colours: str, side: int = 150) -> Image.Image:
    """Return four squares, by rows."""
    image = Image.new("RGB", (2 * side, 2 * side))
    for i, colour in enumerate(colours):
        image.paste(COLOURS[colour], (i % 2 * side, i // 2 * side, (i % 2 + 1) * side, 2 * side))
    return image


def quarter(place: tuple[float, float]) -> int:
    return int(place[0] > 0.5) + 2 * int(place[1] > 0.5)


# The map


@given(st.integers(1, 5000), st.integers(1, 5000))
@settings(max_examples=50)
def test_windows_cover_every_cell_and_are_not_too_many(width, height):
    boxes, grid = windows(width, height), grid_of(width, height)
    assert max(grid) == 32
    assert 34 <= len(boxes) <= 120
    assert all(0 <= a < c <= 1 + 1e-9 and 0 <= b < d <= 1 + 1e-9 for a, b, c, d in boxes)
    np.testing.assert_allclose(painted(boxes, np.ones(len(boxes)), grid), 1)
    if max(width, height) <= 2 * min(width, height):
        sides = [((c - a) * width, (d - b) * height) for a, b, c, d in boxes]
        assert all(across == pytest.approx(down) for across, down in sides)


def test_a_cell_is_the_mean_of_the_windows_over_its_middle():
    boxes = [(0, 0, 0.5, 1), (0.25, 0, 1, 1)]
    np.testing.assert_allclose(painted(boxes, [1, 4], (1, 4)), [[1, 2.5, 4, 4]])


def test_cells_are_laid_back_where_the_encoder_saw_them():
    cells = np.array([[0.0, 1.0], [2.0, 3.0]])
    np.testing.assert_allclose(laid_back(cells, (0, 0, 1, 1), (2, 2)), cells)
    # Half way between the middles of two cells, and level beyond them.
    np.testing.assert_allclose(laid_back(cells[:1], (0, 0, 1, 1), (1, 4)), [[0, 0.25, 0.75, 1]])
    # The middle half was cut out: nothing is known of the rest.
    middle = laid_back(np.ones((2, 2)), (0.25, 0, 0.75, 1), (1, 4))
    np.testing.assert_allclose(middle, [[0, 1, 1, 0]])
    np.testing.assert_allclose(scaled(np.array([[2.0, 4.0, 3.0]])), [[0, 1, 0.5]])
    np.testing.assert_allclose(scaled(np.full((2, 3), 7.0)), 0)


@pytest.mark.parametrize("resize", Resize)
@pytest.mark.parametrize("size", [(300, 200), (90, 240), (128, 128)])
def test_the_square_lies_where_its_pixels_come_from(resize, size):
    width, height = size
    ramp = np.zeros((height, width, 3), dtype=np.uint8)
    ramp[..., 0] = np.linspace(50, 250, width).astype(np.uint8)
    ramp[..., 1] = np.linspace(50, 250, height).astype(np.uint8)[:, None]
    preprocess = ImagePreprocess(size=64, resize=resize, reducing_gap=None)
    pixels = preprocess(Image.fromarray(ramp)).astype(float)
    left, top, right, bottom = preprocess.seen(width, height)
    steps = (np.arange(64) + 0.5) / 64
    for channel, (low, high) in enumerate([(left, right), (top, bottom)]):
        row = pixels[32, :, 0] if channel == 0 else pixels[:, 32, 1]
        place = low + steps * (high - low)
        inside = (place > 0.02) & (place < 0.98)
        np.testing.assert_allclose(row[inside], 50 + 200 * place[inside], atol=5)
        assert (row[(place < 0) | (place > 1)] == 0).all()


def test_a_picture_with_its_map_keeps_its_shape_and_is_brightest_where_it_is_hot():
    heat = np.zeros((2, 4), dtype=np.float32)
    heat[0, 3] = 1
    shown = np.asarray(heat_picture(Image.new("RGB", (400, 200), (90, 90, 90)), heat, 200)).sum(2)
    assert shown.shape == (100, 200)
    assert shown[10, 190] > shown[90, 10] + 200


# Words


def test_shares_are_the_mean_over_all_orders():
    random = np.random.default_rng(0)
    worth = {}

    def score(text: str) -> float:
        return worth.setdefault(text, float(random.normal()))

    words = ["a", "dog", "the", "sea"]
    shares = word_shares(words, lambda texts: [score(text) for text in texts], -0.25)
    expected = np.zeros(4)
    for order in permutations(range(4)):
        before: list[int] = []
        for i in order:
            old = score(" ".join(words[j] for j in sorted(before))) if before else -0.25
            before.append(i)
            expected[i] += score(" ".join(words[j] for j in sorted(before))) - old
    np.testing.assert_allclose(shares, expected / 24)


@pytest.mark.parametrize("count", [1, MOST_EXACT, MOST_EXACT + 1, 20, 90])
def test_shares_add_up_and_a_decisive_word_has_all(count):
    words = [f"w{i}" for i in range(count)]
    asked: list[str] = []

    def scores(texts: list[str]) -> list[float]:
        asked.extend(texts)
        return [0.75 if "w0" in text.split() else 0.25 for text in texts]

    shares = word_shares(words, scores, 0.25)
    np.testing.assert_allclose(shares, [0.5] + [0] * (count - 1), atol=1e-12)
    assert len(asked) == len(set(asked)) <= 640


# Where: windows, regions, gradients


def test_windows_find_each_colour_with_any_encoder(encoder):
    image = collage(*QUARTERS)
    for number, colour in enumerate(QUARTERS):
        found = mmsearch.explain(image, f"something {colour}", model=encoder)
        assert found.method is Method.WINDOWS
        assert (found.heat.shape, found.heat.dtype) == ((32, 32), np.float32)
        assert (found.heat.min(), found.heat.max()) == (0, 1)
        assert quarter(found.place) == number


def test_the_bundled_encoder_finds_colours_by_its_regions():
    encoder = mmsearch.load_encoder()
    image = collage(*QUARTERS)
    regions, seen = encoder.encode_regions(image)
    assert regions.shape == (7, 7, encoder.dim)
    np.testing.assert_allclose(np.linalg.norm(regions, axis=2), 1, atol=1e-5)
    assert seen == (0, 0, 1, 1)
    names = encoder.encode_texts(["a car", "a tree"])
    texts = encoder.encode_texts([f"the color {colour}" for colour in QUARTERS])
    right = 0
    for number, text in enumerate(texts):
        heat, method = explanation.heat_of(encoder, image, text, names)
        assert method is Method.REGIONS
        row, column = np.unravel_index(heat.argmax(), heat.shape)
        right += quarter((column / 32, row / 32)) == number
    assert right >= 3
    # One colour everywhere has no place that is better by much: all regions say the same.
    same, _ = encoder.encode_regions(Image.new("RGB", (99, 50), "red"))
    assert (same[2:5, 2:5].reshape(9, -1) @ same[3, 3] > 0.95).all()


def test_who_knows_no_regions_says_what_to_do_instead(encoder):
    with pytest.raises(QueryError, match=r"does not know the regions.*windows.*gradient"):
        mmsearch.explain(collage(*QUARTERS), "red", model=encoder, method="regions")
    with pytest.raises(QueryError, match=r"'method' is one of 'regions', 'gradient', 'windows'"):
        mmsearch.explain(collage(*QUARTERS), "red", model=encoder, method="magic")


@pytest.mark.parametrize("family", ["clip", "siglip", "align", "metaclip_2", "open_clip"])
def test_gradients_say_what_the_score_loses_where_a_cell_becomes_like_the_rest(family, tmp_path):
    """By finite differences, at one block of the image tower."""
    pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from mmsearch.retrieval.encoders.gradients import gradient_map
    from mmsearch.retrieval.encoders.sources import load_dual_encoder

    if family == "open_clip":
        write_open_clip(tmp_path / family)
        model = load_dual_encoder(f"open_clip:local-dir:{tmp_path / family}")
    else:
        write_transformers(tmp_path / family, family)
        model = load_dual_encoder(f"hf:{tmp_path / family}")
    model.double()
    size = model.preprocess.size
    random = np.random.default_rng(1)
    pixels = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
    with torch.no_grad():
        (vector,) = model.encode_images(torch.from_numpy(pixels[None]))
    direction = random.normal(size=len(vector)).astype(np.float32)
    heat = gradient_map(model, pixels, direction)
    assert heat.shape == (2, 2)
    assert all(parameter.grad is None for parameter in model.parameters())

    def differences(block) -> np.ndarray:
        found = np.zeros((2, 2))
        for (row, column), step in [(cell, s) for cell in np.ndindex(2, 2) for s in (1e-4, -1e-4)]:

            def blend(_, __, given, cell=(row, column), step=step):
                first = given if isinstance(given, torch.Tensor) else given[0]
                changed = first.clone()
                if first.ndim == 4:
                    part, mean = changed[0, :, cell[0], cell[1]], first[0].mean(dim=(1, 2))
                else:
                    tokens = changed.flatten(0, 1)[-4:]
                    part, mean = tokens[2 * cell[0] + cell[1]], tokens.mean(dim=0)
                part += step * (mean - part)
                return changed if first is given else (changed, *given[1:])

            hook = block.register_forward_hook(blend)
            with torch.no_grad():
                score = model.encode_images(torch.from_numpy(pixels[None]))[0].numpy() @ direction
            hook.remove()
            found[row, column] -= score / 2 / step
        return found

    agree = []
    for parent in model.image_tower.modules():
        if isinstance(parent, torch.nn.ModuleList | torch.nn.Sequential):
            for block in parent:
                try:
                    agree.append(np.allclose(differences(block), heat, rtol=1e-4, atol=1e-9))
                except (IndexError, RuntimeError):
                    agree.append(False)  # What it gives has no such cells.
    assert any(agree)
    assert np.abs(heat).min() > 1e-6


def test_the_gradient_of_a_network_that_ends_in_a_mean_is_its_activation_map(tmp_path):
    """Zhou et al. 2016: the head's weights times the last activations, up to a constant."""
    torch = pytest.importorskip("torch")
    from mmsearch.retrieval.encoders.gradients import gradient_map
    from mmsearch.retrieval.encoders.sources import load_dual_encoder

    model = load_dual_encoder("compact")
    pixels = model.preprocess(collage(*QUARTERS)).copy()
    with torch.no_grad():
        vector = model.encode_images(torch.from_numpy(pixels[None]))[0]
    direction = torch.nn.functional.normalize(
        torch.randn(256, generator=torch.manual_seed(0)), dim=0
    )
    heat = gradient_map(model, pixels, direction.numpy())
    assert heat.shape == (8, 8)
    last: list[torch.Tensor] = []
    hook = model.image_tower.blocks[-1].register_forward_hook(lambda *given: last.append(given[2]))
    with torch.no_grad():
        features = model.image_tower(model._scaled(torch.from_numpy(pixels[None])))
    hook.remove()
    features.requires_grad_()
    score = torch.nn.functional.normalize(model.image_head(features), dim=-1)[0] @ direction
    assert float(vector @ direction - score.detach()) == pytest.approx(0, abs=1e-4)
    (slopes,) = torch.autograd.grad(score, features)
    cam = torch.einsum("c,chw->hw", slopes[0, :1280], last[0][0]).detach().numpy() / 64
    np.testing.assert_allclose(heat, cam - cam.mean(), atol=1e-6)


def test_a_gradient_needs_a_model_that_has_one(encoder):
    pytest.importorskip("torch")
    with pytest.raises(ModelError, match="There is no model 'colour'"):
        mmsearch.explain(collage(*QUARTERS), "red", model=encoder, method="gradient")


def test_a_gradient_without_torch_names_the_extra(monkeypatch):
    def missing(name: str) -> None:
        raise MissingExtra("torch", "models")

    monkeypatch.setattr(explanation.importlib, "import_module", missing)
    encoder = mmsearch.load_encoder()
    names = encoder.encode_texts(["a car"])
    with pytest.raises(MissingExtra, match=r"mmsearch\[models\]"):
        explanation.heat_of(encoder, collage(*QUARTERS), names[0], names, Method.GRADIENT)


# In a library


@pytest.fixture
def library(photos, encoder):
    captions = photos.parent / "captions.tsv"
    rows = [("red.jpg", "a red wall"), ("red.jpg", "yellow"), ("green.jpg", "red, red and green")]
    paths = {path.name: path.relative_to(photos).as_posix() for path in photos.rglob("*.jpg")}
    text = "".join(f"{paths[name]}\t{caption}\n" for name, caption in rows)
    captions.write_text("path\tcaption\n" + text)
    mmsearch.index(photos, model=encoder, captions=captions)
    with mmsearch.open(photos, model=encoder) as engine:
        yield engine, paths


def test_a_library_tells_probability_and_captions_its_own_first(library, photos):
    engine, paths = library
    found = engine.explain(paths["red.jpg"], "something green", k=2)
    hits = engine.search("something green", k=6, words=False).hits
    (hit,) = [hit for hit in hits if hit.path == paths["red.jpg"]]
    assert found.score == pytest.approx(hit.score, abs=1e-3)
    assert found.match == pytest.approx(hit.match, abs=1e-3)
    assert [caption.own for caption in found.captions] == [True, True, False]
    assert [caption.text for caption in found.captions[:2]] == ["a red wall", "yellow"]
    assert found.captions[2].text == "red, red and green"
    assert [caption.better for caption in found.captions] == [True, found.captions[1].better, True]
    scores = [caption.score for caption in found.captions[:2]]
    assert scores == sorted(scores, reverse=True)
    assert sum(word.share for word in found.words) == pytest.approx(found.score - found.usual)
    assert found.words[1].word == "green"
    assert found.words[1].share < 0
    decisive = engine.explain(photos / paths["red.jpg"], "something red")
    assert decisive.words[1].share > abs(decisive.words[0].share)
    assert decisive.verdict is not None
    assert decisive.verdict.pictures == 6
    assert decisive.library == photos


def test_pictures_from_elsewhere_are_explained_and_copies_are_known(library, photos, tmp_path):
    engine, paths = library
    new = engine.explain(draw(tmp_path / "new.png", "blue"), "something blue")
    assert not any(caption.own for caption in new.captions)
    assert new.match is not None
    copy = shutil.copy(photos / paths["red.jpg"], tmp_path / "copy of it.jpg")
    assert [each.text for each in engine.explain(copy, "blue").captions if each.own] == [
        "a red wall",
        "yellow",
    ]
    in_memory = engine.explain(Image.open(copy), "blue")
    assert in_memory.score == pytest.approx(engine.explain(copy, "blue").score, abs=2e-3)


@pytest.mark.parametrize(
    ("image", "text", "message"),
    [
        ("nowhere.jpg", "red", "There is no picture nowhere.jpg here, nor in the library"),
        ("broken.jpg", "red", r"broken\.jpg cannot be used: not an image"),
        ("red.jpg", "  ", "The query is empty"),
        ("red.jpg", "dog AND cat", 'Explain one of them: "dog"'),
    ],
)
def test_what_cannot_be_explained_says_why(library, photos, tmp_path, image, text, message):
    engine, paths = library
    (tmp_path / "broken.jpg").write_bytes(b"<html>")
    image = tmp_path / image if image == "broken.jpg" else paths.get(image, image)
    with pytest.raises(QueryError, match=message):
        engine.explain(image, text)


def test_a_library_without_captions_has_none_to_tell(photos, encoder):
    mmsearch.index(photos, model=encoder)
    with mmsearch.open(photos, model=encoder) as engine:
        found = engine.explain("green.jpg", "something green")
    assert found.captions == ()
    assert found.match is not None


# The command


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A cache for all of them: the names of the background are embedded once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def here(tmp_path, monkeypatch, kept):
    monkeypatch.setenv("MMSEARCH_CACHE", str(kept))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my photos"
    folder.mkdir()
    collage(*QUARTERS).save(folder / "four colours.png")
    draw(folder / "night.png", "black", (320, 240))
    (folder / "four colours.txt").write_text("red, green, blue and yellow squares\n")
    return folder


def run(*arguments: object, code: int = 0):
    done = CliRunner().invoke(app, [str(each) for each in arguments])
    found = getattr(done.exception, "exit_code", done.exit_code) if done.exit_code else 0
    assert found == code, (done.output, done.exception)
    return done


def test_without_a_library_there_are_map_and_words(here, tmp_path):
    image = here / "four colours.png"
    done = run("explain", image, "the color red", "--json", "--output", tmp_path / "heat.png")
    assert "No library here, so neither a probability nor captions." in done.stderr
    found = json.loads(done.stdout)
    assert (found["schema"], found["method"], found["calibration"]) == (1, "regions", None)
    assert found["captions"] == []
    values = np.array(found["heat"]["values"])
    assert values.shape == (found["heat"]["rows"], found["heat"]["columns"]) == (32, 32)
    assert (values.min(), values.max()) == (0, 1)
    assert [word["word"] for word in found["words"]] == ["the", "color", "red"]
    with Image.open(tmp_path / "heat.png") as png:
        assert (png.format, png.size) == ("PNG", (300, 300))
        assert png.info["Description"] == "Where it matches: the color red"


def test_the_command_asks_the_library_and_draws_in_any_terminal(here, tmp_path):
    subprocess.run([MMSEARCH, "index", here], check=True, capture_output=True)
    rows = [
        line.split("\t")
        for line in run(
            "explain", "four colours.png", "red squares", "-L", here
        ).stdout.splitlines()
    ]
    assert [row[0] for row in rows] == [
        *("score", "usual", "match", "cut", "deviations", "chance", "place"),
        *("word", "word", "caption"),
    ]
    assert rows[-1][2:] == ["own", "red, green, blue and yellow squares", "four colours.png"]
    command = ("explain", "four colours.png", "red squares", "-L", str(here))
    for answer, drawn in ((PLAIN, "▀"), (SIXEL, "\x1bP"), (KITTY, "\x1b_G")):
        seen = on_terminal(tmp_path, answer=answer, command=command)
        assert seen.code == 0
        assert drawn in seen.shown
        assert "squares" in seen.text
        assert "its own" in seen.text
    # Nothing is asked of a terminal that shall draw nothing.
    seen = on_terminal(tmp_path, "--no-pictures", answer=PLAIN, command=command)
    assert seen.code == 0
    assert b"\x1b[c" not in seen.output


def test_no_file_is_overwritten_unless_that_is_asked_and_no_picture_ever(here, tmp_path):
    image = here / "four colours.png"
    before = image.read_bytes()
    with pytest.raises(SourceError, match="no picture of yours is overwritten"):
        check_place(image, image, force=True)
    with pytest.raises(SourceError, match=r"let its name end in \.png"):
        check_place(tmp_path / "heat.jpg", image)
    with pytest.raises(SourceError, match="There is no folder"):
        check_place(tmp_path / "none" / "heat.png", image)
    other = tmp_path / "heat.png"
    other.write_bytes(b"mine")
    run("explain", image, "red", "-o", other, code=1)
    assert other.read_bytes() == b"mine"
    run("explain", image, "red", "-o", other, "--force")
    with Image.open(other) as png:
        png.load()
    with pytest.raises(SourceError, match="cannot be written"):
        write_png(Image.new("RGB", (9, 9)), other, "")
    run("explain", image, "red", "-o", image, "--force", code=1)
    assert image.read_bytes() == before


def test_bad_input_gets_one_clear_line(here, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"<html>")
    image = here / "four colours.png"
    for arguments in (
        ("nowhere.jpg", "red"),
        ("broken.jpg", "red"),
        (image, " "),
        (image, "red", "-k", 0),
        (image, "red", "--method", "magic"),
        (image, "red", "--model", "compact", "-L", here),
        (image, "dog NOT cat"),
    ):
        done = run("explain", *arguments, code=2)
        assert done.stdout == ""
    done = run("explain", image, "red width:>100", "-p")
    assert "says nothing of width > 100" in done.stderr
    assert "--output FILE.png" in done.stderr
