"""Pictures that are no files of their own: in tar and Parquet files, and in object stores.

A picture in a file has a path as if the file were a folder: `shard-000.tar/000123.jpg`,
`part-0.parquet/17` (the row). Nothing is unpacked to disk: a member of a tar file is read with one
seek, a row of a Parquet file with its row group. One in a store has its address for a path (see
`addresses`), and the files with pictures may lie there too.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mmsearch.errors import MediaError, MissingExtra, SourceError
from mmsearch.retrieval.addresses import address_of
from mmsearch.retrieval.captions import (
    MAX_SIDECAR_BYTES,
    fingerprint,
    parse_sidecar,
    sidecar_names,
)
from mmsearch.retrieval.media import MAX_FILE_BYTES, SUFFIXES, open_picture
from mmsearch.retrieval.objects import StoredObject, object_exists
from mmsearch.retrieval.parquet_files import ImageColumns, image_columns, read_row
from mmsearch.retrieval.schema import Caption
from mmsearch.retrieval.tar_files import TarDamaged, members, read_stretch

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "CONTAINER_SUFFIXES",
    "Contents",
    "InStore",
    "Place",
    "enclosing",
    "folders_of",
    "is_there",
    "list_contents",
    "located",
    "openable",
    "places_of",
    "read_inside",
]

CONTAINER_SUFFIXES = frozenset({".tar", ".parquet"})


class Place(Protocol):
    """Where a picture lies that is no file of its own."""

    @property
    def size(self) -> int:
        """Its size in bytes; that of the whole file where telling would mean reading."""

    @property
    def sidecars(self) -> str:
        """Fingerprint of the captions beside it; empty when there are none."""

    def read(self) -> bytes:
        """Return the picture's bytes; raise `MediaError` where there are none to be had."""

    def captions(self) -> list[Caption]:
        """Return what stands beside it; nothing where that cannot be read."""


@dataclass(slots=True)
class Contents:
    """What a container holds.

    Attributes:
        pictures: by name inside it, in the order in which they are stored.
        problem: kind and reason, where it could not be read to its end.
    """

    pictures: dict[str, Place] = field(default_factory=dict)
    problem: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class _InTar:
    tar: Path | StoredObject
    offset: int
    size: int
    beside: tuple[tuple[str, int, int], ...]

    @property
    def sidecars(self) -> str:
        return fingerprint([f"{name}:{size}" for name, _, size in self.beside])

    def read(self) -> bytes:
        if self.size > MAX_FILE_BYTES:
            limit = f"{MAX_FILE_BYTES >> 20} MiB"
            raise MediaError("too-large", f"it is larger than {limit}, the most that is read")
        if self.size == 0:
            raise MediaError("empty", "it has zero bytes")
        return read_stretch(self.tar, self.offset, self.size)

    def captions(self) -> list[Caption]:
        found = []
        for name, offset, size in self.beside:
            try:
                content = read_stretch(self.tar, offset, min(size, MAX_SIDECAR_BYTES))
            except MediaError:
                continue
            found += parse_sidecar(name, content)
        return found


@dataclass(frozen=True, slots=True)
class _InParquet:
    columns: ImageColumns
    row: int

    @property
    def size(self) -> int:
        return self.columns.size

    @property
    def sidecars(self) -> str:
        return "parquet" if self.columns.captions else ""

    def read(self) -> bytes:
        data = read_row(self.columns, self.row)[0]
        if not data:
            raise MediaError("empty", "the row holds no bytes of an image")
        return data

    def captions(self) -> list[Caption]:
        lines = "\n".join(read_row(self.columns, self.row)[1])
        return parse_sidecar(".txt", lines.encode(errors="replace"))


@dataclass(frozen=True, slots=True)
class InStore:
    """A picture in an object store.

    Attributes:
        beside: address, size and time of what holds its captions.
    """

    address: str
    size: int = 0
    beside: tuple[tuple[str, int, int], ...] = ()

    @property
    def sidecars(self) -> str:
        """As a folder's picture has them: names, sizes and times."""
        return fingerprint(
            [f"{StoredObject(one).name}:{size}:{time}" for one, size, time in self.beside]
        )

    def read(self) -> bytes:
        """Return the picture's bytes; raise `MediaError` where there are none to be had."""
        try:
            return StoredObject(self.address).read()
        except (MissingExtra, SourceError) as error:
            raise MediaError("unreadable", str(error)) from error

    def captions(self) -> list[Caption]:
        """Return what stands beside it; nothing where that cannot be read."""
        found = []
        for address, _, _ in self.beside:
            stored = StoredObject(address)
            try:
                content = stored.read_range(0, MAX_SIDECAR_BYTES)
            except (OSError, MissingExtra, SourceError):
                continue
            found += parse_sidecar(stored.name, content)
        return found


@dataclass(frozen=True, slots=True)
class _Nowhere:
    """What is asked of a container that does not have it, or cannot be looked into."""

    kind: str
    reason: str
    size: int = 0
    sidecars: str = ""

    def read(self) -> bytes:
        raise MediaError(self.kind, self.reason)

    def captions(self) -> list[Caption]:
        return []


def list_contents(path: Path) -> Contents:
    """Return the pictures in a container, by its headers alone.

    Raises:
        OSError: it cannot be looked at.
        MissingExtra: a Parquet file, and pyarrow is not installed.
        SourceError: it lies in a store that cannot be used.
    """
    address = address_of(path)
    file = path if address is None else StoredObject(address)
    return _list_parquet(file) if path.suffix.lower() == ".parquet" else _list_tar(file)


def enclosing(path: str, containers: Container[str]) -> str | None:
    """Return the container that a path leads into, if it is one of those given."""
    return next((folder for folder in folders_of(path) if folder in containers), None)


def folders_of(path: str) -> Iterator[str]:
    """Yield the folders, or containers, that a path leads through, the outermost first."""
    return (path[:i] for i, letter in enumerate(path) if letter == "/")


def places_of(root: Path, paths: Collection[str]) -> dict[str, Place]:
    """Return where those of `paths` lie that lead into containers below `root`.

    Or into object stores. Each container is listed once, and its pictures come in the order in
    which they are stored. What is not in it, or not to be had, is a place too: reading it says why.
    """
    above = {folder for path in paths for folder in folders_of(path)}
    containers = {folder for folder in above if _is_container(root / folder)}
    inside: dict[str, list[str]] = {}
    places: dict[str, Place] = {}
    for path in paths:
        container = enclosing(path, containers)
        if container is not None:
            inside.setdefault(container, []).append(path)
        elif (address := address_of(path)) is not None:
            places[path] = InStore(address)
    for container, there in inside.items():
        places.update(_places_in(root, container, there))
    return places


def _places_in(root: Path, container: str, paths: list[str]) -> list[tuple[str, Place]]:
    try:
        pictures = list_contents(root / container).pictures
        lost = _Nowhere("vanished", f"{container} holds it no more")
    except OSError as error:
        pictures, lost = {}, _Nowhere("unreadable", f"{container}: {error.strerror or error}")
    except (MissingExtra, SourceError) as error:
        pictures, lost = {}, _Nowhere("unreadable", str(error))
    asked = set(paths)
    stored = {
        path: place for name, place in pictures.items() if (path := f"{container}/{name}") in asked
    }
    return [*stored.items(), *((path, lost) for path in paths if path not in stored)]


def is_there(root: Path, path: str) -> bool:
    """Say whether a path below `root` is that of a file, or leads into one.

    What lies in a store that cannot be asked is not known to be gone.
    """
    if (address := address_of(path)) is not None:
        ways = (address, *reversed(list(folders_of(address))))
        try:
            return any(
                object_exists(way)
                for way in ways
                if way == address or StoredObject(way).suffix.lower() in CONTAINER_SUFFIXES
            )
        except (OSError, MissingExtra, SourceError):
            return True
    places = (root / path, *(root / path).parents)
    return any(os.path.isfile(place) for place in places)  # noqa: PTH113 (says no where Path raises)


def read_inside(path: Path) -> bytes | None:
    """Return the bytes of the picture at a path into a container or a store, else None.

    Raises:
        MediaError: there is such a container, and no such picture in it, or it cannot be read.
    """
    # A folder may be called like a container: the file is what counts.
    container = next((one for one in path.parents if _is_container(one)), None)
    if container is None:
        address = address_of(path)
        return None if address is None else InStore(address).read()
    name = path.relative_to(container).as_posix()
    try:
        place = list_contents(container).pictures.get(name)
    except OSError as error:
        raise MediaError("unreadable", f"{container}: {error.strerror or error}") from error
    if place is None:
        raise MediaError("vanished", f"{container} holds no picture {name}")
    return place.read()


def openable(path: Path) -> Path | Image.Image:
    """Return what an encoder can open: the path, or the picture that lies there in a container.

    Raises:
        MediaError: as from `read_inside`, or it cannot be decoded.
    """
    inside = read_inside(path)
    return path if inside is None else open_picture(inside)


def located(root: Path, image: Path) -> Path:
    """Return a picture's path from here on or, where there is none, from the library's root on."""
    return root / image if not _is_there(image) and _is_there(root / image) else image


def _is_there(path: Path) -> bool:
    try:
        return path.exists() or read_inside(path) is not None
    except (MediaError, OSError):
        # A container that lacks it, or is damaged, is where to look for the reason.
        return True


def _is_container(path: Path) -> bool:
    if path.suffix.lower() not in CONTAINER_SUFFIXES:
        return False
    if (address := address_of(path)) is not None:
        try:
            return object_exists(address)
        except (OSError, MissingExtra, SourceError):
            return True  # Listing it will say why it cannot be.
    # Unlike `Path.is_file`, `isfile` says no where a name is impossible.
    return os.path.isfile(path)  # noqa: PTH113


def _list_parquet(path: Path | StoredObject) -> Contents:
    contents = Contents()
    try:
        columns = image_columns(path)
    except MediaError as error:
        contents.problem = error.kind, str(error)
        return contents
    if columns is not None:
        for row in range(columns.rows):
            contents.pictures[str(row)] = _InParquet(columns, row)
    return contents


def _list_tar(tar: Path | StoredObject) -> Contents:
    contents = Contents()
    pictures = []
    others = {}
    try:
        for member in members(tar):
            name = member.name.removeprefix("./").strip("/")
            if os.path.splitext(name)[1].lower() in SUFFIXES:  # noqa: PTH122
                pictures.append((name, member))
            else:
                others[name] = member
    except TarDamaged as error:
        contents.problem = error.kind, str(error)
    for name, member in pictures:
        folder, slash, base = name.rpartition("/")
        names = (f"{folder}{slash}{beside}" for beside in sidecar_names(base))
        beside = tuple(
            (one, others[one].offset, others[one].size) for one in names if one in others
        )
        # As for training: of several members of one name, the first.
        contents.pictures.setdefault(name, _InTar(tar, member.offset, member.size, beside))
    return contents
