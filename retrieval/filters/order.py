"""What matches can be sorted by."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["SortKey"]


class SortKey(StrEnum):
    """What comes first; equal ones follow in the order of their paths."""

    DATE = "date"
    """When the picture was taken; those that do not say come last, whatever the direction."""

    SIZE = "size"
    """Bytes."""

    NAME = "name"
    """The file's name, upper and lower case alike."""

    PATH = "path"
    WIDTH = "width"
    HEIGHT = "height"

    PIXELS = "pixels"
    """Width times height."""
