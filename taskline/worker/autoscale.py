"""How many processes a worker needs, between two bounds: `--processes 2..8`.

More at once when messages wait although the slots are busy, fewer slowly when they are idle.
The first process looks at the broker once a second and tells the supervisor, which has
no connection; what the slots run the supervisor sees itself.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Collection, Sequence
from typing import NamedTuple

from taskline.errors import ConfigurationError
from taskline.transports.base import Transport
from taskline.worker.options import WorkerOptions
from taskline.worker.requests import Request, ask

LOOK_EVERY = 1.0
"""Seconds between two looks at the broker."""
SAMPLE_EVERY = 0.1, 0.3
"""Seconds between two counts of the slots in use, at least and at most."""
UP_AFTER = 2
"""So many looks in a row must find too few processes before there are more."""
BUSY = 0.8
"""The part of the slots that is in use when they count as busy."""
WAITED = 1.0
"""A message that is ready for so many seconds waits too long."""
DOWN_AFTER = 30.0
"""Seconds for which fewer processes must have been enough before there is one less."""
SPARE = 1.25
"""How many more slots than were in use on average are kept."""


class Load(NamedTuple):
    """What is known at one moment, `at` by the monotonic clock."""

    at: float
    processes: int
    slots: int
    """Of one process, for tasks of the kind that the app has."""
    busy: float
    """Slots in use, of all processes, on average since the last look."""
    ready: int
    """Messages that wait."""
    oldest: float
    """Seconds for which the oldest of them waits; 0 where none does, or it cannot be known."""


class Autoscale:
    """Decides. It remembers what was seen since the number of processes changed."""

    def __init__(self, least: int, most: int) -> None:
        self._least, self._most = least, most
        self._short = 0
        """How many looks in a row found too few."""
        self._seen: deque[Load] = deque()
        self._samples: list[int] = []
        self.next_sample = 0.0
        """When to count the slots in use, by the monotonic clock."""

    def sample(self, now: float, busy: int) -> None:
        """So many slots are in use now: at moments of chance, since a look at the broker often
        comes just as a task has ended."""
        self.next_sample = now + random.uniform(*SAMPLE_EVERY)
        self._samples.append(busy)

    def busy(self) -> float:
        """How many were in use, on average, since this was asked for the last time."""
        samples, self._samples = self._samples, []
        return sum(samples) / len(samples) if samples else 0.0

    def wanted(self, load: Load) -> int:
        """How many processes there should be now."""
        now = load.processes
        bounded = max(self._least, min(self._most, now))
        if bounded != now:
            return self._changed(bounded)
        waits = load.ready > 0 and (load.oldest >= WAITED or load.ready > load.slots * now)
        busy = load.busy >= BUSY * load.slots * now
        self._short = self._short + 1 if waits and busy else 0
        if self._short >= UP_AFTER and now < self._most:
            # So many that each could begin one for each of its slots, but at most twice as many.
            more = min(now, math.ceil(load.ready / load.slots))
            return self._changed(min(self._most, now + max(1, more)))
        self._seen.append(load)
        if waits or load.at - self._seen[0].at < DOWN_AFTER:
            if waits:
                self._seen.clear()
            return now
        average = sum(each.busy for each in self._seen) / len(self._seen)
        enough = max(self._least, math.ceil(average * SPARE / load.slots))
        while load.at - self._seen[0].at > DOWN_AFTER:
            self._seen.popleft()
        return self._changed(now - 1) if enough < now else now

    def _changed(self, count: int) -> int:
        self._short = 0
        self._seen.clear()
        return count


class Gauge:
    """Tells the supervisor, through its pipe, what waits. For one I/O thread."""

    def __init__(self, queues: Sequence[str], requests: int) -> None:
        self._queues = queues
        self._requests = requests
        self._next_look = 0.0
        self._count = 0

    def look(self, now: float, transport: Transport, paused: Collection[str]) -> None:
        """Ask the broker and tell, when it is time; raises `TransportError`."""
        if now < self._next_look:
            return
        self._next_look = now + LOOK_EVERY
        self._count += 1
        found = transport.stats([name for name in self._queues if name not in paused])
        request = Request(
            id=f"load-{self._requests}-{self._count}",
            what="load",
            ready=sum(each.ready or 0 for each in found),
            oldest=max((each.oldest or 0.0 for each in found if each.ready), default=0.0),
        )
        ask(self._requests, request)


def check(options: WorkerOptions) -> None:
    """Raise `ConfigurationError` for bounds that cannot be kept."""
    most = options.max_processes
    if most is None:
        return
    if most < options.processes:
        raise ConfigurationError(
            f"max_processes={most} is less than processes={options.processes}, the least"
        )
    if options.drain:
        raise ConfigurationError(
            "drain=True ends processes when the queues are empty: give one number of them, "
            "not bounds"
        )


def gauge_for(options: WorkerOptions, queues: Sequence[str], requests: int | None) -> Gauge | None:
    """The gauge of a process; only the first of a worker that is scaled has one."""
    if options.max_processes is None or options.number or requests is None:
        return None
    return Gauge(queues, requests)
