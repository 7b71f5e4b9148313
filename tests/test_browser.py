"""The browser, driven by keys, on a real library."""

from __future__ import annotations

import asyncio
import base64
import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, Static

from mmsearch.errors import MmsearchError
from mmsearch.retrieval import ingest
from mmsearch.retrieval.engine import SearchEngine
from mmsearch.retrieval.library import Library
from mmsearch.retrieval.terminal_browser import Asked, Browser, Help
from mmsearch.retrieval.terminal_cards import Card, tidy
from mmsearch.retrieval.terminal_graphics import Abilities, Graphics
from tests.conftest import ColourEncoder, draw
from tests.test_cli import MMSEARCH, run

# textual-image reads pixels in a way that Pillow 14 will no longer know.
pytestmark = pytest.mark.filterwarnings("ignore:Image.Image.getdata:DeprecationWarning")

Steps = Callable[[Browser, Pilot[None]], Awaitable[None]]


def drive(
    library: Path,
    steps: Steps,
    size: tuple[int, int] = (100, 40),
    *,
    graphics: Graphics = Graphics.BLOCKS,
    opened: list[Path] | None = None,
    engine: SearchEngine | None = None,
    k: int = 30,
) -> None:
    """Run the application without a terminal, and `steps` beside it."""

    def opener(file: Path) -> None:
        if opened is None:
            raise MmsearchError("No viewer was found.")
        opened.append(file)

    async def session() -> None:
        with engine or SearchEngine(Library.open(library), ColourEncoder()) as asked:
            browser = Browser(asked, Abilities(graphics), k=k, opener=opener)
            async with browser.run_test(size=size) as pilot:
                await pilot.pause()
                await steps(browser, pilot)

    asyncio.run(session())


async def settled(browser: Browser, pilot: Pilot[None]) -> None:
    """Wait until nothing is searched for or decoded."""
    for _ in range(3):
        await browser.workers.wait_for_complete()
        await pilot.pause()


async def ask(browser: Browser, pilot: Pilot[None], words: str) -> None:
    browser.query_one(Input).value = words
    browser.query_one(Input).focus()
    await pilot.press("enter")
    await settled(browser, pilot)


def said(browser: Browser) -> str:
    return str(browser.screen_stack[0].query_one("#said", Static).render())


def paths(browser: Browser) -> list[str]:
    return [card.hit.path for card in browser.cards]


def screen_of(browser: Browser) -> list[str]:
    """Return what stands on the screen, line by line."""
    lines = browser.screen._compositor.render_strips()
    return ["".join(segment.text for segment in line) for line in lines]


@pytest.fixture
def library(photos: Path, encoder: ColourEncoder) -> Path:
    ingest.index(photos, model=encoder)
    return photos


def test_words_bring_thumbnails_best_first(library: Path) -> None:
    async def steps(browser: Browser, pilot: Pilot[None]) -> None:
        await pilot.press(*"red", "enter")
        await settled(browser, pilot)
        assert paths(browser)[0] == "red.jpg"
        assert len(paths(browser)) == 6
        assert "6 of 6" in said(browser)
        shown = "\n".join(screen_of(browser))
        assert "▀" in shown
        assert "red.jpg" in shown
        assert all(not isinstance(card.picture, str) for card in browser.cards)
        assert browser.cards[0].picture is not None

    drive(library, steps)


def test_arrows_move_through_the_grid_and_back_to_the_box(library: Path) -> None:
    async def steps(browser: Browser, pilot: Pilot[None]) -> None:
        await ask(browser, pilot, "red")
        assert browser._across == 3
        places = []
        for key in ("right", "down", "left", "left", "up", "down", "end", "right", "home"):
            await pilot.press(key)
            places.append(browser.chosen)
        assert places == [1, 4, 3, 2, 2, 2, 5, 5, 0]
        assert [card.has_class("chosen") for card in browser.cards] == [True] + [False] * 5

    async def at_the_top(browser: Browser, pilot: Pilot[None]) -> None:
        await ask(browser, pilot, "red")
        await pilot.press("up")
        assert browser.focused is browser.query_one(Input)
        await pilot.press("down")
        assert browser.focused is not browser.query_one(Input)
        await pilot.press("slash", *"q?s", "escape")
        # In the box they are letters; what was asked is selected, and gives way to them.
        assert browser.query_one(Input).value == "q?s"
        assert browser.is_running

    drive(library, at_the_top)
    drive(library, steps)


def test_s_finds_more_like_the_chosen_one(library: Path) -> None:
    async def steps(browser: Browser, pilot: Pilot[None]) -> None:
        await ask(browser, pilot, "red")
        browser._choose(paths(browser).index("trip/blue.jpg"))
        await pilot.press("s")
        await settled(browser, pilot)
        assert browser.asked == Asked(like="trip/blue.jpg")
        assert paths(browser)[0] == "trip/blue.jpg"
        assert browser.results is not None
        assert browser.results.hits[0].score == pytest.approx(1.0, abs=1e-3)
        assert browser.query_one(Input).value == ""
        assert "like blue.jpg" in said(browser)

    drive(library, steps)


def test_likes_and_dislikes_refine_the_answer(library: Path) -> None:
    engine = SearchEngine(Library.open(library), ColourEncoder())
    expected = engine.search("red", image=library / "trip/blue.jpg", k=30)

    async def steps(browser: Browser, pilot: Pilot[None]) -> None:
        await ask(browser, pilot, "red")
        before = paths(browser)
        browser._choose(before.index("trip/blue.jpg"))
        await pilot.press("plus")
        await settled(browser, pilot)
        # The same as asking the engine with words and the picture.
        assert paths(browser) == [hit.path for hit in expected.hits]
        assert "1 liked" in said(browser)
        assert next(c for c in browser.cards if c.hit.path == "trip/blue.jpg")._liked
        browser._choose(paths(browser).index("red.jpg"))
        await pilot.press("minus")
        await settled(browser, pilot)
        assert paths(browser) == [h.path for h in expected.hits if h.path != "red.jpg"]
        assert "1 liked, 1 left out" in said(browser)
        browser._choose(paths(browser).index("trip/blue.jpg"))
        await pilot.press("plus")
        await settled(browser, pilot)
        assert browser.asked == Asked("red", left_out=("red.jpg",))
        # A new question forgets.
        await ask(browser, pilot, "red")
        assert paths(browser) == before

    drive(library, steps, engine=engine)


def test_what_is_left_out_pushes_away_where_pictures_are_asked_with(library: Path) -> None:
    engine = SearchEngine(Library.open(library), ColourEncoder())
    like, dislike = "trip/blue.jpg", "trip/black.jpg"
    expected = engine.recommend([like], [dislike], k=30, exclude_seen=False)
    only_left_out = [hit.path for hit in engine.search(image=library / like, k=30).hits]
    only_left_out.remove(dislike)

    async def steps(browser: Browser, pilot: Pilot[None]) -> None:
        await ask(browser, pilot, "red")
        browser._choose(paths(browser).index(like))
        await pilot.press("s")
        await settled(browser, pilot)
        browser._choose(paths(browser).index(dislike))
        await pilot.press("minus")
        await settled(browser, pilot)
        assert paths(browser) == [hit.path for hit in expected.hits]
        assert sorted(paths(browser)) == sorted(only_left_out)
        assert paths(browser)[0] == like
        assert paths(browser) != only_left_out
        assert "like blue.jpg, 1 left out" in said(browser)

    drive(library, steps, engine=engine)


def test_left_out_ones_make_room_for_others(library: Path) -> None:
    async def steps(browser: Browser, pilot: Pilot[None]) -> None:
        await ask(browser, pilot, "red")
        assert len(paths(browser)) == 2
        first, second = paths(browser)
        await pilot.press("minus")
        await settled(browser, pilot)
        assert len(paths(browser)) == 2
        assert paths(browser)[0] == second
        assert first not in paths(browser)

    drive(library, steps, k=2)


def test_marks_exclude_each_other() -> None:
    asked = Asked("x").marked("a", good=True).marked("b", good=True)
    assert asked.images == ("a", "b")
    assert asked.marked("a", good=False) == Asked("x", None, ("b",), ("a",))
    assert asked.marked("a", good=True) == Asked("x", None, ("b",))
    assert Asked(like="z").marked("a", good=True).images == ("z", "a")


def test_o_opens_and_says_when_it_cannot(library: Path) -> None:
    opened: list[Path] = []

    async def steps(browser: Browser, pilot: Pilot[None]) -> None:
        await ask(browser, pilot, "red")
        await pilot.press("o")
        await settled(browser, pilot)
        assert said(browser) == "Opened red.jpg"

    drive(library, steps, opened=opened)
    assert opened == [library / "red.jpg"]

    async def refused(browser: Browser, pilot: Pilot[None]) -> None:
        await ask(browser, pilot, "red")
        await pilot.press("o")
        await settled(browser, pilot)
        assert said(browser) == "No viewer was found."

    drive(library, refused)


def test_y_copies_the_path(library: Path) -> None:
    async def steps(browser: Browser, pilot: Pilot[None]) -> None:
        await ask(browser, pilot, "red")
        await pilot.press("y")
        assert browser.clipboard == str(library / "red.jpg")
        assert said(browser).startswith("Copied")

    drive(library, steps)


def test_help_lies_above_while_an_answer_arrives(library: Path) -> None:
    async def steps(browser: Browser, pilot: Pilot[None]) -> None:
        await ask(browser, pilot, "red")
        await pilot.press("question_mark")
        assert isinstance(browser.screen, Help)
        assert any("more like this one" in line for line in screen_of(browser))
        browser._ask(Asked("blue"))
        await settled(browser, pilot)
        await pilot.resize_terminal(60, 20)
        await pilot.press("escape")
        assert not isinstance(browser.screen, Help)
        assert paths(browser)[0] == "trip/blue.jpg"

    drive(library, steps)


def test_q_quits(library: Path) -> None:
    async def steps(browser: Browser, pilot: Pilot[None]) -> None:
        await pilot.press("escape", "q")
        await pilot.pause()
        assert browser.return_code == 0

    drive(library, steps)


def test_errors_stand_in_a_line_and_the_answer_stays(library: Path) -> None:
    async def steps(browser: Browser, pilot: Pilot[None]) -> None:
        await ask(browser, pilot, "red")
        (library / "red.jpg").unlink()
        await pilot.press("s")
        await settled(browser, pilot)
        assert "query picture cannot be used" in said(browser)
        assert len(paths(browser)) == 6
        await ask(browser, pilot, "   ")
        assert len(paths(browser)) == 6

    drive(library, steps)


def test_an_empty_library_says_so(tmp_path: Path) -> None:
    draw(tmp_path / "x.jpg")
    ingest.index(tmp_path, model=ColourEncoder())
    (tmp_path / "x.jpg").rename(tmp_path / "x.txt")
    draw(tmp_path / "broken.jpg").write_bytes(b"<html>")
    ingest.index(tmp_path, model=ColourEncoder())

    async def steps(browser: Browser, pilot: Pilot[None]) -> None:
        await ask(browser, pilot, "red")
        await pilot.press("escape", "s", "plus", "minus", "o", "y", "right", "down", "end")
        await settled(browser, pilot)
        assert paths(browser) == []
        assert "Nothing in this library" in said(browser)

    engine = SearchEngine(Library.open(tmp_path), ColourEncoder())
    assert len(engine) == 0
    drive(tmp_path, steps, engine=engine)


def test_broken_and_lost_pictures_and_odd_names_have_their_place(tmp_path: Path) -> None:
    odd = os.fsdecode(b"[b]\x1b[31m caf\xe9\n.jpg")
    draw(tmp_path / "x.jpg", "red").rename(tmp_path / odd)
    draw(tmp_path / "gone.jpg", "green")
    draw(tmp_path / "broken.jpg", "blue")
    ingest.index(tmp_path, model=ColourEncoder())
    (tmp_path / "gone.jpg").unlink()
    (tmp_path / "broken.jpg").write_bytes(b"<html>")

    async def steps(browser: Browser, pilot: Pilot[None]) -> None:
        await ask(browser, pilot, "red")
        pictures = {card.hit.path: card.picture for card in browser.cards}
        assert not isinstance(pictures[odd], str)
        assert "gone since" in str(pictures["gone.jpg"])
        assert "web page" in str(pictures["broken.jpg"])
        shown = "\n".join(screen_of(browser))
        assert "[b]\\x1b[31m caf\ufffd\\n.j" in shown
        assert "\x1b[31m" not in shown
        await pilot.press("y")
        assert "no valid text" in said(browser)
        assert browser.clipboard == ""

    drive(tmp_path, steps)
    assert tidy(odd) == "[b]\\x1b[31m caf\ufffd\\n.jpg"


@pytest.mark.parametrize("graphics", list(Graphics))
def test_every_size_from_40_by_12_shows_the_chosen_picture(
    library: Path, graphics: Graphics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1" if graphics is Graphics.SHADES else "")
    # More than fit into any window.
    for number in range(20):
        draw(library / f"{number}.png", "blue", (60, 40 + number))
    ingest.index(library, model=ColourEncoder())

    async def steps(browser: Browser, pilot: Pilot[None]) -> None:
        await ask(browser, pilot, "red")
        sizes = ((200, 60), (40, 12), (53, 30), (80, 24), (20, 6))
        for size in sizes if graphics is Graphics.BLOCKS else sizes[:2]:
            await pilot.resize_terminal(*size)
            await settled(browser, pilot)
            across = max(1, size[0] // 26)
            assert browser._across == across
            lefts = {card.region.x for card in browser.cards}
            assert len(lefts) == across
            for _ in range(3):
                await pilot.press("right")
                await pilot.pause()
            chosen = browser.cards[browser.chosen]
            sheet = browser._sheet.region
            assert chosen.region.width <= size[0]
            if size[1] >= 12:
                assert sheet.contains_region(chosen.region)
                # Whole: a picture of some height, and two lines of text.
                assert chosen.size.height == chosen._box[1] + 2 >= 4
                assert chosen.region.contains_region(chosen.query_one(browser._image_class).region)
                # Its place is told without colour.
                assert any("┏" in line for line in screen_of(browser))

    drive(library, steps, (40, 12), graphics=graphics)


def test_the_newest_question_wins_and_keys_work_meanwhile(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = SearchEngine(Library.open(library), ColourEncoder())
    release = threading.Event()
    search = engine.search

    def slow(text: str, **arguments: object) -> object:
        if text == "red":
            release.wait(10)
        return search(text, **arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "search", slow)

    async def steps(browser: Browser, pilot: Pilot[None]) -> None:
        await pilot.press(*"red", "enter")
        await pilot.pause()
        assert said(browser) == "Searching …"
        browser.query_one(Input).value = ""
        await pilot.press(*"blue", "enter")
        for _ in range(200):
            await pilot.pause(0.01)
            if browser.cards:
                break
        assert paths(browser)[0] == "trip/blue.jpg"
        release.set()
        await settled(browser, pilot)
        assert paths(browser)[0] == "trip/blue.jpg"

    try:
        drive(library, steps, engine=engine)
    finally:
        release.set()


def test_without_a_terminal_it_says_what_to_do_instead(tmp_path: Path) -> None:
    draw(tmp_path / "x.jpg")
    done = run("browse", tmp_path, cwd=tmp_path, code=1)
    assert "browse needs a terminal" in done.stderr
    run("browse", tmp_path, "-L", tmp_path, cwd=tmp_path, code=2)


def test_a_card_that_was_replaced_takes_no_picture(library: Path) -> None:
    async def steps(browser: Browser, pilot: Pilot[None]) -> None:
        await ask(browser, pilot, "red")
        card: Card = browser.cards[0]
        await card.remove()
        await card.show("late")
        assert card.picture != "late"

    drive(library, steps)


def test_the_command_runs_on_a_terminal_and_leaves_it_as_it_was(tmp_path: Path) -> None:
    draw(tmp_path / "x.jpg", "red", (320, 240))
    subprocess.run([MMSEARCH, "index", tmp_path], check=True, capture_output=True)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    before = termios.tcgetattr(theirs)
    process = subprocess.Popen(
        [MMSEARCH, "browse", tmp_path],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", "NO_COLOR": ""},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    output = b""
    # What to wait for, and what is typed then.
    script = [
        (b"\x1b[c", b"\x1b[?62;22c"),
        (b"What does", b"red\r"),
        ("▀".encode(), b"y"),
        (b"\x1b]52;c;" + base64.b64encode(os.fsencode(tmp_path / "x.jpg")), b"q"),
    ]
    while process.poll() is None:
        if select.select([ours], [], [], 0.05)[0]:
            output += os.read(ours, 1 << 16)
        if script and script[0][0] in output:
            os.write(ours, script.pop(0)[1])
    while select.select([ours], [], [], 0.05)[0]:
        output += os.read(ours, 1 << 16)
    assert process.returncode == 0, output
    assert script == []
    assert b"\x1b[?1049l" in output  # back on the main screen
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)
