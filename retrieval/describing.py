"""Captions for pictures without any, written by a model.

What a model wrote stands in for what people say: a picture has such a caption only while it has
none of people's own. They are stored a batch at a time, so that an interrupted run goes on where
it stopped, and are embedded and found like any other; quality is never measured, and nothing
learned, by them.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from mmsearch.errors import MediaError
from mmsearch.retrieval.captioners import Captioner, full_name, load_captioner, revision
from mmsearch.retrieval.containers import Place, places_of
from mmsearch.retrieval.embedding import Progress
from mmsearch.retrieval.media import open_picture, read_bytes, upright_rgb
from mmsearch.retrieval.metadata import clean_caption
from mmsearch.retrieval.pace import Pace, Stage
from mmsearch.retrieval.schema import GENERATED, Caption, Problem

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

    from mmsearch.retrieval.catalog import Catalog, Undescribed

__all__ = ["describe_pictures"]


def describe_pictures(
    root: Path,
    catalog: Catalog,
    model: str | Path | Captioner,
    *,
    pace: Pace,
    progress: Callable[[Progress], None],
) -> int:
    """Write and store a caption for every picture that lacks one; return for how many.

    A picture lacks one where people gave it none, and this model in this revision neither; what
    another model wrote is replaced. Files of one content are described together. The model is
    loaded only if there is something to describe.

    Args:
        root: the library's folder.
        catalog: the library's, writable.
        model: see `load_captioner`.
        pace: hears where the time goes.
        progress: told of the stage `describe`.

    Raises:
        ModelError: the model cannot be used.
        MissingExtra: the extra `models` is not installed.
    """
    label = _known_label(model)
    todo = catalog.undescribed("" if label is None else GENERATED + label)
    if not todo:
        return 0
    captioner = load_captioner(model)
    source = GENERATED + captioner.label
    if label is None:  # The model had to be fetched to know its revision.
        todo = catalog.undescribed(source)
    places = places_of(root, [picture.path for picture in todo])
    # What lies in a container is read from its front to its end.
    order = {path: number for number, path in enumerate(places)}
    todo.sort(key=lambda picture: order.get(picture.path, -1))
    described, done = 0, 0
    total = len(todo)
    progress(Progress("describe", 0, total))

    def opened(picture: Undescribed) -> Image.Image | Problem:
        try:
            return _open(root, picture.path, places.get(picture.path), captioner.decode_size)
        except MediaError as error:
            return Problem(picture.path, error.kind, str(error))

    with ThreadPoolExecutor(captioner.batch_size, "read") as pool:
        for start in range(0, total, captioner.batch_size):
            batch = todo[start : start + captioner.batch_size]
            with pace.in_the_way(Stage.DECODE):
                found = list(pool.map(opened, batch))
            with pace.alone(Stage.ENCODE):
                shown = [one for one in found if not isinstance(one, Problem)]
                texts = iter(captioner.describe(shown))
            with pace.alone(Stage.WRITE), catalog.write() as transaction:
                for picture, one in zip(batch, found, strict=True):
                    if isinstance(one, Problem):
                        # Its vector is good: it stays, and is looked at again in the next run.
                        transaction.put_problem(one, forget=False)
                        continue
                    text = clean_caption(next(texts))
                    for id_ in picture.ids if text else ():
                        transaction.put_generated(id_, Caption(str(text), source))
                        described += 1
            done += len(batch)
            progress(Progress("describe", done, total))
    return described


def _known_label(model: str | Path | Captioner) -> str | None:
    """Return a captioner's label without loading it; None where it is not here yet."""
    if isinstance(model, Captioner):
        return model.label
    source = full_name(model)
    known = revision(source)
    return None if known is None else f"{source}@{known}"


def _open(root: Path, path: str, place: Place | None, at_least: int) -> Image.Image:
    data = read_bytes(root / path) if place is None else place.read()
    return upright_rgb(open_picture(data), at_least=at_least)
