"""Jobs that would wait long for their limits go back to the broker until about their turn.

Owned by the I/O thread.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection

from taskline.app import Taskline
from taskline.backends.keys import KeyStore
from taskline.backends.permits import Ask
from taskline.worker.execute import Job
from taskline.worker.gather import Gather
from taskline.worker.limits.permits import Line
from taskline.worker.settle import Settlements
from taskline.worker.verdicts import RELEASE

LEAD = 0.5
"""Seconds before its turn at which a job comes back from the broker."""
STEP = 0.25
"""Seconds to which times in the broker are rounded: those of one time go back together."""
MOST = 1000
"""Jobs that wait here at most, of all limits together."""
EAGER = 512
"""Messages that are asked for at most while they are only passed on."""


class Parking:
    """Of one process."""

    def __init__(
        self, app: Taskline, keys: KeyStore, settlements: Settlements, gather: Gather | None
    ) -> None:
        self._app = app
        self._keys = keys
        self._settlements = settlements
        self._gather = gather
        self.until = 0.0
        """When the last job comes back that this process gave back, by the monotonic clock."""
        self.eager = 0
        """How many messages to ask for while those that come are only passed on; 0 as usual."""

    def park(self, lines: Collection[Line], now: float) -> None:
        """Give those of these lines back to the broker that would wait here for long."""
        came = parked = 0
        here = sum(len(line.jobs) for line in lines)
        for line in lines:
            if line.ready_at <= now:
                continue
            leave = line.forsaken(now) or here > MOST
            if leave:
                line.kept = 0
                line.moved_at = now
            fresh = line.jobs[line.kept :]
            if not fresh:
                continue
            came += len(fresh)
            room = 0 if now < line.full_until else line.keeps() - line.kept
            # What was here before has waited for its turn; what is new comes after it.
            room_again = 2 * line.keeps() - line.kept
            stay: list[Job] = []
            go: list[Job] = []
            for job in fresh:
                fits = len(stay) < (room_again if job.delivery.deliveries > 1 else room)
                (stay if fits and not leave else go).append(job)
            if go:
                self._give_back(line, go, now)
            line.jobs[line.kept :] = stay
            line.kept += len(stay)
            parked += len(go)
            here -= len(go)
        if parked > came / 2:
            self.eager = min(EAGER, 2 * parked)

    def _give_back(self, line: Line, jobs: list[Job], now: float) -> None:
        """Promise each of these a turn, and give it back until shortly before that."""
        rate, number = line.per_second, len(jobs)
        soonest = line.ready_at - now
        # Where the slowest rate still has a burst to give, so many turns come at once.
        burst = 1 + max((each.left for each in line.tokens if each.rate == rate), default=0.0)
        name = f"{self._app.name}:line:{':'.join(line.which)}"
        ask = Ask(name, rate, burst, number, line.at_most)
        (taken,) = self._keys.take([ask])
        first = line.kept + 1 - (taken.left + taken.number)
        delays = [max(soonest, (first + n) / rate, line.turn(n + 1)) for n in range(taken.number)]
        if delays:
            line.full_until = now + delays[-1]
        delays += [line.at_most * random.uniform(0.5, 1.0) for _ in range(number - len(delays))]
        for job, delay in zip(jobs, delays, strict=True):
            later = STEP * max(math.ceil((min(delay, line.at_most) - LEAD) / STEP), 2)
            self.until = max(self.until, now + later)
            self.hand_back([job], later)

    def hand_back(self, jobs: list[Job], delay: float) -> None:
        """Give jobs back to the broker, batches as their members."""
        for job in jobs:
            if job.members:
                if self._gather is not None:
                    self._gather.ended(job)
                job.verdict = RELEASE
                self._settlements.give_back([m for m in job.members if not m.lost], delay)
            elif not job.lost:
                self._settlements.give_back([job], delay)
