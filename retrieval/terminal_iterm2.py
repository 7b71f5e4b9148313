"""Pictures by iTerm2's own protocol, which textual-image does not speak.

An OSC 1337 sequence carries a whole picture file and says how many cells it covers, so that it
keeps all of its colours and is as sharp as the screen. See
https://iterm2.com/documentation-images.html.
"""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

from rich.control import Control
from rich.segment import ControlType, Segment

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.console import Console, ConsoleOptions, RenderResult

__all__ = ["InlineImage", "inline"]

_AS_IT_IS = [(ControlType.CURSOR_FORWARD, 0)]
"""What Rich takes for control it neither measures nor changes."""


def inline(image: Image, width: int, height: int) -> str:
    """Return what draws a picture over so many cells from the cursor on, whatever its own shape."""
    file = io.BytesIO()
    image.save(file, "PNG")
    raw = file.getvalue()
    keys = {
        "inline": 1,
        "size": len(raw),
        "width": width,
        "height": height,
        "preserveAspectRatio": 0,
    }
    told = ";".join(f"{key}={value}" for key, value in keys.items())
    return f"\x1b]1337;File={told}:{base64.b64encode(raw).decode()}\x07"


class InlineImage:
    """A Rich renderable, in the manner of textual-image's own."""

    def __init__(self, image: Image, width: int, height: int) -> None:
        """Take a picture that covers `width` times `height` cells."""
        self._image = image
        self._size = width, height

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Make room, so that the window has scrolled before anything is drawn, and draw there."""
        width, height = self._size
        for _ in range(height):
            yield Segment(" " * width + "\n")
        yield Segment("\x1b7", control=_AS_IT_IS)
        yield Control.move(0, -height)
        yield Segment(inline(self._image, width, height), control=_AS_IT_IS)
        yield Segment("\x1b8", control=_AS_IT_IS)
