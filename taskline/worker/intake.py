"""What comes from the broker: from which queues, how many, and what becomes of it at once.

Owned by the I/O thread.
"""

from __future__ import annotations

import logging
from itertools import chain

from taskline.app import Taskline
from taskline.errors import TransportError
from taskline.message import Delivery
from taskline.transports.base import Transport
from taskline.worker.admit import Admission
from taskline.worker.dispatch import Dispatch
from taskline.worker.exchange import Exchange
from taskline.worker.prefetch import Prefetch
from taskline.worker.settle import Settlements
from taskline.worker.turns import Turns
from taskline.worker.watch import Watch

log = logging.getLogger("taskline.worker")

MOMENT = 0.001
"""Seconds that brief tasks are given before anything else is done: they begin at once when this
thread gives way, and are settled before more is received."""


class Intake:
    """Receives messages, makes jobs of them and gives those to the dispatch."""

    def __init__(
        self,
        app: Taskline,
        transport: Transport,
        turns: Turns,
        consumer: str,
        lease: float,
        exchange: Exchange,
        settlements: Settlements,
        watch: Watch,
        admission: Admission,
        dispatch: Dispatch,
        prefetch: Prefetch,
        slots: int,
        starvation: float | None,
    ) -> None:
        self._app = app
        self._clock = app.clock
        self._transport = transport
        self._turns = turns
        self._consumer = consumer
        self._lease = lease
        self._exchange = exchange
        self._settlements = settlements
        self._watch = watch
        self._admission = admission
        self._dispatch = dispatch
        self._prefetch = prefetch
        self._slots = slots
        self._starvation = starvation
        self._fed_at = self._starved_at = app.clock.monotonic()
        self.left: list[str] = []
        """The queues that are not empty, and paused, when `is_dry` was true."""

    def receive(self, limit: int, wait: float) -> bool:
        """Ask for so many messages, and wait for them for so many seconds at most.

        True when nothing has come in that time, and nothing is held.
        """
        queues = self._turns.next()
        deliveries: list[Delivery] = []
        limiter = self._dispatch.limiter
        if limiter is not None:
            now = self._clock.monotonic()
            scant, number = limiter.lines.scant_queues(queues, now)
            if scant and (deliveries := self._ask(scant, min(number, limit), 0.0)):
                self.take_in(deliveries)
                return False
            queues = limiter.lines.open_queues(queues, now)
        exchange = self._exchange
        if wait > 0 and not exchange.may_wait(self._transport):
            wait = 0.0
        try:
            if queues:
                deliveries = self._ask(queues, limit, wait)
            else:  # all are paused, or have enough here
                exchange.sleep(wait)
        finally:
            exchange.has_waited()
        held = self._settlements.held
        if deliveries:
            self.take_in(deliveries)
            if self._prefetch.brief and len(held) <= self._slots:
                exchange.sleep(MOMENT)
        if self._starvation is not None:
            self._look_at_hunger(self._clock.monotonic(), self._starvation)
        return wait > 0 and not deliveries and not held

    def is_dry(self) -> bool:
        """Whether nothing is due, and nobody holds anything that may come back.

        Paused queues are not waited for: they are noted as `left`.
        """
        limiter = self._dispatch.limiter
        if limiter is not None and self._clock.monotonic() < limiter.parking.until:
            return False
        stats = self._transport.stats(self._turns.all)
        found = [each for each in stats if each.ready or each.leased]
        left = [each.queue for each in found if each.queue in self._turns.paused]
        if len(found) > len(left):
            return False
        self.left = left
        if left:
            log.warning("these queues are paused and not empty: %s", ", ".join(left))
        return True

    def take_in(self, deliveries: list[Delivery]) -> None:
        """Make jobs of what was received, and give the slots those that may run."""
        now = self._clock.monotonic()
        try:
            shared = self._settlements.shared
            self._watch.look_before_start(self._transport.newest_revocation if shared else None)
        except TransportError:
            self._settlements.refuse(deliveries)
            raise
        try:
            admitted = self._admission.admit(deliveries)
        except TransportError:
            held = self._settlements.held
            self._settlements.refuse([each for each in deliveries if each not in held])
            raise
        if self._app.hooks.of_receives:
            self._app.hooks.call("after_receive", [job.header for job in chain(*admitted)])
        self._dispatch.take(admitted, now)

    def _ask(self, queues: list[str], limit: int, wait: float) -> list[Delivery]:
        hooks = self._app.hooks
        if hooks.of_receives:
            hooks.call("before_receive", queues, limit)
        return self._transport.receive(queues, limit, self._lease, wait, self._consumer)

    def _look_at_hunger(self, now: float, starvation: float) -> None:
        """Tell the middleware, each `starvation` seconds, that nothing comes."""
        if self._settlements.held:
            self._fed_at = self._starved_at = now
        elif now - self._starved_at >= starvation:
            self._starved_at = now
            self._app.hooks.call("starvation", now - self._fed_at)
