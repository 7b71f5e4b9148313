"""`mmsearch doctor`: is a library sound?"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from mmsearch.retrieval.commands.options import (
    EXIT_NEEDS_ATTENTION,
    Json,
    LibraryArgument,
    LibraryOption,
    Wait,
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
    from mmsearch.retrieval.doctor import Diagnosis, Finding

__all__ = ["doctor"]


def doctor(
    folder: LibraryArgument = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Make anew what is derived, set aside what is damaged."),
    ] = False,
    deep: Annotated[
        bool,
        typer.Option(
            "--deep", help="Check every index of the catalog too, and read a sample of pictures."
        ),
    ] = False,
    library: LibraryOption = None,
    wait: Wait = None,
    as_json: Json = False,
) -> None:
    """Check a library: catalog, words, vectors, model, indexes, files. Exit code 4: see to it.

    Pictures are only read. With --repair, vectors, words and indexes are made anew where they are
    wrong; a damaged catalog is set aside after everything readable was taken out of it.

    \b
    Examples: mmsearch doctor
              mmsearch doctor ./photos --deep --repair
    """  # noqa: D301 (the backspace keeps the lines apart)
    from mmsearch.retrieval.doctor import examine

    read_large_pictures()
    with progress_bar() as show:
        found = examine(
            chosen_library(named_once(folder, library)),
            mend=repair,
            deep=deep,
            wait=wait or 0,
            progress=show,
        )
    if as_json:
        print_json(found.to_json())
    else:
        _print(found)
    if not found.sound:
        raise typer.Exit(EXIT_NEEDS_ATTENTION)


def _print(found: Diagnosis) -> None:
    people = sys.stdout.isatty()
    for part, examined in found.examined.items():
        here = [finding for finding in found.findings if finding.part is part]
        mark = "!" if any(f.serious and not f.repaired for f in here) else "·" if here else "✓"
        line = (mark, part.value, printable(examined))
        typer.echo(f"{mark} {part.value:<8} {line[2]}" if people else "\t".join(line))
        for finding in here:
            _print_finding(finding, people=people)
    if found.sound:
        mended = sum(finding.repaired for finding in found.findings)
        say(f"Sound{f', {mended} repaired' if mended else ''} ({found.seconds:.1f} s).")
    else:
        say("This library needs attention.")


def _print_finding(finding: Finding, *, people: bool) -> None:
    done = " Repaired." if finding.repaired else ""
    advice = f" {finding.advice}" if finding.advice and not finding.repaired else ""
    told = printable(f"{finding.problem}{done}{advice}")
    names = ", ".join(printable(name) for name in finding.names)
    if not people:
        state = "repaired" if finding.repaired else "serious" if finding.serious else "note"
        typer.echo("\t".join((state, finding.part.value, told, names)))
        return
    typer.echo(f"    {told}")
    if names:
        typer.echo(f"    {names}")
