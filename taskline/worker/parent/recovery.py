"""What dead processes held is handed back, at once. Owned by the supervisor."""

from __future__ import annotations

import logging

from taskline.app import Taskline
from taskline.errors import TasklineError
from taskline.worker.process import served_queues

log = logging.getLogger("taskline.supervisor")

RETRY_AFTER = 1.0
"""Seconds until a broker out of reach is asked again."""


class Recovery:
    """The dead whose messages have not been handed back yet.

    It connects to the broker for the moment of handing back.
    """

    def __init__(self, app: Taskline, queues: list[str]) -> None:
        self._app = app
        self._queues = queues
        self._dead: list[tuple[str, list[str]]] = []
        self._next = 0.0
        self._out_of_reach = False
        """Handing back failed, and that was said."""

    @property
    def pending(self) -> bool:
        """Whether there is something to hand back."""
        return bool(self._dead)

    def add(self, consumer: str, started: list[str], now: float) -> None:
        """A process died that was this consumer; `started` are the messages that it ran."""
        self._dead.append((consumer, started))
        self._next = now

    def look(self, now: float) -> None:
        """Hand back what is to be. A broker out of reach is asked again each second."""
        if not self._dead or now < self._next:
            return
        try:
            transport = self._app.open_transport_for(self._queues or served_queues(self._app))
            try:
                while self._dead:
                    consumer, started = self._dead[-1]
                    count = transport.recover(consumer, started)
                    self._dead.pop()
                    if count:
                        log.warning("handed back %d messages of a dead process", count)
            finally:
                transport.close()
        except TasklineError as error:
            self._next = now + RETRY_AFTER
            if not self._out_of_reach:
                log.error("cannot hand back what a dead process held: %s; trying again", error)
            self._out_of_reach = True
        else:
            self._out_of_reach = False
