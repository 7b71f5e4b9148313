"""Pictures to take away: files, what is known of them, a contact sheet; sent as they are made."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsearch.errors import MediaError, QueryError
from mmsearch.retrieval.contact_sheet import readable, sheet
from mmsearch.retrieval.copies import name_inside, short_name
from mmsearch.retrieval.listing import Row, cells_of
from mmsearch.retrieval.web.content import content_of
from mmsearch.retrieval.web.files import file_of, located_item
from mmsearch.retrieval.web.zip_stream import zipped

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mmsearch.retrieval.schema import Picture
    from mmsearch.retrieval.web.settings import Limits
    from mmsearch.retrieval.web.shelf import Shelf

__all__ = ["Export"]

PIECE = 1 << 20
SKIPPED = "skipped.txt"
"""What in an archive tells of pictures that could not be put into it."""


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A picture of the export: what is known of it, and its file, or why there is none."""

    record: dict[str, Any]
    picture: Picture
    file: Path | MediaError

    @property
    def current(self) -> Path | MediaError:
        """The file, if it still holds what was indexed."""
        try:
            self.content()
        except MediaError as error:
            return error
        return self.file

    def content(self) -> tuple[Path, os.stat_result] | bytes:
        """Return where the content lies, see `content_of`.

        Raises:
            MediaError: it is gone or changed, or may not be handed out.
        """
        if isinstance(self.file, MediaError):
            raise self.file
        return content_of(self.file, self.picture)


class Export:
    """Pictures of libraries, in an order."""

    def __init__(self, shelf: Shelf, items: Sequence[str], limits: Limits) -> None:
        """Look the pictures up.

        Raises:
            QueryError: there are too many.
            UnknownLibrary: no library has that name.
            NoSuchItem: there is no such picture.
        """
        # Forms have a bounded number of fields, and a field a bounded length.
        names = list(dict.fromkeys(name for field in items for name in field.split(",")))
        if len(names) > limits.export_items:
            raise QueryError(
                f"No more than {limits.export_items:,} pictures are exported at a time, not "
                f"{len(names):,}. Leave some away, or use: mmsearch query --copy-to FOLDER"
            )
        self._most = limits.export_bytes
        self._chosen = [_chosen(shelf, name, rank) for rank, name in enumerate(names, 1)]

    def check_size(self) -> None:
        """Check that the files are not too large together.

        Raises:
            QueryError: they are.
        """
        total = 0
        for each in self._chosen:
            if isinstance(each.file, Path) and each.file.is_file():
                total += each.file.stat().st_size
        if total > self._most:
            raise QueryError(
                f"These pictures weigh {total / 1e9:.1f} GB, and {self._most / 1e9:.1f} GB are the "
                "most that is exported at a time. Leave some away."
            )

    def csv(self) -> Iterator[bytes]:
        """Yield CSV (RFC 4180) with a header."""
        names = list(self._chosen[0].record)
        for row in (names, *(cells_of(each.record, names) for each in self._chosen)):
            line = io.StringIO()
            csv.writer(line).writerow(row)
            yield line.getvalue().encode("utf-8", "surrogateescape")

    def json(self) -> Iterator[bytes]:
        """Yield one JSON object; names that are no text have their bytes as lone surrogates."""
        yield b'{"schema": 1, "pictures": ['
        for i, each in enumerate(self._chosen):
            yield (", " if i else "").encode() + json.dumps(each.record).encode()
        yield b"]}\n"

    def html(self) -> Iterator[bytes]:
        """Yield a contact sheet that links to nothing."""
        count = len(self._chosen)
        title = f"{count:,} picture{'' if count == 1 else 's'}"
        libraries = ", ".join(dict.fromkeys(each.record["library"] for each in self._chosen))
        pictures = ((_row(each.record), each.current, None) for each in self._chosen)
        for part in sheet(title, libraries, pictures):
            yield part.encode()

    def zip(self) -> Iterator[bytes]:
        """Yield an archive of the files, named by rank: `01-IMG_2041.jpg`.

        What cannot be read any more is left out, and named in `skipped.txt`.
        """
        skipped: list[str] = []
        yield from zipped(self._members(skipped))

    def _members(
        self, skipped: list[str]
    ) -> Iterator[tuple[str, tuple[int, ...] | None, Iterator[bytes]]]:
        digits = len(str(len(self._chosen)))
        left = self._most
        for each in self._chosen:
            path: str = each.record["path"]
            try:
                content = each.content()
            except (MediaError, OSError) as error:
                skipped.append(f"{readable(path)}: {error}")
                continue
            size = len(content) if isinstance(content, bytes) else content[1].st_size
            if size > left:
                skipped.append(f"{readable(path)}: the archive would be too large")
                continue
            left -= size
            when: tuple[int, ...] | None = None
            if isinstance(content, bytes):
                name, pieces = name_inside(path, content), iter([content])
            else:
                file, facts = content
                when = tuple(time.localtime(facts.st_mtime)[:6])
                name, pieces = path.rpartition("/")[2], _pieces(file)
            # A separator of another system's, or bytes that are no text, would name another place.
            name = readable(short_name(f"{each.record['rank']:0{digits}}-{name}"))
            yield name.replace("\\", "_"), when, pieces
        if skipped:
            yield SKIPPED, None, iter(["\n".join([*skipped, ""]).encode()])


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as source:
        while piece := source.read(PIECE):
            yield piece


def _chosen(shelf: Shelf, name: str, rank: int) -> _Chosen:
    served, item = located_item(shelf, name)
    picture = item.picture
    record = {
        "rank": rank,
        "library": served.name,
        "id": item.id,
        "path": picture.path,
        "taken": None if picture.taken_at is None else picture.taken_at.isoformat(),
        "width": picture.width,
        "height": picture.height,
        "size": picture.size,
        "format": picture.format,
        "camera": picture.camera,
        "latitude": picture.latitude,
        "longitude": picture.longitude,
        "captions": [caption.text for caption in item.captions],
    }
    try:
        return _Chosen(record, picture, file_of(served, item))
    except MediaError as error:
        return _Chosen(record, picture, error)


def _row(record: dict[str, Any]) -> Row:
    return Row(
        rank=str(record["rank"]),
        score="-",
        date=(record["taken"] or "-")[:10],
        path=record["path"],
        caption=next(iter(record["captions"]), None),
        similar=None,
    )
