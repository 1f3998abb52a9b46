"""The I/O thread: all that one worker process says to its broker and backend.

It receives ahead, hands jobs to the slots, and has verdicts carried out in
batches; it renews leases and does what needs a clock. One loop, one thread.
"""

from __future__ import annotations

import logging
import random
import threading
from collections import deque
from collections.abc import Sequence
from queue import Empty

from taskline.app import Taskline
from taskline.backends.base import Backend
from taskline.errors import (
    SerializationError,
    TaskPoisoned,
    TaskTimeout,
    TransportError,
    UnknownTask,
)
from taskline.message import Delivery
from taskline.transports.base import Transport
from taskline.worker.execute import Job, Runner
from taskline.worker.ledger import Ledger
from taskline.worker.prefetch import PATIENCE, Prefetch
from taskline.worker.settle import Settlements
from taskline.worker.slots import AsyncSlots, Exchange, ThreadSlot
from taskline.worker.watch import Watch

log = logging.getLogger("taskline.worker")

TICK = 1.0
"""The longest sleep, in seconds."""
LINGER = 0.005
"""Seconds for which finished jobs gather while the slots have more to do."""
SUSPECT_DELAY = 0.5
"""Seconds for which further suspects are handed back while one of them runs long."""
UPKEEP_AT_LEAST = 15.0
"""Seconds after which a process that is never idle does the upkeep all the same."""
BACKLOG = 10_000
"""Verdicts that may wait for the broker's return before nothing more is received."""
BACKOFF_FIRST, BACKOFF_MAX = 0.1, 5.0


class IOThread:
    """One per process. `run` is the thread's body; any thread may call `wake` and `stop`."""

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
        prefetch: int,
        slots: int,
        async_slots: int,
        ledger: Ledger | None,
        timed_out: Sequence[str] = (),
    ) -> None:
        self._app = app
        self._runner = runner
        self._clock = app.clock
        self._consumer = consumer
        self._queues = queues
        self._weights = weights
        self._lease = lease
        self._max_deliveries = max_deliveries
        self._ledger = ledger
        self._timed_out = set(timed_out)
        self._event = threading.Event()
        self.exchange = Exchange(self.wake)
        self.slots = [
            ThreadSlot(i, self.exchange, runner, ledger, self._clock) for i in range(slots)
        ]
        kinds = {task.is_async for task in app.tasks.values()}
        self._serves_sync = kinds != {True}
        self.async_slots = (
            AsyncSlots(async_slots, slots, self.exchange, runner, ledger, self._clock)
            if True in kinds
            else None
        )
        self._prefetch = Prefetch(slots, prefetch)
        self._suspects: deque[Job] = deque()
        self._suspect: Job | None = None
        self._next_renewal = 0.0
        self._next_upkeep = 0.0
        self._beat = 0.0
        self._taken = 0
        self._taken_at = 0.0
        self._receiving: Transport | None = None
        self._stop_by: float | None = None
        self._trouble = ""
        self._backoff = BACKOFF_FIRST
        self._retry_at = 0.0
        self._transport: Transport
        self._settlements: Settlements
        self._watch: Watch
        self.ready = threading.Event()
        """Set once the broker and the backend were reached."""
        self.recycle = ""
        """Why the process must be replaced when this thread has ended; empty when it need not."""

    def wake(self) -> None:
        """Make the thread look now."""
        self._event.set()
        receiving = self._receiving
        if receiving is not None:
            receiving.interrupt()

    @property
    def stopping(self) -> bool:
        return self._stop_by is not None

    def stop(self, grace: float) -> None:
        """Take no more; give running tasks `grace` seconds, hand back the rest, end."""
        by = self._clock.monotonic() + grace
        self._stop_by = by if self._stop_by is None else min(by, self._stop_by)
        self.wake()

    def run(self) -> None:
        """The thread's body; returns when stopped, with nothing held."""
        transport = backend = None
        try:
            while not self.stopping:
                try:
                    transport = transport or self._app.open_transport()
                    transport.ping()
                    backend = backend or self._app.open_backend()
                    if backend is not None:
                        backend.ping()
                except TransportError as error:
                    self._troubled(error)
                    self._sleep(self._retry_at - self._clock.monotonic())
                    self._event.clear()
                else:
                    self._calm()
                    self._work(transport, backend)
                    return
        finally:
            for resource in (transport, backend):
                if resource is not None:
                    resource.close()

    def _work(self, transport: Transport, backend: Backend | None) -> None:
        self._transport = transport
        self._settlements = Settlements(transport, backend)
        self._watch = Watch(
            self._runner,
            self._settlements,
            backend,
            self.exchange,
            self.slots,
            self.async_slots,
            self._clock,
        )
        now = self._beat = self._taken_at = self._clock.monotonic()
        self._next_renewal = now + self._lease / 3
        if self._ledger is not None:
            self._ledger.mark_ready(now)
        self.ready.set()
        while True:
            now = self._clock.monotonic()
            self._event.clear()
            try:
                if now >= self._retry_at and self._round(now):
                    return
                self._wait_and_receive(now, backend)
            except TransportError as error:
                self._troubled(error)
                if self._stop_by is not None and now > self._stop_by + self._lease:
                    log.error("stopped without having handed everything back: %s", error)
                    return

    def _round(self, now: float) -> bool:
        """All that is due now, but receiving; true when the thread may end."""
        if now >= self._next_renewal or now - self._beat > self._lease / 2:
            # Also after this process was paused: what was lost is dropped before it is settled.
            self._settlements.renew(self._lease)
            self._next_renewal = now + self._lease / 3
        self._beat = now
        self._collect()
        self._settlements.flush()
        self._calm()
        running = self._watch.running()
        if running:
            self._watch.look_at_revocations(now)
            self._watch.tick(running, now)
            if self._watch.recycle and not self.recycle:
                self.recycle = self._watch.recycle
                self.stop(self._lease)
        self._hand_back_stuck(now)
        self._place_suspect()
        return self._stop_by is not None and self._ended(now, self._stop_by)

    def _wait_and_receive(self, now: float, backend: Backend | None) -> None:
        waiting = self.exchange.ready.qsize()
        if now < self._retry_at:
            self._sleep(self._retry_at - now)
        elif waiting:
            # Slots are busy and have more to do: let finished jobs gather.
            self._event.wait(self._clock.bound(LINGER))
            if not self.stopping and (room := self._room(self.exchange.ready.qsize())) > 0:
                self._receive(room, 0.0, backend)
        else:
            until = self._watch.next_due(self._watch.running(), min(now + TICK, self._next_renewal))
            if self._stop_by is not None:
                self._sleep(min(until, max(self._stop_by, now + LINGER)) - now)
            elif (room := self._room(0)) > 0:
                self._receive(room, until - now, backend)
            else:
                self._sleep(until - now)

    def _sleep(self, seconds: float) -> None:
        self.exchange.waiting = True
        if seconds > 0 and not self.exchange.done:
            self._event.wait(self._clock.bound(seconds))
        self.exchange.waiting = False

    def _room(self, waiting: int) -> int:
        """How many messages to ask for now."""
        if self._suspects or self._settlements.backlog > BACKLOG:
            return 0
        idle_async = self.async_slots.idle if self.async_slots is not None else 0
        if not self._serves_sync:
            return idle_async
        idle = sum(slot.current is None for slot in self.slots)
        ahead = 0 if self._suspect is not None else self._prefetch.target()
        room = idle + ahead - waiting
        if waiting:
            # Refill in large steps; a coroutine's slot does not justify more `def` tasks waiting.
            return room if room > ahead // 2 else 0
        return max(room, idle_async)

    def _receive(self, limit: int, wait: float, backend: Backend | None) -> None:
        queues = self._queues if len(self._queues) == 1 else self._shuffled()
        if wait > 0:
            self.exchange.waiting = True
            self._receiving = self._transport
            if self.exchange.done or self._event.is_set():
                wait = 0.0
        try:
            deliveries = self._transport.receive(queues, limit, self._lease, wait, self._consumer)
        finally:
            self.exchange.waiting = False
            self._receiving = None
        if deliveries:
            self._admit(deliveries)
        now = self._clock.monotonic()
        idle = wait > 0 and not self._settlements.held
        if now >= self._next_upkeep and (idle or now >= self._next_upkeep + UPKEEP_AT_LEAST):
            self._next_upkeep = now + TICK
            self._transport.maintain()
            if backend is not None:
                backend.maintain()

    def _shuffled(self) -> list[str]:
        """A random order in which heavier queues tend to come first.

        Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006.
        """
        weights = self._weights
        return sorted(
            self._queues,
            key=lambda queue: random.random() ** (1 / weights.get(queue, 1)),
            reverse=True,
        )

    def _admit(self, deliveries: list[Delivery]) -> None:
        """Decode headers; give to the slots what can run, and a verdict to what cannot."""
        open_frame, tasks = self._app.codec.open, self._app.tasks
        settlements, held = self._settlements, self._settlements.held
        try:
            self._watch.look_at_revocations(self._clock.monotonic(), force=True)
        except TransportError:
            settlements.refuse(deliveries)
            raise
        revoked = self._watch.revoked
        now = self._clock.time()
        plain: list[Job] = []
        coroutines: list[Job] = []
        early: list[Job] = []
        for delivery in deliveries:
            try:
                header, body = open_frame(delivery.frame)
            except SerializationError as error:
                job = held[delivery] = Job(delivery, None, b"", None)
                self._refuse(job, error)
                continue
            task = tasks.get(header.task)
            job = held[delivery] = Job(delivery, header, body, task)
            if task is None:
                self._refuse(
                    job,
                    UnknownTask(
                        f"no task {header.task!r} is registered in this worker:"
                        " import its module (include=…) or send it to another queue"
                    ),
                )
            elif header.id in revoked:
                self._runner.revoked(job)
                settlements.add(job)
            elif header.expires is not None and header.expires <= now:
                self._runner.expired(job)
                settlements.add(job)
            elif delivery.lost and header.id in self._timed_out:
                self._timed_out.remove(header.id)
                self._runner.failed(
                    job,
                    TaskTimeout(
                        f"the task ran longer than its timeout of {job.limit or 0:g} s"
                        " and did not react: its process was killed"
                    ),
                )
                settlements.add(job)
            elif delivery.lost >= self._max_deliveries:
                self._refuse(
                    job,
                    TaskPoisoned(
                        f"its worker died or lost its lease {delivery.lost} times while it ran"
                        f" (max_deliveries={self._max_deliveries})"
                    ),
                )
            elif task.ack == "early":
                early.append(job)
            elif delivery.lost:
                self._suspects.append(job)
            else:
                (coroutines if task.is_async else plain).append(job)
        if early:
            for job in settlements.ack_early(early):
                assert job.task is not None
                (coroutines if job.task.is_async else plain).append(job)
        put = self.exchange.ready.put
        if plain and not self.exchange.ready.qsize():
            self._taken_at = self._clock.monotonic()
        for job in plain:
            put(job)
        if coroutines and self.async_slots is not None:
            fit = self.async_slots.idle
            self.async_slots.start(coroutines[:fit])
            settlements.give_back(coroutines[fit:])

    def _refuse(self, job: Job, error: Exception) -> None:
        self._runner.bury(job, error, str(error))
        self._settlements.add(job)

    def _place_suspect(self) -> None:
        """Run messages that once cost a worker its lease one at a time, with none waiting beside.

        So a message that kills its worker takes no bystanders into the dead letters.
        """
        suspect = self._suspect
        if suspect is not None and not (suspect.verdict or suspect.lost or suspect.abandoned):
            if (
                self._suspects
                and suspect.started
                and (self._clock.time() - suspect.started > PATIENCE)
            ):
                self._settlements.give_back(self._suspects, SUSPECT_DELAY)
                self._suspects.clear()
            return
        self._suspect = None
        if not self._suspects or self.stopping:
            return
        self._settlements.give_back(self._take_waiting())
        job = self._suspects.popleft()
        assert job.task is not None
        if not job.task.is_async:
            self.exchange.ready.put(job)
        elif self.async_slots is not None and self.async_slots.idle:
            self.async_slots.start([job])
        else:
            self._settlements.give_back([job], SUSPECT_DELAY)
            return
        self._suspect = job

    def _collect(self) -> None:
        """Take over what the slots have finished."""
        done = self.exchange.done
        durations = []
        while done:
            job = done.popleft()
            if job.started:
                durations.append(job.finished - job.started)
            if not job.abandoned:
                self._settlements.add(job)
        self._prefetch.observe(durations)

    def _take_waiting(self) -> list[Job]:
        """Take back the jobs that no slot has begun, but those already acknowledged."""
        jobs: list[Job] = []
        early: list[Job] = []
        while True:
            try:
                job = self.exchange.ready.get_nowait()
            except Empty:
                break
            if job is not None:
                (early if job.early else jobs).append(job)
        for job in early:
            self.exchange.ready.put(job)
        return [job for job in jobs if not job.lost]

    def _hand_back_stuck(self, now: float) -> None:
        """Hand back what waits behind long tasks, so that idle slots elsewhere can have it."""
        if self.exchange.taken != self._taken or not self.exchange.ready.qsize():
            self._taken, self._taken_at = self.exchange.taken, now
        elif now - self._taken_at > PATIENCE:
            self._prefetch.stuck(now - self._taken_at)
            self._settlements.give_back(self._take_waiting())
            self._settlements.flush()

    def _ended(self, now: float, by: float) -> bool:
        """Whether the process may end: nothing runs and nothing is held."""
        self._settlements.give_back(self._take_waiting())
        self._settlements.give_back(self._suspects)
        self._suspects.clear()
        running = self._watch.running()
        waits = self.exchange.ready.qsize() or self.exchange.done
        if now < by and (running or waits):
            self._settlements.flush()
            return False
        if running:
            log.warning("%d running tasks are handed back: their time is over", len(running))
            for job in running:
                job.abandoned = True
            self._settlements.give_back(job for job in running if not job.early and not job.lost)
        self._collect()
        self._settlements.flush()
        return not self._settlements.held

    def _troubled(self, error: TransportError) -> None:
        """The broker or the backend failed: say so once, and wait longer each time."""
        self._retry_at = self._clock.monotonic() + self._backoff * random.uniform(0.5, 1.0)
        self._backoff = min(self._backoff * 2, BACKOFF_MAX)
        if str(error) != self._trouble:
            self._trouble = str(error)
            log.error("%s; trying until it works", error)

    def _calm(self) -> None:
        if self._trouble:
            self._trouble = ""
            self._backoff = BACKOFF_FIRST
            log.info("the broker answers again")
