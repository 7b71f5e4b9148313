"""From what a client asks to what engines are asked, and back."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from mmsearch.errors import QueryError
from mmsearch.retrieval.confidence import CUT, confidence
from mmsearch.retrieval.filters import Filter, parse_where, split_inline
from mmsearch.retrieval.schema import Target
from mmsearch.retrieval.several import Found, merged
from mmsearch.retrieval.similar import similar
from mmsearch.retrieval.web.files import file_of, located_item
from mmsearch.retrieval.web.long_lists import Page
from mmsearch.retrieval.web.naming import named
from mmsearch.retrieval.web.pictures import decoded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from PIL import Image

    from mmsearch.retrieval.schema import Hit, Results
    from mmsearch.retrieval.web.services import Services
    from mmsearch.retrieval.web.shelf import Request, Served
    from mmsearch.retrieval.web.wire import RecommendRequest, SearchParameters

__all__ = ["Asking", "answer_fields"]

_Given = TypeVar("_Given")

PARTS = 32
"""Texts and pictures that one question may have."""


class Asking:
    """Puts questions of clients to the libraries of a server."""

    def __init__(self, services: Services) -> None:
        self._shelf = services.shelf
        self._settings = services.settings
        self._in_thread = services.in_thread

    async def search(
        self,
        asked: SearchParameters,
        pictures: Sequence[Image.Image] = (),
        *,
        itself: bool = True,
    ) -> dict[str, Any]:
        """Return the JSON of the answer to a question.

        Args:
            asked: the question.
            pictures: what it brings.
            itself: whether the pictures of `like` may be among the answers.

        Raises:
            MmsearchError: it cannot be asked, or a library cannot answer.
            Busy: too many wait.
        """
        self._check(asked)
        libraries = self._shelf.chosen(asked.library)
        if asked.dislike and not (asked.q or asked.also or pictures):
            return await self._taste(asked, libraries, itself=itself)
        request = self._request(asked, pictures)
        references = asked.dislike if itself else [*asked.dislike, *asked.like]
        located = [located_item(self._shelf, reference) for reference in references]
        left_out = {
            served.name: {item.id for home, item in located if home is served}
            for served in libraries
        }

        async def one(served: Served) -> Page:
            without = left_out[served.name]
            if asked.offset is not None:
                offset, k = self._cut(asked, libraries)
                return await served.page(request, offset, k, without)
            found = await served.search(request | {"k": asked.k + len(without)})
            kept = tuple(hit for hit in found.hits if hit.id not in without)
            return Page(replace(found, hits=kept), None)

        return self._told(asked, await self._each(libraries, one))

    async def alone(
        self, names: Sequence[str], k: int, ask: Callable[[Served], Results]
    ) -> dict[str, Any]:
        """Return the JSON of what `ask` returns of each library, beside the batches."""
        self._check_count(k)
        answers = await self._each(
            self._shelf.chosen(names), lambda served: self._in_thread(lambda: ask(served))
        )
        return answer_fields(answers, merged(answers, k), 0)

    async def similar(self, item: str, k: int, names: Sequence[str] = ()) -> dict[str, Any]:
        """Return the JSON of pictures like one of a library, `NAME/ID`, without itself.

        Args:
            item: the picture.
            k: how many answers.
            names: of the libraries to look in; all if there are none.

        Raises:
            MmsearchError: there is no such picture, or a library cannot answer.
        """
        file = file_of(*located_item(self._shelf, item))
        found = await self.alone(names, k, lambda served: similar(served.engine, file, k))
        return named(found, [item])

    async def similar_to(
        self, picture: Image.Image, content: bytes, k: int, names: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Return the JSON of pictures like one that was sent; it and its copies are left out.

        Args:
            picture: decoded.
            content: the file that was sent.
            k: how many answers.
            names: of the libraries to look in; all if there are none.

        Raises:
            MmsearchError: a library cannot answer.
        """
        return await self.alone(
            names, k, lambda served: similar(served.engine, picture, k, content=content)
        )

    async def picture(
        self, read: Callable[[], bytes], name: str | None
    ) -> tuple[Image.Image, bytes]:
        """Return a picture that was sent, to ask with, and its file.

        Args:
            read: gives the file; not called before there is a thread for it, so that what waits
                may lie on disk.
            name: what the client calls it.

        Raises:
            QueryError: it cannot be used.
            Busy: too much waits.
        """
        needed = max(served.engine.encoder.decode_size for served in self._shelf)
        most = self._settings.limits.upload_pixels

        def decode() -> tuple[Image.Image, bytes]:
            data = read()
            return decoded(data, name, most_pixels=most, at_least=needed), data

        return await self._in_thread(decode)

    async def recommend(self, asked: RecommendRequest) -> dict[str, Any]:
        """Return the JSON of a recommendation.

        Raises:
            MmsearchError: it cannot be made.
        """
        self._check_count(asked.k)
        libraries = self._shelf.chosen([] if asked.library is None else [asked.library])
        if len(libraries) > 1:
            names = ", ".join(served.name for served in libraries)
            raise QueryError(f"Say which library recommends, with `library`: {names}.")
        served = libraries[0]
        like, dislike = self._items(served, asked.like), self._items(served, asked.dislike)
        seen = zip(self._items(served, [s.item for s in asked.history]), asked.history, strict=True)
        history = [(item, each.age_days) for item, each in seen]
        where = None if asked.where is None else parse_where(asked.where)
        found = await self._in_thread(
            lambda: served.engine.recommend(
                like,
                dislike,
                history,
                k=asked.k,
                where=where,
                exclude_seen=asked.exclude_seen,
                diversity=asked.diversity,
                strategy=asked.strategy,
                half_life=asked.half_life_days,
            )
        )
        fields = answer_fields({served.name: found}, merged({served.name: found}), 0)
        return named(fields, asked.like, asked.dislike, [each.item for each in asked.history])

    async def _taste(
        self, asked: SearchParameters, libraries: list[Served], *, itself: bool
    ) -> dict[str, Any]:
        """Answer pictures that are liked and disliked, without words: a direction, not a part."""
        where = self._filter(asked)

        async def one(served: Served) -> Page:
            like, dislike = self._items(served, asked.like), self._items(served, asked.dislike)

            def recommended(count: int) -> Results:
                return served.engine.recommend(
                    like, dislike, k=count, where=where, exclude_seen=not itself
                )

            if asked.offset is None:
                return Page(await self._in_thread(lambda: recommended(asked.k)), None)
            key = repr(("taste", like, dislike, where, itself))
            return await served.listed(key, recommended, *self._cut(asked, libraries))

        return self._told(asked, await self._each(libraries, one))

    def _cut(self, asked: SearchParameters, libraries: list[Served]) -> tuple[int, int]:
        """Return what each library must give: offset and count; of several, all from the start."""
        offset = asked.offset or 0
        return (offset, asked.k) if len(libraries) == 1 else (0, offset + asked.k)

    def _told(self, asked: SearchParameters, pages: dict[str, Page]) -> dict[str, Any]:
        """Return the JSON of an answer, given what each library says."""
        answers = {name: page.results for name, page in pages.items()}
        offset = asked.offset or 0
        if len(pages) == 1:
            found = merged(answers, asked.k)
        else:
            found = merged(answers, offset + asked.k)[offset:]
        fields = answer_fields(answers, found, offset)
        totals = [page.total for page in pages.values()]
        if asked.offset is not None and None not in totals:
            fields["total"] = sum(total or 0 for total in totals)
        return named(fields, asked.like, asked.dislike)

    async def _each(
        self, libraries: list[Served], ask: Callable[[Served], Awaitable[_Given]]
    ) -> dict[str, _Given]:
        async def one(served: Served) -> _Given:
            return await ask(served)

        found = await asyncio.gather(*(one(served) for served in libraries))
        return {served.name: results for served, results in zip(libraries, found, strict=True)}

    def _request(self, asked: SearchParameters, pictures: Sequence[Image.Image]) -> Request:
        words, _ = split_inline(asked.q) if asked.q else (None, None)
        liked = [located_item(self._shelf, reference) for reference in asked.like]
        images: list[Any] = [*(file_of(served, item) for served, item in liked), *pictures]
        to_pictures = asked.to is Target.IMAGES
        return {
            "text": ([words] if words else []) + asked.also or None,
            "image": images or None,
            "weights": asked.weight or None,
            "fusion": asked.fusion,
            "to": asked.to,
            "k": asked.k,
            "where": self._filter(asked),
            "sort": asked.sort,
            "descending": asked.reverse,
            "cut": None if asked.all else CUT,
            "group": asked.group and to_pictures,
            "diversity": asked.diversity if to_pictures else 0.0,
            "words": asked.words,
            "rerank": asked.rerank,
            "rerank_depth": asked.rerank_depth,
            "rerank_budget_ms": asked.rerank_budget_ms,
        }

    def _filter(self, asked: SearchParameters) -> Filter | None:
        inline = split_inline(asked.q)[1] if asked.q else None
        return Filter.all_of([inline, None if asked.where is None else parse_where(asked.where)])

    def _items(self, served: Served, references: Sequence[str]) -> list[Any]:
        """Return what names pictures to a library: ids of its own, files of others."""
        located = [located_item(self._shelf, reference) for reference in references]
        return [item.id if home is served else file_of(home, item) for home, item in located]

    def _check(self, asked: SearchParameters) -> None:
        limits = self._settings.limits
        self._check_count(asked.k)
        if (asked.offset or 0) + asked.k > limits.depth:
            raise QueryError(f"No more than {limits.depth:,} answers can be had of one question.")
        if any(len(text) > limits.text for text in (asked.q or "", asked.where or "", *asked.also)):
            raise QueryError(f"A text of more than {limits.text:,} characters is not taken here.")
        if len(asked.also) + len(asked.like) + len(asked.dislike) > PARTS:
            raise QueryError(f"A question has no more than {PARTS} parts here.")
        if asked.rerank is not None and asked.rerank not in self._settings.rerankers:
            names = ", ".join(self._settings.rerankers) or "none"
            raise QueryError(
                f"The reranker {asked.rerank!r} is not served here. There is: {names}."
            )

    def _check_count(self, k: int) -> None:
        most = self._settings.limits.answers
        if k > most:
            raise QueryError(
                f"k is at most {most} here, not {k}; further answers come with `offset`."
            )


def answer_fields(
    answers: dict[str, Results], found: Sequence[Found], offset: int
) -> dict[str, Any]:
    """Return the object of `query --json`, of one library or of several."""
    first = next(iter(answers.values()))
    every = list(answers.values())
    nearest = [
        (results.nearest.match or 0.0, name, results.nearest)
        for name, results in answers.items()
        if results.nearest is not None
    ]
    fields = first.to_json()
    fields |= {
        "library": next(iter(answers)) if len(answers) == 1 else None,
        "libraries": list(answers),
        "model": ", ".join(dict.fromkeys(results.model for results in every)),
        "search": "exact" if all(results.exact for results in every) else "approximate",
        "recall": min((r.recall for r in every if r.recall is not None), default=None),
        "took_ms": round(max(results.took_ms for results in every), 2),
        "considered": sum(results.considered for results in every),
        "nearest": None,
        "offset": offset,
        "total": None,
        "results": [_hit_fields(each.library, each.hit, each.rank) for each in found],
    }
    if not found and nearest:
        _, name, hit = max(nearest, key=lambda each: each[0])
        fields["nearest"] = _hit_fields(name, hit, hit.rank)
    return fields


def _hit_fields(library: str, hit: Hit, rank: int) -> dict[str, Any]:
    fields = hit.to_json() | {"rank": rank, "library": library, "id": hit.id}
    if hit.others:
        fields["group"]["ids"] = list(hit.other_ids)
    if hit.match is not None:
        fields["confidence"] = confidence(hit.match)
    return fields
