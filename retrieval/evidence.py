"""What a library holds to learn from: pictures, texts about them, and which belong together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmsearch.errors import SourceError
from mmsearch.retrieval.adapter import Captioned
from mmsearch.retrieval.pairs import Locator

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.encoders import Encoder
    from mmsearch.retrieval.library import Library

__all__ = ["Evidence"]


class Evidence:
    """The captions of one library, or pairs about its pictures, as vectors."""

    def __init__(
        self,
        library: Library,
        encoder: Encoder,
        encoder_id: int,
        progress: Callable[[str, int, int], None],
    ) -> None:
        self.library, self.encoder = library, encoder
        self.encoder_id = encoder_id
        self.progress = progress
        catalog = self.library.catalog
        ids, vectors = catalog.file_vectors(encoder_id, self.encoder.dim)
        contents = catalog.contents()
        number: dict[bytes, int] = {}
        self.picture = {
            id_: number.setdefault(contents[id_], len(number))
            for id_ in ids.tolist()
            if id_ in contents
        }
        # One content has one vector, whichever of its files it is read from.
        rows = {self.picture[id_]: row for row, id_ in enumerate(ids.tolist()) if id_ in contents}
        self.pictures = vectors[[rows[i] for i in range(len(number))]].astype(np.float32)

    def captions(self) -> Captioned:
        """Return the captions that have a vector, as do their pictures."""
        catalog = self.library.catalog
        ids, vectors = catalog.caption_vectors(self.encoder_id, self.encoder.dim)
        place = {id_: row for row, id_ in enumerate(ids.tolist())}
        found = [
            (text, self.picture[file_id], place[id_])
            for id_, file_id, text in catalog.captions()
            if id_ in place and file_id in self.picture
        ]
        links, first = _linked([(text, picture) for text, picture, _ in found])
        rows = [found[i][2] for i in first]
        return Captioned(self.pictures, vectors[rows].astype(np.float32), links)

    def chosen(
        self, source: Path, pairs: Sequence[tuple[str, str]]
    ) -> tuple[Captioned, tuple[str, ...]]:
        """Return the pairs of a file, and the paths in it that name no picture."""
        files = self.library.catalog.known_files(self.encoder_id)
        ids = {path: file.id for path, file in files.items() if file.id in self.picture}
        locate = Locator(self.library.root, source.absolute().parent, ids)
        found, unmatched = [], []
        for path, text in pairs:
            id_ = locate(path)
            if id_ is None:
                unmatched.append(path)
            else:
                found.append((text, self.picture[id_]))
        if not found:
            raise SourceError(
                f"{source} names no picture of the library at {self.library.root} (the first: "
                f"{unmatched[0]}). Give paths relative to that folder."
            )
        links, first = _linked(found)
        return Captioned(self.pictures, self.embed([found[i][0] for i in first]), links), tuple(
            unmatched
        )

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts, batch after batch, saying how far."""
        total = len(texts)
        rows = self.encoder.encode_texts(
            texts, progress=lambda done: self.progress("texts", done, total)
        )
        self.progress("texts", total, total)
        return rows


def _linked(pairs: Sequence[tuple[str, int]]) -> tuple[NDArray[np.int64], list[int]]:
    """Return distinct (text, picture) links, and where each text first stands in `pairs`.

    Texts are the same whose words are, however they are spaced or capitalised.
    """
    number: dict[str, int] = {}
    first: list[int] = []
    rows = []
    for i, (text, picture) in enumerate(pairs):
        key = " ".join(text.casefold().split())
        if key not in number:
            number[key] = len(number)
            first.append(i)
        rows.append((number[key], picture))
    return np.unique(np.array(rows, dtype=np.int64).reshape(-1, 2), axis=0), first
