"""The I/O thread: all that one worker process says to its broker and backend.

It receives ahead, hands jobs to the slots, stores outcomes, acknowledges in
batches (always after the outcome is stored), renews leases, and enforces what
needs a clock: time limits, revocations, handing back what waits too long.

Every delivery that this process holds is in `_held` from its receipt until it
has been acknowledged, replaced, buried, released or lost.
"""

from __future__ import annotations

import logging
import random
import threading
from collections import deque
from queue import Empty

from taskline.app import Taskline
from taskline.backends.base import Backend
from taskline.errors import (
    SerializationError,
    SoftTimeout,
    TaskPoisoned,
    TaskRevoked,
    TaskTimeout,
    TransportError,
    UnknownTask,
)
from taskline.message import Delivery
from taskline.transports.base import Transport
from taskline.worker.execute import ACK, BURY, RELEASE, REPLACE, Job, Runner
from taskline.worker.ledger import Ledger
from taskline.worker.prefetch import PATIENCE, Prefetch
from taskline.worker.slots import AsyncSlots, Exchange, ThreadSlot

log = logging.getLogger("taskline.worker")

TICK = 1.0
"""The longest sleep, in seconds."""
LINGER = 0.005
"""How long finished jobs gather while the slots have more to do."""
STARTED_AFTER = 0.5
"""A run is shown as STARTED once it has lasted this long."""
ABANDON_AFTER = 1.0
"""How long interrupted code has to end before the process gives it up."""
SUSPECT_DELAY = 0.5
"""For how long further suspects are handed back while one of them runs long."""
BACKOFF_FIRST, BACKOFF_MAX = 0.1, 5.0


class IOThread:
    """One per process; `run` is the thread's body, the rest may be called from any thread."""

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
        self._event = threading.Event()
        self.exchange = Exchange(self.wake)
        self.slots = [
            ThreadSlot(i, self.exchange, runner, ledger, self._clock) for i in range(slots)
        ]
        kinds = {task.is_async for task in app.tasks.values()}
        self._serves_sync = False in kinds or not kinds
        self.async_slots = (
            AsyncSlots(async_slots, slots, self.exchange, runner, ledger, self._clock)
            if True in kinds
            else None
        )
        self._prefetch = Prefetch(slots, prefetch)
        self.transport: Transport | None = None
        self.backend: Backend | None = None
        self._shared = False
        self._receiving = False

        self._held: dict[Delivery, Job] = {}
        self._suspects: deque[Job] = deque()
        self._suspect: Job | None = None
        self._acks: list[Job] = []
        self._replaces: list[Job] = []
        self._burials: list[Job] = []
        self._releases: list[Job] = []

        self._revocations = 0
        self._revoked: set[str] = set()
        self._terminate: set[str] = set()
        self._next_look = 0.0
        self._next_renewal = 0.0
        self._beat = 0.0
        self._taken = 0
        self._taken_at = 0.0
        self._empty_until = 0.0

        self._stop: str = ""
        self._stop_by = 0.0
        self._trouble = ""
        self._backoff = BACKOFF_FIRST
        self._retry_at = 0.0
        self.recycle = ""
        """Why this process must end and be replaced; empty while it need not."""
        self.ready = threading.Event()
        """Set once the broker and backend were reached."""

    def wake(self) -> None:
        """Make the thread look now."""
        self._event.set()
        if self._receiving and self.transport is not None:
            self.transport.interrupt()

    @property
    def stopping(self) -> bool:
        return bool(self._stop)

    def stop(self, grace: float) -> None:
        """Take no more; give running tasks `grace` seconds; hand back the rest."""
        by = self._clock.monotonic() + grace
        if not self._stop or by < self._stop_by:
            self._stop, self._stop_by = "stop", by
        self.wake()

    # ---- the thread

    def run(self) -> None:
        """The thread's body. Returns when stopped, with nothing held."""
        try:
            if self._open():
                self._work()
        finally:
            for resource in (self.transport, self.backend):
                if resource is not None:
                    resource.close()

    def _open(self) -> bool:
        """Connect, and keep trying; False when stopped before that."""
        while not self._stop:
            try:
                if self.transport is None:
                    self.transport = self._app.open_transport()
                self.transport.ping()
                if self.backend is None:
                    self.backend = self._app.open_backend()
                if self.backend is not None:
                    self.backend.ping()
                    self._shared = self.transport.shares(self.backend)
                self._calm()
            except TransportError as error:
                self._troubled(error)
                self._event.wait(self._clock.bound(self._retry_at - self._clock.monotonic()))
                self._event.clear()
            else:
                if self._ledger is not None:
                    self._ledger.mark_ready(self._clock.monotonic())
                self.ready.set()
                return True
        return False

    def _work(self) -> None:
        self._beat = self._taken_at = self._clock.monotonic()
        self._next_renewal = self._beat + self._lease / 3
        while True:
            now = self._clock.monotonic()
            self._event.clear()
            try:
                if now - self._beat > self._lease / 2 or now >= self._next_renewal:
                    # Also after a pause of this process: what was lost meanwhile is dropped first.
                    self._renew(now)
                self._beat = now
                self._collect()
                if now >= self._retry_at:
                    self._flush()
                    self._look_at_revocations(now)
                self._watch(now)
                self._place_suspect(now)
                if self._stop and self._ended(now):
                    return
                self._wait_and_receive(now)
            except TransportError as error:
                self._troubled(error)
                if self._stop and self._clock.monotonic() > self._stop_by + self._lease:
                    log.error("stopped without handing everything back: %s", error)
                    return

    def _wait_and_receive(self, now: float) -> None:
        waiting = self.exchange.ready.qsize()
        if now < self._retry_at:
            self._sleep(self._retry_at - now)
        elif waiting:
            # Slots are busy and have more to do: let finished jobs gather.
            self._sleep(LINGER, long=False)
            room = self._room(waiting)
            if room > 0 and not self._stop:
                self._receive(room, 0.0)
        else:
            room = 0 if self._stop else self._room(0)
            pause = self._pause(now)
            if room > 0:
                self._receive(room, pause)
            else:
                self._sleep(pause)

    def _sleep(self, seconds: float, *, long: bool = True) -> None:
        self.exchange.waiting = long
        if not (long and self.exchange.done):
            self._event.wait(self._clock.bound(seconds))
        self.exchange.waiting = False

    def _pause(self, now: float) -> float:
        """Seconds until something must be looked at."""
        until = min(now + TICK, self._next_renewal)
        for job in self._running():
            for moment in (job.deadline, job.soft_deadline):
                if moment > now:
                    until = min(until, moment)
        if self._stop:
            until = min(until, max(self._stop_by, now))
        return max(0.0, until - now)

    def _running(self) -> list[Job]:
        jobs = [job for slot in self.slots if (job := slot.current) is not None]
        if self.async_slots is not None:
            jobs.extend(list(self.async_slots.running))
        return jobs

    def _room(self, waiting: int) -> int:
        """How many messages to ask for."""
        if self._suspects or self.recycle or len(self._acks) > 10_000:
            return 0
        idle_async = self.async_slots.idle if self.async_slots is not None else 0
        if not self._serves_sync:
            return idle_async
        idle = sum(slot.current is None for slot in self.slots)
        ahead = 0 if self._suspect is not None else self._prefetch.target()
        room = idle + ahead - waiting
        if waiting and room < ahead // 2:
            return 0
        return max(room, idle_async) if room > 0 or waiting == 0 else room

    # ---- receiving

    def _receive(self, limit: int, wait: float) -> None:
        transport = self.transport
        assert transport is not None
        queues = self._queues
        if len(queues) > 1:
            queues = self._shuffled()
        self._receiving = self.exchange.waiting = wait > 0
        if self.exchange.done or self._event.is_set():
            wait = 0.0
        try:
            deliveries = transport.receive(queues, limit, self._lease, wait, self._consumer)
        finally:
            self._receiving = self.exchange.waiting = False
        self._calm()
        if deliveries:
            self._admit(deliveries)
        elif wait > 0 and not self._held:
            transport.maintain()
            if self.backend is not None:
                self.backend.maintain()

    def _shuffled(self) -> list[str]:
        """A random order in which heavier queues tend to come first (Efraimidis, Spirakis 2006)."""
        weights = self._weights
        return sorted(
            self._queues, key=lambda queue: random.random() ** (1 / weights.get(queue, 1)), reverse=True
        )

    def _admit(self, deliveries: list[Delivery]) -> None:
        """Decode headers; give to the slots what can run, and a verdict to what cannot."""
        open_frame, tasks = self._app.codec.open, self._app.tasks
        now = self._clock.time()
        if self.backend is not None:
            self._look_at_revocations(self._clock.monotonic(), force=True)
        jobs, later, early = [], [], []
        for delivery in deliveries:
            try:
                header, body = open_frame(delivery.frame)
            except SerializationError as error:
                self._refuse(Job(delivery, None, b"", None), error)
                continue
            job = Job(delivery, header, body, tasks.get(header.task))
            self._held[delivery] = job
            if job.task is None:
                self._refuse(
                    job,
                    UnknownTask(
                        f"no task {header.task!r} is registered in this worker:"
                        " import its module (include=…) or send it to another queue"
                    ),
                )
            elif header.id in self._revoked:
                self._runner.revoked(job)
                self._acks.append(job)
            elif header.expires is not None and header.expires <= now:
                self._runner.expired(job)
                self._acks.append(job)
            elif delivery.lost >= self._max_deliveries:
                self._refuse(
                    job,
                    TaskPoisoned(
                        f"its worker died or lost its lease {delivery.lost} times while running it"
                        f" (max_deliveries={self._max_deliveries})"
                    ),
                )
            elif job.task.ack == "early":
                early.append(job)
            elif delivery.lost:
                self._suspects.append(job)
            elif job.task.is_async:
                later.append(job)
            else:
                jobs.append(job)
        if early:
            self._acknowledge_early(early, jobs, later)
        put = self.exchange.ready.put
        for job in jobs:
            put(job)
        if later:
            self._start_async(later)

    def _refuse(self, job: Job, error: Exception) -> None:
        self._held[job.delivery] = job
        self._runner.bury(job, error, str(error))
        self._burials.append(job)

    def _acknowledge_early(self, early: list[Job], jobs: list[Job], later: list[Job]) -> None:
        assert self.transport is not None
        lost = set(self.transport.ack([job.delivery for job in early]))
        for job in early:
            del self._held[job.delivery]
            if job.delivery not in lost:
                job.early = True
                assert job.task is not None
                (later if job.task.is_async else jobs).append(job)

    def _start_async(self, jobs: list[Job]) -> None:
        assert self.async_slots is not None
        fit = self.async_slots.idle
        for job in jobs[fit:]:
            # More than there is room for, beside `def` tasks: others may have room.
            job.delay = 0.0
            self._releases.append(job)
        if jobs[:fit]:
            self.async_slots.start(jobs[:fit])

    def _place_suspect(self, now: float) -> None:
        """Run messages that once cost a worker its lease one at a time, with nothing waiting beside.

        So a message that kills its worker takes no bystanders into the dead letters.
        """
        running = self._suspect
        if running is not None:
            if running.verdict or running.lost:
                self._suspect = running = None
            elif self._suspects and running.started and (
                self._clock.time() - running.started > PATIENCE
            ):
                for job in self._suspects:
                    job.delay = SUSPECT_DELAY
                self._releases.extend(self._suspects)
                self._suspects.clear()
        if running is None and self._suspects and not self._stop:
            self._hand_back_waiting()
            job = self._suspects.popleft()
            assert job.task is not None
            if job.task.is_async:
                if self.async_slots is None or not self.async_slots.idle:
                    self._suspects.appendleft(job)
                    return
                self.async_slots.start([job])
            else:
                self.exchange.ready.put(job)
            self._suspect = job

    # ---- settling

    def _collect(self) -> None:
        """Take over what the slots have finished."""
        done = self.exchange.done
        if not done:
            return
        durations = []
        held = self._held
        routes = {ACK: self._acks, REPLACE: self._replaces, BURY: self._burials}
        while done:
            job = done.popleft()
            durations.append(job.finished - job.started)
            if job.abandoned:
                continue
            if job.lost or (job.delivery not in held and not job.early):
                log.warning(
                    "task %s[%s] outcome dropped: the lease was lost and another run has replaced this one",
                    job.header.task if job.header else "?",
                    job.delivery.id,
                )
                continue
            routes[job.verdict].append(job)
        self._prefetch.observe(durations)

    def _flush(self) -> None:
        """Carry out the verdicts. What fails stays, to be tried again."""
        if self._acks:
            self._flush_acks()
        if self._replaces:
            self._store(self._replaces)
            self._replace()
        if self._burials:
            self._store(self._burials)
            self._bury()
        if self._releases:
            self._release()
        self._calm()

    def _flush_acks(self) -> None:
        transport = self.transport
        assert transport is not None
        jobs = self._acks
        if self._shared:
            early = [job for job in jobs if job.early]
            if early:
                self._store(early)
                jobs = [job for job in jobs if not job.early]
            outcomes = [job.outcome for job in jobs if job.outcome is not None]
            lost = transport.ack([job.delivery for job in jobs], outcomes)
        else:
            self._store(jobs)
            lost = transport.ack([job.delivery for job in jobs if not job.early])
        self._settled(self._acks, lost)
        self._acks = []

    def _store(self, jobs: list[Job]) -> None:
        if self.backend is None:
            return
        fresh = [job for job in jobs if job.outcome is not None and not job.stored]
        if fresh:
            self.backend.store([job.outcome for job in fresh if job.outcome is not None])
            for job in fresh:
                job.stored = True

    def _replace(self) -> None:
        assert self.transport is not None
        jobs = self._replaces
        early = [job.successor for job in jobs if job.early and job.successor is not None]
        if early:
            self.transport.send(early)
        pairs = [
            (job.delivery, job.successor)
            for job in jobs
            if not job.early and job.successor is not None
        ]
        self._settled(jobs, self.transport.replace(pairs))
        self._replaces = []

    def _bury(self) -> None:
        assert self.transport is not None
        jobs = self._burials
        burials = [
            (job.delivery, job.letter) for job in jobs if not job.early and job.letter is not None
        ]
        self._settled(jobs, self.transport.bury(burials))
        self._burials = []

    def _release(self) -> None:
        assert self.transport is not None
        by_delay: dict[float, list[Job]] = {}
        for job in self._releases:
            by_delay.setdefault(job.delay, []).append(job)
        for delay, jobs in by_delay.items():
            lost = self.transport.release([job.delivery for job in jobs], delay)
            self._settled(jobs, lost)
            self._releases = [job for job in self._releases if job.delivery in self._held]
        self._releases = []

    def _settled(self, jobs: list[Job], lost: list[Delivery]) -> None:
        held = self._held
        for job in jobs:
            held.pop(job.delivery, None)
        if lost:
            log.warning(
                "%d receipts had lost their lease; their tasks run again elsewhere (first: %s)",
                len(lost),
                lost[0].id,
            )

    def _renew(self, now: float) -> None:
        assert self.transport is not None
        self._next_renewal = now + self._lease / 3
        if not self._held:
            return
        for delivery in self.transport.extend(list(self._held), self._lease):
            job = self._held.pop(delivery)
            job.lost = True
            if job.request is not None:
                job.request.cancelled = True
            for pending in (self._acks, self._replaces, self._burials, self._releases):
                if job in pending:
                    pending.remove(job)
            log.warning("task %s lost its lease: another worker has it now", delivery.id)

    # ---- the clock's business

    def _watch(self, now: float) -> None:
        waiting = self.exchange.ready.qsize()
        if self.exchange.taken != self._taken or not waiting:
            self._taken, self._taken_at = self.exchange.taken, now
        elif now - self._taken_at > PATIENCE:
            self._prefetch.stuck(now - self._taken_at)
            self._hand_back_waiting()
        wall = self._clock.time()
        started = []
        for job in self._running():
            if not job.started or job.verdict or job.abandoned:
                continue
            if job.deadline and now >= job.deadline:
                self._time_out(job, now)
            elif job.soft_deadline and now >= job.soft_deadline:
                job.soft_deadline = 0.0
                self._interrupt(
                    job, SoftTimeout(f"the task's soft time limit passed after {wall - job.started:.1f} s")
                )
            if job.terminate and not job.lost:
                self._terminate_running(job, now)
            if (
                not job.marked
                and self.backend is not None
                and wall - job.started > STARTED_AFTER
                and not job.abandoned
            ):
                job.marked = True
                started.append(self._runner.started(job))
        if started and self.backend is not None:
            self.backend.store(started)

    def _hand_back_waiting(self) -> None:
        """Give back the jobs that no slot has taken yet."""
        jobs = []
        while True:
            try:
                job = self.exchange.ready.get_nowait()
            except Empty:
                break
            if job is not None and not job.lost and not job.early:
                jobs.append(job)
            elif job is not None and job.early:
                self.exchange.ready.put(job)
                break
        if jobs:
            self._releases.extend(jobs)
            self._release()

    def _interrupt(self, job: Job, error: Exception) -> None:
        for slot in self.slots:
            if slot.current is job:
                slot.interrupt(job, error)
                return
        if self.async_slots is not None and job in self.async_slots.running:
            self.async_slots.interrupt(job, error)

    def _time_out(self, job: Job, now: float) -> None:
        """End a run that is over its hard limit; give the process up if the code does not end."""
        assert job.task is not None
        error = TaskTimeout(
            f"the task ran longer than its timeout of {now - job.deadline + _limit(job):.1f} s"
        )
        self._abandon(job, error, "a task ran over its time limit")

    def _terminate_running(self, job: Job, now: float) -> None:
        if job.request is not None:
            job.request.cancelled = True
        self._interrupt(job, TaskRevoked(f"task {job.delivery.id} was revoked while it ran"))
        job.terminate = False
        job.deadline = now + ABANDON_AFTER

    def _abandon(self, job: Job, error: Exception, why: str) -> None:
        """Settle a job whose code still runs, and see that the code ends."""
        if self.async_slots is not None and job in self.async_slots.running:
            self.async_slots.interrupt(job, error)
            job.deadline = 0.0
            return
        job.abandoned = True
        settled = Job(job.delivery, job.header, job.body, job.task)
        settled.request, settled.started, settled.early = job.request, job.started, job.early
        settled.stored = False
        if self._held.get(job.delivery) is job:
            self._held[job.delivery] = settled
        if job.delivery.id in self._terminate:
            self._runner.revoked(settled)
        else:
            self._runner.failed(settled, error)
        self.exchange.done.append(settled)
        self.recycle = self.recycle or why
        self.stop(self._lease)

    def _look_at_revocations(self, now: float, *, force: bool = False) -> None:
        if self.backend is None or not (force or (self._held and now >= self._next_look)):
            return
        self._next_look = now + TICK
        self._revocations, fresh = self.backend.revoked(self._revocations)
        if not fresh:
            return
        for revocation in fresh:
            self._revoked.add(revocation.id)
            if revocation.terminate:
                self._terminate.add(revocation.id)
        for job in self._running():
            if job.delivery.id in self._terminate and not job.verdict:
                job.terminate = True
        kept = []
        while True:
            try:
                waiting = self.exchange.ready.get_nowait()
            except Empty:
                break
            if waiting is not None and waiting.delivery.id in self._revoked and not waiting.early:
                self._runner.revoked(waiting)
                self._acks.append(waiting)
            else:
                kept.append(waiting)
        for waiting in kept:
            self.exchange.ready.put(waiting)

    # ---- the end

    def _ended(self, now: float) -> bool:
        """Whether the process may end: nothing runs and nothing is held, or grace is over."""
        self._hand_back_waiting()
        if self._suspects:
            self._releases.extend(self._suspects)
            self._suspects.clear()
        running = [job for job in self._running() if not job.verdict and not job.abandoned]
        if running and now < self._stop_by:
            return False
        if running:
            log.warning("%d running tasks are handed back: their grace is over", len(running))
            for job in running:
                job.abandoned = True
                job.verdict = RELEASE
                if job.delivery in self._held:
                    self._releases.append(job)
        self._collect()
        self._flush()
        return not self._held and not self.exchange.done

    # ---- trouble

    def _troubled(self, error: TransportError) -> None:
        """The broker or backend failed: say so once, and wait longer each time."""
        now = self._clock.monotonic()
        self._retry_at = now + self._backoff * random.uniform(0.5, 1.0)
        self._backoff = min(self._backoff * 2, BACKOFF_MAX)
        if str(error) != self._trouble:
            self._trouble = str(error)
            log.error("%s; trying again until it works", error)

    def _calm(self) -> None:
        if self._trouble:
            self._trouble = ""
            self._backoff = BACKOFF_FIRST
            self._retry_at = 0.0
            log.info("the broker answers again")


def _limit(job: Job) -> float:
    assert job.header is not None
    assert job.task is not None
    timeout = job.header.timeout if job.header.timeout is not None else job.task.timeout
    return timeout or 0.0
