"""A picture in the grid of the browser: a thumbnail, or why there is none, and what it is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from textual.containers import Container, Vertical
from textual.widgets import Static

from mmsearch.retrieval.listing import row_of
from mmsearch.retrieval.terminal import printable
from mmsearch.retrieval.thumbnails import fitted

if TYPE_CHECKING:
    from PIL.Image import Image
    from textual.app import ComposeResult

    from mmsearch.retrieval.schema import Hit

__all__ = ["CARD_COLUMNS", "Card", "tidy"]

CARD_COLUMNS = 26
"""Of a card, at least; a window that is narrower than two shows one below another."""

AROUND_ROWS = 4
"""Rows of a card that are no picture: two of text, two of its border."""


def tidy(text: str) -> str:
    """Return text that any terminal takes: what steers is escaped, bytes that are none marked."""
    return printable(os.fsencode(text).decode(errors="replace"))


class Card(Vertical):
    """One answer."""

    # Chosen ones are told by their border's shape, which needs no colour.
    DEFAULT_CSS = """
    Card { height: auto; border: blank; }
    Card.chosen { border: heavy $foreground; }
    Card > Container { align: center bottom; }
    Card .words { height: 1; width: 100%; text-wrap: nowrap; text-overflow: ellipsis; }
    Card .lost { width: 100%; height: auto; text-align: center; }
    """

    def __init__(
        self,
        hit: Hit,
        image_class: Any,  # noqa: ANN401 (a class of a package that may be missing)
        cell: tuple[int, int],
        *,
        liked: bool,
    ) -> None:
        """Make the card of a hit; its picture comes later, by `show`.

        Args:
            hit: what is shown.
            image_class: the Textual widget that draws.
            cell: width and height of a character in pixels.
            liked: whether it was asked with.
        """
        super().__init__()
        self.hit = hit
        self._image_class = image_class
        self._cell = cell
        self._liked = liked
        self._box = (CARD_COLUMNS, 6)
        self.picture: Image | str | None = None

    def compose(self) -> ComposeResult:
        """Lay out an empty frame and two lines."""
        row = row_of(self.hit)
        mark = "+ " if self._liked else ""
        facts = "  ".join(row.about)
        yield Container()
        yield Static(f"{mark}{facts}", classes="words", markup=False)
        yield Static(tidy(row.caption or row.name), classes="words", markup=False)

    def fit(self, width: int, height: int) -> None:
        """Take `width` columns, and no more than `height` rows."""
        columns = max(1, width - 2)
        # Three quarters as high as wide, as most photos are.
        rows = round(columns * self._cell[0] * 3 / 4 / self._cell[1])
        self._box = columns, max(1, min(rows, height - AROUND_ROWS))
        self.query_one(Container).styles.height = self._box[1]
        for image in self.query(self._image_class):
            self._set_size(image)

    async def show(self, picture: Image | str) -> None:
        """Show a picture, or the reason why there is none."""
        if not self.is_attached:
            return  # The next answer was faster.
        self.picture = picture
        frame = self.query_one(Container)
        await frame.remove_children()
        if isinstance(picture, str):
            await frame.mount(Static(picture, classes="lost", markup=False))
            return
        image = self._image_class(picture)
        self._set_size(image)
        await frame.mount(image)

    def _set_size(self, image: Any) -> None:  # noqa: ANN401
        if self.picture is None or isinstance(self.picture, str):
            return
        columns, rows = fitted(self.picture.size, self._box, self._cell)
        image.styles.width, image.styles.height = columns, rows
