"""The command line: stdout is data, stderr is talk."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from keyword import iskeyword
from typing import Annotated

import typer

from mmsearch import __version__
from mmsearch.errors import MmsearchError
from mmsearch.retrieval.commands.options import EXIT_INTERRUPTED, Command
from mmsearch.retrieval.offline import ENVIRONMENT, is_offline, stay_offline
from mmsearch.retrieval.terminal import say, set_up_process

__all__ = ["app", "main", "make_app"]  # noqa: F822 (`app` is made when it is asked for)

COMMANDS = (
    "index",
    "watch",
    "query",
    "dedup",
    "recommend",
    "browse",
    "serve",
    "mcp",
    "similar",
    "caption",
    "explain",
    "evaluate",
    "train",
    "train-reranker",
    "tune",
    "migrate",
    "move",
    "models",
    "optimize",
    "export",
    "import",
    "status",
    "doctor",
    "backup",
    "restore",
)
"""In the order of the help. Each is a function in a module of `retrieval.commands`."""

MODULES = {"import": "import_", "restore": "backup"}
"""Of commands whose module has another name."""


def make_app(names: Sequence[str] = COMMANDS) -> typer.Typer:
    """Return the command line with these commands."""
    made = typer.Typer(
        name="mmsearch",
        help="Find pictures with words, and words with pictures. Offline, on your own machine.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    made.callback()(_options)
    for name in names:
        function = name.replace("-", "_")
        # `import` is a word of Python's own.
        function += "_" if iskeyword(function) else ""
        place = MODULES.get(name, function)
        module = import_module(f"mmsearch.retrieval.commands.{place}")
        made.command(name, cls=Command)(getattr(module, function))
    return made


def main() -> None:
    """Run the command line and end the process with its exit code."""
    set_up_process()
    # The options of all commands take longer to set up than a query takes to run.
    asked = [word for word in sys.argv[1:3] if word != "--offline"][:1]
    app = make_app(asked if set(asked) & set(COMMANDS) else COMMANDS)
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


def __getattr__(name: str) -> typer.Typer:
    if name != "app":
        raise AttributeError(f"module 'mmsearch.cli' has no attribute {name!r}")
    made = globals()["app"] = make_app()
    return made


if __name__ == "__main__":
    main()
