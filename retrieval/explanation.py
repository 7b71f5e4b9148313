"""Why a picture matches a text: where, by which words, and what would have matched better."""

from __future__ import annotations

import hashlib
import importlib
import math
import time
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch.errors import MediaError, QueryError
from mmsearch.retrieval import logic
from mmsearch.retrieval.confidence import CUT, confidence
from mmsearch.retrieval.containers import located, read_inside
from mmsearch.retrieval.encoders import DEFAULT_MODEL, load_encoder
from mmsearch.retrieval.filters.tree import Column, OneOf
from mmsearch.retrieval.heat_map import grid_of, laid_back, painted, scaled, windows
from mmsearch.retrieval.media import load_rgb, open_picture, read_bytes, upright_rgb
from mmsearch.retrieval.schema import Hit, Target
from mmsearch.retrieval.tags import background
from mmsearch.retrieval.word_shares import word_shares

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from mmsearch.retrieval.adapter import Adapter
    from mmsearch.retrieval.encoders import Encoder
    from mmsearch.retrieval.engine import SearchEngine
    from mmsearch.retrieval.question import ImageSource
    from mmsearch.retrieval.state import State

__all__ = [
    "Explanation",
    "FittingCaption",
    "Method",
    "Verdict",
    "WordShare",
    "explain",
    "explain_in",
    "heat_of",
]

DETAIL = 1_024
"""Shortest side, in pixels, that decoding keeps: a third of it is what the smallest window sees."""


class Method(StrEnum):
    """How the map is made."""

    REGIONS = "regions"
    """Vectors of regions, from one pass, compared with the text: the bundled encoder, and models
    trained from it. See `encoders.regions`."""

    GRADIENT = "gradient"
    """The gradient of the score at the cells of the image tower: models of torch, and all that
    come from one. See `encoders.gradients`."""

    WINDOWS = "windows"
    """Some sixty windows of the picture are embedded and compared with the text: any encoder."""


@dataclass(frozen=True, slots=True)
class WordShare:
    """A word of the query and what it adds to the score (below 0: takes from it)."""

    word: str
    share: float

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {"word": self.word, "share": round(self.share, 4)}


@dataclass(frozen=True, slots=True)
class FittingCaption:
    """A caption of the library that fits the picture.

    Attributes:
        text: the caption.
        score: cosine similarity in [-1, 1] with the picture.
        path: the picture it belongs to, in the library.
        own: whether that is the picture that is explained, or a copy of it.
        better: whether it fits the picture better than the query does.
    """

    text: str
    score: float
    path: str
    own: bool
    better: bool

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "caption": self.text,
            "score": self.score,
            "path": self.path,
            "own": self.own,
            "better": self.better,
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """What calibration says, see `retrieval.calibration`.

    Attributes:
        match: the probability (0 to 1) that the picture matches, by what it looks like.
        cut: what the best answer needs to be one.
        deviations: how far the score lies beyond the query's usual scores in the library, in their
            deviations.
        chance: how far the best of as many pictures would lie by chance.
        beyond_names: how far it lies beyond the names of a background that fit the picture best,
            in deviations of the scores of such names.
        pictures: how many the library has.
    """

    match: float
    cut: float
    deviations: float
    chance: float
    beyond_names: float
    pictures: int

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "p_match": round(self.match, 4),
            "in_words": confidence(self.match),
            "cut": self.cut,
            "deviations": round(self.deviations, 3),
            "chance": round(self.chance, 3),
            "beyond_names": round(self.beyond_names, 3),
            "pictures": self.pictures,
        }


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """Why a picture matches a text, or does not.

    Attributes:
        image: the picture's name, as it was given.
        text: the query.
        model: the encoder.
        method: how the map was made.
        score: cosine similarity in [-1, 1] of picture and text.
        usual: what a thousand names that have nothing to do with the picture score on average.
        heat: `float32[h, w]` in [0, 1], upright like the picture, 32 cells along its longer side:
            1 where it matches best, 0 where least. It compares places of this picture, and says
            nothing of how well the whole matches.
        picture: what was explained, upright RGB.
        words: of the query in its order; shares add up to `score - usual`.
        library: the folder of the library that was asked; None without one.
        verdict: None without a library.
        captions: of the library, best first; the picture's own come before all others.
        took_ms: milliseconds.
    """

    image: str
    text: str
    model: str
    method: Method
    score: float
    usual: float
    heat: NDArray[np.float32]
    picture: Image.Image = field(repr=False)
    words: tuple[WordShare, ...]
    library: Path | None = None
    verdict: Verdict | None = None
    captions: tuple[FittingCaption, ...] = ()
    took_ms: float = 0.0
    schema: int = field(default=1, init=False)

    @property
    def match(self) -> float | None:
        """The probability (0 to 1) that the picture matches; None without a library."""
        return None if self.verdict is None else self.verdict.match

    @property
    def place(self) -> tuple[float, float]:
        """Where it matches best, as shares of the picture's width and height."""
        row, column = np.unravel_index(int(self.heat.argmax()), self.heat.shape)
        rows, columns = self.heat.shape
        return (float(column) + 0.5) / columns, (float(row) + 0.5) / rows

    def to_json(self) -> dict[str, Any]:
        """Return the object that `explain --json` prints; the map has three digits."""
        rows, columns = self.heat.shape
        return {
            "schema": self.schema,
            "image": self.image,
            "query": self.text,
            "library": None if self.library is None else str(self.library),
            "model": self.model,
            "method": self.method.value,
            "score": self.score,
            "usual": self.usual,
            "words": [word.to_json() for word in self.words],
            "calibration": None if self.verdict is None else self.verdict.to_json(),
            "captions": [caption.to_json() for caption in self.captions],
            "heat": {
                "place": [round(share, 4) for share in self.place],
                "rows": rows,
                "columns": columns,
                "values": [[round(value, 3) for value in row] for row in self.heat.tolist()],
            },
            "took_ms": round(self.took_ms, 2),
        }


def explain(
    image: ImageSource,
    text: str,
    *,
    model: str | Path | Encoder = DEFAULT_MODEL,
    method: Method | str | None = None,
) -> Explanation:
    """Say where a picture matches a text and which words pulled, without a library.

    Probabilities and captions need one: `mmsearch.open(FOLDER).explain(image, text)`.

    Args:
        image: a path, also one into a tar or Parquet file, or a Pillow image.
        text: words that describe a picture, without operators.
        model: the encoder.
        method: how the map is made, see `Method`; by default the first that is at hand.

    Raises:
        QueryError: the text is empty or has operators, the picture cannot be read, or there is no
            such method.
        ModelError: the encoder cannot be had, or has no model of torch for a gradient.
        MissingExtra: a gradient without the extra `models`.
    """
    started = time.perf_counter()
    asked, how = _checked(text), _method(method)
    encoder = load_encoder(model, asking=True)
    picture = _Picture.of(image, None)
    own = encoder.encode_images([picture.pixels])
    return _explained(picture, asked, how, encoder, None, background(encoder), own, started)


def explain_in(
    engine: SearchEngine,
    state: State,
    image: ImageSource,
    text: str,
    method: Method | str | None,
    k: int,
) -> Explanation:
    """Do what `SearchEngine.explain` says, given its state of the pictures' index."""
    started = time.perf_counter()
    asked, how = _checked(text), _method(method)
    if k < 1:
        raise QueryError(f"k must be at least 1, not {k}.")
    encoder, library = state.encoder, engine.library
    picture = _Picture.of(image, library.root)
    ids = picture.ids(state)
    _, stored = state.vectors(np.array(sorted(ids), dtype=np.int64))
    # What is indexed is judged by its stored vector, so that scores are those of a query.
    own = stored[:1] if len(stored) else encoder.encode_images([picture.pixels])
    calibration = state.calibration
    if calibration is None:
        names = background(encoder)
        names = names if state.adapter is None else state.adapter.apply(names)
    else:
        names = calibration.background
    found = _explained(picture, asked, how, encoder, state.adapter, names, own, started)
    verdict = None
    if calibration is not None:
        query = _embedded(encoder, state.adapter, [asked])
        scores = (own @ query[0]).astype(np.float64)
        chance = math.sqrt(2 * math.log(max(calibration.size, 2)))
        evidence = calibration.evidence(query, scores, own)[0]
        verdict = Verdict(
            match=float(calibration.match(query, scores, own)[0]),
            cut=CUT,
            deviations=float(evidence[0]) + chance,
            chance=chance,
            beyond_names=float(evidence[1]),
            pictures=calibration.size,
        )
    return replace(
        found,
        library=library.root,
        verdict=verdict,
        captions=_captions(engine, picture, ids, found.score, k),
        took_ms=(time.perf_counter() - started) * 1000,
    )


def heat_of(
    encoder: Encoder,
    picture: Image.Image,
    query: NDArray[np.float32],
    names: NDArray[np.float32],
    method: Method | None = None,
) -> tuple[NDArray[np.float32], Method]:
    """Return `float32[h, w]` in [0, 1], where an upright RGB picture matches, and how it was made.

    Args:
        encoder: embeds regions or windows, or comes from a model that has a gradient.
        picture: large enough that a third of its shorter side can be seen.
        query: `float32[dim]`, a unit vector.
        names: `float32[b, dim]`, unit rows, of texts that have nothing to do with the picture.
        method: see `Method`; by default the first that costs no loading of another model.

    Raises:
        QueryError: the encoder knows no regions.
        ModelError: there is no model for a gradient.
        MissingExtra: a gradient without the extra `models`.
    """
    grid = grid_of(*picture.size)
    if method in {None, Method.REGIONS}:
        found = encoder.encode_regions(picture)
        if found is not None:
            regions, seen = found
            count = len(regions) + 1
            steps = [(i / count, (i + 2) / count) for i in range(count - 1)]
            boxes = [(left, top, right, bottom) for top, bottom in steps for left, right in steps]
            cells = painted(boxes, (regions @ query).ravel(), (count, count))
            return scaled(laid_back(cells, seen, grid)), Method.REGIONS
        if method is not None:
            raise QueryError(
                f"{encoder.spec.label} does not know the regions of a picture. Make the map by "
                f"{Method.WINDOWS} or by {Method.GRADIENT}."
            )
    # With torch at hand its model is, too; else only who asks for it waits for it to load.
    if method is Method.GRADIENT or (method is None and encoder.differentiable):
        # Named in a text, not imported: what only asks must never load torch.
        gradients = importlib.import_module("mmsearch.retrieval.encoders.gradients")
        model = gradients.model_of(encoder)
        # Not what any text would find: a picture's most telling places fit them all.
        direction = query - names.mean(axis=0)
        cells = gradients.gradient_map(model, model.preprocess(picture), direction)
        seen = model.preprocess.seen(*picture.size)
        return scaled(laid_back(cells, seen, grid)), Method.GRADIENT
    width, height = picture.size
    boxes = windows(width, height)
    cut = [
        picture.crop((round(a * width), round(b * height), round(c * width), round(d * height)))
        for a, b, c, d in boxes
    ]
    return scaled(painted(boxes, encoder.encode_images(cut) @ query, grid)), Method.WINDOWS


def _explained(
    picture: _Picture,
    text: str,
    method: Method | None,
    encoder: Encoder,
    adapter: Adapter | None,
    names: NDArray[np.float32],
    own: NDArray[np.float32],
    started: float,
) -> Explanation:
    """Return what needs no library, given the picture's vector `own`, `float32[1, dim]`."""
    query = _embedded(encoder, adapter, [text])[0]
    heat, how = heat_of(encoder, picture.pixels, query, names, method)
    usual = float((names @ own[0]).mean())
    words = text.split()
    shares = word_shares(words, lambda some: _embedded(encoder, adapter, some) @ own[0], usual)
    return Explanation(
        image=picture.name,
        text=text,
        model=encoder.spec.label,
        method=how,
        score=float(query @ own[0]),
        usual=usual,
        heat=heat,
        picture=picture.pixels,
        words=tuple(map(WordShare, words, shares)),
        took_ms=(time.perf_counter() - started) * 1000,
    )


def _captions(
    engine: SearchEngine, picture: _Picture, ids: set[int], score: float, k: int
) -> tuple[FittingCaption, ...]:
    """Return up to `k` of the picture's own captions, then up to `k` of others that fit better."""
    catalog = engine.library.catalog
    paths = tuple(hit.path for hit in catalog.file_hits([(id_, 0.0) for id_ in sorted(ids)]))
    own: dict[str, Hit] = {}
    if paths:
        mine = engine.search(
            image=picture.pixels, to=Target.CAPTIONS, k=k, where=OneOf(Column.PATH, paths)
        )
        own = {hit.caption or "": hit for hit in reversed(mine.hits)}
    found = engine.search(image=picture.pixels, to=Target.CAPTIONS, k=2 * k + len(own))
    others: dict[str, Hit] = {}
    for hit in found.hits:
        if hit.id not in ids and hit.caption not in own and hit.score > score:
            others.setdefault(hit.caption or "", hit)
    told = [*reversed(own.values()), *list(others.values())[:k]]
    return tuple(
        FittingCaption(hit.caption or "", hit.score, hit.path, hit.id in ids, hit.score > score)
        for hit in told
    )


def _checked(text: str) -> str:
    """Return the text of a query that is one concept.

    Raises:
        QueryError: it is none.
    """
    if not text.strip():
        raise QueryError('The query is empty. Describe a picture: "a dog on a beach".')
    expression = logic.parse(text)
    if expression is not None:
        first = logic.concepts(expression)[0].text
        raise QueryError(
            f'AND, OR and NOT ask several things at once. Explain one of them: "{first}".'
        )
    return " ".join(text.split())


def _method(method: Method | str | None) -> Method | None:
    try:
        return None if method is None else Method(method)
    except ValueError:
        names = ", ".join(f"'{each.value}'" for each in Method)
        raise QueryError(f"'method' is one of {names}, not {method!r}.") from None


def _embedded(encoder: Encoder, adapter: Adapter | None, texts: list[str]) -> NDArray[np.float32]:
    """Return `float32[n, dim]`, texts as the library asks with them."""
    vectors = encoder.encode_texts(texts)
    return vectors if adapter is None else adapter.apply(vectors)


@dataclass(frozen=True, slots=True)
class _Picture:
    """What is explained.

    Attributes:
        name: as it was given.
        pixels: upright RGB.
        sha256: of the file's content; None of a picture in memory.
    """

    name: str
    pixels: Image.Image
    sha256: bytes | None

    @classmethod
    def of(cls, image: ImageSource, root: Path | None) -> _Picture:
        """Read a picture; a path may lead from here on or from the library's `root` on."""
        if not isinstance(image, (str, Path)):
            return cls(str(getattr(image, "filename", None) or image), load_rgb(image), None)
        path = Path(image) if root is None else located(root, Path(image))
        try:
            inside = read_inside(path)
            if inside is None and not path.exists():
                beside = "" if root is None else f", nor in the library at {root}"
                raise QueryError(
                    f"There is no picture {image} here{beside}. Give the path of a file."
                )
            content = read_bytes(path) if inside is None else inside
            pixels = upright_rgb(open_picture(content), at_least=DETAIL)
        except MediaError as error:
            raise QueryError(f"The picture {image} cannot be used: {error}.") from error
        return cls(str(image), pixels, hashlib.sha256(content).digest())

    def ids(self, state: State) -> set[int]:
        """Return the ids of this picture, and of copies of it, in the library."""
        return set() if self.sha256 is None else set(state.catalog.files_with(self.sha256))
