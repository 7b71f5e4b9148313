"""`mmsearch backup` and `mmsearch restore`: a library's catalog, out and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmsearch.retrieval.commands.options import (
    Json,
    LibraryOption,
    Wait,
    chosen_library,
    path_argument,
)
from mmsearch.retrieval.terminal import print_json, say

if TYPE_CHECKING:
    from mmsearch.retrieval.backup import Backup

__all__ = ["backup", "restore"]


def backup(
    file: Annotated[
        Path,
        typer.Argument(parser=path_argument, metavar="FILE", help="Where the backup goes."),
    ],
    force: Annotated[bool, typer.Option("--force", help="Replace a backup that is there.")] = False,
    library: LibraryOption = None,
    as_json: Json = False,
) -> None:
    """Write all that cannot be made anew from the pictures to one file, and check it.

    Captions, vectors, what tune learned. Indexing and queries may go on meanwhile.

    Example: mmsearch backup ~/backups/photos.mmsearch
    """
    from mmsearch.retrieval.backup import back_up

    done = back_up(chosen_library(library), file, force=force)
    if as_json:
        print_json(done.to_json())
    say(f"{_held(done)} in {done.file} ({done.bytes / 1e6:,.1f} MB)")


def restore(
    file: Annotated[Path, typer.Argument(parser=path_argument, metavar="FILE", help="A backup.")],
    folder: Annotated[
        Path,
        typer.Argument(
            parser=path_argument, metavar="FOLDER", help="The folder of pictures, wherever it is."
        ),
    ],
    wait: Wait = None,
    as_json: Json = False,
) -> None:
    """Make a backup the library of a folder; the library that is there is set aside.

    Example: mmsearch restore ~/backups/photos.mmsearch ./photos
    """
    from mmsearch.retrieval import backup as backups

    done = backups.restore(file, folder, wait=wait or 0)
    if as_json:
        print_json(done.to_json())
    say(f"{_held(done)} restored for {done.library}")
    if done.set_aside is not None:
        say(f"What was there before is in {done.set_aside}")
    say("Take up what changed since: run mmsearch index on the folder.")


def _held(done: Backup) -> str:
    return f"{done.counts.files:,} pictures, {done.counts.captions:,} captions"
