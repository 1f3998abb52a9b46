"""One process of a supervisor, as that knows it. Owned by the supervisor."""

from __future__ import annotations

import contextlib
import math
import os
import signal

from taskline.worker.ledger import Ledger, Running

HARD_LIMIT_MARGIN = 0.5
"""Seconds that a process has to enforce a time limit itself before it is killed for it."""
DEAF_AFTER = 0.2
"""As many where its I/O thread has not even looked since: the task keeps the interpreter."""
WATCHED_AT_MOST = 1.0
"""Seconds that one look adds to those without a sign: before that nobody may have looked."""
BACKOFF_FIRST, BACKOFF_MAX = 0.2, 30.0
QUICK_DEATH = 2.0
"""Seconds; a process that did not live longer died young."""
QUICK_DEATHS_FREE = 5
"""Young deaths in a row, of processes that had reached their broker, before replacement waits."""
READY_BACKOFF_MAX = 0.5
"""The longest such wait: what kills them is a message or a person, and the others' tasks go on."""


class Child:
    """A process and, when that has ended, those that take its place."""

    def __init__(self, number: int, slots: int) -> None:
        self.number = number
        self.ledger = Ledger(slots)
        self.pid = 0
        """0 while there is none."""
        self.control = -1
        """The pipe through which it is told to stop."""
        self.consumer = ""
        self.place = ""
        """The name at the broker of the first of those who are in one another's place there."""
        self.owed: list[str] = []
        """What those before it ran, of which the broker may not know."""
        self.died_at = math.inf
        """When it died, as long as nobody is in its place."""
        self.quick_deaths = 0
        self._was_ready = False
        """Whether the process before had reached its broker."""
        self.started_at = 0.0
        self.start_at = 0.0
        """When the next one is to be started."""
        self._last_beat = 0.0
        self._looked_at = 0.0
        self.silent = 0.0
        """Seconds for which it was watched, and gave no sign after the last one."""
        self.succeeded = False
        """It takes no more, and another has its number, or none shall."""
        self.stop_at = math.inf
        """When it is told to hand back what it still runs."""
        self.kill_at = math.inf

    def died(self, now: float) -> None:
        """Note what it ran: who comes next is to know it, beside what it did not come to tell."""
        begun = [running.id for running in self.ledger.running()]
        self.owed = begun if self.ledger.ready else [*self.owed, *begun]
        self.died_at = now

    @property
    def owes(self) -> bool:
        """Whether something that began in its place may be unsettled, of its own or of others."""
        return bool(self.owed) or (self.place != self.consumer and not self.ledger.ready)

    def leave(self) -> tuple[str, list[str]]:
        """Have no place any more; returns the one that it had, and what was begun there."""
        place, owed = self.place, self.owed
        self.place, self.owed, self.died_at = "", [], math.inf
        return place, owed

    @property
    def works(self) -> bool:
        """Whether it lives and has reached its broker."""
        return bool(self.pid) and self.ledger.ready

    def begin(self, now: float) -> int:
        """Get ready for a process that starts now; returns the end of `control` that it reads."""
        self.ledger.reset()
        self._last_beat = self.silent = 0.0
        self.started_at = now
        read_end, self.control = os.pipe()
        return read_end

    def ended(self) -> None:
        """There is no process any more, or none was made."""
        os.close(self.control)
        self.pid, self.control = 0, -1

    def tell(self, order: bytes) -> None:
        """Give it one of `taskline.worker.orders`, if it has not ended meanwhile."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self.control, order)

    def kill(self) -> None:
        """End it at once."""
        # Where it is not our own child it may be gone and waited for, and we not yet told.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def is_hung(self, now: float, after: float) -> bool:
        """Whether its I/O thread has given no sign for `after` seconds, while we were looking.

        A machine that sleeps, or a group of processes that is paused, is not hung.
        """
        beat = self.ledger.beaten
        watched, self._looked_at = now - self._looked_at, now
        if beat != self._last_beat or not self.ledger.ready:
            self._last_beat, self.silent = beat, 0.0
            return False
        self.silent += min(watched, WATCHED_AT_MOST)
        return self.silent > after

    def limits(self) -> list[tuple[float, Running]]:
        """What it runs under a time limit, each with when it is to be killed for that."""
        beaten = self.ledger.beaten
        return [
            (
                each.deadline + (DEAF_AFTER if beaten < each.deadline else HARD_LIMIT_MARGIN),
                each,
            )
            for each in self.ledger.running()
            if each.deadline
        ]

    def backoff(self, now: float, *, recycled: bool) -> float:
        """For how long the successor of a process that has just ended is to wait.

        At first not at all, then longer each time if they die young. Those that did not even
        reach their broker are counted, and wait, by themselves.
        """
        ready = self.ledger.ready
        # However long it took to come to nothing: a slow machine must not begin anew at once.
        young = not recycled and (not ready or now - self.started_at <= QUICK_DEATH)
        if not young or ready != self._was_ready:
            self.quick_deaths = 0
        self._was_ready = ready
        self.quick_deaths += young
        free, longest = (QUICK_DEATHS_FREE, READY_BACKOFF_MAX) if ready else (0, BACKOFF_MAX)
        if self.quick_deaths <= free:
            return 0.0
        return min(BACKOFF_FIRST * 2.0 ** (self.quick_deaths - free - 1), longest)
