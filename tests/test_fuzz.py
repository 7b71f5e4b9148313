"""Every kept input, and a short run of random ones: see `fuzz`."""

from __future__ import annotations

import os

import pytest

from tests import fuzz

SECONDS = float(os.environ.get("MMSEARCH_FUZZ_SECONDS", "0.5"))
SEED = int(os.environ.get("MMSEARCH_FUZZ_SEED", "0"))


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_kept_inputs(name: str) -> None:
    kept = fuzz.corpus(name)
    assert kept, f"{name} has no corpus"
    for data in kept:
        fuzz.TARGETS[name](data)


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_random_inputs(name: str) -> None:
    assert fuzz.run(name, SECONDS, SEED) > 0
