"""Jobs that wait for their limits: which may begin, which wait here, which in the broker.

Tokens and places are taken when a slot is idle, so that what was taken begins at
once. What gets none waits here, under its lease and without a slot, if its turn
comes within about a second; else it goes back to the broker until about its turn.
Owned by the I/O thread.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

from taskline.app import Taskline
from taskline.backends.keys import KeyStore
from taskline.control.documents import why_no_keys
from taskline.errors import ConfigurationError, TransportError
from taskline.limiting import Rulebook, key_of, rulebook
from taskline.worker.admit import Admitted
from taskline.worker.execute import Job, Runner
from taskline.worker.gather import Gather
from taskline.worker.limits.grants import Grants
from taskline.worker.limits.holdings import Holdings
from taskline.worker.limits.lines import Lines
from taskline.worker.limits.parking import Parking
from taskline.worker.limits.permits import Line, Places
from taskline.worker.prefetch import PATIENCE
from taskline.worker.quarantine import SUSPECT_DELAY
from taskline.worker.settle import Settlements

log = logging.getLogger("taskline.worker")


class Limiter:
    """Of one process."""

    def __init__(
        self,
        app: Taskline,
        book: Rulebook,
        keys: KeyStore,
        runner: Runner,
        settlements: Settlements,
        gather: Gather | None,
        consumer: str,
        lease: float,
    ) -> None:
        self._app = app
        self.lines = Lines(book)
        self._runner = runner
        self._settlements = settlements
        self._clock = app.clock
        self._places = Holdings(keys, consumer, lease)
        self._grants = Grants(keys, runner.now)
        self.due = 0.0
        """When a line may move, by the monotonic clock."""
        self.parking = Parking(app, keys, settlements, gather)
        self.more = False
        """Whether `begin` should be called again as soon as these have begun."""

    def told(self, told: Mapping[str, str]) -> None:
        """Let these rates hold from now on, in place of those in the code."""
        self.lines.follow(rulebook(self._app, told), self._places.lines)
        self.due = 0.0

    # Coming

    def limits(self, job: Job) -> bool:
        """Whether the job is subject to limits."""
        assert job.task is not None
        return self.lines.limits(job.task.name, job.delivery.queue)

    def keep(self, admitted: Admitted, now: float) -> Admitted:
        """Let the jobs that have limits wait; returns the others.

        Batches come to `wait` when they are formed. Suspects get a permit at once, or go back.
        """
        self.parking.eager = 0
        plain, coroutines = (
            [job for job in jobs if not self._keeps(job, now)] for jobs in admitted[:2]
        )
        suspects = [job for job in admitted.suspects if not self._refuses(job, now)]
        return Admitted(plain, coroutines, suspects)

    def wait(self, jobs: list[Job], now: float) -> list[Job]:
        """Let the batches of these wait that have limits; returns the others."""
        return [job for job in jobs if not self.limits(job) or self._join(job, now) is None]

    def _keeps(self, job: Job, now: float) -> bool:
        assert job.task is not None
        if job.task.batch or not self.limits(job):
            return False
        self._join(job, now)
        return True

    def _refuses(self, job: Job, now: float) -> bool:
        if not self.limits(job):
            return False
        line = self._join(job, now)
        if line is None:
            return True
        line.jobs.pop()
        try:
            ((_, permitted),) = self._permitted([(line, [job])], now)
        except TransportError as error:
            log.warning("task %s is handed back: %s", job.delivery.id, error)
            permitted = []
        job.begins_by = 0.0  # it runs alone, whenever that is
        if not permitted:
            later = max(SUSPECT_DELAY, min(line.ready_at - now, 10.0))
            self._settlements.give_back([job], later)
        return not permitted

    def _join(self, job: Job, now: float) -> Line | None:
        """The line at whose end the job is now; None when it has failed for want of a key."""
        task = job.task
        assert task is not None
        key = ""
        if task.limits is not None and task.limits.key is not None:
            try:
                key = key_of(task, *self._runner.decoded(job))
            except Exception as error:
                self._runner.verdicts.failed(job, error)
                self._settlements.add(job)
                return None
        line = self.lines.line(task.name, job.delivery.queue, key, task.is_async)
        if not line.jobs:
            line.moved_at = now
        line.jobs.append(job)
        self.due = 0.0
        return line

    # Beginning

    def begin(self, now: float, threads: int, coroutines: int) -> tuple[list[Job], list[Job]]:
        """Jobs that may begin now, at most so many of either kind; `tidy` is to follow.

        Raises `TransportError` when there are none because the store does not answer.
        """
        begun: tuple[list[Job], list[Job]] = [], []
        self.more = False
        self._places.drop_settled()
        self._grants.drop_settled()
        if self._places.freed:
            self.due = 0.0
        if now < self.due:
            return begun
        room, asked = [threads, coroutines], set[Line]()
        while wishes := self._wishes(now, room, asked):
            try:
                permitted = self._permitted(wishes, now)
            except TransportError:
                if begun[0] or begun[1]:
                    break  # those may begin all the same
                raise
            for line, jobs in permitted:
                begun[line.is_async].extend(jobs)
                room[line.is_async] -= len(jobs)
        self.more = any(
            line.jobs and line.ready_at <= now and room[line.is_async] for line in asked
        )
        return self._acknowledged(begun[0]), self._acknowledged(begun[1])

    def tidy(self, now: float) -> None:
        """Free places that nobody here needs, and send away what would wait here for long."""
        if now < self.due:
            return
        self._places.give_up()
        self._grants.give_up()
        self.parking.park(list(self.lines), now)
        self.lines.quieten(self._places.lines)
        self.due = min((line.ready_at for line in self.lines), default=math.inf)
        if self.due <= now:
            self.due = 0.0  # for a slot

    def _acknowledged(self, jobs: list[Job]) -> list[Job]:
        """These jobs, where those that are acknowledged before they run are that now."""
        early = [job for job in jobs if job.task is not None and job.task.ack == "early"]
        if not early:
            return jobs
        for job in early:
            job.begins_by = 0.0
        kept = self._settlements.ack_early(early)
        for job in early:
            job.lost = job not in kept
        return [job for job in jobs if not job.lost]

    def _wishes(
        self, now: float, room: list[int], asked: set[Line]
    ) -> list[tuple[Line, list[Job]]]:
        """For which jobs to ask: those whose turn may have come, as far as slots are idle."""
        left = list(room)
        wishes = []
        for line in list(self.lines):
            line.drop(_is_lost)
            number = min(len(line.jobs), left[line.is_async], line.at_once)
            if not line.jobs or line.ready_at > now:
                line.lacks_since = 0.0
            elif not number:
                line.lacks_since = line.lacks_since or now
            elif line not in asked:
                line.lacks_since = 0.0
                asked.add(line)
                left[line.is_async] -= number
                wishes.append((line, line.jobs[:number]))
                self.lines.was_asked_for(line)
        return wishes

    def _permitted(
        self, wishes: list[tuple[Line, list[Job]]], now: float
    ) -> list[tuple[Line, list[Job]]]:
        """Take places and tokens; returns the jobs that have all they need, out of their lines."""
        held = self._hold(wishes, now)
        try:
            granted = self._take(held, now)
        except BaseException:
            for line, jobs in held:
                for job in jobs:
                    self._places.free(job, line)
            raise
        for line, jobs in granted:
            line.drop(set(jobs).__contains__)
            line.moved_at = now
            if line.places:
                self._places.took(jobs, line)
            if line.tokens:
                self._grants.given(jobs, line)
        return granted

    def _hold(
        self, wishes: list[tuple[Line, list[Job]]], now: float
    ) -> list[tuple[Line, list[Job]]]:
        """Those of these jobs that have all places they need."""
        asked = [(jobs, each) for line, jobs in wishes for each in line.places]
        if not asked:
            return wishes
        lacking: set[Job] = set()
        got: list[tuple[Job, Places]] = []
        for (jobs, each), ids in zip(asked, self._places.want(asked), strict=True):
            each.learn(now, len(jobs), len(ids))
            for job in jobs:
                if job.delivery.id in ids:
                    got.append((job, each))
                else:
                    lacking.add(job)
        for job, each in got:
            if job in lacking:  # one place is no use without the other
                self._places.free_one(job, each)
        return [(line, [job for job in jobs if job not in lacking]) for line, jobs in wishes]

    def _take(self, held: list[tuple[Line, list[Job]]], now: float) -> list[tuple[Line, list[Job]]]:
        """Those of these jobs for which there are tokens; the others give up their places."""
        asked = [(line, jobs, each) for line, jobs in held for each in line.tokens if jobs]
        if not asked:
            return held
        numbers = {id(line): len(jobs) for line, jobs in held}
        answers = self._grants.take([(each, len(jobs)) for _, jobs, each in asked])
        for (line, jobs, each), taken in zip(asked, answers, strict=True):
            each.learn(now, len(jobs), taken)
            numbers[id(line)] = min(numbers[id(line)], taken.number)
        for (line, _, each), taken in zip(asked, answers, strict=True):
            if taken.number > numbers[id(line)]:
                self._grants.unused(each, taken.number - numbers[id(line)])
        self._grants.give_up()
        granted = []
        for line, jobs in held:
            number = numbers[id(line)]
            granted.append((line, jobs[:number]))
            for job in jobs[number:]:
                self._places.free(job, line)
        return granted

    def late(self, job: Job) -> None:
        """The job did not begin in time: it is the first of those that wait again."""
        line = self._grants.ended(job)
        self._places.ended(job)
        job.verdict = ""
        if line is None:
            return  # it was lost meanwhile
        line = self.lines.line(*line.which, line.is_async)
        line.jobs.insert(0, job)
        line.kept += 1
        self.due = 0.0

    # Waiting elsewhere

    def stuck(self, now: float) -> bool:
        """Hand back what could begin but for a slot, so that idle slots elsewhere can have it.

        Returns whether there was any.
        """
        found = [
            line for line in self.lines if line.lacks_since and now - line.lacks_since > PATIENCE
        ]
        for line in found:
            line.lacks_since = 0.0
            self.parking.hand_back(line.take_all(), 0.0)
        return bool(found)

    def take_back(self) -> None:
        """Hand back all that waits here."""
        for line in self.lines:
            self.parking.hand_back(line.take_all(), 0.0)

    # Places

    def ended(self, job: Job) -> None:
        """The job runs no more: its place is free for the next."""
        self._places.ended(job)
        self._grants.ended(job)

    def given_up(self, job: Job) -> None:
        """The job does not run again, so that what a killed run of it held is free."""
        task = job.task
        if task is None or not self.limits(job):
            return
        try:
            key = key_of(task, *self._runner.decoded(job)) if task.limits is not None else ""
        except Exception as error:
            log.debug("task %s has no key by which it could hold a place: %r", task.name, error)
            return
        self._places.leave(
            job, self.lines.book.rules(task.name, job.delivery.queue, key).semaphores
        )

    def renew(self) -> None:
        """Hold on to all places for another lease."""
        self._places.renew()

    def close(self) -> None:
        """Give up all places, and tokens that were not used."""
        self._places.close()
        self._grants.drop_settled()
        self._grants.give_up()


def check(app: Taskline) -> None:
    """Raise `ConfigurationError` for limits where workers of this app have no place to share."""
    why = why_no_keys(app)
    limited = Rulebook(app).first()
    if why and limited:
        raise ConfigurationError(
            f"{limited} has a rate or concurrency=, which workers keep together in the result "
            f'backend, and the app {why}: give it one, such as backend="sqlite:///shop.db"'
        )


def _is_lost(job: Job) -> bool:
    return all(each.lost for each in job.members) if job.members else job.lost
