"""How many requests an address may send: a bucket of tokens for each."""

from __future__ import annotations

import time
from collections import OrderedDict
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Buckets", "who"]

MOST = 10_000
"""Addresses that are remembered; those not heard of longest are forgotten, and begin anew."""
NETWORK_BITS = 64
"""One client of IPv6 has as many addresses as it likes in a network of this prefix."""


class Buckets:
    """Token buckets: `burst` requests at once, and `rate` a second after that."""

    def __init__(
        self, rate: float, burst: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start with full buckets.

        Args:
            rate: requests a second; 0 for any number.
            burst: requests at once, at least 1.
            clock: seconds that never go back.
        """
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        """Return how many addresses are remembered."""
        return len(self._buckets)

    def take(self, address: str, count: float = 1.0) -> float:
        """Take tokens from an address's bucket; return the seconds to wait where there are none.

        Where there are too few nothing is taken.
        """
        if not self._rate:
            return 0.0
        now = self._clock()
        tokens, last = self._buckets.pop(address, (float(self._burst), now))
        tokens = min(float(self._burst), tokens + (now - last) * self._rate)
        lacking = min(count, self._burst) - tokens
        self._buckets[address] = (tokens if lacking > 0 else tokens - count, now)
        if len(self._buckets) > MOST:
            self._buckets.popitem(last=False)
        return max(0.0, lacking / self._rate)


def who(address: str) -> str:
    """Return what stands for the client at an address: it, or its network of IPv6."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if not isinstance(parsed, IPv6Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(int(parsed) >> (128 - NETWORK_BITS))
