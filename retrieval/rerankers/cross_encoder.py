"""Multimodal cross-encoders of sentence-transformers (5.4 or later).

Reimers and Gurevych 2019 (Sentence-BERT); a cross-encoder reads both sides of a pair at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmsearch.errors import MissingExtra, ModelError
from mmsearch.retrieval.encoders.sources import reading
from mmsearch.retrieval.rerankers.base import Pair, Reranker

try:
    import torch
    from huggingface_hub import snapshot_download
    from sentence_transformers import CrossEncoder

    from mmsearch.retrieval.encoders.huggingface import read_weights
except ImportError as error:
    raise MissingExtra(error.name or "sentence-transformers", "models") from error

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mmsearch.retrieval.encoders import Encoder

__all__ = ["CrossEncoderReranker", "load"]

ADVICE = (
    "Where the model hub cannot be reached, download the model elsewhere and give its folder: "
    "cross-encoder:PATH, as sentence-transformers saves it, with its weights in model.safetensors."
)

SIDE = 768
"""Shortest side, in pixels, that pictures keep when they are decoded: these models see them in
many sizes, and scale down what is larger by rules of their own."""

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class CrossEncoderReranker(Reranker):
    """A `CrossEncoder` behind the contract of rerankers."""

    def __init__(self, model: CrossEncoder, name: str) -> None:
        """Take a model over.

        Args:
            model: gives one score for a text and a picture.
            name: what `load_reranker` takes to get it again.
        """
        self._model = model.eval()
        self._name = name

    @property
    def name(self) -> str:
        """The source it was loaded from."""
        return self._name

    def _score(self, batch: Sequence[Pair]) -> NDArray[np.float32]:
        pictures = {pair.view.key: pair.view for pair in batch}
        opened = {key: view.open(SIDE) for key, view in pictures.items()}
        # Named: a bare text that looks like an address or a picture's path would be opened.
        inputs = [({"text": pair.text}, {"image": opened[pair.view.key]}) for pair in batch]
        scores: NDArray[np.float32] = self._model.predict(
            inputs,
            batch_size=self.batch_size,
            show_progress_bar=False,
            # Logits: their sigmoid, which is usual, makes equals of what fits well.
            activation_fn=torch.nn.Identity(),
        )
        return scores.astype("float32")


def load(rest: str, encoder: Encoder | None = None) -> Reranker:
    """Return the reranker `cross-encoder:REST`; it runs on the GPU where there is one.

    Raises:
        ModelError: there is no such model, it cannot be had, reads no pictures, has no single
            score, or weights are missing.
    """
    del encoder  # It looks at pictures itself.
    source = f"cross-encoder:{rest}"
    with reading(source, ADVICE):
        folder = Path(os.path.expanduser(rest))  # noqa: PTH111
        if folder.is_dir():
            source = f"cross-encoder:{folder.absolute()}"
        else:
            folder = Path(snapshot_download(rest, ignore_patterns=list(PICKLED)))
        _check_files(folder)
        gpu = torch.cuda.is_available()
        model = CrossEncoder(
            str(folder),
            device="cuda" if gpu else "cpu",
            local_files_only=True,
            # On a GPU numbers are as long as they are stored: these models have billions.
            model_kwargs={"use_safetensors": True, "dtype": "auto" if gpu else torch.float32},
        )
        inner = model.transformers_model
        if inner is not None:
            # sentence-transformers draws by chance what is missing.
            place = folder / _modules(folder)[0]
            read_weights(type(inner), str(place), inner.config, names_only=True)
    if not model.supports(("text", "image")):
        raise ModelError(
            f"The model {source} reads no pictures, only: {', '.join(map(str, model.modalities))}. "
            "Give a multimodal cross-encoder, or a BLIP or ViLT as hf:NAME_OR_PATH."
        )
    if model.num_labels != 1:
        raise ModelError(
            f"The model {source} tells {model.num_labels} classes apart. A reranker gives one "
            "score: give a cross-encoder with one label."
        )
    return CrossEncoderReranker(model, source)


def _modules(folder: Path) -> list[str]:
    """Return the paths of a model's parts within its folder, the transformer's first."""
    listed = folder / "modules.json"
    if not listed.is_file():
        return [""]
    return [str(module["path"]) for module in json.loads(listed.read_text(encoding="utf-8"))]


def _check_files(folder: Path) -> None:
    """Refuse pickles, which sentence-transformers would read."""
    for place in (folder / path for path in _modules(folder)):
        pickles = [path.name for pattern in PICKLED for path in place.glob(pattern)]
        if pickles and not any(place.glob("*.safetensors")):
            raise ValueError(
                f"{pickles[0]} is a pickle, which can run any program; save it as safetensors"
            )
