"""Pictures like one picture, without that picture itself."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmsearch.errors import MediaError, QueryError
from mmsearch.retrieval.containers import located, read_inside

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmsearch.retrieval.engine import SearchEngine
    from mmsearch.retrieval.schema import Results

__all__ = ["similar"]


def similar(
    engine: SearchEngine, image: Path | Image, k: int = 10, *, content: bytes | None = None
) -> Results:
    """Return the `k` pictures of a library most similar to one, in the library or elsewhere.

    What has the very same content, wherever it lies, is the picture itself and is left out.

    Args:
        engine: the library.
        image: a file, also one inside a tar or Parquet file; or the path of one of the library's
            pictures, from the library's folder on; or a picture in memory.
        k: at least 1; fewer come where the library holds fewer.
        content: the file that a picture in memory was read from, by which it is told from others.

    Raises:
        QueryError: the picture cannot be read, or `k` is below 1.
    """
    asked: Path | Image
    if isinstance(image, Path):
        asked = located(engine.library.root, image)
        content = _content(asked, image)
    else:
        asked = image
    itself: set[int] = set()
    if content is not None:
        itself.update(engine.library.catalog.files_with(hashlib.sha256(content).digest()))
    if k < 1:
        raise QueryError(f"k must be at least 1, not {k}.")
    results = engine.search(image=asked, k=k + len(itself))
    others = [hit for hit in results.hits if hit.id not in itself][:k]
    hits = tuple(replace(hit, rank=rank) for rank, hit in enumerate(others, 1))
    return replace(results, hits=hits, considered=results.considered - len(itself))


def _content(path: Path, named: Path) -> bytes:
    try:
        inside = read_inside(path)
        return path.read_bytes() if inside is None else inside
    except MediaError as error:
        raise QueryError(f"The query picture cannot be used: {error}.") from error
    except OSError as error:
        raise QueryError(f"The query picture {named} cannot be read: {error.strerror}.") from error
