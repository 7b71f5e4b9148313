"""Indexing: a folder of pictures into a library, again and again at the cost of what changed.

scan → read and decode (threads, a bounded number ahead) → embed (one batch at a time) → one
transaction per batch. The order is the sorted order of paths and every batch is committed whole,
so an interrupted run loses at most the few batches that are under way, and the next one goes on
from there.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch.errors import MediaError, ModelMismatch, SourceError, quoted
from mmsearch.retrieval import null_distribution
from mmsearch.retrieval.blocks import NodeRate, NodeRates
from mmsearch.retrieval.cluster import check_address, joined
from mmsearch.retrieval.containers import is_there
from mmsearch.retrieval.describing import describe_pictures
from mmsearch.retrieval.distributed import embed_on
from mmsearch.retrieval.embedding import Embedded, Progress, embed_captions, embed_files
from mmsearch.retrieval.encoders import DEFAULT_MODEL, Encoder, load_encoder
from mmsearch.retrieval.library import Library
from mmsearch.retrieval.media import TRANSIENT_KINDS, open_picture
from mmsearch.retrieval.pace import Pace, Stage
from mmsearch.retrieval.pairs import Locator, read_pairs
from mmsearch.retrieval.reading import Read, Unread
from mmsearch.retrieval.rerankers.bundled import region_reader
from mmsearch.retrieval.scan import FoundFile, Scan, would_list
from mmsearch.retrieval.schema import Caption, Problem, tell_apart
from mmsearch.retrieval.sharing import Claims, Shared
from mmsearch.retrieval.survey import survey

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from mmsearch.retrieval.captioners import Captioner
    from mmsearch.retrieval.catalog import KnownFile, KnownProblem, Transaction

__all__ = ["IndexReport", "Progress", "Run", "expanded", "index"]

logger = logging.getLogger(__name__)


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
        files: pictures the library holds now.
        captions: captions the library holds now.
        described: pictures about which a model wrote a caption in this run.
        unmatched: rows of the captions file whose picture is not in the library.
        embedded: pictures that went through the encoder.
        seconds: the whole run.
        shares: the part of the run, 0 to 1, that each stage was at work (`scan`, `decode`: the mean
            of its threads, `encode`, `write`); they overlap.
        bottleneck: the stage that held the run up for longest; None where none took any time.
        nodes: what each machine did, where several did the work; `shares` are of this one.
    """

    library: Path
    model: str
    added: int = 0
    updated: int = 0
    unchanged: int = 0
    moved: int = 0
    removed: int = 0
    problems: int = 0
    files: int = 0
    captions: int = 0
    described: int = 0
    unmatched: list[str] = field(default_factory=list)
    embedded: int = 0
    seconds: float = 0.0
    shares: dict[Stage, float] = field(default_factory=dict)
    bottleneck: Stage | None = None
    nodes: list[NodeRate] = field(default_factory=list)

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
            "files": self.files,
            "captions": self.captions,
            "described": self.described,
            "captions_unmatched": len(self.unmatched),
            "embedded": self.embedded,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.embedded / max(self.seconds, 1e-9), 2),
            "shares": {str(stage): round(share, 3) for stage, share in self.shares.items()},
            "bottleneck": self.bottleneck,
            "nodes": [node.to_json() for node in self.nodes],
        }


def index(
    folder: Path | str | Sequence[Path | str],
    *,
    root: Path | str | None = None,
    catalog: str | None = None,
    store: str | None = None,
    model: str | Path | Encoder | None = None,
    captions: Path | str | None = None,
    describe: str | Path | Captioner | None = None,
    retry: bool = False,
    on: str | None = None,
    only: Collection[str] | None = None,
    later: Collection[str] = (),
    wait: float = 0.0,
    progress: Callable[[Progress], None] | None = None,
) -> IndexReport:
    """Bring the library of a folder of pictures up to date, making it when there is none.

    Args:
        folder: the pictures; read, never written to but for the library's own folder. Or tar
            files (one, or a pattern), a Parquet file, or a list of paths: see `read_list`. Or the
            files themselves, in a list: one new picture takes a fraction of a second. Such runs
            leave alone whatever they do not name.
        root: the library's folder where `folder` is none; the nearest library above the files
            named, or else the folder that they have in common, when not given.
        catalog: where a new library's catalog is kept, if not in its folder: the address of a
            PostgreSQL database, see `LibraryConfig`.
        store: where its vectors are searched, if not in its folder: the address of a Milvus server.
        model: the encoder; a new library takes `compact`, an existing one keeps its own (see
            `migrate`).
        captions: a file of (picture, caption) pairs, see `read_pairs`; replaces what a file of
            the same name gave before.
        describe: a model that writes captions of pictures which have none of people's own, see
            `load_captioner`. What it wrote stays in later runs, with or without it, until the
            picture changes or gets a caption of its own.
        retry: read files again that could not be indexed before.
        on: where pictures are read and embedded, if not here: `local`, `auto` or
            `ray://HOST:PORT`, see `cluster.joined`. The catalog is the same in the end.
        only: what changed in a folder that was indexed before: paths relative to it, of files or
            folders, that are there or no more. Nothing else is looked at, hidden and ignored files
            are left out as ever, and caption files stand for their pictures.
        later: paths, of files or folders, to leave as they are for now, such as files that are
            still being written.
        wait: seconds to wait for another process that writes to this library; `math.inf` for as
            long as it takes.
        progress: called often, from this thread.

    Raises:
        SourceError: the folder or the captions file cannot be used, or holds no picture.
        ModelError: a model cannot be used.
        MissingExtra: the extra `models`, or `ray`, is missing.
        ClusterError: `on` cannot be reached, or its machines cannot do the work.
        ModelMismatch: another model than the library's.
        LibraryNotFound: `only` is given, and the folder was never indexed.
        LibraryLocked: another process is indexing this library.
        StorageError: the disk is full or read-only.
    """
    started = time.perf_counter()
    if not str(folder):
        raise SourceError("The folder's name is empty. Give the folder that holds the pictures.")
    report_progress = progress or (lambda _: None)
    if on is not None:
        check_address(on)
    pairs_file = None if captions is None else expanded(captions)
    pairs = [] if pairs_file is None else read_pairs(pairs_file)

    report_progress(Progress("scan", 0, 0))
    pace = Pace()
    source: Path | list[Path]
    if isinstance(folder, (str, Path)):
        source = expanded(folder)
    else:
        source = [expanded(file) for file in folder]
    with pace.alone(Stage.SCAN):
        above = None if root is None else expanded(root)
        seen = survey(source, above, retry=retry, only=only, later=later)

    if only is None:
        library = Library.create(seen.root, catalog=catalog, store=store)
    else:
        library = Library.open(seen.root)
    try:
        # A cluster shares its work out by itself.
        with library.indexing(wait, together=on is None) as waited:
            if waited:
                # What the other one indexed meanwhile is not gone for being new.
                with pace.alone(Stage.SCAN):
                    seen.look()
            encoder = _encoder(library, model)
            run = Run(library, encoder, seen.found, report_progress, pace)
            run.pictures(retry=retry, on=on)
            if pairs_file is not None:
                run.captions_file(pairs_file, [(pair.path, pair.caption) for pair in pairs])
            if seen.captions and isinstance(source, Path):
                run.captions_file(source, seen.captions)
            if describe is not None:
                run.describe(describe)
            run.embed_captions()
            run.finish()
        run.report.seconds = time.perf_counter() - started
        run.report.shares = pace.shares()
        run.report.bottleneck = pace.bottleneck()
        return run.report
    finally:
        library.close()


def expanded(path: Path | str) -> Path:
    """Return a path with `~` for what it stands for."""
    # Unlike `Path.expanduser`, leaves alone what names no user's home.
    return Path(os.path.expanduser(path))  # noqa: PTH111


def _encoder(library: Library, model: str | Path | Encoder | None) -> Encoder:
    row = library.catalog.library()
    encoder = load_encoder(model or row.model or DEFAULT_MODEL)
    if row.encoder is not None and row.encoder != encoder.spec:
        built, asked = tell_apart(row.encoder, encoder.spec)
        raise ModelMismatch(
            f"The library at {library.root} was built with {built}, and {asked} makes other "
            f"vectors. To embed every picture again, run: mmsearch migrate "
            f"--model {quoted(encoder.location)} --library {quoted(library.root)}"
        )
    return encoder


@dataclass(slots=True)
class _Written:
    """What became of a batch: how many of each field of the report, and ids that were moved."""

    outcomes: Counter[str] = field(default_factory=Counter)
    moved: set[int] = field(default_factory=set)


class Run:
    """One run that changes a library: the state its stages share."""

    def __init__(
        self,
        library: Library,
        encoder: Encoder,
        found: Scan,
        progress: Callable[[Progress], None],
        pace: Pace,
    ) -> None:
        self.library = library
        self.catalog = library.catalog
        self.encoder = encoder
        self.reranker = region_reader(encoder)
        self.found = found
        self.progress = progress
        self.pace = pace
        self.report = IndexReport(library.root, encoder.spec.label)
        with self.catalog.write() as transaction:
            self.encoder_id = transaction.encoder_id(encoder.spec, encoder.location)
            if self.catalog.library().encoder_id is None:
                transaction.activate(self.encoder_id)
        self.known = self.catalog.known_files(self.encoder_id)

    def pictures(self, *, retry: bool, on: str | None = None) -> None:
        """Read, embed and commit what is new or changed; forget what is gone.

        Args:
            retry: try again what could not be read before.
            on: the cluster that reads and embeds; this process where it is None.
        """
        broken = self.catalog.known_problems()
        settled = [path for path in broken if self._is_gone(path) or self._is_mended(path)]
        todo: dict[str, FoundFile] = {}
        for path, file in self.found.files.items():
            if self.is_current(self.known.get(path), file):
                self.report.unchanged += 1
                if path in broken:
                    settled.append(path)
            elif retry or not self._is_hopeless(broken.get(path), file):
                todo[path] = file
        sizes = (file.size for file in todo.values())
        contents = self.catalog.known_contents(sizes, self.encoder_id)
        gone = {file.id: path for path, file in self.known.items() if self._is_gone(path)}
        self.progress(Progress("pictures", 0, len(todo)))
        claims = self.catalog.claims()
        if claims is None:
            self._embed(todo, todo, contents, gone, 0, on=on)
        else:
            # Others may be indexing this library, too.
            with closing(claims):
                self._share(claims, todo, contents, gone, retry=retry)
        self._forget(gone, settled)

    def _embed(
        self,
        files: Mapping[str, FoundFile],
        todo: Mapping[str, FoundFile],
        contents: Mapping[bytes, int],
        gone: dict[int, str],
        done: int,
        *,
        on: str | None = None,
    ) -> int:
        """Read, embed and commit `files`, of all there is `todo`; return how many are done now."""
        shared = files if isinstance(files, Shared) else None
        rates = NodeRates()
        with ExitStack() as stack:
            if on is None or not files:
                batches = embed_files(
                    self.library.root,
                    files,
                    self.encoder,
                    contents=contents,
                    pace=self.pace,
                    reranker=self.reranker,
                )
            else:
                self.progress(Progress("pictures", 0, len(todo), "starting Ray"))
                batches = embed_on(
                    stack.enter_context(joined(on)),
                    self.library.root,
                    files,
                    self.encoder,
                    contents=contents,
                    pace=self.pace,
                    rates=rates,
                )
            # Closed by hand: after Ctrl-C nothing of the run may go on in other threads.
            stack.enter_context(closing(batches))
            for batch in batches:
                self._commit(batch, gone)
                done += len(batch.items)
                skipped = 0
                if shared is not None:
                    shared.done(self._path_of(item) for item in batch.items)
                    skipped = shared.skipped
                remark = self.pace.remark() if on is None else rates.remark()
                self.progress(Progress("pictures", done + skipped, len(todo), remark))
        self.report.nodes = rates.rates()
        return done

    def _share(
        self,
        claims: Claims,
        todo: dict[str, FoundFile],
        contents: Mapping[bytes, int],
        gone: dict[int, str],
        *,
        retry: bool,
    ) -> None:
        """Embed what other runs at the same time do not, until everything is done."""

        def finished(paths: list[str]) -> list[str]:
            known = self.catalog.known_files(self.encoder_id, paths)
            broken = {} if retry else self.catalog.known_problems(paths)
            return [
                path
                for path in paths
                if self.is_current(known.get(path), todo[path])
                or self._is_hopeless(broken.get(path), todo[path])
            ]

        shared = Shared(
            todo,
            self.found.files,
            self.catalog.beginning,
            claims,
            lambda paths: self.catalog.patiently(lambda: finished(paths)),
        )
        done = 0
        while True:
            done = self._embed(shared, todo, contents, gone, done)
            now = Progress("pictures", done + shared.skipped, len(todo), "others are at the rest")
            if not shared.wait(partial(self.progress, now)):
                break
        self.report.unchanged += shared.skipped
        self.progress(Progress("pictures", len(todo), len(todo)))

    def captions_file(self, source: Path, pairs: list[tuple[str, str]]) -> None:
        """Make the captions of a file those of the pictures it names."""
        name = f"file:{source.name}".encode(errors="replace").decode()
        known = self.catalog.known_files(self.encoder_id)
        ids = {path: file.id for path, file in known.items()}
        locate = Locator(self.library.root, source.absolute().parent, ids)
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
            if self.catalog.served:
                # Another run may have removed some meanwhile.
                there = transaction.still_at({id_: path for path, id_ in ids.items()})
                by_file = {id_: by_file[id_] for id_ in there if id_ in by_file}
            for file_id, captions in by_file.items():
                transaction.set_captions(file_id, captions, sources=[name])

    def describe(self, model: str | Path | Captioner) -> None:
        """Have a model write captions of pictures without any."""
        self.report.described = describe_pictures(
            self.library.root, self.catalog, model, pace=self.pace, progress=self.progress
        )

    def embed_captions(self) -> None:
        """Embed every caption that this encoder has not seen."""
        embed_captions(
            self.catalog, self.encoder, self.encoder_id, pace=self.pace, progress=self.progress
        )

    def finish(self) -> None:
        """Write the index files, and what else the first question needs, and count."""
        null_distribution.prepare(
            self.library, self.encoder, lambda names: self.progress(Progress("names", 0, names))
        )
        self.progress(Progress("index", 0, 1))
        self.library.refresh_indexes(
            lambda stage, done, total: self.progress(Progress(stage, done, total))
        )
        self.progress(Progress("index", 1, 1))
        counts = self.catalog.counts()
        if self.reranker is not None:
            self.library.regions.tidy(self.reranker.kind, counts.files, self.catalog.contents)
        self.report.files = counts.files
        self.report.problems = counts.problems
        self.report.captions = counts.captions

    def is_current(self, known: KnownFile | None, file: FoundFile) -> bool:
        """Say whether a file is the one that was embedded, by its size, time and side-cars."""
        return (
            known is not None
            and known.embedded
            and (known.size, known.mtime_ns, known.sidecars)
            == (file.size, file.mtime_ns, file.sidecars)
        )

    def _is_hopeless(self, problem: KnownProblem | None, file: FoundFile) -> bool:
        return (
            problem is not None
            and problem.kind not in TRANSIENT_KINDS
            and (problem.size, problem.mtime_ns) == (file.size, file.mtime_ns)
        )

    def _is_gone(self, path: str) -> bool:
        """Say whether the scan would have seen a file at `path`, and has not."""
        found = self.found
        if path in found.files or path in found.containers or found.may_hold(path):
            return False
        # What only a list can name is gone when it is no more, not where a scan leaves it out.
        return would_list(path) or not is_there(self.library.root, path)

    def _is_mended(self, container: str) -> bool:
        return container in self.found.listed and container not in self.found.damaged

    def _commit(self, batch: Embedded, gone: dict[int, str]) -> None:
        """Write a batch in one transaction."""
        self.report.embedded += len(batch.vectors)
        if self.reranker is not None:
            with self.pace.at_work(Stage.WRITE):
                self.library.regions.put(self.reranker.kind, batch.regions)
        with self.pace.at_work(Stage.WRITE):
            written = self.catalog.written(
                lambda transaction: self._written(transaction, batch, gone)
            )
        for outcome, count in written.outcomes.items():
            setattr(self.report, outcome, getattr(self.report, outcome) + count)
        for id_ in written.moved:
            del gone[id_]

    def _written(
        self, transaction: Transaction, batch: Embedded, gone: Mapping[int, str]
    ) -> _Written:
        """Write a batch; change nothing else, because it may be done again."""
        written = _Written()
        if self.catalog.served:
            # Whatever another run, or this one in a transaction that was cut off, has done since.
            paths = [self._path_of(item) for item in batch.items]
            now = transaction.known_files(self.encoder_id, paths)
            for path in paths:
                self.known.pop(path, None)
            self.known |= now
        contents = [item.picture.sha256 for item in batch.items if isinstance(item, Read)]
        taken = transaction.contents_among(contents)
        new: list[Read] = []
        for item in batch.items:
            if isinstance(item, Unread):
                self.write_problem(transaction, item)
                continue
            picture = item.picture
            vector = batch.vectors.get(picture.path)
            if (
                vector is not None
                and picture.path not in self.known
                and picture.sha256 not in taken
            ):
                taken.add(picture.sha256)
                new.append(item)
                continue
            # Ids are given in the order of files.
            self._add(transaction, new, batch, written)
            new = []
            self._write(transaction, item, vector, gone, written)
        self._add(transaction, new, batch, written)
        return written

    def _add(
        self, transaction: Transaction, new: Sequence[Read], batch: Embedded, written: _Written
    ) -> None:
        """Write pictures that neither stand at their paths nor have a twin."""
        pictures = [item.picture for item in new]
        if not pictures:
            return
        vectors = np.stack([batch.vectors[picture.path] for picture in pictures])
        ids = transaction.add_files(pictures, self.encoder_id, vectors)
        transaction.add_captions(
            {id_: item.captions for id_, item in zip(ids, new, strict=True) if item.captions}
        )
        for item in new:
            if item.unread is not None:
                self.write_problem(transaction, Unread(item.picture.path, item.unread))
        written.outcomes["added"] += len(new)

    def _path_of(self, item: Read | Unread) -> str:
        return item.picture.path if isinstance(item, Read) else item.path

    def _write(
        self,
        transaction: Transaction,
        item: Read,
        vector: NDArray[np.float32] | None,
        gone: Mapping[int, str],
        written: _Written,
    ) -> None:
        picture = item.picture
        known = self.known.get(picture.path)
        same = transaction.files_with(picture.sha256)
        if known is not None and known.id in same and known.embedded:
            # Only its time or its side-cars changed.
            transaction.refresh_file(known.id, picture)
            written.outcomes["unchanged"] += 1
            self.write_captions(transaction, known.id, item)
            return
        left = {id_: gone[id_] for id_ in same if id_ in gone and id_ not in written.moved}
        if left and self.catalog.served:
            left = {id_: left[id_] for id_ in transaction.still_at(left)}
        old = None if known is not None else next(iter(left), None)
        embedded = old is not None and self.known[gone[old]].embedded
        if vector is None and not embedded:
            vector = transaction.vector_of(picture.sha256, self.encoder_id)
        if vector is None and not embedded:
            # Its twin was itself replaced a moment ago (two files that swapped names).
            try:
                vector = self.encoder.encode_images([self._opened(picture.path)])[0]
            except MediaError as error:
                self.write_problem(transaction, Unread(picture.path, error))
                return
        if old is not None:
            transaction.refresh_file(old, picture)
            written.moved.add(old)
            written.outcomes["moved"] += 1
        elif known is not None:
            written.outcomes["updated"] += 1
        else:
            written.outcomes["added"] += 1
        file_id = old
        if vector is not None:
            file_id = transaction.put_file(picture, self.encoder_id, vector)
        assert file_id is not None
        self.write_captions(transaction, file_id, item)

    def _opened(self, path: str) -> Path | Image:
        place = self.found.files[path].place
        return self.library.root / path if place is None else open_picture(place.read())

    def write_captions(self, transaction: Transaction, file_id: int, item: Read) -> None:
        """Record what was read with a picture, and what could not be."""
        transaction.set_captions(file_id, item.captions, sources=item.sources)
        if item.unread is not None:
            self.write_problem(transaction, Unread(item.picture.path, item.unread))

    def write_problem(self, transaction: Transaction, item: Unread) -> None:
        """Record why a file cannot be indexed."""
        file = self.found.files[item.path]
        problem = Problem(item.path, item.error.kind, str(item.error))
        keep = item.error.kind in TRANSIENT_KINDS
        transaction.put_problem(problem, file.size, file.mtime_ns, forget=not keep)

    def _forget(self, gone: Mapping[int, str], settled: Iterable[str]) -> None:
        """Drop pictures and problems that are no more; record names that are no files."""
        with self.catalog.write() as transaction:
            left = transaction.still_at(gone) if self.catalog.served else gone
            transaction.remove_files(left)
            transaction.resolve_problems(settled)
            for path, reason in self.found.unusable.items():
                transaction.put_problem(Problem(path, "not-a-file", reason))
            for path, reason in self.found.unreadable.items():
                transaction.put_problem(Problem(path, "unreadable", reason), forget=False)
            for path, (kind, reason) in self.found.damaged.items():
                size, mtime_ns = self.found.containers[path]
                transaction.put_problem(Problem(path, kind, reason), size, mtime_ns, forget=False)
            # All that is in them is done: they need not be read again until they change.
            transaction.forget_containers(filter(self._is_gone, self.catalog.containers()))
            transaction.put_containers(
                {path: self.found.containers[path] for path in sorted(self.found.listed)}
            )
        self.report.removed = len(left)
