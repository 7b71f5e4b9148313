"""Indexing: a folder of pictures into a library, again and again at the cost of what changed.

scan → read and decode (threads, a bounded number ahead) → embed (one batch at a time) → one
transaction per batch. The order is the sorted order of paths and every batch is committed whole,
so an interrupted run loses at most its current batch and the next one goes on from there.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsearch.errors import MediaError, ModelMismatch, SourceError
from mmsearch.retrieval.captions import read_sidecar, sidecar_names
from mmsearch.retrieval.encoders import DEFAULT_MODEL, Encoder, load_encoder
from mmsearch.retrieval.library import Library, remember_library
from mmsearch.retrieval.media import open_picture, orientation, read_bytes, upright_rgb
from mmsearch.retrieval.metadata import read_metadata
from mmsearch.retrieval.pairs import read_pairs
from mmsearch.retrieval.scan import FoundFile, Scan, scan
from mmsearch.retrieval.schema import Caption, Picture, Problem, Target

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mmsearch.retrieval.catalog import KnownFile, Transaction

__all__ = ["IndexReport", "Progress", "index"]

logger = logging.getLogger(__name__)

CAPTIONS_PER_COMMIT = 512
AHEAD = 4
"""Batches decoded ahead of the encoder: memory stays bounded, the encoder rarely waits."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, for whoever shows it.

    Attributes:
        stage: `scan`, `pictures`, `captions` or `index`.
        done: how many of `total` are finished in this stage.
    """

    stage: str
    done: int
    total: int


@dataclass(slots=True)
class IndexReport:
    """What a run did.

    Attributes:
        added: pictures that were not there before.
        updated: pictures whose content changed.
        unchanged: pictures that were not read again, or were and are the same.
        moved: pictures that were found under another path.
        removed: pictures that are gone.
        problems: files that could not be indexed, in this or an earlier run.
        captions: captions the library holds now.
        unmatched: rows of the captions file whose picture is not in the library.
        embedded: pictures that went through the encoder.
        seconds: the whole run.
    """

    library: Path
    model: str
    added: int = 0
    updated: int = 0
    unchanged: int = 0
    moved: int = 0
    removed: int = 0
    problems: int = 0
    captions: int = 0
    unmatched: list[str] = field(default_factory=list)
    embedded: int = 0
    seconds: float = 0.0

    @property
    def files(self) -> int:
        """Pictures in the library."""
        return self.added + self.updated + self.unchanged + self.moved

    def to_json(self) -> dict[str, Any]:
        """Return the object that `index --json` prints."""
        return {
            "schema": 1,
            "library": str(self.library),
            "model": self.model,
            "added": self.added,
            "updated": self.updated,
            "unchanged": self.unchanged,
            "moved": self.moved,
            "removed": self.removed,
            "problems": self.problems,
            "captions": self.captions,
            "captions_unmatched": len(self.unmatched),
            "embedded": self.embedded,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.embedded / max(self.seconds, 1e-9), 2),
        }


@dataclass(frozen=True, slots=True)
class _Read:
    """One file, read: a picture with its captions, and its pixels unless its content is known."""

    picture: Picture
    captions: list[Caption]
    pixels: NDArray[Any] | None


def index(
    folder: Path | str,
    *,
    model: str | Path | Encoder | None = None,
    captions: Path | str | None = None,
    reembed: bool = False,
    retry: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> IndexReport:
    """Bring the library of a folder of pictures up to date, making it when there is none.

    Args:
        folder: the pictures; read, never written to but for the library's own folder.
        model: the encoder; a new library takes `compact`, an existing one keeps its own.
        captions: a file of (picture, caption) pairs, see `read_pairs`; replaces what a file of
            the same name gave before.
        reembed: allow another model than the library's: everything is embedded again, and
            queries keep using the old vectors until that is complete.
        retry: read files again that could not be indexed before.
        progress: called often, from this thread.

    Raises:
        SourceError: the folder or the captions file cannot be used, or holds no picture.
        ModelMismatch: another model than the library's, without `reembed`.
        LibraryLocked: another process is indexing this library.
        StorageError: the disk is full or read-only.
    """
    started = time.perf_counter()
    root = Path(folder).expanduser().absolute()
    report_progress = progress or (lambda _: None)
    pairs_file = None if captions is None else Path(captions).expanduser()
    pairs = [] if pairs_file is None else read_pairs(pairs_file)

    report_progress(Progress("scan", 0, 0))
    found = scan(root)
    if not found.files and not found.unusable:
        raise SourceError(_nothing_found(root, found))

    library = Library.create(root)
    try:
        with library.indexing():
            encoder = _encoder(library, model, reembed=reembed)
            run = _Run(library, encoder, found, report_progress)
            run.pictures(retry=retry)
            if pairs_file is not None:
                run.captions_file(pairs_file, [(pair.path, pair.caption) for pair in pairs])
            run.embed_captions()
            run.finish()
        remember_library(root)
        run.report.seconds = time.perf_counter() - started
        return run.report
    finally:
        library.close()


def _nothing_found(root: Path, found: Scan) -> str:
    where = f"No pictures were found in {root}"
    if found.unreadable:
        return f"{where}: {len(found.unreadable)} of its folders cannot be read. Check permissions."
    return (
        f"{where} (JPEG, PNG, WebP, GIF, BMP, TIFF, HEIC and AVIF are looked for, hidden folders "
        "are not). Nothing was changed."
    )


def _encoder(library: Library, model: str | Path | Encoder | None, *, reembed: bool) -> Encoder:
    row = library.catalog.library()
    encoder = load_encoder(model or row.model or DEFAULT_MODEL)
    if row.encoder not in {None, encoder.spec} and not reembed:
        assert row.encoder is not None
        raise ModelMismatch(
            f"The library at {library.root} was built with {row.encoder.label}, and "
            f"{encoder.spec.label} makes other vectors. To embed every picture again, run: "
            f"mmsearch index {library.root} --model {encoder.location} --reembed"
        )
    return encoder


class _Run:
    """One run of `index`: the state its stages share."""

    def __init__(
        self,
        library: Library,
        encoder: Encoder,
        found: Scan,
        progress: Callable[[Progress], None],
    ) -> None:
        self.library = library
        self.catalog = library.catalog
        self.encoder = encoder
        self.found = found
        self.progress = progress
        self.report = IndexReport(library.root, encoder.spec.label)
        with self.catalog.write() as transaction:
            self.encoder_id = transaction.encoder_id(encoder.spec, encoder.location)
            if self.catalog.library().encoder_id is None:
                transaction.activate(self.encoder_id)
        self.known = self.catalog.known_files(self.encoder_id)

    def pictures(self, *, retry: bool) -> None:
        """Read, embed and commit what is new or changed; forget what is gone."""
        broken = self.catalog.known_problems()
        todo: dict[str, FoundFile] = {}
        for path, file in self.found.files.items():
            if not retry and broken.get(path) == (file.size, file.mtime_ns):
                continue
            if self._is_current(self.known.get(path), file):
                self.report.unchanged += 1
            else:
                todo[path] = file
        contents = self.catalog.known_contents(
            (file.size for file in todo.values()), self.encoder_id
        )
        gone = self._gone()
        done = 0
        self.progress(Progress("pictures", 0, len(todo)))
        for batch in self._read_all(todo, contents):
            self._commit(batch, gone)
            done += len(batch)
            self.progress(Progress("pictures", done, len(todo)))
        self._forget(gone, broken)

    def captions_file(self, source: Path, pairs: list[tuple[str, str]]) -> None:
        """Make the captions of a file those of the pictures it names."""
        name = f"file:{source.name}"
        known = self.catalog.known_files(self.encoder_id)
        locate = _Locator(self.library.root, source.absolute().parent, known)
        by_file: dict[int, list[Caption]] = {
            file_id: [] for file_id in self.catalog.files_captioned_by(name)
        }
        for path, text in pairs:
            file_id = locate(path)
            if file_id is None:
                self.report.unmatched.append(path)
            else:
                by_file.setdefault(file_id, []).append(Caption(text, name))
        with self.catalog.write() as transaction:
            for file_id, captions in by_file.items():
                transaction.set_captions(file_id, captions, sources=[name])

    def embed_captions(self) -> None:
        """Embed every caption that this encoder has not seen."""
        total = self.catalog.count_captions_to_embed(self.encoder_id)
        done = 0
        while rows := self.catalog.captions_to_embed(self.encoder_id, CAPTIONS_PER_COMMIT):
            self.progress(Progress("captions", done, total))
            vectors = self.encoder.encode_texts([text for _, text in rows])
            with self.catalog.write() as transaction:
                transaction.put_caption_vectors(self.encoder_id, [id_ for id_, _ in rows], vectors)
            done += len(rows)
        self.progress(Progress("captions", done, total))

    def finish(self) -> None:
        """Answer with this encoder's vectors from now on, and write the index files."""
        if self.catalog.library().encoder_id != self.encoder_id:
            with self.catalog.write() as transaction:
                transaction.activate(self.encoder_id)
        self.progress(Progress("index", 0, 1))
        for target in Target:
            self.library.open_index(target)
        self.progress(Progress("index", 1, 1))
        counts = self.catalog.counts()
        self.report.problems = counts.problems
        self.report.captions = counts.captions

    def _is_current(self, known: KnownFile | None, file: FoundFile) -> bool:
        return (
            known is not None
            and known.embedded
            and (known.size, known.mtime_ns, known.sidecars)
            == (file.size, file.mtime_ns, file.sidecars)
        )

    def _gone(self) -> dict[int, str]:
        """Return id and path of known pictures that the scan has not seen and could have seen."""
        return {
            file.id: path
            for path, file in self.known.items()
            if path not in self.found.files and not self.found.may_hold(path)
        }

    def _read_all(
        self, todo: Mapping[str, FoundFile], contents: Mapping[bytes, int]
    ) -> Iterator[list[_Read | tuple[str, MediaError]]]:
        """Yield batches of read files in order, reading a bounded number ahead."""
        size = self.encoder.batch_size
        batch: list[_Read | tuple[str, MediaError]] = []
        with ThreadPoolExecutor(_workers(), thread_name_prefix="read") as pool:
            window: deque[tuple[str, Future[_Read]]] = deque()
            try:
                for path, file in todo.items():
                    window.append((path, pool.submit(self._read, path, file, contents)))
                    if len(window) >= AHEAD * size:
                        batch.append(_result(*window.popleft()))
                    if len(batch) == size:
                        yield batch
                        batch = []
                while window:
                    batch.append(_result(*window.popleft()))
                    if len(batch) == size:
                        yield batch
                        batch = []
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        if batch:
            yield batch

    def _read(self, path: str, file: FoundFile, contents: Mapping[bytes, int]) -> _Read:
        """Read one file in a worker thread; decode it unless its content is known."""
        absolute = self.library.root / path
        data = read_bytes(absolute)
        digest = sha256(data).digest()
        image = open_picture(data)
        facts = read_metadata(image)
        turn = orientation(image)
        width, height = image.size if turn < 5 else image.size[::-1]
        format_ = image.format or "unknown"
        pixels = None
        if digest not in contents:
            upright = upright_rgb(image, at_least=self.encoder.decode_size)
            pixels = self.encoder.prepare(upright)
        captions = list(facts.captions)
        if file.sidecars:
            beside = (absolute.with_name(name) for name in sidecar_names(absolute.name))
            captions = [caption for path in beside for caption in read_sidecar(path)] + captions
        picture = Picture(
            path=path,
            size=file.size,
            mtime_ns=file.mtime_ns,
            sha256=digest,
            format=format_,
            width=width,
            height=height,
            orientation=turn,
            taken_at=facts.taken_at,
            latitude=facts.latitude,
            longitude=facts.longitude,
            camera=facts.camera,
            sidecars=file.sidecars,
        )
        return _Read(picture, captions, pixels)

    def _commit(self, batch: list[_Read | tuple[str, MediaError]], gone: dict[int, str]) -> None:
        """Embed a batch and write all of it in one transaction."""
        reads = [item for item in batch if isinstance(item, _Read)]
        fresh = [item for item in reads if item.pixels is not None]
        pixels = [item.pixels for item in reads if item.pixels is not None]
        vectors = self.encoder.encode_pixels(pixels)
        vector_of = {item.picture.path: row for item, row in zip(fresh, vectors, strict=True)}
        self.report.embedded += len(fresh)
        with self.catalog.write() as transaction:
            for item in batch:
                if isinstance(item, _Read):
                    self._write(transaction, item, vector_of.get(item.picture.path), gone)
                else:
                    path, error = item
                    file = self.found.files[path]
                    problem = Problem(path, error.kind, str(error))
                    transaction.put_problem(problem, file.size, file.mtime_ns)

    def _write(
        self,
        transaction: Transaction,
        item: _Read,
        vector: NDArray[np.float32] | None,
        gone: dict[int, str],
    ) -> None:
        picture = item.picture
        known = self.known.get(picture.path)
        same = transaction.files_with(picture.sha256)
        if known is not None and known.id in same and known.embedded:
            # Only its time or its side-cars changed.
            transaction.refresh_file(known.id, picture)
            file_id = known.id
            self.report.unchanged += 1
        elif known is None and (old := next((id_ for id_ in same if id_ in gone), None)):
            transaction.refresh_file(old, picture)
            file_id = old
            if vector is not None:
                # It was moved while a change of model is under way.
                transaction.put_file(picture, self.encoder_id, vector)
            del gone[old]
            self.report.moved += 1
        else:
            if vector is None:
                vector = transaction.vector_of(picture.sha256, self.encoder_id)
            if vector is None:
                # Its twin was itself replaced a moment ago (two files that swapped names).
                vector = self.encoder.encode_images([self.library.root / picture.path])[0]
            file_id = transaction.put_file(picture, self.encoder_id, vector)
            if known is None:
                self.report.added += 1
            else:
                self.report.updated += 1
        transaction.set_captions(file_id, item.captions)

    def _forget(self, gone: Mapping[int, str], broken: Iterable[str]) -> None:
        """Drop pictures and problems whose files are gone; record names that are no files."""
        found = self.found
        settled = [
            path
            for path in broken
            if path not in found.files and path not in found.unusable and not found.may_hold(path)
        ]
        with self.catalog.write() as transaction:
            transaction.remove_files(gone)
            transaction.resolve_problems(settled)
            for path, reason in (found.unusable | found.unreadable).items():
                kind = "not-a-file" if path in found.unusable else "unreadable"
                transaction.put_problem(Problem(path, kind, reason), 0, 0)
        self.report.removed = len(gone)


class _Locator:
    """Finds the picture that a row of a captions file means."""

    def __init__(self, root: Path, beside: Path, known: Mapping[str, KnownFile]) -> None:
        self._root = root
        self._beside = beside
        self._by_path = {path: file.id for path, file in known.items()}
        by_name: dict[str, list[int]] = {}
        for path, file in known.items():
            by_name.setdefault(path.rpartition("/")[2], []).append(file.id)
        self._by_name = {name: ids[0] for name, ids in by_name.items() if len(ids) == 1}

    def __call__(self, path: str) -> int | None:
        """Return the id of the picture at `path`: relative to the library, absolute, relative to
        the captions file, or a file name that occurs once in the library.
        """  # noqa: D205 (one sentence)
        plain = path.replace("\\", "/").removeprefix("./")
        if plain in self._by_path:
            return self._by_path[plain]
        absolute = Path(os.path.normpath(self._beside / path))
        if absolute.is_relative_to(self._root):
            inside = absolute.relative_to(self._root).as_posix()
            if inside in self._by_path:
                return self._by_path[inside]
        return self._by_name.get(plain.rpartition("/")[2])


def _result(path: str, future: Future[_Read]) -> _Read | tuple[str, MediaError]:
    try:
        return future.result()
    except MediaError as error:
        return path, error


def _workers() -> int:
    # Reading waits for the disk now and then, so one thread more than cores.
    return (os.cpu_count() or 1) + 1
