"""The page in a real browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

import mmsearch
from mmsearch.retrieval.library import Library
from mmsearch.retrieval.schema import Picture

playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no Chromium: apt install chromium"
)

MMSEARCH = str(Path(sys.executable).with_name("mmsearch"))
MANY = 1_000
DESKTOP, PHONE = (1280, 860), (360, 740)
CARD = "#grid .tile:not(.waiting)"


def scene(kind: str, i: int) -> Image.Image:
    """Draw what the bundled encoder knows by sight; those of one kind are near-duplicates."""
    width, height = (480, 640) if kind == "flower" else (640, 480)
    image = Image.new("RGB", (width, height), (40, 110, 40))
    draw = ImageDraw.Draw(image)
    if kind == "sea":
        for y in range(height):
            sky = y < height // 2
            shade = (90 + y // 6, 150 + y // 8, 220) if sky else (20, 70 + (y - 240) // 5, 140)
            draw.line([(0, y), (width, y)], fill=shade)
    elif kind == "sunset":
        for y in range(height):
            green = 140 - y // 6 if y < height * 3 // 4 else 20
            draw.line([(0, y), (width, y)], fill=(250 - y // 8, green, 60 + y // 10))
        draw.ellipse([270 + 7 * i, 190, 370 + 7 * i, 290], fill=(255, 230, 150))
    else:
        for k in range(8):
            a = k * np.pi / 4 + i
            x, y = width / 2 + 90 * np.cos(a), height / 2 + 90 * np.sin(a)
            draw.ellipse([x - 60, y - 60, x + 60, y + 60], fill=(230, 40, 80 + 9 * i))
        draw.ellipse([width / 2 - 50, height / 2 - 50, width / 2 + 50, height / 2 + 50], "gold")
    noise = np.random.default_rng(i).normal(0, 6, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


@contextmanager
def serving(folder: Path, home: Path) -> Iterator[str]:
    """Run the product's own server for a library, and tell its address."""
    command = [MMSEARCH, "serve", folder, "--port", "0", "--allow-indexing"]
    log = home / f"{folder.name}.log"
    with log.open("w") as errors:
        process = subprocess.Popen(command, stderr=errors, env=environment(home))
        try:
            found = None
            while found is None:
                assert process.poll() is None, log.read_text()
                found = re.search(r"Serving at (http://\S+)/", log.read_text())
            yield found.group(1)
        finally:
            process.terminate()
            process.wait(20)
    assert "Traceback" not in log.read_text(), log.read_text()


def environment(home: Path) -> dict[str, str]:
    names = ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")
    return os.environ | dict.fromkeys(names, str(home))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page-home")


@pytest.fixture(scope="module")
def photos(home: Path) -> Path:
    folder = home / "photos"
    folder.mkdir()
    for kind in ("sea", "sunset", "flower"):
        for i in range(5):
            scene(kind, i).save(folder / f"{kind}{i}.jpg")
    (folder / "sea0.txt").write_text("waves <script>alert(1)</script>")
    command = [MMSEARCH, "index", folder]
    subprocess.run(command, check=True, capture_output=True, env=environment(home))
    return folder


@pytest.fixture(scope="module")
def many(home: Path) -> Path:
    """A library of many pictures, none of which is there any more."""
    folder = home / "many"
    folder.mkdir()
    spec = mmsearch.load_encoder("compact").spec
    generator = np.random.default_rng(7)
    library = Library.create(folder)
    with library.catalog.write() as transaction:
        encoder = transaction.encoder_id(spec, "compact")
        transaction.activate(encoder)
        for i in range(MANY):
            vector = generator.standard_normal(spec.dim, dtype=np.float32)
            content = generator.bytes(32)
            picture = Picture(
                f"a/IMG_{i:05}.jpg", 9, i, content, "JPEG", 40, 30, 1, None, None, None, None, ""
            )
            transaction.put_file(picture, encoder, vector / np.linalg.norm(vector))
    library.close()
    return folder


@pytest.fixture(scope="module")
def site(photos: Path, home: Path) -> Iterator[str]:
    with serving(photos, home) as address:
        yield address


@pytest.fixture(scope="module")
def large_site(many: Path, home: Path) -> Iterator[str]:
    with serving(many, home) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with playwright.sync_playwright() as started:
        # Root has no user namespaces to build a sandbox of.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        launched = started.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield launched
        launched.close()


@pytest.fixture
def visit(browser, site) -> Iterator[Callable]:
    """Open pages that may ask nothing of any other machine, and may not complain."""
    contexts, faults = [], []

    def opened(address="/", size=DESKTOP, *, at=site, **options):
        width, height = size
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)

        def checked(route):
            if route.request.url.startswith((at, "blob:", "data:")):
                route.continue_()
            else:
                faults.append(f"asked {route.request.url}")
                route.abort()

        context.route("**/*", checked)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(f"error {error}"))
        told = {"error", "warning"}
        page.on("console", lambda said: said.type in told and faults.append(f"said {said.text}"))
        page.set_default_timeout(20_000)
        page.goto(at + address)
        if options.get("java_script_enabled", True):
            page.wait_for_selector("html.ready")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert faults == []


def until(page, expression: str, argument: object = None, seconds: float = 20) -> None:
    """Wait until an expression holds; Playwright's own way needs what the page forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression, argument):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(40)


def names(page) -> list[str]:
    """Return what stands under the pictures, without their folder."""
    return page.locator(f"{CARD} .fact").evaluate_all("facts => facts.map((fact) => fact.title)")


def settled(page) -> None:
    until(page, "!document.body.classList.contains('asking')")


def ask(page, words: str) -> None:
    """Type a question and wait for its answer."""
    with page.expect_response(lambda response: "/page/answer" in response.url):
        page.fill("#q", words)
    # That may have been an answer to what was scrolled to before.
    until(page, "words => (new URL(location).searchParams.get('q') ?? '') === words", words)
    settled(page)


def item_of(page, name: str) -> str:
    return page.locator(f"{CARD}:has(.fact[title='{name}'])").get_attribute("data-item")


def test_results_appear_while_somebody_types(visit):
    page = visit()
    assert len(names(page)) == 15
    assert page.locator("#count").inner_text().startswith("15 pictures")
    page.click("#q")
    with page.expect_response(lambda response: "/page/answer" in response.url):
        page.keyboard.type("a sunset over the sea", delay=15)
    page.wait_for_selector("#grid .match")
    shown = names(page)
    assert {re.sub(r"\d.*", "", name) for name in shown[:2]} == {"sea", "sunset"}
    assert "q=a+sunset+over+the+sea" in page.url
    assert page.locator(f"{CARD} .match").first.inner_text() in {"very likely", "likely", "maybe"}
    assert "Best of 15" in page.locator("#told").inner_text()
    assert page.title() == "a sunset over the sea – mmsearch"
    page.go_back()
    until(page, "document.querySelector('#q').value === ''")
    until(page, "document.querySelectorAll('#grid .tile').length === 15")
    page.go_forward()
    until(page, "document.querySelector('#q').value.startsWith('a sunset')")


def test_typing_aborts_what_was_asked_before_and_is_one_step_back(visit):
    page = visit()
    asked = []
    page.on("request", lambda request: "/page/answer" in request.url and asked.append(request.url))
    page.click("#q")
    page.keyboard.type("sea", delay=10)
    until(page, "location.search === '?q=sea'")
    page.keyboard.type(" gull", delay=10)
    until(page, "location.search === '?q=sea+gull'")
    settled(page)
    assert len(asked) == 2
    assert page.locator("#q").input_value() == "sea gull"
    page.go_back()
    until(page, "location.search === ''")


def test_half_a_filter_is_a_hint_and_no_fault(visit):
    page = visit()
    ask(page, "sea after:20x")
    assert "This is no date" in page.locator(".notice.failure").inner_text()
    ask(page, "sea after:2020")
    assert "No picture is like that" in page.locator(".notice").inner_text()


def test_a_picture_that_is_chosen_dropped_or_pasted(visit, tmp_path):
    page = visit()
    scene("flower", 9).save(tmp_path / "mine.jpg")
    page.set_input_files("#pictures", tmp_path / "mine.jpg")
    chip = page.locator(".chip.sent")
    chip.wait_for()
    assert chip.inner_text().startswith("like mine.jpg (in this tab only)")
    assert names(page)[0].startswith("flower")
    assert page.url.endswith("/")
    # Words beside it.
    ask(page, "the sea")
    assert chip.count() == 1
    chip.locator("button").click()
    chip.wait_for(state="detached")
    page.go_back()
    chip.wait_for()
    for kind in ("drop", "paste"):
        page = visit()
        page.evaluate(
            """async ([kind, address]) => {
              const blob = await (await fetch(address)).blob();
              const data = new DataTransfer();
              data.items.add(new File([blob], "dropped.jpg", { type: "image/jpeg" }));
              const options = { bubbles: true, cancelable: true };
              const event = kind === "drop"
                ? new DragEvent("drop", { ...options, dataTransfer: data })
                : new ClipboardEvent("paste", { ...options, clipboardData: data });
              document.body.dispatchEvent(event);
            }""",
            [kind, f"/api/v1/items/{item_of(page, 'sunset0.jpg')}/original"],
        )
        page.locator(".chip.sent").wait_for()
        assert names(page)[0].startswith("sunset")


def test_what_is_no_picture_is_told(visit, tmp_path):
    page = visit()
    (tmp_path / "odd.jpg").write_text("no picture")
    page.set_input_files("#pictures", tmp_path / "odd.jpg")
    notice = page.locator(".notice.failure")
    notice.wait_for()
    assert "The picture odd.jpg cannot be used" in notice.inner_text()


def test_filters_are_chips_that_can_be_taken_away(visit):
    page = visit()
    page.click("#filters summary")
    page.select_option("[name=shape]", "portrait")
    until(page, "document.querySelectorAll('#grid .tile').length === 5")
    assert all(name.startswith("flower") for name in names(page))
    assert page.url.endswith("/?shape=portrait")
    page.fill("[name=camera]", "no such")
    page.press("[name=camera]", "Tab")
    until(page, "document.querySelectorAll('#grid .tile').length === 0")
    assert "No picture is like that" in page.locator("#question").inner_text()
    page.keyboard.press("Escape")
    page.click("[aria-label='Take away: camera no such']")
    until(page, "document.querySelectorAll('#grid .tile').length === 5")
    assert page.locator("[name=camera]").input_value() == ""
    page.click("[aria-label='Take away: shape portrait']")
    until(page, "document.querySelectorAll('#grid .tile').length === 15")


def test_more_like_this_and_less_like_this(visit):
    page = visit("/?single=1")
    first = names(page)[0]
    kept, left = item_of(page, first), item_of(page, "sunset0.jpg")
    page.locator(f"{CARD} .picture").first.focus()
    page.keyboard.press("+")
    page.locator(".chip.like").wait_for()
    settled(page)
    # What is asked with is no answer, and its kind comes first.
    shown = names(page)
    assert first not in shown
    assert {name[:3] for name in shown[:4]} == {first[:3]}
    assert f"like={kept.replace('/', '%2F')}" in page.url
    page.click(f"{CARD}[data-item='{left}'] .picture")
    page.locator("#detail[open] .actions").wait_for()
    page.click("text=Less like this")
    page.locator(".chip.dislike").wait_for()
    settled(page)
    assert "sunset0.jpg" not in names(page)
    assert page.locator("#detail[open]").count() == 0
    page.click(".chip.like a")
    page.locator(".chip.like").wait_for(state="detached")


def test_where_nothing_matches_the_nearest_can_be_had_anyway(visit):
    page = visit()
    ask(page, "a giraffe")
    notice = page.locator(".notice")
    assert "Nothing here clearly matches “a giraffe”." in notice.inner_text()
    assert "Closest: " in notice.inner_text()
    assert page.locator(".tile").count() == 0
    page.click("text=Show nearest anyway")
    page.wait_for_selector(CARD)
    assert page.locator(f"{CARD} .match").first.inner_text() == "unlikely"
    assert "all=1" in page.url


def test_bursts_are_stacks_that_open(visit):
    page = visit("/?q=the+blue+sea")
    stack = page.locator(f"{CARD} .stack").first
    assert stack.inner_text() == "5"
    stack.click()
    strip = page.locator("#strip a")
    strip.first.wait_for()
    assert strip.count() == 5
    before = page.locator("#detail h2").inner_text()
    strip.nth(2).click()
    until(page, "before => document.querySelector('#detail h2').textContent !== before", before)
    assert page.locator("#strip a").count() == 5
    page.keyboard.press("Escape")
    until(page, "!location.search.includes('open')")


def test_why_a_picture_is_here(visit):
    page = visit("/?q=a+sunset+over+the+sea")
    page.click(f"{CARD} .picture")
    page.click("[data-why]")
    page.locator("#warm").wait_for()
    assert page.locator(".shares th").all_inner_texts() == ["a", "sunset", "over", "the", "sea"]
    until(page, "document.querySelector('#heat').naturalWidth > 100")
    page.uncheck("#warm")
    assert page.locator("#heat").is_hidden()


def test_a_question_of_several_concepts_explains_each(visit):
    page = visit("/?q=sunset+OR+sea&all=1")
    page.click(f"{CARD} .picture")
    page.locator("#detail[open]").wait_for()
    assert page.locator("[data-why]").all_inner_texts() == ["sunset", "sea"]


def test_the_keyboard_does_it_all(visit):
    page = visit("/?single=1")
    focused = "document.activeElement.closest('.tile')?.dataset.index"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "q"
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focused) == "0"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    columns = page.evaluate(
        "new Set([...document.querySelectorAll('.tile')].map("
        "(tile) => tile.getBoundingClientRect().left)).size"
    )
    assert page.evaluate(focused) == str(1 + columns)
    page.keyboard.press("x")
    assert page.locator("#selected").inner_text() == "1 selected"
    page.keyboard.press("End")
    assert page.evaluate(focused) == "14"
    page.keyboard.press("Enter")
    page.locator("#detail[open] h2").wait_for()
    assert "open=" in page.url
    last = page.locator("#detail h2").inner_text()
    page.keyboard.press("ArrowLeft")
    until(page, "last => document.querySelector('#detail h2').textContent !== last", last)
    page.keyboard.press("Escape")
    until(page, "!location.search.includes('open')")
    until(page, f"{focused} === '13'")
    page.keyboard.press("?")
    assert page.locator("#help[open]").count() == 1
    page.keyboard.press("Escape")
    page.locator(f"{CARD}[data-index='13'] .picture").focus()
    page.keyboard.press("Escape")
    assert page.locator("#selection").is_hidden()
    page.keyboard.press("s")
    page.locator(".chip.like").wait_for()
    # With Tab there is one stop for all pictures, and what belongs to that one.
    settled(page)
    assert page.locator("#grid .picture[tabindex='0']").count() == 1


@pytest.mark.parametrize("address", ["/", "/?q=giraffe", "/?q=sea&shape=landscape&all=1"])
def test_a_phone_s_width_is_enough(visit, address):
    page = visit(address, PHONE)
    fits = "document.documentElement.scrollWidth <= innerWidth"
    assert page.evaluate(fits)
    page.click("#filters summary")
    panel = page.locator(".panel").bounding_box()
    assert panel["x"] >= 0
    assert panel["x"] + panel["width"] <= PHONE[0]
    page.click("#filters summary")
    page.click("#help-button")
    assert page.evaluate(fits)
    assert page.evaluate("help.scrollWidth <= help.clientWidth")
    page.keyboard.press("Escape")
    if page.locator(CARD).count():
        page.check(".pick input >> nth=0", force=True)
        bar = page.locator("#selection").bounding_box()
        assert bar["x"] >= 0
        assert bar["x"] + bar["width"] <= PHONE[0]
        page.click(f"{CARD} .picture")
        page.locator("#detail[open] .actions").wait_for()
        assert page.evaluate(
            "[...document.querySelectorAll('#detail *:not(#strip *)')].every("
            "(part) => part.getBoundingClientRect().right <= innerWidth + 1)"
        )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_no_serious_fault_of_accessibility(visit, scheme, size):
    page = visit("/?q=a+sunset+over+the+sea&shape=landscape", size, color_scheme=scheme)

    def check(what):
        found = axe.Axe().run(page).response["violations"]
        serious = [each for each in found if each["impact"] in {"serious", "critical"}]
        told = [(each["id"], [node["html"] for node in each["nodes"]]) for each in serious]
        assert told == [], what

    page.wait_for_load_state("networkidle")
    page.check(".pick input >> nth=0", force=True)
    page.click("#filters summary")
    check("page, filters and selection")
    page.keyboard.press("Escape")
    page.click(f"{CARD} .picture")
    page.click("[data-why]")
    page.locator("#warm").wait_for()
    check("detail")
    page.keyboard.press("Escape")
    page.locator("#detail[open]").wait_for(state="detached")
    if (size, scheme) in {(DESKTOP, "dark"), (PHONE, "light")}:
        return  # What follows has no colours and no places of its own.
    page.click("#help-button")
    check("help")
    page.keyboard.press("Escape")
    ask(page, "a giraffe")
    check("nothing matches")


def test_light_and_dark_are_chosen_and_kept(visit):
    page = visit(color_scheme="light")
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    light = page.evaluate(paper)
    page.click("#theme")
    dark = page.evaluate(paper)
    assert dark != light
    page.reload()
    page.wait_for_selector("html.ready")
    assert page.evaluate(paper) == dark


def test_a_thousand_pictures_of_which_few_are_in_the_document(visit, large_site):
    page = visit(at=large_site)
    assert f"{MANY:,} pictures" in page.locator("#count").inner_text()
    tall = page.evaluate("document.querySelector('#grid').offsetHeight")
    for place in (0.3, 0.99, 0.6, 0.02):
        page.evaluate("place => scrollTo(0, document.body.scrollHeight * place)", place)
        until(
            page,
            "[...document.querySelectorAll('.tile')].some((tile) => {"
            "  const { top, bottom } = tile.getBoundingClientRect();"
            "  return !tile.classList.contains('waiting') && bottom > 100 && top < innerHeight;"
            "})",
        )
        assert page.locator(".tile").count() < 80
    assert page.evaluate("document.querySelector('#grid').offsetHeight") == tall
    # Every number has its own picture.
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    last = page.locator(f"{CARD}[data-index='{MANY - 1}']")
    last.wait_for()
    assert last.get_attribute("aria-posinset") == str(MANY)
    assert last.locator(".fact").get_attribute("title") == f"a/IMG_{MANY - 1:05}.jpg"
    page.locator(f"{CARD} .picture").first.focus()
    page.keyboard.press("Home")
    until(page, "scrollY === 0 || document.activeElement.closest('.tile')")
    assert page.evaluate("document.activeElement.closest('.tile').dataset.index") == "0"
    # Its file is gone, which is no fault of the page's.
    page.keyboard.press("Enter")
    page.locator("#detail .gone").wait_for()
    # Back from a question is back where one was.
    page.keyboard.press("Escape")
    page.evaluate("scrollTo(0, 9000)")
    page.locator(CARD).first.wait_for()
    ask(page, "a/IMG_00700.jpg")
    page.go_back()
    until(page, "Math.abs(scrollY - 9000) < 5")


def test_what_is_chosen_can_be_taken_away(visit, tmp_path):
    page = visit("/?single=1")
    page.check(".pick input >> nth=0", force=True)
    page.check(".pick input >> nth=2", force=True)
    chosen = [names(page)[0], names(page)[2]]
    ask(page, "the sea")  # A choice outlives a question.
    with page.expect_download() as download:
        page.click("text=Pictures (zip)")
    download.value.save_as(tmp_path / "export.zip")
    with zipfile.ZipFile(tmp_path / "export.zip") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [f"{i}-{name}" for i, name in enumerate(chosen, 1)]
    page.click("#unselect")
    assert page.locator("#selection").is_hidden()


def test_the_address_holds_everything(visit):
    page = visit("/?single=1")
    item = item_of(page, "sunset3.jpg")
    page = visit(f"/?q=sea&single=1&shape=landscape&open={item}")
    assert page.locator("#detail h2").inner_text() == "sunset3.jpg"
    assert page.locator("#q").input_value() == "sea"
    assert page.locator("[name=shape]").input_value() == "landscape"
    page.keyboard.press("Escape")
    until(page, "!location.search.includes('open')")
    assert "q=sea" in page.url


def test_it_works_without_scripts(visit):
    page = visit("/?q=a+sunset+over+the+sea", java_script_enabled=False)
    assert {re.sub(r"\d.*", "", name) for name in names(page)[:2]} == {"sea", "sunset"}
    page.fill("#q", "giraffe")
    page.press("#q", "Enter")
    assert "Nothing here clearly matches" in page.locator("#question").inner_text()
    page.click("text=Show nearest anyway")
    page.click(f"{CARD} .picture >> nth=0")
    assert page.locator("#detail h2").inner_text().endswith(".jpg")
    page.click("[data-close]")
    assert page.locator("#detail h2").count() == 0


def test_text_of_files_is_never_markup(visit, photos):
    page = visit("/?single=1")
    page.click(f"{CARD}:has(.fact[title='sea0.jpg']) .picture")
    page.locator(".captions").wait_for()
    assert page.locator(".captions").inner_text() == "waves <script>alert(1)</script>"
    assert page.locator(".captions script").count() == 0


def test_indexing_is_followed_and_shows_what_is_new(visit, photos):
    page = visit("/?single=1")
    scene("sunset", 11).save(photos / "zz new.jpg")
    try:
        page.click("#index")
        until(page, "document.querySelector('#progress').textContent.includes('added')")
        until(page, "document.querySelectorAll('#grid .tile').length === 16")
        assert "zz new.jpg" in names(page)
    finally:
        (photos / "zz new.jpg").unlink()
        page.click("#index")
        until(page, "document.querySelectorAll('#grid .tile').length === 15")
