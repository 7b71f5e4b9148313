"""Asking again where that is safe, and not for ever."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import httpx

from mmsearch.retrieval.client.answers import BUSY, seconds_to_wait

if TYPE_CHECKING:
    from mmsearch.retrieval.client.answers import Outcome

__all__ = ["Attempts"]

FIRST_S = 0.25
"""The wait before the second attempt; each later one is twice as long."""
LONGEST_S = 15.0
"""What a request waits in all, at most."""
PASSING = frozenset({502, 504})
"""Statuses of a proxy whose server is being started again."""


class Attempts:
    """The attempts of one request.

    A request is sent again where it was not answered and sending it twice does no harm: one that
    was turned away because too much was asked (429, 503 with `Retry-After`), which names the wait;
    and a GET whose connection broke, or that a proxy could not hand on. What nobody listens to is
    not asked again: that takes somebody who starts a server.
    """

    def __init__(self, method: str, retries: int) -> None:
        self._method = method
        self._left = retries
        self._backoff = FIRST_S
        self._patience = LONGEST_S

    def wait(self, outcome: Outcome) -> float | None:
        """Return after how many seconds to send the request again; None not to."""
        least = self._least(outcome)
        if least is None or self._left == 0:
            return None
        # Spread, so that all who were turned away together do not come back together.
        wait = least + self._backoff * random.uniform(0.5, 1.0)
        if wait > self._patience:
            return None
        self._left -= 1
        self._patience -= wait
        self._backoff *= 2
        return wait

    def _least(self, outcome: Outcome) -> float | None:
        if isinstance(outcome, httpx.Response):
            if outcome.status_code in BUSY:
                return seconds_to_wait(outcome)
            return 0.0 if self._method == "GET" and outcome.status_code in PASSING else None
        broken = isinstance(outcome, httpx.NetworkError | httpx.ProtocolError)
        refused = isinstance(outcome, httpx.ConnectError)
        return 0.0 if self._method == "GET" and broken and not refused else None
