"""The scheduler: sends the messages of schedules when their slots come.

Every worker has one, and one of them leads: it holds a lock, under a lease by the
store's clock. The others look when that lease would end. The lock saves work; it is
not what keeps a slot from being sent twice. A message is sent first and noted then,
so a leader that dies in between is repeated by the next; but the slot determines the
message's id. While the first is stored, a second of that id changes nothing, and
later the outcome is there by which a worker knows it (`worker.admit`).
"""

from __future__ import annotations

import logging
import math
import secrets
import threading
from typing import TYPE_CHECKING

from taskline import claims
from taskline.batch import CHUNK
from taskline.chunking import chunks
from taskline.errors import TasklineError, TransportError
from taskline.message import Message
from taskline.schedule.entry import LATE, Schedule
from taskline.schedule.schedules import continues, declared
from taskline.schedule.store import Book, Hold, Progress, ScheduleStore

if TYPE_CHECKING:
    from taskline.app import Taskline

log = logging.getLogger("taskline.schedule")

LEASE = 10.0
"""Seconds after which another takes the lead of one that is silent."""
TICK = 3.0
"""Seconds between two looks at the book; the lease is renewed as often."""
IDLE_TICK = 5.0
"""The same while there are no schedules at all."""
MARGIN = 4.0
"""Seconds that a lease must have left when messages are sent."""
PRUNE = 7 * 86_400.0
"""Seconds after which the progress of a schedule that is gone is forgotten."""
KEEP_FINISHED = 86_400.0
"""Seconds for which a stored schedule that has ended is still listed."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 5.0
"""Seconds between tries while the broker or the backend is out of reach."""


class Scheduler:
    """One per worker. `start` and `stop` run it in a thread; a test calls `step`.

    Raises `ConfigurationError` when the app's backend keeps no keys.
    """

    def __init__(self, app: Taskline) -> None:
        self._app = app
        self._clock = app.clock
        self._store = ScheduleStore(app)
        self._store.check()
        self._token = secrets.token_hex(8)
        self._leads_until = 0.0
        """By the monotonic clock; 0 while another leads."""
        self._next_look = 0.0
        self._book = Book()
        self._progress: dict[str, Progress] = {}
        self._unsaved = False
        self._next: dict[str, tuple[Schedule, Hold, float]] = {}
        """The next slot of each schedule, as long as schedule and hold are these."""
        self._complained: dict[str, str] = {}
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def leads(self) -> bool:
        """Whether this is the one that sends."""
        return self._clock.monotonic() < self._leads_until

    def start(self) -> None:
        """Run in a thread of its own until `stop`, which may come first: then it ends at once."""
        thread = threading.Thread(target=self.run, name="taskline-schedule", daemon=True)
        thread.start()
        self._thread = thread  # now, as `stop` in another thread can join only what was started

    def stop(self, timeout: float = 5.0) -> None:
        """End, and give up the lead; waits at most `timeout` seconds."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def run(self) -> None:
        """The thread's body."""
        pause, complained = 0.0, False
        while not self._stopping.is_set():
            try:
                wait = self.step()
                if complained:
                    log.info("schedules are sent again")
                pause, complained = 0.0, False
            except TasklineError as error:
                if not complained and (self._app.periodics or self._book.schedules):
                    log.error("schedules cannot be sent: %s; trying until it works", error)
                    complained = True
                wait = pause = min(2 * pause or FIRST_PAUSE, LONGEST_PAUSE)
            except Exception:
                log.critical("the scheduler failed; trying again", exc_info=True)
                wait = pause = LONGEST_PAUSE
            self._stopping.wait(self._clock.bound(wait))
        self.close()

    def close(self) -> None:
        """Give up the lead."""
        if self._leads_until:
            self._leads_until = 0.0
            try:
                self._store.keys().release(self._store.lead, self._token)
            except TransportError as error:
                log.debug("the lead ends with its lease: %s", error)

    def step(self) -> float:
        """Do what is due; returns the seconds until something is again."""
        monotonic = self._clock.monotonic()
        if not self.leads or monotonic >= self._next_look:
            self._book = self._store.book()
            if not self._app.periodics and not self._book.schedules:
                self.close()
                return IDLE_TICK
            wait = self._lead(monotonic)
            if wait:
                return wait
            self._next_look = monotonic + TICK
            self._forget_finished()
        soonest = self._refresh()
        if soonest <= self._clock.time() and self._may_send(monotonic):
            if self._unsaved:
                self._save()  # since when they are known, which another must not see otherwise
            self._send_due()
            soonest = self._refresh()
        if self._unsaved:
            self._save()
        until_look = self._next_look - self._clock.monotonic()
        return max(0.0, min(soonest - self._clock.time(), until_look))

    def _lead(self, monotonic: float) -> float:
        """Take the lead or keep it: 0.0; otherwise the seconds until it may be free."""
        keys, lead = self._store.keys(), self._store.lead
        if self.leads and keys.renew(lead, self._token, LEASE):
            self._leads_until = monotonic + LEASE
            return 0.0
        self._leads_until = 0.0
        lease = keys.acquire(lead, self._token, LEASE)
        if lease.token != self._token:
            return max(0.1, min(lease.left, LEASE))
        self._progress = self._store.progress()
        self._unsaved = False
        self._next = {}
        self._leads_until = monotonic + LEASE
        log.info("this worker sends the schedules")
        return 0.0

    def _may_send(self, monotonic: float) -> bool:
        """Look again whether this one leads, and what is paused or removed."""
        if monotonic > self._leads_until - MARGIN and self._lead(monotonic):
            return False
        self._book = self._store.book()
        self._refresh()
        return True

    def _send_due(self) -> None:
        now = self._clock.time()
        messages: list[Message] = []
        done: dict[str, Progress] = {}
        for name, (each, hold, slot) in self._next.items():
            if slot <= now:
                fresh, done[name] = self._collect(each, hold, now)
                messages += fresh
        for chunk in chunks(messages, CHUNK):
            claims.send(self._app, chunk)
        self._progress.update(done)
        self._unsaved = True
        for name in done:
            del self._next[name]

    def _collect(self, each: Schedule, hold: Hold, now: float) -> tuple[list[Message], Progress]:
        """The messages of one schedule that are due, and how far it is with them."""
        before = self._progress[each.name]
        slots = each.times.due(max(before.last, hold.until), now, before.since, LATE, each.catch_up)
        if each.repeats is not None:
            slots = slots[: each.repeats - before.sent]
        progress = Progress(before.since, now, before.sent, before.slot, before.id)
        messages = []
        for slot in slots:
            try:
                message = each.message(self._app, slot, before.since)
            except TasklineError as error:
                self._complain(each, f"cannot be sent: {error}")
                continue
            messages.append(message)
            progress.sent, progress.slot, progress.id = progress.sent + 1, slot, message.header.id
        return messages, progress

    def _refresh(self) -> float:
        """Know the next slot of every schedule that has one; returns the first of them."""
        now = self._clock.time()
        found: dict[str, tuple[Schedule, Hold, float]] = {}
        for name, each in {**self._book.schedules, **declared(self._app)}.items():
            hold = self._book.holds.get(name, Hold())
            known = self._next.get(name)
            if known is not None and known[0] == each and known[1] == hold:
                found[name] = known
                continue
            progress = self._progress.get(name)
            if progress is None or not continues(each, progress):
                since = now if each.added is None else each.added
                progress = self._progress[name] = Progress(since, since)
                self._unsaved = True
            if progress.last > now + LATE:
                ahead = progress.last - now
                self._complain(each, f"has sent until {ahead:.0f} s from now: waits until then")
            if hold.paused or (each.repeats is not None and progress.sent >= each.repeats):
                continue
            slot = each.times.after(max(progress.last, hold.until), progress.since)
            if slot is not None:
                found[name] = (each, hold, slot)
        self._next = found
        return min((slot for _, _, slot in found.values()), default=math.inf)

    def _save(self) -> None:
        before = self._clock.time() - PRUNE
        everything = {*self._book.schedules, *self._app.periodics}
        self._progress = {
            name: each
            for name, each in self._progress.items()
            if name in everything or each.last > before
        }
        self._store.write_progress(self._progress)
        self._unsaved = False

    def _forget_finished(self) -> None:
        """Remove stored schedules that ended long ago."""
        before = self._clock.time() - KEEP_FINISHED

        def ended(each: Schedule) -> bool:
            progress = self._progress.get(each.name)
            if progress is None or not continues(each, progress) or progress.last > before:
                return False
            if each.repeats is not None and progress.sent >= each.repeats:
                return True
            return each.times.after(progress.last, progress.since) is None

        if any(map(ended, self._book.schedules.values())):
            with self._store.change() as book:
                for name, each in list(book.schedules.items()):
                    if ended(each):
                        del book.schedules[name]
                        book.holds.pop(name, None)
            self._book = book

    def _complain(self, each: Schedule, what: str) -> None:
        """Log it once for each schedule, not with every slot."""
        if self._complained.get(each.name) != what[:20]:
            self._complained[each.name] = what[:20]
            log.error("schedule %s %s", each.name, what)
