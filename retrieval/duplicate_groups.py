"""Groups of pictures that belong together, and which of each to keep."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime
    from pathlib import Path

__all__ = ["Duplicates", "Group", "Kind", "Member", "why_kept"]


class Kind(StrEnum):
    """How the pictures of a group belong together."""

    COPIES = "copies"
    """Files with the same bytes."""

    NEAR = "near"
    """One photo: resized, recompressed, cut a little, brightened."""

    BURSTS = "bursts"
    """Different photos, taken within seconds of each other and alike."""


@dataclass(frozen=True, slots=True)
class Member:
    """A picture of a group.

    Attributes:
        path: relative to the library's root, with forward slashes.
        size: bytes; of a row in a Parquet file, those of the whole file.
        width: upright width in pixels.
        height: upright height in pixels.
        taken_at: local time by the camera's clock.
        checked: whether the file was found with the size and time that were indexed and, among
            near-duplicates, with the content; what was not is never spare.
        inside: whether it lies in a tar or Parquet file, from which nothing can be freed.
        linked: whether it is a link, or a file with several names: removing it frees nothing.
        spare: whether it could go if only one is wanted: checked like the one that is kept, and a
            file of its own.
    """

    path: str
    size: int
    width: int
    height: int
    taken_at: datetime | None
    checked: bool
    inside: bool
    linked: bool
    spare: bool = False

    @property
    def preference(self) -> tuple[bool, int, int, bool, str]:
        """Sorts what to keep first: there at all, largest in pixels, then in bytes, first path."""
        # What a row of a Parquet file takes is not known.
        size = -1 if self.inside else self.size
        return not self.checked, -self.width * self.height, -size, self.linked, self.path

    def to_json(self) -> dict[str, Any]:
        """Return one picture of `dedup --json`."""
        return {
            "path": self.path,
            "bytes": self.size,
            "width": self.width,
            "height": self.height,
            "taken": self.taken_at.isoformat() if self.taken_at else None,
            "checked": self.checked,
            "inside_container": self.inside,
            "linked": self.linked,
            "spare": self.spare,
        }


@dataclass(frozen=True, slots=True)
class Group:
    """Pictures that belong together, and which of them to keep.

    Attributes:
        kind: how they do.
        keep: the one proposed.
        why: in words.
        others: all others.
    """

    kind: Kind
    keep: Member
    why: str
    others: tuple[Member, ...]

    @property
    def spare(self) -> tuple[Member, ...]:
        """What could go if only one is wanted."""
        return tuple(member for member in self.others if member.spare)

    @property
    def freeable_bytes(self) -> int:
        """How many bytes that would free."""
        return sum(member.size for member in self.spare)

    def to_json(self) -> dict[str, Any]:
        """Return one group of `dedup --json`."""
        return {
            "kind": self.kind.value,
            "keep": self.keep.to_json(),
            "why": self.why,
            "others": [member.to_json() for member in self.others],
            "freeable_bytes": self.freeable_bytes,
        }


@dataclass(frozen=True, slots=True)
class Duplicates:
    """What a library holds more than once.

    A file is spare in one group at most; the one that a group of copies keeps stands for all of
    them in groups of near-duplicates, and the one that those keep in bursts.

    Attributes:
        library: the folder of pictures.
        model: whose vectors were compared.
        groups: copies first, then near-duplicates, then bursts; each kind by the path to keep.
        pictures: how many the library holds.
        compared: how many were read again, for their pixels.
        unchecked: how many of the groups' pictures could not be checked: gone or changed since they
            were indexed, unreadable, or left alone because `check` was false.
    """

    library: Path
    model: str
    groups: tuple[Group, ...]
    pictures: int
    compared: int
    unchecked: int

    def freeable_bytes(self, kinds: Iterable[Kind] = Kind) -> int:
        """Return how many bytes the spare pictures of some kinds take."""
        wanted = set(kinds)
        return sum(group.freeable_bytes for group in self.groups if group.kind in wanted)

    def to_json(self, kinds: Iterable[Kind] = Kind) -> dict[str, Any]:
        """Return the object that `dedup --json` prints."""
        wanted = set(kinds)
        shown = [kind for kind in Kind if kind in wanted]
        return {
            "schema": 1,
            "library": str(self.library),
            "model": self.model,
            "pictures": self.pictures,
            "compared": self.compared,
            "unchecked": self.unchecked,
            "freeable_bytes": {kind.value: self.freeable_bytes([kind]) for kind in shown},
            "groups": [group.to_json() for group in self.groups if group.kind in shown],
        }


def why_kept(keep: Member, others: Sequence[Member]) -> str:
    """Say what the one to keep has before the best of the others (at least one)."""
    best = min(others, key=lambda member: member.preference)
    if keep.checked != best.checked:
        return "the only one that could be checked"
    if keep.width * keep.height != best.width * best.height:
        return "largest resolution"
    if keep.inside != best.inside:
        return "a file of its own"
    if keep.size != best.size and not keep.inside:
        return "largest file"
    if keep.linked != best.linked:
        return "no link"
    return "first path"
