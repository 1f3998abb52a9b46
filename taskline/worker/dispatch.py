"""Jobs between the broker and the slots: which begin, which wait here, which go back.

Owned by the I/O thread.
"""

from __future__ import annotations

from taskline.app import Taskline
from taskline.worker.admit import Admitted
from taskline.worker.exchange import Exchange
from taskline.worker.execute import Job
from taskline.worker.gather import Gather
from taskline.worker.lifetime import Lifetime
from taskline.worker.limits.limiter import Limiter
from taskline.worker.prefetch import PATIENCE, Prefetch
from taskline.worker.quarantine import Quarantine
from taskline.worker.settle import Settlements
from taskline.worker.slots import AsyncSlots, ThreadSlot
from taskline.worker.verdicts import TOO_LATE


class Dispatch:
    """Keeps the slots of one process at work, and little waiting behind them."""

    def __init__(
        self,
        app: Taskline,
        settlements: Settlements,
        exchange: Exchange,
        slots: list[ThreadSlot],
        async_slots: AsyncSlots | None,
        prefetch: Prefetch,
        gather: Gather | None,
        lifetime: Lifetime | None,
    ) -> None:
        self._app = app
        self._clock = app.clock
        self._settlements = settlements
        self._exchange = exchange
        self._slots = slots
        self._async_slots = async_slots
        self._serves_sync = {task.is_async for task in app.tasks.values()} != {True}
        self._prefetch = prefetch
        self._gather = gather
        self._lifetime = lifetime
        self._quarantine = Quarantine(settlements, exchange, slots, async_slots, app.clock)
        self.limiter: Limiter | None = None
        """Where there are limits."""
        self._taken = 0
        self._taken_at = app.clock.monotonic()
        """When slots took one of those that wait for them last, or the first came to wait."""
        self._full_until = 0.0
        """Until then no coroutine is asked for while none could run."""
        self._crowded_until = 0.0
        """Until then idle places for coroutines are no reason to ask for more."""
        self._sparse_until = 0.0
        """Until then room in batches is no reason to ask for more."""

    def room(self, now: float, waiting: int) -> int:
        """How many messages to ask for, when so many wait for a thread."""
        idle_async = self._async_slots.idle if self._async_slots is not None else 0
        limiter = self.limiter
        if limiter is not None:
            waiting += limiter.lines.ready(now, False)
            idle_async = max(0, idle_async - limiter.lines.ready(now, True))
        if not idle_async and now < self._full_until:
            return 0
        room = self._sync_room(waiting) if self._serves_sync else 0
        if waiting:
            # Refill in large steps; a coroutine's slot does not justify more `def` tasks waiting.
            room = room if room > self._prefetch.target() // 2 else 0
        elif now >= self._crowded_until:
            room = max(room, idle_async)
        if self._gather is not None and now >= self._sparse_until and (room or idle_async):
            room = max(room, self._gather.room(self._app.tasks.values()))
        if limiter is not None and room > 0:
            room = max(room, limiter.parking.eager)
        if self._lifetime is not None:
            held = len(self._settlements.held) - (0 if limiter is None else limiter.lines.waiting)
            room = self._lifetime.limit(room, held)
        return self._quarantine.limit(room)

    def _sync_room(self, waiting: int) -> int:
        """How many `def` tasks to take in while so many wait."""
        idle = sum(slot.current is None for slot in self._slots)
        ahead = 0 if self._quarantine.careful else self._prefetch.target()
        return idle + ahead - waiting

    def take(self, admitted: Admitted, now: float) -> None:
        """Give the slots those of the received jobs that may begin; keep or hand back others."""
        if self.limiter is not None:
            admitted = self.limiter.keep(admitted, now)
        plain, coroutines, _ = self._quarantine.isolate(admitted)
        give_back, waiting = self._settlements.give_back, self._exchange.ready.qsize()
        if self._gather is not None:
            before = len(plain)
            plain = self._gather.take(plain, now)
            coroutines = self._gather.take(coroutines, now)
            if self._quarantine.occupied:
                give_back(self._gather.take_back())
            fit = max(0, self._sync_room(waiting))
            if before and len(plain) > fit:  # asked for to fill a batch, and of another task
                give_back(plain[fit:])
                plain = plain[:fit]
                self._sparse_until = now + PATIENCE
        if self._async_slots is not None or self.limiter is not None:
            # A broker does not tell `def` tasks from coroutines: there may be too many of either.
            idle = self._async_slots.idle if self._async_slots is not None else 0
            if len(coroutines) > idle:
                give_back(coroutines[idle:])
                self._full_until = now + PATIENCE
            if coroutines and self._async_slots is not None:
                self._async_slots.start(coroutines[:idle])
            fit = max(0, self._sync_room(waiting))
            if len(plain) > fit:
                give_back(plain[fit:])
                plain = plain[:fit]
                self._crowded_until = now + PATIENCE
        if not waiting:
            self._taken_at = now
        put = self._exchange.ready.put
        for job in plain:
            put(job)

    def begin_batches(self, now: float) -> None:
        """Give idle slots the batches that are full or have waited long enough."""
        gather = self._gather
        if gather is None:
            return
        idle = sum(slot.current is None for slot in self._slots) - self._exchange.ready.qsize()
        idle_async = self._async_slots.idle if self._async_slots is not None else 0
        plain, coroutines = gather.begin(now, idle, idle_async)
        if self.limiter is not None:
            plain, coroutines = (self.limiter.wait(some, now) for some in (plain, coroutines))
        self._begin(plain, coroutines)
        self._settlements.give_back(gather.stuck(now))

    def begin_limited(self, now: float) -> None:
        """Give idle slots the jobs whose limits let them begin."""
        limiter = self.limiter
        if limiter is None:
            return
        if self._quarantine.occupied:
            limiter.take_back()
            return
        waiting, ahead = self._exchange.ready.qsize(), self._prefetch.target()
        threads = sum(slot.current is None for slot in self._slots) - waiting
        if threads <= 0 and ahead:
            # They wait behind others for a moment only.
            threads = min(1 + ahead // 5, 2 * ahead - waiting)
        coroutines = self._async_slots.idle if self._async_slots is not None else 0
        plain, others = limiter.begin(now, max(threads, 0), coroutines)
        self._begin(plain, others)
        limiter.tidy(now)
        if self._settlements.has_releases:
            self._settlements.flush()

    def begin_suspect(self) -> None:
        """Let a suspect begin, when all that was handed back for it has been released."""
        self._quarantine.place()

    def _begin(self, plain: list[Job], coroutines: list[Job]) -> None:
        for job in plain:
            self._exchange.ready.put(job)
        if coroutines and self._async_slots is not None:
            self._async_slots.start(coroutines)

    def next_due(self, now: float, until: float) -> float:
        """When to look again, by the monotonic clock, at `until` at the latest."""
        if self._async_slots is not None and self._async_slots.waiting:
            until = min(until, self._async_slots.moved_at + PATIENCE)
        if self._gather is not None and (due := self._gather.next_due()) > now:
            until = min(until, due)
        if self.limiter is not None:
            due = now if self.limiter.more else self.limiter.due
            if due > now or self.limiter.more:
                until = min(until, due)
        return until

    def take_back(self) -> None:
        """Hand back all that has not begun."""
        self._quarantine.hand_back()
        self._settlements.give_back(self._exchange.take_back())
        if self._gather is not None:
            self._settlements.give_back(self._gather.take_back())
        if self.limiter is not None:
            self.limiter.take_back()

    def hand_back_stuck(self, now: float) -> None:
        """Hand back what waits behind long tasks, so that idle slots elsewhere can have it."""
        if self._exchange.taken != self._taken or not self._exchange.ready.qsize():
            self._taken, self._taken_at = self._exchange.taken, now
        elif now - self._taken_at > PATIENCE:
            self._prefetch.stuck(now - self._taken_at)
            self._settlements.give_back(self._exchange.take_back())
            self._settlements.flush()
        if self.limiter is not None and self.limiter.stuck(now):
            self._prefetch.stuck(PATIENCE)
            self._settlements.flush()
        slots = self._async_slots
        if slots is not None and slots.waiting and now - slots.moved_at > PATIENCE:
            self._settlements.give_back(slots.take_back())
            self._settlements.flush()

    def collect(self) -> None:
        """Take over what the slots have finished."""
        done, gather, limiter = self._exchange.done, self._gather, self.limiter
        durations: list[float] = []
        while done:
            job = done.popleft()
            if job.verdict == TOO_LATE and limiter is not None:
                limiter.late(job)
                continue
            if gather is not None and job.members:
                self._collect_batch(job, gather, durations)
                continue
            if limiter is not None:
                limiter.ended(job)
            if job.started:
                durations.append(job.finished - job.started)
            if not job.abandoned:
                self._settlements.add(job)
        if self._lifetime is not None:
            self._lifetime.tasks += len(durations)
        self._prefetch.observe(durations)

    def _collect_batch(self, batch: Job, gather: Gather, durations: list[float]) -> None:
        """Take over the members of a batch; each took its share of the time."""
        gather.ended(batch)
        if self.limiter is not None:
            self.limiter.ended(batch)
        share = (self._clock.time() - batch.started) / len(batch.members)
        durations += [max(share, 0.0)] * len(batch.members)
        if not batch.abandoned:
            for member in batch.members:
                if member.verdict:
                    self._settlements.add(member)
