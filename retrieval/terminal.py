"""Talking to a terminal: streams that take any name, text that cannot steer, a progress bar."""

from __future__ import annotations

import codecs
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = [
    "print_json",
    "printable",
    "progress_bar",
    "read_large_pictures",
    "say",
    "set_up_process",
    "terminate_like_interrupt",
]


def set_up_process() -> None:
    """Make this process ours: what a library must not do to the program that embeds it."""
    warnings.simplefilter("ignore")
    # A stream is None where the shell closed it.
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115 (the process closes it)
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    codecs.register_error("mmsearch", _encode_anyhow)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="mmsearch")  # type: ignore[union-attr]
    level = logging.DEBUG if os.environ.get("MMSEARCH_DEBUG") else logging.WARNING
    logging.basicConfig(level=level, format="mmsearch: %(message)s", handlers=[_SayHandler()])


def read_large_pictures() -> None:
    """Lift Pillow's limit to ours, which is checked from the header before anything is decoded.

    Pillow's is lower than what today's phones make; it is a setting of the whole process, so only
    a program that owns the process may change it.
    """
    from PIL import Image

    from mmsearch.retrieval.media import MAX_PIXELS

    Image.MAX_IMAGE_PIXELS = MAX_PIXELS


def terminate_like_interrupt() -> None:
    """Let a polite request to stop (kill, a system shutting down) end a run like Ctrl-C does."""
    import signal

    signal.signal(signal.SIGTERM, signal.default_int_handler)


def say(message: str) -> None:
    """Print to stderr; names of files in the message cannot steer the terminal."""
    sys.stderr.write("\n".join(map(printable, message.split("\n"))) + "\n")
    sys.stderr.flush()


def print_json(document: dict[str, Any]) -> None:
    """Print one JSON object to stdout, on one line."""
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def printable(text: str) -> str:
    """Return text that cannot steer a terminal or break a line: control characters escaped."""
    return "".join(c if c.isprintable() or "\udca0" <= c <= "\udcff" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    # Raw bytes from 0x80 to 0x9f steer terminals that do not read UTF-8.
    if _is_raw_byte(character):
        return f"\\x{ord(character) - 0xDC00:02x}"
    return repr(character)[1:-1]


@contextmanager
def progress_bar() -> Iterator[Callable[..., None]]:
    """Yield what shows (stage, done, total): a bar with rate and time left, on a terminal only.

    A fourth argument, where it is given, is a remark that stands at the end of the line.
    """
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column
    from rich.text import Text

    class Remark(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(task.fields["remark"], no_wrap=True, overflow="ellipsis")

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f}/s" if task.speed else "")

    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        # The only column that gives way where the terminal is narrow.
        Remark(table_column=Column(no_wrap=False)),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, total: int, remark: str = "") -> None:
            if stage not in tasks:
                for task in bar.task_ids:
                    bar.remove_task(task)
                tasks[stage] = bar.add_task(stage.capitalize(), total=None, remark="")
            # Refreshed at the end, which the next stage would otherwise hide before it is drawn.
            bar.update(
                tasks[stage],
                completed=done,
                total=total or None,
                remark=remark,
                refresh=done == total,
            )

        yield show


class _SayHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


def _encode_anyhow(error: UnicodeError) -> tuple[str | bytes, int]:
    """Let out what a stream cannot encode: raw bytes of file names as they are, else escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    part = error.object[error.start : error.end]
    if all(map(_is_raw_byte, part)):
        return os.fsencode(part), error.end
    return codecs.backslashreplace_errors(error)


def _is_raw_byte(character: str) -> bool:
    # How Python spells a byte of a file name that is no valid UTF-8 (PEP 383).
    return "\udc80" <= character <= "\udcff"
