"""The second stage: the best answers of the first, read again by a reranker, in its order.

Nothing is dropped. What has a score of the reranker's comes first; what has none, because time was
over or its picture cannot be read, follows as it stood, and so does what was not to be read.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmsearch.errors import MediaError, QueryError
from mmsearch.retrieval.containers import openable, places_of
from mmsearch.retrieval.media import load_rgb, open_picture, upright_rgb
from mmsearch.retrieval.rerankers import DEPTH, Pair, Reranker, View
from mmsearch.retrieval.schema import Reranking, Target
from mmsearch.retrieval.thumbnails import picture_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from numpy.typing import NDArray
    from PIL import Image

    from mmsearch.retrieval.containers import Place
    from mmsearch.retrieval.library import Library
    from mmsearch.retrieval.question import ImageSource, Question
    from mmsearch.retrieval.schema import Hit

__all__ = [
    "KeptRegions",
    "SecondStage",
    "check_rerankable",
    "checked_depth",
    "library_views",
    "source_view",
    "tell_unread",
]

logger = logging.getLogger(__name__)

TOLD = 3
"""Pictures that could not be read which are named: a disk that is not there has thousands."""


class SecondStage:
    """Reranks the answer to one question."""

    def __init__(
        self,
        reranker: Reranker,
        question: Question,
        target: Target,
        library: Library,
        *,
        k: int,
        depth: int | None = None,
        budget_ms: float | None = None,
    ) -> None:
        """Prepare to rerank the answer to one question.

        Args:
            reranker: reads words and picture together.
            question: what `check_rerankable` lets through.
            target: what is looked for.
            library: whose pictures or captions are the answers.
            k: how many answers are wanted.
            depth: how many of the best are read, `DEPTH` if not given, and never fewer than `k`.
            budget_ms: the time for it, see `Reranker.rerank`; all it takes if not given.
        """
        self.depth = max(k, checked_depth(depth))
        self._reranker = reranker
        self._question = question
        self._target = target
        self._library = library
        self._budget_ms = budget_ms
        self._order: dict[tuple[int, str | None], tuple[float, int]] | None = None
        self.told = Reranking(reranker.name, self.depth, budget_ms=budget_ms)

    def reorder(self, hits: Sequence[Hit], named: Collection[int] = ()) -> list[Hit]:
        """Return hits in the new order, those that were read with their score and former rank.

        Pictures are read when this is called first. Called again with more hits it says the same
        of those that it knows, and lets the others follow.

        Args:
            hits: best first.
            named: ids of pictures whose file name is what was asked. They stay ahead, and are not
                read: a reranker knows no names.
        """
        ahead = [hit for hit in hits if hit.id in named]
        others = [hit for hit in hits if hit.id not in named]
        if self._order is None:
            self._order = self._read(others[: self.depth], before=len(ahead))
        scored, unscored = [], []
        for hit in others:
            known = self._order.get((hit.id, hit.caption))
            if known is None:
                unscored.append(hit)
            else:
                scored.append(replace(hit, rerank_score=known[0], first_rank=known[1]))
        # Each has a rank of its own, so that equal scores keep the order of the first stage.
        scored.sort(key=lambda hit: (-(hit.rerank_score or 0.0), hit.first_rank or 0))
        return [*ahead, *scored, *unscored]

    def _read(
        self, hits: Sequence[Hit], before: int
    ) -> dict[tuple[int, str | None], tuple[float, int]]:
        """Return scores and former ranks of those hits that could be read in time."""
        started = time.perf_counter()
        budget_s = None if self._budget_ms is None else self._budget_ms / 1000
        kept = KeptRegions(self._library, self._reranker, [hit.id for hit in hits])
        pairs = self._pairs(hits, kept)
        found = self._reranker.rerank(pairs, budget_s=budget_s)
        tell_unread(found.unread)
        self.told = replace(
            self.told,
            reranked=found.count,
            late=found.late,
            unreadable=len(hits) - found.count - found.late,
            took_ms=(time.perf_counter() - started) * 1000,
        )
        if self._target is Target.IMAGES:
            kept.keep(pair.view for pair in pairs)
        return {
            (hit.id, hit.caption): (score, before + place)
            for place, (hit, score) in enumerate(zip(hits, found.scores.tolist(), strict=True), 1)
            if np.isfinite(score)
        }

    def _pairs(self, hits: Sequence[Hit], kept: KeptRegions) -> list[Pair]:
        if self._target is Target.IMAGES:
            paths = {hit.id: hit.path for hit in hits}
            views = library_views(self._library.root, paths, kept.found)
            return [Pair(self._question.texts[0], views[hit.id], hit.score) for hit in hits]
        asked = source_view("question", self._question.images[0])
        return [Pair(hit.caption or "", asked, hit.score) for hit in hits]


class KeptRegions:
    """What a library keeps about the parts of pictures for a reranker, so that none is read twice.

    Attributes:
        found: `uint8[bytes]` by picture id, of those that are known.
    """

    def __init__(self, library: Library, reranker: Reranker, ids: Sequence[int]) -> None:
        self.found: dict[int, NDArray[np.uint8]] = {}
        self._store = library.regions
        self._kind = reranker.kind
        self._content: dict[int, bytes] = {}
        if self._kind is not None:
            self._content = library.catalog.contents(ids)
            known = self._store.get(self._kind, list(self._content.values()))
            self.found = {
                id_: known[sha256] for id_, sha256 in self._content.items() if sha256 in known
            }

    def keep(self, views: Iterable[View]) -> None:
        """Keep what a reranker found out about pictures, whose keys are their ids."""
        fresh = {
            self._content[view.key]: view.regions
            for view in views
            if view.regions is not None and view.key in self._content and view.key not in self.found
        }
        if self._kind is not None:
            self._store.put(self._kind, fresh)


def check_rerankable(
    question: Question, target: Target, depth: int | None, budget_ms: float | None
) -> None:
    """Check what a second stage is asked for, before a reranker is loaded.

    Raises:
        QueryError: such a question cannot be reranked, or a number is out of its range.
    """
    texts, images = question.texts, question.images
    of_words = target is Target.IMAGES and len(texts) == 1 and not images
    of_picture = target is Target.CAPTIONS and len(images) == 1 and not texts
    if question.expression is not None or not (of_words or of_picture):
        raise QueryError(
            "A reranker reads one text with each picture, or one picture with each caption: ask "
            "for images with a single text without AND, OR and NOT, or for captions with a single "
            "picture; or leave reranking away."
        )
    checked_depth(depth)
    if budget_ms is not None and not budget_ms >= 0:
        raise QueryError(f"The time for reranking is 0 ms or more, not {budget_ms:g}.")


def checked_depth(depth: int | None) -> int:
    """Return how many answers are reranked: `DEPTH` if nobody says otherwise.

    Raises:
        QueryError: fewer than one.
    """
    if depth is None:
        return DEPTH
    if depth < 1:
        raise QueryError(f"The depth of reranking is at least 1, not {depth}.")
    return depth


def library_views(
    root: Path,
    paths: Mapping[int, str],
    regions: Mapping[int, NDArray[np.uint8]] | None = None,
) -> dict[int, View]:
    """Return pictures of a library as a reranker is given them, by their keys.

    Nothing is opened here. What lies in tar and Parquet files is read there, and each of these is
    listed once.

    Args:
        root: the library's folder.
        paths: by key, relative to it.
        regions: by key, what is stored about pictures, see `View`.
    """
    containers = _Containers(root, list(paths.values()))
    stored = regions or {}

    def opener(path: str) -> Callable[[int], Image.Image]:
        return lambda at_least: containers.open(path, at_least)

    return {key: View(key, opener(path), stored.get(key)) for key, path in paths.items()}


def source_view(key: int | str, source: ImageSource) -> View:
    """Return a file, also one in a container, or a picture in memory as a reranker is given it."""

    def opened(at_least: int) -> Image.Image:
        found = openable(Path(source)) if isinstance(source, (str, Path)) else source
        return load_rgb(found, at_least=at_least)

    return View(key, opened)


class _Containers:
    """Pictures of a library, those in containers found when the first of all is opened."""

    def __init__(self, root: Path, paths: list[str]) -> None:
        self._root = root
        self._paths = paths

    # Two threads that come first both look, and see the same.
    @cached_property
    def _places(self) -> Mapping[str, Place]:
        return places_of(self._root, self._paths)

    def open(self, path: str, at_least: int) -> Image.Image:
        try:
            place = self._places.get(path)
            data = picture_bytes(self._root / path) if place is None else place.read()
            return upright_rgb(open_picture(data), at_least=at_least)
        except MediaError as error:
            raise MediaError(error.kind, f"{path}: {error}") from error


def tell_unread(unread: Sequence[str]) -> None:
    """Name pictures that could not be reranked, the first few of them."""
    for reason in unread[:TOLD]:
        logger.warning("not reranked: %s", reason)
    if len(unread) > TOLD:
        logger.warning("not reranked: … and %d more", len(unread) - TOLD)
