"""The libraries of a server: each with its engine, its queue and its name."""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsearch.errors import MmsearchError
from mmsearch.retrieval.engine import open_engine
from mmsearch.retrieval.request import SearchRequest
from mmsearch.retrieval.web.batching import Batcher
from mmsearch.retrieval.web.long_lists import FIRST, FURTHER, LongLists, Page, Step, key_of
from mmsearch.retrieval.web.thumbnail_cache import ThumbnailCache

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from mmsearch.retrieval.engine import SearchEngine
    from mmsearch.retrieval.schema import Results
    from mmsearch.retrieval.web.settings import Settings

__all__ = ["Request", "Served", "Shelf", "UnknownLibrary"]

Request = dict[str, Any]
"""Keyword arguments of `SearchEngine.search`."""

RERANKED = 50
"""Answers of a long list that are reranked, where nobody says how many."""
SORTED = 1_000
"""Answers to words or pictures that are had in another order than the best first."""


class UnknownLibrary(MmsearchError):
    """No library of this server has that name."""


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
        self._long = LongLists(settings.limits.depth)
        self._slow = ThreadPoolExecutor(1, thread_name_prefix="mmsearch-long")

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

    async def page(
        self, request: Request, offset: int, k: int, without: Collection[int] = ()
    ) -> Page:
        """Return answers `offset + 1` to `offset + k` of a question.

        They come from one long list, so that pages fit together; it is kept while the library
        stays as it is. Further answers than the first are neither grouped nor spread, and words in
        captions and names do not count for them.

        Args:
            request: the question; its `k` does not count.
            offset: at least 0.
            k: at least 1.
            without: ids of pictures that are left out.

        Raises:
            MmsearchError: as from `SearchEngine.search`.
            Busy: too many wait.
            Closed: the server is going down.
        """
        stamp = self.engine.library.catalog.stamp()
        key = key_of(request | {"k": 0}, without)
        return await self._long.page(key, stamp, self._steps(request), offset, k, without=without)

    async def listed(self, key: str, ask: Callable[[int], Results], offset: int, k: int) -> Page:
        """Return a page of what `ask` returns for a count, as `page` does.

        Raises:
            MmsearchError: as from `ask`.
        """

        async def asked(count: int) -> Results:
            return await self._beside(lambda: ask(count))

        counts = (*FIRST, *FURTHER, self.limits.depth)
        steps = [Step(count, asked) for count in counts]
        return await self._long.page(key, self.engine.library.catalog.stamp(), steps, offset, k)

    def _steps(self, request: Request) -> list[Step]:
        plain = request | {"group": False, "diversity": 0.0, "rerank": None, "rerank_depth": None}
        plain |= {"rerank_budget_ms": None, "words": False}

        async def asked(count: int) -> Results:
            return await self.search(request | {"k": count})

        async def further(count: int) -> Results:
            return await self._beside(lambda: self.engine.search(**plain | {"k": count}))

        of_content = request.get("text") is not None or request.get("image") is not None
        if of_content and request.get("sort") is not None:
            # What is in another order than the best first has no further answers.
            return [Step(SORTED, asked)]
        first = [*FIRST]
        if request.get("rerank") is not None:
            first = [request.get("rerank_depth") or RERANKED]
        steps = [Step(count, asked) for count in first[:-1]]
        steps.append(Step(first[-1], asked, kept=of_content))
        return [*steps, *(Step(count, further) for count in (*FURTHER, self.limits.depth))]

    async def _beside(self, work: Callable[[], Results]) -> Results:
        """Run what takes long beside the queue, one at a time: short questions go on meanwhile."""
        return await asyncio.wrap_future(self._slow.submit(work))

    def close(self) -> None:
        """Answer what waits, then release the library."""
        self._batcher.close()
        self._slow.shutdown(cancel_futures=True)
        self.thumbnails.close()
        self.engine.close()

    def _answer(self, requests: Sequence[Request]) -> Sequence[Results | Exception]:
        asked = [SearchRequest(**request) for request in requests]
        try:
            return self.engine.search_batch(asked)
        except MmsearchError:
            raise
        except Exception as error:
            if len(asked) == 1:
                return [error]
            # A fault that one question has found is not the others'.
            return [self._answer([request])[0] for request in requests]


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
