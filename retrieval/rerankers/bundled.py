"""Rerankers that read what an ONNX encoder's own towers see: the bundled `fast`, or a folder.

`mmsearch train-reranker` writes such a folder, and `reranker.json` in it says what it fits:

    {"format": 1, "kind": "co-attention", "name": "fast", "revision": "…",
     "encoder": {"name": "compact@…", "weights_sha256": "…"},
     "image": {"inner": ["…", …]}, "text": {"inner": ["…", …]},
     "regions": {"file": "regions.onnx"}, "match": {"file": "match.onnx"},
     "sha256": {"regions.onnx": "…", "match.onnx": "…"}}

`regions.onnx` makes of the vectors and the image tower's inner tensors `regions` uint8[n, bytes],
which a library keeps of each picture; `match.onnx` reads these and the text tower's inner tensors.
See `co_attention`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch.errors import ModelError
from mmsearch.retrieval.encoders import DEFAULT_MODEL, Encoder, load_encoder
from mmsearch.retrieval.encoders.image_tower import session
from mmsearch.retrieval.encoders.onnx import OnnxEncoder
from mmsearch.retrieval.rerankers.base import Pair, Reranker, View

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

__all__ = ["BUNDLED", "FAST", "BundledReranker", "load", "region_reader"]

FAST = "fast"

BUNDLED = Path(__file__).parent / FAST

FORMAT = 1


@dataclass(frozen=True, slots=True)
class _Config:
    """What `reranker.json` says, checked."""

    revision: str
    encoder: str
    weights_sha256: str
    image_inner: tuple[str, ...]
    text_inner: tuple[str, ...]
    regions: str
    match: str
    sha256: dict[str, str]

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> _Config:
        """Raise KeyError, TypeError or ValueError for anything that is missing or wrong."""
        if (fields["format"], fields["kind"]) != (FORMAT, "co-attention"):
            raise ValueError(f"kind {fields['kind']!r}, format {fields['format']!r}")
        regions, match = str(fields["regions"]["file"]), str(fields["match"]["file"])
        return cls(
            revision=str(fields["revision"]),
            encoder=str(fields["encoder"]["name"]),
            weights_sha256=str(fields["encoder"]["weights_sha256"]),
            image_inner=tuple(map(str, fields["image"]["inner"])),
            text_inner=tuple(map(str, fields["text"]["inner"])),
            regions=regions,
            match=match,
            sha256={name: str(fields["sha256"][name]) for name in (regions, match)},
        )


class BundledReranker(Reranker):
    """Co-attention over an encoder's own words and regions, run by ONNX Runtime."""

    batch_size = 16

    def __init__(
        self, folder: Path, *, name: str | None = None, encoder: Encoder | None = None
    ) -> None:
        """Read `reranker.json`; the graphs load when they are first used.

        Args:
            folder: where it is.
            name: what `load_reranker` takes to get it again, if not the folder's path.
            encoder: of the library whose answers are reranked; the bundled one if not given.

        Raises:
            ModelError: the folder is incomplete or damaged, or the encoder another than it reads.
        """
        self._folder = folder
        self._name = name or str(folder.absolute())
        try:
            fields = json.loads((folder / "reranker.json").read_text(encoding="utf-8"))
            self._config = _Config.from_json(fields)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"The reranker folder {folder} cannot be used: its reranker.json is incomplete, "
                f"damaged or of a kind this version does not read ({error!r}). Give a folder that "
                "mmsearch train-reranker wrote, or run: pip install --upgrade mmsearch"
            ) from error
        encoder = encoder or load_encoder(DEFAULT_MODEL)
        if not self.fits(encoder):
            raise ModelError(
                f"The reranker {self._name} reads what {self._config.encoder} sees, and this is "
                f"{encoder.spec.label}, whose order it would not make better. Rerank with "
                "--rerank hf:NAME_OR_PATH, or train one for it with: mmsearch train-reranker"
            )
        assert isinstance(encoder, OnnxEncoder)
        self._encoder = encoder
        encoder.will_read_words(self._config.text_inner)
        self._read: dict[str, tuple[Any, ...]] = {}

    @property
    def name(self) -> str:
        """`fast`, or the folder's path."""
        return self._name

    @property
    def kind(self) -> str:  # type: ignore[override]
        """What names the bytes that `regions` gives: others make other bytes."""
        return self._config.sha256[self._config.regions]

    @property
    def decode_size(self) -> int:  # type: ignore[override]
        """As the encoder's transform says."""
        return self._encoder.decode_size

    def fits(self, encoder: Encoder) -> bool:
        """Tell whether this is the encoder whose towers it reads."""
        return (
            isinstance(encoder, OnnxEncoder)
            and encoder.spec.weights_sha256 == self._config.weights_sha256
        )

    def regions(self, images: Sequence[Image.Image]) -> list[NDArray[np.uint8]]:
        """Return `uint8[bytes]` of each picture: upright RGB, at least one."""
        return list(self.look([self._encoder.prepare(image) for image in images])[1])

    def look(self, pixels: Sequence[NDArray[Any]]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Return the encoder's vectors, `float32[n, dim]`, and `uint8[n, bytes]`.

        Args:
            pixels: at least one picture as the encoder prepares it.
        """
        vectors, maps = self._encoder.look(pixels, self._config.image_inner)
        feed = {"vectors": vectors} | {f"map_{i}": part for i, part in enumerate(maps)}
        regions: NDArray[np.uint8] = self._regions.run(None, feed)[0]
        return vectors, regions

    def _score(self, batch: Sequence[Pair]) -> NDArray[np.float32]:
        texts = list(dict.fromkeys(pair.text for pair in batch))
        views = list({pair.view.key: pair.view for pair in batch}.values())
        place = {view.key: row for row, view in enumerate(views)}
        mask, states = self._words(texts)
        feed: dict[str, NDArray[Any]] = {f"states_{i}": state for i, state in enumerate(states)}
        feed |= {
            "mask": mask,
            "regions": np.stack([self._regions_of(view) for view in views]),
            "similarity": np.array([pair.similarity for pair in batch], dtype=np.float32),
            "text_of": np.array([texts.index(pair.text) for pair in batch]),
            "picture_of": np.array([place[pair.view.key] for pair in batch]),
        }
        score: NDArray[np.float32] = self._match.run(None, feed)[0]
        return score

    def _regions_of(self, view: View) -> NDArray[np.uint8]:
        if view.regions is None:
            view.regions = self.regions([view.open(self.decode_size)])[0]
        return view.regions

    def _words(self, texts: list[str]) -> tuple[NDArray[np.int64], list[NDArray[np.float32]]]:
        """Return what the text tower says; of one text it is kept until another is asked."""
        if len(texts) > 1:
            return self._encoder.read_words(texts, self._config.text_inner)
        known = self._read.get(texts[0])
        if known is None:
            known = self._encoder.read_words(texts, self._config.text_inner)
            self._read = {texts[0]: known}
        return known[0], known[1]

    @cached_property
    def _regions(self) -> Any:  # noqa: ANN401
        return self._session(self._config.regions)

    @cached_property
    def _match(self) -> Any:  # noqa: ANN401
        return self._session(self._config.match)

    def _session(self, name: str) -> Any:  # noqa: ANN401
        path = self._folder / name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ModelError(f"The reranker {self._name} lacks {path}. Get it again.") from error
        if hashlib.sha256(data).hexdigest() != self._config.sha256[name]:
            raise ModelError(
                f"{path} is not the file this reranker was published with (its SHA-256 differs): "
                "it is damaged or was altered. Get it again."
            )
        return session(data)


def load(rest: str, encoder: Encoder | None) -> BundledReranker:
    """Return the bundled reranker, or the one in the folder `rest`."""
    if rest:
        return BundledReranker(Path(rest), encoder=encoder)
    return BundledReranker(BUNDLED, name=FAST, encoder=encoder)


def region_reader(encoder: Encoder) -> BundledReranker | None:
    """Return what reads regions while pictures are embedded; None where `fast` does not fit."""
    if not isinstance(encoder, OnnxEncoder):
        return None
    try:
        return BundledReranker(BUNDLED, name=FAST, encoder=encoder)
    except ModelError:
        return None
