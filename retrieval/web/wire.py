"""What travels: requests and answers of API version 1, typed for the OpenAPI document."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field

from mmsearch.retrieval.schema import Fusion, SortKey, Strategy, Target

__all__ = [
    "REFERENCE",
    "Answer",
    "Explained",
    "ExportForm",
    "Failure",
    "Health",
    "IndexRequest",
    "Indexing",
    "Item",
    "ItemName",
    "LibraryStatus",
    "RecommendRequest",
    "SearchForm",
    "SearchParameters",
    "SimilarForm",
    "SimilarParameters",
    "Status",
]

REFERENCE = r"^[^/]+/[0-9]{1,18}$"
ItemName = Annotated[
    str,
    Field(
        description="A picture of a library: `NAME/ID`, as answers have it in `library` and `id`.",
        pattern=REFERENCE,
    ),
]
# In JSON `false` is no number, and `"10"` is none; in an address everything is text.
Number = Annotated[float, Field(strict=True)]
Whole = Annotated[int, Field(strict=True)]
Flag = Annotated[bool, Field(strict=True)]


class Parameters(BaseModel):
    """What every request has in common: what is not known is refused."""

    model_config = ConfigDict(extra="forbid")


class Paged(Parameters):
    """Which answers, and of which libraries."""

    k: int = Field(10, ge=1, description="How many answers.")
    offset: int | None = Field(
        None,
        ge=0,
        description="Skip as many answers. With it, even 0, answers are those of one long list "
        "that is kept, so that pages fit together. The first 500 are grouped and spread as asked "
        "(50, or `rerank_depth`, are reranked); what follows has the order of vectors alone. "
        "Answers to words that are put in another order with `sort` end after 1,000.",
    )
    library: list[str] = Field(
        default_factory=list, description="Names of libraries; all of them if none is given."
    )
    where: str | None = Field(
        None, description="Only pictures like this: `taken >= '2023-06' AND width > height`."
    )


class SearchParameters(Paged):
    """A question, as `mmsearch query` takes it."""

    q: str | None = Field(
        None,
        description="Words that describe the picture, with AND, OR, NOT, and filters like "
        "`after:2023-06`.",
    )
    also: list[str] = Field(
        default_factory=list, description="More words that count by themselves."
    )
    like: list[ItemName] = Field(
        default_factory=list,
        description="Pictures of the libraries to ask with, each `NAME/ID`: more like these.",
    )
    dislike: list[ItemName] = Field(
        default_factory=list,
        description="Pictures, each `NAME/ID`, that are left out; where only pictures are asked "
        "with, answers turn away from them.",
    )
    weight: list[float] = Field(
        default_factory=list,
        description="How much each part counts: `q`, each `also`, `like` and `image`.",
    )
    fusion: Fusion = Field(Fusion.EARLY, description="How several parts become one answer.")
    to: Target = Field(Target.IMAGES, description="Look for images or for captions.")
    sort: SortKey | None = Field(None, description="Order what matches by this.")
    reverse: bool = Field(False, description="With `sort`: the greatest or latest first.")
    all: bool = Field(False, description="Answer with the nearest even where nothing matches.")
    group: bool = Field(True, description="Count near-duplicates and bursts as one answer.")
    diversity: float = Field(0.0, ge=0, le=1, description="How different answers shall be.")
    words: bool = Field(True, description="Count words in captions and names as well.")
    rerank: str | None = Field(None, description="Read the best again; `fast` comes with mmsearch.")
    rerank_depth: int | None = Field(None, ge=1, le=1000, description="How many are read again.")
    rerank_budget_ms: float | None = Field(
        None, gt=0, description="The time that may take; what is left keeps its order."
    )


class SearchForm(SearchParameters):
    """The same with pictures."""

    image: list[UploadFile] = Field(
        default_factory=list, description="Pictures to ask with, instead of words or beside them."
    )


class SimilarParameters(Parameters):
    """More like one picture of a library."""

    item: ItemName
    k: int = Field(10, ge=1, description="How many answers.")
    library: list[str] = Field(default_factory=list, description="Names of libraries.")


class SimilarForm(Parameters):
    """More like a picture that is sent."""

    image: UploadFile
    k: int = Field(10, ge=1, description="How many answers.")
    library: list[str] = Field(default_factory=list, description="Names of libraries.")


class Seen(Parameters):
    """A picture that was seen."""

    item: ItemName
    age_days: Number = Field(0.0, ge=0, description="How many days ago.")


class RecommendRequest(Parameters):
    """Somebody's taste, as `SearchEngine.recommend` takes it."""

    library: str | None = Field(None, description="The library; needed where there are several.")
    like: list[ItemName] = Field(default_factory=list, description="Each `NAME/ID`.")
    dislike: list[ItemName] = Field(default_factory=list, description="Each `NAME/ID`.")
    history: list[Seen] = Field(default_factory=list)
    k: Whole = Field(10, ge=1)
    where: str | None = None
    exclude_seen: Flag = True
    diversity: Number = Field(0.0, ge=0, le=1)
    strategy: Strategy = Strategy.AVERAGE
    half_life_days: Number = Field(30.0, gt=0)


class ExportForm(Parameters):
    """Pictures to take away."""

    items: list[str] = Field(
        min_length=1,
        description="Pictures in their order, each `NAME/ID`; several may stand in one field, with "
        "commas between them.",
    )
    form: Literal["zip", "csv", "json", "html"] = Field(
        description="`zip`: the files themselves, named by rank. `html`: a contact sheet. `csv`, "
        "`json`: what is known of them."
    )


class IndexRequest(Parameters):
    """What shall be indexed again."""

    library: str = Field(description="The library's name.")


class Indexed(BaseModel):
    """How far the indexing of a library is, and what the last run of this server did."""

    library: str
    running: bool
    stage: str | None = Field(
        description="`scan`, `pictures`, `describe`, `captions`, `names` or `index`."
    )
    done: int
    total: int
    remark: str = Field(description="What holds it up at present; may be empty.")
    failure: str | None = Field(description="Why the last run failed.")
    report: dict[str, Any] | None = Field(description="The object of `index --json`.")


class Indexing(BaseModel):
    """Indexing of every library."""

    schema_: int = Field(1, alias="schema")
    libraries: list[Indexed]


class Group(BaseModel):
    """Near-duplicates that count as one answer."""

    size: int
    others: list[str]
    ids: list[int | None] = Field(
        default_factory=list, description="Their keys, in the order of `others`."
    )


class Answered(BaseModel):
    """One answer: the fields of `query --json`, and where to get the picture."""

    rank: int
    library: str = Field(description="The library's name.")
    id: int = Field(description="The picture's key there: `/api/v1/items/LIBRARY/ID`.")
    path: str
    score: float | None
    p_match: float | None = None
    confidence: str | None = Field(
        None, description="`very likely`, `likely`, `maybe`, `unlikely`."
    )
    rerank_score: float | None = None
    first_rank: int | None = None
    group: Group | None = None
    caption: str | None = None
    taken: str | None
    width: int | None
    height: int | None


class Reranked(BaseModel):
    """What a reranker did."""

    model: str
    depth: int
    reranked: int
    late: int
    unreadable: int
    budget_ms: float | None
    took_ms: float


class Answer(BaseModel):
    """The object of `query --json`; `libraries` says what each library contributed."""

    schema_: int = Field(1, alias="schema")
    query: Any
    to: Target
    library: str | None = Field(description="The library's name; null where several were asked.")
    libraries: list[str]
    model: str
    search: Literal["exact", "approximate"]
    recall: float | None
    took_ms: float
    considered: int
    adapter: int | None
    where: str | None
    cut: float | None
    rerank: Reranked | None
    nearest: Answered | None
    offset: int
    total: int | None = Field(
        None, description="With `offset`: how many answers there are, once that is known."
    )
    results: list[Answered]


class Item(BaseModel):
    """A picture of a library."""

    schema_: int = Field(1, alias="schema")
    library: str
    id: int
    path: str
    size: int
    format: str
    width: int
    height: int
    taken: datetime | None
    camera: str | None
    latitude: float | None
    longitude: float | None
    captions: list[str]


class Explained(BaseModel):
    """The object of `explain --json`, with the library's name and the picture's key."""

    model_config = ConfigDict(extra="allow")

    schema_: int = Field(1, alias="schema")
    library: str
    id: int
    query: str
    model: str
    method: str
    score: float
    usual: float
    words: list[dict[str, Any]]
    calibration: dict[str, Any] | None
    captions: list[dict[str, Any]]
    heat: dict[str, Any]


class LibraryStatus(BaseModel):
    """What a library holds: the object of `status --json`, with the library's name."""

    model_config = ConfigDict(extra="allow")

    library: str
    model: str | None
    files: int
    captions: int
    problems: int
    search: Literal["exact", "approximate"]
    generation: int


class Status(BaseModel):
    """What a server serves."""

    schema_: int = Field(1, alias="schema")
    version: str
    libraries: list[LibraryStatus]
    rerankers: list[str]
    allow_indexing: bool


class Health(BaseModel):
    """Whether a server answers."""

    status: Literal["ok"]
    version: str


class Failure(BaseModel):
    """What went wrong, and what to do about it."""

    detail: str
    kind: str = Field(description="A word for programs: `query`, `not-found`, `busy` …")
