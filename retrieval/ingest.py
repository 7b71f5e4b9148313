"""Indexing: a folder of pictures into a library, again and again at the cost of what changed.

scan → read and decode (threads, a bounded number ahead) → embed (one batch at a time) → one
transaction per batch. The order is the sorted order of paths and every batch is committed whole,
so an interrupted run loses at most the few batches that are under way, and the next one goes on
from there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mmsearch.errors import ModelMismatch, SourceError, quoted
from mmsearch.retrieval import null_distribution
from mmsearch.retrieval.blocks import NodeRates
from mmsearch.retrieval.catalog_writer import CatalogWriter
from mmsearch.retrieval.cluster import check_address, joined
from mmsearch.retrieval.comparison import is_current, is_gone, is_hopeless, is_mended
from mmsearch.retrieval.describing import describe_pictures
from mmsearch.retrieval.distributed import embed_on
from mmsearch.retrieval.embedding import Embedded, Progress, embed_captions, embed_files
from mmsearch.retrieval.encoders import DEFAULT_MODEL, Encoder, load_encoder
from mmsearch.retrieval.index_report import IndexReport
from mmsearch.retrieval.library import Library
from mmsearch.retrieval.pace import Pace, Stage
from mmsearch.retrieval.pairs import Locator, read_pairs
from mmsearch.retrieval.rerankers.bundled import region_reader
from mmsearch.retrieval.scan import FoundFile, Scan
from mmsearch.retrieval.schema import Caption, tell_apart
from mmsearch.retrieval.sharing import Claims, Shared
from mmsearch.retrieval.survey import survey

if TYPE_CHECKING:
    from mmsearch.retrieval.captioners import Captioner

__all__ = ["IndexReport", "Progress", "Run", "expanded", "index"]


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
        self.writer = CatalogWriter(library, encoder, self.encoder_id, found, self.known)

    def pictures(self, *, retry: bool, on: str | None = None) -> None:
        """Read, embed and commit what is new or changed; forget what is gone.

        Args:
            retry: try again what could not be read before.
            on: the cluster that reads and embeds; this process where it is None.
        """
        broken = self.catalog.known_problems()
        settled = [path for path in broken if self._is_gone(path) or is_mended(self.found, path)]
        todo: dict[str, FoundFile] = {}
        for path, file in self.found.files.items():
            if is_current(self.known.get(path), file):
                self.report.unchanged += 1
                if path in broken:
                    settled.append(path)
            elif retry or not is_hopeless(broken.get(path), file):
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
        self.report.removed = self.writer.forget(gone, settled)

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
                    shared.done(item.path for item in batch.items)
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
                if is_current(known.get(path), todo[path])
                or is_hopeless(broken.get(path), todo[path])
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

    def _is_gone(self, path: str) -> bool:
        return is_gone(self.found, self.library.root, path)

    def _commit(self, batch: Embedded, gone: dict[int, str]) -> None:
        """Write a batch in one transaction."""
        self.report.embedded += len(batch.vectors)
        if self.reranker is not None:
            with self.pace.at_work(Stage.WRITE):
                self.library.regions.put(self.reranker.kind, batch.regions)
        with self.pace.at_work(Stage.WRITE):
            written = self.catalog.written(
                lambda transaction: self.writer.write(transaction, batch, gone)
            )
        for outcome, count in written.outcomes.items():
            setattr(self.report, outcome, getattr(self.report, outcome) + count)
        for id_ in written.moved:
            del gone[id_]
