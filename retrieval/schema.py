"""The values that travel between modules and out to callers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from mmsearch.errors import LibraryError

__all__ = [
    "GENERATED",
    "Basis",
    "Caption",
    "EncoderSpec",
    "Fusion",
    "Hit",
    "Picture",
    "Problem",
    "Quantize",
    "Query",
    "QueryPart",
    "Reranking",
    "Results",
    "SortKey",
    "Strategy",
    "Target",
    "TasteQuery",
    "tell_apart",
]


class Target(StrEnum):
    """What a query looks for."""

    IMAGES = "images"
    CAPTIONS = "captions"


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """What makes the vectors of two encoders comparable: all of it equal.

    Attributes:
        kind: what the fingerprint is of: `onnx` of an encoder folder's files, `torch` of the
            weights of a model (whether torch or its export in ONNX computes the vectors).
        name: what the user calls it (`compact`, or the name its folder gives it).
        revision: the encoder's own version.
        weights_sha256: fingerprint of everything learned that vectors depend on.
        preprocessing: the image transform, as canonical JSON.
        dim: length of a vector.
    """

    kind: str
    name: str
    revision: str
    weights_sha256: str
    preprocessing: str
    dim: int

    @property
    def label(self) -> str:
        """Name and revision, for people: `compact@1`."""
        return f"{self.name}@{self.revision}"


class Quantize(StrEnum):
    """Numbers that an ONNX file stores its weights in; those to train on are always whole."""

    NONE = "none"
    FP16 = "fp16"
    INT8 = "int8"


def tell_apart(first: EncoderSpec, second: EncoderSpec) -> tuple[str, str]:
    """Return names for two different encoders, with their fingerprints where names agree."""
    if first.label != second.label:
        return first.label, second.label
    return tuple(f"{spec.label} ({spec.weights_sha256[:8]})" for spec in (first, second))  # type: ignore[return-value]


GENERATED = "model:"
"""How the sources of captions begin that a model wrote; its name and revision follow."""


@dataclass(frozen=True, slots=True)
class Caption:
    """A sentence about a picture and where it was found (`sidecar`, `xmp`, `file:pairs.tsv` …)."""

    text: str
    source: str

    @property
    def generated(self) -> bool:
        """Whether a model wrote it."""
        return self.source.startswith(GENERATED)


@dataclass(frozen=True, slots=True)
class Picture:
    """A file of the library, as its own bytes describe it.

    Attributes:
        path: relative to the library's root, with forward slashes.
        sha256: hash of the whole content.
        width: upright width in pixels.
        height: upright height in pixels.
        orientation: EXIF orientation, 1 (stored upright) to 8.
        taken_at: local time by the camera's clock.
        latitude: degrees, north positive.
        longitude: degrees, east positive.
        sidecars: fingerprint of the files beside it that hold captions.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: bytes
    format: str
    width: int
    height: int
    orientation: int
    taken_at: datetime | None
    latitude: float | None
    longitude: float | None
    camera: str | None
    sidecars: str


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that could not be indexed: not read again until its size or time changes."""

    path: str
    kind: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {"path": self.path, "kind": self.kind, "reason": self.reason}


class Fusion(StrEnum):
    """How the parts of a question become one answer."""

    EARLY = "early"
    """One vector between those of the parts."""

    SCORES = "scores"
    """The mean of the parts' similarities."""

    CALIBRATED = "calibrated"
    """The same of similarities that were brought to one scale, by what the library's scores are."""

    RANKS = "ranks"
    """Reciprocal ranks: how far ahead each part has an answer, whatever its similarity."""

    HYBRID = "hybrid"
    """Reciprocal ranks of the early and the calibrated answer."""


class SortKey(StrEnum):
    """What answers are sorted by; equal ones follow in the order of their paths."""

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


@dataclass(frozen=True, slots=True)
class QueryPart:
    """A part of a question: words, or the name of a picture; `weight` is beside other parts."""

    text: str | None = None
    image: str | None = None
    weight: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """Return one element of `parts`."""
        asked = {"image": self.image} if self.text is None else {"text": self.text}
        return asked | {"weight": self.weight}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> QueryPart:
        """Return what `to_json` told."""
        return cls(fields.get("text"), fields.get("image"), float(fields["weight"]))


@dataclass(frozen=True, slots=True)
class Query:
    """A question: words, pictures or both, and what to look for.

    Attributes:
        parts: what is asked, at least one.
        to: what is looked for.
        fusion: how several parts became one answer; None for a single part.
    """

    parts: tuple[QueryPart, ...]
    to: Target = Target.IMAGES
    fusion: Fusion | None = None

    @property
    def text(self) -> str | None:
        """The words, where they are all that is asked."""
        return self.parts[0].text if len(self.parts) == 1 else None

    @property
    def image(self) -> str | None:
        """The picture's name, where it is all that is asked."""
        return self.parts[0].image if len(self.parts) == 1 else None

    def to_json(self) -> str | dict[str, Any]:
        """Return the words alone, or an object where pictures or several parts are asked about."""
        if self.fusion is not None:
            return {"parts": [part.to_json() for part in self.parts], "fusion": self.fusion}
        return self.text or "" if self.image is None else {"image": self.image}

    @staticmethod
    def from_json(told: str | dict[str, Any], to: Target | str = Target.IMAGES) -> Query:
        """Return the question that `to_json` told, a taste where it is one.

        Args:
            told: the value of `query`.
            to: that of `to`, which stands beside it.
        """
        if isinstance(told, str):
            # Where nothing but a filter was asked there are no words.
            return Query((QueryPart(text=told),) if told else (), Target(to))
        if "image" in told:
            return Query((QueryPart(image=told["image"]),), Target(to))
        if "basis" in told:
            return _taste(told)
        parts = tuple(QueryPart.from_json(part) for part in told["parts"])
        return Query(parts, Target(to), Fusion(told["fusion"]))


class Strategy(StrEnum):
    """How likes and dislikes become one order, see `retrieval.taste`."""

    AVERAGE = "average"
    """By similarity to the middle of what is liked, away from the middle of what is not."""

    BEST_SCORE = "best_score"
    """By similarity to the one liked item that is nearest, unless a disliked one is nearer."""


class Basis(StrEnum):
    """What a recommendation was made from."""

    TASTE = "taste"
    """Likes, dislikes or a history."""

    POPULAR = "popular"
    """None of these, so what is popular."""

    REPRESENTATIVE = "representative"
    """None of these and no popularity either, so a set that stands for everything there is."""


@dataclass(frozen=True, slots=True)
class TasteQuery(Query):
    """A question without words: what would somebody like?

    Attributes:
        like: names of pictures that are liked.
        dislike: names of pictures that are not.
        history: names of pictures that were seen, and how many days ago.
        strategy: how all this became one order.
        half_life: days after which an item of the history counts half.
        diversity: 0 (the most similar) to 1 (the most different), see `retrieval.diversity`.
        basis: what the answer was made from.
        ignored: names in the history that are no pictures of the library.
    """

    parts: tuple[QueryPart, ...] = ()
    like: tuple[str, ...] = ()
    dislike: tuple[str, ...] = ()
    history: tuple[tuple[str, float], ...] = ()
    strategy: Strategy = Strategy.AVERAGE
    half_life: float = 30.0
    diversity: float = 0.0
    basis: Basis = Basis.TASTE
    ignored: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values; a half-life without end is null."""
        return {
            "like": list(self.like),
            "dislike": list(self.dislike),
            "history": [{"item": item, "age_days": age} for item, age in self.history],
            "strategy": self.strategy.value,
            "half_life_days": None if self.half_life == float("inf") else self.half_life,
            "diversity": self.diversity,
            "basis": self.basis.value,
            "ignored": list(self.ignored),
        }


def _taste(told: dict[str, Any]) -> TasteQuery:
    half_life = told["half_life_days"]
    return TasteQuery(
        like=tuple(told["like"]),
        dislike=tuple(told["dislike"]),
        history=tuple((seen["item"], float(seen["age_days"])) for seen in told["history"]),
        strategy=Strategy(told["strategy"]),
        half_life=math.inf if half_life is None else float(half_life),
        diversity=float(told["diversity"]),
        basis=Basis(told["basis"]),
        ignored=tuple(told["ignored"]),
    )


@dataclass(frozen=True, slots=True)
class Hit:
    """One answer.

    Attributes:
        rank: 1 for the best.
        id: the picture's key in the catalog.
        path: relative to the library's root, with forward slashes.
        score: cosine similarity in [-1, 1], higher is better; of a question of several parts, what
            its fusion makes of them, see `retrieval.fusion`; of a recommendation, see
            `retrieval.recommend.Recommendation`.
        caption: the caption that was found, when captions were asked for.
        taken_at: when the picture was taken, by its own metadata (local time).
        width: upright width in pixels.
        height: upright height in pixels.
        match: the probability (0 to 1) that the picture matches, where one text was asked.
        others: paths of near-duplicates and of the same burst, where answers are grouped.
        rerank_score: what a reranker said of it, higher is better, where one read it: comparable
            with those of the same answer only.
        first_rank: its rank, from 1, before that.
        library: the name of the library it is in, where a server answered.
        other_ids: the keys of `others` in the catalog, in their order.
    """

    rank: int
    id: int
    path: str
    score: float
    caption: str | None = None
    taken_at: datetime | None = None
    width: int | None = None
    height: int | None = None
    match: float | None = None
    others: tuple[str, ...] = ()
    rerank_score: float | None = None
    first_rank: int | None = None
    library: str | None = None
    other_ids: tuple[int, ...] = ()

    @property
    def item(self) -> str | None:
        """What names it to the server that answered: `NAME/ID`."""
        return None if self.library is None else f"{self.library}/{self.id}"

    def to_json(self) -> dict[str, Any]:
        """Return one element of `results` in `query --json`."""
        fields: dict[str, Any] = {"rank": self.rank}
        if self.library is not None:
            fields |= {"library": self.library, "id": self.id}
        # Where nothing but a filter was asked there is no score, and JSON has no NaN.
        fields |= {"path": self.path, "score": None if math.isnan(self.score) else self.score}
        if self.match is not None:
            fields["p_match"] = round(self.match, 4)
        if self.rerank_score is not None:
            fields |= {"rerank_score": self.rerank_score, "first_rank": self.first_rank}
        if self.others:
            fields["group"] = {"size": 1 + len(self.others), "others": list(self.others)}
            if self.library is not None:
                fields["group"]["ids"] = list(self.other_ids)
        if self.caption is not None:
            fields["caption"] = self.caption
        return fields | {
            "taken": self.taken_at.isoformat() if self.taken_at else None,
            "width": self.width,
            "height": self.height,
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Hit:
        """Return what `to_json` told; what it left out of the answer of a folder, the id, is 0."""
        taken, score, match = fields["taken"], fields["score"], fields.get("p_match")
        return cls(
            rank=fields["rank"],
            id=fields.get("id", 0),
            path=fields["path"],
            score=math.nan if score is None else float(score),
            caption=fields.get("caption"),
            taken_at=None if taken is None else datetime.fromisoformat(taken),
            width=fields["width"],
            height=fields["height"],
            match=None if match is None else float(match),
            others=tuple(fields.get("group", {}).get("others", ())),
            rerank_score=fields.get("rerank_score"),
            first_rank=fields.get("first_rank"),
            library=fields.get("library"),
            other_ids=tuple(fields.get("group", {}).get("ids", ())),
        )


@dataclass(frozen=True, slots=True)
class Reranking:
    """How a reranker read the best answers of the first stage again.

    Attributes:
        model: the reranker's name, as `load_reranker` takes it.
        depth: how many were to be read, where there are as many.
        reranked: how many have a score of its.
        late: how many have none because time was over.
        unreadable: how many have none because their picture is gone or cannot be read.
        budget_ms: the time it was given; None for all it takes.
        took_ms: the time it took, reading pictures included.
    """

    model: str
    depth: int
    reranked: int = 0
    late: int = 0
    unreadable: int = 0
    budget_ms: float | None = None
    took_ms: float = 0.0

    @property
    def candidates(self) -> int:
        """How many there were to read."""
        return self.reranked + self.late + self.unreadable

    def to_json(self) -> dict[str, Any]:
        """Return the object under `rerank` in `query --json`."""
        return {
            "model": self.model,
            "depth": self.depth,
            "reranked": self.reranked,
            "late": self.late,
            "unreadable": self.unreadable,
            "budget_ms": self.budget_ms,
            "took_ms": round(self.took_ms, 2),
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Reranking:
        """Return what `to_json` told."""
        return cls(**{each.name: fields[each.name] for each in dataclass_fields(cls)})


@dataclass(frozen=True, slots=True)
class Results:
    """The answer to one query.

    Attributes:
        library: the folder that was indexed; None where a server answered, whose folders are not
            here.
        hits: best first.
        exact: whether every candidate was compared; otherwise some may have been missed.
        recall: the share (0 to 1) of the true first ten that the index finds, as measured.
        took_ms: milliseconds from question to answer, embedding the query included.
        considered: how many pictures (or captions) the answer was chosen from.
        adapter: the id of what `tune` learned, where it was applied to the query's text.
        cut: the least probability of the best answer, where one was set.
        nearest: where nothing is above the cut, what comes nearest.
        where: the filter, as `--where` reads it.
        rerank: what a reranker did, where one was asked.
        libraries: where a server answered, the names of the libraries that were asked.
        offset: how many answers come before these, where pages were asked for.
    """

    query: Query
    library: Path | None
    model: str
    hits: tuple[Hit, ...]
    exact: bool
    took_ms: float
    considered: int
    adapter: int | None = None
    recall: float | None = None
    cut: float | None = None
    nearest: Hit | None = None
    where: str | None = None
    rerank: Reranking | None = None
    libraries: tuple[str, ...] = ()
    offset: int = 0
    schema: int = field(default=1, init=False)

    @property
    def title(self) -> str:
        """What people call what was asked: a folder's name, or those of a server's libraries."""
        return ", ".join(self.libraries) if self.library is None else self.library.name

    def file(self, hit: Hit) -> Path:
        """Return the absolute path of a hit's picture.

        Raises:
            LibraryError: it is on a server.
        """
        if self.library is None:
            raise LibraryError(
                f"{hit.path} is on a server. Get it with the client: client.original({hit.item!r})"
            )
        return self.library / hit.path

    def to_json(self) -> dict[str, Any]:
        """Return the object that `query --json` prints."""
        if self.library is None:
            alone = self.libraries[0] if len(self.libraries) == 1 else None
            served = {"libraries": list(self.libraries), "offset": self.offset}
        else:
            alone, served = str(self.library), {}
        return {
            "schema": self.schema,
            "query": self.query.to_json(),
            "to": self.query.to.value,
            "library": alone,
            **served,
            "model": self.model,
            "search": "exact" if self.exact else "approximate",
            "recall": self.recall,
            "took_ms": round(self.took_ms, 2),
            "considered": self.considered,
            "adapter": self.adapter,
            "where": self.where,
            "cut": self.cut,
            "rerank": None if self.rerank is None else self.rerank.to_json(),
            "nearest": None if self.nearest is None else self.nearest.to_json(),
            "results": [hit.to_json() for hit in self.hits],
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Results:
        """Return what `to_json` told, of a folder or of a server."""
        served, rerank, nearest = fields.get("libraries"), fields["rerank"], fields["nearest"]
        return cls(
            query=Query.from_json(fields["query"], fields["to"]),
            library=Path(fields["library"]) if served is None else None,
            model=fields["model"],
            hits=tuple(Hit.from_json(hit) for hit in fields["results"]),
            exact=fields["search"] == "exact",
            took_ms=float(fields["took_ms"]),
            considered=fields["considered"],
            adapter=fields["adapter"],
            recall=fields["recall"],
            cut=fields["cut"],
            nearest=None if nearest is None else Hit.from_json(nearest),
            where=fields["where"],
            rerank=None if rerank is None else Reranking.from_json(rerank),
            libraries=tuple(served or ()),
            offset=fields.get("offset", 0),
        )
