"""Recall of a model in training on pairs that it does not learn from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mmsearch.retrieval.metrics import recall_at
from mmsearch.retrieval.ranking import ranks_both_ways
from mmsearch.retrieval.training.corpus import Corpus

__all__ = ["Validation"]

DEPTHS = (1, 5, 10)


class Validation:
    """Recall@1, 5 and 10 in both directions over a small corpus, whose pixels stay in memory."""

    def __init__(self, corpus: Corpus, model: Any, *, chunk: int = 64) -> None:  # noqa: ANN401
        """Prepare pixels and tokens once.

        Args:
            corpus: pictures with captions; a few thousand at most (150 kB each at 224 pixels).
            model: a dual encoder, see `encoders.dual_encoder`.
            chunk: how many are embedded at once.
        """
        self._model = model
        self._chunk = chunk
        preprocess = model.preprocess
        # A caption of one of two equal pictures is right for both: they are one here.
        contents = np.array(corpus.contents or range(len(corpus)))
        _, first, shown = np.unique(contents, return_index=True, return_inverse=True)
        self._pixels = [
            preprocess(corpus.load(int(row), at_least=preprocess.decode_size)) for row in first
        ]
        texts = [text for captions in corpus.captions for text in captions]
        self._tokens = [
            model.tokenize(texts[start : start + chunk]) for start in range(0, len(texts), chunk)
        ]
        self._image_of = np.repeat(shown, [len(captions) for captions in corpus.captions])

    @torch.inference_mode()
    def __call__(self) -> dict[str, float]:
        """Return percentages `text→image R@1` … `image→text R@10` of the model as it is."""
        device = next(self._model.parameters()).device
        images = torch.cat(
            [
                self._model.encode_images(
                    torch.from_numpy(np.stack(self._pixels[start : start + self._chunk])).to(device)
                )
                for start in range(0, len(self._pixels), self._chunk)
            ]
        )
        texts = torch.cat(
            [
                self._model.encode_texts(ids.to(device), mask.to(device))
                for ids, mask in self._tokens
            ]
        )
        to_image, to_text = ranks_both_ways(
            texts.float().cpu().numpy(), images.float().cpu().numpy(), self._image_of
        )
        ways = {"text→image": to_image, "image→text": to_text}
        return {f"{way} R@{k}": recall_at(ranks, k) for way, ranks in ways.items() for k in DEPTHS}
