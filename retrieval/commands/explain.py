"""`mmsearch explain`: why a picture matches."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmsearch.retrieval.commands.options import (
    Json,
    LibraryOption,
    chosen_library,
    path_argument,
)
from mmsearch.retrieval.confidence import confidence
from mmsearch.retrieval.terminal import print_json, printable, read_large_pictures, say

if TYPE_CHECKING:
    from mmsearch.retrieval.explanation import Explanation

__all__ = ["explain"]

BAR = 16
"""Characters of the longest bar."""


def explain(
    image: Annotated[
        Path,
        typer.Argument(
            parser=path_argument,
            metavar="IMAGE",
            help="A picture, anywhere; also by its path from the library's folder on.",
        ),
    ],
    text: Annotated[str, typer.Argument(help="What it was asked for with.")],
    method: Annotated[
        str | None,
        typer.Option(
            help="How the map is made: by vectors of regions, by windows (any model), or by the "
            "gradient (extra models).",
            show_default="regions where the model knows them, else windows",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            parser=path_argument,
            metavar="FILE",
            help="Write the picture with the map over it, a PNG.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="With --output: replace a file that is there.")
    ] = False,
    pictures: Annotated[
        bool | None,
        typer.Option(
            "--pictures/--no-pictures",
            "-p",
            help="Draw the map in the terminal (extra show).",
            show_default="where that works",
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", help="How many captions of each kind.")] = 3,
    model: Annotated[
        str | None,
        typer.Option(help="An encoder, see: mmsearch models. No library is asked then."),
    ] = None,
    library: LibraryOption = None,
    as_json: Json = False,
) -> None:
    """Say why a picture matches: where, by which words, how probably, what would fit better.

    Without a library there are the map and the words alone.

    \b
    Examples: mmsearch explain dog.jpg "a dog on a beach"
              mmsearch explain 2023/IMG_2041.jpg "sunset" --output heat.png
    """  # noqa: D301 (the backspace keeps the lines apart)
    from mmsearch.errors import QueryError
    from mmsearch.retrieval.filters import split_inline

    if k < 1:
        raise QueryError(f"-k must be at least 1, not {k}.")
    if model is not None and library is not None:
        raise QueryError("--model asks no library, and --library has a model of its own. Give one.")
    if output is not None:
        from mmsearch.retrieval.heat_picture import check_place

        check_place(output, image, force=force)
    drawn = _drawn(False if as_json else pictures)
    words, filter_ = split_inline(text)
    if filter_ is not None:
        say(f"What a picture looks like says nothing of {filter_}, so that is left out.")
    read_large_pictures()
    found = _explanation(image, words, method, k, model, library)
    if as_json:
        print_json(found.to_json())
    else:
        _print(found, drawn=drawn)
    if output is not None:
        from mmsearch.retrieval.heat_picture import heat_picture, write_png

        said = f"Where it matches: {found.text}"
        write_png(heat_picture(found.picture, found.heat), output, said, force=force)
        say(f"The map is on {output}")


def _explanation(
    image: Path, text: str, method: str | None, k: int, model: str | None, library: Path | None
) -> Explanation:
    from mmsearch.errors import LibraryNotFound
    from mmsearch.retrieval import explanation
    from mmsearch.retrieval.encoders import DEFAULT_MODEL
    from mmsearch.retrieval.engine import open_engine

    if model is not None:
        return explanation.explain(image, text, model=model, method=method)
    try:
        path = chosen_library(library)
    except LibraryNotFound:
        if library is not None:
            raise
        say("No library here, so neither a probability nor captions.")
        return explanation.explain(image, text, model=DEFAULT_MODEL, method=method)
    with open_engine(path, device="cpu") as engine:
        return engine.explain(image, text, method=method, k=k)


def _drawn(asked: bool | None) -> bool:
    """Return whether the map is drawn in the terminal; by default where that works.

    Raises:
        MissingExtra: it is asked for, without the extra `show`.
    """
    if asked is False:
        return False
    if not sys.stdout.isatty():
        if asked:
            say("--pictures needs a terminal. A file instead: --output FILE.png")
        return False
    if asked:
        from mmsearch.retrieval.terminal_graphics import check_extra

        check_extra("textual-image")
        return True
    return find_spec("textual_image") is not None


def _print(found: Explanation, *, drawn: bool) -> None:
    """Print an explanation: columns for a person, a kind and tab-separated fields for a program."""
    if not sys.stdout.isatty():
        for row in _rows(found):
            typer.echo("\t".join(row))
        return
    if drawn:
        from mmsearch.retrieval.heat_picture import heat_picture
        from mmsearch.retrieval.terminal_pictures import print_picture

        print_picture(heat_picture(found.picture, found.heat))
    verdict = found.verdict
    told = [] if verdict is None else [f"{confidence(verdict.match)} ({verdict.match:.2f})"]
    told += [f"score {found.score:.3f}", f"names score {found.usual:.3f}"]
    typer.echo(" · ".join(told))
    if verdict is not None:
        typer.echo(
            f'{verdict.deviations:+.1f} deviations from what "{printable(found.text)}" scores '
            f"here; the best of {verdict.pictures:,} by chance {verdict.chance:+.1f}, the cut is "
            f"{verdict.cut:.2f}"
        )
    typer.echo()
    most = max((abs(word.share) for word in found.words), default=0.0) or 1.0
    width = max((len(printable(word.word)) for word in found.words), default=0)
    for word in found.words:
        bar = ("█" if word.share > 0 else "░") * round(BAR * abs(word.share) / most)
        typer.echo(f"{printable(word.word):<{width}}  {word.share:+.3f}  {bar}")
    if found.captions:
        typer.echo()
    for caption in found.captions:
        whose = "its own" if caption.own else printable(caption.path)
        better = ">" if caption.better else "<"
        text = printable(caption.text)
        typer.echo(f"{better} {caption.score:.3f}  {text}  ({whose})")
    how = {"regions": "regions", "windows": "windows", "gradient": "the gradient"}[found.method]
    left, top = found.place
    say(
        f"Best {left:.0%} from the left and {top:.0%} from the top, by {how} · "
        f"{found.took_ms:.0f} ms"
    )


def _rows(found: Explanation) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("score", f"{found.score:.4f}"), ("usual", f"{found.usual:.4f}")]
    if found.verdict is not None:
        verdict = found.verdict
        rows += [
            ("match", f"{verdict.match:.4f}", confidence(verdict.match)),
            ("cut", f"{verdict.cut:.2f}"),
            ("deviations", f"{verdict.deviations:.2f}"),
            ("chance", f"{verdict.chance:.2f}"),
        ]
    rows.append(("place", *(f"{share:.3f}" for share in found.place)))
    rows += [("word", f"{word.share:+.4f}", printable(word.word)) for word in found.words]
    for caption in found.captions:
        whose = "own" if caption.own else "other"
        texts = printable(caption.text), printable(caption.path)
        rows.append(("caption", f"{caption.score:.4f}", whose, *texts))
    return rows
