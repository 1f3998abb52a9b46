"""The tokens that jobs of a process were given, and have not begun with. Owned by the I/O thread.

A token is for now: jobs of a process that is stopped for a moment, by a busy machine for
instance, would else begin in another second than their tokens count for. So a job says by
when it begins, and a slot that comes to it later sends it back, to wait for another token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from taskline.backends.keys import KeyStore
from taskline.backends.permits import Ask, Taken
from taskline.worker.execute import Job
from taskline.worker.limits.permits import Line, Tokens
from taskline.worker.verdicts import RELEASE, TOO_LATE

LATE = 0.015
"""Within which part of the time of its rate a job begins with its token: less than the 2 % that
the store reckons with, since a slot is not the task's first line."""
PATIENT = 2.0
"""How many times as late they may be where many are: few more begin in a span than should, and what
hardly gets any time of its processors does not spend it on coming back."""
FORGET = 1.05
"""How much longer each call may take than the shortest so far: way and store do change."""


class Grants:
    """Takes tokens for jobs, and gives those back that were not used."""

    def __init__(self, keys: KeyStore, now: Callable[[], float]) -> None:
        self._keys = keys
        self._now = now
        self._held: dict[Job, tuple[Line, list[float]]] = {}
        """Jobs that may begin, and when each of their tokens was taken, by the store's clock."""
        self._unused: list[tuple[Tokens, int, float]] = []
        """Tokens that go back with the next call, how many, and when they were taken."""
        self._taken_at: dict[Tokens, float] = {}
        """When tokens were taken last, by the store's clock."""
        self._asked_at = 0.0
        self._trip = math.inf
        """Seconds that a call takes when nothing is in its way."""
        self._patience = 1.0

    def take(self, asked: Sequence[tuple[Tokens, int]]) -> list[Taken]:
        """Take so many tokens of each of these."""
        self._asked_at = self._now()
        asks = self._returned()
        back = len(asks)
        asks += [tokens.ask(number) for tokens, number in asked]
        answers = self._keys.take(asks)[back:]
        self._unused = []
        self._trip = min(self._now() - self._asked_at, FORGET * self._trip)
        pairs = zip(asked, answers, strict=True)
        self._taken_at = {tokens: taken.at for (tokens, _), taken in pairs}
        return answers

    def unused(self, tokens: Tokens, number: int) -> None:
        """So many of those that were taken last go back."""
        self._unused.append((tokens, number, self._taken_at[tokens]))

    def given(self, jobs: list[Job], line: Line) -> None:
        """These jobs have the tokens that were taken last, and begin."""
        late = LATE * self._patience * min(each.seconds for each in line.tokens)
        by = self._asked_at + self._trip + late
        since = [self._taken_at[each] for each in line.tokens]
        for job in jobs:
            self._held[job] = line, since
            job.begins_by = by

    def ended(self, job: Job) -> Line | None:
        """The job needs its tokens no more; the line it is of, where it has not used them."""
        line, since = self._held.pop(job, (None, []))
        if line is None:
            return None
        if job.started:
            self._patience = max(1.0, 0.9 * self._patience)
            return None
        if job.verdict == TOO_LATE:
            self._patience = min(PATIENT, 2 * self._patience)
        job.begins_by = 0.0
        for each, at in zip(line.tokens, since, strict=True):
            self._unused.append((each, 1, at))
            each.ready_at = 0.0
        return line

    def drop_settled(self) -> None:
        """Let go of jobs that have begun, and of those that will not."""
        for job in list(self._held):
            if job.started or job.lost or job.verdict == RELEASE:
                self.ended(job)

    def give_up(self) -> None:
        """Give back now what is to be given back."""
        if self._unused:
            self._keys.take(self._returned())
            self._unused = []

    def _returned(self) -> list[Ask]:
        return [tokens.ask(-number, at) for tokens, number, at in self._unused]
