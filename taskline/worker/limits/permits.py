"""What a process knows of its limits, and the lines of jobs that wait for them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from taskline.backends.permits import Taken
from taskline.limiting import Bucket, Semaphore
from taskline.worker.execute import Job

KEEP = 1.0
"""Seconds until its turn for which a job may wait in the process."""
MOST_OF_ONE = 200
"""Jobs of one line that wait in the process at most."""
AT_MOST_RATE, AT_MOST_PLACES = 300.0, 60.0
"""Seconds for which a job goes back to the broker at most. It bounds how late a change of the
limit is noticed, and what a wrong guess of how long the others run can cost."""
FORSAKEN = 5.0
"""Seconds after which jobs leave that see others served, in other processes."""
CHUNK = 0.02
"""Seconds' worth of tokens that are taken at a time: more calls for less delay."""
PACE_MOST = 0.03
"""Seconds between two looks at a bucket that others empty, at most."""
UNKNOWN = 0.05
"""Seconds that a job is thought to run as long as none has ended: rather too few, since what
comes back too early is handed back once more, and what comes too late leaves places empty."""
AHEAD = 1.5
"""How many times as fast as jobs end others come back to take their places."""
LOOK_FIRST, LOOK_MOST = 0.05, 0.5
"""Seconds between two looks at places that others hold."""


class Tokens:
    """What is known of a bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self.name = bucket.name
        self.rate = bucket.rate.per_second
        self.seconds = bucket.rate.seconds
        self.burst = bucket.rate.burst
        self.ask = bucket.ask
        self.ready_at = 0.0
        """When there may be a token, by the monotonic clock."""
        self.left = 0.0
        """How many tokens there were when it was asked last."""
        self._pace = 1.0

    @property
    def chunk(self) -> float:
        """How many tokens are worth a call."""
        return max(1.0, min(self.rate * CHUNK, self.burst / 2))

    def learn(self, now: float, wanted: int, taken: Taken) -> None:
        """Note what the store has answered, and so when to ask again.

        Processes that find nothing ask less often, until each finds about a chunk.
        """
        self.left = taken.left
        if taken.number == wanted and taken.left >= 1:
            self._pace = 1.0
            self.ready_at = now
            return
        chunk = self.chunk
        if taken.number == 0:
            self._pace = min(self._pace * 1.5, 16.0)
        elif taken.number >= min(wanted, chunk):
            self._pace = max(self._pace / 1.5, 1.0)
        wait = max(chunk - taken.left, 0.0) / self.rate + 0.001
        self.ready_at = now + max(wait, min(wait * self._pace, PACE_MOST))


class Places:
    """What is known of a semaphore, and who of this process holds places of it."""

    def __init__(self, semaphore: Semaphore) -> None:
        self.name = semaphore.name
        self.limit = semaphore.limit
        self.held: set[Job] = set()
        self.ready_at = 0.0
        self._pause = LOOK_FIRST

    def learn(self, now: float, wanted: int, got: int) -> None:
        """Note how many places there were, and so when to ask again."""
        if got == wanted:
            self._pause = LOOK_FIRST
            self.ready_at = now
            return
        self.ready_at = now + self._pause * random.uniform(0.75, 1.25)
        self._pause = LOOK_FIRST if got else min(2 * self._pause, LOOK_MOST)


class Line:
    """The jobs here that wait for the same limits, first come, first served."""

    def __init__(
        self,
        which: tuple[str, str, str],
        is_async: bool,
        tokens: list[Tokens],
        places: list[Places],
    ) -> None:
        self.which = which
        """Their task, queue and key."""
        self.is_async = is_async
        self.tokens = tokens
        self.places = places
        self.limits: list[Tokens | Places] = [*tokens, *places]
        self.jobs: list[Job] = []
        self.kept = 0
        """So many of them, from the first, were found worth waiting here."""
        self.moved_at = 0.0
        """When one was served last, or the first came."""
        self.lacks_since = 0.0
        """Since when there was no slot for one that might have begun; 0 where there was."""
        self.full_until = 0.0
        """Until then there are turns that were promised to others."""
        self.mean = UNKNOWN
        """Seconds that one runs on the average."""

    @property
    def ready_at(self) -> float:
        """When there may be a token and a place for one, by the monotonic clock."""
        return max((each.ready_at for each in self.limits), default=0.0)

    @property
    def at_once(self) -> int:
        """For how many of them to ask at once."""
        most = (max(math.ceil(each.chunk), int(each.left)) for each in self.tokens)
        return min(most, default=MOST_OF_ONE)

    @property
    def per_second(self) -> float:
        """How many of them begin in a second, as far as can be told."""
        rates = [each.rate for each in self.tokens]
        rates += [min(AHEAD * each.limit / self.mean, 1000.0) for each in self.places]
        return min(rates)

    @property
    def at_most(self) -> float:
        """Seconds for which its jobs go back to the broker at most."""
        return AT_MOST_PLACES if self.places else AT_MOST_RATE

    def keeps(self) -> int:
        """How many may wait here: those for which there will be tokens and places soon."""
        soon = [each.left + each.rate * KEEP for each in self.tokens]
        soon += [max(self.per_second * KEEP, each.limit) for each in self.places]
        return min(MOST_OF_ONE, max(math.ceil(min(soon)), 1))

    def turn(self, number: int) -> float:
        """Seconds until there is a token for the job with this number after those kept here."""
        number += self.kept
        return max(((number - each.left) / each.rate for each in self.tokens), default=0.0)

    def drop(self, unwanted: Callable[[Job], bool]) -> None:
        """Take those out that are `unwanted`."""
        kept = [job for job in self.jobs[: self.kept] if not unwanted(job)]
        rest = [job for job in self.jobs[self.kept :] if not unwanted(job)]
        self.jobs, self.kept = kept + rest, len(kept)

    def take_all(self) -> list[Job]:
        """Take all of them out."""
        jobs, self.jobs, self.kept = self.jobs, [], 0
        return jobs

    def forsaken(self, now: float) -> bool:
        """Whether others are served for so long that these should come to them."""
        alone = not any(each.held for each in self.places)
        return alone and now - self.moved_at > FORSAKEN + 1 / self.per_second
