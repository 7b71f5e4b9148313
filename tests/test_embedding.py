from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mmsearch.errors import MediaError
from mmsearch.retrieval.embedding import BATCHES_BEHIND, Embedded, embed_files
from mmsearch.retrieval.media import load_rgb
from mmsearch.retrieval.pace import Pace, Stage
from mmsearch.retrieval.reading import BATCHES_AHEAD, Read
from mmsearch.retrieval.scan import scan
from mmsearch.retrieval.workers import Workers
from tests.conftest import COLOURS, ColourEncoder, draw

SIZES = [1, 2, 5, 16]


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Pictures of very different sizes, so that they are finished out of order, and bad files."""
    for i in range(37):
        colour = list(COLOURS)[i % len(COLOURS)]
        side = 900 if i % 5 == 0 else 20 + i
        draw(tmp_path / f"{i:02}.jpg", colour, (side, 40))
    (tmp_path / "07.jpg").write_bytes(b"<html>")
    (tmp_path / "20.jpg").write_bytes((tmp_path / "21.jpg").read_bytes()[:-30])
    return tmp_path


def run(root: Path, encoder: ColourEncoder, workers: Workers | None = None) -> list[Embedded]:
    files = scan(root).files
    return list(embed_files(root, files, encoder, contents={}, pace=Pace(), workers=workers))


def one_by_one(root: Path) -> list[tuple[str, NDArray[np.float32] | str]]:
    """The slow way: each picture by itself."""
    encoder = ColourEncoder()
    found: list[tuple[str, NDArray[np.float32] | str]] = []
    for path in sorted(scan(root).files):
        try:
            image = load_rgb(root / path, at_least=encoder.decode_size)
        except MediaError as error:
            found.append((path, error.kind))
        else:
            found.append((path, encoder.encode_pixels([encoder.prepare(image)])[0]))
    return found


@pytest.mark.parametrize("size", SIZES)
def test_any_number_of_threads_gives_what_one_by_one_gives(mixed: Path, size: int) -> None:
    batches = run(mixed, ColourEncoder(), Workers(start=size, most=size))
    expected = one_by_one(mixed)
    items = [item for batch in batches for item in batch.items]
    vectors = {path: vector for batch in batches for path, vector in batch.vectors.items()}
    paths = [item.picture.path if isinstance(item, Read) else item.path for item in items]
    assert paths == [path for path, _ in expected]
    assert [len(batch.items) for batch in batches] == [4] * 9 + [1]
    for item, (path, outcome) in zip(items, expected, strict=True):
        if isinstance(item, Read):
            assert item.pixels is None
            assert np.allclose(vectors[path], outcome, atol=1e-6)
        else:
            assert item.error.kind == outcome
    assert sum(isinstance(outcome, str) for _, outcome in expected) == 2


def test_the_next_batch_is_embedded_while_this_one_is_written(mixed: Path) -> None:
    third = threading.Event()

    class Signalling(ColourEncoder):
        def _encode_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            # The second batch holds a broken file.
            if self.embedded_images >= 7:
                third.set()
            return super()._encode_pixels(pixels)

    batches = embed_files(mixed, scan(mixed).files, Signalling(), contents={}, pace=Pace())
    with closing(batches):
        next(batches)
        assert third.wait(10), "nothing is embedded while the caller holds a batch"


def test_what_lies_between_reader_and_writer_is_bounded(tmp_path: Path) -> None:
    for i in range(80):
        draw(tmp_path / f"{i:02}.png", "red", (20, 20))
    encoder = ColourEncoder()
    workers = Workers(start=2, most=2)
    batches = embed_files(
        tmp_path, scan(tmp_path).files, encoder, contents={}, pace=Pace(), workers=workers
    )
    next(batches)
    # Long enough for threads without a bound to read all of it.
    threading.Event().wait(0.5)
    bound = (1 + BATCHES_BEHIND + BATCHES_AHEAD) * encoder.batch_size
    assert encoder.prepared <= bound < 80
    batches.close()


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
def test_what_the_encoder_raises_reaches_the_caller_in_its_turn(
    mixed: Path, stop: type[BaseException]
) -> None:
    class Failing(ColourEncoder):
        def _encode_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            if self.embedded_images >= 8:
                raise stop
            return super()._encode_pixels(pixels)

    batches = embed_files(mixed, scan(mixed).files, Failing(), contents={}, pace=Pace())
    # One of the first twelve is a broken file, so the fourth batch is the one that fails.
    assert [len(next(batches).items) for _ in range(3)] == [4, 4, 4]
    with pytest.raises(stop):
        next(batches)
    assert threads_left() == []


def test_a_caller_that_stops_early_leaves_no_thread_behind(mixed: Path) -> None:
    batches = embed_files(mixed, scan(mixed).files, ColourEncoder(), contents={}, pace=Pace())
    next(batches)
    batches.close()
    assert threads_left() == []


def threads_left() -> list[str]:
    return [
        thread.name
        for thread in threading.enumerate()
        if thread.name.startswith(("read", "encode"))
    ]


def test_the_clocks_say_what_held_a_run_up(mixed: Path) -> None:
    def bottleneck(encoder: ColourEncoder, write_s: float) -> Stage | None:
        pace = Pace()
        for _ in embed_files(mixed, scan(mixed).files, encoder, contents={}, pace=pace):
            with pace.at_work(Stage.WRITE):
                threading.Event().wait(write_s)
        return pace.bottleneck()

    class Slow(ColourEncoder):
        def _encode_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            threading.Event().wait(0.1)
            return super()._encode_pixels(pixels)

    class SlowToPrepare(ColourEncoder):
        def prepare(self, image: object) -> NDArray[np.uint8]:
            threading.Event().wait(0.1)
            return super().prepare(image)  # type: ignore[arg-type]

    assert bottleneck(Slow(), 0) is Stage.ENCODE
    assert bottleneck(ColourEncoder(), 0.1) is Stage.WRITE
    assert bottleneck(SlowToPrepare(), 0) is Stage.DECODE
