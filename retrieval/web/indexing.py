"""Libraries indexed again while they are asked: one run at a time each, in a thread of its own."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mmsearch.errors import LibraryLocked, MmsearchError
from mmsearch.retrieval.embedding import Progress
from mmsearch.retrieval.ingest import index

if TYPE_CHECKING:
    from mmsearch.retrieval.web.shelf import Served

__all__ = ["Runs"]

logger = logging.getLogger(__name__)


class _Stopped(Exception):
    """The server is going down; what was saved so far stays."""


@dataclass(slots=True)
class _Run:
    progress: Progress = field(default_factory=lambda: Progress("scan", 0, 0))
    thread: threading.Thread | None = None
    running: bool = True
    failure: str | None = None
    report: dict[str, Any] | None = None


class Runs:
    """The latest run of each library. Safe to use from several threads."""

    def __init__(self) -> None:
        self._runs: dict[str, _Run] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()

    def start(self, served: Served) -> None:
        """Begin to bring a library up to date, with the encoder that answers its questions.

        Raises:
            LibraryLocked: that is being done already, here or by another process.
            StorageError: the library cannot be written to.
        """
        with self._lock:
            before = self._runs.get(served.name)
            if before is not None and before.running:
                raise LibraryLocked(
                    f"The library {served.name} is being indexed. Ask GET /api/v1/index how far it "
                    "is."
                )
            # Another process would be noticed only after the folder has been looked through.
            with served.engine.library.indexing(together=True):
                pass
            run = self._runs[served.name] = _Run()
            run.thread = threading.Thread(
                target=self._index, args=(served, run), name=f"mmsearch-index-{served.name}"
            )
            run.thread.start()

    def told(self, served: Served) -> dict[str, Any]:
        """Return one element of `libraries` in the JSON of `GET /api/v1/index`."""
        run = self._runs.get(served.name)
        progress = Progress("", 0, 0) if run is None else run.progress
        running = run is not None and run.running
        return {
            "library": served.name,
            "running": running,
            "stage": progress.stage if running else None,
            "done": progress.done,
            "total": progress.total,
            "remark": progress.remark,
            "failure": None if run is None else run.failure,
            "report": None if run is None else run.report,
        }

    def close(self) -> None:
        """Interrupt what is going on, as Ctrl-C does, and wait for its end."""
        self._closing.set()
        with self._lock:
            threads = [run.thread for run in self._runs.values() if run.thread is not None]
        for thread in threads:
            thread.join()

    def _index(self, served: Served, run: _Run) -> None:
        def progress(now: Progress) -> None:
            if self._closing.is_set():
                raise _Stopped
            run.progress = now

        try:
            report = index(served.root, model=served.engine.encoder, progress=progress)
            run.report = report.to_json() | {"library": served.name}
        except _Stopped:
            run.failure = "The server went down; what was indexed is saved."
        except MmsearchError as error:
            # Where the library lies is nobody's business.
            run.failure = str(error).replace(str(served.root), served.name)
        except Exception:
            logger.exception("indexing %s failed", served.name)
            run.failure = "Indexing failed for a reason that the server's log tells."
        finally:
            run.running = False
