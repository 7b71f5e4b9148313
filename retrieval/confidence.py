"""When an answer is one, and how probabilities are told."""

from __future__ import annotations

__all__ = ["CUT", "confidence"]

CUT = 0.28
"""The least probability of the best answer at which there is an answer: a tenth of what is there is
below. Learned like `calibration.WEIGHTS`."""


def confidence(match: float) -> str:
    """Say in words how probable it is that a picture matches."""
    for least, words in ((0.85, "very likely"), (0.65, "likely"), (CUT, "maybe")):
        if match >= least:
            return words
    return "unlikely"
