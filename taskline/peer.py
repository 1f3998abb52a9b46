"""One server among several: whether it answers, and how long it is left out when it does not."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

from taskline.clock import Clock
from taskline.errors import TransportError

PAUSE_FIRST, PAUSE_MAX = 0.5, 10.0
"""Seconds for which a server that did not answer is left out."""

P = TypeVar("P", bound="Peer")
T = TypeVar("T")


class Peer:
    """`attempt` is how it is used; any thread may call it. `name` stands in log lines."""

    def __init__(self, name: str, clock: Clock, log: logging.Logger) -> None:
        self.name = name
        self._clock = clock
        self._log = log
        self._pause = PAUSE_FIRST
        self.down = False
        self.probe_at = 0.0
        """When to try it again, of the monotonic clock, while it is down."""

    def usable(self) -> bool:
        """Whether it answers, or should be tried again."""
        return not self.down or self._clock.monotonic() >= self.probe_at

    def attempt(self, work: Callable[[], T]) -> T:
        """Do something with it; raises `TransportError`, after which it is left out for a time."""
        try:
            self.before()
            answer = work()
        except TransportError as error:
            if error.retryable:
                self.failed(error)
            raise
        if self.down:
            self.down = False
            self._log.info("%s answers again", self.name)
        self._pause = PAUSE_FIRST
        return answer

    def before(self) -> None:
        """What has to be done before anything else; may raise `TransportError`."""

    def failed(self, error: TransportError) -> None:
        """Leave it out for a time, longer each time."""
        if not self.down:
            self._log.warning("%s; it is left out until it answers", error)
        self.probe_at = self._clock.monotonic() + self._pause * random.uniform(0.75, 1.0)
        self._pause = min(2 * self._pause, PAUSE_MAX)
        self.down = True


def ask_all(peers: Iterable[P], work: Callable[[P], T]) -> list[T]:
    """The answers of all; those that do not answer are left out, unless none does."""
    answers: list[T] = []
    failure: TransportError | None = None
    for peer in peers:
        try:
            answers.append(peer.attempt(partial(work, peer)))
        except TransportError as error:
            failure = error
            if not error.retryable:
                raise
    if failure is not None and not answers:
        raise failure
    return answers
