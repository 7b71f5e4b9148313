"""A library whose catalog a server of PostgreSQL's keeps, end to end and with what can go wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

import mmsearch
from mmsearch.errors import (
    ConnectionLost,
    LibraryLocked,
    LibraryNotFound,
    LibraryTooNew,
    SourceError,
    StorageError,
)
from mmsearch.retrieval import backup, model_change
from mmsearch.retrieval.catalog import Catalog, advisory
from mmsearch.retrieval.catalog import store as catalog_store
from mmsearch.retrieval.doctor import examination, examine
from mmsearch.retrieval.ingest import index
from mmsearch.retrieval.library import Library
from mmsearch.retrieval.library_config import LibraryConfig
from mmsearch.retrieval.schema import Target
from tests.conftest import COLOURS, ColourEncoder, draw
from tests.postgres_server import Postgres, find_binaries, free_port, running, started

pytestmark = pytest.mark.postgresql

CLONE = Path(__file__).parents[1]


def config_of(folder: Path) -> LibraryConfig:
    return LibraryConfig.read(folder / ".mmsearch")


def test_a_library_is_made_indexed_and_asked(
    photos: Path, encoder: ColourEncoder, postgres: Postgres
) -> None:
    (photos / "red.txt").write_text("a red door")
    report = index(photos, model=encoder, catalog=postgres.url)
    assert (report.added, report.files, report.captions) == (6, 6, 1)
    assert not (photos / ".mmsearch" / "catalog.sqlite").exists()
    config = config_of(photos)
    assert config.catalog == postgres.url
    assert (photos / ".mmsearch" / "library.toml").stat().st_mode & 0o77 == 0
    with mmsearch.open(photos, model=encoder) as engine:
        assert engine.search("red", k=1).hits[0].path == "red.jpg"
        assert engine.search("door", k=1).hits[0].path == "red.jpg"
        assert [hit.path for hit in engine.search("blue", k=9, where="folder = 'trip'").hits] == [
            "trip/blue.jpg",
            "trip/black.jpg",
        ]
    # Again, without naming the address, and named again.
    assert index(photos, model=encoder).unchanged == 6
    assert index(photos, model=encoder, catalog=postgres.url).unchanged == 6
    assert encoder.embedded_images == 6
    (photos / "red.jpg").rename(photos / "rouge.jpg")
    (photos / "red.txt").unlink()
    report = index(photos, model=encoder)
    assert (report.moved, report.removed, report.captions) == (1, 0, 0)
