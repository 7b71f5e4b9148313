"""The command line: stdout is data, stderr is talk."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from mmsearch import __version__
from mmsearch.errors import MmsearchError
from mmsearch.retrieval.commands.backup import backup, restore
from mmsearch.retrieval.commands.browse import browse
from mmsearch.retrieval.commands.caption import caption
from mmsearch.retrieval.commands.dedup import dedup
from mmsearch.retrieval.commands.doctor import doctor
from mmsearch.retrieval.commands.evaluate import evaluate
from mmsearch.retrieval.commands.explain import explain
from mmsearch.retrieval.commands.export import export
from mmsearch.retrieval.commands.import_ import import_
from mmsearch.retrieval.commands.index import index
from mmsearch.retrieval.commands.migrate import migrate
from mmsearch.retrieval.commands.models import models
from mmsearch.retrieval.commands.optimize import optimize
from mmsearch.retrieval.commands.options import EXIT_INTERRUPTED, Command
from mmsearch.retrieval.commands.query import query
from mmsearch.retrieval.commands.recommend import recommend
from mmsearch.retrieval.commands.serve import serve
from mmsearch.retrieval.commands.similar import similar
from mmsearch.retrieval.commands.status import status
from mmsearch.retrieval.commands.train import train
from mmsearch.retrieval.commands.train_reranker import train_reranker
from mmsearch.retrieval.commands.tune import tune
from mmsearch.retrieval.commands.watch import watch
from mmsearch.retrieval.offline import ENVIRONMENT, is_offline, stay_offline
from mmsearch.retrieval.terminal import say, set_up_process

__all__ = ["app", "main"]

app = typer.Typer(
    name="mmsearch",
    help="Find pictures with words, and words with pictures. Offline, on your own machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run the command line and end the process with its exit code."""
    set_up_process()
    try:
        app()
    except MmsearchError as error:
        if os.environ.get("MMSEARCH_DEBUG"):
            raise
        say(f"mmsearch: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except OSError as error:
        if os.environ.get("MMSEARCH_DEBUG"):
            raise
        place = f"{error.filename}: " if error.filename else ""
        say(f"mmsearch: {place}{error.strerror or error}")
        sys.exit(1)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"mmsearch {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
    offline: Annotated[
        bool,
        typer.Option("--offline", help=f"Reach no other machine; as {ENVIRONMENT}=1 does."),
    ] = False,
) -> None:
    """Find pictures with words, and words with pictures. Offline, on your own machine."""
    if offline or is_offline():
        stay_offline()


for command in (
    index,
    watch,
    query,
    dedup,
    recommend,
    browse,
    serve,
    similar,
    caption,
    explain,
    evaluate,
    train,
    train_reranker,
    tune,
    migrate,
    models,
    optimize,
    export,
    import_,
    status,
    doctor,
    backup,
    restore,
):
    # `import` is a word of Python's own, so its function is called `import_`.
    app.command(command.__name__.rstrip("_").replace("_", "-"), cls=Command)(command)


if __name__ == "__main__":
    main()
