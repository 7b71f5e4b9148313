"""Whether recorded vectors are those of an encoder: a few pictures embedded and compared."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmsearch.errors import MediaError, ModelMismatch
from mmsearch.retrieval.media import open_picture, orientation, read_bytes

if TYPE_CHECKING:
    from mmsearch.retrieval.encoders import Encoder
    from mmsearch.retrieval.exchange.recorded import RecordedPicture, VectorSource

__all__ = ["Check"]

logger = logging.getLogger(__name__)

SAMPLE = 8
LEAST_COSINE = 0.99
"""Other decoders and fp16 move a vector by less; another model's is nowhere near."""


class Check:
    """Compares a sample of recorded vectors with what the encoder makes of the same pictures.

    Attributes:
        count: how many pictures were compared.
        lowest: the lowest cosine among those that had to agree.
        takes_turned: whether vectors of pictures that are stored turned are of them upright, as
            here: other tools mostly embed them lying on their side.
        takes_texts: whether vectors of captions are by the encoder's text tower.
    """

    def __init__(
        self,
        recorded: VectorSource,
        encoder: Encoder,
        folder: Path,
        chosen: dict[str, RecordedPicture],
    ) -> None:
        self._recorded, self._encoder, self._folder = recorded, encoder, folder
        self._chosen = chosen
        self.count = 0
        self.lowest: float | None = None
        self.takes_turned = True
        self.takes_texts = True

    def run(self) -> None:
        """Compare.

        Raises:
            ModelMismatch: a picture's vector is not what the encoder makes, or none can be
                compared.
        """
        upright, turned = self._sample()
        cosines = self._cosines(upright)
        self.count = len(cosines)
        if not cosines:
            raise ModelMismatch(
                "None of the pictures can be decoded, so it cannot be seen whether the vectors are "
                f"by {self._encoder.spec.label}. If you know that they are: --unchecked"
            )
        self.lowest = min(cosines.values())
        if self.lowest < LEAST_COSINE:
            worst = min(cosines, key=cosines.__getitem__)
            bad = sum(cosine < LEAST_COSINE for cosine in cosines.values())
            raise ModelMismatch(
                f"{bad} of {len(cosines)} vectors that were compared are not what "
                f"{self._encoder.spec.label} makes of the picture ({worst}: cosine "
                f"{self.lowest:.3f}, at least {LEAST_COSINE} was expected). Name the model that "
                "made them with --model, or its exact weights. If pictures were edited since, take "
                "all vectors over as they are: --unchecked"
            )
        self.takes_turned = all(cosine >= LEAST_COSINE for cosine in self._cosines(turned).values())
        self.takes_texts = self._texts_agree()

    def _sample(self) -> tuple[list[str], list[str]]:
        """Return up to `SAMPLE` pictures that are stored upright, and as many that are not."""
        paths = list(self._chosen)
        # Spread over the library, and the same at every run.
        order = np.random.default_rng(0).permutation(len(paths))[: 8 * SAMPLE]
        upright: list[str] = []
        turned: list[str] = []
        for i in order:
            try:
                image = open_picture(read_bytes(self._folder / paths[i]))
            except MediaError:
                continue
            kind = upright if orientation(image) == 1 else turned
            # Tools fill transparency in their own ways.
            if image.mode in {"RGB", "L", "CMYK"} or kind is turned:
                kind.append(paths[i])
            if len(upright) >= SAMPLE:
                break
        return upright[:SAMPLE], turned[:SAMPLE]

    def _cosines(self, paths: list[str]) -> dict[str, float]:
        cosines = {}
        for path in paths:
            try:
                (ours,) = self._encoder.encode_images([self._folder / path])
            except MediaError:
                continue
            (theirs,) = self._recorded.image_vectors([self._chosen[path].row])
            if np.isfinite(theirs).all():
                cosines[path] = float(ours @ theirs)
        return cosines

    def _texts_agree(self) -> bool:
        captions = (
            (caption.text, caption.row)
            for picture in self._chosen.values()
            for caption in picture.captions
            if caption.row is not None
        )
        sample = list(islice(captions, SAMPLE))
        if not sample:
            return True
        ours = self._encoder.encode_texts([text for text, _ in sample])
        theirs = self._recorded.text_vectors([row for _, row in sample])
        agree = bool((np.sum(ours * theirs, axis=1) >= LEAST_COSINE).all())
        if not agree:
            logger.warning("the vectors of captions are by another model; they are embedded again")
        return agree
