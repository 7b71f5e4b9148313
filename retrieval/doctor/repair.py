"""Putting a library right: what is derived is made anew, what is not is set aside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mmsearch.errors import StorageError
from mmsearch.retrieval.catalog import Catalog, integrity
from mmsearch.retrieval.library import ASIDE, set_aside
from mmsearch.retrieval.model_change import embed_lacking
from mmsearch.retrieval.schema import Target

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mmsearch.retrieval.catalog import LibraryRow
    from mmsearch.retrieval.encoders import Encoder
    from mmsearch.retrieval.library import Library

__all__ = ["drop_vectors", "embed_again", "embed_what_lacks", "named", "replace_catalog"]


def replace_catalog(path: Path) -> tuple[integrity.Salvaged, Path]:
    """Put a catalog of all rows that can be read in the place of a damaged one.

    Whoever calls it holds the library's lock. Returns what was saved, and the folder that the
    damaged files are in.

    Raises:
        StorageError: nothing can be read, or there is no room; everything is as it was.
    """
    fresh = path.with_name(f"{path.name}.mended")
    try:
        for end in ("", "-wal", "-shm"):
            fresh.with_name(fresh.name + end).unlink(missing_ok=True)
        salvaged = Catalog.salvaged(path, fresh)
        aside = set_aside(path.parent)
        assert aside is not None
        fresh.rename(path)
    except OSError as error:
        raise StorageError(
            f"The catalog {path} cannot be replaced: {error.strerror}. It is where it was, or in "
            f"{path.parent / ASIDE}."
        ) from error
    return salvaged, aside


def named(catalog: Catalog, target: Target, ids: NDArray[np.int64]) -> list[str]:
    """Return the paths of pictures, or the texts of captions."""
    ranked = [(id_, 0.0) for id_ in ids[:20].tolist()]
    if target is Target.IMAGES:
        return [hit.path for hit in catalog.file_hits(ranked)]
    return [hit.caption or "" for hit in catalog.caption_hits(ranked)]


def drop_vectors(catalog: Catalog, target: Target, encoder_id: int, ids: NDArray[np.int64]) -> None:
    """Forget vectors that are none."""
    with catalog.write() as transaction:
        transaction.drop_vectors(target, encoder_id, ids.tolist())


def embed_what_lacks(library: Library, encoder: Encoder) -> tuple[int, int]:
    """Embed pictures and captions without a vector; return how many of each still have none."""
    encoder_id = embed_lacking(library, encoder)
    catalog = library.catalog
    return len(catalog.unembedded_files(encoder_id)), catalog.count_captions_to_embed(encoder_id)


def embed_again(library: Library, row: LibraryRow, encoder: Encoder, paths: list[str]) -> None:
    """Embed these pictures anew."""
    import numpy as np

    assert row.encoder_id is not None
    known = library.catalog.known_files(row.encoder_id)
    ids = np.array(sorted(known[path].id for path in paths), dtype=np.int64)
    drop_vectors(library.catalog, Target.IMAGES, row.encoder_id, ids)
    embed_what_lacks(library, encoder)
