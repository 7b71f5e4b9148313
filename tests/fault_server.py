"""Does work in processes that may be killed at any instant, and costs little to start.

Every import is done once, here; each piece of work runs in a fork. Lines of JSON come in, one piece
of work each; what became of it goes out when it has ended. With the argument `train`, what trains
is imported too.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from mmsearch import cli
from mmsearch.retrieval import backup, duplicates, null_distribution  # noqa: F401
from mmsearch.retrieval.doctor import examination
from mmsearch.retrieval.ingest import index
from mmsearch.retrieval.library import Library
from mmsearch.retrieval.model_change import migrate
from mmsearch.retrieval.schema import Target
from tests.conftest import ColourEncoder


def work(kind: str, folder: Path) -> None:
    """Do one piece of work on a library."""
    if kind == "index":
        index(folder, model=ColourEncoder())
    elif kind == "migrate":
        migrate(folder, model=ColourEncoder("2"))
    elif kind == "optimize":
        library = Library.open(folder)
        with library.indexing():
            row = library.catalog.library()
            library.build_index(Target.IMAGES, row, settings={"kind": "hnsw"})
    elif kind == "repair":
        examination.load_encoder = lambda _: ColourEncoder()
        examination.examine(folder, mend=True)
    elif kind == "restore":
        backup.restore(folder.with_name("kept"), folder)
    elif kind == "train":
        # As the command line has it, which says what to do next.
        sys.argv = ["mmsearch", *json.loads((folder / "arguments.json").read_text())]
        cli.main()
    else:
        raise ValueError(kind)


def import_training() -> None:
    """Import whatever a training would."""
    for name in (
        "matplotlib.figure",
        "open_clip",
        "torch.onnx.utils",
        "mmsearch.retrieval.commands.train",
        "mmsearch.retrieval.encoders.open_clip",
        "mmsearch.retrieval.training.session",
    ):
        importlib.import_module(name)


def main() -> None:
    if sys.argv[1:] == ["train"]:
        import_training()
    for line in sys.stdin:
        asked = json.loads(line)
        started = time.perf_counter()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                work(asked["kind"], Path(asked["folder"]))
                code = 0
            except SystemExit as ending:
                code = int(ending.code or 0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        status = _status(pid, started, asked["after"])
        told = {"status": status, "seconds": time.perf_counter() - started}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()


def _status(pid: int, started: float, after: float | None) -> int:
    """Wait for a process to end, or kill it."""
    if after is not None:
        while time.perf_counter() - started < after:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.0005)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    main()
