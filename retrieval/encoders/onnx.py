"""Dual encoders in ONNX: a folder with two towers, a tokenizer and `encoder.json`.

`encoder.json` names the files and their SHA-256, the vector's length and the image transform:

    {"format": 1, "kind": "onnx", "name": "compact", "revision": "1", "dim": 256,
     "image": {"file": "image.onnx",
               "preprocess": {"size": 224, "resize": "stretch", "interpolation": "bicubic"}},
     "text": {"file": "text.onnx", "tokenizer": "tokenizer.json", "max_tokens": 64},
     "sha256": {"image.onnx": "…", "text.onnx": "…", "tokenizer.json": "…"}}

The image tower reads `pixels` uint8[n, size, size, 3], the text tower `input_ids` and
`attention_mask` int64[n, t], or the first alone; both return `embedding` float32[n, dim].
`text` may also say `padding` and `clean`, see `TextPreprocess`. Whoever embeds many pictures may
get them in bfloat16 after a while, see `image_tower`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch.errors import ModelError
from mmsearch.retrieval.encoders.base import Encoder, canonical, unit_rows
from mmsearch.retrieval.encoders.image_tower import ImageTower, session
from mmsearch.retrieval.encoders.inner_outputs import with_outputs
from mmsearch.retrieval.encoders.tokens import TextPreprocess
from mmsearch.retrieval.preprocess import ImagePreprocess
from mmsearch.retrieval.schema import EncoderSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from mmsearch.retrieval.encoders.regions import Regions
    from mmsearch.retrieval.preprocess import Box

__all__ = ["OnnxEncoder"]

FORMAT = 1


@dataclass(frozen=True, slots=True)
class _Config:
    """What `encoder.json` says, checked."""

    spec: EncoderSpec
    preprocess: ImagePreprocess
    files: dict[str, str]
    sha256: dict[str, str]
    texts: TextPreprocess

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> _Config:
        """Raise KeyError, TypeError or ValueError for anything that is missing or wrong."""
        if (fields["format"], fields["kind"]) != (FORMAT, "onnx"):
            raise ValueError(f"kind {fields['kind']!r}, format {fields['format']!r}")
        if int(fields["dim"]) < 1:
            raise ValueError(f"dim {fields['dim']!r}")
        preprocess = ImagePreprocess.from_json(fields["image"]["preprocess"])
        texts = TextPreprocess.from_json(fields["text"])
        files = {
            "image": str(fields["image"]["file"]),
            "text": str(fields["text"]["file"]),
            "tokenizer": str(fields["text"]["tokenizer"]),
        }
        sha256 = {name: str(fields["sha256"][name]) for name in files.values()}
        spec = EncoderSpec(
            kind="onnx",
            name=str(fields["name"]),
            revision=str(fields["revision"]),
            weights_sha256=_fingerprint(sha256),
            preprocessing=canonical(preprocess, texts),
            dim=int(fields["dim"]),
        )
        return cls(spec, preprocess, files, sha256, texts)


class OnnxEncoder(Encoder):
    """An encoder folder run by ONNX Runtime on the CPU; each tower loads when first used."""

    text_batch_size = 8
    """More at once take as long for each on a CPU, and are padded more."""

    def __init__(
        self,
        folder: Path,
        *,
        location: str | None = None,
        spec: EncoderSpec | None = None,
        advice: str = "Get the folder again.",
    ) -> None:
        """Read `encoder.json`.

        Args:
            folder: where it is.
            location: what `load_encoder` takes to get it again, if not the folder's path.
            spec: what the vectors are comparable with, where not the folder alone says so.
            advice: what to do where a file turns out to be damaged.

        Raises:
            ModelError: it is missing, incomplete, damaged, or of another kind or format.
        """
        self.folder = folder
        self._location = location or str(folder.absolute())
        self._advice = advice
        try:
            self._config = _Config.from_json(
                json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"The encoder folder {folder} cannot be used: its encoder.json is incomplete, "
                f"damaged or of a kind this version does not read ({error!r}). {advice} "
                "Or run: pip install --upgrade mmsearch"
            ) from error
        self._spec = spec or self._config.spec
        self._lock = Lock()
        self._towers: dict[tuple[str, ...], ImageTower] = {}
        self._text_inner: tuple[str, ...] = ()
        self._text_tower: tuple[tuple[str, ...], Any] | None = None

    @property
    def spec(self) -> EncoderSpec:
        """Name, revision and fingerprints, as `encoder.json` states them unless told otherwise."""
        return self._spec

    @property
    def location(self) -> str:
        """Name of a bundled encoder, otherwise the folder's path."""
        return self._location

    @property
    def decode_size(self) -> int:
        """As the transform says."""
        return self._config.preprocess.decode_size

    def prepare(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return `uint8[size, size, 3]`."""
        return self._config.preprocess(image)

    def encode_regions(self, image: Image.Image) -> tuple[NDArray[np.float32], Box] | None:
        """Embed regions with the bundled tower, or one that was trained from it."""
        found = None if self._regions is None else self._regions(self.prepare(image))
        return None if found is None else (found, self._config.preprocess.seen(*image.size))

    def read(self, part: str) -> bytes:
        """Return the bytes of the file of `image`, `text` or `tokenizer`.

        Raises:
            ModelError: it is missing or altered.
        """
        data: bytes = self._load(part, bytes)
        return data

    def look(
        self, pixels: Sequence[NDArray[Any]], inner: Sequence[str]
    ) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
        """Embed prepared pictures, and return inner tensors of the image tower beside the vectors.

        Args:
            pixels: at least one picture.
            inner: names of the tensors in the graph, each `[n, …]`.
        """
        tower = self._tower(tuple(inner))
        parts = [
            tower(np.stack(pixels[start : start + self.batch_size]))
            for start in range(0, len(pixels), self.batch_size)
        ]
        vectors, *others = (np.concatenate(some) for some in zip(*parts, strict=True))
        return unit_rows(vectors), others

    def will_read_words(self, inner: Sequence[str]) -> None:
        """Say what `read_words` will be asked for, so that one copy of the tower is loaded."""
        self._text_inner = tuple(inner)

    def read_words(
        self, texts: Sequence[str], inner: Sequence[str]
    ) -> tuple[NDArray[np.int64], list[NDArray[np.float32]]]:
        """Return inner tensors of the text tower for texts that are padded to the longest.

        Args:
            texts: at least one.
            inner: names of the tensors in the graph, each `[n, t, …]`.

        Returns:
            `int64[n, t]`, 1 where a text has a token, and the tensors.
        """
        mask, (_, *others) = self._run_text(texts, tuple(inner))
        return mask, others

    def _encode_pixels(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        return self._tower(())(pixels)[0]

    def _encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._run_text(texts, ())[1][0]

    def _text_lengths(self, texts: Sequence[str]) -> NDArray[np.int64]:
        return self._config.texts.lengths(self._tokenizer, texts)

    def _run_text(
        self, texts: Sequence[str], inner: tuple[str, ...]
    ) -> tuple[NDArray[np.int64], list[NDArray[np.float32]]]:
        """Return the mask of the tokens, the vectors, and the inner tensors."""
        ids, mask = self._config.texts(self._tokenizer, texts)
        feed = {"input_ids": ids, "attention_mask": mask}
        known = self._text_tower
        # Two threads that come first both load it, and to the same end.
        if known is None or not set(inner) <= set(known[0]):
            names = tuple(dict.fromkeys([*self._text_inner, *inner]))
            known = names, self._load("text", lambda data: session(with_outputs(data, names)))
            self._text_tower = known
        tower = known[1]
        # A tower that tells padding by its id has no input for the mask.
        taken = {value.name for value in tower.get_inputs()}
        outputs = [tower.get_outputs()[0].name, *inner]
        return mask, tower.run(
            outputs, {name: values for name, values in feed.items() if name in taken}
        )

    def _tower(self, inner: tuple[str, ...]) -> ImageTower:
        return self._towers.setdefault(inner, ImageTower(partial(self._load, "image"), inner))

    @cached_property
    def _regions(self) -> Regions | None:
        from mmsearch.retrieval.encoders.regions import INNER, Regions

        data = self.read("image")
        # Towers of other models have no such tensors.
        if not all(name.encode() in data for name in INNER):
            return None
        return Regions(session(with_outputs(data, INNER)))

    @cached_property
    def _tokenizer(self) -> Any:  # noqa: ANN401
        from tokenizers import Tokenizer

        return self._config.texts.configure(self._load("tokenizer", Tokenizer.from_buffer))

    def _load(self, part: str, make: Any) -> Any:  # noqa: ANN401
        """Read one file, check it against its hash and hand the very bytes checked to `make`."""
        path = self.folder / self._config.files[part]
        with self._lock:
            try:
                data = path.read_bytes()
            except OSError as error:
                raise ModelError(
                    f"The encoder {self._spec.label} lacks {path}. {self._advice}"
                ) from error
            if hashlib.sha256(data).hexdigest() != self._config.sha256[path.name]:
                raise ModelError(
                    f"{path} is not the file this encoder was published with (its SHA-256 "
                    f"differs): it is damaged or was altered. {self._advice}"
                )
            return make(data)


def _fingerprint(sha256: dict[str, str]) -> str:
    lines = "".join(f"{sha256[name]}  {name}\n" for name in sorted(sha256))
    return hashlib.sha256(lines.encode()).hexdigest()
