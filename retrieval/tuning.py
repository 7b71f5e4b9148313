"""Learning from a library's captions, or from chosen results, how its own texts are meant.

Only a small map of texts is learned (`adapter`): pictures' vectors stay, nothing is indexed again,
no picture is opened. A quarter of the captioned pictures is kept out of it, and what was learned is
used only if it finds these better. What is used is what was measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch.errors import SourceError, quoted
from mmsearch.retrieval.adapter import Adapter, Captioned, fit_gate, train
from mmsearch.retrieval.engine import open_engine
from mmsearch.retrieval.everyday import everyday_sentences
from mmsearch.retrieval.evidence import Evidence
from mmsearch.retrieval.held_out import Gain, compare, held_out_mrr, own_texts, split
from mmsearch.retrieval.library import Library
from mmsearch.retrieval.pairs import read_pairs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.catalog import LibraryRow
    from mmsearch.retrieval.encoders import Encoder

__all__ = ["TuneReport", "reset", "tune", "undo"]

SHARE = 0.25
LEAST = 20
"""Pictures held out at least, and learned from at least."""
MOST = 2000
"""Pictures held out at most: more of them measure hardly better and cost seconds."""
INNER_SHARE = 0.2
PATIENCE = 50
"""Steps without a better result after which learning ends."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class TuneReport:
    """What was learned, and whether it is used.

    Attributes:
        adapter: its id, where it is used; None where it was refused.
        refusal: why it was refused; None where it is used.
        learned_from: `captions`, or the name of the file of pairs.
        texts: distinct texts there were to learn from and to measure with.
        pictures: pictures they belong to; copies of a file count once.
        held_out_texts: those measured with.
        held_out_pictures: those measured on.
        unmatched: paths of the file that name no picture of the library.
        steps: how many batches were learned from.
        seconds: all of it.
    """

    library: Path
    model: str
    adapter: int | None
    refusal: str | None
    learned_from: str
    texts: int
    pictures: int
    held_out_texts: int
    held_out_pictures: int
    text_to_image: Gain
    image_to_text: Gain
    steps: int
    seconds: float
    unmatched: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the object that `tune --json` prints."""
        return {
            "schema": 1,
            "library": str(self.library),
            "model": self.model,
            "adapter": self.adapter,
            "refused": self.refusal,
        } | self.measured()

    def measured(self) -> dict[str, Any]:
        """Return what is kept with the adapter: everything but its name and place."""
        return {
            "learned_from": self.learned_from,
            "texts": self.texts,
            "pictures": self.pictures,
            "unmatched": len(self.unmatched),
            "held_out": {"texts": self.held_out_texts, "pictures": self.held_out_pictures},
            "text_to_image": self.text_to_image.to_json(),
            "image_to_text": self.image_to_text.to_json(),
            "steps": self.steps,
            "seconds": round(self.seconds, 3),
        }


def tune(
    library: Path | str,
    *,
    pairs: Path | str | None = None,
    model: str | Path | Encoder | None = None,
    seed: int = 0,
    wait: float = 0.0,
    progress: Progress | None = None,
) -> TuneReport:
    """Learn from a library's captions, or from chosen results; use it if it helps.

    It is refused, and nothing changes, unless text→image MRR on the held-out pictures rises beyond
    doubt (the lower bound of a 90 % interval is above zero), their Recall@1 does not fall, and
    image→text MRR does not fall beyond doubt. What was learned before plays no part, and is kept
    beneath for `undo`.

    Args:
        library: the folder that was indexed.
        pairs: a file of pictures and texts to learn from instead of the library's captions, such
            as queries and the answer that was chosen; see `read_pairs` and `Locator`.
        model: the encoder; the one the library was built with when not given.
        seed: of the choice of held-out pictures and of the batches.
        wait: seconds to wait for another process that writes to this library; `math.inf` for as
            long as it takes.
        progress: called with the stage (`texts`, `learning`), how much is done and of how much.

    Raises:
        LibraryNotFound: the folder was never indexed.
        SourceError: there is too little to learn from, or the pairs cannot be read.
        LibraryLocked: another process is indexing or tuning this library.
        StorageError: the library cannot be written to.
    """
    started = time.perf_counter()
    notify = progress or (lambda *_: None)
    source = None if pairs is None else Path(pairs)
    chosen = None if source is None else [(p.path, p.caption) for p in read_pairs(source)]
    with open_engine(library, model=model, device="cpu") as engine, engine.library.indexing(wait):
        row = engine.library.catalog.library()
        engine.check(row)
        encoder_id, _ = engine.library.active_encoder(row)
        evidence = Evidence(engine.library, engine.encoder, encoder_id, notify)
        unmatched: tuple[str, ...] = ()
        if source is None or chosen is None:
            data = evidence.captions()
        else:
            data, unmatched = evidence.chosen(source, chosen)
        own = len(own_texts(data.links))
        if own < 2 * LEAST:
            raise _too_few(engine.library, source, own)
        captioned = len(np.unique(data.links[:, 1]))
        held = min(max(LEAST, round(SHARE * captioned)), MOST, own - LEAST)
        learned, kept_out = split(data.links, held, seed)
        adapter, steps = _learn(data, learned, evidence.embed(everyday_sentences()), seed, notify)
        to_image, to_text = compare(data, kept_out, adapter.apply(data.texts), seed)
        report = TuneReport(
            library=engine.library.root,
            model=engine.encoder.spec.label,
            adapter=None,
            refusal=_refusal(to_image, to_text),
            learned_from="captions" if source is None else source.name,
            texts=len(data.texts),
            pictures=captioned,
            held_out_texts=len(np.unique(kept_out[:, 0])),
            held_out_pictures=len(np.unique(kept_out[:, 1])),
            text_to_image=to_image,
            image_to_text=to_text,
            steps=steps,
            seconds=time.perf_counter() - started,
            unmatched=unmatched,
        )
        if report.refusal is not None:
            return report
        with engine.library.catalog.write() as transaction:
            id_ = transaction.add_adapter(encoder_id, adapter.to_bytes(), report.measured())
        engine.library.keep_image_index(row.stamp)
        return replace(report, adapter=id_)


def undo(library: Path | str, *, wait: float = 0.0) -> tuple[int, int | None]:
    """Take the last tuning back; return how many were (0 or 1) and the id of what applies now.

    `wait` is as in `tune`.

    Raises:
        LibraryNotFound: the folder was never indexed.
        LibraryLocked: another process is indexing or tuning this library.
        StorageError: the library cannot be written to.
    """
    return _take_back(library, lambda row: (row.adapter_id or 0) - 1, wait)


def reset(library: Path | str, *, wait: float = 0.0) -> tuple[int, int | None]:
    """Take every tuning back, for good; return how many were, and None.

    `wait` is as in `tune`.

    Raises:
        LibraryNotFound: the folder was never indexed.
        LibraryLocked: another process is indexing or tuning this library.
        StorageError: the library cannot be written to.
    """
    return _take_back(library, lambda _: 0, wait)


def _take_back(
    library: Path | str, above: Callable[[LibraryRow], int], wait: float
) -> tuple[int, int | None]:
    with closing(Library.open(Path(library))) as opened, opened.indexing(wait):
        row = opened.catalog.library()
        if row.encoder_id is None or row.adapter_id is None:
            return 0, None
        with opened.catalog.write() as transaction:
            count = transaction.remove_adapters(row.encoder_id, above=above(row))
        opened.keep_image_index(row.stamp)
        return count, opened.catalog.library().adapter_id


def _learn(
    data: Captioned,
    links: NDArray[np.int64],
    everyday: NDArray[np.float32],
    seed: int,
    progress: Progress,
) -> tuple[Adapter, int]:
    """Return an adapter learned from `links`, and the number of steps.

    How many steps are right is found on a fifth of the pictures first, learning from the others.
    """
    gate = fit_gate(data.texts[np.unique(links[:, 0])], everyday)
    ours, apart = split(links, max(5, round(INNER_SHARE * len(own_texts(links)))), seed + 1)
    best_mrr, best_step = held_out_mrr(data, apart, data.texts), 0

    def look(adapter: Adapter, step: int) -> bool:
        nonlocal best_mrr, best_step
        mrr = held_out_mrr(data, apart, adapter.apply(data.texts))
        if mrr > best_mrr:
            best_mrr, best_step = mrr, step
        progress("learning", step, 0)
        return step < best_step + PATIENCE

    train(Captioned(data.pictures, data.texts, ours), gate, seed=seed, look=look)
    whole = Captioned(data.pictures, data.texts, links)
    return train(whole, gate, steps=best_step, seed=seed), best_step


def _refusal(to_image: Gain, to_text: Gain) -> str | None:
    if to_image.mrr_gain[0] <= 0:
        return "finding held-out pictures by their texts did not become better beyond doubt"
    if to_image.after["R@1"] < to_image.before["R@1"]:
        return "fewer held-out pictures came first for their texts"
    if to_text.mrr_gain[1] < 0:
        return "finding held-out texts by their pictures became worse"
    return None


def _too_few(library: Library, source: Path | None, own: int) -> SourceError:
    needed = f"pictures with a text that no other picture has; tuning needs at least {2 * LEAST}"
    if source is not None:
        return SourceError(
            f"{source} names {own} {needed}, half of them to measure on. Collect more, or leave "
            "--pairs away to learn from the library's captions."
        )
    return SourceError(
        f"The library at {library.root} has {own} {needed}, half of them to measure on. Add "
        f"captions (mmsearch index {quoted(library.root)} --captions FILE), or learn from results "
        "that were chosen (mmsearch tune --pairs FILE)."
    )
