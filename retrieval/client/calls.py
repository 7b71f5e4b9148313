"""What a client can ask, as requests to send and ways to read what comes: nothing is sent here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote

from mmsearch.errors import QueryError
from mmsearch.retrieval.client import answers
from mmsearch.retrieval.client.uploads import Upload, asked_with, item_name
from mmsearch.retrieval.schema import Fusion, Hit, Strategy, Target

if TYPE_CHECKING:
    import httpx

    from mmsearch.retrieval.client.answers import ServedItem
    from mmsearch.retrieval.client.uploads import ItemName, PictureSource
    from mmsearch.retrieval.filters import Filter
    from mmsearch.retrieval.schema import Results, SortKey

__all__ = [
    "Call",
    "SearchOptions",
    "TasteOptions",
    "TextOptions",
    "caption",
    "explain",
    "health",
    "heat",
    "item",
    "original",
    "recommend",
    "search",
    "search_many",
    "similar",
    "status",
    "thumbnail",
]

API = "/api/v1"

_Told = TypeVar("_Told")


@dataclass(frozen=True, slots=True)
class Call(Generic[_Told]):
    """A request, and what reads its answer.

    Attributes:
        method: GET, or POST where something is sent that an address cannot hold.
        path: behind the server's address.
        read: makes of a response what the caller gets.
        fields: names and values: of the address, or of the form where pictures are sent.
        uploads: pictures that are sent.
        body: what is sent as JSON.
    """

    method: Literal["GET", "POST"]
    path: str
    read: Callable[[httpx.Response], _Told]
    fields: tuple[tuple[str, str], ...] = ()
    uploads: tuple[Upload, ...] = ()
    body: dict[str, Any] | None = None


class TextOptions(TypedDict, total=False):
    """What `search_many` takes, as `SearchEngine.search_many` does, and `library`."""

    to: Target | str
    k: int
    rerank: str | None
    rerank_depth: int | None
    rerank_budget_ms: float | None
    library: str | Sequence[str] | None


class SearchOptions(TextOptions, total=False):
    """What `search` takes beside texts, see `search` of this module."""

    image: PictureSource | Sequence[PictureSource] | None
    weights: Sequence[float] | None
    fusion: Fusion | str
    where: str | Filter | None
    sort: SortKey | str | None
    descending: bool
    all: bool
    group: bool
    diversity: float
    words: bool
    offset: int | None
    like: Sequence[ItemName]
    dislike: Sequence[ItemName]


class TasteOptions(TypedDict, total=False):
    """What `recommend` takes beside pictures, see `recommend` of this module."""

    library: str | None
    k: int
    where: str | Filter | None
    exclude_seen: bool
    diversity: float
    strategy: Strategy | str
    half_life: float


def search(
    text: str | Sequence[str] | None = None,
    *,
    image: PictureSource | Sequence[PictureSource] | None = None,
    weights: Sequence[float] | None = None,
    fusion: Fusion | str = Fusion.EARLY,
    to: Target | str = Target.IMAGES,
    k: int = 10,
    where: str | Filter | None = None,
    sort: SortKey | str | None = None,
    descending: bool = False,
    all: bool = True,
    group: bool = False,
    diversity: float = 0.0,
    words: bool = True,
    rerank: str | None = None,
    rerank_depth: int | None = None,
    rerank_budget_ms: float | None = None,
    library: str | Sequence[str] | None = None,
    offset: int | None = None,
    like: Sequence[ItemName] = (),
    dislike: Sequence[ItemName] = (),
) -> Call[Results]:
    """Ask for the pictures, or captions, most similar to words, to pictures or to both.

    What `SearchEngine.search` takes means the same here, with the same defaults.

    Args:
        text: filters in the first (`after:2023-06`) count, as on the command line.
        image: see `uploads.asked_with`.
        weights: of the texts, then of the pictures in `image`, then of those in `like`.
        fusion: as there.
        to: as there.
        k: as there.
        where: as there.
        sort: as there.
        descending: as there.
        all: answer with what is nearest even where nothing matches; without it, answers are cut as
            on the command line.
        group: as there.
        diversity: as there.
        words: as there.
        rerank: the name of a reranker that the server offers.
        rerank_depth: as there.
        rerank_budget_ms: as there.
        library: names of libraries; all that are served if not given.
        offset: skip as many answers; they are then those of one long list, so that pages fit
            together.
        like: more pictures of the server to ask with.
        dislike: pictures of the server that are left out; where only pictures are asked with, the
            answers turn away from them.
    """
    texts = _several(text, str)
    pictures = [asked_with(each) for each in _pictures(image)]
    pictures += [item_name(each) for each in like]
    sent = [each for each in pictures if isinstance(each, Upload)]
    asked: dict[str, Any] = {
        "q": texts[0] if texts else None,
        "also": texts[1:],
        "like": [each for each in pictures if isinstance(each, str)],
        "dislike": [item_name(each) for each in dislike],
        "weight": _in_order(weights, len(texts), pictures),
        "fusion": fusion,
        "to": to,
        "k": k,
        "where": where,
        "sort": sort,
        "reverse": descending,
        "all": all,
        "group": group,
        "diversity": diversity,
        "words": words,
        "rerank": rerank,
        "rerank_depth": rerank_depth,
        "rerank_budget_ms": rerank_budget_ms,
        "library": _several(library, str),
        "offset": offset,
    }
    method: Literal["GET", "POST"] = "POST" if sent else "GET"
    return Call(method, f"{API}/search", answers.results, _fields(asked), tuple(sent))


def search_many(
    texts: Sequence[str],
    *,
    to: Target | str = Target.IMAGES,
    k: int = 10,
    rerank: str | None = None,
    rerank_depth: int | None = None,
    rerank_budget_ms: float | None = None,
    library: str | Sequence[str] | None = None,
) -> list[Call[Results]]:
    """Ask with each of many texts, as `SearchEngine.search_many` does: words in names do not count.

    Filters in a text are words like others here.
    """
    asked = {
        "to": to,
        "k": k,
        "all": True,
        "group": False,
        "words": False,
        "rerank": rerank,
        "rerank_depth": rerank_depth,
        "rerank_budget_ms": rerank_budget_ms,
        "library": _several(library, str),
    }
    if not all(text.strip() for text in texts):
        raise QueryError('A query is empty. Describe a picture: "a dog on a beach".')
    # What stands in `also` is taken as it is.
    return [
        Call("GET", f"{API}/search", answers.results, _fields({"also": [text], **asked}))
        for text in texts
    ]


def similar(
    image: PictureSource, k: int = 10, *, library: str | Sequence[str] | None = None
) -> Call[Results]:
    """Ask for pictures like one; it and its copies are left out."""
    asked = {"k": k, "library": _several(library, str)}
    picture = asked_with(image)
    path = f"{API}/similar"
    if isinstance(picture, str):
        return Call("GET", path, answers.results, _fields({"item": picture, **asked}))
    return Call("POST", path, answers.results, _fields(asked), (picture,))


def caption(
    image: PictureSource,
    k: int = 5,
    *,
    rerank: str | None = None,
    library: str | Sequence[str] | None = None,
) -> Call[Results]:
    """Ask for the captions that fit a picture best."""
    return search(image=image, to=Target.CAPTIONS, k=k, rerank=rerank, library=library)


def recommend(
    like: Sequence[ItemName] = (),
    dislike: Sequence[ItemName] = (),
    history: Sequence[tuple[ItemName, float]] = (),
    *,
    library: str | None = None,
    k: int = 10,
    where: str | Filter | None = None,
    exclude_seen: bool = True,
    diversity: float = 0.0,
    strategy: Strategy | str = Strategy.AVERAGE,
    half_life: float = 30.0,
) -> Call[Results]:
    """Ask what somebody with this taste would like, see `SearchEngine.recommend`.

    Args:
        like: pictures of the server.
        dislike: the same of what is not liked.
        history: the same, with how many days ago each was seen.
        library: whose pictures are recommended; that of all the others if not given, or the only
            one there is.
        k: as there.
        where: as there.
        exclude_seen: as there.
        diversity: as there.
        strategy: as there.
        half_life: as there; no infinity.
    """
    if not math.isfinite(half_life):
        raise QueryError("A server takes no half-life without end; give a great number of days.")
    liked, disliked = [item_name(each) for each in like], [item_name(each) for each in dislike]
    seen = [item_name(each) for each, _ in history]
    homes = {name.rpartition("/")[0] for name in (*liked, *disliked, *seen)}
    if library is None and len(homes) == 1:
        (library,) = homes
    body = {
        "library": library,
        "like": liked,
        "dislike": disliked,
        "history": [
            {"item": name, "age_days": age} for name, (_, age) in zip(seen, history, strict=True)
        ],
        "k": k,
        "where": None if where is None else str(where),
        "exclude_seen": exclude_seen,
        "diversity": diversity,
        "strategy": strategy,
        "half_life_days": half_life,
    }
    return Call("POST", f"{API}/recommend", answers.results, body=body)


def item(name: ItemName) -> Call[ServedItem]:
    """Ask what is known of a picture."""
    return Call("GET", _item_path(name), answers.item)


def thumbnail(name: ItemName, side: int = 320) -> Call[bytes]:
    """Ask for a small upright JPEG whose longer side is at least `side` pixels, if it has them."""
    fields = _fields({"side": side})
    return Call("GET", f"{_item_path(name)}/thumbnail", _content, fields)


def original(name: ItemName) -> Call[bytes]:
    """Ask for the picture's own file."""
    return Call("GET", f"{_item_path(name)}/original", _content)


def explain(name: ItemName, text: str) -> Call[dict[str, Any]]:
    """Ask why a picture matches words: the object of `mmsearch explain --json`."""
    return Call("GET", f"{_item_path(name)}/explain", answers.plain, _fields({"q": text}))


def heat(name: ItemName, text: str, side: int = 640) -> Call[bytes]:
    """Ask for a JPEG of a picture with a map over it of where it matches words."""
    fields = _fields({"q": text, "side": side})
    return Call("GET", f"{_item_path(name)}/heat", _content, fields)


def status() -> Call[dict[str, Any]]:
    """Ask what is served."""
    return Call("GET", f"{API}/status", answers.plain)


def health() -> Call[dict[str, Any]]:
    """Ask whether the server answers; that needs no token."""
    return Call("GET", "/health", answers.plain)


def _content(response: httpx.Response) -> bytes:
    return response.content


def _item_path(item: ItemName) -> str:
    library, _, number = item_name(item).rpartition("/")
    return f"{API}/items/{quote(library, safe='')}/{number}"


def _several(given: Any, single: Any) -> list[Any]:  # noqa: ANN401 (one of a kind, or several)
    if given is None:
        return []
    return [given] if isinstance(given, single) else list(given)


def _pictures(image: PictureSource | Sequence[PictureSource] | None) -> list[PictureSource]:
    # A Pillow image is told without loading Pillow: it is no sequence.
    single = (str, Hit) if isinstance(image, Sequence) else object
    return _several(image, single)


def _in_order(
    weights: Sequence[float] | None, texts: int, pictures: Sequence[str | Upload]
) -> list[float]:
    """Return weights in the server's order: of texts, of its own pictures, of those sent."""
    given = list(weights or ())
    if len(given) != texts + len(pictures):
        return given  # The server says what is wrong with that.
    rest = list(zip(given[texts:], pictures, strict=True))
    own = [weight for weight, picture in rest if isinstance(picture, str)]
    sent = [weight for weight, picture in rest if isinstance(picture, Upload)]
    return [*given[:texts], *own, *sent]


def _fields(asked: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (name, _told(value))
        for name, given in asked.items()
        if given is not None
        for value in (given if isinstance(given, list) else [given])
    )


def _told(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    # Half a character, as a terminal may send it, has no encoding.
    return str(value).encode(errors="replace").decode()
