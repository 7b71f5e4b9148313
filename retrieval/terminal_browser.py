"""Looking around in a library: a question, a grid of thumbnails, and the next question from there.

Searching and decoding happen in threads of their own, so that the interface never waits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual import on, work
from textual.app import App
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.css.query import NoMatches
from textual.screen import ModalScreen, Screen
from textual.widgets import Footer, Input, Static
from textual.worker import get_current_worker

from mmsearch.errors import MediaError, MmsearchError
from mmsearch.retrieval.addresses import shown
from mmsearch.retrieval.listing import each_picture_once
from mmsearch.retrieval.terminal_cards import CARD_COLUMNS, Card, tidy
from mmsearch.retrieval.terminal_graphics import drawing
from mmsearch.retrieval.thumbnails import thumbnail

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.events import Click, Resize

    from mmsearch.retrieval.engine import SearchEngine
    from mmsearch.retrieval.schema import Hit, Results
    from mmsearch.retrieval.terminal_graphics import Abilities

__all__ = ["Asked", "Browser"]

THUMBNAIL_SIDE = 480
"""Pixels that are kept of a picture: what a large card has on a dense screen."""

HELP = """\
Enter      ask what stands in the box
↓ or Esc   from the box to the pictures
/          back to the box
arrows     move between pictures
s          more like this one
+          like it: ask again, with it
-          leave it out; where only pictures are asked with, look away from it
o or Enter open it in the desktop's viewer
y          copy its path
?          this help
q          quit (anywhere: Ctrl+Q)"""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as it grew: words or a picture to begin with, then what was liked and left out.

    Pictures are paths relative to the library.
    """

    text: str = ""
    like: str | None = None
    liked: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def images(self) -> tuple[str, ...]:
        """The pictures that are asked with, beside the words."""
        return self.liked if self.like is None else (self.like, *self.liked)

    def marked(self, path: str, *, good: bool) -> Asked:
        """Return the question with a picture marked, or unmarked where it was marked so before."""
        ours, other = (self.liked, self.left_out) if good else (self.left_out, self.liked)
        ours = tuple(one for one in ours if one != path) if path in ours else (*ours, path)
        other = tuple(one for one in other if one != path)
        return replace(self, liked=ours if good else other, left_out=other if good else ours)

    def told(self) -> str:
        """Return what the question is beside the words in the box."""
        parts = [] if self.like is None else [f"like {tidy(Path(self.like).name)}"]
        if self.liked:
            parts.append(f"{len(self.liked)} liked")
        if self.left_out:
            parts.append(f"{len(self.left_out)} left out")
        return ", ".join(parts)


class Sheet(VerticalScroll, can_focus=True):
    """The grid of pictures; keys for the picture that is chosen work while it has the focus."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "app.similar", "like this"),
        Binding("plus", "app.mark(True)", "like", key_display="+"),
        Binding("minus", "app.mark(False)", "leave out", key_display="-"),
        Binding("o,enter", "app.open", "open", key_display="o"),
        Binding("y", "app.copy_path", "copy path"),
        Binding("slash", "app.ask", "ask", key_display="/"),
        Binding("question_mark", "app.help", "help", key_display="?"),
        Binding("q", "app.quit", "quit"),
        Binding("left", "app.move(-1, 0)", show=False),
        Binding("right", "app.move(1, 0)", show=False),
        Binding("up", "app.move(0, -1)", show=False),
        Binding("down", "app.move(0, 1)", show=False),
        Binding("home", "app.move(-1_000_000, 0)", show=False),
        Binding("end", "app.move(1_000_000, 0)", show=False),
        Binding("pageup", "app.move(0, -3)", show=False),
        Binding("pagedown", "app.move(0, 3)", show=False),
    ]


class Help(ModalScreen[None]):
    """What keys do."""

    CSS = """
    Help { align: center middle; }
    Help > VerticalScroll { width: auto; max-width: 100%; height: auto; max-height: 100%;
        border: round $foreground; background: $surface; }
    Help Static { width: auto; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q,enter", "dismiss", "close", key_display="Esc")
    ]

    def compose(self) -> ComposeResult:
        """Lay out the one text there is."""
        with VerticalScroll():
            yield Static(HELP, markup=False)


class Browser(App[None]):
    """The application: `run()` it in a terminal."""

    TITLE = "mmsearch"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #box { border: none; height: 1; padding: 0 1; }
    #said { height: 1; padding: 0 1; text-style: bold; }
    Sheet { height: 1fr; layout: grid; grid-size: 1; grid-rows: auto; grid-gutter: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "pictures", "pictures", show=False),
        Binding("f1", "help", "help", show=False),
    ]

    def __init__(
        self,
        engine: SearchEngine,
        abilities: Abilities,
        *,
        k: int = 30,
        opener: Callable[[Path], None],
    ) -> None:
        """Prepare to show a library.

        Args:
            engine: answers; it is not closed.
            abilities: of the terminal, asked before the application takes it over.
            k: how many pictures an answer has.
            opener: shows a file in the desktop's viewer.

        Raises:
            MissingExtra: the extra `show` is not installed.
        """
        super().__init__()
        self._engine = engine
        self._abilities = abilities
        self._image_class = drawing(abilities)[1]
        self._k = k
        self._opener = opener
        self.asked = Asked()
        self.results: Results | None = None
        self.chosen = 0

    @property
    def cards(self) -> list[Card]:
        """The pictures that are shown, best first."""
        return list(self._main.query(Card))

    def compose(self) -> ComposeResult:
        """Lay out the box, the line that tells, the pictures and the keys."""
        yield Input(placeholder="What does the picture show? Enter asks, ? helps", id="box")
        yield Static("", id="said", markup=False)
        yield Sheet()
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Begin in the box."""
        self._box.focus()
        self._say(f"{tidy(self._engine.library.root.name)}: ask for a picture")

    def on_resize(self, event: Resize) -> None:
        """Lay the grid out to the window."""
        self._fit(event.size.width, event.size.height)

    @property
    def _main(self) -> Screen[Any]:
        # The help may lie above it while an answer arrives.
        return self.screen_stack[0]

    @property
    def _box(self) -> Input:
        return self._main.query_one("#box", Input)

    @property
    def _sheet(self) -> Sheet:
        return self._main.query_one(Sheet)

    def _say(self, text: str) -> None:
        self._main.query_one("#said", Static).update(text)

    @property
    def _across(self) -> int:
        return max(1, self.size.width // CARD_COLUMNS)

    def _fit(self, width: int, height: int) -> None:
        try:
            sheet = self._sheet
        except NoMatches:
            return  # Told the size before anything is laid out.
        across = max(1, width // CARD_COLUMNS)
        sheet.styles.grid_size_columns = across
        # The box, the line that tells and the keys take three rows; a card stands in what is left.
        for card in self.cards:
            card.fit(width // across - 1, height - 3)
        self._choose(self.chosen)

    # --- asking

    @on(Input.Submitted)
    def _asked_anew(self, event: Input.Submitted) -> None:
        if event.value.strip():
            self._ask(Asked(text=event.value.strip()))

    def action_similar(self) -> None:
        """Ask for more like the chosen picture, and forget what was asked before."""
        if hit := self._hit():
            self._box.value = ""
            self._ask(Asked(like=hit.path))

    def action_mark(self, good: bool) -> None:
        """Like the chosen picture or leave it out, and ask again."""
        if hit := self._hit():
            self._ask(self.asked.marked(hit.path, good=good))

    def _ask(self, asked: Asked) -> None:
        self._say("Searching …")
        self._search(asked)

    @work(thread=True, exclusive=True, group="search")
    def _search(self, asked: Asked) -> None:
        worker = get_current_worker()
        root = self._engine.library.root
        try:
            if asked.left_out and asked.images and not asked.text:
                # Words have no place in a taste; with them, what is left out is only not shown.
                results = self._engine.recommend(
                    asked.images, asked.left_out, k=self._k, exclude_seen=False
                )
            else:
                results = self._engine.search(
                    asked.text or None,
                    image=[root / path for path in asked.images] or None,
                    k=self._k + len(asked.left_out),
                )
        except (MmsearchError, OSError) as error:
            if not worker.is_cancelled:
                self.call_from_thread(self._say, tidy(str(error)))
            return
        if not worker.is_cancelled:
            self.call_from_thread(self.call_later, self._show, asked, results)

    async def _show(self, asked: Asked, results: Results) -> None:
        self.asked, self.results, self.chosen = asked, results, 0
        hits = [hit for hit in each_picture_once(results) if hit.path not in asked.left_out]
        hits = hits[: self._k]
        sheet = self._sheet
        await sheet.remove_children()
        await sheet.mount_all(
            Card(hit, self._image_class, self._abilities.cell, liked=hit.path in asked.liked)
            for hit in hits
        )
        self._fit(self.size.width, self.size.height)
        sheet.scroll_home(animate=False)
        told = asked.told()
        if not hits:
            self._say(
                "Nothing in this library to choose from."
                if not results.considered
                else "Nothing is left."
            )
            return
        self._say(
            f"{len(hits)} of {results.considered:,}{f' · {told}' if told else ''} · "
            f"{results.took_ms:.0f} ms"
        )
        sheet.focus()
        self._load([(card, results.file(card.hit)) for card in self.cards])

    @work(thread=True, exclusive=True, group="thumbnails")
    def _load(self, wanted: list[tuple[Card, Path]]) -> None:
        worker = get_current_worker()
        for card, file in wanted:
            if worker.is_cancelled:
                return
            try:
                picture: Any = thumbnail(file, THUMBNAIL_SIDE)
            except MediaError as error:
                picture = tidy(str(error))
            if not worker.is_cancelled:
                self.call_from_thread(card.call_later, card.show, picture)

    # --- moving

    def _hit(self) -> Hit | None:
        cards = self.cards
        return cards[self.chosen].hit if cards else None

    def _choose(self, number: int) -> None:
        cards = self.cards
        if not cards:
            return
        self.chosen = min(max(number, 0), len(cards) - 1)
        for place, card in enumerate(cards):
            card.set_class(place == self.chosen, "chosen")
        cards[self.chosen].scroll_visible(animate=False)

    def action_move(self, right: int, down: int) -> None:
        """Choose another picture; above the first row is the box."""
        if down < 0 and self.chosen < self._across:
            self.action_ask()
            return
        self._choose(self.chosen + right + down * self._across)

    def on_click(self, event: Click) -> None:
        """Choose the picture that is pointed at."""
        above = event.widget.ancestors_with_self if event.widget else []
        for place, card in enumerate(self.cards):
            if card in above:
                self._choose(place)

    def key_down(self) -> None:
        """From the box to the pictures."""
        if self.focused is self._box:
            self.action_pictures()

    def action_pictures(self) -> None:
        """Give the keys to the pictures."""
        self._sheet.focus()

    def action_ask(self) -> None:
        """Give the keys to the box."""
        self._box.focus()

    # --- with the chosen picture

    def action_help(self) -> None:
        """Show what keys do."""
        self.push_screen(Help())

    def action_open(self) -> None:
        """Open the chosen picture in the desktop's viewer."""
        if (hit := self._hit()) and self.results is not None:
            self._open(self.results.file(hit))

    @work(thread=True, group="open")
    def _open(self, file: Path) -> None:
        try:
            self._opener(file)
            said = f"Opened {tidy(file.name)}"
        except (MmsearchError, OSError) as error:
            said = tidy(str(error))
        self.call_from_thread(self._say, said)

    def action_copy_path(self) -> None:
        """Copy the chosen picture's path, through the terminal (OSC 52), also over SSH."""
        if (hit := self._hit()) is None or self.results is None:
            return
        path = shown(self.results.file(hit))
        try:
            path.encode()
        except UnicodeEncodeError:
            self._say("Its name is no valid text and cannot be copied; mmsearch query -0 prints it")
            return
        self.copy_to_clipboard(path)
        self._say(f"Copied {tidy(path)}")
