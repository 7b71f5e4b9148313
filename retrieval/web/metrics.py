"""What a server counts, in the format of Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

if TYPE_CHECKING:
    from mmsearch.retrieval.web.shelf import Served

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server; several in one process do not mix."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "mmsearch_requests",
            "Requests by route, method and status.",
            ("route", "method", "status"),
            registry=self._registry,
        )
        self.seconds = Histogram(
            "mmsearch_request_seconds",
            "Time from a request's head to its response.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.batches = Histogram(
            "mmsearch_batch_size",
            "Questions that were answered together.",
            buckets=_SIZES,
            registry=self._registry,
        )
        self.busy = Gauge(
            "mmsearch_requests_in_progress",
            "Requests that are worked on now.",
            registry=self._registry,
        )
        self.waiting = Gauge(
            "mmsearch_questions_waiting",
            "Questions that wait for a library's engine.",
            ("library",),
            registry=self._registry,
        )
        self.pictures = Gauge(
            "mmsearch_pictures",
            "Pictures that can be found.",
            ("library",),
            registry=self._registry,
        )

    def watch(self, served: Served) -> None:
        """Have what is true of a library told whenever it is asked."""
        self.waiting.labels(served.name).set_function(lambda: served.waiting)
        self.pictures.labels(served.name).set_function(lambda: len(served.engine))

    def text(self) -> bytes:
        """Return all of it as Prometheus reads it."""
        return generate_latest(self._registry)
