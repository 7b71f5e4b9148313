"""A library: a folder of pictures, and beside them the catalog and the indexes made from it.

    photos/                     the user's pictures, never written to
      .mmsearch/                the library's folder
        catalog.sqlite          the truth, where no server keeps it
        library.toml            where catalog or index are kept elsewhere, see `library_config`
        index/images-7-9f3c21aa.faiss     derived; named after the catalog's state
        index/null-distribution           derived; see `null_distribution`
        regions.sqlite          derived; what rerankers are spared, see `RegionStore`
        thumbnails/             derived; made by `mmsearch serve`
        set-aside/              former catalogs: damaged ones, and those that a backup replaced
        lock, lock.holder       held by the one process that writes, and which that is

Paths in the catalog are relative to the pictures, so the whole folder can be moved. Where the
pictures' folder cannot be written to, the library's folder lies in the user's data directory.
"""

from __future__ import annotations

import hashlib
import logging
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from errno import EACCES, EPERM, EROFS
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsearch.errors import LibraryError, LibraryNotFound, SourceError, StorageError, quoted
from mmsearch.indexes.base import replacing
from mmsearch.retrieval.adapter import Adapter
from mmsearch.retrieval.catalog import Address, Catalog, LibraryRow, RegionStore
from mmsearch.retrieval.index_files import IndexFiles, Report, silent
from mmsearch.retrieval.library_config import CONFIG, LibraryConfig, without_secrets
from mmsearch.retrieval.schema import Target
from mmsearch.retrieval.writer_lock import writing

if TYPE_CHECKING:
    from mmsearch.indexes import VectorIndex
    from mmsearch.retrieval.index_store import IndexStore
    from mmsearch.retrieval.schema import EncoderSpec

__all__ = [
    "ENVIRONMENT",
    "FOLDER",
    "Library",
    "catalog_of",
    "find_library",
    "library_above",
    "remember_library",
    "set_aside",
]

logger = logging.getLogger(__name__)

FOLDER = ".mmsearch"
ENVIRONMENT = "MMSEARCH_LIBRARY"
CATALOG = "catalog.sqlite"
REGIONS = "regions.sqlite"
BEGINNING_S = 60.0
"""How long one process that makes a library waits for another that does."""
ASIDE = "set-aside"


class Library:
    """One library on disk.

    Attributes:
        root: the folder of pictures.
        folder: the library's own folder.
        config: what is kept elsewhere.
        catalog: its catalog.
        regions: what is kept about the parts of its pictures.
    """

    def __init__(self, root: Path, folder: Path, config: LibraryConfig, catalog: Catalog) -> None:
        self.root = root
        self.folder = folder
        self.config = config
        self.catalog = catalog
        self.regions = RegionStore(folder / REGIONS)
        self._files: IndexFiles | IndexStore
        if config.store is None:
            self._files = IndexFiles(folder / "index", catalog, self.adapter)
        else:
            self._files = _store(root, config.store, catalog, self.adapter)

    @classmethod
    def open(cls, path: Path) -> Library:
        """Open the library of a folder of pictures (or the library's own folder).

        Raises:
            LibraryNotFound: there is none.
            LibraryTooNew: a later version of mmsearch made it.
            StorageError: its catalog is damaged.
        """
        place = catalog_of(path)
        folder, config = place.parent, LibraryConfig.read(place.parent)
        catalog = Catalog.open(place, address=_address(folder, config))
        try:
            root = catalog.library().root
        except LibraryError:
            catalog.close()
            raise
        if catalog.served and folder.name == FOLDER:
            root = None  # another machine's may be elsewhere
        return cls(root or folder.parent, folder, config, catalog)

    @classmethod
    def create(cls, root: Path, *, catalog: str | None = None, store: str | None = None) -> Library:
        """Open the library of `root`, making an empty one where there is none.

        Args:
            root: the folder of pictures.
            catalog: where a new library's catalog is kept, see `LibraryConfig`; an existing one
                keeps its own.
            store: where its vectors are searched.

        Raises:
            SourceError: an address is none, or another than an existing library's.
            StorageError: neither the folder nor the user's data directory can be written to.
            StoreError: the store does not answer, or does not let us in.
        """
        root = root.absolute()
        asked = LibraryConfig(catalog, store)
        folder = _library_folder(root)
        known = None if folder is None else LibraryConfig.read(folder)
        if known is not None:
            _refuse_another(root, known, asked)
        config = known or asked
        if config.store is not None:
            # Nothing is begun that would come to nothing in hours.
            _reach(config.store)
        if folder is None:
            folder = _make_folder(root)
        where = None if folder.parent == root else root
        if known is None and asked != LibraryConfig():
            return cls._begun(root, folder, asked, where)
        opened = Catalog.create(folder / CATALOG, root=where, address=_address(folder, config))
        return cls(root, folder, config, opened)

    @classmethod
    def _begun(cls, root: Path, folder: Path, asked: LibraryConfig, where: Path | None) -> Library:
        """Make a library that keeps something elsewhere.

        First it is made sure that nothing else is there, then the folder says where, then it is
        made: whenever this is cut short, the same command goes on. Whoever begins at the same
        moment waits.
        """
        with writing(folder, root, wait=BEGINNING_S):
            config = LibraryConfig.read(folder)
            new = config == LibraryConfig()
            if new:
                uid = None if asked.catalog is None else str(uuid.uuid4())
                config = replace(asked, uid=uid)
            else:
                _refuse_another(root, config, asked)
            address = _address(folder, config)
            try:
                if new and address is not None:
                    Catalog.look(address)
                if new:
                    config.write(folder)
                opened = Catalog.create(folder / CATALOG, root=where, address=address)
            except LibraryNotFound:
                # Another library is there: this folder is none.
                if new:
                    LibraryConfig().write(folder)
                raise
        return cls(root, folder, config, opened)

    @property
    def null_file(self) -> Path:
        """Where `null_distribution` keeps what scores mean nothing here."""
        return self.folder / "index" / "null-distribution"

    @property
    def model(self) -> str | None:
        """What `load_encoder` takes to get this library's encoder; None before any indexing."""
        return self.catalog.library().model

    def index_file(self, target: Target, row: LibraryRow) -> Path | None:
        """Return the file of a state's index; None where none is made yet, or none ever is."""
        if not isinstance(self._files, IndexFiles):
            return None
        path = self._files.path(target, row.stamp)
        return path if path.is_file() else None

    def store_differences(self, target: Target, row: LibraryRow) -> tuple[str, int, str] | None:
        """Compare a store's vectors with the catalog; None where there is no store.

        Returns:
            The collection's name, how many vectors it has, and what is wrong with it.

        Raises:
            StoreError: the store does not answer, or holds something else.
        """
        if isinstance(self._files, IndexFiles):
            return None
        return self._files.differences(target, row)

    def close(self) -> None:
        """Release the catalog, and what lies beside it."""
        self.catalog.close()
        self.regions.close()

    @contextmanager
    def indexing(self, wait: float = 0.0, *, together: bool = False) -> Iterator[bool]:
        """Be the one process that writes to this library; yield whether another had to finish.

        Args:
            together: let others that say the same write, too, where a server keeps the catalog.
            wait: seconds to wait for another one; `math.inf` for as long as it takes.

        Raises:
            LibraryLocked: another one is at it, which the message names.
            StorageError: the library cannot be written to, or lies where locks do not work.
        """
        lock = writing(self.folder, self.root, wait=wait)
        if self.catalog.served:
            lock = self.catalog.running(self.root, wait, together=together)
        with lock as waited:
            yield waited

    def adapter(self, row: LibraryRow) -> Adapter | None:
        """Return what adapts texts in the state that `row` names; None where nothing does.

        Raises:
            StorageError: its weights are damaged.
        """
        stored = None if row.adapter_id is None else self.catalog.adapter(row.adapter_id)
        if stored is None or row.encoder is None:
            return None
        try:
            return Adapter.from_bytes(stored.weights, row.encoder.dim)
        except ValueError as error:
            raise StorageError(
                f"What mmsearch tune learned for {self.root} is damaged: {error}. Go back to the "
                f"model as it was: mmsearch tune --reset --library {quoted(self.root)}"
            ) from error

    def keep_image_index(self, stamp: str) -> None:
        """Call the pictures' index of the state `stamp` current: only texts changed since.

        Where that is impossible the index is made anew from the catalog when it is needed.
        """
        self._files.rename(stamp, self.catalog.stamp())

    def active_encoder(self, row: LibraryRow) -> tuple[int, EncoderSpec]:
        """Return the id and the spec of the encoder whose vectors answer queries.

        Raises:
            LibraryNotFound: nothing was ever indexed.
        """
        if row.encoder is None or row.encoder_id is None:
            raise LibraryNotFound(
                f"The library at {self.root} holds nothing yet. "
                f"Run: mmsearch index {quoted(self.root)}"
            )
        return row.encoder_id, row.encoder

    def open_index(
        self, target: Target, row: LibraryRow, *, thorough: bool = False, progress: Report = silent
    ) -> VectorIndex:
        """Return the index of the pictures or the captions in the state that `row` names.

        Captions are in it as that state's adapter makes them, like the texts of queries.

        Args:
            target: what is searched.
            row: the state.
            thorough: check every byte of the file, and train another index where the present one
                is outgrown: what takes too long while somebody waits for an answer.
            progress: called with a stage, how much of it is done and how much there is.

        Raises:
            LibraryNotFound: nothing was ever indexed.
        """
        self.active_encoder(row)
        return self._files.open(target, row, thorough=thorough, progress=progress)

    def refresh_indexes(self, progress: Report) -> None:
        """Bring every index up to date, thoroughly: the last thing that a writer does.

        Args:
            progress: called with a stage, how much of it is done and how much there is.
        """
        row = self.catalog.library()
        for target in Target:
            self.open_index(target, row, thorough=True, progress=progress)
        with self.catalog.write() as transaction:
            transaction.forget_changes(row.stamp)

    def verify_index(self, target: Target, progress: Report) -> int:
        """Compare the index of the present state with the catalog; return its number of vectors.

        Args:
            target: what is searched.
            progress: called with a stage, how much of it is done and how much there is.

        Raises:
            StorageError: a file is damaged, or holds something else.
            StoreError: a store does.
        """
        return self._files.verify(target, self.catalog.library(), progress)

    def search_of(self, target: Target, row: LibraryRow) -> tuple[bool, float | None]:
        """Say whether a state's index is exact, and the recall (0 to 1) that was measured of it.

        Where there is none yet, a query makes an exact one.
        """
        return self._files.search_of(target, row)

    def build_index(
        self,
        target: Target,
        row: LibraryRow,
        *,
        settings: Mapping[str, Any] | None = None,
        train: bool = True,
        progress: Report = silent,
    ) -> VectorIndex:
        """Make an index from the catalog, whatever is there, save it and return it.

        Args:
            target: what is searched.
            row: the state.
            settings: keyword arguments of `indexes.build`; those of the last time if not given.
            train: False for an exact index, whatever a search in it takes. The next thorough
                opening makes up for it.
            progress: called with a stage, how much of it is done and how much there is.

        Raises:
            LibraryNotFound: nothing was ever indexed.
        """
        self.active_encoder(row)
        return self._files.build(target, row, settings=settings, train=train, progress=progress)


def _store(
    root: Path, address: str, catalog: Catalog, adapter: Callable[[LibraryRow], Adapter | None]
) -> IndexStore:
    # What a library without a store does not need is not loaded.
    from mmsearch.retrieval.index_store import IndexStore

    return IndexStore(root, address, catalog, adapter)


def _reach(address: str) -> None:
    from mmsearch.retrieval.index_store import reach

    reach(address)


def find_library(given: Path | None = None) -> tuple[Path, str]:
    """Return the path of the library that should answer, and how it was found.

    In this order: `given`, the environment variable MMSEARCH_LIBRARY, the nearest library in the
    working directory or above, the only library in a folder directly below, and the library that
    this user indexed last.

    Raises:
        LibraryNotFound: none of these leads to a library.
    """
    if given is not None:
        return given, "given"
    if os.environ.get(ENVIRONMENT):
        return Path(os.path.expanduser(os.environ[ENVIRONMENT])), ENVIRONMENT  # noqa: PTH111
    here = Path.cwd()
    for folder in (here, *here.parents):
        if _library_folder(folder) is not None:
            return folder, "here"
    below = _libraries_below(here)
    if len(below) == 1:
        return below[0], "below"
    if below:
        names = ", ".join(sorted(path.name for path in below))
        raise LibraryNotFound(
            f"There are several libraries below {here}: {names}. Choose one with --library."
        )
    last = _last_library_file()
    # After a loss of power the file may hold anything.
    with suppress(OSError, ValueError):
        path = Path(os.fsdecode(last.read_bytes()))
        if _library_folder(path) is not None:
            return path, "last"
    raise LibraryNotFound(
        f"There is no library in {here}, above it or directly below it. Make one with: "
        "mmsearch index FOLDER, or name one with --library."
    )


def catalog_of(path: Path) -> Path:
    """Return the catalog of a folder of pictures, or of the library's own folder, unopened.

    Raises:
        LibraryNotFound: there is none.
        StorageError: it may not be read.
    """
    folder = _library_folder(path.absolute())
    if folder is None:
        raise _no_library(path)
    return folder / CATALOG


def set_aside(folder: Path) -> Path | None:
    """Move a library's catalog, with its log, into a folder beside it; return that folder.

    None where there is no catalog. The log belongs to that very file: beside another it would be
    worked into it.
    """
    parts = [folder / f"{CATALOG}{end}" for end in ("-wal", "-shm", "")]
    there = [part for part in parts if part.exists()]
    if not there:
        return None
    aside = folder / ASIDE / datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    aside.mkdir(parents=True)
    for part in there:
        part.rename(aside / part.name)
    return aside


def library_above(folder: Path) -> Path | None:
    """Return the nearest folder, from `folder` upwards, that has a library."""
    above = (folder, *folder.parents)
    return next((one for one in above if _library_folder(one) is not None), None)


def remember_library(root: Path) -> None:
    """Make this the library that answers where no other is nearer."""
    path = _last_library_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(os.fsencode(root.absolute()))
    except OSError as error:
        logger.info("the last library is not remembered: %s", error)


def _library_folder(path: Path) -> Path | None:
    """Return the library's folder for a path that names the pictures or that folder itself."""
    for folder in (path / FOLDER, path):
        if folder.name == FOLDER and _is_library(folder):
            return folder
    elsewhere = _folder_elsewhere(path)
    return elsewhere if _is_library(elsewhere) else None


def _is_library(folder: Path) -> bool:
    # Unlike `Path.is_file`, says no to folders that may not be entered and to impossible names.
    return os.path.isfile(folder / CATALOG) or os.path.isfile(folder / CONFIG)  # noqa: PTH113


def _refuse_another(root: Path, config: LibraryConfig, asked: LibraryConfig) -> None:
    """Refuse to keep a part of an existing library elsewhere than it is.

    Raises:
        SourceError: that was asked for.
    """
    for what, now, wanted in (
        ("catalog", config.catalog, asked.catalog),
        ("store", config.store, asked.store),
    ):
        if wanted is not None and wanted != now:
            there = "in its folder" if now is None else f"at {without_secrets(now)}"
            raise SourceError(
                f"The library at {root} keeps its {what} {there}. To change that without "
                f"embedding again, run: mmsearch move --to {quoted(wanted)} "
                f"--library {quoted(root)}"
            )


def _address(folder: Path, config: LibraryConfig) -> Address | None:
    """Return where a library's catalog is kept; None for a file in its folder.

    Raises:
        StorageError: the folder does not say which library's it is.
    """
    if config.catalog is None:
        return None
    if config.uid is None:
        raise StorageError(
            f"{folder / CONFIG} names a catalog, and not the uid of the library in it. Copy the "
            "whole file from a folder of that library; or delete it, and make a new library with "
            "mmsearch index FOLDER --catalog ADDRESS."
        )
    return Address.of(config.catalog, config.uid)


def _no_library(path: Path) -> LibraryError:
    try:
        path.stat()
        (path / FOLDER / CATALOG).stat()
    except PermissionError:
        return StorageError(f"The library at {path} may not be read by you. Check its permissions.")
    except (OSError, ValueError):
        pass
    if os.path.isfile(path):  # noqa: PTH113
        return LibraryNotFound(f"{path} is a file, not a library. Give the folder that holds it.")
    missing = "" if os.path.exists(path) else " (the folder does not exist)"  # noqa: PTH110
    return LibraryNotFound(
        f"There is no library at {path}{missing}. Make one with: mmsearch index {quoted(path)}"
    )


def _make_folder(root: Path) -> Path:
    """Make the library's folder: beside the pictures or, where that is not allowed, elsewhere."""
    beside = root / FOLDER
    try:
        beside.mkdir(exist_ok=True)
    except OSError as reason:
        if reason.errno not in {EACCES, EPERM, EROFS}:
            raise StorageError(
                f"The library's folder {beside} cannot be made: {reason.strerror}."
            ) from reason
        elsewhere = _folder_elsewhere(root)
        try:
            elsewhere.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"A library for {root} can be made neither there ({reason.strerror}) nor at "
                f"{elsewhere} ({error.strerror})."
            ) from error
        logger.warning("%s cannot be written to; its library is kept in %s", root, elsewhere)
        return elsewhere
    return beside


def _libraries_below(folder: Path) -> list[Path]:
    try:
        entries = [entry for entry in os.scandir(folder) if entry.is_dir()]
    except OSError:
        return []
    folders = (Path(entry.path) for entry in entries)
    return [path for path in folders if _is_library(path / FOLDER)]


def _folder_elsewhere(root: Path) -> Path:
    from platformdirs import user_data_path

    real = os.path.realpath(root)
    name = hashlib.sha256(os.fsencode(real)).hexdigest()[:16]
    return user_data_path("mmsearch", appauthor=False) / "libraries" / name


def _last_library_file() -> Path:
    from platformdirs import user_state_path

    return user_state_path("mmsearch", appauthor=False) / "last-library"
