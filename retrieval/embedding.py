"""Files and captions through an encoder, while others read ahead and write behind.

    reading threads → one thread that embeds, batch after batch → the caller, who writes

Nothing waits for what it does not need: the next batch is embedded while this one is written. The
order is that of the files, and what lies between the threads is bounded.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Container, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from mmsearch.retrieval.pace import Pace, Stage
from mmsearch.retrieval.reading import PictureReader, Read, Unread
from mmsearch.retrieval.workers import Workers

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from mmsearch.retrieval.catalog import Catalog, Transaction
    from mmsearch.retrieval.encoders import Encoder
    from mmsearch.retrieval.rerankers.bundled import BundledReranker
    from mmsearch.retrieval.scan import FoundFile

__all__ = ["Embedded", "Progress", "embed_captions", "embed_files"]

BATCHES_BEHIND = 2
"""Embedded and not yet taken: one while the caller writes, and one that is being made."""

CAPTIONS_PER_COMMIT = 512


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, for whoever shows it.

    Attributes:
        stage: `scan`, `pictures`, `describe`, `captions`, `names` (of things, that answers are
            weighed by) or `index`.
        done: how many of `total` are finished in this stage.
        remark: what holds the run up at present, in a few words; empty where there is nothing to
            say.
    """

    stage: str
    done: int
    total: int
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Embedded:
    """A batch of files that went through the encoder.

    Attributes:
        items: what became of each file, without its pixels.
        vectors: `float32[dim]` by path, of those whose content was not known.
        regions: of the same, what rerankers are spared later, by the hash of their content.
    """

    items: list[Read | Unread]
    vectors: dict[str, NDArray[np.float32]]
    regions: dict[bytes, NDArray[np.uint8]]


def embed_files(
    root: Path,
    files: Mapping[str, FoundFile],
    encoder: Encoder,
    *,
    contents: Container[bytes],
    pace: Pace,
    workers: Workers | None = None,
    reranker: BundledReranker | None = None,
) -> Generator[Embedded, None, None]:
    """Yield what became of `files`, in their order, an encoder's batch at a time.

    Reading and embedding go on in other threads while the caller holds a batch. They have ended
    when this generator has, however it ends.

    Args:
        root: what the paths of `files` are relative to.
        files: what to read.
        encoder: embeds the pictures, in one thread of its own.
        contents: hashes of what is not decoded, because its vector is known.
        pace: hears where the time goes.
        workers: says how many threads read.
        reranker: says what is kept of pictures beside their vectors, in the same pass.
    """
    workers = workers or Workers()
    reader = PictureReader(root, encoder, contents, pace=pace, workers=workers)
    batches = reader.batches(files)
    idle_since = time.perf_counter()

    def step() -> Embedded | None:
        nonlocal idle_since
        pace.waited(Stage.WRITE, time.perf_counter() - idle_since)
        pace.workers = workers.size
        with pace.in_the_way(Stage.DECODE):
            batch = next(batches, None)
        embedded = None if batch is None else _embed(batch, encoder, pace, reranker)
        workers.finished(0 if batch is None else len(batch))
        idle_since = time.perf_counter()
        return embedded

    with ThreadPoolExecutor(1, "encode") as pool:
        ahead: deque[Future[Embedded | None]] = deque()
        try:
            ahead.extend(pool.submit(step) for _ in range(BATCHES_BEHIND))
            while (embedded := ahead.popleft().result()) is not None:
                ahead.append(pool.submit(step))
                yield embedded
        finally:
            reader.stop()
            pool.shutdown(cancel_futures=True)
            batches.close()


def _embed(
    batch: list[Read | Unread], encoder: Encoder, pace: Pace, reranker: BundledReranker | None
) -> Embedded:
    fresh = {
        item.picture.path: item.pixels
        for item in batch
        if isinstance(item, Read) and item.pixels is not None
    }
    regions: dict[bytes, NDArray[np.uint8]] = {}
    with pace.alone(Stage.ENCODE):
        if reranker is None or not fresh:
            vectors = encoder.encode_pixels(list(fresh.values()))
        else:
            vectors, seen = reranker.look(list(fresh.values()))
            contents = (
                item.picture.sha256
                for item in batch
                if isinstance(item, Read) and item.picture.path in fresh
            )
            regions = dict(zip(contents, seen, strict=True))
    kept = [replace(item, pixels=None) if isinstance(item, Read) else item for item in batch]
    return Embedded(kept, dict(zip(fresh, vectors, strict=True)), regions)


def embed_captions(
    catalog: Catalog,
    encoder: Encoder,
    encoder_id: int,
    *,
    pace: Pace,
    progress: Callable[[Progress], None],
) -> None:
    """Embed and store every caption of a library that this encoder has not seen."""
    total = catalog.count_captions_to_embed(encoder_id)
    done = 0

    def lacking() -> list[tuple[int, str]]:
        # Runs at the same time begin at different places.
        skip = int(catalog.beginning * max(0, total - done))
        rows = catalog.captions_to_embed(encoder_id, CAPTIONS_PER_COMMIT, skip=skip)
        if rows or not skip:
            return rows
        return catalog.captions_to_embed(encoder_id, CAPTIONS_PER_COMMIT)

    while rows := catalog.patiently(lacking):
        progress(Progress("captions", done, total, pace.remark()))
        with pace.alone(Stage.ENCODE):
            vectors = encoder.encode_texts([text for _, text in rows])
        ids = [id_ for id_, _ in rows]
        with pace.alone(Stage.WRITE):
            catalog.written(partial(_store, encoder_id=encoder_id, ids=ids, vectors=vectors))
        done += len(rows)
    progress(Progress("captions", done, total, pace.remark()))


def _store(
    transaction: Transaction, *, encoder_id: int, ids: list[int], vectors: NDArray[np.float32]
) -> None:
    transaction.put_caption_vectors(encoder_id, ids, vectors)
