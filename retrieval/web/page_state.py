"""What the page's address says, and what is asked with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from pydantic import BaseModel, ConfigDict, Field

from mmsearch.errors import QueryError
from mmsearch.retrieval import logic
from mmsearch.retrieval.filters import split_inline
from mmsearch.retrieval.schema import SortKey
from mmsearch.retrieval.web.wire import SearchParameters

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Chip", "PageState"]

FILTERS = {
    "after": ("after", "from"),
    "before": ("before", "before"),
    "camera": ("camera", "camera"),
    "kind": ("ext", "kind"),
    "shape": ("is", "shape"),
    "folder": ("folder", "folder"),
}
"""Fields of the page: the key of the inline filter that each is, and what it is called."""


@dataclass(frozen=True, slots=True)
class Chip:
    """A part of a question.

    Attributes:
        kind: `words`, `like`, `dislike`, `filter`.
        text: in words.
        without: the address of the question without it.
        item: `NAME/ID` of a picture.
    """

    kind: str
    text: str
    without: str
    item: str | None = None


class PageState(BaseModel):
    """All that the page's address holds. What it does not know it leaves alone."""

    model_config = ConfigDict(extra="ignore")

    q: str = ""
    like: list[str] = Field(default_factory=list)
    dislike: list[str] = Field(default_factory=list)
    library: list[str] = Field(default_factory=list)
    after: str = ""
    before: str = ""
    camera: str = ""
    kind: str = ""
    shape: str = ""
    folder: str = ""
    caption: bool = False
    sort: str = ""
    reverse: bool = False
    all: bool = False
    single: bool = Field(False, description="Each picture by itself, near-duplicates too.")
    rerank: str = ""
    open: str = Field("", description="`NAME/ID` of the picture that is looked at.")
    offset: int = Field(0, ge=0)

    def url(self, **changed: object) -> str:
        """Return the address of this state, with some of it changed.

        What is asked anew begins at its first answer, with no picture open.
        """
        known = PageState.model_fields
        fields = self.model_dump(include=set(known)) | {"offset": 0, "open": ""} | changed
        pairs: list[tuple[str, str]] = []
        for name, value in fields.items():
            if isinstance(value, list):
                pairs += [(name, str(each)) for each in value]
            elif value:
                pairs.append((name, "1" if value is True else str(value)))
        return f"/?{urlencode(pairs, errors='replace')}" if pairs else "/"

    def turned(self, item: str, towards: bool) -> str:
        """Return the address of this question turned towards a picture, or away from it."""
        like, dislike = (
            [each for each in items if each != item] for items in (self.like, self.dislike)
        )
        (like if towards else dislike).append(item)
        return self.url(like=like, dislike=dislike)

    @property
    def words(self) -> str:
        """The question without the filters in it.

        Raises:
            QueryError: a filter in it makes no sense.
        """
        return split_inline(self.q)[0].strip()

    @property
    def concepts(self) -> list[str]:
        """What can be explained: the words, or each concept of a question with AND, OR and NOT.

        Raises:
            QueryError: the question cannot be understood.
        """
        words = self.words
        expression = logic.parse(words) if words else None
        if expression is None:
            return [words] if words else []
        return list(dict.fromkeys(each.text for each in logic.concepts(expression)))

    def asked(self, k: int, offset: int, *, with_pictures: bool = False) -> SearchParameters:
        """Return what is asked; where nothing is, all pictures, the latest first.

        Args:
            k: how many answers.
            offset: after how many.
            with_pictures: whether pictures are sent along.

        Raises:
            QueryError: a field has a value that it cannot have.
        """
        inline = " ".join(
            f'{key}:"{value}"'
            for field, (key, _) in FILTERS.items()
            if (value := self._value(field))
        )
        if self.caption:
            inline += " has:caption"
        where = split_inline(inline)[1]
        sort, reverse = self._sort(), self.reverse
        asks = with_pictures or bool(self.words or self.like or self.dislike)
        if sort is None and not asks:
            sort, reverse = SortKey.DATE, True
        return SearchParameters.model_validate(
            {
                "q": self.q.strip() or None,
                "like": self.like,
                "dislike": self.dislike,
                "library": self.library,
                "where": None if where is None else str(where),
                "sort": sort,
                "reverse": reverse,
                "all": self.all,
                "group": not self.single,
                "rerank": self.rerank or None,
                "k": k,
                "offset": offset,
            }
        )

    def chips(self) -> Iterator[Chip]:
        """Yield what the question is made of."""
        if self.q.strip():
            yield Chip("words", self.q.strip(), self.url(q=""))
        for name in ("like", "dislike"):
            items: list[str] = getattr(self, name)
            said = "more like" if name == "like" else "less like"
            for item in items:
                others = [each for each in items if each != item]
                yield Chip(name, said, self.url(**{name: others}), item)
        for field, (_, said) in FILTERS.items():
            if value := self._value(field):
                yield Chip("filter", f"{said} {value}", self.url(**{field: ""}))
        if self.caption:
            yield Chip("filter", "has a caption", self.url(caption=False))
        for name in self.library:
            others = [each for each in self.library if each != name]
            yield Chip("filter", f"in {name}", self.url(library=others))
        yield from self._ways()

    def _ways(self) -> Iterator[Chip]:
        """Yield how it is answered, where that was chosen."""
        if self.sort:
            turned = ", reversed" if self.reverse else ""
            yield Chip("filter", f"by {self.sort}{turned}", self.url(sort="", reverse=False))
        if self.rerank:
            yield Chip("filter", f"reranked by {self.rerank}", self.url(rerank=""))
        if self.all:
            yield Chip("filter", "nearest anyway", self.url(all=False))
        if self.single:
            yield Chip("filter", "no stacks", self.url(single=False))

    def _value(self, field: str) -> str:
        value: str = getattr(self, field)
        # What ends the value of an inline filter has no place within it.
        return value.replace('"', "").strip()

    def _sort(self) -> SortKey | None:
        if not self.sort:
            return None
        try:
            return SortKey(self.sort)
        except ValueError:
            names = ", ".join(SortKey)
            raise QueryError(f"Nothing is sorted by {self.sort!r}; there is: {names}.") from None
