"""Explanations that are looked at twice: once for the words, once for the map."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from mmsearch.errors import QueryError
from mmsearch.retrieval.filters import split_inline
from mmsearch.retrieval.web.files import file_of, item_of

if TYPE_CHECKING:
    from pathlib import Path

    from mmsearch.retrieval.explanation import Explanation
    from mmsearch.retrieval.web.services import Services

__all__ = ["Explanations"]

KEPT = 4
"""Each holds its picture."""


class Explanations:
    """The latest explanations of a server. To be used from one event loop."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, int, str, str, object], Explanation] = OrderedDict()

    async def get(self, services: Services, library: str, id_: int, text: str) -> Explanation:
        """Return why a picture matches words.

        Raises:
            QueryError: the text is too long, or no single concept.
            MmsearchError: there is no such picture, or it cannot be explained.
        """
        most = services.settings.limits.text
        if len(text) > most:
            raise QueryError(f"A text of more than {most:,} characters is not taken here.")
        served = services.shelf[library]
        file = file_of(served, item_of(served, id_))
        key = library, id_, text, served.engine.library.catalog.stamp(), _facts(file)
        found = self._kept.get(key)
        if found is None:
            words = split_inline(text)[0]
            found = await services.in_thread(lambda: served.engine.explain(file, words))
            self._kept[key] = found
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return found


def _facts(file: Path) -> object:
    """Return what changes with a file: one that is gone, or another, is explained anew."""
    try:
        facts = file.stat()
    except OSError:
        return None
    return facts.st_size, facts.st_mtime_ns
