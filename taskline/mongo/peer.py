"""One deployment among several: whether it answers, and for how long it is left out if not."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import TypeVar

from taskline.clock import Clock
from taskline.errors import TransportError
from taskline.mongo.client import Server

log = logging.getLogger("taskline.mongo")

PAUSE_FIRST, PAUSE_MAX = 0.5, 10.0
"""Seconds for which a deployment that did not answer is left out."""

T = TypeVar("T")


class Peer:
    """`attempt` is how it is used; any thread may call it."""

    def __init__(self, server: Server, clock: Clock) -> None:
        self.server = server
        self._clock = clock
        self._pause = PAUSE_FIRST
        self._probe_at = 0.0
        self.down = False

    def usable(self) -> bool:
        """Whether it answers, or should be tried again."""
        return not self.down or self._clock.monotonic() >= self._probe_at

    def attempt(self, work: Callable[[], T]) -> T:
        """Do something with it; raises `TransportError`, after which it is left out for a time."""
        try:
            answer = work()
        except TransportError as error:
            if error.retryable:
                self._failed(error)
            raise
        if self.down:
            self.down = False
            log.info("MongoDB at %s answers again", self.server.location)
        self._pause = PAUSE_FIRST
        return answer

    def _failed(self, error: TransportError) -> None:
        if not self.down:
            log.warning("%s; it is left out until it answers", error)
        self._probe_at = self._clock.monotonic() + self._pause * random.uniform(0.75, 1.0)
        self._pause = min(2 * self._pause, PAUSE_MAX)
        self.down = True
