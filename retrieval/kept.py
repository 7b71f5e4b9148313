"""What was looked up of late, kept so that nobody looks it up again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

__all__ = ["Kept"]

_Value = TypeVar("_Value")


class Kept(Generic[_Value]):
    """Values by id, of which there is a greatest number. Threads may share it.

    All are dropped when there are too many: what is asked again soon is back soon.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: dict[int, _Value] = {}

    def of(
        self, ids: Iterable[int], look_up: Callable[[list[int]], Mapping[int, _Value]]
    ) -> dict[int, _Value]:
        """Return values by id; those that are not known are looked up, all at once.

        Args:
            ids: any; each counts once.
            look_up: returns what there is.
        """
        known, found, lacking = self._known, {}, []
        for id_ in dict.fromkeys(ids):
            try:
                found[id_] = known[id_]
            except KeyError:
                lacking.append(id_)
        if lacking:
            new = look_up(lacking)
            found.update(new)
            if len(known) + len(new) > self._most:
                self._known = known = {}
            known.update(new)
        return found
