"""The libraries of a server: each with its engine, its queue and its name."""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from mmsearch.errors import MmsearchError
from mmsearch.retrieval.engine import open_engine
from mmsearch.retrieval.request import SearchRequest
from mmsearch.retrieval.web.batching import Batcher
from mmsearch.retrieval.web.thumbnail_cache import ThumbnailCache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mmsearch.retrieval.engine import SearchEngine
    from mmsearch.retrieval.schema import Results
    from mmsearch.retrieval.web.settings import Settings

__all__ = ["Request", "Served", "Shelf", "UnknownLibrary"]

Request = dict[str, Any]
"""Keyword arguments of `SearchEngine.search`."""

RUNGS = (500, 5_000, 50_000)
"""Lengths of the lists that pages are cut from: the next is made when one is read to its end."""
KEPT = 16
"""Long lists that are kept, of the latest questions."""


class UnknownLibrary(MmsearchError):
    """No library of this server has that name."""


@dataclass(frozen=True, slots=True)
class _Long:
    stamp: str
    results: Results


class Served:
    """One library that is served."""

    def __init__(
        self,
        name: str,
        engine: SearchEngine,
        settings: Settings,
        batched: Callable[[int], None] | None = None,
    ) -> None:
        self.name = name
        self.engine = engine
        self.limits = settings.limits
        self.follow_links = settings.follow_links
        self.thumbnails = ThumbnailCache(engine.library)
        self._batcher: Batcher[Request, Results] = Batcher(
            self._answer,
            largest=settings.batch,
            waiting=settings.limits.waiting,
            batched=batched,
        )
        self._long: OrderedDict[str, _Long] = OrderedDict()
        self._lock = Lock()

    @property
    def root(self) -> Path:
        """The folder of pictures."""
        return self.engine.library.root

    @property
    def waiting(self) -> int:
        """How many questions wait."""
        return len(self._batcher)

    def warm_up(self) -> None:
        """Load what the first question needs, in the queue that questions wait in."""
        self._batcher.submit({"text": "a photo", "k": 1})

    async def search(self, request: Request) -> Results:
        """Return the answer to one question, asked together with others.

        Raises:
            MmsearchError: as from `SearchEngine.search`.
            Busy: too many wait.
            Closed: the server is going down.
        """
        return await self._batcher.ask(request)

    async def page(self, request: Request, offset: int, k: int) -> Results:
        """Return answers `offset + 1` to `offset + k` of a question.

        They come from one long list, so that pages fit together; it is kept while the library
        stays as it is.

        Raises:
            MmsearchError: as from `SearchEngine.search`.
            Busy: too many wait.
            Closed: the server is going down.
        """
        end = min(offset + k, self.limits.depth)
        rungs = [rung for rung in RUNGS if rung < self.limits.depth]
        depth = next((rung for rung in rungs if rung >= end), self.limits.depth)
        key = repr((depth, sorted(request.items(), key=lambda item: item[0])))
        stamp = self.engine.library.catalog.stamp()
        with self._lock:
            known = self._long.get(key)
        if known is None or known.stamp != stamp:
            known = _Long(stamp, await self.search(request | {"k": depth}))
            with self._lock:
                self._long[key] = known
                while len(self._long) > KEPT:
                    self._long.popitem(last=False)
        return replace(known.results, hits=known.results.hits[offset:end])

    def close(self) -> None:
        """Answer what waits, then release the library."""
        self._batcher.close()
        self.thumbnails.close()
        self.engine.close()

    def _answer(self, requests: Sequence[Request]) -> Sequence[Results | Exception]:
        return self.engine.search_batch([SearchRequest(**request) for request in requests])


class Shelf:
    """All libraries of a server, by name."""

    def __init__(self, libraries: dict[str, Served]) -> None:
        self._libraries = libraries

    @classmethod
    def open(
        cls,
        paths: Sequence[Path],
        settings: Settings,
        *,
        device: str | None = None,
        batched: Callable[[int], None] | None = None,
    ) -> Shelf:
        """Open libraries; each is named after its folder.

        Raises:
            MmsearchError: one cannot be opened.
        """
        libraries: dict[str, Served] = {}
        try:
            for path in paths:
                engine = open_engine(path, device=device)
                name = _free(_named(engine.library.root), libraries)
                libraries[name] = Served(name, engine, settings, batched)
                libraries[name].warm_up()
        except BaseException:
            for served in libraries.values():
                served.close()
            raise
        return cls(libraries)

    def __iter__(self) -> Iterator[Served]:
        return iter(self._libraries.values())

    def __getitem__(self, name: str) -> Served:
        try:
            return self._libraries[name]
        except KeyError:
            names = ", ".join(self._libraries)
            raise UnknownLibrary(
                f"No library is called {name!r} here; there are: {names}."
            ) from None

    def chosen(self, names: Sequence[str]) -> list[Served]:
        """Return the libraries of these names, all if there are none.

        Raises:
            UnknownLibrary: one is not served.
        """
        return [self[name] for name in dict.fromkeys(names)] or list(self)

    def close(self) -> None:
        """Answer what waits, then release every library."""
        for served in self:
            served.close()


def _named(root: Path) -> str:
    """Return a folder's name as one part of an address."""
    return re.sub(r"[^\w.-]+", "-", root.name, flags=re.ASCII).strip("-.") or "library"


def _free(name: str, taken: dict[str, Served]) -> str:
    names = (name, *(f"{name}-{i}" for i in range(2, len(taken) + 3)))
    return next(each for each in names if each not in taken)
