"""Answers as one HTML file: thumbnails inside it, no script, nothing loaded from anywhere."""

from __future__ import annotations

import base64
import io
import os
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from mmsearch.errors import MediaError, SourceError, quoted
from mmsearch.indexes.base import replacing
from mmsearch.retrieval.listing import described_reranking, row_of
from mmsearch.retrieval.thumbnails import thumbnail

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mmsearch.retrieval.listing import Row
    from mmsearch.retrieval.schema import Query, Results

__all__ = ["check_place", "contact_sheet", "readable", "sheet", "write_sheet"]

SIDE = 320
"""Pixels of a thumbnail's longer side: what fills its place on a screen that is not dense."""

OPENING = '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
GENERATOR = '<meta name="generator" content="mmsearch">\n'
"""What a file must begin with to be taken for a former sheet, which may be replaced."""

_HEAD = """\
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="referrer" content="no-referrer">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 16px/1.4 system-ui, sans-serif }}
body {{ margin: 1.5rem; background: Canvas; color: CanvasText }}
h1 {{ font-size: 1.3rem; margin: 0 0 .2rem; overflow-wrap: anywhere }}
p {{ margin: 0 0 1rem; opacity: .75; overflow-wrap: anywhere }}
ol {{ list-style: none; margin: 0; padding: 0; display: grid; gap: 1.2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(14rem, 100%), 1fr)) }}
figure {{ margin: 0; break-inside: avoid }}
img, .lost {{ display: block; width: 100%; height: 14rem; object-fit: contain;
  background: color-mix(in srgb, CanvasText 6%, Canvas); border-radius: .3rem }}
.lost {{ display: grid; place-items: center; text-align: center }}
figcaption {{ font-size: .85rem; overflow-wrap: anywhere; margin-top: .3rem }}
figcaption q {{ display: block; font-style: italic }}
</style>
"""


def check_place(path: Path) -> None:
    """Check that a sheet can go to `path`: that nothing is there but a sheet made here.

    Raises:
        SourceError: something else is there, or the folder is missing.
    """
    if not path.parent.is_dir():
        raise SourceError(f"There is no folder {path.parent} to write {path.name} into.")
    if os.path.lexists(path) and not _is_sheet(path):
        raise SourceError(
            f"{path} exists and is no sheet made by mmsearch, so it is left alone. Choose another "
            f"name, or move it away: mv {quoted(path)} {quoted(path)}.old"
        )


def write_sheet(results: Results, path: Path) -> None:
    """Write a contact sheet; a former one is replaced, any other file never.

    Raises:
        SourceError: something else is there, or the file cannot be written.
    """
    check_place(path)
    content = contact_sheet(results, path.parent.absolute()).encode()
    try:
        if path.exists():
            with replacing(path) as temporary:
                temporary.write_bytes(content)
        else:
            # Fails should another program have made the file meanwhile.
            with path.open("xb") as file:
                file.write(content)
    except OSError as error:
        raise SourceError(f"{path} cannot be written: {error.strerror}.") from error


def contact_sheet(results: Results, folder: Path) -> str:
    """Return a page with a thumbnail of each hit, best first.

    It loads nothing and runs nothing, by its own content security policy. A picture that is gone
    or broken has its place, with the reason.

    Args:
        results: what was found.
        folder: absolute, where the page will lie: links to the pictures are relative to it.
    """
    asked = _told(results.query)
    count = len(results.hits)
    about = f"{count:,} of {results.considered:,} · {results.title}"
    if results.rerank is not None:
        about += f" · {described_reranking(results.rerank)}"
    files = ((row_of(hit), results.file(hit)) for hit in results.hits)
    # What a server found is here for the moment only.
    linked = results.library is not None
    pictures = ((row, file, _link(file, folder) if linked else None) for row, file in files)
    return "".join(sheet(asked, about, pictures))


def sheet(
    title: str, about: str, pictures: Iterable[tuple[Row, Path | MediaError, str | None]]
) -> Iterator[str]:
    """Yield a page with a thumbnail of each picture, a part at a time.

    Args:
        title: what it shows.
        about: a line below that.
        pictures: what is said of each, its file or why there is none, and where a link leads to.
    """
    shown = escape(readable(title))
    yield f"{OPENING}{GENERATOR}{_HEAD.format(title=f'{shown} – mmsearch')}"
    yield f'<h1 dir="auto">{shown}</h1>\n<p>{escape(readable(about))}</p>\n<ol>\n'
    for row, file, link in pictures:
        yield _figure(row, file, link) + "\n"
    yield "</ol>\n"


def _figure(row: Row, file: Path | MediaError, link: str | None) -> str:
    path = readable(row.path)
    caption = None if row.caption is None else readable(row.caption)
    # A caption says what a picture shows; without one, its name is all that is known.
    shown = _image(file, alt=caption or readable(row.name))
    facts = " · ".join(row.about if row.reranked is None else [*row.about, row.reranked])
    said = f"{escape(facts)}<br>{escape(path)}"
    if caption is not None:
        said += f'<q dir="auto">{escape(caption)}</q>'
    if link is not None:
        shown = f'<a href="{escape(link)}">{shown}</a>'
    return f"<li><figure>{shown}<figcaption>{said}</figcaption></figure></li>"


def _image(file: Path | MediaError, alt: str) -> str:
    try:
        if isinstance(file, MediaError):
            raise file
        picture = thumbnail(file, SIDE)
    except MediaError as error:
        return f'<span class="lost">{escape(readable(str(error)))}</span>'
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    width, height = picture.size
    return (
        f'<img src="data:image/jpeg;base64,{data}" width="{width}" height="{height}" '
        f'alt="{escape(alt)}">'
    )


def _link(file: Path, folder: Path) -> str | None:
    """Return a relative link to a file, byte for byte; none to what lies in another file."""
    if not file.is_file():
        return None
    try:
        relative = os.path.relpath(file, folder)
    except ValueError:
        return file.as_uri()  # On another drive of Windows.
    return quote(os.fsencode(relative.replace(os.sep, "/")))


def _told(query: Query) -> str:
    return " + ".join(
        part.text if part.text is not None else Path(part.image or "").name for part in query.parts
    )


def readable(text: str) -> str:
    """Return text that any reader can decode: bytes that are none, and what steers, escaped."""
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    # How Python spells a byte that is no valid UTF-8 (PEP 383).
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return repr(character)[1:-1]


def _is_sheet(path: Path) -> bool:
    with suppress(OSError):
        if path.is_file():
            opening = (OPENING + GENERATOR).encode()
            with path.open("rb") as file:
                return file.read(len(opening)) == opening
    return False
