"""One of the transports behind a routed one.

One that does not answer is left alone for `PAUSE`; what it missed, such as
acknowledgements, is told to it before anything else when it answers again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeVar

from taskline.clock import Clock
from taskline.errors import TransportError
from taskline.message import Delivery
from taskline.transports.base import Transport

log = logging.getLogger("taskline.transports")

PAUSE = 1.0
"""Seconds for which a connector that did not answer is left alone."""

T = TypeVar("T")


class Waiter:
    """A thread that waits in `receive` of one connector, whenever it is told to."""

    def __init__(self, name: str) -> None:
        self._orders: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def do(self, work: Callable[[], None]) -> None:
        """Have this done in the thread."""
        self._orders.put(work)

    def end(self) -> None:
        """Let the thread end, when it has done what it was told before."""
        self._orders.put(None)

    def _run(self) -> None:
        while (work := self._orders.get()) is not None:
            work()


class Connector:
    """One transport, opened when it is first needed, and what it is still owed."""

    def __init__(self, key: str, open_one: Callable[[], Transport], clock: Clock) -> None:
        self.key = key
        self.name = key or "broker"
        self._open = open_one
        self._clock = clock
        self._lock = threading.Lock()
        self._opened: Transport | None = None
        self._waiter: Waiter | None = None
        self._owed: list[Callable[[], object]] = []
        self._error: TransportError | None = None
        self._again_at = 0.0

    @property
    def transport(self) -> Transport:
        """The connection, opened now if need be."""
        with self._lock:
            if self._opened is None:
                self._opened = self._open()
            return self._opened

    @property
    def down(self) -> bool:
        """Whether it did not answer a moment ago, and is left alone for now."""
        return self._error is not None and self._clock.monotonic() < self._again_at

    def attempt(self, call: Callable[[Transport], T]) -> T:
        """The call's answer, after what is owed. Raises `TransportError`, at once while it is down.

        For the I/O thread alone.
        """
        if self._error is not None and self.down:
            raise self._error
        try:
            self._pay()
            answer = call(self.transport)
        except TransportError as error:
            self.failed(error)
            raise
        self.answered()
        return answer

    def _pay(self) -> None:
        while self._owed:
            try:
                self._owed[0]()
            except TransportError as error:
                if error.retryable:
                    raise
                log.error("the connector %s: %s; some tasks will run again", self.name, error)
            del self._owed[0]

    def failed(self, error: TransportError) -> None:
        """Leave it alone for a while, if that may help."""
        if not error.retryable:
            return
        if self._error is None:
            log.error("the connector %s: %s; trying until it works", self.name, error)
        self._error, self._again_at = error, self._clock.monotonic() + PAUSE

    def answered(self) -> None:
        """It works."""
        if self._error is not None:
            log.info("the connector %s answers again", self.name)
            self._error = None

    def tell(self, call: Callable[[Transport], list[Delivery]]) -> list[Delivery]:
        """What was lost of what the call is about; when it cannot be told now, it will be."""
        try:
            return self.attempt(call)
        except TransportError as error:
            if not error.retryable:
                raise
            self._owed.append(lambda: call(self.transport))
            return []

    def waiter(self) -> Waiter:
        """Its thread for waiting."""
        if self._waiter is None:
            self._waiter = Waiter(f"taskline-wait-{self.name}")
        return self._waiter

    def close(self) -> None:
        """Tell it what it is still owed, if it answers, and close it."""
        with self._lock:
            opened = self._opened
        try:
            self._pay()
        except TransportError as error:
            log.warning("the connector %s: %s; some tasks will run again", self.name, error)
        with self._lock:
            self._opened = None
        if self._waiter is not None:
            self._waiter.end()
            self._waiter = None
        if opened is not None:
            opened.close()
