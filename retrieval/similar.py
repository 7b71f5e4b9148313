"""Pictures like one picture, without that picture itself."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmsearch.errors import MediaError, QueryError
from mmsearch.retrieval.containers import located, read_inside

if TYPE_CHECKING:
    from mmsearch.retrieval.engine import SearchEngine
    from mmsearch.retrieval.schema import Results

__all__ = ["similar"]


def similar(engine: SearchEngine, image: Path, k: int = 10) -> Results:
    """Return the `k` pictures of a library most similar to one, in the library or elsewhere.

    What has the very same content, wherever it lies, is the picture itself and is left out.

    Args:
        engine: the library.
        image: a file, also one inside a tar or Parquet file; or the path of one of the library's
            pictures, from the library's folder on.
        k: at least 1; fewer come where the library holds fewer.

    Raises:
        QueryError: the picture cannot be read, or `k` is below 1.
    """
    path = located(engine.library.root, image)
    try:
        inside = read_inside(path)
        content = path.read_bytes() if inside is None else inside
    except MediaError as error:
        raise QueryError(f"The query picture cannot be used: {error}.") from error
    except OSError as error:
        raise QueryError(f"The query picture {image} cannot be read: {error.strerror}.") from error
    itself = set(engine.library.catalog.files_with(hashlib.sha256(content).digest()))
    if k < 1:
        raise QueryError(f"k must be at least 1, not {k}.")
    results = engine.search(image=path, k=k + len(itself))
    others = [hit for hit in results.hits if hit.id not in itself][:k]
    hits = tuple(replace(hit, rank=rank) for rank, hit in enumerate(others, 1))
    return replace(results, hits=hits, considered=results.considered - len(itself))
