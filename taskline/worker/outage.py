"""A broker or backend out of reach: said once when it begins and once when it ends."""

from __future__ import annotations

import logging
import random

from taskline.clock import Clock
from taskline.errors import TransportError

log = logging.getLogger("taskline.worker")

BACKOFF_FIRST, BACKOFF_MAX = 0.1, 5.0


class Outage:
    """Owned by the I/O thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._backoff = BACKOFF_FIRST
        self.lasts = False
        self.retry_at = 0.0
        """When to try again, by the monotonic clock; longer from now each time."""

    def failed(self, error: TransportError) -> None:
        """A call failed with `error`."""
        self.retry_at = self._clock.monotonic() + self._backoff * random.uniform(0.5, 1.0)
        self._backoff = min(self._backoff * 2, BACKOFF_MAX)
        if not self.lasts:
            log.error("%s; trying until it works", error)
        self.lasts = True

    def over(self) -> None:
        """What had failed has worked."""
        if self.lasts:
            self.lasts = False
            self._backoff = BACKOFF_FIRST
            log.info("the broker answers again")
