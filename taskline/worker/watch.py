"""What needs a clock while tasks run: time limits, revocations, and showing that they run.

Owned by the I/O thread.
"""

from __future__ import annotations

from collections.abc import Iterable

from taskline.backends.base import Backend
from taskline.clock import Clock
from taskline.errors import SoftTimeout, TaskRevoked, TaskTimeout
from taskline.worker.exchange import Exchange
from taskline.worker.execute import Job
from taskline.worker.gather import expanded
from taskline.worker.ledger import Ledger
from taskline.worker.revoked import Revoked
from taskline.worker.settle import Settlements
from taskline.worker.slots import AsyncSlots, ThreadSlot
from taskline.worker.verdicts import Verdicts

LOOK_EVERY = 0.5
"""Seconds between two looks for revocations while tasks run, so that one is stopped within one."""
STARTED_AFTER = 0.5
"""A run is shown as STARTED once it has lasted this many seconds."""
REPORT_EVERY = 0.5
"""Seconds between two times that progress is stored, at least."""
TIMED_OUT_HAS, REVOKED_HAS = 0.3, 0.3
"""Seconds that interrupted code has to end before its process is given up."""


class Watch:
    """Looks at the running jobs when it is called."""

    def __init__(
        self,
        verdicts: Verdicts,
        settlements: Settlements,
        backend: Backend | None,
        exchange: Exchange,
        slots: list[ThreadSlot],
        async_slots: AsyncSlots | None,
        ledger: Ledger | None,
        clock: Clock,
    ) -> None:
        self._verdicts = verdicts
        self._settlements = settlements
        self._backend = backend
        self._exchange = exchange
        self._slots = slots
        self._async_slots = async_slots
        self._ledger = ledger
        self._clock = clock
        self._cursor = 0
        self._next_look = 0.0
        self._next_report = 0.0
        self.revoked = Revoked()
        self.recycle = ""
        """Why the process must be replaced: given-up code still runs in it."""

    def running(self) -> list[Job]:
        """The jobs that have begun and have no verdict yet."""
        jobs = [job for slot in self._slots if (job := slot.current) is not None]
        if self._async_slots is not None:
            jobs.extend(list(self._async_slots.running))
        return [job for job in jobs if not job.verdict and not job.abandoned]

    def enforce(self, running: Iterable[Job], now: float) -> None:
        """Interrupt what is over its time limit or revoked; `now` is the monotonic clock's."""
        for job in running:
            if not job.started:
                continue
            if job.deadline and now >= job.deadline:
                self._time_out(job, now)
            elif job.soft_deadline and now >= job.soft_deadline:
                limit = self._clock.time() - job.started
                self._interrupt(job, SoftTimeout(f"the soft time limit passed after {limit:.1f} s"))
                job.soft_deadline = 0.0  # after that: a coroutine that begins looks at both
            elif job.terminate and not job.lost:
                self._stop_revoked(job, now)

    def show(self, running: Iterable[Job], now: float) -> None:
        """Store that these jobs run, once each has run for a while, and how far they say they are.

        `now` is the monotonic clock's.
        """
        if self._backend is None:
            return
        before = self._clock.time() - STARTED_AFTER
        again = now >= self._next_report
        fresh = [
            job
            for job in expanded(running)
            if not job.lost
            and job.started
            and ((not job.marked and job.started < before) or (again and _has_news(job)))
        ]
        if fresh:
            self._next_report = now + REPORT_EVERY
            shown = map(self._verdicts.showing, fresh)
            self._backend.store([outcome for outcome in shown if outcome is not None])
            for job in fresh:
                job.marked = True

    def next_due(self, running: Iterable[Job], until: float) -> float:
        """The moment, not after `until`, at which `enforce` has something to do."""
        for job in running:
            for moment in (job.deadline, job.soft_deadline):
                if moment:
                    until = min(until, moment)
        return until

    def look_at_revocations(self, now: float) -> None:
        """Learn of new revocations, if it is time: the thread turns each `LOOK_EVERY` seconds."""
        if now >= self._next_look:
            self._next_look = now + 0.9 * LOOK_EVERY
            self._look()

    def look_before_start(self, newest: int | None) -> None:
        """Learn of all revocations up to the cursor `newest`; up to now where it is not known."""
        if newest is None or newest > self._cursor:
            self._look()

    def _look(self) -> None:
        if self._backend is None:
            return
        self._cursor, fresh = self._backend.revoked(self._cursor)
        if not fresh:
            return
        self.revoked.learn(fresh)
        terminate = Revoked(revocation for revocation in fresh if revocation.terminate)
        if terminate:
            for job in self.running():
                if terminate.concerns_all(job):
                    job.terminate = True
                    if job.started and not job.lost:
                        self._stop_revoked(job, self._clock.monotonic())
        for job in self._settlements.held.values():
            if job.header is None or job.started:
                continue
            if self.revoked.concerns(job.header):
                job.revoked = True

    def _interrupt(self, job: Job, error: Exception) -> None:
        job.interrupted = error
        for slot in self._slots:
            if slot.current is job:
                slot.interrupt(job, error)
                return
        if self._async_slots is not None:
            self._async_slots.interrupt(job)

    def _stop_revoked(self, job: Job, now: float) -> None:
        job.terminate = False
        if job.request is not None:
            job.request.cancelled = True
        job.deadline = now + REVOKED_HAS
        self._interrupt(job, TaskRevoked(f"task {job.delivery.id} was revoked while it ran"))

    def _time_out(self, job: Job, now: float) -> None:
        """At the hard limit, interrupt; when that does not help, settle without the code's end."""
        if not isinstance(job.interrupted, (TaskTimeout, TaskRevoked)):
            job.deadline = now + TIMED_OUT_HAS
            self._interrupt(
                job, TaskTimeout(f"the task ran longer than its timeout of {job.limit or 0:g} s")
            )
            return
        if job.verdict:  # it ended just now
            return
        twin = job.abandon()
        held = self._settlements.held
        for each in expanded([twin]):
            if each.delivery in held:
                held[each.delivery] = each
        self._verdicts.failed(twin, job.interrupted)
        self._exchange.done.append(twin)
        self._pardon(job)
        self.recycle = f"task {job.delivery.id} did not end when it was told to"

    def _pardon(self, job: Job) -> None:
        """Keep the supervisor from killing the process, and this job's neighbours, for it."""
        if self._ledger is not None:
            places = [slot.index for slot in self._slots if slot.current is job]
            if self._async_slots is not None and job in self._async_slots.places:
                places.append(self._async_slots.places[job])
            for place in places:
                self._ledger.pardon(place)


def _has_news(job: Job) -> bool:
    return job.request is not None and job.request.reported is not job.reported
