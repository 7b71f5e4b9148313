"""Looking a library over, part by part."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from mmsearch.errors import LibraryError, ModelError, quoted
from mmsearch.retrieval.catalog import Catalog, integrity
from mmsearch.retrieval.doctor import repair
from mmsearch.retrieval.doctor.derived import examine_index, examine_kept
from mmsearch.retrieval.doctor.finding import Diagnosis, Finding, Part
from mmsearch.retrieval.doctor.pictures import examine_files, examine_sample
from mmsearch.retrieval.encoders import load_encoder
from mmsearch.retrieval.library import Library, catalog_of
from mmsearch.retrieval.library_config import LibraryConfig
from mmsearch.retrieval.schema import Target, tell_apart
from mmsearch.retrieval.writer_lock import writing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mmsearch.retrieval.catalog import LibraryRow
    from mmsearch.retrieval.encoders import Encoder

__all__ = ["examine"]

Progress = Callable[[str, int, int], None]

NAMED = 5
"""Pictures that a finding names."""


def examine(
    folder: Path | str,
    *,
    mend: bool = False,
    deep: bool = False,
    wait: float = 0.0,
    progress: Progress = lambda *_: None,
) -> Diagnosis:
    """Say whether the library of a folder is sound and, where that is asked, put it right.

    What can be derived is made anew: vectors, indexes, words, what is kept beside them. What
    cannot is set aside in the library's folder, never deleted. The pictures are only read.

    Args:
        folder: the folder that was indexed.
        mend: repair what can be.
        deep: read every page and index of the catalog, embed a sample of pictures again, and
            compare the content of a sample with what was indexed.
        wait: where it is to be repaired, seconds to wait for another process that writes to it;
            `math.inf` for as long as it takes.
        progress: called with a part, how many of them are done and how many there are.

    Raises:
        LibraryNotFound: there is no library.
        LibraryTooNew: a later version of mmsearch made it.
        LibraryLocked: it is to be repaired, and another process is indexing it.
        StorageError: it is to be repaired and cannot be written to, or its catalog is past reading.
    """
    started = time.perf_counter()
    catalog = catalog_of(Path(folder))
    diagnosis = Diagnosis(Path(folder))
    parts = len(Part)
    progress(Part.CATALOG, 0, parts)
    if not _catalog_is_sound(catalog, diagnosis, mend=mend, deep=deep, wait=wait):
        diagnosis.seconds = time.perf_counter() - started
        return diagnosis
    with ExitStack() as stack:
        library = Library.open(Path(folder))
        stack.callback(library.close)
        diagnosis.library = library.root
        if mend:
            stack.enter_context(library.indexing(wait))
        doctor = _Doctor(library, diagnosis, mend=mend, deep=deep)
        for done, (part, look) in enumerate(doctor.parts(), 1):
            progress(part, done, parts)
            look()
        progress(Part.FILES, parts, parts)
    diagnosis.seconds = time.perf_counter() - started
    return diagnosis


def _catalog_is_sound(
    path: Path, diagnosis: Diagnosis, *, mend: bool, deep: bool, wait: float
) -> bool:
    """Examine the file itself, before anything else opens it; say whether one can go on."""
    if LibraryConfig.read(path.parent).catalog is not None:
        diagnosis.examined[Part.CATALOG] = (
            "kept by PostgreSQL, which sees to every reference itself (pg_amcheck looks over its "
            "pages)"
        )
        return True
    faults = integrity.damage(path, deep=deep)
    how = "every page and every index" if deep else "every page"
    diagnosis.examined[Part.CATALOG] = f"{how} of {path.name}, every reference"
    if not faults:
        broken = integrity.broken_references(path)
        if not broken:
            return True
        told = ", ".join(f"{count:,} in {table}" for table, count in broken.items())
        faults = [f"rows that refer to none: {told}"]
    problem = f"The catalog is damaged: {faults[0]}"
    if len(faults) > 1:
        problem += f" (and {len(faults) - 1} more)"
    if not mend:
        advice = "mmsearch doctor --repair takes out of it what can be read, and sets it aside."
        diagnosis.findings.append(Finding(Part.CATALOG, f"{problem}.", advice))
        return False
    with writing(path.parent, path.parent.parent, wait=wait):
        salvaged, diagnosis.set_aside = repair.replace_catalog(path)
    kept = salvaged.rows
    diagnosis.findings.append(
        Finding(
            Part.CATALOG,
            f"{problem}. Saved: {kept.get('file', 0):,} pictures, {kept.get('caption', 0):,} "
            f"captions, {kept.get('file_vector', 0):,} vectors; {salvaged.unreadable:,} places "
            f"could not be read. The damaged file is in {diagnosis.set_aside}.",
            f"What was lost comes back with: mmsearch index {quoted(path.parent.parent)}",
            repaired=True,
        )
    )
    return True


class _Doctor:
    """One examination of a library whose catalog can be read."""

    def __init__(self, library: Library, diagnosis: Diagnosis, *, mend: bool, deep: bool) -> None:
        self.library = library
        self.catalog: Catalog = library.catalog
        self.told = diagnosis
        self.mend = mend
        self.deep = deep
        self.row: LibraryRow = self.catalog.library()
        self.encoder: Encoder | None = None
        self.bad: dict[Target, NDArray[np.int64]] = {}
        """Ids whose vectors are none, and were not repaired."""

    def parts(self) -> Iterator[tuple[Part, Callable[[], None]]]:
        """Yield the parts and what examines them, in an order in which repairs help later ones."""
        yield Part.WORDS, self.words
        yield Part.MODEL, self.model
        yield Part.VECTORS, self.vectors
        yield Part.INDEX, self.index
        yield Part.KEPT, self.kept
        yield Part.FILES, self.files

    def words(self) -> None:
        """Compare the full-text indexes with what they are of."""
        self.told.examined[Part.WORDS] = "both full-text indexes"
        wrong = self.catalog.words_damage()
        if wrong is None:
            self._tell(
                Part.WORDS,
                "The catalog may not be written to, so words were not checked.",
                serious=False,
            )
        elif wrong:
            if self.mend:
                self.catalog.rebuild_words()
            self._tell(
                Part.WORDS,
                f"The index of words ({', '.join(wrong)}) does not say what the catalog says.",
                "mmsearch doctor --repair makes it anew.",
                repaired=self.mend,
            )

    def model(self) -> None:
        """Load the encoder, which checks its files, and compare it with the library's."""
        if self.row.encoder is None or self.row.model is None:
            self.told.examined[Part.MODEL] = "no model yet: nothing was indexed"
            return
        self.told.examined[Part.MODEL] = self.row.encoder.label
        try:
            encoder = load_encoder(self.row.model)
        except (ModelError, LibraryError, ImportError) as error:
            self._tell(Part.MODEL, f"The library's model cannot be loaded: {error}")
            return
        if encoder.spec != self.row.encoder:
            built, there = tell_apart(self.row.encoder, encoder.spec)
            self._tell(
                Part.MODEL,
                f"The library was built with {built}; {self.row.model} is now {there}.",
                f"Embed it again: mmsearch migrate --model {quoted(self.row.model)} "
                f"--library {quoted(self.library.root)}",
            )
            return
        self.encoder = encoder

    def vectors(self) -> None:
        """Look at every vector; and compare some with what the picture gives today."""
        if self.row.encoder_id is None or self.row.encoder is None:
            self.told.examined[Part.VECTORS] = "none yet"
            return
        told = []
        for target, what in ((Target.IMAGES, "pictures"), (Target.CAPTIONS, "captions")):
            count, bad = self.catalog.bad_vectors(target, self.row.encoder_id, self.row.encoder.dim)
            told.append(f"{count:,} of {what}")
            if len(bad):
                self._tell_of_vectors(
                    target, what, len(bad), repair.named(self.catalog, target, bad)
                )
                if self.mend:
                    repair.drop_vectors(self.catalog, target, self.row.encoder_id, bad)
                else:
                    self.bad[target] = bad
        lacking = len(self.catalog.unembedded_files(self.row.encoder_id))
        captions = self.catalog.count_captions_to_embed(self.row.encoder_id)
        if (lacking or captions) and self.mend and self.encoder is not None:
            lacking, captions = repair.embed_what_lacks(self.library, self.encoder)
        if lacking or captions:
            self._tell(
                Part.VECTORS,
                f"{lacking:,} pictures and {captions:,} captions have no vector and cannot be "
                "found.",
                f"Embed them: mmsearch index {quoted(self.library.root)}",
            )
        self.told.examined[Part.VECTORS] = ", ".join(told)
        if self.deep and self.encoder is not None:
            seen, odd = examine_sample(
                self.library, self.row, self.encoder, self.bad.get(Target.IMAGES, ())
            )
            self.told.examined[Part.VECTORS] += f"; {seen:,} embedded again"
            if odd:
                self._odd_vectors(odd)
        self.row = self.catalog.library()

    def index(self) -> None:
        """Check index files, and what they hold."""
        if self.row.encoder_id is None:
            self.told.examined[Part.INDEX] = "none yet"
            return
        told, faults = examine_index(self.library, self.row, self.bad, deep=self.deep)
        self.told.examined[Part.INDEX] = told
        for target, fault in faults.items():
            if self.mend:
                self.library.build_index(target, self.row)
            self._tell(
                Part.INDEX,
                f"The index of {target.value} is not what the catalog says: {fault}.",
                "mmsearch doctor --repair makes it anew; until then a query does where it notices.",
                repaired=self.mend,
            )

    def kept(self) -> None:
        """Look at what else was derived and can be thrown away."""
        told, findings = examine_kept(self.library, mend=self.mend)
        self.told.examined[Part.KEPT] = told
        self.told.findings += findings

    def files(self) -> None:
        """Compare the pictures on disk with what is known of them."""
        told, findings = examine_files(self.library, self.row, deep=self.deep)
        self.told.examined[Part.FILES] = told
        self.told.findings += findings

    def _tell_of_vectors(self, target: Target, what: str, count: int, names: list[str]) -> None:
        able = self.mend and self.encoder is not None
        self._tell(
            Part.VECTORS,
            f"{count:,} vectors of {what} are damaged: a wrong length, or numbers that make no "
            "unit vector.",
            f"mmsearch doctor --repair drops them, and embeds the {what} again.",
            repaired=able,
            names=names[:NAMED],
        )

    def _odd_vectors(self, odd: list[str]) -> None:
        if self.mend and self.encoder is not None and self.row.encoder_id is not None:
            repair.embed_again(self.library, self.row, self.encoder, odd)
        self._tell(
            Part.VECTORS,
            f"{len(odd):,} of the pictures that were embedded again have another vector than the "
            "one stored, though their content is the same.",
            "mmsearch doctor --deep --repair stores the new ones. Where there are several, embed "
            "everything again: mmsearch migrate",
            repaired=self.mend,
            names=odd[:NAMED],
        )

    def _tell(
        self,
        part: Part,
        problem: str,
        advice: str = "",
        *,
        serious: bool = True,
        repaired: bool = False,
        names: list[str] | None = None,
    ) -> None:
        self.told.findings.append(
            Finding(part, problem, advice, serious, repaired, tuple(names or ()))
        )
