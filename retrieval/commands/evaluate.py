"""`mmsearch evaluate`: measure how good retrieval is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmsearch.retrieval.commands.options import (
    Json,
    LibraryOption,
    Rerank,
    RerankDepth,
    chosen_library,
    path_argument,
)
from mmsearch.retrieval.terminal import (
    print_json,
    printable,
    progress_bar,
    read_large_pictures,
)

if TYPE_CHECKING:
    from mmsearch.retrieval.evaluation import Evaluation
    from mmsearch.retrieval.index_quality import IndexQuality
    from mmsearch.retrieval.quality import Retrieval
    from mmsearch.retrieval.rerank_quality import Gain

__all__ = ["evaluate"]

WAYS = "text→image", "image→text"


def evaluate(
    pairs: Annotated[
        Path | None,
        typer.Argument(
            parser=path_argument,
            metavar="PAIRS",
            help="Pictures and captions: TSV, CSV, JSONL, Parquet, COCO's JSON or Karpathy's "
            "splits. Without it: the library's own captions.",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            parser=path_argument,
            metavar="FOLDER",
            help="The folder that the paths are relative to.",
        ),
    ] = None,
    library: LibraryOption = None,
    model: Annotated[
        str | None,
        typer.Option(help="The encoder to measure.", show_default="compact, or the library's own"),
    ] = None,
    gallery: Annotated[
        bool,
        typer.Option(
            "--gallery", help="Let every picture of the folder or library be a possible answer."
        ),
    ] = False,
    split: Annotated[
        str | None,
        typer.Option(help="The part of a file with splits to take.", show_default="test"),
    ] = None,
    describe: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Also measure what a model writes about the pictures, by BLEU against PAIRS: "
            "blip, hf:NAME_OR_PATH or a folder (extra models). Needs --images.",
        ),
    ] = None,
    folds: Annotated[
        int,
        typer.Option(min=1, help="Average over equal parts: 5 for COCO's 1K protocol."),
    ] = 1,
    resamples: Annotated[
        int, typer.Option(min=0, help="Of the bootstrap that gives the intervals; 0 for none.")
    ] = 1000,
    rerank: Rerank = None,
    rerank_depth: RerankDepth = None,
    as_json: Json = False,
) -> None:
    """Measure how well captions find their pictures, and pictures their captions.

    \b
    On a file of pairs:            mmsearch evaluate captions.tsv --images ./photos
    On a library's own captions:   mmsearch evaluate --library ./photos
    On pictures already indexed:   mmsearch evaluate captions.tsv --library ./photos
    What a reranker gains:         mmsearch evaluate captions.tsv --images ./photos --rerank fast
    """  # noqa: D301 (the backspace keeps the lines apart)
    from mmsearch.retrieval import evaluation, library_evaluation
    from mmsearch.retrieval.encoders import DEFAULT_MODEL
    from mmsearch.retrieval.quality import Sampling

    sampling = Sampling(folds=folds, resamples=resamples)
    if pairs is None and (images is not None or gallery or split is not None or folds > 1):
        raise typer.BadParameter(
            "--images, --gallery, --split and --folds are about a file of pictures and captions: "
            "name it first, as in mmsearch evaluate PAIRS --images FOLDER"
        )
    if describe is not None and images is None:
        raise typer.BadParameter(
            "--describe writes captions of pictures that already have some: say which, as in "
            "mmsearch evaluate PAIRS --images FOLDER --describe blip"
        )
    if pairs is not None and (images is None) == (library is None):
        raise typer.BadParameter(
            "say where the pictures of PAIRS are, in one way: --images FOLDER embeds its files, "
            "--library FOLDER takes the vectors of a folder that was indexed"
        )
    if rerank is None and rerank_depth is not None:
        raise typer.BadParameter("--rerank-depth is about reranking: say --rerank NAME too")
    read_large_pictures()
    with progress_bar() as show:
        if pairs is None:
            report = library_evaluation.evaluate_library(
                chosen_library(library),
                model=model,
                sampling=sampling,
                rerank=rerank,
                rerank_depth=rerank_depth,
                progress=show,
            )
        elif library is not None:
            report = library_evaluation.evaluate_pairs_in_library(
                library,
                pairs,
                model=model,
                gallery=gallery,
                split=split,
                sampling=sampling,
                rerank=rerank,
                rerank_depth=rerank_depth,
                progress=show,
            )
        else:
            assert images is not None
            report = evaluation.evaluate(
                pairs,
                images,
                model=DEFAULT_MODEL if model is None else model,
                gallery=gallery,
                split=split,
                describe=describe,
                sampling=sampling,
                rerank=rerank,
                rerank_depth=rerank_depth,
                progress=show,
            )
    if as_json:
        print_json(report.to_json())
    else:
        _print_report(report)


def _title(report: Evaluation) -> str:
    title = f"{report.model}: {report.images:,} pictures, {report.captions:,} captions"
    if report.library is not None:
        title += f" in {printable(str(report.library))}{', tuned' if report.tuned else ''}"
    if report.sampling.folds > 1:
        title += f", mean of {report.sampling.folds} folds"
    if report.sampling.resamples:
        title += f" (95 % intervals: {report.sampling.resamples:,} resamples of the pictures)"
    return title


def _print_report(report: Evaluation) -> None:
    typer.echo(_title(report))
    reranked = report.reranked
    afterwards: dict[str, tuple[Retrieval, Gain]] = {}
    if reranked is not None:
        both = reranked.text_to_image, reranked.image_to_text
        afterwards = dict(zip(WAYS, zip(both, reranked.gains, strict=True), strict=True))
    for name, way, index in zip(
        WAYS,
        (report.text_to_image, report.image_to_text),
        (report.image_index, report.caption_index),
        strict=True,
    ):
        typer.echo(f"{name}  {_figures(way)}")
        if name in afterwards:
            after, gain = afterwards[name]
            typer.echo(f" reranked   {_figures(after)}")
            typer.echo(f" gain       {_gained(gain)}")
        if index is not None:
            typer.echo(f" by index   {_index_figures(index, way)}")
    if reranked is not None:
        typer.echo(
            f"{printable(reranked.model)} read the best {reranked.depth} answers: "
            f"{reranked.pairs:,} pairs in {reranked.seconds:.1f} s"
        )
    if report.latency is not None:
        for part, times in (("query", report.latency.whole), ("search", report.latency.search)):
            shown = "  ".join(f"{name} {value:.1f} ms" for name, value in times.items())
            typer.echo(f"{part:<10}  {shown}")

    if report.bleu is not None:
        shown = "  ".join(f"{name} {value:.1f}" for name, value in report.bleu.items())
        typer.echo(f"{shown}  of captions by {printable(str(report.captioner))}")


def _figures(way: Retrieval) -> str:
    figures = [(f"R@{k}", f"R@{k}", value, ".1f") for k, value in way.recall.items()]
    figures += [
        ("median_rank", "median rank", way.median_rank, "g"),
        ("mrr", "MRR", way.mrr, ".3f"),
    ]
    shown = []
    for key, name, value, digits in figures:
        text = f"{name} {value:{'5.1f' if digits == '.1f' else digits}}"
        if key in way.confidence:
            low, high = way.confidence[key]
            text += f" ({low:{digits}}–{high:{digits}})"
        shown.append(text)
    return "  ".join(shown)


def _gained(gain: Gain) -> str:
    shown = []
    for name, value in gain.values.items():
        if not name.startswith("R@"):
            continue
        text = f"{name} {value:+5.1f}"
        if name in gain.confidence:
            low, high = gain.confidence[name]
            text += f" ({low:+.1f} to {high:+.1f})"
        shown.append(text)
    return "  ".join(shown)


def _index_figures(index: IndexQuality, way: Retrieval) -> str:
    """Lay the figures out below those of the exact search."""
    shown = []
    for k, value in index.recall.items():
        interval = way.confidence.get(f"R@{k}")
        room = len(" (–)") + sum(len(f"{bound:.1f}") for bound in interval) if interval else 0
        shown.append(f"R@{k} {value:5.1f}" + " " * room)
    kind = "exact" if index.exact else "approximate"
    return "  ".join(shown) + f"  {100 * index.agreement:.1f} % of the first ten ({kind})"
