"""`mmsearch dedup`: list what a library holds more than once; nothing is ever removed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from mmsearch.retrieval.commands.options import (
    EXIT_NOTHING_MATCHED,
    Json,
    LibraryArgument,
    LibraryOption,
    chosen_library,
    named_once,
)
from mmsearch.retrieval.terminal import (
    print_json,
    printable,
    progress_bar,
    read_large_pictures,
    say,
)

if TYPE_CHECKING:
    from mmsearch.retrieval.duplicate_groups import Duplicates, Kind, Member

__all__ = ["dedup"]


def dedup(
    folder: LibraryArgument = None,
    library: LibraryOption = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="Only copies (the same bytes), near (one photo resized, recompressed, cut or "
            "brightened) or bursts (taken within seconds); may be given again.",
        ),
    ] = None,
    paths: Annotated[
        bool,
        typer.Option(
            "--paths",
            help="Print only the spare files, one a line: those of copies and near, of bursts if "
            "--kind asks for them.",
        ),
    ] = False,
    null: Annotated[
        bool, typer.Option("-0", help="The same, each followed by a zero byte, for xargs -0.")
    ] = False,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Read no picture: near-duplicates by vectors alone, none spare."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """List copies, near-duplicates and bursts, and propose which to keep.

    Nothing is deleted, moved or written. The proposal is the largest resolution, then the largest
    file, then the first path.

    \b
    Examples: mmsearch dedup ./photos
              mmsearch dedup --kind copies -0 | xargs -0 trash-put
    """  # noqa: D301 (the backspace keeps the lines apart)
    from mmsearch.errors import QueryError
    from mmsearch.retrieval.duplicate_groups import Kind
    from mmsearch.retrieval.library_duplicates import find_duplicates

    named = named_once(folder, library)
    if as_json and (paths or null):
        raise typer.BadParameter("--json has the paths already: give it without --paths and -0")
    wanted: list[Kind] = []
    for name in kind or []:
        if name not in [*Kind]:
            names = ", ".join(f"'{each.value}'" for each in Kind)
            raise QueryError(f"--kind is one of {names}, not {name!r}.")
        wanted.append(Kind(name))
    if not wanted:
        # The pictures of a burst are different ones: none of them goes unless it is asked for.
        wanted = [Kind.COPIES, Kind.NEAR] if paths or null else [*Kind]
    read_large_pictures()
    with progress_bar() as show:
        found = find_duplicates(chosen_library(named), kinds=wanted, check=not quick, progress=show)
    if as_json:
        print_json(found.to_json(wanted))
    elif paths or null:
        _print_spare(found, "\0" if null else "\n")
    else:
        _print_groups(found)
    if not as_json:
        _say_sums(found, wanted)
    if not found.groups:
        raise typer.Exit(EXIT_NOTHING_MATCHED)


def _print_spare(found: Duplicates, end: str) -> None:
    for group in found.groups:
        for member in group.spare:
            path = str(found.library / member.path)
            # A program gets the name as it is; a terminal must not be steered by it.
            sys.stdout.write((printable(path) if sys.stdout.isatty() else path) + end)
    sys.stdout.flush()


def _print_groups(found: Duplicates) -> None:
    """Print a paragraph a group for a person, tab-separated lines for a program."""
    for number, group in enumerate(found.groups, 1):
        rows = [(_role(member, group.keep), member) for member in (group.keep, *group.others)]
        if not sys.stdout.isatty():
            for role, member in rows:
                size = f"{member.width}×{member.height}"
                path = printable(member.path)
                typer.echo(f"{number}\t{group.kind}\t{role}\t{size}\t{member.size}\t{path}")
            continue
        freed = f", {_megabytes(group.freeable_bytes)} spare" if group.spare else ""
        typer.echo(f"{group.kind}: {len(rows)} pictures{freed}; keep: {group.why}")
        for role, member in rows:
            size = f"{member.width}×{member.height}"
            typer.echo(
                f"  {role:<9}  {size:>11}  {_megabytes(member.size):>10}  {printable(member.path)}"
            )


def _role(member: Member, keep: Member) -> str:
    if member is keep:
        return "keep"
    if member.spare:
        return "spare"
    if member.inside:
        return "inside"
    if member.linked:
        return "link"
    return "unchecked"


def _say_sums(found: Duplicates, kinds: list[Kind]) -> None:
    parts = []
    for kind in kinds:
        groups = [group for group in found.groups if group.kind is kind]
        spare = sum(len(group.spare) for group in groups)
        freed = _megabytes(sum(group.freeable_bytes for group in groups))
        if groups:
            named = "1 group" if len(groups) == 1 else f"{len(groups):,} groups"
            files = "1 spare file" if spare == 1 else f"{spare:,} spare files"
            parts.append(f"{kind}: {named}, {files}{f' of {freed}' if spare else ''}")
    if found.groups:
        say(" · ".join(parts))
        say("Nothing was changed.")
    else:
        say(f"Nothing found among {found.pictures:,} pictures.")
    if found.unchecked:
        say(
            f"{found.unchecked:,} of these pictures could not be checked, so they are judged by "
            "what was indexed and not called spare: not read (--quick), or changed, gone or "
            "damaged since mmsearch index ran."
        )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 100_000 else f"{count / 1e3:,.1f} kB"
