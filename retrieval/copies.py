"""Pictures that were found, put into a folder as copies or links. Nothing is overwritten."""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from mmsearch.errors import MediaError, SourceError
from mmsearch.retrieval.containers import read_inside
from mmsearch.retrieval.listing import each_picture_once
from mmsearch.retrieval.media import SUFFIXES, open_picture

if TYPE_CHECKING:
    from mmsearch.retrieval.schema import Results

__all__ = ["Placed", "copy_pictures", "link_pictures", "name_inside", "short_name"]

_Source = TypeVar("_Source", Path, bytes)

MAX_NAME_BYTES = 255
"""What file systems take; a rank before a name, or a number behind it, may make it too long."""


@dataclass(slots=True)
class Placed:
    """What was put into a folder.

    Attributes:
        folder: where.
        files: the new ones, best hit first.
        present: those that were there already, with the same content.
        unpacked: how many of them were taken out of a tar or Parquet file.
        skipped: path in the library and reason, of those that could not be had.
    """

    folder: Path
    files: list[Path] = field(default_factory=list)
    present: list[Path] = field(default_factory=list)
    unpacked: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)


def copy_pictures(results: Results, folder: Path) -> Placed:
    """Copy the pictures that were found to a folder, named by rank: `01-IMG_2041.jpg`.

    Where that name is taken by something else, `01-IMG_2041 (2).jpg` is used, and so on; the same
    picture is not copied twice. Times are kept. What lies in a tar or Parquet file is taken out.

    Raises:
        SourceError: the folder cannot be made or written to.
    """
    return _place(results, folder, _copy, _same_content)


def link_pictures(results: Results, folder: Path) -> Placed:
    """Put symbolic links to the pictures into a folder, named as `copy_pictures` does.

    They hold absolute paths, so the folder can be moved. What lies in a tar or Parquet file cannot
    be linked to and is taken out.

    Raises:
        SourceError: the folder cannot be made or written to, or has no symbolic links.
    """
    return _place(results, folder, _link, _same_target)


def _place(
    results: Results,
    folder: Path,
    put: Callable[[Path, Path], None],
    same: Callable[[Path, Path], bool],
) -> Placed:
    placed = Placed(folder)
    hits = each_picture_once(results)
    digits = len(str(max((hit.rank for hit in hits), default=1)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SourceError(f"{folder} cannot be made a folder: {error.strerror}.") from error
    for hit in hits:
        file = results.file(hit)
        prefix = f"{hit.rank:0{digits}}-"
        try:
            data = read_inside(file)
            if data is None and not file.is_file():
                raise MediaError("vanished", "gone since it was indexed")  # noqa: TRY301
        except MediaError as error:
            placed.skipped.append((hit.path, str(error)))
            continue
        try:
            if data is None:
                _put_free(placed, prefix + file.name, file, put, same)
            else:
                name = prefix + name_inside(hit.path, data)
                _put_free(placed, name, data, _write, _same_bytes)
                placed.unpacked += 1
        except _Unreadable as error:
            placed.skipped.append((hit.path, str(error)))
        except OSError as error:
            raise SourceError(
                f"{hit.path} could not be put into {folder}: {error.strerror}. "
                f"{len(placed.files)} pictures are there already."
            ) from error
    return placed


class _Unreadable(Exception):
    """A picture cannot be read, as opposed to: the folder cannot be written to."""


def _put_free(
    placed: Placed,
    name: str,
    source: _Source,
    put: Callable[[_Source, Path], None],
    same: Callable[[_Source, Path], bool],
) -> None:
    """Put `source` under the first name that is free, unless it is there under one before."""
    for number in count(1):
        goal = placed.folder / short_name(name, "" if number == 1 else f" ({number})")
        if not os.path.lexists(goal):
            # Made anew or not at all, should another program be faster.
            with suppress(FileExistsError):
                put(source, goal)
                placed.files.append(goal)
                return
        if same(source, goal):
            placed.present.append(goal)
            return


def short_name(name: str, ending: str = "") -> str:
    """Return the name with an ending before its suffix, its stem cut where it is too long."""
    stem, suffix = os.path.splitext(os.fsencode(name))  # noqa: PTH122 (bytes)
    room = MAX_NAME_BYTES - len(suffix) - len(ending.encode())
    # Cut between characters: half of one would be an invalid name on some file systems.
    kept = stem if len(stem) <= room else stem[:room].decode(errors="ignore").encode()
    return os.fsdecode(kept + ending.encode() + suffix)


def name_inside(path: str, data: bytes) -> str:
    """Return a file name for a picture out of a container; a row of a table has none of its own.

    Args:
        path: of the picture in the library.
        data: its bytes.
    """
    container, _, name = path.rpartition("/")
    if Path(name).suffix.lower() in SUFFIXES:
        return name
    try:
        format_ = (open_picture(data).format or "").lower()
    except MediaError:
        format_ = ""
    suffix = {"jpeg": ".jpg", "jpeg2000": ".jp2", "heif": ".heic"}.get(format_, f".{format_}")
    return f"{Path(container).stem}-{name}{suffix.rstrip('.')}"


def _copy(file: Path, goal: Path) -> None:
    try:
        source = file.open("rb")
    except OSError as error:
        raise _Unreadable(error.strerror) from error
    with source:
        _fill(goal, lambda copy: shutil.copyfileobj(source, copy, 1 << 20))
    # Times matter for sorting; a file system that keeps none is no reason to fail.
    with suppress(OSError):
        shutil.copystat(file, goal)


def _write(data: bytes, goal: Path) -> None:
    _fill(goal, lambda copy: copy.write(data))


def _fill(goal: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Make a new file, and leave none that is incomplete."""
    with goal.open("xb") as copy:
        try:
            fill(copy)
        except BaseException:
            goal.unlink()
            raise


def _link(file: Path, goal: Path) -> None:
    goal.symlink_to(file.absolute())


def _same_content(file: Path, goal: Path) -> bool:
    try:
        return not goal.is_symlink() and filecmp.cmp(file, goal, shallow=False)
    except OSError:
        return False


def _same_bytes(data: bytes, goal: Path) -> bool:
    try:
        return goal.stat().st_size == len(data) and goal.read_bytes() == data
    except OSError:
        return False


def _same_target(file: Path, goal: Path) -> bool:
    return goal.is_symlink() and goal.readlink() == file.absolute()
