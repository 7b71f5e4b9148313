"""`mmsearch caption`: words for a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmsearch.retrieval.commands.options import (
    EXIT_NOTHING_MATCHED,
    Json,
    LibraryOption,
    Rerank,
    ServerOption,
    TokenOption,
    chosen_library,
    path_argument,
)
from mmsearch.retrieval.commands.remote import Remote, chosen_server, picture_of
from mmsearch.retrieval.commands.showing import print_table
from mmsearch.retrieval.terminal import print_json, printable, read_large_pictures, say

if TYPE_CHECKING:
    from mmsearch.retrieval.encoders import Encoder
    from mmsearch.retrieval.schema import Results

__all__ = ["caption"]


def caption(
    image: Annotated[
        Path, typer.Argument(parser=path_argument, metavar="IMAGE", help="A picture, anywhere.")
    ],
    tags: Annotated[
        bool,
        typer.Option("--tags", help="Give names of a vocabulary, not captions; needs no library."),
    ] = False,
    vocabulary: Annotated[
        Path | None,
        typer.Option(
            parser=path_argument,
            metavar="FILE",
            help="Names to choose tags from, one a line; implies --tags.",
            show_default="about a thousand things, the classes of COCO and ImageNet",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="The encoder that finds tags, see: mmsearch models.",
            show_default="that of --library, else compact",
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", help="How many answers.")] = 5,
    rerank: Rerank = None,
    library: LibraryOption = None,
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: Json = False,
) -> None:
    """Say what a picture shows: the best captions of a library, or tags from a vocabulary.

    A library without captions is answered for with tags, and so is no library at all.

    \b
    Examples: mmsearch caption dog.jpg
              mmsearch caption dog.jpg --tags
              mmsearch caption dog.jpg --vocabulary breeds.txt -k 1
    """  # noqa: D301 (the backspace keeps the lines apart)
    from mmsearch.errors import QueryError

    if k < 1:
        raise QueryError(f"-k must be at least 1, not {k}.")
    read_large_pictures()
    tags = tags or vocabulary is not None
    if tags and server is not None:
        raise QueryError("Tags are found on this machine: leave --server away.")
    there = None if tags else chosen_server(server, token, library)
    if model is not None and not tags:
        raise QueryError("--model finds tags: a library's captions are compared with its own.")
    if rerank is not None and tags:
        raise QueryError("--rerank reads a library's captions again, not tags: give one of both.")
    if there is not None:
        _ask_there(there, image, k, rerank, as_json)
        return
    _ask_here(image, tags, vocabulary, model, k, rerank, library, as_json)


def _ask_there(there: Remote, image: Path, k: int, rerank: str | None, as_json: bool) -> None:
    with there.client() as client:
        results = client.caption(picture_of(image), k, rerank=rerank, library=there.library)
    _print(results, as_json)
    if not results.hits:
        say("No captions there. Tags, found on this machine: mmsearch caption IMAGE --tags")
        raise typer.Exit(EXIT_NOTHING_MATCHED)


def _ask_here(
    image: Path,
    tags: bool,
    vocabulary: Path | None,
    model: str | None,
    k: int,
    rerank: str | None,
    library: Path | None,
    as_json: bool,
) -> None:
    from mmsearch.errors import LibraryNotFound
    from mmsearch.retrieval.encoders import DEFAULT_MODEL, load_encoder
    from mmsearch.retrieval.engine import open_engine
    from mmsearch.retrieval.schema import Target

    if tags and (model is not None or library is None):
        encoder = load_encoder(model or DEFAULT_MODEL, asking=True)
        _print_tags(image, encoder, vocabulary, k, as_json)
        return
    try:
        path = chosen_library(library)
    except LibraryNotFound:
        say(f"No library here; tags instead of captions{_unranked(rerank)}.")
        _print_tags(image, load_encoder(asking=True), None, k, as_json)
        return
    with open_engine(path, device="cpu") as engine:
        if not tags and engine.library.catalog.counts().captions:
            _print(engine.search(image=image, to=Target.CAPTIONS, k=k, rerank=rerank), as_json)
            return
        encoder = engine.encoder
    if not tags:
        say(f"This library has no captions; tags instead{_unranked(rerank)}.")
    _print_tags(image, encoder, vocabulary, k, as_json)


def _print(results: Results, as_json: bool) -> None:
    if as_json:
        print_json(results.to_json())
    else:
        print_table(results)


def _unranked(rerank: str | None) -> str:
    return "" if rerank is None else ", which are not reranked"


def _print_tags(
    image: Path, encoder: Encoder, vocabulary: Path | None, k: int, as_json: bool
) -> None:
    from mmsearch.errors import MediaError, QueryError
    from mmsearch.retrieval.containers import openable
    from mmsearch.retrieval.tags import Tagger, bundled_vocabulary, read_vocabulary

    names = bundled_vocabulary() if vocabulary is None else read_vocabulary(vocabulary)
    try:
        picture = openable(image)
        tagger = Tagger(
            encoder,
            names,
            embedding=lambda count: say(f"Embedding {count:,} names, once for this model."),
        )
        (found,) = tagger.tags([picture], k)
    except MediaError as error:
        raise QueryError(f"The picture cannot be used: {error}.") from error
    if as_json:
        print_json(
            {
                "schema": 1,
                "image": str(image),
                "model": encoder.spec.label,
                "vocabulary": len(tagger.vocabulary),
                "tags": [{"rank": rank} | tag.to_json() for rank, tag in enumerate(found, 1)],
            }
        )
        return
    for rank, tag in enumerate(found, 1):
        typer.echo(f"{rank}\t{tag.score:.3f}\t{printable(tag.name)}")
