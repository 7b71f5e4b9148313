"""Taking over the vectors of another tool: a library without embedding again.

source (paths, vectors) → the folder's scan → a sample embedded, to see that the vectors are this
encoder's → read and hash (never decode) → one transaction a batch, as `index` writes them. What it
leaves is what `index` would have left, so the next `index` goes on from there: it embeds what the
source did not have.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Container
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch.errors import (
    LibraryNotFound,
    ModelMismatch,
    SourceError,
    quoted,
)
from mmsearch.retrieval.comparison import is_current
from mmsearch.retrieval.encoders import load_encoder
from mmsearch.retrieval.exchange.check import Check
from mmsearch.retrieval.exchange.clip_retrieval import ClipRetrievalSource
from mmsearch.retrieval.exchange.places import Places, common_folder
from mmsearch.retrieval.exchange.rclip import DATABASE, RclipSource
from mmsearch.retrieval.ingest import Progress, Run, expanded
from mmsearch.retrieval.library import Library
from mmsearch.retrieval.pace import Pace
from mmsearch.retrieval.reading import PictureReader, Read
from mmsearch.retrieval.scan import FoundFile, scan
from mmsearch.retrieval.schema import Caption, tell_apart

if TYPE_CHECKING:
    from mmsearch.retrieval.catalog import Transaction
    from mmsearch.retrieval.encoders import Encoder
    from mmsearch.retrieval.exchange.recorded import RecordedPicture, VectorSource

__all__ = ["ImportReport", "import_library"]

MTIME_TOLERANCE_S = 1e-3


@dataclass(slots=True)
class ImportReport:
    """What an import did.

    Attributes:
        library: the folder of pictures.
        model: the encoder that the vectors are recorded as; queries need it.
        source: the tool they come from.
        recorded: pictures that the source knows.
        taken: pictures whose vectors were taken over.
        present: pictures that the library had already.
        missing: recorded pictures that are not there, as they were recorded.
        outside: recorded pictures that lie outside the library's folder.
        ignored: those that `index` leaves out: hidden, ignored, or of another ending.
        changed: those that were changed since they were recorded; `index` embeds them.
        turned: those that the source embedded lying on their side; `index` embeds them.
        damaged: those whose vector is no vector; `index` embeds them.
        problems: files that cannot be read, in this or an earlier run.
        files: pictures the library holds now.
        captions: captions the library holds now.
        caption_vectors: captions whose vectors were taken over.
        checked: pictures that were embedded to compare.
        lowest_cosine: between their vectors and the source's; None where none was compared.
    """

    library: Path
    model: str
    source: str
    recorded: int = 0
    taken: int = 0
    present: int = 0
    missing: list[str] = field(default_factory=list)
    outside: int = 0
    ignored: int = 0
    changed: int = 0
    turned: int = 0
    damaged: int = 0
    problems: int = 0
    files: int = 0
    captions: int = 0
    caption_vectors: int = 0
    checked: int = 0
    lowest_cosine: float | None = None
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the object that `import --json` prints."""
        counts = ("recorded", "taken", "present", "outside", "ignored", "changed", "turned")
        more = ("damaged", "problems", "files", "captions", "caption_vectors", "checked")
        cosine = self.lowest_cosine
        return {
            "schema": 1,
            "library": str(self.library),
            "model": self.model,
            "source": self.source,
            **{name: getattr(self, name) for name in counts + more},
            "missing": len(self.missing),
            "missing_files": self.missing,
            "lowest_cosine": None if cosine is None else round(cosine, 4),
            "seconds": round(self.seconds, 3),
        }


def import_library(
    source: Path | str,
    *,
    model: str | Path | Encoder | None = None,
    root: Path | str | None = None,
    unchecked: bool = False,
    wait: float = 0.0,
    progress: Callable[[Progress], None] | None = None,
) -> ImportReport:
    """Make, or add to, the library of a folder of pictures from vectors of another tool.

    Files are read and hashed, and their side-cars are read as `index` does; pictures are neither
    decoded nor embedded, but for up to eight that are compared. Nothing is written unless they
    agree.

    Args:
        source: the output folder of clip-retrieval or of `export_library`, or rclip's database.
        model: the encoder that made the vectors; may be left out where the source tells it
            (rclip, `export_library`).
        root: the folder of the pictures; the one that all of them were recorded in when not given.
        unchecked: take the vectors over without comparing any.
        wait: seconds to wait for another process that writes to this library; `math.inf` for as
            long as it takes.
        progress: called often, from this thread.

    Raises:
        SourceError: the source cannot be read, or none of its pictures is found.
        ModelError: the encoder cannot be loaded, which says what fits it with queries.
        ModelMismatch: the vectors are not by this encoder, or the library is of another one.
        LibraryLocked: another process is indexing this library.
        StorageError: the disk is full or read-only.
    """
    started = time.perf_counter()
    report_progress = progress or (lambda _: None)
    with closing(_open(expanded(source))) as recorded:
        name = model or recorded.model
        if name is None:
            raise SourceError(
                f"{recorded.path} does not say which model made its vectors. Name it: --model "
                "open_clip:MODEL/PRETRAINED (clip-retrieval's default, ViT-B/32, is "
                "open_clip:ViT-B-32-quickgelu/openai)"
            )
        paths = [picture.path for picture in recorded.pictures]
        if not paths:
            raise SourceError(f"{recorded.path} records no pictures.")
        folder = common_folder(paths) if root is None else expanded(root).absolute()
        report_progress(Progress("scan", 0, 0))
        found = scan(folder)
        report = ImportReport(folder, "", recorded.kind, recorded=len(paths))
        chosen = _choose(recorded, Places(folder, found.files, paths), found.files, report)
        if not chosen:
            raise SourceError(_nothing_found(recorded, folder, report))
        encoder = load_encoder(name)
        report.model = encoder.spec.label
        _refuse_other_vectors(recorded, encoder)
        _refuse_other_library(folder, encoder)
        check = Check(recorded, encoder, folder, chosen)
        if not unchecked:
            check.run()
        report.checked, report.lowest_cosine = check.count, check.lowest
        library = Library.create(folder)
        try:
            with library.indexing(wait) as waited:
                if waited:
                    _refuse_other_library(folder, encoder)
                run = Run(library, encoder, found, report_progress, Pace())
                _Import(run, recorded, check, report).run(chosen)
                run.embed_captions()
                run.finish()
                report.files, report.problems = run.report.files, run.report.problems
                report.captions = run.report.captions
        finally:
            library.close()
    report.seconds = time.perf_counter() - started
    return report


def _open(source: Path) -> VectorSource:
    """Return what `source` is, told by its content."""
    if (source / DATABASE).is_file():
        source = source / DATABASE
    if source.is_file():
        with source.open("rb") as file:
            is_sqlite = file.read(16) == b"SQLite format 3\0"
        if is_sqlite:
            return RclipSource(source)
    elif (source / "metadata").is_dir():
        return ClipRetrievalSource(source)
    elif not source.exists():
        raise SourceError(f"There is nothing at {source}. Check the path.")
    raise SourceError(
        f"{source} is neither the output folder of clip-retrieval (img_emb/*.npy and "
        "metadata/*.parquet) nor a database of rclip (db.sqlite3)."
    )


def _choose(
    recorded: VectorSource,
    place: Places,
    files: dict[str, FoundFile],
    report: ImportReport,
) -> dict[str, RecordedPicture]:
    """Return the recorded pictures that are there and unchanged, by path, sorted."""
    chosen: dict[str, RecordedPicture] = {}
    for picture in recorded.pictures:
        path = place(picture.path)
        if path is None:
            if os.path.lexists(picture.path):
                report.outside += 1
            else:
                report.missing.append(picture.path)
        elif path not in files:
            if os.path.isfile(report.library / path):  # noqa: PTH113 (says no where Path raises)
                report.ignored += 1
            else:
                report.missing.append(picture.path)
        elif _was_changed(picture, files[path]):
            report.changed += 1
        else:
            chosen.setdefault(path, picture)
    return dict(sorted(chosen.items()))


def _was_changed(picture: RecordedPicture, file: FoundFile) -> bool:
    if picture.size is not None and picture.size != file.size:
        return True
    mtime = file.mtime_ns / 1e9
    return picture.mtime is not None and abs(picture.mtime - mtime) > MTIME_TOLERANCE_S


def _nothing_found(recorded: VectorSource, folder: Path, report: ImportReport) -> str:
    first = recorded.pictures[0].path
    what = f"None of the {len(recorded.pictures):,} recorded pictures can be taken over in {folder}"
    if report.changed:
        return (
            f"{what}: {report.changed:,} were changed since (their size or time is another). "
            f"Embed them: mmsearch index {quoted(folder)}"
        )
    hint = ""
    if "." not in first.rpartition("/")[2]:
        hint = " The names look like keys of WebDataset shards, which are no files of pictures."
    return (
        f"{what} (the first was recorded as {first}).{hint} Say where the pictures are: "
        "--root FOLDER"
    )


def _refuse_other_vectors(recorded: VectorSource, encoder: Encoder) -> None:
    if recorded.dim != encoder.dim:
        raise ModelMismatch(
            f"The vectors in {recorded.path} have {recorded.dim} numbers, {encoder.spec.label} "
            f"makes {encoder.dim}. Name the model that made them: --model MODEL"
        )


def _refuse_other_library(folder: Path, encoder: Encoder) -> None:
    try:
        library = Library.open(folder)
    except LibraryNotFound:
        return
    with closing(library):
        spec = library.catalog.library().encoder
    if spec is not None and spec != encoder.spec:
        built, asked = tell_apart(spec, encoder.spec)
        raise ModelMismatch(
            f"The library at {folder} was built with {built}; vectors by {asked} cannot be added "
            "to it. Delete or move its folder .mmsearch to make a new one from them."
        )


class _Everything(Container[bytes]):
    """The contents whose vectors are known, where all are: nothing is decoded."""

    def __contains__(self, content: object) -> bool:
        return True


class _Import:
    """Writes the chosen pictures into the library, batch after batch."""

    def __init__(
        self, run: Run, recorded: VectorSource, check: Check, report: ImportReport
    ) -> None:
        self._ingest, self._recorded = run, recorded
        self._check, self._report = check, report
        # Like that of a captions file: `index` leaves it alone, the next import replaces it.
        self._caption_source = f"file:{recorded.path.name}".encode(errors="replace").decode()

    def run(self, chosen: dict[str, RecordedPicture]) -> None:
        """Read and write what the library does not have yet; add captions to what it has."""
        ingest = self._ingest
        todo = {}
        present = {}
        for path, picture in chosen.items():
            file = ingest.found.files[path]
            known = ingest.known.get(path)
            if known is not None and is_current(known, file):
                present[known.id] = picture
            else:
                todo[path] = file
        self._report.present = len(present)
        captioned = [(id_, picture) for id_, picture in present.items() if picture.captions]
        if captioned:
            with ingest.catalog.write() as transaction:
                for id_, picture in captioned:
                    self._write_captions(transaction, id_, picture)
        reader = PictureReader(ingest.library.root, ingest.encoder, _Everything())
        done = 0
        ingest.progress(Progress("pictures", 0, len(todo)))
        for batch in reader.batches(todo):
            read = [item for item in batch if isinstance(item, Read)]
            rows = [chosen[item.picture.path].row for item in read]
            vectors = dict(zip(rows, self._recorded.image_vectors(rows), strict=True))
            with ingest.catalog.write() as transaction:
                for item in batch:
                    if isinstance(item, Read):
                        recorded = chosen[item.picture.path]
                        self._write(transaction, item, recorded, vectors[recorded.row])
                    else:
                        ingest.writer.write_problem(transaction, item)
            done += len(batch)
            ingest.progress(Progress("pictures", done, len(todo)))

    def _write(
        self,
        transaction: Transaction,
        item: Read,
        recorded: RecordedPicture,
        vector: Any,  # noqa: ANN401
    ) -> None:
        picture = item.picture
        if recorded.sha256 is not None and recorded.sha256 != picture.sha256:
            self._report.changed += 1
        elif not np.isfinite(vector).all():
            self._report.damaged += 1
        elif picture.orientation != 1 and not self._check.takes_turned:
            self._report.turned += 1
        else:
            id_ = transaction.put_file(picture, self._ingest.encoder_id, vector)
            self._ingest.writer.write_captions(transaction, id_, item)
            self._write_captions(transaction, id_, recorded)
            self._report.taken += 1

    def _write_captions(
        self, transaction: Transaction, file_id: int, recorded: RecordedPicture
    ) -> None:
        captions = [Caption(one.text, self._caption_source) for one in recorded.captions]
        if not captions:
            return
        transaction.set_captions(file_id, captions, sources=[self._caption_source])
        row_of = {one.text: one.row for one in recorded.captions if one.row is not None}
        if not self._check.takes_texts or not row_of:
            return
        waiting = [
            (id_, row_of[text])
            for id_, text in transaction.captions_to_embed(file_id, self._ingest.encoder_id)
            if text in row_of
        ]
        vectors = self._recorded.text_vectors([row for _, row in waiting])
        whole = np.flatnonzero(np.isfinite(vectors).all(axis=1))
        ids = [waiting[i][0] for i in whole]
        if ids:
            transaction.put_caption_vectors(self._ingest.encoder_id, ids, vectors[whole])
            self._report.caption_vectors += len(ids)
