"""Zero-shot tags: which names of a vocabulary fit a picture best."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch.errors import QueryError
from mmsearch.indexes.base import replacing
from mmsearch.retrieval.encoders import cache

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from mmsearch.retrieval.encoders import Encoder

__all__ = ["TEMPLATES", "Tag", "Tagger", "background", "bundled_vocabulary", "read_vocabulary"]

logger = logging.getLogger(__name__)

TEMPLATES = (
    "a photo of a {}",
    "a photo of the {}",
    "a close-up photo of a {}",
    "a photo of a small {}",
    "a photo of a large {}",
)
"""What stands around a name."""

NAMES = Path(__file__).with_name("tag_names.txt")


@dataclass(frozen=True, slots=True)
class Tag:
    """A name that fits a picture.

    Attributes:
        name: as the vocabulary has it.
        score: cosine similarity in [-1, 1] of the picture and the name. It ranks names; it is no
            probability, which would need the temperature that an encoder was trained with, and a
            vocabulary that holds the truth.
    """

    name: str
    score: float

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {"tag": self.name, "score": self.score}


class Tagger:
    """Compares pictures with a vocabulary of names.

    Each name is put into several sentences, and the mean of their vectors stands for it (Radford
    et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", section
    3.1.4). The vectors of a vocabulary are kept in the user's cache.

    Attributes:
        vocabulary: the names, each once.
        vectors: `float32[n, dim]`, unit rows, one a name.
    """

    def __init__(
        self,
        encoder: Encoder,
        vocabulary: Sequence[str],
        *,
        templates: Sequence[str] = TEMPLATES,
        embedding: Callable[[int], None] | None = None,
    ) -> None:
        """Embed a vocabulary, or read its vectors where that was done before.

        Args:
            encoder: compares.
            vocabulary: names, at least one.
            templates: sentences, each with `{}` where the name goes.
            embedding: called with the number of names before they are embedded, which may take
                seconds.

        Raises:
            QueryError: the vocabulary is empty.
        """
        stripped = (" ".join(name.split()) for name in vocabulary)
        self.vocabulary = tuple(dict.fromkeys(name for name in stripped if name))
        if not self.vocabulary:
            raise QueryError("The vocabulary is empty. Give at least one name, one a line.")
        self._encoder = encoder
        kept = _file(encoder, self.vocabulary, templates)
        vectors = _read(kept, (len(self.vocabulary), encoder.dim))
        if vectors is None:
            if embedding is not None:
                embedding(len(self.vocabulary))
            vectors = _embedded(encoder, self.vocabulary, templates)
            _write(kept, vectors)
        self.vectors: NDArray[np.float32] = vectors

    def tags(
        self, pictures: Sequence[Path | str | Image.Image], k: int = 5
    ) -> list[tuple[Tag, ...]]:
        """Return the `k` names that fit each picture best, best first; all where there are fewer.

        Args:
            pictures: paths or Pillow images.
            k: at least 1.

        Raises:
            MediaError: a picture cannot be read; the message names it.
        """
        scores = self._encoder.encode_images(pictures) @ self.vectors.T
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return [
            tuple(Tag(self.vocabulary[i], float(row[i])) for i in order)
            for row, order in zip(scores, best.tolist(), strict=True)
        ]


def background(
    encoder: Encoder, *, embedding: Callable[[int], None] | None = None
) -> NDArray[np.float32]:
    """Return `float32[n, dim]`, the bundled names as people ask for them: what scores mean nothing.

    See `calibration`; kept in the user's cache for the next time.

    Args:
        encoder: embeds them.
        embedding: called with the number of names before they are embedded.
    """
    names = bundled_vocabulary()
    return Tagger(encoder, names, templates=("{}",), embedding=embedding).vectors


def bundled_vocabulary() -> list[str]:
    """Return the names of COCO's 80 and ImageNet's 1,000 classes, each once."""
    return read_vocabulary(NAMES)


def read_vocabulary(path: Path) -> list[str]:
    """Return the names in a text file, one a line; empty lines and those after `#` are left out.

    Raises:
        QueryError: the file cannot be read, is no text or holds no name.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise QueryError(f"The vocabulary {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError:
        raise QueryError(
            f"The vocabulary {path} is no UTF-8 text. Give a text file with one name a line."
        ) from None
    names = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not names:
        raise QueryError(f"The vocabulary {path} is empty. Write one name a line.")
    return names


def _embedded(
    encoder: Encoder, vocabulary: Sequence[str], templates: Sequence[str]
) -> NDArray[np.float32]:
    total = np.zeros((len(vocabulary), encoder.dim), dtype=np.float32)
    for template in templates:
        total += encoder.encode_texts([template.replace("{}", name) for name in vocabulary])
    # Sentences that cancel each other out leave nothing to compare; no encoder does that.
    lengths = np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)
    unit: NDArray[np.float32] = total / lengths
    return unit


def _file(encoder: Encoder, vocabulary: Sequence[str], templates: Sequence[str]) -> Path:
    exact = json.dumps(asdict(encoder.spec)), "\n".join([*templates, "", *vocabulary])
    return cache.root() / "tags" / f"{cache.file_name(encoder.spec.label, *exact)}.npy"


def _read(path: Path, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    """Return kept vectors; None where they are missing or damaged."""
    try:
        vectors: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if vectors.shape != shape or vectors.dtype != np.float32:
        return None
    lengths = np.linalg.norm(vectors, axis=1)
    return vectors if np.allclose(lengths, 1, atol=1e-3) else None


def _write(path: Path, vectors: NDArray[np.float32]) -> None:
    """Keep vectors; a cache that cannot be written to keeps nothing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, vectors)
    except OSError as error:
        logger.info("the vectors of a vocabulary are not kept: %s", error)
