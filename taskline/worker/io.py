"""The I/O thread: all that one worker process says to its broker and backend.

It receives ahead, hands jobs to the slots, and has verdicts carried out in
batches; it renews leases and does what needs a clock. One loop, one thread.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Collection, Mapping

from taskline.app import Taskline
from taskline.backends.base import Backend
from taskline.control import State
from taskline.errors import TransportError
from taskline.limiting import rulebook
from taskline.message import Delivery
from taskline.transports.base import Transport
from taskline.worker.admit import Admission
from taskline.worker.autoscale import Gauge
from taskline.worker.dispatch import Dispatch
from taskline.worker.exchange import Exchange
from taskline.worker.execute import Job, Runner
from taskline.worker.flows import Flows
from taskline.worker.gather import Gather, expanded
from taskline.worker.herald import Herald
from taskline.worker.intake import Intake
from taskline.worker.ledger import Condemned, Ledger
from taskline.worker.lifetime import Lifetime
from taskline.worker.limits.limiter import Limiter
from taskline.worker.outage import Outage
from taskline.worker.prefetch import Prefetch
from taskline.worker.remote import Remote
from taskline.worker.report import Reporter
from taskline.worker.settle import Settlements
from taskline.worker.slots import AsyncSlots, ThreadSlot
from taskline.worker.turns import Turns
from taskline.worker.watch import LOOK_EVERY, Watch

log = logging.getLogger("taskline.worker")

TICK = 1.0
"""The longest sleep, in seconds."""
LINGER = 0.005
"""Seconds for which finished jobs gather while the slots have more to do."""
UPKEEP_AT_LEAST = 15.0
"""Seconds after which a process that is never idle does the upkeep all the same."""


class IOThread:
    """One per process. `run` is the thread's body; any thread may call `stop`.

    A simulation calls `begin` and then `step` instead of `run`.
    """

    def __init__(
        self,
        app: Taskline,
        runner: Runner,
        *,
        consumer: str,
        queues: list[str],
        weights: dict[str, int],
        lease: float,
        max_deliveries: int,
        prefetch: int | None,
        slots: int,
        async_slots: int,
        ledger: Ledger | None = None,
        condemned: Condemned | None = None,
        lifetime: Lifetime | None = None,
        starvation: float | None = None,
        drain: bool = False,
        batch_places: int = 0,
        ranks: dict[str, int] | None = None,
        remote: Remote | None = None,
        gauge: Gauge | None = None,
        place: str = "",
        begun: Collection[str] = (),
    ) -> None:
        self._app = app
        self._runner = runner
        self._clock = app.clock
        self._consumer = consumer
        self._queues = queues
        self._turns = Turns(queues, weights, ranks or {})
        self._lease = lease
        self._max_deliveries = max_deliveries
        self._ledger = ledger
        self._condemned = condemned
        self._lifetime = lifetime
        self._starvation = starvation
        self._drain = drain
        self._remote = remote
        self._gauge = gauge
        self._place = place
        self._begun = begun
        self.state = State()
        """What all workers of the app are told."""
        self.drained = False
        """Whether the process ends because its queues are empty."""
        self._herald = Herald(runner.verdicts)
        self.exchange = Exchange(app.clock)
        self.slots = [
            ThreadSlot(i, self.exchange, runner, ledger, self._clock) for i in range(slots)
        ]
        kinds = {task.is_async for task in app.tasks.values()}
        self.async_slots = (
            AsyncSlots(async_slots, slots, self.exchange, runner, ledger, self._clock)
            if True in kinds
            else None
        )
        self._most_ahead = prefetch
        self._next_renewal = 0.0
        self._next_upkeep = 0.0
        self._stop_by: float | None = None
        self._outage = Outage(self._clock)
        self._gather = (
            Gather(ledger, range(slots + async_slots, slots + async_slots + batch_places))
            if any(task.batch for task in app.tasks.values())
            else None
        )
        self._rates: Mapping[str, str] = {}
        """The rates that it was told last."""
        self._prefetch: Prefetch
        self._transport: Transport
        self._backend: Backend | None
        self._settlements: Settlements
        self._watch: Watch
        self._dispatch: Dispatch
        self._admission: Admission
        self._intake: Intake
        self.ready = threading.Event()
        """Set once the broker and the backend were reached."""
        self.recycle = ""
        """Why the process must be replaced when this thread has ended; empty when it need not."""

    @property
    def held(self) -> Collection[Delivery]:
        """What this process holds: received, and not settled yet."""
        return self._settlements.held

    @property
    def left(self) -> list[str]:
        """Those that are not, where it was drained: they are paused."""
        return self._intake.left

    @property
    def stopping(self) -> bool:
        return self._stop_by is not None

    def stop(self, grace: float) -> None:
        """Take no more; give running tasks `grace` seconds, hand back the rest, end."""
        by = self._clock.monotonic() + grace
        self._stop_by = by if self._stop_by is None else min(by, self._stop_by)
        self.exchange.wake()

    def run(self) -> None:
        """The thread's body; returns when stopped, with nothing held."""
        transport = backend = None
        try:
            while not self.stopping:
                try:
                    transport = transport or self._app.open_transport_for(self._queues)
                    backend = backend or self._app.open_backend()
                    _reach(transport, backend)
                    self._inherit(transport)
                    transport.prepare(self._queues, self._lease, self._consumer)
                    if self._remote is not None and backend is not None:
                        self._remote.open(backend)
                        self.state = self._remote.state
                except TransportError as error:
                    self._outage.failed(error)
                    self.exchange.sleep(self._outage.retry_at - self._clock.monotonic())
                    self.exchange.begin_turn()
                else:
                    self._outage.over()
                    self.begin(transport, backend)
                    while self.step():
                        pass
                    return
        finally:
            self._herald.close()
            if self._remote is not None and not self._outage.lasts:
                self._remote.close()
            for resource in (transport, backend):
                if resource is not None:
                    resource.close()

    def _inherit(self, transport: Transport) -> None:
        """Have what a dead process held whose place is ours. Before any message is received, and
        so before the ledger says that we are ready: who dies before that leaves it to the next."""
        if not self._place:
            return
        count = transport.inherit(self._queues, self._place, self._begun)
        if count:
            log.warning("took over %d messages of a dead process", count)

    def begin(self, transport: Transport, backend: Backend | None) -> None:
        """Get ready to `step`, with a broker and a backend that were reached."""
        self._transport, self._backend = transport, backend
        self._prefetch = Prefetch(len(self.slots), self._most_ahead or transport.ahead)
        flows = None if backend is None else Flows(self._app, transport, backend)
        codec, verdicts = self._app.codec, self._runner.verdicts
        reply = codec.reply if codec.answers else None
        self._settlements = Settlements(
            transport, backend, flows, self._herald.tell, verdicts.bury, reply
        )
        if backend is not None:
            verdicts.largest = backend.largest
        self._watch = Watch(
            verdicts,
            self._settlements,
            backend,
            self.exchange,
            self.slots,
            self.async_slots,
            self._ledger,
            self._clock,
        )
        self._dispatch = Dispatch(
            self._app,
            self._settlements,
            self.exchange,
            self.slots,
            self.async_slots,
            self._prefetch,
            self._gather,
            self._lifetime,
        )
        self._admission = Admission(
            self._app,
            verdicts,
            self._settlements,
            backend,
            flows,
            self._watch.revoked,
            self._condemned,
            self._max_deliveries,
        )
        self._intake = Intake(
            self._app,
            transport,
            self._turns,
            self._consumer,
            self._lease,
            self.exchange,
            self._settlements,
            self._watch,
            self._admission,
            self._dispatch,
            self._prefetch,
            len(self.slots),
            self._starvation,
        )
        self._heed_rates(self.state.rates)
        if self.async_slots is not None:
            self._app.resources.loop = self.async_slots.open()
        if self._remote is not None:
            self._remote.reporter = Reporter(
                self._app,
                self._remote.options,
                self._consumer,
                self._queues,
                self._settlements,
                self._watch,
                self._prefetch,
                self.slots,
                self.async_slots,
            )
        now = self._clock.monotonic()
        self._next_renewal = now + self._lease / 3
        if self._ledger is not None:
            self._ledger.mark_ready(now)
        self.ready.set()

    def step(self, patience: float = TICK) -> bool:
        """One turn: all that is due, then wait for more, `patience` seconds at most.

        False when the thread may end: it was stopped, and holds nothing.
        """
        now = self._clock.monotonic()
        if self._ledger is not None:
            self._ledger.beat(now, *self._settlements.counts.values())
        self.exchange.begin_turn()
        self._dispatch.collect()
        running = self._watch.running()
        if running:
            self._watch.enforce(running, now)
            if self._watch.recycle and not self.recycle:
                self.recycle = self._watch.recycle
                log.warning("this process is replaced: %s", self.recycle)
                if self._ledger is not None:
                    self._ledger.mark_leaving(now)
                self.stop(self._lease)
        if self._lifetime is not None and not self.recycle:
            self.recycle = self._lifetime.over(now, busy=bool(running))
            if self.recycle:
                log.info("this process ends after what it runs: %s", self.recycle)
                if self._ledger is not None:
                    self._ledger.mark_leaving(now)
                self.stop(math.inf)
        try:
            if self._outage.lasts and now >= self._next_renewal:
                self._renew_all_the_same(now)
            if now >= self._outage.retry_at:
                if self._outage.lasts:
                    _reach(self._transport, self._backend)
                    self._next_renewal = now
                if self._settle(now, running):
                    return False
            self._wait_and_receive(now, patience)
            if now >= self._outage.retry_at:
                self._outage.over()
        except TransportError as error:
            self._outage.failed(error)
            if self._stop_by is not None and now > self._stop_by + self._lease:
                log.error("stopped without having handed everything back: %s", error)
                return False
        return True

    def _renew_all_the_same(self, now: float) -> None:
        """Not all need be out of order: the backend alone may be, or there is no space for more."""
        self._next_renewal = now + self._lease / 3
        # The outage was told when it began.
        with contextlib.suppress(TransportError):
            self._settlements.renew(self._lease)

    def _settle(self, now: float, running: list[Job]) -> bool:
        """All that is due with the broker and the backend but receiving; true at the end."""
        if now >= self._next_renewal:
            # Before the flush: what was lost while this process was paused is not settled.
            self._settlements.renew(self._lease)
            if self._dispatch.limiter is not None:
                self._dispatch.limiter.renew()
            self._next_renewal = now + self._lease / 3
        self._settlements.flush()
        self._dispatch.hand_back_stuck(now)
        self._dispatch.begin_suspect()
        if self._remote is not None:
            self.state = self._remote.look(now, self.stopping)
            if self.state.paused or self._turns.paused:
                self._heed_pauses()
            if self.state.rates is not self._rates:
                self._heed_rates(self.state.rates)
        if self._stop_by is not None and self._ended(now, self._stop_by):
            return True
        if self._gauge is not None:
            self._gauge.look(now, self._transport, self._turns.paused)
        if running:
            self._watch.look_at_revocations(now)
            self._watch.show(running, now)
        return False

    def _heed_pauses(self) -> None:
        """Ask paused queues no more, and hand back what was fetched of them and has not begun."""
        paused = self.state.paused_at(self._clock.time())
        if paused == self._turns.paused:
            return
        fresh = self._turns.leave_out(paused)
        held = self._settlements.held
        if any(delivery.queue in fresh and not job.started for delivery, job in held.items()):
            # Of other queues too: what was held of those comes again at once.
            self._dispatch.take_back()
            self._settlements.flush()

    def _wait_and_receive(self, now: float, patience: float) -> None:
        if now >= self._outage.retry_at and not self.stopping:
            self._dispatch.begin_limited(now)
        waiting = self.exchange.ready.qsize()
        if waiting and now >= self._outage.retry_at:
            # Slots are busy and have more to do: let finished jobs gather.
            self.exchange.linger(min(LINGER, patience))
            if self.exchange.done and len(self._settlements.held) <= len(self.slots):
                return  # What was taken in has ended, or will in a moment: its results come first.
            waiting = self.exchange.ready.qsize()
            if not self.stopping and (room := self._dispatch.room(now, waiting)) > 0:
                self._receive(room, 0.0)
            return
        until = self.exchange.looks_at = min(now + patience, self._next_renewal)
        until = self._watch.next_due(self._watch.running(), until)
        if self._settlements.held:
            until = min(until, now + LOOK_EVERY)  # for revocations
        self._dispatch.begin_batches(now)
        until = self._dispatch.next_due(now, until)
        if now < self._outage.retry_at:
            self.exchange.sleep(min(until, self._outage.retry_at) - now)
        elif self._stop_by is not None:
            self.exchange.sleep(min(until, max(self._stop_by, now + LINGER)) - now)
        elif (room := self._dispatch.room(now, 0)) > 0:
            self._receive(room, until - now)
        else:
            self.exchange.sleep(until - now)

    def _receive(self, limit: int, wait: float) -> None:
        idle = self._intake.receive(limit, wait)
        if self._drain and idle and self._intake.is_dry():
            self.drained = True
            self.stop(0.0)
        now = self._clock.monotonic()
        if now >= self._next_upkeep and (idle or now >= self._next_upkeep + UPKEEP_AT_LEAST):
            self._next_upkeep = now + TICK
            self._transport.maintain()
            if self._backend is not None:
                self._backend.maintain()

    def _heed_rates(self, rates: Mapping[str, str]) -> None:
        """Keep the limits of the app, with these rates in place of its own."""
        limiter = self._dispatch.limiter
        if limiter is not None:
            if rates != self._rates:
                limiter.told(rates)
        elif self._backend is not None and (book := rulebook(self._app, rates)).first():
            limiter = self._dispatch.limiter = Limiter(
                self._app,
                book,
                self._backend.keys(),
                self._runner,
                self._settlements,
                self._gather,
                self._consumer,
                self._lease,
            )
            self._admission.limited = limiter.limits
            self._admission.given_up = limiter.given_up
        self._rates = rates

    def _ended(self, now: float, by: float) -> bool:
        """Whether the process may end: nothing runs and nothing is held."""
        settlements, exchange = self._settlements, self.exchange
        self._dispatch.take_back()
        running = self._watch.running()
        if now < by and (running or exchange.ready.qsize() or exchange.done):
            settlements.flush()
            return False
        if running:
            log.warning("%d running tasks are handed back: their time is over", len(running))
            for job in running:
                job.abandoned = True
            for job in expanded(running):
                if job.verdict:  # a member of a batch that was not to run
                    settlements.add(job)
                elif not (job.early or job.lost):
                    settlements.give_back([job])
        settlements.give_back(exchange.take_back(early=True))
        self._dispatch.collect()
        settlements.flush()
        if settlements.held:
            return False
        if self._dispatch.limiter is not None:
            self._dispatch.limiter.close()
        return True


def _reach(transport: Transport, backend: Backend | None) -> None:
    """Raise `TransportError` if one of them is out of reach."""
    transport.ping()
    if backend is not None:
        backend.ping()
