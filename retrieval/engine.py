"""The query layer: a question in, ranked answers out."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from mmsearch.errors import MediaError, ModelError, ModelMismatch, QueryError
from mmsearch.retrieval.encoders import DEFAULT_MODEL, load_encoder
from mmsearch.retrieval.library import Library
from mmsearch.retrieval.schema import Query, Results, Target

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from mmsearch.indexes import VectorIndex
    from mmsearch.retrieval.encoders import Encoder

__all__ = ["SearchEngine", "open_engine"]


class SearchEngine:
    """One library, ready to be asked. Safe to use from several threads.

    Answers follow the catalog: when the library is indexed again, by this or another process, the
    next search sees it.
    """

    def __init__(self, library: Library, encoder: Encoder) -> None:
        """Join a library with the encoder that its vectors were made with.

        Raises:
            ModelMismatch: the library was built with another encoder.
        """
        row = library.catalog.library()
        if row.encoder is not None and row.encoder != encoder.spec:
            raise ModelMismatch(
                f"The library at {library.root} was built with {row.encoder.label}; its pictures "
                f"cannot be compared with queries by {encoder.spec.label}. Embed them again with: "
                f"mmsearch index {library.root} --model {encoder.spec.name} --reembed"
            )
        self.library = library
        self.encoder = encoder
        self._lock = Lock()
        self._indexes: dict[Target, tuple[str, VectorIndex]] = {}

    def __len__(self) -> int:
        """Return how many pictures can be found."""
        return len(self._index(Target.IMAGES))

    def __enter__(self) -> SearchEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the library."""
        self.library.close()

    def search(
        self,
        text: str | None = None,
        *,
        image: Path | str | Image.Image | None = None,
        to: Target | str = Target.IMAGES,
        k: int = 10,
    ) -> Results:
        """Return the `k` pictures, or captions, most similar to a text or a picture.

        Args:
            text: words that describe what is looked for.
            image: a picture to look for instead: a path or a Pillow image.
            to: look among the library's `images` or its `captions`.
            k: how many answers, at least 1; fewer come where the library holds fewer.

        Raises:
            QueryError: neither or both of text and image, an empty text, `k` below 1, or a
                picture that cannot be read.
        """
        started = time.perf_counter()
        if k < 1:
            raise QueryError(f"k must be at least 1, not {k}.")
        try:
            target = Target(to)
        except ValueError:
            raise QueryError(f"'to' is 'images' or 'captions', not {to!r}.") from None
        vector = self._embed(text, image)
        index = self._index(target)
        # An index pads its answer to k: nobody needs 10^9 empty places.
        found = index.search(vector, max(1, min(k, len(index))))
        ranked = [
            (int(id_), float(score))
            for id_, score in zip(found.ids[0], found.scores[0], strict=True)
            if id_ >= 0
        ]
        catalog = self.library.catalog
        hits = catalog.file_hits if target is Target.IMAGES else catalog.caption_hits
        name = None if image is None else str(getattr(image, "filename", None) or image)
        return Results(
            query=Query(text=text, image=name, to=target),
            library=self.library.root,
            model=self.encoder.spec.label,
            hits=hits(ranked),
            exact=index.exact,
            took_ms=(time.perf_counter() - started) * 1000,
            considered=len(index),
        )

    def _embed(
        self, text: str | None, image: Path | str | Image.Image | None
    ) -> NDArray[np.float32]:
        if (text is None) == (image is None):
            raise QueryError("Ask with a text or with a picture: one of the two.")
        if text is not None:
            if not text.strip():
                raise QueryError('The query is empty. Describe a picture: "a dog on a beach".')
            return self.encoder.encode_texts([text])
        assert image is not None
        try:
            return self.encoder.encode_images([image])
        except MediaError as error:
            raise QueryError(f"The query picture cannot be used: {error}.") from error

    def _index(self, target: Target) -> VectorIndex:
        stamp = self.library.catalog.stamp()
        with self._lock:
            known = self._indexes.get(target)
            if known is None or known[0] != stamp:
                known = stamp, self.library.open_index(target, stamp)
                self._indexes[target] = known
            return known[1]


def open_engine(path: Path | str, *, model: str | Path | Encoder | None = None) -> SearchEngine:
    """Open the library of a folder of pictures for searching.

    Args:
        path: the folder that was indexed.
        model: the encoder; the one the library was built with when not given.

    Raises:
        LibraryNotFound: the folder was never indexed.
        ModelError: the library's encoder is no longer where it was.
        ModelMismatch: the library was built with another encoder, or another revision of it.
    """
    library = Library.open(Path(path))
    try:
        encoder = load_encoder(model or library.model or DEFAULT_MODEL)
    except ModelError as error:
        raise ModelError(
            f"{error} The library at {library.root} was built with it; if its folder was moved, "
            f"run: mmsearch index {library.root} --model NEW_FOLDER"
        ) from error
    return SearchEngine(library, encoder)
