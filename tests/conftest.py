"""Drawn pictures and an encoder whose space can be checked by eye."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mmsearch.retrieval.encoders import Encoder
from mmsearch.retrieval.preprocess import ImagePreprocess
from mmsearch.retrieval.schema import EncoderSpec

if TYPE_CHECKING:
    from mmsearch.retrieval.catalog import Address
    from tests.postgres_server import Postgres

COLOURS = {
    "black": (0, 0, 0),
    "red": (230, 20, 20),
    "green": (20, 200, 20),
    "blue": (20, 20, 230),
    "yellow": (240, 230, 20),
    "white": (255, 255, 255),
}


def heed_interrupts() -> None:
    """Let a new process be interrupted: those of who runs the tests in the background ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class ColourEncoder(Encoder):
    """Mean colour of the four quarters on one side, colour words on the other.

    Counts the pictures and texts it embeds, so that tests can tell what was not embedded again.
    """

    batch_size = 4

    def __init__(self, revision: str = "1") -> None:
        self._preprocess = ImagePreprocess(size=8)
        self._spec = EncoderSpec("test", "colour", revision, "0" * 64, "{}", 13)
        self.prepared = 0
        self.embedded_images = 0
        self.embedded_texts = 0

    @property
    def spec(self) -> EncoderSpec:
        return self._spec

    @property
    def location(self) -> str:
        return "colour"

    @property
    def decode_size(self) -> int:
        return self._preprocess.decode_size

    def prepare(self, image: Image.Image) -> NDArray[Any]:
        self.prepared += 1
        return self._preprocess(image)

    def _encode_pixels(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        self.embedded_images += len(pixels)
        quarters = pixels.reshape(len(pixels), 2, 4, 2, 4, 3).mean(axis=(2, 4))
        return self._unit(quarters.reshape(len(pixels), 12) / 255)

    def _encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.embedded_texts += len(texts)
        rows = [
            np.mean(
                [rgb for word, rgb in COLOURS.items() if word in text.lower()] or [(128,) * 3], 0
            )
            for text in texts
        ]
        return self._unit(np.tile(np.array(rows) / 255, (1, 4)))

    @staticmethod
    def _unit(rows: NDArray[Any]) -> NDArray[np.float32]:
        # The constant keeps black from being the zero vector.
        padded = np.pad(rows - 0.5, ((0, 0), (0, 1)), constant_values=0.05).astype(np.float32)
        return padded / np.linalg.norm(padded, axis=1, keepdims=True)


def draw(path: Path, colour: str = "red", size: tuple[int, int] = (48, 32), **save: Any) -> Path:
    """Save a picture of one colour with a dark border at its lower right, so that ups show."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, COLOURS[colour])
    image.paste((60, 60, 60), (size[0] - size[0] // 4, size[1] - size[1] // 4, *size))
    image.save(path, **save)
    return path


@pytest.fixture
def encoder() -> ColourEncoder:
    return ColourEncoder()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with a space in its name and a picture of each colour, two of them below."""
    folder = tmp_path / "my photos"
    for i, colour in enumerate(COLOURS):
        below = "trip/" if i % 3 == 0 else ""
        # Sizes differ, so that contents and file sizes do.
        draw(folder / f"{below}{colour}.jpg", colour, (48 + i, 32))
    return folder


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server of PostgreSQL's; a test that asks for one is skipped where none is installed."""
    from tests.postgres_server import postgres_of_tests

    with postgres_of_tests() as server:
        yield server


@pytest.fixture(
    scope="session",
    params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)],
)
def address_of_catalog(request: pytest.FixtureRequest) -> Callable[[], Address | None]:
    """Where a new catalog is kept: in a file, and then in a schema of its own on a server."""
    if request.param == "sqlite":
        return lambda: None
    server: Postgres = request.getfixturevalue("postgres")
    return server.address


@pytest.fixture(
    scope="session",
    params=[None, pytest.param("postgresql", marks=pytest.mark.postgresql)],
    ids=["sqlite", "postgresql"],
)
def catalog_url(request: pytest.FixtureRequest) -> str | None:
    """What a new library is made with: nothing, and then a server's address."""
    if request.param is None:
        return None
    server: Postgres = request.getfixturevalue("postgres")
    return server.url


@pytest.fixture(scope="session")
def _names_of_compact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("names")


@pytest.fixture(autouse=True)
def _own_home(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    _names_of_compact: Path,
) -> Iterator[None]:
    """Keep the user's own data and state directories out of every test.

    What is passed on is the bundled encoder's vectors of the background, a second's work each time.
    """
    home = tmp_path_factory.mktemp("home")
    folders = ("XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "LOCALAPPDATA")
    for name in ("HOME", "USERPROFILE", *folders):
        monkeypatch.setenv(name, str(home))
    # Size of a terminal that is none: pytest-xdist sets them.
    for name in ("MMSEARCH_CACHE", "MMSEARCH_LIBRARY", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    assert os.environ["HOME"] == str(home)
    cached = home / "mmsearch" / "tags"
    cached.mkdir(parents=True)
    for kept in _names_of_compact.iterdir():
        shutil.copyfile(kept, cached / kept.name)
    yield
    for made in cached.glob("compact*.npy"):
        shutil.copyfile(made, _names_of_compact / made.name)
