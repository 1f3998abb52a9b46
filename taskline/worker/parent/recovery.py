"""What dead processes held is handed back, at once. Owned by the supervisor.

By itself, or where the transport `inherits` by the process that replaces the dead one: at a broker
where each process has its share of the queues nothing has to move then, and those that died
together are replaced together.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterable

from taskline.app import Taskline
from taskline.errors import TasklineError
from taskline.transports.base import Transport
from taskline.worker.options import WorkerOptions
from taskline.worker.parent.child import Child
from taskline.worker.process import served_queues

log = logging.getLogger("taskline.supervisor")

RETRY_AFTER = 1.0
"""Seconds until a broker out of reach is asked again."""
HEIR_WITHIN = 1.0
"""Seconds in which what inherits must have been started: else others are to have it."""


class Recovery:
    """The dead whose messages have not been handed back yet.

    It connects to the broker for the moment of handing back.
    """

    def __init__(self, app: Taskline, options: WorkerOptions) -> None:
        self._app = app
        self._options = options
        self._dead: dict[str, list[str]] = {}
        """By name, with the messages that they ran."""
        self._next = 0.0
        self._out_of_reach = False
        """Handing back failed, and that was said."""
        self._inherits: bool | None = None
        """Whether the transport does; None until it was asked."""

    @property
    def pending(self) -> bool:
        """Whether there is something to hand back."""
        return bool(self._dead)

    def add(self, consumer: str, started: list[str], now: float) -> None:
        """A process died that was this consumer; `started` are the messages that it ran."""
        self._dead[consumer] = started
        self._next = now

    def leaves(self, child: Child) -> bool:
        """Whether what a dead process held is left to the one that replaces it."""
        if self._options.start_method == "spawn" or child.start_at > child.died_at + HEIR_WITHIN:
            return False  # what is spawned imports for as long as it takes; meanwhile others work
        if self._inherits is None:
            with contextlib.suppress(TasklineError):  # it is told in handing back
                transport = self._open()
                self._inherits = transport.capabilities.inherits
                transport.close()
        return bool(self._inherits)

    def take(self, child: Child, now: float) -> None:
        """Nobody is going to replace a dead process, or not soon."""
        if child.died_at < math.inf:
            self.add(*child.leave(), now)

    def look(self, now: float, children: Iterable[Child] = (), *, stopping: bool = False) -> None:
        """Hand back what is to be. A broker out of reach is asked again each second.

        Of those among `children` that are dead and have left it to their successors, too, where
        these do not come.
        """
        for child in children:
            if not child.pid and (stopping or now > child.died_at + HEIR_WITHIN):
                self.take(child, now)
        if not self._dead or now < self._next:
            return
        try:
            transport = self._open()
            try:
                count = transport.recover_all(self._dead)
                if count:
                    number = len(self._dead)
                    dead = "a dead process" if number == 1 else f"{number} dead processes"
                    log.warning("handed back %d messages of %s", count, dead)
                self._dead.clear()
            finally:
                transport.close()
        except TasklineError as error:
            self._next = now + RETRY_AFTER
            if not self._out_of_reach:
                log.error("cannot hand back what a dead process held: %s; trying again", error)
            self._out_of_reach = True
        else:
            self._out_of_reach = False

    def _open(self) -> Transport:
        return self._app.open_transport_for(self._options.queues or served_queues(self._app))
