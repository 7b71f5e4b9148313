"""Another model for a library: everything is embedded again while the old vectors go on answering.

The catalog says which pictures there are, so no folder is scanned. The new vectors are stored
beside the old ones, batch by batch, and answer from the moment they are complete. What was embedded
before an interruption stays, and nothing is dropped before the switch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsearch.errors import ModelError, SourceError, quoted
from mmsearch.retrieval import null_distribution
from mmsearch.retrieval.containers import is_there, places_of
from mmsearch.retrieval.embedding import Embedded, Progress, embed_captions, embed_files
from mmsearch.retrieval.encoders import Encoder, load_encoder
from mmsearch.retrieval.library import Library
from mmsearch.retrieval.media import TRANSIENT_KINDS
from mmsearch.retrieval.pace import Pace, Stage
from mmsearch.retrieval.reading import Unread
from mmsearch.retrieval.rerankers.bundled import region_reader
from mmsearch.retrieval.scan import FoundFile
from mmsearch.retrieval.schema import Problem, tell_apart

if TYPE_CHECKING:
    from mmsearch.retrieval.catalog import EncoderRow, UnembeddedFile

__all__ = ["ModelChange", "cancel", "drop_old", "embed_lacking", "migrate"]


@dataclass(slots=True)
class ModelChange:
    """What a change of model did.

    Attributes:
        model: the new model.
        before: the one that answered when this run began.
        switched: the new model's vectors answer now.
        embedded: pictures that went through the encoder in this run.
        files: pictures that the new model's vectors find.
        vanished: pictures whose files are gone: the next `index` forgets them.
        changed: pictures whose files hold something else by now: the next `index` embeds it.
        unreadable: pictures that cannot be read at present. Without consent to leave them out they
            keep the switch from being made.
        damaged: pictures that can no longer be decoded though their files are the same.
        kept: what the vectors of other models that were kept take, in bytes.
        seconds: the whole run.
        shares: as in `IndexReport`; `scan` is zero.
        bottleneck: as in `IndexReport`.
    """

    library: Path
    model: str
    before: str
    switched: bool = False
    embedded: int = 0
    files: int = 0
    vanished: int = 0
    changed: int = 0
    unreadable: int = 0
    damaged: int = 0
    kept: int = 0
    seconds: float = 0.0
    shares: dict[Stage, float] = field(default_factory=dict)
    bottleneck: Stage | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the object that `migrate --json` prints."""
        return {
            "schema": 1,
            "library": str(self.library),
            "model": self.model,
            "before": self.before,
            "switched": self.switched,
            "embedded": self.embedded,
            "files": self.files,
            "vanished": self.vanished,
            "changed": self.changed,
            "unreadable": self.unreadable,
            "damaged": self.damaged,
            "kept_bytes": self.kept,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.embedded / max(self.seconds, 1e-9), 2),
            "shares": {str(stage): round(share, 3) for stage, share in self.shares.items()},
            "bottleneck": self.bottleneck,
        }


def migrate(
    folder: Path | str,
    *,
    model: str | Path | Encoder | None = None,
    keep_old: bool = False,
    leave_out: bool = False,
    wait: float = 0.0,
    progress: Callable[[Progress], None] | None = None,
) -> ModelChange:
    """Embed a library again with another model, and answer with that once it is complete.

    Args:
        folder: the folder that was indexed.
        model: the new model; the one that an interrupted change was about when not given.
        keep_old: keep the vectors of models before it, so that the way back costs nothing; see
            `drop_old`.
        leave_out: make the switch even though some pictures cannot be read at present.
        wait: seconds to wait for another process that writes to this library; `math.inf` for as
            long as it takes.
        progress: called often, from this thread.

    Raises:
        LibraryNotFound: the folder was never indexed.
        LibraryLocked: another process is indexing this library.
        ModelError: there is no such model, none was named and no change is under way, or a change
            to another one is.
        SourceError: the pictures are not where they were: nothing is switched.
        StorageError: the disk is full or read-only.
    """
    started = time.perf_counter()
    with closing(Library.open(Path(folder))) as library, library.indexing(wait):
        _, active = library.active_encoder(library.catalog.library())
        encoder = _new_encoder(library, model)
        change = _Change(library, encoder, active.label, progress or (lambda _: None))
        if encoder.spec == active:
            change.report.switched = True
        elif change.embed(leave_out=leave_out):
            change.switch(keep_old=keep_old)
        return change.finished(time.perf_counter() - started)


def cancel(folder: Path | str, *, wait: float = 0.0) -> EncoderRow | None:
    """Forget an unfinished change of model, with the vectors it has made so far.

    Returns what was forgotten; None where no change is under way. `wait` is as in `migrate`.

    Raises:
        LibraryNotFound: the folder was never indexed.
        LibraryLocked: the change is going on right now, or the library is being indexed.
    """
    with closing(Library.open(Path(folder))) as library, library.indexing(wait):
        unfinished = next((row for row in library.catalog.encoders() if row.next), None)
        if unfinished is not None:
            with library.catalog.write() as transaction:
                transaction.forget_encoders([unfinished.id])
        return unfinished


def drop_old(folder: Path | str, *, wait: float = 0.0) -> list[EncoderRow]:
    """Drop the vectors of models that neither answer nor are being made; return whose they were.

    `wait` is as in `migrate`.

    Raises:
        LibraryNotFound: the folder was never indexed.
        LibraryLocked: the library is being indexed.
    """
    with closing(Library.open(Path(folder))) as library, library.indexing(wait):
        old = [row for row in library.catalog.encoders() if not row.active and not row.next]
        with library.catalog.write() as transaction:
            transaction.forget_encoders([row.id for row in old])
        return old


def embed_lacking(
    library: Library, encoder: Encoder, progress: Callable[[Progress], None] | None = None
) -> int:
    """Embed the pictures and captions that have no vector of the library's own encoder.

    Returns the encoder's key. What cannot be read, or changed since, is left as it is.

    Args:
        library: locked by the caller.
        encoder: the one that answers its queries.
        progress: called often, from this thread.
    """
    change = _Change(library, encoder, encoder.spec.label, progress or (lambda _: None))
    change.fill()
    return change.encoder_id


def _new_encoder(library: Library, model: str | Path | Encoder | None) -> Encoder:
    unfinished = next((row for row in library.catalog.encoders() if row.next), None)
    if model is None and unfinished is None:
        raise ModelError(
            "No change of model is under way. Say which model to change to: "
            f"mmsearch migrate --model MODEL --library {quoted(library.root)}"
        )
    named = model if model is not None or unfinished is None else unfinished.location
    assert named is not None
    encoder = load_encoder(named)
    if unfinished is not None and encoder.spec != unfinished.spec:
        under_way, asked = tell_apart(unfinished.spec, encoder.spec)
        where = f"--library {quoted(library.root)}"
        raise ModelError(
            f"The library at {library.root} is changing to {under_way}, not to {asked}. Go on with "
            f"that: mmsearch migrate --model {quoted(unfinished.location)} {where}. Or forget it "
            f"first: mmsearch migrate --cancel {where}"
        )
    return encoder


class _Change:
    """One run of `migrate`: the state its stages share."""

    def __init__(
        self, library: Library, encoder: Encoder, before: str, progress: Callable[[Progress], None]
    ) -> None:
        self.library = library
        self.catalog = library.catalog
        self.encoder = encoder
        self.reranker = region_reader(encoder)
        self.progress = progress
        self.pace = Pace()
        self.report = ModelChange(library.root, encoder.spec.label, before)
        self.failed: dict[str, str] = {}
        """Files that got no new vector, and the kind of the problem; `changed` is one more."""
        self.damaged: list[tuple[Problem, UnembeddedFile]] = []
        with self.catalog.write() as transaction:
            self.encoder_id = transaction.encoder_id(encoder.spec, encoder.location)

    def embed(self, *, leave_out: bool) -> bool:
        """Embed what this model has not seen; say whether the switch may be made."""
        with self.catalog.write() as transaction:
            transaction.prepare(self.encoder_id)
        self.fill(self._check_that_pictures_are_there)
        kinds = list(self.failed.values())
        self.report.changed = kinds.count("changed")
        self.report.vanished = kinds.count("vanished")
        self.report.damaged = len(self.damaged)
        self.report.unreadable = (
            len(kinds) - self.report.changed - self.report.vanished - self.report.damaged
        )
        return leave_out or self.report.unreadable == 0

    def fill(self, check: Callable[[], None] = lambda: None) -> None:
        """Embed pictures, then captions; `check` is called between them."""
        self._copy_known()
        while todo := self._todo():
            self._pictures(todo)
        check()
        embed_captions(
            self.catalog, self.encoder, self.encoder_id, pace=self.pace, progress=self.progress
        )

    def switch(self, *, keep_old: bool) -> None:
        """Answer with the new vectors from now on, and write the index files."""
        others = [row.id for row in self.catalog.encoders() if row.id != self.encoder_id]
        with self.catalog.write() as transaction:
            transaction.activate(self.encoder_id)
            if not keep_old:
                transaction.forget_encoders(others)
            # What has become of the others is for the next `index` to find out.
            for problem, file in self.damaged:
                transaction.put_problem(problem, file.size, file.mtime_ns)
        self.report.switched = True
        null_distribution.prepare(
            self.library, self.encoder, lambda names: self.progress(Progress("names", 0, names))
        )
        self.progress(Progress("index", 0, 1))
        self.library.refresh_indexes(
            lambda stage, done, total: self.progress(Progress(stage, done, total))
        )
        self.progress(Progress("index", 1, 1))

    def finished(self, seconds: float) -> ModelChange:
        """Return the report of the whole run."""
        report = self.report
        for row in self.catalog.encoders():
            if row.id == self.encoder_id:
                report.files = row.vectors
            elif not row.active and not row.next:
                report.kept += row.vector_bytes
        report.seconds = seconds
        report.shares = self.pace.shares()
        report.bottleneck = self.pace.bottleneck()
        return report

    def _copy_known(self) -> None:
        """Give copies of what is embedded the same vectors: they came after an interruption."""
        lacking = self.catalog.unembedded_files(self.encoder_id)
        sizes = (file.size for file in lacking.values())
        known = self.catalog.known_contents(sizes, self.encoder_id)
        with self.catalog.write() as transaction:
            for sha256 in {file.sha256 for file in lacking.values()} & known.keys():
                vector = transaction.vector_of(sha256, self.encoder_id)
                if vector is not None:
                    transaction.put_content_vector(sha256, self.encoder_id, vector)

    def _todo(self) -> dict[str, UnembeddedFile]:
        """Return one file of every content that has no vector yet, in the order of paths.

        Where that one cannot be read, the next round tries another with the same content.
        """
        first: dict[bytes, tuple[str, UnembeddedFile]] = {}
        for path, file in self.catalog.unembedded_files(self.encoder_id).items():
            if path not in self.failed:
                first.setdefault(file.sha256, (path, file))
        return dict(first.values())

    def _pictures(self, todo: dict[str, UnembeddedFile]) -> None:
        places = places_of(self.library.root, todo)
        # What lies in a container is read from its front to its end.
        order = [*(path for path in todo if path not in places), *places]
        files = {
            path: FoundFile(todo[path].size, todo[path].mtime_ns, "", places.get(path))
            for path in order
        }
        done = 0
        self.progress(Progress("pictures", 0, len(files)))
        batches = embed_files(
            self.library.root,
            files,
            self.encoder,
            contents={},
            pace=self.pace,
            reranker=self.reranker,
        )
        # Closed by hand: after Ctrl-C nothing of the run may go on in other threads.
        with closing(batches):
            for batch in batches:
                self._commit(batch, todo)
                done += len(batch.items)
                self.progress(Progress("pictures", done, len(files), self.pace.remark()))

    def _commit(self, batch: Embedded, todo: dict[str, UnembeddedFile]) -> None:
        self.report.embedded += len(batch.vectors)
        if self.reranker is not None:
            with self.pace.at_work(Stage.WRITE):
                self.library.regions.put(self.reranker.kind, batch.regions)
        with self.pace.at_work(Stage.WRITE), self.catalog.write() as transaction:
            for item in batch.items:
                if isinstance(item, Unread):
                    self.failed[item.path] = item.error.kind
                    if item.error.kind not in TRANSIENT_KINDS:
                        problem = Problem(item.path, item.error.kind, str(item.error))
                        self.damaged.append((problem, todo[item.path]))
                    continue
                path, sha256 = item.picture.path, item.picture.sha256
                if sha256 == todo[path].sha256:
                    vector = batch.vectors[path]
                    transaction.put_content_vector(sha256, self.encoder_id, vector)
                else:
                    self.failed[path] = "changed"

    def _check_that_pictures_are_there(self) -> None:
        """Refuse to go on where no picture is to be had: an unplugged disk looks like that."""
        if not self.failed:
            return
        root = self.library.root
        known = self.catalog.known_files(self.encoder_id)
        if not any(is_there(root, path) for path in known):
            raise SourceError(
                f"None of the pictures of {root} is there. Is the disk plugged in? Nothing was "
                "switched, and what is embedded stays; run the same command again."
            )
