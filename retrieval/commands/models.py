"""`mmsearch models`: the encoders there are, what they cost and what is said of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmsearch.errors import ModelError
from mmsearch.retrieval.commands.options import Json
from mmsearch.retrieval.terminal import print_json, printable, say

if TYPE_CHECKING:
    from mmsearch.retrieval.encoders.known import Recall
    from mmsearch.retrieval.encoders.speed import Speed

__all__ = ["models"]

BYTES_OF_A_WEIGHT = 4
"""A float32; what stores fewer is told by the size of its files."""


@dataclass(frozen=True, slots=True)
class _Row:
    """One model.

    Attributes:
        name: what `--model` takes.
        where: `bundled`, `folder`, `exported` (on this machine, without torch), `torch` (could
            not be exported) or `known` (to be downloaded).
        disk_bytes: its files; `None` where they are not here.
        memory_bytes: its weights when both towers are loaded.
    """

    name: str
    where: str
    also: str | None = None
    parameters: int | None = None
    dim: int | None = None
    disk_bytes: int | None = None
    memory_bytes: int | None = None
    cosine: dict[str, float] | None = None
    recall: Recall | None = None
    speed: Speed | None = None

    def to_json(self) -> dict[str, Any]:
        fields = asdict(self)
        speed = fields.pop("speed") or {}
        for name in ("images_per_second", "query_ms", "device"):
            fields[name] = speed.get(name)
        return fields


def models(
    measure: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Measure how fast this model is here, and keep it. May download the model.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List encoders: what is on this machine, and well-known ones that can be had.

    Images a second are those of the encoder alone, measured here with --measure; memory is that
    of the weights. Recall is what the makers published: pictures found by captions, first hit.

    \b
    Examples: mmsearch models
              mmsearch models --measure compact
    """  # noqa: D301 (the backspace keeps the lines apart)
    if measure is not None:
        _measure(measure)
    rows = list(_rows())
    if as_json:
        print_json({"schema": 1, "models": [row.to_json() for row in rows]})
    else:
        _print_rows(rows)


def _measure(name: str) -> None:
    from mmsearch.retrieval.encoders import load_encoder
    from mmsearch.retrieval.encoders.speed import measure

    if not name.strip():
        raise ModelError("The model's name is empty. See: mmsearch models")
    found = measure(load_encoder(name))
    found.write()
    say(
        f"{found.name}: {found.images_per_second:,.1f} images/s, {found.query_ms:,.1f} ms a query "
        f"({found.device})"
    )


def _rows() -> Iterator[_Row]:
    """Yield what is here, then what is known, each name once."""
    from mmsearch.retrieval.encoders.known import known_models
    from mmsearch.retrieval.encoders.speed import Speed

    known = {model.name: model for model in known_models()}
    for model in list(known.values()):
        if model.also is not None:
            known.setdefault(model.also, replace(model, name=model.also, also=model.name))
    speeds = {speed.name: speed for speed in Speed.kept()}
    seen: set[str] = set()
    for row in _here():
        seen.add(row.name)
        fact = known.get(row.name)
        yield replace(
            row,
            also=fact.also if fact else None,
            parameters=row.parameters or (fact.parameters if fact else None),
            recall=fact.recall if fact else None,
            speed=speeds.get(row.name),
        )
    for model in known_models():
        if model.name not in seen:
            speed = speeds.get(model.name) or speeds.get(model.also or "")
            memory = BYTES_OF_A_WEIGHT * model.parameters if model.parameters else None
            yield _Row(
                model.name,
                "known",
                also=model.also,
                parameters=model.parameters,
                dim=model.dim,
                memory_bytes=memory,
                recall=model.recall,
                speed=speed,
            )


def _here() -> Iterator[_Row]:
    from mmsearch.retrieval.encoders import BUNDLED, DEFAULT_MODEL, exported

    yield _of_folder(BUNDLED / DEFAULT_MODEL, DEFAULT_MODEL, "bundled")
    for file in sorted([*Path().glob("encoder.json"), *Path().glob("*/encoder.json")]):
        yield _of_folder(file.parent, str(file.parent.absolute()), "folder")
    for export in exported.exports():
        facts = export.facts
        parameters = sum((facts.get("parameters") or {}).values()) or None
        if "refused" in facts:
            memory = BYTES_OF_A_WEIGHT * parameters if parameters else None
            yield _Row(export.source, "torch", parameters=parameters, memory_bytes=memory)
        elif "spec" in facts:
            yield replace(
                _of_folder(export.folder, export.source, "exported"),
                parameters=parameters,
                cosine=facts.get("cosine"),
            )


def _of_folder(folder: Path, name: str, where: str) -> _Row:
    """Describe an encoder's folder; what its `encoder.json` does not say stays open."""
    from mmsearch.retrieval.encoders.cache import read_json

    fields = read_json(folder / "encoder.json")
    dim = fields.get("dim")
    towers = [str((fields.get(part) or {}).get("file", "")) for part in ("image", "text")]
    files = [folder / tower for tower in towers if tower and (folder / tower).is_file()]
    on_disk = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    return _Row(
        name,
        where,
        dim=dim if isinstance(dim, int) else None,
        disk_bytes=on_disk,
        memory_bytes=sum(file.stat().st_size for file in files) or None,
    )


def _print_rows(rows: list[_Row]) -> None:
    header = ("model", "where", "parameters", "dim", "disk", "memory", "images/s", "R@1", "of")
    table = [
        (
            printable(row.name),
            row.where,
            _millions(row.parameters),
            str(row.dim or "-"),
            _megabytes(row.disk_bytes),
            _megabytes(row.memory_bytes),
            "-" if row.speed is None else f"{row.speed.images_per_second:,.1f}",
            "-" if row.recall is None else f"{row.recall.text_to_image:.1f}",
            "-" if row.recall is None else row.recall.set,
        )
        for row in rows
    ]
    if not sys.stdout.isatty():
        for line in table:
            typer.echo("\t".join(line))
        return
    widths = [max(len(line[column]) for line in [header, *table]) for column in range(len(header))]
    for line in [header, *table]:
        cells = [
            text.ljust(width) if column in {0, 1, 8} else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        typer.echo("  ".join(cells).rstrip())
    say("Speeds: mmsearch models --measure NAME · sources of R@1 (text to image): --json")


def _millions(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:,.1f} M"


def _megabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:,.0f} MB"
