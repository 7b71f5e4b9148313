"""Runs the tests that ask a Milvus server (`-m milvus`) beside a real one of their own."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.milvus_server import ADDRESS, in_own_network, what_is_missing

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(ADDRESS in os.environ, reason=f"{ADDRESS} is set: run pytest -m milvus")
def test_everything_that_needs_a_server():
    missing = what_is_missing()
    if missing is not None:
        pytest.skip(f"NOTHING WAS TESTED AGAINST MILVUS: {missing}")
    names = ("test_milvus.py", "test_store_library.py", "test_move.py")
    files = [str(HERE / name) for name in names]
    command = ["pytest", "-q", "-n", "0", "-m", "milvus", "-p", "no:cacheprovider", *files]
    ran = subprocess.run(
        in_own_network(command), capture_output=True, text=True, timeout=1_500, cwd=HERE.parent
    )
    assert ran.returncode == 0, ran.stdout[-6_000:] + ran.stderr[-2_000:]
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert passed is not None
    assert int(passed[1]) >= 30
    assert "skipped" not in ran.stdout
